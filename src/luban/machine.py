"""What this machine is quick at: device, precision and library of the matrix products, chosen by measuring once."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from luban import files
from luban.errors import RecipeError
from luban.models._products import Products, available, by_onednn
from luban.models._settled import settled

__all__ = [
    "Choice",
    "choose",
    "choose_products",
    "cores",
    "describe",
    "inference",
    "peak_memory_mb",
    "quick_products",
    "reuse_memory",
    "threads",
    "widest",
]

_WIDTHS = (256, 1024)
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of <malloc.h>
_NARROW = 128  # below it, converting costs more than the product
_GAIN = 1.3  # bf16 must be so much quicker before its rounding is worth it, and oneDNN before another order of sums is


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
        return _quickest(self.device.type, self.precision, max(_WIDTHS))


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


def _speed(device: torch.device, arithmetic: str, width: int) -> float:
    """Floating-point operations a second of the three products of a dense layer's training step; of one core, on a CPU."""
    rows = 1024 if device.type == "cpu" else 8192
    dtype = torch.bfloat16 if arithmetic == "bf16" else torch.float32
    x = torch.randn(rows, width, device=device).to(dtype)
    w = torch.randn(width, width, device=device).to(dtype)
    product = by_onednn if arithmetic == "onednn" else F.linear
    # The time of the processor, of a single thread: neighbours take the processor away, but hardly make it slower.
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def work() -> None:
        y = product(x, w)
        _ = product(y.T, x.T)
        _ = product(y, w.T)

    work()
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return 3 * 2 * rows * width * width / max(best, 1e-9)


@cache
def _measured(device: str, arithmetic: str, width: int) -> float:
    """Return the speed of products of a width, by ``fp32`` of the BLAS, ``onednn`` or ``bf16``; measured once for a machine,
    then read from the cache. On a CPU it is that of one core times their number."""
    where = torch.device(device)
    path = files.cache_folder() / "machine.json"
    key = f"{describe(where)} | torch {torch.__version__} | {arithmetic} | width {width} | by core"
    try:
        known: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return float(known[key])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    state = torch.get_rng_state()
    with threads(1), torch.no_grad():
        speed = _speed(where, arithmetic, width) * (cores() if device == "cpu" else 1)
    torch.set_rng_state(state)
    with suppress(OSError, ValueError, TypeError):  # a cache that cannot be written costs a moment next time
        path.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(json.dumps({**known, key: speed}, indent=1), encoding="utf-8")
        beside.replace(path)
    return speed


def _quickest(device: str, precision: str, width: int) -> float:
    """Return the speed of products of a width in a precision, by whatever library is quicker."""
    speed = _measured(device, precision, width)
    if device == "cpu" and precision == "fp32" and available():
        return max(speed, _measured(device, "onednn", width))
    return speed


def _nearest(width: int) -> int:
    return min(_WIDTHS, key=lambda w: abs(w - width))


def choose_products(asked: str, choice: Choice, width: int) -> tuple[str, str]:
    """Choose what multiplies matrices in fp32 on a CPU, ``onednn`` or ``blas``, and say why.

    Args:
        asked: ``auto``, ``onednn`` or ``blas``.
        choice: device and precision; elsewhere there is nothing to choose.
        width: the narrower side of the model's widest matrix.

    Raises:
        RecipeError: if oneDNN is asked for, and this PyTorch cannot be asked to take it.
    """
    if asked == "onednn" and not available():
        raise RecipeError("train.products is onednn, which this PyTorch does not have; take auto or blas")
    if choice.device.type != "cpu" or choice.precision != "fp32":
        return "blas", "products: none in fp32 on a CPU"
    if asked != "auto":
        return asked, f"products: {asked} (asked for)"
    if width < _NARROW or not available():
        return "blas", "products: blas"
    gain = _measured("cpu", "onednn", _nearest(width)) / _measured("cpu", "fp32", _nearest(width))
    return "onednn" if gain >= _GAIN else "blas", f"products: oneDNN is {gain:.1f}x as quick as the BLAS"


def widest(module: nn.Module) -> int:
    """Return the narrower side of a model's widest matrix, which decides what a product of it gains; 1 without any."""
    sides = (min(len(p), p[0].numel()) for p in module.parameters() if p.dim() >= 2 and len(p))
    return max(sides, default=1)


def quick_products(module: nn.Module, device: torch.device) -> AbstractContextManager[object]:
    """Have a model's products in fp32 on a CPU made by whichever library is the quicker one on this machine."""
    products, _ = choose_products("auto", Choice(device, "fp32", ""), widest(module))
    return Products() if products == "onednn" else nullcontext()


@contextmanager
def inference(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Only read a model's weights within the block: nothing is kept for gradients, and what is quickest on this machine computes."""
    with torch.inference_mode(), settled(), quick_products(module, device):
        yield


def choose(device: str, precision: str, width: int) -> Choice:
    """Choose device and precision.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        width: the narrower side of the model's widest matrix; small ones gain nothing from bf16.
    """
    cuda = torch.cuda.is_available()
    where = torch.device("cuda" if device == "cuda" or (device == "auto" and cuda) else "cpu")
    nearest = _nearest(width)
    if precision != "auto":
        picked, reason = precision, "asked for"
    elif width < _NARROW:
        picked, reason = "fp32", f"matrices of width {width} are too small for bf16 to pay"
    else:
        gain = _measured(where.type, "bf16", nearest) / _quickest(where.type, "fp32", nearest)
        picked = "bf16" if gain >= _GAIN else "fp32"
        reason = f"bf16 is {gain:.1f}x as quick as fp32 at width {nearest}"
    return Choice(where, picked, f"{where.type} ({describe(where)}), {picked} ({reason})")


def peak_memory_mb() -> float:
    """Return the most memory this process ever held, in MiB."""
    import resource

    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20 if platform.system() == "Darwin" else kib / 2**10
