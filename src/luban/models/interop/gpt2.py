"""GPT-2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luban.models.interop.checkpoint import Checkpoint
from luban.models.interop.core import CoreNames
from luban.models.interop.declaration import Kind, Layout, refuse

if TYPE_CHECKING:
    from luban.models._language import Language

__all__ = ["LAYOUTS"]


def _read(found: Checkpoint, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    for key, usual in (
        ("scale_attn_by_inverse_layer_idx", False),
        ("scale_attn_weights", True),
        ("add_cross_attention", False),
    ):
        refuse(found, found.config, key, usual)
    return {}


def _write(model: Language, kind: str, vocabulary: int) -> dict[str, Any]:
    return {"embd_pdrop": model.layer_dropout, "tie_word_embeddings": True}


LAYOUTS = {
    "gpt2": Layout(
        kinds={"gpt2": Kind(("gpt2",), "GPT2Model", "GPT2LMHeadModel", "GPT2ForSequenceClassification")},
        keys={
            "layers": "n_layer",
            "hidden_size": "n_embd",
            "heads": "n_head",
            "intermediate": "n_inner",
            "vocabulary": "vocab_size",
            "max_positions": "n_positions",
            "attention_dropout": "attn_pdrop",
            "layer_dropout": "resid_pdrop",
            "activation": "activation_function",
            "eps": "layer_norm_epsilon",
        },
        read=_read,
        write=_write,
        defaults={
            "layers": 12,
            "hidden_size": 768,
            "heads": 12,
            "max_positions": 1024,
            "activation": "gelu_new",
            "eps": 1e-5,
        },
        tensors=CoreNames(
            prefix="transformer.",
            blocks="h.",
            block={
                # q, k and v lie in one matrix, c_attn, which is taken apart when it is read.
                "attention.q": "attn.q",
                "attention.k": "attn.k",
                "attention.v": "attn.v",
                "attention.out": "attn.c_proj",
                "attention_norm": "ln_1",
                "feed.up": "mlp.c_fc",
                "feed.down": "mlp.c_proj",
                "feed_norm": "ln_2",
            },
            under={"core.embedding.tokens": "wte", "core.embedding.positions": "wpe", "core.norm": "ln_f"},
            beside={"language.": "lm_head."},
            transposed=True,
        ),
    ),
}
