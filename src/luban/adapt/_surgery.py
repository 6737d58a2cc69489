"""Taking a model apart by the names of its parts: replace modules, find its blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

__all__ = ["Depths", "depths_of", "replace_modules"]


def replace_modules(
    model: nn.Module,
    predicate: Callable[[str, nn.Module], bool],
    make: Callable[[str, nn.Module], nn.Module],
) -> nn.Module:
    """Put another module in the place of each one that a predicate picks; the one way in which Luban changes a built model.

    A module that has several names is made once and keeps all of them. What is inside a replaced module is not looked at.

    Args:
        model: changed in place, unless it is picked itself.
        predicate: whether to replace a module, given its full name (empty for `model`) and itself.
        make: what to put there.

    Returns:
        `model`, or what was made in its place.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> replace_modules(net, lambda name, part: isinstance(part, nn.ReLU), lambda name, part: nn.GELU())[1]
        GELU(approximate='none')
    """
    made: dict[int, nn.Module] = {}
    old: list[nn.Module] = []  # keeps what was replaced alive, so that no id is given out twice

    def visit(name: str, module: nn.Module) -> nn.Module:
        if id(module) in made:
            return made[id(module)]
        old.append(module)
        if predicate(name, module):
            made[id(module)] = make(name, module).train(module.training)
            return made[id(module)]
        made[id(module)] = module
        for child_name, child in list(module._modules.items()):
            if child is not None:
                module._modules[child_name] = visit(f"{name}.{child_name}" if name else child_name, child)
        return module

    return visit("", model)


# --- blocks -----------------------------------------------------------------------------------------------

_BLOCK = re.compile(r"^(?P<stack>(?:.*?\.)?(?:layers?|blocks?|h))\.(?P<number>\d+)\.")
_EMBEDDING = re.compile(r"(?:^|[._])(?:\w*embed\w*|wte|wpe)(?:[._]|$)")
_ABOVE = ("heads.", "trunk.")


@dataclass(frozen=True)
class Depths:
    """Where each parameter of a model stands, counted from its outputs.

    Attributes:
        blocks: how many blocks the deepest stack has; 0 for a model without.
        below: parameter → 0 for what stands above the blocks (heads, trunk, pooler, last norm, inputs without blocks), 1 for
            the top block, and so on; one more than a stack has blocks for its embeddings.
    """

    blocks: int
    below: dict[str, int]


def depths_of(names: Iterable[str]) -> Depths:
    """Tell blocks, embeddings and heads by the names of the parameters, whatever the family.

    Blocks are called ``...layers.N...`` (in models of other libraries also ``layer.N``, ``blocks.N``, ``h.N``). Of what
    stands beside them, embeddings and whatever is registered before the first block lie below it, the rest above the last.
    Several stacks have depths of their own.

    Example:
        >>> depths_of(["encoders.@a.embedding.weight", "encoders.@a.layers.0.w", "encoders.@a.layers.1.w", "heads.@b.bias"]).below
        {'encoders.@a.embedding.weight': 3, 'encoders.@a.layers.0.w': 2, 'encoders.@a.layers.1.w': 1, 'heads.@b.bias': 0}
    """
    ordered = list(names)
    found = {name: match for name in ordered if not name.startswith(_ABOVE) and (match := _BLOCK.match(name))}
    sizes: dict[str, int] = {}
    for match in found.values():
        sizes[match["stack"]] = max(sizes.get(match["stack"], 0), int(match["number"]) + 1)
    # The dense layers behind an encoder (`x.layers` beside `x.encoder`) are no blocks of it.
    inner = {stack for stack in sizes if any(_is_behind(stack, other) for other in sizes)}
    sizes = {stack: size for stack, size in sizes.items() if stack not in inner}
    first = {
        stack: min(i for i, name in enumerate(ordered) if name.startswith(f"{stack}.")) for stack in sizes
    }
    below: dict[str, int] = {}
    for i, name in enumerate(ordered):
        match = found.get(name)
        if match is not None and match["stack"] in sizes:
            below[name] = sizes[match["stack"]] - int(match["number"])
            continue
        own = [stack for stack in sizes if name.startswith(_parent(stack))]
        own = own or [stack for stack in sizes if _root(stack) == _root(name)]
        under = [stack for stack in own if i < first[stack] or _EMBEDDING.search(name)]
        below[name] = max((sizes[stack] + 1 for stack in under), default=0)
        if name.startswith(_ABOVE):
            below[name] = 0
    return Depths(max(sizes.values(), default=0), below)


def _root(name: str) -> str:
    """Return the encoder that a name belongs to; a model that has none is one by itself."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "encoders" else ""


def _parent(stack: str) -> str:
    """Return what the names beside a stack begin with."""
    return stack.rpartition(".")[0] + "."


def _is_behind(stack: str, other: str) -> bool:
    return other.startswith(f"{_parent(stack)}encoder.")
