"""No key is read by nothing: changing any key of any family changes the module, or what it computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import case, image, table, text, written
from torch import Tensor

from luban.data.batch import Batch
from luban.data.contracts import Field, Spec
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.generation.engine import generate
from luban.generation.options import Generation
from luban.models._core import Projection
from luban.models._language import Language, encoder_of
from luban.models._network import Family
from luban.models.interop import config_of, tensors_of
from luban.recipe import Data, Section
from luban.registry import lookup, names
from luban.tensors import write_tensors

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
LANGUAGE: dict[str, Any] = {
    "encoders": {"照片": "mlp"}, "from": "pretrained", "layers": 1, "hidden_size": 96, "heads": 4, "intermediate": 9, "vocabulary": 77, "max_positions": 40,
    "layer_dropout": 0.7, "attention_dropout": 0.7, "recompute": True,
}  # fmt: skip
"""What the families of language models share."""
LLAMA: dict[str, Any] = LANGUAGE | {
    "heads": ({"kv_heads": 1}, 4), "kv_heads": 2, "head_size": 6, "pool": "mean", "eps": 0.1, "rope_theta": 50.0,
    "rope_scaling": {"type": "linear", "factor": 4.0}, "attention_bias": True, "tied": False,
}  # fmt: skip
ELECTRA: dict[str, Any] = {
    "model_type": "electra", "vocab_size": 30, "embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
PAIR: dict[str, Any] = {
    "task": "seq2seq", "config": {"model_type": "t5", "vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
}  # fmt: skip
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
    "bert": LANGUAGE | {"layout": "distilbert", "segments": 0, "pool": "first", "eps": 0.1},
    "gpt2": LANGUAGE | {"pool": "mean", "eps": 0.1},
    "llama": LLAMA, "qwen2": LLAMA | {"attention_bias": False}, "qwen3": LLAMA,
    "seq2seq": LANGUAGE | {
        "from": ({"norm": "post", "positions": "learned", "embedding_norm": True, "shared": True}, "pretrained"), "decoder_layers": 1, "norm": "post", "positions": "sinusoidal",
        "embedding_norm": True, "scale_embedding": True, "shared": False, "tied": False, "output_bias": True, "decoder_vocabulary": ({"shared": False}, 77),
        "start": 3, "forced_first": 4, "forced_last": 5, "pool": "max", "eps": 0.1,
    },
    "huggingface": {"encoders": {"照片": "mlp"}, "from": "pretrained", "config": ELECTRA | {"num_hidden_layers": 1}, "pool": "max", "max_positions": 40,
        "task": "masked_lm", "segments": ({"task": "classifier"}, [[*range(20)]]),
        "start": (PAIR, 3), "forced_first": (PAIR, 4), "forced_last": (PAIR, 5)},
    "smollm": LLAMA | {"kv_heads": 3, "size": ({"hidden": None, "dropout": None, "layers": 1}, "small")},
}  # fmt: skip


def cases() -> list[tuple[str, str, Any]]:
    every = [(name, key, value) for name in KEYS for key, value in (SHARED | KEYS[name]).items()]
    return [one for one in every if one[:2] != ("huggingface", "size")]  # which is refused there


def parse(options: dict[str, Any]) -> Family:
    foreign = options["type"] == "huggingface"
    model = Section("models").parse({**({} if foreign else {"size": "tiny"}), **options})
    assert isinstance(model, Family)
    return model


def look(options: dict[str, Any], spec: Spec, batch: Batch) -> list[Any]:
    """What can be seen of a model: what it makes of a text column, its weights, a step in training mode, what it keeps for
    the gradient, and what it writes."""
    torch.manual_seed(0)
    model = parse(options)
    data = Data.model_construct(inputs={"评论 文本": Text()}, targets={"译文": Text(like="评论 文本")})
    model.complete(data)
    text = data.inputs["评论 文本"]
    assert isinstance(text, Text)
    module = model.build(spec)
    model.load_pretrained(module)
    torch.manual_seed(0)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        outputs = module(batch)
    values = [
        value.values
        if isinstance(value, Ragged)
        else value.logits()
        if isinstance(value, Projection)
        else value
        for value in outputs.values()
    ]
    if model.writes:
        found = generate(module, [[0]], Generation(max_tokens=3), end=(), decode=str, sources=[[7, 8, 9]])
        values.append(found[0].ids)
    return [*module.state_dict().values(), *values, text.max_length, sum(kept)]


def same(left: Any, right: Any) -> bool:
    return (
        torch.equal(left, right)
        if isinstance(left, Tensor) and isinstance(right, Tensor)
        else left is right or left == right
    )


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any], Spec], None]:
    """Write a directory of Hugging Face's, named ``pretrained``, of a model of given options and other weights."""
    monkeypatch.chdir(tmp_path)

    def write(options: dict[str, Any], spec: Spec) -> None:
        torch.manual_seed(5)
        model = parse(options)
        folder = tmp_path / "pretrained"
        folder.mkdir()
        if model.type == "huggingface":
            module = model.build(spec).encoders["@评论 文本"].model  # type: ignore[union-attr,index]
            module.save_pretrained(folder)  # type: ignore[operator,union-attr]
            return
        assert isinstance(model, Language)
        encoder = encoder_of(model.build(spec))
        vocabulary = encoder.core.shape.vocabulary
        (folder / "config.json").write_text(json.dumps(config_of(model, vocabulary)), encoding="utf-8")
        write_tensors(tensors_of(model, encoder), folder / "model.safetensors")

    return write


def test_every_key_of_every_family_is_tried() -> None:
    for name in names("models"):
        fields = lookup("models", name).model_fields
        assert {one.alias or key for key, one in fields.items()} == set(SHARED) | set(KEYS[name]), name


@pytest.mark.parametrize(("name", "key", "value"), cases())
def test_key_does_something(
    name: str, key: str, value: Any, pretrained: Callable[[dict[str, Any], Spec], None]
) -> None:
    torch.manual_seed(0)
    spec, batch = case(table(), text(), image())
    if name == "seq2seq" or (isinstance(value, tuple) and value[0] == PAIR):
        spec, batch = case(table(), text(), image(), written())
    labels = Field("评论 文本", "tokens", "target", "int64", None, size=30)
    speaking = Spec({**spec.fields, "评论 文本.labels": labels})
    if name != "seq2seq" and issubclass(lookup("models", name), Language):  # which also puts out tokens
        spec = speaking
    base: dict[str, Any] = {"type": name, "numbers": "plain", "hidden": [6], "dropout": 0.0}
    if name == "huggingface":
        pytest.importorskip("transformers")
        base["config"] = ELECTRA
    if isinstance(value, tuple):
        more, value = value
        base = {key: value for key, value in (base | more).items() if value is not None}
    if key == "from":
        pretrained(base, spec)
    changed = base | {key: value}
    if (name, key) == ("huggingface", "from"):
        del changed["config"]
    before = look(base, spec, batch)
    after = look(changed, speaking if key == "task" else spec, batch)
    equal = len(before) == len(after) and all(map(same, before, after))
    assert not equal, f"key '{key}' of '{name}' does nothing"
