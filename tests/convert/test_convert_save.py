"""Writing: the same tensors again, in one file or many; nothing half-written."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from toy_family import FAMILY, Toy, tensors, write

from wallwm_jax.convert import ConvertError, save, save_pretrained
from wallwm_jax.convert.files import read_config_file
from wallwm_jax.convert.load import load_family
from wallwm_jax.convert.save import save_family

STEM = FAMILY.weights


@pytest.fixture
def loaded(tmp_path):
    folder = write(tmp_path / "toy", tensors())
    return load_family(FAMILY, folder, read_config_file(folder))


def written(folder):
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


@pytest.mark.parametrize("limit", [1, 160, 10**6])
def test_the_tensors_come_back_bit_for_bit(tmp_path, loaded, limit):
    save_family(FAMILY, *loaded, tmp_path / "out", max_shard_bytes=limit)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) == {1: 9, 160: 5, 10**6: 1}[limit]
    back, theirs = written(tmp_path / "out"), tensors()
    assert back.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert back[name].dtype == tensor.dtype
        np.testing.assert_array_equal(back[name], tensor, strict=True)
    with safe_open(tmp_path / "out" / files[0], framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    if limit == 10**6:
        assert files == [f"{STEM}.safetensors"]
    else:
        index = json.loads((tmp_path / "out" / f"{STEM}.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in theirs.values())
        assert set(index["weight_map"].values()) == set(files)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == dict(_class_name="Toy", layers=3, width=6, heads=2, words=6)
    module, params = load_family(FAMILY, tmp_path / "out", config)
    assert module == loaded[0]
    jax.tree.map(np.testing.assert_array_equal, params, loaded[1])


def test_boxed_numpy_and_bfloat16_parameters(tmp_path):
    module = Toy(param_dtype="bfloat16")
    boxed = module.init(jax.random.key(1), jnp.zeros((1, 6)))["params"]
    assert isinstance(boxed["stem"], nn.meta.AxisMetadata)
    save_family(FAMILY, module, boxed, tmp_path / "boxed")
    plain = jax.tree.map(np.asarray, nn.meta.unbox(boxed))
    save_family(FAMILY, module, plain, tmp_path / "plain")
    name = f"{STEM}.safetensors"
    assert (tmp_path / "boxed" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert written(tmp_path / "plain")["stem.weight"].dtype == jnp.bfloat16
    _, back = load_family(
        FAMILY, tmp_path / "plain", read_config_file(tmp_path / "plain"), dtype="bfloat16"
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), back, plain)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: p.pop("gain"), "1 parameters missing: gain"),
        (lambda p: p.update(lora=p["stem"]), "1 parameters too many: lora"),
        (lambda p: p.update(stem=p["stem"].T), r"stem is \[4, 6\] instead of \[6, 4\]"),
        (lambda p: p.update(stem=p["stem"].astype(jnp.int8)), "stem is int8; cast it"),
    ],
)
def test_parameters_of_another_module(tmp_path, loaded, change, expected):
    module, params = loaded
    change(params)
    with pytest.raises(ConvertError, match=f"^params: .*{expected}"):
        save_family(FAMILY, module, params, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def test_what_is_there_is_not_overwritten(tmp_path, loaded):
    with pytest.raises(ConvertError, match="toy: is not empty and is not overwritten"):
        save_family(FAMILY, *loaded, tmp_path / "toy")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConvertError, match="file: is a file and is not overwritten"):
        save_family(FAMILY, *loaded, tmp_path / "file")
    with pytest.raises(ConvertError, match="cannot be written"):
        save_family(FAMILY, *loaded, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save_family(FAMILY, *loaded, tmp_path / "empty")
    assert written(tmp_path / "empty").keys() == tensors().keys()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(tmp_path, loaded, monkeypatch, failure):
    write_file, calls = save.save_file, []

    def fail_second(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise failure
        write_file(*args, **options)

    monkeypatch.setattr(save, "save_file", fail_second)
    with pytest.raises((ConvertError, KeyboardInterrupt)) as caught:
        save_family(FAMILY, *loaded, tmp_path / "out", max_shard_bytes=160)
    if isinstance(failure, OSError):
        assert "out: cannot be written (No space left on device)" in str(caught.value)
    assert len(calls) == 2 and [p.name for p in tmp_path.iterdir()] == ["toy"]


def test_wrong_arguments(tmp_path, loaded):
    with pytest.raises(ValueError, match="Toy belongs to no public family; pass one of WanDiT"):
        save_pretrained(*loaded, tmp_path / "out")
    with pytest.raises(ValueError, match="max_shard_bytes is 0"):
        save_family(FAMILY, *loaded, tmp_path / "out", max_shard_bytes=0)
