"""Which tokens around a hidden place led to which word there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import luban
from language_case import SENTENCES
from luban.data.batch import to_batch
from luban.data.contracts import Flat
from luban.errors import DataError, InputError
from luban.explaining._hidden import HiddenCase, explain_hidden, fills, hidden_cases
from luban.explaining._quality import measure
from luban.explaining.attention_rollout import AttentionRollout
from luban.explaining.gradient_x_input import GradientXInput
from luban.explaining.integrated_gradients import IntegratedGradients
from luban.explaining.kernel_shap import KernelShap
from luban.explaining.lime import Lime
from luban.explaining.occlusion import Occlusion
from luban.predict import Predictor, load
from luban.registry import names
from tiny_case import Luban

TEXT = "the capital of [MASK] is paris. it lies on [MASK] seine."


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model that has seen some sentences often."""
    folder = tmp_path_factory.mktemp("hidden")
    pl.DataFrame({"text": SENTENCES * 8}).write_csv(folder / "texts.csv")
    recipe = {
        "data": {
            "train": str(folder / "texts.csv"), "split": {"validation": 0.0, "test": 0.0},
            "inputs": {"text": {"type": "text", "tokens": "wordpiece", "vocabulary": 200, "min_count": 1}},
        },
        "model": {"type": "bert", "layers": 2, "hidden_size": 32, "heads": 4, "intermediate": 48, "max_positions": 64},
        "objective": "masked_lm",
        "train": {
            "steps": 60, "batch_size": 32, "device": "cpu", "precision": "fp32", "threads": 1, "keep": "last",
            "optimizer": {"type": "adamw", "learning_rate": 0.01},
        },
    }  # fmt: skip
    luban.train(recipe, output=folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def own(artefact: Path) -> Predictor:
    return load(artefact)


def cases(own: Predictor, text: str = TEXT, words: str | None = None) -> list[HiddenCase]:
    return hidden_cases(own, pl.DataFrame({"text": [text]}), 0, words, 0)


def chances(own: Predictor, rows: list[list[int]], places: list[int], word: int) -> list[float]:
    """The log-probability of a word at a place of each row, straight from the model."""
    offsets = np.asarray([0, *np.cumsum([len(row) for row in rows])])
    ids = Flat(np.concatenate(rows).astype(np.int64), offsets)
    batch = to_batch({"text.ids": ids}, own.spec)
    batch["text.read"] = torch.as_tensor(offsets[:-1] + places)
    with torch.inference_mode():
        found: list[float] = own.model(batch)["text.tokens"].logits().log_softmax(1)[:, word].tolist()
    return found


def test_each_hidden_word_is_the_models_own_and_its_values_add_up(own: Predictor) -> None:
    assert fills(own)
    found = cases(own)
    (predicted,) = own.predict([{"text": TEXT}])
    for case, best in zip(found, predicted["fills"], strict=True):
        assert case.labels == [max(best, key=best.__getitem__)]
        assert case.probabilities() == [pytest.approx(max(best.values()), abs=1e-5)]
    one = explain_hidden(found, IntegratedGradients(steps=64))
    part = one.parts["text"]
    assert part.kind == "matrix"
    assert part.values.shape == (2, len(part.pieces))
    assert one.chosen == " ".join(piece.text for piece in part.outputs)
    assert [TEXT[piece.start : piece.end] for piece in part.outputs] == ["[MASK]", "[MASK]"]
    assert one.baseline is not None
    assert part.total == pytest.approx(one.score - one.baseline, abs=2e-3)
    assert one.quality["completeness_error"] < 0.01
    # A neutral text is as long, and hides the same words.
    masks = [i for i, piece in enumerate(part.pieces) if piece.text == "[MASK]"]
    assert len(masks) == 2
    assert not part.values[:, masks].any()
    assert np.abs(part.values).max() > 0.01


@pytest.mark.parametrize("text", [TEXT, "[MASK] good tool", "鲁班是[MASK]匠的祖师。"])
def test_integrated_gradients_are_captums_on_what_was_exported(
    own: Predictor, artefact: Path, tmp_path: Path, text: str
) -> None:
    captum = pytest.importorskip("captum.attr")
    transformers = pytest.importorskip("transformers")
    luban.export(artefact, tmp_path / "hf", format="hf")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    frame = torch.isin(ids, torch.tensor(tokenizer.all_special_ids)) & (ids != tokenizer.unk_token_id)
    neutral = torch.where(frame, ids, tokenizer.pad_token_id)
    seen = torch.ones_like(ids)

    def log_probability(rows: Tensor, place: int, word: int) -> Tensor:
        logits: Tensor = model(input_ids=rows, attention_mask=seen.expand(len(rows), -1)).logits
        return logits[:, place].log_softmax(1)[:, word]

    gradients = captum.LayerIntegratedGradients(log_probability, model.get_input_embeddings())
    products = captum.LayerGradientXActivation(log_probability, model.get_input_embeddings())
    for case in cases(own, text):
        assert case.ids.tolist() == ids[0].tolist()
        place, word = case.hidden[case.which], int(case.chosen[0])
        (pieces,) = case.pieces("text")
        theirs = {
            "integrated_gradients": gradients.attribute(
                ids, neutral, additional_forward_args=(place, word), n_steps=16, method="gausslegendre"
            ),
            "gradient_x_input": products.attribute(ids, additional_forward_args=(place, word)),
        }
        for explainer in (IntegratedGradients(steps=16), GradientXInput()):
            (one,) = explainer.explain(case)
            expected = pieces.gather(theirs[explainer.type][0].sum(-1).detach().double().numpy())
            np.testing.assert_allclose(one.parts["text"].values, expected, atol=1e-5)


@pytest.mark.parametrize("replace", ["remove", "mask"])
def test_occlusion_is_what_the_word_loses_without_a_token(own: Predictor, replace: Any) -> None:
    """Whatever goes, and also where what hides a word takes its place, the same place is asked about."""
    for case in cases(own):
        (one,) = Occlusion(unit="token", replace=replace).explain(case)
        ids, place, word = case.ids.tolist(), case.hidden[case.which], int(case.chosen[0])
        (whole,) = chances(own, [ids], [place], word)
        assert one.score == pytest.approx(whole, abs=1e-5)
        (pieces,) = case.pieces("text")
        for i, at in enumerate(pieces.groups):
            if pieces.special[at]:
                assert one.parts["text"].values[at] == 0.0
                continue
            without = (
                ids[:i] + ids[i + 1 :] if replace == "remove" else [*ids[:i], own_mask(own), *ids[i + 1 :]]
            )
            (less,) = chances(own, [without], [place - (replace == "remove" and i < place)], word)
            assert one.parts["text"].values[at] == pytest.approx(whole - less, abs=1e-5)


def own_mask(own: Predictor) -> int:
    assert own.speaker is not None
    assert own.speaker.text.mask_id is not None
    return own.speaker.text.mask_id


def test_rollout_is_read_off_the_hidden_place(own: Predictor) -> None:
    first, second = (AttentionRollout().explain(case)[0].parts["text"] for case in cases(own))
    for part in (first, second):
        assert part.total == pytest.approx(1)
    masks = [i for i, piece in enumerate(first.pieces) if piece.text == "[MASK]"]
    # Half of a state, and more, comes from its own place: from each layer so much.
    assert first.values[masks[0]] > 0.25 > first.values[masks[1]]
    assert second.values[masks[1]] > 0.25 > second.values[masks[0]]


def test_other_words_may_be_asked_about(own: Predictor) -> None:
    found = cases(own, "the capital of [MASK] is paris.", "yes")
    assert [case.labels for case in found] == [["yes"]]
    ids, place = found[0].ids.tolist(), found[0].hidden[0]
    one = explain_hidden(found, GradientXInput())
    assert one.score == pytest.approx(chances(own, [ids], [place], int(found[0].chosen[0]))[0], abs=1e-5)
    assert one.probability == pytest.approx(np.exp(one.score), abs=1e-6)
    assert [case.labels[0] for case in cases(own, TEXT, "yes the")] == ["yes", "the"]
    with pytest.raises(DataError) as raised:
        cases(own, "[MASK]", "yes the")
    assert (
        str(raised.value)
        == "--target-text 'yes the' is 2 tokens (yes the), and the text hides 1 word; give one token for each [MASK]"
    )
    with pytest.raises(DataError, match=r"'yes' is 1 token \(yes\), and the text hides 2 words; give one"):
        cases(own, TEXT, "yes")
    with pytest.raises(DataError, match=r"the text has no \[MASK\], so no word is hidden"):
        cases(own, "the capital of france")


def test_a_word_that_the_tokenizer_does_not_know_is_not_explained(own: Predictor) -> None:
    """Its token would be the unknown one, whose probability says nothing of the word."""
    for asked, word in (("ω", "ω"), ("yes ωω", "ωω")):
        with pytest.raises(DataError, match=f"the tokenizer does not know '{word}' of --target-text"):
            cases(own, TEXT, asked)
    assert own.speaker is not None
    unknown = own.speaker.text.unk_id
    assert [int(case.chosen[0]) for case in cases(own, TEXT, "[UNK] [UNK]")] == [unknown, unknown]
    assert [int(case.chosen[0]) for case in cases(own, "a [MASK]", "[UNK]")] == [unknown]


def test_hidden_words_that_are_cut_off_are_told(own: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own.speaker is not None
    whole = cases(own)
    assert not any("beyond" in note for note in explain_hidden(whole, GradientXInput()).notes)
    monkeypatch.setattr(own.speaker.text, "max_length", len(whole[0].ids) - 4)
    (left,) = cases(own)
    assert (left.hidden, left.beyond) == (whole[0].hidden[:1], 1)
    one = explain_hidden([left], GradientXInput())
    note = f"1 of 2 hidden words lie beyond max_length={len(left.ids)} tokens, where the text is cut, and are not explained"
    assert note in one.notes
    assert cases(own, TEXT, "yes")[0].labels == ["yes"], "of a word for each place that is left"
    with pytest.raises(DataError, match=rf"the text hides 1 word in its first {len(left.ids)} tokens; give"):
        cases(own, TEXT, "yes the")
    monkeypatch.setattr(own.speaker.text, "max_length", 4)
    with pytest.raises(DataError, match=r"each \[MASK\] of the text lies beyond max_length=4 tokens"):
        cases(own)


def test_quality_is_measured_and_what_hides_the_words_is_never_taken_away(own: Predictor) -> None:
    (case, _) = cases(own)
    found = Occlusion().explain(case)
    measure(case, Occlusion(), found)
    assert {"deletion", "insertion", "sufficiency", "randomised"} <= found[0].quality.keys()


def test_every_explainer_of_texts_explains_them(own: Predictor) -> None:
    pytest.importorskip("captum")
    from luban.verbs.explain import _fits

    (case, _) = cases(own)
    fitting = {name for name in names("explainers") if _fits(name, case)}
    expected = {
        "integrated_gradients",
        "gradient_x_input",
        "occlusion",
        "attention_rollout",
        "lime",
        "kernel_shap",
    }
    assert fitting == expected
    for explainer in (Lime(samples=60), KernelShap(samples=60)):
        (one,) = explainer.explain(case)
        assert one.parts["text"].mass > 0


def test_from_the_command_to_the_page(luban: Luban, artefact: Path, tmp_path: Path) -> None:
    ran = luban("explain", str(artefact), "the capital of [MASK] is paris.", "--json")
    assert ran.code == 0, ran.err
    result = json.loads(ran.out)
    assert result["method"] == "integrated_gradients"
    (one,) = result["explanations"]
    assert one["target"] == "text"
    assert one["parts"]["text"]["outputs"][0] == {"text": one["chosen"], "start": 15, "end": 21}
    rows = json.dumps([{"text": "no word"}, {"text": "[MASK] tool"}])
    ran = luban("explain", str(artefact), rows, "-o", str(tmp_path / "why"), "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["unreadable"] == {
        "0": "the text has no [MASK], so no word is hidden that the model could tell; write [MASK] in place of the word to explain"
    }
    ran = luban(
        "explain", str(artefact), "[MASK] tool", "-m", "occlusion"
    )  # not taken for JSON, nor for a pattern of files
    assert ran.code == 0, ran.err
    assert ran.out.startswith("row 0: text = ")
    assert 'class="ex-matrix"' in (tmp_path / "why" / "index.html").read_text(encoding="utf-8")
    for words, said in (
        (["no word"], "write [MASK] in place of the word to explain"),
        (["a [MASK]", "-m", "shapley"], "the model fills in hidden words, and it explains none"),
        (["a [MASK]", "--class", "x"], "the model fills in hidden words, so there is no class 'x'"),
    ):
        ran = luban("explain", str(artefact), *words)
        assert ran.code == 2
        assert said in ran.err


def test_a_masked_model_is_asked_for_no_column(artefact: Path) -> None:
    with pytest.raises(InputError, match="there is no target 'label' to explain; targets are text"):
        luban.explain(artefact, "a [MASK]", target="label")
    assert luban.explain(artefact, "a [MASK]", target="text")["target"] == "text"
