"""A stage whose sequences are cut over devices: the losses of one device, or one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toy_run import make_data, toy_config

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
from pathlib import Path
from toy_run import toy_config
from wallwm_jax.errors import UserError
from wallwm_jax.train.loop import train
from wallwm_jax.train.run import build_run
config = toy_config(Path(sys.argv[1]))
config.stage = "scratch"
config.stages.scratch.update(dict(steps=3, save_every=3, log_every=1, optimizer="adamw"))
fsdp, context = map(int, sys.argv[2:4])
config.mesh.update(dict(data=1, fsdp=fsdp, tensor=1, context=context))
if len(sys.argv) > 4:
    config.pack.frames = int(sys.argv[4])
try:
    run = build_run(config)
except UserError as error:
    sys.exit(f"refused: {error}")
train(run)
"""


def started(folder: Path, *sizes: int) -> subprocess.CompletedProcess:
    """The stage over four simulated devices; sizes are fsdp, context and frames."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *map(str, sizes)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ
        | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={sizes[0] * sizes[1]} "
            # A few steps of a small model: time goes into compiling.
            "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'train'}",
        },
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("context") / "data"
    config = toy_config(folder)
    make_data(config, "behaviour")
    make_data(config, "fixed")
    return folder


def losses(folder: Path) -> list[float]:
    """Loss of every step."""
    lines = (folder / "scratch" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_both_towers_train_on_cut_sequences_as_on_one_device(data, tmp_path):
    found = {}
    for sizes in ((1, 1), (2, 2)):
        folder = shutil.copytree(data, tmp_path / "x".join(map(str, sizes)))
        done = started(folder, *sizes)
        assert done.returncode == 0, done.stderr[-2000:]
        found[sizes] = losses(folder)
    assert len(found[1, 1]) == 3
    assert found[2, 2] == pytest.approx(found[1, 1], rel=2e-5)


@pytest.mark.parametrize(
    "sizes, words",
    [
        ((1, 3), "2 heads do not divide over context x tensor = 3 x 1"),
        ((1, 2, 7), "7 latent frames do not divide over config.mesh.context = 2"),
    ],
)
def test_sizes_that_cannot_be_cut_are_refused_before_the_run(data, sizes, words):
    done = started(data, *sizes)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("refused: ")
    assert words in done.stderr.splitlines()[-1]
    assert not (data / "scratch").exists()
