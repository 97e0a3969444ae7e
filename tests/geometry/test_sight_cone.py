"""Sight cones against brute force, and the properties that (1) promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.geometry import sight_cone
from wallwm_jax.geometry.cameras import Cameras, project

GRID, BAND, RIGS = (3, 4), (0.3, 2.0), 12
LENS = np.array([-0.28, 0.09, 0.001, -0.002, -0.01], np.float32)


def pose(eye, forward, roll):
    """World -> camera matrix (OpenCV axes)."""
    forward = forward / np.linalg.norm(forward)
    side = np.cross([np.sin(roll), 0.2, -np.cos(roll)], forward)
    side /= np.linalg.norm(side)
    rotation = np.stack([side, np.cross(forward, side), forward])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ eye
    return matrix


def rigs(kind, seed=0):
    """RIGS pairs of cameras: (a, b), batched over the first axis; "lens ..." distorts."""
    distorted, kind = kind.startswith("lens "), kind.removeprefix("lens ")
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(RIGS):
        eye = rng.normal(size=3) * 0.8
        forward, roll = rng.normal(size=3) * 0.2 - eye, rng.uniform(-1, 1)
        first = pose(eye, forward, roll)
        other = rng.normal(size=3) * 0.8
        second = {
            "random": lambda: pose(other, rng.normal(size=3) * 0.2 - other, rng.uniform(-1, 1)),
            "parallel": lambda: pose(eye + 0.2 * rng.normal(size=3), forward, roll),
            "near": lambda: pose(
                eye + 0.1 * rng.normal(size=3), forward + 1e-3 * rng.normal(size=3), roll
            ),
            "identical": lambda: first,
            # Face to face, every other pair exactly on one axis, near and far.
            "opposed": lambda: pose(
                eye
                + rng.uniform(0.2, 5) * forward / np.linalg.norm(forward)
                + 0.02 * (number % 2) * rng.normal(size=3),
                -forward + 1e-3 * (number % 2) * rng.normal(size=3),
                rng.uniform(-1, 1),
            ),
        }[kind]()
        pairs.append((first, second))
    k = np.array([[70.0, 0, 32], [0, 66.0, 30], [0, 0, 1]])
    lens = jnp.asarray(np.tile(LENS, (RIGS, 1))) if distorted else None

    def cameras(side):
        extrinsics = jnp.asarray(np.stack([pair[side] for pair in pairs]), jnp.float32)
        intrinsics = jnp.asarray(np.tile(k, (RIGS, 1, 1)), jnp.float32)
        return Cameras(intrinsics, extrinsics, lens, 64, 60)

    return cameras(0), cameras(1)


PLAIN = ["random", "parallel", "near", "identical", "opposed"]
KINDS = [*PLAIN, "lens random", "lens parallel", "lens opposed"]
kinds = pytest.mark.parametrize("kind", KINDS)
visible = jax.jit(sight_cone.co_visible, static_argnums=(2, 3))
cones_of = jax.jit(sight_cone.token_cones, static_argnums=1)


def inside(cones, points, band):
    """Whether points [r, m, s, 3] lie in the cones [r, n] at depths in the band."""
    apex, axis, slope = (np.asarray(x, np.float64) for x in cones)
    offset = points[:, :, None] - apex[:, None, :, None]  # [r, m, n, s, 3]
    depth = np.einsum("rmnsc,rnc->rmns", offset, axis)
    aside = np.sqrt(np.maximum(np.sum(offset**2, -1) - depth**2, 0))
    in_band = (depth >= band[0]) & (depth <= band[1])
    return in_band & (aside <= depth * slope[:, None, :, None])


def sampled(a, b, band, count=1200, seed=0):
    """[r, m, n]: some sampled point of a's cone lies in b's cone too."""
    rng = np.random.default_rng(seed)
    apex, axis, slope = (np.asarray(x, np.float64)[:, :, None] for x in a)
    depth = rng.uniform(*band, size=(*axis.shape[:2], count))
    radius = np.sqrt(rng.uniform(0, 1, size=depth.shape)) * depth * slope
    # Half of the points on the mantle: that is where cones first meet.
    radius = np.where(np.arange(count) % 2, radius, depth * slope)
    direction = np.cross(axis, rng.normal(size=(*depth.shape, 3)))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    points = apex + depth[..., None] * axis + radius[..., None] * direction
    return inside(b, points, band).any(axis=-1)


def sampled_in_either(a, b, band, count=1200):
    """Points along and around the axes of both cones."""
    return sampled(a, b, band, count) | np.swapaxes(sampled(b, a, band, count, seed=1), 1, 2)


def least_gap(a, b, band, count=121):
    """[r, m, n]: the least gap (2) on a grid of depths, in double precision."""
    p, d, tan_a = (np.asarray(x, np.float64) for x in a)
    q, e, tan_b = (np.asarray(x, np.float64) for x in b)
    depths = np.linspace(*band, count)
    least = np.full((*tan_a.shape, tan_b.shape[-1]), np.inf)
    for t1 in depths:
        base = (p + t1 * d)[:, :, None] - q[:, None]
        # |base - t2 e|^2 expanded: one small product per t1 instead of a 5-axis array.
        flat, foot = np.sum(base**2, -1), np.einsum("rmnc,rnc->rmn", base, e)
        square = flat[..., None] - 2 * foot[..., None] * depths + depths**2
        reach = t1 * tan_a[:, :, None, None] + depths * tan_b[:, None, :, None]
        gap = np.sqrt(np.maximum(square, 0)) - reach
        least = np.minimum(least, gap.min(axis=-1))
    return least


@kinds
def test_agrees_with_sampled_points_inside_both_cones(kind):
    a, b = rigs(kind)
    cones = cones_of(a, GRID), cones_of(b, GRID)
    hit = sampled_in_either(*cones, BAND)
    got = np.asarray(visible(a, b, GRID, BAND))
    # A point in both cones proves co-visibility: it is within t tan of both axes at
    # its depths t, so they are no further apart than (1) says. No exception allowed.
    assert not np.any(hit & ~got)
    # Nor with other apertures, wide beyond a half-angle of 45 degrees included.
    for scale in (0.4, 2.0, 6.0):
        scaled = cones_of(a, GRID, scale), cones_of(b, GRID, scale)
        hits = sampled_in_either(*scaled, BAND, count=200)
        assert not np.any(hits & ~np.asarray(visible(a, b, GRID, BAND, scale)))
    # Conversely cones that meet when a tenth thinner hold a common point, which the
    # samples find unless the shared volume is tiny. (1) puts a ball around the last
    # point of each axis, which reaches beyond the band by its radius.
    slope = max(float(jnp.max(c.slope)) for c in cones)
    hit |= sampled_in_either(*cones, (BAND[0] * (1 - slope), BAND[1] * (1 + slope)))
    slim = np.asarray(visible(a, b, GRID, BAND, 0.9))
    assert np.mean(hit[slim]) > 0.94
    if kind in ("random", "lens random"):
        assert 0.1 < got.mean() < 0.9  # the test sees both answers


@kinds
def test_agrees_with_a_search_over_depths(kind):
    """Both ways without exception: the grid misses at most what its spacing explains."""
    a, b = rigs(kind, seed=1)
    cones, count = (cones_of(a, GRID), cones_of(b, GRID)), 121
    least = least_gap(*cones, BAND, count)
    got = np.asarray(visible(a, b, GRID, BAND))
    assert not np.any((least <= 0) & ~got)
    # Moving a depth by dt changes the gap by (1 + slope) dt at most, and the
    # nearest depth of the grid is half a spacing away; plus float32's rounding.
    half = (BAND[1] - BAND[0]) / (count - 1) / 2
    slopes = np.asarray(cones[0].slope)[:, :, None] + np.asarray(cones[1].slope)[:, None]
    assert not np.any(got & (least > half * (2 + slopes) + 1e-4))


def tokens_of(cameras, points, grid):
    """[r, s]: the token a point [r, s, 3] is seen in through the lens, -1 for none."""
    pixels, depth = map(np.nan_to_num, project(cameras, jnp.asarray(points, jnp.float32)))
    bare, _ = project(cameras.replace(distortion=None), jnp.asarray(points, jnp.float32))
    # Far outside the picture the lens model folds back into it; no ray goes there.
    straight = np.abs(np.asarray(bare) - 32).max(-1) < 60
    cells = np.clip(pixels, -1e6, 1e6) // [64 / grid[1], 60 / grid[0]]
    column, row = cells.astype(int).transpose(2, 0, 1)
    seen = (depth > 0) & straight & (row >= 0) & (row < grid[0])
    seen &= (column >= 0) & (column < grid[1])
    return np.where(seen, row * grid[1] + column, -1)


@pytest.mark.parametrize("kind", ["random", "parallel", "lens random", "lens identical"])
def test_what_two_pictures_show_is_co_visible(kind):
    """From the scene instead of the cones: a point in both pictures, projected through two
    unlike lenses, joins its two tokens when both see it inside the band."""
    grid = (12, 16)  # patches smaller than what the lenses move
    a, b = rigs(kind, seed=6)
    if b.distortion is not None:
        b = b.replace(distortion=-0.8 * b.distortion)
    points = np.random.default_rng(7).normal(size=(RIGS, 20000, 3)) * 0.7
    got = np.asarray(visible(a, b, grid, BAND))
    tokens, near = [], []
    for cameras in (a, b):
        token, cones = tokens_of(cameras, points, grid), cones_of(cameras, grid)
        axis = np.take_along_axis(np.asarray(cones.axis), token[..., None], axis=1)
        depth = np.sum((points - np.asarray(cones.apex)[:, :1]) * axis, axis=-1)
        near.append((token >= 0) & (depth >= BAND[0]) & (depth <= BAND[1]))
        tokens.append(token)
    rig, point = np.nonzero(near[0] & near[1])
    assert len(rig) > 2000
    assert got[rig, tokens[0][rig, point], tokens[1][rig, point]].all()


def paper_rule(a, b, band):
    """The paper's test, t1 clamped first, for one order of the two cones."""
    p, d, tan_a = (np.asarray(x, np.float64)[:, :, None] for x in a)
    q, e, tan_b = (np.asarray(x, np.float64)[:, None] for x in b)
    dot = lambda x, y: np.sum(x * y, -1)
    cosine = dot(d, e)
    t1 = (cosine * dot(p - q, e) - dot(p - q, d)) / np.maximum(1 - cosine**2, 1e-9)
    t1 = np.clip(t1, *band)
    t2 = np.clip(dot(p + t1[..., None] * d - q, e), *band)
    gap = np.linalg.norm(p + t1[..., None] * d - q - t2[..., None] * e, axis=-1)
    return gap <= t1 * tan_a + t2 * tan_b


@kinds
def test_holds_wherever_the_papers_rule_holds_in_either_order(kind):
    a, b = rigs(kind, seed=2)
    cones = cones_of(a, GRID), cones_of(b, GRID)
    paper = paper_rule(*cones, BAND) | np.swapaxes(paper_rule(*cones[::-1], BAND), 1, 2)
    got = np.asarray(visible(a, b, GRID, BAND))
    assert not np.any(paper & ~got)
    if kind in ("random", "lens random"):
        assert np.mean(got & ~paper) < 0.1  # and rarely elsewhere, for crossing axes


@kinds
def test_symmetric(kind):
    a, b = rigs(kind, seed=3)
    forward, backward = visible(a, b, GRID, BAND), visible(b, a, GRID, BAND)
    np.testing.assert_array_equal(forward, jnp.swapaxes(backward, 1, 2))


@pytest.mark.parametrize("kind", PLAIN)  # a lens changes the cones, not the test
def test_monotone_in_scale_and_band(kind):
    a, b = rigs(kind, seed=4)
    scales = [np.asarray(visible(a, b, GRID, BAND, s)) for s in (0.3, 0.9, 1.0, 1.3, 5.0)]
    bands = [(0.6, 1.0), BAND, (0.0, 6.0)]
    nested = [np.asarray(visible(a, b, GRID, band)) for band in bands]
    for series in (scales, nested):
        for smaller, larger in zip(series, series[1:], strict=False):
            assert not np.any(smaller & ~larger)


def test_identical_cameras_see_their_own_and_touching_tokens():
    a, _ = rigs("identical")
    got = np.asarray(visible(a, a, GRID, BAND))
    row, column = np.divmod(np.arange(12), 4)
    apart = np.maximum(abs(row[:, None] - row), abs(column[:, None] - column))
    assert got[:, apart <= 1].all() and not got[:, apart >= 3].any()


def test_facing_away_is_never_visible():
    # Two cameras back to back, on one axis.
    a = pose(np.array([0, 0, 0.1]), np.array([0, 0.01, 1.0]), 0.1)
    b = pose(np.array([0, 0, -0.1]), np.array([0, 0.01, -1.0]), 0.1)
    cameras, _ = rigs("random")
    a, b = (jnp.asarray(np.tile(m, (RIGS, 1, 1)), jnp.float32) for m in (a, b))
    backs = cameras.replace(extrinsics=a), cameras.replace(extrinsics=b)
    assert not np.any(visible(*backs, GRID, BAND))


def test_cones_contain_their_patches():
    a, _ = rigs("lens random")
    fine = cones_of(a, (12, 16))  # 4 x 4 sub-patches per patch
    coarse = cones_of(a, GRID)
    assert np.all(np.asarray(coarse.slope) > 0)
    cosine = np.einsum("rmc,rnc->rmn", np.asarray(coarse.axis), np.asarray(fine.axis))
    angle = np.arccos(np.clip(cosine, -1, 1))
    row, column = np.divmod(np.arange(192), 16)
    owner = (row // 4) * 4 + column // 4
    for token in range(12):
        within = angle[:, token, owner == token]
        assert np.all(within < np.arctan(np.asarray(coarse.slope))[:, token, None] + 1e-3)


def test_multi_view_mask_joins_views_under_jit_with_batch_axes():
    first, second = rigs("random", seed=5)
    third, _ = rigs("near", seed=6)
    stack = jax.tree.map(lambda *x: jnp.stack(x, axis=1), first, second, third)
    batched = jax.tree.map(lambda x: x.reshape(4, 3, *x.shape[1:]), stack)  # [B, F, V, ...]
    mask = jax.jit(sight_cone.multi_view_mask, static_argnums=(1, 2))(batched, GRID, BAND)
    assert mask.shape == (4, 3, 36, 36) and mask.dtype == bool
    flat = np.asarray(mask).reshape(RIGS, 3, 12, 3, 12)
    np.testing.assert_array_equal(flat[:, 0, :, 1], visible(first, second, GRID, BAND))
    np.testing.assert_array_equal(flat[:, 2, :, 1], visible(third, second, GRID, BAND))
    assert all(flat[:, v, :, v].all() for v in range(3))
    np.testing.assert_array_equal(mask, jnp.swapaxes(mask, -2, -1))


def test_empty_band_is_refused():
    a, b = rigs("random")
    with pytest.raises(ValueError, match=r"depth_band=\(2.0, 0.3\)"):
        sight_cone.co_visible(a, b, GRID, (2.0, 0.3))
