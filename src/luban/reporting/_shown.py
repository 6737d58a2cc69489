"""The section that shows rows: the worst errors, typical rows, what a language model writes, each with its explanation."""

from __future__ import annotations

from typing import Any

from luban.reporting._blocks import Block, Example, Grid, Note, Piece, Section, Share, Shown, Text
from luban.reporting._quality import titled
from luban.reporting._words import Words, number, percent
from luban.sentences import named

__all__ = ["examples", "pieces_of"]

_SHARES = 8  # columns whose share is drawn
_BEGUN = 0.35  # tint of the beginning that a model goes on from
_GRAINS = 400  # pieces of a text that are tinted


def examples(data: dict[str, Any], words: Words) -> Section | None:
    """Rows, and why they were predicted as they were."""
    blocks: list[Block] = []
    for target, found in data["examples"].items():
        if "absent" in found:
            blocks += titled(words, data, target, [Note("absent", words("no_examples", why=words.of(found)))])
            continue
        own: list[Block] = []
        for kind in ("worst", "typical"):
            cards: list[Block] = [_example(words, one, kind) for one in found[kind]]
            if cards:
                own += [Text(words(f"examples.{kind}"), heading=True), Grid(cards)]
            elif kind == "worst":
                own.append(Text(words("no_errors")))
        if found.get("explained"):
            own.append(Note("absent", words("no_explanations", why=words.of(found["explained"]))))
        elif any(one["explanation"] for kind in ("worst", "typical") for one in found[kind]):
            own.append(Note("info", _method(words, found)))
        blocks += titled(words, data, target, own)
    if data["speech"]:
        masked = data["model"]["language"] == "masked"
        key = (
            "speech.masked" if masked else "speech.causal" if data["model"]["language"] else "speech.written"
        )
        blocks += [Text(words(key), heading=True), Grid([_speech(words, one) for one in data["speech"]])]
    if not blocks:
        return None
    lead = "lead.examples" if data["examples"] else "lead.speech"
    return Section("examples", words("title.examples"), words(lead), blocks)


def _method(words: Words, found: dict[str, Any]) -> str:
    one = next(e["explanation"] for kind in ("worst", "typical") for e in found[kind] if e["explanation"])
    return words(
        "explained_by",
        method=named(one["method"], words.language, "methods"),
        paper=words.sentence(one.get("paper") or "–"),
        limits=words.sentence(one.get("limits") or ""),
    )


def _named(words: Words, value: Any) -> str:
    if isinstance(value, list):
        return words.listed([str(one) for one in value]) or words("none")
    return number(value) if isinstance(value, float) else str(value)


def _example(words: Words, one: dict[str, Any], kind: str) -> Example:
    said, score = _named(words, one["said"]), one.get("score")
    if isinstance(score, float):
        chance = percent(score) if score < 0.9995 else "> 99.9 %"
        said = words("said_at", said=said, chance=chance)
    facts = [(words("said"), said), (words("truth"), _named(words, one["truth"]))]
    explanation = one.get("explanation") or {}
    parts = explanation.get("parts", {})
    shown: list[Shown] = []
    for cell in one["cells"]:
        part = parts.get(cell["column"], {})
        if cell["kind"] == "image":
            shown.append(Shown(cell["column"], picture=cell["picture"], heat=cell.get("heat", "")))
        elif cell["kind"] in ("text", "chat"):
            shown.append(Shown(cell["column"], pieces=pieces_of(cell, part)))
        else:
            facts.append((cell["column"], cell["text"] or words("empty")))
    rest = one["columns"] - len(one["cells"])
    foot = words("more_columns", n=rest) if rest > 0 else ""
    head = words(f"{kind}.one")
    shares = _shares(explanation.get("totals", {}))
    return Example(head, "bad" if kind == "worst" else "good", facts, shown, shares, foot)


def _shares(totals: dict[str, float]) -> list[Share]:
    """Return what each column contributed, the largest first; of a single column there is nothing to compare."""
    if len(totals) < 2:
        return []
    largest = max((abs(v) for v in totals.values()), default=0.0) or 1.0
    order = sorted(totals, key=lambda name: -abs(totals[name]))[:_SHARES]
    return [
        Share(name, totals[name] / largest, ("+" if totals[name] > 0 else "") + number(totals[name], 2))
        for name in order
    ]


def pieces_of(cell: dict[str, Any], part: dict[str, Any]) -> list[Piece]:
    """Cut a text that is shown where its explanation does; characters that no piece has stand between.

    Args:
        cell: with ``text``, and ``cut`` if the text went on.
        part: of the explanation: ``pieces`` with places and ``values``; empty where there is none.

    Example:
        >>> part = {"kind": "tokens", "values": [2.0, -1.0], "pieces": [{"start": 0, "end": 2}, {"start": 3, "end": 4}]}
        >>> [(p.text, p.value) for p in pieces_of({"text": "好的 吗", "cut": False}, part)]
        [('好的', 1.0), (' ', 0.0), ('吗', -0.5)]
    """
    text, end = cell["text"], "…" if cell["cut"] else ""
    if not part.get("of_original", True) and isinstance(part.get("shown"), str):
        text = part["shown"][: len(text) if cell["cut"] else None]  # places are those of the cleaned text
    values = part.get("values")
    if part.get("kind") != "tokens" or not values:
        return [Piece(text + end)]
    largest = max((abs(v) for v in values if v is not None), default=0.0) or 1.0
    found: list[Piece] = []
    at = 0
    for piece, one in sorted(zip(part["pieces"], values, strict=True), key=lambda pair: pair[0]["start"])[
        :_GRAINS
    ]:
        start, stop = max(at, piece["start"]), min(piece["end"], len(text))
        if stop <= start:
            continue
        if start > at:
            found.append(Piece(text[at:start]))
        found.append(Piece(text[start:stop], round((one or 0.0) / largest, 3)))
        at = stop
    if at < len(text) or end:
        found.append(Piece(text[at:] + end))
    return found


def _speech(words: Words, one: dict[str, Any]) -> Example:
    if "fills" in one:
        facts = [(token, percent(share)) for token, share in one["fills"].items()]
        return Example(words("hidden", word=one["hidden"]), "", facts, [Shown("", [Piece(one["prompt"])])])
    if "truth" in one:
        shown = [
            Shown(words("given"), [Piece(one["prompt"])]),
            Shown(words("written"), [Piece(str(one["written"]))]),
        ]
        return Example("", "", [], [*shown, Shown(words("truth"), [Piece(one["truth"])])])
    cut = "…" if one["finish"] == "length" else ""
    return Example("", "", [], [Shown("", [Piece(one["prompt"], _BEGUN), Piece(one["written"] + cut)])])
