"""C++ of Luban's own, where a compiler is found: built once a machine, in the background of the first run that could use it.

Every piece has a way without it that is always there. What is built lies in Luban's cache, under a name that tells the source, the
compiler and the processor, so nothing is ever out of date. Sources are plain C functions over pointers: no header of a library is
needed, a build takes seconds, and `ctypes` lets go of Python's lock while they run.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luban import files
from luban.errors import MachineError, MissingError

__all__ = ["FLAGS", "Native", "compiler"]

# Traps and errno are what keeps loops from becoming vectors; NaN, infinity and the order of sums stay as they are written.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
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


@dataclass(frozen=True)
class _Choice:
    library: ctypes.CDLL | None
    why: str
    awaited: _Place | None = None  # what is being built


class Native:
    """A C++ source and the library that it becomes.

    Args:
        source: the file; what it includes must be among `included`.
        included: files that lie beside it.
        prepare: is given the library once it is loaded, to say what its functions return; returns what to call it.
        instead: what computes without it, as sentences call it.
        option: what a user writes to do without it.
        late: whether a process may go over to the library as soon as it is built. Where the last bits of results differ from those
            of the other way it must not: a run that is resumed must be able to repeat itself.

    Example:
        >>> kernel = Native(Path("sum.cpp"), prepare=lambda library: "sum", instead="Python")
        >>> kernel.library() is None                                                     # doctest: +SKIP
        True
    """

    def __init__(
        self,
        source: Path,
        *included: Path,
        prepare: Callable[[ctypes.CDLL], str],
        instead: str,
        option: str = "none",
        late: bool = False,
    ) -> None:
        self.source, self.included = source, included
        self.instead, self.option, self.late = instead, option, late
        self._prepare = prepare
        self._chosen: _Choice | None = None
        self._automatic: _Choice | None = None
        self._lock = threading.Lock()

    # --- which is used -----------------------------------------------------------------------------------------

    def use(self, which: Literal["auto", "native", "none"]) -> str:
        """Choose what this process computes with, and say what that is and why.

        Args:
            which: ``native`` is the library, built now if need be; ``none`` is the way without it; ``auto`` takes the library if it
                was built before this process first asked, and otherwise has it built in the background, for the next process or,
                if it may come `late`, for this one.

        Raises:
            MissingError: if ``native`` is asked for and there is no compiler.
            MachineError: if it does not compile or does not load.
        """
        with self._lock:
            if which == "none":
                self._chosen = _Choice(None, f"{self.instead}, as asked for")
            elif which == "native":
                self._chosen = self._build_now()
            else:
                self._automatic = self._chosen = self._automatic or self._look()
            return self._chosen.why

    def library(self) -> ctypes.CDLL | None:
        """Return the library if it is used; decides as ``use("auto")`` does if nothing has been chosen."""
        if self._chosen is None:
            self.use("auto")
        chosen = self._chosen
        assert chosen is not None
        if chosen.awaited is not None and self.late:
            with self._lock:
                self._automatic = self._chosen = chosen = self._ready(chosen.awaited) or chosen
        return chosen.library

    # --- building ----------------------------------------------------------------------------------------------

    def _place(self) -> _Place | None:
        found = compiler()
        if found is None:
            return None
        # Another version of the compiler is another file; asking it would start a process.
        state = Path(found).resolve().stat()
        parts = (
            found,
            state.st_size,
            state.st_mtime_ns,
            FLAGS,
            _processor(),
            *(path.read_text("utf-8") for path in (self.source, *self.included)),
        )
        name = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
        return _Place(found, self.source, files.cache_folder() / "kernels" / f"{name}.so")

    def _look(self) -> _Choice:
        """Take what is there; if nothing is, have it built."""
        try:
            place = self._place()
            if place is None:
                why = f"{self.instead}; no C++ compiler was found to build the native kernel with"
                return _Choice(None, why)
            ready = self._ready(place)
            if ready is not None:
                return ready
            _build_later(place)
        except OSError as error:
            return _Choice(None, f"{self.instead}; the native kernel cannot be built or loaded: {error}")
        why = f"{self.instead}; the native kernel is being built" + ("" if self.late else " for the next run")
        return _Choice(None, why, place)

    def _ready(self, place: _Place) -> _Choice | None:
        """Return what a build has come to; None as long as it has come to nothing."""
        try:
            if place.library.exists():
                return self._load(place)
            if place.failure.exists():
                why = f"{self.instead}; the native kernel did not compile, see {place.failure}"
                return _Choice(None, why)
        except OSError as error:
            return _Choice(None, f"{self.instead}; the native kernel cannot be built or loaded: {error}")
        return None

    def _build_now(self) -> _Choice:
        place = self._place()
        if place is None:
            raise MissingError(
                "the native kernel needs a C++ compiler, and neither c++, g++ nor clang++ was found: install one "
                f"(apt-get install g++), or use '{self.option}'"
            )
        if not place.library.exists():
            with files.writing(f"'{place.library}'"):
                place.library.parent.mkdir(parents=True, exist_ok=True)
                place.failure.unlink(missing_ok=True)
                folder = Path(tempfile.mkdtemp(prefix=f"{place.library.stem}.", dir=place.library.parent))
            subprocess.run(place.command(folder), check=False)
            if not place.library.exists():
                raise MachineError(
                    f"the native kernel did not compile with '{place.compiler}', see {place.failure}; "
                    f"use '{self.option}'"
                )
        try:
            return self._load(place)
        except OSError as error:
            raise MachineError(f"the native kernel does not load: {error}; use '{self.option}'") from error

    def _load(self, place: _Place) -> _Choice:
        library = ctypes.CDLL(str(place.library))
        what = self._prepare(library)
        version = re.search(r"\d+\.\d+", place.about.read_text("utf-8")) if place.about.exists() else None
        made_by = f"{Path(place.compiler).name} {version[0]}" if version else Path(place.compiler).name
        return _Choice(library, f"native kernel ({made_by}, {what})")


@dataclass(frozen=True)
class _Place:
    """Where what this compiler makes of a source for this processor lies, or will."""

    compiler: str
    source: Path
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
        paths = (self.source, self.library, self.failure, folder)
        return ["sh", "-c", _BUILD, "sh", self.compiler, *map(str, paths), *FLAGS]


def compiler() -> str | None:
    """Return the path of a C++ compiler: ``$CXX``, or the first of the usual names; None if there is none."""
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
