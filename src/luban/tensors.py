"""Tensors in a file, as safetensors."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from luban.errors import MachineError

__all__ = ["write_tensors"]


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors; those that share memory (tied weights) are written twice and load alike.

    Raises:
        OSError: if the disk is full.
        MachineError: if the file cannot be written for another reason.
    """
    seen: set[int] = set()
    distinct: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        pointer = value.untyped_storage().data_ptr()
        distinct[name] = value.clone() if pointer in seen else value
        seen.add(pointer)
    try:
        safetensors.torch.save_file(distinct, path, metadata={"format": "pt"})  # which transformers asks for
    except safetensors.SafetensorError as error:  # the library wraps the operating system's errors
        if "os error 28" in str(error) or "os error 122" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
        raise MachineError(f"'{path.name}' could not be written: {error}") from error
