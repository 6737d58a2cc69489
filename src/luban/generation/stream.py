"""Text from tokens as they come: whole characters only, and nothing that a stop string would take back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Decode", "TextStream"]

Decode = Callable[[list[int]], str]
"""Turns tokens into text; bytes that are no UTF-8 become U+FFFD, as is usual."""

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 3  # bytes of a character that is not complete yet, at most
_CONTEXT = 5  # tokens of the prompt that decide how the first one is written, at most


class TextStream:
    """Turns the tokens of one text into text, piece by piece.

    A token may end in the middle of a character (most Chinese characters and all emoji have several bytes), and how it is
    written may depend on the one before it (a space, or none). So a few tokens are decoded again with each new one, and what
    could still become another character waits. So does what may be the beginning of a stop string.

    Args:
        decode: turns tokens into text.
        stop: the text ends before the first of these.
        prompt: tokens before the first one, of which only the last few matter.

    Attributes:
        text: what has been given out, all of it.
        stopped: whether a stop string was found.

    Example:
        >>> stream = TextStream(lambda ids: bytes(ids).decode("utf-8", "replace"), stop=["END"])
        >>> [stream.push(byte) for byte in "好 END".encode()], stream.text, stream.stopped
        (['', '', '好', ' ', '', '', ''], '好 ', True)
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = (), prompt: Sequence[int] = ()) -> None:
        self.decode, self.stop = decode, tuple(stop)
        self.text, self.stopped = "", False
        self._window = list(prompt[-_CONTEXT:])  # tokens that are decoded again
        self._shown = self.decode(self._window) if self._window else ""
        if self._shown.endswith(_UNKNOWN):  # a prompt that ends within a character has no bearing on the next
            self._window, self._shown = [], ""
        self._last = len(self._window)  # where in the window the tokens of the latest piece begin
        self._held = ""  # complete characters that may begin a stop string
        self._longest = max(map(len, self.stop), default=0)

    def push(self, token: int) -> str:
        """Take a token; return the text that it makes certain, which may be empty."""
        if self.stopped:
            return ""
        self._window.append(token)
        return self._give(self._new(final=False), final=False)

    def finish(self) -> str:
        """Return what was held back, now that no token follows."""
        return "" if self.stopped else self._give(self._new(final=True), final=True)

    def _new(self, final: bool) -> str:
        """Return the characters that the window has gained."""
        text = self.decode(self._window)
        # More replacements than a character can lack bytes are no beginning of one, and are as they will stay.
        waiting = 0 if final else min(len(text) - len(text.rstrip(_UNKNOWN)), _LONGEST)
        text = text[: len(text) - waiting]
        if not text.startswith(self._shown) or len(text) == len(self._shown):
            return ""
        new = text[len(self._shown) :]
        if not waiting:
            # The window moves on: the tokens of this piece stay, since the next may be written as it is because of them.
            self._window = self._window[self._last :]
            self._last = len(self._window)
            self._shown = self.decode(self._window)
        else:
            self._shown = text
        return new

    def _give(self, new: str, final: bool) -> str:
        text = self._held + new
        found = [place for word in self.stop if (place := text.find(word)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return self._out(text[: min(found)])
        kept = 0 if final else self._begun(text)
        self._held = text[len(text) - kept :]
        return self._out(text[: len(text) - kept])

    def _begun(self, text: str) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(word.startswith(text[-size:]) for word in self.stop):
                return size
        return 0

    def _out(self, piece: str) -> str:
        self.text += piece
        return piece
