"""The tokenizer that a GGUF file carries in its metadata, as one of the `tokenizers` library.

Two of the models of the specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Tokenizer") are read:
``gpt2``, which joins bytes by a list of merges (Sennrich et al., 2016; Radford et al., 2019), and ``llama``, which joins
characters by the scores of the pieces that result (SentencePiece: Kudo and Richardson, 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from luban.data.gguf.file import GGUF, read_gguf
from luban.data.processors._encoding import GPT2, LLAMA3, QWEN2
from luban.errors import ArtefactError, RecipeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["tokenizer_of"]

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6  # 1 is an ordinary token
_SPACE = "▁"  # what SentencePiece writes for a space

T = TypeVar("T")


@dataclass(frozen=True)
class _Pre:
    """What happens to a text before bytes are joined.

    Attributes:
        patterns: each cuts the pieces of the one before.
        whole: whether a piece that is a token is taken as it is, whatever the merges would make of it.
        compose: whether letters and their marks are made one (Unicode's NFC); a GGUF file does not say it, its model does.
        begin: whether a text begins with the beginning-of-text token where the file does not say.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    compose: bool = False
    begin: bool = False


_DIGIT_BY_DIGIT = _Pre((r"\p{N}", GPT2))
_LLAMA3 = _Pre((LLAMA3,), whole=True, begin=True)
_PRES = {
    # What llama.cpp takes for files that were made before there was this key.
    "default": _Pre((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": _Pre((GPT2,)),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _Pre((QWEN2,), compose=True),
    "smollm": _DIGIT_BY_DIGIT,
    "starcoder": _DIGIT_BY_DIGIT,
}


def tokenizer_of(path: str | Path) -> tuple[Tokenizer, dict[str, str]]:
    """Return a GGUF file's tokenizer, and what its special tokens are.

    The tokenizer puts the beginning-of-text and end-of-text tokens around a text where the file says so, if special tokens
    are asked for.

    Args:
        path: the file; none of its tensors are read.

    Returns:
        The tokenizer, and as far as the file has them ``bos_token``, ``eos_token``, ``eot_token`` and ``eom_token`` (of a turn
        and of a message, which end a text too), ``pad_token``, ``unk_token`` and ``chat_template`` (Jinja).

    Raises:
        RecipeError: if there is no such file, or its tokenizer is of a kind that is not read.
        ArtefactError: if the file is damaged.

    Example:
        >>> tokenizer, said = tokenizer_of("SmolLM2-135M-Instruct.Q4_1.gguf")  # doctest: +SKIP
        >>> tokenizer.encode("The capital of France is").tokens, said["eos_token"]  # doctest: +SKIP
        (['The', 'Ġcapital', 'Ġof', 'ĠFrance', 'Ġis'], '<|im_end|>')
    """
    file = read_gguf(path)
    model = file.get("tokenizer.ggml.model", str)
    build: dict[str | None, Callable[[GGUF, _Tokens], Tokenizer]] = {
        "gpt2": _byte_level,
        "llama": _sentence_piece,
    }
    if model not in build:
        raise RecipeError(
            f"'{path}' has "
            + (f"a tokenizer of type '{model}'" if model else "no tokenizer")
            + f"; those read are {' and '.join(map(str, build))}"
        )
    tokens = _tokens(file)
    try:
        tokenizer = build[model](file, tokens)
    except (ArtefactError, RecipeError):
        raise
    except Exception as error:  # the library raises bare Exception, for a merge whose parts are no tokens
        raise ArtefactError(f"'{path}' is damaged: {' '.join(str(error).split())[:120]}") from None
    _add_special(tokenizer, tokens)
    _add_frame(tokenizer, file, tokens, begin=model == "llama" or _pre(file).begin)
    said = {f"{short}_token": tokens.names[place] for short, place in tokens.special.items()}
    if (template := file.get("tokenizer.chat_template", str)) is not None:
        said["chat_template"] = template
    return tokenizer, said


@dataclass(frozen=True)
class _Tokens:
    """The vocabulary.

    Attributes:
        names: of the tokens, by id.
        types: of the tokens, by id.
        ids: of the tokens, by name.
        special: ``bos``, ``eos``, ``eot``, ``eom``, ``pad``, ``unk`` → id, as far as they are there.
    """

    names: list[str]
    types: list[int]
    ids: dict[str, int]
    special: dict[str, int]


def _tokens(file: GGUF) -> _Tokens:
    names = _list(file, "tokens", str)
    if names is None:
        raise ArtefactError(f"'{file.path}' is incomplete: its metadata lack tokenizer.ggml.tokens")
    types = _list(file, "token_type", int) or [1] * len(names)
    ids = {name: place for place, name in enumerate(names)}
    if len(types) != len(names) or len(ids) != len(names):
        what = (
            "a token is there twice"
            if len(ids) != len(names)
            else f"{len(types):,} types of {len(names):,} tokens"
        )
        raise ArtefactError(f"'{file.path}' is damaged: {what}")
    special: dict[str, int] = {}
    keys = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "pad": "padding", "unk": "unknown"}
    for short, key in keys.items():
        place = file.get(f"tokenizer.ggml.{key}_token_id", int)
        if place is not None and 0 <= place < len(
            names
        ):  # -1 and the like are how some files say that there is none
            special[short] = place
    return _Tokens(names, types, ids, special)


def _list(file: GGUF, key: str, kind: type[T]) -> list[T] | None:
    values = file.get(f"tokenizer.ggml.{key}", list)
    if values is not None and not all(type(value) is kind for value in values):
        raise ArtefactError(
            f"'{file.path}' is damaged: tokenizer.ggml.{key} is no list of type {kind.__name__}"
        )
    return values


def _pre(file: GGUF) -> _Pre:
    name = file.get("tokenizer.ggml.pre", str) or "default"
    if name not in _PRES:
        raise RecipeError(f"'{file.path}' cuts texts in the way '{name}'; those known are {', '.join(_PRES)}")
    return _PRES[name]


def _byte_level(file: GGUF, tokens: _Tokens) -> Tokenizer:
    """Make a tokenizer of type gpt2."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    written = _list(file, "merges", str)
    if written is None:
        raise ArtefactError(f"'{file.path}' is incomplete: its metadata lack tokenizer.ggml.merges")
    merges = []
    for line in written:
        left, _, right = line.partition(" ")
        if not left or not right:
            raise ArtefactError(f"'{file.path}' is damaged: {line[:40]!r} is no merge of two tokens")
        merges.append((left, right))
    pre = _pre(file)
    # No unknown token, as in the models themselves: a byte that no token has is left out.
    tokenizer = Tokenizer(models.BPE(tokens.ids, merges, ignore_merges=pre.whole))
    if pre.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(file: GGUF, tokens: _Tokens) -> Tokenizer:
    """Make a tokenizer of type llama."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _list(file, "scores", float)
    if scores is None or len(scores) != len(tokens.names):
        raise ArtefactError(
            f"'{file.path}' is damaged: {len(scores or []):,} scores of {len(tokens.names):,} tokens"
        )
    unknown = tokens.special.get(
        "unk", next((i for i, kind in enumerate(tokens.types) if kind == _UNKNOWN), None)
    )
    tokenizer = Tokenizer(
        models.BPE(
            tokens.ids,
            _merges(tokens, scores),
            unk_token=None if unknown is None else tokens.names[unknown],
            fuse_unk=True,
            byte_fallback=_BYTE in tokens.types,
        )
    )
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool) is not False
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    back = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.insert(0, normalizers.Prepend(_SPACE))
        back.append(decoders.Strip(" ", left=1, right=0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def _merges(tokens: _Tokens, scores: list[float]) -> list[tuple[str, str]]:
    """Return the pairs that make a token, best first.

    SentencePiece joins the two neighbours whose whole has the highest score, whichever two they are; a list of merges that is
    ordered by that score does the same. Of several ways to the same token the one with the longer left part comes first.
    """
    outside = {_UNKNOWN, _CONTROL, _UNUSED, _BYTE}
    usable = {name: i for name, i in tokens.ids.items() if tokens.types[i] not in outside}
    pairs = [
        (-scores[i], -cut, whole)
        for whole, i in usable.items()
        for cut in range(1, len(whole))
        if whole[:cut] in usable and whole[cut:] in usable
    ]
    pairs.sort(key=lambda pair: pair[:2])
    return [(whole[:-minus], whole[-minus:]) for _, minus, whole in pairs]


def _add_special(tokenizer: Tokenizer, tokens: _Tokens) -> None:
    """Have tokens that are no text found before the text is cut, and left out when it is put together again."""
    from tokenizers import AddedToken

    for name, kind in zip(tokens.names, tokens.types, strict=True):
        if kind in (_UNKNOWN, _CONTROL):
            tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(name, normalized=False)])


def _add_frame(tokenizer: Tokenizer, file: GGUF, tokens: _Tokens, *, begin: bool) -> None:
    """Have a text begin and end as the file says."""
    from tokenizers import processors

    first = file.get("tokenizer.ggml.add_bos_token", bool)
    last = file.get("tokenizer.ggml.add_eos_token", bool)
    around = {"bos": begin if first is None else first, "eos": bool(last)}
    frame = {
        short: tokens.special[short] for short, wanted in around.items() if wanted and short in tokens.special
    }
    if not frame:
        return
    # By names of ours: theirs may hold what the template takes for its own signs.
    single = [*(["bos"] if "bos" in frame else []), "$A", *(["eos"] if "eos" in frame else [])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *("$B:1" if part == "$A" else f"{part}:1" for part in single)],
        special_tokens=[
            {"id": short, "ids": [place], "tokens": [tokens.names[place]]} for short, place in frame.items()
        ],
    )
