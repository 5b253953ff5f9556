"""What a text is, up to how it is written: equal contents are one row."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable


def content_id(texts: Iterable[str]) -> str:
    """Hash of texts up to case, punctuation, spacing and Unicode form: 64 bits in hex."""
    normal = [normalize(text) for text in texts]
    return hashlib.sha256("\n".join(normal).encode()).hexdigest()[:16]


def normalize(text: str) -> str:
    """A text without case, punctuation, spacing and Unicode form."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return re.sub(r"\W+", " ", text.casefold()).strip()
