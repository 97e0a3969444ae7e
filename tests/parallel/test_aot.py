"""Programs compiled for TPUs that are not there: what they need is read off correctly."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wallwm_jax.parallel import aot

ROOT = Path(__file__).parents[2]
CONFIG = "--config=configs/wan22_ti2v_5b.py"

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="not compiled for TPU: pip install 'jax[tpu]' brings libtpu",
)


def run(*command: str) -> subprocess.CompletedProcess:
    """A process of its own: one that compiles for TPU can do nothing else."""
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)


def cli(*options: str) -> subprocess.CompletedProcess:
    config = [] if any(x.startswith("--config=") for x in options) else [CONFIG]
    return run("-m", "experiments.aot", *config, *options)


@needs_libtpu
def test_the_whole_5b_forward_compiles_for_64_chips_with_the_tpu_kernel(tmp_path):
    """30 layers at full width; a few seconds, as the layers are one scanned body."""
    page = tmp_path / "aot.json"
    done = cli("--topology=v5p:4x4x4", "--quick", f"--json={page}")
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(page.read_text())
    assert figures["chips"] == 64 and figures["fits"]
    assert figures["flops_per_layer"] == pytest.approx(
        figures["flops_per_layer_analytic"], rel=5e-3
    )
    # Self-attention and text attention are kernels; 126 tokens of a frame are too few for one.
    assert sum(figures["kernels"].values()) == 2
    assert all(name.startswith("splash_mha_fwd_segmented") for name in figures["kernels"])
    assert done.stderr.count("splash attention for") == 2
    # A sixteenth of the parameters in float32, and little besides.
    assert figures["arguments_bytes"] == pytest.approx(6.2e9 * 4 / 16, rel=0.05)
    assert figures["hbm_bytes_per_chip"] < 6e9 < figures["hbm_limit_bytes"]
    # Every layer's weights are gathered once in bfloat16: 12 D^2 + 2 D M of them.
    weights = 30 * (12 * 3072**2 + 2 * 3072 * 14336) * 2
    assert figures["collective_bytes"]["all-gather"] == pytest.approx(weights, rel=0.05)
    assert "FLOPs of one layer" in done.stdout


STEP = """
import json
from configs.wan22_ti2v_5b import get_config
from experiments import aot_programs as programs
from wallwm_jax.parallel import aot, planner
from wallwm_jax.parallel.mesh import make_mesh
aot.prepare_process()
config = get_config()
mesh = make_mesh(config.mesh.to_dict(), aot.topology_devices("v5p:4x4x4"))
program, counted, block = programs.layer_program(config, "video", mesh.size, mesh)
figures = aot.compile_program(program, mesh, quick=True)
least = planner.least_traffic(*programs.traffic(config, "video", program, mesh))
print(json.dumps(dict(
    flops=figures.flops * mesh.size / counted,
    remat=(figures.flops * mesh.size - counted + block[1]) / block[0],
    collectives=figures.collectives, least=least, seconds=figures.compile_seconds,
)))
"""


@needs_libtpu
def test_a_training_step_at_full_width_computes_and_sends_what_it_must():
    """Two layers of every tower of stage "video" on 64 chips, plain attention."""
    done = run("-c", STEP)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["flops"] == pytest.approx(1, rel=5e-3)
    # Rematerialisation "full": four forwards of a layer, where keeping everything needs three.
    assert found["remat"] == pytest.approx(4 / 3, rel=1e-2)
    # Two layers weigh less than what lies around them and travels in float32.
    kinds, least = found["collectives"], found["least"]
    assert sum(least.values()) <= sum(kinds.values()) <= 1.15 * sum(least.values())
    # Gradients are scattered: what is all-reduced are slices over the copies.
    assert kinds["all-reduce"] < 0.1 * kinds["reduce-scatter"]


@needs_libtpu
@pytest.mark.parametrize(
    "options, words",
    [
        (["--topology=v9:4x4"], "topology 'v9:4x4' is not one that libtpu knows"),
        (["--topology=v5p:2x2x1", "--config.mesh.data=3"], "does not match 4 devices"),
        (["--config.pack.sequences=65"], "65 does not divide over data x fsdp = 64"),
        (["--config=configs/metaworld.py"], "config.data lacks ['views', 'height', 'width']"),
        (["--topology=v5p:2x2x1", "--config.video.size=6b"], "config.video.size is '6b'"),
        (["--topology=v5p:2x2x1", "--plan"], "--plan is of a training step"),
        (
            ["--topology=v5p:2x2x1", "--what=train"],
            "value should be one of <forward|wan|video|action|scratch>",
        ),
    ],
    ids=["topology", "mesh", "sequences", "config", "size", "plan", "what"],
)
def test_what_cannot_be_compiled_is_one_line(options, words):
    done = cli(*options)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


OVER = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from wallwm_jax.parallel import aot
from wallwm_jax.parallel.mesh import make_mesh
aot.prepare_process()
mesh = make_mesh(dict(data=-1), aot.topology_devices("v5e:2x2"))
x = jax.ShapeDtypeStruct((1 << 18, 1 << 18), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
try:
    aot.compile_program(aot.Program(function=lambda x: x @ x @ x, arguments=(x,)), mesh, quick=True)
except aot.AotError as error:
    print(error)
"""


@needs_libtpu
def test_a_program_larger_than_a_chip_is_refused_in_one_line():
    done = run("-c", OVER)
    assert "does not fit a TPU v5 lite" in done.stdout, done.stderr[-2000:]
    assert "15.75G" in done.stdout and done.stdout.count("\n") == 1


def test_without_libtpu_the_command_to_get_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(aot.AotError, match=r"pip install 'jax\[tpu\]'"):
        aot.topology_devices("v5p:2x2x1")


def test_collectives_of_a_program_that_can_be_run():
    """The same parser on a CPU program whose communication is known."""
    program = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from wallwm_jax.parallel.aot import Program, compile_program
from wallwm_jax.parallel.mesh import make_mesh
mesh = make_mesh(dict(fsdp=-1))
def shape(*size, spec): return jax.ShapeDtypeStruct(size, jnp.float32, sharding=NamedSharding(mesh, spec))
def layers(x, w):
    gathered = lambda w: jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ gathered(w)), None), x, w)[0]
arguments = shape(8, 32, spec=P("fsdp")), shape(5, 32, 32, spec=P(None, "fsdp"))
figures = compile_program(Program(function=layers, arguments=arguments), mesh)
print(figures.chips, figures.collectives, figures.fits, figures.hbm_limit)
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.stdout == f"4 {{'all-gather': {5 * 32 * 32 * 4}}} True None\n", done.stderr[-2000:]
