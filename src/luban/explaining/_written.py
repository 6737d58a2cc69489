"""Texts that a model writes: which tokens of the prompt, or of the text that was read, led to which token.

Each token that was written is a row of a case of its own, whose input is the prompt and what was written before.

::

    prompt a b c, written x y        row 0   a b c        score log p(x)
                                     row 1   a b c x      score log p(y)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from luban.data.batch import Batch
from luban.data.contracts import Encoded, Flat
from luban.data.processors.chat import Chat
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.data.store import take_rows
from luban.errors import DataError
from luban.explaining._base import Explainer, Explanation, Piece
from luban.explaining._quality import measure
from luban.explaining._text import Pieces, pieces_of, strings
from luban.explaining._tokens import TokenCase, flat, together
from luban.generation.engine import generate
from luban.generation.options import Generation
from luban.predict import Predictor
from luban.sentences import say

__all__ = ["WrittenCase", "explain_written", "writes", "written_case"]

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def writes(predictor: Predictor) -> bool:
    """Whether a model writes texts: continues them, or writes a target."""
    speaker = predictor.speaker
    return predictor.writer is not None or (speaker is not None and speaker.causal)


@dataclass
class WrittenCase(TokenCase):
    """The tokens that were written for one row, each as a row.

    Attributes:
        prompt: tokens that a language model continues; of one that reads one text and writes another, none.
        written: tokens that were written, all of them.
        first: the token that the first row of the case is about.
        source: the row that was read, encoded; None for a language model.
    """

    writes: ClassVar[bool] = True

    prompt: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    first: int = 0
    source: Encoded | None = None

    @cached_property
    def encoded(self) -> Encoded:
        """The rows' inputs as arrays, and the tokens whose probability is asked for."""
        steps = range(self.first, self.first + len(self.chosen))
        if self.source is None:
            rows = [[*self.prompt, *self.written[:step]] for step in steps]
            return {f"{self.target}.ids": flat(rows)}
        targets = flat([self.written[: step + 1] for step in steps])
        return {**take_rows(self.source, np.zeros(len(steps), dtype=np.int64)), self._field: targets}

    @property
    def _field(self) -> str:
        writer = self.predictor.writer
        assert writer is not None
        return str(writer.encoder.target)

    @property
    def text(self) -> Text:
        """The processor of what is written."""
        if self.predictor.writer is not None:
            return self.predictor.writer.text
        assert self.predictor.speaker is not None
        return self.predictor.speaker.text

    def place(self, length: int) -> int:
        """Return the last place: what comes next is read off there."""
        return length - 1

    def part(self, start: int, stop: int) -> Self:
        """Return a case of some of the rows."""
        part = super().part(start, stop)
        part.first = self.first + start
        return part

    def score(self, batch: Batch, chosen: npt.NDArray[np.int64] | Tensor | None = None) -> Tensor:
        """Return the log-probability of the token that each row is about, (B,)."""
        chosen = self.chosen if chosen is None else chosen
        labels = torch.as_tensor(chosen, device=self.predictor.device)
        if self.source is not None:
            target = batch[self._field]
            assert isinstance(target, Ragged)
            losses = self.predictor.model(batch)[f"{self.target}.tokens"].losses(target.values)
            return -target.like(losses).last()
        name = f"{self.target}.ids"
        ids = batch[name]
        assert isinstance(ids, Ragged)
        if bool(
            (ids.lengths == 0).any()
        ):  # nothing is left of the prompt: what begins or ends a text stands for it
            edge = next(i for i in (self.text.begin_id, self.text.end_id, 0) if i is not None)
            rows = [row if len(row) else row.new_tensor([edge]) for row in ids.unbind()]
            ids = Ragged.from_rows(rows).to(ids.values.device)
        batch = {**batch, name: ids, f"{self.target}.read": ids.offsets[1:] - 1}
        return -self.predictor.model(batch)[f"{self.target}.tokens"].losses(labels)  # type: ignore[no-any-return]

    def pieces(self, column: str) -> list[Pieces]:
        """Return the tokens of the prompt, and of what was written before each token, as pieces."""
        if self.source is not None:
            own = self._of_source(column)
            return [own] * len(self)
        whole = self.whole
        result = []
        for step in range(self.first, self.first + len(self)):
            count = len(self.prompt) + step
            groups = whole.groups[:count]
            kept = int(groups.max()) + 1 if count else 0
            result.append(
                Pieces(whole.pieces[:kept], groups, whole.special[:kept], whole.shown, whole.of_original)
            )
        return result

    def _of_source(self, column: str) -> Pieces:
        text = self.predictor.pipeline.inputs[column]
        assert isinstance(text, Text)
        assert self.source is not None
        ids = self.source[f"{column}.ids"]
        assert isinstance(ids, Flat)
        (cleaned,) = strings(self.frame[column][:1])
        (given,) = strings(self.given[column][:1]) if column in self.given.columns else [cleaned]
        return pieces_of(text, ids.values.tolist(), text.places([cleaned])[0], cleaned, given)

    @cached_property
    def whole(self) -> Pieces:
        """The prompt and all that was written, as pieces of one text."""
        text = self.text
        if isinstance(text, Chat):
            shown, places = spelt(text, self.prompt)
            before = pieces_of(text, self.prompt, places, shown, shown)
        else:
            (cleaned,) = strings(self.frame[self.target][:1])
            (given,) = strings(self.given[self.target][:1])
            inner = text.trained.encode(cleaned, add_special_tokens=False).offsets
            places = [(0, 0)] * (len(self.prompt) - len(inner)) + list(inner)
            before = pieces_of(text, self.prompt, places, cleaned, given)
        after, at = self.spelling, len(before.shown)
        moved = [Piece(one.text, one.start + at, one.end + at) for one in after.pieces]
        groups = np.concatenate([before.groups, after.groups + len(before.pieces)])
        special = np.concatenate([before.special, after.special])
        return Pieces(
            before.pieces + moved,
            groups.astype(np.int64),
            special,
            before.shown + after.shown,
            before.of_original,
        )

    @cached_property
    def spelling(self) -> Pieces:
        """What was written, as pieces."""
        shown, places = spelt(self.text, self.written)
        return pieces_of(self.text, self.written, places, shown, shown)


def spelt(text: Text, ids: list[int]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of tokens, and where each lies in it; a token within a character has the place of the whole one."""
    shown = [text.decode_ids(ids[:n], skip_special=False) for n in range(len(ids) + 1)]
    # A text that is cut within a character ends with replacements, which the next token takes back.
    ends = [len(one.rstrip(_UNKNOWN)) for one in shown]
    places = []
    for i in range(len(ids)):
        open_ = shown[i + 1].endswith(_UNKNOWN)
        start = min(ends[i], ends[i + 1])
        places.append((start, min(len(shown[-1]), max(ends[i + 1], ends[i] + 1 if open_ else 0, start))))
    return shown[-1], places


def written_case(
    predictor: Predictor, rows: pl.DataFrame, number: int, max_tokens: int, text: str | None, seed: int
) -> WrittenCase:
    """Write, or take, the text of one row, and return its tokens as a case.

    Raises:
        DataError: if the row cannot be read, or nothing is written.
    """
    cleaned = predictor.clean(rows)
    options = Generation(max_tokens=max_tokens)
    source: Encoded | None = None
    prompt: list[int] = []
    if predictor.writer is not None:
        target, processor = predictor.writer.column, predictor.writer.text
        source, kept = predictor.pipeline.encode(cleaned, targets=False)
        if not kept.all():
            raise DataError(predictor.reasons(rows)[0])
        if text is None:
            written = predictor.writer.write(source, options)[0].ids
        else:
            ids = processor.encode_target(pl.Series([text]))["ids"]
            assert isinstance(ids, Flat)
            written = ids.values.tolist()
    else:
        speaker = predictor.speaker
        assert speaker is not None
        target, processor = speaker.column, speaker.text
        cell = cleaned[target][0]
        prompt = speaker.prompt(cell.to_list() if isinstance(cell, pl.Series) else cell)
        if not prompt:
            raise DataError(say("the text has no token, and a continuation needs one to begin with"))
        if text is None:
            (made,) = generate(
                predictor.model,
                [prompt],
                options,
                end=processor.end_ids,
                decode=processor.decode_ids,
                tokenizer=processor.trained,
            )
            written = made.ids
        else:
            written = processor.trained.encode(text, add_special_tokens=False).ids
    if not written:
        raise DataError(
            say(
                "the model writes nothing here, so there is no token to explain; name a text by --target-text"
            )
        )
    repeated = rows[[0] * len(written)]
    return WrittenCase(
        predictor,
        repeated,
        cleaned[[0] * len(written)],
        [number] * len(written),
        target,
        np.asarray(written, dtype=np.int64),
        seed=seed,
        prompt=prompt,
        written=list(written),
        source=source,
    )


def explain_written(case: WrittenCase, explainer: Explainer, *, quality: bool = False) -> Explanation:
    """Explain all tokens of a written text as one: a matrix for each text that was read, token written × token read.

    Measures of quality are the means over the tokens.
    """
    each = explainer.explain(case)
    if quality:
        measure(case, explainer, each)
    one = together(case, each, case.spelling, case.spelling.shown)
    if case.source is None:
        one.notes.append(say("columns behind the prompt are tokens that were written before"))
    return one
