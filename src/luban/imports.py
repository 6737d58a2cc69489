"""Imports of large libraries, made quicker."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["own_process", "uncollected"]

_owned = False


def own_process() -> None:
    """Say that this process runs Luban and nothing else, so that what imports leave may be frozen; see `uncollected`."""
    global _owned
    _owned = True


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause Python's garbage collector while the block imports.

    Importing torch and the compiler that its optimizers bring along makes 300,000 objects, all of which stay. The collector
    goes through them again and again as they come; without it these imports take a quarter less time. Where nobody else's
    objects can be among them they are also frozen: the collector, back at work, leaves them out, and each full collection is
    0.2 s shorter. A block that imports nothing, since an earlier one did, freezes nothing.
    """
    enabled, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if _owned and len(sys.modules) > known:
            gc.freeze()
        if enabled:
            gc.enable()
