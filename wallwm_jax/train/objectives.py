"""The losses of the stages, as pure functions of (parameters, batch, key).

    video    z_t = (1 - sigma) z_0 + sigma eps      per event, key frames clean
             L_V = mean || v^(z_t) - (eps - z_0) ||^2   over future, visible tokens
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

from wallwm_jax.flow.corrupt import convert, corrupt, target
from wallwm_jax.flow.losses import dct_loss, flow_loss, reduce_mean
from wallwm_jax.flow.schedule import s_star_sigma, sample_s_star, sample_sigma
from wallwm_jax.geometry.cameras import Cameras
from wallwm_jax.geometry.sight_cone import multi_view_mask
from wallwm_jax.input.batch import Batch
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.models.imagination import dream, frame_sigma, future_frames
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


def sight_cones(
    config: ObjectiveConfig, batch: Batch, grid: tuple[int, int], key: Array
) -> Bool[Array, "B F VS VS"]:
    """The cross-view mask of every latent frame, all True when the die says so."""
    cameras = Cameras(
        intrinsics=batch.intrinsics,
        extrinsics=batch.extrinsics,
        width=config.image_size,
        height=config.image_size,
    )
    mask = multi_view_mask(cameras, grid, config.cone_depth, config.cone_scale)
    use = jax.random.bernoulli(key, config.sight_cone, (mask.shape[0], 1, 1, 1))
    return mask | ~use


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
    sigma = frame_sigma(batch, per_event)
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
        sigma = jnp.where(own & future_frames(batch), end, sigma)
    _, features = denoiser.video_velocity(params, z, sigma, batch, text)
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
    """(L_V, features of the blocks, noise level of each event) of one noised batch."""
    keys = jax.random.split(key, 3)
    per_event = sample_sigma(keys[0], batch.event_length.shape, config.shift)
    sigma = frame_sigma(batch, per_event)
    eps = jax.random.normal(keys[1], batch.latents.shape)
    z = corrupt(batch.latents, eps, leading(sigma))
    cones = None
    if config.sight_cone > 0:
        cones = sight_cones(config, batch, denoiser.token_grid(batch.latents.shape), keys[2])
    text = denoiser.encode_text(params, batch)
    velocity, features = denoiser.video_velocity(params, z, sigma, batch, text, cones)
    return _video_error(batch, velocity, eps), features, per_event


def _video_error(batch: Batch, velocity: Array, eps: Array) -> Float[Array, ""]:
    count = batch.visible & leading(future_frames(batch))[..., None, None]
    return reduce_mean(flow_loss(velocity, target(batch.latents, eps), count))


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
    real = spread(batch.action_mask, batch.action_segment) & (batch.action_segment > 0)[..., None]

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
