"""A surrogate: a model that a person can read, fitted to what the model says."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field as Option

from luban.data.contracts import Array
from luban.errors import DataError
from luban.evaluation.metrics import measure
from luban.explaining._base import Explainer, Survey
from luban.explaining._case import Case
from luban.explaining._readable import Feature, Readable, readable_columns
from luban.explaining._rows import outputs_of, sample
from luban.registry import register
from luban.sentences import say

__all__ = ["Surrogate"]

_FEWEST = 20  # rows
_WEIGHTS = 30  # of a linear surrogate that are told, for each class


@register("explainers")
class Surrogate(Explainer):
    """A decision tree or a linear model that imitates the model, and how faithfully it does so on rows that it has not seen.

    It reads what people read: numbers in their unit, words of a category, words of a text (characters, where a text is
    written without blanks). It imitates the predicted class, or the predicted number.

    Example:
        >>> Surrogate(kind="tree", depth=3).held_out
        0.3
    """

    paper: ClassVar = say(
        "Craven and Shavlik, 1996 (trees extracted from networks); Breiman et al., 1984 (CART)"
    )
    limits: ClassVar = say(
        "it explains the model only as far as it agrees with it (see fidelity), and only on rows like these"
    )
    scope: ClassVar[Literal["row", "set"]] = "set"

    kind: Literal["tree", "linear"] = "tree"
    """A tree of rules, or weights (logistic or ridge regression over standardised columns and TF-IDF words)."""
    depth: Annotated[int, Option(ge=1, le=12)] = 4
    """Questions from the root of the tree to a leaf, at most."""
    leaf: Annotated[int, Option(ge=1)] = 5
    """Rows in a leaf, at least."""
    strength: Annotated[float, Option(gt=0)] = 1.0
    """How strongly the weights of a linear surrogate are drawn to zero."""
    text: Literal["auto", "word", "char"] = "auto"
    """What texts are cut into: words, or one and two characters; auto looks at how they are written."""
    vocabulary: Annotated[int, Option(ge=1)] = 1000
    """Words kept of a text, at most."""
    rows: Annotated[int, Option(ge=20)] = 5000
    """Rows that are looked at, at most."""
    held_out: Annotated[float, Option(gt=0, lt=1)] = 0.3
    """Share of the rows that the fidelity is measured on, and that the surrogate is not fitted to."""

    def refusal(self, case: Case) -> str | None:
        """It needs columns that people can read, and a class or a number."""
        if not case.target:
            return say("it needs a target that is a column")
        if case.processor.task == "multilabel":
            return say("it imitates one class or one number a row, and this target is a set")
        return None if readable_columns(case) else say("it needs a table or a text")

    def survey(self, case: Case) -> Survey:
        """Fit the surrogate and measure it.

        Raises:
            DataError: if there are too few rows, or the model says the same of all.
        """
        generator = np.random.default_rng(case.seed)
        case, notes = sample(case, self.rows, generator)
        if len(case) < _FEWEST:
            raise DataError(
                say(
                    "a surrogate is fitted to {least} rows at least, and there are {n}; hand over more",
                    least=_FEWEST,
                    n=len(case),
                )
            )
        said = self._said(case)
        if len(np.unique(said)) < 2:
            raise DataError(say("the model says the same of all these rows, so there is nothing to imitate"))
        order = generator.permutation(len(case))
        held = order[: max(2, round(self.held_out * len(case)))]
        rest = np.sort(order[len(held) :])
        if len(np.unique(said[rest])) < 2:
            raise DataError(
                say(
                    "the model says the same of all {n:,} rows that a surrogate is fitted to, the others being held out; hand over more rows, or change --seed",
                    n=len(rest),
                )
            )
        reader = Readable(
            case, self.text, self.vocabulary, weigh=self.kind == "linear" and self._has_text(case)
        )
        matrix = reader.fit(case.frame[rest])
        model = self._fit(matrix, said[rest], case)
        quality = self._fidelity(case, model, reader.transform(case.frame[held]), said[held])
        quality |= {"rows_fitted": float(len(rest)), "rows_held_out": float(len(held))}
        if case.classes and quality["fidelity"] <= quality["agreement_of_a_constant"]:
            notes.append(
                say(
                    "the surrogate agrees with the model no better than who always says the most frequent class, so it explains nothing"
                )
            )
        left = [column for column in case.inputs if column not in readable_columns(case)]
        if left:
            notes.append(
                say(
                    "what the model sees in {columns} is not imitated: pictures and vectors hold no words",
                    columns=left,
                )
            )
        if self.kind == "tree":
            names = [case.classes[k] for k in model.classes_] if case.classes else []
            tree = _Tree(model.tree_, reader.features, names)
            tables = {"rules": tree.rules(), "nodes": tree.nodes()}
        else:
            tables = {"weights": self._weights(model, reader.features, case)}
        return Survey(self.type, case.target, len(case), tables, quality, notes)

    @staticmethod
    def _has_text(case: Case) -> bool:
        return "tokens" in case.forms.values()

    @staticmethod
    def _said(case: Case) -> Array:
        """Return what is predicted of each row, (n,): the number of a class, or a number."""
        outputs = case.decided(outputs_of(case, case.encoded), case.frame)
        if not case.classes:
            return np.asarray(case.processor.scores(outputs), np.float64)
        return case.said(outputs)

    def _fit(self, matrix: Any, said: Array, case: Case) -> Any:
        if self.kind == "tree":
            from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

            tree = DecisionTreeClassifier if case.classes else DecisionTreeRegressor
            model = tree(max_depth=self.depth, min_samples_leaf=self.leaf, random_state=case.seed % 2**32)
            return model.fit(matrix, said)
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        last = (
            LogisticRegression(C=1 / self.strength, max_iter=1000)
            if case.classes
            else Ridge(alpha=self.strength)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the fidelity says whether it is good enough
            return make_pipeline(StandardScaler(with_mean=False), last).fit(matrix, said)

    def _fidelity(self, case: Case, model: Any, matrix: Any, said: Array) -> dict[str, float]:
        """Return how well the surrogate agrees with the model, and what who always says the same would reach."""
        guess = model.predict(matrix)
        if not case.classes:
            measured = measure("regression", said, guess).metrics
            found = {"fidelity_r2": measured["r2"], "fidelity_mae": measured["mae"]}
            constant = {"mae_of_a_constant": float(np.abs(said - np.median(said)).mean())}
        else:
            hot = np.zeros((len(guess), len(case.classes)))
            hot[np.arange(len(guess)), guess] = 1.0
            measured = measure("multiclass", said, hot, classes=case.classes).metrics
            found = {"fidelity": measured["accuracy"]}
            constant = {"agreement_of_a_constant": float(np.bincount(said).max() / len(said))}
        result: dict[str, float] = {}
        for name, metric in found.items():
            for end, value in (("", metric.value), ("_low", metric.low), ("_high", metric.high)):
                if value is not None:
                    result[name + end] = value
        return result | constant

    @staticmethod
    def _weights(model: Any, features: list[Feature], case: Case) -> list[dict[str, Any]]:
        """Return the largest weights of each class, per deviation of a feature."""
        last = model[-1]
        matrix = np.atleast_2d(last.coef_)  # (classes or 1, features)
        if not case.classes:
            names: list[str | None] = [None]
        elif len(matrix) == 1:
            names = [case.classes[last.classes_[1]]]
        else:
            names = [case.classes[k] for k in last.classes_]
        lines: list[dict[str, Any]] = []
        for name, row in zip(names, matrix, strict=True):
            largest = np.argsort(-np.abs(row), kind="stable")[:_WEIGHTS]
            lines += [
                {
                    "class": name,
                    "feature": features[i].name,
                    "column": features[i].column,
                    "weight": float(row[i]),
                }
                for i in largest.tolist()
                if row[i]
            ]
        return lines


@dataclass
class _Tree:
    """A fitted tree of scikit-learn, told in words.

    Attributes:
        tree: its arrays.
        features: what its columns mean.
        classes: names of those that the model says of some row, in the tree's order; none for a number.
    """

    tree: Any
    features: list[Feature]
    classes: list[str]

    def nodes(self) -> list[dict[str, Any]]:
        """Return one line a node, the root first: for a picture."""
        parents: dict[int, tuple[int, bool]] = {}
        for node in range(self.tree.node_count):
            for child, right in (
                (self.tree.children_left[node], False),
                (self.tree.children_right[node], True),
            ):
                if child >= 0:
                    parents[int(child)] = (node, right)
        lines = []
        for node in range(self.tree.node_count):
            parent = parents.get(node)
            line: dict[str, Any] = {"node": node, "parent": None, "answer": None, "question": None}
            if parent is not None:
                line |= {"parent": parent[0], "answer": say("yes") if parent[1] else say("no")}
            if self.tree.children_left[node] >= 0:
                feature = self.features[self.tree.feature[node]]
                line |= {
                    "question": _condition(feature, float(self.tree.threshold[node]), True),
                    "column": feature.column,
                }
            lines.append(line | self._leaf(node))
        return lines

    def rules(self) -> list[dict[str, Any]]:
        """Return one line a leaf, in order of the rows it holds: ``if`` ... ``then`` ..."""
        lines = []
        for leaf, path in self._paths(0, ()):
            lower: dict[int, float] = {}
            upper: dict[int, float] = {}
            for feature, threshold, above in path:  # the last question about a feature is the narrowest
                (lower if above else upper)[feature] = threshold
            words: list[str] = []
            for feature in dict.fromkeys(one[0] for one in path):
                own = self.features[feature]
                words += [_condition(own, lower[feature], True)] if feature in lower else []
                words += [_condition(own, upper[feature], False)] if feature in upper else []
            lines.append({"if": _all_of(words)} | self._leaf(leaf))
        return sorted(lines, key=lambda line: -line["rows"])

    def _paths(
        self, node: int, path: tuple[tuple[int, float, bool], ...]
    ) -> list[tuple[int, tuple[tuple[int, float, bool], ...]]]:
        left, right = int(self.tree.children_left[node]), int(self.tree.children_right[node])
        if left < 0:
            return [(node, path)]
        feature, threshold = int(self.tree.feature[node]), float(self.tree.threshold[node])
        return [
            *self._paths(left, (*path, (feature, threshold, False))),
            *self._paths(right, (*path, (feature, threshold, True))),
        ]

    def _leaf(self, node: int) -> dict[str, Any]:
        value: npt.NDArray[np.float64] = self.tree.value[node][0]
        rows = int(self.tree.n_node_samples[node])
        if not self.classes:
            return {
                "then": float(value[0]),
                "deviation": math.sqrt(max(0.0, float(self.tree.impurity[node]))),
                "rows": rows,
            }
        best = int(value.argmax())
        return {"then": self.classes[best], "share": float(value[best] / value.sum()), "rows": rows}


def _all_of(conditions: Sequence[str]) -> str:
    """Return conditions as one sentence.

    Example:
        >>> _all_of(["age > 39.5", "city is Rome"]), _all_of([])
        ('age > 39.5 and city is Rome', 'always')
    """
    if not conditions:
        return say("always")
    return reduce(lambda one, other: say("{one} and {other}", one=one, other=other), conditions)


def _condition(feature: Feature, threshold: float, above: bool) -> str:
    """Return a condition in words.

    Example:
        >>> _condition(Feature("age", "number"), 39.5, True), _condition(Feature("city", "is", "Rome"), 0.5, False)
        ('age > 39.5', 'city is not Rome')
    """
    if feature.kind == "number":
        return f"{feature.column} {'>' if above else '≤'} {threshold:.6g}"
    return feature.name if above else feature.opposite
