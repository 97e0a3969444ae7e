"""Every family at every named size: its table covers the module, its config says all."""

import json

import pytest

from wallwm_jax.convert.families import FAMILIES, FAMILY_OF, SOURCES
from wallwm_jax.convert.load import DTYPES
from wallwm_jax.convert.plan import leaves
from wallwm_jax.models.umt5 import UMT5_SIZES, UMT5Config, UMT5Encoder
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.models.wan_dit import WanDiT
from wallwm_jax.models.wan_vae import WAN_VAE_SIZES, WanVAE, WanVAEConfig

KINDS = {
    WanDiT: (WanConfig, WAN_SIZES),
    WanVAE: (WanVAEConfig, WAN_VAE_SIZES),
    UMT5Encoder: (UMT5Config, UMT5_SIZES),
}
NAMED = [(kind, size) for kind, (_, sizes) in KINDS.items() for size in sizes]


def make(kind, size, dtype):
    config, sizes = KINDS[kind]
    return kind(config(**sizes[size], dtype=dtype, param_dtype=dtype))


def test_every_kind_of_module_has_its_family():
    assert KINDS.keys() == FAMILY_OF.keys()
    assert {family.name: family for family in FAMILY_OF.values()} == FAMILIES
    assert all(name == family.name for name, family in SOURCES.items())


@pytest.mark.parametrize(("kind", "size"), NAMED)
def test_the_table_covers_the_module(kind, size):
    module = make(kind, size, "float32")
    for family in {FAMILY_OF[kind].name: FAMILY_OF[kind], **_sources(kind)}.values():
        found = leaves(family, module)
        names = [name for leaf in found for name in leaf.names]
        assert len(set(names)) == len(names)
        for leaf in found:  # the layout and its inverse fit the shapes
            assert all(n > 0 for n in leaf.entry.their_shape(leaf.shape))


def _sources(kind):
    """Layouts that are only read."""
    return {"WanModel": SOURCES["WanModel"]} if kind is WanDiT else {}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "size"), NAMED)
def test_the_config_says_what_the_module_is(kind, size, dtype):
    module, family = make(kind, size, dtype), FAMILY_OF[kind]
    page = json.loads(json.dumps(family.write_config(module)))
    assert family.read_config(page, dtype) == module
