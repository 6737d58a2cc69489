"""The energy that the processor took while a run trained, where its counters can be read (RAPL, on Linux)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from luban.training.callbacks._base import Callback
from luban.training.progress import Progress

__all__ = ["Energy"]

_ROOT = Path("/sys/class/powercap")


class Energy(Callback):
    """Adds up the joules of all processor packages, from the start of a run to its end; other processes' work is in them too.

    A counter starts anew every hour or so under load, therefore it is read at each report of training; where it does not say how far
    it counts, nothing is known once it did. What was taken between the last checkpoint of an interrupted run and its interruption is
    not known either.

    Args:
        root: where the counters are.

    """

    def __init__(self, root: Path = _ROOT) -> None:
        super().__init__()
        self._joules: float | None = None
        self._known = True
        self._root: Path = root
        self._last: dict[Path, int] = {}

    @property
    def joules(self) -> float | None:
        """What was taken so far; None where no counter can be read, or one started anew nobody knows where."""
        return self._joules if self._known else None

    def _read(self) -> None:
        # intel-rapl:0 is mostly a package; intel-rapl:0:0, its cores, is part of it, and so may be a zone beside it that is named
        # otherwise: psys, of the whole platform, has the packages in it.
        for zone in sorted(self._root.glob("intel-rapl:*")):
            with suppress(OSError, ValueError):  # counters are often for root alone
                if not (zone / "name").read_text().startswith("package"):
                    continue
                now = int((zone / "energy_uj").read_text())
                before = self._last.get(zone)
                self._last[zone] = now
                if before is not None:
                    gone = now - before if now >= before else now - before + self._range(zone)
                    self._joules = (self._joules or 0.0) + gone / 1e6

    def _range(self, zone: Path) -> int:
        """Return how far a counter counts, which it did; without it the sum would be too small."""
        try:
            return int((zone / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            self._known = False
            return 0

    def on_start(self, folder: Path, recipe: dict[str, Any]) -> None:
        self._last.clear()
        self._read()

    def on_step(self, progress: Progress, figures: dict[str, float]) -> None:
        self._read()

    def on_end(self, progress: Progress) -> None:
        self._read()

    def state(self) -> dict[str, Any]:
        return {"joules": self._joules, "known": self._known}

    def restore(self, state: dict[str, Any]) -> None:
        self._known = bool(state.get("known", True))
        if state.get("joules") is not None:
            self._joules = float(state["joules"]) + (self._joules or 0.0)
