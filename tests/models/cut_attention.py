"""A command: attention on eight simulated devices whose mesh cuts sequences, against one's.

python tests/models/cut_attention.py IMPLEMENTATION
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from wallwm_jax.models import attention
from wallwm_jax.models.attention import attend
from wallwm_jax.models.attention_tpu import splash
from wallwm_jax.models.sequence_parallel import SequenceCutError
from wallwm_jax.parallel.mesh import activate, make_mesh

MESHES = (
    dict(context=4, fsdp=2),
    dict(context=2, fsdp=2, tensor=2),
    dict(context=2, data=2, slice=2),
)
COLLECTIVES = ("all_to_all", "all_gather", "reduce_scatter")
LENGTHS = {"batch": (6, 6), "queries": (24, 14), "keys": (10, 24), "both": (24, 24)}
"""Queries and keys of every kind of cut, unlike where they may be."""


def arguments(frames_in: str) -> tuple:
    """(query, key, value, segments, weights of the loss)."""
    queries, keys = LENGTHS[frames_in]
    rows = 16 if frames_in == "batch" else 4
    normal = lambda i, t: jax.random.normal(jax.random.key(i), (rows, t, 8, 16))  # noqa: E731
    rng = np.random.default_rng(0)
    # Ids in no order, and some of the keys are padding.
    ids = rng.integers(0, 3, (rows, queries)), rng.integers(0, 3, (rows, keys))
    ids[0][:, :3] = ids[1][:, :3] = np.arange(3)
    if frames_in == "both":
        ids = ids[0], ids[0]
    else:
        ids[1][:, -2:] = -1
    segments = tuple(jnp.asarray(x, jnp.int32) for x in ids)
    return normal(0, queries), normal(1, keys), normal(2, keys), segments, normal(3, queries)


def loss(q, k, v, segments, weights, **options):
    """A scalar that every attended value enters with a weight of its own."""
    return jnp.sum(attend(q, k, v, segments=segments, **options) * weights)


def check(frames_in: str, implementation: str) -> str:
    """Compares values and gradients; counts what the traced program exchanges."""
    operands = arguments(frames_in)
    differentiated = functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    here = functools.partial(loss, frames_in=frames_in, implementation=implementation)
    traced = jax.jit(differentiated(here)).trace(*operands)
    for got, want in zip(
        jax.tree.leaves(traced.lower().compile()(*operands)),
        jax.tree.leaves(ALONE[frames_in]),
        strict=True,
    ):
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), frames_in
    text = str(traced.jaxpr)
    return " ".join([frames_in, *(str(text.count(f"{name}[")) for name in COLLECTIVES)])


def refused(implementation: str) -> bool:
    """Whether heads that do not divide are refused in one line that says what to do."""
    q, k, v = (x[:, :, :5] for x in arguments("both")[:3])
    try:
        attend(q, k, v, frames_in="both", implementation=implementation)
    except SequenceCutError as error:
        return "5 heads do not divide over context x tensor" in str(error) and "\n" not in str(
            error
        )
    return False


def main(implementation: str) -> None:
    """One line for every kind of cut on every mesh."""
    surroundings = attention.surroundings
    attention.splash = functools.partial(splash, interpret=True)
    if implementation == "splash":
        attention.surroundings = lambda: ("tpu", surroundings()[1])
    for sizes in MESHES:
        with activate(make_mesh(sizes)):
            for frames_in in LENGTHS:
                print(check(frames_in, implementation))
            if refused(implementation):
                print("refused")


ALONE = {kind: jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments(kind)) for kind in LENGTHS}

if __name__ == "__main__":
    main(sys.argv[1])
