"""Damage, failure and disagreement of checkpoints: never silent, and the last whole step survives."""

import functools
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_state import META, copied, files_of, toy_state, write_steps

from wallwm_jax.errors import UserError
from wallwm_jax.train import checkpoint, saved
from wallwm_jax.train.array_sums import describe
from wallwm_jax.train.checkpoint import Checkpoints
from wallwm_jax.train.retention import KeepVerified
from wallwm_jax.train.saved import latest_step, read_meta, read_params
from wallwm_jax.train.seal import (
    COMMIT_FILE,
    SEAL,
    CheckpointError,
    DamagedError,
    damage,
    folder_of,
    write_seal,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Steps 2 and 4; do not damage them."""
    return write_steps(tmp_path_factory.mktemp("written") / "checkpoints", 2, 4)


def restore(folder, like=None, meta=META, **options):
    with Checkpoints(folder, every=1) as checkpoints:
        return checkpoints.restore(like or toy_state(0), meta, **options)


def equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def one_line(error):
    assert isinstance(error, UserError) and "\n" not in str(error)
    return str(error)


def test_what_was_saved_comes_back_and_its_seal_covers_every_file(written):
    page = json.loads((written / "4" / SEAL).read_text())
    assert sorted([*page["files"], SEAL]) == files_of(written / "4")
    restored = restore(written)
    assert (restored.step, restored.data, restored.meta) == (4, {"batch": 4}, META)
    equal(restored.state, toy_state(4))
    assert latest_step(written) == 4 and read_meta(written, 2) == META
    equal(read_params(written, 4), toy_state(4).frozen | toy_state(4).ema)
    equal(read_params(written, 4, average=False), toy_state(4).frozen | toy_state(4).params)


def test_what_latest_step_has_just_compared_is_not_read_twice(written, monkeypatch):
    step = latest_step(written)
    whole = read_meta(written, step), read_params(written, step)
    monkeypatch.setattr(saved, "refuse_damage", lambda *args: pytest.fail("read again"))
    equal((read_meta(written, step, verify=False), read_params(written, step, verify=False)), whole)


def test_every_flip_truncation_and_deletion_is_named(written, tmp_path):
    """R5: 200 flipped bits, 50 truncations, the deletion of each file."""
    step, rng = copied(written / "4", tmp_path / "4"), np.random.default_rng(0)
    names = files_of(Path(step))
    assert damage(step) == []
    sizes = np.array([(step / name).stat().length for name in names])
    for trial in range(250 + len(names)):
        # By size, as a disk would choose; then each file as often, small ones too.
        weights = sizes / sizes.sum() if trial % 2 else None
        name = names[trial - 250] if trial >= 250 else str(rng.choice(names, p=weights))
        whole = (step / name).read_bytes()
        if trial < 200:
            harmed = bytearray(whole)
            harmed[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            (step / name).write_bytes(bytes(harmed))
        elif trial < 250:
            (step / name).write_bytes(whole[: rng.integers(len(whole))])
        else:
            (step / name).unlink()
        (line,) = damage(step)
        assert line.startswith(name), (trial, name, line)
        (step / name).write_bytes(whole)
    assert damage(step) == []


HARMS = {
    "a flipped bit": lambda step: flip(largest(step)),
    "a truncated file": lambda step: largest(step).write_bytes(b"x"),
    "a file that is gone": lambda step: (step / "meta" / "metadata").unlink(),
    "half copied": lambda step: [p.unlink() for p in list(step.rglob("*"))[::2] if p.is_file()],
    "an empty folder": lambda step: (shutil.rmtree(step), step.mkdir()),
}


def largest(step: Path) -> Path:
    return max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_damaged_step_is_passed_over_and_can_be_saved_again(harm, written, tmp_path, caplog):
    folder = Path(copied(written, tmp_path / "checkpoints"))
    harm(folder / "4")
    with caplog.at_level(logging.WARNING, "absl"):
        assert latest_step(folder) == 2
        assert (folder / "4").is_dir()  # a reader moves nothing
        with Checkpoints(folder, every=1) as checkpoints:
            restored = checkpoints.restore(toy_state(0), META)
            assert restored.step == 2
            equal(restored.state, toy_state(2))
            assert checkpoints.save(toy_state(4), {"batch": 4}, META)
    assert (folder / "4.damaged").is_dir() and latest_step(folder) == 4
    told = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert len(told) == 2 and all("\n" not in line for line in told)
    assert str(folder / "4") in told[1] and "step 2" in told[1]


def test_a_step_that_was_asked_for_is_refused(written, tmp_path):
    folder = Path(copied(written, tmp_path / "checkpoints"))
    flip(largest(folder / "4"))
    name = largest(folder / "4").relative_to(folder / "4")
    for ask in (lambda: restore(folder, step=4), lambda: read_params(folder, 4)):
        with pytest.raises(DamagedError, match=str(name)) as caught:
            ask()
        one_line(caught.value)
    flip(folder / "4" / "meta" / "metadata")
    with pytest.raises(DamagedError, match="meta/metadata"):
        read_meta(folder, 4)
    assert restore(folder, step=2).step == 2
    assert (folder / "4").is_dir()


def test_with_no_whole_step_a_run_stops_rather_than_start_anew(written, tmp_path):
    folder = Path(copied(written, tmp_path / "checkpoints"))
    for step in ("2", "4"):
        flip(largest(folder / step))
    for ask in (restore, latest_step):
        with pytest.raises(DamagedError, match=r"4 is damaged.*steps \[2\]") as caught:
            ask(folder)
        one_line(caught.value)
    assert restore(tmp_path / "nothing") is None


def test_damage_between_memory_and_disk_is_seen_by_the_sums(written, tmp_path):
    """Wrong arrays under a seal that fits: another step's state among this one's sums."""
    folder = Path(copied(written, tmp_path / "checkpoints"))
    shutil.rmtree(folder / "4" / "state")
    shutil.copytree(folder / "2" / "state", folder / "4" / "state")
    write_seal(folder_of(folder / "4"), "here")
    (folder / "4" / COMMIT_FILE).write_text("Checkpoint commit was successful to here")
    assert damage(folder_of(folder / "4")) == []
    with pytest.raises(DamagedError, match="kernel has sum .* in memory"):
        read_params(folder, 4)
    assert restore(folder).step == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float16"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 2), (0, 4), (70, 5001)])
def test_sums_are_the_same_on_host_and_device_and_see_each_bit(dtype, shape):
    rng = np.random.default_rng(1)
    x = np.asarray(rng.integers(0, 2, shape) * 3 - rng.integers(0, 2, shape)).astype(dtype)
    (host,), (device,) = (describe({"x": v}).values() for v in (x, jnp.asarray(x)))
    assert host == device
    for index in rng.integers(0, max(x.size, 1), 5 if x.size else 0):
        harmed = x.copy()
        view = harmed.reshape(-1).view(np.uint8)
        view[int(index) * x.itemsize] ^= 1
        assert describe({"x": harmed})["x"]["sum"] != host["sum"]
    if x.size > 2 and len(set(x.reshape(-1)[:2].astype(float))) == 2:
        swapped = x.copy()
        swapped.reshape(-1)[:2] = x.reshape(-1)[1::-1]
        assert describe({"x": swapped})["x"]["sum"] != host["sum"]


def test_what_is_not_finite_is_neither_saved_nor_restored(tmp_path, monkeypatch):
    folder = write_steps(tmp_path / "checkpoints", 2)
    bad = toy_state(4)
    bad.params["video"]["bias"] = bad.params["video"]["bias"].at[3].set(jnp.nan)
    with Checkpoints(folder, every=1) as checkpoints:
        with pytest.raises(CheckpointError, match="step 4 .*params/video/bias") as caught:
            checkpoints.save(bad, {}, META)
        one_line(caught.value)
        monkeypatch.setattr(checkpoint, "not_finite", lambda arrays: [])
        assert checkpoints.save(bad, {}, META)
    assert restore(folder).step == 2


@functools.cache
def big_state(step: int):
    """A state with one file of more than a megabyte."""
    noise = np.random.default_rng(step).integers(0, 1 << 30, 400_000).astype(np.int32)
    return toy_state(step).replace(frozen={"text": {"table": jnp.asarray(noise)}})


def full_disk(full: bool) -> None:
    """Files of this process may grow to half a megabyte, or without limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000 if full else hard, hard))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads
def test_a_full_disk_costs_a_warning_and_the_next_save_works(tmp_path, caplog):
    """R6, ten times; then more failures in a row than are borne."""
    folder = tmp_path / "checkpoints"
    try:
        with caplog.at_level(logging.WARNING, "absl"):
            with Checkpoints(folder, every=1, failures=1) as checkpoints:
                checkpoints.save(big_state(1), {}, META)
                for step in range(2, 22, 2):
                    full_disk(False)
                    checkpoints._join()
                    full_disk(True)
                    assert checkpoints.save(big_state(step), {}, META)
                    checkpoints._join()
                    assert latest_step(folder) == step - 1
                    full_disk(False)
                    assert checkpoints.save(big_state(step + 1), {}, META)
                    left = {p.name for p in folder.glob("*-tmp*")}
                    assert left <= {f"{step + 1}.orbax-checkpoint-tmp"}
            assert sorted(p.name for p in folder.iterdir()) == ["19", "21"]
            told = [r.getMessage() for r in caplog.records if r.name == "absl"]  # not asyncio
            assert len(told) == 10 and all("\n" not in line for line in told)
            assert f"{folder}/20 (" in told[-1] and "step 19 is the last" in told[-1]
            full_disk(True)
            with pytest.raises(CheckpointError, match="2 saves failed in a row: free") as caught:
                with Checkpoints(folder, every=1, failures=1) as checkpoints:
                    for step in (30, 31, 32):
                        checkpoints.save(big_state(step), {}, META)
            one_line(caught.value)
            with pytest.raises(CheckpointError, match="step 30 .*; step 21 is the last .* free"):
                with Checkpoints(folder, every=1) as checkpoints:
                    checkpoints.save(big_state(30), {}, META)
    finally:
        full_disk(False)
    assert latest_step(folder) == 21
    equal(restore(folder, big_state(0)).state, big_state(21))


def test_an_unfinished_folder_is_removed_and_never_a_step(written, tmp_path):
    folder = Path(copied(written, tmp_path / "checkpoints"))
    (folder / "4").rename(folder / "4.orbax-checkpoint-tmp")
    assert latest_step(folder) == 2
    with Checkpoints(folder, every=1) as checkpoints:
        assert checkpoints.restore(toy_state(0), META).step == 2
        assert checkpoints.save(toy_state(4), {"batch": 4}, META)
    assert sorted(p.name for p in folder.iterdir()) == ["2", "4"]


class Info:
    def __init__(self, step):
        self.step = step


def kept(policy, steps):
    found = policy.should_preserve([Info(s) for s in steps], context=None)
    return [s for s, stays in zip(steps, found, strict=True) if stays]


def test_retention_trusts_only_steps_that_were_read_back():
    policy = KeepVerified(keep=2, keep_every=10, whole={4, 8})
    assert kept(policy, [2, 4, 8, 9]) == [8, 9]
    assert kept(policy, [4, 6, 7, 9]) == [4, 6, 7, 9]  # 6 and 7 are not known to be whole
    assert kept(policy, [6, 7, 9]) == [6, 7, 9]
    assert kept(policy, [0, 3, 4, 8, 10, 12]) == [0, 8, 10, 12]
    assert kept(KeepVerified(keep=1, whole={4}), [2, 4, 5]) == [5]


def test_retention_on_disk_keeps_the_last_whole_step(tmp_path):
    folder = write_steps(tmp_path / "checkpoints", 1, 2, 3, 4, 5, keep_every=3)
    assert sorted(p.name for p in folder.iterdir()) == ["3", "4", "5"]
    flip(largest(folder / "5"))
    with Checkpoints(folder, every=1, keep=1) as checkpoints:
        assert checkpoints.restore(toy_state(0), META).step == 4
        assert checkpoints.save(toy_state(6), {}, META)
    assert latest_step(folder) == 6


CHANGES = {
    "model": (dict(model={"width": 32, "layers": 2}), "width: checkpoint 64, config 32"),
    "runtime": (dict(model={"width": 64, "layers": 2, "remat": "full"}), None),
    "tokeniser": (
        dict(input={"tokeniser": {"words": ["open"]}, "views": ["ego", "wrist"]}),
        "input.tokeniser: checkpoint SHA-256",
    ),
    "views": (
        dict(input={"tokeniser": META["input"]["tokeniser"], "views": ["wrist", "ego"]}),
        "input.views",
    ),
    "folder": (dict(pretrained={"text": {"folder": "t5", "sha256": "12"}}), "config t5"),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
def test_another_model_is_refused_by_its_keys(change, words, written):
    """R15. A golden folder of an old format joins this when there is a release."""
    if words is None:
        assert restore(written, meta=META | change).step == 4
        return
    with pytest.raises(CheckpointError, match=words) as caught:
        restore(written, meta=META | change)
    one_line(caught.value)
    assert latest_step(written) == 4


def more(state):
    return state.replace(frozen=state.frozen | {"codec": {"mean": jnp.zeros(3)}})


LEAVES = {
    "missing": (more, "frozen/codec/mean: checkpoint absent, config float32.3"),
    "extra": (lambda s: s.replace(frozen={}), r"frozen/text/table: .*, config absent"),
    "dtype": (
        lambda s: s.replace(ema=jax.tree.map(lambda x: x.astype(jnp.bfloat16), s.ema)),
        "ema/video/bias: checkpoint float32.24., config bfloat16.24.",
    ),
    "shape": (lambda s: toy_state(0, rows=32), "kernel: .*64, 24.*32, 24"),
}


@pytest.mark.parametrize(("change", "words"), LEAVES.values(), ids=LEAVES)
def test_other_arrays_are_refused_by_their_names(change, words, written):
    with pytest.raises(CheckpointError, match=words) as caught:
        restore(written, change(toy_state(0)))
    one_line(caught.value)


def test_seven_meshes_restore_the_same_bits(tmp_path):
    """R7: saved on 4x2 of eight devices, restored on others, and refused where it cannot be cut."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mesh_change.py")), str(tmp_path)],
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "equal": ["4x2", "2x2", "1x4", "2x1", "1x1", "8x1", "1x8"],
        "refused": "params/video/kernel has 64 entries on axis 0",
    }
