"""The contracts as checks, for Luban's own components and for anybody's: one function a contract.

Each raises `AssertionError` with a sentence that says which promise is broken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luban.data.batch import Batch, rows_in, to_batch
from luban.data.contracts import Spec
from luban.data.ragged import Ragged
from luban.models._base import Model
from luban.objectives._base import Loss, Objective, TargetFacts
from luban.recipe import Section
from luban.training.checkpoint import join, split

if TYPE_CHECKING:
    import polars as pl

    from luban.data.contracts import Array, Encoded, Field, Processor
    from luban.data.pipeline import Pipeline
    from luban.explaining._base import Explainer, Explanation
    from luban.explaining._case import Case

__all__ = [
    "check_explainer",
    "check_language_objective",
    "check_model",
    "check_objective",
    "check_processor",
]


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


# --- processors -------------------------------------------------------------------------------------------


def check_processor(processor: Processor, values: pl.Series, targets: bool = False) -> None:
    """Check what the data path, an artefact and a server rely on in a processor.

    The options survive the recipe; fitting in chunks is fitting at once; an encoding depends on its cell alone, has the
    fields that were announced and is finite; a missing cell is encoded or refused, and nothing that is let through fails;
    what was fitted survives JSON; examples and portable values are readable JSON. For a target also: what is known is
    encoded, outputs become one dict a row, and perfect outputs become the values that they stand for.

    Args:
        processor: the options, not fitted.
        values: cells to fit on, among them at least two that can be read and, to be thorough, some that are missing or
            cannot be read.
        targets: whether to check it as a target too.

    Raises:
        AssertionError: if a promise is broken.

    Example:
        >>> check_processor(lookup("processors", "number")(), pl.Series(["1", "2", None, "x"]), targets=True)      # doctest: +SKIP
    """
    import numpy as np
    import polars as pl

    parsed = Section("processors").parse(processor.model_dump())
    assert parsed == processor, (
        f"the options change when a recipe is written and read: {processor!r} became {parsed!r}"
    )
    once = _fitted(processor, [values])
    bad = once.invalid(values)
    _check_mask(bad, values, "invalid")
    readable = values.filter(~bad)
    assert len(readable) >= 2, "fewer than two values can be read, too few to tell rows apart"
    encoded = once.encode(readable)
    _check_encoded(once.fields("column", "input"), encoded, len(readable))
    once.counts()
    assert not once.counts(), "counts() does not start again from zero"

    # Chunks of every size, an empty one among them: neither the fit nor an encoding may notice.
    cuts = [values.slice(start, size) for start, size in ((0, 0), (0, 1), (1, 2), (3, len(values)))]
    _check_same(
        _fitted(processor, cuts).encode(readable), encoded, "fitting in chunks differs from fitting at once"
    )
    _check_same(once.encode(readable), encoded, "encoding twice gives two results")
    _check_encoded(once.fields("column", "input"), once.encode(readable.head(0)), 0)
    for i in range(len(readable)):
        alone = once.encode(readable.slice(i, 1))
        _check_same(
            alone,
            _encoded_rows(encoded, [i]),
            f"value {readable[i]!r} is encoded differently in a chunk of its own",
        )

    again = type(processor).model_validate({k: v for k, v in processor.model_dump().items() if k != "type"})
    again.restore(json.loads(json.dumps(once.state())))
    assert again.fields("column", "input") == once.fields("column", "input"), "restored, it has other fields"
    _check_same(again.encode(readable), encoded, "restored, it encodes differently")

    probes: list[Any] = ["", " ", "no such word", "-1e999", "2024-02-30", "\0", "\U0001f600", None]
    strange = (
        pl.Series(values.name, probes, dtype=pl.String) if values.dtype == pl.String else values.clear(2)
    )
    for cells in (strange, pl.Series(values.name, [None, None], dtype=pl.Null)):
        bad = once.invalid(cells)
        _check_mask(bad, cells, "invalid")
        _check_encoded(once.fields("column", "input"), once.encode(cells.filter(~bad)), int((~bad).sum()))

    portable = json.loads(json.dumps(once.portable(readable)))
    _check_same(
        once.encode(pl.Series(values.name, portable, strict=False)),
        encoded,
        "portable values are encoded differently",
    )
    examples = json.loads(json.dumps(once.example(np.random.default_rng(0), 5)))
    assert len(examples) == 5, f"asked for 5 examples, it made {len(examples)}"
    made = pl.Series(values.name, examples, strict=False)
    assert not once.invalid(made).any(), f"it cannot read its own examples: {examples}"
    _check_encoded(once.fields("column", "input"), once.encode(made), 5)
    if targets:
        _check_target(once, values)


def _check_target(processor: Processor, values: pl.Series) -> None:
    import numpy as np
    import polars as pl

    from luban import registry

    assert processor.output is not None, "a target needs an 'output'"
    assert processor.task is not None, "a target needs a 'task'"
    assert processor.objective in registry.names("objectives"), (
        f"objective '{processor.objective}' does not exist"
    )
    known = processor.known(values)
    _check_mask(known, values, "known")
    assert not (known & processor.invalid(values)).any(), "a value is both known and unreadable"
    fields = processor.fields("column", "target")
    encoded = processor.encode_target(values.filter(known))
    _check_encoded(fields, encoded, int(known.sum()))
    (name,) = fields
    width = processor.head_width
    assert (fields[name].output, fields[name].width) == (processor.output, width), (
        "fields and head_width disagree"
    )

    truth = processor.truth(encoded[name])
    match processor.task:
        case "regression":
            stored = encoded[name]
            assert isinstance(stored, np.ndarray)
            output = stored.reshape(-1, 1)
        case "multiclass":
            output = 40.0 * np.eye(width)[truth]
        case _:
            output = 80.0 * truth.reshape(len(truth), -1) - 40.0
    assert output.shape == (len(truth), width), f"truth has {output.shape[1]} columns for a head of {width}"
    assert processor.classes() == [] or len(processor.classes()) in (width, width + 1), (
        "classes and head disagree"
    )
    decoded = processor.decode(output.astype(np.float32))
    assert len(decoded) == len(truth), f"{len(truth)} outputs became {len(decoded)} predictions"
    json.dumps(decoded, allow_nan=False)
    said = pl.Series(values.name, [one["value"] for one in decoded], strict=False)
    # In another order inside a set, hence by truth.
    same = processor.truth(processor.encode_target(said)[name])
    assert np.allclose(same, truth, rtol=1e-5, atol=1e-5), "a perfect output is decoded into another value"
    for one in decoded:
        scores = [*one.get("scores", {}).values(), one.get("score", 0.0)]
        assert all(0 <= score <= 1 for score in scores), f"a score is no probability: {one}"
    for extreme in (np.zeros((2, width)), np.full((2, width), 1e30), np.full((2, width), -1e30)):
        json.dumps(processor.decode(extreme.astype(np.float32)), allow_nan=False)
    assert processor.decode(np.zeros((0, width), np.float32)) == [], "no outputs became predictions"


def _fitted(processor: Processor, chunks: list[pl.Series]) -> Processor:
    fresh = type(processor).model_validate({k: v for k, v in processor.model_dump().items() if k != "type"})
    for chunk in chunks:
        fresh.update(chunk)
    fresh.finish()
    return fresh


def _check_mask(mask: pl.Series, values: pl.Series, name: str) -> None:
    import polars as pl

    assert mask.dtype == pl.Boolean, f"{name}() is {mask.dtype}, but it should be boolean"
    assert len(mask) == len(values), f"{name}() has {len(mask)} rows for {len(values)}"
    assert not mask.null_count(), f"{name}() is neither true nor false for some values"


def _check_encoded(fields: dict[str, Field], encoded: Encoded, rows: int) -> None:
    """Names, dtypes, shapes, ragged or not, bounds."""
    import numpy as np

    from luban.data.contracts import Flat

    assert list(fields) == list(encoded), f"fields are {list(fields)}, but the encoding has {list(encoded)}"
    for name, field in fields.items():
        stored = encoded[name]
        values = stored.values if isinstance(stored, Flat) else stored
        assert isinstance(stored, Flat) == (field.shape is None), (
            f"field '{name}' is ragged in one place only"
        )
        assert len(stored) == rows, f"field '{name}' has {len(stored)} rows for {rows}"
        assert values.dtype == np.dtype(field.dtype), (
            f"field '{name}' is {values.dtype}, but it says {field.dtype}"
        )
        if isinstance(stored, Flat):
            assert stored.offsets.dtype == np.int64, f"field '{name}' has offsets of {stored.offsets.dtype}"
            assert stored.offsets[0] == 0, f"field '{name}' has offsets that do not begin at 0"
            assert stored.offsets[-1] == len(values), (
                f"field '{name}' has offsets that do not end with its values"
            )
            assert (np.diff(stored.offsets) >= 0).all(), f"field '{name}' has offsets that go backwards"
        else:
            assert values.shape[1:] == field.shape, (
                f"field '{name}' has {values.shape[1:]}, but it says {field.shape}"
            )
        assert np.isfinite(values).all(), f"field '{name}' has values that are not finite"
        if field.size is not None and len(values):
            assert values.min() >= 0, f"field '{name}' has the index {values.min()}"
            assert values.max() < field.size, (
                f"field '{name}' has the index {values.max()}, but a size of {field.size}"
            )


def _encoded_rows(encoded: Encoded, rows: list[int]) -> Encoded:
    import numpy as np

    from luban.data.contracts import Flat

    result: Encoded = {}
    for name, stored in encoded.items():
        if isinstance(stored, Flat):
            parts = [stored.values[stored.offsets[i] : stored.offsets[i + 1]] for i in rows]
            result[name] = Flat(np.concatenate(parts), np.cumsum([0, *map(len, parts)], dtype=np.int64))
        else:
            result[name] = stored[rows]
    return result


def _check_same(left: Encoded, right: Encoded, message: str) -> None:
    import numpy as np

    from luban.data.contracts import Flat

    def plain(stored: Array | Flat) -> tuple[Array, list[int]]:
        return (stored.values, stored.offsets.tolist()) if isinstance(stored, Flat) else (stored, [])

    assert list(left) == list(right), f"{message}: fields {list(left)} and {list(right)}"
    for name in left:
        (one, ends), (other, others) = plain(left[name]), plain(right[name])
        assert (ends, one.shape) == (others, other.shape), f"{message}: field '{name}' in its shape"
        # Sums over chunks differ from the sum over all in the last bits.
        exact = one.dtype.kind != "f"
        close = np.array_equal(one, other) if exact else np.allclose(one, other, rtol=1e-5, atol=1e-5)
        assert close, f"{message}: field '{name}'"


def check_objective(
    objective: Objective,
    targets: Mapping[str, TargetFacts],
    outputs: Mapping[str, Tensor],
    batch: Batch,
    *,
    model: nn.Module | None = None,
) -> None:
    """Check what the engine relies on in an objective.

    The options survive the recipe; totals are sums and counts are what `count` says without a forward pass; both add up over
    the parts of a batch where rows are independent, whatever the order of the rows; the loss is finite and its gradient reaches
    the outputs; figures are announced by `describe` before there are any. What the objective learns itself goes through a
    checkpoint: another one that began and took it back has the same losses, and goes on to have them; and the model's weights
    are left to the optimizer.

    Args:
        objective: the options; its `groups` were asked for, if it knows any.
        targets: the facts of the targets of `batch`, by column.
        outputs: what a model returned for the batch, by name, (B, width).
        batch: at least three rows.
        model: what `begin` looks at and `forward` runs; if left out, one whose parameters are the outputs, and `losses` is given
            these.

    Raises:
        AssertionError: if a promise is broken.
    """
    rows = rows_in(batch)
    assert rows >= 3, "the batch has fewer than three rows, too few to split"
    parsed = Section("objectives").parse(objective.model_dump())
    assert parsed == objective, (
        f"the options change when a recipe is written and read: {objective!r} became {parsed!r}"
    )
    objective.setup(targets)
    given, fresh = _Given(outputs), deepcopy(objective)
    with _own_randomness():
        objective.begin(given if model is None else model)
    leaves = {name: value.detach().clone().requires_grad_() for name, value in outputs.items()}
    whole = _check_parts(objective, leaves, batch)
    torch.stack([loss.total for loss in whole.values()]).sum().backward()
    reached = [name for name, leaf in leaves.items() if leaf.grad is not None and leaf.grad.abs().sum() > 0]
    assert reached, "no output gets a gradient"
    for name in reached:
        gradient = leaves[name].grad
        assert gradient is not None
        assert torch.isfinite(gradient).all(), f"the gradient of '{name}' is not finite"
    order = torch.arange(rows - 1, -1, -1)
    pieces = [order[: rows // 3], order[rows // 3 :]] if objective.per_example else [order]
    parts = [
        objective.losses({name: value[piece] for name, value in outputs.items()}, _rows_of(batch, piece))
        for piece in pieces
    ]
    _check_sums(whole, parts)
    if model is None:
        _check_learnt(objective, fresh, given, lambda one: one.losses(given(batch), batch))
    else:
        _check_learnt(objective, fresh, model, lambda one: one.forward(model, batch))


def check_language_objective(
    objective: Objective, model: Model, pipeline: Pipeline, rows: pl.DataFrame, *, weighted: bool = False
) -> None:
    """Check what the engine relies on in an objective that makes its targets of a text's own tokens.

    As `check_objective`, checkpoints included; and what it does to a batch follows from the generator alone and leaves the tensors
    of the batch as they were, makes the fields that were announced, and is over once the batch is made: the rows of a batch that
    was changed may be told apart again.

    Args:
        objective: the options; the text column must be named.
        model: options of a model that can put out the text's tokens.
        pipeline: the fitted text column.
        rows: at least three texts.
        weighted: whether rows have weights, that of each its number.

    Raises:
        AssertionError: if a promise is broken.
    """
    from luban.data.contracts import Flat
    from luban.data.windows import windows_of

    assert len(rows) >= 3, "there are fewer than three rows, too few to split"
    parsed = Section("objectives").parse(objective.model_dump())
    assert parsed == objective, (
        f"the options change when a recipe is written and read: {objective!r} became {parsed!r}"
    )
    made = objective.bind(pipeline, getattr(model, "max_positions", None))
    assert all(field.role == "target" for field in made.values()), (
        "bind() announces a field that is no target"
    )
    objective.setup({})
    spec = Spec({**pipeline.spec.fields, **made})
    encoded, _ = pipeline.encode(rows, targets=False)
    window = objective.window()
    if window is not None:
        name, length, overlap, trim = window
        flat = encoded[name]
        assert isinstance(flat, Flat), f"'{name}' is not ragged"
        encoded[name], documents = windows_of(flat, length, overlap, trim)
        assert len(documents) == len(rows), "a text is too long to be one example"
    batch = to_batch(encoded, spec)
    if weighted:
        batch["row.weight"] = torch.arange(1.0, len(rows) + 1)
    before = {name: _plain(value).clone() for name, value in batch.items()}
    with _own_randomness():
        changed, again = (objective.collate(dict(batch), torch.Generator().manual_seed(0)) for _ in range(2))
        _check_equal(_all_plain(changed), _all_plain(again), "the same generator gives two batches")
        _check_equal(_all_plain(batch), before, "collate() changes tensors of the batch in place")
        missing = made.keys() - changed.keys()
        assert not missing, f"bind() announces {', '.join(missing)}, which collate() does not make"
        module, fresh = _build(model, spec).eval(), deepcopy(objective)
        objective.begin(module)
        whole = _check_parts(objective, module(changed), changed)
        torch.stack([loss.total for loss in whole.values()]).sum().backward()
        reached = [p.grad for p in module.parameters() if p.grad is not None and bool(p.grad.any())]
        assert reached, "no parameter gets a gradient"
        assert all(bool(gradient.isfinite().all()) for gradient in reached), "a gradient is not finite"
        order = torch.arange(rows_in(changed) - 1, -1, -1)
        pieces = [order[: len(order) // 3], order[len(order) // 3 :]] if objective.per_example else [order]
        parts = []
        for piece in pieces:
            own = _rows_of(changed, piece)
            parts.append(objective.losses(module(own), own))
        _check_sums(whole, parts)
        _check_learnt(objective, fresh, module, lambda one: one.losses(module(changed), changed))
        if weighted:
            del changed["row.weight"]
            alone = [_rows_of(changed, torch.tensor([row])) for row in range(rows_in(changed))]
            each = [objective.losses(module(own), own) for own in alone]
            for row, found in enumerate(each, 1):
                for name, one in found.items():
                    found[name] = replace(one, total=row * one.total, count=row * one.count)
            _check_sums(whole, each)  # a row of weight 2 is that row twice


class _Given(nn.Module):
    """A model whose outputs are its parameters."""

    def __init__(self, outputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = [*outputs]
        self.outputs = nn.ParameterList(value.detach().clone() for value in outputs.values())

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return dict(zip(self.names, self.outputs, strict=True))


def _check_learnt(
    objective: Objective, fresh: Objective, model: nn.Module, losses: Callable[[Objective], dict[str, Loss]]
) -> None:
    """What an objective that began has learnt survives a checkpoint; `fresh` is the same one before it began."""
    weights = deepcopy(model.state_dict())
    for _ in range(2):
        _learn(objective, model, losses)
    tensors: dict[str, Tensor] = {}
    try:
        skeleton = json.dumps(split(objective.state(), tensors))
    except TypeError as error:
        raise AssertionError(f"state() returns what no checkpoint holds: {error}") from None
    saved = join(json.loads(skeleton), {name: value.clone() for name, value in tensors.items()})
    with _own_randomness():
        fresh.begin(model)
    fresh.restore(saved)
    for when in ("after restore()", "one update after restore()"):
        told, again = (_told(one, losses) for one in (objective, fresh))
        _check_equal(told, again, f"{when} the loss is another: state() or restore() leaves something out")
        for one in (objective, fresh):
            _learn(one, model, losses)
    _check_equal(model.state_dict(), weights, "the objective changes the weights of the model")
    means = {f"{name}.loss": 0.5 for name in losses(objective)}
    announced, figures = objective.describe({}), objective.describe({**means, "loss": 0.5})
    assert announced.keys() == figures.keys(), (
        f"describe() names {[*figures]}, but without figures {[*announced]}, which train.metric may name"
    )


def _learn(objective: Objective, model: nn.Module, losses: Callable[[Objective], dict[str, Loss]]) -> None:
    """Do with an objective what an update does; the weights of the model stay as they are."""
    with _own_randomness():
        torch.manual_seed(0)
        parts = losses(objective).values()
    torch.stack([part.weight * part.total / part.count.clamp(min=1e-12) for part in parts]).sum().backward()
    model.zero_grad(set_to_none=True)
    objective.after_update()


def _told(objective: Objective, losses: Callable[[Objective], dict[str, Loss]]) -> dict[str, Tensor]:
    """Return the total of each part, in training and in validation."""
    with _own_randomness():
        torch.manual_seed(0)
        trained = losses(objective)
        with torch.no_grad():
            seen = losses(objective)
    return {
        f"{name} in {where}": part.total.detach()
        for where, parts in (("training", trained), ("validation", seen))
        for name, part in parts.items()
    }


def _plain(value: Tensor | Ragged) -> Tensor:
    return value.values if isinstance(value, Ragged) else value


def _all_plain(batch: Batch) -> dict[str, Tensor]:
    return {name: _plain(value) for name, value in batch.items()}


def _check_parts(objective: Objective, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Loss]:
    """Return the parts of the loss: scalars that are finite, and counted as `count` counts."""
    whole = objective.losses(outputs, batch)
    counts = objective.count(batch)
    assert whole.keys() == counts.keys(), f"losses names {[*whole]} and count names {[*counts]}"
    for name, loss in whole.items():
        assert loss.total.dim() == 0, f"{name}: the total is no scalar but {tuple(loss.total.shape)}"
        assert torch.isfinite(loss.total), f"{name}: the total is {float(loss.total)}"
        torch.testing.assert_close(
            loss.count.double(), counts[name].double(), msg=f"{name}: count() and losses() count differently"
        )
    return whole


def _check_sums(whole: Mapping[str, Loss], parts: Sequence[Mapping[str, Loss]]) -> None:
    """Totals and counts of a batch are the sums of those of its parts."""
    for name, loss in whole.items():
        for what in ("total", "count"):
            summed = torch.stack([getattr(part[name], what).detach().double() for part in parts]).sum()
            torch.testing.assert_close(
                summed,
                getattr(loss, what).detach().double(),
                rtol=1e-5,
                atol=1e-5,
                msg=f"{name}: the {what} depends on how rows are batched or ordered, so it is no sum over rows",
            )


def _rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Return rows of a batch; of a text's tokens that were chosen (``column.read``), those that stand in these rows."""
    result: Batch = {}
    for name, value in batch.items():
        column, _, short = name.rpartition(".")
        ids, places = batch.get(f"{column}.ids"), batch.get(f"{column}.read")
        if isinstance(value, Ragged):
            result[name] = Ragged.from_rows([value[int(i)] for i in rows])
        elif short == "segments" and isinstance(ids, Ragged):  # one for each token
            result[name] = Ragged.from_rows([ids.like(value)[int(i)] for i in rows]).values
        elif short in ("read", "labels") and isinstance(ids, Ragged) and isinstance(places, Tensor):
            of = ids.rows[places]
            chosen = [(of == i).nonzero().squeeze(1) for i in rows.tolist()]
            if short == "labels":
                result[name] = value[torch.cat(chosen)]
            else:
                starts = torch.cat([torch.zeros(1, dtype=torch.int64), ids.lengths[rows].cumsum(0)])
                moved = [
                    value[own] - ids.offsets[int(i)] + start
                    for own, i, start in zip(chosen, rows, starts, strict=False)
                ]
                result[name] = torch.cat(moved)
        else:
            result[name] = value[rows]
    return result


# --- explainers -------------------------------------------------------------------------------------------


def check_explainer(explainer: Explainer, case: Case, *, tolerance: float = 1e-4) -> str | None:
    """Check what `luban explain`, the report and the measures of quality rely on in an explainer.

    The options survive the recipe; paper and limits are said, each in one line; an explainer that does not fit says why before it
    is asked to work, and one that fits leaves the model as it was, explains each row, in order, with finite values that are JSON,
    gives the same twice, and explains a row alike whatever stands beside it. Where values are said to add up, they do, but for the
    error that is reported.

    Args:
        explainer: the options.
        case: at least two rows.
        tolerance: how far values of the same row may differ, relative to the largest of the row, since sums of another order differ
            in the last bits.

    Returns:
        Why it does not fit; None if it fits, and all promises are kept.

    Raises:
        AssertionError: if a promise is broken.

    Example:
        >>> check_explainer(lookup("explainers", "occlusion")(), case)      # doctest: +SKIP
    """
    assert len(case) >= 2, "the case has fewer than two rows, too few to tell rows apart"
    name = explainer.type
    assert Section("explainers").parse(explainer.model_dump()) == explainer, (
        f"'{name}': the options change when a recipe is written and read"
    )
    for what in ("paper", "limits"):
        text = getattr(explainer, what)
        assert text.strip(), f"'{name}' does not say its {what}"
        assert "\n" not in text, f"'{name}' does not say its {what} in one line"
    model = case.predictor.model
    before = _condition(model)
    why = explainer.refusal(case)
    assert _condition(model) == before, f"'{name}' changes the model when it is asked whether it fits"
    if why is not None:
        assert why, f"'{name}' refuses without a reason"
        return why
    if explainer.scope == "set":
        first, second = (_as_json(explainer.survey(case).to_json(), name) for _ in range(2))
        assert first == second, f"'{name}' finds something else the second time"
        assert first["rows"] >= 1, f"'{name}' says nothing of how many rows it looked at"
        assert any(first["tables"].values()), f"'{name}' finds nothing"
        assert _condition(model) == before, f"'{name}' leaves the model changed"
        return None
    found = explainer.explain(case)
    assert _condition(model) == before, f"'{name}' leaves the model changed"
    assert [one.row for one in found] == case.numbers, f"'{name}' does not explain each row, in order"
    again = explainer.explain(case)
    alone = explainer.explain(case.part(1, 2))
    for one, other, what in (
        *((a, b, "the second time") for a, b in zip(found, again, strict=True)),
        (found[1], alone[0], "with no other row beside it"),
    ):
        _check_alike(one, other, f"'{name}' explains row {one.row} otherwise {what}", tolerance)
    for one in found:
        plain = _as_json(one.to_json(), name)
        assert plain["method"] == name, f"'{name}' calls itself {plain['method']!r}"
        strangers = set(one.parts) - set(case.inputs)
        assert not strangers, f"'{name}' explains by {strangers}, which are no inputs"
        for column, part in one.parts.items():
            for piece in part.pieces if isinstance(part.shown, str) else ():
                inside = piece.start == piece.end or part.shown[piece.start : piece.end] == piece.text
                assert inside, f"'{name}': a piece of '{column}' does not stand where it is said to"
        if explainer.attributes and one.baseline is not None:
            gap = abs(sum(part.total for part in one.parts.values()) - (one.score - one.baseline))
            known = one.quality.get("completeness_error", 0.0) * max(abs(one.score - one.baseline), 1e-6)
            scale = max(abs(one.score), abs(one.baseline), 1.0)
            assert gap <= known + 10 * tolerance * scale, (
                f"'{name}': values miss the difference of the scores by {gap:.3g}, and {known:.3g} is reported"
            )
    return None


def _condition(model: nn.Module) -> list[Any]:
    """Return what of a model must not change: weights, mode, what is trained, hooks."""
    return [
        [(name, float(value.double().sum())) for name, value in model.state_dict().items()],
        [
            (module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
            for module in model.modules()
        ],
        [p.requires_grad for p in model.parameters()],
        [p.grad is None for p in model.parameters()],
    ]


def _as_json(data: Any, name: str) -> Any:
    try:
        return json.loads(json.dumps(data, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"'{name}' gives what is no JSON: {error}") from None


def _check_alike(a: Explanation, b: Explanation, message: str, tolerance: float) -> None:
    assert list(a.parts) == list(b.parts), message
    for column, part in a.parts.items():
        other = b.parts[column]
        assert part.values.shape == other.values.shape, message
        scale = max(float(abs(part.values).max(initial=0.0)), 1e-3)
        worst = float(abs(part.values - other.values).max(initial=0.0))
        assert worst <= tolerance * scale, f"{message}: '{column}' differs by {worst:.3g}"
