"""Text, as the numbers of its characters, words or subwords."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field as Option
from pydantic import PrivateAttr

from luban.data.contracts import Encoded, Field, Flat, Processor, Role
from luban.data.processors._base import smallest_integer
from luban.errors import DataError
from luban.registry import register

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Text"]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# A word is a run of letters, a run of digits, one CJK character, or one mark: the same rule for Chinese and for English.
_WORD = r"[\p{Han}\p{Hiragana}\p{Katakana}]|[\p{L}\p{M}]+|\p{N}+|[^\s\p{L}\p{M}\p{N}]"
_IDEOGRAPH = "[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]"  # each a word of its own
_SAMPLE_BYTES = (
    64 * 2**20
)  # what a tokenizer is trained on, at most; more text changes a vocabulary of thousands little


@register("processors")
class Text(Processor):
    """Text of any language and any length; no padding is stored.

    Field ``ids`` is ragged int. The tokenizer is trained on the training rows by the `tokenizers` library, or read from a
    ``tokenizer.json``; either way it is part of the artefact.

    Example:
        >>> p = Text(tokens="char"); p.update(pl.Series(["好的", "不好"])); p.finish()
        >>> p.encode(pl.Series(["好好"]))["ids"].offsets.tolist()
        [0, 2]
    """

    tokens: Literal["char", "word", "bpe", "wordpiece", "unigram"] = "char"
    """char: characters; word: words of letters, and single CJK characters; bpe (byte-level), wordpiece, unigram: subwords.
    Two fits of the same texts are equal, but for unigram, whose trainer in the library draws at random."""
    tokenizer: str | None = None
    """A tokenizer.json to use as it is, instead of training one."""
    vocabulary: Annotated[int, Option(ge=16)] = 8_000
    """Size of the trained vocabulary, at most."""
    min_count: Annotated[int, Option(ge=1)] = 2
    """Tokens seen less often in training are unknown."""
    max_length: Annotated[int, Option(ge=1)] | None = 512
    """Tokens kept of a text (the first ones); what is cut is counted and reported. null keeps all."""
    lowercase: bool = True
    """Whether upper and lower case are one."""
    special: bool = False
    """Whether [CLS] and [SEP] are put around each text."""

    _texts: list[str] = PrivateAttr(default_factory=list)
    _bytes: int = PrivateAttr(default=0)
    _seen: int = PrivateAttr(default=0)
    _tokenizer: Any = PrivateAttr(default=None)
    _counts: Counter[str] = PrivateAttr(default_factory=Counter)

    @property
    def trained(self) -> Tokenizer:
        """The tokenizer, once fitted."""
        assert self._tokenizer is not None, "the processor is not fitted"
        tokenizer: Tokenizer = self._tokenizer
        return tokenizer

    def update(self, values: pl.Series) -> None:
        if self.tokenizer is not None:
            return
        for text in _strings(values):
            self._seen += 1
            if self._bytes < _SAMPLE_BYTES:
                self._texts.append(text)
                self._bytes += len(text.encode())
            else:  # beyond the budget each text replaces an earlier one, so that the sample stays uniform (Vitter, 1985)
                place = int(np.random.default_rng(self._seen).integers(self._seen))
                if place < len(self._texts):
                    self._texts[place] = text

    def finish(self) -> None:
        if self.tokenizer is not None:
            self._tokenizer = _read_tokenizer(Path(self.tokenizer))
        else:
            if not any(text.strip() for text in self._texts):
                raise DataError("no training row holds any text here; remove the column")
            self._tokenizer = self._train()
        self._texts, self._bytes = [], 0
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def _train(self) -> Tokenizer:
        from tokenizers import (
            Regex,
            Tokenizer,
            decoders,
            models,
            normalizers,
            pre_tokenizers,
            processors,
            trainers,
        )

        trainer: trainers.Trainer
        options: dict[str, Any] = {"special_tokens": SPECIAL, "show_progress": False}
        match self.tokens:
            case "char" | "word":
                tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
                pattern = r"\S" if self.tokens == "char" else _WORD
                tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
                trainer = trainers.WordLevelTrainer(
                    vocab_size=self.vocabulary, min_frequency=self.min_count, **options
                )
            case "bpe":
                tokenizer = Tokenizer(models.BPE())
                tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
                tokenizer.decoder = decoders.ByteLevel()
                trainer = trainers.BpeTrainer(
                    vocab_size=max(self.vocabulary, 256 + len(SPECIAL)),
                    min_frequency=self.min_count,
                    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                    **options,
                )
            case "wordpiece":
                tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
                tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
                tokenizer.decoder = decoders.WordPiece()
                # By default a thousand characters are known: too few for Chinese.
                trainer = trainers.WordPieceTrainer(
                    vocab_size=self.vocabulary,
                    min_frequency=self.min_count,
                    limit_alphabet=max(100, self.vocabulary * 3 // 4),
                    show_progress=False,
                    special_tokens=[*SPECIAL, *self._inner_characters()],
                )
            case "unigram":
                tokenizer = Tokenizer(models.Unigram())
                tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
                tokenizer.decoder = decoders.Metaspace()
                trainer = trainers.UnigramTrainer(vocab_size=self.vocabulary, unk_token="[UNK]", **options)
        steps: list[Any] = [normalizers.NFKC()]
        if self.lowercase:
            steps.append(normalizers.Lowercase())
        if self.tokens == "wordpiece":  # each CJK character is a word of its own, as in BERT
            steps.insert(
                0,
                normalizers.BertNormalizer(
                    clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
                ),
            )
        if self.tokens != "bpe":  # byte-level BPE is reversible as long as nothing but case is changed
            tokenizer.normalizer = normalizers.Sequence(steps)
        elif self.lowercase:
            tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.train_from_iterator(self._texts, trainer)
        if self.tokens == "wordpiece":  # the inner characters were special for the trainer only
            trained, tokenizer = (
                tokenizer,
                Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]")),
            )
            for part in ("normalizer", "pre_tokenizer", "decoder"):
                setattr(tokenizer, part, getattr(trained, part))
            tokenizer.add_special_tokens(SPECIAL)
        if self.special:
            ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
            tokenizer.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
            )
        return tokenizer

    def _inner_characters(self) -> list[str]:
        """Return ``##c`` for what may go on inside a word.

        The trainer of word pieces numbers these in random order, which also decides ties between pairs; given to it in order
        as special tokens, they make two fits of the same texts equal.
        """
        seen: Counter[str] = Counter()
        for text in self._texts:
            text = unicodedata.normalize("NFKC", text)
            seen.update(text.lower() if self.lowercase else text)
        inner = [c for c in seen if unicodedata.category(c)[0] in "LMN" and not re.match(_IDEOGRAPH, c)]
        return sorted(f"##{c}" for c in sorted(inner, key=lambda c: (-seen[c], c))[:1000])

    def fields(self, column: str, role: Role) -> dict[str, Field]:
        size = self.trained.get_vocab_size()
        pad = self.trained.token_to_id("[PAD]") or 0
        return {"ids": Field(column, self.type, role, smallest_integer(size), None, size=size, pad=pad)}

    def encode(self, values: pl.Series) -> Encoded:
        return self.encode_texts(_strings(values))

    def encode_texts(self, texts: list[str]) -> Encoded:
        """Encode plain strings; as `encode`."""
        encodings = self.trained.encode_batch_fast(
            texts, add_special_tokens=self.special or self.tokenizer is not None
        )
        rows = [encoding.ids for encoding in encodings]
        if self.max_length is not None:
            long = [i for i, row in enumerate(rows) if len(row) > self.max_length]
            self._counts["texts cut to max_length"] += len(long)
            self._counts["tokens cut"] += sum(len(rows[i]) - self.max_length for i in long)
            for i in long:
                rows[i] = rows[i][: self.max_length]
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        dtype = smallest_integer(self.trained.get_vocab_size())
        flat = np.fromiter(chain.from_iterable(rows), dtype=dtype, count=int(offsets[-1]))
        return {"ids": Flat(flat, offsets)}

    def counts(self) -> Counter[str]:
        counts, self._counts = self._counts, Counter()
        return +counts

    def example(self, generator: np.random.Generator, n: int) -> list[Any]:
        size = self.trained.get_vocab_size()
        lengths = generator.integers(1, min(32, self.max_length or 32) + 1, size=n)
        return [
            self.trained.decode(generator.integers(size, size=int(length)).tolist()) for length in lengths
        ]

    def state(self) -> dict[str, Any]:
        return {"tokenizer": self.trained.to_str()}

    def restore(self, state: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(state["tokenizer"])


def _strings(values: pl.Series) -> list[str]:
    text: list[str] = values.cast(pl.String, strict=False).fill_null("").to_list()
    return text


def _read_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise DataError(
            f"there is no tokenizer '{path}'; name a tokenizer.json, or leave the key out to train one"
        )
    try:
        return Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
        raise DataError(f"'{path}' is no tokenizer.json that can be read: {error}") from None
