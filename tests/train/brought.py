"""A tiny Wan in the layout of a diffusers pipeline, and a run that starts from it."""

import io
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict
from sentencepiece import SentencePieceTrainer
from toy_run import SMALL

from configs.metaworld import get_config
from wallwm_jax.convert import save_pretrained
from wallwm_jax.convert.families import FAMILY_OF
from wallwm_jax.models.umt5 import UMT5Config, UMT5Encoder
from wallwm_jax.models.wan_config import WanConfig
from wallwm_jax.models.wan_dit import WanDiT
from wallwm_jax.models.wan_vae import WanVAE, WanVAEConfig

CHANNELS, TEXT_WIDTH = 4, 12
PARTS = {"video": "transformer", "text": "text_encoder", "codec": "vae"}

TEXT = UMT5Encoder(
    UMT5Config(vocabulary=64, width=TEXT_WIDTH, heads=2, head_dim=6, layers=1, ffn=16)
)


def dit(**changes: int) -> WanDiT:
    """A Wan DiT; in and out channels fit `vae`."""
    sizes = dict(width=32, heads=2, layers=2, ffn=48, text_width=TEXT_WIDTH)
    return WanDiT(WanConfig(**sizes | dict(in_channels=CHANNELS, out_channels=CHANNELS) | changes))


def vae(channels: int = CHANNELS) -> WanVAE:
    """A Wan codec of 4x4 pixels and groups of four, whose latents are not of unit variance."""
    return WanVAE(
        WanVAEConfig(
            encoder_width=4,
            decoder_width=4,
            latent_channels=channels,
            multipliers=(1, 1, 1),
            blocks=1,
            time=(True, True),
            latent_mean=tuple(0.1 * i for i in range(channels)),
            latent_std=tuple(0.5 + 0.1 * i for i in range(channels)),
        )
    )


def shaken(module: nn.Module, seed: int = 0) -> dict:
    """Random parameters of a module, none of them zero or one by design; nothing is compiled."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == "scale":
            return np.asarray(1 + 0.1 * noise, leaf.dtype)
        return np.asarray(noise * min(0.3, (leaf.shape[-1] / noise.size) ** 0.5), leaf.dtype)

    shapes = nn.meta.unbox(FAMILY_OF[type(module)].shapes(module))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_tokeniser(folder: Path) -> None:
    """A SentencePiece model with T5's special ids."""
    model = io.BytesIO()
    captions = [
        "move the arm above the drawer",
        "pull the drawer open",
        "move down",
        "open the drawer",
    ]
    SentencePieceTrainer.train(
        sentence_iterator=iter(captions * 8),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(model.getvalue())


def write_pipeline(folder: Path) -> None:
    """transformer/, text_encoder/, tokenizer/ and vae/."""
    for slot, module in dict(video=dit(), text=TEXT, codec=vae()).items():
        save_pretrained(module, shaken(module), folder / PARTS[slot])
    write_tokeniser(folder / "tokenizer")
    (folder / "model_index.json").write_text("{}")


def brought_config(workdir: Path, pipeline: Path, dataset: Path) -> ConfigDict:
    """The demo's config over the pipeline's parts, everything else small."""
    config = get_config()
    config.workdir = str(workdir)
    config.update_from_flattened_dict(
        {key: value for key, value in SMALL.items() if not key.startswith(("codec", "text"))}
    )
    config.data.update(dict(folder=str(dataset), image_size=16))
    config.pretrained.update({slot: str(pipeline / part) for slot, part in PARTS.items()})
    config.text.size = config.video.size = "inherited"
    config.video.unroll = 1
    config.action.update(dict(width=24, heads=2, ffn=32, unroll=1))
    for name in config.stages:
        config.stages[name].update(dict(steps=2, warmup=1, save_every=1, log_every=1))
    return config
