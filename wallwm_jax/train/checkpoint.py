"""Checkpoints: train state, data position and what the model means, as one unit.

One Orbax step holds four items, and a seal over the files of all of them:

    state             TrainState, sharded arrays
    data              position of this process's data iterator (JSON)
    meta              model sizes, statistics, vocabulary, views, codec (JSON)
    arrays            shape, dtype and sum of every array of the state (JSON)
    wallwm_seal.json  size and checksum of every file, see `seal`

so a checkpoint says by itself how to normalise, tokenise and decode. Frozen parts
that lie in folders of their own (config.pretrained) are not copied: "meta" names
them with their SHA-256. Saving is asynchronous; a step counts only once it is
committed, and a run killed at any instant continues from the last committed one.

What can go wrong, and what happens then:

    killed while saving   the unfinished folder is removed at the next start
    damaged step          training goes back to the newest whole one, says so, and
                          moves the damaged one aside; a step asked for is refused
    save fails (disk)     a warning, the run goes on from memory; after `failures`
                          in a row, or when the last step is lost, it stops
    not finite            neither saved nor restored
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from wallwm_jax.train.agreement import (
    not_finite,
    refuse_indivisible,
    refuse_other_arrays,
    refuse_other_model,
    refuse_other_sums,
    shapes_named,
)
from wallwm_jax.train.array_sums import describe
from wallwm_jax.train.orbax_log import OneReport, what_it_says
from wallwm_jax.train.retention import KeepVerified
from wallwm_jax.train.saved import read_json, read_meta
from wallwm_jax.train.seal import (
    CheckpointError,
    DamagedError,
    all_damaged,
    damage,
    damaged,
    folder_of,
    sealing,
    steps_in,
)
from wallwm_jax.train.state import TrainState

ITEMS = ("state", "data", "meta", "arrays")

SAVE_ERRORS = (OSError, ValueError, RuntimeError)
"""How a full disk or an unreachable store shows: tensorstore raises ValueError."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint gives back."""

    step: int
    state: Any
    data: dict[str, Any]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in `folder`."""

    def __init__(
        self,
        folder: epath.Path | Path | str,
        *,
        every: int = 100,
        keep: int = 2,
        keep_every: int = 0,
        leave_out: tuple[str, ...] = (),
        failures: int = 3,
    ):
        """Opens (and for training creates) the folder; removes what a killed save left.

        Args:
          folder: where the steps lie, here or in an object store (gs://...).
          every: save at multiples of this many steps (and when told to).
          keep: newest whole steps kept; two survive damage to one.
          keep_every: multiples of this many steps are kept besides; 0 is none.
          leave_out: frozen parts that lie elsewhere.
          failures: saves that may fail in a row; the next one ends the run.

        Raises:
          CheckpointError: the folder cannot be written.
        """
        self.folder, self.leave_out, self.every = folder_of(folder), leave_out, every
        self._policy = KeepVerified(keep, keep_every)
        self._writing: int | None = None
        self._quiet = OneReport()
        self._failures, self._most_failures = 0, failures
        self._lost: str | None = None  # what to say of the last save, when it failed
        base = ocp.path.atomicity_defaults.get_default_temporary_path_class(self.folder)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            enable_async_checkpointing=True,
            create=True,
            cleanup_tmp_directories=True,
            temporary_path_class=sealing(base),
            lightweight_initialize=True,  # believes nothing before it is verified
        )
        try:
            self.manager = ocp.CheckpointManager(self.folder, options=options, item_names=ITEMS)
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoints to {self.folder}: {error.strerror or error}; choose another --config.workdir"
            ) from error

    def save(
        self, state: TrainState, data: dict[str, Any], meta: dict[str, Any], *, force: bool = False
    ) -> bool:
        """Starts saving the state's step if it is due; returns whether it did.

        Waits for the save before it, and says if that one failed.

        Raises:
          CheckpointError: more saves failed in a row than may, or the state is
            not finite; the steps that are there stay.
        """
        step = int(state.step)
        if not force and step % self.every:
            return False
        self._join()
        if self._failures > self._most_failures:
            raise CheckpointError(
                f"{self._lost}; {self._failures} saves failed in a row: free space or mend the disk, then run the same command again"
            )
        if step in self.manager.all_steps():
            return False
        if self._failures:
            self._sweep()
        kept = self._kept(state)
        arrays = describe(kept)
        if bad := not_finite(arrays):
            raise CheckpointError(
                f"step {step} is not saved to {self.folder}: {bad[0]} and {len(bad) - 1} more arrays are not finite; "
                "run the same command to go on from the last step, with a lower learning rate"
            )
        try:
            started = self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(kept),
                    data=ocp.args.JsonSave(data),
                    meta=ocp.args.JsonSave(meta),
                    arrays=ocp.args.JsonSave(arrays),
                ),
                force=True,
            )
        except SAVE_ERRORS as error:
            self._failed(step, error)
            return False
        self._writing = step
        return started

    def settle(self) -> None:
        """Waits until the last save is committed; for when no other will follow.

        Raises:
          CheckpointError: it failed, so the steps since the one before are lost.
        """
        self._join()
        if self._lost is not None:
            raise CheckpointError(
                f"{self._lost}; free space or mend the disk, then run the same command again"
            )

    def _join(self) -> None:
        """Waits for the save that is under way and notes what came of it."""
        step, self._writing = self._writing, None
        if step is None:
            return
        try:
            self.manager.wait_until_finished()
        except SAVE_ERRORS as error:
            self._failed(step, error)
        else:
            self._policy.whole.add(step)
            self._failures, self._lost = 0, None

    def _failed(self, step: int, error: Exception) -> None:
        """Forgets a save that failed, gives its space back, and says so."""
        self._failures += 1
        self._sweep()
        self.manager.reload()  # it had counted the step as saved
        there = self.manager.all_steps()
        last = f"step {max(there)} is the last that is there" if there else "no step is there"
        self._lost = f"step {step} could not be saved to {self.folder / str(step)} ({what_it_says(error)}); {last}"
        logging.warning(
            "%s; training goes on and the next save tries again (failure %d in a row, %d are borne)",
            self._lost,
            self._failures,
            self._most_failures,
        )

    def _sweep(self) -> None:
        """Removes unfinished folders while nothing is being saved.

        Orbax gives the first error back while other threads still write, so what
        is removed then may come again; hence once more before the next save.
        """
        if jax.process_index() == 0:
            for left in self.folder.glob(f"*{ocp.path.atomicity.TMP_DIR_SUFFIX}*"):
                with contextlib.suppress(OSError):
                    left.rmtree(missing_ok=True)

    def restore(
        self, like: TrainState, meta: dict[str, Any], *, step: int | None = None
    ) -> Restored | None:
        """Restores the newest whole step into the shapes and shardings of `like`.

        A damaged step is moved aside, with one line in the log, when an earlier
        one is whole; so the step can be reached and saved again.

        Args:
          like: a state, or its shapes with their shardings; any mesh.
          meta: what this run's model is; must agree with the checkpoint's.
          step: this one and no other.

        Returns:
          None when there is no checkpoint yet. The state has no part of
          `leave_out`.

        Raises:
          CheckpointError: the checkpoint belongs to another model, does not fit
            the mesh, or no step (or not the one asked for) is whole.
        """
        refuse_indivisible(self._kept(like))
        there = steps_in(self.folder) if step is None else [step]
        broken: dict[int, DamagedError] = {}
        for number in reversed(there):
            try:
                restored = self._read(number, like, meta)
            except DamagedError as error:
                broken[number] = error
                continue
            for other, error in broken.items():
                self._move_aside(other, error, number)
            self._policy.whole.add(number)
            return restored
        if broken:
            raise all_damaged(broken)
        return None

    def _read(self, step: int, like: TrainState, meta: dict[str, Any]) -> Restored:
        """One step, verified before and after it is read."""
        where = self.folder / str(step)
        found = damage(where, share=(jax.process_index(), jax.process_count()))
        counts = multihost_utils.process_allgather(np.array(len(found)))
        if counts.sum():
            raise damaged(where, found or ["other processes found damage in their share"])
        stored, arrays = read_meta(self.folder, step), read_json(where / "arrays")
        refuse_other_model(where, stored, meta)
        refuse_other_arrays(where, arrays, shapes_named(self._kept(like)))
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)),
            self._kept(like),
        )
        items = self.manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
            ),
        )
        refuse_other_sums(where, arrays, describe(items["state"]))
        return Restored(step=step, state=items["state"], data=items["data"], meta=stored)

    def _move_aside(self, step: int, error: DamagedError, whole: int) -> None:
        """Renames a damaged step, so that the run can save it again."""
        aside = self.folder / f"{step}.damaged"
        if jax.process_index() == 0:
            if aside.exists():
                aside.rmtree()
            (self.folder / str(step)).rename(aside)
        self.manager.reload()
        logging.warning(
            "%s. Going on from step %d; moved to %s, remove it when you have seen it",
            error,
            whole,
            aside,
        )

    def _kept(self, state: TrainState) -> TrainState:
        """The state without what lies elsewhere."""
        frozen = {name: x for name, x in state.frozen.items() if name not in self.leave_out}
        return state.replace(frozen=frozen)

    def __enter__(self) -> "Checkpoints":
        self._quiet.__enter__()
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        """Waits for what is being written, and lets go.

        Raises:
          CheckpointError: as `settle`; not while another error is on its way.
        """
        try:
            self._join() if kind else self.settle()
        finally:
            self.manager.close()
            if self._failures:
                self._sweep()
            self._quiet.__exit__(None, None, None)
