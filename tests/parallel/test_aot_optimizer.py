"""The optimizer's update compiled for TPUs that are not there: within its budget."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="not compiled for TPU: pip install 'jax[tpu]' brings libtpu",
)

PROGRAM = """
import json
from configs.wan22_ti2v_5b import get_config
from experiments.aot_optimizer import measure_optimizer
from wallwm_jax.parallel import aot

aot.prepare_process()
whole, small = get_config(), get_config()
small.video.update(dict(width=1024, heads=8, ffn=4096, layers=4))
whole.mesh.update(dict(data=1, fsdp=64))
small.mesh.update(dict(data=1, fsdp=4))
print(json.dumps({
    "5b": measure_optimizer(whole, "v5p:4x4x4", "muon", quick=True),
    "v6e": measure_optimizer(small, "v6e:2x2", "muon", quick=True),
    "adamw": measure_optimizer(small, "v5p:2x2x1", "adamw", quick=True),
}))
"""


@pytest.fixture(scope="module")
def figures():
    """All programs in one process: one that compiles for TPU can do nothing else."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@needs_libtpu
def test_the_update_of_the_5b_model_is_within_its_budget_on_64_chips(figures):
    found = figures["5b"]
    assert found["chips"] == 64 and found["matrices"] == 300 and found["fits"]
    # 5.04 TFLOP a chip without symmetric products if 300 matrices divided evenly.
    assert found["optimizer_flops_ideal"] == pytest.approx(5.04e12, rel=1e-3)
    assert found["optimizer_flops_planned"] <= 1.1 * found["optimizer_flops_ideal"]
    assert found["optimizer_flops_per_chip"] <= found["optimizer_flops_planned"]
    assert set(found["optimizer_collective_bytes"]) == {"all-to-all"}
    assert 0 < found["optimizer_collective_bytes"]["all-to-all"] <= 0.35e9


@needs_libtpu
def test_the_kernel_for_symmetric_products_compiles_and_is_taken(figures):
    """Where every chip has the same to do: kernels save what the formula says, within 2 %."""
    found = figures["v6e"]
    assert found["kernels"]["symmetric_product"] > 0
    # 32 squares and 8 wides on 4 chips: 8 and 2. Two tiles of 512 a side: 3/4 of x x^T.
    m, n = 1024, 4096
    square = 5 * (2 * 0.75 + 1) * 2 * m**3
    wide = 2 * (0.75 + 1) * 2 * m * m * n + (5 * 0.75 + 9) * 2 * m**3
    assert found["optimizer_flops_per_chip"] == pytest.approx(8 * square + 2 * wide, rel=0.02)
    assert set(found["optimizer_collective_bytes"]) == {"all-to-all"}


@needs_libtpu
def test_adamw_sends_nothing(figures):
    found = figures["adamw"]
    assert found["optimizer_collective_bytes"] == {} and found["kernels"] == {}
    assert found["optimizer_flops_per_chip"] < 1e-2 * found["optimizer_flops_ideal"]
