"""How tokens are chosen, and when a text ends."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field as Limit
from pydantic import model_validator

from luban.recipe import Config

__all__ = ["Generation"]


class Generation(Config):
    """How a text is generated.

    With temperature 0, the default, each token is the most probable one. With more, it is drawn: logits are divided by the
    temperature, then cut by `top_k`, `top_p` and `min_p`, in this order. With `beams`, several texts are pursued at a time and
    the most probable one is taken.

    Example:
        >>> Generation(temperature=0.7, top_p=0.9).max_tokens
        256
    """

    max_tokens: Annotated[int, Limit(ge=1)] = 256
    """Tokens of the generated text, at most."""
    temperature: Annotated[float, Limit(ge=0)] = 0.0
    """Factor by which the differences between logits are divided before a token is drawn; 0 takes the most probable one."""
    top_k: Annotated[int, Limit(ge=1)] | None = None
    """Draw among the so many most probable tokens (Fan et al., 2018)."""
    top_p: Annotated[float, Limit(gt=0, le=1)] | None = None
    """Draw among the most probable tokens that together have this probability (Holtzman et al., 2020)."""
    min_p: Annotated[float, Limit(gt=0, le=1)] | None = None
    """Draw among the tokens that have this part of the most probable one's probability (Nguyen et al., 2024)."""
    repetition_penalty: Annotated[float, Limit(gt=0)] = 1.0
    """Positive logits of tokens that the text has are divided by this, negative ones multiplied (Keskar et al., 2019)."""
    beams: Annotated[int, Limit(ge=1)] = 1
    """Texts that are pursued at a time; 1 is no search."""
    length_penalty: float | None = None
    """A found text's log-probability is divided by its length to this power: above 0, long texts gain (default 1)."""
    early_stopping: bool | Literal["never"] | None = None
    """When a search ends: true, once as many texts as beams are found; false (default), once none is likely to be better;
    never, once none can be better."""
    stop: list[Annotated[str, Limit(min_length=1)]] = []
    """A text ends before the first of these that it would contain."""
    seed: Annotated[int, Limit(ge=0, lt=2**63)] | None = None
    """Of the draws: the same prompt in the same row of the data gets the same text; drawn if left out."""
    json_schema: dict[str, Any] | None = None
    """The text is JSON of this schema."""
    regex: str | None = None
    """The text as a whole matches this regular expression."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        drawn = [key for key in ("top_k", "top_p", "min_p", "seed") if getattr(self, key) is not None]
        searched = [key for key in ("length_penalty", "early_stopping") if getattr(self, key) is not None]
        if self.beams > 1:
            if self.temperature:
                raise ValueError(
                    f"beams {self.beams} looks for the most probable text and temperature {self.temperature} draws one: "
                    "set temperature 0, or remove beams"
                )
            if self.stop:
                raise ValueError("beams ends a text at its end token only: remove stop, or remove beams")
        if drawn and not self.temperature:
            raise ValueError(
                f"{' and '.join(drawn)} would do nothing, because temperature 0 draws no token: set a temperature, or remove them"
            )
        if searched and self.beams == 1:
            raise ValueError(
                f"{' and '.join(searched)} would do nothing without beams: set beams above 1, or remove them"
            )
        if self.json_schema is not None and self.regex is not None:
            raise ValueError(
                "json_schema and regex are both given, and a text follows one of them: remove one"
            )
        return self
