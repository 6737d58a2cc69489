"""From a recipe's data section to stores of encoded rows, in a few passes that each hold one chunk.

::

    pass 1   read, repair, mark, key      → spool of chunks, repaired and as they were (a temporary folder)
    pass 2   fit the split                  (keys only)
    pass 3   fit cleaning and processors    (training rows only)
    pass 4   encode                       → a store for each split, and the raw rows of validation and test

The result lies in the cache under a hash of everything it depends on, so the second run with the same data starts at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from luban import files
from luban._version import __version__
from luban.data.contracts import TEST, TRAIN, VALIDATION, Cleaner, Processor, Source, Spec, Split
from luban.data.pipeline import Pipeline, is_fitted_step, row_keys
from luban.data.store import Store, StoreWriter
from luban.errors import DataError
from luban.recipe import Component, Data, Section
from luban.sentences import kept, revived, say

__all__ = ["Prepared", "prepare", "split_rows"]

SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
_KEY, _GOOD, _ROW = "__luban_key__", "__luban_good__", "__luban_row__"
# Whose versions decide what a cell is encoded as; both packages that bring the module opencc are meant.
_PACKAGES = ("polars", "tokenizers", "pillow", "ftfy", "opencc-python-reimplemented", "OpenCC")
_CACHE_LIMIT = 20 * 2**30  # bytes of prepared data kept; the longest unused go first

Report: TypeAlias = Callable[[str, int, int | None], None]
"""Is told the stage, the rows done in it, and of how many."""


def _unheard(stage: str, rows: int, total: int | None) -> None:
    """Tell nobody."""


@dataclass
class Prepared:
    """Data that is ready to train on.

    Attributes:
        folder: where it lies in the cache.
        pipeline: fitted on the training rows.
        spec: the fields of a batch.
        rows: split → number of rows.
        report: what was read, cleaned, dropped, truncated, by name; for people and for the artefact.
        fingerprints: split or 'train' → hash of the data as it was read.
        split_state: what `split_rows` needs to assign rows again.
    """

    folder: Path
    pipeline: Pipeline
    spec: Spec
    rows: dict[str, int]
    report: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    split_state: dict[str, Any] = field(default_factory=dict)

    def store(self, split: str) -> Store:
        """Return the encoded rows of a split."""
        return Store(self.folder / split)

    def raw(self, split: str) -> Iterator[pl.DataFrame]:
        """Yield the rows of validation or test as the user has them, before any cleaning."""
        for part in sorted((self.folder / f"raw-{split}").glob("*.arrow")):
            yield pl.read_ipc(part)


def _default_split(data: Data) -> Split:
    """Without a word of the user's: 10 % for each split that has no rows of its own."""
    return cast(
        Split,
        Section("splits").parse(
            {
                "type": "random",
                "validation": 0.0 if data.validation else 0.1,
                "test": 0.0 if data.test else 0.1,
            }
        ),
    )


def prepare(
    data: Data,
    *,
    raw_text: list[str] | None = None,
    marked: list[str] | None = None,
    report: Report = _unheard,
) -> Prepared:
    """Read, clean, split, fit and encode; or take the same from the cache.

    Args:
        data: the recipe's data section.
        raw_text: input columns whose text is needed beside the encoding (for augmentations of text).
        marked: columns of groups that an objective looks at, encoded beside the inputs.
        report: called with the stage, the number of rows done in it, and of how many, if that is known.

    Raises:
        DataError: for anything wrong with the data, in one sentence.
        MachineError: if the cache cannot be written.
    """
    sources = {name: cast(Source, getattr(data, name)) for name in SPLITS if getattr(data, name) is not None}
    fingerprints = {name: source.fingerprint() for name, source in sources.items()}
    split = cast(Split, data.split).model_copy(deep=True) if data.split is not None else _default_split(data)
    pipeline = Pipeline.of(data, sources["train"].columns())
    pipeline.raw_text = list(raw_text or [])
    pipeline.marked = {
        name: cast(Processor, Section("processors").parse("category")) for name in marked or ()
    }
    identity = {
        "version": __version__,
        "packages": _versions(),
        "code": _code_of(
            [*sources.values(), *data.inputs.values(), *data.targets.values(), *data.clean, split]
        ),
        "data": data.model_dump(exclude={"augment"}),
        "fingerprints": fingerprints,
        "files": _files_of(data),
        "pictures": _pictures(sources, _pointing(pipeline)),
        "raw_text": sorted(raw_text or []),
        "marked": sorted(marked or []),
        "split": split.model_dump(),
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]
    folder = files.cache_folder() / "prepared" / name
    if not (folder / "prepared.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        with files.new_folder(folder, replace=True) as target:
            _Preparation(data, sources, pipeline, split, target, report).run(fingerprints)
        _prune(folder.parent, keep=folder)
    return _read(folder)


def _files_of(data: Data) -> dict[str, str]:
    """Return the hashes of the tokenizers and templates that a recipe names by path: another file there is another
    preparation."""
    columns = (*data.inputs.values(), *data.targets.values())
    found = [path for p in columns if (own := getattr(p, "files", None)) is not None for path in own()]
    return {str(path): files.sha256_of(path) for path in found}


def _versions() -> dict[str, str | None]:
    """Return the versions of what encodes: another one may cut words, decode pictures or fold letters otherwise."""
    versions: dict[str, str | None] = {"unicode": unicodedata.unidata_version}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def _code_of(components: list[Component]) -> dict[str, str]:
    """Return the hash of the code of each component that is not Luban's own, and of the classes that it builds on."""
    ours = set(Component.__mro__)
    classes = {cls for one in components for cls in type(one).__mro__ if cls not in ours}
    return {
        f"{cls.__module__}.{cls.__qualname__}": _source_of(cls)
        for cls in classes
        if not cls.__module__.startswith("luban.")
    }


def _source_of(cls: type[Any]) -> str:
    """Hash the file that defines a class, and the methods as this process runs them.

    Either alone would do harm: a file does not tell that the process still runs what it held before an edit, and a class of
    a notebook has no file; the methods do not tell what lies beside them in the file.
    """
    digest = hashlib.sha256()
    path = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if path is not None and os.path.isfile(path):
        digest.update(Path(path).read_bytes())
    for name, value in sorted(vars(cls).items(), key=lambda item: item[0]):
        function = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        if isinstance(code := getattr(function, "__code__", None), CodeType):
            digest.update(f"{name} {_instructions(code)}".encode())
    return digest.hexdigest()


def _instructions(code: Any) -> str:
    """Return what a function does, or a constant in it, as text that is the same in every process.

    The order of a set is not: it follows the hashes of strings, which are drawn anew each time.
    """
    if isinstance(code, CodeType):
        return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {_instructions(code.co_consts)}"
    if isinstance(code, tuple | frozenset):
        parts = [_instructions(one) for one in code]
        return repr(sorted(parts) if isinstance(code, frozenset) else parts)
    return repr(code)


def _pointing(pipeline: Pipeline) -> list[str]:
    """Return the inputs whose cells may only point at data: their processor says what makes two of them the same."""
    return [name for name, one in pipeline.inputs.items() if type(one).identity is not Processor.identity]


def _pictures(sources: Mapping[str, Source], columns: list[str]) -> str | None:
    """Hash names, sizes and times of the files that cells name: a picture may change while the table stays the same.

    Contents are not read, so that a million files take seconds.
    """
    digest = hashlib.sha256()
    for source in sources.values() if columns else ():
        if source.type == "images" and getattr(source, "table", None) is None:
            continue  # its own fingerprint knows its files
        for chunk in source.scan():
            named = [path for column in columns if column in chunk.columns for path in _paths(chunk[column])]
            if not named:
                break  # the pictures lie in the table itself: its fingerprint knows them
            for path in named:
                try:
                    status = os.stat(path)
                    digest.update(
                        f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "replace")
                    )
                except (OSError, ValueError):  # ValueError: a zero byte, which is in no path
                    digest.update(f"{path}\0absent\0".encode("utf-8", "replace"))
    return digest.hexdigest() if columns else None


def _paths(values: pl.Series) -> list[str]:
    """Return the paths among the cells: text that is no data URL, or {'bytes': null, 'path': ...}."""
    if isinstance(values.dtype, pl.Struct):
        fields = [one.name for one in values.dtype.fields]
        if "path" not in fields:
            return []
        inside = values.struct.unnest()
        values = inside["path"] if "bytes" not in fields else inside.filter(inside["bytes"].is_null())["path"]
    if values.dtype != pl.String:
        return []
    return values.drop_nulls().filter(~values.drop_nulls().str.starts_with("data:")).to_list()


def _read(folder: Path) -> Prepared:
    (folder / "prepared.json").touch()  # the cache forgets what was longest unused
    saved = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    pipeline = Pipeline.restore(saved["pipeline"])
    return Prepared(
        folder,
        pipeline,
        Spec.from_json(saved["spec"]),
        saved["rows"],
        revived(saved["report"]),
        saved["fingerprints"],
        saved["split"],
    )


def _prune(cache: Path, keep: Path) -> None:
    for rest in cache.glob(".*.partial"):  # of runs that were killed; a day is longer than any preparation
        if time.time() - rest.stat().st_mtime > 86_400:
            shutil.rmtree(rest, ignore_errors=True)
    entries = sorted(cache.glob("*/prepared.json"), key=lambda p: -p.stat().st_mtime)
    total = 0
    for entry in entries:
        total += sum(path.stat().st_size for path in entry.parent.rglob("*") if path.is_file())
        if total > _CACHE_LIMIT and entry.parent != keep:
            shutil.rmtree(entry.parent, ignore_errors=True)


@dataclass
class _Spooled:
    """A chunk between pass 1 and pass 4: all its rows repaired, their keys, which of them a training keeps, and where they
    lie as the user has them."""

    rows: pl.DataFrame
    keys: npt.NDArray[np.uint64]
    good: npt.NDArray[np.bool_]
    original: Path


class _Preparation:
    """One run of the four passes."""

    def __init__(
        self,
        data: Data,
        sources: dict[str, Source],
        pipeline: Pipeline,
        split: Split,
        target: Path,
        report: Report,
    ) -> None:
        self.data, self.sources, self.pipeline, self.split = data, sources, pipeline, split
        self.target, self.report = target, report
        self.counts: Counter[str] = Counter()
        self.read: dict[str, int] = {}

    def run(self, fingerprints: dict[str, str]) -> None:
        """Do it."""
        with tempfile.TemporaryDirectory(prefix="spool-", dir=self.target) as spool_name:
            spool = Path(spool_name)
            read = self.read = self._spool(spool)
            self._fit_split(spool)
            self._fit(spool)
            rows = self._encode(spool)
        self._refuse_too_few(read, rows)
        report = {
            "read": read,
            "counts": {key: n for key, n in (self.counts + self.pipeline.counts).items() if n},
            "notes": {name: source.notes() for name, source in self.sources.items()},
        }
        manifest = {
            "pipeline": self.pipeline.state(),
            "spec": self.pipeline.spec.to_json(),
            "rows": rows,
            "fingerprints": fingerprints,
            "split": {"options": self.split.model_dump(), "state": self.split.state()},
            "report": kept(report),
        }
        (self.target / "prepared.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")

    # pass 1
    def _spool(self, spool: Path) -> dict[str, int]:
        read: dict[str, int] = {}
        elsewhere = np.empty(0, dtype=np.uint64)
        for name in (
            "validation",
            "test",
            "train",
        ):  # so that training rows that stand in the others can be left out
            if name not in self.sources:
                continue
            read[name] = kept = 0
            (spool / name).mkdir()
            # Steps that need no fitting act here, once, before rows are keyed: repaired duplicates are duplicates.
            steps = [
                step.model_copy(deep=True) for step in self.pipeline.cleaners if not is_fitted_step(step)
            ]
            for i, chunk in enumerate(self.sources[name].scan()):
                if i == 0:
                    try:
                        self.pipeline.require(chunk.columns, targets=True, beside=True)
                    except DataError as error:
                        raise DataError(f"the {name} data: {error}") from None
                read[name] += len(chunk)
                repaired, good = self._repair(chunk, steps, dropping=name == "train")
                keys = row_keys(repaired, self.pipeline.inputs)
                if name != "train":
                    elsewhere = np.union1d(elsewhere, keys)
                elif len(elsewhere):
                    leaked = np.isin(keys, elsewhere)
                    what = say(
                        "training rows dropped because their inputs stand in the validation or test rows"
                    )
                    self.counts[what] += int((leaked & good).sum())
                    good &= ~leaked
                kept += int(good.sum())
                marks = [pl.Series(_KEY, keys), pl.Series(_GOOD, good)]
                repaired.with_columns(marks).write_ipc(spool / name / f"{i:08}.arrow")
                chunk.write_ipc(spool / name / f"{i:08}.original")
                self.report(f"reading {name}", read[name], None)
            if not read[name]:
                raise DataError(f"the {name} data has a header but no row; give at least a few rows")
            if not kept:
                raise DataError(
                    f"none of the {read[name]:,} rows of the {name} data is left after cleaning: {_commonest(self.counts)}; see data.clean"
                )
        return read

    def _repair(
        self, chunk: pl.DataFrame, steps: list[Cleaner], *, dropping: bool
    ) -> tuple[pl.DataFrame, npt.NDArray[np.bool_]]:
        """Return all rows, repaired by the steps that need no fitting, and which of them a training would keep, (n,)."""
        if not steps:
            return chunk, np.ones(len(chunk), dtype=bool)
        repaired = chunk
        good = np.ones(len(chunk), dtype=bool)
        for step in steps:
            if dropping:
                numbered = repaired.filter(pl.Series(good)).with_columns(
                    pl.Series(_ROW, np.flatnonzero(good))
                )
                left = step.apply(numbered, predicting=False)[_ROW].to_numpy()
                self.counts.update(step.counts())
                good = np.isin(np.arange(len(chunk)), left)
            repaired = step.apply(repaired, predicting=True)
            step.counts()  # counted above, or again when the rows are encoded
        return repaired, good

    @staticmethod
    def _chunks(folder: Path) -> Iterator[_Spooled]:
        for part in sorted(folder.glob("*.arrow")):
            chunk = pl.read_ipc(part)
            yield _Spooled(
                chunk.drop(_KEY, _GOOD),
                chunk[_KEY].to_numpy(),
                chunk[_GOOD].to_numpy(),
                part.with_suffix(".original"),
            )

    # pass 2
    def _fit_split(self, spool: Path) -> None:
        for one in self._chunks(spool / "train"):
            self.split.update(one.rows.filter(pl.Series(one.good)), one.keys[one.good])
        self.split.finish()

    def _training(self, spool: Path) -> Iterator[pl.DataFrame]:
        for one in self._chunks(spool / "train"):
            part = one.rows.filter(pl.Series((self.split.assign(one.rows, one.keys) == TRAIN) & one.good))
            if len(part):
                yield part

    # pass 3
    def _fit(self, spool: Path) -> None:
        ready: list[Cleaner] = []
        for step in self.pipeline.cleaners:
            if not is_fitted_step(step):
                continue
            for chunk in self._training(spool):
                for earlier in ready:
                    chunk = earlier.apply(chunk, predicting=False)
                step.update(chunk)
            step.finish()
            self.counts.update(step.counts())  # what fitting found out, such as columns that have no bounds
            ready.append(step)
        for step in ready:
            step.counts()  # what was changed while later steps were fitted is counted again while encoding
        done = 0
        for chunk in self._training(spool):
            for step in ready:
                chunk = step.apply(chunk, predicting=False)
            done += len(chunk)
            self._require_indicators(chunk)
            for column, processor in (
                *self.pipeline.inputs.items(),
                *self.pipeline.targets.items(),
                *self.pipeline.marked.items(),
            ):
                self.pipeline.owner(processor).update(chunk[column])
            self.report("fitting", done, self.read["train"])
        for step in ready:
            step.counts()
        if not done:
            raise DataError(
                "no training row is left after cleaning and splitting; see data.clean and data.split"
            )
        self.report("learning what encodes the columns", 0, None)  # a tokenizer takes a while
        self.pipeline.finish()

    def _require_indicators(self, chunk: pl.DataFrame) -> None:
        for column in (*self.pipeline.inputs, *self.pipeline.targets):
            if column not in chunk.columns:
                raise DataError(
                    f"there is no column '{column}': the cleaning step missing makes an indicator only beside a column that "
                    "it fills; name that column under its 'columns', choose a strategy that fits it, or remove the input"
                )

    # pass 4
    def _encode(self, spool: Path) -> dict[str, int]:
        ready = [step for step in self.pipeline.cleaners if is_fitted_step(step)]
        spec = self.pipeline.spec
        rows: dict[str, int] = dict.fromkeys(SPLITS, 0)
        with ExitStack() as stack:
            writers = {name: stack.enter_context(StoreWriter(self.target / name, spec)) for name in SPLITS}
            for name in ("validation", "test"):
                (self.target / f"raw-{name}").mkdir()
            done = 0
            for source in self.sources:
                for one in self._chunks(spool / source):
                    codes = np.full(len(one.rows), SPLITS[source], dtype=np.uint8)
                    if source == "train":
                        codes = self.split.assign(one.rows, one.keys)
                    for split, code in SPLITS.items():
                        mine = codes == code
                        if split == "train":
                            original = one.rows.filter(pl.Series(mine & one.good))
                            part = self.pipeline.clean(original, predicting=False, steps=ready)
                        elif mine.any():
                            # Rows to choose by and to report on go the way of rows to predict, from what the user has:
                            # none is dropped for what it holds, and what is measured here is what is served.
                            original = pl.read_ipc(one.original).filter(pl.Series(mine))
                            part = self.pipeline.clean(original, predicting=True)
                        else:
                            continue
                        if not len(part):
                            continue
                        encoded, kept = self.pipeline.encode(part, targets=True)
                        n = int(kept.sum())
                        if not n:
                            continue
                        writers[split].append(encoded)
                        if split != "train":
                            raw = original.filter(pl.Series(kept))
                            raw.write_ipc(self.target / f"raw-{split}" / f"{rows[split]:012}.arrow")
                        rows[split] += n
                    done += len(one.rows)
                    self.report("encoding", done, sum(self.read.values()))
        return rows

    def _refuse_too_few(self, read: dict[str, int], rows: dict[str, int]) -> None:
        if not rows["train"]:
            raise DataError(
                f"none of the {read['train']:,} training rows can be read: {_commonest(self.pipeline.counts)}"
            )
        lost = {
            key: n
            for key, n in self.pipeline.counts.items()
            if n and ("unreadable" in key or "missing" in key.split(": ")[-1])
        }
        share = sum(lost.values()) / max(1, sum(read.values()))
        if share > self.data.max_invalid:
            raise DataError(
                f"{sum(lost.values()):,} of {sum(read.values()):,} rows ({share:.1%}) cannot be used ({_commonest(Counter(lost))}), "
                f"more than data.max_invalid={self.data.max_invalid:g} allows; repair the data, clean it (data.clean), or raise max_invalid"
            )


def _commonest(counts: Counter[str]) -> str:
    return ", ".join(f"{key} ({n:,})" for key, n in counts.most_common(3) if n) or "every row was dropped"


def split_rows(split_state: dict[str, Any], rows: pl.DataFrame, pipeline: Pipeline) -> npt.NDArray[np.uint8]:
    """Assign rows as they were assigned when the artefact was trained: 0 train, 1 validation, 2 test, (n,)."""
    split = cast(Split, Section("splits").parse(split_state["options"]))
    split.restore(split_state["state"])
    return split.assign(rows, row_keys(rows, {**pipeline.inputs, **pipeline.aside}))
