"""A person's own Wan: `config.pretrained`, three folders that replace what we make ourselves.

    video   a Wan DiT           the video tower starts as `graft(wan, fresh tower)`
    text    a umT5 encoder      replaces the small random one, with its tokeniser
    codec   a Wan video codec   replaces the one that is fitted on the data

Folders are looked into before any work is done: kind, headers, and whether
sizes fit one another. What stays frozen (text, codec) is not copied into
checkpoints; these name the folder and its SHA-256 instead.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from wallwm_jax.convert import ConvertError, Look, look
from wallwm_jax.episodes import clock
from wallwm_jax.errors import UserError
from wallwm_jax.input import prompts
from wallwm_jax.models.conditioning import FORMS, input_channels
from wallwm_jax.models.umt5 import UMT5_SIZES, UMT5Encoder
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.models.wan_dit import WanDiT
from wallwm_jax.models.wan_vae import WanVAE
from wallwm_jax.parallel.mesh import param_shardings
from wallwm_jax.train.fingerprint import Fingerprint, fingerprint, read_known, write_known
from wallwm_jax.types import Params

INHERITED = "inherited"
"""The `size` of a section whose sizes come from a folder."""

KINDS = {
    "video": (WanDiT, "a Wan DiT", "transformer"),
    "text": (UMT5Encoder, "a umT5 encoder", "text_encoder"),
    "codec": (WanVAE, "a Wan VAE", "vae"),
}
"""Slot -> what it takes, and where that lies in a diffusers pipeline."""

CHOICES = {
    "video": {"remat", "unroll", "attention", "dtype", "param_dtype", "duration", "blank_latent"},
    "text": {"dtype"},
}
"""Keys of a section that stay the user's: how it runs, and what is grafted on."""

IDLE = {
    "video": {"gate_bias", "conditioning", "text_padding"},
    "text": {"vocabulary", "embedding_scale", "residual_scale"},
}
"""Keys that the demo's sections hold anyway and that follow from the folder."""

CACHE = "pretrained.json"


class PretrainedError(UserError):
    """A folder of config.pretrained is not what it should be; one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One slot's folder, looked into but not loaded.

    Attributes:
      slot: one of KINDS.
      look: what it holds.
      tokeniser_folder: of slot "text".
      record: what checkpoints keep of it: its fingerprint and dtype.
    """

    slot: str
    look: Look
    tokeniser_folder: Path | None
    record: Fingerprint

    @property
    def module(self) -> nn.Module:
        """The module of the folder's sizes."""
        return self.look.module

    @property
    def sha256(self) -> str:
        """Identifies the content."""
        return self.record["sha256"]

    def load(self, mesh: Mesh | None = None) -> Params:
        """The parameters, streamed to where the mesh wants them, or to the default device.

        Raises:
          PretrainedError: the files changed or failed since they were looked at.
        """
        try:
            return self.look.load(mesh and (lambda boxed: param_shardings(boxed, mesh)))
        except ConvertError as error:
            raise PretrainedError(f"config.pretrained.{self.slot}: {error}") from error

    def tokeniser(self) -> prompts.PieceTokeniser:
        """The tokeniser of slot "text".

        Raises:
          TokeniserError: its file cannot be read.
        """
        return prompts.PieceTokeniser.from_folder(self.tokeniser_folder)


Sources = Mapping[str, Source]
"""Slot -> source, of the slots that name a folder."""


def folders(config: ConfigDict) -> dict[str, str]:
    """Slot -> folder, of the slots that name one.

    Raises:
      PretrainedError: an unknown slot, or a section's `size` says otherwise.
    """
    section = config.get("pretrained", ConfigDict()).to_dict()
    if unknown := sorted(section.keys() - KINDS.keys()):
        raise PretrainedError(
            f"config.pretrained has an unknown key {unknown[0]!r}; known are {', '.join(KINDS)}"
        )
    found = {slot: section[slot] for slot in KINDS if section.get(slot)}
    for slot in CHOICES:
        size, here = config[slot].get("size"), f"config.{slot}.size"
        if slot in found and size != INHERITED:
            raise PretrainedError(
                f"{here} is {size!r} but config.pretrained.{slot} names a folder, which brings its own sizes; "
                f"set {here}={INHERITED}, or name no folder"
            )
        if size == INHERITED and slot not in found:
            raise PretrainedError(
                f"{here} is {INHERITED!r} but config.pretrained.{slot} names no folder; name one, or a size"
            )
        if slot in found:
            _refuse_sizes(slot, config[slot])
    return found


def _refuse_sizes(slot: str, section: ConfigDict) -> None:
    """Raises PretrainedError for a key that the folder decides."""
    given = set(section) - CHOICES[slot] - IDLE[slot] - {"size"}
    if given:
        raise PretrainedError(
            f"config.{slot}.{sorted(given)[0]} is set but config.pretrained.{slot} brings its own sizes; "
            f"remove it (yours to choose: {', '.join(sorted(CHOICES[slot]))})"
        )


def open_sources(config: ConfigDict) -> dict[str, Source]:
    """Looks into every folder that the config names, and fingerprints it.

    A folder is hashed once: size and time of its files are kept with the
    digest in <workdir>/pretrained.json, and while they stay so does the digest.

    Raises:
      PretrainedError: anything about the folders, or between them, that is not
        as it should be.
    """
    named = folders(config)
    if not named:
        return {}
    dtypes = {
        "video": config.video.get("param_dtype", "float32"),
        "text": config.text.get("dtype", "float32"),
        "codec": "float32",
    }
    looks = {slot: _look(slot, folder, dtypes[slot]) for slot, folder in named.items()}
    tokeniser = _tokeniser_folder(looks["text"].folder) if "text" in looks else None
    _check_fit(config, looks, tokeniser)
    cache = Path(config.workdir) / CACHE
    known = read_known(cache)
    sources = {
        slot: _source(slot, seen, tokeniser if slot == "text" else None, known.values())
        for slot, seen in looks.items()
    }
    records = known | {slot: source.record for slot, source in sources.items()}
    if records != known and jax.process_index() == 0:
        write_known(cache, records)
    return sources


def reopen(slot: str, record: Fingerprint, folder: str | None = None) -> Source:
    """The source that a checkpoint was made with.

    Args:
      slot: one of KINDS.
      record: what the checkpoint says of it.
      folder: where it lies now; None is where it lay.

    Raises:
      PretrainedError: it is missing, or its content is another.
    """
    place = Path(folder or record["folder"])
    needs = f"the checkpoint needs the {slot} weights of SHA-256 {record['sha256'][:12]}"
    advice = f"name their folder with config.pretrained.{slot}"
    if not place.is_dir():
        raise PretrainedError(f"{needs}, but {place} is not there; put it back, or {advice}")
    seen = _look(slot, str(place), record["dtype"])
    source = _source(
        slot, seen, _tokeniser_folder(seen.folder) if slot == "text" else None, [record]
    )
    if source.sha256 != record["sha256"]:
        raise PretrainedError(
            f"{needs}, but {place} has {source.sha256[:12]}; put the old files back, or {advice}"
        )
    return source


def wan_config(section: ConfigDict, source: Source) -> tuple[WanConfig, dict[str, Any]]:
    """Sizes of the inherited tower with the run's choices, and what is grafted on.

    Args:
      section: config.video.
      source: of slot "video".

    Returns:
      (sizes, fields of `VideoConfig`): the form of conditioning follows from the
      folder's channels, and captions are padded as its weights were trained.
    """
    chosen = {key: section[key] for key in CHOICES["video"] if key in section}
    fields = {field.name for field in dataclasses.fields(WanConfig)}
    runs = {key: chosen.pop(key) for key in list(chosen) if key in fields}
    config = dataclasses.replace(source.module.config, **({"dtype": "float32"} | runs))
    return config, chosen | {"conditioning": _form(config), "text_padding": "zeros"}


def _form(config: WanConfig) -> str | None:
    """The form of conditioning that takes these channels."""
    fitting = [f for f in FORMS if input_channels(f, config.out_channels) == config.in_channels]
    return fitting[0] if fitting else None


def _look(slot: str, folder: str, dtype: str) -> Look:
    """A look at a folder that must be of the slot's kind."""
    kind, what, part = KINDS[slot]
    try:
        seen = look(folder, dtype=dtype)
    except (ConvertError, ValueError) as error:
        raise PretrainedError(f"config.pretrained.{slot}: {error}") from error
    if not isinstance(seen.module, kind):
        raise PretrainedError(
            f"config.pretrained.{slot}: {folder} holds {seen.family.name}; this slot takes {what} "
            f"(in a diffusers pipeline the folder {part!r})"
        )
    return seen


def _tokeniser_folder(folder: Path) -> Path:
    """Where a text encoder's tokeniser lies: with it, or beside it as in pipelines."""
    places = (folder, folder.parent / "tokenizer")
    names = (prompts.JSON, prompts.MODEL)
    for place in places:
        if any((place / name).is_file() for name in names):
            return place
    raise PretrainedError(
        f"config.pretrained.text: no {' and no '.join(names)} in {places[0]} or {places[1]}; "
        "copy the tokeniser there"
    )


def _check_fit(config: ConfigDict, looks: Mapping[str, Look], tokeniser: Path | None) -> None:
    """Raises PretrainedError for what does not fit one another."""
    sizes = {slot: seen.module.config for slot, seen in looks.items()}
    video, text, codec = (sizes.get(slot) for slot in KINDS)
    name = {
        slot: f"config.pretrained.{slot}" if slot in looks else f"config.{slot}" for slot in KINDS
    }
    made = video.out_channels if video else _own(config.video, WAN_SIZES, "out_channels")
    read = video.text_width if video else _own(config.video, WAN_SIZES, "text_width")
    given = text.width if text else _own(config.text, UMT5_SIZES, "width")
    channels = codec.latent_channels if codec else config.codec.channels
    wrong = []
    if made != channels:
        wrong.append(
            f"{name['video']} makes latents of {made} channels, {name['codec']} has {channels}"
        )
    if read != given:
        wrong.append(
            f"{name['video']} reads captions of width {read}, {name['text']} gives {given}"
        )
    if video and _form(video) is None:
        wrong.append(
            f"{name['video']} takes {video.in_channels} channels for latents of {video.out_channels}, "
            "which is no form of conditioning that we have"
        )
    if video and video.image_width is not None:
        wrong.append(
            f"{name['video']} reads picture features (Wan2.1 image-to-video), which the tower does not have; "
            "take a Wan2.2 model"
        )
    if text and (size := len(prompts.PieceTokeniser.from_folder(tokeniser))) > text.vocabulary:
        wrong.append(
            f"the tokeniser in {tokeniser} has {size} pieces, {name['text']} knows {text.vocabulary}"
        )
    if codec and codec.time_factor != clock.GROUP:
        wrong.append(
            f"{name['codec']} groups {codec.time_factor} frames, events are cut for {clock.GROUP}"
        )
    for field in ("latent_mean", "latent_std") if codec else ():
        if len(getattr(codec, field) or ()) != codec.latent_channels:
            key = field.replace("latent", "latents")
            wrong.append(
                f"{name['codec']} has no {key} of {codec.latent_channels} values in its config.json"
            )
    wrong += _wrong_picture(config, codec, video)
    if wrong:
        raise PretrainedError("; ".join(wrong) + "; take parts of one release, or change the size")


def _own(section: ConfigDict, sizes: Mapping[str, dict], key: str) -> Any:
    """What a section without a folder says of a size."""
    return section.get(key, sizes.get(section.get("size"), {}).get(key))


def _wrong_picture(config: ConfigDict, codec: Any, video: Any) -> list[str]:
    """Why the data's pictures do not come out as whole tokens; empty when they do."""
    side = config.get("data", ConfigDict()).get("image_size")
    pixels = codec.space_factor if codec else config.codec.patch
    patch = max(video.patch[1:]) if video else 1
    if side is None or side % (pixels * patch) == 0:
        return []
    return [
        f"config.data.image_size is {side}, which is no multiple of {pixels * patch} "
        f"(a latent is {pixels} pixels wide, a token {patch} latents)"
    ]


def _source(slot: str, seen: Look, tokeniser: Path | None, known: Iterable[Fingerprint]) -> Source:
    """A look with its fingerprint; `known` are records whose digest may still hold."""
    files = {str(file.relative_to(seen.folder)): file for file in seen.files}
    if tokeniser is not None:
        # As PieceTokeniser chooses: tokenizer.json before spiece.model.
        file = next(f for n in (prompts.JSON, prompts.MODEL) if (f := tokeniser / n).is_file())
        files[f"tokeniser/{file.name}"] = file
    record = {"dtype": seen.dtype, **fingerprint(seen.folder, files, known)}
    return Source(slot=slot, look=seen, tokeniser_folder=tokeniser, record=record)
