"""Everything that Luban raises on purpose.

::

    LubanError
    ├── InputError            exit code 2: what the user gave is wrong
    │   ├── RecipeError         the recipe, or an override on the command line
    │   ├── DataError           a data file, a column, a value
    │   ├── ArtefactError       an artefact that is missing, damaged or of another format
    │   └── MissingError        a package or a program that the request needs is not installed
    ├── GateError             exit code 1: the input is fine, but a budget or a gate was not met
    │   ├── ParityError         an artefact does not predict what it predicted when it was made
    │   └── DivergenceError     training reached a loss that is not finite
    └── MachineError          exit code 3: the disk is full, a file cannot be written, a device is lost

A message is one sentence in one line: the value received, the values accepted, what to do next. `at` prefixes the place.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from luban.sentences import say, unbroken

__all__ = [
    "ArtefactError",
    "DataError",
    "DivergenceError",
    "GateError",
    "InputError",
    "LubanError",
    "MachineError",
    "MissingError",
    "ParityError",
    "RecipeError",
    "closest",
    "did_you_mean",
]


class LubanError(Exception):
    """Base of all of Luban's errors; `exit_code` is what the command line returns.

    Args:
        message: one sentence for the user.
        at: where it is, for instance ``recipe.yaml:12`` or ``reviews.csv:40``; put before the message.
    """

    exit_code = 3

    def __init__(self, message: str, *, at: str | None = None) -> None:
        whole = say("{place}: {message}", place=at, message=message) if at else message
        super().__init__(unbroken(whole))
        self.at = at


class InputError(LubanError):
    """What the user gave is wrong."""

    exit_code = 2


class RecipeError(InputError):
    """The recipe, or an override of it, is wrong."""


class DataError(InputError):
    """A data file, a column or a value is wrong."""


class ArtefactError(InputError):
    """An artefact is missing, damaged or of another format."""


class MissingError(InputError):
    """A package or a program that the request needs is not installed."""


class GateError(LubanError):
    """A budget or a gate was not met."""

    exit_code = 1


class ParityError(GateError):
    """An artefact does not predict what it predicted when it was made."""


class DivergenceError(GateError):
    """Training reached a loss or a gradient that is not finite."""


class MachineError(LubanError):
    """The machine failed: a full disk, a file that cannot be written, a lost device."""


def closest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most like another, or an empty string where none is.

    Example:
        >>> closest("hiden", ["hidden", "dropout"])
        'hidden'
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return close[0] if close else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest known word, or an empty string.

    Example:
        >>> did_you_mean("hiden", ["hidden", "dropout"])
        "; did you mean 'hidden'?"
    """
    close = closest(word, known)
    return say("; did you mean '{close}'?", close=close) if close else ""
