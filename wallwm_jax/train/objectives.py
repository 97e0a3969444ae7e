"""The losses of the stages, as pure functions of (parameters, batch, key).

    video    z_t = (1 - sigma) z_0 + sigma eps      sigma per event, 1 inside a tube
             L_V = mean || v^(z_t, y) - (eps - z_0) ||^2   over visible tokens of frames
                   that carry noise, lambda_mask times as much inside a tube
    action   features of ONE video forward at s*, shared by K action noise levels
             L_A = (1/K) sum_k || a^(a_k) - target ||^2  (+ w_DCT L_DCT)
    joint    t_A = t_V, both towers end to end (symmetric 1-to-1, U-Scratch)

Letters: B sequences, V views, F latent frames, h w grid, C channels, E event
slots, A action steps, K noise draws.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wallwm_jax.flow.corrupt import convert, corrupt, expand, levels, target
from wallwm_jax.flow.losses import dct_loss, flow_loss, reduce_mean, tube_weight
from wallwm_jax.flow.schedule import s_star_sigma, sample_s_star, sample_sigma
from wallwm_jax.geometry.cameras import Cameras
from wallwm_jax.geometry.sight_cone import multi_view_mask
from wallwm_jax.geometry.tubes import Tube, packed_tubes, to_cells
from wallwm_jax.input.batch import Batch
from wallwm_jax.models.conditioning import frame_sigma, noised_frames, observe
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.models.imagination import dream
from wallwm_jax.models.layers import spread
from wallwm_jax.types import Params

Losses = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Constants of the objectives (method sections 2 and 3).

    Attributes:
      shift: Wan's timestep shift of the video.
      action_shift: the same for actions; 1 is uniform.
      sight_cone: probability that a step uses the cross-view geometric mask.
        The mask is a training device; below 1 the tower also sees the
        unmasked attention it will run with.
      cone_scale, cone_depth: l and (d_min, d_max) in metres of the sight cone.
      p_tube, p_tube_cond: probability that an event has a tube, and that the
        tube then is masked in the conditioning too. 0 is the main recipe.
      tube_sizes: (l_min, l_max) of its window, tokens.
      lambda_mask: weight of the loss inside it.
      image_size: pixels, to place the tokens' rays.
      s_star, s_star_steps, s_star_window: anchor of the action tower's view.
      action_draws: K.
      own_sketch: probability that the anchored latents come from the model's
        own imagination instead of noised ground truth (0 is the paper's
        recipe; above 0 the action tower meets in training what it will read).
      sketch_steps: video steps of that imagination.
      action_target: "v" or "x".
      dct_weight: w_DCT.
    """

    image_size: int
    shift: float = 5.0
    action_shift: float = 1.0
    sight_cone: float = 1.0
    cone_scale: float = 1.5
    cone_depth: tuple[float, float] = (0.05, 3.0)
    p_tube: float = 0.0
    p_tube_cond: float = 0.0
    tube_sizes: tuple[int, int] = (2, 4)
    lambda_mask: float = 1.0
    s_star: float = 45.0
    s_star_steps: int = 50
    s_star_window: float = 1.0
    action_draws: int = 6
    own_sketch: float = 0.0
    sketch_steps: int = 2
    action_target: str = "v"
    dct_weight: float = 0.0


def leading(per_frame: Array) -> Array:
    """[B, F] -> [B, 1, F], to lead latents [B, V, F, ...]."""
    return per_frame[:, None]


def counted_cells(batch: Batch, form: str) -> Bool[Array, "B V F h w"]:
    """Latent cells that L_V is a mean over: visible ones of frames that carry noise.

    Observed frames standing clean in place are not predicted, not even where a
    tube hides them: no sampler ever reads a velocity there.
    """
    return batch.visible & leading(noised_frames(batch, form))[..., None, None]


def counted_actions(batch: Batch) -> Bool[Array, "B A D"]:
    """Action dimensions that L_A is a mean over: those the embodiment has, of real steps."""
    return spread(batch.action_mask, batch.action_segment) & (batch.action_segment > 0)[..., None]


def counted_elements(denoiser: Denoiser, batch: Batch) -> dict[str, Float[Array, ""]]:
    """How many elements each part of a loss is a mean over, whatever the draws."""
    masks = {
        "loss_video": counted_cells(batch, denoiser.conditioning),
        "loss_action": counted_actions(batch),
    }
    return {name: jnp.sum(mask).astype(jnp.float32) for name, mask in masks.items()}


def cross_view_mask(
    config: ObjectiveConfig, batch: Batch, grid: tuple[int, int]
) -> Bool[Array, "B F VS VS"]:
    """M, who sees whose place, on every latent frame."""
    cameras = Cameras(
        intrinsics=batch.intrinsics,
        extrinsics=batch.extrinsics,
        width=config.image_size,
        height=config.image_size,
    )
    return multi_view_mask(cameras, grid, config.cone_depth, config.cone_scale)


def sight_cones(
    config: ObjectiveConfig, mask: Bool[Array, "B F VS VS"], key: Array
) -> Bool[Array, "B F VS VS"]:
    """What view attention is allowed: M, or everything when the die says so."""
    use = jax.random.bernoulli(key, config.sight_cone, (mask.shape[0], 1, 1, 1))
    return mask | ~use


def sample_tubes(
    denoiser: Denoiser,
    config: ObjectiveConfig,
    batch: Batch,
    mask: Bool[Array, "B F VS VS"],
    key: Array,
) -> Tube:
    """One tube per event at most, as masks of latent cells, bool[B, V, F, h, w]."""
    sequences, views = batch.latents.shape[:2]
    patch = denoiser.video_config.wan.patch[1:]

    def one(key: Array, mask: Array, segment: Array) -> Tube:
        return packed_tubes(
            key,
            mask,
            segment,
            batch.event_length.shape[1],
            views=views,
            grid=denoiser.token_grid(batch.latents.shape),
            sizes=config.tube_sizes,
            probability=config.p_tube,
            hide_probability=config.p_tube_cond,
        )

    tubes = jax.vmap(one)(jax.random.split(key, sequences), mask, batch.frame_segment)
    return Tube(*(to_cells(tokens, patch) for tokens in tubes))


def video_loss(
    denoiser: Denoiser, config: ObjectiveConfig, params: Params, batch: Batch, key: Array
) -> Losses:
    """L_V over one packed batch (stage 1)."""
    loss, _, _ = _video_forward(denoiser, config, params, batch, key)
    return loss, {"loss_video": loss}


def action_loss(
    denoiser: Denoiser, config: ObjectiveConfig, params: Params, batch: Batch, key: Array
) -> Losses:
    """L_A over one packed batch, the video frozen at s* (stage 2).

    One anchored video forward serves all K action noise levels.
    """
    keys = jax.random.split(key, 5)
    per_event = sample_s_star(
        keys[0],
        batch.event_length.shape,
        step=config.s_star,
        steps=config.s_star_steps,
        window=config.s_star_window,
        shift=config.shift,
    )
    form = denoiser.conditioning
    sigma = frame_sigma(batch, per_event, form)
    z = corrupt(batch.latents, jax.random.normal(keys[1], batch.latents.shape), leading(sigma))
    text = denoiser.encode_text(params, batch)
    if config.own_sketch > 0:
        own = jax.random.bernoulli(keys[2], config.own_sketch, (batch.latents.shape[0], 1))
        end = s_star_sigma(config.s_star, config.s_star_steps, config.shift)
        dreamt = dream(
            denoiser,
            params,
            batch.latents,
            batch,
            text,
            keys[3],
            steps=config.sketch_steps,
            shift=config.shift,
            end=end,
        )
        z = jnp.where(own[:, None, :, None, None, None], dreamt, z)
        sigma = jnp.where(own & noised_frames(batch, form), end, sigma)
    given = observe(batch.latents, batch)
    _, features = denoiser.video_velocity(params, z, sigma, batch, text, given)
    features = jax.lax.stop_gradient(features)
    levels = sample_sigma(
        keys[4], (config.action_draws, *batch.event_length.shape), config.action_shift
    )
    loss = _action_error(
        denoiser, config, params, batch, features, levels, jax.random.fold_in(key, 7)
    )
    return loss, {"loss_action": loss}


def joint_loss(
    denoiser: Denoiser, config: ObjectiveConfig, params: Params, batch: Batch, key: Array
) -> Losses:
    """L_V + L_A with one noise level for both towers (symmetric 1-to-1)."""
    video, features, per_event = _video_forward(denoiser, config, params, batch, key)
    action = _action_error(
        denoiser, config, params, batch, features, per_event[None], jax.random.fold_in(key, 7)
    )
    return video + action, {"loss_video": video, "loss_action": action}


def _video_forward(
    denoiser: Denoiser, config: ObjectiveConfig, params: Params, batch: Batch, key: Array
) -> tuple[Float[Array, ""], Float[Array, "N B V F S D"], Float[Array, "B E"]]:
    """(L_V, features of the blocks, noise level of each event) of one noised batch.

    A tube replaces the input only: the tower is told the level of the tube's
    frame, as the paper changes nothing else, and a level of its own would
    announce the hole instead of leaving it to be found from the other views.
    """
    keys = jax.random.split(key, 3)
    form = denoiser.conditioning
    per_event = sample_sigma(keys[0], batch.event_length.shape, config.shift)
    sigma = frame_sigma(batch, per_event, form)
    eps = jax.random.normal(keys[1], batch.latents.shape)
    cones, level, hidden, weight = None, leading(sigma), None, 1.0
    if config.sight_cone > 0 or config.p_tube > 0:
        mask = cross_view_mask(config, batch, denoiser.token_grid(batch.latents.shape))
    if config.sight_cone > 0:
        cones = sight_cones(config, mask, keys[2])
    if config.p_tube > 0:
        tube = sample_tubes(denoiser, config, batch, mask, jax.random.fold_in(key, 11))
        level = levels(expand(level, tube.noise), noise=tube.noise)
        hidden, weight = tube.hidden, tube_weight(tube.noise, config.lambda_mask)
    z = corrupt(batch.latents, eps, level)
    given = observe(batch.latents, batch, hidden)
    text = denoiser.encode_text(params, batch)
    velocity, features = denoiser.video_velocity(params, z, sigma, batch, text, given, cones)
    counted = counted_cells(batch, form)
    loss = flow_loss(velocity, target(batch.latents, eps), counted, weight=weight)
    return reduce_mean(loss), features, per_event


def _action_error(
    denoiser: Denoiser,
    config: ObjectiveConfig,
    params: Params,
    batch: Batch,
    features: Array,
    levels: Float[Array, "K B E"],
    key: Array,
) -> Float[Array, ""]:
    cache = denoiser.feature_cache(
        params, features, batch, denoiser.token_grid(batch.latents.shape)
    )
    real = counted_actions(batch)

    def one(level: Array, key: Array) -> Array:
        sigma = spread(level, batch.action_segment)
        eps = jax.random.normal(key, batch.actions.shape) * real
        noisy = corrupt(batch.actions, eps, sigma)
        predicted = denoiser.action_velocity(params, noisy, sigma, batch, cache)
        loss = reduce_mean(
            flow_loss(predicted, target(batch.actions, eps, config.action_target), real)
        )
        if config.dct_weight == 0:
            return loss
        clean = convert(predicted, noisy, sigma, source=config.action_target, to="x")
        return loss + config.dct_weight * reduce_mean(
            dct_loss(clean, batch.actions, batch.action_segment, batch.action_index, sigma, real)
        )

    return jnp.mean(jax.vmap(one)(levels, jax.random.split(key, len(levels))))
