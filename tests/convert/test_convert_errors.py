"""Everything that can be wrong with a folder: one line that names file and key.

Each mistake is found from the headers: `Weights` may not read a tensor.
"""

import json
import re
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toy_family import FAMILY, tensors, write

from wallwm_jax.convert import ConvertError, load_pretrained
from wallwm_jax.convert.files import Weights, read_config_file
from wallwm_jax.convert.load import load_family

STEM = FAMILY.weights
INDEX = f"{STEM}.safetensors.index.json"


def edit(change):
    """A mistake in the tensors of a single file."""

    def apply(folder):
        content = load_file(folder / f"{STEM}.safetensors")
        change(content)
        save_file(content, folder / f"{STEM}.safetensors")

    return apply


def config(**values):
    """A mistake in config.json."""

    def apply(folder):
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | values))

    return apply


def cut(name, length):
    """A file that was not copied to its end."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def replace(name, text):
    """Other content in a file."""
    return lambda folder: (folder / name).write_text(text)


def only(*names):
    """Other files in place of the weights."""

    def apply(folder):
        (folder / f"{STEM}.safetensors").unlink()
        for name in names:
            (folder / name).write_bytes(b"anything")

    return apply


def lying_header(folder):
    """A header that promises more than the file holds."""
    header = json.dumps(
        {"stem.weight": {"dtype": "F32", "shape": [4, 6], "data_offsets": [0, 10**12]}}
    ).encode()
    (folder / f"{STEM}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


SINGLE = {
    "extra tensor": (
        edit(lambda t: t.update({"lora.weight": t["stem.weight"]})),
        "1 tensors too many: lora.weight",
    ),
    "missing tensor": (edit(lambda t: t.pop("blocks.1.gain")), "1 tensors missing: blocks.1.gain"),
    "wrong shape": (
        edit(lambda t: t.update({"stem.weight": t["stem.weight"].T.copy()})),
        r"1 tensors of wrong shape: stem.weight is \[6, 4\] instead of \[4, 6\]",
    ),
    "one layer more": (
        config(layers=4),
        "2 tensors missing: blocks.3.q.weight, blocks.3.gain; do config.json",
    ),
    "one layer less": (config(layers=2), "2 tensors too many: blocks.2.gain, blocks.2.q.weight"),
    "many at once": (
        edit(lambda t: [t.pop(n) for n in list(t)[:8]] and t.update(a=np.zeros(2, np.float32))),
        "tensors missing: .* and 5 more; 1 tensors too many: a;",
    ),
    "integers": (
        edit(lambda t: t.update({"stem.weight": t["stem.weight"].astype(np.int8)})),
        "stem.weight holds I8 .*quantised",
    ),
    "truncated": (cut(f"{STEM}.safetensors", -7), "not a whole safetensors file .*download"),
    "only a header's start": (cut(f"{STEM}.safetensors", 30), "not a whole safetensors file"),
    "empty": (cut(f"{STEM}.safetensors", 0), "not a whole safetensors file"),
    "an LFS pointer": (
        replace(f"{STEM}.safetensors", "version https://git-lfs\noid sha256:0\n"),
        "not a whole safetensors file",
    ),
    "a lying header": (lying_header, "not a whole safetensors file"),
    "no weights": (only(), f"no {STEM}.safetensors and no {INDEX} .*it has no safetensors"),
    "other weights": (only("adapter.safetensors"), "it has adapter.safetensors"),
    "pickle": (only("pytorch_model.bin"), "pytorch_model.bin: is a pickle.*refused.*safetensors"),
    "checkpoint": (only("wan.pth"), "wan.pth: is a pickle"),
    "variant": (only(f"{STEM}.fp16.safetensors"), f"only the variant {STEM}.fp16.safetensors"),
    "shards without index": (
        only(f"{STEM}-00001-of-00002.safetensors"),
        f"but no {INDEX}; copy the index",
    ),
    "two sets": (replace(INDEX, "{}"), "holds both"),
    "config missing": (lambda f: (f / "config.json").unlink(), "config.json: missing"),
    "config no JSON": (replace("config.json", "{'a': 1}"), "config.json: cannot be read"),
    "config no object": (replace("config.json", "[1]"), "a JSON list, not an object"),
    "config binary": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
        "config.json: cannot be read",
    ),
    "unsupported value": (config(style="fancy"), "config.json: style is 'fancy'; only 'plain'"),
    "text for a size": (config(width="wide"), "its values make no Toy .*copy the original"),
    "zero heads": (config(heads=0), "its values make no Toy"),
    "unknown key": (config(depth=3), "its values make no Toy .*depth"),
}


@pytest.fixture
def no_data(monkeypatch):
    def refuse(self, name):
        raise AssertionError(f"{name} was read before everything was checked")

    monkeypatch.setattr(Weights, "read", refuse)
    monkeypatch.setattr(Weights, "parts", refuse)


def complaint(folder, load=None):
    with pytest.raises(ConvertError) as caught:
        load(folder) if load else load_family(FAMILY, folder, read_config_file(folder))
    text = str(caught.value)
    assert "\n" not in text and str(folder) in text and len(text) < 600
    return text


@pytest.mark.parametrize("mistake", SINGLE)
def test_one_file(tmp_path, no_data, mistake):
    change, expected = SINGLE[mistake]
    change(write(tmp_path / "toy", tensors()))
    assert re.search(expected, complaint(tmp_path / "toy"))


def edit_index(change):
    def apply(folder):
        content = json.loads((folder / INDEX).read_text())
        change(content["weight_map"])
        (folder / INDEX).write_text(json.dumps(content))

    return apply


SHARD = f"{STEM}-00002-of-00003.safetensors"
SHARDED = {
    "missing shard": (lambda f: (f / SHARD).unlink(), f"names {SHARD}, which is not there"),
    "truncated shard": (cut(SHARD, -1), f"{SHARD}: is not a whole"),
    "a tensor its shard lacks": (
        edit_index(lambda places: places.update(new=SHARD)),
        f"{SHARD}: lacks new",
    ),
    "a tensor not in the index": (
        edit_index(lambda places: places.pop(next(n for n, f in places.items() if f == SHARD))),
        f"{SHARD}: holds .* index does not place",
    ),
    "a shard outside": (
        edit_index(lambda places: places.update(new="../secret.safetensors")),
        "places new in '../secret.safetensors'",
    ),
    "a stray shard": (
        lambda f: (f / f"{STEM}-00009-of-00009.safetensors").write_bytes(b""),
        "does not name .*00009-of-00009",
    ),
    "no map": (replace(INDEX, '{"metadata": {}}'), "has no weight_map"),
    "index no JSON": (cut(INDEX, 20), "index.json: cannot be read"),
}


@pytest.mark.parametrize("mistake", SHARDED)
def test_shards(tmp_path, no_data, mistake):
    change, expected = SHARDED[mistake]
    change(write(tmp_path / "toy", tensors(), shards=3))
    assert re.search(expected, complaint(tmp_path / "toy"))


def test_folder_and_family(tmp_path):
    assert "no such folder" in complaint(tmp_path / "none", load_pretrained)
    (tmp_path / "file").write_text("")
    assert "is a file" in complaint(tmp_path / "file", load_pretrained)
    folder = write(tmp_path / "toy", tensors())
    assert "'Toy', which is not implemented; known are Wan" in complaint(folder, load_pretrained)
    (folder / "config.json").write_text('{"architectures": ["UMT5Model"]}')
    assert "'UMT5Model', which is not implemented" in complaint(folder, load_pretrained)
    (folder / "config.json").write_text('{"architectures": [], "d_model": 3}')
    assert "neither _class_name nor architectures" in complaint(folder, load_pretrained)
    (folder / "config.json").unlink()
    (folder / "model_index.json").write_text("{}")
    assert "is a whole pipeline" in complaint(folder, load_pretrained)


def test_a_file_that_fails_while_it_is_read(tmp_path, monkeypatch):
    folder = write(tmp_path / "toy", tensors())
    with Weights({folder / f"{STEM}.safetensors": None}) as weights:
        (folder / f"{STEM}.safetensors").write_bytes(b"")  # cut short by another program
        with pytest.raises(ConvertError, match="stem.weight cannot be read"):
            weights.read("stem.weight")


UMT5 = dict(vocab_size=9, d_model=4, num_heads=1, d_kv=2, num_layers=1, d_ff=3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (dict(feed_forward_proj="relu"), "feed_forward_proj is 'relu'; only 'gated-gelu'"),
        (dict(dense_act_fn="silu"), "dense_act_fn is 'silu'"),
        (dict(is_decoder=True), "is_decoder is True"),
        (dict(quantization_config={}), "has the key 'quantization_config'"),
        (dict(d_kv=None), "d_kv is None; it must be a positive number"),
        (dict(num_layers=0), "num_layers is 0"),
        (dict(num_heads=2.0), "num_heads is 2.0"),
        (dict(d_ff="3"), "d_ff is '3'"),
        (dict(relative_attention_num_buckets=2), "its values make no UMT5EncoderModel"),
        (dict(d_model=...), "config.json: d_model missing"),
    ],
)
def test_umt5_configs(tmp_path, change, expected):
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    page = {"architectures": ["UMT5EncoderModel"], **UMT5, **change}
    page = {key: value for key, value in page.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(page))
    assert expected in complaint(tmp_path, load_pretrained)
