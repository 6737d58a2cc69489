"""What a model that speaks makes of texts: how probable they are, how they go on, what was hidden in them.

A Transformer whose tokens are a target (a causal or a masked language model) has no column to predict; its predictions are
about the text itself. `Predictor` sends rows here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor, nn

from luban.data.batch import Batch, to_batch
from luban.data.contracts import Encoded, Flat, Spec
from luban.data.pipeline import Pipeline
from luban.data.processors.chat import Chat
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.data.store import slice_rows
from luban.data.windows import windows_of
from luban.errors import DataError, InputError
from luban.generation.engine import generate
from luban.generation.options import Generation
from luban.generation.reader import Piece
from luban.generation.score import score
from luban.machine import inference
from luban.models._decoding import language_model_of
from luban.objectives.causal_lm import CausalLM
from luban.objectives.masked_lm import MaskedLM
from luban.recipe import Component

__all__ = ["Score", "Speaker", "speaker_of"]

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_TEXTS = 256  # encoded at a time
_SHORTEST = 8  # tokens that an objective can be told to take
_LONGEST = 2048  # tokens of a window where no recipe says how many
_TOKENS = 8192  # of a batch: some dozen milliseconds of a small model on a CPU


@dataclass(frozen=True)
class Score:
    """How probable a model holds a text.

    Attributes:
        loss: minus the log of the probability of the tokens that were predicted, summed.
        tokens: how many these were.
        bytes: length of the text in UTF-8, without the first token where nothing predicts it.
    """

    loss: float
    tokens: int
    bytes: int


class Speaker:
    """A language model with its text column.

    Args:
        module: the network.
        pipeline: fitted processors.
        spec: fields of a batch.
        device: where the module is.
        objective: what the model was trained with, which says how texts are cut and what is hidden; by default what is usual.
    """

    def __init__(
        self,
        module: nn.Module,
        pipeline: Pipeline,
        spec: Spec,
        device: torch.device,
        objective: Component | None = None,
    ) -> None:
        self.module, self.pipeline, self.spec, self.device = module, pipeline, spec, device
        self.model = language_model_of(module)
        self.column = next(
            f.column for f in spec.fields.values() if f.role == "target" and f.kind == "tokens"
        )
        text = pipeline.inputs[self.column]
        assert isinstance(text, Text)
        self.text = text
        self.causal = self.model.causal
        limit = self.model.limit
        kind = CausalLM if self.causal else MaskedLM
        if isinstance(objective, kind):
            self.objective: CausalLM | MaskedLM = objective.model_copy(update={"column": self.column})
        else:
            length = None if limit is None or limit < _SHORTEST else min(limit, _LONGEST)
            self.objective = kind(column=self.column, length=length)
        self.objective.bind(pipeline, limit)

    def measure(self, values: pl.Series) -> list[Score]:
        """Return how probable texts are, given the cells of the column; of conversations, how probable their answers are."""
        if isinstance(self.text, Chat):
            chats = self.text.answers(values)
            windows, document = chats.ids, np.arange(len(values))
            return self._score(windows, document, chats.bytes.tolist(), chats.answer)
        texts = values.cast(pl.String, strict=False).fill_null("").to_list()
        return self.score(self.text.encode_whole(texts), texts)

    def score(self, ids: Flat, texts: Sequence[str]) -> list[Score]:
        """Return how probable texts are, given all their tokens.

        A causal model predicts each token from those before it, so the first one only if the tokenizer begins texts with a token
        of its own; else the bytes of the first do not count. Of a masked one, tokens are hidden as in training, of a text the
        same ones every time.
        """
        window = self.objective.window()
        assert window is not None
        _, length, overlap, trim = window
        parts, document = windows_of(ids, length, overlap, trim)
        return self._score(parts, document, self._sizes(texts))

    def _sizes(self, texts: Sequence[str]) -> list[int]:
        """Return the bytes of what is predicted of each text."""
        sizes = [len(text.encode()) for text in texts]
        if not self.causal or self.text.frame[0]:
            return sizes
        tokenizer = self.text.trained
        of_bytes = type(tokenizer.decoder).__name__ == "ByteLevel"
        for start in range(0, len(texts), _TEXTS):
            some = list(texts[start : start + _TEXTS])
            for i, one in enumerate(tokenizer.encode_batch(some, add_special_tokens=False), start):
                if not one.ids:
                    continue
                first = len(texts[i][: one.offsets[0][1]].encode())
                # A token may be a part of a character, whose place is that of the whole one.
                if of_bytes:
                    first = min(first, len(one.tokens[0]))
                elif _BYTE.fullmatch(one.tokens[0]):
                    first = min(first, 1)
                sizes[i] -= first
        return sizes

    def _score(
        self, parts: Flat, document: npt.NDArray[np.int64], sizes: Sequence[int], answer: Flat | None = None
    ) -> list[Score]:
        """Score examples: `document` says of which text each is, `answer` which tokens are to be predicted."""
        losses = np.zeros(len(sizes))
        counts = np.zeros(len(sizes), dtype=np.int64)
        generator = torch.Generator()
        with inference(self.module, self.device):
            for start, stop in _batches(np.diff(parts.offsets)):
                encoded: Encoded = {f"{self.column}.ids": parts}
                if answer is not None:
                    encoded[f"{self.column}.answer"] = answer
                if self.causal:  # nothing is drawn
                    batch = self.objective.collate(
                        to_batch(slice_rows(encoded, start, stop), self.spec), generator
                    )
                else:
                    batch = self._hidden(encoded, start, stop, generator)
                rows = _rows_of(batch[f"{self.column}.ids"], batch[f"{self.column}.read"])
                moved = {name: value.to(self.device) for name, value in batch.items()}
                each = self.module(moved)[f"{self.column}.tokens"].losses(moved[f"{self.column}.labels"])
                of = document[start + rows]
                np.add.at(losses, of, each.double().cpu().numpy())
                np.add.at(counts, of, 1)
        return [Score(float(loss), int(n), size) for loss, n, size in zip(losses, counts, sizes, strict=True)]

    def _hidden(self, encoded: Encoded, start: int, stop: int, generator: torch.Generator) -> Batch:
        """Return windows with tokens hidden: which ones, the tokens of a window decide, not those of the windows beside it."""
        parts = []
        for row in range(start, stop):
            one = slice_rows(encoded, row, row + 1)
            ids = one[f"{self.column}.ids"]
            assert isinstance(ids, Flat)
            digest = blake2b(ids.values.astype("<i8").tobytes(), digest_size=8).digest()
            generator.manual_seed(int.from_bytes(digest, "little") >> 1)
            parts.append(self.objective.collate(to_batch(one, self.spec), generator))
        rows = Ragged.from_rows(self.objective.ids(part).values for part in parts)
        names = {name: f"{self.column}.{name}" for name in ("ids", "read", "labels")}
        places = [_tensor_of(part, names["read"]) for part in parts]
        return {
            names["ids"]: rows,
            names["read"]: torch.cat([p + at for p, at in zip(places, rows.offsets[:-1], strict=True)]),
            names["labels"]: torch.cat([_tensor_of(part, names["labels"]) for part in parts]),
        }

    def predict(
        self,
        texts: Sequence[Any],
        options: Generation | None = None,
        candidates: Sequence[str] = (),
        on_piece: Callable[[Piece], None] | None = None,
        first: int = 0,
        per_token: bool = False,
    ) -> list[dict[str, Any]]:
        """Return what the model makes of texts: their continuation, the best of `candidates`, or what their masks hid.

        Args:
            texts: values of the column.
            options: how a continuation is generated.
            candidates: answers to choose from instead; each text is a prompt, which an answer follows.
            on_piece: is shown a continuation as it comes.
            first: number of the first row, from which pieces and the seeds of draws are counted.
            per_token: whether candidates are compared by the mean log-probability of their tokens, not by that of the whole.

        Returns:
            A prediction a text; of one that the model cannot read, ``error``.

        Raises:
            InputError: if a masked model is asked to continue or to choose; if there are options of generation and candidates, or
                a candidate is empty or there twice; if `per_token` is asked for without any.
        """
        if not self.causal:
            if options is not None or candidates or per_token:
                raise InputError(
                    f"a masked language model fills in {self.text.trained.id_to_token(self.text.mask_id or 0)}; it neither continues texts nor scores answers"
                )
            return [self._filled_or_not(str(text or "")) for text in texts]
        if per_token and not candidates:
            raise InputError(
                "there are no candidates that could be compared per token; name some, or leave it out"
            )
        answers = self._answers(candidates, options)
        prompts = [self._prompt_or_not(text, answers) for text in texts]
        predictions: list[dict[str, Any]] = [
            {"error": prompt} if isinstance(prompt, str) else {} for prompt in prompts
        ]
        good = [(i, prompt) for i, prompt in enumerate(prompts) if not isinstance(prompt, str)]
        if answers:
            found = score(
                self.module, [prompt for _, prompt in good], answers, how="mean" if per_token else "sum"
            )
            shares = found.softmax(1)
            for (i, _), row in zip(good, shares, strict=True):
                predictions[i] = {
                    "answer": candidates[int(row.argmax())],
                    "answer.score": float(row.max()),
                    "answer.scores": dict(zip(candidates, row.tolist(), strict=True)),
                }
            return predictions
        # A row's draws are those of its number, whatever is the matter with others.
        numbers = [first + i for i, _ in good]
        written = self._continued([prompt for _, prompt in good], options, on_piece, numbers)
        for (i, _), one in zip(good, written, strict=True):
            predictions[i] = one
        return predictions

    def _answers(self, candidates: Sequence[str], options: Generation | None) -> list[list[int]]:
        """Return the tokens of candidates, once it is certain that these can be chosen from."""
        if not candidates:
            return []
        if options is not None:
            raise InputError(
                "an answer is chosen from candidates and nothing is generated, so options of generation would do nothing: remove one of both"
            )
        twice = [one for one, n in Counter(candidates).items() if n > 1]
        if twice:
            raise InputError(f"candidate {twice[0]!r} is there more than once; name each answer once")
        answers = [self.text.trained.encode(one, add_special_tokens=False).ids for one in candidates]
        for one, ids in zip(candidates, answers, strict=True):
            if not ids:
                raise InputError(f"candidate {one!r} has no token; name an answer")
        return answers

    def _prompt_or_not(self, text: Any, answers: Sequence[Sequence[int]]) -> list[int] | str:
        """Return the tokens of a text that is to be continued or answered, or why it cannot be."""
        try:
            ids = self.prompt(text)
        except DataError as error:
            return str(error)
        if not ids:
            return "the text has no token, and a continuation needs one to begin with"
        room = self.model.room
        # The last token of an answer is not read again.
        needed = len(ids) + max((len(answer) - 1 for answer in answers), default=0)
        if room is not None and needed > room:
            what = "a text and its longest answer have" if answers else "a text has"
            return f"{what} {needed} tokens, and the model has vectors for {room} positions; make it shorter"
        return ids

    def _continued(
        self,
        prompts: Sequence[Sequence[int]],
        options: Generation | None,
        on_piece: Callable[[Piece], None] | None,
        numbers: Sequence[int],
    ) -> list[dict[str, Any]]:
        """Continue prompts, those of the rows of these numbers."""
        generated = generate(
            self.module,
            prompts,
            options or Generation(),
            end=self.text.end_ids,
            decode=self.text.decode_ids,
            tokenizer=self.text.trained,
            numbers=numbers,
            on_piece=on_piece and (lambda piece: on_piece(replace(piece, row=numbers[piece.row]))),
        )
        return [
            {
                "completion": one.text,
                "completion.finish_reason": one.finish_reason,
                "completion.tokens": len(one.ids),
                "completion.log_probability": sum(one.logprobs),
            }
            for one in generated
        ]

    def prompt(self, text: Any) -> list[int]:
        """Return the tokens of a text that is to be continued; where it has none, the one that begins or ends texts."""
        # A conversation may be a list of messages, of which its JSON text says the same.
        ids = self.text.prompt_ids(json.dumps(text) if isinstance(text, list | dict) else str(text or ""))
        if ids:
            return ids
        edge = self.text.begin_id if self.text.begin_id is not None else self.text.end_id
        return [] if edge is None else [edge]

    def _filled_or_not(self, text: str) -> dict[str, Any]:
        try:
            return self._filled(text)
        except DataError as error:
            return {"error": str(error)}

    def _filled(self, text: str) -> dict[str, Any]:
        fills = self.fill(text)
        mask = str(self.text.trained.id_to_token(self.text.mask_id or 0))
        first, *others = text.split(mask)
        likely = [best[0][0] for best in fills]
        likely += [mask] * len(others)  # of those behind a cut nothing is known
        filled = first + "".join(map("".join, zip(likely, others, strict=False)))
        return {"filled": filled, "fills": [_by_text(best) for best in fills]}

    def fill(self, text: str, k: int = 5) -> list[list[tuple[str, float]]]:
        """Return, for each mask in a text, the k most probable tokens, special ones by their names, and their probabilities."""
        ids = self.text.encode_texts([text])["ids"]
        assert isinstance(ids, Flat)
        places = torch.from_numpy(np.flatnonzero(ids.values == self.text.mask_id))
        if not len(places):
            return []
        batch = to_batch({f"{self.column}.ids": ids}, self.spec, self.device)
        batch[f"{self.column}.read"] = places.to(self.device)
        with torch.inference_mode():
            shares = self.module(batch)[f"{self.column}.tokens"].logits().softmax(1)
        best = shares.topk(min(k, shares.shape[1]))
        return [
            [(self.text.decode_ids([i], skip_special=False), p) for i, p in zip(row, values, strict=True)]
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _tensor_of(batch: Batch, name: str) -> Tensor:
    value = batch[name]
    assert isinstance(value, Tensor)
    return value


def _by_text(best: list[tuple[str, float]]) -> dict[str, float]:
    """Return text → probability; different tokens may read the same (a byte of a character and another)."""
    result: dict[str, float] = {}
    for text, share in best:
        result[text] = result.get(text, 0.0) + share
    return result


def speaker_of(
    module: nn.Module,
    pipeline: Pipeline,
    spec: Spec,
    device: torch.device,
    objective: Component | None = None,
) -> Speaker | None:
    """Return the language model of a network, None where its tokens are no target; arguments are those of `Speaker`."""
    if not any(f.role == "target" and f.kind == "tokens" for f in spec.fields.values()):
        return None
    return Speaker(module, pipeline, spec, device, objective)


def _batches(lengths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut windows into runs of at most `_TOKENS` tokens; a longer window is a run of its own."""
    start, used = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > start and used + length > _TOKENS:
            yield start, i
            start, used = i, 0
        used += length
    if start < len(lengths):
        yield start, len(lengths)


def _rows_of(ids: Tensor | Ragged, places: Tensor | Ragged) -> npt.NDArray[np.int64]:
    assert isinstance(ids, Ragged)
    assert isinstance(places, Tensor)
    rows: npt.NDArray[np.int64] = ids.rows[places].numpy()
    return rows


def replay(speaker: Speaker, values: pl.Series) -> list[dict[str, Any]]:
    """Return what the parity contract compares of texts: the mean loss of their tokens."""
    return losses(speaker.column, speaker.measure(values))


def losses(column: str, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Return the mean loss of the tokens of texts as a prediction has it."""
    return [
        {f"{column}.loss": score.loss / max(1, score.tokens), f"{column}.tokens": score.tokens}
        for score in scores
    ]
