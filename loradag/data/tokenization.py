"""From text to token ids, with a mask of the tokens that the assistant has written.

A tokenization keeps no more of a tokenizer than its backend: it goes to other processes, which need
not import torch.
"""

import copy
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from loradag.config.problems import LoradagError
from loradag.data.byte_tokens import ByteTokens, Tokens

if TYPE_CHECKING:
    import numpy as np

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """A row as text.

    Attributes:
        text: of the full row.
        spans: ranges of characters that the assistant has written, its end of turn included.
        literals: ranges that look like special tokens, but are the texts of a row.
    """

    text: str
    spans: list[Span]
    literals: list[Span]

    @property
    def prompt(self) -> str:
        """The text up to the last turn of the assistant."""
        return self.text[: self.spans[-1][0]]


@dataclass(frozen=True)
class Encoded:
    """A row as tokens.

    Attributes:
        input_ids: (tokens,), with BOS and EOS.
        completion_mask: 1 where a token belongs to the assistant's last turn or is its EOS.
        assistant_mask: 1 where a token belongs to any turn of the assistant or is the EOS.
        token_bytes: UTF-8 bytes of the text that each token covers; their sum is the text's.
    """

    input_ids: "np.ndarray[Any, Any]"
    completion_mask: "np.ndarray[Any, Any]"
    assistant_mask: "np.ndarray[Any, Any]"
    token_bytes: "np.ndarray[Any, Any]"

    def cut(self, length: int) -> "Encoded":
        return Encoded(*(getattr(self, name)[:length] for name in self.__dataclass_fields__))


class Tokenization:
    """Turns rendered rows into tokens.

    Args:
        many: that there are so many rows that loading a faster implementation is worth its time;
            it makes the same tokens.

    Raises:
        LoradagError: the tokenizer is no fast one.
    """

    def __init__(self, tokenizer: Any, many: bool = False) -> None:
        self.backend = _unbounded(tokenizer)
        self.bos, self.eos_id = tokenizer.bos_token, tokenizer.eos_token_id
        self.special_ids = set(map(self.backend.token_to_id, special_tokens(tokenizer)))
        self.before, self.after = _added_ids(self.backend)
        self.many = many

    def encode(self, rows: Sequence[Rendered]) -> Iterator[Encoded]:
        """The tokens of each row, its text tokenized in one piece as a runtime would.

        A token that reaches into a turn of the assistant belongs to it. A row ends with one EOS,
        which belongs to the assistant.
        """
        for row, (ids, offsets) in zip(rows, self._tokens(rows), strict=True):
            yield self._encoded(row, ids, offsets)

    def _tokens(self, rows: Sequence[Rendered]) -> list[Tokens]:
        """Ids (tokens,) and begin and end (tokens, 2) of each row, without added BOS and EOS."""
        import numpy as np

        texts = [row.text for row in rows]
        if self.byte_tokens and (found := self.byte_tokens.encode(texts)) is not None:
            return found
        encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        return [
            (np.asarray(one.ids, np.int32), np.asarray(one.offsets, np.int64).reshape(-1, 2))
            for one in encodings
        ]

    @cached_property
    def byte_tokens(self) -> ByteTokens | None:
        """Made in the process that uses it."""
        try:
            return ByteTokens(self.backend) if self.many else None
        except ValueError:
            return None

    def _opens_with_bos(self, row: Rendered) -> bool:
        literal = bool(row.literals) and row.literals[0][0] == 0
        return self.bos is not None and row.text.startswith(self.bos) and not literal

    def _encoded(
        self, row: Rendered, ids: "np.ndarray[Any, Any]", offsets: "np.ndarray[Any, Any]"
    ) -> Encoded:
        import numpy as np

        if row.literals:
            ids, offsets = self._without_control(row, ids, offsets)
        before, after = ([], []) if self._opens_with_bos(row) else (self.before, self.after)
        if [*ids[-1:], *after][-1:] != [self.eos_id]:
            after = [*after, self.eos_id]
        if before or after:
            ids = np.concatenate([before, ids, after]).astype(np.int32)
            offsets = np.pad(offsets, ((len(before), len(after)), (0, 0)))
        begins, ends = offsets[:, 0], offsets[:, 1]
        covers = ends > begins
        assistant = np.zeros(len(ids), np.int8)
        for begin, end in row.spans:
            assistant |= (ends > begin) & (begins < end) & covers
        completion = ((ends > row.spans[-1][0]) & covers).astype(np.int8)
        assistant[-1] = completion[-1] = 1
        return Encoded(ids, completion, assistant, _bytes(row.text, ends))

    def _without_control(
        self, row: Rendered, ids: "np.ndarray[Any, Any]", offsets: "np.ndarray[Any, Any]"
    ) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
        """Control tokens within the row's own texts, replaced by the tokens of their letters.

        One may cover the spaces around it, too, as those of Phi 3 do.
        """
        import numpy as np

        literals = [*row.literals, (len(row.text) + 1, 0)]
        kept_ids: list[int] = []
        kept_offsets: list[list[int]] = []
        for id, (begin, end) in zip(ids.tolist(), offsets.tolist(), strict=True):
            literal = literals[bisect_left(literals, (begin, 0))]
            if id in self.special_ids and literal[0] < end:
                for first, last in pairwise((begin, *literal, end)):
                    spelled = self._spell(row.text[first:last]) if first < last else []
                    kept_ids += spelled
                    kept_offsets += [[first, last]] * len(spelled)
            else:
                kept_ids.append(id)
                kept_offsets.append([begin, end])
        return np.asarray(kept_ids, np.int32), np.asarray(kept_offsets, np.int64)

    def _spell(self, token: str) -> list[int]:
        """A special token's letters, or the spaces it covers, as in the middle of a text."""
        self.backend.encode_special_tokens = True
        try:
            before, both = (
                self.backend.encode(text, add_special_tokens=False).ids
                for text in (":", f":{token}")
            )
            is_prefix = both[: len(before)] == before
            alone: list[int] = self.backend.encode(token, add_special_tokens=False).ids
            return both[len(before) :] if is_prefix else alone
        finally:
            self.backend.encode_special_tokens = False


def encode_row(text: str, prompt: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of a row's text, and its completion mask: a row as `prepare` encodes it."""
    rendered = Rendered(text, [(len(prompt), len(text))], [])
    encoded = next(Tokenization(tokenizer).encode([rendered]))
    return encoded.input_ids.tolist(), encoded.completion_mask.tolist()


def special_tokens(tokenizer: Any) -> list[str]:
    """The control tokens of a tokenizer: those that no text should spell."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _unbounded(tokenizer: Any) -> Any:
    """A copy of the tokenizer's backend that neither truncates nor pads."""
    if not getattr(tokenizer, "is_fast", False):
        raise LoradagError(
            "the model has no fast tokenizer, whose offsets the masks are made of. Convert it to a "
            "tokenizer.json with transformers' AutoTokenizer."
        )
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    _keep_spaces(backend.post_processor)
    return backend


def _keep_spaces(post_processor: Any) -> None:
    """Let tokens cover their spaces: of one that is nothing else, no letter would be left."""
    from tokenizers.processors import ByteLevel, Sequence

    if isinstance(post_processor, Sequence):
        for step in post_processor:  # type: ignore[attr-defined]
            _keep_spaces(step)
    elif isinstance(post_processor, ByteLevel):
        post_processor.trim_offsets = False


def _added_ids(backend: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer adds before and after a text."""
    encoding = backend.encode("a")
    added = encoding.special_tokens_mask
    first, last = added.index(0), len(added) - added[::-1].index(0)
    return encoding.ids[:first], encoding.ids[last:]


def _bytes(text: str, ends: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """UTF-8 bytes that each token adds to the text that the tokens before it cover."""
    import numpy as np

    reached = np.maximum.accumulate(ends)
    if not text.isascii():
        sizes = np.fromiter((len(c.encode()) for c in text), np.int32, len(text))
        reached = np.concatenate([[0], np.cumsum(sizes)])[reached]
    covered = reached.astype(np.int32)
    covered[1:] -= covered[:-1].copy()
    return covered
