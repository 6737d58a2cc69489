"""Somebody else's weights: read from Hugging Face directories, GGUF files and artefacts; written for `transformers`.

::

    options_of ── config.json ──▶ keys of a family        load_into ── tensors ──▶ our module
    configs.py: what the keys are called                  names.py: what the tensors are called
"""

from __future__ import annotations

from luban.models.interop.checkpoint import Checkpoint, located, open_checkpoint
from luban.models.interop.configs import FAMILIES, config_of, options_of
from luban.models.interop.names import load_into, tensors_of

__all__ = [
    "FAMILIES",
    "Checkpoint",
    "config_of",
    "load_into",
    "located",
    "open_checkpoint",
    "options_of",
    "tensors_of",
]
