"""A sequence classifier of an architecture that Luban has no family for goes through the verbs as it stands."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import luban
from luban.errors import RecipeError
from luban.models._foreign_classifier import ForeignClassifier
from luban.models._network import Network
from luban.predict import load
from luban.recipe import Section
from luban.verbs.import_ import import_model
from tiny_case import Luban

transformers = pytest.importorskip("transformers")
from published import SMALL, TEXTS, byte_pairs, rewrite, wordpiece  # noqa: E402

ROWS = [{"text": text} for text in TEXTS]
PAIR = {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in {"layers": 2, "attention_heads": 4, "ffn_dim": 48}.items()}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16, "num_hidden_groups": 1},
    "deberta-v2": {},
    "mpnet": {},
    "modernbert": {},
    "longformer": {"attention_window": 4},
    # Padding is not left out of it, and [CLS] is of a segment of its own.
    "xlnet": {"d_head": 8, "d_inner": 48},
    "funnel": {"block_sizes": [1, 1, 1], "d_head": 8, "d_inner": 48, "type_vocab_size": 3},
    # Read at the end token, behind a decoder.
    "bart": {**PAIR, "d_model": 32, "init_std": 0.3},
    # Read at the last token, by a layer without a bias.
    "gpt_neox": {},
}
NAMES = ["bad", "so-so", "good"]
LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: i for i, name in enumerate(NAMES)},
}


def tokenizer_of(kind: str) -> Any:
    """A tokenizer with the frame and the segments that the architecture's own has."""
    from tokenizers import processors

    if kind == "bart":
        return byte_pairs("roberta")
    if kind == "gpt_neox":
        return byte_pairs("qwen2")
    tokenizer = wordpiece()
    frames = {"xlnet": "$A:0 [SEP]:0 [CLS]:2", "funnel": "[CLS]:2 $A:0 [SEP]:0"}
    if kind in frames:
        special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=frames[kind], special_tokens=special
        )
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
            **tokenizer.special_tokens_map,
        )
    return tokenizer


def published(folder: Path, kind: str, **more: Any) -> tuple[Any, Any]:
    """Save a classifier and its tokenizer as others do; return both."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(kind)
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
    special |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    special = {key: value for key, value in special.items() if value is not None}
    if kind == "funnel":
        sizes: dict[str, Any] = {"d_model": 32, "n_head": 4, "initializer_std": 0.3}
    elif kind == "bart":
        sizes = {"max_position_embeddings": 130}
    else:
        sizes = {
            key: one for key, one in SMALL.items() if (kind, key) != ("xlnet", "max_position_embeddings")
        }
    options = {**sizes, **KINDS.get(kind, {}), **special, **LABELS, **more}
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **options)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():  # norms and biases begin at one and zero, which would hide a swap
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), tokenizer


def logits_of(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    """What transformers makes of a text alone, with all that the tokenizer gives the model."""
    fewest = 5 if model.config.model_type == "funnel" else 1  # which cannot read fewer
    inputs = tokenizer(text, return_tensors="pt", padding="max_length", max_length=fewest)
    assert ("token_type_ids" in inputs) == (model.config.model_type in ("xlnet", "funnel"))
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits[0]
    return logits


def reader_of(artefact: Path) -> ForeignClassifier:
    network = load(artefact).model
    assert isinstance(network, Network)
    (reader,) = network.encoders.values()
    assert isinstance(reader, ForeignClassifier)
    return reader


@pytest.mark.parametrize("kind", KINDS)
def test_import_predict_and_export(kind: str, tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = published(tmp_path / "theirs", kind)
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours", "--json")
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert (answer["task"], answer["model"]) == ("classification", "huggingface")
    assert "new weights" not in ran.err
    shutil.move(tmp_path / "theirs", tmp_path / "gone")

    # All texts in one batch, each as it is there alone.
    expected = [logits_of(model, tokenizer, text) for text in TEXTS]
    predictor = load(tmp_path / "ours")
    with torch.no_grad():
        logits = predictor.model(predictor.batch(ROWS))["label.logits"]
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-5, atol=1e-5)
    for found, other in zip(predictor.predict(ROWS), expected, strict=True):
        assert found["label"] == NAMES[int(other.argmax())]
        assert found["label.scores"] == pytest.approx(dict(zip(NAMES, other.softmax(0).tolist(), strict=True)), abs=1e-5)  # fmt: skip

    ran = luban("export", tmp_path / "ours", "-o", tmp_path / "back", "--json")
    assert ran.code == 0, ran.err
    answer = json.loads(ran.out)
    assert answer["architecture"] == type(model).__name__
    assert answer["drift"] < 1e-5
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "back").eval()
    assert again.config.id2label == LABELS["id2label"]
    assert again.config.problem_type == "single_label_classification"
    for (name, one), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name, rtol=0, atol=0)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    for text, other in zip(TEXTS, expected, strict=True):
        torch.testing.assert_close(logits_of(again, reader, text), other, rtol=1e-5, atol=1e-5)


POSITIONED: dict[str, dict[str, Any]] = {
    "longformer": {"attention_window": 4},
    "ibert": {},
    "lilt": {"hidden_size": 48},
    "data2vec-text": {},
}
"""Which count positions from the number of the padding."""


@pytest.mark.parametrize("kind", POSITIONED)
def test_a_null_where_padding_cannot_be_done_without(kind: str, tmp_path: Path) -> None:
    usual = transformers.AutoConfig.for_model(kind).pad_token_id
    more = {**POSITIONED[kind], "pad_token_id": usual}
    model, tokenizer = published(tmp_path / "theirs", kind, **more)
    rewrite(tmp_path / "theirs" / "config.json", pad_token_id=None)
    import_model(tmp_path / "theirs", tmp_path / "ours")
    texts = [
        *TEXTS,
        "☃ and ☃",
    ]  # of which the tokenizer knows nothing: its [UNK] is the padding of most of these classes
    expected = [logits_of(model, tokenizer, text) for text in texts]
    predictor = load(tmp_path / "ours")
    with torch.no_grad():
        found = predictor.model(predictor.batch([{"text": text} for text in texts]))["label.logits"]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert luban.export(tmp_path / "ours", tmp_path / "back")["drift"] < 1e-5
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "back").eval()
    assert again.config.pad_token_id == usual
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    for text, other in zip(texts, expected, strict=True):
        torch.testing.assert_close(logits_of(again, reader, text), other, rtol=1e-5, atol=1e-5)


def test_bigbird_comes_back_as_it_was_run(tmp_path: Path) -> None:
    """Attending to the whole of a text, also of one that is long enough for its blocks."""
    more = {"block_size": 2, "num_random_blocks": 1, "attention_type": "block_sparse"}
    model, tokenizer = published(tmp_path / "theirs", "big_bird", **more)
    import_model(tmp_path / "theirs", tmp_path / "ours")
    long = " ".join(TEXTS[2:3] * 3)
    ids = tokenizer(long, return_tensors="pt")["input_ids"]
    assert ids.shape[1] > (5 + 2 * 1) * 2  # from which on attention would be sparse
    predictor = load(tmp_path / "ours")
    with torch.no_grad():
        found = predictor.model(predictor.batch([{"text": long}]))["label.logits"]
        assert (model(ids).logits - found).abs().max() > 1e-2
    assert luban.export(tmp_path / "ours", tmp_path / "back")["drift"] < 1e-5
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "back").eval()
    assert again.config.attention_type == "original_full"
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, found, rtol=1e-5, atol=1e-5)


def test_segments_are_those_that_the_tokenizer_tells_of(tmp_path: Path) -> None:
    """And go with the artefact; a tokenizer that tells its model of none leaves all in the first."""
    _, tokenizer = published(tmp_path / "theirs", "xlnet")
    parse = Section("models").parse
    segments = [[], [tokenizer.cls_token_id]]
    given = {"type": "huggingface", "task": "classifier", "from": str(tmp_path / "theirs")}
    assert parse(given).segments == segments
    assert parse({**given, "segments": []}).segments == []
    import_model(tmp_path / "theirs", tmp_path / "ours")
    again = parse({"type": "huggingface", "from": str(tmp_path / "ours")})
    assert (again.task, again.segments) == ("classifier", segments)
    rewrite(tmp_path / "theirs" / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert parse(given).segments == []


def test_segments_are_left_out_where_the_model_has_none(rows: Path, tmp_path: Path) -> None:
    """As transformers leaves them out, whatever its tokenizer tells of; a recipe that names them is refused."""
    model, _ = published(tmp_path / "theirs", "mpnet")
    tokenizer_of("xlnet").save_pretrained(tmp_path / "theirs")  # which tells of a segment of [CLS]
    given = {"type": "huggingface", "task": "classifier", "from": str(tmp_path / "theirs")}
    assert Section("models").parse(given).segments == []  # type: ignore[attr-defined]
    import_model(tmp_path / "theirs", tmp_path / "ours")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert 2 in tokenizer(TEXTS[0])["token_type_ids"]
    theirs = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    for row, found in zip(ROWS, load(tmp_path / "ours").predict(ROWS), strict=True):
        scores = {one["label"]: one["score"] for one in theirs([row["text"]])[0]}
        assert found["label.scores"] == pytest.approx(scores, abs=1e-5)
    recipe = {
        "data": {"train": str(rows), "inputs": {"text": "text"}, "targets": {"label": "category"}},
        "model": {**given, "segments": [[], [2]]},
    }
    with pytest.raises(
        RecipeError, match=r"model\.segments does nothing with an architecture of type 'mpnet'"
    ):
        luban.train(recipe, output=tmp_path / "tuned")


def test_a_multi_label_classifier(tmp_path: Path, luban: Luban) -> None:
    model, tokenizer = published(tmp_path / "theirs", "electra", problem_type="multi_label_classification")
    assert luban("import", tmp_path / "theirs", "-o", tmp_path / "ours").code == 0
    for text, found in zip(TEXTS, load(tmp_path / "ours").predict(ROWS), strict=True):
        shares = dict(zip(NAMES, logits_of(model, tokenizer, text).sigmoid().tolist(), strict=True))
        assert found["label.scores"] == pytest.approx(shares, abs=1e-5)
        assert set(found["label"]) == {name for name, share in shares.items() if share >= 0.5}
    ran = luban("export", tmp_path / "ours", "-o", tmp_path / "back", "--json")
    assert ran.code == 0, ran.err
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "back")
    assert again.config.problem_type == "multi_label_classification"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    draw = random.Random(0)
    words = ["the", "good", "great", "way", "you", "work", "think", "of", "and", "measure", "cut", "once"]
    lines = ["text,label,yes,tags,price,shop"]
    for i in range(160):
        text = [draw.choice(words) for _ in range(4)]
        text.insert(draw.randrange(5), ["paris", "tool", "carpenter", "yes"][i % 4])
        lines.append(f"{' '.join(text)},{'abcd'[i % 4]},{'yes' if i % 2 else 'no'},{'x;y' if i % 2 else 'y;z'},{100 + 50 * (i % 4)},{draw.choice('ns')}")  # fmt: skip
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def trained(luban: Luban, rows: Path, output: Path, model: dict[str, Any], **more: Any) -> Any:
    recipe = {
        "data": {"train": str(rows), "inputs": {"text": "text"}, "targets": more.pop("targets", {"label": "category"})},
        "model": {"type": "huggingface", **model},
        "train": {"steps": 60, "batch_size": 16, "optimizer": {"type": "adamw", "learning_rate": 3e-3}} | more.pop("train", {}),
        **more,
    }  # fmt: skip
    (rows.parent / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return luban("train", rows.parent / "r.yaml", "-o", output)


def test_every_verb_takes_it(rows: Path, tmp_path: Path, luban: Luban) -> None:
    """An import is measured, explained and audited, and is where tuning on other classes starts from."""
    published(tmp_path / "theirs", "electra", initializer_range=0.1)
    ours = tmp_path / "ours"
    assert luban("import", tmp_path / "theirs", "-o", ours, "--target", "verdict").code == 0
    shutil.move(tmp_path / "theirs", tmp_path / "gone")
    table = rows.read_text(encoding="utf-8").splitlines()[1:]
    lines = [f"{line.split(',')[0]},{NAMES[i % 3]},{line[-1]}" for i, line in enumerate(table)]
    (tmp_path / "three.csv").write_text("\n".join(["text,verdict,shop", *lines]), encoding="utf-8")
    ran = luban("evaluate", ours, tmp_path / "three.csv", "--resamples", "0", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["metrics"].keys() >= {"verdict.accuracy", "verdict.log_loss"}
    for method in ("integrated_gradients", "occlusion", "lime"):
        ran = luban("explain", ours, "good tools", "--method", method, "--json")
        assert ran.code == 0, ran.err
    ran = luban("audit", ours, tmp_path / "three.csv", "--by", "shop", "--only", "fairness", "--json")
    assert ran.code == 0, ran.err

    ran = trained(luban, rows, tmp_path / "tuned", {"from": str(ours)}, train={"steps": 120})
    assert ran.code == 0, ran.err
    assert "new weights" not in ran.err
    tuned = load(tmp_path / "tuned")
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["model"]["dropout"] == 0.0
    assert {one["label"] for one in tuned.predict([{"text": f"good {kind}"} for kind in "abcd"])} <= set(
        "abcd"
    )
    measured = json.loads((tmp_path / "tuned" / "metrics.json").read_text())["metrics"]
    assert measured["label.accuracy"]["value"] > 0.9
    ran = luban("export", tmp_path / "tuned", "-o", tmp_path / "back", "--json")
    assert ran.code == 0, ran.err
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "back").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    classify = transformers.pipeline("text-classification", model=again, tokenizer=tokenizer, top_k=None)
    for text, found in zip(TEXTS, tuned.predict(ROWS), strict=True):
        expected = {one["label"]: one["score"] for one in classify([text])[0]}
        assert found["label.scores"] == pytest.approx(expected, abs=1e-5)


def test_saved_and_loaded_bit_for_bit(rows: Path, tmp_path: Path, luban: Luban) -> None:
    """With a table that is tied, and a decoder."""
    published(tmp_path / "theirs", "bart")
    assert trained(luban, rows, tmp_path / "ours", {"task": "classifier", "from": str(tmp_path / "theirs")}, train={"steps": 3}).code == 0  # fmt: skip
    predictor = load(tmp_path / "ours")
    before = predictor.predict(ROWS)
    shutil.move(tmp_path / "theirs", tmp_path / "gone")
    shutil.move(tmp_path / "ours", tmp_path / "moved")
    assert load(tmp_path / "moved").predict(ROWS) == before
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "moved" / "model.safetensors")
    assert sum(name.endswith(("embed_tokens.weight", "shared.weight")) for name in tensors) == 1
    state = predictor.model.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(tensors[name], value) for name, value in state.items())

    # What was tuned is where another run may start; its learning rate moves nothing.
    still = {"steps": 1, "optimizer": {"type": "sgd", "learning_rate": 1e-9}}
    ran = trained(luban, rows, tmp_path / "further", {"from": str(tmp_path / "moved")}, train=still)
    assert ran.code == 0, ran.err
    further = load_file(tmp_path / "further" / "model.safetensors")
    for name, value in tensors.items():
        if name.startswith("encoders."):
            torch.testing.assert_close(further[name], value)


@pytest.mark.parametrize(
    ("kind", "target", "processor"),
    [
        ("electra", "yes", "binary"),
        ("gpt_neox", "yes", "binary"),
        ("electra", "tags", "set"),
        ("albert", "price", "number"),
        ("bart", "price", {"type": "number", "normalize": "none"}),
    ],
)
def test_other_targets_come_back(
    kind: str, target: str, processor: Any, rows: Path, tmp_path: Path, luban: Luban
) -> None:
    published(tmp_path / "theirs", kind)
    model = {"task": "classifier", "from": str(tmp_path / "theirs")}
    ran = trained(luban, rows, tmp_path / "ours", model, targets={target: processor}, train={"steps": 2})
    assert ran.code == 0, ran.err
    ran = luban("export", tmp_path / "ours", "-o", tmp_path / "back", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["drift"] < 1e-4
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "back").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    for text, found in zip(TEXTS, load(tmp_path / "ours").predict(ROWS), strict=True):
        logits = logits_of(theirs, tokenizer, text)
        if target == "price":
            assert found["price"] == pytest.approx(float(logits[0]), rel=1e-4)
            continue
        shares = logits.sigmoid() if target == "tags" else logits.softmax(0)
        names = [theirs.config.id2label[i] for i in range(len(shares))]
        assert found[f"{target}.scores"] == pytest.approx(dict(zip(names, shares.tolist(), strict=True)), abs=1e-5)  # fmt: skip


def test_a_model_without_a_classifier_gets_one(rows: Path, tmp_path: Path, luban: Luban) -> None:
    """Of what stands behind the pretrained part the dense layer is new, and is trained whole beside adapters."""
    model, _ = published(tmp_path / "theirs", "electra")
    model.electra.save_pretrained(tmp_path / "theirs")
    options = {"task": "classifier", "from": str(tmp_path / "theirs")}
    ran = trained(luban, rows, tmp_path / "ours", options, adapt=[{"type": "lora", "rank": 2}])
    assert ran.code == 0, ran.err
    assert "new weights, which the pretrained model lacks: classifier.dense\n" in ran.err
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    adapted = {name.rpartition(".")[0] for name in tensors if name.endswith(".lora_b")}
    assert len(adapted) == 2 * 6 + 1  # of each block, and what widens the embeddings
    assert not any("classifier" in name for name in adapted)
    assert all(tensors[f"{name}.lora_b"].any() for name in adapted)
    reader = reader_of(tmp_path / "ours")
    start = transformers.ElectraModel.from_pretrained(tmp_path / "theirs").state_dict()
    query = "encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(dict(reader.model.named_parameters())[f"electra.{query}"], start[query])
    ran = luban("export", tmp_path / "ours", "-o", tmp_path / "back", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["drift"] < 1e-4


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _without(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


BAD: dict[str, tuple[Any, str]] = {
    "a pickle": (_pickled, "pytorch_model.bin' is a pickle, which may run anything when it is read; convert it once"),
    "a regression": (lambda f: rewrite(f / "config.json", id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}), "is a regression model, whose numbers have no unit"),
    "no head": (lambda f: _without(f, "classifier.out_proj.weight"), "is incomplete: there is no tensor 'classifier.out_proj.weight'"),
    "no dense layer": (lambda f: _without(f, "classifier.dense.weight"), "is incomplete: it lacks classifier.dense, so that what it predicts would be chance"),
    "other classes": (lambda f: rewrite(f / "config.json", id2label={"0": "a", "1": "b"}), "is (3, 32), and 2 classes need (2, 32)"),
    "other sizes": (lambda f: rewrite(f / "config.json", intermediate_size=50), "has another size there"),
    "no classifier of the kind": (lambda f: rewrite(f / "config.json", model_type="mamba"), "transformers has no sequence classifier of type 'mamba'; take task encoder"),
    "another head": (lambda f: rewrite(f / "config.json", architectures=["ElectraForTokenClassification"]), "is a ElectraForTokenClassification; those that can be imported are sequence classifiers"),
    "questions": (lambda f: rewrite(f / "config.json", architectures=["ElectraForQuestionAnswering"]), "is a ElectraForQuestionAnswering; those that can be imported are"),
    "an unknown kind": (lambda f: rewrite(f / "config.json", model_type="mine"), "has no architecture 'mine'; code that lies beside somebody's weights is never run"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_said(case: str, tmp_path: Path, luban: Luban) -> None:
    published(tmp_path / "theirs", "electra")
    change, words = BAD[case]
    change(tmp_path / "theirs")
    ran = luban("import", tmp_path / "theirs", "-o", tmp_path / "ours")
    assert ran.code == 2, ran.err
    assert words in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pool": "first"}, "pool does nothing for task classifier: the architecture pools as it always does"),
        ({"task": "encoder", "segments": [[], [2]]}, "segments are for task classifier; remove the key"),
        ({"segments": [[], [2]]}, "names 2 segments beside the first, and an architecture of type 'electra' has 2 in all"),
        ({"task": "masked_lm"}, "puts out tokens, and no objective asks for them"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(
    change: dict[str, Any], sentence: str, rows: Path, tmp_path: Path, luban: Luban
) -> None:
    published(tmp_path / "theirs", "electra")
    ran = trained(luban, rows, tmp_path / "ours", {"task": "classifier", "from": str(tmp_path / "theirs"), **change})  # fmt: skip
    assert ran.code == 2, ran.err
    assert sentence in ran.err


def test_an_export_that_transformers_has_no_form_for(rows: Path, tmp_path: Path, luban: Luban) -> None:
    published(tmp_path / "theirs", "electra")
    options = {"task": "classifier", "from": str(tmp_path / "theirs"), "hidden": [8]}
    assert trained(luban, rows, tmp_path / "ours", options, train={"steps": 1}).code == 0
    ran = luban("export", tmp_path / "ours", "-o", tmp_path / "back")
    assert ran.code == 2
    assert "reads one text and has one linear head, and this artefact has more inputs" in ran.err
