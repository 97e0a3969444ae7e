"""The losses: what towers are asked, what counts, and where gradients go."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from towers import DIMS, products, shaken, slots_of, small_denoiser, wan_of

from wallwm_jax.flow.corrupt import target
from wallwm_jax.flow.losses import dct_loss, reduce_mean
from wallwm_jax.flow.schedule import sample_sigma
from wallwm_jax.geometry.tubes import seen_elsewhere
from wallwm_jax.input.batch import Batch
from wallwm_jax.models.conditioning import FORMS, frame_sigma, observed_frames, tower_input
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.models.layers import spread
from wallwm_jax.models.wan_dit import WanDiT
from wallwm_jax.train.objectives import (
    ObjectiveConfig,
    action_loss,
    cross_view_mask,
    joint_loss,
    video_loss,
)

CONFIG = ObjectiveConfig(image_size=48, action_draws=3)
KEY = jax.random.key(5)
PATCH = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stub(Denoiser):
    """No towers: video predictions are zero and noted, actions are what `answer` says.

    Where no loss counts, the video prediction is NaN.
    """

    asked: list = dataclasses.field(default_factory=list, compare=False)
    counts: jax.Array | None = dataclasses.field(default=None, compare=False)
    answer: object = None

    def encode_text(self, params, packed):
        return jnp.zeros((*packed.text.shape, 12))

    def video_velocity(self, params, z, sigma, packed, text, given, co_visible=None):
        self.asked.append((z, sigma, given, co_visible))
        velocity = jnp.zeros_like(z)
        if self.counts is not None:
            velocity = jnp.where(self.counts[..., None], velocity, jnp.nan)
        grid = self.token_grid(z.shape)
        return velocity, jnp.zeros((3, *z.shape[:3], grid[0] * grid[1], 40))

    def feature_cache(self, params, features, packed, grid, chunk_index=None):
        return None

    def action_velocity(self, params, actions, sigma, packed, cache):
        return self.answer(actions, sigma, packed)


def stub(form="clean", **more) -> Stub:
    real = small_denoiser(video=dict(conditioning=form))
    return Stub(**{f.name: getattr(real, f.name) for f in dataclasses.fields(Denoiser)}, **more)


@pytest.fixture(scope="module")
def batch():
    return jax.tree.map(jnp.asarray, Batch.fake(DIMS, seed=3))


def noise_of(batch):
    """(levels of events, eps) as the video losses draw them."""
    keys = jax.random.split(KEY, 3)
    sigma = sample_sigma(keys[0], batch.event_length.shape, CONFIG.shift)
    return sigma, np.asarray(jax.random.normal(keys[1], batch.latents.shape))


def ask(batch, form="clean", **config):
    """(z, sigma, given, mask, loss) of one video loss with a zero prediction."""
    denoiser = stub(form)
    loss, _ = video_loss(denoiser, dataclasses.replace(CONFIG, **config), {}, batch, KEY)
    return *denoiser.asked[0], float(loss)


TUBES = dict(p_tube=1.0, tube_sizes=(1, 2), cone_scale=2.0)


@pytest.mark.parametrize("form", FORMS)
def test_a_tube_replaces_one_window_of_one_view_on_all_frames_of_its_event(batch, form):
    plain, sigma, seen, cones, _ = ask(batch, form, cone_scale=2.0)
    z, level, given, mask, _ = ask(batch, form, **TUBES)
    tube = np.asarray(z != plain).any(-1)
    _, eps = noise_of(batch)
    np.testing.assert_array_equal(z[tube], eps[tube])  # level 1: pure noise
    # Nothing else differs: levels told to the tower, conditioning, attention.
    for one, other in ((level, sigma), (given.mask, seen.mask), (mask, cones)):
        np.testing.assert_array_equal(one, other)
    config = dataclasses.replace(CONFIG, **TUBES)
    grid = (DIMS.height // PATCH, DIMS.width // PATCH)
    elsewhere = np.asarray(seen_elsewhere(cross_view_mask(config, batch, grid), DIMS.views, grid))
    found = 0
    for row, slot in slots_of(batch):
        frames = np.asarray(batch.frame_segment[row]) == slot + 1
        inside = tube[row][:, frames]  # [V, f, H, W]
        np.testing.assert_array_equal(inside, np.broadcast_to(inside[:, :1], inside.shape))
        if not inside.any():
            continue
        found += 1
        views, rows, columns = np.nonzero(inside[:, 0, ::PATCH, ::PATCH])
        side = np.ptp(rows) + 1
        assert len(set(views)) == 1 and np.ptp(columns) + 1 == side <= 2
        assert len(views) == side**2 and inside[:, 0].sum() == side**2 * PATCH**2
        assert elsewhere[row][frames][:, views, rows, columns].all()
    assert found >= 2 and not tube[np.broadcast_to(
        (batch.frame_segment == 0)[:, None, :, None, None], tube.shape)].any()  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_hidden_tube_is_withheld_from_the_observation_too(batch, form):
    plain, *_ = ask(batch, form)
    z, _, given, *_ = ask(batch, form, **TUBES, p_tube_cond=1.0)
    tube = np.asarray(z != plain).any(-1)
    observed = np.asarray(observed_frames(batch))[:, None, :, None, None]
    np.testing.assert_array_equal(given.mask, observed & ~tube)
    shown = np.asarray(tower_input(z, given, form))
    _, eps = noise_of(batch)
    held = tube & observed
    assert held.any()
    np.testing.assert_array_equal(shown[held][:, :5], eps[held])  # not clean there
    if form == "channels":
        assert not shown[held][:, 5:].any()


@pytest.mark.parametrize("form", FORMS)
def test_what_counts_and_how_much(batch, form):
    """By hand: visible cells of frames that carry noise, lambda_mask inside the tube."""
    config = dataclasses.replace(CONFIG, **TUBES, lambda_mask=3.0)
    z, *_ = ask(batch, form, **TUBES)
    tube = np.asarray(z != ask(batch, form)[0]).any(-1)
    noised = np.asarray(batch.frame_segment > 0)
    if form == "clean":
        noised = noised & np.asarray(batch.frame_index > 0)
    counts = np.asarray(batch.visible) & noised[:, None, :, None, None]
    _, eps = noise_of(batch)
    error = np.square(eps - np.asarray(batch.latents))  # of a zero prediction
    weight = np.where(tube, 3.0, 1.0)[..., None]
    want = (error * weight)[counts].sum() / (counts.sum() * error.shape[-1])
    denoiser = stub(form, counts=jnp.asarray(counts))  # NaN wherever nothing counts
    got, _ = video_loss(denoiser, config, {}, batch, KEY)
    assert float(got) == pytest.approx(want, rel=1e-5)
    assert counts.sum() < np.broadcast_to(noised[:, None, :, None, None], counts.shape).sum()


def test_without_tubes_nothing_is_drawn_and_nothing_changes(batch):
    """p_tube = 0 is the recipe without the feature, bit for bit, whatever its other constants."""
    one = ask(batch, sight_cone=0.5)
    other = ask(batch, sight_cone=0.5, p_tube_cond=1.0, tube_sizes=(1, 2), lambda_mask=9.0)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    sigma, eps = noise_of(batch)
    level = np.asarray(frame_sigma(batch, sigma))[:, None, :, None, None, None]
    want = (1 - level) * np.asarray(batch.latents) + level * eps
    np.testing.assert_allclose(one[0], want, rtol=1e-6, atol=1e-6)


def perfect(kind, batch):
    """An answer that knows the clean actions."""

    def answer(actions, sigma, packed):
        if kind == "x":
            return batch.actions
        return (actions - batch.actions) / jnp.maximum(sigma, 1e-6)[..., None]

    return answer


@pytest.mark.parametrize("kind", ["v", "x"])
def test_a_perfect_prediction_costs_nothing_in_either_kind(batch, kind):
    config = dataclasses.replace(CONFIG, action_target=kind, dct_weight=0.7)
    loss, _ = action_loss(stub(answer=perfect(kind, batch)), config, {}, batch, KEY)
    assert 0 <= float(loss) < 1e-8
    wrong, _ = action_loss(
        stub(answer=perfect("xv".replace(kind, ""), batch)), config, {}, batch, KEY
    )
    assert float(wrong) > 0.1


def test_the_dct_term_adds_its_weight_times_itself(batch):
    """Of a prediction that is off by a constant the spectrum is known to `dct_loss`."""
    answer = lambda actions, sigma, packed: batch.actions + 0.3  # noqa: E731
    config = dataclasses.replace(CONFIG, action_target="x")
    base, heavy = (
        action_loss(stub(answer=answer), dataclasses.replace(config, dct_weight=w), {}, batch, KEY)[
            0
        ]
        for w in (0.0, 2.0)
    )
    assert float(base) == pytest.approx(0.09, rel=1e-5)
    levels = sample_sigma(jax.random.split(KEY, 5)[4], (3, *batch.event_length.shape), 1.0)
    real = spread(batch.action_mask, batch.action_segment) & (batch.action_segment > 0)[..., None]
    terms = [
        reduce_mean(
            dct_loss(
                batch.actions + 0.3, batch.actions, batch.action_segment, batch.action_index,
                spread(level, batch.action_segment), real,
            )
        )
        for level in levels
    ]  # fmt: skip
    assert float(heavy - base) == pytest.approx(2.0 * float(np.mean(terms)), rel=1e-4)
    assert float(heavy) > float(base)


@pytest.fixture(scope="module")
def setting(batch):
    """(denoiser without duration, fresh parameters)."""
    denoiser = small_denoiser(video=dict(duration=False))
    init = jax.jit(denoiser.init)(jax.random.key(0), batch.latents, batch)
    return denoiser, nn.meta.unbox(init)


def test_k_draws_are_k_losses_over_one_cache(setting, batch):
    """One pass with K = 3 is the mean of three passes; video and readers run once."""
    denoiser, params = setting[0], shaken(setting[1])
    run = lambda p: action_loss(denoiser, CONFIG, p, batch, KEY)[0]  # noqa: E731
    together = float(jax.jit(run)(params))

    keys = jax.random.split(KEY, 5)
    levels = sample_sigma(keys[4], (3, *batch.event_length.shape), 1.0)
    draws = jax.random.split(jax.random.fold_in(KEY, 7), 3)
    real = spread(batch.action_mask, batch.action_segment) & (batch.action_segment > 0)[..., None]

    @jax.jit
    def alone(params, level, key):
        # The anchored features, made again for every draw.
        spy = Capture(**{f.name: getattr(denoiser, f.name) for f in dataclasses.fields(Denoiser)})
        action_loss(spy, CONFIG, params, batch, KEY)
        sigma = spread(level, batch.action_segment)
        eps = jax.random.normal(key, batch.actions.shape) * real
        noisy = (1 - sigma[..., None]) * batch.actions + sigma[..., None] * eps
        got = denoiser.action_velocity(params, noisy, sigma, batch, spy.caches[0])
        error = jnp.square(got - target(batch.actions, eps))
        return jnp.sum(jnp.where(real, error, 0)) / jnp.sum(real)

    apart = [float(alone(params, level, key)) for level, key in zip(levels, draws, strict=True)]
    assert together == pytest.approx(np.mean(apart), rel=1e-5)
    assert np.ptp(apart) > 1e-3
    for count in (1, 3, 6):
        config = dataclasses.replace(CONFIG, action_draws=count)
        jaxpr = jax.make_jaxpr(lambda p, c=config: action_loss(denoiser, c, p, batch, KEY))(params)
        assert products(jaxpr.jaxpr, (40, 64)) == 3  # the video's FFN: three layers, once
        assert products(jaxpr.jaxpr, (40, 2, 12)) == 2 * 3  # keys and values of three readers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capture(Denoiser):
    """Keeps the feature caches it makes."""

    caches: list = dataclasses.field(default_factory=list, compare=False)

    def feature_cache(self, *arguments, **named):
        self.caches.append(super().feature_cache(*arguments, **named))
        return self.caches[-1]


def largest(tree) -> float:
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def test_the_action_loss_has_no_gradient_in_the_video_or_the_text(setting, batch):
    """Not a small one: none, even when the sketch is the model's own."""
    denoiser, params = setting[0], shaken(setting[1])
    config = dataclasses.replace(CONFIG, own_sketch=0.5, sketch_steps=1)
    grads = jax.jit(jax.grad(lambda p: action_loss(denoiser, config, p, batch, KEY)[0]))(params)
    assert largest(grads["video"]) == largest(grads["text"]) == 0.0
    assert largest(grads["action"]) > 1e-3


def test_the_joint_loss_trains_both_towers_and_is_the_sum_of_its_parts(setting, batch):
    denoiser, params = setting[0], shaken(setting[1])
    run = jax.value_and_grad(lambda p: joint_loss(denoiser, CONFIG, p, batch, KEY), has_aux=True)
    (loss, parts), grads = jax.jit(run)(params)
    assert float(loss) == pytest.approx(float(parts["loss_video"] + parts["loss_action"]), rel=1e-6)
    # One draw of levels and noise for the video of both losses: its part is L_V itself.
    alone = jax.jit(lambda p: video_loss(denoiser, CONFIG, p, batch, KEY)[0])(params)
    assert float(parts["loss_video"]) == pytest.approx(float(alone), rel=1e-6)
    assert largest(grads["video"]) > 1e-3 and largest(grads["action"]) > 1e-3


def test_one_step_of_the_video_loss_makes_views_see_each_other(setting, batch):
    """Three Wan forwards at initialisation; after one gradient step no longer."""
    denoiser, fresh = setting
    grad = jax.jit(jax.grad(lambda p: video_loss(denoiser, CONFIG, p, batch, KEY)[0]))(fresh)
    stepped = jax.tree.map(lambda p, g: p - 0.1 * g, fresh["video"], grad["video"])
    frames = jnp.arange(4)[None]
    latents = jax.random.normal(jax.random.key(1), (1, 3, 4, 4, 6, 5))
    timestep = jnp.array([[0.0, 640, 640, 640]])
    text = jax.random.normal(jax.random.key(2), (1, 1, 5, 12))
    wan = WanDiT(denoiser.video_config.wan)

    @jax.jit
    def gap(video):
        together, _ = denoiser.video.apply(
            {"params": video}, latents, timestep[..., None], text, jnp.ones((1, 1, 5), bool),
            jnp.ones_like(frames), frames,
        )  # fmt: skip
        ticks = jnp.repeat(timestep, 6, axis=1)
        alone = [
            wan.apply({"params": wan_of(video)}, latents[:, v], ticks, text[:, 0]) for v in range(3)
        ]
        alone = jnp.stack(alone, axis=1)
        return jnp.abs(together - alone).max() / jnp.abs(alone).max()

    assert gap(fresh["video"]) < 2e-6
    assert gap(stepped) > 1e-3
