"""Gates: the yes or no that a run ends with, as sentences in a recipe.

::

    gates:
      - label.accuracy >= 0.85                            # a figure of metrics.json
      - fairness.demographic_parity_difference <= 0.1     # a figure of an audit
      - no high                                           # no finding of any audit as severe as this
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from luban.errors import RecipeError, closest, did_you_mean
from luban.sentences import say

__all__ = ["SEVERITIES", "Gate", "Verdict", "judge"]

SEVERITIES = ("high", "medium", "low", "info")
"""How much a finding matters, the worst first."""

_FORM = re.compile(r"\s*(?P<name>\S.*?)\s*(?P<sign>>=|<=|>|<)\s*(?P<bound>\S+)\s*")
_SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Gate:
    """One condition.

    Attributes:
        text: as the recipe has it.
        name: the figure (``label.accuracy``), or for findings the severity.
        sign: ``>=``, ``<=``, ``>`` or ``<``; ``no`` for findings.
        bound: what the figure is compared with.
    """

    text: str
    name: str
    sign: str
    bound: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a sentence.

        Raises:
            RecipeError: if it is of neither form.

        Example:
            >>> Gate.parse("label.accuracy >= 0.85").bound
            0.85
        """
        words = text.split()
        if len(words) == 2 and words[0] == "no":
            if words[1] not in SEVERITIES[:3]:
                raise RecipeError(
                    f"gate '{text}': '{words[1]}' is no severity; severities are {', '.join(SEVERITIES[:3])}"
                    f"{did_you_mean(words[1], SEVERITIES[:3])}"
                )
            return cls(text, words[1], "no")
        match = _FORM.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            return cls(text, match["name"], match["sign"], float(match["bound"]))
        except ValueError:
            raise RecipeError(
                f"gate '{text}' is neither a figure with a bound, such as 'label.accuracy >= 0.85', nor a severity, such as 'no high'"
            ) from None

    @property
    def audit(self) -> str:
        """What stands before the first dot: perhaps the name of an audit."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Verdict:
    """What came of a gate.

    Attributes:
        gate: the sentence.
        passed: whether it is met; what was not measured is not met.
        value: the figure, or how many findings are that severe.
        why: what to tell a person.
    """

    gate: str
    passed: bool
    value: float | None
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def judge(
    gates: Iterable[Gate], figures: Mapping[str, float | None], severities: Iterable[str] | None
) -> list[Verdict]:
    """Say of each gate whether it is met.

    Args:
        gates: the conditions.
        figures: every figure that was measured, by name.
        severities: of all findings; None where no audit was done, which says nothing of what it would have found.

    Example:
        >>> judge([Gate.parse("a.b <= 0.1")], {"a.b": 0.2}, [])[0].why
        'a.b <= 0.1 is not met: it is 0.2'
    """
    found = list(severities or ())
    verdicts: list[Verdict] = []
    for gate in gates:
        if gate.sign == "no" and severities is None:
            why = say("'{gate}' is not met: no audit was done", gate=gate.text)
            verdicts.append(Verdict(gate.text, False, None, why))
            continue
        if gate.sign == "no":
            bad = sum(found.count(one) for one in SEVERITIES[: SEVERITIES.index(gate.name) + 1])
            why = (
                say("'{gate}' is not met: findings that severe: {n}", gate=gate.text, n=bad)
                if bad
                else say("'{gate}' is met", gate=gate.text)
            )
            verdicts.append(Verdict(gate.text, not bad, float(bad), why))
            continue
        value = figures.get(gate.name)
        if value is None and gate.name in figures:  # no other name is meant
            why = say(
                "{gate} is not met: '{name}' was not measured, since these rows cannot tell it",
                gate=gate.text,
                name=gate.name,
            )
            verdicts.append(Verdict(gate.text, False, None, why))
            continue
        if value is None:
            known = [name for name, one in figures.items() if one is not None]
            close = closest(gate.name, known)
            why = (
                say(
                    "{gate} is not met: '{name}' was not measured; did you mean '{close}'?",
                    gate=gate.text,
                    name=gate.name,
                    close=close,
                )
                if close
                else say(
                    "{gate} is not met: '{name}' was not measured; figures are {known}",
                    gate=gate.text,
                    name=gate.name,
                    known=known[:12],
                )
            )
            verdicts.append(Verdict(gate.text, False, None, why))
            continue
        passed = bool(_SIGNS[gate.sign](value, gate.bound))
        why = (
            say("{gate} is met: it is {value:.4g}", gate=gate.text, value=value)
            if passed
            else say("{gate} is not met: it is {value:.4g}", gate=gate.text, value=value)
        )
        verdicts.append(Verdict(gate.text, passed, value, why))
    return verdicts
