"""A train state of a few small arrays, and a folder of its checkpoints; nothing is trained."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from etils import epath

from wallwm_jax.train.checkpoint import Checkpoints
from wallwm_jax.train.state import TrainState

META = {
    "model": {"width": 64, "layers": 2, "remat": "none"},
    "input": {"tokeniser": {"words": ["open", "drawer"]}, "views": ["ego", "wrist"]},
    "pretrained": {},
}


def toy_state(step: int, rows: int = 64) -> TrainState:
    """Arrays of several shapes and dtypes whose values depend on the step."""
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=(rows, 24)), jnp.float32)
    params = {"video": {"kernel": kernel, "bias": jnp.arange(24.0) + step}}
    return TrainState(
        step=jnp.int32(step),
        params=params,
        frozen={"text": {"table": jnp.asarray(rng.normal(size=(16, 8)), jnp.bfloat16)}},
        opt_state=({"mu": params}, jnp.int32(step)),
        ema={"video": {"kernel": kernel / 2, "bias": jnp.ones(24)}},
        skipped=jnp.int32(0),
        skipped_in_row=jnp.int32(0),
    )


def write_steps(folder: Path, *steps: int, **options: int) -> Path:
    """Checkpoints of these steps, each committed before the next."""
    with Checkpoints(folder, every=1, **options) as checkpoints:
        for step in steps:
            assert checkpoints.save(toy_state(step), {"batch": step}, META)
    return folder


def files_of(step: Path) -> list[str]:
    """Every file of a step, as a seal names them."""
    return sorted(str(p.relative_to(step)) for p in step.rglob("*") if p.is_file())


def copied(folder: Path, to: Path) -> epath.Path:
    """A copy that may be damaged."""
    shutil.copytree(folder, to)
    return epath.Path(to)
