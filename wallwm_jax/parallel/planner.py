"""What a training step will need of each device, before anything is compiled.

Exact, from shapes and shardings: parameters, frozen parameters, optimizer state,
average, batch; and what the forward keeps for the backward pass, which is what
JAX's own derivative says it keeps. Estimated: what is in flight beside them.

    peak = resident + larger of  backward   gradients + kept + gathered weights + in flight
                                 update     gradients + update + the new state

In flight are values of one layer while it runs. They grow with its tokens and
its widest value; how many there are at once is measured on compiled programs
(IN_FLIGHT). A new state exists beside the old one, as an update that is not
finite is not taken and the old one must still be there.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

IN_FLIGHT = 32.0
"""Values [tokens, widest] of 16 bits that a layer's backward pass has at once.
From one compiled step (Wan2.2-TI2V-5B, v5p:4x4x4, four sequences, "selective",
libtpu 0.0.42.1), less padding that program still had; it then met another one
within 2 % (v6e:16x16, two sequences, "attention"; tests/parallel/test_planner).
Stages that do not differentiate the video tower have fewer."""

WIRE_BYTES = 2
"""Weights and gradients travel in 16 bits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes of one device.

    Attributes:
      resident: name -> bytes that are there from step to step.
      backward, update: name -> bytes there besides, in each of the two phases.
      limit: what a device has; None when it is not known.
    """

    resident: Mapping[str, int]
    backward: Mapping[str, int]
    update: Mapping[str, int]
    limit: int | None = None

    @property
    def temporaries(self) -> int:
        """The larger phase."""
        return max(sum(self.backward.values()), sum(self.update.values()))

    @property
    def peak(self) -> int:
        """Everything at the worst moment."""
        return sum(self.resident.values()) + self.temporaries

    @property
    def fits(self) -> bool:
        """Whether a device has that much."""
        return self.limit is None or self.peak <= self.limit

    def to_json(self) -> dict[str, Any]:
        """All figures, JSON values."""
        return {
            "resident": dict(self.resident),
            "backward": dict(self.backward),
            "update": dict(self.update),
            "peak_bytes": self.peak,
            "limit_bytes": self.limit,
            "fits": self.fits,
        }

    def table(self) -> str:
        """The figures for a person."""
        rows: list[tuple[str, int | str]] = []
        for title, part in (
            ("resident", self.resident),
            ("during the backward pass", self.backward),
            ("during the update", self.update),
        ):
            rows.append((title, sum(part.values())))
            rows += [(f"  {name}", size) for name, size in part.items()]
        rows.append(("peak", self.peak))
        limit = "unknown" if self.limit is None else f"{self.limit / 1e9:.2f} GB"
        rows.append(("a device has", limit))
        rows.append(("fits", "yes" if self.fits else "no"))
        shown = lambda x: x if isinstance(x, str) else f"{x / 1e9:8.2f} GB"  # noqa: E731
        return "\n".join(f"{name:<28} {shown(value)}" for name, value in rows)


def bytes_per_device(tree: Any) -> int:
    """Bytes that one device holds of a tree of shapes with shardings."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def kept_bytes(loss: Callable[[Any], Any], params: Any, known: Any) -> int:
    """Bytes that the derivative of `loss` keeps, over all devices; nothing is computed.

    Args:
      loss: scalar function of the parameters.
      params: shapes of what is differentiated.
      known: shapes of everything else it reads; loss takes (params, known).

    Returns:
      Without the arguments themselves, which are there anyway.
    """

    def kept(params: Any, known: Any) -> list[jax.Array]:
        _, back = jax.vjp(lambda p: loss(p, known), params)
        there = {id(x) for x in jax.tree.leaves((params, known))}
        found = {id(x): x for x in jax.tree.leaves(back)}
        return [x for key, x in found.items() if key not in there]

    shapes = jax.eval_shape(kept, params, known)
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in shapes)


def kept_on_device(
    kept: Callable[[int, int], int], *, sequences: int, frames: int, parts: int, context: int
) -> int:
    """Bytes that the forward keeps on one device, sequences and their frames cut.

    Two batches tell what grows with the sequences from whole weights that are
    kept; where frames are cut, a longer one tells what of it has frames. All else
    (text, actions) every device along a sequence holds.

    Args:
      kept: `kept_bytes` of (sequences, frames), linear in each.
      sequences, frames: of the global batch, and of each of its sequences.
      parts: into how many the mesh cuts the sequences of a batch.
      context: into how many it cuts the frames of a sequence.
    """
    once = kept(parts, frames)
    grows = (kept(2 * parts, frames) - once) // parts
    weights = once - parts * grows
    if context > 1:
        framed = (kept(parts, 2 * frames) - once) // parts
        grows += framed // context - framed
    return weights + grows * sequences // parts


def step_plan(
    state: Any, batch: Any, *, kept: int, layer_weights: int, in_flight: int, limit: int | None
) -> Plan:
    """The plan of a training step.

    Args:
      state: shapes with shardings, with the fields of `train.state.TrainState`.
      batch: shapes with shardings.
      kept: bytes that the forward keeps on one device for the backward pass.
      layer_weights: bytes of one layer's weights, whole, as they travel.
      in_flight: bytes of one layer's largest value on one device.
      limit: bytes a device has.
    """
    gradients = bytes_per_device(state.params)
    return Plan(
        resident={
            "parameters": bytes_per_device(state.params),
            "frozen parameters": bytes_per_device(state.frozen),
            "optimizer state": bytes_per_device(state.opt_state),
            "average": bytes_per_device(state.ema),
            "batch": bytes_per_device(batch),
        },
        backward={
            "gradients": gradients,
            "kept for the backward": kept,
            "gathered weights": 2 * layer_weights,
            "in flight": int(IN_FLIGHT * in_flight),
        },
        update={
            "gradients": gradients,
            "update": gradients,
            "new optimizer state": bytes_per_device(state.opt_state),
        },
        limit=limit,
    )


def least_traffic(
    trained: Any, frozen: Any, again: Any, mesh: Mesh | AbstractMesh, axis: str = "fsdp"
) -> dict[str, int]:
    """The least that sliced parameters make every device send and receive in a step.

    Args:
      trained, frozen: shapes with shardings; of frozen ones, those that are read.
      again: of the trained ones, those that are not kept whole from the forward
        to the backward pass.
      mesh: the run's mesh.
      axis: mesh axis that slices them.

    Returns:
      kind -> bytes, counted like `collectives`: every sliced weight whole, as
      often as it is gathered; gradients whole, once; and the slices' sum over
      the mesh axes that hold copies.
    """
    if mesh.shape[axis] == 1:
        return {"all-gather": 0, "reduce-scatter": 0, "all-reduce": 0}
    copies = math.prod(mesh.shape.get(name, 1) for name in ("slice", "data", "context"))
    moved, read, twice = (_sliced(x, axis) * WIRE_BYTES for x in (trained, frozen, again))
    return {
        "all-gather": moved + twice + read,
        "reduce-scatter": moved,
        "all-reduce": moved // mesh.shape[axis] if copies > 1 else 0,
    }


def _sliced(tree: Any, axis: str) -> int:
    """Scalars of the leaves that a mesh axis slices."""
    return sum(
        int(np.prod(x.shape))
        for x in jax.tree.leaves(tree)
        if any(axis in jax.tree.leaves(name) for name in x.sharding.spec)
    )
