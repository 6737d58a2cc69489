"""Adversarial training: the loss on the inputs, and on the inputs moved to where it is worst nearby.

::

    x ──▶ model ──▶ clean loss ──▶ gradient by x ──▶ r, |r| ≤ epsilon
    x + r ──▶ model ──▶ adversarial loss            loss = clean + adversarial

FGM (Miyato et al., 2017, 'Adversarial training methods for semi-supervised text classification') makes one step of length
epsilon; PGD (Madry et al., 2018, 'Towards deep learning models resistant to adversarial attacks') makes several and comes
back into the ball after each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field as Option
from pydantic import PrivateAttr, model_validator
from torch import Tensor, nn

from luban.data.batch import Batch, rows_in
from luban.data.ragged import Ragged
from luban.errors import RecipeError
from luban.objectives._base import Loss, Objective, TargetFacts
from luban.objectives._wrapping import Wrapping, summed
from luban.registry import register

__all__ = ["Adversarial", "Moved"]

_PLACES = re.compile(r"position|segment|token_type|wpe")
_RATIO = 2.5  # of the way from the middle of the ball to its edge, all steps together: Madry's, so that any point can be reached


@register("objectives")
class Adversarial(Wrapping):
    """The inner objective on the batch, plus the same on what is close to it and hardest.

    Tokens and categories are moved by their vectors, as the model's tables give them; images and numbers as they are. Each
    row of each input has a ball of its own, so that a row's loss depends on that row alone, and the move counts as a constant
    in the gradient. Dropout is the same in all passes: the worst direction is that of the network it is used on. Statistics of
    batch normalisation come from the clean pass. Costs a pass forward and one back more for `fgm`, and so many for each step of
    `pgd`; validation rows are measured clean.

    Example:
        >>> Adversarial.model_validate({"objective": "cross_entropy", "method": "pgd"}).steps
        3
    """

    method: Literal["fgm", "pgd"] = "fgm"
    """fgm: one step of length epsilon; pgd: several smaller ones."""
    epsilon: Annotated[float, Option(gt=0)] = 1.0
    """Radius of the ball: of a text, all its tokens' vectors together; for images, numbers between 0 and 1."""
    steps: Annotated[int, Option(gt=0)] | None = None
    """Steps of `pgd`; 3 if left out."""
    step_size: Annotated[float, Option(gt=0)] | None = None
    """Length of a step of `pgd`; 2.5 · epsilon / steps if left out (Madry et al., 2018)."""
    norm: Literal["l2", "linf"] = "l2"
    """What the radius measures: the length of the move, or its largest value (with fgm, Goodfellow et al., 2015)."""

    _targets: frozenset[str] = PrivateAttr(default=frozenset())

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if self.method == "fgm":
            for key in ("steps", "step_size"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key} belongs to method 'pgd', and method is 'fgm', which makes one step of epsilon; remove one"
                    )
        elif self.steps is None:
            self.steps = 3
        return self

    def setup(self, targets: Mapping[str, TargetFacts]) -> None:
        inmost = self.inner
        while isinstance(inmost, Wrapping):
            inmost = inmost.inner
        if type(inmost).forward is not Objective.forward:
            raise RecipeError(
                f"objective adversarial: '{inmost.type}' runs the model in a way of its own, which a disturbed input would not reach whole; put adversarial around an objective such as cross_entropy or causal_lm"
            )
        super().setup(targets)
        self._targets = frozenset(facts.name for facts in targets.values())

    def both(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        """Return the clean parts with the adversarial ones added."""
        first = next(iter(batch.values()))
        random = _RandomState((first.values if isinstance(first, Ragged) else first).device)
        steps = self.steps or 1
        size = self.step_size or (self.epsilon if self.method == "fgm" else _RATIO * self.epsilon / steps)
        with Moved(model, batch, self._targets) as inputs:
            clean = self.inner.forward(model, inputs.batch())
            with _statistics_kept(model):
                parts = clean
                for step in range(steps):
                    if step:
                        random.restore()
                        parts = self.inner.forward(model, inputs.batch())
                    gradients = inputs.gradients(summed(parts), retain=step == 0)
                    inputs.move(gradients, size, self.epsilon, self.norm)
                random.restore()
                inputs.hold()
                adversarial = self.inner.forward(model, inputs.batch())
        return {
            name: replace(part, total=part.total + adversarial[name].total) for name, part in clean.items()
        }


class _RandomState:
    """The generators that dropout draws from, to be set back to where they were."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let batch normalisation normalise by the batch as it does in training, but learn nothing of it."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    old = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, old, strict=True):
            norm.momentum = momentum


class Moved:
    """The continuous inputs of a model on one batch, each with something added to it.

    An input is a floating field of the batch, or what one call of an embedding returns. The first pass finds them; in later
    passes they come in the same order.
    """

    def __init__(self, model: nn.Module, batch: Batch, targets: frozenset[str]) -> None:
        self.model, self.fields, self.targets = model, batch, targets
        self.moves: dict[str, Tensor] = {}
        self.rows: dict[str, Tensor] = {}
        self.calls: dict[str, int] = {}
        self.known: list[Ragged] = []
        self.number = rows_in(batch)
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        tables = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and not _PLACES.search(name)
        }
        above = {name[: dot.start()] for name in tables for dot in re.finditer(r"\.", name)}
        for name, module in tables.items():
            self._hooks.append(module.register_forward_hook(self._hook(name)))
        for name in above:
            self._hooks.append(self.model.get_submodule(name).register_forward_pre_hook(self._note))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def batch(self) -> Batch:
        """Begin a pass: return the batch with its floating inputs moved."""
        self.calls = {}
        self.known = [value for value in self.fields.values() if isinstance(value, Ragged)]
        result: Batch = {}
        for name, value in self.fields.items():
            values = value.values if isinstance(value, Ragged) else value
            if not values.is_floating_point() or not self._is_input(name):
                result[name] = value
            elif isinstance(value, Ragged):
                result[name] = value.like(self._add(name, values, value.rows))
            else:
                result[name] = self._add(name, values, torch.arange(len(values), device=values.device))
        return result

    def _is_input(self, name: str) -> bool:
        return (
            name not in self.targets
            and not name.startswith(("row.", "mix."))
            and not name.endswith(".missing")
        )

    def _add(self, key: str, values: Tensor, rows: Tensor) -> Tensor:
        if key not in self.moves:
            self.moves[key] = torch.zeros_like(values, requires_grad=True)
            self.rows[key] = rows
        return values + self.moves[key]

    def _note(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Remember whatever says which row a position belongs to."""
        self.known += [one for one in arguments if isinstance(one, Ragged)]

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            call = self.calls[name] = self.calls.get(name, 0) + 1
            key = f"{name} ({call})"
            rows = self.rows[key] if key in self.rows else self._rows(name, module, arguments[0], output)
            return self._add(key, output, rows)

        return hook

    def _rows(self, name: str, module: nn.Module, ids: Tensor, output: Tensor) -> Tensor:
        if isinstance(module, nn.Embedding):
            for ragged in reversed(self.known):
                if ragged.values is ids:
                    return ragged.rows
        if len(output) != self.number:
            raise RecipeError(
                f"objective adversarial: nothing says which rows the {len(output)} vectors of '{name}' belong to, so no row can have its own epsilon; this model cannot be trained so"
            )
        return torch.arange(len(output), device=output.device)

    def gradients(self, loss: Tensor, retain: bool) -> dict[str, Tensor]:
        """Return the gradient of a loss by what is added to each input that it depends on."""
        found = torch.autograd.grad(loss, [*self.moves.values()], retain_graph=retain, allow_unused=True)
        gradients = {key: one for key, one in zip(self.moves, found, strict=True) if one is not None}
        if not gradients:
            raise RecipeError(
                "objective adversarial: the loss depends on no number, image, category or token of the inputs, so there is nothing to move"
            )
        return gradients

    @torch.no_grad()
    def move(self, gradients: Mapping[str, Tensor], size: float, radius: float, norm: str) -> None:
        """Go a step up the gradient, row by row, and back to the edge of the ball if that led out of it."""
        moved: dict[str, Tensor] = {}
        for key, before in self.moves.items():
            if key not in gradients:
                moved[key] = before.detach()
                continue
            gradient, rows = gradients[key], self.rows[key]
            if norm == "linf":
                moved[key] = (before + size * gradient.sign()).clamp(-radius, radius)
                continue
            lengths = self._lengths(gradient, rows)
            there = before + gradient * torch.where(lengths > 0, size / lengths, 0.0)
            moved[key] = there * (radius / self._lengths(there, rows)).clamp(max=1.0)
        self.moves = {key: one.requires_grad_() for key, one in moved.items()}

    def hold(self) -> None:
        """Take the moves as constants from now on."""
        self.moves = {key: one.detach() for key, one in self.moves.items()}

    def _lengths(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return the length of each row's values together, for each of its positions, (N, 1, ...)."""
        squares = values.float().pow(2)[..., None].flatten(1).sum(1)
        lengths = squares.new_zeros(self.number).index_add(0, rows, squares).sqrt()[rows]
        return lengths.view(-1, *[1] * (values.dim() - 1)).to(values.dtype)
