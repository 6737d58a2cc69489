"""Words that a masked language model puts where some were hidden: which tokens around a place led to which word there.

::

    text    the capital of [MASK] is [MASK]        case 0   score log p(france at the first)
                                                   case 1   score log p(paris at the second)

Each hidden place is a case of its own, of one row. The places stay hidden whatever else is switched off or made neutral, since they are
the question that is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from luban.data.batch import Batch, to_batch
from luban.data.contracts import Flat
from luban.data.processors.text import Text
from luban.errors import DataError
from luban.explaining._base import Explainer, Explanation, Piece
from luban.explaining._case import ragged
from luban.explaining._quality import measure
from luban.explaining._text import Pieces
from luban.explaining._tokens import TokenCase, together
from luban.predict import Predictor
from luban.sentences import say

__all__ = ["HiddenCase", "explain_hidden", "fills", "hidden_cases"]


def fills(predictor: Predictor) -> bool:
    """Whether a model fills in hidden words."""
    return predictor.speaker is not None and not predictor.speaker.causal


@dataclass
class HiddenCase(TokenCase):
    """The word at one hidden place of a text, as a case of one row.

    Attributes:
        hidden: the places of the text that are hidden, rising.
        which: the one of them that is asked about, from 0.
        beyond: how many more the text hides behind the place where it is cut.
    """

    hidden: tuple[int, ...] = ()
    which: int = 0
    beyond: int = 0

    @property
    def text(self) -> Text:
        """The processor of the text."""
        assert self.predictor.speaker is not None
        return self.predictor.speaker.text

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The tokens of the text, (T,)."""
        ids = self.encoded[f"{self.target}.ids"]
        assert isinstance(ids, Flat)
        return ids.values.astype(np.int64)

    def place(self, length: int) -> int:
        """Return the place that is asked about; nothing of the text may be missing."""
        assert length == len(self.ids), f"{length} tokens of {len(self.ids)}"
        return self.hidden[self.which]

    def framing_ids(self, text: Text) -> list[int]:
        """Return the tokens that stand in a neutral text too: also the one that hides a word, which is the question."""
        return sorted({*super().framing_ids(text), *([] if text.mask_id is None else [text.mask_id])})

    def score(self, batch: Batch, chosen: npt.NDArray[np.int64] | Tensor | None = None) -> Tensor:
        """Return the log-probability of the word at the place, (B,).

        Of a row as long as the text, tokens were replaced at the most, perhaps by what hides a word, so the place is where it was; of a
        shorter one, tokens were taken out, but none that hides a word, so it is as many of these on.
        """
        chosen = self.chosen if chosen is None else chosen
        ids = ragged(batch, f"{self.target}.ids")
        starts, ends = ids.offsets[:-1], ids.offsets[1:] - 1
        until = ids.values.eq(self.text.mask_id or 0).cumsum(0)  # (T,): how many are hidden, up to here
        before = F.pad(until, (1, 0))[starts]
        # A row that only fills up a batch may end before the place.
        moved = torch.minimum(torch.searchsorted(until, before + self.which + 1), ends)
        places = torch.where(ids.lengths == len(self.ids), starts + self.hidden[self.which], moved)
        labels = torch.as_tensor(chosen, device=self.predictor.device)
        outputs = self.predictor.model({**batch, f"{self.target}.read": places})
        return -outputs[f"{self.target}.tokens"].losses(labels)  # type: ignore[no-any-return]

    def pieces(self, column: str) -> list[Pieces]:
        """Return the tokens of the text as pieces; those that hide a word are none that could be switched off."""
        (pieces,) = super().pieces(column)
        special = pieces.special.copy()
        special[pieces.groups[list(self.hidden)]] = True
        return [replace(pieces, special=special)]


def hidden_cases(
    predictor: Predictor, rows: pl.DataFrame, number: int, text: str | None, seed: int
) -> list[HiddenCase]:
    """Return a case for each hidden place of one row, about the word that the model finds most probable there.

    Args:
        predictor: a masked language model.
        rows: the row.
        number: of the row.
        text: the words to explain instead, a token a hidden place.
        seed: of what is drawn.

    Raises:
        DataError: if the row cannot be read, or hides no word in what is left of it once it is cut, or the words of `text` are
            unknown, or not as many tokens as places.
    """
    speaker = predictor.speaker
    assert speaker is not None
    (reason,) = predictor.reasons(rows)
    if reason:
        raise DataError(reason)
    column, nothing = speaker.column, np.zeros(1, dtype=np.int64)
    first = HiddenCase(predictor, rows, predictor.clean(rows), [number], column, nothing, seed=seed)
    hidden = np.flatnonzero(first.ids == speaker.text.mask_id)
    mask = speaker.text.trained.id_to_token(speaker.text.mask_id or 0)
    texts = first.frame[column].cast(pl.String, strict=False).fill_null("").to_list()
    whole = speaker.text.encode_whole(texts).values
    beyond = int((whole == speaker.text.mask_id).sum()) - len(hidden)
    if not len(hidden) and beyond:
        raise DataError(
            say(
                "each {mask} of the text lies beyond max_length={most} tokens, where it is cut; shorten what stands before",
                mask=mask,
                most=speaker.text.max_length,
            )
        )
    if not len(hidden):
        raise DataError(
            say(
                "the text has no {mask}, so no word is hidden that the model could tell; write {mask} in place of the word to explain",
                mask=mask,
            )
        )
    if text is None:
        batch = to_batch(first.encoded, predictor.spec, predictor.device)
        batch[f"{column}.read"] = torch.as_tensor(hidden, device=predictor.device)
        with torch.inference_mode():
            words = predictor.model(batch)[f"{column}.tokens"].logits().argmax(1).tolist()
    else:
        words = _words(speaker.text, text)
        if len(words) != len(hidden):
            cut = " ".join(str(speaker.text.trained.id_to_token(word)) for word in words)
            left = say(" in its first {n} tokens", n=speaker.text.max_length) if beyond else ""
            raise DataError(
                say(
                    "--target-text {text!r} is {tokens}, and the text hides {words}{left}; give one token for each {mask}",
                    text=text,
                    tokens=say("{tokens} ({cut})", tokens=_tokens(len(words)), cut=cut)
                    if words
                    else _tokens(0),
                    words=say("1 word") if len(hidden) == 1 else say("{n} words", n=len(hidden)),
                    left=left,
                    mask=mask,
                )
            )
    places = tuple(hidden.tolist())
    return [
        replace(first, chosen=np.asarray([word], dtype=np.int64), hidden=places, which=i, beyond=beyond)
        for i, word in enumerate(words)
    ]


def _tokens(n: int) -> str:
    return say("1 token") if n == 1 else say("{n} tokens", n=n)


def _words(text: Text, asked: str) -> list[int]:
    """Return the tokens of words; what is a token as it stands (``##ing``) is that.

    Raises:
        DataError: if a word is unknown, and not the unknown token itself.
    """
    known = text.trained.token_to_id(asked)
    if known is not None:
        return [known]
    found = text.trained.encode(asked, add_special_tokens=False)
    for token, (start, end) in zip(found.ids, found.offsets, strict=True):
        word = asked[start:end].strip()
        if token == text.unk_id and word != text.trained.id_to_token(token):
            raise DataError(
                say(
                    "the tokenizer does not know {word!r} of --target-text, so the model has no probability for it; give a word of its vocabulary",
                    word=word,
                )
            )
    ids: list[int] = found.ids
    return ids


def explain_hidden(
    cases: Sequence[HiddenCase], explainer: Explainer, *, quality: bool = False
) -> Explanation:
    """Explain all hidden words of a text as one: a matrix, hidden word × token of the text.

    Measures of quality are the means over the words.
    """
    each = []
    for case in cases:
        own = explainer.explain(case)
        if quality:
            measure(case, explainer, own)
        each += own
    first = cases[0]
    (pieces,) = first.pieces(first.target)
    words = [str(case.labels[0]).strip() for case in cases]
    where = [pieces.pieces[pieces.groups[place]] for place in first.hidden]
    output = Pieces(
        [Piece(word, piece.start, piece.end) for word, piece in zip(words, where, strict=True)],
        np.arange(len(words)),
        np.zeros(len(words), dtype=bool),
        pieces.shown,
        pieces.of_original,
    )
    one = together(first, each, output, " ".join(words))
    if len(words) > 1:
        one.notes.append(say("each hidden word is explained with the others hidden"))
    if first.beyond:
        one.notes.append(
            say(
                "{n} of {of} hidden words lie beyond max_length={most} tokens, where the text is cut, and are not explained",
                n=first.beyond,
                of=first.beyond + len(words),
                most=first.text.max_length,
            )
        )
    return one
