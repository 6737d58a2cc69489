"""Models of both sides with the same weights, and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from generation_cases import VOCABULARY, Pair, ours, theirs


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return a model of `transformers` and the same one of Luban's."""
    made: dict[str, tuple[Any, torch.nn.Module]] = {}

    def of(kind: str) -> tuple[Any, torch.nn.Module]:
        if kind not in made:
            path = Path(tmp_path_factory.mktemp(kind))
            model = theirs(kind)
            model.save_pretrained(path)
            made[kind] = (model, ours(kind, **{"from": str(path)}))
        return made[kind]

    return of


@pytest.fixture
def prompts() -> list[list[int]]:
    """Prompts of different lengths, one of them a single token."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, VOCABULARY, (n,), generator=generator).tolist() for n in (7, 1, 12, 5)]
