"""Reads what a run has saved, without being that run: its newest whole step, what it says, its arrays."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from wallwm_jax.train.agreement import refuse_other_sums
from wallwm_jax.train.array_sums import describe
from wallwm_jax.train.seal import (
    CheckpointError,
    DamagedError,
    all_damaged,
    damage,
    damaged,
    folder_of,
    refuse_damage,
    steps_in,
)


def latest_step(folder: epath.Path | Path | str) -> int:
    """Newest whole step in a folder of checkpoints; reads every file of it.

    Damaged steps are passed over with one line in the log each, and left alone.

    Raises:
      CheckpointError: there is none.
    """
    folder = folder_of(folder)
    broken: dict[int, DamagedError] = {}
    for step in reversed(steps_in(folder)):
        if not (found := damage(folder / str(step))):
            for error in broken.values():
                logging.warning("%s. Taking step %d", error, step)
            return step
        broken[step] = damaged(folder / str(step), found)
    if broken:
        raise all_damaged(broken)
    raise CheckpointError(f"no checkpoint in {folder}; train that stage first, or set its workdir")


def read_meta(folder: epath.Path | Path | str, step: int, *, verify: bool = True) -> dict[str, Any]:
    """The "meta" item of one step.

    Args:
      verify: compares its files with the seal; `latest_step` has just done that.

    Raises:
      DamagedError: its files are not what was saved.
    """
    where = folder_of(folder) / str(step)
    if verify:
        refuse_damage(where, ("meta",))
    return read_json(where / "meta")


def read_params(
    folder: epath.Path | Path | str, step: int, *, average: bool = True, verify: bool = True
) -> dict[str, Any]:
    """All parameters of a checkpoint: frozen parts and trained parts together.

    Args:
      folder: of the run's checkpoints.
      step: which one.
      average: the trained parts' EMA (for inference and later stages) or the
        raw parameters.
      verify: compares its files with the seal, which reads them once more; `latest_step`
        has just done that. The arrays are compared with their sums in any case.

    Returns:
      {"codec", "text", "video", "action"} as numpy arrays, on the host, less
      what the run inherited from folders.

    Raises:
      DamagedError: the step is not what was saved, or not finite.
    """
    where = folder_of(folder) / str(step)
    if verify:
        refuse_damage(where, ("state", "arrays"))
    path, handler = where / "state", ocp.PyTreeCheckpointHandler()
    tree, trained = handler.metadata(path).tree, "ema" if average else "params"
    target = jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype),
        {name: tree.get(name, {}) for name in ("frozen", trained)},
    )
    restored = handler.restore(
        path,
        args=ocp.args.PyTreeRestore(
            item=target,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target),
            partial_restore=True,
        ),
    )
    refuse_other_sums(where, read_json(where / "arrays"), describe(restored))
    return restored["frozen"] | restored[trained]


def read_json(path: epath.Path) -> dict[str, Any]:
    """A JSON item of a step."""
    return ocp.JsonCheckpointHandler().restore(path, args=ocp.args.JsonRestore())
