"""Orbax and back: the same module, the same bits; the entry point as a person meets it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.convert import (
    ConvertError,
    load_converted,
    load_pretrained,
    save_converted,
    save_pretrained,
)
from wallwm_jax.models.umt5 import UMT5Config, UMT5Encoder

ROOT = Path(__file__).parents[2]
SIZES = dict(vocabulary=20, width=8, heads=2, head_dim=3, layers=2, ffn=12, eps=1e-5)


def encoder(dtype="float32", **more):
    return UMT5Encoder(UMT5Config(**SIZES, dtype=dtype, param_dtype=dtype, **more))


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A public folder of a tiny text encoder."""
    module = encoder()
    ids = jnp.zeros((1, 4), jnp.int32)
    params = module.init(jax.random.key(0), ids, ids)["params"]
    folder = tmp_path_factory.mktemp("public") / "text_encoder"
    save_pretrained(module, params, folder)
    return folder


def same(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_converted_model_comes_back_bit_for_bit(public, tmp_path, dtype):
    module, params = load_pretrained(public, dtype=dtype)
    assert module == encoder(dtype)
    save_converted(module, params, tmp_path / "ours")
    back, again = load_converted(tmp_path / "ours")
    assert back == module
    same(again, params)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    same(load_converted(tmp_path / "ours", shardings=here)[1], params)


def test_settings_that_the_public_config_does_not_hold(public, tmp_path):
    _, params = load_pretrained(public)
    with pytest.raises(ValueError, match="settings that a UMT5EncoderModel config does not hold"):
        save_converted(encoder(residual_scale=0.1), params, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def damage_page(folder):
    page = json.loads((folder / "model.json").read_text())
    page["config"]["d_ff"] += 1
    (folder / "model.json").write_text(json.dumps(page))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (shutil.rmtree, "model.json: missing; make the folder with"),
        (lambda f: (f / "model.json").write_text("{}"), "does not describe a converted model"),
        (lambda f: (f / "model.json").write_text("{"), "model.json: cannot be read"),
        (lambda f: shutil.rmtree(f / "params"), "params: cannot be read"),
        (lambda f: (f / "params" / "manifest.ocdbt").unlink(), "params: cannot be read"),
        (damage_page, "params: cannot be read"),
    ],
)
def test_a_damaged_folder_is_one_line(public, tmp_path, damage, expected):
    save_converted(*load_pretrained(public), tmp_path / "ours")
    damage(tmp_path / "ours")
    with pytest.raises(ConvertError, match=expected) as caught:
        load_converted(tmp_path / "ours")
    assert "\n" not in str(caught.value)


def run(*options):
    return subprocess.run(
        [sys.executable, "-m", "experiments.convert", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_there_and_back_by_the_entry_point(public, tmp_path):
    done = run(f"--src={public}", f"--dst={tmp_path / 'ours'}", "--dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    params = load_pretrained(public, dtype="bfloat16")[1]
    count = sum(x.size for x in jax.tree.leaves(params))
    assert lines[-1] == f"UMT5EncoderModel: {count:,} parameters in 22 tensors"
    rows = {line.split("  ")[0].strip(): line for line in lines[1:-1]}
    assert len(rows) == len(jax.tree.leaves(params))
    row = rows["layers/gate/kernel"].split()
    assert row == [
        "layers/gate/kernel",
        "encoder.block.{0..1}.layer.1.DenseReluDense.wi_0.weight",
        "[2,",
        "8,",
        "12]",
        "bfloat16",
    ]
    assert rows["layers/position_bias"].split()[-1] == "float32"
    same(load_converted(tmp_path / "ours")[1], params)
    done = run(f"--src={tmp_path / 'ours'}", f"--dst={tmp_path / 'theirs'}", "--to=diffusers")
    assert done.returncode == 0, done.stderr
    same(load_pretrained(tmp_path / "theirs", dtype="bfloat16")[1], params)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--src={none}", "--dst={new}"], "no such folder"),
        (["--src={public}", "--dst={public}"], "is not empty and is not overwritten"),
        (["--src={public}"], "name both folders"),
        (["--src={public}", "--dst={new}", "--dtype=int8"], "--dtype=int8"),
        (["--scr={public}"], "Unknown command line flag 'scr'"),
        (["--src={public}", "--dst={new}", "--to=diffusers"], "model.json: missing"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(public, tmp_path, options, expected):
    folders = dict(none=tmp_path / "none", new=tmp_path / "new", public=public)
    done = run(*(option.format(**folders) for option in options))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and expected in errors[0]
    assert "Traceback" not in done.stderr and not done.stdout
    assert not list(tmp_path.iterdir())


def test_plain_dicts(public):
    _, params = load_pretrained(public)
    assert not any(
        isinstance(x, nn.meta.AxisMetadata)
        for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))
    )
    assert type(params) is dict and type(params["layers"]) is dict
