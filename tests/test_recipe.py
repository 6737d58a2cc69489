"""The recipe: what YAML means, where a mistake stands, what an override does, and that nothing is lost in writing it down."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from luban import recipe, registry
from luban.errors import MissingError, RecipeError
from luban.recipe import dump, load, read_yaml, schema

MINIMAL: dict[str, Any] = {
    "data": {"train": "t.csv", "inputs": {"x": "number"}, "targets": {"label": "category"}},
    "model": "mlp",
}
TEXT = """\
data:
  train: t.csv
  inputs:
    x: number
  targets: {label: category}
model: {type: mlp, size: tiny}
"""


def refused(text: str, overrides: list[str] | None = None, *, folder: Path) -> str:
    """Load a recipe that must be refused, and return the sentence."""
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(path, overrides or [])
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "r.yaml")


# --- YAML 1.2 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1E3", 1000.0), ("-.5", -0.5), ("+2.", 2.0), (".inf", math.inf), ("-.INF", -math.inf), ("12", 12), ("-7", -7),
        ("007", 7), ("0o17", 15), ("0x1F", 31), ("1_000", "1_000"), ("0b1", "0b1"), ("1:30", "1:30"), ("true", True), ("FALSE", False), ("no", "no"),
        ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("~", None), ("null", None), ("", None), ("nULL", "nULL"), ("2024-05-01", "2024-05-01"),
        ("=", "="), ("'3'", "3"), ('"3e-4"', "3e-4"), ("!!str 3", "3"), ("!!float 3", 3.0), ("!!int 3", 3), (r'"\ud83d\ude00"', "😀"), ("好的", "好的"), ("e5", "e5"), ("1e", "1e"),
        (".", "."), ("0o8", "0o8"), ("|\n  a\n  b", "a\nb"), (">\n  a\n  b", "a b"),
    ],
)  # fmt: skip
def test_scalars(text: str, value: Any) -> None:
    read = read_yaml(f"key: {text}").data["key"]
    assert read == value
    assert type(read) is type(value)


def test_not_a_number_is_a_number() -> None:
    assert math.isnan(read_yaml("a: .nan").data["a"])


def test_collections_anchors_and_merge_keys() -> None:
    text = "a: &x {b: [1, two]}\nc: *x\n'<<': 3\n? d\n: 4\n"
    assert read_yaml(text).data == {"a": {"b": [1, "two"]}, "c": {"b": [1, "two"]}, "<<": 3, "d": 4}
    assert read_yaml("no: 1\nnull: 2\n3: 4").data == {"no": 1, "null": 2, "3": 4}, "keys are words"
    assert read_yaml("").data == {}
    assert read_yaml("# only a comment\n").data == {}


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "r:3: key 'a' is repeated; its first value stands in line 1"),
        ("a:\n  b: 1\n  'b': 2", "r:3: key 'b' is repeated; its first value stands in line 2"),
        ("a: !!python/object:os.system {}", "r:1: tag 'tag:yaml.org,2002:python/object:os.system' is refused"),
        ("\na: !!python/name:os.system", "r:2: tag 'tag:yaml.org,2002:python/name:os.system' is refused"),
        ("!!python/name:os.system a: 1", "r:1: tag 'tag:yaml.org,2002:python/name:os.system' is refused"),
        ("a: !mine 3", "r:1: tag '!mine' is refused"),
        ("a: !!set {b}", "r:1: tag 'tag:yaml.org,2002:set' is refused"),
        ("a: !!binary aGk=", "r:1: tag 'tag:yaml.org,2002:binary' is refused"),
        ("a: !!int x", "r:1: 'x' is not a valid int"),
        ("a: !!float x", "r:1: 'x' is not a valid float"),
        ("a: !!bool maybe", "r:1: 'maybe' is not a valid bool"),
        ("a: !!null x", "r:1: 'x' is not a valid null"),
        ("a: " + "9" * 5000, "r:1: '9999"),
        ("[a, b]: 1", "r:1: a key must be a plain word"),
        ("{a: b}: 1", "r:1: a key must be a plain word"),
        ("a: *b", "r:1: not valid YAML: found undefined alias 'b'"),
        ("a: &x [*x]", "r:1: the document is nested more than 64 levels deep, or an anchor contains itself"),
        (LAUGHS, "the document has more than 100,000 nodes"),
        ("a: " + "[" * 70 + "]" * 70, "nested more than 64 levels"),
        ("[" * 20_000, "nested too deeply"),
        ("a: 1\n---\nb: 2", "r:2: not valid YAML: expected a single document in the stream, but found another"),
        ("a: [1, 2", "r:1: not valid YAML: expected ',' or ']'"),
        ("a:\n\tb: 1", "r:2: not valid YAML: found character '\\t'"),
        ("a: 'b", "r:1: not valid YAML: found unexpected end of stream"),
        ("a: b: c", "r:1: not valid YAML: mapping values are not allowed here"),
        ("a: 1\nb: \x07", "r:2: not valid YAML: character U+0007 may not stand in it"),
        ("a: \ud800", "r:1: not valid YAML: character U+D800"),
        ("%YAML 3.0\n---\na: 1", "r:1: not valid YAML"),
        (r'a: "\ud83d"', "r:1: '\\ud83d' holds half a character"),
        (r'"\ud83d": 1', "r:1: '\\ud83d' holds half a character"),
        ("a: \"\\q\"", "r:1: not valid YAML: found unknown escape character 'q'"),
    ],
    ids=range(31),
)  # fmt: skip
def test_what_is_no_plain_data_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_yaml(text, "r")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_anchors_that_repeat_a_little_are_fine() -> None:
    assert len(read_yaml(LAUGHS[: LAUGHS.index("a5")]).data) == 5


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert load(path).model.type == "mlp", "a byte order mark is no part of the text"
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert load(path).model.type == "mlp"
    for raw, words in [
        (TEXT.encode() + "# 评论".encode("gbk"), ":7: a recipe is UTF-8 text, and this line is not"),
        (TEXT.encode() + b"# caf\xe9\n", ":7: a recipe is UTF-8 text"),
        (TEXT.encode("utf-16"), ":1: a recipe is UTF-8 text"),
        (b"PK\x03\x04\x00\x00", ":1: not valid YAML: character U+0003"),
        (b"hello", "received str where a mapping with data, model and train belongs"),
        (b"- a\n", "received list where a mapping with data, model and train belongs"),
        (b"", "key 'data' is missing; a recipe cannot do without it"),
    ]:
        path.write_bytes(raw)
        with pytest.raises(RecipeError, match=r"r\.yaml") as caught:
            load(path)
        assert words in str(caught.value)
    with pytest.raises(RecipeError, match=r"there is no file .*luban init DATA"):
        load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="is a folder; name the recipe file in it"):
        load(tmp_path)


# --- errors and their lines -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("model:", "modle: 1\nmodel:", ["r.yaml:6: key 'modle' is unknown; a recipe takes data, model,", "did you mean 'model'?"]),
        ("x: number", "x: {type: number, normalise: log}", ["r.yaml:4: key 'data.inputs.x.normalise' is unknown; processors type 'number' takes normalize, missing, indicator", "did you mean 'normalize'?"]),
        ("x: number", "x: {type: number, normalize: logg}", ["r.yaml:4: data.inputs.x.normalize: received 'logg', but it should be 'zscore', 'minmax', 'robust', 'log' or 'none'"]),
        ("x: number", "x: numbr", ["r.yaml:4: data.inputs.x: type 'numbr' is unknown; processors are binary, category", "did you mean 'number'?"]),
        ("x: number", "x:", ["r.yaml:4: data.inputs.x: received null, but a mapping with 'type' belongs here; types are binary,"]),
        ("    x: number", "    {}", ["r.yaml:3: data.inputs: received {}, but it should have at least 1 item"]),
        ("    x: number", "    [x]", ["r.yaml:3: data.inputs: received ['x'], but it should be a mapping"]),
        ("  train: t.csv\n", "", ["r.yaml:1: key 'data.train' is missing; 'data' cannot do without it"]),
        ("t.csv", "{type: csv}", ["r.yaml:2: key 'data.train.path' is missing; sources type 'csv' cannot do without it"]),
        ("t.csv", "{path: t.csv}", ["r.yaml:2: data.train: key 'type' is missing; types are arrow, "]),
        ("t.csv", "{type: csv, path: [a.csv, 3]}", ["r.yaml:2: data.train.path.1: received 3, but it should be a string"]),
        ("t.csv", "{type: csv, path: 3}", ["r.yaml:2: data.train.path: received 3, but it should be a string or a list"]),
        ("t.csv", "t.xyz", ["r.yaml:2: data.train: the kind of ", "t.xyz' cannot be told from its ending; endings known are arrow, csv"]),
        ("t.csv", "sqlite:///a.db", ["r.yaml:2: data.train: 'sqlite:///a.db' is a database: write {type: sql, connection: 'sqlite:///a.db'"]),
        ("t.csv", "3", ["r.yaml:2: data.train: received 3, but a mapping with 'type' belongs here"]),
        ("t.csv", "[]", ["r.yaml:2: data.train: received [] where a path, a glob or a URL of data belongs"]),
        ("label: category", "x: category", ["r.yaml:4: column 'x' is both an input and a target"]),
        ("size: tiny", "size: huge", ["r.yaml:6: model.size: received 'huge', but it should be 'tiny', 'small', 'medium' or 'large'"]),
        ("size: tiny", "hidden: [3, a]", ["r.yaml:6: model.hidden.1: received 'a', but it should be an integer"]),
        ("size: tiny", "hiden: [3]", ["r.yaml:6: key 'model.hiden' is unknown; models type 'mlp' takes size, hidden,", "did you mean 'hidden'?"]),
        ("{type: mlp, size: tiny}", "transfromer", ["r.yaml:6: model: type 'transfromer' is unknown; models are bert, cnn,", "did you mean 'transformer'?"]),
        ("{type: mlp, size: tiny}", "{size: tiny}", ["r.yaml:6: model: key 'type' is missing; types are bert, cnn,"]),
        ("size: tiny}", "encoders: {x: {type: rnn, cel: gru}}}", ["key 'model.encoders.x.cel' is unknown; models type 'rnn' takes", "did you mean 'cell'?"]),
        ("$", "train: 3", ["r.yaml:7: train: received 3, but it should be a mapping"]),
        ("$", "train:\n  epochs: ten", ["r.yaml:8: train.epochs: received 'ten', but it should be an integer"]),
        ("$", "train:\n  epochs: 1.5", ["r.yaml:8: train.epochs: received 1.5, but it should be an integer"]),
        ("$", "train:\n  epochs: true", ["r.yaml:8: train.epochs: received true, but it should be an integer"]),
        ("$", "train:\n  epochs: 0", ["r.yaml:8: train.epochs: received 0, but it should be greater than 0"]),
        ("$", "train:\n  clip: .nan", ["r.yaml:8: train.clip: received nan, but it should be a finite number"]),
        ("$", "train:\n  epochs: 3\n  steps: 3", ["r.yaml:9: train.epochs and train.steps are both given; keep one"]),
        ("$", "train:\n  batch_tokens: 3\n  batch_size: 3", ["r.yaml:8: train.batch_size and train.batch_tokens are both given; keep one"]),
        ("$", "train:\n  seed: 99999999999999999999", ["r.yaml:8: train.seed: received 99999999999999999999, but it should be less than"]),
        ("$", "train:\n  optimizer:\n    learning_rate: fast", ["r.yaml:9: train.optimizer.learning_rate: received 'fast', but it should be a number"]),
        ("$", "train:\n  optimizer: [adam]", ["r.yaml:8: train.optimizer: received ['adam'], but a mapping with 'type' belongs here; types are adafactor"]),
        ("$", "train:\n  optimizer: {type: sgd, nesterov: true, momentum: 0}", ["r.yaml:8: train.optimizer: nesterov needs a momentum above 0"]),
        ("$", "train:\n  callbacks: early_stopping", ["r.yaml:8: train.callbacks: received 'early_stopping', but it should be a list"]),
        ("$", "train:\n  callbacks:\n    - tensorboard\n    - early_stoping", ["r.yaml:10: train.callbacks.1: type 'early_stoping' is unknown", "did you mean 'early_stopping'?"]),
        ("$", "train:\n  callbacks:\n    - type: early_stopping\n      patience: 0", ["r.yaml:10: train.callbacks.0.patience: received 0, but it should be greater than or equal to 1"]),
        ("$", "objective: cross_entrpy", ["r.yaml:7: objective: type 'cross_entrpy' is unknown", "did you mean 'cross_entropy'?"]),
        ("$", "objective:\n  - cross_entropy\n  - fokal", ["r.yaml:9: objective.1: type 'fokal' is unknown", "did you mean 'focal'?"]),
        ("$", "objective:\n  - {type: focal, gama: 1}", ["r.yaml:8: key 'objective.0.gama' is unknown; objectives type 'focal' takes", "did you mean 'gamma'?"]),
        ("$", "objective: {type: cross_entropy, class_weights: balancd}", ["objective.class_weights: received 'balancd', but it should be 'balanced' or a mapping"]),
        ("$", "objective: {type: cross_entropy, class_weights: {a: b}}", ["objective.class_weights.a: received 'b', but it should be a number"]),
        ("$", "adapt: freeze", ["r.yaml:7: adapt: received 'freeze', but it should be a list"]),
        ("$", "adapt: [freeze]", ["r.yaml:7: key 'adapt.0.patterns' is missing; adapt type 'freeze' cannot do without it"]),
        ("$", "sample: none", ["r.yaml:7: sample: received 'none', but it should be 'validation' or 'synthetic'"]),
        ("$", "imports: mine", ["r.yaml:7: imports: received 'mine', but it should be a list"]),
        ("$", "imports: [3]", ["r.yaml:7: imports.0: received 3, but it should be a string"]),
        ("$", "imports:\n  - no_such_module", ["r.yaml:8: imports: module 'no_such_module' cannot be imported (ModuleNotFoundError", "it must lie beside the recipe or be installed"]),
        ("  targets", "  split: 0.1\n  targets", ["r.yaml:5: data.split: received 0.1, but a mapping with 'type' belongs here; types are folds"]),
        ("  targets", "  split: {validaton: 0.1}\n  targets", ["key 'data.split.validaton' is unknown; splits type 'random' takes validation, test, seed", "did you mean 'validation'?"]),
        ("  targets", "  split: {validation: 0.6, test: 0.5}\n  targets", ["r.yaml:5: data.split: validation 0.6 and test 0.5 leave no rows to train on"]),
        ("  targets", "  clean:\n    - type: invalid\n      rules: {x: {minn: 3}}\n  targets", ["r.yaml:7: key 'data.clean.0.rules.x.minn' is unknown; 'x' takes min, max,", "did you mean 'min'?"]),
        ("  targets", "  clean: [{type: invalid, rules: {x: '3-4'}}]\n  targets", ["'3-4' is no range; write 0..120"]),
        ("  targets", "  clean: [{type: invalid, rules: {x: {matches: '('}}}]\n  targets", ["'(' is not a regular expression: unclosed group"]),
        ("  targets", "  augment: [{type: rotate, degrees: [1]}]\n  targets", ["data.augment.0.degrees: received [1], but it should be a number or have at least 2 items"]),
        ("  targets", "  groups: city\n  targets", ["r.yaml:5: data.groups: received 'city', but it should be a list"]),
    ],
)  # fmt: skip
def test_every_mistake_is_named_with_its_line(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    text = TEXT + new + "\n" if old == "$" else TEXT.replace(old, new, 1)
    message = refused(text, folder=tmp_path)
    for one in words:
        assert one in message


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    text = TEXT.replace("tiny", "huge") + "train: {epochs: 0, seed: -1}\n"
    assert refused(text, folder=tmp_path).endswith("(and 2 more)")


def test_long_values_are_shortened(tmp_path: Path) -> None:
    message = refused(TEXT.replace("tiny", "x" * 10_000), folder=tmp_path)
    assert "'" + "x" * 76 + "..." in message
    assert len(message) < 300


def test_python_data_is_checked_alike() -> None:
    with pytest.raises(RecipeError, match=r"^recipe: model\.size: received 'huge'"):
        load({**MINIMAL, "model": {"type": "mlp", "size": "huge"}})


def test_a_component_of_another_section_is_refused() -> None:
    number = registry.lookup("processors", "number")()
    assert load({**MINIMAL, "data": {**MINIMAL["data"], "inputs": {"x": number}}}).data.inputs["x"] is number
    with pytest.raises(
        RecipeError, match="received a component of 'processors' where one of 'models' belongs"
    ):
        load({**MINIMAL, "model": number})


# --- overrides --------------------------------------------------------------------------------------------


def get(value: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


LONG = {
    "data": {
        **MINIMAL["data"],
        "train": ["a.csv", "b.csv"],
        "validation": "v.csv.gz",
        "clean": ["missing", {"type": "outliers"}],
        "groups": ["a"],
    },
    "model": {"type": "mlp", "hidden": [3, 4]},
}


@pytest.mark.parametrize(
    ("override", "dotted", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("train.optimizer.learning_rate=3e-4", "train.optimizer.learning_rate", 3e-4),
        ("train.optimizer.learning_rate=3e-4", "train.optimizer.type", "adamw"),
        ("train.schedule.warmup=5", "train.schedule.type", "constant"),
        ("train.optimizer=sgd", "train.optimizer.type", "sgd"),
        ("train.optimizer={type: sgd, momentum: 0.5}", "train.optimizer.momentum", 0.5),
        (" train . epochs = 7 ", "train.epochs", 7),
        ("train.metric=label.accuracy", "train.metric", "label.accuracy"),
        ("data.inputs.x.normalize=log", "data.inputs.x.normalize", "log"),
        ("data.inputs.y=text", "data.inputs.y.type", "text"),
        ("data.clean.0.strategy=mode", "data.clean.0.strategy", "mode"),
        ("data.clean.1.threshold=2", "data.clean.1.threshold", 2.0),
        ("data.clean.1=duplicates", "data.clean.1.type", "duplicates"),
        ("data.clean=[]", "data.clean", []),
        ("data.groups=[b, c]", "data.groups", ["b", "c"]),
        ("data.groups.0=city", "data.groups.0", "city"),
        ("data.weight=", "data.weight", None),
        ("data.weight=a=b", "data.weight", "a=b"),
        ("data.train.encoding=gbk", "data.train.encoding", "gbk"),
        ("data.train.1=c.csv", "data.train.path.1", "c.csv"),
        ("data.train=c.tsv", "data.train.type", "tsv"),
        ("data.validation.separator=;", "data.validation.separator", ";"),
        ("data.split.validation=0.2", "data.split.type", "random"),
        ("model.hidden.1=9", "model.hidden", [3, 9]),
        ("model=cnn", "model.type", "cnn"),
        ("imports=[json]", "imports", ["json"]),
    ],
)
def test_overrides(override: str, dotted: str, value: Any) -> None:
    found = get(load(LONG, [override]).model_dump(), dotted)
    if isinstance(found, str) and found.startswith("/"):
        found = Path(found).name
    assert found == value


def test_overrides_apply_in_order_and_leave_the_source_alone() -> None:
    source = json.loads(json.dumps(LONG))
    recipe_ = load(
        source, ["train.optimizer=sgd", "train.optimizer.momentum=0.3", "train.epochs=1", "train.epochs=2"]
    )
    assert (recipe_.train.optimizer.momentum, recipe_.train.epochs) == (0.3, 2)  # type: ignore[union-attr]
    assert source == LONG
    again = load(recipe_, ["train.epochs=5"])
    assert (again.train.epochs, recipe_.train.epochs) == (5, 2)
    assert load(recipe_) is recipe_


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs", "override 'train.epochs' is not of the form key=value, such as train.epochs=3"),
        ("=3", "override '=3' is not of the form key=value"),
        ("train.epochs=ten", "override 'train.epochs=ten': train.epochs: received 'ten', but it should be an integer"),
        ("train.epoch=3", "override 'train.epoch=3': key 'train.epoch' is unknown; 'train' takes epochs, steps"),
        ("trian.epochs=3", "override 'trian.epochs=3': key 'trian' is unknown"),
        ("train.optimizer.lr=3", "override 'train.optimizer.lr=3': key 'train.optimizer.lr' is unknown; optimizers type 'adamw' takes learning_rate"),
        ("train={epochs: [", "override 'train={epochs: [':1: not valid YAML"),
        ("train.epochs=!!python/name:os.system", "is refused: a recipe holds plain data only"),
        ("train.steps=3", "override 'train.steps=3': train.epochs and train.steps are both given"),
        ("train.epochs.x=3", "override 'train.epochs.x=3': 'train.epochs' is 1, which has no key 'x'"),
        ("data.clean.0.type=missing", "override 'data.clean.0.type=missing': 'data.clean' is a list of 0; received '0' where an index from 0 belongs"),
        ("data.clean.²=missing", "received '²' where an index from 0 belongs"),
        ("data.inputs.x.normalize=logg", "override 'data.inputs.x.normalize=logg': data.inputs.x.normalize: received 'logg'"),
        ("data.train.path=3", "override 'data.train.path=3': data.train.path: received 3"),
        ("data.validation.encoding=gbk", "override 'data.validation.encoding=gbk': 'v.xyz'"),
        ("model.hidden=3", "override 'model.hidden=3': model.hidden: received 3, but it should be a list"),
        ("imports=[no_such_module]", "override 'imports=[no_such_module]': imports: module 'no_such_module'"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named(tmp_path: Path, override: str, words: str) -> None:
    text = TEXT.replace("  targets", "  clean: []\n  validation: v.xyz\n  targets") + "train: {epochs: 1}\n"
    if "validation" not in override:
        text = text.replace("v.xyz", "v.csv")
    message = refused(text, [override], folder=tmp_path)
    assert words in message.replace("the kind of ", "")


# --- there and back ---------------------------------------------------------------------------------------

ODD = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["no", "yes", "null", "~", "3e-4", "1_000", "0x1F", "0o17", "1:30", "2024-05-01", ".inf", "- a", "a: b", "#", "x #y", "'", '"', "|", ">", "%", "@", "`",
     "*a", "&a", "!!str", "<<", "=", "---", "...", "\n", " a ", "a\nb\n", "\t", "\u0085", "\u2028", "\ufeff", "\x00", "\x7f", "😀", "中文：列", "?", "[", "{", ",", "x" * 300]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(ODD, min_size=3, max_size=6, unique=True),
    ODD,
    st.floats(1e-12, 1e12, exclude_min=True),
    st.none() | st.integers(1, 10**20),
    st.dictionaries(ODD, st.sampled_from(["train", "test", "none"]), max_size=3),
)
def test_a_recipe_survives_being_written_down(
    columns: list[str], word: str, number: float, whole: int | None, words: dict[str, str]
) -> None:
    first, second, target, *rest = columns
    made = load(
        {
            "data": {
                "train": {"type": "csv", "path": "/" + word, "names": columns},
                "inputs": {first: "number", second: {"type": "set", "separator": word}},
                "targets": {target: "category"},
                "groups": rest,
                "clean": [
                    {
                        "type": "invalid",
                        "rules": {first: {"max": number, "values": [word, whole or 1, True, number]}},
                    },
                    {"type": "missing", "strategy": "constant", "value": word, "tokens": columns},
                ],
                "split": {"type": "given", "by": word, "words": words},
            },
            "model": {"type": "mlp", "hidden": [3]},
            "objective": {"type": "cross_entropy", "class_weights": {word: number}},
            "train": {"optimizer": {"type": "adam", "learning_rate": number}, "steps": whole, "metric": word},
        }
    )
    again = load(read_yaml(dump(made)).data)
    assert again == made
    assert dump(again) == dump(made)


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(1e-5)
@example(1e22)
@example(-0.0)
def test_floats_are_written_without_tags(value: float) -> None:
    text = dump(
        load(
            {
                **MINIMAL,
                "data": {
                    **MINIMAL["data"],
                    "clean": [{"type": "missing", "strategy": "constant", "value": value}],
                },
            }
        )
    )
    assert "!!" not in text
    assert read_yaml(text).data["data"]["clean"][0]["value"] == value


def test_a_recipe_survives_a_file(tmp_path: Path) -> None:
    made = load(
        {**LONG, "train": {"optimizer": "muon", "schedule": "one_cycle", "callbacks": ["early_stopping"]}}
    )
    (tmp_path / "r.yaml").write_text(dump(made), encoding="utf-8")
    assert load(tmp_path / "r.yaml") == made


# --- paths and modules ------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = {
        "data": {
            "train": ["a.csv", "sub/b.csv", str(tmp_path / "c.csv"), "~/d.csv", "memory://e.csv"],
            "validation": {"type": "images", "path": "pictures", "table": "labels.csv"},
            "test": {"type": "sql", "connection": "sqlite:///shop.db", "query": "select 1"},
            "inputs": {"x": {"type": "text", "tokenizer": "tok.json"}},
            "targets": {"y": "category"},
        },
        "model": "mlp",
    }
    (folder / "r.yaml").write_text(json.dumps(made))
    data = load("project/r.yaml").data
    at = str(folder)
    assert data.train.path == [  # type: ignore[attr-defined]
        f"{at}/a.csv", f"{at}/sub/b.csv", f"{tmp_path}/c.csv", f"{tmp_path}/home/d.csv", "memory://e.csv",
    ]  # fmt: skip
    assert (data.validation.path, data.validation.table) == (f"{at}/pictures", f"{at}/labels.csv")  # type: ignore[union-attr]
    assert data.test.connection == f"sqlite:///{at}/shop.db"  # type: ignore[union-attr]
    assert data.inputs["x"].tokenizer == f"{at}/tok.json"  # type: ignore[attr-defined]
    assert load(read_yaml(dump(load("project/r.yaml"))).data).data == data, "absolute paths stay"
    made["data"]["test"] = {"type": "sql", "connection": "postgresql://u@h/d", "query": "select 1"}
    assert load(made).data.test.connection == "postgresql://u@h/d"  # type: ignore[union-attr]
    assert load(made).data.train.path[0] == f"{tmp_path}/a.csv", "Python data: the working folder"  # type: ignore[attr-defined]


def test_the_home_of_nobody_is_a_plain_name(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(TEXT.replace("t.csv", "~no-such-user/t.csv"))
    assert load(tmp_path / "r.yaml").data.train.path == f"{tmp_path}/~no-such-user/t.csv"  # type: ignore[attr-defined]


@pytest.fixture
def fresh_registry() -> Iterator[None]:
    """Forget afterwards what a test registered or imported."""
    modules = set(sys.modules)
    registry._plug_ins.cache_clear()
    yield
    registry._plug_ins.cache_clear()
    for section, known in registry._registered.items():
        for name in set(known) - set(registry._built_in(section)):
            del known[name]
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]


MODULE = '''
from luban.models.mlp import MLP
from luban.registry import register

@register("models", "my_mlp")
class MyMlp(MLP):
    """An mlp of one's own."""
    extra: int = 3
'''


@pytest.mark.usefixtures("fresh_registry")
def test_a_module_beside_the_recipe_registers_components(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(MODULE)
    (tmp_path / "r.yaml").write_text(
        TEXT.replace("{type: mlp, size: tiny}", "{type: my_mlp, extra: 5}") + "imports: [my_module]\n"
    )
    path = list(sys.path)
    model = load(tmp_path / "r.yaml").model
    assert (model.type, model.extra) == ("my_mlp", 5)  # type: ignore[attr-defined]
    assert sys.path == path
    assert "my_mlp" in registry.names("models")
    assert "models.my_mlp" in schema()["$defs"]
    message = refused(TEXT.replace("mlp", "my_mlpp") + "imports: [my_module]\n", folder=tmp_path)
    assert "did you mean 'my_mlp'?" in message


@pytest.mark.usefixtures("fresh_registry")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("1 / 0", "(ZeroDivisionError: division by zero)"),
        ("def broken(:", "(SyntaxError: "),
        ("raise SystemExit(5)", "(SystemExit: 5)"),
        ("raise ValueError('two\\nlines')", "(ValueError: two lines)"),
        ("from luban.registry import register\n@register('modells')\nclass A: ...", "section 'modells' is unknown; sections are sources,"),
        ("from luban.registry import register\n@register('models', 'mlp')\nclass A: ...", "type 'mlp' of section 'models' is registered twice: by luban.models.mlp and by my_broken"),
    ],
)  # fmt: skip
def test_a_module_that_fails_is_named_with_its_reason(tmp_path: Path, body: str, words: str) -> None:
    registry.lookup("models", "mlp")
    (tmp_path / "my_broken.py").write_text(body + "\n")
    message = refused(TEXT + "imports:\n  - my_broken\n", folder=tmp_path)
    assert message.startswith("r.yaml:8: ")
    assert words in message


@pytest.mark.usefixtures("fresh_registry")
def test_plug_ins_come_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_plugin.py").write_text(MODULE.replace('@register("models", "my_mlp")\n', ""))
    information = tmp_path / "my_plugin-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[luban.models]\nplugged = my_plugin:MyMlp\ngone = my_plugin:Gone\nlost = my_lost:Lost\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert {"plugged", "gone", "lost"} <= set(registry.names("models"))
    assert "my_plugin" not in sys.modules, "names import nothing"
    assert load({**MINIMAL, "model": {"type": "plugged", "extra": 4}}).model.type == "plugged"
    for name in ("gone", "lost"):
        with pytest.raises(
            MissingError, match=f"plug-in type '{name}' of section 'models' cannot be imported"
        ):
            load({**MINIMAL, "model": name})
    (information / "entry_points.txt").write_text("[luban.models]\nplugged = my_plugin:MyMlp\n")
    registry._plug_ins.cache_clear()
    found = schema()
    assert found["$defs"]["models.plugged"]["properties"]["extra"]["default"] == 3
    jsonschema.validate({**MINIMAL, "model": {"type": "plugged", "extra": 4}}, found)


# --- one section, one folder; one type, one file ----------------------------------------------------------


@pytest.mark.parametrize("section", registry.SECTIONS)
def test_one_to_one(section: str) -> None:
    package = registry.SECTIONS[section]
    folder = Path(recipe.__file__).parent.parent.joinpath(*package.split("."))
    stems = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    assert stems, f"section '{section}' has no type"
    assert registry.names(section) == stems
    for name in stems:
        cls = registry.lookup(section, name)
        assert cls.__module__ == f"{package}.{name}"
        assert (cls.section, cls.type) == (section, name)
        assert issubclass(cls, recipe.Component)
        module = sys.modules[cls.__module__]
        here = [
            one
            for one in vars(module).values()
            if isinstance(one, type) and one.__module__ == module.__name__ and "type" in vars(one)
        ]
        assert here == [cls], "a file registers exactly its own type"
        for key, field in cls.model_fields.items():
            assert field.description, f"key '{key}' of {section} type '{name}' says nothing of itself"
    assert set(registry._registered[section]) <= set(stems), "nothing is registered from elsewhere"


def test_unknown_sections_and_types() -> None:
    with pytest.raises(RecipeError, match="section 'model' is unknown; sections are sources"):
        registry.register("model")
    with pytest.raises(
        RecipeError, match=r"type 'mpl' is unknown; models are bert, cnn, .*did you mean 'mlp'\?"
    ):
        registry.lookup("models", "mpl")


# --- the JSON Schema --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


RECIPES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml"))

ACCEPTED: list[dict[str, Any]] = [
    MINIMAL,
    LONG,
    {**MINIMAL, "model": {"type": "mlp", "size": "large", "encoders": {"x": "rnn"}}},
    {**MINIMAL, "train": {"optimizer": {"learning_rate": 3e-4}, "schedule": {"warmup": 0.1}, "callbacks": ["early_stopping"]}},
    {**MINIMAL, "train": {"optimizer": "sgd", "steps": 3, "clip": 1, "device": "cpu"}},
    {**MINIMAL, "objective": "focal"},
    {**MINIMAL, "objective": ["focal", {"type": "huber", "delta": 2}]},
    {**MINIMAL, "objective": {"type": "cross_entropy", "class_weights": {"a": 1}}},
    {**MINIMAL, "adapt": [{"type": "freeze", "patterns": ["*"]}], "sample": "synthetic", "imports": ["json"]},
    {**MINIMAL, "data": {**MINIMAL["data"], "split": {"validation": 0.2}, "augment": ["flip", {"type": "rotate", "degrees": [0, 5]}]}},
    {**MINIMAL, "data": {**MINIMAL["data"], "split": {"type": "group", "by": ["a", "b"]}, "weight": "w", "max_invalid": 0}},
    {**MINIMAL, "data": {**MINIMAL["data"], "clean": [{"type": "invalid", "rules": {"a": "0..1", "b": ["c", 3], "d": {"min": 3}}}]}},
    {**MINIMAL, "data": {**MINIMAL["data"], "train": {"type": "sql", "connection": "sqlite:///a.db", "query": "select 1"}}},
]  # fmt: skip


@pytest.mark.parametrize("accepted", ACCEPTED)
def test_the_schema_accepts_what_is_accepted(
    accepted: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    validator.validate(accepted)
    validator.validate(read_yaml(dump(load(accepted))).data)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_our_recipes_fit_the_schema(
    path: Path, validator: jsonschema.Draft202012Validator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luban import datasets

    # What a data set's file is called is told without fetching it.
    monkeypatch.setattr(datasets, "main_file", lambda name: Path("/data") / datasets.describe(name).main)
    monkeypatch.setattr("luban.models._language.options_of", lambda family, path: {})  # nor what weights are
    validator.validate(read_yaml(path.read_text(encoding="utf-8")).data)
    validator.validate(read_yaml(dump(load(path))).data)


@pytest.mark.parametrize(
    "change",
    [
        {"modle": "mlp"}, {"train": {"epoch": 3}}, {"train": {"epochs": "3"}}, {"train": {"epochs": 0}}, {"model": {"type": "mpl"}}, {"model": "mpl"},
        {"model": {"type": "mlp", "hiden": [3]}}, {"model": {"size": "tiny"}}, {"data": {}}, {"data": {**MINIMAL["data"], "inputs": {}}},
        {"data": {**MINIMAL["data"], "inputs": {"x": {"type": "number", "normalise": "log"}}}}, {"train": {"optimizer": {"lr": 3}}},
        {"data": {**MINIMAL["data"], "split": {"validaton": 0.1}}}, {"objective": [{"type": "focal", "gama": 1}]}, {"adapt": [{"type": "freeze"}]},
        {"data": {**MINIMAL["data"], "clean": [{"type": "invalid", "rules": {"x": {"minn": 3}}}]}}, {"sample": "none"}, {"imports": "json"},
        {"data": {**MINIMAL["data"], "train": 3}}, {"train": {"callbacks": [{"type": "early_stopping", "patience": 0}]}},
    ],
)  # fmt: skip
def test_the_schema_refuses_what_is_refused(
    change: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    wrong = {**MINIMAL, **change}
    assert not validator.is_valid(wrong)
    with pytest.raises(RecipeError):
        load(wrong)


def test_the_schema_says_what_keys_are_for(validator: jsonschema.Draft202012Validator) -> None:
    found: Any = validator.schema
    for section in registry.SECTIONS:
        for name in registry.names(section):
            definition = found["$defs"][f"{section}.{name}"]
            assert definition["properties"]["type"] == {"const": name}
            assert definition["description"]
            for key, own in definition["properties"].items():
                assert key == "type" or own.get("description"), f"{section}.{name}.{key}"
    assert "luban_section" not in json.dumps(found)


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        ("objective: {type: huber}", 5, "objective huber fits targets of kind number"),
        ("train: {metric: y.acc}", 5, "train.metric: 'y.acc' is unknown"),
        ("adapt: [{type: freeze, patterns: [nothing]}]", 5, "adapt freeze: no parameter matches 'nothing'"),
    ],
)
def test_what_only_a_later_stage_knows_has_a_line_too(
    tmp_path: Path, change: str, line: int, words: str
) -> None:
    from luban.verbs.check import check

    (tmp_path / "rows.csv").write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(60)))
    text = f"data:\n  train: rows.csv\n  inputs: {{x: number}}\n  targets: {{y: category}}\n{change}\nmodel: mlp\n"
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        check(tmp_path / "r.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'r.yaml'}:{line}: {words}")
