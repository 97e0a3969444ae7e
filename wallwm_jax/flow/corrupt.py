"""Rectified flow: what is mixed, what is predicted, and how predictions convert.

    z   = (1 - sigma) z0 + sigma eps        forward process, sigma in [0, 1]   (1)
    v   = eps - z0                          velocity dz/dsigma                 (2)
    z0  = z - sigma v                       from (1), (2)                      (3)
    eps = z + (1 - sigma) v                 from (1), (2)                      (4)

sigma = 0 is data and sigma = 1 is pure noise. One modality at a time: video
latents and actions each call these functions with their own levels.

A level has the LEADING axes of the data it belongs to, any of size 1: sigma
[B, A] goes with actions [B, A, 20], and sigma [B, 1, F] with latents
[B, V, F, h, w, C]. In packed sequences every event has its own level, so a
level per example would not do.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

Level = Float[Array, "..."] | float

KINDS = ("v", "x", "eps")
"""What a network may predict: velocity, data (x-prediction), noise."""

TINY = 1e-5
"""Smallest denominator. x-prediction at sigma = 0 and eps-prediction at sigma = 1
say nothing about the velocity; the quotient then is finite but meaningless."""


def expand(
    level: Shaped[Array, "..."] | float, data: Shaped[Array, "..."]
) -> Shaped[Array, "..."]:
    """Appends axes of size 1 to a level (or mask) until it broadcasts against `data`.

    Raises:
      ValueError: the axes of `level` are not the leading axes of `data`.
    """
    level = jnp.asarray(level)
    fits = level.ndim <= data.ndim and all(
        have in (1, want) for have, want in zip(level.shape, data.shape, strict=False)
    )
    if not fits:
        raise ValueError(
            f"level {level.shape} does not lead data {data.shape}; insert axes of size 1 so "
            f"that it starts like the data"
        )
    return level.reshape(level.shape + (1,) * (data.ndim - level.ndim))


def corrupt(
    z0: Float[Array, "*data"], eps: Float[Array, "*data"], sigma: Level
) -> Float[Array, "*data"]:
    """Equation (1). `sigma` has the leading axes of `z0`."""
    sigma = expand(sigma, z0)
    return (1 - sigma) * z0 + sigma * eps


def levels(
    sigma: Float[Array, "..."],
    *,
    clean: Bool[Array, "..."] | None = None,
    noise: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Levels per element when some elements are given and others withheld.

    Args:
      sigma: level of the ordinary elements, broadcasting against the masks.
      clean: observed elements (conditioning latent frames): level 0.
      noise: tube elements: level 1, their content is withheld. Wins over
        `clean`: a tube that is masked in the conditioning hides it there too.

    Returns:
      Levels in the broadcast shape of `sigma` and the masks.
    """
    if clean is not None:
        sigma = jnp.where(clean, 0.0, sigma)
    if noise is not None:
        sigma = jnp.where(noise, 1.0, sigma)
    return sigma


def target(
    z0: Float[Array, "*data"], eps: Float[Array, "*data"], kind: str = "v"
) -> Float[Array, "*data"]:
    """What a network of this kind should predict; equation (2) for "v"."""
    table = {"v": eps - z0, "x": z0, "eps": eps}
    return table[_checked(kind)]


def to_velocity(
    prediction: Float[Array, "*data"], z: Float[Array, "*data"], sigma: Level, kind: str
) -> Float[Array, "*data"]:
    """A prediction of any kind at (z, sigma) -> the velocity it implies."""
    sigma = expand(sigma, z)
    table = {
        "v": lambda: prediction,
        "x": lambda: (z - prediction) / jnp.maximum(sigma, TINY),  # (3)
        "eps": lambda: (prediction - z) / jnp.maximum(1 - sigma, TINY),  # (4)
    }
    return table[_checked(kind)]()


def from_velocity(
    velocity: Float[Array, "*data"], z: Float[Array, "*data"], sigma: Level, kind: str
) -> Float[Array, "*data"]:
    """Inverse of `to_velocity`: equations (3) and (4), never singular."""
    sigma = expand(sigma, z)
    table = {
        "v": lambda: velocity,
        "x": lambda: z - sigma * velocity,
        "eps": lambda: z + (1 - sigma) * velocity,
    }
    return table[_checked(kind)]()


def convert(
    prediction: Float[Array, "*data"],
    z: Float[Array, "*data"],
    sigma: Level,
    *,
    source: str,
    to: str,
) -> Float[Array, "*data"]:
    """A prediction of kind `source` at (z, sigma), expressed as kind `to`.

    All nine pairs go through the velocity, except a kind to itself, which is
    exact at every level. Raises ValueError for an unknown kind.
    """
    if _checked(source) == _checked(to):
        return prediction
    return from_velocity(to_velocity(prediction, z, sigma, source), z, sigma, to)


def _checked(kind: str) -> str:
    """`kind`, or ValueError listing the kinds."""
    if kind not in KINDS:
        raise ValueError(f"prediction kind {kind!r}: unknown; use one of {KINDS}")
    return kind
