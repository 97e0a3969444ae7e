"""Whether a checkpoint and a run belong together; what differs is named, key by key.

Sizes of the model, the words its captions were numbered with, the folders it
inherits from, and every array of the state: a run goes on only from a step that
agrees in all of them. What changes only how a model runs may differ.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from etils import epath

from wallwm_jax.train.array_sums import Record, named, shape_record
from wallwm_jax.train.seal import CheckpointError, damaged

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

SHOWN = 8
"""Differences that a message lists; a wrong optimizer differs in hundreds."""

MUST_BE_FINITE = ("params", "frozen", "opt_state", "ema")
"""Fields of the state in which a NaN or an infinity ends everything after it."""


def refuse_other_model(
    where: epath.Path | Path, stored: dict[str, Any], wanted: dict[str, Any]
) -> None:
    """Compares the "meta" of a checkpoint with a run's.

    Raises:
      CheckpointError: naming every size of the model, every folder it inherits
        from, the vocabulary and the views, where they differ.
    """
    have, want = (
        {k: v for k, v in _flat(m["model"]).items() if k.split(".")[-1] not in RUNTIME_KEYS}
        for m in (stored, wanted)
    )
    different = _differences("", have, want)
    have, want = (m.get("pretrained", {}) for m in (stored, wanted))
    different += [
        f"pretrained.{slot}: checkpoint {_folder_name(have.get(slot))}, config {_folder_name(want.get(slot))}"
        for slot in sorted(have.keys() | want.keys())
        if have.get(slot, {}).get("sha256") != want.get(slot, {}).get("sha256")
    ]
    have, want = (_input_of(m.get("input", {})) for m in (stored, wanted))
    different += _differences("input.", have, want)
    if different:
        raise CheckpointError(
            f"{where} holds another model ({'; '.join(different)}); use its config, or another --config.workdir"
        )


def refuse_other_arrays(
    where: epath.Path | Path, stored: dict[str, Record], wanted: dict[str, Record]
) -> None:
    """Compares the arrays of a checkpoint with those a run wants to restore.

    Raises:
      CheckpointError: naming every array that is missing, left over, or of
        another shape or dtype.
    """
    have, want = (
        {name: f"{r['dtype']}{r['shape']}" for name, r in records.items()}
        for records in (stored, wanted)
    )
    if different := _differences("", have, want):
        more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise CheckpointError(
            f"{where} holds other arrays ({'; '.join(different[:SHOWN])}{more}); "
            "use its config, or another --config.workdir"
        )


def refuse_indivisible(tree: Any) -> None:
    """Refuses shapes that their shardings cannot cut evenly.

    Args:
      tree: of arrays or ShapeDtypeStructs; those without a sharding pass.

    Raises:
      CheckpointError: naming the first such array, its axis and the mesh.
    """
    for name, leaf in named(tree).items():
        if not isinstance(sharding := getattr(leaf, "sharding", None), jax.sharding.NamedSharding):
            continue
        for axis, (size, axes) in enumerate(zip(leaf.shape, sharding.spec, strict=False)):
            axes = (axes,) if isinstance(axes, str) else axes or ()
            parts = 1
            for mesh_axis in axes:
                parts *= sharding.mesh.shape[mesh_axis]
            if size % parts:
                raise CheckpointError(
                    f"{name} has {size} entries on axis {axis}, which do not divide over {parts} devices "
                    f"(mesh axes {', '.join(axes)}); choose config.mesh sizes that divide it"
                )


def refuse_other_sums(
    where: epath.Path | Path, saved: dict[str, Record], found: dict[str, Record]
) -> None:
    """Compares arrays that were restored with what was in memory when they were saved.

    Raises:
      DamagedError: naming every array that differs or is not finite.
    """
    lines = [f"{name} is not finite" for name in not_finite(found)]
    lines += [
        f"{name} has sum {record['sum']} and had {saved.get(name, {}).get('sum')} in memory"
        for name, record in found.items()
        if saved.get(name) != record
    ]
    if lines:
        raise damaged(where, lines)


def not_finite(arrays: dict[str, Record]) -> list[str]:
    """Names of parameters, averages and optimizer buffers with a NaN or an infinity."""
    return [
        name
        for name, record in arrays.items()
        if not record["finite"] and name.split("/")[0] in MUST_BE_FINITE
    ]


def shapes_named(tree: Any) -> dict[str, Record]:
    """Shape and dtype of every array of a tree, by path."""
    return {name: shape_record(leaf) for name, leaf in named(tree).items()}


def _differences(prefix: str, have: dict[str, Any], want: dict[str, Any]) -> list[str]:
    return [
        f"{prefix}{key}: checkpoint {have.get(key, 'absent')}, config {want.get(key, 'absent')}"
        for key in sorted(have.keys() | want.keys())
        if have.get(key) != want.get(key)
    ]


def _input_of(page: dict[str, Any]) -> dict[str, Any]:
    """What parameters mean nothing without: token numbers and the order of views."""
    known = {"views": list(page["views"])} if "views" in page else {}
    if words := page.get("tokeniser"):
        text = json.dumps(words, sort_keys=True).encode()
        known["tokeniser"] = f"SHA-256 {hashlib.sha256(text).hexdigest()[:12]}"
    return known


def _folder_name(record: dict[str, Any] | None) -> str:
    return f"{record['folder']} ({record['sha256'][:12]})" if record else "none"


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path: list(tree) if isinstance(tree, tuple) else tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{path}.{key}" if path else key)
    return flat
