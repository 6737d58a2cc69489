"""What the text augmentations share."""

from __future__ import annotations

import re

__all__ = ["CJK", "is_cjk"]

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003ffff"
"""Characters of Chinese, Japanese and Korean, as the inside of a regular expression's class."""
_CJK = re.compile(f"[{CJK}]")


def is_cjk(letter: str) -> bool:
    """Return whether a character is Chinese, Japanese or Korean."""
    return _CJK.match(letter) is not None
