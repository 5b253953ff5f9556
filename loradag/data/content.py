"""What a text is, up to how it is written."""

import hashlib
import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

# Of ASCII's characters, those that are no part of a word.
NO_WORD = {at: " " for at in range(128) if re.match(r"\W", chr(at))}


def content_id(texts: Iterable[str]) -> str:
    """Hash of texts up to case, punctuation, spacing and Unicode form: 64 bits in hex."""
    return hash_of("\n".join(map(normalize, texts)))


def hash_of(text: str) -> str:
    """64 bits in hex."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def normalize(text: str) -> str:
    """A text without case, punctuation, spacing and Unicode form."""
    if text.isascii():  # the same, three times as fast
        return " ".join(text.lower().translate(NO_WORD).split())
    return _no_word().sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


@lru_cache
def _no_word() -> re.Pattern[str]:
    """What is between words. A vowel sign of Hindi or a tone mark of Thai is a part of its word."""
    marks = (c for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c) in ("Mn", "Mc"))
    letters = (c for c in marks if not unicodedata.name(c, "").startswith("VARIATION SELECTOR"))
    return re.compile(rf"[^\w{''.join(letters)}]+")
