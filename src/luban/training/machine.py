"""What this machine is quick at: device and precision, chosen by measuring once."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from luban import files

__all__ = ["Choice", "choose", "cores", "describe", "peak_memory_mb", "threads"]

_WIDTHS = (64, 256, 1024)
_GAIN = 1.3  # bf16 must be so much quicker before its rounding is worth it


@dataclass(frozen=True)
class Choice:
    """Device and precision of a run, and why.

    Attributes:
        device: where the work is done.
        precision: ``fp32`` or ``bf16``.
        why: one line for the user.
        peak: measured floating-point operations a second of large matrix products in this precision.
    """

    device: torch.device
    precision: str
    why: str
    peak: float


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use this many CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processor_name() -> str:
    """Return the name of the CPU."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe(device: torch.device) -> str:
    """Return what to call a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()}, {cores()} cores"


def _speed(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Floating-point operations a second of the three products of a dense layer's training step."""
    rows = 1024 if device.type == "cpu" else 8192
    x = torch.randn(rows, width, device=device).to(dtype)
    w = torch.randn(width, width, device=device).to(dtype)

    def work() -> None:
        y = x @ w.T
        _ = y.T @ x
        _ = y @ w

    work()
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 3 * 2 * rows * width * width / best


@cache
def _measured(device_name: str, cores: int) -> dict[str, Any]:
    """Return speeds by precision and width; measured once for a machine, then read from the cache."""
    path = files.cache_folder() / "machine.json"
    key = f"{device_name} | torch {torch.__version__} | {cores} cores"
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if key not in known:
        device = torch.device("cuda" if torch.cuda.is_available() and "cuda" in device_name else "cpu")
        state = torch.get_rng_state()
        known[key] = {
            name: {str(width): _speed(device, dtype, width) for width in _WIDTHS}
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        }
        torch.set_rng_state(state)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            beside.write_text(json.dumps(known, indent=1), encoding="utf-8")
            beside.replace(path)
        except OSError:
            pass  # a cache that cannot be written costs a second next time
    result: dict[str, Any] = known[key]
    return result


def choose(device: str, precision: str, width: int) -> Choice:
    """Choose device and precision.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        width: the narrower side of the model's widest matrix; small ones gain nothing from bf16.
    """
    cuda = torch.cuda.is_available()
    where = torch.device("cuda" if device == "cuda" or (device == "auto" and cuda) else "cpu")
    name = describe(where) + (" cuda" if where.type == "cuda" else "")
    with threads(cores()):
        speeds = _measured(name, cores())
    nearest = min(_WIDTHS, key=lambda w: abs(w - width))
    gain = speeds["bf16"][str(nearest)] / speeds["fp32"][str(nearest)]
    picked = precision if precision != "auto" else ("bf16" if gain >= _GAIN and width >= 128 else "fp32")
    reason = (
        "asked for" if precision != "auto" else f"bf16 is {gain:.1f}x as quick as fp32 at width {nearest}"
    )
    return Choice(
        where, picked, f"{where.type} ({describe(where)}), {picked} ({reason})", max(speeds[picked].values())
    )


def peak_memory_mb() -> float:
    """Return the most memory this process ever held, in MiB."""
    import resource

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20 if platform.system() == "Darwin" else kib / 2**10
