"""Why a part of a report is not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from luban.origin import Unknown

__all__ = ["Absent"]


@dataclass(frozen=True)
class Absent:
    """Why a part of the report is not there: a key of the words ``absent.*``, and what fills its gaps."""

    why: str
    values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, unknown: Unknown) -> Self:
        """Return what is said of rows that are not to be had."""
        gap = {"data_gone": "error", "data_changed": "split"}.get(unknown.why)
        return cls(unknown.why, {gap: unknown.detail} if gap else {})

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"absent": self.why, "values": self.values}
