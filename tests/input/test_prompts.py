"""Sentence pieces: both routes agree, the end token is always there, bad folders are one line."""

import copy
import html
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, models, pre_tokenizers

from wallwm_jax.errors import UserError
from wallwm_jax.input.prompts import PieceTokeniser, TokeniserError, clean

CAPTIONS = ["pick up the red block & put it in the drawer", "open the drawer", "机器人 打开 抽屉"]


def train(byte_fallback, **ids):
    """A unigram model with T5's special tokens."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20),
        model_writer=model,
        vocab_size=340 if byte_fallback else 80,
        model_type="unigram",
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
        **(dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1) | ids),
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def tokenisers(tmp_path_factory):
    """The same pieces by both routes, and from a model that spells out bytes."""
    folders = [tmp_path_factory.mktemp(name) for name in ("model", "json", "bytes")]
    (folders[0] / "spiece.model").write_bytes(train(False))
    (folders[2] / "spiece.model").write_bytes(train(True))
    processor = SentencePieceProcessor(model_file=str(folders[0] / "spiece.model"))
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(len(processor))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    # Lengths in the file must not reach our ids.
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folders[1] / "tokenizer.json"))
    return [PieceTokeniser.from_folder(folder) for folder in folders]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  open \n\t the\u00a0drawer\u3000", "open the drawer"),
        ("a &amp; b", "a & b"),
        ("a &amp;amp;lt; b", "a &lt; b"),
        ("&nbsp;", ""),
        ("", ""),
        ("naïve 😀", "naïve 😀"),
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected


@settings(max_examples=200, deadline=None)
@given(st.text().map(lambda t: t.replace("\u2581", "_")) | st.sampled_from(CAPTIONS))
def test_both_routes_find_the_same_pieces(tokenisers, text):
    model, from_json, _ = tokenisers
    if any(token in clean(text) for token in ("<pad>", "</s>", "<unk>")):
        return
    for length in (1, 5, 40):
        ids, mask = model.encode(text, length)
        again, same = from_json.encode(text, length)
        np.testing.assert_array_equal(ids, again)
        np.testing.assert_array_equal(mask, same)
        assert ids[mask][-1] == 1 and not ids[~mask].any()


def test_literal_ids(tokenisers):
    for tokeniser in tokenisers:
        ids, mask = tokeniser.encode("", 4)
        assert ids.tolist() == [1, 0, 0, 0] and mask.tolist() == [True, False, False, False]
        ids, mask = tokeniser.encode("open the drawer " * 400)
        assert ids.shape == (512,) and mask.all() and ids[-1] == 1 and ids.dtype == np.int32
        assert 0 < ids.max() < len(tokeniser)
        # One unknown piece for a run of unknown characters, after the space piece.
        assert tokeniser.encode("😀😀", 5)[0].tolist()[1:] == [2, 1, 0, 0]
        with pytest.raises(ValueError, match="text length is 0"):
            tokeniser.encode("open", 0)


def test_batches_and_copies(tokenisers):
    for tokeniser in tokenisers:
        ids, mask = tokeniser.encode_all([*CAPTIONS, ""], 12)
        assert ids.shape == mask.shape == (4, 12)
        worker = copy.deepcopy(tokeniser)  # what loader processes receive
        for row, text in enumerate([*CAPTIONS, ""]):
            np.testing.assert_array_equal(worker.encode(html.escape(text), 12)[0], ids[row])
        assert tokeniser.encode_all([], 12)[0].shape == (0, 12)


def test_folders_that_hold_no_tokeniser(tmp_path):
    def complaint():
        with pytest.raises(TokeniserError) as caught:
            PieceTokeniser.from_folder(tmp_path)
        assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
        return str(caught.value)

    assert "no tokenizer.json and no spiece.model" in complaint()
    (tmp_path / "spiece.model").write_bytes(b"no model")
    assert "spiece.model: is not a T5 tokeniser" in complaint()
    (tmp_path / "spiece.model").write_bytes(train(False, pad_id=3, unk_id=0))
    assert "padding has id 3" in complaint()
    (tmp_path / "spiece.model").write_bytes(train(False, eos_id=-1, unk_id=1))
    assert "no end token" in complaint()
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    assert "tokenizer.json: is not a T5 tokeniser" in complaint()
    Tokenizer(models.Unigram([("x", 0.0)], unk_id=0)).save(str(tmp_path / "tokenizer.json"))
    assert "it has no <pad> and no </s>" in complaint()
