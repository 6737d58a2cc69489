"""What Luban computes on a CPU with C++ of its own, where a compiler is found: attention, and dropout + residual + layer norm.

The source `_kernels.cpp` is compiled once a machine, in the background of the first run that could use it, into Luban's
cache; that run goes without. A process decides once which it takes, since the last bits of the results differ and a run that
is resumed must be able to repeat itself; `in_use` is what a checkpoint should remember, and `use` what it should call.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luban import files
from luban.errors import MachineError, MissingError
from luban.models._layers import dropout as drop

__all__ = ["add_norm", "attention", "decode_step", "few_products", "in_use", "use", "useful"]

SOURCE = Path(__file__).with_name("_kernels.cpp")
STEP = SOURCE.with_name("_step.cpp")  # what it includes
# Traps and errno are what keeps loops from becoming vectors; NaN, infinity and the order of sums stay as they are written.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
WIDEST = 256  # head size that the source is written for
STALE = 600.0  # seconds after which a build that left neither a library nor an error is taken for dead

# Arguments: compiler, source, library to be, text of a failure to be, folder of its own, flags. Linked without OpenMP: its
# functions are then those of the library that PyTorch has loaded, and both share one pool of threads, not two that compete.
_BUILD = """
compiler=$1 source=$2 library=$3 failure=$4 folder=$5; shift 5
"$compiler" --version > "$folder/about" 2>&1
if "$compiler" "$@" -c "$source" -o "$folder/kernels.o" 2> "$folder/log" &&
   "$compiler" -shared "$folder/kernels.o" -o "$folder/kernels.so" 2>> "$folder/log"
then mv "$folder/about" "${library%.so}.about"; mv "$folder/kernels.so" "$library"
else echo "exit code $?" >> "$folder/log"; mv "$folder/log" "$failure"
fi
rm -rf "$folder"
"""


# --- which is used --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    library: ctypes.CDLL | None
    why: str


_chosen: _Choice | None = None
_automatic: _Choice | None = None
_lock = threading.Lock()


def use(which: Literal["auto", "native", "torch"]) -> str:
    """Choose what this process computes with, and say in one line what that is and why.

    Args:
        which: ``native`` is Luban's own kernel, built now if need be; ``torch`` is PyTorch alone; ``auto`` takes the kernel if it
            was built before this process first asked, and otherwise has it built in the background for the next.

    Raises:
        MissingError: if ``native`` is asked for and there is no compiler.
        MachineError: if it does not compile or does not load.
    """
    global _chosen, _automatic
    with _lock:
        if which == "torch":
            _chosen = _Choice(None, "torch, as asked for")
        elif which == "native":
            _chosen = _build_now()
        else:
            _automatic = _chosen = _automatic or _look()
        return f"attention: {_chosen.why}"


def in_use() -> Literal["native", "torch"]:
    """Return what this process computes with; decides as ``use("auto")`` does if nothing has been chosen."""
    return "torch" if _library() is None else "native"


def _library() -> ctypes.CDLL | None:
    if _chosen is None:
        use("auto")
    assert _chosen is not None
    return _chosen.library


# --- building ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where what this compiler makes of this source for this processor lies, or will."""

    compiler: str
    library: Path

    @property
    def failure(self) -> Path:
        """What the compiler said, if it failed."""
        return self.library.with_suffix(".failed")

    @property
    def about(self) -> Path:
        """What the compiler says of itself."""
        return self.library.with_suffix(".about")

    @property
    def building(self) -> Path:
        """The folder of the build in the background; who makes it builds."""
        return self.library.with_suffix(".building")

    def command(self, folder: Path) -> list[str]:
        """Return what builds in `folder`, and removes it."""
        paths = (SOURCE, self.library, self.failure, folder)
        return ["sh", "-c", _BUILD, "sh", self.compiler, *map(str, paths), *FLAGS]


def _compiler() -> str | None:
    """Return the path of a C++ compiler: ``$CXX``, or the first of the usual names."""
    if not shutil.which("sh"):
        return None
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@functools.cache
def _processor() -> str:
    """Return what ``-march=native`` depends on: a cache may lie on a disk that machines share."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    said = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return platform.machine() + "".join(sorted(said))


def _place() -> _Place | None:
    compiler = _compiler()
    if compiler is None:
        return None
    state = (
        Path(compiler).resolve().stat()
    )  # another version is another file, and asking it would start a process
    parts = (
        compiler,
        state.st_size,
        state.st_mtime_ns,
        FLAGS,
        _processor(),
        *(path.read_text("utf-8") for path in (SOURCE, STEP)),
    )
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
    return _Place(compiler, files.cache_folder() / "kernels" / f"{name}.so")


def _look() -> _Choice:
    """Take what is there; if nothing is, have it built for the next process."""
    try:
        place = _place()
        if place is None:
            return _Choice(None, "torch; no C++ compiler was found to build the native kernel with")
        if place.library.exists():
            return _load(place)
        if place.failure.exists():
            return _Choice(None, f"torch; the native kernel did not compile, see {place.failure}")
        _build_later(place)
    except OSError as error:
        return _Choice(None, f"torch; the native kernel cannot be built or loaded: {error}")
    return _Choice(None, "torch; the native kernel is being built for the next run")


def _build_later(place: _Place) -> None:
    place.library.parent.mkdir(parents=True, exist_ok=True)
    if place.building.exists() and time.time() - place.building.stat().st_mtime > STALE:
        shutil.rmtree(place.building, ignore_errors=True)
    try:
        place.building.mkdir()
    except FileExistsError:
        return  # another process is at it
    # In a session of its own, so that it ends well even if this process ends or is interrupted before; at a low priority,
    # which leaves the processor to the run.
    command = place.command(place.building)
    process = subprocess.Popen(
        ["nice", *command] if shutil.which("nice") else command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    threading.Thread(target=process.wait, daemon=True).start()  # so that no dead process is left standing


def _build_now() -> _Choice:
    place = _place()
    if place is None:
        raise MissingError(
            "the native kernel needs a C++ compiler, and neither c++, g++ nor clang++ was found: install one (apt-get install g++), "
            "or use 'torch'"
        )
    if not place.library.exists():
        with files.writing(f"'{place.library}'"):
            place.library.parent.mkdir(parents=True, exist_ok=True)
            place.failure.unlink(missing_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{place.library.stem}.", dir=place.library.parent))
        subprocess.run(place.command(folder), check=False)
        if not place.library.exists():
            raise MachineError(
                f"the native kernel did not compile with '{place.compiler}', see {place.failure}; use 'torch'"
            )
    try:
        return _load(place)
    except OSError as error:
        raise MachineError(f"the native kernel does not load: {error}; use 'torch'") from error


def _load(place: _Place) -> _Choice:
    library = ctypes.CDLL(str(place.library))
    for name in (
        "attention_forward",
        "attention_backward",
        "norm_forward",
        "norm_backward",
        "decode_step",
        "few_products",
    ):
        getattr(library, name).restype = None
    library.vectors.restype = ctypes.c_char_p
    version = re.search(r"\d+\.\d+", place.about.read_text("utf-8")) if place.about.exists() else None
    made_by = f"{Path(place.compiler).name} {version[0]}" if version else Path(place.compiler).name
    return _Choice(library, f"native kernel ({made_by}, {library.vectors().decode()})")


# --- what the kernels read ----------------------------------------------------------------------------------------


class _View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("position", ctypes.c_int64), ("head", ctypes.c_int64))


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("queries", "keys")),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "shared", "width")),
        *((name, ctypes.c_int64) for name in ("longest_queries", "longest_keys", "causal", "threads")),
        ("scale", ctypes.c_float),
        ("kept", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("threshold", ctypes.c_uint32),
    )


class _Norm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "parts", "threads")),
        ("eps", ctypes.c_float),
        ("kept", ctypes.c_float),
        ("seed", ctypes.c_uint64),
        ("threshold", ctypes.c_uint32),
    )


def _view(x: Tensor) -> Any:
    return ctypes.byref(_View(x.data_ptr(), x.stride(0), x.stride(1)))


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _dropout(probability: float) -> dict[str, Any]:
    """Return the fields that say what is dropped; the seed comes from PyTorch's generator, so that a run can be repeated."""
    if not probability:
        return {"kept": 1.0}
    threshold = min(round(probability * 2**32), 2**32 - 1)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    return {"threshold": threshold, "kept": 2**32 / (2**32 - threshold), "seed": seed}


def useful(*tensors: Tensor) -> bool:
    """Return whether the kernels can and should read these: fp32 on a CPU, and nobody who traces or transforms is looking."""
    return (
        all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
        and torch._C._get_tracing_state() is None
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and _library() is not None
    )


# --- attention --------------------------------------------------------------------------------------------------


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Tensor,
    keys: Tensor,
    longest: tuple[int, int],
    causal: bool,
    dropout: float,
    scale: float,
) -> Tensor:
    """Attend within rows; see `luban.models._attention.attend`, of which this is the path that is `useful`."""
    queries, keys = (offsets.to(torch.int64).contiguous() for offsets in (queries, keys))
    # The kernel reads where the offsets say.
    assert len(query) == int(queries[-1]), "the queries are not those of the plan"
    assert len(key) == len(value) == int(keys[-1]), "the keys or values are not those of the plan"
    fields = {
        "rows": len(queries) - 1,
        "heads": key.shape[1],
        "shared": query.shape[1] // key.shape[1],
        "width": query.shape[2],
        "longest_queries": longest[0],
        "longest_keys": longest[1],
        "causal": causal,
        "threads": torch.get_num_threads(),
        "scale": scale,
        **_dropout(dropout),
    }
    result: Tensor = _Attention.apply(query, key, value, queries, keys, fields)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Tensor,
        keys: Tensor,
        fields: dict[str, Any],
    ) -> Tensor:
        library = _library()
        assert library is not None
        query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
        out = query.new_empty(query.shape)
        sums = query.new_empty(query.shape[:2])
        problem = _Problem(queries=queries.data_ptr(), keys=keys.data_ptr(), **fields)
        views = (_view(x) for x in (query, key, value))
        library.attention_forward(ctypes.byref(problem), *views, _pointer(out), _pointer(sums))
        ctx.save_for_backward(query, key, value, queries, keys, out, sums)
        ctx.fields = fields
        return out.flatten(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        library = _library()
        assert library is not None
        query, key, value, queries, keys, out, sums = ctx.saved_tensors
        gradient = gradient.contiguous().view(out.shape)
        gradients = tuple(x.new_empty(x.shape) for x in (query, key, value))
        problem = _Problem(queries=queries.data_ptr(), keys=keys.data_ptr(), **ctx.fields)
        views = (_view(x) for x in (query, key, value))
        library.attention_backward(
            ctypes.byref(problem),
            *views,
            _pointer(out),
            _pointer(sums),
            _view(gradient),
            *map(_pointer, gradients),
        )
        return *gradients, None, None, None


# --- dropout, residual, layer normalisation ---------------------------------------------------------------------------


def add_norm(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dropout: float) -> Tensor:
    """Return ``layer_norm(residual + dropout(x))``, (T, D), over D (Ba et al., 2016).

    Args:
        residual, x: (T, D).
        weight, bias: (D,).
        eps: what is added to the variance.
        dropout: probability with which a value of `x` is dropped.
    """
    # Without dropout PyTorch's own two passes are as quick; with it the kernel takes 0.8 to 0.95 of their time.
    if dropout and x.dim() == 2 and x.shape == residual.shape and useful(residual, x, weight, bias):
        result: Tensor = _AddNorm.apply(residual, x, weight, bias, eps, _dropout(dropout))  # type: ignore[no-untyped-call]
        return result
    return F.layer_norm(residual + drop(x, dropout), weight.shape, weight, bias, eps)


class _AddNorm(torch.autograd.Function):
    PARTS = (
        16  # sums over rows are made in so many parts, whatever the number of threads: the result is the same
    )

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        fields: dict[str, Any],
    ) -> Tensor:
        library = _library()
        assert library is not None
        residual, x, weight, bias = (y.contiguous() for y in (residual, x, weight, bias))
        out, normal = torch.empty_like(x), torch.empty_like(x)
        inverse = x.new_empty(len(x))
        ctx.norm = _Norm(
            rows=x.shape[0],
            width=x.shape[1],
            parts=_AddNorm.PARTS,
            threads=torch.get_num_threads(),
            eps=eps,
            **fields,
        )
        library.norm_forward(
            ctypes.byref(ctx.norm), *map(_pointer, (residual, x, weight, bias, out, normal, inverse))
        )
        ctx.save_for_backward(normal, inverse, weight)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        library = _library()
        assert library is not None
        normal, inverse, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        d_residual, d_x = torch.empty_like(gradient), torch.empty_like(gradient)
        d_weight, d_bias = gradient.new_empty(2, _AddNorm.PARTS, gradient.shape[1])
        tensors = (gradient, normal, inverse, weight, d_residual, d_x, d_weight, d_bias)
        library.norm_backward(ctypes.byref(ctx.norm), *map(_pointer, tensors))
        return d_residual, d_x, d_weight.sum(0), d_bias.sum(0), None, None


# --- one token a row through a whole model ----------------------------------------------------------------------------


def decode_step(model: ctypes.Structure, tokens: ctypes.Structure) -> None:
    """Run a pass; `luban.models._step` says what over."""
    library = _library()
    assert library is not None
    library.decode_step(ctypes.byref(model), ctypes.byref(tokens))


def few_products(matrix: ctypes.Structure, x: Tensor, out: Tensor) -> None:
    """Fill `out` (T, rows) with the products of a matrix and each of a few vectors `x` (T, columns)."""
    library = _library()
    assert library is not None
    count, threads = ctypes.c_int64(len(x)), ctypes.c_int64(torch.get_num_threads())
    library.few_products(ctypes.byref(matrix), _pointer(x), count, _pointer(out), threads)
