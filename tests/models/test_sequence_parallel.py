"""Sequences cut over devices: the numbers of one device, and only the exchange travels."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from wallwm_jax.models.sequence_parallel import (
    frames_from_batch,
    frames_to_batch,
    merge_tokens,
    split_tokens,
)

ROOT = Path(__file__).parents[2]


def on_eight_devices(program: str, *arguments: str) -> list[str]:
    """What a program prints, line by line."""
    flags = (
        "--xla_force_host_platform_device_count=8",
        # It runs once: time goes into compiling.
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    )
    done = subprocess.run(
        [sys.executable, program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ
        | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_without_a_mesh_tokens_are_merged_plainly():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 7))
    np.testing.assert_array_equal(merge_tokens(x), x.reshape(2, 60, 7))
    np.testing.assert_array_equal(split_tokens(merge_tokens(x), 3, 4), x)
    np.testing.assert_array_equal(frames_to_batch(x), x.reshape(6, 4, 5, 7))
    np.testing.assert_array_equal(frames_from_batch(frames_to_batch(x), 3), x)


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_attention_alone_is_whole_attention(implementation):
    """Every kind of cut, values and gradients, against attention without a mesh."""
    told = on_eight_devices("tests/models/cut_attention.py", implementation)
    # By kind: exchanges of values and their derivatives, and what else travels.
    assert (
        told
        == [
            "batch 0 0 0",
            "queries 0 0 0",
            "keys 4 1 1",
            "both 8 0 0",
            "refused",
        ]
        * 3
    )


def test_towers_give_the_numbers_of_one_device_and_move_no_activations():
    # In two layers: queries, keys, values and the result; all but the result once
    # more for the backward pass, whose policy keeps that; and their gradients.
    exchanges = 2 * (4 + 3 + 4)
    told = on_eight_devices("tests/models/cut_towers.py")
    assert told == [f"equal, {exchanges} exchanges"] * 2
