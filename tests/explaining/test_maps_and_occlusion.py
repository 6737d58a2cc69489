"""Heatmaps of images, and what a score loses: equal to captum's; attention, followed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explain_case import FAMILIES, WORDPIECE, frame, image_case, predictor, table_case, text_case
from luban.data.ragged import Ragged
from luban.errors import InputError
from luban.explaining._case import Case
from luban.explaining._maps import layers_of
from luban.explaining._units import Switches, grid, superpixels
from luban.explaining.activation_maps import ActivationMaps
from luban.explaining.attention_rollout import AttentionRollout
from luban.explaining.grad_cam import GradCam
from luban.explaining.grad_cam_pp import GradCamPP
from luban.explaining.integrated_gradients import IntegratedGradients
from luban.explaining.kernel_shap import KernelShap
from luban.explaining.lime import Lime
from luban.explaining.occlusion import Occlusion, starts
from luban.models._language import encoder_of
from luban.predict import Predictor

captum = pytest.importorskip("captum.attr")


def score_of(case: Case) -> Any:
    def score(pixels: Tensor) -> Tensor:
        output: Tensor = case.predictor.model({"photo.pixels": pixels})["label.logits"]
        return output

    return score


# --- Grad-CAM -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["cnn", "resnet"])
@pytest.mark.parametrize("positive", [True, False])
def test_grad_cam_equals_captums(family: str, positive: bool) -> None:
    case = image_case(family, 3)
    for name in [*layers_of(case, "photo")][-3:]:
        found = GradCam(layer=name, positive=positive).explain(case)
        module = dict(case.predictor.model.named_modules())[name]
        pixels = case.batch()["photo.pixels"]
        theirs = captum.LayerGradCam(score_of(case), module).attribute(
            pixels, target=torch.from_numpy(case.chosen), relu_attributions=positive
        )
        whole = F.interpolate(theirs.double(), (12, 12), mode="bilinear", align_corners=False)[:, 0]
        for one, other in zip(found, whole, strict=True):
            np.testing.assert_allclose(one.parts["photo"].values, other.detach().numpy(), atol=1e-5)


def test_grad_cam_pp_weighs_each_place() -> None:
    """By the definition: the derivatives of exp(score), taken through a head whose second ones are known."""
    case = image_case("cnn", 2)
    maps, gradients = (
        torch.rand(2, 3, 4, 4, dtype=torch.float64),
        torch.randn(2, 3, 4, 4, dtype=torch.float64),
    )
    found = GradCamPP().weighted(maps, gradients)
    alpha = gradients**2 / (2 * gradients**2 + maps.sum((2, 3), keepdim=True) * gradients**3)
    expected = ((alpha * gradients.relu()).sum((2, 3), keepdim=True) * maps).sum(1)
    assert torch.allclose(found, expected)
    assert GradCamPP().weighted(maps, torch.zeros_like(maps)).abs().max() == 0
    assert len(GradCamPP().explain(case)) == 2


def test_layers_are_found_by_the_end_of_their_name_and_unknown_ones_are_named() -> None:
    case = image_case("cnn", 2)
    whole = GradCam(layer="encoders.@photo.module.layers.0.0").explain(case)
    short = GradCam(layer="layers.0.0").explain(case)
    np.testing.assert_array_equal(whole[0].parts["photo"].values, short[0].parts["photo"].values)
    with pytest.raises(
        InputError, match=r"no layer 'layers\.9' makes maps of 'photo'; layers are .*layers\.0\.0 \(8×10×10\)"
    ):
        GradCam(layer="layers.9").explain(case)
    for explainer in (GradCam(), GradCamPP(), ActivationMaps()):
        assert explainer.refusal(text_case("rnn", 2)) == "it needs an image, and no input is one"
        assert "no convolution" in str(explainer.refusal(image_case("transformer", 2)))


def test_activation_maps_are_the_layers_own() -> None:
    case = image_case("cnn", 2)
    convolution = case.predictor.model.encoders["@photo"].module.layers[0][0]
    assert isinstance(convolution, nn.Conv2d)
    pixels = case.batch()["photo.pixels"]
    with torch.no_grad():
        expected = convolution(pixels).numpy()
    for row, one in enumerate(ActivationMaps(count=5).explain(case)):
        part = one.parts["photo"]
        channels = [int(name.split()[1]) for name in part.names]
        strength = np.abs(expected[row]).mean((1, 2))
        assert channels == np.argsort(-strength, kind="stable")[:5].tolist()
        np.testing.assert_allclose(part.values, expected[row][channels], atol=1e-6)
    filters = ActivationMaps(show="filters").explain(case)[0].parts["photo"]
    which = int(filters.names[0].split()[1])
    np.testing.assert_allclose(
        filters.values[0], convolution.weight.detach()[which].mean(0).numpy(), atol=1e-6
    )
    with pytest.raises(InputError, match="is no convolution and has no filters"):
        ActivationMaps(show="filters", layer="layers.0.1").explain(case)


@pytest.mark.parametrize(
    ("method", "reduce"),
    [
        (IntegratedGradients(), "flatten"),
        (Occlusion(patch=3, patch_stride=1), "flatten"),
        (GradCam(), "average"),  # a head that knows places leaves Grad-CAM's mean gradients without a meaning
    ],
)
def test_a_planted_mark_is_found(method: Any, reduce: str) -> None:
    """A network that tells classes by a mark in a corner looks at the mark: at least 60 % of the heatmap's mass lies on it."""
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 120, (240, 12, 12, 1), dtype=np.uint8)
    marked = np.arange(240) % 2 == 0
    pictures[marked, :4, :4] = 255
    rows = pl.DataFrame(
        {
            "photo": pl.Series(list(pictures), dtype=pl.Array(pl.UInt8, (12, 12, 1))),
            "label": ["mark" if one else "none" for one in marked],
        }
    )
    size = 2 if reduce == "flatten" else 0
    own = predictor(
        ["photo"],
        "label",
        {"type": "cnn", "channels": [8], "hidden": [], "pool": size, "padding": "same", "reduce": reduce},
        rows=rows,
    )
    batch = own.batch(rows)
    truth = torch.from_numpy((~marked).astype(np.int64))
    optimizer = torch.optim.Adam(own.model.parameters(), 0.02)
    own.model.train()
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(own.model(batch)["label.logits"], truth).backward()
        optimizer.step()
    own.model.eval()
    case = Case.of(own, rows.filter(pl.Series(marked)).head(8))
    assert set(case.labels) == {"mark"}
    shares = []
    for one in method.explain(case):
        mass = np.abs(one.parts["photo"].values)
        shares.append(mass[:5, :5].sum() / mass.sum())
    assert np.mean(shares) >= 0.6, shares


# --- occlusion, LIME, Kernel SHAP -----------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "step"), [(3, 3), (4, 2), (5, 3), (12, 1)])
def test_occlusion_of_images_equals_captums(side: int, step: int) -> None:
    case = image_case("cnn", 2)
    found = Occlusion(patch=side, patch_stride=step).explain(case)
    pixels = case.batch()["photo.pixels"]
    assert isinstance(pixels, Tensor)
    theirs = captum.Occlusion(score_of(case)).attribute(
        pixels, (3, side, side), (3, step, step), target=torch.from_numpy(case.chosen)
    )
    for one, other in zip(found, theirs, strict=True):
        np.testing.assert_allclose(one.parts["photo"].values, other[0].numpy(), atol=1e-5)


def test_occlusion_of_words_is_what_the_model_says_without_them() -> None:
    case = text_case("textcnn", 3)
    (text,) = case.predictor.pipeline.inputs.values()
    for row, one in enumerate(Occlusion(unit="token").explain(case)):
        ids = case.batch()["review.ids"]
        assert isinstance(ids, Ragged)
        own, pieces = ids[row].tolist(), case.pieces("review")[row]
        for piece in range(len(pieces.pieces)):
            if pieces.special[piece]:
                continue
            left = [token for token, group in zip(own, pieces.groups, strict=True) if group != piece]
            with torch.inference_mode():
                output = case.predictor.model({"review.ids": Ragged.from_rows([torch.tensor(left)])})
            expected = one.score - float(output["label.logits"][0, case.chosen[row]])
            assert one.parts["review"].values[piece] == pytest.approx(expected, abs=1e-5)
    assert text is not None
    masked = Occlusion(replace="mask").explain(case)
    assert (
        masked[0].parts["review"].values.tolist()
        != Occlusion().explain(case)[0].parts["review"].values.tolist()
    )


def test_windows_cover_everything() -> None:
    for size in range(1, 12):
        for window in range(1, 6):
            for stride in range(1, window + 1):
                seen = {i for a in starts(size, window, stride) for i in range(a, min(size, a + window))}
                assert seen == set(range(size))


def test_kernel_shap_gives_a_linear_model_its_own_shares() -> None:
    own = predictor(["age", "member", "city"], "price", {"type": "mlp", "hidden": []})
    case = Case.of(own, frame().head(2))
    for one, exact in zip(KernelShap(samples=200).explain(case), Occlusion().explain(case), strict=True):
        for column in case.inputs:
            assert one.parts[column].total == pytest.approx(
                exact.parts[column].total, abs=1e-3 * abs(one.score)
            )
        assert one.quality["completeness_error"] < 1e-3


def test_lime_finds_the_column_that_matters() -> None:
    case = table_case(3, "price")
    for one, exact in zip(Lime(samples=500).explain(case), Occlusion().explain(case), strict=True):
        best = max(exact.parts, key=lambda column: exact.parts[column].mass)
        order = sorted(one.parts, key=lambda column: -one.parts[column].mass)
        assert best in order[:2]


def test_captum_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from luban.errors import MissingError
    from luban.explaining import _surrogates

    def absent(name: str) -> Any:
        raise ImportError(name)

    case = table_case(2)
    monkeypatch.setattr(_surrogates.importlib, "import_module", absent)
    for explainer in (Lime(), KernelShap()):
        with pytest.raises(MissingError, match=r"luban\[explain\]"):
            explainer.explain(case)
    monkeypatch.undo()
    assert importlib.import_module("json")


def test_switches_with_all_on_are_the_row_itself() -> None:
    for case in (text_case("bert", 3), table_case(3), image_case("cnn", 2)):
        for row in range(len(case)):
            switches = Switches(case, row)
            everything = np.ones((1, len(switches)), dtype=bool)
            own = case.scores_of_encoded(case.encoded, case.chosen)[row]
            assert switches.scores(everything)[0] == pytest.approx(own, abs=1e-5)
            values = np.arange(1.0, len(switches) + 1)
            np.testing.assert_allclose(switches.values(switches.parts(values)), values)


def test_segments_are_numbered_without_gaps_and_follow_colour() -> None:
    picture = np.zeros((16, 16, 1), dtype=np.uint8)
    picture[:, 7:] = 255
    for cut in (grid, superpixels):
        labels = cut(picture, 16)
        assert labels.shape == (16, 16)
        assert set(np.unique(labels)) == set(range(labels.max() + 1))
    labels = superpixels(picture, 16)
    mixed = [n for n in range(labels.max() + 1) if len(np.unique(picture[labels == n])) > 1]
    assert not mixed


# --- attention ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "pool"),
    [("bert", "pooler"), ("bert", "mean"), ("gpt2", "last"), ("llama", "mean"), ("transformer", "mean")],
)
def test_rollout_is_the_product_of_the_layers(family: str, pool: str) -> None:
    case = text_case(family, 3, **({} if family == "transformer" else {"pool": pool}))
    found = AttentionRollout().explain(case)
    encoder = case.predictor.model.encoders["@review"]
    for row, one in enumerate(found):
        ids = Ragged.from_rows([case.batch(row, row + 1)["review.ids"].values])  # type: ignore[union-attr]
        inputs: list[Tensor] = []
        handles = [
            block.register_forward_pre_hook(lambda module, args, inputs=inputs: inputs.append(args[0]))
            for block in encoder.core.layers
        ]
        with torch.inference_mode():
            if family != "transformer":
                encoder.keep_states = True
            case.predictor.model({"review.ids": ids})
            encoder.keep_states = False
            for handle in handles:
                handle.remove()
            flow = torch.eye(len(ids.values), dtype=torch.float64)
            for block, x in zip(encoder.core.layers, inputs, strict=True):
                source = block.attention_norm(x) if block.pre else x
                turns = encoder.core.turns(ids.positions, x)
                q = block.attention.queries(source, turns)
                k, _ = block.attention.keys_values(source, turns)
                k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
                weights = (q.transpose(0, 1) @ k.permute(1, 2, 0)) / q.shape[2] ** 0.5
                if encoder.core.shape.causal:
                    weights = weights.masked_fill(torch.ones_like(weights[0]).triu(1).bool(), -torch.inf)
                flow = (0.5 * weights.softmax(2).mean(0).double() + 0.5 * torch.eye(len(q))) @ flow
        expected = flow[0] if pool == "pooler" else flow[-1] if pool == "last" else flow.mean(0)
        pieces = case.pieces("review")[row]
        np.testing.assert_allclose(one.parts["review"].values, pieces.gather(expected.numpy()), atol=1e-6)
        assert one.parts["review"].total == pytest.approx(1)


@pytest.mark.parametrize("pool", ["first", "mean", "last"])
@pytest.mark.parametrize("kind", ["electra", "gpt2", "deberta-v2"])
def test_rollout_of_other_peoples_encoders_is_made_of_the_attention_they_tell(kind: str, pool: str) -> None:
    pytest.importorskip("transformers")
    own = foreign(kind, pool=pool)
    case = Case.of(own, frame().head(4))
    rollout = AttentionRollout(residual=0.3)
    assert rollout.refusal(case) is None
    reader = own.model.encoders["@review"]
    for row, one in enumerate(rollout.explain(case)):
        ids = case.batch(row, row + 1)["review.ids"].values[None]  # type: ignore[union-attr]
        with torch.inference_mode():
            told = reader.model(input_ids=ids, output_attentions=True).attentions
        flow = torch.eye(ids.shape[1], dtype=torch.float64)
        for weights in told:
            flow = (0.7 * weights[0].mean(0).double() + 0.3 * torch.eye(len(flow))) @ flow
        expected = flow[0] if pool == "first" else flow[-1] if pool == "last" else flow.mean(0)
        pieces = case.pieces("review")[row]
        np.testing.assert_allclose(one.parts["review"].values, pieces.gather(expected.numpy()), atol=1e-6)
        assert one.parts["review"].total == pytest.approx(1)
        assert one.score == pytest.approx(
            case.score(case.batch(row, row + 1), case.chosen[row : row + 1]).item(), abs=1e-5
        )


@pytest.mark.parametrize("kind", ["longformer", "fnet"])
def test_rollout_refuses_who_tells_no_attention_of_each_token_to_each(kind: str) -> None:
    pytest.importorskip("transformers")
    case = Case.of(foreign(kind), frame().head(1))
    assert AttentionRollout().refusal(case) == (
        f"transformers gives no attention of each token to each for the architecture '{kind}'"
    )


def test_classifiers_of_others_pool_in_ways_of_their_own() -> None:
    pytest.importorskip("transformers")
    case = Case.of(foreign("electra", task="classifier"), frame().head(2))
    assert AttentionRollout().refusal(case) == (
        "the architecture 'electra' pools in a way of its own as a classifier, so nobody can tell where attention is read off"
    )
    assert IntegratedGradients().refusal(case) is None
    for found in Occlusion().explain(case):
        assert np.isfinite(found.parts["review"].values).all()
    # A decoder looks the text up again, and gradients would attach to one of the two.
    pair = {"bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 3, "d_model": 32, "decoder_layers": 1, "encoder_layers": 1}  # fmt: skip
    case = Case.of(foreign("bart", task="classifier", more=pair), frame().head(2))
    assert "no gradient can attach to 'review'" in (IntegratedGradients().refusal(case) or "")


def foreign(kind: str, more: dict[str, Any] | None = None, **options: Any) -> Predictor:
    """A tiny model of an architecture of transformers."""
    sizes: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 128,
    }  # fmt: skip
    if kind == "gpt2":
        sizes = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
        sizes |= {"bos_token_id": 0, "eos_token_id": 0}
    if kind == "longformer":
        sizes["attention_window"] = 4
    if kind == "bart":
        del (
            sizes["hidden_size"],
            sizes["intermediate_size"],
            sizes["num_hidden_layers"],
            sizes["num_attention_heads"],
        )
    sizes |= more or {}
    model = {"type": "huggingface", "config": {"model_type": kind, **sizes}, **options}
    return predictor(["review"], "label", model, kinds={"review": WORDPIECE})


def test_rollout_fits_transformers_alone_pairs_included() -> None:
    assert (
        AttentionRollout().refusal(text_case("rnn", 2))
        == "it needs the attention of a Transformer, of Luban's own or of type huggingface"
    )
    kinds = {"review": WORDPIECE, "reply": {"type": "text", "like": "review"}}
    own = predictor(
        ["review", "reply"], "label", {"type": "bert", "size": "tiny", **FAMILIES["bert"]}, kinds=kinds
    )
    for one in AttentionRollout(heads="max").explain(Case.of(own, frame().head(3))):
        assert sum(part.total for part in one.parts.values()) == pytest.approx(1)
        assert all(part.total > 0 for part in one.parts.values())
    assert encoder_of(own.model).keep_states is False
    patches = AttentionRollout(heads="min").explain(image_case("transformer", 2))
    assert patches[0].parts["photo"].total == pytest.approx(1)
