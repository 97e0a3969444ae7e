"""The families that are implemented, by the name in config.json: one line each."""

import flax.linen as nn

from wallwm_jax.convert import umt5, wan_dit, wan_vae
from wallwm_jax.convert.table import Family
from wallwm_jax.models.umt5 import UMT5Encoder
from wallwm_jax.models.wan_dit import WanDiT
from wallwm_jax.models.wan_vae import WanVAE

FAMILIES: dict[str, Family] = {
    "WanTransformer3DModel": wan_dit.FAMILY,
    "AutoencoderKLWan": wan_vae.FAMILY,
    "UMT5EncoderModel": umt5.FAMILY,
}
"""What is read and written."""

SOURCES: dict[str, Family] = FAMILIES | {"WanModel": wan_dit.ORIGINAL_FAMILY}
"""What is read: also the layouts that are not written."""

FAMILY_OF: dict[type[nn.Module], Family] = {
    WanDiT: wan_dit.FAMILY,
    WanVAE: wan_vae.FAMILY,
    UMT5Encoder: umt5.FAMILY,
}
"""How a module of ours is written."""
