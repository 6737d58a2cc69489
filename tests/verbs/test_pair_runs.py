"""An encoder with a decoder of `transformers` goes through the verbs."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import processors

import luban
from luban.models._decoding import pair_of
from luban.models.huggingface import HuggingFace
from luban.predict import load
from luban.recipe import Section
from tiny_case import Luban

transformers = pytest.importorskip("transformers")
from published import TEXTS, byte_pairs, rewrite  # noqa: E402

T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "initializer_factor": 2.0,
    "decoder_start_token_id": 1,
}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 130, "init_std": 0.3, "decoder_start_token_id": 2,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "t5": T5,
    "t5 1.1": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "m2m_100": {**BART, "forced_bos_token_id": 9},
    "pegasus": {**BART, "forced_eos_token_id": 2},
}

LANGUAGE = 10  # the token of the language that texts are read in, where another one is forced


def published(folder: Path, kind: str) -> tuple[Any, Any]:
    """Save a model and its tokenizer, which closes texts as T5's does, and opens them with a language where another one is written;
    return both."""
    torch.manual_seed(0)
    tokenizer = byte_pairs("roberta")
    frame = [("</s>", tokenizer.eos_token_id)]
    opening = ""
    if "forced_bos_token_id" in KINDS[kind]:
        opening = tokenizer.convert_ids_to_tokens(LANGUAGE)
        frame.append((opening, LANGUAGE))
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{opening} $A </s>".strip(), special_tokens=frame
    )
    ids = {role: getattr(tokenizer, role) for role in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = transformers.AutoConfig.for_model(
        kind.split()[0], vocab_size=len(tokenizer), **ids, **KINDS[kind]
    )
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        if kind == "t5 1.1":
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.3)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    for key in ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"):
        setattr(model.generation_config, key, KINDS[kind].get(key))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


@pytest.mark.parametrize("kind", ["pegasus", "bart"])
def test_a_generation_config_without_forced_tokens_has_none(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, kind, BART)
    model, tokenizer = published(tmp_path / "theirs", kind)
    rewrite(tmp_path / "theirs" / "config.json", forced_eos_token_id=2)
    luban.import_model(tmp_path / "theirs", tmp_path / "ours")
    predictor = load(tmp_path / "ours")
    (found,) = predictor.predict([{"text": TEXTS[0]}], generation={"max_tokens": 6})
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert tokenizer.decode(whole[0, 1:], skip_special_tokens=True) == found["written"]
    assert pair_of(predictor.model).forced_last is None


def test_new_weights_are_forced_to_no_token_of_a_tokenizer_that_is_not_theirs() -> None:
    options = {"type": "huggingface", "task": "seq2seq"}
    family = Section("models").parse({**options, "config": {"model_type": "pegasus"}})
    assert isinstance(family, HuggingFace)
    assert (family.forced_first, family.forced_last) == (None, None)
    family = Section("models").parse(
        {**options, "config": {"model_type": "pegasus", "forced_eos_token_id": 5}}
    )
    assert isinstance(family, HuggingFace)
    assert family.forced_last == 5


@pytest.mark.parametrize("kind", KINDS)
def test_import_predict_evaluate_and_export(kind: str, tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = published(tmp_path / "theirs", kind)
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["task"] == "seq2seq"
    shutil.move(tmp_path / "theirs", tmp_path / "gone")
    predictor = load(tmp_path / "ours")

    # As probable as there, and written as there.
    rows = [{"text": text, "written": other} for text, other in itertools.pairwise(TEXTS)]
    scores = predictor.replay(rows)
    first = KINDS[kind].get("forced_bos_token_id")
    for row, found in zip(rows, scores, strict=True):
        ids, labels = (torch.tensor([tokenizer(row[name])["input_ids"]]) for name in ("text", "written"))
        if first is not None:  # the language that is written opens what is scored, not the one that is read
            assert labels[0, 0] == LANGUAGE
            labels[0, 0] = first
        with torch.no_grad():
            start = torch.tensor([[model.generation_config.decoder_start_token_id]])
            logits = model(input_ids=ids, decoder_input_ids=torch.cat([start, labels[:, :-1]], 1)).logits
        expected = torch.nn.functional.cross_entropy(logits[0], labels[0])
        assert found["written.loss"] == pytest.approx(float(expected), rel=1e-5)
    for how, theirs in (({}, {}), ({"beams": 3}, {"num_beams": 3})):
        written = predictor.predict(rows, generation={"max_tokens": 10, **how})
        for row, found in zip(rows, written, strict=True):
            ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
            with torch.no_grad():
                whole = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, **theirs
                )  # fmt: skip
            assert tokenizer.decode(whole[0, 1:], skip_special_tokens=True) == found["written"]

    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = luban("evaluate", tmp_path / "ours", tmp_path / "rows.jsonl", "--json")
    assert ran.code == 0, ran.err
    measured = json.loads(ran.out)["metrics"]
    losses = sum(one["written.loss"] * one["written.tokens"] for one in scores)
    tokens = sum(one["written.tokens"] for one in scores)
    assert measured["written.perplexity"]["value"] == pytest.approx(math.exp(losses / tokens), rel=1e-5)

    ran = luban("export", tmp_path / "ours", "-o", tmp_path / "back", "--json")
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert answer["architecture"] == type(model).__name__
    assert answer["drift"] < 1e-5
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back")
    for (name, one), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name, rtol=0, atol=0)
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 10, "num_beams": 2, "do_sample": False}
    assert torch.equal(model.generate(ids, **how), again.generate(ids, **how))


def recipe(folder: Path, kind: str = "t5", **more: Any) -> dict[str, Any]:
    """A recipe that tunes such a model to say the next sentence."""
    published(folder / "theirs", kind)
    rows = [
        {"text": text, "next": other, "more": text}
        for text, other in zip(TEXTS * 4, TEXTS[1:] * 4, strict=False)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return {
        "data": {
            "train": str(folder / "rows.jsonl"),
            "inputs": {"text": "text"},
            "targets": {"next": "text"},
        },
        "model": {"type": "huggingface", "task": "seq2seq", "from": str(folder / "theirs")},
        "train": {"steps": 2, "batch_size": 8, "optimizer": {"type": "adamw", "learning_rate": 3e-3}},
        **more,
    }


def trained(folder: Path, luban: Luban, options: dict[str, Any], name: str = "ours") -> Path:
    (folder / "r.yaml").write_text(json.dumps(options), encoding="utf-8")
    ran = luban("train", folder / "r.yaml", "-o", folder / name)
    assert ran.code == 0, ran.err
    return folder / name


def test_it_is_tuned_and_its_artefact_needs_nothing_else(tmp_path: Path, luban: Luban) -> None:
    options = recipe(tmp_path, "t5 1.1")
    options["train"] |= {"steps": 100, "optimizer": {"type": "adamw", "learning_rate": 1e-2}}
    ours = trained(tmp_path, luban, options)
    shutil.move(tmp_path / "theirs", tmp_path / "gone")
    shutil.move(ours, tmp_path / "moved")
    metrics = json.loads((tmp_path / "moved" / "metrics.json").read_text())
    assert metrics["metrics"]["next.perplexity"]["value"] < 30
    predictor = load(tmp_path / "moved")
    encoder = pair_of(predictor.model)
    assert (encoder.start, encoder.forced_first, encoder.forced_last) == (1, None, None)
    pieces: list[str] = []
    (one,) = predictor.predict([{"text": TEXTS[0]}], on_piece=lambda piece: pieces.append(piece.text))
    assert "".join(pieces) == one["next"]
    # The text that is written has the tokenizer of the one that is read, and ends.
    text, written = predictor.pipeline.inputs["text"], predictor.pipeline.targets["next"]
    assert (written.like, written.end) == ("text", True)  # type: ignore[attr-defined]
    assert (
        written.encode_texts(["Yes."])["ids"].values.tolist()
        == text.encode_texts(["Yes."])["ids"].values.tolist()
    )  # type: ignore[attr-defined]

    # Its head, which is not the table of tokens, is saved beside it; what was tuned is where another run may start.
    tensors = load_file(tmp_path / "moved" / "model.safetensors")
    assert (
        sum(name.endswith(("shared.weight", "lm_head.weight", "embed_tokens.weight")) for name in tensors)
        == 2
    )
    again = recipe(tmp_path, "t5 1.1")
    again["model"] = {"type": "huggingface", "from": str(tmp_path / "moved")}
    again["train"] = {"steps": 1, "batch_size": 8, "optimizer": {"type": "sgd", "learning_rate": 1e-9}}
    further = trained(tmp_path, luban, again, "further")
    assert pair_of(load(further).model).start == 1
    for name, value in load_file(further / "model.safetensors").items():
        torch.testing.assert_close(tensors[name], value)
    assert luban("check", further / "recipe.yaml").code == 0


@pytest.mark.parametrize(
    ("targets", "count"), [("all-linear", 2 * 6 + 2 * 10), (["*EncDecAttention.[qv]"], 4)]
)
def test_adapters(targets: Any, count: int, tmp_path: Path, luban: Luban) -> None:
    options = recipe(tmp_path, "t5", adapt=[{"type": "lora", "rank": 2, "targets": targets}])
    ours = trained(tmp_path, luban, options)
    tensors = load_file(ours / "model.safetensors")
    adapted = {name.rpartition(".")[0] for name in tensors if name.endswith(".lora_b")}
    assert len(adapted) == count
    assert not any("lm_head" in name for name in adapted)
    assert all(tensors[f"{name}.lora_b"].any() for name in adapted)
    ran = luban("export", ours, "-o", tmp_path / "back", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["drift"] < 1e-4
    ran = luban("export", ours, "-o", tmp_path / "adapter", "--format", "peft")
    assert ran.code == 2
    assert "export it as hf" in ran.err


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("t5", "is another layer's as well (tied)"),
        ("t5 1.1", "came apart from another that its architecture ties it to"),
    ],
)
def test_no_adapter_beside_a_head_that_is_tied_when_it_is_made(
    kind: str, why: str, tmp_path: Path, luban: Luban
) -> None:
    options = recipe(tmp_path, kind, adapt=[{"type": "lora", "rank": 2, "targets": ["*lm_head"]}])
    (tmp_path / "r.yaml").write_text(json.dumps(options), encoding="utf-8")
    ran = luban("train", tmp_path / "r.yaml", "-o", tmp_path / "ours")
    assert ran.code == 2, ran.err
    assert why in ran.err


def test_a_category_beside_a_written_text(tmp_path: Path, luban: Luban) -> None:
    options = recipe(tmp_path, "m2m_100")
    rows = [
        {**json.loads(line), "long": "ab"[len(line) % 2]}
        for line in (tmp_path / "rows.jsonl").read_text().splitlines()
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options["data"]["targets"]["long"] = "category"
    predictor = load(trained(tmp_path, luban, options))
    (one,) = predictor.predict(rows[:1], generation={"max_tokens": 4})
    assert {"next", "next.tokens", "long", "long.scores"} <= one.keys()


def test_texts_follow_a_constraint(tmp_path: Path, luban: Luban) -> None:
    pytest.importorskip("llguidance")
    published(tmp_path / "theirs", "t5")
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours").code == 0
    predictor = load(tmp_path / "ours")
    for beams in (1, 2):
        how = {"regex": "(yes|no)!?", "max_tokens": 8, "beams": beams}
        (found,) = predictor.predict([{"text": TEXTS[0]}], generation=how)
        assert found["written"].rstrip("!") in ("yes", "no")


def test_a_model_without_weights_learns_to_write_words_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    generator = random.Random(0)
    words: dict[str, None] = {}
    while len(words) < 2000:
        inner = "".join(generator.choice("ab de") for _ in range(generator.randint(1, 4)))
        words[generator.choice("abde") + inner + generator.choice("abde")] = None
    rows = [{"word": word, "back": word[::-1]} for word in words]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {
        "vocab_size": 280,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 1,
        "num_heads": 4,
        "dropout_rate": 0.0,
    }
    options: dict[str, Any] = {
        "data": {"train": "rows.jsonl", "inputs": {"word": {"type": "text", "tokens": "char"}}, "targets": {"back": "text"}},
        "model": {"type": "huggingface", "task": "seq2seq", "config": {"model_type": "t5", **sizes}},
        "objective": {"type": "seq2seq", "label_smoothing": 0.05},
        "train": {
            "epochs": 9, "batch_size": 32, "device": "cpu", "precision": "fp32", "threads": 1,
            "optimizer": {"type": "adamw", "learning_rate": 4e-3}, "schedule": {"type": "linear", "warmup": 0.1},
        },
    }  # fmt: skip
    result = luban.train(options, output="model")
    assert result["metrics"]["back.perplexity"]["value"] < 1.5
    predictor = luban.load("model")  # which verifies the parity sample
    written = predictor.predict(rows[:200])
    assert sum(one["back"] == row["back"] for one, row in zip(written, rows, strict=False)) >= 180
    assert {one["back.finish_reason"] for one in written} == {"end"}
    assert luban.export("model", "back")["drift"] < 1e-5
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained("back").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("back")
    for row, one in zip(rows[:3], written, strict=False):
        found = model.generate(**tokenizer(row["word"], return_tensors="pt"), do_sample=False)
        assert tokenizer.decode(found[0], skip_special_tokens=True) == one["back"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data": {"targets": {"next": {"type": "text", "tokens": "char"}}}}, "has one table of tokens, and 'text' and 'next' would have tokenizers of their own; write 'next: {type: text, like: text}'"),
        ({"data": {"inputs": {"text": {"type": "text", "tokens": "char"}}}}, "data.inputs.text.tokens asks for a new tokenizer, but model.from brings weights"),
        ({"data": {"targets": {"next": "category"}}}, "writes one text column, and data.targets has 0"),
        ({"data": {"inputs": {"text": "text", "more": "text"}}}, "reads one text column, and data.inputs has 2 (text, more)"),
        ({"model": {"task": "encoder"}}, "writes no text, and target 'next' is a text; take type 'seq2seq', or 'huggingface' with task seq2seq"),
        ({"model": {"type": "mlp", "encoders": {"text": {"type": "huggingface", "task": "seq2seq", "from": None}}}, "data": {"targets": {"next": "category"}}}, "type 'huggingface' would write a text from another, and a single column is only read; take another type or task"),
        ({"model": {"start": 999}}, "model.start is 999, and 'next' has"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(
    change: dict[str, Any], sentence: str, tmp_path: Path, luban: Luban
) -> None:
    options = recipe(tmp_path)
    for section, own in change.items():
        options[section] = {**options[section], **own}
    if options["model"]["type"] == "mlp":
        place = options["model"].pop("from")
        del options["model"]["task"]
        options["model"]["encoders"]["text"]["from"] = place
    (tmp_path / "r.yaml").write_text(json.dumps(options), encoding="utf-8")
    ran = luban("train", tmp_path / "r.yaml", "-o", tmp_path / "ours")
    assert ran.code == 2, ran.err
    assert sentence in ran.err


def test_two_vocabularies_are_refused(tmp_path: Path, luban: Luban) -> None:
    options = recipe(tmp_path)
    shutil.copy(tmp_path / "theirs" / "tokenizer.json", tmp_path / "theirs" / "target_vocab.json")
    (tmp_path / "r.yaml").write_text(json.dumps(options), encoding="utf-8")
    ran = luban("train", tmp_path / "r.yaml", "-o", tmp_path / "ours")
    assert ran.code == 2
    assert "has one vocabulary to read and another to write ('target_vocab.json')" in ran.err


def test_an_old_name_of_t5_is_known(tmp_path: Path, luban: Luban) -> None:
    published(tmp_path / "theirs", "t5")
    rewrite(tmp_path / "theirs" / "config.json", architectures=["T5WithLMHeadModel"], n_positions=16)
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["task"] == "seq2seq"
    predictor = load(tmp_path / "ours")
    assert pair_of(predictor.model).limit is None  # relative positions take texts of any length
    (one,) = predictor.predict([{"text": TEXTS[2] * 5}], generation={"max_tokens": 24})
    assert one["written.tokens"] <= 24
