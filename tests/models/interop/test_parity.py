"""Every family against `transformers`: the same logits from the same files, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.models._language import Language, encoder_of
from luban.models.interop import config_of, tensors_of
from luban.recipe import Section
from luban.tensors import write_tensors

transformers = pytest.importorskip("transformers")

VOCABULARY = 60
LENGTHS = (7, 1, 12, 5)
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
LLAMA = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
THREE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def reference(kind: str, **changes: Any) -> Any:
    """A model of `transformers` with tiny random weights, and the type that reads it."""
    torch.manual_seed(0)
    made = {
        "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, **changes)),
        "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SMALL, **changes)),
        "distilbert": lambda: transformers.DistilBertForMaskedLM(
            transformers.DistilBertConfig(
                vocab_size=VOCABULARY,
                dim=32,
                n_layers=2,
                n_heads=4,
                hidden_dim=48,
                max_position_embeddings=40,
                initializer_range=0.3,
            )
        ),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_inner=48,
                n_positions=40,
                initializer_range=0.3,
            )
        ),
        "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **changes)),
        "smollm": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)
        ),
        "qwen2": lambda: transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(**{k: v for k, v in LLAMA.items() if k != "head_dim"})
        ),
        "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**LLAMA)),
    }
    model = made[kind]()
    with torch.no_grad():  # norms and biases begin at one and zero, which would hide a swap
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


CASES = {
    "bert": ("bert", {}),
    "roberta": ("bert", {}),
    "distilbert": ("bert", {}),
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {}),
    "llama, llama3 positions": ("llama", {"rope_parameters": THREE}),
    "smollm": ("smollm", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


def spec(tokens: bool = True) -> Spec:
    fields = {"text.ids": Field("text", "text", "input", "int64", None, size=VOCABULARY)}
    if tokens:
        fields["text.labels"] = Field("text", "tokens", "target", "int64", None, size=VOCABULARY)
    return Spec(fields)


def texts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, VOCABULARY, (length,), generator=generator) for length in LENGTHS]


def build(family: str, path: Path | None, **options: Any) -> tuple[Language, torch.nn.Module]:
    model = Section("models").parse({"type": family, **({"from": str(path)} if path else {}), **options})
    assert isinstance(model, Language)
    module = model.build(spec())
    missing = model.load_pretrained(module)
    assert set(missing) <= {"pooler"}
    return model, module.eval()


def padded(rows: list[torch.Tensor], side: str, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        part = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, part], mask[i, part] = row, 1
    return ids, mask


def theirs(model: Any, rows: list[torch.Tensor], side: str) -> torch.Tensor:
    pad = model.config.pad_token_id or 0
    ids, mask = padded(rows, side, pad)
    with torch.no_grad():
        extra = {}
        if model.config.model_type not in ("bert", "roberta", "distilbert"):
            extra = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        logits = model(input_ids=ids, attention_mask=mask, **extra).logits
    return logits[mask.bool()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_the_same_logits_from_a_hugging_face_directory(case: str, side: str, tmp_path: Path) -> None:
    kind = case.split(",")[0]
    family, changes = CASES[case]
    model = reference(kind, **changes)
    model.save_pretrained(tmp_path)
    _, module = build(family, tmp_path)
    rows = texts()
    if side == "left" and kind in ("bert", "distilbert"):
        pytest.skip("counts positions from the left, padding included")
    with torch.no_grad():
        ours = module({"text.ids": Ragged.from_rows(rows)})["text.tokens"].logits()
    if side == "none":
        expected = torch.cat([theirs(model, [row], "right") for row in rows])
    else:
        expected = theirs(model, rows, side)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_same_logits_in_transformers_from_our_files(case: str, tmp_path: Path) -> None:
    kind = case.split(",")[0]
    family, changes = CASES[case]
    reference(kind, **changes).save_pretrained(tmp_path / "theirs")
    torch.manual_seed(3)
    own = {} if family != "bert" else {"layout": kind}
    model, module = build(family, tmp_path / "theirs", **own)
    encoder = encoder_of(module)
    with torch.no_grad():  # other weights than those that were read
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    written = tmp_path / "ours"
    written.mkdir()
    (written / "config.json").write_text(json.dumps(config_of(model, VOCABULARY)))
    write_tensors(tensors_of(model, encoder), written / "model.safetensors")
    again = type(reference(kind, **changes)).from_pretrained(written).eval()
    rows = texts()
    with torch.no_grad():
        ours = module({"text.ids": Ragged.from_rows(rows)})["text.tokens"].logits()
    torch.testing.assert_close(ours, theirs(again, rows, "right"), atol=1e-5, rtol=1e-5)
