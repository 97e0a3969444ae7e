"""The grafts change nothing at initialisation, and something afterwards."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from towers import run_towers, small_denoiser

from wallwm_jax.models.imagination import frame_sigma


def single_view_forwards(denoiser, params, batch):
    """Each view alone through the same tower: the branch is skipped with one view."""
    sigma = frame_sigma(batch, 0.1 + 0.7 * (batch.event_length % 5) / 5)

    @jax.jit
    def one(params, latents):
        text = denoiser.encode_text(params, batch)
        return denoiser.video_velocity(params, latents, sigma, batch, text)[0]

    views = [one(params, batch.latents[:, v : v + 1]) for v in range(batch.latents.shape[1])]
    return np.concatenate(views, axis=1)


def test_three_views_equal_three_single_views_at_init(denoiser, fresh, batch):
    together, _, _ = run_towers(denoiser, fresh, batch)
    np.testing.assert_allclose(
        together, single_view_forwards(denoiser, fresh, batch), rtol=1e-4, atol=1e-5
    )


def test_they_differ_once_the_projector_moved(denoiser, params, batch):
    together, _, _ = run_towers(denoiser, params, batch)
    alone = single_view_forwards(denoiser, params, batch)
    assert np.abs(together - alone).max() > 1e-2


def test_cross_view_weights_start_as_a_copy_of_the_self_attention(fresh):
    wan = fresh["video"]["blocks"]["wan"]["self_attention"]
    view = fresh["video"]["blocks"]["view"]["attention"]
    for name in ("query", "key", "value"):
        jax.tree.map(np.testing.assert_array_equal, wan[name], view[name])
    assert not np.any(view["out"]["kernel"])


def test_the_projector_has_a_gradient_at_init(denoiser, fresh, batch):
    """Zero projector times zero gate would never start to learn."""

    def loss(video):
        params = dict(fresh, video=video)
        text = denoiser.encode_text(params, batch)
        sigma = frame_sigma(batch, jnp.full(batch.event_length.shape, 0.5))
        return jnp.sum(denoiser.video_velocity(params, batch.latents, sigma, batch, text)[0] ** 2)

    grad = jax.jit(jax.grad(loss))(fresh["video"])["blocks"]["view"]["attention"]["out"]["kernel"]
    assert np.abs(grad).max() > 0


def test_duration_changes_nothing_at_init_but_can(denoiser, fresh, params, batch):
    longer = batch.replace(event_length=batch.event_length * 2)
    levels = jnp.full(batch.event_length.shape, 0.4)
    video, _, _ = run_towers(denoiser, fresh, batch, levels)
    np.testing.assert_array_equal(video, run_towers(denoiser, fresh, longer, levels)[0])
    assert (
        np.abs(
            run_towers(denoiser, params, batch, levels)[0]
            - run_towers(denoiser, params, longer, levels)[0]
        ).max()
        > 0
    )


def test_a_closed_sight_cone_separates_views(denoiser, params, batch):
    """With same-view pairs only, other views cannot matter; with all pairs they do."""
    b, v, f, h, w, _ = batch.latents.shape
    tokens = (h // 2) * (w // 2)
    own = np.kron(np.eye(v, dtype=bool), np.ones((tokens, tokens), bool))
    own = jnp.asarray(np.broadcast_to(own, (b, f, *own.shape)))
    other = batch.replace(latents=batch.latents.at[:, 1].add(1.0))

    @jax.jit
    def view0(some, mask):
        text = denoiser.encode_text(params, some)
        sigma = frame_sigma(some, jnp.full(some.event_length.shape, 0.5))
        return denoiser.video_velocity(params, some.latents, sigma, some, text, mask)[0][:, 0]

    np.testing.assert_array_equal(view0(batch, own), view0(other, own))
    assert np.abs(view0(batch, None) - view0(other, None)).max() > 1e-3


def test_video_never_reads_the_action_tower(denoiser, params, batch):
    """Other action parameters, actions and states: the video is bit-identical."""
    video, actions, _ = run_towers(denoiser, params, batch)
    changed = dict(params, action=jax.tree.map(lambda x: x * 1.5 + 0.1, params["action"]))
    again, others, _ = run_towers(
        denoiser, changed, batch.replace(actions=batch.actions + 1, state=batch.state - 1)
    )
    np.testing.assert_array_equal(video, again)
    assert np.abs(actions - others).max() > 1e-3


def test_depth_map_picks_the_video_layers(batch, params):
    """pi = (2, 2, 2) reads only the last block: earlier features may be anything."""
    denoiser = small_denoiser(depth_map=(2, 2, 2))
    _, _, features = run_towers(denoiser, params, batch)
    grid = denoiser.token_grid(batch.latents.shape)
    base = denoiser.feature_cache(params, jnp.asarray(features), batch, grid)
    noisy = denoiser.feature_cache(params, jnp.asarray(features).at[:2].add(7.0), batch, grid)
    jax.tree.map(np.testing.assert_array_equal, base, noisy)


def test_parameters_know_their_logical_axes(denoiser, batch):
    boxed = jax.eval_shape(denoiser.init, jax.random.key(0), batch.latents, batch)
    kernel = boxed["video"]["blocks"]["wan"]["ffn"]["up"]["kernel"]
    assert kernel.names == ("layers", "embed", "mlp")
    assert all(
        isinstance(x, nn.LogicallyPartitioned)
        for x in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    )
