"""No key is read by nothing: changing any key of any family changes the module, or what it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_cases import case, image, table, text
from torch import Tensor, nn

from luban.data.batch import Batch
from luban.data.contracts import Spec
from luban.data.ragged import Ragged
from luban.recipe import Section
from luban.registry import lookup, names

SHARED: dict[str, Any] = {
    "size": ({"hidden": None, "dropout": None}, "small"),
    "hidden": [5],
    "activation": "tanh",
    "dropout": 0.6,
    "init": "he",
    "init_scale": 3.0,
    "numbers": "periodic",
    "embeddings": 3,
    "encoders": {"评论 文本": "fasttext"},
}
"""Key → a value that is no default; or what else must be set (None: left out) for the key to act, and the value."""
KEYS: dict[str, dict[str, Any]] = {
    "mlp": {"norm": "layer", "residual": ({"hidden": [6, 6]}, True)},
    "cnn": {
        "channels": [3, 4], "kernel": 2, "stride": ({"padding": "same"}, 2), "padding": "same", "pool": ({"padding": "same"}, 3), "pool_kind": "average",
        "reduce": ({"padding": "same"}, "max"), "norm": "group",
    },
    "resnet": {"width": 4, "blocks": [2], "norm": "group", "stem": "quarter"},
    "rnn": {
        "cell": "gru", "nonlinearity": ({"cell": "rnn"}, "relu"), "hidden_size": 5, "layers": 2, "bidirectional": True,
        "recurrent_dropout": ({"layers": 2}, 0.5), "pool": "max", "embedding": 6,
    },
    "textcnn": {"encoders": {"照片": "mlp"}, "embedding": 6, "filters": 7, "widths": [1], "embedding_dropout": 0.9},
    "fasttext": {"encoders": {"照片": "mlp"}, "embedding": 6, "ngrams": 2, "buckets": 11, "bag": "sqrt", "once": True},
    "transformer": {
        "layers": 1, "hidden_size": 32, "heads": 4, "intermediate": 9, "positions": "sinusoidal",
        "max_positions": ({"positions": "learned"}, 40), "norm": "post", "layer_dropout": 0.7, "attention_dropout": 0.7,
        "pool": "max", "patch": 6,
    },
}  # fmt: skip


def cases() -> list[tuple[str, str, Any]]:
    return [(name, key, value) for name in KEYS for key, value in (SHARED | KEYS[name]).items()]


def look(options: dict[str, Any], spec: Spec, batch: Batch) -> list[Tensor]:
    """What can be seen of a model: its weights, and a step in training mode."""
    torch.manual_seed(0)
    module: nn.Module = Section("models").parse({"size": "tiny", **options}).build(spec)  # type: ignore[attr-defined]
    torch.manual_seed(0)
    outputs = module(batch)
    values = [value.values if isinstance(value, Ragged) else value for value in outputs.values()]
    return [*module.state_dict().values(), *values]


def test_every_key_of_every_family_is_tried() -> None:
    for name in names("models"):
        assert set(lookup("models", name).model_fields) == set(SHARED) | set(KEYS[name]), name


@pytest.mark.parametrize(("name", "key", "value"), cases())
def test_key_does_something(name: str, key: str, value: Any) -> None:
    torch.manual_seed(0)
    spec, batch = case(table(), text(), image())
    base: dict[str, Any] = {"type": name, "numbers": "plain", "hidden": [6], "dropout": 0.0}
    if isinstance(value, tuple):
        more, value = value
        base = {key: value for key, value in (base | more).items() if value is not None}
    before, after = look(base, spec, batch), look(base | {key: value}, spec, batch)
    same = len(before) == len(after) and all(map(torch.equal, before, after))
    assert not same, f"key '{key}' of '{name}' does nothing"
