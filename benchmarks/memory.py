"""Does memory stay the same when the data grows? And how quickly does the input pipeline make batches?

    python benchmarks/memory.py [--quick] [--json]

Memory: `luban train` in a process of its own, from a parquet file of N and of 10 N rows (eleven columns of numbers and
categories, or one of text, and a target), with an empty cache, so that reading, splitting, fitting, encoding, 300 updates and
the measuring of the artefact are all in it. The peak is ru_maxrss, as the kernel counts it. Likewise `luban evaluate`, of a
model of 50 classes: the ten times larger file makes more records than are held in memory (`luban.evaluation.records.LIMIT`).

Pipeline: batches of 256 rows, shuffled, from data that each side has prepared in its own way before. Luban's `Loader` reads
its store; the peer is `datasets` with the same tokens, in torch format, and a torch `DataLoader` (for texts with a collate
function that pads), as its documentation shows. Both sides make tensors of the same values, on the same torch.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import _common as common
from _common import CACHE, Claim, Worker, say

DATASETS = ("datasets==4.8.3",)
BATCH = 256
GROWTH = 1.15
NUMBERS, CLASSES = 7, (5, 40, 300, 3000)
LABELS = 50  # classes of the evaluated model
RECORD = 32 + 4 * LABELS  # bytes that an evaluation keeps of a row of so many classes


# --- data -------------------------------------------------------------------------------------------------


def write_table(path: Path, rows: int) -> None:
    """Write numbers, categories of several sizes and a target that depends on them."""
    import polars as pl

    generator = np.random.default_rng(0)
    columns: dict[str, Any] = {f"n{i}": generator.normal(size=rows) for i in range(NUMBERS)}
    for i, size in enumerate(CLASSES):
        columns[f"c{i}"] = pl.Series((size * generator.random(rows) ** 2).astype(int)).cast(pl.String)
    score = columns["n0"] + columns["n1"] * columns["n2"] + generator.normal(size=rows)
    columns["label"] = np.where(score > 0, "yes", "no")
    pl.DataFrame(columns).write_parquet(path, row_group_size=50_000)


def write_texts(path: Path, rows: int) -> None:
    """Write texts of 5 to 95 words out of 20,000, Zipf's law, and a target."""
    import polars as pl

    generator = np.random.default_rng(0)
    words = np.array([f"w{i:x}" for i in range(20_000)])
    lengths = generator.integers(5, 96, size=rows)
    picked = words[(np.exp(generator.random(lengths.sum()) * np.log(20_000)) - 1).astype(int)]
    ends = np.cumsum(lengths)
    texts = [" ".join(picked[end - n : end]) for end, n in zip(ends.tolist(), lengths.tolist(), strict=True)]
    labels = np.where([text.count("w1 ") > 1 for text in texts], "yes", "no")
    pl.DataFrame({"text": texts, "label": labels}).write_parquet(path, row_group_size=20_000)


def write_labels(path: Path, rows: int) -> None:
    """Write two numbers and one of `LABELS` classes that depends on them."""
    import polars as pl

    generator = np.random.default_rng(rows)
    x, y = generator.normal(size=(2, rows))
    place = np.arctan2(y + generator.normal(size=rows) / 4, x) / (2 * np.pi) + 0.5
    label = pl.Series((place * LABELS).astype(int).clip(0, LABELS - 1)).cast(pl.String)
    pl.DataFrame({"x": x, "y": y, "label": label}).write_parquet(path, row_group_size=50_000)


def recipe(kind: str, data: Path) -> dict[str, Any]:
    """Return the recipe of a kind of table."""
    columns = {f"n{i}": "number" for i in range(NUMBERS)} | {f"c{i}": "category" for i in range(len(CLASSES))}
    text = {"text": {"type": "text", "tokens": "word", "vocabulary": 20_000}}
    model = (
        {"type": "mlp", "hidden": [64]}
        if kind == "table"
        else {"type": "fasttext", "embedding": 32, "ngrams": 1, "buckets": 16}
    )
    return {
        "data": {
            "train": str(data),
            "inputs": columns if kind == "table" else text,
            "targets": {"label": "binary"},
        },
        "model": model,
        "train": {"steps": 300, "batch_size": BATCH},
    }


WRITERS = {"table": write_table, "text": write_texts}


# --- memory -----------------------------------------------------------------------------------------------


def peak(*words: object, cache: Path) -> float:
    """Run `luban` in a process of its own and return its peak, in MiB."""
    process = subprocess.Popen(
        [sys.executable, "-m", "luban", *map(str, words), "--json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LUBAN_CACHE": str(cache)},
    )
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"luban {words[0]} ended with code {process.returncode}: {said[-500:]}")
    return used.ru_maxrss / 1024


def peak_of_training(kind: str, data: Path) -> float:
    """Return the peak of `luban train`, in MiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(recipe(kind, data)), encoding="utf-8")
        return peak("train", path, "-o", folder / "artefact", cache=folder / "cache")


def memory(kind: str, rows: int, rounds: int, folder: Path) -> Claim:
    """Return the peak for ten times the rows over the peak for one time."""
    files = {}
    for times in (1, 10):
        files[times] = folder / f"{kind}-{times}.parquet"
        WRITERS[kind](files[times], times * rows)
    each = []
    for _ in range(rounds):
        small, large = (peak_of_training(kind, files[times]) for times in (1, 10))
        say(f"  {kind}: {rows:,} rows {small:,.0f} MiB, {10 * rows:,} rows {large:,.0f} MiB")
        each.append(large / small)
    name = f"peak memory of training, {kind}, {10 * rows:,} rows over {rows:,}"
    return Claim(name, statistics.median(each), min(each), max(each), GROWTH, "x", at_most=True)


def evaluation(rows: int, rounds: int, folder: Path) -> Claim:
    """Return the peak of `luban evaluate` for ten times the rows over that for one time."""
    from luban.evaluation.records import LIMIT

    assert 10 * rows * RECORD > LIMIT, "too few rows: all records are held in memory"
    files = {times: folder / f"labels-{times}.parquet" for times in (1, 10)}
    for times, path in files.items():
        write_labels(path, times * rows)
    small_file, artefact, cache = folder / "labels.parquet", folder / "labels", folder / "cache"
    write_labels(small_file, 5_000)
    path = folder / "labels.yaml"
    data = {
        "train": str(small_file),
        "inputs": {"x": "number", "y": "number"},
        "targets": {"label": "category"},
    }
    options = {"data": data, "model": {"type": "mlp", "hidden": [32]}, "train": {"steps": 300}}
    path.write_text(json.dumps(options), encoding="utf-8")
    peak("train", path, "-o", artefact, cache=cache)
    each = []
    for _ in range(rounds):
        small, large = (peak("evaluate", artefact, files[times], cache=cache) for times in (1, 10))
        say(f"  evaluate: {rows:,} rows {small:,.0f} MiB, {10 * rows:,} rows {large:,.0f} MiB")
        each.append(large / small)
    name = f"evaluate: ten times the rows, {LABELS} classes, {10 * rows:,} rows over {rows:,}"
    return Claim(name, statistics.median(each), min(each), max(each), GROWTH, "x", at_most=True)


# --- the pipeline -----------------------------------------------------------------------------------------


class LubanSide:
    """Prepares once, then makes an epoch of batches on each request."""

    def __init__(self) -> None:
        self.loaders: dict[str, Any] = {}

    def __call__(self, kind: str, data: str, epoch: int) -> dict[str, Any]:
        from luban import recipe as recipes
        from luban.data.loader import Loader
        from luban.data.prepare import prepare

        if kind not in self.loaders:
            options = recipe(kind, Path(data))
            options["data"]["split"] = {"validation": 0, "test": 0}
            prepared = prepare(recipes.load(options, []).data)
            self.loaders[kind] = Loader(prepared.store("train"), prepared.spec, batch_size=BATCH, seed=0)
            return {"rows": prepared.rows["train"], "seconds": 0.0}
        rows = 0

        def epoch_of_batches() -> None:
            nonlocal rows
            for batch in self.loaders[kind].batches(epoch):
                rows += len(batch["label.value"])

        return {"seconds": common.timed(epoch_of_batches), "rows": rows}


class DatasetsSide:
    """The same with `datasets` and a DataLoader."""

    def __init__(self) -> None:
        self.loaders: dict[str, Any] = {}

    def __call__(self, kind: str, data: str, epoch: int) -> dict[str, Any]:
        import torch

        if kind not in self.loaders:
            self.loaders[kind] = self.prepare(kind, data)
            return {"rows": 0, "seconds": 0.0}
        torch.manual_seed(epoch)
        rows = 0

        def epoch_of_batches() -> None:
            nonlocal rows
            for batch in self.loaders[kind]:
                rows += len(batch["target"])

        return {"seconds": common.timed(epoch_of_batches), "rows": rows}

    def prepare(self, kind: str, data: str) -> Any:
        import torch
        from torch.utils.data import DataLoader

        import datasets  # type: ignore[import-not-found,unused-ignore]

        datasets.disable_progress_bars()
        rows = datasets.load_dataset("parquet", data_files=data, split="train")
        if kind == "table":
            codes = {
                f"c{i}": {value: k for k, value in enumerate(rows.unique(f"c{i}"))}
                for i in range(len(CLASSES))
            }

            def encode(chunk: dict[str, list[Any]]) -> dict[str, list[Any]]:
                coded = {f"{name}.id": [known[v] for v in chunk[name]] for name, known in codes.items()}
                return {**coded, "target": [float(v == "yes") for v in chunk["label"]]}

            ready = rows.map(encode, batched=True, remove_columns=[*codes, "label"]).with_format("torch")
            return DataLoader(ready, batch_size=BATCH, shuffle=True)
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(vocab_size=20_000, special_tokens=["[PAD]", "[UNK]"])
        tokenizer.train_from_iterator(rows["text"], trainer)

        def tokens(chunk: dict[str, list[Any]]) -> dict[str, list[Any]]:
            ids = [one.ids for one in tokenizer.encode_batch(chunk["text"])]
            return {"ids": ids, "target": [float(v == "yes") for v in chunk["label"]]}

        def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
            ids = torch.nn.utils.rnn.pad_sequence([item["ids"] for item in items], batch_first=True)
            return {"ids": ids, "target": torch.stack([item["target"] for item in items])}

        ready = rows.map(tokens, batched=True, remove_columns=["text", "label"]).with_format("torch")
        return DataLoader(ready, batch_size=BATCH, shuffle=True, collate_fn=collate)


def pipeline(rows: int, rounds: int, folder: Path) -> list[Claim]:
    """Return rows/s beside `datasets` and DataLoader, for tables and texts."""
    variables = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "LUBAN_CACHE": str(folder / "cache")}
    sides = {
        "luban": Worker(sys.executable, __file__, "luban", **variables),
        "datasets": Worker(
            common.environment("datasets", DATASETS, on_top_of_ours=True), __file__, "datasets", **variables
        ),
    }
    claims = []
    for kind, writer in WRITERS.items():
        data = folder / f"pipeline-{kind}.parquet"
        writer(data, rows)
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            side.ask(kind=kind, data=str(data), epoch=0)
        for epoch in range(rounds):
            for name, side in sides.items():
                answer = side.ask(kind=kind, data=str(data), epoch=epoch)
                assert answer["rows"] == rows, f"{name} made {answer['rows']} rows of {rows}"
                speeds[name].append(answer["rows"] / answer["seconds"])
        say(f"{kind}, {rows:,} rows, batches of {BATCH}")
        common.table(speeds, "rows/s")
        name = f"input pipeline, {kind}, rows/s against {DATASETS[0]} + DataLoader"
        claims.append(common.ratios(name, speeds["luban"], speeds["datasets"], 1.0))
    for side in sides.values():
        side.__exit__()
    return claims


def main() -> int:
    if sys.argv[1:2] == ["--side"]:
        common.serve(LubanSide() if sys.argv[2] == "luban" else DatasetsSide())
        return 0
    options = common.arguments(__doc__ or "")
    quick = options.quick
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        claims = [
            memory("table", 100_000 if quick else 200_000, 1 if quick else 3, folder),
            memory("text", 20_000 if quick else 50_000, 1 if quick else 3, folder),
            evaluation(100_000 if quick else 300_000, 1 if quick else 3, folder),
            *pipeline(20_000 if quick else 100_000, 5, folder),
        ]
    return common.report(claims, options, notes={"peer": ", ".join(DATASETS), "batch": BATCH})


if __name__ == "__main__":
    sys.exit(main())
