"""A causal language model of a family that Luban has none of its own for goes through the verbs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import luban
from luban.errors import RecipeError
from luban.generation.reader import Reader
from luban.predict import load
from tiny_case import Luban

transformers = pytest.importorskip("transformers")
from published import SMALL, TEMPLATE, TEXTS, byte_pairs, publish, states_of, wordpiece  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
    "phi": {},
    # Whose table is tied, and whose linear layers are of a kind of their own.
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
}


def published(folder: Path, kind: str, *, chat: bool = False) -> tuple[Any, Any]:
    """Save a model and its tokenizer as others do; return both."""
    torch.manual_seed(0)
    tokenizer = byte_pairs("gpt2")
    if chat:
        tokenizer.chat_template = TEMPLATE
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.AutoConfig.for_model(
        kind, **{**SMALL, **KINDS[kind]}, **special, vocab_size=len(tokenizer)
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


def recipe(folder: Path, kind: str = "gpt_neox", **more: Any) -> dict[str, Any]:
    """A recipe that tunes such a model on texts."""
    published(folder / "theirs", kind)
    lines = [json.dumps({"text": f"{text} {i}"}, ensure_ascii=False) for i, text in enumerate(TEXTS * 4)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "data": {"train": str(folder / "rows.jsonl"), "inputs": {"text": "text"}},
        "model": {"type": "huggingface", "task": "causal_lm", "from": str(folder / "theirs")},
        "objective": "causal_lm",
        "train": {"steps": 3, "batch_size": 8, "optimizer": {"type": "adamw", "learning_rate": 3e-3}},
        **more,
    }


def trained(folder: Path, luban: Luban, options: dict[str, Any], name: str = "ours") -> Path:
    (folder / "r.yaml").write_text(json.dumps(options), encoding="utf-8")
    ran = luban("train", folder / "r.yaml", "-o", folder / name)
    assert ran.code == 0, ran.err
    return folder / name


@pytest.mark.parametrize("kind", KINDS)
def test_import_predict_evaluate_and_export(kind: str, tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = published(tmp_path / "theirs", kind)
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["task"] == "causal_lm"
    shutil.move(tmp_path / "theirs", tmp_path / "gone")
    predictor = load(tmp_path / "ours")
    assert predictor.speaker is not None

    # As probable as there, and continued as there.
    scores = predictor.replay([{"text": text} for text in TEXTS])
    for text, found in zip(TEXTS, scores, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            expected = model(input_ids=ids, labels=ids).loss
        assert found["text.loss"] == pytest.approx(float(expected), rel=1e-5)
    written = predictor.predict([{"text": text} for text in TEXTS])
    for text, found in zip(TEXTS, written, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=found["completion.tokens"], do_sample=False
            )  # fmt: skip
        assert tokenizer.decode(whole[0, ids.shape[1] :]).startswith(found["completion"])

    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    ran = luban("evaluate", tmp_path / "ours", tmp_path / "rows.jsonl", "--json")
    assert ran.code == 0, ran.err
    measured = json.loads(ran.out)["metrics"]
    assert {"text.perplexity", "text.bits_per_byte"} <= measured.keys()
    losses = sum(one["text.loss"] * one["text.tokens"] for one in scores)
    tokens = sum(one["text.tokens"] for one in scores)
    assert measured["text.perplexity"]["value"] == pytest.approx(math.exp(losses / tokens), rel=1e-5)

    ran = luban("export", tmp_path / "ours", "-o", tmp_path / "back", "--json")
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert answer["architecture"] == type(model).__name__
    assert answer["drift"] < 1e-5
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    for (name, one), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name, rtol=0, atol=0)


def test_it_is_tuned_and_its_artefact_needs_nothing_else(tmp_path: Path, luban: Luban) -> None:
    options = recipe(tmp_path, "opt")
    options["train"]["steps"] = 40
    ours = trained(tmp_path, luban, options)
    shutil.move(tmp_path / "theirs", tmp_path / "gone")
    metrics = json.loads((ours / "metrics.json").read_text())
    assert metrics["metrics"]["text.perplexity"]["value"] < 30
    shutil.move(ours, tmp_path / "moved")
    rows = [{"text": text} for text in TEXTS[:2]]
    written = load(tmp_path / "moved").predict(rows)
    assert all(one["completion.tokens"] for one in written)

    # A table that is tied is saved once; what was tuned is where another run may start.
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "moved" / "model.safetensors")
    assert sum(name.endswith(("embed_tokens.weight", "lm_head.weight")) for name in tensors) == 1
    again = recipe(tmp_path, "opt")
    again["model"] = {"type": "huggingface", "from": str(tmp_path / "moved")}
    again["train"] = {"steps": 1, "batch_size": 8, "optimizer": {"type": "sgd", "learning_rate": 1e-9}}
    further = load_file(trained(tmp_path, luban, again, "further") / "model.safetensors")
    for name, value in tensors.items():
        torch.testing.assert_close(further[name], value)


def test_adapters(tmp_path: Path, luban: Luban) -> None:
    options = recipe(tmp_path, "gpt_neox", adapt=[{"type": "lora", "rank": 2}])
    ours = trained(tmp_path, luban, options)
    from safetensors.torch import load_file

    tensors = load_file(ours / "model.safetensors")
    adapted = {name.rpartition(".")[0] for name in tensors if name.endswith(".lora_b")}
    assert (
        len(adapted) == 2 * 4
    )  # of each block: queries, keys and values in one, what follows them, up and down
    assert not any("embed_out" in name for name in adapted)
    assert any(tensors[f"{name}.lora_b"].any() for name in adapted)
    ran = luban("export", ours, "-o", tmp_path / "back", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["drift"] < 1e-4
    ran = luban("export", ours, "-o", tmp_path / "adapter", "--format", "peft")
    assert ran.code == 2
    assert "export it as hf" in ran.err


def test_instructions(tmp_path: Path, luban: Luban) -> None:
    options = recipe(tmp_path, "phi")
    published(tmp_path / "theirs", "phi", chat=True)
    talks = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]}
        for text in TEXTS * 4
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, talks)), encoding="utf-8")
    options["data"]["inputs"] = {"messages": "chat"}
    options["train"]["steps"] = 30
    ours = load(trained(tmp_path, luban, options))
    (answer,) = ours.predict([{"messages": talks[0]["messages"][:1]}])
    assert answer["completion"] == "<assistant>yes"
    assert answer["completion.finish_reason"] == "end"


@pytest.mark.parametrize("kind", ["electra", "albert", "deberta-v2"])
def test_a_masked_model_fills_masks_as_there(kind: str, tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = publish(tmp_path / "theirs", kind, "ForMaskedLM")
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["task"] == "masked_lm"
    text = "The [MASK] of France is [MASK]."
    (found,) = load(tmp_path / "ours").predict([{"text": text}])
    ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        shares = model(**ids).logits[0].softmax(1)
    places = (ids["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
    for place, best in zip(places, found["fills"], strict=True):
        expected = shares[place].max()
        assert max(best.values()) == pytest.approx(float(expected), rel=1e-4)
    ran = luban("export", tmp_path / "ours", "-o", tmp_path / "back", "--json")
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert answer["architecture"] == type(model).__name__
    assert answer["drift"] < 1e-5

    rows = [json.dumps({"text": text}) for text in TEXTS * 4]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    options = {
        "data": {"train": str(tmp_path / "rows.jsonl"), "inputs": {"text": "text"}},
        "model": {"type": "huggingface", "task": "masked_lm", "from": str(tmp_path / "theirs")},
        "objective": "masked_lm",
        "train": {"steps": 2, "batch_size": 8},
    }
    ours = load(trained(tmp_path, luban, options, "tuned"))
    assert ours.speaker is not None
    with pytest.raises(RecipeError, match="reads texts in both directions and does not generate"):
        Reader(ours.model, 1, 8)


def test_positions_are_counted_from_the_padding_that_the_model_was_made_with(tmp_path: Path) -> None:
    """Whatever the tokenizer calls by that name."""
    torch.manual_seed(0)
    tokenizer = wordpiece()
    config = transformers.AutoConfig.for_model(
        "data2vec-text", **SMALL, vocab_size=len(tokenizer), pad_token_id=3
    )
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    assert tokenizer.pad_token_id == 0
    luban.import_model(tmp_path / "theirs", tmp_path / "ours")
    assert luban.export(tmp_path / "ours", tmp_path / "back")["drift"] < 1e-5
    assert transformers.AutoConfig.from_pretrained(tmp_path / "back").pad_token_id == 3


@pytest.mark.parametrize("head", ["Model", "ForPreTraining"])
def test_an_encoder_embeds_texts_as_there(head: str, tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = publish(tmp_path / "theirs", "electra", head)
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["task"] == "embedding"
    found = load(tmp_path / "ours").predict([{"text": text} for text in TEXTS])
    for text, one in zip(TEXTS, found, strict=True):
        states = states_of(model if head == "Model" else model.electra, tokenizer, text)
        torch.testing.assert_close(torch.tensor(one["embedding"]), states.mean(0), rtol=1e-4, atol=1e-5)
    ran = luban("export", tmp_path / "ours", "-o", tmp_path / "back")
    assert ran.code == 2
    assert "is an encoder, whose pooling and heads transformers has no class for" in ran.err


def test_what_needs_layers_of_our_own_is_refused(tmp_path: Path, luban: Luban) -> None:
    published(tmp_path / "theirs", "gpt_neox")
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours").code == 0
    ran = luban("predict", tmp_path / "ours", "text=hello", "--weights", "int8")
    assert ran.code == 2
    assert "int8 weights are for layers of Luban's own" in ran.err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"adapt": [{"type": "lora"}], "kind": "falcon"}, "layers of kinds of their own (FalconLinear)"),
        ({"adapt": [{"type": "lora", "targets": ["*lm_head"]}], "kind": "falcon"}, "is another layer's as well (tied)"),
        ({"model": {"task": "encoder"}}, "set model.task to causal_lm or masked_lm"),
        ({"objective": None, "data": {"targets": {"label": "category"}}}, "take objective causal_lm, or model.task=encoder"),
        ({"model": {"task": "translation"}}, "task is 'translation', and tasks are encoder, classifier, causal_lm, masked_lm, seq2seq"),
        ({"model": {"task": "seq2seq"}}, "objective causal_lm needs a model whose tokens see only those before them"),
        ({"model": {"task": "seq2seq"}, "objective": None}, "writes one text column, and data.targets has 0"),
        ({"model": {"start": 3}}, "start does nothing with task 'causal_lm', which writes no text from another; remove it"),
        ({"model": {"task": "masked_lm"}}, "objective causal_lm needs a model whose tokens see only those before them"),
        ({"model": {"config": {"model_type": "t5", "vocab_size": 999}, "from": None}}, "no causal language model of type 't5'"),
        ({"model": {"config": {"model_type": "bert", "vocab_size": 999, "num_hidden_layers": 1}, "from": None}}, "looks both ways"),
    ],
    ids=lambda one: one if isinstance(one, str) else None,
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(
    change: dict[str, Any], sentence: str, tmp_path: Path, luban: Luban
) -> None:
    options = recipe(tmp_path, change.get("kind", "gpt_neox"))
    lines = [json.dumps({"text": text, "label": "ab"[i % 2]}) for i, text in enumerate(TEXTS * 4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for key, value in change.items():
        if key == "kind":
            continue
        if isinstance(value, list):
            options[key] = value
        elif isinstance(value, dict):
            options[key] = {k: v for k, v in {**options[key], **value}.items() if v is not None}
        else:
            del options[key]
    (tmp_path / "r.yaml").write_text(json.dumps(options), encoding="utf-8")
    ran = luban("train", tmp_path / "r.yaml", "-o", tmp_path / "ours")
    assert ran.code == 2, ran.err
    assert sentence in ran.err
