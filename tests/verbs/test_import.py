"""`luban import`: what somebody else published predicts here what it predicts there; what cannot be read is said in a sentence."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from luban.predict import load
from tiny_case import Luban

transformers = pytest.importorskip("transformers")
from published import NAMES, PAIRS, TEXTS, publish, publish_pair, rewrite, states_of  # noqa: E402

ROWS = [{"text": text} for text in TEXTS]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama", "qwen2"])
def test_a_model_without_a_head_embeds_texts(kind: str, tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = publish(tmp_path / "theirs", kind)
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--json")
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert (answer["task"], answer["model"]) == (
        "embedding",
        "bert" if kind in ("roberta", "distilbert") else kind,
    )
    assert "new weights" not in ran.err
    for row, found in zip(TEXTS, load(tmp_path / "ours").predict(ROWS), strict=True):
        assert list(found) == ["embedding"]
        expected = states_of(model, tokenizer, row).mean(0)
        torch.testing.assert_close(torch.tensor(found["embedding"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["first", "last", "max"])
def test_the_pool_can_be_chosen(pool: str, tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = publish(tmp_path / "theirs", "bert")
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--pool", pool).code == 0
    states = states_of(model, tokenizer, TEXTS[2])
    expected = {"first": states[0], "last": states[-1], "max": states.amax(0)}[pool]
    (found,) = load(tmp_path / "ours").predict(ROWS[2:3])
    torch.testing.assert_close(torch.tensor(found["embedding"]), expected, rtol=1e-5, atol=1e-5)


def test_what_sentence_transformers_writes_beside_a_model_is_followed(tmp_path: Path, luban: Luban) -> None:
    """How states are pooled, and how much of a text is read."""
    model, tokenizer = publish(tmp_path / "theirs", "bert")
    (tmp_path / "theirs" / "1_Pooling").mkdir()
    (tmp_path / "theirs" / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": True})
    )
    (tmp_path / "theirs" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 10}))
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours").code == 0
    expected = states_of(model, tokenizer, TEXTS[2], 10)
    assert len(expected) == 10
    (found,) = load(tmp_path / "ours").predict(ROWS[2:3])
    torch.testing.assert_close(torch.tensor(found["embedding"]), expected[0], rtol=1e-5, atol=1e-5)
    modules = [{"type": f"sentence_transformers.models.{n}"} for n in ("Transformer", "Pooling", "Normalize")]
    (tmp_path / "theirs" / "modules.json").write_text(json.dumps(modules))
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "again")
    assert "is followed by Normalize, which is left out" in ran.err


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", None])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_a_classifier_predicts_what_its_pipeline_does(
    kind: str, problem: str | None, tmp_path: Path, luban: Luban
) -> None:
    names = ["bad", "so-so", "good"]
    labels = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": problem,
    }
    model, tokenizer = publish(tmp_path / "theirs", kind, "ForSequenceClassification", **labels)
    if tokenizer.pad_token_id is None:
        model.config.pad_token_id = tokenizer.eos_token_id
    assert (
        luban(
            "import",
            tmp_path / "theirs",
            "-o",
            tmp_path / "ours",
            "--column",
            "review",
            "--target",
            "verdict",
        ).code
        == 0
    )
    found = load(tmp_path / "ours").predict([{"review": text} for text in TEXTS])
    classify = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    for text, prediction in zip(TEXTS, found, strict=True):
        expected = {one["label"]: one["score"] for one in classify([text])[0]}
        assert prediction["verdict.scores"] == pytest.approx(expected, abs=1e-5)
        if problem == "multi_label_classification":
            assert set(prediction["verdict"]) == {name for name, share in expected.items() if share >= 0.5}
        else:
            assert prediction["verdict"] == max(expected, key=expected.__getitem__)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_a_causal_model_scores_and_continues_as_there(kind: str, tmp_path: Path, luban: Luban) -> None:
    head = "LMHeadModel" if kind == "gpt2" else "ForCausalLM"
    model, tokenizer = publish(tmp_path / "theirs", kind, head)
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--plain")
    assert ran.code == 0, ran.err
    predictor = load(tmp_path / "ours")
    found = predictor.predict(ROWS[:2], generation={"max_tokens": 8, "temperature": 0.0})
    for row, prediction, sample in zip(TEXTS, found, predictor.replay(ROWS[:2]), strict=False):
        inputs = tokenizer(row, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            loss = model(**inputs, labels=inputs["input_ids"]).loss
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)[
                0, inputs["input_ids"].shape[1] :
            ]
        assert sample["text.loss"] == pytest.approx(float(loss), rel=1e-5)
        assert prediction["completion"] == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_masked_model_fills_masks_as_there(kind: str, tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = publish(tmp_path / "theirs", kind, "ForMaskedLM")
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours").code == 0
    text = f"The capital of {tokenizer.mask_token} is Paris."
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    place = int((inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero())
    with torch.no_grad():
        best = model(**inputs).logits[0, place].softmax(0).topk(5)
    expected: dict[str, float] = {}
    for token, share in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        word = tokenizer.decode([token])
        expected[word] = expected.get(word, 0.0) + share  # bytes of characters read the same
    (found,) = load(tmp_path / "ours").predict([{"text": text}])
    assert found["fills"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", PAIRS)
def test_an_encoder_with_a_decoder_writes_as_there(kind: str, tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = publish_pair(tmp_path / "theirs", kind)
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["task"] == "seq2seq"
    predictor = load(tmp_path / "ours")
    found = predictor.predict(ROWS, generation={"max_tokens": 12})
    for text, prediction in zip(TEXTS, found, strict=True):
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, num_beams=1)[0, 1:]
        assert prediction["written"] == tokenizer.decode(ids, skip_special_tokens=True)
    pairs = [{"text": text, "written": other} for text, other in pairwise(TEXTS)]
    for row, measured in zip(pairs, predictor.replay(pairs), strict=True):
        inputs = tokenizer(row["text"], return_tensors="pt", return_token_type_ids=False)
        labels = tokenizer(row["written"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = model(**inputs, labels=labels).loss
        assert measured["written.loss"] == pytest.approx(float(loss), rel=1e-5)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    ran = luban("evaluate", tmp_path / "ours", tmp_path / "rows.jsonl", "--resamples", "0", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["metrics"]["written.bits_per_byte"]["value"] > 0
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "named", "--target", "zh", "--column", "en")
    assert next(iter(load(tmp_path / "named").predict([{"en": "Yes."}])[0])) == "zh"


def test_shards(tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = publish(tmp_path / "theirs", "bert", shards="40KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours").code == 0
    (found,) = load(tmp_path / "ours").predict(ROWS[:1])
    expected = states_of(model, tokenizer, TEXTS[0]).mean(0)
    torch.testing.assert_close(torch.tensor(found["embedding"]), expected, rtol=1e-5, atol=1e-5)


def test_an_artefact_of_an_import_is_an_artefact(tmp_path: Path, luban: Luban) -> None:
    """Every verb takes it: it needs its source no more, has a card, and can be started from."""
    publish(
        tmp_path / "theirs",
        "bert",
        "ForSequenceClassification",
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
    )
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours").code == 0
    shutil.move(tmp_path / "theirs", tmp_path / "gone")
    ours = tmp_path / "ours"
    assert "bert" in (ours / "README.md").read_text(encoding="utf-8")
    lineage = json.loads((ours / "lineage.json").read_text(encoding="utf-8"))
    assert list(lineage["parents"][0]["sha256"]) == ["model.safetensors"]
    lines = [
        "text,label",
        *(
            f"{text.replace(',', ' ')} {i},{'yes' if i % 2 else 'no'}"
            for i in range(30)
            for text in TEXTS[:2]
        ),
    ]
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    ran = luban("evaluate", ours, tmp_path / "rows.csv", "--resamples", "0", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["rows"] == 60
    ran = luban("predict", ours, "Measure twice.")
    assert json.loads(ran.out)["label"] in ("no", "yes")
    recipe = {
        "data": {
            "train": str(tmp_path / "rows.csv"),
            "inputs": {"text": "text"},
            "targets": {"label": "category"},
        },
        "model": {"type": "bert", "from": str(ours)},
        "train": {"epochs": 1, "batch_size": 16},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    ran = luban("train", tmp_path / "r.yaml", "-o", tmp_path / "tuned")
    assert ran.code == 0, ran.err
    assert "new weights" not in ran.err


def test_an_embedding_predicts_vectors_and_refuses_to_be_evaluated(tmp_path: Path, luban: Luban) -> None:
    publish(tmp_path / "theirs", "bert")
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours").code == 0
    ran = luban("predict", tmp_path / "ours", "Measure twice.")
    assert len(json.loads(ran.out)["embedding"]) == 32
    (tmp_path / "rows.csv").write_text("text,label\nYes.,a\n")
    ran = luban("evaluate", tmp_path / "ours", tmp_path / "rows.csv")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith(
        "luban: the artefact predicts no column: it makes vectors of texts"
    )


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    {"role": "user", "content": "Measure twice?"},
    {"role": "assistant", "content": "And cut once."},
    {"role": "user", "content": "今天天气不错。"},
]


def _tuned(folder: Path, *, ends: Any = None) -> tuple[Any, Any]:
    """A causal model that was tuned on conversations, whose generation_config.json may name several end tokens."""
    model, tokenizer = publish(folder, "llama", "ForCausalLM")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    model.resize_token_embeddings(len(tokenizer))
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.3)
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    if ends is not None:
        model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def test_a_model_that_was_tuned_on_conversations_answers_as_there(tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = _tuned(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "chat_template.jinja").is_file()
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--json")
    assert ran.code == 0, ran.err
    assert (json.loads(ran.out)["task"], json.loads(ran.out)["column"]) == ("chat", "messages")
    assert "brings a chat template, so the artefact answers conversations; with --plain" in ran.err
    for talk in (TALK, TALK[2:]):
        given = tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            ids = model.generate(**given, max_new_tokens=12, do_sample=False, pad_token_id=0)
        expected = tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        row = json.dumps({"messages": talk}, ensure_ascii=False)
        ran = luban("predict", tmp_path / "ours", row, "max_tokens=12")
        assert json.loads(ran.out)["completion"] == expected
    assert json.loads(luban("predict", tmp_path / "ours", TALK[2]["content"], "max_tokens=12").out)[
        "completion"
    ] == (expected), "a bare text is what a user says"
    ran = luban("export", tmp_path / "ours", "-o", tmp_path / "back")
    assert ran.code == 0, ran.err
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert again.apply_chat_template(TALK, tokenize=False) == tokenizer.apply_chat_template(
        TALK, tokenize=False
    )


def test_a_model_that_was_tuned_on_conversations_can_continue_texts(tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = _tuned(tmp_path / "theirs")
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--plain", "--json")
    assert (json.loads(ran.out)["task"], json.loads(ran.out)["column"]) == ("causal_lm", "text")
    assert "template" not in ran.err
    inputs = tokenizer(TEXTS[0], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
    expected = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ran = luban("predict", tmp_path / "ours", TEXTS[0], "max_tokens=8")
    assert json.loads(ran.out)["completion"] == expected


def test_a_template_that_never_stops_leaves_a_model_that_continues(tmp_path: Path, luban: Luban) -> None:
    _tuned(tmp_path / "theirs")
    (tmp_path / "theirs" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    )
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--json")
    assert json.loads(ran.out)["task"] == "causal_lm"
    assert "would never learn to stop" in ran.err
    assert "so the artefact continues texts, and answers no conversations" in ran.err
    assert "would never learn to stop" in said(
        luban, "import", tmp_path / "theirs", "-o", tmp_path / "chat", "--chat"
    )


def test_who_has_no_template_cannot_chat(theirs: Path, tmp_path: Path, luban: Luban) -> None:
    publish(tmp_path / "theirs", "gpt2", "LMHeadModel")
    assert "brings no chat template" in said(
        luban, "import", tmp_path / "theirs", "-o", tmp_path / "ours", "--chat"
    )
    assert "is for embedding and answers nobody; leave --chat out" in said(
        luban, "import", theirs / "theirs", "-o", tmp_path / "ours", "--chat"
    )


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_each_end_token_that_a_model_names_ends_its_texts(where: str, tmp_path: Path, luban: Luban) -> None:
    """Of a list, any one; the tokenizer itself names but one of them."""
    model, tokenizer = publish(tmp_path / "theirs", "llama", "ForCausalLM")
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "before", "--plain").code == 0
    whole = load(tmp_path / "before").predict(ROWS[:1], generation={"max_tokens": 12})[0]
    inputs = tokenizer(TEXTS[0], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
    new = ids[0, inputs["input_ids"].shape[1] :].tolist()
    assert whole["completion.tokens"] == len(new) == 12
    stop = next(token for i, token in enumerate(new) if i > 2 and token not in new[:i])
    if where == "config.json":
        (tmp_path / "theirs" / "generation_config.json").unlink()
    rewrite(tmp_path / "theirs" / where, eos_token_id=[tokenizer.eos_token_id, stop])
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        ids = again.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
    expected = ids[0, inputs["input_ids"].shape[1] :].tolist()
    assert expected == new[: new.index(stop) + 1]
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--plain").code == 0
    found = load(tmp_path / "ours").predict(ROWS[:1], generation={"max_tokens": 12})[0]
    assert (found["completion.tokens"], found["completion.finish_reason"]) == (len(expected) - 1, "end")
    assert luban("export", tmp_path / "ours", "-o", tmp_path / "back").code == 0
    back = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert back["eos_token_id"] == [tokenizer.eos_token_id, stop]


def test_an_end_token_that_is_no_number_is_refused(tmp_path: Path, luban: Luban) -> None:
    publish(tmp_path / "theirs", "llama", "ForCausalLM")
    rewrite(tmp_path / "theirs" / "generation_config.json", eos_token_id=["</s>"])
    assert "eos_token_id \"['</s>']\", and that must be the number of a token or a list of them" in said(
        luban, "import", tmp_path / "theirs", "-o", tmp_path / "ours"
    )


def test_a_recipe_that_starts_from_such_a_model_keeps_its_end_tokens(tmp_path: Path) -> None:
    from luban.data.processors.text import Text

    publish(tmp_path / "theirs", "llama", "ForCausalLM")
    rewrite(tmp_path / "theirs" / "generation_config.json", eos_token_id=[2, 7, 9])
    text = Text(tokenizer=str(tmp_path / "theirs"))
    text.finish()
    other = Text()
    other.restore(json.loads(json.dumps(text.state())))
    assert other.end_ids == text.end_ids == {text.end_id, 2, 7, 9}


# --- what cannot be read ------------------------------------------------------------------------------------


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _without_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _gguf(folder: Path) -> None:
    (folder / "strange.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
        + (20).to_bytes(8, "little") + b"general.architecture" + (8).to_bytes(4, "little") + (5).to_bytes(8, "little") + b"mamba")  # fmt: skip


CLASSIFIER: dict[str, Any] = {"architectures": ["BertForSequenceClassification"]}
BAD: dict[str, tuple[Any, str, str]] = {
    "another family": (lambda f: rewrite(f / "config.json", model_type="mamba", **CLASSIFIER), "theirs", "transformers has no sequence classifier of type 'mamba'; take task encoder, or another model"),
    "a family that nobody knows": (lambda f: rewrite(f / "config.json", model_type="mine"), "theirs", "has no architecture 'mine'"),
    "weights of another family": (lambda f: rewrite(f / "config.json", model_type="opt"), "theirs", "it has none of the model's tensors"),
    "another head": (lambda f: rewrite(f / "config.json", architectures=["BertForQuestionAnswering"]), "theirs", "is a BertForQuestionAnswering; those that can be imported are"),
    "a pickle": (_pickled, "theirs", "pytorch_model.bin' is a pickle, which may run anything when it is read; convert it once"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "theirs", "has no model.safetensors"),
    "damaged weights": (_cut, "theirs", "model.safetensors' is damaged:"),
    "a tensor is missing": (_without_a_tensor, "theirs", "is incomplete: there is no tensor 'bert.encoder.layer.1.output.dense.weight'"),
    "a damaged configuration": (lambda f: (f / "config.json").write_text("{"), "theirs", "config.json' cannot be read:"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "theirs", "has no config.json"),
    "a configuration that lacks a size": (lambda f: rewrite(f / "config.json", hidden_size=None), "theirs", "and the model needs"),
    "sizes that contradict the weights": (lambda f: rewrite(f / "config.json", intermediate_size=50), "theirs", "and the model needs"),
    "more heads than fit": (lambda f: rewrite(f / "config.json", num_attention_heads=5), "theirs", "hidden_size 32 is no multiple of heads 5"),
    "an unknown activation": (lambda f: rewrite(f / "config.json", hidden_act="xielu"), "theirs", "has the activation 'xielu'; known are"),
    "positions of another kind": (lambda f: rewrite(f / "config.json", position_embedding_type="relative_key"), "theirs", "position_embedding_type 'relative_key'"),
    "architectures that are no list": (lambda f: rewrite(f / "config.json", architectures=5), "theirs", "has architectures '5', and that must be a list"),
    "an architecture that is a mapping": (lambda f: rewrite(f / "config.json", architectures={}), "theirs", "has architectures '{}', and that must be a list"),
    "labels that are a list": (lambda f: rewrite(f / "config.json", **CLASSIFIER, id2label=["a", "b"]), "theirs", "has id2label"),
    "labels with a gap": (lambda f: rewrite(f / "config.json", **CLASSIFIER, id2label={"0": "a", "2": "b"}), "theirs", "has an id2label whose keys are not 0 to 1"),
    "labels that are the same": (lambda f: rewrite(f / "config.json", **CLASSIFIER, id2label={"0": "a", "1": "a"}), "theirs", "or whose names are not unique texts"),
    "labels that are empty": (lambda f: rewrite(f / "config.json", **CLASSIFIER, id2label={"0": "", "1": "a"}), "theirs", "or whose names are not unique texts"),
    "labels that are no number": (lambda f: rewrite(f / "config.json", **CLASSIFIER, id2label=None, num_labels="three"), "theirs", "has num_labels 'three', and that must be a whole number"),
    "labels without end": (lambda f: rewrite(f / "config.json", **CLASSIFIER, id2label=None, num_labels=10**12), "theirs", "has num_labels 1000000000000"),
    "a weighted mean": (lambda f: _pooled(f, {"pooling_mode_weightedmean_tokens": True}), "theirs", "asks for pooling_mode_weightedmean_tokens, and the pools here"),
    "a mean over a root": (lambda f: _pooled(f, {"pooling_mode_mean_sqrt_len_tokens": True}), "theirs", "asks for pooling_mode_mean_sqrt_len_tokens"),
    "two pools": (lambda f: _pooled(f, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}), "theirs", "pooling_mode_cls_token and pooling_mode_mean_tokens"),
    "a module after the pool": (lambda f: (f / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}])), "theirs", "makes vectors with a module Dense"),
    "modules that are no list": (lambda f: (f / "modules.json").write_text("{}"), "theirs", "is no list of modules with a type each"),
    "a decoder": (lambda f: rewrite(f / "config.json", is_decoder=True), "theirs", "has is_decoder True, which this family does not do"),
    "quantised weights": (lambda f: rewrite(f / "config.json", quantization_config={"quant_method": "gptq"}), "theirs", "holds weights that were quantised (gptq)"),
    "a causal BERT": (lambda f: rewrite(f / "config.json", architectures=["BertLMHeadModel"]), "theirs", "says it is causal, and model type 'bert' looks both ways"),
    "an encoder and a decoder": (lambda f: rewrite(f / "config.json", model_type="bart"), "theirs", "model: {type: seq2seq, from: theirs}"),
    "another pair": (lambda f: rewrite(f / "config.json", model_type="whisper", architectures=["WhisperForConditionalGeneration"]), "theirs", "has no encoder-decoder language model of type 'whisper'"),
    "a tokenizer of more tokens": (lambda f: _more_tokens(f), "theirs", "they do not belong together"),
    "no tokenizer": (lambda f: [(f / n).unlink(missing_ok=True) for n in ("tokenizer.json", "tokenizer_config.json")], "theirs", "there is no tokenizer"),
    "nothing there": (lambda f: None, "elsewhere", "there is no directory"),
    "another gguf": (_gguf, "theirs/strange.gguf", "holds a model of type 'mamba'; those read from GGUF files are"),
    "a file that is no gguf": (lambda f: (f / "x.gguf").write_bytes(b"nothing at all"), "theirs/x.gguf", "x.gguf'"),
}  # fmt: skip


def _pooled(folder: Path, said: dict[str, Any]) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))


def _more_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = data["model"]["vocab"]
    vocabulary |= {f"more{i}": len(vocabulary) + i for i in range(9)}
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    publish(folder / "theirs", "bert")
    return folder


def said(luban: Luban, *arguments: str | Path) -> str:
    """The one sentence that a command of a wrong input ends in."""
    ran = luban(*arguments)
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err
    last = ran.err.splitlines()[-1]
    assert last.startswith("luban: ")
    return last


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_said(
    case: str, theirs: Path, tmp_path: Path, luban: Luban, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(theirs / "theirs", "theirs")
    change, source, words = BAD[case]
    change(Path("theirs"))
    assert words in said(luban, "import", source, "-o", "ours")
    assert not Path("ours").exists()
    assert not list(Path().glob(".ours*")), "nothing half-made is left"


def test_a_missing_shard(tmp_path: Path, luban: Luban) -> None:
    publish(tmp_path / "theirs", "bert", shards="40KB")
    first = sorted((tmp_path / "theirs").glob("model-*.safetensors"))[0]
    first.unlink()
    message = said(luban, "import", tmp_path / "theirs", "-o", tmp_path / "ours")
    assert f"is incomplete: {first.name} is missing (1 of" in message


def test_a_regression_has_no_unit(tmp_path: Path, luban: Luban) -> None:
    publish(
        tmp_path / "theirs",
        "bert",
        "ForSequenceClassification",
        id2label={0: "LABEL_0"},
        label2id={"LABEL_0": 0},
    )
    assert "is a regression model, whose numbers have no unit" in said(
        luban, "import", tmp_path / "theirs", "-o", tmp_path / "ours"
    )


@pytest.mark.parametrize(
    ("type_", "words"),
    [("gpt2", "holds a model of type 'bert', and 'gpt2' reads gpt2; take type 'bert'"), ("bert", "")],
)
def test_a_recipe_that_starts_from_another_family(
    type_: str, words: str, theirs: Path, tmp_path: Path, luban: Luban
) -> None:
    recipe = {
        "data": {
            "train": str(tmp_path / "rows.csv"),
            "inputs": {"text": "text"},
            "targets": {"label": "category"},
        },
        "model": {"type": type_, "from": str(theirs / "theirs")},
    }
    (tmp_path / "rows.csv").write_text(
        "text,label\n" + "\n".join(f"text {i},{'ab'[i % 2]}" for i in range(60))
    )
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    if words:
        assert words in said(luban, "check", tmp_path / "r.yaml")
    else:
        assert luban("check", tmp_path / "r.yaml").code == 0


# --- where it goes ------------------------------------------------------------------------------------------


def test_what_is_there_stays(
    theirs: Path, tmp_path: Path, luban: Luban, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = theirs / "theirs"
    Path("empty").mkdir()
    assert luban("import", source, "-o", "empty").code == 0
    assert "'empty' is there already; name another place with -o, or replace it with --force" in said(
        luban, "import", source, "-o", "empty"
    )
    assert luban("import", source, "-o", "empty", "--pool", "max", "--force").code == 0
    Path("photos").mkdir()
    Path("photos/mine.jpg").write_text("x")
    for force in ((), ("--force",)):
        assert "'photos' holds other files, which are left alone" in said(
            luban, "import", source, "-o", "photos", *force
        )
    assert Path("photos/mine.jpg").read_text() == "x"
    Path("file").write_text("x")
    assert "'file' is a file; name another place with -o" in said(
        luban, "import", source, "-o", "file", "--force"
    )


def test_an_artefact_is_not_imported_again(theirs: Path, tmp_path: Path, luban: Luban) -> None:
    assert luban("import", theirs / "theirs", "-o", tmp_path / "ours").code == 0
    assert "is an artefact already; every verb takes it as it is" in said(
        luban, "import", tmp_path / "ours", "-o", tmp_path / "again"
    )


@pytest.mark.data
def test_minilm_embeds_as_transformers_does(tmp_path: Path, luban: Luban) -> None:
    from luban import datasets

    source = datasets.main_file("minilm")
    assert luban("import", source, "-o", tmp_path / "ours").code == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModel.from_pretrained(source).eval()
    for text, found in zip(TEXTS, load(tmp_path / "ours").predict(ROWS), strict=True):
        expected = states_of(model, tokenizer, text).mean(0)
        torch.testing.assert_close(torch.tensor(found["embedding"]), expected, rtol=1e-5, atol=1e-5)


def test_every_kind_is_published() -> None:
    assert {"bert", "roberta", "distilbert", "gpt2", "llama", "qwen2"} <= set(NAMES)
