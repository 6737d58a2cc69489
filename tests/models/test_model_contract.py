"""Every family in the registry keeps the contract, on every kind of input that it reads."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from model_cases import case, image, table, text

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
}
"""Inputs of every kind; each with two targets of different kinds."""


READS: dict[str, set[str]] = defaultdict(lambda: set(CASES))
READS |= {
    "cnn": {"image", "all"},
    "resnet": {"image", "all"},
    "textcnn": {"text", "all", "two texts"},
    "fasttext": {"text", "all", "two texts"},
    "rnn": {"text", "image", "all", "two texts"},
    "transformer": {"text", "image", "all", "two texts"},
}
"""What each family reads; a family that is not listed reads everything."""


def _options(**options: Any) -> dict[str, Any]:
    return {"size": "tiny", **options}


@pytest.mark.parametrize("inputs", CASES)
@pytest.mark.parametrize("name", names("models"))
def test_contract(name: str, inputs: str) -> None:
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
}


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, all_ in VARIANTS.items() for options in all_]
)
def test_contract_of_variants(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    spec, batch = CASES["all"]()
    check_model(PARSE(_options(type=name, **options)), spec, batch)


@pytest.mark.parametrize("size", ["tiny", "small", "medium", "large"])
@pytest.mark.parametrize("name", names("models"))
def test_every_size_is_larger_than_the_one_before(name: str, size: str) -> None:
    spec, _ = case(table(), text(), image())
    sizes = ["tiny", "small", "medium", "large"]
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in PARSE({"type": name, "size": s}).build(spec).parameters()) for s in sizes
        ]
    at = sizes.index(size)
    assert at == 0 or counts[at] > counts[at - 1]
