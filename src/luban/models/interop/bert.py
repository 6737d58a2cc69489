"""BERT and its relatives: RoBERTa (XLM-RoBERTa, CamemBERT) and DistilBERT."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from luban.models.interop.checkpoint import Checkpoint
from luban.models.interop.core import CoreNames, padding_of
from luban.models.interop.declaration import Kind, Layout, refuse, require_size

if TYPE_CHECKING:
    from luban.models._language import Language

__all__ = ["LAYOUTS"]

_KEYS = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "vocabulary": "vocab_size",
    "max_positions": "max_position_embeddings",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_dropout": "hidden_dropout_prob",
    "activation": "hidden_act",
    "eps": "layer_norm_eps",
}
_DEFAULTS = {
    "layers": 12,
    "hidden_size": 768,
    "heads": 12,
    "intermediate": 3072,
    "max_positions": 512,
    "activation": "gelu",
}
_BLOCK = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed.up": "intermediate.dense",
    "feed.down": "output.dense",
    "feed_norm": "output.LayerNorm",
}
_EMBEDDINGS = {
    "core.embedding.tokens": "embeddings.word_embeddings",
    "core.embedding.positions": "embeddings.position_embeddings",
    "core.embedding.segments": "embeddings.token_type_embeddings",
    "core.embedding.norm": "embeddings.LayerNorm",
}


def _read(layout: str, found: Checkpoint, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    segments = found.said("type_vocab_size", int)
    more: dict[str, Any] = {
        "layout": layout,
        "segments": 0 if layout == "distilbert" else 2 if segments is None else segments,
    }
    require_size(found, "token_type_embeddings.weight", 0, more["segments"], "type_vocab_size")
    for key, usual in (
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("add_cross_attention", False),
    ):
        refuse(found, found.config, key, usual)
    if layout == "roberta":  # whose table begins with rows for padding
        more["max_positions"] = options["max_positions"] - padding_of(found) - 1
    return more


def _write(model: Language, kind: str, vocabulary: int) -> dict[str, Any]:
    config: dict[str, Any] = {"tie_word_embeddings": True}
    if kind != "distilbert":
        config |= {
            "type_vocab_size": model.shape(vocabulary).segments,
            "pad_token_id": 1 if kind == "roberta" else 0,
        }
    return config


def _kind(model: Language) -> str:
    return str(getattr(model, "layout"))  # noqa: B009  # which other families do not have


LAYOUTS = {
    "bert": Layout(
        kinds={
            "bert": Kind(
                ("bert",),
                "BertModel",
                "BertForMaskedLM",
                "BertForSequenceClassification",
                "BertForPreTraining",
            ),
        },
        keys=_KEYS,
        read=partial(_read, "bert"),
        write=_write,
        defaults={**_DEFAULTS, "eps": 1e-12},
        classifier="classifier",
        pairs="cls.seq_relationship",
        pool="pooler",
        kind=_kind,
        tensors=CoreNames(
            prefix="bert.",
            blocks="encoder.layer.",
            block=_BLOCK,
            under={**_EMBEDDINGS, "pooler": "pooler.dense"},
            beside={
                "language.transform.0": "cls.predictions.transform.dense",
                "language.transform.2": "cls.predictions.transform.LayerNorm",
                "language.": "cls.predictions.",
            },
            head="cls.predictions.decoder.weight",
        ),
    ),
    "roberta": Layout(
        kinds={
            "roberta": Kind(
                ("bert",), "RobertaModel", "RobertaForMaskedLM", "RobertaForSequenceClassification"
            ),
            "xlm-roberta": Kind(("bert",)),
            "camembert": Kind(("bert",)),
        },
        keys=_KEYS,
        read=partial(_read, "roberta"),
        write=_write,
        defaults={**_DEFAULTS, "eps": 1e-12},
        classifier="classifier.out_proj",
        pool="pooler",
        kind=_kind,
        tensors=CoreNames(
            prefix="roberta.",
            blocks="encoder.layer.",
            block=_BLOCK,
            under=_EMBEDDINGS,
            beside={
                "pooler": "classifier.dense",
                "language.transform.0": "lm_head.dense",
                "language.transform.2": "lm_head.layer_norm",
                "language.": "lm_head.",
            },
            head="lm_head.decoder.weight",
            pads_positions=True,
        ),
    ),
    "distilbert": Layout(
        kinds={
            "distilbert": Kind(
                ("bert",), "DistilBertModel", "DistilBertForMaskedLM", "DistilBertForSequenceClassification"
            ),
        },
        keys={
            "layers": "n_layers",
            "hidden_size": "dim",
            "heads": "n_heads",
            "intermediate": "hidden_dim",
            "vocabulary": "vocab_size",
            "max_positions": "max_position_embeddings",
            "attention_dropout": "attention_dropout",
            "layer_dropout": "dropout",
            "activation": "activation",
        },
        read=partial(_read, "distilbert"),
        write=_write,
        defaults={**_DEFAULTS, "layers": 6},
        classifier="classifier",
        pool="pooler",
        kind=_kind,
        tensors=CoreNames(
            prefix="distilbert.",
            blocks="transformer.layer.",
            block={
                "attention.q": "attention.q_lin",
                "attention.k": "attention.k_lin",
                "attention.v": "attention.v_lin",
                "attention.out": "attention.out_lin",
                "attention_norm": "sa_layer_norm",
                "feed.up": "ffn.lin1",
                "feed.down": "ffn.lin2",
                "feed_norm": "output_layer_norm",
            },
            under=_EMBEDDINGS,
            beside={
                "pooler": "pre_classifier",
                "language.transform.0": "vocab_transform",
                "language.transform.2": "vocab_layer_norm",
                "language.": "vocab_projector.",
            },
            head="vocab_projector.weight",
        ),
    ),
}
"""By our `layout`."""
