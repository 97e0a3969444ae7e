"""Puts a run together from a config: the one way from a file to `loop.train`."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from wallwm_jax.models.codec import Codec
from wallwm_jax.parallel.mesh import make_mesh, readers
from wallwm_jax.train import build
from wallwm_jax.train.accumulate import check_divides
from wallwm_jax.train.agreement import refuse_other_model
from wallwm_jax.train.checkpoint import CheckpointError
from wallwm_jax.train.encode import Encoded, open_encoded
from wallwm_jax.train.loop import Limits, Observe, Run
from wallwm_jax.train.places import parameter_places
from wallwm_jax.train.pretrained import Sources, open_sources
from wallwm_jax.train.saved import latest_step, read_meta, read_params
from wallwm_jax.train.stages import Stage, stage_named
from wallwm_jax.types import Params


def build_run(config: ConfigDict) -> Run:
    """Everything `loop.train` needs for `config.stage`.

    Raises:
      ValueError: unknown stage or key.
      PretrainedError: a folder of config.pretrained is not what it should be.
      FileNotFoundError, LatentCacheError: the data is not there or damaged.
      CheckpointError: the stage it starts from is missing or of another model.
      AccumulateError: batches do not divide into micro-batches over the mesh.
    """
    began = time.monotonic()
    stage = stage_named(config.stage)
    section = config.stages[config.stage]
    sources = open_sources(config)
    encoded = open_encoded(
        build.encoded_folder(config, stage.segmentation),
        sources.get("codec"),
        build.skip_damaged(config),
    )
    if "text" in sources:
        encoded = dataclasses.replace(encoded, tokeniser=sources["text"].tokeniser())
    dims = build.build_dims(config, encoded.latents["train"])
    denoiser = build.build_denoiser(config, encoded, sources)
    if encoded.uncalibrated and dims.views > 1 and config.objective.sight_cone > 0:
        raise ValueError(
            f"views {', '.join(encoded.uncalibrated)} have no camera calibration, so no sight cone "
            "can be drawn; train with --config.objective.sight_cone=0"
        )
    mesh = make_mesh(config.mesh.to_dict())
    optimizer, schedule = build.build_optimizer(
        section,
        mesh=mesh,
        places=parameter_places(denoiser, stage.trains, dims, mesh) if mesh.size > 1 else None,
        dtype=denoiser.video_config.wan.dtype,
    )
    check_divides(build.all_dims(config, encoded.latents["train"], dims), section.accumulate, mesh)
    meta = run_meta(config, encoded, denoiser, sources)
    inherited = inherit(config, stage, meta)
    return Run(
        folder=Path(config.workdir) / config.stage,
        checkpoints=build.checkpoint_folder(config, config.stage),
        name=config.stage,
        stage=stage,
        denoiser=denoiser,
        objective=build.build_objective(config, meta["input"]["image_size"]),
        optimizer=optimizer,
        schedule=schedule,
        loader=build.build_loader(config, encoded, dims, readers(mesh)),
        dims=dims,
        mesh=mesh,
        codec=encoded.codec_params,
        sources=sources,
        inherited=inherited,
        meta=meta,
        seed=config.seed,
        steps=section.steps,
        ema=section.ema,
        save_every=section.save_every,
        log_every=section.log_every,
        accumulate=section.accumulate,
        async_collectives=config.async_collectives,
        limits=build.construct(Limits, config.limits, "limits"),
        observe=build.construct(Observe, config.observe, "observe"),
        began=began,
    )


def run_meta(
    config: ConfigDict, encoded: Encoded, denoiser: Any, sources: Sources = build.NONE
) -> dict[str, Any]:
    """What a checkpoint has to know besides its arrays (JSON)."""
    page = encoded.latents["train"].manifest
    codec = Codec(sources["codec"].module if "codec" in sources else build.build_codec(config))
    words = None if "text" in sources else encoded.tokeniser.to_json()
    return {
        "model": build.model_meta(denoiser),
        "input": {
            "statistics": encoded.statistics.to_json(),
            "tokeniser": words,
            "views": page.views,
            "image_size": page.latent_shape[0] * codec.space_factor,
            "codec": {"channels": codec.channels, "patch": codec.space_factor},
            "text_length": config.pack.text_length,
        },
        "pretrained": {slot: source.record for slot, source in sources.items()},
        "config": build.plain(config),
    }


def inherit(config: ConfigDict, stage: Stage, meta: dict[str, Any]) -> Params | None:
    """Averaged parameters of the stage this one starts from.

    Raises:
      CheckpointError: it was not trained, or is another model.
    """
    if stage.starts_from is None:
        return None
    folder = build.checkpoint_folder(config, stage.starts_from)
    try:
        step = latest_step(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"stage {config.stage!r} starts from stage {stage.starts_from!r} but {error}"
        ) from error
    refuse_other_model(folder / str(step), read_meta(folder, step, verify=False), meta)
    return read_params(folder, step, verify=False)
