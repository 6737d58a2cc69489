"""Counterfactuals: the smallest change of a row that makes the model decide otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field as Option

from luban.data.contracts import Encoded
from luban.data.processors._base import as_numbers, as_words
from luban.data.processors._deciding import threshold_of
from luban.errors import InputError, did_you_mean
from luban.explaining._alternatives import Alternatives, hashable
from luban.explaining._base import Explainer, Explanation, Part, Piece
from luban.explaining._case import Case, require_rows
from luban.explaining._rows import outputs_of, shown
from luban.explaining._text import _WORD, moved, strings
from luban.registry import register
from luban.sentences import say

__all__ = ["Counterfactual"]

Floats = npt.NDArray[np.float64]
Place: TypeAlias = tuple[str, int]
"""What may change: a column and -1, or a column and the number of a word in its text."""
State: TypeAlias = dict[Place, Any]
"""What was changed → what stands there instead; of a word, an empty string where it was left out."""

_STEPS = (0.25, 0.5, 1.0, 2.0, 3.0)  # deviations that a number is moved by
_POSITIONS = 200  # words of a text that are tried
_SPOTS = 3  # words that others are put in place of, in each round
_TABLE = ("number", "category", "binary", "date", "set")


@register("explainers")
class Counterfactual(Explainer):
    """The fewest changes after which the model decides otherwise: cells of a table, words of a text.

    In each round every single change is tried, and the one that flips the decision at the smallest distance is taken, or
    else the one that brings it closest. Numbers move by parts of their deviation, within what the data hold; other cells
    take values that the data hold; words of a text are left out, or, where that is not enough, replaced by words that are
    typical of rows decided otherwise. In the end changes that are not needed are taken back, and numbers moved no further
    than to the boundary. Where a class is asked for that is not predicted, what must change to get it is looked for.

    Example:
        >>> Counterfactual(keep=["age"], changes=3).values
        20
    """

    paper: ClassVar = say(
        "Wachter, Mittelstadt and Russell, 2017; for texts Ebrahimi et al., 2018 (HotFlip) and Jin et al., 2020 (deletion first)"
    )
    limits: ClassVar = say(
        "the search is greedy, so a smaller change may exist, and the changed row may be an unlikely one; it tells what would move the model, "
        "not what would move the world, nor whether a person could change it"
    )
    scope: ClassVar[Literal["row", "set"]] = "row"
    attributes: ClassVar = False

    keep: list[str] = []
    """Columns that may not change."""
    changes: Annotated[int, Option(ge=1)] = 5
    """Changes at most."""
    values: Annotated[int, Option(ge=1)] = 20
    """Values that are tried for a cell that is no number, the most frequent ones."""
    words: Annotated[int, Option(ge=0)] = 30
    """Words that are tried in the place of another; 0 only leaves words out."""

    def refusal(self, case: Case) -> str | None:
        """It needs a decision, and something to change."""
        if not case.target:
            return say("it needs a target that is a column")
        if not case.classes:
            return say("it needs a decision between classes, and this target is a number")
        return None if self._free(case) else say("it changes cells and words, not pictures or vectors")

    def explain(self, case: Case) -> list[Explanation]:
        """Search for each row.

        Raises:
            InputError: if a column that is to be kept does not exist.
        """
        require_rows(case)
        for column in self.keep:
            if column not in case.inputs:
                raise InputError(
                    say(
                        "received column '{column}' to keep, but columns are {columns}{hint}",
                        column=column,
                        columns=[*case.inputs],
                        hint=did_you_mean(column, case.inputs),
                    )
                )
        free = [column for column in self._free(case) if column not in self.keep]
        if not free:
            raise InputError(say("all columns are kept, so nothing can change; keep fewer"))
        tried = Alternatives(case, free, self.values, self.words)
        scores = [float(one) for one in case.scores_of(case.frame)]
        parts: list[dict[str, Part]] = []
        found: list[_Result] = []
        for i in range(len(case)):
            search = _Search(case, tried, i, self.changes)
            found.append(search.run())
            parts.append(search.parts(found[-1].state))
        result = case.explanations(self.type, scores, parts)
        for i, one in enumerate(result):
            self._tell(one, found[i], _Search(case, tried, i, self.changes))
        return result

    def _tell(self, one: Explanation, result: _Result, search: _Search) -> None:
        one.quality["tried"] = float(result.tried)
        if not result.flipped:
            one.notes.append(
                say("no counterfactual within {n} changes of the columns that may change", n=self.changes)
                if self.changes > 1
                else say("no counterfactual within 1 change of the columns that may change")
            )
            one.parts = {}
            return
        one.quality |= {"changes": float(len(result.state)), "distance": search.distance(result.state)}
        one.tables["changes"] = search.lines(result.state)
        outcome = search.outcome(result.outputs)
        one.tables["outcome"] = [outcome]
        one.notes.append(
            say(
                "{changes}: then it is '{to}' ({probability:.0%}) instead of '{before}'",
                changes=[_said(line) for line in one.tables["changes"] if "to" in line],
                to=outcome["to"],
                probability=outcome["probability"],
                before=outcome["from"],
            )
        )

    @staticmethod
    def _free(case: Case) -> list[str]:
        """Return the columns that can change: tables and texts, that a row brings itself."""
        kinds = case.predictor.pipeline.given
        return [
            column
            for column, form in case.forms.items()
            if column in kinds and (kinds[column].type in _TABLE or form == "tokens")
        ]


@dataclass
class _Result:
    """What a search came to.

    Attributes:
        state: the changes.
        flipped: whether they flip the decision.
        outputs: what the model then puts out, (width,).
        tried: rows that the model was asked about.
    """

    state: State
    flipped: bool
    outputs: Floats
    tried: int


@dataclass
class _Search:
    """The search for one row.

    Attributes:
        case: the model.
        options: what is tried.
        row: the row's place.
        limit: changes at most.
        tried: rows that the model was asked about so far.
    """

    case: Case
    options: Alternatives
    row: int
    limit: int
    tried: int = 0
    _spans: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    # --- what is wanted ----------------------------------------------------------------------------------

    @cached_property
    def before(self) -> int:
        """What is decided now: a class; of a set, whether the word that is explained is in it."""
        return int(self._decide(self.case.own_outputs[self.row][None])[0])

    @property
    def chosen(self) -> int:
        """The class that was asked about."""
        return int(self.case.chosen[self.row])

    @property
    def goal(self) -> int | None:
        """The class that is wanted; None if any other will do."""
        if self.case.processor.task == "multilabel":
            return 1 - self.before
        return self.chosen if self.chosen != self.before else None

    def _decide(self, outputs: Floats) -> npt.NDArray[np.int64]:
        if self.case.processor.task == "multilabel":
            shares = self.case.shares_of(outputs)[:, self.chosen]
            return (shares >= threshold_of(self.case.processor)).astype(np.int64)
        return self.case.said(outputs)

    def flipped(self, outputs: Floats) -> npt.NDArray[np.bool_]:
        """Return for which outputs, (n, width), the decision is as wanted, (n,)."""
        now = self._decide(outputs)
        result: npt.NDArray[np.bool_] = now != self.before if self.goal is None else now == self.goal
        return result

    def margin(self, outputs: Floats) -> Floats:
        """Return how far outputs are from the decision that is wanted, in logits; about zero at the boundary, (n,)."""
        if self.case.processor.task != "multiclass":
            threshold = threshold_of(self.case.processor)
            place = 0 if self.case.processor.task == "binary" else self.chosen
            distance: Floats = outputs[:, place] - math.log(threshold / (1 - threshold))
            return distance if self.before else -distance
        rest = np.arange(outputs.shape[1])
        if self.goal is None:
            result: Floats = outputs[:, self.before] - outputs[:, rest != self.before].max(1)
            return result
        nearer: Floats = outputs[:, rest != self.goal].max(1) - outputs[:, self.goal]
        return nearer

    # --- the search --------------------------------------------------------------------------------------

    def run(self) -> _Result:
        """Search, and take back what is not needed."""
        state: State = {}
        outputs = self.case.own_outputs[self.row]
        while len(state) < self.limit:
            step = self._round(state, float(self.margin(outputs[None])[0]))
            if step is None:
                break
            state, outputs, done = step
            if done:
                state, outputs = self._smaller(state, outputs)
                return _Result(state, True, outputs, self.tried)
        return _Result({}, False, outputs, self.tried)

    def _round(self, state: State, margin: float) -> tuple[State, Floats, bool] | None:
        """Return the best single change on top of others, and whether it flips; None if nothing brings it closer."""
        single = [state | {place: to} for place, to in self._cells(state)]
        single += [state | {place: ""} for place in self._words(state)]
        if not single:
            return None
        outputs = self.ask(single)
        flipped = self.flipped(outputs)
        if not flipped.any() and (more := self._replaced(state, single, outputs)):
            single, outputs = single + more, np.concatenate([outputs, self.ask(more)])
            flipped = self.flipped(outputs)
        margins = self.margin(outputs)
        if flipped.any():
            best = min(np.flatnonzero(flipped).tolist(), key=lambda i: (self.distance(single[i]), margins[i]))
            return single[best], outputs[best], True
        best = int(margins.argmin())
        return (single[best], outputs[best], False) if margins[best] < margin else None

    def _cells(self, state: State) -> Iterable[tuple[Place, Any]]:
        """Yield cells that have not changed, each with every value that is tried."""
        for column, (spread, low, high, whole) in self.options.scale.items():
            if (column, -1) in state:
                continue
            own = self.cell(column)
            start = (low + high) / 2 if own is None else own
            moved_to = [start + sign * step * spread for step in _STEPS for sign in (-1, 1)]
            values = [min(max(value, low), high) for value in moved_to] + [low, high]
            values = [float(round(value)) if whole else value for value in values]
            yield from (((column, -1), value) for value in dict.fromkeys(values) if value != own)
        for column, values in self.options.choices.items():
            if (column, -1) not in state:
                own = hashable(self.cell(column))
                yield from (((column, -1), value) for value in values if value != own)

    def _words(self, state: State) -> list[Place]:
        """Return the words that have not changed."""
        return [
            (column, i)
            for column in self.options.texts
            for i in range(min(_POSITIONS, len(self.spans(column))))
            if (column, i) not in state
        ]

    def _replaced(self, state: State, single: Sequence[State], outputs: Floats) -> list[State]:
        """Return further changes: where leaving out a word helps most, other words in its place."""
        order = np.argsort(self.margin(outputs), kind="stable")
        fresh = (next((p for p in single[i] if p not in state and p[1] >= 0), None) for i in order.tolist())
        places = [place for place in fresh if place is not None][:_SPOTS]
        if not places:
            return []
        now = self.options.decisions
        wanted = now != self.before if self.goal is None else now == self.goal
        if self.case.processor.task == "multilabel":
            wanted = self.flipped(self.case.outputs_of(self.options.reference))
        return [state | {place: word} for place in places for word in self.options.typical(place[0], wanted)]

    def _smaller(self, state: State, outputs: Floats) -> tuple[State, Floats]:
        """Take back what is not needed, the largest change first; then move numbers no further than to the boundary."""
        for place in sorted(state, key=lambda one: -self.distance({one: state[one]})):
            rest = {other: to for other, to in state.items() if other != place}
            if rest and self.flipped(found := self.ask([rest]))[0]:
                state, outputs = rest, found[0]
        for place in [one for one in state if one[0] in self.options.scale]:
            own, whole = self.cell(place[0]), self.options.scale[place[0]][3]
            if own is None:
                continue
            low, high = own, state[place]  # `low` does not flip, `high` does
            for _ in range(2):
                steps = np.linspace(low, high, 17)[1:].tolist()
                steps = list(dict.fromkeys(float(round(one)) if whole else one for one in steps))
                steps = [one for one in steps if one != own]
                found = self.ask([state | {place: one} for one in steps])
                first = int(self.flipped(found).argmax())
                if not self.flipped(found)[first]:
                    break
                state, outputs = state | {place: steps[first]}, found[first]
                low, high = steps[first - 1] if first else low, steps[first]
        return state, outputs

    def ask(self, states: Sequence[State]) -> Floats:
        """Return what is decided by, (n, width), of the row with each of some sets of changes, as a prediction has it."""
        self.tried += len(states)
        pool: Encoded = {}
        choice = {}
        same = np.full(len(states), self.row)
        rows = {column: self.case.frame[column][same] for column in self.case.needs}
        for column in self.case.inputs:
            own = self.case.frame[column][self.row : self.row + 1]
            if not any(place[0] == column for state in states for place in state):
                choice[column] = np.zeros(len(states), dtype=np.int64)
                values = own
            else:
                cells = [self._changed(column, state) for state in states]
                known = {hashable(cell): i for i, cell in reversed(list(enumerate(cells)))}
                distinct = list(known)
                where = {cell: i for i, cell in enumerate(distinct)}
                choice[column] = np.asarray([where[hashable(cell)] for cell in cells], dtype=np.int64)
                values = _series(own, distinct)
            encoded = self.case.predictor.pipeline.inputs[column].encode(values)
            pool |= {f"{column}.{short}": value for short, value in encoded.items()}
            if column in rows:  # whose change also changes what is decided by
                rows[column] = values[choice[column]]
        return self.case.decided(outputs_of(self.case, pool, choice), pl.DataFrame(rows))

    # --- cells and words ---------------------------------------------------------------------------------

    def cell(self, column: str) -> Any:
        """Return what stands in a cell now: a number, a word, or as it is."""
        values = self.case.frame[column][self.row : self.row + 1]
        kind = self.case.predictor.pipeline.inputs[column].type
        if kind == "number":
            return as_numbers(values)[0]
        if kind in ("category", "binary"):
            return as_words(values)[0]
        return strings(values)[0] if column in self.options.texts else values.to_list()[0]

    def spans(self, column: str) -> list[tuple[int, int]]:
        """Return where the words of a text lie."""
        if column not in self._spans:
            self._spans[column] = [match.span() for match in _WORD.finditer(self.cell(column))]
        return self._spans[column]

    def _changed(self, column: str, state: Mapping[Place, Any]) -> Any:
        if column not in self.options.texts:
            return state.get((column, -1), self.cell(column))
        words = {place[1]: to for place, to in state.items() if place[0] == column}
        return rewritten(self.cell(column), self.spans(column), words)

    # --- what is told ------------------------------------------------------------------------------------

    def distance(self, state: State) -> float:
        """Return how far a row is moved: numbers in deviations, any other cell and any word 1."""
        total = 0.0
        for (column, _), to in state.items():
            own = self.cell(column) if column in self.options.scale else None
            total += 1.0 if own is None else abs(to - own) / self.options.scale[column][0]
        return total

    def lines(self, state: State) -> list[dict[str, Any]]:
        """Return one line a change."""
        result: list[dict[str, Any]] = []
        for (column, word), to in state.items():
            line: dict[str, Any] = {"column": column, "distance": self.distance({(column, word): to})}
            if word < 0:
                line |= {"from": shown(self.cell(column)), "to": shown(_listed(to))}
            else:
                start, end = self.spans(column)[word]
                line |= {"from": self.cell(column)[start:end], "to": to, "start": start, "end": end}
            result.append(line)
        result += [
            {"column": column, "distance": 0.0, "text": self._changed(column, state)}
            for column in self.options.texts
            if any(place[0] == column for place in state)
        ]
        return result

    def outcome(self, outputs: Floats) -> dict[str, Any]:
        """Return what was decided before, and what is now."""
        now = int(self._decide(outputs[None])[0])
        names, share = self.case.classes, self.case.shares_of(outputs[None])[0]
        if self.case.processor.task == "multilabel":
            name = names[self.chosen]
            states = (say("without '{word}'", word=name), say("with '{word}'", word=name))
            return {
                "from": states[self.before],
                "to": states[now],
                "probability": share[self.chosen] if now else 1 - share[self.chosen],
            }
        return {"from": names[self.before], "to": names[now], "probability": share[now]}

    def parts(self, state: State) -> dict[str, Part]:
        """Return what changed, as parts: of a text 1 for each word that did, of a number how many deviations it moved."""
        result: dict[str, Part] = {}
        for column in dict.fromkeys(place[0] for place in state):
            if column not in self.options.texts:
                to, own = state[column, -1], self.cell(column)
                size = self.distance({(column, -1): to})
                down = column in self.options.scale and own is not None and to < own
                result[column] = Part(column, "value", np.asarray(-size if down else size), shown=shown(own))
                continue
            spans, cleaned = self.spans(column), self.cell(column)
            given = strings(self.case.given[column][self.row : self.row + 1])[0]
            places = moved(spans, cleaned, given)
            text, spots = (given, places) if places is not None else (cleaned, spans)
            result[column] = Part(
                column,
                "tokens",
                np.asarray([float((column, i) in state) for i in range(len(spans))]),
                [Piece(text[a:b], a, b) for a, b in spots],
                shown=text,
                of_original=places is not None,
            )
        return result


def _said(line: Mapping[str, Any]) -> str:
    """Return a change in words."""
    if "start" in line:
        if not line["to"]:
            return say("'{word}' is left out", word=line["from"])
        return say("'{word}' is replaced by '{other}'", word=line["from"], other=line["to"])
    before, after = (
        f"{v:.6g}" if isinstance(v, float) else "–" if v is None else str(v)
        for v in (line["from"], line["to"])
    )
    return f"{line['column']} {before} → {after}"


def rewritten(text: str, spans: Sequence[tuple[int, int]], words: Mapping[int, str]) -> str:
    """Return a text with some of its words replaced; where one is left out, the blank before or behind it goes too.

    Example:
        >>> rewritten("not a good film", [(0, 3), (4, 5), (6, 10), (11, 15)], {0: "", 2: "bad"})
        'a bad film'
    """
    result: list[str] = []
    done = 0
    for i, (start, end) in enumerate(spans):
        if i not in words:
            continue
        before = text[done:start]
        if not words[i]:
            if before.endswith(" ") or (not before and result and result[-1].endswith(" ")):
                before = before[:-1]
            elif not "".join(chain(result, before)).strip() and text[end : end + 1] == " ":
                end += 1
        result += [before, words[i]]
        done = end
    return "".join([*result, text[done:]])


def _series(like: pl.Series, values: list[Any]) -> pl.Series:
    values = [_listed(value) for value in values]
    try:
        return pl.Series(like.name, values, dtype=like.dtype)
    except (TypeError, ValueError, pl.exceptions.PolarsError):  # numbers in the place of a file's words
        return pl.Series(like.name, values, strict=False)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
