"""A command: both towers on eight simulated devices whose mesh cuts sequences, against one's.

python tests/models/cut_towers.py
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from towers import DIMS, shaken

from wallwm_jax.input.batch import Batch
from wallwm_jax.models.action_tower import ActionConfig
from wallwm_jax.models.conditioning import frame_sigma, observe
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.models.umt5 import UMT5Config
from wallwm_jax.models.video_tower import VideoConfig
from wallwm_jax.models.wan_config import WanConfig
from wallwm_jax.parallel.collectives import collectives_of
from wallwm_jax.parallel.mesh import activate, batch_sharding, make_mesh, param_shardings

MESHES = (dict(context=4, fsdp=2), dict(context=2, tensor=2, fsdp=2))
WIDTH = 64
SIZES = dataclasses.replace(DIMS, sequences=4, frames=8, height=8, width=12, actions=36)
TOKENS = SIZES.views * SIZES.frames * (SIZES.height // 2) * (SIZES.width // 2)
MODEL = Denoiser(
    text_config=UMT5Config(vocabulary=64, width=12, heads=2, head_dim=6, layers=1, ffn=16),
    video_config=VideoConfig(
        wan=WanConfig(
            width=WIDTH,
            heads=8,
            layers=2,
            ffn=80,
            in_channels=5,
            out_channels=5,
            text_width=12,
            gate_bias=0.5,
            remat="attention",
        ),
        views=3,
    ),
    action_config=ActionConfig(
        width=48,
        heads=8,
        layers=2,
        ffn=32,
        video_width=WIDTH,
        views=3,
        action_dim=20,
        state_dim=7,
        steps_per_latent=8,
        max_latent_frames=9,
    ),
)


def loss(params, batch: Batch, cones):
    """A scalar of both velocities, and all that the towers give."""
    sigma = frame_sigma(batch, 0.1 + 0.7 * (batch.event_length % 5) / 5, MODEL.conditioning)
    text = MODEL.encode_text(params, batch)
    given = observe(batch.latents, batch)
    video, features = MODEL.video_velocity(params, batch.latents, sigma, batch, text, given, cones)
    cache = MODEL.feature_cache(params, features, batch, MODEL.token_grid(batch.latents.shape))
    levels = jnp.full(batch.action_segment.shape, 0.3)
    action = MODEL.action_velocity(params, batch.actions, levels, batch, cache)
    return jnp.mean(jnp.sin(video)) + jnp.mean(action**2), (video, action, features)


RUN = jax.value_and_grad(loss, has_aux=True)


def check(sizes: dict[str, int], boxed: Any, arguments: tuple, want: Any) -> str:
    """Runs the same on a mesh; what it found there.

    Args:
      sizes: of the mesh.
      boxed: parameters with their logical names.
      arguments: of `loss`.
      want: what one device gave.
    """
    mesh = make_mesh(sizes)
    slices = param_shardings(boxed, mesh)
    params, *rest = arguments
    with activate(mesh):
        placed = jax.device_put(params, slices), *jax.device_put(rest, batch_sharding(mesh))
        compiled = jax.jit(RUN, out_shardings=(None, slices)).lower(*placed).compile()
        got = compiled(*placed)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()

    (_, (velocity, _, features)), _ = got
    for x, axis in ((velocity, 2), (features, 3)):
        assert x.sharding.shard_shape(x.shape)[axis] == SIZES.frames // mesh.shape["context"]

    # Bytes of queries, or a half of the hidden state, as they lie on a device.
    held = SIZES.sequences * TOKENS * WIDTH * 4 // mesh.size
    exchanges = 0
    for found in collectives_of(compiled.as_text()):
        if "all_to_all" in found.source and "/self_attention/" in found.source:
            assert found.bytes == held, found
            exchanges += found.times
        elif not found.source.endswith("sharding_constraint") and found.kind != "all-reduce":
            # Neither a weight that is gathered nor the gradient of one.
            assert found.bytes < held, found
    return f"equal, {exchanges} exchanges"


def main() -> None:
    """One line for every mesh."""
    batch = jax.tree.map(jnp.asarray, Batch.fake(SIZES, seed=3))
    assert len(np.unique(batch.frame_segment[0])) > 2, "one segment proves little"
    boxed = jax.jit(MODEL.init)(jax.random.key(0), batch.latents, batch)
    places = TOKENS // SIZES.frames
    cones = jax.random.bernoulli(jax.random.key(5), 0.7, (4, SIZES.frames, places, places))
    arguments = shaken(nn.meta.unbox(boxed)), batch, cones | jnp.eye(places, dtype=bool)
    want = jax.device_get(jax.jit(RUN)(*arguments))
    for sizes in MESHES:
        print(check(sizes, boxed, arguments, want))


if __name__ == "__main__":
    main()
