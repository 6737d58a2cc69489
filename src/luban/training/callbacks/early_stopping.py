"""Stop when nothing gets better any more."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field as Option
from pydantic import PrivateAttr

from luban.registry import register
from luban.sentences import say
from luban.training.callbacks._base import Callback
from luban.training.progress import Progress

__all__ = ["EarlyStopping"]


@register("callbacks")
class EarlyStopping(Callback):
    """Ends the run after `patience` looks without a better metric, or once the loss has converged.

    The metric is the recipe's `train.metric`. Converged means that the validation loss moved by less than `converged`, as a
    share of itself, over `patience` looks (Prechelt, 1998, 'Early stopping - but when?').
    """

    changes: ClassVar[bool] = True

    patience: Annotated[int, Option(ge=1)] = 3
    """Looks at the validation rows without progress before the run ends."""
    converged: Annotated[float, Option(gt=0, lt=1)] | None = None
    """Also end when the validation loss changes by less than this share over `patience` looks."""

    _losses: list[float] = PrivateAttr(default_factory=list)

    def on_evaluate(self, progress: Progress, figures: dict[str, float]) -> bool:
        if progress.since_best >= self.patience:
            progress.stopped = say(
                "no better since update {step:,}, {looks} looks ago",
                step=progress.best_step,
                looks=self.patience,
            )
            return True
        if self.converged is not None:
            self._losses = [*self._losses[-self.patience :], figures["loss"]]
            spread = max(self._losses) - min(self._losses)
            if len(self._losses) > self.patience and spread <= self.converged * abs(self._losses[-1]):
                progress.stopped = say(
                    "the validation loss changed by less than {share:.2%} over {looks} looks",
                    share=self.converged,
                    looks=self.patience,
                )
                return True
        return False

    def state(self) -> dict[str, Any]:
        return {"losses": self._losses}

    def restore(self, state: dict[str, Any]) -> None:
        self._losses = list(state["losses"])
