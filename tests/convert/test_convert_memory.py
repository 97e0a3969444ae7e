"""Host memory of loading: the parameters, and one leaf more."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from wallwm_jax.convert import umt5
from wallwm_jax.convert.plan import leaves
from wallwm_jax.convert.save import config_of
from wallwm_jax.models.umt5 import UMT5Config, UMT5Encoder

ROOT = Path(__file__).parents[2]
MODULE = UMT5Encoder(
    UMT5Config(vocabulary=8000, width=512, heads=8, head_dim=64, layers=10, ffn=1408)
)

LOAD = """
import sys
from pathlib import Path
import jax
import jax.numpy as jnp
from wallwm_jax.convert import load_pretrained

def most():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

jax.block_until_ready(jnp.ones(3) + 1)
before = most()
_, params = load_pretrained(sys.argv[1])
sizes = [x.nbytes for x in jax.tree.leaves(params)]
print(most() - before, sum(sizes), max(sizes))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("source", [np.float32, ml_dtypes.bfloat16])
def test_a_model_never_sits_twice_in_memory(tmp_path, source):
    content = {
        name: np.full(leaf.entry.their_shape(leaf.shape), 0.5, source)
        for leaf in leaves(umt5.FAMILY, MODULE)
        for name in leaf.names
    }
    save_file(content, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_of(umt5.FAMILY, MODULE)))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak, total, largest = map(int, done.stdout.split())
    assert total > 130e6 and largest < total / 4
    assert peak < total + 1.5 * largest + 30e6, f"{peak / total:.2f} times the parameters"
