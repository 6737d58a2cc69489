"""Training speed of the Keras tutorial's network on 28×28 digits: images a second.

    python benchmarks/cnn.py [--quick] [--json] [--threads N]

Three sides train the same network on the same 8,000 digits, batch 64, Adam at 0.001, from new weights each round, in turn:

luban      recipes/articles/keras_cnn.yaml through the engine: loading, updates, log, the checkpoint at the end
tutorial   torch as tutorials write it: a Dataset that makes an image, a tensor and a normalised tensor of each item, a
           DataLoader, `loss.item()` in each step
keras      Keras on TensorFlow: `model.fit` on arrays, after an epoch that compiles (not counted)

Each side is a process of its own that rests while another works, with the threads that it chooses itself, or with
``--threads`` (on a busy machine two threads of torch wait for each other, and measure the neighbours). All three are scored on the 2,000 digits held out: a quick network that learns less would not count.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import _common as common
from _common import CACHE, RECIPES, Claim, Worker, say

TENSORFLOW = ("tensorflow-cpu==2.21.0", "keras==3.15.1")
BATCH, RATE = 64, 0.001
DIGITS = CACHE / "bench-digits.npz"
TOLERANCE = 0.02  # how far accuracies may lie apart; one standard error of 2,000 rows is 0.004


# --- the sides --------------------------------------------------------------------------------------------


def luban_side(epochs: int, seed: int, threads: int | None) -> dict[str, Any]:
    """Through the engine, as `luban.train` does; the data is prepared, as it is from the second run on."""
    import torch

    from luban import recipe
    from luban.console import Console
    from luban.training.plan import make_plan
    from luban.verbs.train import _fit

    own = [] if threads is None else [f"train.threads={threads}"]
    overrides = [f"train.epochs={epochs}", f"train.seed={seed}", *own]
    resolved = recipe.load(RECIPES / "articles/keras_cnn.yaml", overrides)
    plan = make_plan(resolved)
    with tempfile.TemporaryDirectory() as folder:
        outcome = _fit(plan, Path(folder), Console())
    plan.model.load_state_dict(outcome.weights)
    plan.model.eval()
    x, y = _pixels("test")
    with torch.no_grad():
        logits = plan.model({"image.pixels": torch.from_numpy(x)[:, None].float() / 255})["label.logits"]
    classes = plan.prepared.pipeline.targets["label"].classes()
    order = np.array([int(name) for name in classes or []])
    found = order[logits.argmax(1).numpy()]
    return {
        "seconds": outcome.seconds,
        "images": outcome.progress.rows,
        "accuracy": float((found == y).mean()),
        "threads": plan.recipe.train.threads,
    }


def tutorial_side(epochs: int, seed: int, threads: int | None) -> dict[str, Any]:
    """Torch as the tutorials write it."""
    import time

    import torch
    from PIL import Image
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset

    class Digits(Dataset[tuple[Tensor, int]]):
        def __init__(self, part: str) -> None:
            self.images, self.labels = _pixels(part)

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            image = Image.fromarray(self.images[index])  # what torchvision.datasets.MNIST does,
            pixels = torch.from_numpy(np.array(image, copy=True))[None].float().div(255)  # ToTensor,
            return (pixels - 0.1307) / 0.3081, int(self.labels[index])  # and Normalize

    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer, criterion = torch.optim.Adam(model.parameters(), lr=RATE), nn.CrossEntropyLoss()
    loader = DataLoader(Digits("train"), batch_size=BATCH, shuffle=True)
    started, images, running = time.perf_counter(), 0, 0.0
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            running += loss.item()
            images += len(x)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in DataLoader(Digits("test"), batch_size=250)
        )
    return {
        "seconds": seconds,
        "images": images,
        "accuracy": right / 2000,
        "threads": torch.get_num_threads(),
    }


def keras_side(epochs: int, seed: int, threads: int | None) -> dict[str, Any]:
    """Keras on TensorFlow; runs in its own environment."""
    import time

    import keras  # type: ignore[import-not-found,unused-ignore]

    if threads is not None:
        import tensorflow  # type: ignore[import-not-found,import-untyped,unused-ignore]

        if tensorflow.config.threading.get_intra_op_parallelism_threads() != threads:  # before its first work
            tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
            tensorflow.config.threading.set_inter_op_parallelism_threads(threads)
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"), layers.Flatten(),
            layers.Dense(64, activation="relu"), layers.Dense(10),
        ]
    )  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(RATE), loss=loss, metrics=["accuracy"])
    x, y = _pixels("train")
    scaled = x[..., None].astype("float32") / 255
    first = model.get_weights()
    model.fit(scaled[: 2 * BATCH], y[: 2 * BATCH], batch_size=BATCH, epochs=1, verbose=0)  # compiles
    model.set_weights(first)
    for variable in model.optimizer.variables:
        if "learning_rate" not in variable.path:
            variable.assign(np.zeros(variable.shape))
    started = time.perf_counter()
    model.fit(scaled, y, batch_size=BATCH, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - started
    x, y = _pixels("test")
    found = model.predict(x[..., None].astype("float32") / 255, batch_size=250, verbose=0).argmax(1)
    return {
        "seconds": seconds,
        "images": epochs * len(scaled),
        "accuracy": float((found == y).mean()),
        "threads": threads or os.cpu_count(),
    }


SIDES = {"luban": luban_side, "tutorial": tutorial_side, "keras": keras_side}


def _pixels(part: str) -> tuple[Any, Any]:
    with np.load(DIGITS) as digits:
        return digits[f"{part}_x"], digits[f"{part}_y"]


def write_digits() -> None:
    """Write the recipe's own split as plain arrays, for the peers and for the score."""
    import polars as pl

    from luban import datasets, recipe
    from luban.data.prepare import prepare, split_rows

    prepared = prepare(recipe.load(RECIPES / "articles/keras_cnn.yaml", []).data)
    with np.load(datasets.main_file("mnist")) as digits:
        x, y = digits["image"], digits["label"]
    rows = pl.DataFrame({"image": x, "label": y})
    part = split_rows(prepared.split_state, rows, prepared.pipeline)
    DIGITS.parent.mkdir(exist_ok=True)
    np.savez(DIGITS, train_x=x[part == 0], train_y=y[part == 0], test_x=x[part == 2], test_y=y[part == 2])


# --- the comparison ---------------------------------------------------------------------------------------


def main() -> int:
    if sys.argv[1:2] == ["--side"]:
        common.serve(SIDES[sys.argv[2]])
        return 0
    options = common.arguments(
        __doc__ or "", lambda parser: parser.add_argument("--threads", type=int, help="of every side")
    )
    rounds, epochs = (5, 3) if options.quick else (7, 5)
    write_digits()
    pythons: dict[str, str | Path] = {
        "luban": sys.executable,
        "tutorial": sys.executable,
        "keras": common.environment("tensorflow", TENSORFLOW),
    }
    speeds: dict[str, list[float]] = {name: [] for name in SIDES}
    accuracies: dict[str, list[float]] = {name: [] for name in SIDES}
    threads: dict[str, int] = {}
    workers = {
        name: Worker(python, __file__, name, TF_CPP_MIN_LOG_LEVEL="3") for name, python in pythons.items()
    }
    for name, worker in workers.items():  # what is paid once: imports, the first memory
        threads[name] = worker.ask(epochs=1, seed=99, threads=options.threads)["threads"]
    for seed in range(rounds):
        for name, worker in workers.items():
            answer = worker.ask(epochs=epochs, seed=seed, threads=options.threads)
            speeds[name].append(answer["images"] / answer["seconds"])
            accuracies[name].append(answer["accuracy"])
            say(
                f"  round {seed + 1}: {name:9} {speeds[name][-1]:8,.0f} images/s, accuracy {accuracies[name][-1]:.4f}"
            )
    for worker in workers.values():
        worker.__exit__()
    common.table(speeds, "images/s")
    means = {name: float(np.mean(values)) for name, values in accuracies.items()}
    claims = [
        common.ratios(
            "keras_cnn, images/s against a tutorial torch loop",
            speeds["luban"],
            speeds["tutorial"],
            1.5,
            aim=2.5,
        ),
        common.ratios(
            "keras_cnn, images/s against Keras on TensorFlow", speeds["luban"], speeds["keras"], 1.0, aim=1.4
        ),
    ]
    gap = [min(a - b, a - c) for a, b, c in zip(*(accuracies[name] for name in SIDES), strict=True)]
    name = f"accuracy after {epochs} epoch{'s' if epochs > 1 else ''}, less the better peer's"
    worse = means["luban"] - max(means["tutorial"], means["keras"])
    claims.append(Claim(name, worse, min(gap), max(gap), -TOLERANCE, "accuracy"))
    notes = {
        "peers": f"tutorial on the same torch; {', '.join(TENSORFLOW)}",
        "threads": threads,
        "rounds": rounds,
    }
    return common.report(claims, options, notes=notes)


if __name__ == "__main__":
    sys.exit(main())
