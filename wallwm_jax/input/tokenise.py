"""Captions to word ids.

The embedded text encoder reads words, not sentence pieces: the captions of one
dataset use few of them, and a table of words needs no download. An encoder
with its own tokeniser (umT5) takes this one's place by the same `encode`.
"""

import re
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
SPECIAL = (PAD, END, UNKNOWN)


@runtime_checkable
class Tokeniser(Protocol):
    """Captions to ids: `WordTokeniser`, or `prompts.PieceTokeniser`."""

    def __len__(self) -> int: ...

    def encode(
        self, text: str, length: int
    ) -> tuple[Int32[np.ndarray, "length"], Bool[np.ndarray, "length"]]:
        """Ids and mask, padded or cut to `length`."""
        ...


def words(text: str) -> list[str]:
    """Lower-case words and punctuation marks of a caption."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def ended(
    found: list[int], end: int, length: int
) -> tuple[Int32[np.ndarray, "length"], Bool[np.ndarray, "length"]]:
    """Ids with their end token, padded with 0 or cut to `length`, and the mask.

    Raises:
      ValueError: on a length below 1.
    """
    if length < 1:
        raise ValueError(f"text length is {length}; the end token alone needs 1")
    kept = [*found[: length - 1], end]
    ids = np.zeros(length, np.int32)
    ids[: len(kept)] = kept
    return ids, np.arange(length) < len(kept)


class WordTokeniser:
    """Word <-> id, ids 0, 1, 2 being padding, end and unknown."""

    def __init__(self, vocabulary: list[str]):
        """Takes the whole vocabulary, special tokens first.

        Raises:
          ValueError: special tokens missing or words repeated.
        """
        if tuple(vocabulary[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"a vocabulary starts with {SPECIAL}, got {vocabulary[:3]}")
        self.vocabulary = list(vocabulary)
        self._ids = {word: i for i, word in enumerate(vocabulary)}
        if len(self._ids) != len(vocabulary):
            raise ValueError("the vocabulary repeats a word; rebuild it with WordTokeniser.fit")

    @classmethod
    def fit(cls, captions: Iterable[str]) -> "WordTokeniser":
        """Vocabulary of all words seen, sorted so that order of data is irrelevant."""
        return cls([*SPECIAL, *sorted({w for text in captions for w in words(text)})])

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(
        self, text: str, length: int
    ) -> tuple[Int32[np.ndarray, "length"], Bool[np.ndarray, "length"]]:
        """Ids and mask, padded or cut to `length`; the end token is always kept.

        An empty text is [end, pad, pad, ...]: attention always has one key.

        Raises:
          ValueError: on a length below 1.
        """
        found = [self._ids.get(w, self._ids[UNKNOWN]) for w in words(text)]
        return ended(found, self._ids[END], length)

    def decode(self, ids: Int32[np.ndarray, "length"]) -> str:
        """Words up to the end token, joined by spaces."""
        found = []
        for i in ids.tolist():
            if self.vocabulary[i] == END:
                break
            found.append(self.vocabulary[i])
        return " ".join(found)

    def to_json(self) -> dict:
        """A plain dict for the checkpoint."""
        return {"vocabulary": self.vocabulary}

    @classmethod
    def from_json(cls, value: dict) -> "WordTokeniser":
        """Inverse of `to_json`; raises as the constructor."""
        return cls(value["vocabulary"])
