"""Leave some parameters as they are."""

from __future__ import annotations

import fnmatch
from typing import Annotated

from pydantic import Field as Option
from torch import nn

from luban.adapt._base import Adaptation
from luban.errors import RecipeError
from luban.registry import register

__all__ = ["Freeze"]


@register("adapt")
class Freeze(Adaptation):
    """Parameters whose names match a pattern get no gradient.

    Example:
        >>> net = Freeze(patterns=["0.*"]).apply(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
        >>> [name for name, p in net.named_parameters() if p.requires_grad]
        ['1.weight', '1.bias']
    """

    patterns: Annotated[list[str], Option(min_length=1)]
    """Names of parameters to leave alone, with * and ?; `luban check` lists the names."""

    def apply(self, model: nn.Module) -> nn.Module:
        names = [name for name, _ in model.named_parameters()]
        for pattern in self.patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise RecipeError(
                    f"adapt freeze: no parameter matches '{pattern}'; parameters are {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
                )
        for name, parameter in model.named_parameters():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns):
                parameter.requires_grad_(False)
        return model
