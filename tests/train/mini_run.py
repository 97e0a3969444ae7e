"""A run whose model is one matrix: the whole loop, with next to nothing to compile.

Also a command, so that tests can kill it, alone or as one of several processes:

    python tests/train/mini_run.py FOLDER key=value ...
"""

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wallwm_jax.flow.losses import flow_loss, reduce_mean
from wallwm_jax.input.batch import Batch, BatchDims
from wallwm_jax.input.loader import Loader
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.models.layers import Named
from wallwm_jax.parallel.mesh import make_mesh, readers
from wallwm_jax.parallel.processes import Processes, join, together
from wallwm_jax.train.loop import Limits, Observe, Run, train
from wallwm_jax.train.objectives import ObjectiveConfig, counted_actions, counted_cells
from wallwm_jax.train.seal import folder_of
from wallwm_jax.train.stages import Stage

DIMS = BatchDims(
    sequences=8,
    views=2,
    frames=6,
    height=2,
    width=2,
    channels=3,
    actions=24,
    events=3,
    state=4,
    text=3,
)


class MiniDenoiser(Denoiser):
    """One matrix for latents and one for actions."""

    conditioning = "clean"

    def __init__(self) -> None:
        """It has no sizes."""

    def token_grid(self, latents_shape: tuple[int, ...]) -> tuple[int, int]:
        """Every cell is a token."""
        return latents_shape[3], latents_shape[4]

    def init(self, key: Any, latents: Any, packed: Any) -> dict:
        """Two matrices, the first cut over fsdp."""
        a, b = jax.random.split(key)
        kernel = Named(jax.random.normal(a, (8, 3, 3)), ("embed", None, None))
        action = {"kernel": jax.random.normal(b, (20, 20))}
        return {"video": {"kernel": kernel}, "action": action, "text": {"frozen": jnp.ones(2)}}


def mini_loss(denoiser: Any, config: Any, params: Any, batch: Batch, key: Any, noise: float = 0.1):
    """Two parts, as the joint objective has them: squared errors of linear maps."""
    kernel, x = params["video"]["kernel"].mean(0), batch.latents
    z = x + noise * jax.random.normal(key, x.shape)
    video = reduce_mean(flow_loss(jnp.tanh(z @ kernel), x, counted_cells(batch, "clean")))
    guess = jnp.tanh(batch.actions @ params["action"]["kernel"])
    action = reduce_mean(flow_loss(guess, batch.actions, counted_actions(batch)))
    return video + action, {"loss_video": video, "loss_action": action}


def quiet_loss(*args: Any):
    """The same without noise, so that it does not matter how a batch is cut."""
    return mini_loss(*args, noise=0.0)


class MiniLoader(Loader):
    """Global batch n is `Batch.fake` of seed n; every process reads its rows of it.

    Attributes:
      poisoned: batches whose latents are NaN.
      slow_s: seconds that a batch takes.
      hang_at, cut_at: batch that never comes, or fails; -1 is none.
    """

    def __init__(
        self, reader: tuple[int, int], poisoned: tuple[int, ...] = (), slow_s: float = 0.0
    ):
        """Starts at batch 0."""
        self._reader, self._batch = reader, 0
        self.poisoned, self.slow_s, self.hang_at = poisoned, slow_s, -1
        self.cut_at = -1

    def __next__(self) -> Batch:
        """The next batch's rows."""
        number, self._batch = self._batch, self._batch + 1
        while number == self.hang_at:
            time.sleep(1)
        if number == self.cut_at:
            raise RuntimeError("power cut")
        time.sleep(self.slow_s)
        batch = Batch.fake(DIMS, seed=number)
        if number in self.poisoned:
            batch = batch.replace(latents=np.full_like(batch.latents, np.nan))
        index, count = self._reader
        size = DIMS.sequences // count
        return jax.tree.map(lambda x: x[index * size : (index + 1) * size], batch)

    def get_state(self) -> dict:
        """The next batch's number."""
        return {"batch": self._batch}

    def set_state(self, state: dict) -> None:
        """Goes on from there."""
        self._batch = state["batch"]

    def close(self) -> None:
        """Nothing is open."""


def mini_run(folder: Path, mesh: dict[str, int] | None = None, **changes: Any) -> Run:
    """A run of eight steps; keyword arguments replace its fields."""
    grid = make_mesh(mesh or {"fsdp": -1})
    run = Run(
        folder=Path(folder),
        checkpoints=folder_of(folder) / "checkpoints",
        name="mini",
        stage=Stage(trains=("video", "action"), objective=mini_loss),
        denoiser=MiniDenoiser(),
        objective=ObjectiveConfig(image_size=16),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
        schedule=lambda count: jnp.float32(1) / (1 + count),
        loader=MiniLoader(readers(grid)),
        dims=DIMS,
        mesh=grid,
        codec=None,
        sources={},
        inherited=None,
        meta={"model": {"mini": 1}},
        seed=0,
        steps=8,
        ema=0.9,
        save_every=4,
        log_every=2,
    )
    return dataclasses.replace(run, **changes)


def main() -> None:
    """Trains in FOLDER; `hang=RANK:STEP` stops one process's data, key=number sets a field."""
    words = dict(word.split("=") for word in sys.argv[2:])
    elsewhere = (
        {"checkpoints": folder_of(words.pop("checkpoints"))} if "checkpoints" in words else {}
    )
    heartbeat, slow = int(words.pop("heartbeat", 100)), float(words.pop("slow", 0))
    rank, _, step = words.pop("hang", "-1:-1").partition(":")
    limit = float(words.pop("limit", 600))
    join(Processes.of({}, dict(os.environ), heartbeat_s=heartbeat))
    with together():
        run = mini_run(
            Path(sys.argv[1]),
            limits=Limits(step_s=limit, first_step_s=max(limit, 60)),
            observe=Observe(),
            **elsewhere,
            **{name: int(value) for name, value in words.items()},
        )
        run.loader.slow_s = slow
        if jax.process_index() == int(rank):
            run.loader.hang_at = int(step)
        train(run)


if __name__ == "__main__":
    main()
