"""What a verb tells the person who runs it, apart from its result."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from luban.sentences import say, translate
from luban.training.callbacks._base import Callback
from luban.training.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress as RichProgress

__all__ = ["Console", "Terminal", "duration"]

_MAIN = (
    "accuracy",
    "subset_accuracy",
    "f1_macro",
    "rmse",
    "r2",
    "perplexity",
)  # what a look at the validation rows shows


def duration(seconds: float) -> str:
    """Return a time in short.

    Example:
        >>> duration(0.01), duration(5.2), duration(300), duration(9000)
        ('< 0.1 s', '5.2 s', '5.0 min', '2.5 h')
    """
    if seconds < 0.1:
        return "< 0.1 s"
    # What is shown decides the unit, so that nothing reads 120.0 s or 90.0 min.
    if round(seconds, 1) < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if round(minutes, 1) < 90 else f"{minutes / 60:.1f} h"


class Console:
    """Says nothing; what the Python API uses. `Terminal` speaks.

    Attributes:
        language: ``en`` or ``zh``; what sentences are said in, as far as they have a translation.
    """

    language: str = "en"

    def say(self, sentence: str) -> None:
        """Tell a fact."""

    def stage(self, name: str, rows: int, total: int | None = None) -> None:
        """Tell how far a stage of data preparation is: rows done, and of how many where that is known."""

    def end_stage(self) -> None:
        """Close the line of the present stage."""

    def bar(self) -> Callback | None:
        """Return a callback that shows training, if there is somebody to show it to."""
        return None


class Terminal(Console):
    """Writes to stderr: lines anywhere, and bars where a person watches.

    Args:
        language: ``en`` or ``zh``.
    """

    def __init__(self, language: str = "en") -> None:
        from rich.console import Console as RichConsole

        self.language = language
        self.rich: RichConsole = RichConsole(stderr=True, highlight=False, soft_wrap=True)
        self._stage = ""
        self._shown = self._begun = 0.0

    def say(self, sentence: str) -> None:
        self.end_stage()
        self.rich.print(translate(sentence, self.language), markup=False)

    def stage(self, name: str, rows: int, total: int | None = None) -> None:
        if not self.rich.is_terminal:
            return
        now = time.monotonic()
        if name != self._stage:
            self.end_stage()
            self._begun = now
        elif now - self._shown < 0.1:
            return
        self._stage, self._shown = name, now
        text = say("{stage}: {n:,} rows", stage=name, n=rows) if rows else name
        if total and 0 < rows <= total:
            done = round(10 * rows / total)
            text = say(
                "{stage}  {bar}  {n:,} of {of:,} rows, {left:,.0f} s left",
                stage=name,
                bar="━" * done + "╌" * (10 - done),
                n=rows,
                of=total,
                left=(now - self._begun) / rows * (total - rows),
            )
        sys.stderr.write(f"\r  {translate(text, self.language)}\x1b[K")
        sys.stderr.flush()

    def end_stage(self) -> None:
        if self._stage:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._stage = ""

    def bar(self) -> Callback:
        return _Bar(self)


class _Bar(Callback):
    """A live line with speed, memory and time left; one plain line for each look where nobody watches live."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal: Terminal = terminal
        self._live: RichProgress | None = None
        self._task: Any = None
        self._figures: dict[str, float] = {}
        self._started = 0.0

    def on_start(self, folder: Any, recipe: dict[str, Any]) -> None:
        self._started = time.monotonic()
        if not self._terminal.rich.is_terminal:
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._live = Progress(
            TextColumn("  {task.completed:,}/{task.total:,}"),
            BarColumn(bar_width=10),
            TextColumn("eta"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),  # last: a narrow window cuts here
            console=self._terminal.rich,
            transient=True,
        )
        self._live.start()
        self._task = self._live.add_task("", total=1, figures="")

    def on_step(self, progress: Progress, figures: dict[str, float]) -> None:
        self._figures = figures
        if self._live is None:
            return
        words = [f"loss {figures['loss']:.4f}", f"{figures['rows_per_second']:,.0f} rows/s"]
        if "tokens_per_second" in figures:
            words.append(f"{figures['tokens_per_second']:,.0f} tokens/s")
        if "share_of_peak" in figures:
            words.append(f"{figures['share_of_peak']:.0%} of peak")
        words.append(f"{figures['memory_mb']:,.0f} MB")
        self._live.update(
            self._task, completed=progress.step, total=progress.total_steps, figures="  ".join(words)
        )

    def on_evaluate(self, progress: Progress, figures: dict[str, float]) -> bool:
        shown = [
            f"{name} {value:.4f}"
            for name, value in figures.items()
            if name == "loss" or name.rsplit(".", 1)[-1] in _MAIN
        ]
        best = "  *" if progress.best_step == progress.step else ""
        speed = f"{self._figures['rows_per_second']:,.0f} rows/s" if self._figures else ""
        self._terminal.rich.print(
            f"  update {progress.step:>6,}/{progress.total_steps:,}  train {self._figures.get('loss', float('nan')):.4f}"
            f"  validation {'  '.join(shown)}  {speed}{best}",
            markup=False,
        )
        return False

    def on_end(self, progress: Progress) -> None:
        if self._live is not None:
            self._live.stop()

    def on_error(self, error: BaseException) -> None:
        if self._live is not None:
            self._live.stop()
