"""A run that was killed, corrupted or starved of disk ends with the weights of the run that was not, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch

from luban.cli import main

RECIPE = """
data:
  train: rows.csv
  inputs: {text: {type: text, min_count: 1}, x: number}
  targets: {label: category}
  augment: [{type: noise, std: 0.05}, {type: char_noise}]
model: {type: rnn, size: tiny, dropout: 0.2}
train:
  epochs: 4
  batch_size: 16
  accumulate: 2
  ema: 0.9
  clip: 1.0
  optimizer: {type: adamw, learning_rate: 0.01}
  schedule: {type: plateau, patience: 1, warmup: 3}
  callbacks: [{type: early_stopping, patience: 50}]
  checkpoint_steps: 3
  evaluate_every: 5
"""

OTHERS = {
    "causal_lm": """
data:
  train: rows.csv
  inputs: {text: {type: text, vocabulary: 300}}
model: {type: llama, layers: 1, hidden_size: 16, heads: 2, kv_heads: 1, max_positions: 64, layer_dropout: 0.1}
objective: {type: causal_lm, length: 16}
train: {epochs: 2, batch_size: 16, accumulate: 2, ema: 0.9, clip: 1.0, checkpoint_steps: 3, evaluate_every: 5}
""",
    "masked_lm and next_sentence": """
data:
  train: rows.csv
  inputs: {text: {type: text, vocabulary: 60, min_count: 1}}
model: {type: bert, layers: 1, hidden_size: 16, heads: 2, max_positions: 64}
objective: [{type: masked_lm, whole_word: true}, {type: next_sentence, weight: 0.5}]
train: {epochs: 2, batch_tokens: 128, accumulate: 2, checkpoint_steps: 3, evaluate_every: 5}
""",
    "fair_adversary": """
data:
  train: rows.csv
  inputs: {text: {type: text, min_count: 1}, x: number}
  targets: {label: category}
  groups: [side]
model: {type: rnn, size: tiny, dropout: 0.2}
objective: {type: fair_adversary, alpha: 2.0, constraint: equalized_odds, objective: cross_entropy}
train: {epochs: 3, batch_size: 16, accumulate: 2, ema: 0.9, keep: last, checkpoint_steps: 3, evaluate_every: 5}
""",
}
"""Objectives that draw what they ask for anew each time a text is seen, and one that learns something itself."""


def luban(*arguments: str | Path) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    generator = np.random.default_rng(0)
    words = ["good", "bad", "fine", "poor", "great", "awful"]
    rows = 400
    texts = [" ".join(words[i] for i in generator.integers(len(words), size=4)) for _ in range(rows)]
    label = ["up" if text.count("good") + text.count("great") > 1 else "down" for text in texts]
    frame = pl.DataFrame({"text": texts, "x": generator.normal(size=rows), "label": label})
    frame = frame.with_columns(
        pl.when(pl.col("x") > 0).then(pl.lit("a")).otherwise(pl.lit("b")).alias("side")
    )
    frame.write_csv(folder / "rows.csv")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, Path]:
    """A recipe of another objective, and what an undisturbed run made of it."""
    name = request.param.split()[0]
    recipe = folder / f"{name}.yaml"
    recipe.write_text(OTHERS[request.param])
    assert luban("train", recipe, "-o", folder / name) == 0
    return recipe, folder / name


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Path:
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def undisturbed(folder: Path, recipe: Path) -> Path:
    assert luban("train", recipe, "-o", folder / "undisturbed") == 0
    return folder / "undisturbed"


def weights(artefact: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(artefact / "model.safetensors")


def assert_same(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    assert (a / "sample.jsonl").read_text() == (b / "sample.jsonl").read_text()


# A process that has imported everything forks the runs, so that a run costs its work and not the import of torch.
FORKS = """
import os, random, signal, sys, time
from luban.verbs.train import train
import luban.data.processors.text, luban.models.rnn, luban.models.bert, luban.models.llama, luban.training.optimizers.adamw  # what a run imports late
recipe, output, kills, longest = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
moments = random.Random(7)
killed = run = 0
while killed < kills:
    child = os.fork()
    if child == 0:
        try:
            train(recipe, output=f"{output}-{run}")
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
    time.sleep(moments.uniform(0.0, longest))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, status
        run += 1  # it was through: on to the next one
    else:
        killed += 1
print(run)
"""


def kill(
    recipe: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    """Kill runs at random instants, let the last one end, and compare all with the one that was not disturbed."""
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))  # empty: kills meet the preparation too
    started = time.monotonic()
    assert luban("train", recipe, "-o", tmp_path / "timed") == 0
    longest = (time.monotonic() - started) / 8
    shutil.rmtree(tmp_path / "cache" / "prepared")
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", FORKS, str(recipe), str(killed), str(kills), str(longest)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    finished = int(result.stdout)
    assert luban("train", recipe, "-o", f"{killed}-{finished}") == 0
    for run in range(finished + 1):
        assert_same(undisturbed, Path(f"{killed}-{run}"))


@pytest.mark.slow
def test_kill_at_25_random_instants(
    recipe: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(recipe, undisturbed, tmp_path, monkeypatch, 25)


@pytest.mark.slow
def test_kill_a_run_of_another_objective(
    other: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(*other, tmp_path, monkeypatch, 12)


def interrupt(recipe: Path, output: Path, checkpoints: int, *more: object) -> int:
    """Train, send Ctrl-C once so many checkpoints are there, and return the exit code."""

    def watch() -> None:
        while len(list((output / "train").glob("step-*"))) < checkpoints:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()
    return luban("train", recipe, "-o", output, *more)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "manifest", "all"])
def test_damaged_checkpoint_is_left_out(
    recipe: Path, undisturbed: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "damaged"
    assert interrupt(recipe, output, 2) == 130
    newest, older = sorted((output / "train").glob("step-*"), reverse=True)
    for checkpoint in [newest, older] if damage == "all" else [newest]:
        victim = checkpoint / ("manifest.json" if damage == "manifest" else "tensors.safetensors")
        data = bytearray(victim.read_bytes())
        if damage == "one bit":
            data[random.Random(3).randrange(len(data))] ^= 4
        else:
            del data[len(data) // 2 :]
        victim.write_bytes(data)
    capsys.readouterr()
    assert luban("train", recipe, "-o", output) == 0
    said = capsys.readouterr().err
    assert f"checkpoint {newest.name} is damaged" in said
    assert (f"going on from checkpoint {older.name}" in said) == (damage != "all")
    assert_same(undisturbed, output)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_full_disk(
    recipe: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        (small / "ballast").write_bytes(b"0" * int(3.2 * 2**20))
        assert luban("train", recipe, "-o", small / "run", "--json") == 3
        printed = capsys.readouterr()
        assert "MiB are free" in printed.err or "the disk is full" in printed.err
        assert "Traceback" not in printed.err
        assert json.loads(printed.out)["exit_code"] == 3
        (small / "ballast").unlink()
        assert luban("train", recipe, "-o", small / "run") == 0
        assert_same(undisturbed, small / "run")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_ctrl_c_saves_and_says_how_to_go_on(
    recipe: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "stopped"
    page = tmp_path / "a page.md"
    assert interrupt(recipe, output, 1, "--report", page, "--lang", "zh") == 130
    again = f"Go on with: luban train {recipe} -o {output} --report '{page}' --lang zh"
    said = capsys.readouterr().err
    assert said.splitlines()[-1].endswith(again)
    assert luban("train", recipe, "-o", output) == 0
    assert "going on from checkpoint" in capsys.readouterr().err
    assert_same(undisturbed, output)


def test_another_objective_goes_on_where_it_was(other: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, undisturbed = other
    output = tmp_path / "stopped"
    assert interrupt(recipe, output, 1) == 130
    assert luban("train", recipe, "-o", output) == 0
    assert_same(undisturbed, output)


def test_another_recipe_does_not_continue_a_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "stopped"
    assert interrupt(recipe, output, 1) == 130
    capsys.readouterr()
    assert luban("train", recipe, "train.seed=5", "-o", output) == 2
    assert "interrupted run of another recipe" in capsys.readouterr().err
    assert list((output / "train").glob("step-*")), "nothing is lost"
