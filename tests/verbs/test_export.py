"""`luban export --format hf`: what transformers loads of it answers as the artefact does, in the unit of the target."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from luban.predict import load
from tiny_case import Luban

transformers = pytest.importorskip("transformers")
from published import NAMES, PAIRS, TEMPLATE, TEXTS, publish, publish_pair  # noqa: E402


def last_line(luban: Luban, *arguments: str | Path) -> str:
    ran = luban(*arguments)
    assert ran.code == 2, ran.err
    return ran.err.splitlines()[-1]


def drift_of(luban: Luban, source: Path, output: Path) -> dict[str, Any]:
    ran = luban("export", source, "-o", output, "--json")
    assert ran.code == 0, ran.err
    answer: dict[str, Any] = json.loads(ran.out)
    assert answer["drift"] < 1e-4
    return answer


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


HEADS = {
    "bert": ("Model", "ForMaskedLM", "ForSequenceClassification"),
    "roberta": ("Model", "ForMaskedLM", "ForSequenceClassification"),
    "distilbert": ("Model", "ForMaskedLM", "ForSequenceClassification"),
    "gpt2": ("Model", "LMHeadModel", "ForSequenceClassification"),
    "llama": ("Model", "ForCausalLM", "ForSequenceClassification"),
    "qwen2": ("ForCausalLM",),
}


@pytest.mark.parametrize(("kind", "head"), [(kind, head) for kind, heads in HEADS.items() for head in heads])
def test_what_was_imported_comes_back(kind: str, head: str, tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = publish(tmp_path / "theirs", kind, head)
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours").code == 0
    answer = drift_of(luban, tmp_path / "ours", tmp_path / "back")
    assert answer["architecture"] == NAMES[kind] + head
    again = getattr(transformers, NAMES[kind] + head).from_pretrained(tmp_path / "back").eval()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    for text in TEXTS:
        ids = ids_of(tokenizer, text)
        assert ids_of(reader, text) == ids
        with torch.no_grad():
            one, other = (m(torch.tensor([ids])) for m in (model, again))
        name = "last_hidden_state" if head == "Model" else "logits"
        torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-5)
    files = {path.name for path in (tmp_path / "back").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    assert ("generation_config.json" in files) == (head in ("LMHeadModel", "ForCausalLM"))
    if kind in ("llama", "qwen2"):
        assert reader.chat_template == TEMPLATE
        messages = [{"role": "user", "content": "hello"}]
        assert reader.apply_chat_template(messages, tokenize=False) == tokenizer.apply_chat_template(
            messages, tokenize=False
        )
    for role in ("pad", "eos", "bos", "mask"):
        if (expected := getattr(tokenizer, f"{role}_token_id")) is not None:
            assert getattr(reader, f"{role}_token_id") == expected, role


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM"])
def test_the_auto_classes_find_it(auto: str, tmp_path: Path, luban: Luban) -> None:
    publish(tmp_path / "theirs", "qwen2", "Model" if auto == "AutoModel" else "ForCausalLM")
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours").code == 0
    drift_of(luban, tmp_path / "ours", tmp_path / "back")
    made = getattr(transformers, auto).from_pretrained(tmp_path / "back")
    assert type(made).__name__ == ("Qwen2Model" if auto == "AutoModel" else "Qwen2ForCausalLM")
    if auto == "AutoModelForCausalLM":
        assert (
            made.generation_config.eos_token_id
            == transformers.AutoTokenizer.from_pretrained(tmp_path / "back").eos_token_id
        )


@pytest.mark.parametrize("kind", PAIRS)
def test_an_encoder_with_a_decoder_comes_back(kind: str, tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = publish_pair(tmp_path / "theirs", kind)
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours").code == 0
    answer = drift_of(luban, tmp_path / "ours", tmp_path / "back")
    assert answer["architecture"] == PAIRS[kind][0]
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "back").eval()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    for text, other in pairwise(TEXTS):
        ids, labels = torch.tensor([ids_of(tokenizer, text)]), torch.tensor([ids_of(tokenizer, other)])
        assert ids_of(reader, text) == ids[0].tolist()
        with torch.no_grad():
            one, two = (m(input_ids=ids, labels=labels) for m in (model, again))
        torch.testing.assert_close(two.logits, one.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(two.loss, one.loss, rtol=1e-5, atol=1e-5)


# --- what was trained here ----------------------------------------------------------------------------------

MODELS = {
    "bert": {"type": "bert", "layers": 1, "hidden_size": 16, "heads": 2, "max_positions": 32},
    "roberta": {"type": "bert", "layout": "roberta", "layers": 1, "hidden_size": 16, "heads": 2, "max_positions": 32},
    "distilbert": {"type": "bert", "layout": "distilbert", "layers": 1, "hidden_size": 16, "heads": 2, "max_positions": 32},
    "gpt2": {"type": "gpt2", "layers": 1, "hidden_size": 16, "heads": 2, "max_positions": 64},
    "llama": {"type": "llama", "layers": 1, "hidden_size": 16, "heads": 2, "kv_heads": 1, "max_positions": 64},
}  # fmt: skip
TARGETS: dict[str, Any] = {
    "yes": "binary",
    "city": "category",
    "tags": "set",
    "price": {"type": "number", "normalize": "zscore"},
    "stars": {"type": "number", "normalize": "none"},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    words = ["good", "bad", "fine", "poor", "鲁班", "工具"]
    cities = ["北京", "Paris", "Lyon"]
    lines = ["text,yes,city,tags,price,stars"]
    for i in range(60):
        text = " ".join(words[(i * k + k) % 6] for k in range(1, 5))
        lines.append(
            f"{text},{'yes' if i % 3 else 'no'},{cities[i % 3]},{'a;b' if i % 2 else 'b;c'},{1000 + 37 * i},{i % 5}"
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def trained(
    luban: Luban, rows: Path, folder: Path, model: dict[str, Any], targets: dict[str, Any], **more: Any
) -> Path:
    recipe = {
        "data": {
            "train": str(rows),
            "inputs": {"text": {"type": "text", "vocabulary": 300, "min_count": 1}},
            "targets": targets,
            **more.pop("data", {}),
        },
        "model": model,
        "train": {"steps": 3, "batch_size": 16, "optimizer": {"type": "adamw", "learning_rate": 0.01}},
        **more,
    }
    (folder / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    ran = luban("train", folder / "r.yaml", "-o", folder / "ours")
    assert ran.code == 0, ran.err
    return folder / "ours"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", MODELS)
def test_a_model_of_ours(model: str, target: str, rows: Path, tmp_path: Path, luban: Luban) -> None:
    ours = trained(luban, rows, tmp_path, MODELS[model], {target: TARGETS[target]})
    if target == "price" and model in ("gpt2", "llama"):
        assert f"transformers' '{model}' has no bias that could bring 'price' back to its unit" in last_line(
            luban, "export", ours, "-o", tmp_path / "out"
        )
        return
    drift_of(luban, ours, tmp_path / "out")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = ["good bad 工具", "fine", "poor 鲁班 good good"]
    for text, found in zip(texts, load(ours).predict([{"text": text} for text in texts]), strict=True):
        with torch.no_grad():
            logits = theirs(torch.tensor([ids_of(reader, text)])).logits[0]
        if target in ("price", "stars"):
            assert found[target] == pytest.approx(float(logits[0]), rel=1e-4)
            continue
        shares = logits.sigmoid() if target == "tags" else logits.softmax(0)
        expected = {theirs.config.id2label[i]: share for i, share in enumerate(shares.tolist())}
        assert found[f"{target}.scores"] == pytest.approx(expected, abs=1e-5)
    # A batch with padding, as others run it.
    if reader.pad_token_id is not None:
        inputs = reader(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            together = theirs(**inputs).logits[1]
            alone = theirs(torch.tensor([ids_of(reader, texts[1])])).logits[0]
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_a_causal_model_of_ours(model: str, rows: Path, tmp_path: Path, luban: Luban) -> None:
    ours = trained(luban, rows, tmp_path, MODELS[model], {}, objective={"type": "causal_lm"})
    answer = drift_of(luban, ours, tmp_path / "out")
    assert answer["architecture"].endswith(("LMHeadModel", "ForCausalLM"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert reader.decode(reader("good bad")["input_ids"]) == "good bad"  # a prompt has no end
    assert theirs.generation_config.eos_token_id == reader.eos_token_id
    ids = torch.tensor([ids_of(reader, "good bad")])
    with torch.no_grad():
        going_on = theirs.generate(
            ids, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids)
        )[0, ids.shape[1] :]
    (found,) = load(ours).predict([{"text": "good bad"}], generation={"max_tokens": 6, "temperature": 0.0})
    assert found["completion"] == reader.decode(going_on, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("model", "pairs"), [("bert", False), ("bert", True), ("roberta", False), ("distilbert", False)]
)
def test_a_masked_model_of_ours(model: str, pairs: bool, rows: Path, tmp_path: Path, luban: Luban) -> None:
    objective = [{"type": "masked_lm"}, *([{"type": "next_sentence"}] if pairs else [])]
    ours = trained(luban, rows, tmp_path, MODELS[model], {}, objective=objective)
    answer = drift_of(luban, ours, tmp_path / "out")
    assert answer["architecture"] == NAMES[model] + ("ForPreTraining" if pairs else "ForMaskedLM")
    auto = transformers.AutoModelForPreTraining if pairs else transformers.AutoModelForMaskedLM
    _, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    again = tmp_path / "again"
    assert luban("import", tmp_path / "out", "-o", again).code == 0
    reader = load(ours).pipeline.inputs["text"]
    mask = reader.trained.id_to_token(reader.mask_id)  # type: ignore[attr-defined]
    row = [{"text": f"good {mask} fine"}]
    one, other = (load(path).predict(row)[0]["fills"][0] for path in (ours, again))
    assert one == pytest.approx(other, abs=1e-5)


PAIR = {
    "type": "seq2seq",
    "layers": 1,
    "hidden_size": 16,
    "heads": 2,
    "max_positions": 32,
    "norm": "post",
    "positions": "learned",
    "embedding_norm": True,
}


@pytest.mark.parametrize("form", [{}, {"positions": "sinusoidal", "embedding_norm": False}, {"norm": "pre"}])
def test_a_model_of_ours_that_writes(form: dict[str, Any], rows: Path, tmp_path: Path, luban: Luban) -> None:
    texts = {"targets": {"city": {"type": "text", "like": "text"}}}
    ours = trained(luban, rows, tmp_path, {**PAIR, **form}, {}, data=texts)
    drift_of(luban, ours, tmp_path / "out")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = ["good bad 工具", "fine", "poor 鲁班 good good"]
    for text, found in zip(asked, load(ours).predict([{"text": text} for text in asked]), strict=True):
        with torch.no_grad():
            ids = theirs.generate(torch.tensor([ids_of(reader, text)]))[0, 1:]
        assert found["city"] == reader.decode(ids, skip_special_tokens=True)
        assert found["city.tokens"] >= len(ids) - 1


def test_a_model_that_writes_and_has_no_counterpart(rows: Path, tmp_path: Path, luban: Luban) -> None:
    own = {"targets": {"city": "text"}}
    ours = trained(luban, rows, tmp_path, PAIR, {}, data=own)
    assert (
        "'text' and 'city' have tokenizers of their own; train with data.targets.city: {type: text, like: text}"
        in (last_line(luban, "export", ours, "-o", tmp_path / "out"))
    )
    shared = {"targets": {"city": {"type": "text", "like": "text"}}}
    (tmp_path / "more").mkdir()
    ours = trained(luban, rows, tmp_path / "more", {**PAIR, "positions": "rotary"}, {}, data=shared)
    assert "transformers has no model with norm post, positions rotary" in last_line(
        luban, "export", ours, "-o", tmp_path / "out"
    )


def test_what_the_files_cannot_do_is_said(rows: Path, tmp_path: Path, luban: Luban) -> None:
    clean = {"data": {"clean": [{"type": "text", "lowercase": True}]}}
    ours = trained(
        luban, rows, tmp_path, MODELS["bert"], {"yes": {"type": "binary", "threshold": 0.7}}, **clean
    )
    ran = luban("export", ours, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "the artefact cleans rows (text), and transformers does not: clean them before" in ran.err
    assert "'yes' is decided at 0.7 here and at 0.5 there; the probabilities are the same" in ran.err


def test_what_was_decided_on_validation_rows_stays_behind_and_that_is_said(
    tmp_path: Path, luban: Luban
) -> None:
    """A temperature and a threshold for each group change what the artefact says; the files hold the model's own logits."""
    rows, words = tmp_path / "people.csv", ["good", "bad", "fine", "poor", "well", "ill"]
    lines = [
        f"{words[i % 6]} {words[i // 6 % 6]} {words[i // 36 % 6]},{'yes' if i % 6 in (0, 2) or i % 7 == 3 else 'no'},{('Paris', 'Lyon')[i % 2]}"
        for i in range(200)
    ]
    rows.write_text("\n".join(["text,yes,city", *lines]) + "\n", encoding="utf-8")
    more = {
        "data": {"groups": ["city"], "split": {"validation": 0.5, "test": 0.2}},
        "decide": ["temperature", {"type": "thresholds", "by": "city", "min_rows": 3}],
    }
    target = {"yes": {"type": "binary", "threshold": 0.7}}
    ours = trained(luban, rows, tmp_path, MODELS["bert"], target, **more)
    ran = luban("export", ours, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert (
        "the artefact decides by what was fitted behind the model (temperature, thresholds), and transformers does not: "
        "its scores are the model's own"
    ) in ran.err
    assert "'yes' is decided at 0.7 here and at 0.5 there\n" in ran.err, "the probabilities are not the same"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    predictor = load(ours)
    asked = [{"text": "good bad", "city": "Paris"}, {"text": "poor fine", "city": "Lyon"}]
    decided = predictor.predict(asked)
    predictor.decisions = []
    for row, own, changed in zip(asked, predictor.predict(asked), decided, strict=True):
        with torch.no_grad():
            share = float(theirs(torch.tensor([ids_of(reader, row["text"])])).logits[0].softmax(0)[1])
        assert own["yes.scores"]["yes"] == pytest.approx(share, abs=1e-5)
        assert abs(changed["yes.scores"]["yes"] - share) > 1e-3


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "another family": ({"type": "textcnn", "size": "tiny"}, {"yes": "binary"}, {}, "an artefact of type 'textcnn' has no counterpart in transformers"),
    "another pool": ({**MODELS["bert"], "pool": "mean"}, {"yes": "binary"}, {}, "reads the pooler, and this artefact pools 'mean'; train with model.pool=pooler"),
    "a logarithm": (MODELS["bert"], {"price": {"type": "number", "normalize": "log"}}, {}, "'price' is learnt as a logarithm (normalize log), which transformers cannot undo"),
    "two targets": (MODELS["bert"], {"yes": "binary", "city": "category"}, {}, "transformers has one linear head, and this artefact has several targets"),
    "hidden layers": ({**MODELS["bert"], "hidden": [4]}, {"yes": "binary"}, {}, "transformers has one linear head"),
    "tokens and a target": (MODELS["bert"], {"yes": "binary"}, {"objective": ["masked_lm", "binary_cross_entropy"]}, "transformers has one linear head, and this artefact has several targets, tokens and a target"),
    "two inputs": (MODELS["bert"], {"yes": "binary"}, {"data": {"inputs": {"text": "text", "stars": "number"}}}, "transformers reads one text, and this artefact has more inputs"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_files_cannot_hold_is_refused(case: str, rows: Path, tmp_path: Path, luban: Luban) -> None:
    model, targets, more, words = REFUSED[case]
    ours = trained(luban, rows, tmp_path, model, targets, **more)
    assert words in last_line(luban, "export", ours, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_it_goes(rows: Path, tmp_path: Path, luban: Luban, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained(luban, rows, tmp_path, MODELS["bert"], {"yes": "binary"})
    assert "received format 'hff'; formats are hf" in last_line(
        luban, "export", "ours", "-o", "out", "--format", "hff"
    )
    drift_of(luban, Path("ours"), Path("out"))
    assert "'out' is there already" in last_line(luban, "export", "ours", "-o", "out")
    assert luban("export", "ours", "-o", "out", "--force").code == 0
    assert "'ours' holds other files, which are left alone" in last_line(
        luban, "export", "ours", "-o", "ours", "--force"
    )
    Path("out/notes.txt").write_text("mine")
    assert "'out' holds other files, which are left alone" in last_line(
        luban, "export", "ours", "-o", "out", "--force"
    )


def test_without_transformers_the_files_are_written_and_not_compared(
    rows: Path, tmp_path: Path, luban: Luban, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    ours = trained(luban, rows, tmp_path, MODELS["bert"], {"yes": "binary"})
    monkeypatch.setitem(sys.modules, "transformers", None)
    ran = luban("export", ours, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "transformers is not installed, so the files were not compared with the artefact" in ran.err
    assert (tmp_path / "out" / "model.safetensors").is_file()
