"""Orthogonalisation by an odd matrix polynomial: G = U S V^T  ->  about U V^T.

One step of the quintic iteration, with A = X X^T,

    X <- a X + (b A + c A A) X,                                   (1)

acts on the singular values alone, s <- a s + b s^3 + c s^5, and leaves U and V
untouched. So a few steps whose scalar polynomials compose to "about 1 on
(0, 1]" replace every singular value by about 1 with matrix products only, which
is what accelerators are fast at. The input is scaled by its Frobenius norm, an
upper bound of the largest singular value, so that all of them start in [0, 1].

Coefficients are data: one (a, b, c) per step.

- "standard": Jordan et al. 2024, five equal steps, chosen for the largest slope
  at 0. It does not converge: singular values end anywhere in about 0.68 .. 1.21.
- "minimax": after Amsel et al. 2025 (The Polar Express). Step i is the odd
  quintic that minimises max |1 - p(s)| over the interval that the steps before
  it leave, starting from [0.003, 1]. All but the last are evaluated at s/1.01,
  which keeps rounding (bfloat16) from pushing values past the interval, where a
  minimax polynomial diverges. In exact arithmetic singular values from 0.003 up
  end in 0.989 .. 1.005, and the slope at 0 is 545 against 485 for "standard",
  at the same five steps. The derivation is repeated in the tests.

Two routes to the same polynomial, for X of m x n with m <= n:

    direct   (1) as it stands
    Gram     (1) leaves X = Q X_0 with a symmetric Q that only depends on R = X X^T:
                 Z = b R + c R R,   Q <- (a I + Z) Q,   R <- (a I + Z) R (a I + Z),
             so the long axis is touched by R = X X^T and by Q X alone. X and R
             are formed anew before some steps ("restarts")

The Gram route squares the condition number, so rounding limits how much Q may
grow between restarts, and errors after the last restart stay. Two measures make
it safe where only bfloat16 multiplies: growth decides where a stretch ends, the last
one being the strictest (`stretches`), and R, Z and Q are kept in float32
and rounded only as factors of a product, so the linear terms a R, b R and a Q,
which carry the large singular values, are never rounded. Without the second the
largest singular value was up to 30 % too large (1/k spectrum, "minimax"), with
it 0.1 to 0.9 % (experiments.benchmark.muon_step --numerics).

Once rounded, R, Z and Q no longer quite commute and R (a I + Z) is not quite
symmetric. The order of the factors is therefore kept as written: taking Z from
the other side, or the lower half for the upper one, is the same in exact
arithmetic and made "minimax" diverge. Only x x^T may be computed by halves.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Coefficients = tuple[tuple[float, float, float], ...]

Product = Callable[[Array], Array]
"""x -> x x^T in float32."""

STANDARD: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5

MINIMAX: Coefficients = (
    (8.300667, -24.037544, 17.466134),
    (4.003387, -2.922840, 0.541871),
    (3.470862, -2.549404, 0.500204),
    (2.465461, -1.780329, 0.415633),
    (1.917776, -1.296750, 0.379705),
)


def coefficients_of(name: str) -> Coefficients:
    """The named coefficient set; raises ValueError listing the names."""
    table = {"standard": STANDARD, "minimax": MINIMAX}
    if name not in table:
        raise ValueError(f"Newton-Schulz coefficients {name!r}: unknown; use {sorted(table)}")
    return table[name]


def unit_frobenius(x: Float[Array, "*batch m n"]) -> Float[Array, "*batch m n"]:
    """Each matrix over its Frobenius norm, at least in float32; a zero matrix stays zero.

    The largest entry is divided out first: squares of gradients near 1e-20
    underflow in float32, and an added epsilon would then decide the result.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    peak = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True)
    x = x / jnp.where(peak > 0, peak, 1)
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True))
    return x / jnp.where(norm > 0, norm, 1)


def dense_product(x: Float[Array, "*batch m k"]) -> Float[Array, "*batch m m"]:
    """x x^T, accumulated in float32."""
    return jnp.einsum("...ik,...jk->...ij", x, x, preferred_element_type=jnp.float32)


GROWTH, LAST_GROWTH, LONGEST = 64.0, 12.0, 3
"""How much Q may grow in a stretch (the product of its a), in the last one, and its
steps. Measured: "minimax" grows by 115 in its first three steps, and on momenta of
nearly one direction its bfloat16 result was then up to 4.6 times too large."""


def stretches(coefficients: Coefficients) -> tuple[int, ...]:
    """Lengths of the stretches between restarts of the Gram route, from the first step on.

    "standard" gives (3, 2), "minimax" (1, 2, 2).
    """
    found, limit, growth, length = [], LAST_GROWTH, 1.0, 0
    for a, _, _ in reversed(coefficients):
        if length and (growth * abs(a) > limit or length == LONGEST):
            found.append(length)
            limit, growth, length = GROWTH, 1.0, 0
        growth, length = growth * abs(a), length + 1
    return tuple(reversed([*found, length]))


def newton_schulz_flops(
    rows: int, cols: int, coefficients: Coefficients = STANDARD
) -> dict[str, int]:
    """Multiplications and additions of the matrix products of each route, for one matrix.

    A stretch of L steps takes L products for Z, L - 1 for Q and 2 (L - 1) for R.
    """
    m, n = sorted((rows, cols))
    square, long = 2 * m**3, 4 * m * m * n
    lengths = stretches(coefficients)
    small = sum(4 * length - 3 for length in lengths)
    return {
        "direct": len(coefficients) * (long + square),
        "gram": len(lengths) * long + small * square,
    }


def cheaper_route(rows: int, cols: int, coefficients: Coefficients = STANDARD) -> str:
    """Route "direct" or "gram", by FLOPs: for five steps the latter from cols > 1.5 rows on."""
    flops = newton_schulz_flops(rows, cols, coefficients)
    return min(flops, key=flops.get)  # the first, direct, where they are equal


def newton_schulz(
    x: Float[Array, "*batch m n"],
    coefficients: Coefficients = STANDARD,
    *,
    compute_dtype: DTypeLike | None = None,
    route: str | None = None,
    product: Product = dense_product,
) -> Float[Array, "*batch m n"]:
    """Replaces the singular values of each matrix by about 1.

    Args:
      x: matrices; all leading axes are batch.
      coefficients: (a, b, c) per step, equation (1).
      compute_dtype: dtype of the factors of the matrix products (jnp.bfloat16
        is several times faster on accelerators); None keeps the dtype of `x`.
        Sums are float32, and the Frobenius norm is taken before the cast.
      route: "direct" or "gram"; None takes the cheaper one.
      product: how x x^T is computed.

    Returns:
      Matrices in the shape and dtype of `x`. Invariant to the scale of `x`;
      singular values far below 0.003 of the Frobenius norm stay below 1, and a
      zero matrix stays zero.

    Raises:
      KeyError: unknown route.
    """
    # The product A = X X^T is over the longer axis, so A is as small as it can
    # be. (1) commutes with transposition, hence the result does not change.
    tall = x.shape[-2] > x.shape[-1]
    y = unit_frobenius(x).astype(compute_dtype or x.dtype)
    y = jnp.swapaxes(y, -2, -1) if tall else y
    route = route or cheaper_route(*x.shape[-2:], coefficients)
    y = ROUTES[route](y, coefficients, product)
    y = jnp.swapaxes(y, -2, -1) if tall else y
    return y.astype(x.dtype)


_apply = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


def _direct(y: Array, coefficients: Coefficients, product: Product) -> Array:
    """Equation (1), step by step."""
    # A Python loop, not a scan: five steps are few, and without a `while` the
    # compiler sees all products, and cost analysis counts them.
    for a, b, c in coefficients:
        gram = product(y)
        low = gram.astype(y.dtype)
        z = (b * gram + c * product(low)).astype(y.dtype)
        y = (a * y.astype(jnp.float32) + _apply(z, y)).astype(y.dtype)
    return y


def _gram(y: Array, coefficients: Coefficients, product: Product) -> Array:
    """The same through the Gram matrix; R, Z, Q as at the head of this file."""
    low = lambda x: x.astype(y.dtype)  # noqa: E731
    bits = jnp.finfo(y.dtype)
    eye, first = jnp.eye(y.shape[-2], dtype=jnp.float32), 0
    for length in stretches(coefficients):
        r, q = product(y), None
        for step, (a, b, c) in enumerate(coefficients[first : first + length]):
            # Q takes the rounded Z, for what moves Q must be what moves R. A cast there
            # and back would not do: the compiler may leave it out.
            z32 = b * r + c * product(low(r))
            z32 = lax.reduce_precision(z32, bits.nexp, bits.nmant)
            z = low(z32)
            if step + 1 < length:
                half = a * r + _apply(low(r), z)
                r = a * half + _apply(z, low(half))
            q = a * eye + z32 if q is None else a * q + _apply(z, low(q))
        y = low(_apply(low(q), y))
        first += length
    return y


ROUTES = {"direct": _direct, "gram": _gram}
