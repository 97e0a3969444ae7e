"""Checkpoints: train state, data position and what the model means, as one unit.

One Orbax step holds three items:

    state   TrainState, sharded arrays
    data    position of this process's data iterator (JSON)
    meta    model sizes, statistics, vocabulary, views, codec (JSON)

so a checkpoint says by itself how to normalise, tokenise and decode. Frozen parts
that lie in folders of their own (config.pretrained) are not copied: "meta" names
them with their SHA-256. Saving is asynchronous; a step counts only once it is committed, and a run killed at any
instant continues from the last committed one.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from wallwm_jax.errors import UserError
from wallwm_jax.train.state import TrainState

RUNTIME_KEYS = (
    "remat",
    "unroll",
    "attention",
    "dtype",
    "gate_bias",
    "embedding_scale",
    "residual_scale",
)
"""Entries of a model's config that change how it runs or starts, not what it is."""


class CheckpointError(UserError):
    """A checkpoint is missing, or belongs to another model; one line."""


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
        folder: Path | str,
        *,
        every: int = 100,
        keep: int = 2,
        leave_out: tuple[str, ...] = (),
    ):
        """Opens (and for training creates) the folder.

        Args:
          folder: where the steps lie; made absolute, as Orbax wants it.
          every: save at multiples of this many steps (and when told to).
          keep: newest steps kept.
          leave_out: frozen parts that lie elsewhere.

        Raises:
          CheckpointError: the folder cannot be written.
        """
        self.folder, self.leave_out = Path(folder).absolute(), leave_out
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            save_interval_steps=every,
            enable_async_checkpointing=True,
            create=True,
            cleanup_tmp_directories=True,
        )
        try:
            self.manager = ocp.CheckpointManager(
                self.folder, options=options, item_names=("state", "data", "meta")
            )
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoints to {self.folder}: {error.strerror or error}; choose another --config.workdir"
            ) from error

    def save(
        self, state: TrainState, data: dict[str, Any], meta: dict[str, Any], *, force: bool = False
    ) -> bool:
        """Starts saving the state's step if it is due; returns whether it did."""
        step = int(state.step)
        if step in self.manager.all_steps():
            return False
        return self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(self._kept(state)),
                data=ocp.args.JsonSave(data),
                meta=ocp.args.JsonSave(meta),
            ),
            force=force,
        )

    def restore(self, like: TrainState, meta: dict[str, Any]) -> Restored | None:
        """Restores the newest step into the shapes and shardings of `like`.

        Args:
          like: a state, or its shapes with their shardings.
          meta: what this run's model is; must agree with the checkpoint's.

        Returns:
          None when there is no checkpoint yet. The state has no part of
          `leave_out`.

        Raises:
          CheckpointError: the checkpoint belongs to another model.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        stored = read_meta(self.folder, step)
        refuse_other_model(self.folder / str(step), stored, meta)
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
        return Restored(step=step, state=items["state"], data=items["data"], meta=stored)

    def _kept(self, state: TrainState) -> TrainState:
        """The state without what lies elsewhere."""
        frozen = {name: x for name, x in state.frozen.items() if name not in self.leave_out}
        return state.replace(frozen=frozen)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        """Waits for what is being written, and lets go."""
        self.manager.wait_until_finished()
        self.manager.close()


def latest_step(folder: Path | str) -> int:
    """Newest committed step in a folder of checkpoints.

    Raises:
      CheckpointError: there is none.
    """
    folder = Path(folder).absolute()
    steps = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
    if not steps:
        raise CheckpointError(
            f"no checkpoint in {folder}; train that stage first, or set its workdir"
        )
    return max(steps)


def read_meta(folder: Path | str, step: int) -> dict[str, Any]:
    """The "meta" item of one step."""
    path = Path(folder).absolute() / str(step) / "meta"
    return ocp.JsonCheckpointHandler().restore(path, args=ocp.args.JsonRestore())


def read_params(folder: Path | str, step: int, *, average: bool = True) -> dict[str, Any]:
    """All parameters of a checkpoint: frozen parts and trained parts together.

    Args:
      folder: of the run's checkpoints.
      step: which one.
      average: the trained parts' EMA (for inference and later stages) or the
        raw parameters.

    Returns:
      {"codec", "text", "video", "action"} as numpy arrays, on the host, less
      what the run inherited from folders.
    """
    path = Path(folder).absolute() / str(step) / "state"
    handler = ocp.PyTreeCheckpointHandler()
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
    return restored["frozen"] | restored[trained]


def refuse_other_model(where: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises CheckpointError naming every entry of meta["model"], and every folder, that differs."""
    have, want = (
        {k: v for k, v in _flat(m["model"]).items() if k.split(".")[-1] not in RUNTIME_KEYS}
        for m in (stored, wanted)
    )
    different = [
        f"{key}: checkpoint {have.get(key, 'absent')}, config {want.get(key, 'absent')}"
        for key in sorted(have.keys() | want.keys())
        if have.get(key) != want.get(key)
    ]
    have, want = (m.get("pretrained", {}) for m in (stored, wanted))
    different += [
        f"pretrained.{slot}: checkpoint {_folder_name(have.get(slot))}, config {_folder_name(want.get(slot))}"
        for slot in sorted(have.keys() | want.keys())
        if have.get(slot, {}).get("sha256") != want.get(slot, {}).get("sha256")
    ]
    if different:
        raise CheckpointError(
            f"{where} holds another model ({'; '.join(different)}); use its config, or another --config.workdir"
        )


def _folder_name(record: dict[str, Any] | None) -> str:
    return f"{record['folder']} ({record['sha256'][:12]})" if record else "none"


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: list(tree) if isinstance(tree, tuple) else tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{path}.{key}" if path else key)
    return flat
