"""Checkpoints in a bucket, on a server that speaks Cloud Storage's protocol: as good as on a disk."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from etils import epath
from mini_processes import await_steps, ended, lines, start, told
from mini_run import mini_run

from wallwm_jax.parallel.processes import free_port
from wallwm_jax.train import seal
from wallwm_jax.train.loop import train
from wallwm_jax.train.saved import latest_step, read_params
from wallwm_jax.train.seal import COMMIT_FILE, CheckpointError, damage, folder_of, steps_in

NAME = "wallwm-test"
SERVER = Path(__file__).with_name("bucket_server.py")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """gs://NAME, empty; this process and those it starts find it as they would find Google's."""
    port, said = free_port(), tmp_path_factory.mktemp("bucket") / "server.txt"
    with pytest.MonkeyPatch.context() as patch, said.open("w") as log:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, f"http://localhost:{port}")
        # Nobody asks for credentials, and nothing need look for Google's own machines.
        patch.setenv("NO_GCE_CHECK", "true")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        server = subprocess.Popen([sys.executable, SERVER, str(port), NAME], stderr=log)
        try:
            await_server(f"http://localhost:{port}/storage/v1/b/{NAME}")
            yield f"gs://{NAME}"
        finally:
            server.kill()
            server.wait()


def await_server(url: str) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(url).close()
            return
        except urllib.error.URLError:
            assert time.monotonic() < until, f"{url} does not answer"
            time.sleep(0.1)


def losses(folder) -> list[float]:
    return [line["loss"] for line in lines(folder)]


def test_a_killed_run_goes_on_as_if_nothing_had_been(bucket, tmp_path):
    """Killed twice at any instant, also of a save: every fourth step begins one."""
    words = ["save_every=4", "slow=0.05", f"checkpoints={bucket}/killed"]
    for reached in (7, 14):
        run = start(1, tmp_path, "steps=100000", *words)
        await_steps(tmp_path, reached, run)
        run[0].kill()
        run[0].wait()
    again = start(1, tmp_path, "steps=24", *words)
    assert ended(again, 300) == [0], told(tmp_path)
    train(mini_run(tmp_path / "whole", steps=24))
    assert [line["step"] for line in lines(tmp_path)] == list(range(24))
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    assert not (tmp_path / "checkpoints").exists()
    there = folder_of(f"{bucket}/killed")
    # What the kills left unfinished is gone, and so is what need not be kept.
    assert sorted(path.name for path in there.iterdir()) == ["20", "24"]
    assert steps_in(there) == [20, 24] and latest_step(there) == 24


def test_two_processes_save_together_and_one_goes_on(bucket, tmp_path):
    words = ["steps=8", "save_every=4", f"checkpoints={bucket}/fellows"]
    fellows = start(2, tmp_path, *words)
    assert ended(fellows, 300) == [0, 0], told(tmp_path)
    there = folder_of(f"{bucket}/fellows")
    assert train(mini_run(tmp_path, checkpoints=there, steps=12))["resumed_from"] == 8
    train(mini_run(tmp_path / "alone", steps=12))
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


def test_damage_is_named_and_the_step_before_is_taken(bucket, tmp_path):
    there = folder_of(f"{bucket}/damaged")
    train(mini_run(tmp_path, checkpoints=there))
    before = losses(tmp_path)
    hurt = next(path for path in (there / "8/state/d").iterdir())
    data = bytearray(hurt.read_bytes())
    data[len(data) // 2] ^= 1
    hurt.write_bytes(bytes(data))
    (found,) = damage(there / "8")
    assert f"state/d/{hurt.name} has CRC-32C" in found
    assert latest_step(there) == 4
    with pytest.raises(CheckpointError, match=f"{hurt.name} has CRC-32C"):
        read_params(there, 8)
    result = train(mini_run(tmp_path, checkpoints=there, steps=10))
    assert result["resumed_from"] == 4
    assert losses(tmp_path)[:8] == pytest.approx(before, rel=1e-6)
    assert (there / "8.damaged").is_dir() and not damage(there / "8")


def test_a_step_that_was_not_committed_is_no_step(bucket, tmp_path):
    there = folder_of(f"{bucket}/unfinished")
    train(mini_run(tmp_path, checkpoints=there))
    (there / "8" / COMMIT_FILE).unlink()
    assert steps_in(there) == [4] and latest_step(there) == 4
    assert train(mini_run(tmp_path, checkpoints=there))["resumed_from"] == 4
    assert latest_step(there) == 8


def test_without_the_library_for_buckets_it_is_one_line(monkeypatch):
    monkeypatch.setattr(seal, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install gcsfs"):
        folder_of("gs://bucket/run")
    with pytest.raises(CheckpointError, match="s3://.*gs://"):
        folder_of("s3://bucket/run")
    assert folder_of("here") == epath.Path("here").absolute()
