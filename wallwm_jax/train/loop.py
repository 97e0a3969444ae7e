"""The training loop: one readable page.

    restore or initialise -> for each batch: step, log, save -> wait for the writer

Order matters and is the reason why a killed run continues with equal losses:
the loader's position is saved together with the state it leads to, and log
lines past the restored step are dropped before new ones are written.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from wallwm_jax.input.batch import Batch, BatchDims
from wallwm_jax.input.loader import Loader
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.parallel.mesh import activate, batch_sharding
from wallwm_jax.train.checkpoint import Checkpoints
from wallwm_jax.train.objectives import ObjectiveConfig
from wallwm_jax.train.pretrained import Sources
from wallwm_jax.train.stages import Stage
from wallwm_jax.train.state import TrainState, init_state, parameter_counts, state_shapes
from wallwm_jax.train.step import train_step
from wallwm_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a training run is made of.

    Attributes:
      folder: checkpoints/ and metrics.jsonl are written here.
      codec: the fitted codec, None where it is inherited.
      sources: folders that parameters come from.
      inherited: parameters of the stage this one starts from, or None.
      meta: stored with every checkpoint; meta["model"] identifies the model.
      steps, save_every, log_every: counted in updates.
    """

    folder: Path
    name: str
    stage: Stage
    denoiser: Denoiser
    objective: ObjectiveConfig
    optimizer: optax.GradientTransformation
    schedule: Callable
    loader: Loader
    dims: BatchDims
    mesh: Mesh
    codec: Params | None
    sources: Sources
    inherited: Params | None
    meta: dict[str, Any]
    seed: int
    steps: int
    ema: float
    save_every: int
    log_every: int


def train(run: Run) -> dict[str, Any]:
    """Trains to the last step, from wherever the run was left.

    Returns:
      {"params": {part: n}, "steps": n, "seconds": this call's, "resumed_from": step}.

    Raises:
      CheckpointError: the folder holds another model's checkpoints.
      FloatingPointError: the loss is no longer finite; nothing is saved.
    """
    started = time.monotonic()
    elsewhere = tuple(slot for slot in run.sources if slot != "video")
    with (
        activate(run.mesh),
        Checkpoints(
            run.folder / "checkpoints", every=run.save_every, leave_out=elsewhere
        ) as checkpoints,
    ):
        shapes = shapes_of(run)
        counts = parameter_counts(shapes.params | shapes.frozen)
        shardings = jax.tree.map(lambda x: x.sharding, shapes)
        restored = checkpoints.restore(shapes, run.meta)
        if restored is None:
            state = _begin(run, shapes)
        else:
            state = restored.state
            state = state.replace(frozen=state.frozen | _from_folders(run))
            run.loader.set_state(restored.data)
        first = int(state.step)
        step = jax.jit(
            partial(
                train_step,
                run.denoiser,
                run.stage,
                run.objective,
                run.optimizer,
                run.schedule,
                run.ema,
                run.seed,
            ),
            in_shardings=(shardings, batch_sharding(run.mesh)),
            out_shardings=(shardings, None),
            donate_argnums=0,
        )
        with MetricsLog(run.folder / "metrics.jsonl", keep_below=first) as log:
            _iterate(run, state, step, checkpoints, log)
    return {
        "params": counts,
        "steps": run.steps,
        "resumed_from": first,
        "seconds": time.monotonic() - started,
    }


def shapes_of(run: Run) -> TrainState:
    """Shape, dtype and sharding of everything in the run's state."""
    return state_shapes(
        run.denoiser, run.optimizer, run.stage.trains, run.codec, run.dims, run.mesh
    )


def initial_state(run: Run) -> tuple[TrainState, TrainState]:
    """A fresh state with inherited parts in place, and its shardings."""
    shapes = shapes_of(run)
    return _begin(run, shapes), jax.tree.map(lambda x: x.sharding, shapes)


def _begin(run: Run, shapes: TrainState) -> TrainState:
    """A fresh state in the places of its shapes."""
    earlier = {} if run.inherited is None else run.inherited
    fitted = {} if run.codec is None else {"codec": run.codec}
    given = fitted | {name: earlier[name] for name in shapes.frozen if name in earlier}
    wan = None
    if "video" in run.sources and run.stage.starts_from is None:
        wan = run.sources["video"].load(run.mesh)
    return init_state(
        run.denoiser,
        run.optimizer,
        shapes,
        run.dims,
        jax.random.key(run.seed),
        given=given | _from_folders(run),
        wan=wan,
    )


def _from_folders(run: Run) -> Params:
    """Frozen parts that no checkpoint holds."""
    return {"text": run.sources["text"].load(run.mesh)} if "text" in run.sources else {}


def _iterate(
    run: Run, state: TrainState, step: Callable, checkpoints: Checkpoints, log: "MetricsLog"
) -> None:
    """Steps from the state's own step to the run's last one."""
    sharding = batch_sharding(run.mesh)
    first, pending = int(state.step), []
    bar = tqdm(
        total=run.steps, initial=first, desc=run.name, unit="step", mininterval=1.0, smoothing=0.05
    )
    for number in range(first, run.steps):
        batch = global_batch(next(run.loader), sharding)
        state, metrics = step(state, batch)
        pending.append(metrics)
        due = (number + 1) % run.save_every == 0 or number + 1 == run.steps
        if due or len(pending) >= run.log_every:
            loss = log.write(number + 1 - len(pending), jax.device_get(pending))
            bar.set_postfix(loss=f"{loss:.3f}")
            bar.update(len(pending))
            pending = []
        if due:
            # The iterator is read after the step that used its batch, so a
            # restored pair (state, position) repeats or skips nothing.
            checkpoints.save(state, run.loader.get_state(), run.meta, force=number + 1 == run.steps)
    bar.close()
    run.loader.close()


def global_batch(batch: Batch, sharding: jax.sharding.NamedSharding) -> Batch:
    """This process's rows of a batch as global arrays over the mesh."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


class MetricsLog:
    """metrics.jsonl: one line per update, in order, none twice.

    Losses are written as decimal and as hexadecimal floats; the latter are
    exact, so two runs can be compared bit by bit.
    """

    def __init__(self, path: Path, keep_below: int):
        """Opens the log, dropping lines of steps the run will take again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if path.is_file():
            lines = path.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("}\n")]
            kept = [line for line in whole if json.loads(line)["step"] < keep_below]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)
        self._file = open(path, "a")  # noqa: SIM115  closed by __exit__

    def write(self, first: int, metrics: list[dict[str, Any]]) -> float:
        """Appends consecutive updates; returns the last loss.

        Raises:
          FloatingPointError: a loss is not finite.
        """
        for offset, values in enumerate(metrics):
            loss = float(values["loss"])
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"loss is {loss} at step {first + offset}; lower the learning rate or look at the batch"
                )
            line = {"step": first + offset, "loss_hex": loss.hex()} | {
                k: float(v) for k, v in values.items()
            }
            self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        return float(metrics[-1]["loss"])

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
