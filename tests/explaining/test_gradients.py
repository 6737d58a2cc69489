"""Gradients attach to every kind of input from outside, and integrated gradients are captum's."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from explain_case import FAMILIES, WORDPIECE, frame, image_case, predictor, table_case, text_case
from luban.adapt.lora import LoRA
from luban.data.contracts import Flat
from luban.data.ragged import Ragged
from luban.explaining import _gradients
from luban.explaining._case import Case
from luban.explaining._gradients import attribute, runs
from luban.explaining._handles import Probe, frozen
from luban.explaining.gradient_x_input import GradientXInput
from luban.explaining.integrated_gradients import IntegratedGradients, blurred, rule_of
from luban.models._language import encoder_of

captum = pytest.importorskip("captum.attr")
SMOOTH = [name for name in FAMILIES if name not in ("textcnn", "mlp")]
"""Families without kinks, where a few steps are enough."""


def errors(case: Case, **options: Any) -> list[float]:
    found = IntegratedGradients(**options).explain(case)
    return [one.quality["completeness_error"] for one in found]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", ["label", "good", "price", "topics"])
def test_values_add_up_to_the_difference_of_the_scores(family: str, target: str) -> None:
    case = text_case(family, 4, target)
    assert IntegratedGradients().refusal(case) is None
    found = IntegratedGradients(steps=64).explain(case)
    for one in found:
        assert one.baseline is not None
        total = sum(part.total for part in one.parts.values())
        assert abs(total - (one.score - one.baseline)) < 2e-2 * max(1e-2, abs(one.score - one.baseline))
        assert one.quality["completeness_error"] < (0.02 if family in SMOOTH else 0.05)


def test_the_score_is_the_models_own() -> None:
    for target in ("label", "good", "price", "topics"):
        case = text_case("rnn", 4, target)
        found = IntegratedGradients(steps=2).explain(case)
        with torch.inference_mode():
            output = case.predictor.model(case.batch())[f"{target}.{case.processor.output}"].double().numpy()
        for row, one in enumerate(found):
            match target:
                case "good":
                    expected = output[row, 0] * (1 if one.chosen == "yes" else -1)
                case "price":
                    expected = float(case.processor.scores(output[row : row + 1])[0])
                case _:
                    expected = output[row, case.classes.index(one.chosen or "")]
            assert one.score == pytest.approx(expected, abs=1e-4)


def test_tables_of_every_kind_of_column_and_of_either_encoding() -> None:
    for options in ({}, {"embeddings": 4, "numbers": "periodic"}):
        case = table_case(6, **options)
        assert max(errors(case, steps=400)) < 0.05
        (one, *_) = IntegratedGradients().explain(case)
        assert list(one.parts) == ["age", "income", "city", "tags", "member"]
        assert [piece.text for piece in one.parts["tags"].pieces] == ["a", "b"]
        assert sum(one.shares.values()) == pytest.approx(1)


def test_of_a_linear_model_it_is_weight_times_value() -> None:
    own = predictor(["age", "member"], "price", {"type": "mlp", "hidden": []})
    case = Case.of(own, frame().head(3))
    head = own.model.heads["@price"]
    assert isinstance(head, nn.Linear)
    scale = case._unit[0]
    for explainer in (IntegratedGradients(steps=1), GradientXInput()):
        for row, one in enumerate(explainer.explain(case)):
            for i, column in enumerate(("age", "member")):
                value = case.encoded[f"{column}.value"]
                assert not isinstance(value, Flat)
                expected = float(head.weight.detach()[0, i]) * float(value[row]) * scale
                assert one.parts[column].total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("once", [False, True])
def test_an_n_gram_belongs_to_its_tokens_in_equal_parts(once: bool) -> None:
    """A bag of n-grams under a linear head is linear, so that each token's share can be told by hand."""
    case = text_case("fasttext", 3, "price", ngrams=2, once=once)
    encoder = case.predictor.model.encoders["@review"]
    weight = case.predictor.model.heads["@price"].weight.detach()[0] * case._unit[0]
    scores = (encoder.embedding.weight.detach() @ weight).double()
    ids = case.batch()["review.ids"]
    assert isinstance(ids, Ragged)
    indices, none = encoder.indices(ids), encoder.size + encoder.buckets
    found = attribute(case, lambda site: torch.zeros_like(site.actual), [1.0], [1.0]).values["review.ids"]
    assert isinstance(found, Flat)
    for row in range(len(ids)):
        start, stop = int(ids.offsets[row]), int(ids.offsets[row + 1])
        own = indices[start:stop]
        seen: dict[int, int] = {}
        for i in own.flatten().tolist():
            seen[i] = seen.get(i, 0) + (i != none)
        count = sum(1 for n in seen.values() if n) if once else sum(seen.values())
        expected = np.zeros(stop - start)
        for at in range(stop - start):
            for n in (1, 2):
                index = int(own[at, n - 1])
                if index == none:
                    continue
                share = float(scores[index]) / count / (seen[index] if once else 1) / n
                expected[at : at + n] += share
        np.testing.assert_allclose(found.values[start:stop], expected, atol=1e-5)


def test_pairs_that_are_read_as_one_sequence() -> None:
    kinds = {"review": WORDPIECE, "reply": {"type": "text", "like": "review"}}
    for options in ({}, {"layout": "roberta"}):
        own = predictor(
            ["review", "reply"],
            "label",
            {"type": "bert", "size": "tiny", **FAMILIES["bert"], **options},
            kinds=kinds,
        )
        case = Case.of(own, frame().head(4))
        assert max(errors(case, steps=64)) < 0.01
        one = IntegratedGradients().explain(case)[2]
        assert one.parts["reply"].mass > 0
        assert [p.text for p in one.parts["reply"].pieces if p.start < p.end] == list("差评")


def test_several_inputs_of_several_kinds() -> None:
    own = predictor(
        ["review", "reply", "age", "photo", "city"], "label", {"type": "transformer", "size": "tiny"}
    )
    case = Case.of(own, frame().head(2))
    assert max(errors(case, steps=200, image_baseline="blur")) < 0.02
    (one, _) = IntegratedGradients().explain(case)
    assert set(one.shares) == {"review", "reply", "age", "photo", "city"}


@pytest.mark.parametrize("family", ["cnn", "resnet", "transformer", "rnn"])
def test_images(family: str) -> None:
    case = image_case(family, 2)
    for baseline in ("zero", "mean", "blur"):
        found = IntegratedGradients(steps=300, image_baseline=baseline).explain(case)
        for one in found:
            assert one.baseline is not None
            gap = abs(one.parts["photo"].total - (one.score - one.baseline))
            assert gap < 0.02 * max(0.1, abs(one.score - one.baseline))
            assert one.parts["photo"].values.shape == (12, 12)


def test_a_blur_keeps_the_mean_and_loses_the_detail() -> None:
    pixels = torch.rand(2, 3, 16, 16)
    soft = blurred(pixels)
    assert torch.allclose(soft.mean((2, 3)), pixels.mean((2, 3)), atol=0.05)
    assert (soft.std((2, 3)) < 0.6 * pixels.std((2, 3))).all()


def test_adapters_are_explained_too() -> None:
    case = text_case("bert", 3)
    model = LoRA(rank=2).apply(case.predictor.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_b" in name:
                parameter.normal_(std=0.3)
    case.predictor.model = model.eval()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert max(errors(case, steps=128)) < 0.02
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained


@pytest.mark.parametrize("kind", ["bert", "fnet"])
def test_other_peoples_models(kind: str) -> None:
    """FNet sees padding, so that its texts go through by their lengths."""
    pytest.importorskip("transformers")
    config = {
        "model_type": kind, "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 128,
    }  # fmt: skip
    own = predictor(
        ["review"], "label", {"type": "huggingface", "config": config}, kinds={"review": WORDPIECE}
    )
    encoder = own.model.encoders["@review"]
    assert encoder.masks_padding is (kind == "bert")
    case = Case.of(own, frame()[[0, 1, 2, 3, 1, 5]])
    assert len({len(one.pieces) for one in case.pieces("review")}) > 3
    assert IntegratedGradients().refusal(case) is None
    found = IntegratedGradients(steps=24, baseline="zero", keep_special=False).explain(case)
    np.testing.assert_allclose(found[1].parts["review"].values, found[4].parts["review"].values, atol=1e-6)
    ids = case.batch()["review.ids"]
    assert isinstance(ids, Ragged)

    def score(rows: Tensor) -> Tensor:  # (B, L), as captum hands them over
        texts = Ragged(rows.flatten(), torch.arange(len(rows) + 1) * rows.shape[1])
        output: Tensor = own.model({"review.ids": texts})["label.logits"]
        return output

    gradients = captum.LayerIntegratedGradients(score, encoder.model.embeddings.word_embeddings)
    for row, one in enumerate(found):
        own_ids = ids[row][None]
        table = encoder.model.embeddings.word_embeddings

        # Captum's baseline is made of tokens; one whose vector is zero stands for none.
        before = table.weight.detach()[0].clone()
        with torch.no_grad():
            table.weight[0] = 0
        theirs = gradients.attribute(
            own_ids,
            torch.zeros_like(own_ids),
            target=int(case.chosen[row]),
            n_steps=24,
            method="gausslegendre",
        )[0].sum(-1)
        with torch.no_grad():
            table.weight[0] = before
        np.testing.assert_allclose(one.parts["review"].values, theirs.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["electra", "gpt_neox"])
def test_other_peoples_classifiers(kind: str) -> None:
    """Equal to captum's of a classifier of transformers, with its own pooling, dense layer and head."""
    transformers = pytest.importorskip("transformers")
    config = {
        "model_type": kind, "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 128, "pad_token_id": 0,
    }  # fmt: skip
    model = {"type": "huggingface", "task": "classifier", "config": config}
    own = predictor(["review"], "label", model, kinds={"review": WORDPIECE})
    case = Case.of(own, frame().head(3))
    assert IntegratedGradients().refusal(case) is None
    found = IntegratedGradients(steps=24, keep_special=False, baseline="pad").explain(case)
    encoder = own.model.encoders["@review"]
    theirs = transformers.AutoModelForSequenceClassification.from_config(
        transformers.AutoConfig.for_model(**config, num_labels=3)
    ).eval()
    weights = dict(encoder.model.state_dict())
    head = {
        f"{encoder.decision}.{name}": value for name, value in own.model.heads["@label"].state_dict().items()
    }
    theirs.load_state_dict(weights | head)
    gradients = captum.LayerIntegratedGradients(
        lambda ids, mask: theirs(input_ids=ids, attention_mask=mask).logits, theirs.get_input_embeddings()
    )
    ids = case.batch()["review.ids"]
    assert isinstance(ids, Ragged)
    for row, one in enumerate(found):
        expected = gradients.attribute(
            ids[row][None],
            torch.zeros_like(ids[row])[None],
            target=int(case.chosen[row]),
            additional_forward_args=torch.ones_like(ids[row])[None],
            n_steps=24,
            method="gausslegendre",
        )[0].sum(-1)
        pieces = case.pieces("review")[row]
        np.testing.assert_allclose(
            one.parts["review"].values, pieces.gather(expected.detach().double().numpy()), atol=1e-5
        )


# --- captum's -----------------------------------------------------------------------------------------------

METHODS = {
    "gauss_legendre": "gausslegendre", "middle": "riemann_middle", "right": "riemann_right", "left": "riemann_left",
}  # fmt: skip


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_integrated_gradients_of_texts_equal_captums(family: str, rule: str) -> None:
    case = text_case(family, 3)
    found = IntegratedGradients(steps=16, rule=rule, baseline="zero", keep_special=False).explain(case)
    model = case.predictor.model
    table = encoder_of(model).core.embedding.tokens
    assert table is not None
    ids = case.batch()["review.ids"]
    assert isinstance(ids, Ragged)
    for row, one in enumerate(found):
        own = ids[row]

        def score(vectors: Tensor, own: Tensor = own, row: int = row) -> Tensor:  # (B, L, D)
            texts = Ragged(own.repeat(len(vectors)), torch.arange(len(vectors) + 1) * len(own))
            handle = table.register_forward_hook(lambda *_: vectors.flatten(0, 1))
            try:
                output: Tensor = model({"review.ids": texts})["label.logits"][:, int(case.chosen[row])]
            finally:
                handle.remove()
            return output

        with frozen(model):
            vectors = table.weight[own].detach()[None]
            theirs = captum.IntegratedGradients(score).attribute(vectors, n_steps=16, method=METHODS[rule])
        pieces = case.pieces("review")[row]
        np.testing.assert_allclose(
            one.parts["review"].values, pieces.gather(theirs[0].sum(-1).double().numpy()), atol=1e-5
        )


@pytest.mark.parametrize("family", ["cnn", "resnet"])
def test_integrated_gradients_of_images_equal_captums(family: str) -> None:
    case = image_case(family, 3)
    found = IntegratedGradients(steps=20).explain(case)
    pixels = case.batch()["photo.pixels"]
    assert isinstance(pixels, Tensor)

    def score(x: Tensor) -> Tensor:
        output: Tensor = case.predictor.model({"photo.pixels": x})["label.logits"]
        return output

    theirs = captum.IntegratedGradients(score).attribute(
        pixels.float(), target=torch.from_numpy(case.chosen), n_steps=20
    )
    for one, other in zip(found, theirs, strict=True):
        np.testing.assert_allclose(
            one.parts["photo"].values, other.sum(0).detach().numpy(), atol=1e-5, rtol=1e-5
        )


# --- how it is done -----------------------------------------------------------------------------------------


def test_batches_hold_every_row_and_step_once_and_no_more_than_allowed() -> None:
    cost = np.asarray([3, 50, 7, 200, 1, 1])
    batches = list(runs(cost, 4, 100))
    for rows, steps in batches:
        assert cost[rows].sum() <= 100 or len(rows) == 1
        assert len(rows) == len(steps)
    items = [pair for rows, steps in batches for pair in zip(rows.tolist(), steps.tolist(), strict=True)]
    assert sorted(items) == [(row, step) for row in range(6) for step in range(4)]
    for (rows, _), (after, _) in pairwise(batches):  # no batch has room for what comes next
        assert cost[rows].sum() + cost[after[0]] > 100


def test_what_fills_a_batch_up_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = text_case("bert", 6)
    alphas, weights = rule_of("middle", 8)
    neutral = lambda site: torch.zeros_like(site.actual)  # noqa: E731
    monkeypatch.setattr(_gradients, "GRAIN", 10**6)  # never filled
    plain = attribute(case, neutral, alphas, weights, budget=60)
    sizes: list[int] = []
    forward = case.predictor.model.forward

    def counting(batch: dict[str, Any]) -> Any:
        sizes.append(len(batch["review.ids"].values))
        return forward(batch)

    monkeypatch.setattr(_gradients, "GRAIN", 16)
    monkeypatch.setattr(case.predictor.model, "forward", counting)
    filled = attribute(case, neutral, alphas, weights, budget=60)
    assert sum(size % 16 == 0 for size in sizes) > len(sizes) / 2
    for name, value in plain.values.items():
        other = filled.values[name]
        assert isinstance(value, Flat)
        assert isinstance(other, Flat)
        np.testing.assert_allclose(value.values, other.values, atol=1e-6)
    np.testing.assert_allclose(plain.baselines, filled.baselines, atol=1e-6)


def test_a_small_budget_changes_nothing() -> None:
    case = text_case("bert", 4)
    alphas, weights = rule_of("middle", 8)
    neutral = lambda site: torch.zeros_like(site.actual)  # noqa: E731
    whole = attribute(case, neutral, alphas, weights)
    parts = attribute(case, neutral, alphas, weights, budget=20)
    for name, value in whole.values.items():
        other = parts.values[name]
        assert isinstance(value, Flat)
        assert isinstance(other, Flat)
        np.testing.assert_allclose(value.values, other.values, atol=1e-6)
    np.testing.assert_allclose(whole.scores, parts.scores, atol=1e-6)


def test_batches_are_of_one_length_where_padding_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    config = {
        "model_type": "fnet", "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48,
        "max_position_embeddings": 128,
    }  # fmt: skip
    kinds = {"review": {**WORDPIECE, "special": False}}
    own = predictor(["review", "age"], "label", {"type": "huggingface", "config": config}, kinds=kinds)
    rows = frame()
    rows = rows.with_columns(pl.Series("review", ["", *rows["review"][1:]]))
    case = Case.of(own, rows)
    assert IntegratedGradients().refusal(case) is None
    assert len(case.pieces("review")[0].pieces) == 0
    seen: list[set[int]] = []
    forward = own.model.forward

    def watching(batch: dict[str, Any]) -> Any:
        ids = batch["review.ids"]
        assert isinstance(ids, Ragged)
        seen.append({*ids.lengths.tolist()})
        return forward(batch)

    monkeypatch.setattr(own.model, "forward", watching)
    monkeypatch.setattr(
        _gradients, "GRAIN", 16
    )  # a batch that is filled up would have a row of another length
    alphas, weights = rule_of("gauss_legendre", 8)
    found = attribute(case, lambda site: torch.zeros_like(site.actual), alphas, weights)
    assert all(len(one) == 1 for one in seen[:-1])
    assert len(seen[-1]) > 3, "the scores need no gradient"
    ages = found.values["age.value"]
    assert not isinstance(ages, Flat)
    assert np.abs(ages).min() > 0, "every row has its number's part, the one without a text, too"
    one = GradientXInput().explain(case)
    for row in range(len(case)):
        alone = GradientXInput().explain(case.part(row, row + 1))[0]
        for column, part in alone.parts.items():
            np.testing.assert_allclose(one[row].parts[column].values, part.values, atol=1e-6)


def test_a_look_up_of_ones_own_is_refused() -> None:
    case = text_case("rnn", 2)
    encoder = case.predictor.model.encoders["@review"]

    class Own(nn.Module):
        def __init__(self, table: nn.Embedding) -> None:
            super().__init__()
            self.weight = table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.weight[ids]

    encoder.embedding = Own(encoder.embedding)
    assert Probe(case.predictor.model, case.predictor.spec).missing(case.batch()) == ["review"]
    why = IntegratedGradients().refusal(case)
    assert why is not None
    assert "'review'" in why


def test_baselines_differ_and_special_tokens_stay() -> None:
    case = text_case("bert", 2)
    values = {
        (baseline, keep): IntegratedGradients(baseline=baseline, keep_special=keep)
        .explain(case)[0]
        .parts["review"]
        for baseline in ("pad", "mask", "zero", "mean")
        for keep in (True, False)
    }
    assert len({tuple(part.values.round(9)) for part in values.values()}) == 8
    assert values["zero", True].values[0] == 0
    assert values["zero", False].values[0] != 0
    assert values["zero", True].pieces[0].text == "[CLS]"


def test_numbers_beyond_a_table_are_found_by_their_field() -> None:
    """The same numbers in two columns are no reason to mix them up."""
    rows = pl.DataFrame({"review": ["好的", "不好"], "reply": ["好的", "不好"], "label": ["a", "b"]})
    own = predictor(["review", "reply"], "label", {"type": "rnn", "size": "tiny"}, rows=rows)
    case = Case.of(own, rows)
    assert max(errors(case, steps=64)) < 0.01
