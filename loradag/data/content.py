"""What a text is, up to how it is written: equal contents are one row."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

# Of ASCII's characters, those that are no part of a word.
NO_WORD = {at: " " for at in range(128) if re.match(r"\W", chr(at))}


def content_id(texts: Iterable[str]) -> str:
    """Hash of texts up to case, punctuation, spacing and Unicode form: 64 bits in hex."""
    normal = [normalize(text) for text in texts]
    return hashlib.sha256("\n".join(normal).encode()).hexdigest()[:16]


def normalize(text: str) -> str:
    """A text without case, punctuation, spacing and Unicode form."""
    if text.isascii():  # the same, three times as fast
        return " ".join(text.lower().translate(NO_WORD).split())
    return re.sub(r"\W+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
