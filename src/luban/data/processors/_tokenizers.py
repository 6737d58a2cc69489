"""Tokenizers as a processor holds them, and the training of new ones on the user's texts.

What survives ``decode(encode(text))``, as far as no special token stands in the text and lower case was not asked for:

- ``bpe``: every text, exactly, since its tokens are bytes; with `normalize`, the normalised text.
- ``unigram`` and ``char`` with `byte_fallback`: the same. Blanks are part of tokens, not marked by a letter that a text may
  hold itself, and a text that spells a byte token (``<0x41>``) is taken apart before the model sees it.
- The others are for reading, not for writing: blanks are lost or made alike, and rare characters become unknown.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Literal

from luban.data.processors._encoding import GPT2, GPT2_DIGITS, WORD, WORD_DIGITS
from luban.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["BYTES", "END", "SPECIAL", "Form", "Kind", "Ready", "Training", "train"]

Kind = Literal["char", "word", "bpe", "wordpiece", "unigram"]
Form = Literal["nfkc", "nfc", "none"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
END = "<|endoftext|>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
"""Names of the tokens that stand for bytes, as SentencePiece has them."""


@dataclass(frozen=True)
class Ready:
    """A tokenizer, and what it does not say about itself.

    Attributes:
        tokenizer: of the `tokenizers` library.
        roles: ``pad``, ``unk``, ``cls``, ``sep``, ``mask``, ``begin``, ``end`` → the token with that part to play.
        chat_template: the Jinja template of a conversation, where the tokenizer came with one.
        ends: further tokens at which a text of its model ends; a model that chats may have several.
    """

    tokenizer: Tokenizer
    roles: dict[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    ends: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """How a tokenizer is trained; the options of `Text` say what each means."""

    tokens: Kind
    vocabulary: int
    min_count: int
    lowercase: bool
    special: bool = False
    end: bool = False
    digits: Literal["together", "single"] = "together"
    byte_fallback: bool = False
    normalize: Form | None = None


def train(texts: list[str], how: Training) -> Ready:
    """Return a tokenizer that was trained on the texts."""
    from tokenizers import processors

    makers = {
        "char": _train_bytes_of_characters if how.byte_fallback else _train_words,
        "word": _train_words,
        "bpe": _train_bpe,
        "wordpiece": _train_wordpiece,
        "unigram": _train_unigram_with_bytes if how.byte_fallback else _train_unigram,
    }
    tokenizer: Tokenizer = makers[how.tokens](texts, how)
    if how.special:
        ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
        )
    roles = {name.strip("[]").lower(): name for name in SPECIAL}
    if how.end:
        roles["end"] = END if how.tokens == "bpe" else "[SEP]"
    return Ready(tokenizer, roles)


def _normalizer(how: Training) -> Any:
    """Return what texts go through first; None for nothing."""
    from tokenizers import normalizers

    form = how.normalize or ("none" if how.tokens == "bpe" else "nfkc")  # bytes need no help to be reversible
    steps: list[Any] = [] if form == "none" else [getattr(normalizers, form.upper())()]
    if how.lowercase:
        steps.append(normalizers.Lowercase())
    if how.tokens == "wordpiece":  # each CJK character is a word of its own, as in BERT
        bert = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
        )
        steps.insert(0, bert)
    if not steps:
        return None
    return steps[0] if how.tokens == "bpe" and len(steps) == 1 else normalizers.Sequence(steps)


def _split(pattern: str, behavior: str, *, invert: bool = False) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), behavior, invert=invert)


def _common(how: Training) -> dict[str, Any]:
    return {
        "show_progress": False,
        "special_tokens": [*SPECIAL, END] if how.end and how.tokens == "bpe" else SPECIAL,
    }


def _train_words(texts: list[str], how: Training) -> Tokenizer:
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    word = WORD_DIGITS if how.digits == "single" else WORD
    tokenizer.pre_tokenizer = _split(r"\S" if how.tokens == "char" else word, "removed", invert=True)
    tokenizer.normalizer = _normalizer(how)
    trainer = trainers.WordLevelTrainer(
        vocab_size=how.vocabulary, min_frequency=how.min_count, **_common(how)
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_bytes_of_characters(texts: list[str], how: Training) -> Tokenizer:
    """Characters, blanks among them; one without a token of its own becomes its bytes."""
    from tokenizers import Tokenizer, decoders, models

    normalizer = _normalizer(how)
    seen: Counter[str] = Counter()
    for text in texts:
        seen.update(text if normalizer is None else normalizer.normalize_str(text))
    often = sorted((c for c in seen if seen[c] >= how.min_count), key=lambda c: (-seen[c], c))
    reserved = [*SPECIAL, *BYTES]
    tokens = [*reserved, *often[: max(0, how.vocabulary - len(reserved))]]
    numbers = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(numbers, [], unk_token="[UNK]", byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _train_bpe(texts: list[str], how: Training) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if how.digits == "single":
        parts = [
            _split(GPT2_DIGITS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.normalizer = _normalizer(how)
    trainer = trainers.BpeTrainer(
        vocab_size=max(how.vocabulary, 256 + len(SPECIAL) + how.end),
        min_frequency=how.min_count,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        **_common(how),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_wordpiece(texts: list[str], how: Training) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if how.digits == "single":
        trained.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), trained.pre_tokenizer]
        )
    trained.normalizer = _normalizer(how)
    alphabet, inner = _characters(texts, trained, how)
    trainer = trainers.WordPieceTrainer(
        vocab_size=how.vocabulary,
        min_frequency=how.min_count,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
        special_tokens=[*SPECIAL, *(f"##{c}" for c in inner)],
    )
    trained.train_from_iterator(texts, trainer)
    # The inner characters were special for the trainer only.
    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _characters(texts: list[str], trained: Tokenizer, how: Training) -> tuple[list[str], list[str]]:
    """Return the characters that words are made of, and those of them that go on inside a word.

    The trainer of word pieces chooses between characters of the same count at random, and numbers inner ones in random order, which
    decides ties between pairs too. Given an alphabet, and inner characters as special tokens in order, it makes the same of the
    same texts. By default it knows a thousand characters: too few for Chinese.
    """
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(trained.normalizer.normalize_str(text).split())
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for word, _ in trained.pre_tokenizer.pre_tokenize_str(chunk):
            words[word] += count
    seen: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            seen[character] += count
    inner = set(chain.from_iterable(word[1:] for word in words))
    often = sorted(seen, key=lambda c: (-seen[c], c))
    tokens = accumulate(1 + (c in inner) for c in often)  # inside a word it is another token
    room = max(100, how.vocabulary * 3 // 4)
    often = [c for c, count in zip(often, tokens, strict=True) if count <= room]
    return often, sorted(inner.intersection(often))


def _train_unigram(texts: list[str], how: Training) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    if how.digits == "single":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Metaspace(), pre_tokenizers.Digits(individual_digits=True)]
        )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.normalizer = _normalizer(how)
    trainer = trainers.UnigramTrainer(vocab_size=how.vocabulary, unk_token="[UNK]", **_common(how))
    _fit_pieces(tokenizer, texts, trainer, how)
    return tokenizer


def _fit_pieces(tokenizer: Tokenizer, texts: list[str], trainer: Any, how: Training) -> None:
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # the library raises bare Exception, also for a trouble that has a name
        raise DataError(
            f"no unigram tokenizer of {how.vocabulary:,} tokens can be trained on these texts: {error}; raise 'vocabulary', or set "
            "byte_fallback: true, which needs no token for rare characters"
        ) from None


def _train_unigram_with_bytes(texts: list[str], how: Training) -> Tokenizer:
    """Pieces that hold their blanks, and bytes; GPT-2's pattern parts texts, so that no piece can spell a byte's name."""
    from tokenizers import Tokenizer, decoders, models, trainers

    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = _split(GPT2_DIGITS if how.digits == "single" else GPT2, "isolated")
    trained.normalizer = _normalizer(how)
    size = max(32, how.vocabulary - len(BYTES))
    normal = (
        texts if trained.normalizer is None else [trained.normalizer.normalize_str(text) for text in texts]
    )
    seen = Counter(chain.from_iterable(normal))
    ranked = sorted(seen, key=lambda c: (-seen[c], c))
    rare = [c for i, c in enumerate(ranked) if seen[c] < how.min_count or i >= size // 2]
    without = str.maketrans(dict.fromkeys(rare, "\0"))  # where the trainer ends a sentence
    trainer = trainers.UnigramTrainer(vocab_size=size, unk_token="[UNK]", **_common(how))
    _fit_pieces(trained, [text.translate(without) for text in normal], trainer, how)
    pieces = [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"]]
    least = min(score for _, score in pieces)
    pieces += [(byte, least) for byte in BYTES]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("[UNK]"), byte_fallback=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer
