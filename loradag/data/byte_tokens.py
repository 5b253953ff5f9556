"""Token ids by fastokens, which computes what tokenizers does in a fraction of the time.

It gives no offsets: they follow from the bytes of the tokens, where these spell the text, as those
of a byte-level BPE do. Its ids are compared with those of tokenizers, on texts that exercise the
splitting into words and on some of the texts of each batch.
"""

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Ids (tokens,), and where each token begins and ends in the text (tokens, 2), in characters.
Tokens = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]
# What implementations of tokenizers could split otherwise.
PIECES = (
    " ", "  ", "\n", "\n\n", "\r\n", "\t", "a", "The", "ing", "word", "é", "e\u0301", "漢字",
    "नमस्ते", "🙂", "👩‍👩‍👧", "\u200b", "\u00a0", "\u3000", "1", "2024", "٣", "²", "Ⅷ", "'s", "'S",
    "’s", "_", "--", ".", ",", "\x00", "\ufeff", "ﬁ", "İ", "ß", "\u2028", "\u0085", "ि",
    "\U000f0000",
)  # fmt: skip
PROBES = 200
COMPARED = 64  # one text in so many


class ByteTokens:
    """The ids of texts and the characters that each token covers.

    Args:
        backend: a `tokenizers.Tokenizer` that neither truncates nor pads.

    Raises:
        ValueError: fastokens cannot read it, its tokens are not bytes, or its ids differ.
    """

    def __init__(self, backend: Any) -> None:
        import fastokens
        import numpy as np

        self.backend = backend
        self.encoder = fastokens.Tokenizer.from_json_str(backend.to_str())
        self.spellings = spell(backend)
        self.sizes = np.array([len(spelling) for spelling in self.spellings], np.int64)
        special = [token.content for token in backend.get_added_tokens_decoder().values()]
        draw = random.Random(0)
        probes = [
            "".join(draw.choices([*PIECES, *special], k=draw.randrange(12))) for _ in range(PROBES)
        ]
        if not self._agrees(probes, *self._encode(probes), step=1):
            raise ValueError("fastokens and tokenizers give different ids")

    def encode(self, texts: Sequence[str]) -> list[Tokens] | None:
        """The tokens of each text, without added BOS and EOS.

        None: the tokens do not spell the texts, which a normalizer has changed, or a text that was
        compared has other ids in tokenizers.
        """
        import numpy as np

        ids, starts = self._encode(texts)
        contents = [text.encode() for text in texts]
        ends = np.concatenate([[0], np.cumsum(self.sizes[ids])])
        if (ends[starts] != np.cumsum([0, *map(len, contents)])).any():
            return None
        if self.backend.normalizer is not None:
            spelled = map(self.spellings.__getitem__, ids.tolist())
            if b"".join(spelled) != b"".join(contents):
                return None
        if not self._agrees(texts, ids, starts, COMPARED):
            return None
        found: list[Tokens] = []
        for at, (first, last) in enumerate(pairwise(starts.tolist())):
            bounds = ends[first : last + 1] - ends[first]
            offsets = np.stack([bounds[:-1], bounds[1:]], axis=1)
            if not texts[at].isascii():
                # A token of one part of a character covers the character.
                opens = (np.frombuffer(contents[at], np.uint8) & 0xC0) != 0x80
                characters = np.cumsum(opens)
                offsets = characters[offsets - [0, 1]] - [1, 0]
            found.append((ids[first:last], offsets))
        return found

    def _encode(self, texts: Sequence[str]) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
        """Ids of all texts (tokens,), and where those of each begin (texts + 1,)."""
        import numpy as np

        ids, starts = self.encoder.encode_batch_flat(list(texts), add_special_tokens=False)
        return (
            np.frombuffer(ids, np.uint32).astype(np.int32),
            np.frombuffer(starts, np.uint64).astype(np.int64),
        )

    def _agrees(self, texts: Sequence[str], ids: Any, starts: Any, step: int) -> bool:
        chosen = range(0, len(texts), step)
        expected = self.backend.encode_batch_fast(
            [texts[at] for at in chosen], add_special_tokens=False
        )
        return all(
            ids[starts[at] : starts[at + 1]].tolist() == encoding.ids
            for at, encoding in zip(chosen, expected, strict=True)
        )


def spell(backend: Any) -> list[bytes]:
    """The bytes of each token, by id, of a byte-level vocabulary.

    A byte that prints in Latin-1 is written as that letter, the others as the letters from U+0100
    on: https://github.com/openai/gpt-2/blob/master/src/encoder.py.

    Raises:
        ValueError: a token is not of such letters.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    printed = [ord(letter) for letter in letters if ord(letter) < 256]
    others = sorted(set(range(256)) - set(printed))
    byte_of = dict(zip(letters, [*printed, *others], strict=True))
    added = {id: token.content for id, token in backend.get_added_tokens_decoder().items()}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    spellings = [b""] * (max(vocabulary.values()) + 1)
    for token, id in vocabulary.items():
        if id in added:
            spelling = added[id].encode()
        elif byte_of.keys() >= set(token):
            spelling = bytes(map(byte_of.__getitem__, token))
        else:
            raise ValueError(f"{token!r} is no token of bytes")
        spellings[id] = spelling
    return spellings
