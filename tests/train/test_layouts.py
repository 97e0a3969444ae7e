"""One device, eight devices and four processes train the same towers to the same losses."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from layout_run import STAGES, STEPS

from wallwm_jax.parallel.processes import free_port

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("layout_run.py")

LAYOUTS = {"eight devices": dict(devices=8)}
if os.environ.get("WALLWM_LAYOUTS") == "all":
    # Four processes compile everything four times, about five core minutes. With a matrix
    # for a model they are compared in test_loop_processes, with these towers in row R8 of
    # experiments.chaos.
    LAYOUTS["four processes"] = dict(processes=4)

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Compiles in less time; the order of sums over devices is as it is otherwise."""


@dataclasses.dataclass
class Training:
    """Processes that train together in a folder."""

    folder: Path
    processes: list[subprocess.Popen]

    def losses(self) -> dict[str, list[float]]:
        """Stage -> losses, when all have ended well and compiled nothing late."""
        for index, process in enumerate(self.processes):
            said, _ = process.communicate()
            assert process.returncode == 0, self._errors(index)
            assert json.loads(said.splitlines()[-1]) == {stage: [] for stage in STAGES}
        logs = {stage: self.folder / stage / "metrics.jsonl" for stage in STAGES}
        return {
            stage: [json.loads(line)["loss"] for line in log.read_text().splitlines()]
            for stage, log in logs.items()
        }

    def _errors(self, index: int) -> str:
        return (self.folder / f"stderr-{index}.txt").read_text()[-2000:]


def start(folder: Path, devices: int = 1, processes: int = 1) -> Training:
    """Trains the toy's stages; `devices` of each process are simulated."""
    among = {"WALLWM_PROCESSES": str(processes), "WALLWM_COORDINATOR": f"127.0.0.1:{free_port()}"}
    common = {
        "PYTHONPATH": ":".join(map(str, (ROOT, SCRIPT.parent, ROOT / "tests" / "events"))),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}",
        "JAX_PLATFORMS": "cpu",
    }
    started = []
    for index in range(processes):
        own = among | {"WALLWM_PROCESS_ID": str(index)} if processes > 1 else {}
        with open(folder / f"stderr-{index}.txt", "w") as errors:
            started.append(
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), str(folder)],
                    cwd=ROOT,
                    env=os.environ | common | own,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            )
    return Training(folder, started)


def test_losses_are_those_of_one_device_and_nothing_is_compiled_late(prepared, tmp_path):
    """Both stages from a fresh state, the second from what the first has learnt, with Muon."""
    layouts = {"one device": {}} | LAYOUTS
    # Side by side, because most of it is compiling on one core each.
    trainings = {
        name: start(shutil.copytree(prepared.workdir, tmp_path / name), **layout)
        for name, layout in layouts.items()
    }
    try:
        found = {name: training.losses() for name, training in trainings.items()}
    finally:
        for process in (p for training in trainings.values() for p in training.processes):
            process.kill()
            process.wait()
    alone = found.pop("one device")
    for name, several in found.items():
        for stage in STAGES:
            assert len(set(alone[stage])) == STEPS
            assert several[stage] == pytest.approx(alone[stage], rel=1e-5), (name, stage)
