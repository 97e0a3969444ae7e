"""One interface for the two codecs: the embedded one and Wan's.

    encode   clip in [-1, 1]  ->  latents as the towers see them (unit variance)
    decode   and back

Parameters are arguments, so that no program carries a codec as constants.

Letters: B clips, T = 1 + fN frames, F = 1 + N latent frames, f the codec's
group, H W pixels, h w the latent grid, C channels.
"""

import dataclasses
from functools import partial

import jax
from einops import repeat
from jaxtyping import Array, ArrayLike, Float

from wallwm_jax.models.patch_codec import PatchCodec
from wallwm_jax.models.wan_vae import WanVAE, denormalise_latents, normalise_latents
from wallwm_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Codec:
    """A codec module behind the common interface.

    Attributes:
      module: the embedded codec, whose latents are normalised as they come, or
        Wan's, whose config says how.
    """

    module: PatchCodec | WanVAE

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        m = self.module
        return m.config.latent_channels if isinstance(m, WanVAE) else m.channels

    @property
    def space_factor(self) -> int:
        """Pixels along the side of a latent pixel."""
        m = self.module
        return m.config.space_factor if isinstance(m, WanVAE) else m.patch

    @property
    def time_factor(self) -> int:
        """Frames behind each latent frame but the first."""
        m = self.module
        return m.config.time_factor if isinstance(m, WanVAE) else m.group

    @partial(jax.jit, static_argnums=0)
    def encode(
        self, params: Params, video: Float[ArrayLike, "B T H W 3"]
    ) -> Float[Array, "B F h w C"]:
        """Clips in [-1, 1] to normalised latents.

        Raises:
          ValueError: clips that do not come out as whole latents.
        """
        z = self.module.apply({"params": params}, video, method="encode")
        return normalise_latents(self.module.config, z) if isinstance(self.module, WanVAE) else z

    @partial(jax.jit, static_argnums=0)
    def decode(
        self, params: Params, latents: Float[ArrayLike, "B F h w C"]
    ) -> Float[Array, "B T H W 3"]:
        """Normalised latents to clips; the embedded codec may leave [-1, 1] slightly."""
        if isinstance(self.module, WanVAE):
            latents = denormalise_latents(self.module.config, latents)
        return self.module.apply({"params": params}, latents, method="decode")


def copy_last_latents(
    codec: Codec, params: Params, key: Float[ArrayLike, "B 1 h w C"], frames: int
) -> Float[Array, "B F h w C"]:
    """Latents of the observed frame repeated: what "nothing changes" looks like.

    Args:
      codec, params: the codec.
      key: latent of the observed frame.
      frames: latent frames in all, F = 1 + N.
    """
    shown = codec.decode(params, key)
    clip = repeat(shown, "b 1 h w c -> b t h w c", t=1 + codec.time_factor * (frames - 1))
    return codec.encode(params, clip)
