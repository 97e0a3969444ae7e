"""From a ConfigDict to the parts of a run. The only room that reads configs.

Constructors everywhere else take plain arguments; a key that no constructor
knows is refused here, by name.
"""

import dataclasses
import difflib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from wallwm_jax.episodes import clock
from wallwm_jax.events.cluster import clusters_of
from wallwm_jax.events.store import open_store, store_hash
from wallwm_jax.input.balance import Balance, Sampling
from wallwm_jax.input.batch import BatchDims
from wallwm_jax.input.caption_drop import CaptionDrop
from wallwm_jax.input.latents import LatentStore
from wallwm_jax.input.loader import Loader, make_loader
from wallwm_jax.input.mixture import Source, make_mixed_loader
from wallwm_jax.input.packing import action_capacity
from wallwm_jax.models.action_tower import ActionConfig
from wallwm_jax.models.conditioning import input_channels
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.models.patch_codec import PatchCodec
from wallwm_jax.models.umt5 import UMT5_SIZES, UMT5Config
from wallwm_jax.models.video_tower import VideoConfig
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.optim.build import make_optimizer
from wallwm_jax.optim.muon import MatrixAxes
from wallwm_jax.optim.schedules import warmup_cosine
from wallwm_jax.train.encode import Encoded
from wallwm_jax.train.objectives import ObjectiveConfig
from wallwm_jax.train.pretrained import Sources, wan_config
from wallwm_jax.train.seal import folder_of
from wallwm_jax.train.stages import stage_named

Made = TypeVar("Made")

NONE: Sources = MappingProxyType({})
"""No folder: everything of our own."""

LABELS = (
    # Wan's and our linear maps inside the blocks are matrices; what meets raw
    # inputs or outputs, tables, norms and biases go to AdamW.
    (r".*/blocks/.*/kernel", "muon"),
    (r".*/readers/.*/kernel", "muon"),
    (r".*", "adamw"),
)

MATRIX_AXES = (
    # Queries and keys act head by head, so each head is orthogonalised by itself.
    (r".*/(query|key)/linear/kernel", MatrixAxes(rows=(-3,), cols=(-1,))),
    (r".*/value/linear/kernel", MatrixAxes(rows=(-3,), cols=(-1,))),
    (r".*/out/kernel", MatrixAxes(rows=(-2,), cols=(-1,))),
    (r".*", MatrixAxes()),
)


GRAFTS = ("duration", "conditioning", "blank_latent", "text_padding")
"""Keys of config.video that are the grafts' and not Wan's."""


def construct(
    maker: Callable[..., Made], section: ConfigDict | dict, where: str, **more: Any
) -> Made:
    """Calls `maker` with a config section, refusing keys it does not know.

    Raises:
      ValueError: unknown key, with the nearest known one; or what `maker` raises.
    """
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in dict(section).items()}
    known = {f.name for f in dataclasses.fields(maker)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {sorted(known)}"
            raise ValueError(f"config.{where} has an unknown key {key!r}{hint}")
    return maker(**(values | more))


def sized(sizes: dict[str, dict], section: ConfigDict, where: str) -> dict[str, Any]:
    """Expands the `size` of a section into its numbers; other keys override them.

    Raises:
      ValueError: unknown size name.
    """
    values = section.to_dict()
    name = values.pop("size")
    if name not in sizes:
        raise ValueError(f"config.{where}.size is {name!r}; choose one of {sorted(sizes)}")
    return sizes[name] | values


def build_codec(config: ConfigDict) -> PatchCodec:
    """The embedded codec's sizes (unless config.pretrained.codec names another codec)."""
    return PatchCodec(channels=config.codec.channels, patch=config.codec.patch)


def build_denoiser(config: ConfigDict, encoded: Encoded, sources: Sources = NONE) -> Denoiser:
    """The three towers, their free sizes taken from the data.

    Args:
      config: the experiment.
      encoded: its data.
      sources: folders that bring towers of their own sizes.

    Raises:
      ValueError: unknown keys, sizes that do not fit each other or the data.
    """
    if "text" in sources:
        text = sources["text"].module.config
    else:
        text = construct(UMT5Config, sized(UMT5_SIZES, config.text, "text"), "text")
    if len(encoded.tokeniser) > text.vocabulary:
        raise ValueError(
            f"captions use {len(encoded.tokeniser)} words but config.text.vocabulary is {text.vocabulary}; raise it"
        )
    page = encoded.latents["train"].manifest
    video = _video(config, encoded, page.latent_shape[2], sources)
    wan = video.wan
    action = construct(
        ActionConfig,
        config.action,
        "action",
        layers=wan.layers,
        video_width=wan.width,
        views=video.views,
        action_dim=20,
        state_dim=page.state_width,
        steps_per_latent=clock.STRIDE * clock.GROUP,
        max_latent_frames=config.pack.max_latent_frames,
    )
    return Denoiser(text_config=text, video_config=video, action_config=action)


def _video(config: ConfigDict, encoded: Encoded, channels: int, sources: Sources) -> VideoConfig:
    """The video tower for latents of `channels` channels."""
    if "video" in sources:
        wan, grafts = wan_config(config.video, sources["video"])
        if grafts["conditioning"] == "channels" and not grafts.get("blank_latent"):
            grafts["blank_latent"] = encoded.blank_latent
    else:
        section = sized(WAN_SIZES, config.video, "video")
        grafts = {key: section.pop(key) for key in GRAFTS if key in section}
        wan = construct(WanConfig, section, "video")
    form = grafts.get("conditioning", "clean")
    expected = input_channels(form, channels)
    if (wan.in_channels, wan.out_channels) != (expected, channels):
        raise ValueError(
            f"config.video takes {wan.in_channels} latent channels and gives {wan.out_channels}; with the codec's "
            f"{channels} and conditioning {form!r} set config.video.in_channels={expected} and out_channels={channels}"
        )
    return VideoConfig(
        wan=wan, views=len(encoded.latents["train"].manifest.views), **_tuples(grafts)
    )


def denoiser_from_meta(model: dict[str, Any]) -> Denoiser:
    """The denoiser that a checkpoint's meta["model"] describes."""
    video = dict(model["video_config"])
    wan = dict(video.pop("wan"))
    return Denoiser(
        text_config=UMT5Config(**model["text_config"]),
        video_config=VideoConfig(wan=WanConfig(**_tuples(wan)), **_tuples(video)),
        action_config=ActionConfig(**_tuples(model["action_config"])),
    )


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def model_meta(denoiser: Denoiser) -> dict[str, Any]:
    """What identifies a model, as JSON: every size, no runtime choice missing."""
    return _lists(dataclasses.asdict(denoiser))


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, tuple | list) else value


def build_dims(
    config: ConfigDict, latents: LatentStore, *, sequences: int | None = None
) -> BatchDims:
    """Sizes of a packed batch: capacity in frames is chosen, in actions measured."""
    pack, page = config.pack, latents.manifest
    actions = pack.actions or action_capacity(latents.frames, latents.steps, pack.frames)
    h, w, channels = page.latent_shape
    return BatchDims(
        sequences=pack.sequences if sequences is None else sequences,
        views=len(page.views),
        frames=pack.frames,
        height=h,
        width=w,
        channels=channels,
        actions=int(actions),
        events=pack.events,
        state=page.state_width,
        text=config.pack.text_length,
    )


def build_loader(
    config: ConfigDict, encoded: Encoded, dims: BatchDims, reader: tuple[int, int] = (0, 1)
) -> Loader:
    """The training stream of this process.

    Args:
      config, encoded: the experiment and its data.
      dims: sizes of a global batch.
      reader: number of this process's block of rows, and of how many blocks.
    """
    latents = encoded.latents["train"]
    shared = dict(
        tokeniser=encoded.tokeniser,
        seed=config.seed,
        balance=build_balance(config, latents),
        caption_drop=construct(CaptionDrop, config.caption_drop, "caption_drop"),
        window=config.pack.window,
        shard_index=reader[0],
        shard_count=reader[1],
        workers=config.pack.workers,
        timeout_s=config.pack.get("timeout_s", 60),
        skip_damaged=skip_damaged(config),
    )
    statistics, track = encoded.statistics, config.pack.track
    if config.pack.get("buckets"):
        source = Source(latents=latents, statistics=statistics, track=track)
        buckets = [_of_reader(d, reader) for d in all_dims(config, latents, dims)]
        return make_mixed_loader([source], buckets=buckets, **shared)
    return make_loader(
        latents, statistics=statistics, dims=_of_reader(dims, reader), track=track, **shared
    )


def skip_damaged(config: ConfigDict) -> float:
    """Share of the events that may be unreadable; 0 where a config does not say.

    Raises:
      ValueError: it is no share.
    """
    share = config.data.get("skip_damaged", 0.0)
    if not 0 <= share < 1:
        raise ValueError(
            f"config.data.skip_damaged is {share}; give a share of the events, from 0 to below 1"
        )
    return float(share)


def _of_reader(dims: BatchDims, reader: tuple[int, int]) -> BatchDims:
    """A process's part of a global batch."""
    if dims.sequences % reader[1]:
        raise ValueError(
            f"a batch of {dims.sequences} sequences does not divide over {reader[1]} processes; "
            f"set config.pack.sequences to a multiple of {reader[1]}"
        )
    return dataclasses.replace(dims, sequences=dims.sequences // reader[1])


def all_dims(config: ConfigDict, latents: LatentStore, dims: BatchDims) -> list[BatchDims]:
    """Sizes of all kinds of global batches of a run: one, or one per bucket."""
    return bucket_dims(config, latents, dims) if config.pack.get("buckets") else [dims]


def bucket_dims(config: ConfigDict, latents: LatentStore, dims: BatchDims) -> list[BatchDims]:
    """Sizes of the batches of config.pack.buckets, smallest first.

    Their capacity in actions is measured on the events that fall into them.

    Raises:
      ValueError: buckets are not pairs of unlike frames.
    """
    pairs = sorted((tuple(pair) for pair in config.pack.buckets), key=lambda pair: pair[-1])
    if any(len(pair) != 2 for pair in pairs) or len({pair[1] for pair in pairs}) < len(pairs):
        raise ValueError(
            f"config.pack.buckets = {pairs}; give (sequences, frames) pairs of unlike frames"
        )
    found, below = [], 0
    for sequences, frames in pairs:
        rows = (latents.frames > below) & (latents.frames <= frames)
        below = frames
        actions = config.pack.actions
        if not actions and rows.any():  # `buckets.assign` names an empty bucket
            actions = action_capacity(latents.frames[rows], latents.steps[rows], frames)
        found.append(
            dataclasses.replace(
                dims, sequences=sequences, frames=frames, actions=int(actions or dims.actions)
            )
        )
    return found


def build_balance(config: ConfigDict, latents: LatentStore) -> Balance | None:
    """How often each training event is drawn; None is once per epoch.

    Clusters lie beside the event store and are made there the first time.

    Raises:
      ValueError: a key of config.sampling is unknown or impossible.
      StoreError: the store is not there, or its clusters are of other events.
    """
    sampling = construct(Sampling, config.get("sampling") or {}, "sampling")
    if not sampling.sets:
        return None
    folder = dataset_folder(config, stage_named(config.stage).segmentation)
    store = open_store(folder, "train", verify=False, skip_damaged=skip_damaged(config))
    if store_hash(store) != latents.manifest.source_hash:
        raise ValueError(
            f"{folder} holds other events than were encoded; run `python -m experiments.prepare_data` again"
        )
    found = sampling.balance_of(clusters_of(store, seed=config.seed).labels())
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    return found


def build_optimizer(
    section: ConfigDict, *, mesh: Mesh | None = None, places: Any = None, dtype: str = "float32"
) -> tuple[optax.GradientTransformation, Callable]:
    """Optimizer and schedule of one stage's section; (optimizer, schedule).

    Args:
      section: the stage's.
      mesh: the run's mesh; None: one device.
      places: shardings of the parameters that train, see `places`.
      dtype: of Muon's matrix products unless section.muon_dtype says otherwise:
        the towers' own, so a run that computes in bfloat16 does throughout.
    """
    schedule = warmup_cosine(section.steps, section.warmup, section.final)
    optimizer = make_optimizer(
        LABELS,
        schedule=schedule,
        learning_rate=section.learning_rate,
        adamw_learning_rate=section.adamw_learning_rate,
        algorithm=section.optimizer,
        matrix_axes=MATRIX_AXES,
        weight_decay=section.weight_decay,
        clip_norm=section.clip_norm,
        muon_compute_dtype=section.get("muon_dtype", dtype),
        mesh=mesh,
        specs=places,
    )
    return optimizer, schedule


def build_objective(config: ConfigDict, image_size: int) -> ObjectiveConfig:
    """Constants of the losses."""
    return construct(ObjectiveConfig, config.objective, "objective", image_size=image_size)


def dataset_folder(config: ConfigDict, segmentation: str) -> Path:
    """Where the events of one segmentation lie."""
    name = "dataset" if segmentation == "behaviour" else f"dataset-{segmentation}"
    return Path(config.data.folder or Path(config.workdir) / name)


def encoded_folder(config: ConfigDict, segmentation: str) -> Path:
    """Where its latents lie."""
    name = "encoded" if segmentation == "behaviour" else f"encoded-{segmentation}"
    return Path(config.workdir) / name


def checkpoint_folder(config: ConfigDict, stage: str) -> epath.Path:
    """Where a stage's steps lie: <config.checkpoints>/<stage>, or with the rest of the run.

    The former may be gs://bucket/folder; logs and data stay in the workdir, on a disk.
    """
    if config.checkpoints:
        return folder_of(config.checkpoints) / stage
    return folder_of(config.workdir) / stage / "checkpoints"


def plain(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON values."""
    return _lists(config.to_dict())
