"""Token ids beside transformers' T5 tokeniser, read from the same folders."""

import io

import pytest
from diffusers.pipelines.wan import pipeline_wan
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer, T5Tokenizer

from wallwm_jax.input.prompts import PieceTokeniser, clean

CAPTIONS = [
    "pick up the red block & put it in the drawer",
    "the arm moves left, then right; 3.5 cm!",
    "机器人 打开 抽屉",
    "ロボットが箱を押す",
    "Die Katze sitzt auf dem Tisch",
]
TEXTS = [
    *CAPTIONS,
    "",
    "  open \n\t the   drawer ",
    "&amp;lt;b&amp;gt; block &amp; drawer",
    "😀😀 block",
    "e\u0301 é ﬁ Ａ",
    "\u200b\u200d arm\u00a0x \ufeff",
    "\x00\x07 arm",
    "🏳️‍🌈 عربى हिन्दी",
    "the drawer " * 300,
    "a" * 700,
    "block\u3000arm\u2028left\u0085right",
]


@pytest.fixture(scope="module", params=["identity", "nmt_nfkc", "bytes"])
def folder(request, tmp_path_factory):
    """spiece.model of a small unigram model, and transformers' tokenizer.json made from it."""
    model = io.BytesIO()
    in_bytes = request.param == "bytes"
    SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20),
        model_writer=model,
        vocab_size=400 if in_bytes else 140,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=in_bytes,
        hard_vocab_limit=False,
        normalization_rule_name="identity" if in_bytes else request.param,
        num_threads=1,
        minloglevel=2,
    )
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "spiece.model").write_bytes(model.getvalue())
    T5Tokenizer.from_pretrained(folder).save_pretrained(folder / "json")
    return folder


@pytest.mark.parametrize("length", [1, 6, 512])
@pytest.mark.parametrize("route", ["spiece.model", "tokenizer.json"])
def test_ids_are_theirs(folder, route, length):
    here = folder if route == "spiece.model" else folder / "json"
    assert (here / route).is_file()
    theirs = AutoTokenizer.from_pretrained(folder / "json")(
        [pipeline_wan.prompt_clean(text) for text in TEXTS],
        padding="max_length",
        max_length=length,
        truncation=True,
        return_attention_mask=True,
    )
    ids, mask = PieceTokeniser.from_folder(here).encode_all(TEXTS, length)
    for text, ours, theirs_row in zip(TEXTS, ids.tolist(), theirs["input_ids"], strict=True):
        assert ours == theirs_row, text
    assert mask.astype(int).tolist() == theirs["attention_mask"]


@pytest.mark.skipif(pipeline_wan.is_ftfy_available(), reason="their cleaning also repairs text")
def test_cleaning_is_theirs():
    for text in TEXTS:
        assert clean(text) == pipeline_wan.prompt_clean(text)


def test_special_tokens_spelled_out_are_special_where_the_file_says_so(folder):
    theirs = AutoTokenizer.from_pretrained(folder / "json")
    ids, _ = PieceTokeniser.from_folder(folder / "json").encode("block </s> arm", 16)
    assert (
        ids.tolist() == theirs("block </s> arm", padding="max_length", max_length=16)["input_ids"]
    )
