"""Attention on TPU: the splash kernel that JAX ships, made to fit our shapes.

Letters: B batch, T queries, S keys, N heads, H head dimension.

The kernel works on blocks, takes one sequence at a time with heads first, and
does not scale. Around it: the scale goes onto the queries, lengths are padded
to whole blocks with ids that match nothing, and the batch is mapped. This is
the kernel on one device: the compiler cannot partition it, so under a mesh
`sequence_parallel.on_each_device` does.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

LANES = 128
"""Blocks are multiples of this: the width of the TPU's vector registers."""

MAX_BLOCK = 512
"""Largest block we ask for: the default of the public TPU trainers of Wan."""

ROW_OVERHEAD = 64
"""What a block costs besides its rows, in rows. A guess that is only used to
weigh padding against small blocks; nothing here has been timed on a TPU."""

PADDED_QUERY, PADDED_KEY = np.iinfo(np.int32).min, np.iinfo(np.int32).min + 1
"""Segment ids of padding: unlike each other and unlike every id in use."""


def block_size(length: int) -> int:
    """Rows of a block for `length` tokens: little padding, few blocks."""
    cost = lambda block: -(-length // block) * (block + ROW_OVERHEAD)  # noqa: E731
    return min(range(MAX_BLOCK, 0, -LANES), key=cost)


def splash(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    segments: tuple[Int[Array, "B T"], Int[Array, "B S"]] | None,
    *,
    label: str = "attended",
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Softmax attention with scale 1/sqrt(H), on one device.

    Args:
      segments: (query ids, key ids); None means one segment. A query whose
        segment has no key gets a finite value.
      label: name of the result and its normaliser in rematerialisation policies.
      interpret: runs the kernel as plain operations, on any backend (tests).
    """
    length, keys = query.shape[1], key.shape[1]
    block_q, block_k = block_size(length), block_size(keys)
    if segments is None and keys % block_k:  # padded keys must be told apart
        batch = query.shape[0]
        segments = jnp.zeros((batch, length), jnp.int32), jnp.zeros((batch, keys), jnp.int32)
    ids = None
    if segments is not None:
        ids = kernels.SegmentIds(
            _padded(segments[0].astype(jnp.int32), block_q, PADDED_QUERY),
            _padded(segments[1].astype(jnp.int32), block_k, PADDED_KEY),
        )
    query, key, value = (
        jnp.moveaxis(_padded(x, block), 2, 1)
        for x, block in (
            (query * query.shape[-1] ** -0.5, block_q),
            (key, block_k),
            (value, block_k),
        )
    )
    kernel = _kernel(*query.shape[1:3], key.shape[2], block_q, block_k, label, interpret)
    values = jax.vmap(kernel)(query, key, value, ids)
    return jnp.moveaxis(values, 1, 2)[:, :length]


def _padded(x: Array, block: int, value: int = 0) -> Array:
    """`x` [B, T, ...] with T filled up to whole blocks."""
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, -x.shape[1] % block)
    return jnp.pad(x, widths, constant_values=value)


def _kernel(
    heads: int,
    queries: int,
    keys: int,
    block_q: int,
    block_k: int,
    label: str,
    interpret: bool,
) -> kernels.SplashAttentionKernel:
    """The kernel for padded lengths, with a backward pass in one piece."""
    return kernels.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((queries, keys)) for _ in range(heads)]),
        block_sizes=kernels.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_q_dkv=block_q,
            block_kv_dkv=block_k,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        # Named inside the kernel, a policy that keeps the result keeps the
        # normaliser too, and the kernel is not run again.
        residual_checkpoint_name=label,
        interpret=interpret,
    )
