"""Texts that follow a JSON schema or a regular expression, by `llguidance`: at each step it says which tokens may follow.

The package is the optional extra ``constrain``; it is imported when the first constraint is made.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luban.errors import InputError, MissingError
from luban.generation.options import Generation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Constraint", "Matcher", "constrained", "constraint_of", "token_bytes"]


class Matcher:
    """Where one text stands in its grammar."""

    def __init__(self, inner: Any, end: list[int], tokens: int) -> None:
        self._inner, self._end, self._tokens = inner, end, tokens

    def allowed(self, size: int) -> Tensor:
        """Return which tokens may follow, bool, (size,); the end tokens where the text may end here."""
        bias = torch.frombuffer(bytearray(self._inner.compute_logit_bias()), dtype=torch.uint8) != 0
        result = torch.zeros(size, dtype=torch.bool)
        result[: self._tokens] = bias[: self._tokens][:size]
        result[self._end] = bias[self._tokens]  # the grammar's own end, behind all tokens
        return result

    def take(self, token: int) -> bool:
        """Go on by a token that is allowed; return whether the text is thereby complete, so that nothing may follow."""
        assert self._inner.consume_token(token), self._inner.get_error()
        return bool(self._inner.is_stopped())

    def copy(self) -> Matcher:
        """Return the same place, to go on from it in another way."""
        return Matcher(self._inner.deep_copy(), self._end, self._tokens)


class Constraint:
    """What every text has to follow.

    Args:
        grammar: as llguidance has it.
        vocabulary: bytes of each token; None for a token that stands for no text.
        end: tokens that end a text.
        encode: how the tokenizer itself would cut a text.

    Raises:
        MissingError: if llguidance is not installed.
        InputError: if the grammar is none.
    """

    def __init__(
        self,
        grammar: str,
        vocabulary: list[bytes | None],
        end: Collection[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        library = _library()
        self._end, self._tokens = sorted(end), len(vocabulary)
        tokenizer = library.LLTokenizer(
            library.TokenizerWrapper(_Vocabulary(vocabulary, encode)), eos_token=[len(vocabulary)]
        )
        if fault := library.LLMatcher.validate_grammar(grammar, tokenizer):
            raise InputError(f"the text cannot be constrained: {_first_line(fault)}")
        self._start = library.LLMatcher(tokenizer, grammar)

    def start(self) -> Matcher:
        """Return the place before the first token."""
        return Matcher(self._start.deep_copy(), self._end, self._tokens)


def constraint_of(
    options: Generation, tokenizer: Tokenizer | None, end: Collection[int]
) -> Constraint | None:
    """Return what the options ask for, None if nothing.

    Args:
        options: with a JSON schema, a regular expression, or neither.
        tokenizer: whose tokens are generated.
        end: tokens that end a text.
    """
    if options.json_schema is None and options.regex is None:
        return None
    if tokenizer is None:
        raise InputError("json_schema and regex need the tokenizer, to know which tokens spell what")
    matcher = _library().LLMatcher
    if options.json_schema is not None:
        grammar = matcher.grammar_from_json_schema(json.dumps(options.json_schema))
    else:
        grammar = matcher.grammar_from_regex(options.regex)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return Constraint(grammar, token_bytes(tokenizer), end, encode)


def constrained(logits: Tensor, matchers: Sequence[Matcher | None]) -> Tensor:
    """Set to -inf what may not follow; logits are (B, V), one matcher a row."""
    allowed = [matcher.allowed(logits.shape[1]) for matcher in matchers if matcher is not None]
    return logits.masked_fill(~torch.stack(allowed).to(logits.device), -torch.inf)


class _Vocabulary:
    """Tokens as llguidance's wrapper wants them, and one more, which ends a text."""

    bos_token_id = None

    def __init__(self, vocabulary: list[bytes | None], encode: Callable[[str], list[int]]) -> None:
        self.eos_token_id = len(vocabulary)
        self.special_token_ids = [i for i, token in enumerate(vocabulary) if token is None]
        self.special_token_ids.append(self.eos_token_id)
        # A token of no text is still to have a name of its own; a byte of 0xFF is in no text.
        self.tokens = [b"\xff<%d>" % i if token is None else token for i, token in enumerate(vocabulary)]
        self.tokens.append(b"\xff<end>")
        self._encode = encode
        self._ids = {token: i for i, token in reversed(list(enumerate(vocabulary))) if token}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """Cut a text whose bytes the grammar leaves no choice about."""
        ids = self._encode(text.decode("utf-8", "replace"))
        if b"".join(self.tokens[i] for i in ids) == text:
            return ids
        # A tokenizer may add a space or change letters; then the longest token that fits is taken each time.
        ids, place = [], 0
        while place < len(text):
            size = next(
                (n for n in range(self._longest, 0, -1) if text[place : place + n] in self._ids), None
            )
            if size is None:
                break
            ids.append(self._ids[text[place : place + size]])
            place += size
        return ids


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """Return the bytes that each token stands for, None for special ones.

    Args:
        tokenizer: whose tokens are bytes (BPE as in GPT-2, Llama 3, Qwen), or pieces of text with a mark for the space and
            bytes for what is unknown (Llama 2).

    Raises:
        InputError: for any other kind, whose tokens do not simply stand one after the other.
    """
    decoders = set(re.findall(r'"type":\s*"(\w+)"', json.dumps(json.loads(tokenizer.to_str())["decoder"])))
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
    result: list[bytes | None] = [None] * tokenizer.get_vocab_size()
    if not decoders & {"ByteLevel", "ByteFallback", "Metaspace"}:
        raise InputError(
            "json_schema and regex need a tokenizer of bytes or of pieces (tokens: bpe or unigram); this one's tokens are no "
            "part of a text as it stands"
        )
    for token, i in tokenizer.get_vocab().items():
        if i in special or i >= len(result):
            continue
        if i in added:
            result[i] = added[i].encode()
        elif "ByteLevel" in decoders:
            result[i] = bytes(_bytes_of_characters()[character] for character in token)
        elif "ByteFallback" in decoders and (byte := re.fullmatch(r"<0x([0-9A-F]{2})>", token)):
            result[i] = bytes([int(byte[1], 16)])
        else:
            result[i] = token.replace("\u2581", " ").encode()
    return result


@functools.cache
def _bytes_of_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level token stands for (Radford et al., 2019): those that print are
    themselves, the others are moved behind Latin-1 in their order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {**{chr(b): b for b in plain}, **{chr(256 + i): b for i, b in enumerate(moved)}}


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingError(
            "json_schema and regex need the package llguidance: pip install 'luban[constrain]'"
        ) from None
    return llguidance


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else text
