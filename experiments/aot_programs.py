"""Programs of a config as shapes: a tower's forward, a stage's whole training step.

No dataset, no weights, no devices: every size is in the config, and what a
run measures on its data (views, state, action steps) is given there.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from wallwm_jax.episodes import clock
from wallwm_jax.input.batch import ACTION_DIMS, Batch, BatchDims
from wallwm_jax.models.action_tower import ActionConfig
from wallwm_jax.models.denoiser import Denoiser
from wallwm_jax.models.flops import (
    Sequence,
    action_end_flops,
    action_layer_flops,
    forward_flops,
    layer_flops,
    recomputed_flops,
    rotation_flops,
    text_layer_flops,
)
from wallwm_jax.models.umt5 import UMT5_SIZES, UMT5Config
from wallwm_jax.models.video_tower import VideoConfig, VideoTower
from wallwm_jax.models.wan_config import WAN_SIZES, WanConfig
from wallwm_jax.models.wan_dit import WanDiT
from wallwm_jax.parallel import aot, planner
from wallwm_jax.parallel.mesh import (
    activate,
    batch_sharding,
    batch_shards,
    param_shardings,
    replicated,
    shaped,
)
from wallwm_jax.train import build
from wallwm_jax.train.places import parameter_places
from wallwm_jax.train.stages import stage_named
from wallwm_jax.train.state import state_shapes
from wallwm_jax.train.step import train_step

FORWARDS = ("forward", "wan")
"""Programs that are no stage: the multi-view tower, and Wan alone."""


def video_config(config: ConfigDict) -> VideoConfig:
    """The tower's sizes, without a dataset to take any from.

    Raises:
      AotError: the config does not say how large a picture is.
    """
    missing = [key for key in ("views", "height", "width") if key not in config.data]
    if missing:
        raise aot.AotError(
            f"config.data lacks {missing}, which a program is compiled for; see configs/wan22_ti2v_5b.py"
        )
    section = build.sized(WAN_SIZES, config.video, "video")
    grafts = {key: section.pop(key) for key in build.GRAFTS if key in section}
    wan = build.construct(WanConfig, section, "video")
    return build.construct(VideoConfig, grafts, "video", wan=wan, views=config.data.views)


def tower_inputs(config: ConfigDict, wan: WanConfig, what: str) -> tuple[Sequence, dict[str, Any]]:
    """One sequence in numbers, and the shapes of the tower's inputs without their batch."""
    data, pack = config.data, config.pack
    views, frames, words = data.views, pack.frames, (pack.text_length, wan.text_width)
    height, width = (size // config.codec.patch for size in (data.height, data.width))
    tokens = height // wan.patch[1] * (width // wan.patch[2])
    if what == "wan":
        sequence = Sequence(frames=frames, frame_tokens=views * tokens, text=words[0])
        shapes = dict(
            latents=((frames, height, views * width, wan.in_channels), wan.dtype),
            timestep=((), "float32"),
            text=(words, wan.dtype),
        )
        return sequence, shapes
    sequence = Sequence(
        frames=frames,
        frame_tokens=tokens,
        text=pack.events * words[0],
        views=views,
        times=frames,
    )
    shapes = dict(
        latents=((views, frames, height, width, wan.in_channels), wan.dtype),
        timestep=((frames, 1), "float32"),
        text=((pack.events, *words), wan.dtype),
        text_mask=((pack.events, words[0]), "bool"),
        frame_segment=((frames,), "int32"),
        frame_index=((frames,), "int32"),
        duration=((frames, 1), "float32"),
    )
    return sequence, shapes


def forward_program(
    config: ConfigDict, sizes: VideoConfig, what: str, sequences: int, mesh: Mesh
) -> tuple[aot.Program, int]:
    """The forward as a program over the mesh, and our count of its FLOPs over all chips."""
    module = WanDiT(sizes.wan) if what == "wan" else VideoTower(sizes)
    sequence, shapes = tower_inputs(config, sizes.wan, what)
    batch = {
        name: jax.ShapeDtypeStruct(
            (sequences, *size), jnp.dtype(dtype), sharding=batch_sharding(mesh)
        )
        for name, (size, dtype) in shapes.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    boxed = jax.eval_shape(lambda key, batch: module.init(key, **batch)["params"], key, batch)
    params = shaped(nn.meta.unbox(boxed), param_shardings(boxed, mesh))

    def velocity(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        out = module.apply({"params": params}, **batch)
        return out if what == "wan" else out[0]

    grafted = what != "wan"
    flops = forward_flops(
        sizes.wan, sequence, cross_view=grafted, duration=grafted and sizes.duration
    )
    turns = sizes.wan.layers * rotation_flops(sizes.wan, sequence, cross_view=grafted)
    program = aot.Program(function=velocity, arguments=(params, batch))
    return program, sequences * (sum(flops.values()) + turns)


def denoiser(config: ConfigDict) -> Denoiser:
    """The three towers at the config's sizes."""
    video = video_config(config)
    action = build.construct(
        ActionConfig,
        config.action,
        "action",
        layers=video.wan.layers,
        video_width=video.wan.width,
        views=video.views,
        action_dim=ACTION_DIMS,
        state_dim=config.data.state,
        steps_per_latent=clock.STRIDE * clock.GROUP,
        max_latent_frames=config.pack.max_latent_frames,
    )
    text = build.construct(UMT5Config, build.sized(UMT5_SIZES, config.text, "text"), "text")
    return Denoiser(text_config=text, video_config=video, action_config=action)


def batch_dims(config: ConfigDict, sequences: int) -> BatchDims:
    """Sizes of a packed batch; action steps as many as its frames cover."""
    data, pack, patch = config.data, config.pack, config.codec.patch
    return BatchDims(
        sequences=sequences,
        views=data.views,
        frames=pack.frames,
        height=data.height // patch,
        width=data.width // patch,
        channels=config.codec.channels,
        actions=pack.actions or clock.longest_event(pack.frames),
        events=pack.events,
        state=data.state,
        text=pack.text_length,
    )


def batch_shapes(dims: BatchDims, mesh: Mesh) -> Batch:
    """A packed batch as shapes, its sequences over the mesh."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)),
        Batch.spec(dims),
    )


def train_program(config: ConfigDict, stage: str, sequences: int, mesh: Mesh) -> aot.Program:
    """The step of `train.loop`, over the state and the batch of a run on this mesh."""
    kind, section = stage_named(stage), config.stages[stage]
    model, dims = denoiser(config), batch_dims(config, sequences)
    optimizer, schedule = build.build_optimizer(
        section,
        mesh=mesh,
        places=parameter_places(model, kind.trains, dims, mesh),
        dtype=model.video_config.wan.dtype,
    )
    state = state_shapes(model, optimizer, kind.trains, None, dims, mesh)
    objective = build.build_objective(config, config.data.height)
    step = partial(
        train_step,
        *(model, kind, objective, optimizer, schedule, section.ema, config.seed),
        accumulate=section.accumulate,
    )
    places = jax.tree.map(lambda x: x.sharding, state)
    return aot.Program(
        function=step,
        arguments=(state, batch_shapes(dims, mesh)),
        donated=(0,),
        results=(places, replicated(mesh)),
    )


def layer_program(
    config: ConfigDict, stage: str, sequences: int, mesh: Mesh
) -> tuple[aot.Program, int, tuple[int, int]]:
    """A training step whose FLOPs XLA counts completely: plain attention, each loop's body once.

    Two layers of every tower: a loop of one would be opened, and what it
    computes again would be found there already. AdamW, whose FLOPs are few.

    Returns:
      (program, our count for one layer of every tower, the video layer's part
      of it: (without, with) what it computes again), FLOPs over all chips.
    """
    short = config.copy_and_resolve_references()
    with short.unlocked():
        for tower in (short.text, short.video):
            tower.layers = 2
        short.video.attention = short.action.attention = "xla"
        short.stages[stage].optimizer = "adamw"
    program = train_program(short, stage, sequences, mesh)
    for tower in (short.text, short.video):
        with short.unlocked():
            tower.layers = 1
    model = denoiser(short)
    sequence, _ = tower_inputs(short, model.video_config.wan, stage)
    times = 3 if "video" in stage_named(stage).trains else 1
    layer = layer_flops(model.video_config.wan, sequence, cross_view=True)
    parts = step_flops(short, model, stage)
    plain = sequences * times * sum(layer.values())
    again = sequences * parts.get("video/again", 0)
    return program, sequences * sum(parts.values()), (plain, plain + again)


def traffic(
    config: ConfigDict, stage: str, program: aot.Program, mesh: Mesh
) -> tuple[dict, dict, dict, Mesh]:
    """What `planner.least_traffic` takes, of a training step.

    Stage "video" does not read the action tower. Of the text encoder's table
    only rows travel, which is not counted.
    """
    state = program.arguments[0]
    read = {
        name: tree for name, tree in state.frozen.items() if (name, stage) != ("action", "video")
    }
    read["text"] = {k: v for k, v in read["text"].items() if k != "embedding"}
    remat = {"video": config.video.remat, "action": config.action.remat}
    again = {
        part: [tree[name] for name in ("blocks", "readers") if name in tree]
        for part, tree in state.params.items()
        if remat[part] != "none"
    }
    return state.params, read, again, mesh


def plan(config: ConfigDict, stage: str, program: aot.Program, mesh: Mesh) -> planner.Plan:
    """The memory of a training step on each chip."""
    state, batch = program.arguments
    kind, model = stage_named(stage), denoiser(config)
    objective = build.build_objective(config, config.data.height)
    parts = batch_shards(mesh)

    def loss(params: Any, known: tuple) -> jax.Array:
        frozen, batch = known
        key = jax.random.key(0)
        return kind.objective(model, objective, frozen | params, batch, key)[0]

    def kept(rows: int, frames: int) -> int:
        dims = dataclasses.replace(batch_dims(config, rows), frames=frames)
        with activate(mesh):
            return planner.kept_bytes(loss, state.params, (state.frozen, batch_shapes(dims, mesh)))

    context = mesh.shape["context"]
    sequences, _, frames = batch.latents.shape[:3]
    return planner.step_plan(
        state,
        batch,
        kept=planner.kept_on_device(
            kept, sequences=sequences, frames=frames, parts=parts, context=context
        ),
        layer_weights=2 * _layer_scalars(state, stage),
        in_flight=sequences // parts * _widest(config, model, stage) // context,
        limit=aot.HBM_BYTES.get(mesh.devices.flat[0].device_kind),
    )


def _layer_scalars(state: Any, stage: str) -> int:
    """Scalars of one video layer, whole."""
    blocks = (state.params | state.frozen)["video"]["blocks"]
    return sum(int(np.prod(x.shape[1:])) for x in jax.tree.leaves(blocks))


def _widest(config: ConfigDict, model: Denoiser, stage: str) -> int:
    """Bytes of the largest value of a video layer, for one sequence."""
    wan = model.video_config.wan
    sequence, _ = tower_inputs(config, wan, stage)
    return sequence.tokens * wan.ffn * jnp.dtype(wan.dtype).itemsize


def step_flops(config: ConfigDict, model: Denoiser, stage: str) -> dict[str, int]:
    """FLOPs of a training step for one sequence, part by part, plain attention everywhere.

    What trains costs three forwards and what is computed again; what is frozen
    costs one. Layers count as often as the towers have them; the action tower's
    as if nothing were kept of them, unless its policy is "none".
    """
    trains = stage_named(stage).trains
    video, action, text = model.video_config, model.action_config, model.text_config
    sequence, _ = tower_inputs(config, video.wan, stage)
    dims = batch_dims(config, 1)
    forward = forward_flops(video.wan, sequence, cross_view=True, duration=video.duration)
    turns = video.wan.layers * rotation_flops(video.wan, sequence, cross_view=True)
    # The swap's own derivative is one product, not two; it is always computed again.
    times = 1 if "video" not in trains else 2 if video.wan.remat == "none" else 3
    parts = {
        "text": text.layers * text_layer_flops(text, dims.text, dims.events),
        "video/turns": times * turns,
    }
    if "video" not in trains:
        parts |= {f"video/{name}": n for name, n in forward.items()}
    else:
        # The gradient of the captions' features and of the noisy latents is not wanted.
        wan = video.wan
        parts |= {f"video/{name}": 3 * n for name, n in forward.items()}
        parts["video/patches"] -= forward["patches"]
        parts["video/text"] -= 2 * sequence.text * wan.text_width * wan.width
        again = recomputed_flops(wan, sequence, wan.remat, cross_view=True)
        parts["video/again"] = wan.layers * sum(again.values())
    if stage != "video":
        draws = config.objective.action_draws if stage == "action" else 1
        sizes = (action, sequence, dims.actions, dims.events)
        layer, ends = action_layer_flops(*sizes), action_end_flops(*sizes)
        reader = layer.pop("reader")
        kept = action.remat == "none"
        blocks = (3 if kept else 4) * sum(layer.values())
        # Of keys and values, the norm of the keys wants its input again.
        parts["action/readers"] = action.layers * (3 * reader + (0 if kept else reader // 2))
        parts["action/blocks"] = draws * action.layers * blocks
        parts["action/ends"] = 3 * (draws * sum(ends.values()) - (draws - 1) * ends["places"])
    return parts
