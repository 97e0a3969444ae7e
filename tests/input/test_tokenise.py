"""Word ids: literal encodings, the end token always there, JSON round trip."""

import json

import pytest

from wallwm_jax.input.tokenise import WordTokeniser, words

CAPTIONS = ["Push the block.", "reach the drawer"]


def test_words():
    assert words("Push the block, 5 cm!") == ["push", "the", "block", ",", "5", "cm", "!"]
    assert words("  ") == []


def test_encoding_pads_cuts_and_keeps_the_end():
    tokeniser = WordTokeniser.fit(CAPTIONS)
    # <pad> <end> <unk> . block drawer push reach the
    assert tokeniser.vocabulary[3:] == [".", "block", "drawer", "push", "reach", "the"]
    assert len(tokeniser) == 9
    ids, mask = tokeniser.encode("push the drawer", 6)
    assert ids.tolist() == [6, 8, 5, 1, 0, 0] and mask.tolist() == [True] * 4 + [False] * 2
    ids, mask = tokeniser.encode("push the drawer", 3)
    assert ids.tolist() == [6, 8, 1] and mask.all()
    ids, mask = tokeniser.encode("", 3)
    assert ids.tolist() == [1, 0, 0] and mask.tolist() == [True, False, False]
    ids, _ = tokeniser.encode("kick the drawer", 4)
    assert ids.tolist() == [2, 8, 5, 1]
    with pytest.raises(ValueError, match="text length is 0"):
        tokeniser.encode("push", 0)


def test_decoding_and_json():
    tokeniser = WordTokeniser.fit(CAPTIONS)
    back = WordTokeniser.from_json(json.loads(json.dumps(tokeniser.to_json())))
    for text in ("push the block .", "reach the drawer", ""):
        assert back.decode(tokeniser.encode(text, 8)[0]) == text


def test_order_of_captions_is_irrelevant():
    assert WordTokeniser.fit(CAPTIONS[::-1]).vocabulary == WordTokeniser.fit(CAPTIONS).vocabulary


@pytest.mark.parametrize("bad", [[], ["push"], ["<pad>", "<end>", "<unk>", "a", "a"]])
def test_broken_vocabularies_are_refused(bad):
    with pytest.raises(ValueError):
        WordTokeniser(bad)
