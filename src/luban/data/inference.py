"""What the columns of some data are, which of them is the answer, and what is wrong with them.

::

    Source ──look──▶ Sample ──infer──▶ Inference     columns: type and reason     problems: sentences with figures
                                                     targets, groups, split, clean, model

Each decision is a rule with a threshold, kept where it is taken and given back as a clause for the user. Nothing is learnt
and nothing is random but the choice of rows, which is seeded: the same data gives the same answer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl

from luban.data.cleaning._base import TOKENS, is_missing, numbers
from luban.data.contracts import Array, Processor, Source
from luban.data.pipeline import row_keys
from luban.data.processors._base import as_numbers, as_words
from luban.data.processors.binary import POSITIVE
from luban.data.processors.date import as_times
from luban.errors import DataError, did_you_mean
from luban.recipe import Section

__all__ = ["LOOKED_AT", "Column", "Inference", "Problem", "Sample", "describe", "infer", "look"]

LOOKED_AT = 20_000
"""Rows looked at, at most."""
_SCANNED = 512 << 20  # bytes gone through to spread those rows over; the rest of a bigger file is not read
_HELD = 256 << 20  # bytes of rows held, at most: pictures in arrays are large
_MAX_LENGTH = 512  # tokens that the processor of text keeps of a text by default

# --- names that say something -----------------------------------------------------------------------------

# The likeliest first. The first five also count as a word of a longer name ('review_label').
_TARGETS = (
    "label", "target", "标签", "类别", "sentiment", "labels", "class", "y", "分类", "目标", "情感", "outcome", "category",
    "diagnosis", "species", "churn", "survived", "spam", "fraud", "income", "salary", "price", "score", "rating", "stars",
    "result", "risk", "quality", "default", "tags", "结果", "等级", "价格", "房价", "收入", "销量", "评分", "分数", "得分",
    "星级", "是否流失", "是否违约", "意图", "intent", "type",
)  # fmt: skip
_UNNAMED = 2 * len(_TARGETS)  # the rank of a name that says nothing
_CLASSES = re.compile(r"label|target|class|category|grade|species|type|标签|类|等级|^y$", re.IGNORECASE)
_IDS = re.compile(
    r"(^|[ _.-])(id|ids|uuid|guid|idx|index|key|hash|md5|row|rownum|serial|no|unnamed: \d+)$|编号|序号|流水号|订单号|身份证|工号|学号|主键",
    re.IGNORECASE,
)
_CODES = re.compile(r"code|zip|postal|postcode|编码|代码|邮编|区号|型号|类型", re.IGNORECASE)
_PERSONS = (
    "sex", "gender", "race", "ethnicity", "ethnic", "age", "religion", "nationality", "disability", "marital", "native country",
    "性别", "民族", "种族", "年龄", "宗教", "国籍", "籍贯", "户籍", "婚姻", "残疾",
)  # fmt: skip
_SPLITS = ("split", "fold", "subset", "partition", "set", "划分", "数据集")
_SPLIT_WORDS = frozenset(
    [
        "train",
        "training",
        "validation",
        "val",
        "valid",
        "dev",
        "test",
        "testing",
        "none",
        "训练",
        "验证",
        "测试",
    ]
)

_VALIDATION = frozenset(("validation", "val", "valid", "dev", "验证"))

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_NO_ANSWER = [token for token in TOKENS if token not in ("None", "无")]  # as a class, these two are answers
_FILES = (*_PICTURES, ".wav", ".mp3", ".flac", ".ogg", ".m4a", ".mp4", ".avi", ".pdf", ".docx")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
_WORD = r"[\p{Han}\p{Hiragana}\p{Katakana}]|[\p{L}\p{M}]+|\p{N}+"
_HAN = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_TAGS = r"(?i)</?(p|br|div|span|a|b|i|font|table|td|tr|li|ul|html|body|img|strong|em)\b[^<>@]*>"
_HASH = r"^[0-9a-fA-F-]{16,}$"
_SEPARATORS = (";", "；", "|", "、", ",", "，")


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]+", " ", name).strip().lower()


def _is_person(name: str) -> bool:
    plain = _plain(name)
    return any(
        word in plain if word > "\x7f" else re.search(rf"\b{word}\b", plain) is not None for word in _PERSONS
    )


def figure(value: float) -> str:
    """Return a number for people.

    Example:
        >>> figure(1484705.0), figure(0.123456789)
        ('1484705', '0.123457')
    """
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e15 else f"{value:.6g}"


def percent(share: float) -> str:
    """Return a share for people, never rounded to all or nothing.

    Example:
        >>> percent(0.5), percent(0.0004), percent(0.99999), percent(1.0)
        ('50 %', '0.04 %', 'over 99.9 %', '100 %')
    """
    if 0.999 < share < 1:
        return "over 99.9 %"
    value = 100 * share
    digits = 0 if value == round(value) or 10 <= value < 99 else 1 if value >= 0.1 else 2
    return f"{value:.{digits}f} %" if value >= 0.005 or not value else "under 0.01 %"


def shortened(value: Any, length: int = 40) -> str:
    """Return a value as one short line."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def named(names: Iterable[str], most: int = 5) -> str:
    """Return column names in quotes, the first few of many."""
    quoted = [f"'{shortened(name, 60)}'" for name in names]
    rest = f" and {len(quoted) - most} more" if len(quoted) > most else ""
    return ", ".join(quoted[:most]) + rest


# --- looking ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Rows to judge the data by.

    Attributes:
        rows: in the order of the data.
        read: how many rows were gone through to choose them.
        complete: whether these were all.
        notes: what the source said about itself.
    """

    rows: pl.DataFrame
    read: int
    complete: bool
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether every row of the data is here."""
        return self.complete and self.read == len(self.rows)

    def __str__(self) -> str:
        n, read = f"{len(self.rows):,}", f"{self.read:,}"
        if self.whole:
            return f"all {n} rows"
        return (
            f"{n} rows spread over all {read}"
            if self.complete
            else f"{n} of the first {read} rows; the rest was not read"
        )


def look(source: Source, limit: int = LOOKED_AT) -> Sample:
    """Choose rows evenly from a source, or from its first half gigabyte if it is larger.

    Raises:
        DataError: if the source cannot be read.
    """
    generator = np.random.default_rng(0)
    held: list[pl.DataFrame] = []
    keys: list[Array] = []
    read = scanned = 0
    complete = True
    for chunk in source.scan(1024):
        if read and scanned > _SCANNED:
            complete = False
            break
        read += len(chunk)
        size = chunk.estimated_size()
        scanned += int(size)
        most = max(50, min(limit, int(_HELD * len(chunk) / max(size, 1))))
        held.append(chunk)
        keys.append(generator.random(len(chunk)))
        if sum(map(len, held)) > 2 * most:
            held, keys = _thinned(held, keys, most)
    held, keys = _thinned(held, keys, limit)
    return Sample(held[0], read, complete, source.notes())


def _thinned(
    held: list[pl.DataFrame], keys: list[Array], most: int
) -> tuple[list[pl.DataFrame], list[Array]]:
    """Keep the rows with the `most` smallest random keys: a uniform sample, in order."""
    rows, key = pl.concat(held), np.concatenate(keys)
    if len(rows) > most:
        kept = np.sort(np.argpartition(key, most)[:most])
        rows, key = rows[kept], key[kept]
    return [rows], [key]


# --- one column -------------------------------------------------------------------------------------------


@dataclass
class Column:
    """What was found out about a column.

    Attributes:
        name: as in the data.
        type: the processor that reads it; None if it is left out.
        reason: why, in one clause.
        options: of that processor, where they differ from its defaults.
        role: what becomes of it.
        missing: share of rows without a value.
        distinct: different values, in the rows looked at.
        examples: a few values, shortened.
        absent: words that stand for 'no value' where only numbers or dates can be read.
        otherwise: the type to try if it is left out and the user wants it in.
        long: share of texts that are longer than what is kept of them.
        size: height and width of its pictures.
    """

    name: str
    type: str | None
    reason: str
    options: dict[str, Any] = field(default_factory=dict)
    role: Literal["input", "target", "split", "left out"] = "input"
    missing: float = 0.0
    distinct: int = 0
    examples: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    otherwise: str = "category"
    long: float = 0.0
    size: tuple[int, int] | None = None

    def leave_out(self, reason: str) -> None:
        """Take it from the inputs, remembering how it would have been read."""
        self.otherwise = self.type or self.otherwise
        self.role, self.type, self.reason = "left out", None, reason


def describe(values: pl.Series, *, whole: bool = True, folder: Path | None = None) -> Column:
    """Decide how an input column is read.

    Args:
        values: the column.
        whole: whether these are all the values there are; a binary column may else turn out to have a third.
        folder: where paths in the column may start, besides the working directory.

    Example:
        >>> found = describe(pl.Series("born", ["2026年3月4日", "2025年12月31日"]))
        >>> found.type, found.reason
        ('date', 'dates from 2025-12-31 to 2026-03-04')
    """
    if isinstance(values.dtype, pl.Categorical | pl.Enum):
        values = values.cast(pl.String)
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Object):
        column = _nested(values)
        column.missing = values.null_count() / max(1, len(values))
    else:
        missing = is_missing(values)
        present = values.filter(~missing)
        words = as_words(present)
        counts = words.alias("word").value_counts(sort=True)
        column = _flat(values, present, words, counts, whole, folder)
        column.missing = len(values) and float(missing.mean() or 0)  # type: ignore[arg-type]
        column.distinct = len(counts)
        column.examples = [shortened(word) for word in words.unique(maintain_order=True).head(3)]
    if column.type is None:
        column.role = "left out"
    return column


def _nested(values: pl.Series) -> Column:
    name, present = values.name, values.drop_nulls()
    if not len(present):
        return Column(name, None, "it is empty")
    if values.dtype == pl.Binary:
        if all(cell.startswith(_MAGIC) for cell in present.head(20)):
            return _pictures(name, present, "pictures as bytes")
        return Column(name, None, "it holds bytes that are no pictures")
    if isinstance(values.dtype, pl.Struct):
        if "bytes" in {one.name for one in values.dtype.fields}:
            return _pictures(name, present, "pictures as bytes")
        return Column(name, None, "its cells are records; make a column of each of their fields")
    if values.dtype == pl.Object:
        return Column(name, None, "its cells are Python objects of several kinds")
    cells = (
        present.head(200).to_list()
        if not isinstance(values.dtype, pl.Array)
        else list(present.head(200).to_numpy())
    )
    try:
        shapes = {np.asarray(cell, dtype=np.float64).shape for cell in cells}
    except (TypeError, ValueError):
        inner = cast(Any, values.dtype).inner
        if inner == pl.String:
            words = {word for cell in cells for word in cell if word is not None}
            return Column(name, "set", f"lists of words, {len(words)} different ones", distinct=len(words))
        return Column(name, None, "its lists hold neither numbers nor words alone, or differ in shape")
    if len(shapes) > 1:
        return Column(name, None, "its lists of numbers differ in length", otherwise="set")
    (shape,) = shapes
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)):
        size = " x ".join(map(str, shape))
        stack = np.asarray(cells, dtype=np.float64)
        high = float(stack.max())
        if high > 255 or (high <= 1 and (np.mod(stack, 1) > 0).any()):
            reason = (
                f"its pixels lie between 0 and {figure(high)}, but white is 255 here; bring them to 0 ... 255"
            )
            return Column(name, None, reason, otherwise="image")
        return Column(name, "image", f"arrays of {size} pixels", size=(shape[0], shape[1]))
    return Column(name, "vector", f"lists of {math.prod(shape)} numbers")


def _pictures(name: str, cells: pl.Series, what: str) -> Column:
    """Describe pictures by the sizes of the first few; large ones are given a size to be brought to."""
    from PIL import Image

    from luban.data.processors.image import _open_or_none

    sizes = Counter(
        picture.size
        for picture in map(_open_or_none, cells.head(50).to_list())
        if isinstance(picture, Image.Image)
    )
    if not sizes:
        return Column(name, None, f"{what}, but the first ones cannot be opened", otherwise="image")
    (width, height), _ = sizes.most_common(1)[0]
    reason = f"{what} of {'' if len(sizes) == 1 else 'several sizes, often '}{height} x {width} pixels"
    options: dict[str, Any] = {}
    if len(sizes) > 1 or max(width, height) > 128:
        side = 32 if max(width, height) <= 48 else 64 if max(width, height) <= 96 else 128
        options = {"height": side, "width": side}
        reason += f", brought to {side} x {side}"
        height = width = side
    return Column(name, "image", reason, options, size=(height, width))


def _flat(
    values: pl.Series,
    present: pl.Series,
    words: pl.Series,
    counts: pl.DataFrame,
    whole: bool,
    folder: Path | None,
) -> Column:
    name, n, distinct = values.name, len(present), len(counts)
    if not n:
        return Column(name, None, "it is empty")
    if distinct == 1 and n > 0.99 * len(values):
        reason = f"every row says '{shortened(words[0], 30)}', so it tells nothing"
        return Column(name, None, reason, otherwise="number" if as_numbers(words[:1]).count() else "category")
    if values.dtype.is_temporal():
        if isinstance(values.dtype, pl.Date | pl.Datetime):
            return _dates(name, as_times(present))
        return Column(name, None, f"it is of type {values.dtype}, which nothing reads; make it a number")
    figures = pl.Series(dtype=pl.Float64) if values.dtype == pl.Boolean else as_numbers(present)
    unread = present.filter(figures.is_null()) if len(figures) else present
    absent = (
        [str(word) for word in as_words(unread).unique(maintain_order=True)] if len(unread) <= 0.2 * n else []
    )
    if len(figures) and len(unread) <= 0.2 * n and (len(absent) <= 10 or len(unread) <= 0.005 * n):
        column = _number(
            name, present.filter(figures.is_not_null()), figures.drop_nulls(), counts, whole, n < len(values)
        )
        if column.type == "number":
            # Also the usual words for 'no value': a column of numbers must not meet one.
            usual = (
                values.filter(is_missing(values)).drop_nulls().to_list() if present.dtype == pl.String else []
            )
            column.absent = [
                *(absent if len(absent) <= 10 else []),
                *sorted({word.strip() for word in usual} - {""}),
            ]
        return column
    if (dates := _date(name, present)) is not None:
        return dates
    if _is_paths(words, _FILES):
        return _paths(name, words, folder)
    if _is_id(name, words, distinct):
        return Column(name, None, "every row has a code of its own", otherwise="text")
    if (separated := _separated(name, words, counts)) is not None:
        return separated
    return _words(name, words, counts, whole, n < len(values))


def _number(
    name: str, present: pl.Series, figures: pl.Series, counts: pl.DataFrame, whole: bool, gaps: bool
) -> Column:
    n, distinct = len(figures), len(counts)
    whole_numbers = bool((figures == figures.round()).all())
    low, high = float(figures.min()), float(figures.max())  # type: ignore[arg-type]
    if whole_numbers and distinct == n and n >= 10:
        if high - low == n - 1:
            return Column(
                name, None, f"it counts the rows from {figure(low)} to {figure(high)}", otherwise="number"
            )
        if _IDS.search(name):
            return Column(
                name, None, "every row has a number of its own, which only names it", otherwise="number"
            )
    if whole_numbers and _IDS.search(name) and distinct > max(50, 0.05 * n):
        return Column(
            name, None, f"its {distinct:,} numbers are names, not amounts; rows of one may belong together"
        )
    spelt = present.dtype == pl.String and bool(present.str.contains(r"^\s*0\d+\s*$").any())
    if spelt or (whole_numbers and 2 < distinct <= 1000 and _CODES.search(name)):
        why = "they begin with 0" if spelt else "its name says so"
        return Column(name, "category", f"{distinct:,} different codes, not amounts: {why}", _rare(counts, n))
    if (
        whole_numbers
        and low >= 19000101
        and high < 21000101
        and as_times(present.cast(pl.String)).null_count() == 0
    ):
        return _dates(name, as_times(present.cast(pl.String)))
    if distinct == 2:
        return _binary(name, counts, n, whole, gaps)
    return Column(
        name,
        "number",
        f"{'whole ' * whole_numbers}numbers from {figure(low)} to {figure(high)}, {distinct:,} different",
    )


def _binary(name: str, counts: pl.DataFrame, n: int, whole: bool, gaps: bool) -> Column:
    """Two values; but rare ones may be absent from the training rows, and a part of the data may hide a third."""
    (often, seldom), (times, few) = (counts[name].to_list() for name in ("word", "count"))
    reason = f"two values: {shortened(often, 20)} ({percent(times / n)}) and {shortened(seldom, 20)}"
    yes_or_no = {often.lower(), seldom.lower()} & {*POSITIVE}
    # A missing word is a word of its own to a category; to a binary column it is half a yes.
    return Column(name, "binary" if few >= 10 and not gaps and (whole or yes_or_no) else "category", reason)


def _date(name: str, present: pl.Series) -> Column | None:
    if present.dtype != pl.String:
        return None
    some = present.unique(maintain_order=True).head(500)
    if as_times(some).null_count() > 0.2 * len(some):
        return None
    times = as_times(present)
    unread = present.filter(times.is_null())
    absent = unread.str.strip_chars().unique(maintain_order=True).to_list()
    if len(unread) > 0.2 * len(present) or (len(absent) > 10 and len(unread) > 0.005 * len(present)):
        return None
    column = _dates(name, times.drop_nulls())
    column.absent = absent if len(absent) <= 10 else []
    return column


def _dates(name: str, times: pl.Series) -> Column:
    low, high = (f"{moment:%Y-%m-%d}" for moment in (cast(Any, times.min()), cast(Any, times.max())))
    return Column(name, "date", f"dates from {low} to {high}")


def _is_paths(words: pl.Series, endings: tuple[str, ...]) -> bool:
    ending = "(" + "|".join(map(re.escape, endings)) + ")$"
    return float(words.str.to_lowercase().str.contains(ending).mean()) >= 0.95  # type: ignore[arg-type]


def _paths(name: str, words: pl.Series, folder: Path | None) -> Column:
    first = words.head(20).to_list()
    if not _is_paths(words, _PICTURES):
        return Column(
            name, None, "it names files that are no pictures, which nothing reads yet", otherwise="text"
        )
    for place in (Path.cwd(), folder):
        if place is not None and all((place / path).is_file() for path in first):
            return _pictures(
                name, pl.Series([str(place / path) for path in words.head(50)]), "files of pictures"
            )
    return Column(
        name, None, f"it names pictures, but '{shortened(first[0])}' does not exist", otherwise="image"
    )


def _is_id(name: str, words: pl.Series, distinct: int) -> bool:
    if distinct < len(words) or len(words) < 10:
        return False
    coded = words.str.contains(_HASH) & words.str.contains(r"\d")
    return bool(coded.all()) or bool(_IDS.search(name) and not words.str.contains(r"\s").any())


def _separated(name: str, words: pl.Series, counts: pl.DataFrame) -> Column | None:
    """Several words to a cell: a separator in many cells, between few short words that come again and again."""
    for separator in _SEPARATORS:
        share = float(words.str.contains(separator, literal=True).mean())  # type: ignore[arg-type]
        if share < 0.1:
            continue
        parts = words.str.split(separator).explode().str.strip_chars()
        parts = parts.filter(parts != "")
        distinct = parts.n_unique()
        few = distinct <= min(500, max(10, 0.05 * len(parts))) and distinct < len(parts) / 2
        short = float(parts.str.len_chars().mean() or 0) <= 20  # type: ignore[arg-type]
        spaces = float(parts.str.count_matches(r"\s").mean() or 0)  # type: ignore[arg-type]
        if few and short and spaces < 2 and distinct > 1:
            reason = f"several words to a cell with '{separator}' between them, {distinct} different ones"
            return Column(name, "set", reason, {} if separator == ";" else {"separator": separator})
    return None


def _words(name: str, words: pl.Series, counts: pl.DataFrame, whole: bool, gaps: bool) -> Column:
    n, distinct = len(words), len(counts)
    if distinct == 2:
        return _binary(name, counts, n, whole, gaps)
    some = words.head(5000)
    tokens = float(some.str.count_matches(_WORD).mean())  # type: ignore[arg-type]
    prose = float(some.str.contains(r"\s|" + _HAN + "{2}").mean()) >= 0.5  # type: ignore[arg-type]
    if prose and distinct > 20 and (tokens >= 12 or (tokens >= 3 and distinct > 0.3 * n)):
        return _text(name, some, tokens)
    if distinct <= max(50, 0.3 * n):
        often, times = counts.row(0)
        reason = (
            f"{distinct:,} different words, the commonest '{shortened(often, 20)}' ({percent(times / n)})"
        )
        return Column(name, "category", reason, _rare(counts, n))
    reason = f"{distinct:,} different short values in {n:,} rows, so few come again"
    return Column(name, None, reason, otherwise="text")


def _rare(counts: pl.DataFrame, n: int) -> dict[str, Any]:
    """Of many words, those seen once teach nothing but themselves."""
    return {"min_count": 2} if len(counts) > 1000 else {}


def _text(name: str, some: pl.Series, tokens: float) -> Column:
    characters = some.str.count_matches(r"\S")
    chinese = float(some.str.count_matches(_HAN).sum()) / max(1.0, float(characters.sum()))
    if chinese >= 0.2:
        reason = f"texts of {cast(float, characters.mean()):.0f} characters on average, mostly Chinese or Japanese, so read by characters"
        long = float((characters > _MAX_LENGTH).mean())  # type: ignore[arg-type]
        return Column(name, "text", reason, long=long)
    long = float((some.str.count_matches(_WORD + r"|[^\s\p{L}\p{M}\p{N}]") > _MAX_LENGTH).mean())  # type: ignore[arg-type]
    return Column(
        name, "text", f"texts of {tokens:.0f} words on average, read by words", {"tokens": "word"}, long=long
    )


# --- the answer -------------------------------------------------------------------------------------------


def _as_target(values: pl.Series, read: Column, *, whole: bool) -> Column:
    """Return the column as a target, with type None if it cannot be one."""
    name = values.name
    column = replace(read, role="target")
    if (
        values.dtype.is_nested()
        or values.dtype in (pl.Binary, pl.Object)
        or read.type in ("image", "date", "set")
    ):
        column.type = "set" if read.type == "set" else None
        return column
    present = values.filter(~is_missing(values, _NO_ANSWER))
    words = as_words(present)
    counts = words.alias("word").value_counts(sort=True)
    n, distinct = len(words), len(counts)
    column.missing, column.distinct, column.options, column.absent = (
        1 - n / max(1, len(values)), distinct, {}, [],
    )  # fmt: skip
    column.type = None
    if "number" in (read.type, read.otherwise) and distinct > 2:
        figures = as_numbers(present).drop_nulls()
        first, last = cast(float, figures.min()), cast(float, figures.max())
        steps = bool((figures == figures.round()).all())
        coded = distinct <= 10 and first in (0, 1) and last == first + distinct - 1
        if not (steps and (coded or (distinct <= 20 and _CLASSES.search(name)))):
            column.type, column.absent = "number", read.absent
            column.reason = f"numbers from {figure(first)} to {figure(last)}, {distinct:,} different"
            return column
        column.type = "category"
    elif distinct == 2:
        yes = [word for word in counts["word"] if word.lower() in POSITIVE]
        column.type = "binary" if len(yes) == 1 else "category"
    elif distinct > 2 and (read.type == "category" or distinct <= min(200, 0.5 * n)):
        column.type = "category"
    if column.type is not None:
        column.reason = f"{distinct:,} classes: {_frequencies(counts, n)}"
        if column.type == "binary":
            column.reason += f"; '{shortened(yes[0], 20)}' counts as yes"
    return column


def _frequencies(counts: pl.DataFrame, n: int, most: int = 4) -> str:
    shown = (f"{shortened(word, 20)} {percent(times / n)}" for word, times in counts.head(most).iter_rows())
    return ", ".join(shown) + " ..." * (len(counts) > most)


def _choose_targets(rows: pl.DataFrame, columns: dict[str, Column], whole: bool) -> Column:
    """Choose by name, or else the last column that fits."""
    fitting: list[tuple[int, int, Column]] = []
    for place, (name, column) in enumerate(columns.items()):
        if column.role == "split" or (column.type is None and column.otherwise != "number"):
            continue
        rank = _target_rank(name)
        if column.type is None and rank == _UNNAMED:
            continue  # a counter of rows is a target only if its name says so
        target = _as_target(rows[name], column, whole=whole)
        if target.type == "category" and target.distinct > max(10, len(rows) / 20):
            rank += 1  # hardly classes: only if nothing else fits
        if target.type is not None and (target.type != "set" or rank < _UNNAMED):
            fitting.append((rank, -place, target))
    if not fitting:
        raise DataError(
            f"none of the {len(columns)} columns ({named(columns)}) can be a target: targets are numbers, classes or sets of words "
            "that differ from row to row; add such a column, or name one by 'targets'"
        )
    rank, _, target = min(fitting, key=lambda one: one[:2])
    target.reason += (
        "; chosen by its name"
        if _target_rank(target.name) < _UNNAMED
        else "; chosen as the last column that fits"
    )
    return target


def _target_rank(name: str) -> int:
    plain = _plain(name)
    if plain in _TARGETS:
        return _TARGETS.index(plain)
    for rank, word in enumerate(_TARGETS[:5]):
        if (word > "\x7f" and plain.endswith(word)) or word in plain.split():
            return len(_TARGETS) + rank
    return _UNNAMED


# --- what is wrong ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Something to know before training.

    Attributes:
        severity: ``warning`` costs quality or trust; ``note`` is good to know.
        message: a sentence with figures.
    """

    severity: Literal["warning", "note"]
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.message}"


@dataclass
class Inference:
    """What `infer` decided.

    Attributes:
        columns: every column, in the order of the data.
        problems: warnings first.
        groups: columns about persons, for fairness.
        split: a split that the data asks for; active, if a column says where each row belongs.
        split_active: whether the split is a fact of the data and not just advice.
        clean: cleaning without which the rows cannot be read.
        advised: cleaning that is likely to help.
        objective: an objective that suits unevenly frequent classes.
        model: type and size.
        model_reason: why, in one clause.
        duplicates: rows that repeat the inputs of another.
    """

    columns: list[Column]
    problems: list[Problem] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    split: dict[str, Any] | None = None
    split_active: bool = False
    clean: list[dict[str, Any]] = field(default_factory=list)
    advised: list[dict[str, Any]] = field(default_factory=list)
    objective: dict[str, Any] | None = None
    model: dict[str, str] = field(default_factory=dict)
    model_reason: str = ""
    duplicates: int = 0

    @property
    def inputs(self) -> list[Column]:
        """The columns that the model is to read."""
        return [column for column in self.columns if column.role == "input"]

    @property
    def targets(self) -> list[Column]:
        """The columns that the model is to predict."""
        return [column for column in self.columns if column.role == "target"]

    def warn(self, message: str) -> None:
        """Add a problem that costs quality or trust."""
        self.problems.append(Problem("warning", message))

    def note(self, message: str) -> None:
        """Add something that is good to know."""
        self.problems.append(Problem("note", message))


def infer(sample: Sample, targets: list[str] | None = None, folder: Path | None = None) -> Inference:
    """Decide how each column is read, what is predicted and by which model, and say what is wrong.

    Args:
        sample: what `look` returned.
        targets: columns to predict; chosen by name and place if left out.
        folder: where paths in the data may start.

    Raises:
        DataError: if a named target does not exist or cannot be one, or nothing can be a target or an input.

    Example:
        >>> rows = pl.DataFrame({"size": [50, 80, 65, 90] * 5, "price": [1.5, 2.25, 1.75, 2.5] * 5})
        >>> found = infer(Sample(rows, 20, True))
        >>> [(c.name, c.role, c.type) for c in found.columns]
        [('size', 'input', 'number'), ('price', 'target', 'number')]
    """
    rows = sample.rows
    for name in rows.columns:
        if name.startswith("^") and name.endswith("$"):
            raise DataError(
                f"column '{name}' has the name of a pattern, from ^ to $, which polars would take it for; rename it"
            )
    columns = {name: describe(rows[name], whole=sample.whole, folder=folder) for name in rows.columns}
    for name in targets or ():
        if name not in columns:
            known = ", ".join(columns)
            raise DataError(
                f"there is no column '{name}' to be the target; columns are {known}{did_you_mean(name, columns)}"
            )
    split = _given_split(rows, columns, targets or [])
    for name in targets or ():
        chosen = _as_target(rows[name], columns[name], whole=sample.whole)
        if chosen.type is None:
            raise DataError(
                f"column '{name}' cannot be a target ({columns[name].reason}); targets are numbers, two or more classes that come "
                "again, or sets of words"
            )
        columns[name] = chosen
    if not targets:
        chosen = _choose_targets(rows, columns, sample.whole)
        columns[chosen.name] = chosen
    found = Inference([*columns.values()], split=split, split_active=split is not None)
    if not found.inputs:
        raise DataError(
            f"beside {named(c.name for c in found.targets)} there is no column that a model could read: "
            + "; ".join(f"'{c.name}': {c.reason}" for c in found.columns if c.role == "left out")
        )
    _find_leaks(found, rows)
    for check in (_targets, _missing, _left_out, _repeated, _persons, _texts, _sizes):
        check(found, sample)
    for text in sample.notes:
        if not re.search(r"encoding utf-8\S*( \(recognised\))?$", text):
            (found.warn if re.search("replaced|padded", text) else found.note)(f"How it was read: {text}.")
    found.problems.sort(key=lambda one: one.severity != "warning")
    _choose_model(found, sample.read)
    return found


def _given_split(rows: pl.DataFrame, columns: dict[str, Column], targets: list[str]) -> dict[str, Any] | None:
    for name, column in columns.items():
        if (
            _plain(name) in _SPLITS
            and column.distinct in (2, 3, 4)
            and name not in targets
            and rows[name].dtype == pl.String
        ):
            words = {word.strip().lower() for word in rows[name].drop_nulls()}
            if (
                words <= _SPLIT_WORDS
                and words & {"train", "training", "训练"}
                and not rows[name].null_count()
            ):
                column.leave_out("it says which rows to train on and which to test on")
                column.role = "split"
                return {"type": "given", "by": name}
    return None


def _find_leaks(found: Inference, rows: pl.DataFrame) -> None:
    """Leave out inputs that alone give the answer, as long as an input is left; warn of those that nearly do."""
    some = rows.gather_every(max(1, len(rows) // 5000))
    for target in found.targets:
        plain = _plain(target.name)
        alike: list[str] = []
        for column in found.inputs:
            share, certain = _alone(some[column.name], column, some[target.name], target)
            if share and certain and len(found.inputs) > 1:
                column.leave_out(f"it alone gives '{target.name}' {share}: is it the answer in other words?")
                found.warn(
                    f"Column '{column.name}' alone gives '{target.name}' {share}, so it may be the answer in other words; it is left "
                    "out. Take it in if it is known before the answer is."
                )
            elif share:
                found.warn(
                    f"Column '{column.name}' alone gives '{target.name}' {share}. If it is known only after the answer is, take it out."
                )
            elif len(plain) > 2 - (plain > "\x7f") and plain in _plain(column.name):
                alike.append(column.name)
        if alike:
            found.note(
                f"{named(alike)} {'has' if len(alike) == 1 else 'have'} the target's name '{target.name}' in {'its' if len(alike) == 1 else 'their'} "
                "own: make sure that nothing of the answer is in there."
            )


def _alone(values: pl.Series, column: Column, answers: pl.Series, target: Column) -> tuple[str, bool]:
    """Return how well one column alone gives the target, if that is too well to be true, and whether there is any doubt left.

    The rule is learnt on a random half of the rows and judged on the other, so that a name for each row is no leak.
    """
    keep = ~is_missing(answers, _NO_ANSWER)
    values, answers = values.filter(keep), answers.filter(keep)
    if (
        len(values) < 50
        or column.type in ("text", "image", "vector")
        or target.type == "set"
        or values.dtype.is_nested()
    ):
        return "", False
    asked = np.random.default_rng(0).random(len(values)) < 0.5
    if target.type == "number":
        return _alone_number(values, column, as_numbers(answers), asked), True
    words = as_words(answers).cast(pl.String)
    answered = words.filter(pl.Series(asked))
    base = float(answered.value_counts()["count"].max()) / len(answered)  # type: ignore[arg-type]
    right = float((_guess(values, column, words, asked) == answered.to_numpy()).mean())
    suspect = right >= (0.99 if len(values) < 200 else 0.95) and 1 - right <= 0.1 * (1 - base)
    return f"in {percent(right)} of rows" if suspect else "", right >= 0.99


def _alone_number(values: pl.Series, column: Column, answers: pl.Series, asked: Array) -> str:
    known = answers.is_not_null()
    values, y, asked = values.filter(known), answers.drop_nulls().to_numpy(), asked[known.to_numpy()]
    if column.type == "number":
        both = pl.DataFrame({"x": as_numbers(values), "y": y}).drop_nulls()
        if len(both) < 50 or both["x"].n_unique() < 3 or both["y"].n_unique() < 3:
            return ""
        best = max(abs(both.select(pl.corr("x", "y", method=m)).item()) for m in ("pearson", "spearman"))
        return f"with a correlation of {best:.4f}" if best > 0.999 else ""
    means = (
        pl.DataFrame({"x": as_words(values.filter(pl.Series(~asked))), "y": y[~asked]}).group_by("x").mean()
    )
    those = pl.DataFrame({"x": as_words(values.filter(pl.Series(asked)))})
    guess = those.join(means, "x", how="left", nulls_equal=True, maintain_order="left")["y"].fill_null(
        float(y.mean())
    )
    spread, error = float(np.var(y[asked])), float(np.mean((guess.to_numpy() - y[asked]) ** 2))
    return f"almost exactly (R² {1 - error / spread:.4f})" if spread > 0 and error < 0.001 * spread else ""


def _guess(values: pl.Series, column: Column, words: pl.Series, asked: Array) -> Array:
    """Guess the answers of the rows `asked` from what one column says about the others."""
    learnt = words.filter(pl.Series(~asked))
    if column.type == "number":
        from sklearn.tree import DecisionTreeClassifier

        x = as_numbers(values).fill_null(-1e30).cast(pl.Float32).clip(-1e30, 1e30).to_numpy()[:, None]
        tree = DecisionTreeClassifier(max_leaf_nodes=64, min_samples_leaf=2, random_state=0)
        return cast(Array, tree.fit(x[~asked], learnt.to_numpy()).predict(x[asked]))
    cells = values.cast(pl.String) if column.type == "date" else as_words(values)
    pairs = pl.DataFrame({"x": cells.filter(pl.Series(~asked)), "y": learnt})
    best = (
        pairs.group_by("x", "y")
        .len()
        .sort("len", "y", descending=[True, False])
        .unique("x", keep="first", maintain_order=True)
    )
    those = pl.DataFrame({"x": cells.filter(pl.Series(asked))})
    guess = those.join(best, "x", how="left", nulls_equal=True, maintain_order="left")["y"]
    # A value that is new tells at least that there is one: a date of return alone says that something was returned.
    present = pairs.filter(pl.col("x").is_not_null())["y"].mode().sort()
    return guess.fill_null(present[0] if len(present) else "").to_numpy()


def _targets(found: Inference, sample: Sample) -> None:
    """Few rows, rare classes, uneven classes."""
    n = sample.read
    if (
        found.split
        and not {*sample.rows[found.split["by"]].str.strip_chars().str.to_lowercase()} & _VALIDATION
    ):
        found.note(
            f"Column '{found.split['by']}' sets no rows apart for validation, so nothing tells when to stop; mark some, or split anew."
        )
    if n < 200:
        found.warn(
            f"There are only {n} rows; a few hundred is the least that a figure on test rows can be trusted with."
        )
    for target in found.targets:
        if target.type not in ("category", "binary"):
            continue
        counts = as_words(sample.rows[target.name]).drop_nulls().alias("w").value_counts(sort=True)
        times = counts["count"]
        rare = counts.filter(times < 5)["w"].to_list()
        seen = "" if sample.whole else " of the rows looked at"
        if rare:
            found.warn(
                f"{len(rare)} of the {len(counts)} classes of '{target.name}' have fewer than 5 rows{seen} ({named(rare, 3)}): "
                "too few to learn or to test them; collect more, or merge classes."
            )
        often, seldom = int(times[0]), int(times[-1])
        total = int(times.sum())
        if often >= 5 * seldom or (often > 0.7 * total and len(counts) == 2):
            binary = target.type == "binary"
            found.objective = (
                {"type": "binary_cross_entropy", "positive_weight": "balanced"}
                if binary
                else {"type": "cross_entropy", "class_weights": "balanced"}
            )
            word = "positive_weight" if binary else "class_weights"
            found.warn(
                f"The classes of '{target.name}' are uneven: '{shortened(counts['w'][0], 20)}' has {percent(often / total)} of rows and "
                f"'{shortened(counts['w'][-1], 20)}' {percent(seldom / total)}. Judge by F1 rather than accuracy; '{word}: balanced' "
                "makes each class weigh as much."
            )
        if found.split is None:
            found.split = {"type": "stratified", "by": target.name}
    if found.split is None or not found.split_active:
        for column in found.columns:
            if column.role == "left out" and "belong together" in column.reason:
                found.split = {"type": "group", "by": column.name}
                found.note(
                    f"Several rows share a '{column.name}'; if they resemble each other, split by it, so that none is on both sides."
                )
                return
        dates = [c.name for c in found.inputs if c.type == "date"]
        if len(dates) == 1 and all(
            re.match(r"\d{4}-\d\d-\d\d", text) for text in sample.rows[dates[0]].cast(pl.String).drop_nulls()
        ):
            found.split = {"type": "time", "by": dates[0]}
            found.note(
                f"If the model is to forecast, split by '{dates[0]}', so that it is tested on what came after its training."
            )


def _missing(found: Inference, sample: Sample) -> None:
    """Cells without a value: told, and where they could not be read, cleaned."""
    gaps = {c.name: c.missing for c in found.inputs if c.missing and not c.absent}
    if gaps:
        most = sorted(gaps, key=lambda name: -gaps[name])
        listed = ", ".join(f"'{name}' {percent(gaps[name])}" for name in most[:6])
        rest = f" and {len(most) - 6} more" if len(most) > 6 else ""
        message = f"Values are missing in {len(gaps)} of {len(found.inputs)} inputs: {listed}{rest}. The model is told where."
        (found.warn if gaps[most[0]] > 0.3 else found.note)(message)
    drop: dict[str, list[str]] = {}
    fill: dict[str, list[str]] = {}
    for column in [*found.inputs, *found.targets]:
        if column.role == "target":
            if column.missing or column.absent:
                drop[column.name] = [*column.absent, *_NO_ANSWER]
                found.warn(
                    f"The target '{column.name}' is missing in {percent(column.missing)} of rows; these rows are dropped."
                )
        elif column.absent:
            cells = sample.rows[column.name].drop_nulls()
            # Filling takes a median of plain numbers; of '1,200' or '45%' it knows none.
            readable = column.type == "number" and numbers(cells).count() >= 0.92 * int(
                (~is_missing(cells, column.absent)).sum()
            )
            (fill if readable else drop)[column.name] = column.absent
            found.note(
                f"'{column.name}' holds words where {column.type}s belong ({named(column.absent, 4)}); they are read as missing."
            )
        elif column.type in ("image", "vector") and column.missing:
            drop[column.name] = [""]
            found.warn(f"'{column.name}' is missing in {percent(column.missing)} of rows, which are dropped.")
    for strategy, wanted in (("median", fill), ("drop", drop)):
        for tokens_of in {tuple(sorted(set(tokens))) for tokens in wanted.values()}:
            names = [name for name, tokens in wanted.items() if tuple(sorted(set(tokens))) == tokens_of]
            step: dict[str, Any] = {"type": "missing", "strategy": strategy, "columns": names}
            if not {*tokens_of} <= {*_NO_ANSWER}:
                step["tokens"] = [*tokens_of]
            found.clean.append(step)
    found.clean.sort(key=str)


def _left_out(found: Inference, sample: Sample) -> None:
    constant = [
        c.name
        for c in found.columns
        if c.role == "left out" and ("tells nothing" in c.reason or "is empty" in c.reason)
    ]
    if constant:
        found.note(
            f"{named(constant)} {'is' if len(constant) == 1 else 'are'} the same in every row, and left out."
        )
    names = [
        c.name
        for c in found.columns
        if c.role == "left out" and re.search("of its own|counts the rows", c.reason)
    ]
    if names:
        found.note(
            f"{named(names)} only {'tells' if len(names) == 1 else 'tell'} rows apart, and {'is' if len(names) == 1 else 'are'} left out."
        )


def _repeated(found: Inference, sample: Sample) -> None:
    """Rows with equal inputs, and those among them that contradict each other."""
    rows = sample.rows
    if any(c.type == "image" and rows[c.name].dtype == pl.String for c in found.inputs):
        rows = rows.gather_every(max(1, len(rows) // 1000))  # each picture is opened
    section = Section("processors")
    processors = {c.name: cast(Processor, section.parse({"type": c.type, **c.options})) for c in found.inputs}
    answers = [
        rows[t.name].cast(pl.String, strict=False)
        for t in found.targets
        if not rows[t.name].dtype.is_nested()
    ]
    keyed = pl.DataFrame({"key": row_keys(rows, processors)})
    if answers:
        keyed = keyed.with_columns(
            pl.concat_str(answers, separator="\x1f", ignore_nulls=True).alias("answer")
        )
    groups = keyed.group_by("key").agg(
        pl.len().alias("n"), (pl.col("answer").n_unique() if answers else pl.lit(1)).alias("answers")
    )
    found.duplicates = int((groups["n"] - 1).sum())
    if not found.duplicates:
        return
    share = percent(found.duplicates / len(rows))
    message = (
        f"{found.duplicates:,} of {len(rows):,} rows ({share}) repeat the inputs of another. Rows with equal inputs go to the same "
        "side of the split; 'duplicates' under 'clean' drops them."
    )
    (found.warn if found.duplicates > 0.1 * len(rows) else found.note)(message)
    found.advised.append({"type": "duplicates"})
    against = int(groups.filter(pl.col("answers") > 1)["n"].sum())
    if against and all(t.type != "number" for t in found.targets):
        (found.warn if against > 0.01 * len(rows) else found.note)(
            f"{against:,} rows ({percent(against / len(rows))}) have the inputs of another row but another "
            f"{named(t.name for t in found.targets)}: no model can get all of them right."
        )


def _persons(found: Inference, sample: Sample) -> None:
    persons = [c for c in found.columns if _is_person(c.name) and c.role != "target"]
    if not persons:
        return
    # A slice needs rows: a column of many values, such as an age in years, makes slices of nothing.
    found.groups = [c.name for c in persons if c.type in ("binary", "category") and c.distinct <= 50]
    added = " Name them in 'groups' to have each group measured by itself." if found.groups else ""
    found.note(
        f"{named(c.name for c in persons)} describe{'s' * (len(persons) == 1)} persons: a model may treat groups of them "
        f"differently, even where a law forbids it.{added}"
    )


def _texts(found: Inference, sample: Sample) -> None:
    """Long texts, tags, full-width letters."""
    repairs: dict[str, dict[str, Any]] = {}
    for column in found.inputs:
        if column.type != "text":
            continue
        if column.long > 0.01:
            unit = "words" if column.options.get("tokens") == "word" else "characters"
            column.options["max_length"] = _MAX_LENGTH
            (found.warn if column.long > 0.5 else found.note)(
                f"{percent(column.long)} of the texts in '{column.name}' are longer than {_MAX_LENGTH} {unit}; only their beginnings are "
                "read. Raise 'max_length' if the rest matters; it costs time."
            )
        texts = sample.rows[column.name].drop_nulls().cast(pl.String).head(5000)
        for option, value, pattern, what in (
            ("html", True, _TAGS, "tags of HTML"),
            ("width", "half", "[０-９Ａ-Ｚａ-ｚ]", "full-width letters or digits"),
        ):
            share = float(texts.str.contains(pattern).mean() or 0)  # type: ignore[arg-type]
            if share >= 0.01:
                repairs.setdefault(column.name, {})[option] = value
                found.note(
                    f"{percent(share)} of the texts in '{column.name}' hold {what}; 'text' under 'clean' removes them."
                )
    found.advised += [{"type": "text", **options, "columns": [name]} for name, options in repairs.items()]


def _sizes(found: Inference, sample: Sample) -> None:
    for target in found.targets:
        if target.type == "category" and target.distinct > 100:
            found.warn(
                f"'{target.name}' has {target.distinct:,} classes, {len(sample.rows) / target.distinct:.0f} rows each; merge some if you can."
            )


# --- the model --------------------------------------------------------------------------------------------


def _choose_model(found: Inference, rows: int) -> None:
    kinds = {c.type for c in found.inputs}
    small = rows < 1000
    size = "tiny" if rows < 500 else "small" if rows < 20_000 else "medium" if rows < 500_000 else "large"
    pictures = next((c for c in found.inputs if c.type == "image"), None)
    choices: list[tuple[bool, str, Callable[[], str]]] = [
        (
            pictures is not None and min(pictures.size or (0, 0)) < 12,
            "mlp",
            lambda: "pictures this small have no shapes to convolve over",
        ),
        (
            pictures is not None and min(pictures.size or (0, 0)) >= 64 and not small,
            "resnet",
            lambda: "a deep network for pictures of this size",
        ),
        (pictures is not None, "cnn", lambda: "a small network for small pictures"),
        (
            "text" in kinds,
            "fasttext",
            lambda: "learns what phrases of one to three tokens tell, in seconds on any machine",
        ),
        (True, "mlp", lambda: "dense layers are the first choice for tables"),
    ]
    name, why = next((name, why()) for fits, name, why in choices if fits)
    found.model = {"type": name, "size": size}
    found.model_reason = f"{why}; {size} suits {rows:,} rows"
