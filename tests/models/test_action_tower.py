"""The action tower: each part acts, alone and as its formula says."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from towers import small_denoiser

from wallwm_jax.models.action_tower import ActionBlock, ActionTower

RNG = np.random.default_rng(0)
A, E, T = 6, 2, 5  # action steps, event slots, video tokens


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


@pytest.fixture(scope="module")
def config():
    return small_denoiser().action_config


@pytest.fixture(scope="module")
def block(config):
    """(run, parameters, arguments) of one action block; two events of three steps each."""
    module = ActionBlock(config)
    heads = (config.heads, config.head_dim)
    arguments = dict(
        x=normal(1, A, config.width),
        cache=(normal(1, T, *heads), normal(1, T, *heads)),
        time=normal(1, A, 6, config.width),
        state=normal(1, E, config.width),
        angles=jnp.arange(A, dtype=jnp.float32)[None, :, None] * jnp.ones(config.head_dim // 2),
        segments=(
            jnp.array([[1, 1, 1, 2, 2, 2]]),
            jnp.array([[1, 2]]),
            jnp.array([[1, 1, 2, 2, 2]]),
        ),
    )
    params = nn.meta.unbox(module.init(jax.random.key(0), **arguments))["params"]
    params = jax.tree.map(lambda x: normal(*x.shape) * 0.3, params)
    run = jax.jit(lambda p, a: module.apply({"params": p}, **a)[0])
    return run, params, arguments


def only(params, arguments, *alive):
    """Everything but the named residual branches contributes zero."""
    params = jax.tree.map(lambda x: x, params)
    for name in ("state_attention", "video_attention"):
        if name not in alive:
            params[name]["out"] = jax.tree.map(jnp.zeros_like, params[name]["out"])
    time = -jnp.broadcast_to(params["table"], arguments["time"].shape)  # shift, scale, gate = 0
    for name, row in (("self_attention", 2), ("ffn", 5)):
        if name in alive:
            time = time.at[:, :, row].add(1.0)  # its gate is 1
    return params, arguments | {"time": time}


def test_state_attention_is_a_linear_read_of_the_own_state(block):
    """Over a single key the softmax is 1: x + out(value(state of the event))."""
    run, params, arguments = block
    got = run(*only(params, arguments, "state_attention"))
    p = params["state_attention"]
    value = jnp.einsum("bed,dnh->benh", arguments["state"], p["value"]["linear"]["kernel"])
    value = value + p["value"]["linear"]["bias"]
    read = jnp.einsum("benh,nhd->bed", value, p["out"]["kernel"]) + p["out"]["bias"]
    want = arguments["x"] + jnp.repeat(read, A // E, axis=1)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_the_ffn_is_gated_by_its_silu(block):
    run, params, arguments = block
    got = run(*only(params, arguments, "ffn"))
    x, p = arguments["x"], params["ffn"]
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    line = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    want = x + line("down", jax.nn.silu(line("gate", y)) * line("up", y))
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def test_video_attention_reads_the_cache_of_the_own_event(block):
    run, params, arguments = block
    params, arguments = only(params, arguments, "video_attention")
    base = run(params, arguments)
    key, value = arguments["cache"]
    other = run(params, arguments | {"cache": (key, value.at[:, 2:].add(1.0))})
    np.testing.assert_array_equal(base[:, :3], other[:, :3])
    # The same shift of all values moves what is read by out(shift), whatever the weights.
    shift = params["video_attention"]["out"]["kernel"].sum(axis=(0, 1))
    np.testing.assert_allclose(other[:, 3:] - base[:, 3:], np.tile(shift, (1, 3, 1)), atol=2e-5)


def test_with_every_branch_silenced_the_block_is_the_identity(block):
    run, params, arguments = block
    np.testing.assert_array_equal(run(*only(params, arguments)), arguments["x"])
    silent, alive = only(params, arguments), only(params, arguments, "self_attention")
    assert np.abs(run(*alive) - run(*silent)).max() > 1e-2


@pytest.fixture(scope="module")
def window(config):
    """(features [N, B, V, F, S, Dv], grid) of five latent frames."""
    return normal(config.layers, 1, config.views, 5, 4, config.video_width), (2, 2)


def project(config, params, features, index, grid, chunk=None):
    index = jnp.asarray(index)[None]
    chunk = None if chunk is None else jnp.asarray(chunk)[None]
    return ActionTower(config).apply(
        {"params": params}, features, index, chunk, grid, method="project"
    )


@pytest.fixture(scope="module")
def readers(config, window):
    """Random parameters of what `project` uses, for M = 2 and 3 chunks."""
    wide = dataclasses.replace(config, history_frames=2, max_chunks=3)
    index = jnp.arange(-2, 3)[None]
    init = ActionTower(wide).init(
        jax.random.key(1), window[0], index, grid=window[1], method="project"
    )
    return wide, jax.tree.map(lambda x: normal(*x.shape) * 0.3, nn.meta.unbox(init)["params"])


def narrow(params, history=2):
    """The same parameters for a tower without history and chunks."""
    return params | {
        "tau_video": params["tau_video"][history:],
        "chunk_video": params["chunk_video"][:1],
    }


def test_a_permuted_depth_map_is_permuted_features(config, readers, window):
    """Layer i reads block pi(i), exactly, for a pi that is not the identity."""
    params, (features, grid) = narrow(readers[1]), window
    turned = dataclasses.replace(config, depth_map=(2, 0, 1))
    index = np.arange(5)
    got = project(turned, params, features, index, grid)
    want = project(config, params, features[jnp.array([2, 0, 1])], index, grid)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    straight = project(config, params, features, index, grid)
    assert np.abs(got[0] - straight[0]).max() > 1e-2


def test_event_mode_is_the_window_without_history(config, readers, window):
    """Rows 0..N of a tower with M rows before them give what they give alone, bit for bit."""
    wide, params = readers
    features, grid = window
    got = project(wide, params, features, np.arange(5), grid)
    want = project(config, narrow(params), features, np.arange(5), grid)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    zero = project(wide, params, features, np.arange(5), grid, np.zeros(5, int))
    jax.tree.map(np.testing.assert_array_equal, got, zero)


def frames_that_differ(one, other, views, tokens):
    """Frames whose keys differ between two caches."""
    n, b, t, *rest = one[0].shape
    split = lambda x: np.asarray(x[0]).reshape(n, b, views, t // views // tokens, tokens, -1)  # noqa: E731
    return np.flatnonzero(np.abs(split(one) - split(other)).max(axis=(0, 1, 2, 4, 5)) > 0).tolist()


@pytest.mark.parametrize(
    ("table", "row", "frames"),
    [
        ("tau_video", 0, [0]),
        ("tau_video", 2, [2]),
        ("tau_video", 4, [4]),
        ("chunk_video", 2, [3, 4]),
    ],
)
def test_every_frame_of_the_window_reads_its_own_rows(config, readers, window, table, row, frames):
    """E_tau over -2..2 around the anchor, E_abs over the sliding chunk of each frame."""
    wide, params = readers
    features, grid = window
    moved = params | {table: params[table].at[row].add(1.0)}
    call = (features, np.arange(-2, 3), grid, np.array([0, 0, 1, 2, 2]))
    one, other = project(wide, params, *call), project(wide, moved, *call)
    assert frames_that_differ(one, other, config.views, 4) == frames


def test_indices_beyond_the_tables_take_the_outermost_row(config, readers, window):
    wide, params = readers
    features, grid = window
    last = params["tau_video"].shape[0] - 1 - 2
    one = project(wide, params, features, [-9, -3, 0, last + 1, 99], grid, [-1, 0, 0, 2, 7])
    two = project(wide, params, features, [-2, -2, 0, last, last], grid, [0, 0, 0, 2, 2])
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_it_runs_in_bfloat16(config, window):
    """Half precision changes digits, not the type of the carry or the answer."""
    half = dataclasses.replace(config, dtype="bfloat16")
    features, grid = window
    index, segment = jnp.arange(5)[None], jnp.ones((1, 5), jnp.int32)

    def both(tower):
        cache = tower.project(features, index, grid=grid)
        steps = jnp.arange(A)[None]
        ones = jnp.ones((1, A))
        return tower(
            normal_actions, 300 * ones, state, cache, ones.astype(int), steps, segment, 8 * ones
        )

    normal_actions, state = normal(1, A, 20), normal(1, 1, 7)
    params = nn.meta.unbox(nn.init(both, ActionTower(config))(jax.random.key(0)))["params"]
    full, short = (nn.apply(both, ActionTower(c))({"params": params}) for c in (config, half))
    assert short.dtype == jnp.bfloat16
    assert np.abs(full - short.astype(jnp.float32)).max() < 0.03 * np.abs(full).max()
