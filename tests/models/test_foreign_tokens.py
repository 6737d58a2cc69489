"""New weights of `transformers` have the tokens of the tokenizer that they will read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn

import luban
from luban.data.contracts import Field, Spec
from luban.data.processors.text import Text
from luban.errors import RecipeError
from luban.models._decoding import pair_of
from luban.models._network import Network
from luban.models.huggingface import HuggingFace
from luban.recipe import Section

pytest.importorskip("transformers")
from published import byte_pairs

WORDS = ["the cat sat on the mat", "好的 东西 很 好", "a dog ran over the hill", "they read books at night"]
SIDES = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()}  # fmt: skip
BART = {"d_model": 32, **SIDES, "max_position_embeddings": 66}
PLAIN = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 66,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
GEMMA_SIDE = {"hidden_size": 32, "head_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "bart": (BART, ["seq2seq", "classifier", "encoder"]),
    "m2m_100": (BART, ["seq2seq"]),
    "marian": (BART, ["seq2seq"]),
    "t5": (T5, ["seq2seq", "classifier", "encoder"]),
    "t5gemma": ({"encoder": GEMMA_SIDE, "decoder": {**GEMMA_SIDE, "cross_attention_hidden_size": 32}}, ["seq2seq"]),
    "electra": (PLAIN, ["encoder", "masked_lm", "classifier"]),
    "roberta": (PLAIN, ["encoder", "masked_lm", "classifier"]),
    "esm": (PLAIN, ["masked_lm"]),
    "modernbert": (PLAIN, ["masked_lm"]),
    "xlm": ({"emb_dim": 32, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 66}, ["encoder"]),
    "gpt_neox": (PLAIN, ["causal_lm", "classifier"]),
}  # fmt: skip


def written(folder: Path, rows: list[dict[str, str]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def text_of(**options: Any) -> Text:
    text = Text(**{"tokens": "wordpiece", "vocabulary": 90, "end": True, "max_length": 60, **options})
    text.update(pl.Series(WORDS * 4))
    text.finish()
    return text


def family_of(task: str, kind: str, **config: Any) -> HuggingFace:
    family = Section("models").parse(
        {"type": "huggingface", "task": task, "config": {"model_type": kind, **config}}
    )
    assert isinstance(family, HuggingFace)
    return family


def built(family: HuggingFace, text: Text) -> Any:
    """The module of the family, and the encoder of the text in it."""
    fields = {f"text.{name}": one for name, one in text.fields("text", "input").items()}
    if family.task == "seq2seq":
        fields["other.ids"] = text.fields("other", "target")["ids"]
    elif family.task in ("causal_lm", "masked_lm"):
        size = fields["text.ids"].size
        fields["text.labels"] = Field("text", "tokens", "target", "int64", None, size=size)
    network = family.build(Spec(fields))
    assert isinstance(network, Network)
    return next(iter(network.encoders.values()))


@pytest.mark.parametrize(("kind", "task"), [(kind, task) for kind, (_, tasks) in CASES.items() for task in tasks])  # fmt: skip
def test_no_token_that_is_used_is_padding(kind: str, task: str) -> None:
    text, family = text_of(), family_of(task, kind, **CASES[kind][0])
    (said,) = family.follow({"text": text})
    size = text.trained.get_vocab_size()
    assert f"vocab_size {size}, " in said
    encoder = built(family, text)
    tables = [part for part in encoder.model.modules() if isinstance(part, nn.Embedding)]
    known = encoder.model.config
    assert known.vocab_size == encoder.model.get_input_embeddings().num_embeddings == size
    assert {part.padding_idx for part in tables} <= {None, text.pad_id}
    assert (known.pad_token_id, encoder.padding) == (text.pad_id, text.pad_id)
    assert known.eos_token_id in (None, text.end_id)
    assert getattr(known, "bos_token_id", None) is None  # which this tokenizer has not
    if task == "seq2seq":
        assert encoder.start == (text.end_id if kind in ("bart", "m2m_100") else text.pad_id)

    # An artefact holds what was filled in, and makes the same module of it.
    again = Section("models").parse(family.portable().model_dump())
    assert isinstance(again, HuggingFace)
    assert again.follow({"text": text}) == []
    state = encoder.state_dict()
    assert {name: one.shape for name, one in built(again, text).state_dict().items()} == {
        name: one.shape for name, one in state.items()
    }


def test_what_the_configuration_names_stays() -> None:
    text = text_of()
    named = {"vocab_size": 200, "pad_token_id": 150, "eos_token_id": 7, "decoder_start_token_id": 8}
    family = family_of("seq2seq", "bart", **BART, **named)
    family.follow({"text": text})
    assert family.config is not None
    assert named.items() <= family.config.items()
    assert family.start == 8
    # What was copied from a published model may fill with a token that texts have.
    family = family_of("encoder", "roberta", **PLAIN, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    assert (
        "number 1 for padding, which is '[UNK]' to the tokenizer of 'text'"
        in family.follow({"text": text})[0]
    )
    # By whatever name; and there are as many rows as what is named needs.
    family = family_of("encoder", "xlm", **CASES["xlm"][0], n_words=140, pad_index=99)
    assert "vocab_size" not in family.follow({"text": text})[0]
    assert built(family, text).model.get_input_embeddings().num_embeddings == 140
    family = family_of("encoder", "electra", **PLAIN, pad_token_id=120)
    family.follow({"text": text})
    assert family.config is not None
    assert family.config["vocab_size"] == 121


def test_a_tokenizer_without_padding_gets_a_row_that_no_text_has(tmp_path: Path) -> None:
    byte_pairs("gpt2").save_pretrained(tmp_path)
    text = text_of(tokenizer=str(tmp_path), end=False)
    assert text.pad_id is None
    size = text.trained.get_vocab_size()
    family = family_of("classifier", "electra", **PLAIN)
    family.follow({"text": text})
    assert family.config is not None
    assert (family.config["vocab_size"], family.config["pad_token_id"]) == (size + 1, size)
    # Of what needs none there is none.
    family = family_of("causal_lm", "gpt_neox", **PLAIN)
    family.follow({"text": text})
    assert family.config is not None
    assert family.config["vocab_size"] == size
    assert "pad_token_id" not in family.config
    with pytest.raises(RecipeError, match="which then has a row more"):
        family_of("classifier", "electra", **PLAIN, vocab_size=size).follow({"text": text})
    with pytest.raises(RecipeError, match="so that no text has room"):
        family_of("encoder", "roberta", **PLAIN).follow({"text": text})
    wide = family_of("encoder", "roberta", **{**PLAIN, "max_position_embeddings": size + 20})
    with pytest.raises(RecipeError, match="takes 19 tokens of a text; set max_length of text"):
        wide.follow({"text": text})
    text = text_of(tokenizer=str(tmp_path), end=False, max_length=19)
    family = family_of("masked_lm", "roberta", **{**PLAIN, "max_position_embeddings": size + 20})
    family.follow({"text": text})
    assert family.max_positions == 19


def test_what_cannot_work_is_refused() -> None:
    text = text_of()
    with pytest.raises(RecipeError, match=r"a vocab_size of 50, and the tokenizer of 'text' has \d+ tokens"):
        family_of("encoder", "electra", **PLAIN, vocab_size=50).follow({"text": text})
    with pytest.raises(
        RecipeError, match="is read at the end token, and 'text' has none; set its 'end' to true"
    ):
        family_of("classifier", "bart", **BART).follow({"text": text_of(end=False)})


@pytest.mark.parametrize("tokens", ["word", "bpe"])
def test_a_text_that_is_cut_is_read_at_its_end_too(tokens: str, tmp_path: Path) -> None:
    rows = [{"text": " ".join(WORDS * n), "label": str(n % 2)} for n in range(1, 9)]
    recipe: dict[str, Any] = {
        "data": {
            "train": written(tmp_path, rows),
            "inputs": {"text": {"type": "text", "tokens": tokens, "max_length": 30}},
            "targets": {"label": "category"},
        },
        "model": {"type": "huggingface", "task": "classifier", "config": {"model_type": "bart", **BART}},
        "train": {"steps": 2, "batch_size": 8, "device": "cpu", "precision": "fp32"},
    }
    luban.train(recipe, output=tmp_path / "ours")
    predictor = luban.load(tmp_path / "ours")
    texts = [WORDS[0], " ".join(WORDS * 9), ""]
    found = predictor.predict([{"text": text} for text in texts])
    luban.export(tmp_path / "ours", tmp_path / "back")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "back").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    for text, one in zip(texts, found, strict=True):
        ids = tokenizer(text, truncation=True, max_length=30, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            (theirs,) = model(ids).logits.softmax(1).tolist()
        names = model.config.id2label
        assert one["label.scores"] == pytest.approx({names[i]: p for i, p in enumerate(theirs)}, abs=1e-5)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_an_unknown_word_is_learnt_and_texts_are_read_at_their_end(kind: str, tmp_path: Path) -> None:
    rows = [{"text": text, "label": str(i % 2)} for i, text in enumerate(WORDS * 4)]
    recipe: dict[str, Any] = {
        "data": {
            "train": written(tmp_path, rows),
            "inputs": {"text": {"type": "text", "tokens": "word", "min_count": 99}},  # so that no word is known
            "targets": {"label": "category"},
        },
        "model": {"type": "huggingface", "task": "classifier", "config": {"model_type": kind, **CASES[kind][0]}},
        "train": {"steps": 2, "batch_size": 8, "device": "cpu", "precision": "fp32"},
    }  # fmt: skip
    luban.train(recipe, output=tmp_path / "ours")
    predictor = luban.load(tmp_path / "ours")  # which verifies the parity sample
    text = predictor.pipeline.inputs["text"]
    assert isinstance(text, Text)
    assert text.encode_texts(["cat"])["ids"].values.tolist() == [text.cls_id, text.unk_id, text.end_id]  # type: ignore[union-attr]
    encoder: Any = next(iter(predictor.model.encoders.values()))  # type: ignore[union-attr,operator]
    table = encoder.model.get_input_embeddings().weight
    assert bool((table[text.unk_id] != 0).any())
    assert encoder.model.config.eos_token_id == text.end_id
    assert luban.export(tmp_path / "ours", tmp_path / "back")["drift"] < 1e-5


def test_the_start_of_a_pair_is_the_tokenizers(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "data": {
            "train": written(tmp_path, [{"text": text, "other": text[::-1]} for text in WORDS * 4]),
            "inputs": {"text": "text"},
            "targets": {"other": "text"},
        },
        "model": {"type": "huggingface", "task": "seq2seq", "config": {"model_type": "m2m_100", **BART}},
        "train": {"steps": 2, "batch_size": 8, "device": "cpu", "precision": "fp32"},
    }
    luban.train(recipe, output=tmp_path / "ours")
    predictor = luban.load(tmp_path / "ours")
    text, pair = predictor.pipeline.inputs["text"], pair_of(predictor.model)
    assert isinstance(text, Text)
    assert pair.start == text.end_id
    assert sum(p.numel() for p in pair.parameters()) < 50_000  # M2M100's own table has 128,112 tokens
    assert luban.export(tmp_path / "ours", tmp_path / "back")["drift"] < 1e-5
    ids = torch.tensor([text.encode_texts([WORDS[0]])["ids"].values.tolist()])  # type: ignore[union-attr]
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    (found,) = predictor.predict([{"text": WORDS[0]}], generation={"max_tokens": 6})
    assert tokenizer.decode(whole[0, 1:], skip_special_tokens=True) == found["other"]
