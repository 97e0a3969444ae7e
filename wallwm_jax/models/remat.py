"""What a block's forward keeps for its backward pass, by name.

The backward pass needs the values of the forward. Kept, they cost memory in
every layer; not kept, they are computed a second time. A policy is a set of
names: a block names what is worth keeping where it is made (`keep`), and the
rest is computed again.

    name                 kept in units of [tokens, D]   not kept, costs again
    self/projected       3      queries, keys, values   3 D^2
    self/attended        1      and the normaliser      the attention, T D
    view/projected       3                              3 D^2
    text/projected       1      (keys: of the text)     D^2
    ffn/hidden           M / D  before the GELU         D M
    ffn/out              1      read by the gate        D M
    */attended           1      view, text: few keys    little

Queries and keys are kept before their norm and rotation: the backward pass of
the norm wants its input. Results of the attentions' output maps are never
kept: D^2 each for one unit. Letters: D width, M hidden width, T tokens.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

ATTENDED = ("self/attended", "view/attended", "text/attended", "state/attended", "video/attended")
PROJECTED = ("self/projected", "view/projected", "text/projected")

SAVED: dict[str, tuple[str, ...]] = {
    "full": (),
    "attention": ATTENDED,
    "projections": ("self/attended", *PROJECTED),
    "selective": ("self/attended", *PROJECTED, "ffn/hidden", "ffn/out"),
}
"""Policy -> names it keeps, least memory first."""

POLICIES = ("none", "full", "attention", "projections", "selective", "dots")
"""What the backward pass computes again of a block: nothing; everything; what
SAVED does not name; everything but the results of matrix products."""


def keep(x: Float[Array, "*B"], name: str) -> Float[Array, "*B"]:
    """`x`, known to the policies as `name`."""
    return checkpoint_name(x, name)


def policy_of(name: str) -> Callable[..., Any] | None:
    """A policy as `jax.checkpoint` takes it; None for "none".

    Raises:
      ValueError: for a name that is not in POLICIES.
    """
    if name not in POLICIES:
        raise ValueError(f"remat policy {name!r} is unknown; use one of {POLICIES}")
    if name == "none":
        return None
    if name == "dots":
        return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint_policies.save_only_these_names(*SAVED[name])


def rematerialised(block: type[nn.Module], policy: str) -> type[nn.Module]:
    """Wraps a block so that its activations are recomputed in the backward pass.

    Raises:
      ValueError: for a policy that is not in POLICIES.
    """
    saved = policy_of(policy)
    return block if saved is None else nn.remat(block, policy=saved, prevent_cse=False)
