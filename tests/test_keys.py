"""No key is read by nothing: changing any key of any component changes something that can be seen.

The model families have a test of their own (models/test_every_key.py), and so have the audits (auditing/test_audit_keys.py)
and the explainers (explaining/test_explainer_keys.py, explaining/test_table_explainers.py).
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import json
import shutil
import sqlite3
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from luban import machine
from luban.adapt.lora import LoRA, write_peft
from luban.artefact import build_model
from luban.data.batch import to_batch
from luban.data.cleaning.invalid import Rule
from luban.data.contracts import Field, Flat, Spec
from luban.data.pipeline import Pipeline
from luban.data.ragged import Ragged
from luban.errors import LubanError
from luban.models import _kernels
from luban.models._core import Projection
from luban.objectives._base import TargetFacts
from luban.objectives._groups import Grouped
from luban.objectives._language import LanguageObjective
from luban.objectives._wrapping import Wrapping
from luban.recipe import Data, Recipe, Section, Train, load, read_yaml
from luban.registry import SECTIONS, lookup, names
from luban.training.checkpoint import Checkpoints
from luban.training.plan import _texts_to_augment, make_plan
from luban.training.progress import Progress
from luban.verbs.evaluate import evaluate
from luban.verbs.train import train
from tiny_case import RECIPE

Cases = dict[str, dict[str, Any]]
"""Type → key → another value; or a pair: what else must be set for the key to act, and the value.

The key ``base`` holds what a component cannot do without, or what shows its keys best.
"""

# --- what is tried ----------------------------------------------------------------------------------------

DECAY: dict[str, Any] = {
    "learning_rate": 0.5,
    "weight_decay": 0.3,
    "decay_all": ({"weight_decay": 0.3}, True),
    "layer_decay": 0.5,
}
ADAM = DECAY | {"beta1": 0.3, "beta2": 0.3, "eps": 0.5}
OPTIMIZERS: Cases = {
    "adafactor": DECAY | {"beta2_decay": -0.1, "clip_threshold": 1.5}, "adagrad": DECAY | {"initial_accumulator": 2.0, "eps": 0.5}, "adam": ADAM, "adamw": ADAM, "gd": DECAY,
    "muon": DECAY | {"momentum": 0.3, "beta1": 0.3, "beta2": 0.3}, "rmsprop": DECAY | {"alpha": 0.3, "momentum": 0.5, "centered": True, "eps": 0.5},
    "sgd": DECAY | {"momentum": 0.3, "nesterov": True},
}  # fmt: skip
SCHEDULES: Cases = {
    "constant": {"warmup": 3}, "cosine": {"warmup": 3, "end": 0.5}, "linear": {"warmup": 0.3, "end": 0.5},
    "one_cycle": {"warmup": 0.5, "start": 0.5, "peak": 2.0, "end": 0.5}, "plateau": {"warmup": 3, "shrink": 0.2, "patience": 0, "min_factor": 0.4},
}  # fmt: skip
SUPERVISED: dict[str, Any] = {"base": {"target": "a"}, "weight": 2.0, "target": "b"}
WRAPPED: dict[str, Any] = {
    "base": {"objective": {"type": "cross_entropy", "target": "a"}},
    "weight": 2.0,
    "objective": {"type": "cross_entropy", "target": "b"},
}
CLASSES = SUPERVISED | {"class_weights": {"x": 3.0}}
LANGUAGE: dict[str, Any] = {"base": {"column": "a", "length": 32}, "weight": 2.0, "column": "b", "length": 16}
OBJECTIVES: Cases = {
    "binary_cross_entropy": SUPERVISED | {"label_smoothing": 0.2, "positive_weight": 3.0}, "cross_entropy": CLASSES | {"label_smoothing": 0.2},
    "adversarial": WRAPPED | {"method": "pgd", "epsilon": 0.3, "steps": ({"method": "pgd"}, 2), "step_size": ({"method": "pgd"}, 0.1), "norm": "linf"},
    "seq2seq": SUPERVISED | {"label_smoothing": 0.2},
    "r_drop": WRAPPED | {"alpha": 0.5},
    "reweigh": WRAPPED | {"by": ["g"]}, "fair": WRAPPED | {"by": ["g"], "alpha": 0.5, "constraint": "equalized_odds"},
    "fair_adversary": WRAPPED | {"by": ["g"], "alpha": 0.5, "constraint": "equalized_odds", "hidden": 5, "learning_rate": 0.2},
    "dpo": {"base": {"chosen": "a", "rejected": "b"}, "weight": 2.0, "chosen": "c", "rejected": "c", "beta": 0.5, "variant": "ipo", "label_smoothing": 0.2},
    "causal_lm": LANGUAGE, "masked_lm": LANGUAGE | {"share": 0.5, "masked": 0.1, "random": 0.2, "whole_word": True}, "next_sentence": LANGUAGE | {"pairs": "order"},
    "focal": CLASSES | {"gamma": 0.5}, "huber": SUPERVISED | {"delta": 0.1}, "mean_absolute": SUPERVISED, "mean_squared": SUPERVISED,
}  # fmt: skip
CLEANING: Cases = {
    "duplicates": {"columns": ["city"]},
    "invalid": {"base": {"rules": {"age": "0..50"}}, "rules": {"age": "0..30"}},
    "missing": {"base": {"strategy": "mean", "columns": ["age"]}, "strategy": "median", "value": ({"strategy": "constant", "value": 1}, 2), "columns": ["year"], "indicator": True, "tokens": ["gone"]},
    "near_duplicates": {"base": {"column": "text", "threshold": 0.9}, "column": "city", "threshold": 0.3, "ngram": 12},
    "outliers": {"base": {"columns": ["age"], "threshold": 0.3}, "method": "zscore", "threshold": 0.2, "action": "drop", "columns": ["year"]},
    "text": {"columns": ["city"], "ftfy": False, "html": True, "control": False, "width": "full", "simplified": True, "whitespace": False, "lowercase": True},
}  # fmt: skip
SHARES: dict[str, Any] = {"validation": 0.3, "test": 0.3}
SPLITS: Cases = {
    "folds": {"base": {"fold": 0}, "folds": 3, "fold": 1, "test": 0.2, "by": "city", "seed": 1},
    "given": {"base": {"by": "part", "words": {"holdout": "test"}}, "by": "other_part", "words": {"holdout": "validation"}},
    "group": SHARES | {"base": {"by": "year"}, "by": ["city", "year"], "seed": 3},
    "random": SHARES | {"seed": 1},
    "stratified": SHARES | {"base": {"by": "city"}, "by": "part", "seed": 1},
    "time": SHARES | {"base": {"by": "year"}, "by": "month"},
}  # fmt: skip
PROCESSORS: Cases = {
    "binary": {"positive": "no", "threshold": 0.9}, "category": {"min_count": 2, "max_size": 2}, "date": {"formats": ["%Y-%d-%m"]},
    "image": {"height": 3, "width": 3, "channels": 3, "resize": ({"height": 6, "width": 3}, "fit"), "normalize": "zscore"},
    "number": {"normalize": "log", "missing": "median", "indicator": False}, "set": {"separator": ",", "min_count": 2, "max_size": 1, "threshold": 0.9},
    "text": {"tokens": "word", "tokenizer": "tokenizer.json", "vocabulary": 16, "min_count": 1, "max_length": 2, "lowercase": False, "special": True,
        "normalize": "none", "digits": ({"tokens": "word"}, "single"), "byte_fallback": True, "end": True, "bytes": True, "like": "other", "opening": 3},
    "chat": {"tokens": "word", "tokenizer": "tokenizer.json", "vocabulary": 16, "min_count": 1, "max_length": 24, "lowercase": False, "special": True,
        "normalize": "none", "digits": ({"tokens": "word"}, "single"), "byte_fallback": True, "end": True, "bytes": True, "like": "other", "opening": 3, "template": "plain"},
    "vector": {"normalize": "minmax"},
}  # fmt: skip
COLUMNS: dict[str, Any] = {"columns": ["other"]}
MIX: dict[str, Any] = {"base": {"columns": ["photo"]}, "columns": ["other"], "probability": 0.0, "alpha": 9.0}
AUGMENT: Cases = {
    "char_noise": COLUMNS | {"share": 0.9, "operations": ["drop"]}, "color": COLUMNS | {"brightness": 0.9, "contrast": 0.9, "saturation": 0.9},
    "crop": COLUMNS | {"padding": 1, "scale": [0.2, 0.5], "ratio": ({"scale": [0.2, 0.5]}, [0.2, 0.3])}, "cutmix": MIX,
    "erase": COLUMNS | {"probability": 1.0, "scale": [0.5, 0.6], "ratio": [1.0, 1.1], "fill": "noise"}, "flip": COLUMNS | {"direction": "vertical", "probability": 1.0},
    "mixup": MIX, "noise": COLUMNS | {"std": 0.5}, "randaugment": COLUMNS | {"n": 5, "magnitude": 25.0}, "rotate": COLUMNS | {"degrees": 80.0},
    "shift": COLUMNS | {"share": 0.5}, "word_noise": COLUMNS | {"drop": 0.7, "swap": 0.9},
}  # fmt: skip
CSV: dict[str, Any] = {
    "encoding": "latin-1",
    "separator": ";",
    "quote": "'",
    "names": ["p", "q"],
    "ragged": ({"path": "ragged.csv"}, "pad"),
}
SOURCES: Cases = {
    "arrow": {"base": {"path": "a.arrow"}, "path": "b.arrow"}, "csv": CSV | {"base": {"path": "a.csv"}, "path": ["a.csv", "a.csv"]},
    "images": {"base": {"path": "pictures"}, "path": "pictures/cat", "table": "pictures.csv", "column": ({"table": "pictures.csv"}, "other")},
    "jsonl": {"base": {"path": "a.jsonl"}, "path": "b.jsonl", "encoding": "latin-1", "keys": ["b"]}, "npz": {"base": {"path": "a.npz"}, "path": "b.npz", "arrays": {"c": "a"}},
    "parquet": {"base": {"path": "a.parquet"}, "path": "b.parquet"},
    "conversations": {"base": {"path": "chats.jsonl"}, "path": "chats2.jsonl", "format": "alpaca", "names": {"conversations": "a"}, "keys": [], "encoding": "latin-1"},
    "sql": {"base": {"connection": "sqlite:///a.db", "query": "select a from t"}, "connection": "sqlite:///b.db", "query": "select b from t"},
    "text": {"base": {"path": "a.txt"}, "path": "b.txt", "encoding": "latin-1", "documents": "blank", "column": "body"},
    "tsv": CSV | {"base": {"path": "a.tsv"}, "path": "b.tsv", "separator": ",", "ragged": ({"path": "ragged.tsv"}, "pad")},
}  # fmt: skip
CALLBACKS: Cases = {
    "early_stopping": {"patience": 1, "converged": 0.9}, "mlflow": {"experiment": "mine", "tracking": "there"}, "tensorboard": {"folder": "there"},
    "wandb": {"project": "mine", "mode": "online"}, "unfreeze": {"every": 2, "unit": "steps", "layers": 2},
}  # fmt: skip
ADAPT: Cases = {
    "freeze": {"base": {"patterns": ["heads.*"]}, "patterns": ["*.bias"]},
    "lora": {
        "from": "adapter", "rank": 2, "alpha": 3.0, "dropout": 0.5, "targets": ["*.attention.q"], "layers": {"*.q": {"rank": 3}}, "rslora": True, "dora": True,
        "train": ["heads.*"], "merge": True,
    },
    "reinitialise": {"layers": 2, "pooler": False},
}  # fmt: skip
DECIDED: dict[str, Any] = {"base": {"target": "a"}, "target": "b"}
DECISIONS: Cases = {
    "temperature": DECIDED, "conformal": DECIDED | {"level": 0.6, "method": "aps"},
    "thresholds": DECIDED | {"base": {"target": "a", "by": "g"}, "by": "h", "constraint": "equal_opportunity", "max_difference": 0.2, "min_rows": 90},
}  # fmt: skip
TRIED: dict[str, Cases] = {
    "sources": SOURCES, "processors": PROCESSORS, "cleaning": CLEANING, "splits": SPLITS, "augment": AUGMENT, "adapt": ADAPT, "objectives": OBJECTIVES,
    "optimizers": OPTIMIZERS, "schedules": SCHEDULES, "callbacks": CALLBACKS, "decisions": DECISIONS,
}  # fmt: skip


# --- what can be seen -------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return values that can be compared with ==."""
    if isinstance(value, Ragged | Flat):
        return plain(value.values), plain(value.offsets)
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def see_optimizers(component: Any) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Embedding(99, 3))
    optimizer = component.build((f"layers.{name}", parameter) for name, parameter in net.named_parameters())
    for step in range(3):  # gradients that grow: some updates are clipped, and no two moments are alike
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter) * 3.0**step
        optimizer.step()
    return list(net.parameters())


def see_schedules(component: Any) -> Any:
    factors = []
    for step in range(12):
        factors.append(component.factor(step, 12))
        component.observe(1.0)
    return factors


KINDS = {
    "huber": "number",
    "mean_absolute": "number",
    "mean_squared": "number",
    "binary_cross_entropy": "binary",
}


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dropout, self.a, self.b = nn.Dropout(0.5), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, batch: Any) -> Any:
        x = self.dropout(batch["x.value"])
        return {"a.logits": self.a(x), "b.logits": self.b(x)}


def see_dpo(component: Any) -> Any:
    ids = {
        name: Ragged.from_rows([torch.arange(4) + i, torch.arange(5) + 2 * i]) for i, name in enumerate("abc")
    }
    batch: dict[str, Any] = {f"{name}.ids": one for name, one in ids.items()}
    batch |= {f"{name}.answer": one.like(torch.ones_like(one.values)) for name, one in ids.items()}
    batch = component.collate(batch, torch.Generator())
    labels = batch["dpo.labels"]
    outputs = {f"{name}.tokens": Costs(i + 1.0) for i, name in enumerate("abc")}
    parts = component.losses(outputs | {"reference": torch.zeros(4)}, batch)
    return labels, {name: (float(one.total), float(one.count), one.weight) for name, one in parts.items()}


def see_seq2seq(component: Any) -> Any:
    field = {name: Field(name, "text", "target", "int16", None, size=7) for name in "ab"}
    component.setup({name: TargetFacts(f"{name}.ids", one) for name, one in field.items()})
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randint(7, (4,), generator=generator) for name in "ab"}
    batch: dict[str, Any] = {f"{name}.ids": Ragged.from_rows([ids]) for name, ids in drawn.items()}
    outputs = {
        f"{name}.tokens": Projection(
            torch.randn(4, 3, generator=generator), torch.randn(7, 3, generator=generator)
        )
        for name in "ab"
    }
    parts = component.losses(outputs, batch)
    return {name: (float(one.total), float(one.count), one.weight) for name, one in parts.items()}


class Costs:
    """What tokens cost, in the place of a projection."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def losses(self, labels: torch.Tensor) -> torch.Tensor:
        return self.factor * labels.float()


def see_language(component: Any) -> Any:
    """What an objective over tokens makes of two texts, and what it counts."""
    texts = {}
    for name, value in (
        ("a", "the working carpenters measured twice. then nobody complained"),
        ("b", "b is another text. it is longer, too"),
    ):
        text: Any = Section("processors").parse({"type": "text", "tokens": "wordpiece", "min_count": 1})
        text.update(pl.Series([value]))
        text.finish()
        texts[name] = text
    whole = Pipeline(texts, {})
    fields = component.bind(whole, 64)
    encoded = {
        f"{name}.ids": text.encode_texts(["the measured text", "carpenters. nobody is longer"] * 4)["ids"]
        for name, text in texts.items()
    }
    batch = component.collate(to_batch(encoded, whole.spec), torch.Generator().manual_seed(0))
    component.setup({})
    counts = component.count(batch)
    outputs = {
        f"{name}.tokens": Projection(torch.ones(len(batch.get(f"{name}.labels", ())), 2), torch.ones(99, 2))
        for name in "ab"
    }
    parts = component.losses(outputs | {"next_sentence.logits": torch.randn(8, 2)}, batch)
    return (
        {name: str(one) for name, one in fields.items()},
        component.window(),
        plain(batch),
        counts,
        [part.weight for part in parts.values()],
    )


def see_objectives(component: Any) -> Any:
    if isinstance(component, LanguageObjective):
        return see_language(component)
    if component.type == "dpo":
        return see_dpo(component)
    if component.type == "seq2seq":
        return see_seq2seq(component)
    kind = KINDS.get(component.type, "category")
    width = 3 if kind == "category" else 1
    classes = {"category": ["x", "y", "z"], "binary": ["x", "y"]}.get(kind)
    output = "value" if kind == "number" else "logits"
    facts = {
        name: TargetFacts(f"{name}.t", Field(name, kind, "target", "int16", output=output, width=width), classes, [3, 5, 2][: len(classes or [])], 10)
        for name in "ab"
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    groups: dict[str, Any] = {}
    if isinstance(component, Grouped):
        component.groups(
            Data.model_validate({"train": "a.csv", "inputs": {"x": "number"}, "groups": ["g", "h"]})
        )
        facts = {name: replace(one, tally=tally) for name, one in facts.items()}
        groups = {f"{name}.group": torch.randint(2, (10,), generator=generator) for name in "gh"}
    component.setup(facts)
    batch: dict[str, Any] = groups | {
        f"{name}.t": torch.randint(2, (10,), generator=generator) for name in "ab"
    }
    outputs = {f"{name}.{output}": torch.randn(10, width, generator=generator) for name in "ab"}
    if kind == "number":
        batch = {name: value.float() for name, value in batch.items()}
    if isinstance(component, Wrapping):
        model, batch["x.value"] = TwoHeads(), torch.randn(10, 4, generator=generator)
        component.begin(model)
        for _ in range(3):  # what learns something itself shows it in the next update
            parts = component.forward(model, batch)
            torch.stack([one.weight * one.total for one in parts.values()]).sum().backward()
            component.after_update()
        return {name: (float(one.total.detach()), one.weight) for name, one in parts.items()}
    return {
        name: (float(one.total), float(one.count), one.weight)
        for name, one in component.losses(outputs, batch).items()
    }


def tally(columns: list[str]) -> Any:
    """Rows by class and group."""
    counts = np.array([[4, 2, 1, 3], [3, 9, 2, 1], [1, 2, 3, 4]])
    return (counts, [2, 2]) if len(columns) == 2 else (counts.reshape(3, 2, 2).sum(2), [2])


def see_decisions(component: Any) -> Any:
    """What is fitted to two targets, and what it makes of outputs."""
    generator = np.random.default_rng(0)
    binary = component.type == "thresholds"
    targets: dict[str, Any] = {}
    for name in "ab":
        targets[name] = Section("processors").parse("binary" if binary else "category")
        targets[name].restore({"words": ["x", "y"] if binary else ["x", "y", "z"]})
    component.bind(targets)
    shift = 1.0 + (component.column == "b")
    output = generator.normal(size=(300, 1 if binary else 3)).astype(np.float32) * 2
    chances = np.exp(output / shift) / (np.exp(output / shift).sum(1, keepdims=True) + binary)
    truth = (chances.cumsum(1) > generator.random((300, 1))).argmax(1)
    if binary:
        truth = (chances[:, 0] > generator.random(300)).astype(int)
    rows = pl.DataFrame(
        {
            "g": generator.choice(["m", "f", "d"], 300, p=[0.5, 0.25, 0.25]),
            "h": generator.choice(["s", "t"], 300),
        }
    )
    said = component.fit(targets[component.column], output, truth, rows)
    decided = component.outputs(output, rows)
    again: Any = Section("decisions").parse(component.model_dump())
    again.restore(component.state())
    assert (again.outputs(output, rows) == decided).all()
    return said, component.state(), decided, component.extend(targets[component.column], decided)


def rows() -> pl.DataFrame:
    n = 60
    odd = ["schÃ¶n <b>A</b>", "  two  spaces ", "ctrl\x07", "Ｆｕｌｌ", "漢語", "UPPER"]
    return pl.DataFrame(
        {
            "age": [
                None if i % 7 == 3 else "gone" if i in (5, 12) else "NA" if i % 7 == 6 else str(i * i % 61)
                for i in range(n)
            ],
            "year": [2000 + i % 30 for i in range(n)],
            "month": [f"2024-{1 + i % 12:02}" for i in range(n)],
            "city": [["北京", "上海", "Paris ", "Lyon  x"][i % 4] for i in range(n)],
            "text": [f"{odd[i % 6]} and the same long words again {i % 50}" for i in range(n)],
            "part": [["train", "test", "holdout"][i % 3] for i in range(n)],
            "other_part": ["train" if i % 2 else "validation" for i in range(n)],
        }
    )


def see_cleaning(component: Any) -> Any:
    frame = rows()
    component.update(frame)
    component.finish()
    cleaned = component.apply(frame, predicting=False)
    return cleaned.to_dict(as_series=False), dict(component.counts())


def see_splits(component: Any) -> Any:
    frame = rows()
    keys = np.random.default_rng(0).integers(2**63, size=len(frame)).astype(np.uint64)
    component.update(frame, keys)
    component.finish()
    return component.assign(frame, keys)


VALUES: dict[str, list[Any]] = {
    "binary": ["yes", "no", None], "category": ["a", "b", "b", "c", "c", "c", None], "date": ["2024-01-02", "2023-05-06", "2024-02-29"],
    "number": ["1", "2", None, "50"], "set": ["a;b", "b;c", "c,d", "b"], "vector": [[1.0, 2.0], [3.0, 9.0]],
    "text": ["Hello world, hello you 123, ｅｅ", "the other World of words " * 3, "a b c d e f g h i j k l m n o p q r s t u v w x y z"],
    "image": [np.arange(24, dtype=np.uint8).reshape(4, 6).tolist(), np.full((8, 2), 200, np.uint8).tolist()],
}  # fmt: skip


def see_processors(component: Any) -> Any:
    values = pl.Series("x", VALUES[component.type])
    component.update(values)
    component.finish()
    seen: list[Any] = [component.fields("x", "input"), component.invalid(values).to_list()]
    encoded = component.encode(values.filter(~component.invalid(values)))
    seen.append({name: plain(value) for name, value in encoded.items()})
    if component.output is not None:
        seen.append(
            component.decode(np.linspace(-1, 1.5, 4 * component.head_width, dtype=np.float32).reshape(4, -1))
        )
    return seen


IMAGE = Field("photo", "image", "input", "float32", (12, 16, 3))
SPEC = Spec({"photo.pixels": IMAGE, "other.pixels": Field("other", "image", "input", "float32", (12, 16, 3))})
NUMBERS = Spec({f"{name}.value": Field(name, "number", "input", "float32") for name in ("photo", "other")})
TEXTS = {**read_yaml(RECIPE).data, "model": "textcnn"}
TEXTS["data"] = {**TEXTS["data"], "inputs": {"photo": "text", "other": "text"}}


def see_augment(component: Any) -> Any:
    if component.level == "text":
        generator = np.random.default_rng(0)
        return component.text(["the quick brown fox jumps over it"] * 5, generator), _texts_to_augment(
            load(TEXTS), [component]
        )
    spec = NUMBERS if component.type == "noise" else SPEC
    generator = torch.Generator().manual_seed(0)
    shape = (12,) if component.type == "noise" else (12, 3, 12, 16)
    batch = {name: torch.rand(shape, generator=generator) for name in spec.fields}
    return component.batch(batch, spec, torch.Generator().manual_seed(1))


CHATS = [
    json.dumps([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    for question, answer in [("Hello world 123, ｅｅ", "the World of words"), ("a b c d e f g h", "words " * 9), ("Hello you", "i")]
]  # fmt: skip
VALUES["chat"] = CHATS


def write_sources(folder: Path) -> None:
    for i, name in enumerate(("chats", "chats2")):
        row = {"conversations": json.loads(CHATS[i]), "instruction": "x", "output": "é", "a": CHATS[2]}
        (folder / f"{name}.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "a.csv").write_text('a,b\n"1;x","é"\n2,\'3\'\n', encoding="utf-8")
    (folder / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (folder / "a.txt").write_text("one\nand é\n\ntwo\n", encoding="utf-8")
    (folder / "b.txt").write_text("three\n")
    (folder / "a.tsv").write_text('a\tb\n"1,x"\t"é"\n2\t\'3\'\n', encoding="utf-8")
    (folder / "b.tsv").write_text("a\tb\n9\t9\n")
    (folder / "ragged.tsv").write_text("a\tb\n1\t2\n3\n")
    (folder / "a.jsonl").write_text('{"a": "é", "b": 2}\n', encoding="utf-8")
    (folder / "b.jsonl").write_text('{"a": "x", "b": 3}\n')
    for name, value in (("a", 1), ("b", 2)):
        pl.DataFrame({"a": [value]}).write_parquet(folder / f"{name}.parquet")
        pl.DataFrame({"a": [value]}).write_ipc(folder / f"{name}.arrow")
        np.savez(folder / f"{name}.npz", a=np.array([value]), b=np.array([3]))
        connection = sqlite3.connect(folder / f"{name}.db")
        connection.execute("create table t (a, b)")
        connection.execute("insert into t values (?, 5)", [value])
        connection.commit()
        connection.close()
    for label in ("cat", "dog"):
        (folder / "pictures" / label).mkdir(parents=True)
        Image.new("L", (2, 2)).save(folder / "pictures" / label / "1.png")
    (folder / "pictures.csv").write_text("image,other,label\ncat/1.png,dog/1.png,x\n")


def see_sources(component: Any) -> Any:
    return component.columns(), [chunk.rows() for chunk in component.scan()], component.notes()


class Recorder(types.ModuleType):
    """A package that keeps what it is asked to do."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **options: Any) -> Recorder:
            self.calls.append(
                (name, [str(one) for one in arguments], {key: str(one) for key, one in options.items()})
            )
            return self

        return call


def see_callbacks(component: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    package = Recorder(component.type)
    for name in ("mlflow", "wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, package)
    component.require()
    component.on_start(Path("folder"), {})
    progress = Progress()
    stops: list[Any] = []
    net = bert()
    for look in range(6):
        progress.step, progress.epoch, progress.since_best = look, look // 2, max(0, look - 2)
        component.before_update(net, progress)
        stops.append(sum(parameter.requires_grad for parameter in net.parameters()))
        component.on_step(progress, {"loss": 1.0})
        stops.append(component.on_evaluate(progress, {"loss": 1.0 - look / 10}))
    component.on_end(progress)
    return stops, progress.stopped, package.calls


def bert() -> nn.Module:
    fields = {
        "text.ids": Field("text", "text", "input", "int64", None, size=20),
        "label.index": Field("label", "category", "target", "int64", size=2, output="logits", width=2),
    }
    torch.manual_seed(0)
    model = Section("models").parse({"type": "bert", "layers": 3, "hidden_size": 8, "heads": 2})
    return build_model(model, [], Spec(fields))


def see_adapt(component: Any) -> Any:
    """What is trained, what comes out while it is, and what an artefact holds."""
    net = component.apply(bert()).train()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        out = net({"text.ids": Ragged.from_rows([torch.arange(9), torch.arange(4)])})["label.logits"]
    trained = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    return trained, out, [*component.finish(net)[0].state_dict()]


def see(section: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What can be seen of a component, or the error that it ends in."""
    try:
        component = Section(section).parse(options)
    except ValidationError as error:  # a key that a component inherits and refuses
        return str(error)
    look: Any = globals()[f"see_{section}"]
    try:
        return plain(look(component, monkeypatch) if section == "callbacks" else look(component))
    except LubanError as error:
        return str(error)


# --- components -------------------------------------------------------------------------------------------

ALL = [
    (section, name, key, value)
    for section, cases in TRIED.items()
    for name, keys in cases.items()
    for key, value in keys.items()
    if key != "base"
]


def test_every_key_of_every_component_is_tried() -> None:
    assert set(TRIED) | {"models", "audits", "explainers"} == set(SECTIONS)
    for section, cases in TRIED.items():
        assert set(cases) == set(names(section))
        for name, keys in cases.items():
            fields = lookup(section, name).model_fields
            known = {info.alias or key for key, info in fields.items()}
            assert set(keys) - {"base"} == known, f"{section} {name}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("section", "name", "key", "value"), ALL, ids=[f"{s}-{n}-{k}" for s, n, k, _ in ALL])
def test_key_does_something(
    section: str, name: str, key: str, value: Any, here: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if section == "sources":
        write_sources(here)
    if (name, key) == ("lora", "from"):
        step = LoRA(rank=3, alpha=9.0)
        write_peft(step.apply(bert()), [step], here / "adapter")
    if key == "tokenizer":
        shutil.copy(tiny / "model" / "tokenizer.json", here)
    base = {"type": name, **TRIED[section][name].get("base", {})}
    if isinstance(value, tuple):
        more, value = value
        base |= more
    before, after = see(section, base, monkeypatch), see(section, base | {key: value}, monkeypatch)
    assert see(section, base, monkeypatch) == before, "what is seen depends on the options alone"
    assert not isinstance(before, str) or section == "sources", before
    assert before != after, f"key '{key}' of {section} type '{name}' does nothing"


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ({"min": 3}, [3, 4]), ({"max": 2}, [1, 2]), ({"min_length": 2}, [2, 3, 4]), ({"max_length": 2}, [1, 2]), ({"values": ["bb", "dddd"]}, [2, 4]),
        ({"matches": "^c"}, [3]), ({"required": True}, [1, 2, 3, 4]),
    ],
)  # fmt: skip
def test_every_key_of_a_rule(rule: dict[str, Any], kept: list[int]) -> None:
    assert len(rule) == 1
    assert set(Rule.model_fields) == {
        "min",
        "max",
        "min_length",
        "max_length",
        "values",
        "matches",
        "required",
    }
    column = "i" if {"min", "max"} & set(rule) else "t"
    frame = pl.DataFrame({"i": [1, 2, 3, 4, None], "t": ["a", "bb", "ccc", "dddd", None]})
    step: Any = Section("cleaning").parse({"type": "invalid", "rules": {column: rule}})
    assert step.apply(frame, predicting=False)["i"].drop_nulls().to_list() == kept
    assert len(step.apply(frame, predicting=False)) == len(kept) + ("required" not in rule)


# --- the sections of a recipe -----------------------------------------------------------------------------

DATA: dict[str, Any] = {
    "train": "half.csv", "validation": "half.csv", "test": "half.csv", "inputs": {"age": "number"}, "targets": {"shop": "category"}, "groups": ["shop"],
    "weight": "price", "clean": [{"type": "invalid", "rules": {"age": "30.."}}], "split": {"validation": 0.4}, "augment": ["char_noise"],
    "max_invalid": ({"train": "words.csv"}, 0.9),
}  # fmt: skip
TRAIN: dict[str, Any] = {
    "epochs": 3, "steps": ({"epochs": None}, 5), "batch_size": 8, "batch_tokens": ({"batch_size": None}, 40), "accumulate": 2, "optimizer": "sgd",
    "schedule": "linear", "clip": 0.01, "ema": 0.5, "callbacks": [{"type": "early_stopping", "patience": 1, "converged": 0.99}], "evaluate_every": 3,
    "keep": ({"optimizer": {"type": "sgd", "learning_rate": 3.0}}, "last"), "metric": "label.accuracy", "checkpoint_every": 1e-9, "checkpoint_steps": 1, "seed": 5,
    "device": "cuda", "precision": "bf16", "threads": 2,
}  # fmt: skip
WHOLE: dict[str, Any] = {
    "model": "fasttext", "adapt": [{"type": "freeze", "patterns": ["heads.*"]}], "objective": {"type": "focal", "gamma": 5}, "sample": "synthetic", "imports": ["no_such_module"],
    "decide": ["temperature"], "audits": ["columns"], "gates": ["label.accuracy >= 2"],
}  # fmt: skip


def see_run(folder: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What can be seen of a training: weights, looks, checkpoints, threads, the frozen sample, figures by group."""
    saved: list[int] = []
    threads: list[int] = []
    save, set_threads = Checkpoints.save, torch.set_num_threads
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, step, *a, **k: (saved.append(step), save(self, step, *a, **k))[1]
    )
    monkeypatch.setattr(torch, "set_num_threads", lambda n: (threads.append(n), set_threads(n))[1])
    output = folder / "made"
    shutil.rmtree(output, ignore_errors=True)
    try:
        result = train(recipe, output=output)
        slices = evaluate(output, str(folder / "rows.csv"), resamples=0)["slices"]
    except LubanError as error:
        return str(error)
    finally:
        monkeypatch.undo()
        monkeypatch.chdir(folder)
    metrics = json.loads((output / "metrics.json").read_text())
    return (
        hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest(), result["steps"], result["stopped"], result["rows"], metrics["history"],
        (output / "sample.jsonl").read_text(), saved, threads, sorted(slices), json.loads((output / "lineage.json").read_text())["progress"]["best"],
        metrics.get("gates"), (output / "audit.json").exists(),
    )  # fmt: skip


SECTION_KEYS = [("data", DATA), ("train", TRAIN), ("", WHOLE)]


def test_every_key_of_every_section_is_tried() -> None:
    assert set(DATA) == set(Data.model_fields)
    assert set(TRAIN) | {"kernels", "products"} == set(Train.model_fields)
    assert set(WHOLE) | {"data", "train"} == set(Recipe.model_fields)


@pytest.mark.parametrize("kernels", ["auto", "native", "torch"])
def test_kernels_are_those_asked_for(kernels: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    use = _kernels.use
    monkeypatch.setattr(
        _kernels, "use", lambda which: (asked.append(which), use("torch"))[1]
    )  # which builds nothing
    recipe = read_yaml(RECIPE).data
    data = {**recipe["data"], "inputs": {"review": "text"}}
    recipe = {
        **recipe,
        "data": data,
        "model": {"type": "bert", "size": "tiny"},
        "train": {**recipe["train"], "kernels": kernels},
    }
    assert make_plan(load(recipe)).recipe.train.kernels == "torch"
    assert asked == [kernels]


@pytest.mark.parametrize("products", ["auto", "onednn", "blas"])
def test_products_are_made_by_what_was_asked_for(
    products: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"fp32": 1.0, "onednn": 2.0, "bf16": 0.1}
    monkeypatch.setattr(machine, "_measured", lambda device, arithmetic, width: speeds[arithmetic])
    monkeypatch.setattr(machine, "available", lambda: True)
    recipe = read_yaml(RECIPE).data
    model = {"type": "mlp", "hidden": [128, 128]}
    recipe = {
        **recipe,
        "model": model,
        "train": {**recipe["train"], "device": "cpu", "precision": "fp32", "products": products},
    }
    plan = make_plan(load(recipe))
    assert plan.step.products == plan.recipe.train.products == ("blas" if products == "blas" else "onednn")
    assert ("products: oneDNN is 2.0x as quick as the BLAS" in plan.derived) == (products == "auto")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [(section, key, value) for section, keys in SECTION_KEYS for key, value in keys.items()],
)
def test_key_of_a_section_does_something(
    section: str, key: str, value: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (work / "rows.csv").read_text(encoding="utf-8").splitlines()
    (work / "half.csv").write_text("\n".join(lines[:41]) + "\n", encoding="utf-8")
    broken = [f"many{line}" if i % 9 == 4 else line for i, line in enumerate(lines)]
    (work / "words.csv").write_text("\n".join(broken) + "\n", encoding="utf-8")
    base = read_yaml(RECIPE).data
    if isinstance(value, tuple):
        more, value = value
        base[section] = {k: v for k, v in (base[section] | more).items() if v is not None}
    changed = {**base, section: {**base[section], key: value}} if section else {**base, key: value}
    before, after = see_run(work, base, monkeypatch), see_run(work, changed, monkeypatch)
    assert see_run(work, base, monkeypatch) == before, "what is seen depends on the recipe alone"
    assert before != after, f"key '{key}' of '{section or 'the recipe'}' does nothing"
