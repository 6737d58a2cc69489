"""What the objectives over a text's own tokens do to a batch: which tokens, how many, of which pairs, drawn when."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from language_case import FACTS, SENTENCES, batch_of, family, objectives, pipeline
from luban.data.batch import Batch
from luban.data.contracts import Field, Spec
from luban.data.loader import Loader
from luban.data.pipeline import Pipeline
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.data.store import Store, StoreWriter
from luban.data.windows import Windows
from luban.errors import RecipeError
from luban.language import Speaker
from luban.models._core import Projection
from luban.objectives.masked_lm import MaskedLM
from luban.objectives.next_sentence import NextSentence
from luban.recipe import Section


def text_of(causal: bool) -> Text:
    text = pipeline(causal).inputs["text"]
    assert isinstance(text, Text)
    return text


def ordinary(rows: list[int], seed: int = 0) -> Ragged:
    """Rows of tokens that are no special ones."""
    text = text_of(causal=False)
    known = torch.tensor(sorted(set(text.trained.get_vocab().values()) - text.special_ids))
    generator = torch.Generator().manual_seed(seed)
    return Ragged.from_rows([known[torch.randint(len(known), (n,), generator=generator)] for n in rows])


def hide(ids: Ragged, seed: int = 0, **options: Any) -> tuple[MaskedLM, Batch]:
    made = MaskedLM(column="text", length=512, **options)
    made.bind(pipeline(causal=False), None)
    return made, made.collate({"text.ids": ids}, torch.Generator().manual_seed(seed))


def tensor(batch: Batch, name: str) -> Tensor:
    value = batch[name]
    assert isinstance(value, Tensor)
    return value


def ragged(batch: Batch, name: str = "text.ids") -> Ragged:
    value = batch[name]
    assert isinstance(value, Ragged)
    return value


# --- masked_lm ----------------------------------------------------------------------------------------------


def test_shares_of_the_hidden_tokens() -> None:
    lengths = [1 + i % 300 for i in range(1500)]
    ids = ordinary(lengths)
    made, batch = hide(ids)
    read, labels, seen = tensor(batch, "text.read"), tensor(batch, "text.labels"), ragged(batch)
    framed = Ragged(seen.values, seen.offsets)
    assert (framed.lengths - ids.lengths).unique().tolist() == [2]
    chosen = torch.bincount(framed.rows[read], minlength=len(ids))
    assert int(chosen.min()) == 1
    for found, n in zip(chosen.tolist(), lengths, strict=True):
        assert abs(found - max(1.0, 0.15 * n)) <= 0.5 + 1e-6  # at least one, and the share to a token

    total = len(read)
    assert total > 30_000
    after = seen.values[read]
    masked, kept = after == made.text.mask_id, after == labels
    other = ~masked & ~kept
    vocabulary = made.text.trained.get_vocab_size() - len(made.text.special_ids)
    for found, share in (
        (masked, 0.8),
        (other, 0.1 * (1 - 1 / vocabulary)),  # a random token may be the one that was there
        (kept, 0.1 * (1 + 1 / vocabulary)),
    ):
        spread = math.sqrt(share * (1 - share) / total)
        assert float(found.float().mean()) == pytest.approx(share, abs=4 * spread)
    assert not set(after[other].tolist()) & made.text.special_ids
    # Whatever is not read stays as it was.
    rest = torch.ones(len(seen.values), dtype=torch.bool)
    rest[read] = False
    restored = seen.values.clone()
    restored[read] = labels
    whole = [[made.text.cls_id, *row.tolist(), made.text.sep_id] for row in ids.unbind()]
    assert [row.tolist() for row in seen.like(restored).unbind()] == whole
    assert (read.diff() > 0).all()


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=6),
    st.floats(0.01, 0.95),
    st.booleans(),
    st.integers(0, 99),
)
def test_special_tokens_are_never_hidden(lengths: list[int], share: float, whole: bool, seed: int) -> None:
    text = text_of(causal=False)
    ids = ordinary(lengths, seed)
    values = ids.values.clone()
    values[::3] = text.unk_id or 0
    _, batch = hide(ids.like(values), seed, share=share, whole_word=whole)
    labels, read = tensor(batch, "text.labels"), tensor(batch, "text.read")
    assert not set(labels.tolist()) & text.special_ids
    counts = torch.bincount(ragged(batch).rows[read], minlength=len(lengths)).tolist()
    for row, found in zip(ids.like(values).unbind(), counts, strict=True):
        candidates = sum(t not in text.special_ids for t in row.tolist())
        if not whole:
            assert abs(found - max(1.0, candidates * share)) <= 0.5 + 1e-5 if candidates else not found
        else:
            assert bool(found) == bool(candidates)


def test_a_word_is_hidden_whole() -> None:
    text = text_of(causal=False)
    ids = text.encode_texts(SENTENCES * 40)["ids"]
    rows = Ragged(torch.from_numpy(ids.values.astype(np.int64)), torch.from_numpy(ids.offsets))  # type: ignore[union-attr]
    inner = torch.tensor(
        [str(text.trained.id_to_token(i)).startswith("##") for i in range(text.trained.get_vocab_size())]
    )
    assert inner[rows.values].any()
    for whole in (True, False):
        made = MaskedLM(column="text", length=512, whole_word=whole, share=0.3)
        made.bind(pipeline(causal=False), None)
        batch = made.collate(
            {"text.ids": rows, "text.segments": torch.zeros(0)}, torch.Generator().manual_seed(0)
        )
        hidden = torch.zeros(len(rows.values), dtype=torch.bool)
        hidden[tensor(batch, "text.read")] = True
        goes_on = inner[rows.values]
        together = bool((hidden[1:] == hidden[:-1])[goes_on[1:]].all())
        assert together == whole
        counts = torch.bincount(rows.rows[hidden], minlength=len(rows))
        longest = 1 + int(max(map(len, "".join("1" if g else " " for g in goes_on.tolist()).split())))
        sizes = (rows.lengths - 2).float() * 0.3
        assert bool(((counts - sizes) <= longest).all())
        assert bool((counts >= 1).all())


@pytest.mark.parametrize(
    ("piece", "goes_on"),
    [("Ġword", False), ("ing", True), ("7", True), (",", False), ("▁new", False), ("的", False), ("", False)],
)
def test_where_a_word_goes_on_in_byte_pairs(piece: str, goes_on: bool) -> None:
    from luban.objectives.masked_lm import _goes_on

    assert _goes_on(piece, text_of(causal=True).trained) == goes_on


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_a_document_is_framed_once(special: bool, named: bool, tmp_path: Path) -> None:
    """Whoever puts opening and closing tokens around a document (the recipe, or the tokenizer that it names): one of each."""
    path = tmp_path / "tokenizer.json"
    text = Text(tokens="wordpiece", special=special or named, vocabulary=160, min_count=1, max_length=None)
    text.update(pl.Series(SENTENCES))
    text.finish()
    path.write_text(text.trained.to_str(), encoding="utf-8")
    if named:
        text = Text(tokenizer=str(path), special=special, max_length=None)
        text.finish()
    whole = Pipeline({"text": text}, {})
    for made in (MaskedLM(column="text", length=512), NextSentence(column="text", length=512)):
        made.bind(whole, None)
        encoded, _ = whole.encode(pl.DataFrame({"text": SENTENCES}), targets=False)
        with StoreWriter(tmp_path / made.type, whole.spec) as writer:
            writer.append(encoded)
        name, length, overlap, trim = made.window()
        windows = Windows(Store(tmp_path / made.type), name, length, overlap, trim)
        batch = Loader(windows, whole.spec, batch_size=8, collate=[made.collate]).load(np.arange(8), (0, 0))
        pairs = made.type == "next_sentence"
        for row in ragged(batch).unbind():
            assert row.tolist().count(text.cls_id or -1) == 1
            assert row.tolist().count(text.sep_id or -1) == 1 + pairs
            assert row[0] == text.cls_id
            assert row[-1] == text.sep_id


def run(folder: Path, *learnt: Any, seed: int = 3) -> Loader:
    whole = pipeline(causal=False)
    spec = Spec({name: one for name, one in whole.spec.fields.items() if one.role == "input"})
    encoded, _ = whole.encode(pl.DataFrame({"text": SENTENCES * 4}), targets=False)
    with StoreWriter(folder, spec) as writer:
        writer.append(encoded)
    name, length, overlap, trim = learnt[0].window()
    return Loader(
        Windows(Store(folder), name, length, overlap, trim),
        spec,
        batch_size=4,
        seed=seed,
        collate=[one.collate for one in learnt],
    )


def test_what_is_hidden_is_drawn_anew_each_epoch_and_is_a_function_of_epoch_and_batch(tmp_path: Path) -> None:
    masked, pairs = MaskedLM(column="text", length=64), NextSentence(column="text", length=64)
    for one in (masked, pairs):
        one.bind(pipeline(causal=False), 64)
    loader = run(tmp_path, pairs, masked)
    rows = np.arange(8)

    def batch(where: tuple[int, int]) -> list[list[int]]:
        found = loader.load(rows, where)
        return [
            ragged(found).values.tolist(),
            *(tensor(found, f"text.{key}").tolist() for key in ("read", "labels", "segments")),
        ]

    assert batch((1, 2)) == batch((1, 2))
    assert batch((1, 2)) != batch((2, 2))
    assert batch((1, 2)) != batch((1, 3))
    # The batches after a restart are those that would have come.
    whole = [ragged(one).values.tolist() for one in loader.batches(1)]
    assert [ragged(one).values.tolist() for one in loader.batches(1, start=3)] == whole[3:]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"masked": 0.8, "random": 0.3},
            r"masked 0.8 and random 0.3 are shares of the chosen tokens, and add up to more than 1",
        ),
        (
            {"length": 80},
            r"length is 80, and the model takes 64 positions; lower it, or raise model.max_positions",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        MaskedLM(column="text", **options).bind(pipeline(causal=False), 64)


# --- next_sentence ------------------------------------------------------------------------------------------


def numbered(rows: int, length: int = 20) -> tuple[Ragged, NextSentence, Batch]:
    """Texts whose tokens tell where they are from: row i begins with a token that only it has and rises from there."""
    ids = Ragged.from_rows([torch.arange(length) + 1000 * (i + 1) for i in range(rows)])
    made = NextSentence(column="text", length=64)
    made.bind(pipeline(causal=False), 64)
    made._ends = torch.zeros(1000 * (rows + 2), dtype=torch.bool)
    return ids, made, {"text.ids": ids}


def halves(made: NextSentence, batch: Batch) -> list[tuple[list[int], list[int]]]:
    result = []
    segments = tensor(batch, "text.segments")
    for row, own in zip(ragged(batch).unbind(), ragged(batch).like(segments).unbind(), strict=True):
        tokens = row.tolist()
        assert (tokens[0], tokens[-1]) == (made.text.cls_id, made.text.sep_id)
        middle = tokens.index(made.text.sep_id or -1)
        # As BERT numbers them: the first text with both its tokens, then the second with its own.
        assert own.tolist() == [0] * (middle + 1) + [1] * (len(tokens) - middle - 1)
        result.append((tokens[1:middle], tokens[middle + 1 : -1]))
    return result


def test_half_of_the_pairs_come_from_elsewhere() -> None:
    false = total = 0
    for seed in range(40):
        _, made, batch = numbered(16)
        batch = made.collate(batch, torch.Generator().manual_seed(seed))
        labels = tensor(batch, "next_sentence.index").tolist()
        for i, ((first, second), label) in enumerate(zip(halves(made, batch), labels, strict=True)):
            assert first == list(range(1000 * (i + 1), 1000 * (i + 1) + len(first)))
            assert second
            assert (second[0] == first[-1] + 1) == (not label)
            assert (second[0] // 1000 == i + 1) == (not label)
            assert 5 <= len(first) < 15  # cut in its middle half
        false, total = false + sum(labels), total + len(labels)
    assert false / total == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / total))


@pytest.mark.parametrize("rows", [2, 3])
def test_half_of_the_pairs_come_from_elsewhere_in_small_batches_too(rows: int) -> None:
    labels = []
    for seed in range(400):
        _, made, batch = numbered(rows)
        labels += tensor(
            made.collate(batch, torch.Generator().manual_seed(seed)), "next_sentence.index"
        ).tolist()
    assert sum(labels) / len(labels) == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / len(labels)))


def test_a_row_alone_has_nobody_to_exchange_with() -> None:
    for seed in range(8):
        _, made, batch = numbered(1)
        assert tensor(
            made.collate(batch, torch.Generator().manual_seed(seed)), "next_sentence.index"
        ).tolist() == [0]


def test_order() -> None:
    false = total = 0
    for seed in range(30):
        ids, made, batch = numbered(12)
        made = made.model_copy(update={"pairs": "order"})
        batch = made.collate(batch, torch.Generator().manual_seed(seed))
        labels = tensor(batch, "next_sentence.index").tolist()
        for (first, second), label, row in zip(halves(made, batch), labels, ids.unbind(), strict=True):
            assert ([*second, *first] if label else [*first, *second]) == row.tolist()
        false, total = false + sum(labels), total + len(labels)
    assert false / total == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / total))


def test_a_text_is_cut_where_a_sentence_ends() -> None:
    _, made, batch = numbered(4)
    assert made._ends is not None
    made._ends[torch.tensor([1008, 2012, 3009, 3010])] = True
    pairs = halves(made, made.collate(batch, torch.Generator().manual_seed(0)))
    assert [first[-1] for first, _ in pairs[:2]] == [1008, 2012]
    assert pairs[2][0][-1] in (3009, 3010)


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 61), min_size=1, max_size=8),
    st.sampled_from(["next", "order"]),
    st.integers(0, 99),
)
def test_no_pair_is_longer_than_its_length(lengths: list[int], pairs: Any, seed: int) -> None:
    made = NextSentence(column="text", length=64, pairs=pairs)
    made.bind(pipeline(causal=False), 64)
    batch = made.collate({"text.ids": ordinary(lengths, seed)}, torch.Generator().manual_seed(seed))
    assert int(ragged(batch).lengths.max()) <= 64
    assert len(tensor(batch, "text.segments")) == len(ragged(batch).values)
    assert len(tensor(batch, "next_sentence.index")) == len(lengths)


def test_pairs_are_made_before_tokens_are_hidden() -> None:
    learnt, spec = objectives(256, {"type": "masked_lm"}, {"type": "next_sentence"}, causal=False)
    assert [one.type for one in learnt] == ["next_sentence", "masked_lm"]
    batch = batch_of(spec, learnt, causal=False)
    made = learnt[0]
    assert isinstance(made, NextSentence)
    for row in ragged(batch).unbind():
        assert (row == made.text.sep_id).sum() == 2
    assert not set(tensor(batch, "text.labels").tolist()) & made.text.special_ids


# --- what is measured ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_a_model_that_knows_nothing_has_the_vocabulary_for_its_perplexity(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family("gpt2" if causal else "bert")
    (made,), spec = objectives(256, {"type": "causal_lm" if causal else "masked_lm"}, causal=causal)
    whole = pipeline(causal)
    module = model.build(spec).eval()
    size = text_of(causal).trained.get_vocab_size()
    zeros = torch.zeros(size, 4)
    monkeypatch.setattr(
        "luban.models._core.Vocabulary.forward", lambda self, states: Projection(states[:, :4], zeros)
    )
    speaker = Speaker(module, whole, spec, torch.device("cpu"))
    ids = text_of(causal).encode_texts(SENTENCES)["ids"]
    scores = speaker.score(ids, SENTENCES)  # type: ignore[arg-type]
    for score, text in zip(scores, SENTENCES, strict=True):
        assert score.loss == pytest.approx(score.tokens * math.log(size), rel=1e-6)
        first = (
            text_of(causal).trained.encode(text, add_special_tokens=False).tokens[0]
        )  # bytes of UTF-8, one a sign
        assert score.bytes == len(text.encode()) - (len(first) if causal else 0)
    if causal:
        assert [score.tokens for score in scores] == [int(n) - 1 for n in np.diff(ids.offsets)]  # type: ignore[union-attr]

    from luban.evaluation.language import LanguageCollector

    collector = LanguageCollector(causal)
    collector.update(scores)
    metrics = collector.compute(count=50).metrics
    tokens, length = sum(s.tokens for s in scores), sum(s.bytes for s in scores)
    assert metrics["perplexity"].value == pytest.approx(size, rel=1e-5)
    if causal:
        assert metrics["bits_per_byte"].value == pytest.approx(math.log2(size) * tokens / length, rel=1e-5)
    assert made.describe({"text.loss": math.log(size)}) == {"text.perplexity": pytest.approx(size)}


def test_the_facts_are_those_of_the_sentences() -> None:
    assert FACTS["label"].field == Field(
        "label", "category", "target", "int64", size=3, output="logits", width=3
    )
    assert Section("objectives").parse("causal_lm").type == "causal_lm"
