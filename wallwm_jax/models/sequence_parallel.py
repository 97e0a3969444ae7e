"""One sequence on several devices: who holds which tokens, and what attention exchanges.

The mesh may cut latent frames (logical axis "frames"). Everything that works
token by token then runs on the frames a device holds. Attention does not: a
query reads keys of other frames. As in DeepSpeed-Ulysses (arXiv 2309.14509) the
cut is moved from tokens to heads and back, with two exchanges around a kernel
that never learns of it:

    [T / c, N, H]  -- all-to-all ->  [T, N / c, H]  attend  -- all-to-all ->  [T / c, N, H]

Each device sends (c-1)/c of what it holds, however long the sequence is, and
does 1/c of the attention. Which of its operands carry frames an attention says
itself (FRAMES_IN).

Merging axes under a cut: [V, F, S] -> VFS with F in parts lies on the devices
in strips, which no sharding can say, so a compiler would bring the whole
together first. Tokens are therefore merged in the order (c V F/c S), where every
device's tokens are one block. Attention does not care about the order of tokens
as long as segments, angles and positions share it. Without a cut c is 1 and all
of this is the plain merge.

Letters: B sequences, V views, F latent frames, S tokens of a frame, T queries,
K keys, N heads, H head dimension, c devices along a sequence, p along the batch.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
from einops import rearrange
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from wallwm_jax.errors import UserError

FRAMES_IN = ("", "batch", "queries", "keys", "both")
"""Where the operands of an attention carry latent frames.

    name      among whom                        what travels
    ""        actions, captions                 nothing: all c devices do the same
    batch     the views of one frame            nothing: a device has its own frames
    queries   video reads its caption           nothing: the caption is everywhere
    both      video among itself                queries, keys, values, result: all-to-all
    keys      actions read the video            keys, values: all-to-all; the result of
                                                each device's heads: all-gather
"""

CUT_HEADS = ("keys", "both")
"""Of these, those whose heads are cut while they attend."""

Segments = tuple[Int[Array, "B T"], Int[Array, "B K"]]


class SequenceCutError(UserError):
    """Sizes that the mesh cannot cut."""


def mesh_axes(name: str) -> tuple[str, ...]:
    """Axes of the active mesh that the active logical rules give `name`."""
    if jax.sharding.get_abstract_mesh().empty:
        return ()
    (axes,) = tuple(nn.logical_to_mesh_axes((name,)))
    return tuple(jax.tree.leaves(axes))


def parts_of(name: str) -> int:
    """Into how many parts the active mesh cuts the logical axis `name`; 1 without a mesh."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[axis] for axis in mesh_axes(name))


def refuse_uneven_frames(frames: int, sequences: int) -> None:
    """Raises SequenceCutError if a cut of the sequences leaves devices unlike shares.

    Args:
      frames: latent frames of a sequence, as the tower counts them.
      sequences: of the global batch.
    """
    cut, rows = parts_of("frames"), parts_of("batch")
    if cut == 1:
        return
    if frames % cut:
        raise SequenceCutError(
            f"{frames} latent frames do not divide over config.mesh.context = {cut}; set "
            f"config.pack.frames to a multiple of {cut}, or another context"
        )
    if sequences % rows:
        raise SequenceCutError(
            f"{sequences} sequences do not divide over slice x data x fsdp = {rows}, which "
            f"config.mesh.context = {cut} needs; set config.pack.sequences to a multiple of {rows}"
        )


def refuse_uneven_heads(heads: int, site: str) -> None:
    """Raises SequenceCutError unless an attention's heads divide over what cuts them."""
    cut, tensor = parts_of("frames"), parts_of("heads")
    if cut > 1 and heads % (cut * tensor):
        raise SequenceCutError(
            f"{site}: {heads} heads do not divide over context x tensor = {cut} x {tensor}; choose "
            f"config.mesh.context and config.mesh.tensor whose product divides {heads}"
        )


def merge_tokens(x: Shaped[Array, "B V F S *D"]) -> Shaped[Array, "B VFS *D"]:
    """Tokens of all views and frames on one axis, one block for each device."""
    return rearrange(x, "b v (c f) s ... -> b (c v f s) ...", c=parts_of("frames"))


def split_tokens(
    x: Shaped[Array, "B VFS *D"], views: int, frames: int
) -> Shaped[Array, "B V F S *D"]:
    """Undoes `merge_tokens`."""
    cut = parts_of("frames")
    sizes = dict(c=cut, v=views, f=frames // cut)
    return rearrange(x, "b (c v f s) ... -> b v (c f) s ...", **sizes)


def frames_to_batch(x: Shaped[Array, "B F *D"]) -> Shaped[Array, "BF *D"]:
    """Every frame a sequence of its own, one block for each device."""
    cut = parts_of("frames")
    rows = parts_of("batch") if cut > 1 else 1
    return rearrange(x, "(p b) (c f) ... -> (p c b f) ...", p=rows, c=cut)


def frames_from_batch(x: Shaped[Array, "BF *D"], frames: int) -> Shaped[Array, "B F *D"]:
    """Undoes `frames_to_batch`."""
    cut = parts_of("frames")
    rows = parts_of("batch") if cut > 1 else 1
    sizes = dict(p=rows, c=cut, f=frames // cut)
    return rearrange(x, "(p c b f) ... -> (p b) (c f) ...", **sizes)


def on_each_device(
    run: Callable[[Array, Array, Array, Segments | None, Array | None], Array],
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K N H"],
    value: Float[Array, "B K N H"],
    segments: tuple[Int[Array, "B T"], Int[Array, "B K"]] | None,
    mask: Bool[Array, "B 1 T K"] | None,
    *,
    frames_in: str = "",
) -> Float[Array, "B T N H"]:
    """Runs an attention on every device of the active mesh, on what falls to that device.

    Whole sequences of some of the heads, with the exchange that this takes; see
    the head of this file. Batch and heads divide over the mesh axes that the
    active logical rules give "batch" and "heads", and where frames are cut over
    those of "frames".

    Args:
      run: attention over (query, key, value, segments, mask) of one device.
      frames_in: one of FRAMES_IN.
    """
    context = mesh_axes("frames") if parts_of("frames") > 1 else ()
    batch, heads = mesh_axes("batch"), mesh_axes("heads")
    batch += context if frames_in == "batch" else ()
    queries = context if frames_in in ("queries", "both") else ()
    keys = context if frames_in in CUT_HEADS else ()
    exchanged = bool(context) and frames_in in CUT_HEADS

    def local(query: Array, key: Array, value: Array, *restrictions: Array | None) -> Array:
        if exchanged:
            key, value = (_heads_for_tokens(x, context) for x in (key, value))
        if exchanged and queries:
            query = _heads_for_tokens(query, context)
        values = run(query, key, value, *restrictions)
        if exchanged and queries:
            return jax.lax.all_to_all(values, context, split_axis=1, concat_axis=2, tiled=True)
        if exchanged:
            return jax.lax.all_gather(values, context, axis=2, tiled=True)
        return values

    # Restrictions are as long as what is attended: whole, unless only queries are cut.
    rows = _one(queries) if frames_in == "queries" else None
    of_query = PartitionSpec(_one(batch), _one(queries), _one(heads), None)
    of_key = PartitionSpec(_one(batch), _one(keys), _one(heads), None)
    # Queries that every device has lose the heads of others without any exchange.
    own = (
        of_query if queries or not exchanged else PartitionSpec(_one(batch), None, heads + context)
    )
    ids = PartitionSpec(_one(batch), rows), PartitionSpec(_one(batch))
    specs = (
        *(own, of_key, of_key),
        None if segments is None else ids,
        None if mask is None else PartitionSpec(_one(batch), None, rows, None),
    )
    # check_vma: a kernel cannot say over which axes its results vary.
    return jax.shard_map(local, in_specs=specs, out_specs=of_query, check_vma=False)(
        query, key, value, segments, mask
    )


def _heads_for_tokens(x: Array, axes: tuple[str, ...]) -> Array:
    """[B, T/c, N, H] on each device -> [B, T, N/c, H]."""
    return jax.lax.all_to_all(x, axes, split_axis=2, concat_axis=1, tiled=True)


def _one(axes: tuple[str, ...]) -> tuple[str, ...] | str | None:
    """Mesh axes of one dimension as a PartitionSpec is usually written."""
    return axes if len(axes) > 1 else axes[0] if axes else None
