"""All families of checkpoints that are read and written: a new one is a module beside this, named here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luban.models.interop import bert, gpt2, llama, seq2seq
from luban.models.interop.declaration import Kind, Layout

if TYPE_CHECKING:
    from luban.models._language import Language

__all__ = ["FAMILIES", "KINDS", "kind_of", "layout_of"]

_LAYOUTS: dict[str, Layout] = {**bert.LAYOUTS, **gpt2.LAYOUTS, **llama.LAYOUTS, **seq2seq.LAYOUTS}
KINDS: dict[str, tuple[Kind, Layout]] = {
    name: (kind, layout) for layout in _LAYOUTS.values() for name, kind in layout.kinds.items()
}
"""Model type of Hugging Face → what is known about it, and how it is laid out."""
FAMILIES: dict[str, tuple[str, ...]] = {
    family: tuple(name for name, (kind, _) in KINDS.items() if family in kind.read_by)
    for one, _ in KINDS.values()
    for family in one.read_by
}
"""Type of ours → model types of Hugging Face that it reads."""


def layout_of(model: Language) -> Layout:
    """Return how the checkpoints of a family are laid out; one that is not named here is a Llama of somebody's own."""
    name = getattr(model, "layout", None)
    return _LAYOUTS[name] if name in _LAYOUTS else KINDS[FAMILIES.get(model.type, FAMILIES["llama"])[0]][1]


def kind_of(model: Language) -> str:
    """Return the model type of Hugging Face that a family writes.

    Raises:
        RecipeError: if `transformers` has no such form.
    """
    own = layout_of(model).kind
    return FAMILIES[model.type][0] if own is None else own(model)
