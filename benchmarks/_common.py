"""What the benchmark scripts share: claims, their report, peers in environments of their own, alternating rounds."""

from __future__ import annotations

import argparse
import json
import os
import platform
import site
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
RECIPES = ROOT / "recipes"

__all__ = [
    "CACHE",
    "RECIPES",
    "ROOT",
    "Claim",
    "Worker",
    "arguments",
    "environment",
    "ratios",
    "report",
    "say",
]


@dataclass(frozen=True)
class Claim:
    """A number that was measured, and what it should be.

    Attributes:
        name: what was measured.
        value: the number.
        low, high: its spread: of the rounds or seeds the lowest and the highest, of a metric its bootstrap interval.
        goal: what it should reach.
        unit: what it counts.
        at_most: whether the goal is an upper limit.
        aim: what it would better reach; shown, not judged.
    """

    name: str
    value: float
    low: float
    high: float
    goal: float
    unit: str
    at_most: bool = False
    aim: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the value reaches the goal."""
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def to_json(self) -> dict[str, Any]:
        """Return the claim as PERFORMANCE.md's form has it."""
        plain = {key: getattr(self, key) for key in ("name", "value", "low", "high", "goal", "unit")}
        extra = {"at_most": True} if self.at_most else {}
        return {**plain, **extra, **({} if self.aim is None else {"aim": self.aim}), "holds": self.holds}


def arguments(description: str, extra: Callable[[argparse.ArgumentParser], object] | None = None) -> Any:
    """Read ``--quick``, ``--json`` and what the script adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; within 5 minutes on 2 idle cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    if extra is not None:
        extra(parser)
    return parser.parse_args()


def say(*words: object) -> None:
    """Tell a person, on stderr: stdout belongs to the result."""
    print(*words, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    from luban.machine import cores, processor_name

    return {
        "cpu": processor_name(),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "luban": version("luban"),
        "torch": version("torch"),
    }


def report(claims: Sequence[Claim], options: Any, *, notes: Mapping[str, Any] | None = None) -> int:
    """Print the table, and with ``--json`` one object; return the exit code: 0 if all claims hold, else 1."""
    facts = {**machine(), **(notes or {})}
    lines = [f"{key}: {value}" for key, value in facts.items()]
    width = max((len(claim.name) for claim in claims), default=0)
    lines.append(f"{'claim':{width}}  {'value':>9}  {'low':>9}  {'high':>9}  {'goal':>9}  unit")
    for claim in claims:
        numbers = "  ".join(f"{number:9.4g}" for number in (claim.value, claim.low, claim.high, claim.goal))
        aim = "" if claim.aim is None else f" (aim {claim.aim:g})"
        verdict = "holds" if claim.holds else "MISSED"
        lines.append(f"{claim.name:{width}}  {numbers}  {claim.unit}{aim}  {verdict}")
    print("\n".join(lines), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps({"claims": [claim.to_json() for claim in claims], "facts": facts}))
    return 0 if all(claim.holds for claim in claims) else 1


def ratios(
    name: str, ours: Sequence[float], theirs: Sequence[float], goal: float, aim: float | None = None
) -> Claim:
    """Return how many times quicker we are, round by round: both speeds of a round were met by the same machine."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Claim(name, statistics.median(each), min(each), max(each), goal, "x", aim=aim)


def environment(name: str, requirements: Sequence[str], *, on_top_of_ours: bool = False) -> Path:
    """Return the Python of a virtual environment under ``.cache/`` with these packages in it.

    Args:
        name: of the environment.
        requirements: pinned, as pip takes them.
        on_top_of_ours: whether it also sees the packages of the present environment, so that both sides share the same torch.
    """
    folder = CACHE / f"bench-{name}"
    python = folder / "bin" / "python"
    done = folder / "requirements.txt"
    wanted = "\n".join([*requirements, f"on top of ours: {on_top_of_ours}"])
    if not (done.is_file() and done.read_text(encoding="utf-8") == wanted):
        say(f"installing {', '.join(requirements)} into {folder.relative_to(ROOT)}")
        venv.create(folder, with_pip=True, clear=True)
        if on_top_of_ours:
            own = next(folder.glob("lib/python*/site-packages"))
            (own / "ours.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
        install = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *requirements,
        ]
        subprocess.run(install, check=True, stdout=sys.stderr)
        done.write_text(wanted, encoding="utf-8")
    return python


class Worker:
    """One side of a comparison: a process that waits without a load on the machine until it is asked to work.

    It runs ``python script --side NAME ...`` of the same script; there, `serve` answers.
    """

    def __init__(self, python: Path | str, script: str, *words: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [str(python), script, "--side", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with code {self.process.wait()} instead of answering")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def serve(work: Callable[..., dict[str, Any]]) -> None:
    """Answer each line of stdin by one line on stdout; whatever else is printed goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(work(**json.loads(line))), file=answers, flush=True)


def serve_slices(work: Callable[[list[Any]], Any], items: Sequence[Any], clock: str) -> None:
    """Answer ``start`` and ``stop`` by what the work makes of these items, and the seconds it takes by ``cpu`` or ``wall`` time."""
    now = time.process_time if clock == "cpu" else time.perf_counter

    def answer(start: int, stop: int) -> dict[str, Any]:
        begun = now()
        values = work(list(items[start:stop]))
        return {"seconds": now() - begun, "values": values}

    serve(answer)


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def table(rows: Mapping[str, Iterable[float]], unit: str) -> None:
    """Tell median and spread of each side."""
    for name, values in rows.items():
        each = sorted(values)
        say(
            f"  {name:32} median {statistics.median(each):10,.0f} {unit}  ({each[0]:,.0f} to {each[-1]:,.0f})"
        )
