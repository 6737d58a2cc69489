"""A language model with int8 weights: a quarter of the memory, and about three times the tokens a second where a CPU reads them.

Only weights are rounded, each row by a scale of its own; what flows between them stays in fp32.
"""

from __future__ import annotations

from torch import nn

from luban.errors import RecipeError
from luban.models._core import Vocabulary
from luban.models._decoding import language_model_of
from luban.models._language import LanguageEncoder
from luban.models._step import Int8Embedding, Int8Linear, Int8Vocabulary

__all__ = ["to_int8"]


def to_int8(module: nn.Module) -> nn.Module:
    """Round the weights of a language model to int8, in place, and return it.

    Linear layers, the table of tokens and the way to the vocabulary are replaced; norms, biases, learned positions and the
    heads of other targets stay. The result generates and scores, and is not for training.

    Args:
        module: a network with one causal language model.

    Raises:
        RecipeError: if the layers are not Luban's own, or one is of a kind that cannot be rounded, as one with an adapter that was
            not merged.

    Example:
        >>> to_int8(module)      # doctest: +SKIP
        Network(...)
    """
    encoder = language_model_of(module)
    if not isinstance(encoder, LanguageEncoder):
        raise RecipeError(
            f"int8 weights are for layers of Luban's own, and '{encoder.kind}' has others; take the stored weights, or import the model "
            "as gpt2, llama, qwen2, qwen3 or smollm where it is one"
        )
    core, language = encoder.core, encoder.language
    if not isinstance(language, Vocabulary) or language.transform is not None:
        raise RecipeError(
            f"int8 weights are for models that generate, and this '{encoder.options.type}' does not"
        )
    for name, layer in core.layers.named_modules():
        if isinstance(layer, nn.Linear) and type(layer) is not nn.Linear:
            raise RecipeError(
                f"layer {name} is a {type(layer).__name__}, whose weights cannot be rounded as they are: merge adapters first"
            )
    for parent in list(core.layers.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
    table = core.embedding.tokens
    assert table is not None
    rounded_table = Int8Embedding(table.weight)
    core.embedding.add_module("tokens", rounded_table)
    tied = language.weight is None
    matrix = rounded_table if tied else Int8Embedding(language.matrix)
    encoder.add_module("language", Int8Vocabulary(matrix, language.bias, tied=tied))
    return module
