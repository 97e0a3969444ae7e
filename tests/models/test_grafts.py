"""The grafts change nothing at initialisation, and something afterwards."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from towers import run_towers, shaken, small_denoiser, wan_of

from wallwm_jax.models.conditioning import frame_sigma, observe
from wallwm_jax.models.video_tower import GraftError, VideoConfig, graft
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.models.wan_dit import WanDiT


def wan_forwards(denoiser, video, latents, timestep, text):
    """Each view alone through Wan itself, with the weights inside the video tower."""
    wan = WanDiT(denoiser.video_config.wan)
    # Wan takes one timestep per token and no packing: frames of one event.
    tokens = int(np.prod(denoiser.token_grid(latents.shape)))
    timestep = jnp.repeat(timestep, tokens, axis=1)
    one = jax.jit(lambda z: wan.apply({"params": wan_of(video)}, z, timestep, text))
    return np.stack([one(latents[:, v]) for v in range(latents.shape[1])], axis=1)


@pytest.fixture(scope="module")
def one_event():
    """(tower that pads as Wan does, latents, timestep, text, its mask, the rest of the call)."""
    denoiser = small_denoiser(video=dict(text_padding="zeros", duration=False))
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.standard_normal((2, 3, 4, 4, 6, 5)), jnp.float32)
    # The observed frame is clean: its tokens carry timestep 0, as in Wan2.2-TI2V.
    timestep = jnp.asarray([[0.0, 640, 640, 640], [0.0, 90, 90, 90]])
    text = jnp.asarray(rng.standard_normal((2, 1, 5, 12)), jnp.float32)
    mask = jnp.arange(5) < jnp.array([[[3]], [[5]]])
    frames = jnp.tile(jnp.arange(4), (2, 1))
    return denoiser, latents, timestep, text, mask, (jnp.ones((2, 4), jnp.int32), frames)


def joined(event, video, **change):
    """The multi-view forward of `one_event`."""
    denoiser, latents, timestep, text, mask, rest = event
    call = dict(latents=latents, timestep=timestep[..., None], text=text, text_mask=mask)
    call |= dict(frame_segment=rest[0], frame_index=rest[1]) | change
    return np.asarray(jax.jit(lambda v: denoiser.video.apply({"params": v}, **call)[0])(video))


@pytest.fixture(scope="module")
def grafted(one_event):
    """(Wan's weights, a video tower grafted onto them); no weight is zero or one by default."""
    denoiser, latents, _, text, mask, rest = one_event
    wan = WanDiT(denoiser.video_config.wan)
    init = jax.jit(wan.init)(jax.random.key(7), latents[:, 0], jnp.zeros(2), text[:, 0])
    weights = shaken(nn.meta.unbox(init["params"]))
    call = (latents, jnp.zeros((2, 4, 1)), text, mask, *rest)
    video = jax.jit(denoiser.video.init)(jax.random.key(8), *call)["params"]
    return weights, graft(weights, video)


def test_three_views_at_initialisation_are_three_wan_forwards(one_event, grafted):
    """The grafted tower, text padding included, is Wan: W_view is zero."""
    denoiser, latents, timestep, text, mask, _ = one_event
    weights, boxed = grafted
    video = nn.meta.unbox(boxed)
    jax.tree.map(np.testing.assert_array_equal, wan_of(video), weights)
    zeroed = jnp.where(mask[..., None], text, 0)[:, 0]
    alone = wan_forwards(denoiser, video, latents, timestep, zeroed)
    together = joined(one_event, video)
    assert np.abs(together - alone).max() <= 2e-6 * np.abs(alone).max()
    # Not so once W_view has moved, nor with masked padding where there is any.
    assert np.abs(joined(one_event, shaken(video)) - alone).max() > 1e-2
    masked = dataclasses.replace(
        denoiser, video_config=dataclasses.replace(denoiser.video_config, text_padding="masked")
    )
    other = joined((masked, *one_event[1:]), video)
    assert np.abs(other - alone)[0].max() > 1e-3
    assert np.abs(other - alone)[1].max() <= 2e-6 * np.abs(alone).max()


def test_a_graft_keeps_boxes_and_copies_the_self_attention(grafted):
    _, boxed = grafted
    kernel = boxed["blocks"]["wan"]["ffn"]["up"]["kernel"]
    assert kernel.names == ("layers", "embed", "mlp")
    wan, view = boxed["blocks"]["wan"]["self_attention"], boxed["blocks"]["view"]["attention"]
    for name in ("query", "key", "value"):
        jax.tree.map(np.testing.assert_array_equal, wan[name], view[name])
    assert not np.any(view["out"]["kernel"].unbox())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda w: w["head"].pop("table"), "head/table is missing"),
        (lambda w: w["blocks"].update(extra=np.zeros(3)), "blocks/wan/extra has no place"),
        (
            lambda w: w["embedding"]["text_in"].update(bias=np.zeros(9)),
            r"embedding/text_in/bias is \(9,\), the tower takes \(40,\)",
        ),
    ],
)
def test_a_graft_is_strict(grafted, spoil, words):
    weights, video = grafted
    weights = jax.tree.map(lambda x: x, weights)
    spoil(weights)
    with pytest.raises(GraftError, match=words) as caught:
        graft(weights, video)
    assert "\n" not in str(caught.value)


def test_the_tower_runs_in_bfloat16(one_event, grafted):
    """Half precision changes digits only: the gates and the time path stay in float32."""
    denoiser, *rest = one_event
    wan = dataclasses.replace(denoiser.video_config.wan, dtype="bfloat16")
    config = dataclasses.replace(denoiser.video_config, wan=wan)
    half = (dataclasses.replace(denoiser, video_config=config), *rest)
    video = shaken(nn.meta.unbox(grafted[1]))
    full, short = joined(one_event, video), joined(half, video)
    assert short.dtype == jnp.bfloat16
    assert np.abs(full - short.astype(np.float32)).max() < 0.04 * np.abs(full).max()


def test_frames_before_the_anchor_only_shift_the_rotary_positions(one_event, grafted):
    """An observation-centred window is the same video, counted from -M: attention is relative."""
    video = shaken(nn.meta.unbox(grafted[1]))
    frames = one_event[-1][1]
    shifted = joined(one_event, video, frame_index=frames - 3)
    whole = joined(one_event, video)
    assert np.abs(shifted - whole).max() <= 1e-5 * np.abs(whole).max()
    reversed_ = joined(one_event, video, frame_index=frames[:, ::-1])
    assert np.abs(reversed_ - whole).max() > 1e-2


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
        call = (batch.latents, sigma, batch, text, observe(batch.latents, batch))
        return jnp.sum(denoiser.video_velocity(params, *call)[0] ** 2)

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
        call = (some.latents, sigma, some, text, observe(some.latents, some), mask)
        return denoiser.video_velocity(params, *call)[0][:, 0]

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


def test_the_video_runs_without_an_action_tower(denoiser, params, batch):
    """Bit for bit the same from a tree of parameters that has none."""
    alone = {"text": params["text"], "video": params["video"]}
    sigma = frame_sigma(batch, jnp.full(batch.event_length.shape, 0.5))

    @jax.jit
    def video(params):
        text = denoiser.encode_text(params, batch)
        given = observe(batch.latents, batch)
        return denoiser.video_velocity(params, batch.latents, sigma, batch, text, given)[0]

    np.testing.assert_array_equal(video(params), video(alone))


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


@pytest.mark.parametrize(
    ("size", "change", "words"),
    [
        ("tiny", dict(conditioning="channels"), "set it to 36"),
        ("wan2.2-i2v-a14b", dict(), "set it to 16"),
        ("wan2.1-i2v-14b", dict(conditioning="channels"), "image_width"),
        ("tiny", dict(conditioning="beside"), "'clean', 'channels'"),
        ("tiny", dict(text_padding="none"), "'masked', 'zeros'"),
        ("tiny", dict(blank_latent=(0.0,)), "one per latent channel"),
    ],
)
def test_a_video_tower_that_cannot_be_is_refused(size, change, words):
    with pytest.raises(ValueError, match=words) as caught:
        VideoConfig(wan=WanConfig(**WAN_SIZES[size]), views=2, **change)
    assert "\n" not in str(caught.value)
