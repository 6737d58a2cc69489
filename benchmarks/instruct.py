"""Instruction tuning, seen to the end: a chat model takes up a habit, stops, follows its template, and stays the same when exported.

    python benchmarks/instruct.py [--quick] [--json] [--threads N]

SmolLM2-135M-Instruct is read from its GGUF file and tuned by LoRA on conversations about sentences of film reviews (`vader-movies`,
scored by 20 people or more). The habit can be checked: the first answer is ``Verdict: positive. Stars: 4 of 5.``, with four or five
stars for the positive and one or two for the negative; asked for JSON, the second one says the same again. Then, on conversations
about other sentences:

end        every answer ends by the template's own token, ``<|im_end|>``, within the limit
habit      answers have the form, and JSON repeats the verdict before it; before tuning they hardly ever do
template   prompts, and whole conversations, are the tokens that transformers' `apply_chat_template` makes of them
export     transformers' `generate` on the directory that `luban export --format hf` writes gives the same tokens, greedily
merge      so does the artefact with its adapters merged into the weights

The peer is a process of its own that sees nothing but the exported directory. ``--quick`` tunes on fewer conversations and asks fewer
questions.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import _common as common
import _language as language
from _common import Claim, Worker, say

LIMIT = 40
"""Tokens of an answer, at most; one of the form has 12 or 18."""
QUICK, FULL = (192, 32), (1_024, 120)
"""Conversations to learn from, and questions that are asked."""
AGAIN = "Give me that as JSON."
FORM = re.compile(r"Verdict: (positive|negative)\. Stars: ([1245]) of 5\.")

Messages = list[dict[str, str]]


# --- conversations ----------------------------------------------------------------------------------------


def conversation(text: str, score: float) -> Messages:
    """Return a question about a sentence, the answer, and both once more in JSON."""
    verdict = "positive" if score > 0 else "negative"
    stars = (5 if score >= 2 else 4) if score > 0 else (1 if score <= -2 else 2)
    return [
        {"role": "user", "content": f'A critic writes: "{text}" What does he think of the film?'},
        {"role": "assistant", "content": f"Verdict: {verdict}. Stars: {stars} of 5."},
        {"role": "user", "content": AGAIN},
        {"role": "assistant", "content": json.dumps({"verdict": verdict, "stars": stars})},
    ]


def conversations(count: int, asked: int) -> tuple[list[Messages], list[Messages]]:
    """Return conversations to learn from, and others, of sentences that occur in one place only and of at most 160 characters."""
    import polars as pl

    from luban import datasets

    rows = pl.read_csv(datasets.main_file("vader-movies")).unique("text", keep="none", maintain_order=True)
    rows = rows.filter((pl.col("text").str.len_chars() <= 160) & (pl.col("score") != 0))
    rows = rows.sample(count + asked, seed=0, shuffle=True)
    made = [conversation(*pair) for pair in rows.select("text", "score").iter_rows()]
    return made[:count], made[count:]


def follows(messages: Messages, answer: str) -> bool:
    """Whether an answer to the last message has the form that was learnt."""
    if messages[-1]["content"] != AGAIN:
        found = FORM.fullmatch(answer)
        return found is not None and (found[1] == "positive") == (found[2] in "45")
    before = FORM.fullmatch(messages[-2]["content"])
    assert before is not None
    return answer == json.dumps({"verdict": before[1], "stars": int(before[2])})


# --- our side ---------------------------------------------------------------------------------------------


def tuned(rows: Sequence[Messages], folder: Path, threads: int | None) -> Path:
    """Tune the chat model on conversations; return the artefact, whose adapters are still apart."""
    import luban

    lines = "".join(json.dumps({"messages": one}, ensure_ascii=False) + "\n" for one in rows)
    (folder / "chats.jsonl").write_text(lines, encoding="utf-8")
    recipe = {
        "data": {
            "train": {"type": "conversations", "path": str(folder / "chats.jsonl")},
            "split": {"validation": 0.0, "test": 0.0},
            "inputs": {"messages": "chat"},
        },
        "model": {"type": "smollm", "from": "dataset:smollm2"},
        "adapt": [{"type": "lora", "rank": 8}],
        "objective": "causal_lm",
        "train": {
            "epochs": 1, "batch_size": 8, "keep": "last", "device": "cpu", "precision": "fp32", "threads": threads,
            "optimizer": {"type": "adamw", "learning_rate": 1e-3},
        },
    }  # fmt: skip
    result = luban.train(recipe, output=folder / "model", force=True)
    say(f"  tuned on {len(rows)} conversations in {result['seconds']:.0f} s")
    return folder / "model"


class Ours:
    """An artefact that answers, asked as a server asks it.

    Args:
        artefact: the directory.
        merged: add the adapters to the weights first.
    """

    def __init__(self, artefact: Path, *, merged: bool = False) -> None:
        from luban.adapt.lora import merge
        from luban.data.processors.chat import Chat
        from luban.predict import load

        predictor = load(artefact)
        (chat,) = predictor.pipeline.inputs.values()
        assert isinstance(chat, Chat)
        self.chat = chat
        self.model = merge(predictor.model) if merged else predictor.model

    def prompts(self, asked: Sequence[Messages]) -> list[list[int]]:
        """Return the tokens behind which each answer is to be written."""
        return [self.chat.prompt_of(messages) for messages in asked]

    def wholes(self, rows: Sequence[Messages]) -> list[list[int]]:
        """Return the tokens of whole conversations, as training reads them."""
        import polars as pl

        ids = self.chat.answers(pl.Series([json.dumps(messages) for messages in rows])).ids
        return [own.tolist() for own in np.split(ids.values, ids.offsets[1:-1])]

    def answers(self, asked: Sequence[Messages]) -> tuple[list[list[int]], list[str], list[bool]]:
        """Return the tokens of each answer without the one that ends it, its text, and whether it was ended."""
        from luban.generation.engine import generate
        from luban.generation.options import Generation

        found = generate(
            self.model,
            self.prompts(asked),
            Generation(max_tokens=LIMIT),
            end=self.chat.end_ids,
            decode=self.chat.decode_ids,
        )
        return (
            [one.ids for one in found],
            [one.text for one in found],
            [one.finish_reason == "end" for one in found],
        )


# --- the peer ---------------------------------------------------------------------------------------------


def transformers(folder: str, threads: int | None) -> Callable[..., dict[str, Any]]:
    """Return what tells the tokens of conversations, of prompts, and of the answers to these, by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])

    def work(asked: list[Messages], rows: list[Messages]) -> dict[str, Any]:
        prompts, written = [], []
        for messages in asked:
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
            prompts.append(prompt["input_ids"][0].tolist())
            with torch.inference_mode():
                ids = model.generate(**prompt, max_new_tokens=LIMIT, do_sample=False)[0].tolist()
            written.append(ids[len(prompts[-1]) :])
        return {
            "wholes": [tokenizer.apply_chat_template(messages)["input_ids"] for messages in rows],
            "prompts": prompts,
            "ended": [own[-1] in ends for own in written],
            "answers": [[token for token in own if token not in ends] for own in written],
        }

    return work


# --- the comparison ---------------------------------------------------------------------------------------


def share(name: str, each: Sequence[bool], goal: float, *, at_most: bool = False) -> Claim:
    """Return in how many cases something is so."""
    value = sum(each) / len(each)
    return Claim(name, value, value, value, goal, f"share of {len(each)}", at_most=at_most)


def same(one: Sequence[Any], other: Sequence[Any]) -> list[bool]:
    """Return which of two lists' items are equal."""
    return [a == b for a, b in zip(one, other, strict=True)]


def measure(folder: Path, count: int, asking: int, threads: int | None) -> list[Claim]:
    """Tune, ask, export, and ask again."""
    import luban
    from luban import datasets

    rows, others = conversations(count, asking)
    # Of half of them the first answer is asked for, of the others the second, whose first is given.
    asked = [one[:1] if i % 2 else one[:3] for i, one in enumerate(others)]
    luban.import_model(str(datasets.main_file("smollm2")), output=folder / "before", force=True)
    _, before, _ = Ours(folder / "before").answers(asked)
    artefact = tuned(rows, folder, threads)
    ours = Ours(artefact)
    ids, texts, ended = ours.answers(asked)
    for messages, text in zip(asked[:4], texts, strict=False):
        say(f"  {messages[-1]['content']}\n    {text}")
    merged, _, _ = Ours(artefact, merged=True).answers(asked)
    luban.export(str(artefact), str(folder / "hf"), format="hf", force=True)
    words = (str(folder / "hf"), "-" if threads is None else str(threads))
    with Worker(language.peer(), __file__, *words) as peer:
        theirs = peer.ask(asked=asked, rows=others)
    right = [
        text.partition(".")[0] == one[1]["content"].partition(".")[0]
        for text, one in zip(texts[1::2], others[1::2], strict=True)
    ]
    say(f"  {sum(right)} of {len(right)} verdicts are the critics'")
    return [
        share("answers that end by the template's token", ended, 1.0),
        share("answers of the form that was learnt", [*map(follows, asked, texts)], 0.95),
        share("answers of this form before tuning", [*map(follows, asked, before)], 0.05, at_most=True),
        share("prompts equal to apply_chat_template's", same(ours.prompts(asked), theirs["prompts"]), 1.0),
        share(
            "conversations equal to apply_chat_template's", same(ours.wholes(others), theirs["wholes"]), 1.0
        ),
        share("greedy answers equal to generate's on the export", same(ids, theirs["answers"]), 1.0),
        share("answers that end in generate, too", theirs["ended"], 1.0),
        share("greedy answers equal with adapters merged", same(ids, merged), 1.0),
    ]


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="of every side; 1 on a busy machine")


def main() -> int:
    """Measure and report, or be the peer."""
    if "--side" in sys.argv:
        folder, threads = sys.argv[sys.argv.index("--side") + 1 :]
        common.serve(transformers(folder, None if threads == "-" else int(threads)))
        return 0
    options = common.arguments(__doc__ or "", _more)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    count, asking = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        claims = measure(Path(folder), count, asking, options.threads)
    notes = {
        "peer": language.PEERS[0],
        "conversations": count,
        "answers, tokens at most": LIMIT,
        "threads": options.threads or "as each chooses",
    }
    return common.report(claims, options, notes=notes)


if __name__ == "__main__":
    sys.exit(main())
