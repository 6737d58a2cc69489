"""The contracts as checks, for Luban's own components and for anybody's: one function a contract.

Each raises `AssertionError` with a sentence that says which promise is broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from luban.data.batch import Batch, rows_in
from luban.data.contracts import Spec
from luban.data.ragged import Ragged
from luban.models._base import Model
from luban.recipe import Section

__all__ = ["check_model"]


def check_model(model: Model, spec: Spec, batch: Batch, *, tolerance: float = 1e-5) -> None:
    """Check what every verb relies on in a model family.

    The options survive the recipe; the same seed gives the same module and, on a CPU, the same training step bit for bit;
    outputs are named, shaped and typed as the specification says, and finite; gradients reach every parameter; a row's
    outputs depend neither on the other rows of its batch nor on their order; weights survive a state dict.

    Args:
        model: the options.
        spec: the fields.
        batch: at least three rows that the module can read; put an empty row into ragged fields, to be thorough.
        tolerance: how far outputs of the same row may differ, since sums of another order differ in the last bits.

    Raises:
        AssertionError: if a promise is broken.

    Example:
        >>> check_model(lookup("models", "mlp")(), spec, batch)      # doctest: +SKIP
    """
    assert rows_in(batch) >= 3, "the batch has fewer than three rows, too few to tell rows apart"
    parsed = Section("models").parse(model.model_dump())
    assert parsed == model, (
        f"the options change when a recipe is written and read: {model!r} became {parsed!r}"
    )
    with _own_randomness():
        module, twin = _build(model, spec), _build(model, spec)
        _check_equal(
            module.state_dict(), twin.state_dict(), "two modules of the same seed have different weights"
        )
        outputs = module.eval()(batch)
        _check_outputs(outputs, spec, rows_in(batch))
        _check_rows(module, spec, batch, outputs, tolerance)
        first, second = (_gradients(each, spec, batch) for each in (module, twin))
        _check_equal(first, second, "two training steps of the same seed have different gradients")
        _check_equal(
            module.state_dict(),
            twin.state_dict(),
            "two training steps of the same seed leave different buffers",
        )
        other = _build(model, spec, seed=1)
        other.load_state_dict(module.state_dict())
        _check_equal(
            _targets(other.eval()(batch), spec),
            _targets(module.eval()(batch), spec),
            "a state dict does not carry all that matters",
        )


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Leave torch's global generator as it was."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _build(model: Model, spec: Spec, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return model.build(spec)


def _targets(outputs: dict[str, Tensor | Ragged], spec: Spec) -> dict[str, Tensor]:
    """Return the outputs that the targets ask for."""
    result: dict[str, Tensor] = {}
    for field in spec.fields.values():
        if field.role == "target" and field.output is not None:
            name = f"{field.column}.{field.output}"
            assert name in outputs, f"output '{name}' is missing; outputs are {', '.join(outputs)}"
            value = outputs[name]
            assert isinstance(value, Tensor), f"output '{name}' is ragged"
            result[name] = value
    return result


def _check_outputs(outputs: dict[str, Tensor | Ragged], spec: Spec, rows: int) -> None:
    widths = {
        f"{field.column}.{field.output}": field.width
        for field in spec.fields.values()
        if field.role == "target"
    }
    for name, value in _targets(outputs, spec).items():
        expected = (rows, widths[name])
        assert tuple(value.shape) == expected, (
            f"output '{name}' has shape {tuple(value.shape)}, but it should be {expected}"
        )
        assert value.dtype == torch.float32, f"output '{name}' is {value.dtype}, but it should be float32"
    for name, output in outputs.items():
        values = output.values if isinstance(output, Ragged) else output
        assert len(output) == rows, f"output '{name}' has {len(output)} rows for {rows}"
        assert bool(values.isfinite().all()), f"output '{name}' has values that are not finite"
    features = outputs.get("features")
    assert isinstance(features, Tensor), "output 'features' is missing: what the heads read, (B, D)"
    assert features.dim() == 2, (
        f"output 'features' has shape {tuple(features.shape)}, but it should be (B, D)"
    )


def _check_rows(
    module: nn.Module, spec: Spec, batch: Batch, outputs: dict[str, Tensor | Ragged], tolerance: float
) -> None:
    """A row alone, the rows backwards and every other row: the outputs must be those of the whole batch."""
    rows = rows_in(batch)
    choices = [*([i] for i in range(rows)), list(range(rows))[::-1], list(range(0, rows, 2))]
    for choice in choices:
        part = _targets(module(_take(batch, choice)), spec)
        for name, whole in _targets(outputs, spec).items():
            difference = float((part[name] - whole[choice]).abs().max().detach())
            assert difference <= tolerance, (
                f"output '{name}' of rows {choice} differs by {difference:.2g} when they are asked for in a batch of "
                f"their own: a row's output must not depend on its batch"
            )


def _take(batch: Batch, choice: list[int]) -> Batch:
    index = torch.tensor(choice)
    return {
        name: Ragged.from_rows([value[i] for i in choice]) if isinstance(value, Ragged) else value[index]
        for name, value in batch.items()
    }


def _gradients(module: nn.Module, spec: Spec, batch: Batch) -> dict[str, Tensor]:
    """Return the gradients of one training step; every parameter that wants one must have one that is finite."""
    torch.manual_seed(0)
    module.train()
    module.zero_grad()
    # Random directions, so that no gradient is zero by symmetry.
    loss = sum((value * torch.randn_like(value)).sum() for value in _targets(module(batch), spec).values())
    assert isinstance(loss, Tensor), "the specification has no target"
    torch.autograd.backward(loss)
    result: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"no gradient reaches parameter '{name}'"
            assert bool(parameter.grad.isfinite().all()), f"the gradient of parameter '{name}' is not finite"
            assert bool(parameter.grad.any()), f"the gradient of parameter '{name}' is zero everywhere"
            result[name] = parameter.grad
    return result


def _check_equal(left: dict[str, Tensor], right: dict[str, Tensor], message: str) -> None:
    assert left.keys() == right.keys(), f"{message}: names differ in {sorted(left.keys() ^ right.keys())}"
    for name, value in left.items():
        assert torch.equal(value, right[name]), f"{message}: '{name}'"
