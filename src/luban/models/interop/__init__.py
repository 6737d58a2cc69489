"""Somebody else's weights: read from Hugging Face directories, GGUF files and artefacts; written for `transformers`.

::

    options_of ── config.json ──▶ keys of a family        load_into ── tensors ──▶ our module
    config_of  ◀── config.json ── keys of a family        tensors_of ◀── tensors ── our module
         └───────────────── as bert.py, gpt2.py, llama.py and seq2seq.py declare ──────┘
"""

from __future__ import annotations

from luban.models.interop.checkpoint import Checkpoint, located, open_checkpoint
from luban.models.interop.configs import config_of, options_of
from luban.models.interop.families import FAMILIES, KINDS, kind_of, layout_of
from luban.models.interop.names import load_into, tensors_of

__all__ = [
    "FAMILIES",
    "KINDS",
    "Checkpoint",
    "config_of",
    "kind_of",
    "layout_of",
    "load_into",
    "located",
    "open_checkpoint",
    "options_of",
    "tensors_of",
]
