"""Worker processes that die, hang or are orphaned: noticed, and nothing left behind."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from wallwm_jax.input.elements import WORKER_NAME, Elements, Prefetch
from wallwm_jax.input.plans import EpochPlans
from wallwm_jax.input.source import ItemMaker, PackedSource

HERE = pathlib.Path(__file__).parent


def workers() -> list[multiprocessing.Process]:
    return [p for p in multiprocessing.active_children() if p.name.startswith(WORKER_NAME)]


@pytest.fixture()
def elements(latents, settings):
    """Batches from two worker processes, both of them running."""
    dims = settings["dims"]
    sizes = np.stack([latents.frames, latents.steps, np.ones_like(latents.steps)], axis=1)
    plans = EpochPlans(sizes, (dims.frames, dims.actions, dims.events), seed=0)
    maker = ItemMaker(settings["statistics"], settings["tokeniser"], dims.text)
    source = PackedSource(latents, maker, plans, dims, seed=0, caption_drop=None)
    made = Elements(source, 2, Prefetch(workers=2, batches=1, timeout_s=120))
    for _ in range(4):
        made.next()
    assert len(workers()) == 2
    yield made
    made.close()
    assert not workers()


@pytest.mark.parametrize(
    "how, words", [(signal.SIGKILL, "exit code -9"), (signal.SIGSTOP, "no batch .* for 3 s")]
)
def test_a_lost_worker_is_noticed(elements, how, words):
    elements.timeout_s = 3
    os.kill(workers()[0].pid, how)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=words):
        for _ in range(20):  # what was read ahead still comes
            elements.next()
    assert time.monotonic() - begin < 30
    elements.close()
    assert not workers()


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from multiprocessing import active_children
from synthetic_events import loader_settings
from wallwm_jax.input.latents import open_latents
from wallwm_jax.input.loader import make_loader

if __name__ == "__main__":
    latents = open_latents(sys.argv[2])
    loader = make_loader(latents, seed=0, workers=2, **loader_settings(latents))
    next(loader)
    print(*[child.pid for child in active_children()], flush=True)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent's notice does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_with_a_killed_run(latents, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(CHILD)
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu"}
    run = subprocess.Popen(
        [sys.executable, str(script), str(HERE), str(latents.folder)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    pids = [int(pid) for pid in run.stdout.readline().split()]
    run.kill()
    run.wait()
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, pids))
