"""Which tokens of the prompt led to which token that was written."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from explain_case import WORDPIECE, predictor
from language_case import family, pipeline
from luban.data.contracts import Field, Spec
from luban.data.pipeline import Pipeline
from luban.errors import DataError
from luban.explaining._written import WrittenCase, explain_written, spelt, writes, written_case
from luban.explaining.attention_rollout import AttentionRollout
from luban.explaining.gradient_x_input import GradientXInput
from luban.explaining.integrated_gradients import IntegratedGradients
from luban.explaining.occlusion import Occlusion
from luban.generation.options import Generation
from luban.models._decoding import pair_of
from luban.models._network import Family
from luban.predict import Predictor
from luban.recipe import Section

PROMPT = "A good tool 好的 improves"


def speaker(name: str, **options: Any) -> Predictor:
    whole = pipeline(True)
    own = Pipeline({"text": whole.inputs["text"]}, {})
    ids = own.spec.fields["text.ids"]
    fields = {
        **own.spec.fields,
        "text.labels": Field("text", "tokens", "target", "int64", None, size=ids.size),
    }
    torch.manual_seed(0)
    made = family(name) if not options else Section("models").parse({"type": name, **options})
    assert isinstance(made, Family)
    net = made.build(Spec(fields)).eval()
    return Predictor(net, own, Spec(fields), torch.device("cpu"))


def case_of(own: Predictor, text: str | None = " the way 好", tokens: int = 6) -> WrittenCase:
    return written_case(own, pl.DataFrame({"text": [PROMPT]}), 0, tokens, text, 0)


def pair_case(**options: Any) -> WrittenCase:
    """A model that reads one text and writes another, and five tokens of its writing."""
    rows = pl.DataFrame({"review": ["A good tool", "好的"], "reply": ["好 工具", "good one"]})
    kinds = {
        "review": {**WORDPIECE, "vocabulary": 60},
        "reply": {"type": "text", "tokens": "bpe", "end": True, "vocabulary": 300, "lowercase": False},
    }
    sizes = {"layers": 1, "hidden_size": 16, "heads": 2, "shared": False, "max_positions": 64}
    own = predictor(["review"], "reply", {"type": "seq2seq", **sizes, **options}, kinds=kinds, rows=rows)
    assert writes(own)
    return written_case(own, rows[:1], 0, 5, "好 good", 0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_each_tokens_values_add_up_to_its_log_probability(name: str) -> None:
    own = speaker(name)
    assert writes(own)
    case = case_of(own)
    one = explain_written(case, IntegratedGradients(steps=48))
    part = one.parts["text"]
    assert part.kind == "matrix"
    assert [piece.text for piece in part.outputs] == [" the", " w", "ay", " ", "好"]
    assert part.values.shape == (5, len(part.pieces))
    assert one.baseline is not None
    assert part.total == pytest.approx(one.score - one.baseline, abs=2e-3)
    # The log-probability that is explained is the one the model itself gives.
    assert own.speaker is not None
    ids = torch.tensor([[*case.prompt, *case.written]])
    whole = own.speaker.score(
        type(own.speaker.text.encode_whole(["a"]))(ids.numpy()[0], np.asarray([0, ids.shape[1]])), ["x" * 99]
    )[0].loss
    start = own.speaker.score(
        type(own.speaker.text.encode_whole(["a"]))(
            np.asarray(case.prompt), np.asarray([0, len(case.prompt)])
        ),
        ["x" * 99],
    )[0].loss
    assert one.score == pytest.approx(start - whole, abs=1e-3)


@pytest.mark.parametrize("explainer", [GradientXInput(), AttentionRollout(), Occlusion(unit="token")])
def test_no_token_depends_on_what_comes_after_it(explainer: Any) -> None:
    case = case_of(speaker("gpt2"))
    part = explain_written(case, explainer).parts["text"]
    before = len(part.pieces) - len(part.outputs)
    for i, line in enumerate(part.values):
        assert np.abs(line[: before + i]).max() > 0
        assert not line[before + i + 1 :].any()
    assert part.shown == PROMPT + " the way 好"


def test_without_a_text_it_is_what_the_model_writes() -> None:
    own = speaker("llama")
    case = case_of(own, None, 7)
    (predicted,) = own.predict([{"text": PROMPT}], generation=Generation(max_tokens=7))
    assert own.speaker is not None
    assert own.speaker.text.decode_ids(case.written) == predicted["completion"]
    one = explain_written(case, GradientXInput())
    assert one.score == pytest.approx(predicted["completion.log_probability"], abs=1e-3)


@pytest.mark.parametrize("heads", ["mean", "max"])
@pytest.mark.parametrize("residual", [0.5, 0.2])
def test_rollout_through_encoder_and_decoder_is_that_of_one_graph(heads: Any, residual: float) -> None:
    """States of both are nodes of one graph; each attention is a step on it, and what is written is read off its last node."""
    case = pair_case(layers=2, positions="learned")
    reader = case.predictor.model.encoders["@review"]
    for row, one in enumerate(AttentionRollout(heads=heads, residual=residual).explain(case)):
        seen: dict[Any, list[torch.Tensor]] = {}
        attentions = [module for module in reader.modules() if hasattr(module, "keys_values")]
        linears = [part for module in attentions for part in (module.q, module.k)]
        handles = [
            part.register_forward_hook(
                lambda module, args, output, seen=seen: seen.setdefault(module, []).append(output)
            )
            for part in linears
        ]
        case.score(case.batch(row, row + 1), case.chosen[row : row + 1])
        for handle in handles:
            handle.remove()
        read, written = len(case.pieces("review")[row].groups), row + 1
        size = read + written

        def one_of(module: Any, causal: bool, seen: Any = seen) -> np.ndarray[Any, Any]:
            q, k = (seen[part][0].view(-1, 2, 8).transpose(0, 1) for part in (module.q, module.k))
            scores = q @ k.transpose(1, 2) / 8**0.5
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            weights = scores.softmax(2).detach().double().numpy()
            if heads == "mean":
                return np.asarray(weights.mean(0))
            return np.asarray(weights.max(0) / weights.max(0).sum(1, keepdims=True))

        flow = np.eye(size)  # the text that was read first
        for block in reader.core.layers:
            step = np.eye(size)
            step[:read, :read] = residual * np.eye(read) + (1 - residual) * one_of(block.attention, False)
            flow = step @ flow
        for block in reader.decoder.layers:
            step = np.eye(size)
            step[read:, read:] = residual * np.eye(written) + (1 - residual) * one_of(block.attention, True)
            flow = step @ flow
            step = np.eye(size)
            step[read:, read:] = residual * np.eye(written)
            step[read:, :read] = (1 - residual) * one_of(block.cross, False)
            flow = step @ flow
        expected = case.pieces("review")[row].gather(flow[-1, :read])
        np.testing.assert_allclose(one.parts["review"].values, expected, atol=1e-6)
        # What remains reaches the tokens written before, through the residual past two cross attentions.
        assert one.parts["review"].total == pytest.approx(1 - residual**2)


def test_what_a_model_of_transformers_writes_is_explained_by_its_own_attention() -> None:
    """Its attention is a fused kernel, which has no weights to tell, but for as long as it is asked."""
    pytest.importorskip("transformers")
    sizes = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    config = {"model_type": "gpt2", "vocab_size": 300, **sizes}
    own = speaker("huggingface", config=config, task="causal_lm")
    case = case_of(own, " the way")
    model = own.model.encoders["@text"].model
    fused = model.config._attn_implementation
    assert AttentionRollout().refusal(case) is None
    found = AttentionRollout().explain(case)
    assert model.config._attn_implementation == fused != "eager"
    model.set_attn_implementation("eager")
    for step, one in enumerate(found):
        ids = torch.tensor([[*case.prompt, *case.written[:step]]])
        with torch.inference_mode():
            told = model(input_ids=ids, output_attentions=True).attentions
        flow = torch.eye(ids.shape[1], dtype=torch.float64)
        for weights in told:
            flow = 0.5 * (weights[0].mean(0).double() + torch.eye(len(flow))) @ flow
        expected = case.pieces("text")[step].gather(flow[-1].numpy())
        np.testing.assert_allclose(one.parts["text"].values, expected, atol=1e-6)


T5 = {
    "model_type": "t5",
    "vocab_size": 400,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
}
BART = {
    "model_type": "bart", "vocab_size": 400, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "pad_token_id": 0, "init_std": 0.3,
}  # fmt: skip


def foreign_pair(config: dict[str, Any]) -> WrittenCase:
    pytest.importorskip("transformers")
    rows = pl.DataFrame({"review": ["A good tool", "好的"], "reply": ["好 工具", "good one"]})
    kinds = {
        "review": {"type": "text", "tokens": "bpe", "end": True, "vocabulary": 300, "lowercase": False},
        "reply": {"type": "text", "like": "review", "end": True},
    }
    options = {"type": "huggingface", "task": "seq2seq", "config": config}
    own = predictor(["review"], "reply", options, kinds=kinds, rows=rows)
    return written_case(own, rows[:1], 0, 5, "好 good", 0)


@pytest.mark.parametrize("config", [T5, BART], ids=["t5", "bart"])
def test_what_a_pair_of_transformers_writes_is_explained(config: dict[str, Any]) -> None:
    case = foreign_pair(config)
    encoder = pair_of(case.predictor.model)
    model: Any = encoder.model
    fused = model.config._attn_implementation
    assert AttentionRollout().refusal(case) is None
    found = AttentionRollout().explain(case)
    assert model.config._attn_implementation == fused != "eager"
    model.set_attn_implementation("eager")
    (source,) = case.batch(0, 1)["review.ids"].unbind()  # type: ignore[union-attr]
    for step, one in enumerate(found):
        given = torch.tensor([[encoder.start, *case.written[:step]]])
        with torch.inference_mode():
            told = model(
                input_ids=source[None].long(), decoder_input_ids=given, decoder_attention_mask=torch.ones_like(given), output_attentions=True
            )  # fmt: skip
        read, size = len(source), len(source) + step + 1
        flow = np.eye(size)
        for layer in told.encoder_attentions:
            part = np.eye(size)
            part[:read, :read] = 0.5 * np.eye(read) + 0.5 * layer[0].double().mean(0).numpy()
            flow = part @ flow
        for inner, cross in zip(told.decoder_attentions, told.cross_attentions, strict=True):
            part = np.eye(size)
            part[read:, read:] = 0.5 * np.eye(step + 1) + 0.5 * inner[0].double().mean(0).numpy()
            flow = part @ flow
            part = np.eye(size)
            part[read:, read:] = 0.5 * np.eye(step + 1)
            part[read:, :read] = 0.5 * cross[0].double().mean(0).numpy()
            flow = part @ flow
        expected = case.pieces("review")[step].gather(flow[-1, :read])
        np.testing.assert_allclose(one.parts["review"].values, expected, atol=1e-6)

    by_gradients = explain_written(case, IntegratedGradients(steps=64))
    part = by_gradients.parts["review"]
    assert by_gradients.baseline is not None
    assert part.total == pytest.approx(
        by_gradients.score - by_gradients.baseline, abs=1e-2 * max(1, abs(by_gradients.score))
    )
    without = explain_written(case, Occlusion())
    assert len(without.parts["review"].values) == len(part.values)


def test_attention_over_windows_is_not_told_of_a_pair() -> None:
    config = {**BART, "model_type": "led", "attention_window": [4, 4], "max_encoder_position_embeddings": 64}
    case = foreign_pair(config)
    refused = AttentionRollout().refusal(case)
    assert refused == "transformers gives no attention of each token to each for the architecture 'led'"


def test_nothing_written_is_said() -> None:
    with pytest.raises(DataError, match="writes nothing"):
        case_of(speaker("gpt2"), "")


def test_tokens_within_a_character_are_spelt_together() -> None:
    text: Any = pipeline(True).inputs["text"]
    ids = text.trained.encode("a🎈b", add_special_tokens=False).ids
    shown, places = spelt(text, ids)
    assert shown == "a🎈b"
    assert len(ids) > 3
    assert {place for place in places if place[0] < 2 and place[1] > 1} == {(1, 2)}


def test_what_was_read_led_to_what_is_written() -> None:
    case = pair_case()
    one = explain_written(case, IntegratedGradients(steps=64))
    part = one.parts["review"]
    assert [piece.text for piece in part.pieces if piece.start < piece.end] == ["A", "good", "tool"]
    assert part.values.shape == (len(part.outputs), len(part.pieces))
    assert one.baseline is not None
    assert part.total == pytest.approx(
        one.score - one.baseline, abs=1e-2 * max(1, abs(one.score - one.baseline))
    )
    without = explain_written(case, Occlusion())
    assert without.parts["review"].values.shape == part.values.shape
