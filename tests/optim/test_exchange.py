"""Muon on a mesh is Muon on one device, and communicates what its plan says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report():
    """All meshes in one process of eight simulated devices."""
    done = subprocess.run(
        [sys.executable, "tests/optim/muon_on_devices.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "PYTHONPATH": str(ROOT),
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


FLOAT32 = ["fsdp", "replicas", "all"]


@pytest.mark.parametrize("mesh", FLOAT32)
def test_two_steps_give_the_updates_of_one_device(report, mesh):
    found = report[f"{mesh} float32"]
    for name, error in found["error"].items():
        assert error <= 2e-5 * found["size"][name], name


def test_bfloat16_differs_by_its_rounding_only(report):
    """The same products in other batches: single roundings of 2^-8 fall otherwise."""
    found = report["all bfloat16"]
    for name, error in found["error"].items():
        assert error <= 0.08 * found["size"][name], name


@pytest.mark.parametrize("mesh", FLOAT32)
def test_updates_and_momentum_lie_where_the_parameter_lies(report, mesh):
    assert report[f"{mesh} float32"]["kept"]


@pytest.mark.parametrize("mesh", FLOAT32)
def test_nothing_is_sent_but_slices_to_owners_and_back(report, mesh):
    """Two all-to-alls a stack, and gathers where there are replicas; gradients stay cut."""
    found = report[f"{mesh} float32"]
    sent = found["collectives"]
    assert set(sent) <= {"all-to-all", "all-gather"}
    assert sent.count("all-to-all") == 2 * found["exchanges"]
    # One for each parameter and one for what is left over of a stack; the compiler may join some.
    assert (sent.count("all-gather") > 0) == (found["replicated"] > 0)
    assert sent.count("all-gather") <= found["replicated"]


@pytest.mark.parametrize("mesh", FLOAT32)
def test_no_collective_stands_in_a_branch(report, mesh):
    """Devices of other roles would never join it."""
    found = report[f"{mesh} float32"]
    assert found["roles"] > 1 and found["elsewhere"] == []
