"""Every family in the registry keeps the contract, on every kind of input that it reads."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from model_cases import case, image, table, text, written
from pydantic import ValidationError

from luban.errors import RecipeError
from luban.recipe import Section
from luban.registry import names
from luban.testing import check_model

PARSE = Section("models").parse
CASES = {
    "table": lambda: case(table()),
    "text": lambda: case(text()),
    "image": lambda: case(image()),
    "all": lambda: case(table(), text(), image()),
    "two texts": lambda: case(text("标题"), text("正文", 50)),
    "pair": lambda: case(text("标题"), text("正文")),
}
"""Inputs of every kind; each with two targets of different kinds."""


LANGUAGE = ("bert", "gpt2", "llama", "qwen2", "qwen3", "smollm")
TEXTS = {"text", "all", "two texts", "pair"}
READS: dict[str, set[str]] = defaultdict(lambda: set(CASES))
READS |= {
    "cnn": {"image", "all"},
    "resnet": {"image", "all"},
    "textcnn": TEXTS,
    "fasttext": TEXTS,
    "rnn": TEXTS | {"image"},
    "transformer": TEXTS | {"image"},
    # As one sequence, for which the texts of a pair need one tokenizer.
    **dict.fromkeys(LANGUAGE, TEXTS - {"two texts"}),
    "huggingface": {"text", "all"},
    "seq2seq": set(),  # nothing but with a text to write: test_seq2seq.py
}
"""What each family reads; a family that is not listed reads everything."""


ELECTRA = {
    "model_type": "electra", "vocab_size": 60, "embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64, "type_vocab_size": 1,
}  # fmt: skip
FOREIGN = {"huggingface": {"config": ELECTRA}}
"""What a family whose sizes are somebody else's needs instead of a size."""


def _options(**options: Any) -> dict[str, Any]:
    return {**FOREIGN.get(options["type"], {"size": "tiny"}), **options}


@pytest.mark.parametrize("inputs", CASES)
@pytest.mark.parametrize("name", names("models"))
def test_contract(name: str, inputs: str) -> None:
    if name in FOREIGN:
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    spec, batch = CASES[inputs]()
    model = PARSE(_options(type=name))
    if inputs not in READS[name]:
        with pytest.raises(RecipeError, match="take type"):  # names the family to take instead
            model.build(spec)
        return
    check_model(model, spec, batch)


VARIANTS: dict[str, list[dict[str, Any]]] = {
    "mlp": [
        {"numbers": "periodic", "norm": "layer"},
        {"norm": "batch", "hidden": [16, 16, 16], "residual": True, "dropout": [0.5, 0.0, 0.1]},
        {"hidden": [], "dropout": 0.2, "embeddings": 5},
        {
            "init": "orthogonal",
            "activation": "mish",
            "encoders": {"照片": "cnn", "评论 文本": {"type": "rnn", "size": "tiny"}},
        },
    ],
    "cnn": [
        {"norm": "batch", "reduce": "average", "padding": "same", "activation": "silu"},
        {"norm": "group", "reduce": "max", "pool": [2, 0], "kernel": [5, 3], "stride": [1, 2]},
        {"pool_kind": "average", "encoders": {"评论 文本": "textcnn"}},
    ],
    "resnet": [{"norm": "group"}, {"stem": "quarter", "activation": "gelu"}],
    "rnn": [
        {"cell": "rnn", "nonlinearity": "relu", "bidirectional": True},
        {"cell": "gru", "pool": "max", "layers": 2, "recurrent_dropout": 0.3},
        {"pool": "mean", "init": "xavier"},
    ],
    "textcnn": [{"widths": [1, 8]}, {"activation": "gelu"}, {"activation": "tanh", "hidden": [8]}],
    "transformer": [
        {"positions": "learned", "norm": "post", "pool": "first"},
        {"positions": "sinusoidal", "pool": "max", "attention_dropout": 0.2, "patch": 6},
    ],
    "fasttext": [{"ngrams": 1}, {"ngrams": 4, "buckets": 50}, {"bag": "sqrt", "once": True}],
    "bert": [
        *({"pool": pool} for pool in ("first", "mean", "last", "max")),
        *({"layout": layout} for layout in ("roberta", "distilbert")),
        {"recompute": True, "segments": 0, "activation": "relu", "attention_dropout": 0.0, "hidden": [8]},
    ],
    "gpt2": [{"pool": "mean"}, {"pool": "max"}, {"recompute": True, "layers": 1}],
    "llama": [
        {"pool": "mean"},
        {"pool": "max"},
        {"recompute": True, "attention_bias": True, "tied": False, "layer_dropout": 0.2},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "head_size": 6, "heads": 4, "kv_heads": 4},
        {"rope_scaling": {"factor": 8.0, "trained": 4, "high": 2.0}, "encoders": {"照片": "cnn"}},
    ],
    "qwen2": [{"attention_bias": False, "pool": "mean"}],
    "qwen3": [{"recompute": True, "attention_dropout": 0.1, "pool": "mean"}],
    "smollm": [{"recompute": True, "activation": "gelu_tanh"}],
    "huggingface": [
        *({"pool": pool} for pool in ("first", "last", "max")),
        {"task": "classifier"},
        {
            "config": {**ELECTRA, "model_type": "albert", "num_hidden_groups": 1, "type_vocab_size": 2},
            "hidden": [8],
        },
    ],
}


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, all_ in VARIANTS.items() for options in all_]
)
def test_contract_of_variants(name: str, options: dict[str, Any]) -> None:
    if name in FOREIGN:
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    spec, batch = CASES["all"]()
    check_model(PARSE(_options(type=name, **options)), spec, batch)


@pytest.mark.parametrize("size", ["tiny", "small", "medium", "large"])
@pytest.mark.parametrize("name", [name for name in names("models") if name not in FOREIGN])
def test_every_size_is_larger_than_the_one_before(name: str, size: str) -> None:
    spec, _ = case(table(), text(), image(), *([written()] if name == "seq2seq" else []))
    sizes = ["tiny", "small", "medium", "large"]
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in PARSE({"type": name, "size": s}).build(spec).parameters()) for s in sizes
        ]
    at = sizes.index(size)
    assert at == 0 or counts[at] > counts[at - 1]


@pytest.mark.parametrize("pool", ["first", "pooler"])
@pytest.mark.parametrize("name", [name for name in LANGUAGE if name != "bert"])
def test_a_causal_model_has_seen_nothing_at_its_first_token(name: str, pool: str) -> None:
    with pytest.raises(ValidationError, match="has seen nothing but itself; take last, mean or max"):
        PARSE(_options(type=name, pool=pool))
