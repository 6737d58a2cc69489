"""Draw the top of a pretrained model anew (Zhang et al., 2020, 'Revisiting few-sample BERT fine-tuning')."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn

from luban.adapt._base import Adaptation
from luban.adapt._surgery import depths_of
from luban.errors import RecipeError
from luban.models._core import Core, Shape
from luban.registry import register

__all__ = ["Reinitialise"]


@register("adapt")
class Reinitialise(Adaptation):
    """The top blocks and the pooler get new weights before training.

    They are the most specialised in what the model was pretrained for; with a few thousand rows, fine-tuning that starts
    without them is better and varies less from seed to seed (Zhang et al., 2020). They are drawn as for training from scratch.

    Example:
        >>> Reinitialise(layers=2).layers
        2
    """

    layers: Annotated[int, Option(ge=0)] = 1
    """How many blocks, from the top."""
    pooler: bool = True
    """Whether the pooler is drawn anew too, where there is one."""

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if not self.layers and not self.pooler:
            raise ValueError(
                "layers is 0 and pooler is false, so nothing would be drawn anew; remove the step"
            )
        return self

    def apply(self, model: nn.Module) -> nn.Module:
        """Draw the weights, in place."""
        names = [name for name, _ in model.named_parameters()]
        if any(".lora_" in f".{name}" for name in names):
            raise RecipeError(
                "adapt reinitialise: it draws weights anew that lora has frozen; put it before lora"
            )
        depths = depths_of(names)
        if self.layers >= max(depths.blocks, 1):
            raise RecipeError(
                f"adapt reinitialise: layers is {self.layers}, and the model has {depths.blocks} blocks, of which at least one must stay"
                if depths.blocks
                else "adapt reinitialise: the model has no blocks (parameters called '...layers.N...'); it is for bert, llama and their like"
            )
        chosen = {name for name, below in depths.below.items() if 1 <= below <= self.layers}
        if self.pooler:
            chosen |= {name for name in names if ".pooler." in name}
        if not chosen:
            raise RecipeError(
                "adapt reinitialise: layers is 0 and the model has no pooler, so nothing would be drawn anew"
            )
        for root, module in model.named_modules():
            if isinstance(module, Core):
                for number, block in enumerate(module.layers):
                    name = f"{root}.layers.{number}"
                    if any(one.startswith(f"{name}.") for one in chosen):
                        block.load_state_dict(_fresh_block(module.shape))
                        chosen = {one for one in chosen if not one.startswith(f"{name}.")}
        # Blocks of other forms, and poolers: as their layers draw themselves, dense ones of language models as all there.
        for name, module in model.named_modules():
            if {f"{name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)} & chosen:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                elif hasattr(module, "reset_parameters"):
                    reset: Any = module.reset_parameters
                    reset()
                else:
                    raise RecipeError(f"adapt reinitialise: nothing is known of how '{name}' was drawn")
        return model

    def finish(self, model: nn.Module) -> tuple[nn.Module, Adaptation | None]:
        """Nothing is left to do again: what was drawn has been trained since."""
        return model, None


def _fresh_block(shape: Shape) -> dict[str, Tensor]:
    """Return new weights of one block, drawn as `Core` draws them, which goes by how many blocks there are."""
    alone = Core(replace(shape, layers=1, vocabulary=0, positions="none", segments=0))
    alone.shape = shape
    alone.reset()
    return alone.layers[0].state_dict()
