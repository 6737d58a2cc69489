"""Tokenizers read from the files of others: tokenizer.json, vocab.txt, vocab.json with merges.txt, SentencePiece models.

Each gives the numbers that the library which wrote it gives. A file that was written for a class of tokenizer whose rules are
not known here is refused rather than read almost rightly; its tokenizer.json says all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban.data.processors import _sentencepiece
from luban.data.processors._tokenizers import Ready
from luban.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["files_of", "read"]

_JSON, _VOCABULARY, _BPE, _MERGES = "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"
_SETTINGS = "tokenizer_config.json"
_OURS = "preprocessing.json"  # of an artefact, which says there what its tokenizer does not
_GENERATION, _CONFIG = "generation_config.json", "config.json"
_BESIDE = (
    _SETTINGS,
    _OURS,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    _GENERATION,
    _CONFIG,
)
# What a token that says nothing of its part is called, in the order of trust.
_USUAL = {
    "pad": ("[PAD]", "<pad>", "<|padding|>", "<|finetune_right_pad_id|>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
    "begin": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"),
    "end": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>"),
}
_ROLES = {"bos": "begin", "eos": "end"} | {name: name for name in ("pad", "unk", "cls", "sep", "mask")}


def read(path: Path) -> Ready:
    """Return the tokenizer of a file, or of the directory of a model.

    Raises:
        DataError: if there is none, or it cannot be read as it was meant.
    """
    file = _main_file(path)
    if file.suffix == ".gguf":
        return _of_gguf(file)
    beside = _Beside(file.parent)
    if file.suffix == ".model":
        tokenizer = _sentencepiece_tokenizer(file, beside)
    elif file.name in (_BPE, _MERGES):
        tokenizer = _bpe(file.parent, beside)
    elif file.suffix == ".txt":
        tokenizer = _wordpiece(file, beside)
    else:
        tokenizer = _json_tokenizer(file)
    for token in beside.added:  # those that only the settings name
        if tokenizer.token_to_id(token) is None:
            tokenizer.add_special_tokens([token])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    roles = _roles(tokenizer, beside) | beside.roles
    ends = dict.fromkeys(
        [*(name for i in beside.ends if (name := tokenizer.id_to_token(i))), *beside.named_ends]
    )
    return Ready(
        tokenizer, roles, beside.chat_template, tuple(name for name in ends if name != roles.get("end"))
    )


def files_of(path: Path) -> list[Path]:
    """Return the files that `read` looks at, as far as they are there: another file is another tokenizer."""
    try:
        file = _main_file(path)
    except DataError:
        return []
    if file.suffix == ".gguf":
        return [file]
    names = [file.name, *_BESIDE]
    if file.name in (_BPE, _MERGES):
        names += [_BPE, _MERGES]
    return [one for name in dict.fromkeys(names) if (one := file.parent / name).is_file()]


def _main_file(path: Path) -> Path:
    if path.is_dir():
        for name in (_JSON, _VOCABULARY, _BPE):
            if (path / name).is_file():
                return path / name
        models = sorted(path.glob("*.model"))
        if len(models) > 1:
            raise DataError(
                f"'{path}' holds several SentencePiece models ({', '.join(m.name for m in models)}); name one of them"
            )
        path = models[0] if models else path / _JSON
    if not path.is_file():
        raise DataError(
            f"there is no tokenizer '{path}'; name a tokenizer.json, a vocab.txt, a SentencePiece model, a GGUF file or a directory that "
            "holds one, or leave the key out to train one"
        )
    return path


def _of_gguf(file: Path) -> Ready:
    """Return the tokenizer inside a GGUF file, with the parts that it names."""
    from luban.data.gguf.tokenizer import tokenizer_of

    tokenizer, said = tokenizer_of(file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    roles = {role: said[f"{name}_token"] for name, role in _ROLES.items() if f"{name}_token" in said}
    named = dict.fromkeys(said[key] for key in ("eot_token", "eom_token") if key in said)
    return Ready(
        tokenizer, roles, said.get("chat_template"), tuple(one for one in named if one != roles.get("end"))
    )


class _Beside:
    """What stands beside a vocabulary: settings, special tokens, added tokens, a template of conversations."""

    def __init__(self, folder: Path) -> None:
        self.settings = _object(folder / _SETTINGS)
        special = _object(folder / "special_tokens_map.json") | {
            key: value for key, value in self.settings.items() if value is not None
        }
        self.special = {
            role: content
            for name, role in _ROLES.items()
            if (content := _content(special.get(f"{name}_token"))) is not None
        }
        others = special.get("additional_special_tokens") or special.get("extra_special_tokens") or []
        listed = [_content(one) for one in others] if isinstance(others, list) else []
        self.added = [*self.special.values(), *(one for one in listed if one is not None)]
        self.numbered: dict[int, Any] = {
            int(i): token for i, token in (self.settings.get("added_tokens_decoder") or {}).items()
        }
        for content, i in _object(folder / "added_tokens.json").items():
            self.numbered.setdefault(int(i), {"content": content})
        self.chat_template = _template(self.settings.get("chat_template"))
        if (file := folder / "chat_template.jinja").is_file():
            self.chat_template = _text(file)
        self.ends = _ends(folder)
        self.roles: dict[str, str] = {}
        self.named_ends: list[str] = []
        for state in _states(folder / _OURS):
            self.roles = dict(state.get("roles") or {})
            self.chat_template = _template(state.get("chat_template"))
            self.named_ends = list(state.get("ends") or [])

    @property
    def kind(self) -> str:
        """The class of tokenizer that the files were written for; empty if they do not say."""
        return str(self.settings.get("tokenizer_class") or "").removesuffix("Fast")

    def named(self, role: str, default: str) -> str:
        """Return the token of a role, or what it is without a word of the settings."""
        return self.special.get(role, default)

    def add_to(self, tokenizer: Tokenizer, file: Path) -> None:
        """Add the tokens that have numbers of their own."""
        from tokenizers import AddedToken

        flags = ("lstrip", "rstrip", "normalized", "single_word")
        for i, token in sorted(self.numbered.items()):
            one = AddedToken(
                token["content"],
                special=bool(token.get("special", False)),
                **{key: bool(token[key]) for key in flags if key in token},
            )
            (tokenizer.add_special_tokens if one.special else tokenizer.add_tokens)([one])
            if tokenizer.token_to_id(one.content) != i:
                raise DataError(
                    f"'{file}' and the files beside it disagree: token '{one.content}' should be number {i}, but it becomes "
                    f"{tokenizer.token_to_id(one.content)}"
                )


def _roles(tokenizer: Tokenizer, beside: _Beside) -> dict[str, str]:
    """Return which token plays which part: as the settings say, as the tokenizer uses it, or by its usual name."""
    spec = json.loads(tokenizer.to_str())
    added = {token["content"] for token in spec["added_tokens"]}
    roles: dict[str, str] = {}
    for role, names in _USUAL.items():
        found = [name for name in names if name in added]
        if found:
            roles[role] = found[0]
    processor = spec["post_processor"] or {}
    for role in ("cls", "sep"):
        if role in processor:  # of BERT and RoBERTa: [token, number]
            roles[role] = processor[role][0]
    unknown = spec["model"].get("unk_token")
    if unknown is None and spec["model"].get("unk_id") is not None:
        unknown = spec["model"]["vocab"][spec["model"]["unk_id"]][0]
    if unknown is not None:
        roles["unk"] = unknown
    roles |= beside.special
    return {role: name for role, name in roles.items() if tokenizer.token_to_id(name) is not None}


# --- each layout ------------------------------------------------------------------------------------------


def _json_tokenizer(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    with _building(file, "is no tokenizer.json that can be read"):
        return Tokenizer.from_file(os.fspath(file))


def _wordpiece(file: Path, beside: _Beside) -> Tokenizer:
    """BERT's vocab.txt: a token a line."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    if beside.kind not in (
        "",
        "Bert",
        "BertTokenizer",
        "DistilBertTokenizer",
        "ElectraTokenizer",
        "BasicTokenizer",
    ):
        raise _unknown_class(file, beside)
    tokens = _text(file).split("\n")
    if tokens[-1] == "":
        tokens.pop()
    numbers = {token.removesuffix("\r"): i for i, token in enumerate(tokens)}
    unknown = beside.named("unk", "[UNK]")
    if unknown not in numbers:
        raise DataError(
            f"'{file}' is no vocabulary of word pieces: it has no '{unknown}' among its {len(tokens):,} lines"
        )
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(beside.settings.get("tokenize_chinese_chars", True)),
        strip_accents=beside.settings.get("strip_accents"),
        lowercase=bool(beside.settings.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    beside.add_to(tokenizer, file)
    names = {role: beside.named(role, f"[{role.upper()}]") for role in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer.add_special_tokens([name for name in names.values() if name in numbers])
    _frame(
        tokenizer,
        [names["cls"]] if names["cls"] in numbers else [],
        [names["sep"]] if names["sep"] in numbers else [],
    )
    return tokenizer


def _bpe(folder: Path, beside: _Beside) -> Tokenizer:
    """GPT-2's vocab.json and merges.txt."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    from luban.data.processors._encoding import QWEN2

    file = folder / _BPE
    kind = beside.kind
    if kind not in ("", "GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "Qwen2Tokenizer"):
        raise _unknown_class(file, beside)
    numbers = _object(file, must=True)
    lines = _text(folder / _MERGES).split("\n")
    found = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    merges = [(pair[0], pair[-1]) for pair in found]
    if any(len(pair) != 2 for pair in found):
        raise DataError(
            f"'{folder / _MERGES}' is damaged: a line should hold two tokens with a space between them"
        )
    with _building(file, "and merges.txt are no tokenizer that can be read"):
        tokenizer = Tokenizer(models.BPE(numbers, merges))
    prefix = bool(beside.settings.get("add_prefix_space", False))
    if kind == "Qwen2Tokenizer":
        tokenizer.normalizer = normalizers.NFC()
        parts = [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    beside.add_to(tokenizer, file)
    if kind in ("RobertaTokenizer", "BartTokenizer"):
        begin, end, mask = (
            beside.named("cls", "<s>"),
            beside.named("sep", "</s>"),
            beside.named("mask", "<mask>"),
        )
        usual = [begin, "<pad>", end, "<unk>"]
        tokenizer.add_special_tokens([name for name in usual if name in numbers])
        if mask in numbers:  # it takes the space before it
            tokenizer.add_special_tokens([AddedToken(mask, lstrip=True, special=True)])
        beside.special |= {"cls": begin, "sep": end}
        _frame(tokenizer, [begin], [end])
    elif "<|endoftext|>" in numbers:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def _sentencepiece_tokenizer(file: Path, beside: _Beside) -> Tokenizer:
    """A SentencePiece model, with what the classes of the `transformers` library put around it."""
    model = _sentencepiece.parse(file.read_bytes(), file)
    begin, end = beside.named("begin", model.begin), beside.named("end", model.end)
    match beside.kind:
        case "" | "PreTrainedTokenizer":
            before, after = [], []
        case "LlamaTokenizer" | "GemmaTokenizer":
            before = [begin] if beside.settings.get("add_bos_token", True) else []
            after = [end] if beside.settings.get("add_eos_token", False) else []
        case "T5Tokenizer" | "MT5Tokenizer":
            before, after = [], [end]
        case "XLMRobertaTokenizer":
            model = model.as_fairseq()
            before, after = ["<s>"], ["</s>"]
            beside.special |= {"cls": "<s>", "sep": "</s>"}
        case _:
            raise _unknown_class(file, beside)
    with _building(file, "is no SentencePiece model that can be read"):
        tokenizer = model.build()
    beside.add_to(tokenizer, file)
    if beside.kind == "T5Tokenizer" and tokenizer.token_to_id("<extra_id_0>") is None:
        n = int(beside.settings.get("extra_ids", 100))
        tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(n))])
    _frame(tokenizer, before, after)
    return tokenizer


def _frame(tokenizer: Tokenizer, before: list[str], after: list[str]) -> None:
    """Put tokens around each text."""
    from tokenizers import processors

    if not (before or after):
        return
    single = " ".join([*before, "$A", *after])
    pair = " ".join([*before, "$A", *after, "$B:1", *(f"{name}:1" for name in after)])
    ids = [(name, tokenizer.token_to_id(name)) for name in dict.fromkeys([*before, *after])]
    missing = [name for name, i in ids if i is None]
    if missing:
        raise DataError(f"the tokenizer has no '{missing[0]}', which should stand around each text")
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


# --- reading ----------------------------------------------------------------------------------------------


def _unknown_class(file: Path, beside: _Beside) -> DataError:
    return DataError(
        f"'{file}' was written for the class '{beside.settings.get('tokenizer_class')}', whose rules are not known here; load it with the "
        f"transformers library once and save it as tokenizer.json: AutoTokenizer.from_pretrained('{file.parent}').save_pretrained('{file.parent}')"
    )


@contextmanager
def _building(file: Path, what: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
        raise DataError(f"'{file}' {what}: {error}") from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{file}' cannot be read as text in UTF-8: {error}") from None


def _object(file: Path, *, must: bool = False) -> dict[str, Any]:
    """Return the object that a JSON file holds; an empty one if there is no file, unless it must be there."""
    if not file.is_file() and not must:
        return {}
    try:
        found = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise DataError(f"'{file}' is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"'{file}' should hold a JSON object, but it holds a {type(found).__name__}")
    return found


def _ends(folder: Path) -> list[int]:
    """Return the tokens at which `transformers` ends a text: those of generation_config.json, or else of config.json."""
    for file in (folder / _GENERATION, folder / _CONFIG):
        if (found := _object(file).get("eos_token_id")) is None:
            continue
        listed = found if isinstance(found, list) else [found]
        if not all(type(i) is int and 0 <= i < 2**31 for i in listed):
            raise DataError(
                f"'{file}' has eos_token_id {str(found)[:80]!r}, and that must be the number of a token or a list of them"
            )
        return listed
    return []


def _states(file: Path) -> Iterator[dict[str, Any]]:
    """Yield what an artefact knows of its tokenizer.json."""
    inputs = _object(file).get("inputs")
    for part in inputs.values() if isinstance(inputs, dict) else ():
        state = part.get("state") if isinstance(part, dict) else None
        if isinstance(state, dict) and state.get("tokenizer_file") == _JSON:
            yield state


def _content(token: Any) -> str | None:
    """A token stands in the settings as text, or as an object with its flags."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _template(found: Any) -> str | None:
    """Some models have several templates, of which one is the default."""
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
