"""One update of the parameters, from as many batches as it takes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from itertools import count as count_from
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from luban.data.batch import Batch
from luban.models._products import Products
from luban.objectives._base import Loss, Objective

__all__ = ["Ema", "GradientStep", "compute_losses", "count_losses"]


def compute_losses(objectives: Sequence[Objective], model: nn.Module, batch: Batch) -> dict[str, Loss]:
    """Return the parts of all objectives; those that only read outputs share one forward pass.

    A part's name is the target's column; the second objective of the same column adds its type, a third of the same type
    its number too: ``label``, ``label.focal``, ``label.focal.2``.
    """
    parts: dict[str, Loss] = {}
    outputs: Any = None
    for objective in objectives:
        if type(objective).forward is Objective.forward:
            outputs = model(batch) if outputs is None else outputs
            own = objective.losses(outputs, batch)
        else:
            own = objective.forward(model, batch)
        for name, loss in own.items():
            parts[_free_name(name, objective, parts)] = loss
    return parts


def count_losses(objectives: Sequence[Objective], batch: Batch) -> dict[str, Tensor]:
    """Return what each part of `compute_losses` will count; needs no forward pass."""
    counts: dict[str, Tensor] = {}
    for objective in objectives:
        for name, count in objective.count(batch).items():
            counts[_free_name(name, objective, counts)] = count
    return counts


def _free_name(name: str, objective: Objective, taken: Container[str]) -> str:
    """Return a name that no part has yet; the same for losses and for counts, which come in the same order."""
    typed = f"{name}.{objective.type}"
    numbered = (f"{typed}.{number}" for number in count_from(2))
    return next(one for one in chain((name, typed), numbered) if one not in taken)


class Ema:
    """Exponential moving average of a model's parameters and buffers (Polyak and Juditsky, 1992).

    Early on the average follows more closely: decay is min(decay, (1 + t) / (10 + t)) after t updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's present weights."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        state = model.state_dict()
        floating = [name for name, value in self.average.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[name] for name in floating], [state[name] for name in floating], 1 - keep
        )
        for name in self.average.keys() - set(floating):
            self.average[name].copy_(state[name])


class GradientStep:
    """The ordinary update: gradient of the mean loss, clipped, handed to an optimizer.

    Args:
        model: what is trained.
        objectives: the parts of the loss.
        optimizer: updates the parameters.
        clip: largest norm of the gradient.
        ema: decay of the moving average of the weights.
        precision: ``fp32`` or ``bf16`` for matrix products.
        products: what makes them in fp32 on a CPU, ``onednn`` or ``blas``.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: Sequence[Objective],
        optimizer: Optimizer,
        *,
        clip: float | None = None,
        ema: float | None = None,
        precision: str = "fp32",
        products: str = "blas",
    ) -> None:
        self.model, self.objectives, self.optimizer, self.clip = model, list(objectives), optimizer, clip
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.ema = Ema(model, ema) if ema is not None else None
        self.precision, self.products = precision, products
        self.device = self.parameters[0].device

    def arithmetic(self) -> AbstractContextManager[Any]:
        """The context in which forward passes run."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return Products() if self.products == "onednn" else nullcontext()

    def __call__(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Make one update from these batches, which may be gone through twice.

        The gradient is that of the one batch they would make together: counts are added up before anything is divided.

        Returns:
            The mean of each part of the loss, their weighted sum as ``loss``, and with clipping ``gradient_norm``; scalars
            on the device, so that nothing waits for it.
        """
        single = isinstance(batches, list) and len(batches) == 1
        counts: dict[str, Tensor] = {}
        if not single:
            for batch in batches:
                for name, count in count_losses(self.objectives, batch).items():
                    counts[name] = counts[name] + count if name in counts else count
        means: dict[str, Tensor] = {}
        whole: Tensor | None = None
        for batch in batches:
            with self.arithmetic():
                parts = compute_losses(self.objectives, self.model, batch)
            share: Tensor | None = None
            for name, part in parts.items():
                # No weight at all in an update (all its rows weigh zero) gives no gradient instead of 0 / 0.
                mean = part.total / (part.count if single else counts[name]).clamp(min=1e-12)
                means[name] = means[name] + mean.detach() if name in means else mean.detach()
                mean = mean if part.weight == 1.0 else part.weight * mean
                share = mean if share is None else share + mean
            assert share is not None, "an objective returned no loss"
            share.backward()
            whole = share.detach() if whole is None else whole + share.detach()
        assert whole is not None, "an update needs a batch"
        means["loss"] = whole
        if self.clip is not None:
            means["gradient_norm"] = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for objective in self.objectives:
            objective.after_update()
        if self.ema is not None:
            self.ema.update(self.model)
        return means

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that are scored and saved: the moving average where there is one."""
        return self.ema.average if self.ema is not None else self.model.state_dict()

    def state(self) -> dict[str, Any]:
        """Return everything that the next update depends on."""
        state: dict[str, Any] = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.ema is not None:
            state["ema"] = {"average": self.ema.average, "updates": self.ema.updates}
        learnt = [objective.state() for objective in self.objectives]
        if any(learnt):
            state["objectives"] = learnt
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.updates = state["ema"]["updates"]
            for name, value in state["ema"]["average"].items():
                self.ema.average[name].copy_(value)
        for objective, learnt in zip(self.objectives, state.get("objectives", ()), strict=False):
            objective.restore(learnt)
