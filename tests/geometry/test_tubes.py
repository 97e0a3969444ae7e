"""Tubes: inside the co-visible set, over the event's frames, rightly distributed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wallwm_jax.geometry import tubes

VIEWS, GRID, FRAMES = 3, (4, 5), 3
TOKENS = VIEWS * GRID[0] * GRID[1]


def random_masks(seed, density):
    """Symmetric multi-view masks with all same-view pairs allowed."""
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(FRAMES, TOKENS, TOKENS)) < density
    view = np.arange(TOKENS) // 20
    return mask | np.swapaxes(mask, 1, 2) | (view[:, None] == view)


@functools.partial(jax.jit, static_argnames=("count", "sizes"))
def draw_many(mask, frames, probability, hide_probability, *, count, sizes):
    def draw(key):
        return tubes.sample_tube(
            key, mask, frames, views=VIEWS, grid=GRID, sizes=sizes,
            probability=probability, hide_probability=hide_probability,
        )  # fmt: skip

    return jax.vmap(draw)(jax.random.split(jax.random.key(0), count))


def many(mask, frames, probability=1.0, hide_probability=0.0, count=2000, sizes=(1, 3)):
    mask, frames = jnp.asarray(mask), jnp.asarray(frames)
    sample = draw_many(mask, frames, probability, hide_probability, count=count, sizes=sizes)
    return np.asarray(sample.noise), np.asarray(sample.hidden)


def test_seen_elsewhere_by_loops():
    mask = random_masks(0, 0.02)
    got = tubes.seen_elsewhere(jnp.asarray(mask), VIEWS, GRID)
    want = np.zeros((FRAMES, TOKENS), bool)
    for f, u, other in np.argwhere(mask):
        want[f, u] |= u // 20 != other // 20
    np.testing.assert_array_equal(np.asarray(got).reshape(FRAMES, TOKENS), want)


@pytest.mark.parametrize("density", [0.03, 0.08])
def test_tubes_are_square_windows_inside_the_set(density):
    mask, frames = random_masks(1, density), np.array([True, False, True])
    noise, _ = many(mask, frames)
    seen = np.asarray(tubes.seen_elsewhere(jnp.asarray(mask), VIEWS, GRID))
    allowed = (seen | ~frames[:, None, None, None]).all(axis=0)
    for tube in noise[:300]:
        assert not tube[:, 1].any()  # a frame of another event
        np.testing.assert_array_equal(tube[:, 0], tube[:, 2])
        views, rows, columns = np.nonzero(tube[:, 0])
        assert len(set(views)) == 1
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height == width <= 3 and len(rows) == height * width
        assert allowed[views, rows, columns].all()


def test_everything_possible_is_drawn_evenly():
    mask = np.ones((FRAMES, TOKENS, TOKENS), bool)
    noise, _ = many(mask, np.ones(3, bool))
    size = np.sqrt(noise.sum(axis=(1, 2, 3, 4)) / FRAMES).astype(int)
    np.testing.assert_allclose(np.bincount(size)[1:] / 2000, 1 / 3, atol=0.04)
    view = noise.any(axis=(2, 3, 4)).argmax(axis=1)
    np.testing.assert_allclose(np.bincount(view) / 2000, 1 / 3, atol=0.04)


def test_probabilities_are_nested():
    mask = np.ones((FRAMES, TOKENS, TOKENS), bool)
    noise, hidden = many(mask, np.ones(3, bool), 0.4, 0.5)
    drawn, hides = noise.any(axis=(1, 2, 3, 4)), hidden.any(axis=(1, 2, 3, 4))
    assert abs(drawn.mean() - 0.4) < 0.04 and abs(hides.mean() - 0.2) < 0.04
    np.testing.assert_array_equal(hidden[hides], noise[hides])
    assert not np.any(hides & ~drawn)


def test_nothing_co_visible_gives_no_tube():
    noise, hidden = many(random_masks(2, 0.0), np.ones(3, bool), hide_probability=1.0)
    assert not noise.any() and not hidden.any()


def test_frames_of_other_events_do_not_restrict_the_window():
    mask = np.ones((FRAMES, TOKENS, TOKENS), bool)
    mask[1] = random_masks(3, 0.0)[1]  # nothing is co-visible on the middle frame
    without, _ = many(mask, np.array([True, False, True]))
    assert without.any(axis=(1, 2, 3, 4)).all()
    across, _ = many(mask, np.ones(3, bool))
    assert not across.any()


def test_sizes_beyond_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"sizes=\(2, 5\): needs 1 <= l_min <= l_max <= 4"):
        many(random_masks(0, 0.1), np.ones(3, bool), sizes=(2, 5))


def test_events_of_a_packed_sequence_get_tubes_of_their_own():
    """Each event's tube lies on its own frames; padding and empty slots get none."""
    mask = jnp.ones((6, TOKENS, TOKENS), bool)
    segment = jnp.array([1, 1, 2, 2, 2, 0])
    draw = jax.jit(
        lambda key: tubes.packed_tubes(
            key, mask, segment, 4, views=VIEWS, grid=GRID, sizes=(1, 2), hide_probability=0.5
        )
    )
    windows, hides = set(), []
    for seed in range(20):
        noise, hidden = map(np.asarray, draw(jax.random.key(seed)))
        assert not noise[:, 5].any()
        pair = []
        for frames in ([0, 1], [2, 3, 4]):
            inside = noise[:, frames]
            assert inside.any() and (inside == inside[:, :1]).all()
            held = hidden[:, frames]
            assert (held == inside).all() or not held.any()
            hides.append(bool(held.any()))
            pair.append(inside[:, 0].tobytes())
        windows.add(tuple(pair))
    assert sum(one != two for one, two in windows) > 10  # drawn apart
    assert 5 < sum(hides) < 35


def test_tokens_to_cells_by_literals():
    tokens = jnp.array([[True, False], [False, True]])
    np.testing.assert_array_equal(tubes.to_cells(tokens, (1, 2)), [[1, 1, 0, 0], [0, 0, 1, 1]])
