"""Newton-Schulz: acts on singular values only, and brings them near 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.optim import newton_schulz as ns

jitted = jax.jit(ns.newton_schulz, static_argnums=1, static_argnames=("compute_dtype", "route"))

SHAPES = [(24, 24), (48, 16), (3, 12, 20), (2, 2, 8, 32), (1, 7)]


def scalar_map(s, coefficients):
    """The polynomial that equation (1) applies to every singular value."""
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return s


def matrices_with(spectrum, shape, rng):
    """Random matrices U diag(spectrum) V^T."""
    *batch, m, n = shape
    k = min(m, n)
    u, _ = np.linalg.qr(rng.normal(size=(*batch, m, k)))
    v, _ = np.linalg.qr(rng.normal(size=(*batch, n, k)))
    return np.einsum("...mk,...k,...nk->...mn", u, spectrum, v), u, v


@pytest.mark.parametrize("name", ["standard", "minimax"])
@pytest.mark.parametrize("shape", SHAPES)
def test_maps_singular_values_and_keeps_singular_vectors(name, shape):
    rng = np.random.default_rng(0)
    shape = (2, *shape)  # a flat spectrum and one over two decades
    decades = np.array([0.3, 2.0]).reshape(2, *(1,) * (len(shape) - 2))
    spectrum = 37 * 10 ** (-decades * rng.uniform(size=(*shape[:-2], min(shape[-2:]))))
    x, u, v = matrices_with(spectrum, shape, rng)
    coefficients = ns.coefficients_of(name)
    unit = spectrum / np.linalg.norm(spectrum, axis=-1, keepdims=True)
    want = np.einsum("...mk,...k,...nk->...mn", u, scalar_map(unit, coefficients), v)
    got = jitted(jnp.asarray(x, jnp.float32), coefficients)
    np.testing.assert_allclose(got, want, atol=2e-4)
    low, high = {"standard": (0.67, 1.21), "minimax": (0.98, 1.01)}[name]
    values = np.linalg.svd(np.asarray(got), compute_uv=False)
    reached = values[np.sort(unit, axis=-1)[..., ::-1] >= 0.005]
    assert reached.size and low <= reached.min() and reached.max() <= high


def minimax_quintic(low, high):
    """Odd quintic with the least max |1 - p| on [low, high] (Remez), and that error."""
    inner = low + (high - low) * np.array([0.25, 0.75])
    for _ in range(60):
        # The error alternates -e, +e, -e, +e over the ends and two inner extrema.
        points = zip((low, *inner, high), (1, -1, 1, -1), strict=True)
        rows = [(x, x**3, x**5, sign) for x, sign in points]
        a, b, c, error = np.linalg.solve(np.array(rows), np.ones(4))
        root = np.sqrt(9 * b * b - 20 * a * c)
        inner = np.sqrt((-3 * b + np.array([-root, root])) / (10 * c))
    return (a, b, c), error


def test_minimax_coefficients_follow_from_their_definition():
    low, high, derived = 0.003, 1.0, []
    for step in range(5):
        (a, b, c), error = minimax_quintic(low, high)
        safety = 1.01 if step < 4 else 1.0
        derived.append((a / safety, b / safety**3, c / safety**5))
        low, high = 1 - error, 1 + error
    np.testing.assert_allclose(ns.MINIMAX, derived, atol=1e-6)


def test_minimax_documented_range():
    s = np.geomspace(0.003, 1, 20001)
    image = scalar_map(s, ns.MINIMAX)
    assert 0.989 < image.min() and image.max() < 1.005
    assert scalar_map(1e-9, ns.MINIMAX) / 1e-9 == pytest.approx(545, abs=1)


@pytest.mark.parametrize("name", ["standard", "minimax"])
def test_bfloat16_products_stay_bounded(name):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 64, 96)), jnp.float32)
    coefficients = ns.coefficients_of(name)
    exact = np.asarray(jitted(x, coefficients))
    half = jitted(x, coefficients, compute_dtype=jnp.bfloat16)
    assert half.dtype == jnp.float32
    assert np.linalg.svd(np.asarray(half), compute_uv=False).max() < 1.25
    cosine = np.sum(exact * half) / np.linalg.norm(exact) / np.linalg.norm(half)
    assert cosine > 0.998


@pytest.mark.parametrize("name", ["standard", "minimax"])
@pytest.mark.parametrize("shape", [(20, 20), (40, 12)])
def test_routes_are_one_polynomial(name, shape):
    x = jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)
    direct, gram = (
        jitted(x, ns.coefficients_of(name), route=route) for route in ("direct", "gram")
    )
    np.testing.assert_allclose(gram, direct, atol=2e-4)


def spectra(m):
    """Singular values of momenta: from one direction to all alike but for a power law."""
    k = np.arange(m)
    return {
        "1/k": 1 / (1 + k),
        "1/k^2": 1 / (1 + k) ** 2,
        "1/sqrt(k)": 1 / np.sqrt(1 + k),
        "two decades": 10 ** (-2 * k / m),
        "four decades": 10 ** (-4 * k / m),
        "one direction": np.where(k, 1e-4, 1.0),
        "two directions": np.where(k == 0, 1.0, np.where(k == 1, 0.7, 3e-3)),
    }


@pytest.mark.parametrize("name", ["standard", "minimax"])
@pytest.mark.parametrize("route", ["direct", "gram"])
def test_bfloat16_keeps_the_largest_singular_value(name, route):
    """Within 1 % of the float32 polynomial's, whatever the decay of the spectrum.

    ("standard" maps equal values to one that is no extremum, so for momenta of one or two
    directions its error is a shift inside its range, and the range is what is bounded.)
    """
    rng = np.random.default_rng(4)
    decays = np.stack(list(spectra(64).values()))
    x = matrices_with(decays, (len(decays), 64, 160), rng)[0]
    coefficients = ns.coefficients_of(name)
    unit = decays / np.linalg.norm(decays, axis=-1, keepdims=True)
    want = scalar_map(unit, coefficients).max(-1)
    half = jitted(
        jnp.asarray(x, jnp.float32), coefficients, route=route, compute_dtype=jnp.bfloat16
    )
    largest = np.linalg.svd(np.asarray(half), compute_uv=False)[:, 0]
    few = np.array(["direction" in case for case in spectra(64)]) & (name == "standard")
    np.testing.assert_allclose(largest[~few], want[~few], rtol=1e-2)
    assert np.all(largest <= 1.01 * 1.2023)  # the largest value of "standard" on (0, 1]


def test_stretches_end_where_the_factor_has_grown():
    assert ns.stretches(ns.STANDARD) == (3, 2) and ns.stretches(ns.MINIMAX) == (1, 2, 2)
    for count in range(1, 12):
        lengths = ns.stretches(ns.STANDARD[:1] * count)
        assert sum(lengths) == count and max(lengths) <= ns.LONGEST
    steep = ((100.0, -1.0, 1.0),) * 3  # more than a stretch may grow: each stands alone
    assert ns.stretches(steep) == (1, 1, 1)


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (64, 128), (96, 64)])
@pytest.mark.parametrize("route", ["direct", "gram"])
def test_flops_are_what_the_compiler_counts(shape, route):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    compiled = jitted.lower(x, route=route).compile()
    wanted = ns.newton_schulz_flops(*shape)[route]
    # Besides the products there is a little work on single numbers.
    assert 1 <= compiled.cost_analysis()["flops"] / wanted < 1.2


def test_the_cheaper_route_is_taken():
    assert ns.newton_schulz_flops(3072, 3072)["direct"] == pytest.approx(0.870e12, rel=1e-3)
    assert ns.newton_schulz_flops(3072, 14336)["gram"] == pytest.approx(1.894e12, rel=1e-3)
    routes = [ns.cheaper_route(64, n) for n in (64, 96, 97, 128)]
    assert routes == ["direct", "direct", "gram", "gram"]
    x = jax.ShapeDtypeStruct((64, 256), jnp.float32)
    chosen = jitted.lower(x).as_text()
    assert chosen.count("dot_general") == jitted.lower(x, route="gram").as_text().count(
        "dot_general"
    )


def test_zero_and_extreme_scales():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(8, 12)), jnp.float32)
    stack = jnp.stack([jnp.zeros_like(x), x * 1e-30, x, x * 1e30])
    zero, tiny, plain, huge = jitted(stack)
    np.testing.assert_array_equal(zero, 0)
    np.testing.assert_allclose(tiny, plain, atol=1e-5)
    np.testing.assert_allclose(huge, plain, atol=1e-5)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="minimax.*standard"):
        ns.coefficients_of("fast")
