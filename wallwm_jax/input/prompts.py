"""Captions to sentence pieces: the front end of umT5, from a local folder.

    "A &amp;amp; B \\n" -> "A & B" -> pieces -> ids + [end] -> padded to one length

It takes `WordTokeniser`'s place by the same `encode`. The pieces are found by
the `tokenizers` library (tokenizer.json) or by SentencePiece itself
(spiece.model); a folder that has both is read as transformers would, from
tokenizer.json. Neither file can run code.
"""

import functools
import html
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from wallwm_jax.errors import UserError
from wallwm_jax.input.tokenise import ended

TEXT_LENGTH = 512
"""Tokens of a caption in Wan (method section 2)."""

PAD, END = "<pad>", "</s>"
JSON, MODEL = "tokenizer.json", "spiece.model"


class TokeniserError(UserError):
    """A folder holds no tokeniser, or one that T5 could not have used; one line."""


def clean(text: str) -> str:
    """A caption as Wan's pipeline hands it on: entities resolved twice, single spaces.

    That pipeline also repairs mis-decoded text with `ftfy` where it is
    installed; this does not, so a caption that needs such repair must be
    repaired before.
    """
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()


class PieceTokeniser:
    """Text -> ids of sentence pieces, the end token appended, padding id 0."""

    def __init__(self, pieces: Callable[[str], list[int]], *, size: int, pad: int, end: int):
        """Wraps a function from clean text to ids; see `from_folder`.

        Raises:
          ValueError: padding is not id 0.
        """
        if pad != 0:
            raise ValueError(f"padding has id {pad}; T5's embedding expects 0")
        self._pieces, self._size, self._end = pieces, size, end

    @classmethod
    def from_folder(cls, folder: Path | str) -> "PieceTokeniser":
        """Opens tokenizer.json, or else spiece.model.

        Raises:
          TokeniserError: neither is there, or it is not readable as such.
        """
        folder = Path(folder)
        found = [folder / name for name in (JSON, MODEL) if (folder / name).is_file()]
        if not found:
            raise TokeniserError(
                f"{folder}: no {JSON} and no {MODEL}; name the folder of the tokeniser (in Wan's "
                "releases: tokenizer, or google/umt5-xxl)"
            )
        try:
            return cls(**(_from_json if found[0].name == JSON else _from_model)(found[0]))
        except Exception as error:  # `tokenizers` raises bare Exception
            raise TokeniserError(
                f"{found[0]}: is not a T5 tokeniser ({' '.join(str(error).split())}); copy it again"
            ) from error

    def __len__(self) -> int:
        """Number of pieces; a text encoder's vocabulary is at least this."""
        return self._size

    def encode(
        self, text: str, length: int = TEXT_LENGTH
    ) -> tuple[Int32[np.ndarray, "length"], Bool[np.ndarray, "length"]]:
        """Ids and mask, padded or cut to `length`; the end token is always kept.

        An empty text is [end, pad, pad, ...]: attention always has one key.

        Raises:
          ValueError: on a length below 1.
        """
        return ended(self._pieces(clean(text)), self._end, length)

    def encode_all(
        self, texts: Sequence[str], length: int = TEXT_LENGTH
    ) -> tuple[Int32[np.ndarray, "B length"], Bool[np.ndarray, "B length"]]:
        """`encode` of several captions, row by row."""
        rows = [self.encode(text, length) for text in texts]
        if not rows:
            return np.zeros((0, length), np.int32), np.zeros((0, length), bool)
        ids, masks = zip(*rows, strict=True)
        return np.stack(ids), np.stack(masks)


def _from_json(path: Path) -> dict:
    """The `tokenizers` route."""
    tokenizer = Tokenizer.from_file(str(path))
    # The file may carry lengths of its own; ours come with each call.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = {token: tokenizer.token_to_id(token) for token in (PAD, END)}
    missing = [token for token, i in ids.items() if i is None]
    if missing:
        raise ValueError(f"it has no {' and no '.join(missing)}")
    return dict(
        pieces=functools.partial(_json_pieces, tokenizer),
        size=tokenizer.get_vocab_size(),
        pad=ids[PAD],
        end=ids[END],
    )


def _json_pieces(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _from_model(path: Path) -> dict:
    """The SentencePiece route."""
    processor = SentencePieceProcessor(model_file=str(path))
    if processor.eos_id() < 0:
        raise ValueError("it has no end token")
    size = processor.vocab_size()
    spelled = frozenset(i for i in range(size) if processor.is_byte(i))
    return dict(
        pieces=functools.partial(_model_pieces, processor, spelled),
        size=size,
        pad=processor.pad_id(),
        end=processor.eos_id(),
    )


def _model_pieces(
    processor: SentencePieceProcessor, spelled: frozenset[int], text: str
) -> list[int]:
    """Ids of the pieces, each run of unknown characters being one unknown piece.

    A model may spell unknown characters byte by byte (ids in `spelled`);
    transformers, which Wan's pipeline reads it through, does not and merges
    their run into one. A special token spelled out ("</s>") is plain text here.
    """
    ids: list[int] = []
    for unknown, run in itertools.groupby(processor.encode(text), spelled.__contains__):
        ids += [processor.unk_id()] if unknown else run
    return ids
