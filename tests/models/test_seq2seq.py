"""The encoder with a decoder: rows by themselves, gradients, tables of tokens, what is refused, generation, a small run."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

import luban
from luban.data.batch import Batch
from luban.data.contracts import Field, Spec
from luban.data.pipeline import Pipeline
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.errors import DataError, LubanError, RecipeError
from luban.generation.engine import generate
from luban.generation.options import Generation
from luban.generation.reader import Reader
from luban.models._language import encoder_of
from luban.models._network import Network
from luban.models.seq2seq import Seq2Seq, Seq2SeqEncoder
from luban.recipe import Data, Section

SIZE = 40
FIELDS = {
    "en.ids": Field("en", "text", "input", "int64", None, size=SIZE),
    "zh.ids": Field("zh", "text", "target", "int64", None, size=SIZE, pad=0),
}
LABEL = {"label.index": Field("label", "category", "target", "int64", size=3, output="logits", width=3)}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm": "post", "positions": "sinusoidal", "shared": True},
    {"positions": "learned", "embedding_norm": True, "shared": True, "output_bias": True},
    {"norm": "post", "tied": False, "decoder_layers": 1, "scale_embedding": True, "activation": "relu"},
]


def parse(**options: Any) -> Seq2Seq:
    small = {"layers": 2, "hidden_size": 24, "heads": 4, "layer_dropout": 0.0, "attention_dropout": 0.0}
    model = Section("models").parse({"type": "seq2seq", **small, **options})
    assert isinstance(model, Seq2Seq)
    return model


def made(spec: Spec | None = None, **options: Any) -> Network:
    """A network whose weights are large enough for tokens to matter."""
    torch.manual_seed(0)
    module = parse(**options).build(spec or Spec(FIELDS))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    sources, targets = (
        [torch.randint(4, SIZE, (length,), generator=generator) for length in lengths]
        for lengths in ((7, 1, 0, 12, 7), (3, 6, 2, 1, 9))
    )
    return {"en.ids": Ragged.from_rows(sources), "zh.ids": Ragged.from_rows(targets)}


def row_of(whole: Batch, i: int) -> Batch:
    found: Batch = {}
    for name, value in whole.items():
        assert isinstance(value, Ragged)
        found[name] = Ragged.from_rows([value[i]])
    return found


def total(module: Network, part: Batch) -> torch.Tensor:
    labels = part["zh.ids"]
    assert isinstance(labels, Ragged)
    loss: torch.Tensor = module(part)["zh.tokens"].total(labels.values)
    return loss


def gradients(module: Network, parts: list[Batch]) -> dict[str, torch.Tensor]:
    module.zero_grad()
    for part in parts:
        torch.autograd.backward(total(module, part))
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    assert found.keys() == {name for name, _ in module.named_parameters()}
    return found


@pytest.mark.parametrize("options", VARIANTS)
def test_rows_together_have_the_gradient_of_rows_one_by_one(options: dict[str, Any]) -> None:
    module, whole = made(**options), batch()
    together = gradients(module, [whole])
    apart = gradients(module, [row_of(whole, i) for i in range(5)])
    whole_norm = torch.stack([one.norm() for one in together.values()]).norm()
    for name, one in together.items():
        assert bool(one.any()), name
        # A bias of keys, which moves all scores of a query alike, has no gradient but what rounding leaves.
        assert float((one - apart[name]).norm() / torch.maximum(one.norm(), 1e-3 * whole_norm)) < 1e-5, name


@pytest.mark.parametrize("options", VARIANTS)
def test_logits_do_not_depend_on_the_rows_beside_nor_on_tokens_behind(options: dict[str, Any]) -> None:
    module, whole = made(**options).eval(), batch()
    with torch.no_grad():
        logits = whole["zh.ids"].like(module(whole)["zh.tokens"].logits())  # type: ignore[union-attr]
        for i in range(5):
            one = row_of(whole, i)
            torch.testing.assert_close(module(one)["zh.tokens"].logits(), logits[i], atol=1e-5, rtol=1e-5)
        changed = whole["zh.ids"].values.clone()  # type: ignore[union-attr]
        changed[-1] = 5  # the last token of the last row, which nothing of that row reads
        after = module({**whole, "zh.ids": whole["zh.ids"].like(changed)})["zh.tokens"].logits()  # type: ignore[union-attr]
        torch.testing.assert_close(after, logits.values)


def test_recomputing_changes_no_gradient() -> None:
    plain = made(layer_dropout=0.2)
    again = made(layer_dropout=0.2, recompute=True)
    results = []
    for module in (plain, again):
        torch.manual_seed(3)
        results.append(gradients(module, [batch()]))
    for name, one in results[0].items():
        torch.testing.assert_close(one, results[1][name])


def test_a_shared_table_is_saved_once_and_reaches_all_that_read_it() -> None:
    alone, shared = made(), made(shared=True)
    tables = [name for name in shared.state_dict() if name.endswith("tokens.weight")]
    assert tables == ["encoders.@en.core.embedding.tokens.weight"]
    assert len([name for name in alone.state_dict() if name.endswith("tokens.weight")]) == 2
    without = {
        "zh.ids": Ragged.from_rows([torch.tensor([9])]),
        "en.ids": Ragged.from_rows([torch.tensor([8])]),
    }
    table = gradients(shared, [without])[tables[0]]
    assert bool(table[[0, 8, 9]].any(1).all())  # the start token, the source, and every token of the output


def test_without_a_text_to_write_only_the_encoder_runs() -> None:
    module, whole = made(), batch()
    outputs = module({"en.ids": whole["en.ids"]})
    assert "zh.tokens" not in outputs
    assert outputs["features"].shape == (5, 24)
    torch.testing.assert_close(outputs["features"], outputs["states"].mean())


def test_other_targets_are_read_off_the_encoder() -> None:
    numbers = {"age.value": Field("age", "number", "input", "float32")}
    module = made(Spec({**FIELDS, **LABEL, **numbers}), hidden=[6])
    outputs = module({**batch(), "age.value": torch.randn(5)})
    assert outputs["label.logits"].shape == (5, 3)
    assert len(outputs["zh.tokens"]) == 21


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "no multiple of heads 5"),
        ({"hidden_size": 12}, "rotary positions turn pairs of values, and a head has 3"),
        (
            {"hidden_size": 15, "heads": 3, "positions": "sinusoidal"},
            "pairs of values, and hidden_size is 15",
        ),
        ({"shared": True, "decoder_vocabulary": 50}, "decoder_vocabulary 50 would do nothing"),
        ({"start": -1}, "start"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse(**options)


IMAGE = {"photo.pixels": Field("photo", "image", "input", "float32", (4, 4, 1))}
SECOND = {"fr.ids": Field("fr", "text", "input", "int64", None, size=SIZE)}
LARGER = {"zh.ids": Field("zh", "text", "target", "int64", None, size=SIZE + 1)}


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"en.ids": FIELDS["en.ids"], **LABEL}, {}, r"writes one text, and the targets are label \(category\)"),
        ({**FIELDS, **SECOND}, {}, r"reads one text, and the inputs have 2 \(en, fr\)"),
        ({**FIELDS, **IMAGE}, {}, "input 'photo' would be read by nothing"),
        ({**FIELDS, **LARGER}, {"shared": True}, "the tokenizer of 'zh' has 41 tokens where that of the input has 40"),
        (FIELDS, {"start": 40}, "model.start is 40, and 'zh' has 40 tokens"),
        (FIELDS, {"type": "transformer"}, "model type 'transformer' writes no text, and target 'zh' is a text; take type 'seq2seq'"),
        (
            {**FIELDS, "en.labels": Field("en", "tokens", "target", "int64", None, size=SIZE)},
            {},
            "cannot put out the tokens of 'en'",
        ),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit(fields: dict[str, Field], options: dict[str, Any], message: str) -> None:
    model: Any = Section("models").parse({"type": "seq2seq", "size": "tiny", **options})
    with pytest.raises(RecipeError, match=message):
        model.build(Spec(fields))


def completed(model: Seq2Seq, inputs: dict[str, Text], targets: dict[str, Text]) -> tuple[Text, Text]:
    data = Data.model_construct(inputs=inputs, targets=targets)
    model.complete(data)
    source, target = data.inputs["en"], data.targets["zh"]
    assert isinstance(source, Text)
    assert isinstance(target, Text)
    return source, target


def test_what_a_text_is_given() -> None:
    model = parse(max_positions=100)
    source, target = completed(model, {"en": Text()}, {"zh": Text(tokens="char")})
    assert (source.tokens, source.lowercase, source.end, source.max_length) == ("bpe", False, True, 100)
    assert (target.tokens, target.byte_fallback, target.normalize, target.end) == ("char", True, "none", True)
    assert model.shared is False


def test_a_shared_tokenizer_shares_the_table() -> None:
    for target in (Text(like="en"), Text(tokenizer="same.json")):
        model = parse()
        completed(model, {"en": Text(tokenizer="same.json")}, {"zh": target})
        assert model.shared is True
    with pytest.raises(RecipeError, match="'en' and 'zh' have tokenizers of their own"):
        completed(parse(shared=True), {"en": Text()}, {"zh": Text()})


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ({}, {"zh": Text()}, "reads one text column, and data.inputs has 0"),
        ({"en": Text()}, {}, "writes one text column, and data.targets has 0; write"),
        ({"en": Text(), "fr": Text()}, {"zh": Text()}, r"reads one text column, and data.inputs has 2 \(en, fr\)"),
    ],
)  # fmt: skip
def test_too_few_or_too_many_texts(inputs: dict[str, Text], targets: dict[str, Text], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        completed(parse(), inputs, targets)


# --- generation ---------------------------------------------------------------------------------------------

END = 2
PAIR = {
    "vocab_size": SIZE, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40, "init_std": 0.3, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": END, "forced_eos_token_id": END,
}  # fmt: skip


def theirs(kind: str, first: int | None, end_bias: float) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "bart":
        config = transformers.BartConfig(**PAIR, decoder_start_token_id=END)
        model = transformers.BartForConditionalGeneration(config)
    else:
        config = transformers.MarianConfig(**PAIR, decoder_start_token_id=1, scale_embedding=True)
        model = transformers.MarianMTModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        model.final_logits_bias.normal_()
        model.final_logits_bias[0, END] += end_bias  # else a random model hardly ever ends a text
    model.generation_config.forced_bos_token_id = first
    return model.eval()


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(("kind", "first"), [("bart", None), ("bart", 0), ("marian", None)])
def test_texts_of_transformers_token_by_token(
    kind: str, first: int | None, beams: int, tmp_path: Path
) -> None:
    sources = [row.tolist() for row in batch()["en.ids"].unbind() if len(row)]  # type: ignore[union-attr]
    lengths = set()
    for end_bias in (0.0, 3.0, 4.0):
        reference = theirs(kind, first, end_bias)
        reference.save_pretrained(tmp_path)
        model: Any = Section("models").parse({"type": "seq2seq", "from": str(tmp_path)})
        module = model.build(Spec(FIELDS))
        model.load_pretrained(module)
        assert (model.forced_first, model.forced_last) == (first, END)
        ids, mask = Ragged.from_rows([torch.tensor(row) for row in sources]).padded(1)
        for limit in (4, 20):
            expected = reference.generate(
                input_ids=ids, attention_mask=mask, num_beams=beams, do_sample=False, max_new_tokens=limit
            )[:, 1:].tolist()
            found = generate(
                module,
                [[model.start]] * len(sources),
                Generation(max_tokens=limit, beams=beams),
                end={END},
                decode=str,
                sources=sources,
            )
            cut = [row[: row.index(END)] if END in row else row for row in expected]
            assert [one.ids for one in found] == cut
            lengths |= {len(one.ids) for one in found}
    assert len(lengths) > 2  # some ended by themselves, some were cut


@torch.inference_mode()
def test_states_of_a_text_are_kept_once_for_all_beams() -> None:
    module = made().eval()
    sources = [[5, 6, 7], [8], [9, 10]]
    reader = Reader(module, 3, 8, sources)
    first = reader.read([[0]] * 3)
    reader.keep([0, 0, 2, 2])  # two beams each; the second text is finished
    after = reader.read_one(torch.tensor([4, 5, 6, 7]))
    assert reader.decoding.memory is not None
    assert reader.decoding.memory.lengths.tolist() == [3, 2]
    for i, (source, token) in enumerate([(0, 4), (0, 5), (2, 6), (2, 7)]):
        alone = Reader(module, 1, 8, [sources[source]])
        torch.testing.assert_close(alone.read([[0]])[0], first[source], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.read_one(torch.tensor([token]))[0], after[i], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_tokens_one_by_one_have_the_logits_of_all_at_once() -> None:
    for options in VARIANTS:
        module, whole = made(**options).eval(), row_of(batch(), 4)
        labels = whole["zh.ids"].values.tolist()  # type: ignore[union-attr]
        reader = Reader(module, 1, 16, [whole["en.ids"].values.tolist()])  # type: ignore[union-attr]
        steps = [reader.read([[0]])] + [reader.read_one(torch.tensor([token])) for token in labels[:-1]]
        expected = module(whole)["zh.tokens"].logits()
        torch.testing.assert_close(torch.cat(steps), expected, atol=1e-5, rtol=1e-5)


def test_generation_needs_sources_where_there_is_an_encoder() -> None:
    with pytest.raises(RecipeError, match="give sources"):
        Reader(made(), 1, 8)
    spec = Spec(
        {
            "text.ids": Field("text", "text", "input", "int64", None, size=SIZE),
            "text.labels": Field("text", "tokens", "target", "int64", None, size=SIZE),
        }
    )
    causal: Any = Section("models").parse({"type": "gpt2", "size": "tiny"})
    with pytest.raises(RecipeError, match="reads no source"):
        Reader(causal.build(spec), 1, 8, [[3]])


# --- a small run ----------------------------------------------------------------------------------------------


def reversals(path: Path, n: int = 2000) -> list[dict[str, str]]:
    """Words and the same backwards, no word twice."""
    generator = random.Random(0)
    words: dict[str, None] = {}
    while len(words) < n:
        inner = "".join(generator.choice("ab de") for _ in range(generator.randint(1, 4)))
        words[generator.choice("abde") + inner + generator.choice("abde")] = None
    rows = [
        {"word": word, "back": word[::-1], "first": word[0], "shop": "ab"[i % 2]}
        for i, word in enumerate(words)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


RECIPE: dict[str, Any] = {
    "data": {
        "train": "rows.jsonl",
        "inputs": {"word": {"type": "text", "tokens": "char"}},
        "targets": {"back": {"type": "text", "like": "word"}},
        "groups": ["shop"],
    },
    "model": {
        "type": "seq2seq",
        "layers": 1,
        "hidden_size": 64,
        "heads": 4,
        "positions": "learned",
        "max_positions": 16,
        "layer_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "objective": {"type": "seq2seq", "label_smoothing": 0.05},
    "train": {
        "epochs": 12,
        "batch_size": 32,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
        "optimizer": {"type": "adamw", "learning_rate": 4e-3},
        "schedule": {"type": "linear", "warmup": 0.1},
        "metric": "back.perplexity",
    },
}


def test_a_run_learns_to_write_words_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = reversals(Path("rows.jsonl"))
    result = luban.train(RECIPE, output="model")
    assert result["metrics"]["back.perplexity"]["value"] < 1.1
    predictor = luban.load("model")  # which verifies the parity sample
    sample = [json.loads(line) for line in Path("model/sample.jsonl").read_text().splitlines()]
    assert sample[0]["row"].keys() == {"word", "back"}
    assert sample[0]["prediction"].keys() == {"back.loss", "back.tokens"}
    assert sample[0]["prediction"]["back.tokens"] == len(sample[0]["row"]["back"]) + 1  # and its end
    asked = [{"word": row["word"]} for row in rows[:200]]
    written = predictor.predict(asked)
    right = sum(one["back"] == row["back"] for one, row in zip(written, rows, strict=False))
    assert right >= 198
    assert {one["back.finish_reason"] for one in written} == {"end"}
    assert [one["back"] for one in predictor.predict(asked[:9], generation={"beams": 3})] == [
        one["back"] for one in written[:9]
    ]
    cut = predictor.predict(asked[:1], generation={"max_tokens": 2})[0]
    assert (cut["back"], cut["back.finish_reason"]) == (rows[0]["back"][:2], "length")

    weights = Path("model/model.safetensors")
    changed = bytearray(weights.read_bytes())
    changed[-5000] ^= 0x40
    weights.write_bytes(changed)
    with pytest.raises(LubanError):
        luban.load("model")


def test_what_was_cut_is_not_measured_and_each_row_draws_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = reversals(Path("rows.jsonl"), 120)
    recipe = json.loads(json.dumps(RECIPE))
    recipe["data"]["targets"]["back"]["max_length"] = 4
    recipe["data"]["weight"] = "often"
    del recipe["train"]["metric"], recipe["data"]["groups"]
    recipe["train"]["epochs"] = 1
    Path("rows.jsonl").write_text(
        "".join(json.dumps({**row, "often": 1 + i % 3}) + "\n" for i, row in enumerate(rows))
    )
    luban.train(recipe, output="model")
    predictor = luban.load("model")
    writer = predictor.writer
    assert writer is not None
    texts = pl.DataFrame({"word": ["ab", "abedabed"], "back": ["ba", "debadeba"], "often": [1.0, 3.0]})
    ids, sizes = writer.text.encode_measured(texts["back"])
    assert (np.diff(ids.offsets).tolist(), sizes.tolist()) == ([3, 4], [2, 4]), (
        "three and its end, four of eight"
    )
    encoded, _ = predictor.encode(texts)
    one, other = writer.score(encoded, ids, sizes)
    assert (one.bytes, other.bytes, one.tokens, other.tokens) == (2, 4, 3, 4)
    texts.write_ndjson("two.jsonl")
    found = luban.evaluate("model", "two.jsonl", resamples=0)
    expected = (one.loss + 3 * other.loss) / (one.bytes + 3 * other.bytes) / math.log(2)
    assert found["metrics"]["back.bits_per_byte"]["value"] == pytest.approx(expected, rel=1e-5)
    assert found["cleaned"]["back: texts cut to max_length"] == 1

    how = {"temperature": 3.0, "seed": 1, "max_tokens": 8}
    asked = [{"word": "abe"}] * 6
    drawn = [row["back"] for row in predictor.predict(asked, generation=how)]
    assert len(set(drawn)) > 3
    parts = [predictor.predict(asked[i : i + 2], generation=how, first=i) for i in (0, 2, 4)]
    assert [row["back"] for part in parts for row in part] == drawn
    assert [row["back"] for row in predictor.predict(asked, generation=how, batch_size=2)] == drawn
    pieces: list[int] = []
    predictor.predict(asked[:2], generation=how, first=7, on_piece=lambda piece: pieces.append(piece.row))
    assert set(pieces) == {7, 8}


def test_a_written_text_beside_a_category(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reversals(Path("rows.jsonl"), 120)
    recipe = json.loads(json.dumps(RECIPE))
    recipe["data"]["targets"]["first"] = "category"
    del recipe["objective"], recipe["train"]["metric"]
    recipe["train"]["epochs"] = 1
    recipe["sample"] = "synthetic"
    result = luban.train(recipe, output="model")
    assert {"back.perplexity", "first.accuracy"} <= result["metrics"].keys()
    predictor = luban.load("model")
    one = predictor.predict([{"word": "abe"}])[0]
    assert {"back", "back.finish_reason", "first", "first.scores"} <= one.keys()
    encoder = encoder_of(predictor.model)
    assert isinstance(encoder, Seq2SeqEncoder)
    found = luban.evaluate("model", "rows.jsonl")
    assert set(found["slices"]["shop"]) == {"a", "b"}
    assert found["slices"]["shop"]["a"]["metrics"]["back.loss"]["value"] > 0


def test_a_column_like_another_has_its_tokens_and_its_frame() -> None:
    pipeline = Pipeline(
        {"en": Text(tokens="word", min_count=1, special=True)}, {"zh": Text(like="en", max_length=4)}
    )
    for column, processor in (*pipeline.inputs.items(), *pipeline.targets.items()):
        pipeline.owner(processor).update(pl.Series([f"both {column}"]))
    pipeline.finish()
    assert (pipeline.scored, list(pipeline.written)) == ({}, ["zh"])
    texts = pl.Series(["zh both en en en"])
    own, other = pipeline.inputs["en"], pipeline.targets["zh"]
    whole, cut = own.encode(texts)["ids"].values.tolist(), other.encode_target(texts)["ids"].values.tolist()  # type: ignore[union-attr]
    assert cut == [*whole[:3], whole[-1]]  # in the frame of the other column, of which it is itself not told
    again = Pipeline.restore(json.loads(json.dumps(pipeline.state()))).targets["zh"]
    assert again.encode_target(texts)["ids"].values.tolist() == cut  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"type": "text", "like": "wrod"}, "'wrod', which is no text input with a tokenizer of its own; these are word"),
        ({"type": "text", "like": "word", "tokens": "bpe"}, "tokens would do nothing, because the tokenizer is that of 'word'"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_shared(
    target: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reversals(Path("rows.jsonl"), 20)
    recipe = json.loads(json.dumps(RECIPE))
    recipe["data"]["targets"]["back"] = target
    with pytest.raises((RecipeError, DataError), match=message):
        luban.train(recipe, output="model")
