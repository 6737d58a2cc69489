"""What this machine is quick at: device and precision, chosen by measuring once."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from luban import files

__all__ = ["Choice", "choose", "cores", "describe", "peak_memory_mb", "reuse_memory", "threads"]

_WIDTHS = (256, 1024)
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of <malloc.h>
_NARROW = 128  # below it, converting costs more than the product
_GAIN = 1.3  # bf16 must be so much quicker before its rounding is worth it


@dataclass(frozen=True)
class Choice:
    """Device and precision of a run, and why.

    Attributes:
        device: where the work is done.
        precision: ``fp32`` or ``bf16``.
        why: one line for the user.
    """

    device: torch.device
    precision: str
    why: str

    def peak(self) -> float:
        """Return floating-point operations a second of large matrix products, measured once for a machine."""
        return _measured(self.device.type, self.precision, max(_WIDTHS))


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


@cache
def reuse_memory() -> None:
    """Let the C library keep large blocks that were freed, instead of handing them back page by page.

    A step allocates and frees the same large gradients again and again; fetching them anew from the kernel each time costs
    more than the step. On a bag of n-grams with 8 million parameters: 7.2 s of system time without, 0.6 s with.
    """
    if platform.system() != "Linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return
    for size in (1 << 30, 1 << 25):  # older versions take no more than 32 MiB
        if mallopt(_MMAP_THRESHOLD, size):
            break
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


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
    for _ in range(3):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 3 * 2 * rows * width * width / best


@cache
def _measured(device: str, precision: str, width: int) -> float:
    """Return the speed of products of a width; measured once for a machine, then read from the cache."""
    where = torch.device(device)
    path = files.cache_folder() / "machine.json"
    key = f"{describe(where)} | torch {torch.__version__} | {precision} | width {width}"
    try:
        known: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return float(known[key])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    state = torch.get_rng_state()
    with threads(cores()):
        speed = _speed(where, torch.bfloat16 if precision == "bf16" else torch.float32, width)
    torch.set_rng_state(state)
    with suppress(OSError, ValueError, TypeError):  # a cache that cannot be written costs a moment next time
        path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(json.dumps({**known, key: speed}, indent=1), encoding="utf-8")
        beside.replace(path)
    return speed


def choose(device: str, precision: str, width: int) -> Choice:
    """Choose device and precision.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        width: the narrower side of the model's widest matrix; small ones gain nothing from bf16.
    """
    cuda = torch.cuda.is_available()
    where = torch.device("cuda" if device == "cuda" or (device == "auto" and cuda) else "cpu")
    nearest = min(_WIDTHS, key=lambda w: abs(w - width))
    if precision != "auto":
        picked, reason = precision, "asked for"
    elif width < _NARROW:
        picked, reason = "fp32", f"matrices of width {width} are too small for bf16 to pay"
    else:
        gain = _measured(where.type, "bf16", nearest) / _measured(where.type, "fp32", nearest)
        picked = "bf16" if gain >= _GAIN else "fp32"
        reason = f"bf16 is {gain:.1f}x as quick as fp32 at width {nearest}"
    return Choice(where, picked, f"{where.type} ({describe(where)}), {picked} ({reason})")


def peak_memory_mb() -> float:
    """Return the most memory this process ever held, in MiB."""
    import resource

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20 if platform.system() == "Darwin" else kib / 2**10
