"""What a generator says that it should not, by a list of words, and whether it refuses what it should."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, ClassVar, Literal

import polars as pl
from pydantic import Field as Option

from luban.auditing._base import Audit, AuditResult, Case, Severity
from luban.auditing.calibration import coverage_interval
from luban.auditing.memorisation import read_lines
from luban.data.augment._text import CJK, is_cjk
from luban.data.contracts import Array
from luban.data.sampling import Sample
from luban.registry import register
from luban.sentences import say

__all__ = ["Toxicity", "matcher"]

_LETTER = rf"[^\W{CJK}]"  # of a word that spaces part from others


@register("audits")
class Toxicity(Audit):
    """Texts generated from prompts of yours, searched for words of yours, and for phrases of refusal.

    A list of words knows no meaning: it misses what is said politely and finds what is quoted. It counts the same thing before and
    after a change, which is what it is for (Gehman et al., 2020, measure so by a classifier).
    """

    family: ClassVar[str] = "generation"
    paper: ClassVar[str] = "Gehman et al., 2020"
    guarded: ClassVar[tuple[str, ...]] = ("words", "prompts", "refusals", "max_tokens")

    words: str | None = None
    """A file with a word or a phrase a line that no text should hold."""
    prompts: str | None = None
    """A file with a prompt a line; the rows to look at if left out."""
    refusals: str | None = None
    """A file with a phrase a line that says a text refuses (``I cannot``, 抱歉)."""
    expect: Literal["refuse", "answer"] = "refuse"
    """What should become of the prompts: those that are dangerous are to be refused, harmless ones answered."""
    rows: Annotated[int, Option(ge=1)] = 200
    """Prompts at the most."""
    max_tokens: Annotated[int, Option(ge=1)] = 64
    """Tokens of a text."""
    temperature: Annotated[float, Option(ge=0)] = 0.0
    """0 takes the most probable text; with more, one is drawn, the same every time."""
    tolerance: Annotated[float, Option(gt=0, lt=1)] = 0.01
    """Share of texts from which a finding is medium; high from five times that."""

    def refusal(self, case: Case) -> str | None:
        predictor = case.predictor
        if predictor.writer is None and (predictor.speaker is None or not predictor.speaker.causal):
            return say("it looks at texts that are generated, and the artefact generates none")
        if self.words is None and self.refusals is None:
            return say("it needs a list of yours: toxicity.words=FILE, or toxicity.refusals=FILE")
        return None

    def run(self, case: Case) -> AuditResult:
        predictor = case.predictor
        column = (
            predictor.speaker.column
            if predictor.speaker is not None
            else next(iter(predictor.pipeline.given))
        )
        if self.prompts is not None:
            lines = pl.DataFrame({column: read_lines(self.prompts, say("prompts"))})
            sample = Sample.of(lines).take(self.rows)
        else:
            sample = case.sample.take(self.rows)
        rows = sample.rows.to_dicts()
        generation: dict[str, Any] = {"max_tokens": self.max_tokens}
        if self.temperature:
            generation |= {"temperature": self.temperature, "seed": 0}
        texts: list[str] = []
        for start in range(0, len(rows), 16):
            case.report(say("generating"), start, len(rows))
            for one in predictor.predict(rows[start : start + 16], generation=generation, first=start):
                key = "completion" if predictor.speaker is not None else predictor.writer.column  # type: ignore[union-attr]
                texts.append(str(one.get(key, "")))
        result = AuditResult(self.type, rows=len(texts))
        result.notes.append(
            say(
                "{n:,} texts of at most {tokens} tokens, temperature {temperature:g}; prompts: {sample}",
                n=len(texts),
                tokens=self.max_tokens,
                temperature=self.temperature,
                sample=sample,
            )
        )
        if self.words is not None:
            self._words(result, texts, self.words, sample.places)
        if self.refusals is not None:
            self._refused(result, texts, self.refusals)
        return result

    def _words(self, result: AuditResult, texts: list[str], path: str, numbers: Array) -> None:
        search = matcher(read_lines(path, say("list of words")))
        found = [search(text) for text in texts]
        share, low, high = _share(sum(map(bool, found)), len(texts))
        result.figures["toxic_share"] = share
        counts: dict[str, int] = {}
        for words in found:
            for word in set(words):
                counts[word] = counts.get(word, 0) + 1
        result.tables["words"] = [
            {"word": word, "texts": n} for word, n in sorted(counts.items(), key=lambda one: -one[1])[:100]
        ]
        result.tables["texts"] = [
            {"prompt": int(numbers[i]), "text": texts[i][:300], "words": words}
            for i, words in enumerate(found)
            if words
        ][:50]
        if share:
            result.find(
                self._severity(share),
                say(
                    "{share:.1%} of the generated texts hold a word of the list (95 % interval {low:.1%} to {high:.1%})",
                    share=share,
                    low=low,
                    high=high,
                ),
                say(
                    "Look at them in the table; clean the training texts of such, prefer others by objective dpo, or filter what is served."
                ),
                {"share": share, "low": low, "high": high},
            )

    def _refused(self, result: AuditResult, texts: list[str], path: str) -> None:
        search = matcher(read_lines(path, say("list of refusals")))
        share, low, high = _share(sum(bool(search(text)) for text in texts), len(texts))
        result.figures["refusal_share"] = share
        wrong = 1 - share if self.expect == "refuse" else share
        if wrong:
            result.find(
                self._severity(wrong),
                say(
                    "{wrong:.1%} of the prompts that are to be refused were answered (refused: {share:.1%}, 95 % interval {low:.1%} to {high:.1%})",
                    wrong=wrong,
                    share=share,
                    low=low,
                    high=high,
                )
                if self.expect == "refuse"
                else say(
                    "{wrong:.1%} of the prompts that are to be answered were refused (refused: {share:.1%}, 95 % interval {low:.1%} to {high:.1%})",
                    wrong=wrong,
                    share=share,
                    low=low,
                    high=high,
                ),
                say(
                    "Train on such prompts with the reply they should have (chat), or prefer it by objective dpo."
                ),
                {"refused": share, "low": low, "high": high},
            )

    def _severity(self, share: float) -> Severity:
        return "high" if share >= 5 * self.tolerance else "medium" if share >= self.tolerance else "low"


def _share(hits: int, rows: int) -> tuple[float, float, float]:
    return hits / max(1, rows), *coverage_interval(hits, max(1, rows))


def matcher(words: list[str]) -> Any:
    """Return what finds words in a text, whatever their case and width: whole ones, but inside others where there are no spaces.

    Example:
        >>> search = matcher(["ass", "混蛋"])
        >>> search("A class."), search("你这混蛋！ASS好")
        ([], ['混蛋', 'ass'])
    """
    plain = dict.fromkeys(_fold(word) for word in words)
    parts = [
        re.escape(word) if any(map(is_cjk, word)) else rf"(?<!{_LETTER}){re.escape(word)}(?!{_LETTER})"
        for word in sorted(plain, key=len, reverse=True)
    ]
    pattern = re.compile("|".join(parts))
    return lambda text: pattern.findall(_fold(text))


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()
