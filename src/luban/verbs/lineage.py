"""What every verb that writes an artefact says of its surroundings."""

from __future__ import annotations

import platform
from importlib.metadata import version

from luban._version import __version__

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    packages = ("torch", "numpy", "polars", "tokenizers", "safetensors", "scikit-learn")
    return {
        "luban": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
