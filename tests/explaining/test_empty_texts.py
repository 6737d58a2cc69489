"""Texts without a token, alone or beside others, are predicted, measured and explained, or refused in a sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import luban
from luban.errors import InputError

WORDS = ["the cat sat on the mat", "好的 东西 很 好", "a dog ran over the hill", "they read books at night"]
PLAIN = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 32}
MODELS: dict[str, dict[str, Any]] = {
    "rnn": {"type": "rnn", "size": "tiny"},
    "transformer": {"type": "transformer", "size": "tiny", "pool": "first"},
    "textcnn": {"type": "textcnn", "size": "tiny"},
    "gpt2": {"type": "gpt2", "size": "tiny"},
    "encoder": {"type": "huggingface", "config": {"model_type": "electra", **PLAIN}},
    "classifier": {"type": "huggingface", "task": "classifier", "config": {"model_type": "electra", **PLAIN}},
    # Which looks texts up by their lengths, or twice.
    "by length": {"type": "huggingface", "config": {"model_type": "fnet", "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}},
    "refused": {"type": "huggingface", "task": "classifier", "config": {
        "model_type": "xlnet", "d_model": 32, "n_head": 2, "d_inner": 32, "n_layer": 1,
    }},
}  # fmt: skip


@pytest.fixture(params=MODELS)
def artefact(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The name of a model, and where it lies."""
    if MODELS[request.param]["type"] == "huggingface":
        pytest.importorskip("transformers")
    rows = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(WORDS * 4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "data": {
            "train": str(tmp_path / "rows.jsonl"),
            "inputs": {"text": {"type": "text", "tokens": "word"}},
            "targets": {"label": "category"},
        },
        "model": MODELS[request.param],
        "train": {"steps": 1, "batch_size": 8, "device": "cpu", "precision": "fp32", "threads": 1},
    }
    luban.train(recipe, output=tmp_path / "ours")
    return request.param, str(tmp_path / "ours")


def test_every_verb_takes_them(artefact: tuple[str, str]) -> None:
    name, path = artefact
    predictor = luban.load(path)
    (alone,) = predictor.predict([{"text": ""}])
    for texts in (["", ""], ["the cat", ""]):
        found = predictor.predict([{"text": text} for text in texts])[-1]
        assert found["label.scores"] == pytest.approx(alone["label.scores"], abs=1e-6)
    for texts in ([""], ["", ""], ["", "", "the cat"]):
        data = json.dumps([{"text": text, "label": "a"} for text in texts])
        metrics = luban.evaluate(path, data)["metrics"]
        assert all(math.isfinite(one["value"]) for one in metrics.values() if one["value"] is not None)
        for method in ("occlusion", "integrated_gradients"):
            if name == "refused" and method == "integrated_gradients":
                with pytest.raises(InputError, match="no gradient can attach to 'text'"):
                    luban.explain(path, data, method=method)
                continue
            explained = luban.explain(path, data, method=method)["explanations"]
            assert len(explained) == len(texts)
            for text, one in zip(texts, explained, strict=True):
                values = one["parts"]["text"]["values"]
                assert all(map(math.isfinite, values))
                assert (
                    values if text else not any(values)
                )  # but for tokens that frame a text, such as GPT-2's end
