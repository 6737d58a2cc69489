"""Any architecture of transformers: the same states, trained, saved, loaded; and nothing of a stranger's is run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from luban.data.contracts import Field, Spec
from luban.data.ragged import Ragged
from luban.errors import DataError, LubanError, MissingError, RecipeError
from luban.explaining._handles import Probe
from luban.models._foreign import ForeignEncoder
from luban.models.huggingface import HuggingFace
from luban.predict import load
from luban.recipe import Data, Section
from tiny_case import Luban

transformers = pytest.importorskip("transformers")
from published import TEXTS, publish, rewrite, states_of  # noqa: E402


def model_of(**options: Any) -> HuggingFace:
    made = Section("models").parse({"type": "huggingface", **options})
    assert isinstance(made, HuggingFace)
    return made


def spec(size: int) -> Spec:
    return Spec({"text.ids": Field("text", "text", "input", "int64", None, size=size)})


@pytest.mark.parametrize("kind", ["electra", "albert", "deberta-v2", "bert", "roberta", "qwen2"])
def test_states_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs, tokenizer = publish(tmp_path, kind)
    model = model_of(**{"from": str(tmp_path)})
    module = model.build(spec(len(tokenizer)))
    assert model.load_pretrained(module) == []
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    rows = Ragged.from_rows([torch.tensor(row) for row in [*ids, []]])
    with torch.no_grad():
        outputs = module.eval()({"text.ids": Ragged(rows.values.long(), rows.offsets)})
    for i, text in enumerate(TEXTS):
        expected = states_of(theirs, tokenizer, text)
        torch.testing.assert_close(outputs["states"][i], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(outputs["features"][i], expected.mean(0), rtol=1e-4, atol=1e-5)
    assert not outputs["features"][-1].any()  # a text without tokens


def test_the_encoder_of_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    theirs = transformers.T5Model(config).eval()
    theirs.save_pretrained(tmp_path)
    model = model_of(**{"from": str(tmp_path)})
    module = model.build(spec(50))
    model.load_pretrained(module)
    ids = torch.tensor([[7, 8, 9, 1]])
    with torch.no_grad():
        expected = theirs.get_encoder()(input_ids=ids).last_hidden_state[0]
        found = module.eval()({"text.ids": Ragged(ids[0], torch.tensor([0, 4]))})["states"]
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    publish(tmp_path / "theirs", "electra")
    lines = [
        "text,label",
        *(f"{'good' if i % 2 else 'bad'} tool {i},{'yes' if i % 2 else 'no'}" for i in range(60)),
    ]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "data": {
            "train": str(tmp_path / "rows.csv"),
            "inputs": {"text": "text"},
            "targets": {"label": "category"},
        },
        "model": {"type": "huggingface", "from": str(tmp_path / "theirs"), "pool": "first"},
        "train": {"steps": 6, "batch_size": 16},
    }


def test_it_trains_and_its_artefact_needs_nothing_else(
    recipe: dict[str, Any], tmp_path: Path, luban: Luban
) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    ran = luban("train", tmp_path / "r.yaml", "-o", tmp_path / "ours")
    assert ran.code == 0, ran.err
    assert "new weights" not in ran.err
    rows = [{"text": text} for text in TEXTS]
    before = load(tmp_path / "ours").predict(rows)
    shutil.move(tmp_path / "theirs", tmp_path / "gone")
    shutil.move(tmp_path / "ours", tmp_path / "moved")
    assert load(tmp_path / "moved").predict(rows) == before
    outputs = load(tmp_path / "moved").model(load(tmp_path / "moved").batch(rows))
    assert isinstance(outputs["text.states"], Ragged)

    # What was tuned is where another run may start.
    recipe["model"]["from"] = str(tmp_path / "moved")
    recipe["train"] = {"steps": 1, "batch_size": 16, "optimizer": {"type": "sgd", "learning_rate": 1e-9}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    ran = luban("train", tmp_path / "r.yaml", "-o", tmp_path / "further")
    assert ran.code == 0, ran.err
    from safetensors.torch import load_file

    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("moved", "further"))
    for name, value in one.items():
        if name.startswith("encoders."):
            torch.testing.assert_close(other[name], value)

    # The resolved recipe is a recipe.
    (tmp_path / "gone").rename(tmp_path / "theirs")
    assert luban("check", tmp_path / "moved" / "recipe.yaml").code == 0


def test_it_may_read_one_column_of_several(recipe: dict[str, Any], tmp_path: Path, luban: Luban) -> None:
    own = recipe["model"]
    recipe["model"] = {"type": "mlp", "hidden": [4], "encoders": {"text": own}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    ran = luban("train", tmp_path / "r.yaml", "-o", tmp_path / "ours")
    assert ran.code == 0, ran.err
    assert f"text: max_length 130, tokenizer {tmp_path / 'theirs'}" in ran.err


# --- what is refused ----------------------------------------------------------------------------------------


def test_code_that_lies_beside_weights_is_never_run(tmp_path: Path) -> None:
    _, tokenizer = publish(tmp_path, "electra")
    (tmp_path / "modeling.py").write_text("raise SystemExit('it ran')")
    auto = {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}
    rewrite(tmp_path / "config.json", auto_map=auto)
    model = model_of(**{"from": str(tmp_path)})
    assert "auto_map" not in (model.config or {})
    model.load_pretrained(model.build(spec(len(tokenizer))))
    rewrite(tmp_path / "config.json", auto_map=auto, model_type="mine")
    with pytest.raises(
        RecipeError,
        match=r"has no architecture 'mine'; code that lies beside somebody's weights is never run",
    ):
        model_of(**{"from": str(tmp_path)}).build(spec(len(tokenizer)))


def test_without_transformers(
    recipe: dict[str, Any], tmp_path: Path, luban: Luban, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    assert luban("train", tmp_path / "r.yaml", "-o", tmp_path / "ours").code == 0
    monkeypatch.setitem(sys.modules, "transformers", None)
    words = r"model type 'huggingface' needs the transformers package, which is not installed: pip install 'luban\[hf\]'"
    with pytest.raises(MissingError, match=words):
        model_of(config={"model_type": "electra"}).build(spec(9))
    with pytest.raises(MissingError, match=words):
        load(tmp_path / "ours")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "neither 'from' nor 'config' says which architecture; name a directory by 'from'"),
        ({"config": {"vocab_size": 3}}, "config has no model_type"),
        (
            {"config": {"model_type": "electra", "quantization_config": {"quant_method": "gptq"}}},
            "quantised weights, which cannot be trained",
        ),
        ({"config": {"model_type": "electra"}, "size": "tiny"}, "size does nothing here"),
        (
            {"config": {"model_type": "gpt_neox", "max_position_embeddings": 64}, "max_positions": 65},
            "max_positions is 65, and the architecture takes 64 tokens; lower it",
        ),
        (
            {"config": {"model_type": "roberta", "max_position_embeddings": 64}, "max_positions": 63},
            "max_positions is 63, and the architecture takes 62 tokens; lower it",
        ),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        model_of(**options)


@pytest.mark.parametrize(
    ("config", "size", "sentence"),
    [
        ({"model_type": "nothing"}, 9, "has no architecture 'nothing'"),
        ({"model_type": "electra", "vocab_size": 8}, 9, "has 9 tokens, and model.config has vectors for 8"),
        ({"model_type": "vit"}, 9, "reads texts, and an architecture of type 'vit' does not"),
        (
            {"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3},
            9,
            "transformers cannot make 'bert'",
        ),
        (
            {"model_type": "roberta", "max_position_embeddings": 1},
            9,
            "max_position_embeddings is 1, of which an architecture of type 'roberta' keeps 2 for padding, so that no text has room; give 3",
        ),
        ({"model_type": "bert", "max_position_embeddings": 0}, 9, "is 0, so that no text has room; give 1"),
    ],
)
def test_configurations_that_make_no_model(config: dict[str, Any], size: int, sentence: str) -> None:
    with pytest.raises(LubanError, match=sentence):
        model_of(config=config).build(spec(size))


def test_a_directory_that_lacks_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _, tokenizer = publish(tmp_path, "electra")
    model = model_of(**{"from": str(tmp_path)})
    tensors = load_file(tmp_path / "model.safetensors")
    short = {name: value for name, value in tensors.items() if "layer.1." not in name}
    save_file(short, tmp_path / "model.safetensors", metadata={"format": "pt"})
    missing = model.load_pretrained(model.build(spec(len(tokenizer))))
    assert "encoder.layer.1.output.dense" in missing
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(LubanError, match="is a pickle"):
        model.load_pretrained(model.build(spec(len(tokenizer))))


def test_a_text_that_is_too_long() -> None:
    model = model_of(config={"model_type": "electra", "vocab_size": 9, "embedding_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16})  # fmt: skip
    module = model.build(spec(9))
    with pytest.raises(DataError, match="a text has 17 tokens, and the model takes 16: set max_length"):
        module({"text.ids": Ragged(torch.zeros(17, dtype=torch.int64), torch.tensor([0, 17]))})


@pytest.mark.parametrize(("kind", "limit"), [("electra", 130), ("roberta", 128)])
def test_texts_are_as_long_as_the_model_takes(kind: str, limit: int, tmp_path: Path) -> None:
    publish(tmp_path, kind)
    data = Data.model_construct(inputs={"text": Section("processors").parse("text")})
    model = model_of(**{"from": str(tmp_path)})
    assert model.complete(data) == [
        f"text: max_length {limit}, tokenizer {tmp_path}, lowercase False, for model type 'huggingface'"
    ]
    data.inputs["text"] = Section("processors").parse({"type": "text", "tokens": "char"})
    with pytest.raises(RecipeError, match=r"data.inputs.text.tokens asks for a new tokenizer"):
        model.complete(data)


def test_tokens_are_not_its_to_put_out() -> None:
    fields = {**spec(9).fields, "text.labels": Field("text", "tokens", "target", "int64", None, size=9)}
    small = {
        "model_type": "electra",
        "vocab_size": 9,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    with pytest.raises(
        RecipeError, match=r"cannot put out the tokens of 'text'; set model.task to causal_lm or masked_lm"
    ):
        model_of(config=small).build(Spec(fields))


SMALL = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 16}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options", "positions"),
    [
        ("bert", {}, 16),
        ("roberta", {"pad_token_id": 3}, 12),
        ("roberta", {"pad_token_id": None}, 14),  # theirs is then the default, 1
        ("esm", {}, 14),
        ("luke", {"entity_vocab_size": 5, "entity_emb_size": 4}, 14),
        ("lilt", {"channel_shrink_ratio": 2}, 15),
        ("markuplm", {}, 15),
        ("mpnet", {}, 14),
    ],
)
def test_as_many_tokens_as_the_table_of_positions_has_room_for(
    kind: str, options: dict[str, Any], positions: int
) -> None:
    if kind in ("esm", "luke"):
        options = {"pad_token_id": 1, **options}
    module = model_of(config={"model_type": kind, **SMALL, **options}).build(spec(40)).eval()
    full = torch.full((positions,), 5)
    with torch.no_grad():
        features = module({"text.ids": Ragged(full, torch.tensor([0, positions]))})["features"]
    assert features.isfinite().all()
    with pytest.raises(DataError, match=f"has {positions + 1} tokens, and the model takes {positions}"):
        module({"text.ids": Ragged(full.new_full((positions + 1,), 5), torch.tensor([0, positions + 1]))})


@pytest.mark.parametrize("pool", ["first", "mean", "last", "max"])
def test_a_batch_of_no_rows(pool: str) -> None:
    module = model_of(config={"model_type": "bert", **SMALL}, pool=pool).build(spec(40)).eval()
    outputs = module({"text.ids": Ragged(torch.empty(0, dtype=torch.int64), torch.tensor([0]))})
    assert outputs["features"].shape == (0, 24)
    assert outputs["states"].values.shape == (0, 24)


def test_texts_go_through_by_their_lengths_where_padding_would_be_seen() -> None:
    """Fourier transforms are over whole rows of the rectangle."""
    torch.manual_seed(0)
    module = model_of(config={"model_type": "fnet", **SMALL}).build(spec(40)).train(False)
    rows = [torch.tensor(row, dtype=torch.int64) for row in ([9, 10], [5, 6, 7, 8], [], [11, 12], [3])]
    texts = Ragged.from_rows(rows)
    (encoder,) = [part for part in module.modules() if isinstance(part, ForeignEncoder)]
    passes: list[tuple[int, ...]] = []
    encoder.model.register_forward_pre_hook(lambda _, given, named: passes.append(tuple(named["input_ids"].shape)), with_kwargs=True)  # fmt: skip
    with torch.no_grad():
        found = module({"text.ids": texts})["states"]
        assert passes == [(1, 1), (1, 1), (2, 2), (1, 4)]  # an empty one is read as padding
        for number, row in enumerate(rows):
            if len(row):
                expected = encoder.model(input_ids=row[None]).last_hidden_state[0]
                torch.testing.assert_close(found[number], expected, rtol=1e-5, atol=1e-6)
    assert Probe(module, spec(40)).missing({"text.ids": texts}) == [
        "text"
    ]  # whose look-ups are of some rows each
