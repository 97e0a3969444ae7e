"""The embedded codec: principal components of patches, behind the VAE's interface.

It fills the place of the Wan VAE where nothing may be downloaded, with the
same causal rule `1 + 4N frames -> 1 + N latent frames`:

    z_0 = (patch(x_0) - m_k) B_k / s_k                        the key frame
    z_j = (patch(x_{4j-3..4j} - x^_0) - m_g) B_g / s_g        groups of four

x^_0 is the decoded key frame, so groups code what changes. Each scale is the
channel's deviation to the power 1/2, brought back to unit mean square: strong
channels stay stronger, so a denoiser's effort follows what matters in pixels.

Letters: B clips, T = 1+4N frames, F = 1+N latent frames, h w latent grid,
C channels, p patch size, g = 4 frames of a group.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Float

from wallwm_jax.types import Params


class PatchCodec(nn.Module):
    """Encodes and decodes clips with fitted bases (see `fit_patch_codec`)."""

    channels: int
    patch: int = 8
    group: int = 4

    def setup(self) -> None:
        for name, rows in (("key", 1), ("group", self.group)):
            size = rows * 3 * self.patch**2
            zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
            setattr(self, f"{name}_mean", self.param(f"{name}_mean", zeros, (size,)))
            setattr(
                self, f"{name}_basis", self.param(f"{name}_basis", zeros, (size, self.channels))
            )
            setattr(self, f"{name}_scale", self.param(f"{name}_scale", ones, (self.channels,)))

    def encode(self, video: Float[Array, "B T H W 3"]) -> Float[Array, "B F h w C"]:
        """Clips in [-1, 1] to latents.

        Raises:
          ValueError: when T is not 1+4N or the picture is not whole patches.
        """
        frames, height, width = video.shape[1:4]
        if (frames - 1) % self.group or height % self.patch or width % self.patch:
            raise ValueError(
                f"clip of {frames} frames at {height}x{width}: the codec needs 1+{self.group}N frames "
                f"and sides divisible by {self.patch}; pad or resize it"
            )
        key = self._encode_key(video[:, :1])
        shown = repeat(self._decode_key(key), "b 1 h w c -> b t h w c", t=frames - 1)
        groups = rearrange(
            video[:, 1:] - shown,
            "b (n g) (h p) (w q) c -> b n h w (g p q c)",
            g=self.group,
            p=self.patch,
            q=self.patch,
        )
        groups = (groups - self.group_mean) @ self.group_basis / self.group_scale
        return jnp.concatenate([key, groups], axis=1)

    def decode(self, latents: Float[Array, "B F h w C"]) -> Float[Array, "B T H W 3"]:
        """Latents to clips; values may leave [-1, 1] slightly."""
        key = self._decode_key(latents[:, :1])
        groups = (latents[:, 1:] * self.group_scale) @ self.group_basis.T + self.group_mean
        groups = rearrange(
            groups,
            "b n h w (g p q c) -> b (n g) (h p) (w q) c",
            g=self.group,
            p=self.patch,
            q=self.patch,
            c=3,
        )
        return jnp.concatenate([key, key + groups], axis=1)

    def _encode_key(self, frame: Float[Array, "B 1 H W 3"]) -> Float[Array, "B 1 h w C"]:
        patches = rearrange(
            frame, "b t (h p) (w q) c -> b t h w (p q c)", p=self.patch, q=self.patch
        )
        return (patches - self.key_mean) @ self.key_basis / self.key_scale

    def _decode_key(self, latent: Float[Array, "B 1 h w C"]) -> Float[Array, "B 1 H W 3"]:
        patches = (latent * self.key_scale) @ self.key_basis.T + self.key_mean
        return rearrange(
            patches, "b t h w (p q c) -> b t (h p) (w q) c", p=self.patch, q=self.patch, c=3
        )


def fit_patch_codec(
    clips: list[Float[np.ndarray, "_ H W 3"]],
    channels: int,
    *,
    patch: int = 8,
    group: int = 4,
    samples: int = 20_000,
    power: float = 0.5,
    seed: int = 0,
) -> Params:
    """Fits the codec's bases on clips in [-1, 1].

    Args:
      clips: training clips of one size, each of 1+4N frames.
      channels: principal components kept per patch.
      samples: patches drawn for each of the two bases.
      power: exponent of the channel deviation in the scale.
      seed: of the patch draw.

    Returns:
      Parameters of `PatchCodec`, float32.
    """
    rng = np.random.default_rng(seed)
    keys = np.concatenate(
        [rearrange(c[0], "(h p) (w q) c -> (h w) (p q c)", p=patch, q=patch) for c in clips]
    )
    mean, basis, scale = _principal(_draw(rng, keys, samples), channels, power, centred=True)
    shown = [_show_key(c[0], mean, basis, patch) for c in clips]
    groups = np.concatenate(
        [
            rearrange(
                c[1:] - k, "(n g) (h p) (w q) c -> (n h w) (g p q c)", g=group, p=patch, q=patch
            )
            for c, k in zip(clips, shown, strict=True)
        ]
    )
    # Not centred: "nothing changes" must stay near the code 0.
    group_mean, group_basis, group_scale = _principal(
        _draw(rng, groups, samples), channels, power, centred=False
    )
    fitted = dict(
        key_mean=mean,
        key_basis=basis,
        key_scale=scale,
        group_mean=group_mean,
        group_basis=group_basis,
        group_scale=group_scale,
    )
    return {name: np.asarray(value, np.float32) for name, value in fitted.items()}


def _draw(rng: np.random.Generator, rows: np.ndarray, samples: int) -> np.ndarray:
    return rows[rng.permutation(len(rows))[:samples]].astype(np.float64)


def _show_key(frame: np.ndarray, mean: np.ndarray, basis: np.ndarray, patch: int) -> np.ndarray:
    rows = rearrange(frame, "(h p) (w q) c -> h w (p q c)", p=patch, q=patch)
    rows = (rows - mean) @ basis @ basis.T + mean
    return rearrange(rows, "h w (p q c) -> (h p) (w q) c", p=patch, q=patch, c=3)


def _principal(
    rows: np.ndarray, channels: int, power: float, *, centred: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean = rows.mean(0) if centred else np.zeros(rows.shape[1])
    rows = rows - mean
    _, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    basis = vectors[:, ::-1][:, :channels]
    # eigh leaves signs open: fix them so that the same data gives the same codec.
    basis = basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(channels)])
    deviation = np.maximum((rows @ basis).std(0), 1e-6)
    scale = deviation**power
    return mean, basis, scale * np.sqrt(np.mean(deviation**2 / scale**2))
