"""Garbage ends in a sentence: whatever a recipe, an override or an artefact holds, no other exception and no hang."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from luban import registry
from luban.artefact import Artefact
from luban.errors import InputError, LubanError
from luban.predict import of_artefact
from luban.recipe import Data, Recipe, Train, load, read_yaml

QUICK = settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow])


def survives(work: Any) -> None:
    """Call it; the user's mistakes may be named, nothing else may happen."""
    try:
        work()
    except InputError as error:
        message = str(error)
        assert message
        assert "\n" not in message, message
        assert len(message) < 2000


# --- text -------------------------------------------------------------------------------------------------

TOKENS = [
    "data", "model", "train", "inputs", "targets", ":", ": ", "- ", "\n", "\n  ", "\n    ", "{", "}", "[", "]", ",", "&a ", "*a", "!!", "!!str ", "!!int ", "!!map ", "!",
    "'", '"', "|", ">", "|+2", "%", "%TAG ! tag:x,", "---", "...", "#", "? ", "~", "null", "3", "3e-4", ".inf", "0x", "0o9", "\t", "\\", "\\u12", "\ufeff", "\x00", "\u2028",
    "\x85", "<<: ", "mlp", "text.csv", "no", "文", "\ud800", "😀",
]  # fmt: skip


@QUICK
@given(st.text(max_size=200) | st.lists(st.sampled_from(TOKENS), max_size=60).map("".join))
@example("&a [" * 500 + "*a")
@example("? " * 3000)
@example("- " * 3000)
@example("{a: " * 3000)
@example("'" + "\n" * 5000)
@example("a: " + "!!str " * 2000)
@example("%YAML 1.2\n%TAG ! !\n---\n!x")
def test_text_as_yaml(text: str) -> None:
    survives(lambda: read_yaml(text))


@settings(QUICK, max_examples=80)
@given(
    st.binary(max_size=300)
    | st.lists(st.sampled_from(TOKENS[:-2]), max_size=60).map(lambda t: "".join(t).encode())
)
def test_bytes_as_a_recipe(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.yaml"
    path.write_bytes(content)
    survives(lambda: load(path))


# --- structures -------------------------------------------------------------------------------------------

KEYS = sorted(
    {*Recipe.model_fields, *Data.model_fields, *Train.model_fields, "type", "x", "0", ""}
    | {key for section in registry.SECTIONS for name in registry.names(section) for key in registry.lookup(section, name).model_fields}
)  # fmt: skip
TYPES = sorted({name for section in registry.SECTIONS for name in registry.names(section)})
NUMBERS = [0, 1, -1, 3, 10**6, 10**30, -(10**30), 0.5, -0.5, 1e300, float("nan"), float("inf"), True, False]
WORDS = [
    "", "x", "x.csv", "x.xyz", "~nobody/x.csv", "http://", "sqlite:///a.db", "sqlite://", "sqlite:///", "dataset:", "dataset:none", "a\x00b", "*", "[", "(", "..", "0..1", "/",
    "auto", "balanced", "label.accuracy", "\ud800", "x" * 300, "csv", "://", "s3://x", "memory://", "file://x.csv", ".csv", "a.csv.gz", ".gz", "folder/",
]  # fmt: skip
LEAVES = st.none() | st.sampled_from(NUMBERS) | st.sampled_from(WORDS) | st.sampled_from(TYPES)
GARBAGE = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)


def component(section: str) -> st.SearchStrategy[Any]:
    """A component of a section with real keys and any values."""

    def of(name: str) -> st.SearchStrategy[Any]:
        fields = list(registry.lookup(section, name).model_fields) or ["x"]
        return st.dictionaries(st.sampled_from(fields), GARBAGE, max_size=3).map(
            lambda options: {**options, "type": name}
        )

    return st.sampled_from(registry.names(section)).flatmap(of) | GARBAGE


def section_of(cls: Any, **known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional={key: known.get(key, GARBAGE) for key in cls.model_fields})


COLUMNS = st.dictionaries(
    st.sampled_from(["x", "y", "*", "a b", "", "."]), component("processors"), min_size=1, max_size=2
)
DATA = section_of(
    Data, train=component("sources"), validation=component("sources"), inputs=COLUMNS, targets=COLUMNS, split=component("splits"),
    clean=st.lists(component("cleaning"), max_size=2), augment=st.lists(component("augment"), max_size=2),
)  # fmt: skip
TRAIN = section_of(
    Train, optimizer=component("optimizers"), schedule=component("schedules"), callbacks=st.lists(component("callbacks"), max_size=2)
)  # fmt: skip
RECIPES = st.fixed_dictionaries(
    {"data": DATA | GARBAGE, "model": component("models") | GARBAGE},
    optional={
        "train": TRAIN | GARBAGE, "objective": component("objectives") | st.lists(component("objectives"), max_size=2), "adapt": st.lists(component("adapt"), max_size=2),
        "sample": GARBAGE, "imports": st.lists(st.sampled_from(["", ".", "no_such_module", "a b", "..x", "x\x00"]), max_size=1) | GARBAGE, "x": GARBAGE,
    },
)  # fmt: skip


@settings(QUICK, max_examples=250)
@given(RECIPES)
def test_structures_as_a_recipe(recipe: dict[str, Any]) -> None:
    survives(lambda: load(recipe))


@settings(QUICK, max_examples=80)
@given(st.fixed_dictionaries({"data": DATA, "model": component("models"), "train": TRAIN}))
def test_structures_with_lines(tmp_path_factory: pytest.TempPathFactory, recipe: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "structure.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    survives(lambda: load(path))


GOOD = {
    "data": {"train": "t.csv", "inputs": {"x": "number"}, "targets": {"y": "category"}, "clean": ["missing"]},
    "model": {"type": "mlp", "hidden": [3]},
}
DOTTED = st.lists(
    st.sampled_from([*KEYS, "0", "1", "-1", "²", "٣", " ", "99999999999999999999"]), min_size=1, max_size=5
).map(".".join)


@settings(QUICK, max_examples=250)
@given(
    st.lists(
        st.tuples(DOTTED, GARBAGE.map(lambda value: json.dumps(value)) | st.sampled_from(TOKENS)),
        min_size=1,
        max_size=3,
    )
)
@example([("data.train.0.x", "3")])
@example([("data.clean.0.0", "3")])
@example([("model.hidden.0.x", "3")])
def test_overrides(pairs: list[tuple[str, str]]) -> None:
    survives(lambda: load(GOOD, [f"{key}={value}" for key, value in pairs]))


@QUICK
@given(st.text(max_size=60))
def test_text_as_an_override(text: str) -> None:
    survives(lambda: load(GOOD, [text]))


# --- artefacts --------------------------------------------------------------------------------------------

FILES = [
    "config.json",
    "preprocessing.json",
    "tokenizer.json",
    "metrics.json",
    "lineage.json",
    "sample.jsonl",
    "model.safetensors",
]


@pytest.fixture(scope="module")
def victim(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    shutil.copytree(tiny / "model", folder, ignore=shutil.ignore_patterns("train"))
    return folder


@pytest.mark.parametrize("name", FILES)
def test_one_byte_of_an_artefact(victim: Path, name: str) -> None:
    """Any byte, any value: the artefact loads and predicts as before, or is refused in a sentence."""
    path = victim / name
    good = path.read_bytes()
    generator = random.Random(name)
    try:
        for _ in range(150):
            bad = bytearray(good)
            place = generator.randrange(len(bad))
            bad[place] = generator.choice([*b'0123456789-.{}[],:"e\\nt', 0, 255, generator.randrange(256)])
            path.write_bytes(bytes(bad))
            try:
                artefact = Artefact.load(victim)
                if name in ("config.json", "preprocessing.json", "sample.jsonl", "model.safetensors"):
                    of_artefact(artefact)
            except LubanError:
                pass
            except BaseException as error:
                around = bytes(bad[max(0, place - 60) : place + 60])
                raise AssertionError(f"byte {place} of {name}: {around!r}") from error
    finally:
        path.write_bytes(good)


def leaves(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a JSON document."""
    here = [path] if path else []
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return here + [one for key, value in inner for one in leaves(value, (*path, key))]


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessing.json", "lineage.json", "metrics.json", "sample.jsonl"]
)
def test_one_value_of_an_artefact(victim: Path, name: str) -> None:
    """Any value replaced by another, or missing."""
    path = victim / name
    good = path.read_bytes()
    text = good.decode().splitlines()[0] if name.endswith("l") else good.decode()
    places = leaves(json.loads(text))
    generator = random.Random(name)
    try:
        for _ in range(150):
            data = json.loads(text)
            place = generator.choice(places)
            here = data
            for key in place[:-1]:
                here = here[key]
            value = generator.choice(
                [None, True, -1, 0, 10**30, 1e300, "", "x", [], [[]], {}, {"x": 1}, "gone"]
            )
            if value == "gone":
                del here[place[-1]]
            else:
                here[place[-1]] = value
            path.write_text(json.dumps(data), encoding="utf-8")
            try:
                artefact = Artefact.load(victim)
                if name != "metrics.json":
                    of_artefact(artefact)
            except LubanError:
                pass
            except BaseException as error:
                raise AssertionError(f"{place} of {name} = {value!r}") from error
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_artefact(victim: Path, name: str) -> None:
    path = victim / name
    good = path.read_bytes()
    try:
        for keep in [0, 1, 7, 8, 9, len(good) // 3, len(good) // 2, len(good) - 2]:
            path.write_bytes(good[:keep])
            # A sample that ends after a whole line is a shorter sample; everything else is damaged.
            refused = contextlib.suppress if name == "sample.jsonl" else pytest.raises
            with refused(LubanError):
                of_artefact(Artefact.load(victim))
    finally:
        path.write_bytes(good)
