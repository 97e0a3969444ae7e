"""Public weights in and out: diffusers, transformers and Wan's release <-> our towers.

safetensors only; a pickle is refused, for opening one can run code.
"""

from wallwm_jax.convert.errors import ConvertError
from wallwm_jax.convert.load import load_pretrained
from wallwm_jax.convert.look import Look, look
from wallwm_jax.convert.save import save_pretrained
from wallwm_jax.convert.store import load_converted, save_converted

__all__ = [
    "ConvertError",
    "Look",
    "load_converted",
    "load_pretrained",
    "look",
    "save_converted",
    "save_pretrained",
]
