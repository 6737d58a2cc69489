"""The configuration of new weights of `transformers`, which takes its tokens from the tokenizer that it will read.

What a class has where a configuration names nothing is the vocabulary of a published model: with another tokenizer its padding may
be `[UNK]`, whose vector is then zero and never learnt (`padding_idx`), and its end a token that opens texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luban.data.processors.text import Text
from luban.errors import RecipeError
from luban.models._foreign import configuration_of

__all__ = ["following"]

_ROLES = {
    "pad_token_id": "pad_id",
    "bos_token_id": "begin_id",
    "eos_token_id": "end_id",
    "cls_token_id": "cls_id",
    "sep_token_id": "sep_id",
    "mask_token_id": "mask_id",
}
"""What configurations call a token → what a text does."""
_START = "decoder_start_token_id"
_SIZES = ("vocab_size", "decoder_vocab_size", "src_vocab_size", "tgt_vocab_size")
_NESTED = ("encoder", "decoder", "text_config")
"""Where configurations have those of their parts."""


def following(config: Mapping[str, Any], column: str, text: Text) -> dict[str, Any]:
    """Return what a configuration leaves out of its vocabulary: sizes and tokens, as a tokenizer has them.

    A token that a class has and the tokenizer has not is None; for padding, which some cannot do without, it is a row that no text
    has, behind those of the tokenizer.

    Args:
        config: as config.json has it.
        column: the text that is read, and
        text: its processor, fitted.

    Raises:
        RecipeError: if the configuration names too few tokens, or if there is none for padding that no text has.
    """
    return _following(config, configuration_of(config), column, text)


def _following(config: Mapping[str, Any], known: Any, column: str, text: Text) -> dict[str, Any]:
    usual = vars(known)
    named = {type(known).attribute_map.get(key, key): value for key, value in config.items()}
    found: dict[str, Any] = {}
    for key, role in _ROLES.items():
        own = getattr(text, role)
        if key in usual and key not in named and (own is not None or usual[key] is not None):
            found[key] = own
    if sizes := [key for key in _SIZES if key in usual]:
        size = _size(text)
        without = "pad_token_id" in found and found["pad_token_id"] is None
        fixed = [value for key in sizes if isinstance(value := named.get(key), int)]
        if fixed and min(fixed) < size:
            raise RecipeError(
                f"model.config has a vocab_size of {min(fixed):,}, and the tokenizer of '{column}' has {size:,} tokens; leave vocab_size out, or lower "
                f"'vocabulary' of {column}"
            )
        if without:
            found["pad_token_id"] = size
        tokens = [value for key in (*_ROLES, _START) if isinstance(value := named.get(key), int)]
        rows = min(fixed, default=max(size + without, *(token + 1 for token in tokens), 0))
        if without and rows == size:
            raise RecipeError(
                f"an architecture of type '{known.model_type}' needs a padding token, and the tokenizer of '{column}' names none; leave vocab_size out "
                "of model.config, which then has a row more, or name a pad_token_id that no text has"
            )
        found |= {key: rows for key in sizes if not isinstance(named.get(key), int)}
    if known.is_encoder_decoder and _START not in named:
        found[_START] = _start(usual, {**found, **named})
    for name in _NESTED:
        if hasattr(part := usual.get(name), "to_dict"):
            own = config.get(name) or {}
            if more := _following(own, part, column, text):
                found[name] = {**own, **more}
    return found


def _start(usual: Mapping[str, Any], tokens: Mapping[str, Any]) -> int | None:
    """Return the token that a decoder begins with: the one with the part that the class's plays; the one that fills if there is none."""
    parts = ("pad_token_id", "eos_token_id", "bos_token_id")
    number = usual.get(_START)
    part = next((part for part in parts if number is not None and usual.get(part) == number), parts[0])
    start = tokens.get(part)
    return tokens.get(parts[0]) if start is None else start


def _size(text: Text) -> int:
    """Return how many rows a table needs for the tokens of a tokenizer."""
    (field,) = (one for name, one in text.fields("", "input").items() if name == "ids")
    assert field.size is not None
    return field.size
