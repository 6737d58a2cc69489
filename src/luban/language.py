"""What a model that speaks makes of texts: how probable they are, how they go on, what was hidden in them.

A Transformer whose tokens are a target (a causal or a masked language model) has no column to predict; its predictions are
about the text itself. `Predictor` sends rows here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor, nn

from luban.data.batch import to_batch
from luban.data.contracts import Encoded, Flat, Spec
from luban.data.pipeline import Pipeline
from luban.data.processors.chat import Chat
from luban.data.processors.text import Text
from luban.data.ragged import Ragged
from luban.data.store import slice_rows
from luban.data.windows import windows_of
from luban.errors import InputError
from luban.generation.engine import generate
from luban.generation.options import Generation
from luban.generation.reader import Piece
from luban.generation.score import score
from luban.models._language import LanguageEncoder, encoder_of
from luban.objectives.causal_lm import CausalLM
from luban.objectives.masked_lm import MaskedLM

__all__ = ["Score", "Speaker", "speaker_of"]

_TOKENS = 8192  # of a batch: some dozen milliseconds of a small model on a CPU


@dataclass(frozen=True)
class Score:
    """How probable a model holds a text.

    Attributes:
        loss: minus the log of the probability of the tokens that were predicted, summed.
        tokens: how many these were.
        bytes: length of the text in UTF-8.
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
    """

    def __init__(self, module: nn.Module, pipeline: Pipeline, spec: Spec, device: torch.device) -> None:
        self.module, self.pipeline, self.spec, self.device = module, pipeline, spec, device
        self.encoder: LanguageEncoder = encoder_of(module)
        self.column = next(
            f.column for f in spec.fields.values() if f.role == "target" and f.kind == "tokens"
        )
        text = pipeline.inputs[self.column]
        assert isinstance(text, Text)
        self.text = text
        self.causal = self.encoder.core.shape.causal
        limit = self.encoder.options.max_positions
        self.objective: CausalLM | MaskedLM = (CausalLM if self.causal else MaskedLM)(column=self.column)
        self.objective.bind(pipeline, limit)
        self.limit = limit

    def measure(self, values: pl.Series) -> list[Score]:
        """Return how probable texts are, given the cells of the column; of conversations, how probable their answers are."""
        if isinstance(self.text, Chat):
            chats = self.text.answers(values)
            windows, document = chats.ids, np.arange(len(values))
            return self._score(windows, document, chats.bytes.tolist(), chats.answer)
        texts = values.cast(pl.String, strict=False).fill_null("").to_list()
        ids = self.text.encode_texts(texts)["ids"]
        assert isinstance(ids, Flat)
        return self.score(ids, texts)

    def score(self, ids: Flat, texts: Sequence[str]) -> list[Score]:
        """Return how probable texts are, given their tokens.

        A causal model predicts each token from those before it; of a masked one, tokens are hidden as in training, the same
        ones every time.
        """
        window = self.objective.window()
        assert window is not None
        _, length, overlap, trim = window
        parts, document = windows_of(ids, length, overlap, trim)
        return self._score(parts, document, [len(text.encode()) for text in texts])

    def _score(
        self, parts: Flat, document: npt.NDArray[np.int64], sizes: Sequence[int], answer: Flat | None = None
    ) -> list[Score]:
        """Score examples: `document` says of which text each is, `answer` which tokens are to be predicted."""
        losses = np.zeros(len(sizes))
        counts = np.zeros(len(sizes), dtype=np.int64)
        generator = torch.Generator()
        for start, stop in _batches(np.diff(parts.offsets)):
            encoded: Encoded = {f"{self.column}.ids": parts}
            if answer is not None:
                encoded[f"{self.column}.answer"] = answer
            batch = to_batch(slice_rows(encoded, start, stop), self.spec)
            batch = self.objective.collate(batch, generator.manual_seed(start))
            rows = _rows_of(batch[f"{self.column}.ids"], batch[f"{self.column}.read"])
            moved = {name: value.to(self.device) for name, value in batch.items()}
            with torch.inference_mode():
                each = self.module(moved)[f"{self.column}.tokens"].losses(moved[f"{self.column}.labels"])
            of = document[start + rows]
            np.add.at(losses, of, each.double().cpu().numpy())
            np.add.at(counts, of, 1)
        return [Score(float(loss), int(n), size) for loss, n, size in zip(losses, counts, sizes, strict=True)]

    def predict(
        self,
        texts: Sequence[Any],
        options: Generation | None = None,
        candidates: Sequence[str] = (),
        on_piece: Callable[[Piece], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Return what the model makes of texts: their continuation, the best of `candidates`, or what their masks hid.

        Args:
            texts: values of the column.
            options: how a continuation is generated.
            candidates: answers to choose from instead; each text is a prompt, which an answer follows.
            on_piece: is shown a continuation as it comes.

        Raises:
            InputError: if a masked model is asked to continue or to choose.
            DataError: if a text has no token to begin with.
        """
        if not self.causal:
            if options is not None or candidates:
                raise InputError(
                    f"a masked language model fills in {self.text.trained.id_to_token(self.text.mask_id or 0)}; it neither continues texts nor scores answers"
                )
            return [self._filled(str(text or "")) for text in texts]
        if not texts:
            return []
        prompts = [self.prompt(text) for text in texts]
        if candidates:
            answers = [self.text.trained.encode(one, add_special_tokens=False).ids for one in candidates]
            shares = score(self.module, prompts, answers).softmax(1)
            return [
                {
                    "answer": candidates[int(row.argmax())],
                    "answer.score": float(row.max()),
                    "answer.scores": dict(zip(candidates, row.tolist(), strict=True)),
                }
                for row in shares
            ]
        end = {i for i in (self.text.end_id,) if i is not None}
        if isinstance(self.text, Chat):
            end |= self.text.stop_ids
        generated = generate(
            self.module,
            prompts,
            options or Generation(),
            end=end,
            decode=self.text.decode_ids,
            tokenizer=self.text.trained,
            on_piece=on_piece,
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

    def _filled(self, text: str) -> dict[str, Any]:
        fills = self.fill(text)
        mask = str(self.text.trained.id_to_token(self.text.mask_id or 0))
        for best in fills:
            text = text.replace(mask, best[0][0], 1)
        return {"filled": text, "fills": [_by_text(best) for best in fills]}

    def fill(self, text: str, k: int = 5) -> list[list[tuple[str, float]]]:
        """Return, for each mask in a text, the k most probable tokens and their probabilities."""
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
            [(self.text.decode_ids([i]), p) for i, p in zip(row, values, strict=True)]
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _by_text(best: list[tuple[str, float]]) -> dict[str, float]:
    """Return text → probability; different tokens may read the same (a byte of a character and another)."""
    result: dict[str, float] = {}
    for text, share in best:
        result[text] = result.get(text, 0.0) + share
    return result


def speaker_of(module: nn.Module, pipeline: Pipeline, spec: Spec, device: torch.device) -> Speaker | None:
    """Return the language model of a network, None where its tokens are no target."""
    if not any(f.role == "target" and f.kind == "tokens" for f in spec.fields.values()):
        return None
    return Speaker(module, pipeline, spec, device)


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
