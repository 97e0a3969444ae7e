"""The one door through which every tower attends.

Letters: B batch, T queries, S keys, N heads, H head dimension.

Packed sequences are described by segment ids, never by a dense mask: a fused
kernel takes the ids as they are, and only the plain implementation pays for
the [T, S] matrix. Tokens attend exactly to the keys of their own segment.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from wallwm_jax.models.attention_tpu import LANES, splash
from wallwm_jax.models.sequence_parallel import (
    CUT_HEADS,
    on_each_device,
    parts_of,
    refuse_uneven_heads,
)

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")
"""Names `attend` accepts: the choice left to `pick`; plain operations; NVIDIA's
fused kernel; the Pallas kernel for TPU."""

KERNELS = {"gpu": "cudnn", "tpu": "splash"}
"""The fused kernel of each platform that has one."""

LOOPED_FROM = 512 * 512
"""Logits of one head from which a CPU is faster with one head after another:
they then stay in its cache (measured on two cores; equal at 512 x 512, twice as
fast at 1536 x 1536, slower below 256 x 256)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """All that decides which implementation can run.

    Attributes:
      batch, heads, head_dim: sizes over all devices.
      queries, keys: as many as one device attends with at once.
      dtype: of queries, keys and values.
      segments: whether segment ids are given.
      mask: whether a dense mask is given.
      platform: "cpu", "gpu" or "tpu", where the program will run.
      shards: into how many parts the mesh cuts (batch, heads).
    """

    batch: int
    queries: int
    keys: int
    heads: int
    head_dim: int
    dtype: str = "float32"
    segments: bool = False
    mask: bool = False
    platform: str = "cpu"
    shards: tuple[int, int] = (1, 1)


class Pick(NamedTuple):
    """An implementation and why it was picked."""

    implementation: str
    reason: str


def pick(problem: Problem, implementation: str = "auto") -> Pick:
    """Which implementation runs, and why.

    | asked for | platform | runs | unless |
    |---|---|---|---|
    | auto | tpu | splash | dense mask, T or S < 128, H not in 8s or > 256, batch or heads uneven: xla |
    | auto | gpu | cudnn | not 16-bit, H not in 8s or > 128, masked or packed at odd T or S: xla |
    | auto | cpu, other | xla | |
    | xla | any | xla | |
    | cudnn, splash | its own | as asked | any of the above but "T or S < 128": an error |

    "Uneven": not divisible over the mesh axes that hold batch and heads.

    Raises:
      ValueError: an unknown name, or a kernel asked for by name that cannot
        run; never another one in its place.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation {implementation!r} is unknown; use one of {IMPLEMENTATIONS}"
        )
    if implementation == "xla":
        return Pick("xla", "asked for")
    if implementation in KERNELS.values():
        obstacle = _obstacle(problem, implementation)
        if obstacle is not None:
            raise ValueError(
                f"attention implementation {implementation!r} cannot run: {obstacle}; use 'auto' or 'xla'"
            )
        return Pick(implementation, "asked for")
    kernel = KERNELS.get(problem.platform)
    if kernel is None:
        return Pick("xla", f"there is no kernel for {problem.platform}")
    obstacle = _obstacle(problem, kernel)
    if obstacle is None and kernel == "splash" and min(problem.queries, problem.keys) < LANES:
        obstacle = f"{problem.queries}x{problem.keys} is less than one block of {LANES}"
    if obstacle is not None:
        return Pick("xla", f"no {kernel}: {obstacle}")
    return Pick(kernel, f"the kernel for {problem.platform}")


def _obstacle(problem: Problem, kernel: str) -> str | None:
    """Why a kernel cannot run; None when it can."""
    p = problem
    if KERNELS.get(p.platform) != kernel:
        return f"it does not run on {p.platform}"
    if kernel == "cudnn":
        if p.dtype not in ("bfloat16", "float16"):
            return f"it takes bfloat16 or float16, not {p.dtype}"
        if p.head_dim % 8 or p.head_dim > 128:
            return f"head_dim {p.head_dim} is not a multiple of 8 up to 128"
        if (p.segments or p.mask) and (p.queries % 2 or p.keys % 2):
            return f"with a mask or segments it needs even lengths, not {p.queries}x{p.keys}"
        return None
    if p.mask:
        return "it takes segments, not a dense mask"
    if p.head_dim % 8 or p.head_dim > 256:
        return f"head_dim {p.head_dim} is not a multiple of 8 up to 256"
    for what, size, parts in zip(("batch", "heads"), (p.batch, p.heads), p.shards, strict=True):
        if size % parts:
            return f"{what} {size} does not divide over the mesh's {parts} parts"
    return None


def segment_mask(
    query_segments: Int[Array, "B T"], key_segments: Int[Array, "B S"]
) -> Bool[Array, "B 1 T S"]:
    """True where query and key belong to one segment, for all heads alike."""
    return (query_segments[:, :, None] == key_segments[:, None, :])[:, None]


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    *,
    segments: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None = None,
    mask: Bool[Array, "B 1 T S"] | None = None,
    frames_in: str = "",
    implementation: str = "auto",
    site: str = "attention",
    label: str = "attended",
) -> Float[Array, "B T N H"]:
    """Softmax attention with scale 1/sqrt(H), blocked across segments.

    Where the mesh cuts sequences, every implementation runs on whole sequences
    of some of the heads, see `sequence_parallel`.

    Args:
      query, key, value: heads apart, as the projections give them.
      segments: (query ids, key ids); None means one segment.
      mask: further restriction, True may attend (the sight cone).
      frames_in: which operands carry the latent frames that a mesh may cut, one
        of `sequence_parallel.FRAMES_IN`.
      implementation: one of IMPLEMENTATIONS; `pick` decides and the choice is
        logged once for each site and shape.
      site: where this is called, for the log.
      label: the result's name in rematerialisation policies.

    Returns:
      The attended values. A query whose keys are all masked gets a finite
      value that no loss may count.

    Raises:
      ValueError: an implementation that is unknown or cannot run.
      SequenceCutError: heads that do not divide over what cuts them.
    """
    platform, shards = surroundings()
    cut = parts_of("frames") if frames_in else 1
    if frames_in in CUT_HEADS:
        refuse_uneven_heads(query.shape[2], site)
    problem = Problem(
        batch=query.shape[0],
        queries=query.shape[1] // (cut if frames_in == "queries" else 1),
        keys=key.shape[1],
        heads=query.shape[2],
        head_dim=query.shape[3],
        dtype=query.dtype.name,
        segments=segments is not None,
        mask=mask is not None,
        platform=platform,
        shards=(
            shards[0] * (cut if frames_in == "batch" else 1),
            shards[1] * (cut if frames_in in CUT_HEADS else 1),
        ),
    )
    choice = pick(problem, implementation)
    _tell(site, problem, choice)
    run = functools.partial(_run, choice.implementation, platform, label)
    mesh = jax.sharding.get_abstract_mesh()
    if cut > 1 or (choice.implementation == "splash" and not mesh.empty):
        values = on_each_device(run, query, key, value, segments, mask, frames_in=frames_in)
    else:
        values = run(query, key, value, segments, mask)
    # The TPU kernel has named its result itself.
    return values if choice.implementation == "splash" else checkpoint_name(values, label)


def _run(
    implementation: str,
    platform: str,
    label: str,
    query: Array,
    key: Array,
    value: Array,
    segments: tuple[Array, Array] | None,
    mask: Array | None,
) -> Array:
    """An implementation on what it is given: everything, or one device's share."""
    if implementation == "splash":
        return splash(query, key, value, segments, label=label)
    if segments is not None:
        allowed = segment_mask(*segments)
        mask = allowed if mask is None else mask & allowed
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    large = query.shape[1] * key.shape[1] >= LOOPED_FROM
    alone = jax.sharding.get_abstract_mesh().size <= 1
    plain = _one_by_one if platform == "cpu" and large and alone else _all_heads
    return plain(query, key, value, mask)


def surroundings() -> tuple[str, tuple[int, int]]:
    """Platform of the program being traced, and the parts its mesh cuts (batch, heads) into.

    The platform is that of the active mesh's devices: a program compiled ahead
    of time runs elsewhere than on this host. Without a mesh it is the default
    backend's.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.default_backend(), (1, 1)
    device = mesh.abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return platform, (parts_of("batch"), parts_of("heads"))


@functools.cache  # the same line once, not once per trace
def _tell(site: str, problem: Problem, choice: Pick) -> None:
    """Says in the log which implementation runs."""
    p = problem
    logging.info(
        "%s: %s attention for [%d, %d x %d, %d x %d] %s on %s (%s)",
        site,
        choice.implementation,
        *(p.batch, p.queries, p.keys, p.heads, p.head_dim),
        *(p.dtype, p.platform, choice.reason),
    )


def _all_heads(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Two einsums around a float32 softmax.

    Heads are brought to the front first: the products then run on contiguous
    matrices, up to twice as fast on a CPU.
    """
    query, key, value = (jnp.moveaxis(x, 2, 1) for x in (query, key, value))
    return jnp.moveaxis(_heads_first(query, key, value, mask), 1, 2)


def _one_by_one(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """The same, one head of one sequence after another, recomputed in the backward pass."""
    query, key, value = (jnp.moveaxis(x, 2, 1) for x in (query, key, value))

    def sequence(args: tuple) -> Array:
        *heads, allowed = args
        one = jax.checkpoint(lambda x: _heads_first(*x, None if mask is None else allowed[0]))
        return jax.lax.map(one, tuple(heads))

    values = jax.lax.map(sequence, (query, key, value, mask))
    return jnp.moveaxis(values, 1, 2)


def _heads_first(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Attention over [..., T, H], [..., S, H]; logits and softmax in float32."""
    scale = query.shape[-1] ** -0.5
    if query.dtype == jnp.float32:
        query, scale = query * scale, None  # fewer numbers than there are logits
    logits = jnp.einsum("...th,...sh->...ts", query, key, preferred_element_type=jnp.float32)
    if scale is not None:
        logits = logits * scale  # a 16-bit query would lose digits
    if mask is not None:
        logits = jnp.where(mask, logits, -1e30)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("...ts,...sh->...th", weights, value)
