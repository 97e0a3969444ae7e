"""WALL-WM on Meta-World, small enough for two CPU cores.

    python -m experiments.prepare_data --config=configs/metaworld.py
    python -m experiments.train --config=configs/metaworld.py --config.stage=video
    python -m experiments.train --config=configs/metaworld.py --config.stage=action
    python -m experiments.evaluate --config=configs/metaworld.py

`make demo` runs all four (experiments/demo.py). Sizes are all that separates
this file from a 5B run: `config.video.size = "wan2.2-ti2v-5b"` is the same code.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The experiment; every key can be overridden as --config.key=value."""
    config = ConfigDict()
    config.workdir = "runs/metaworld"
    config.checkpoints = ""  # "" puts them under workdir; on a pod gs://bucket/folder
    config.stage = "video"  # one of train.stages.STAGES
    config.seed = 0
    config.data = _data()
    # Folders of weights to start from (README, "Bring your own Wan"); "" is none. A slot's own section
    # then says size="inherited" and keeps only how it runs; config.codec is not read at all.
    config.pretrained = ConfigDict(dict(video="", text="", codec=""))
    config.codec = ConfigDict(dict(channels=16, patch=8, clips=400, power=0.5))
    config.pack = _pack()
    # "none" draws each event once an epoch; "observation", "action", "both": shares of clusters ~ counts ** alpha.
    config.sampling = ConfigDict(dict(balance="none", alpha=0.0, least=0.0, most=20.0))
    config.caption_drop = ConfigDict(dict(rho_min=0.1, rho_max=0.9, length_min=129.0, length_max=220.0))
    config.text = ConfigDict(dict(size="tiny", vocabulary=256, residual_scale=0.1, dtype="float32"))
    config.video = _video()
    config.action = ConfigDict(dict(width=96, heads=4, ffn=256, remat="none", unroll=4, attention="auto", dtype="float32"))
    config.objective = _objective()
    config.stages = _stages()
    config.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1, context=1))
    config.async_collectives = True  # on TPU; False where another libtpu refuses parallel/compiler_options.py
    config.limits = _limits()
    config.observe = ConfigDict(
        dict(tensorboard=False, profile_from=10, profile_steps=0)  # steps traced for xprof; 0 traces none
    )
    config.rollout = ConfigDict(dict(video_steps=2, action_steps=4))
    config.evaluate = ConfigDict(
        dict(split="test", sequences=16, closed_loop_episodes=4, dream_steps=20, examples=12)
    )
    return config


def _data() -> ConfigDict:
    """What is recorded in the simulator, and how it is cut into events."""
    return ConfigDict(
        dict(
            folder="",  # an existing event store; "" makes one under workdir
            tasks=(
                "reach", "button-press-topdown", "button-press", "handle-press-side", "drawer-open",
                "window-open", "window-close", "faucet-open", "plate-slide", "door-open",
            ),
            train_episodes=30,  # per task, seeds 0..
            validation_episodes=4,  # seeds 100..: settings were chosen on these
            test_episodes=6,  # seeds 200..: reported numbers
            image_size=64,
            noise=0.2,  # of the expert, on odd training seeds
            recovery=0.0,  # share of training seeds that start beside a contact pose
            max_steps=120,
            max_length=32,  # longest event, control steps (40 Hz)
            chunk_length=16,  # of the fixed chunks that stage "scratch" trains on
            processes=2,
            skip_damaged=0.0,  # share of events that may be unreadable; 0 stops at the first damaged shard
        )
    )


def _pack() -> ConfigDict:
    """Packing: events side by side in sequences of `frames` latent frames."""
    return ConfigDict(
        dict(
            sequences=3, frames=10,
            actions=0,  # capacity in action steps; 0 measures the best one
            events=6,
            max_latent_frames=5,  # 1 + N of the longest event: 32 control steps
            text_length=12,  # 512 for public Wan weights
            track="action",  # caption track that conditions the towers
            window=512,
            workers=0, timeout_s=60,  # processes that read; seconds until one that says nothing counts as hung
            buckets=(),  # (sequences, frames) pairs: batches of several shapes, each for the events it just holds
        )
    )


def _video() -> ConfigDict:
    """The video tower."""
    return ConfigDict(
        dict(
            size="tiny", gate_bias=1.0, duration=True, remat="none", unroll=4, attention="auto", dtype="float32",
            param_dtype="float32",
            conditioning="clean",  # "channels" (with in_channels=36) lays the observation beside the noisy latents
            text_padding="masked",  # "zeros" for public Wan weights; inherited towers bring both
        )
    )


def _objective() -> ConfigDict:
    """Constants of the losses."""
    return ConfigDict(
        dict(
            shift=5.0,
            action_shift=1.0,
            sight_cone=0.5,
            cone_scale=1.5,
            cone_depth=(0.05, 3.0),
            p_tube=0.0, p_tube_cond=0.0,
            tube_sizes=(1, 2),
            lambda_mask=1.0,
            s_star=45.0, s_star_steps=50, s_star_window=2.0,
            action_draws=4,
            own_sketch=0.5,
            sketch_steps=2,
            action_target="v",
            dct_weight=0.0,
        )
    )


def _stages() -> ConfigDict:
    """How each stage is optimised."""
    common = dict(
        optimizer="muon", learning_rate=3e-3, adamw_learning_rate=2e-3, weight_decay=0.01, warmup=60, final=0.05,
        clip_norm=1.0, ema=0.995, save_every=100, log_every=10,
        accumulate=1,  # micro-batches per update; pack.sequences is of all of them together
    )
    return ConfigDict(
        dict(
            video=dict(common, steps=2200),
            action=dict(common, steps=1500),
            scratch=dict(common, steps=2200),
        )
    )


def _limits() -> ConfigDict:
    """How much a run puts up with before it ends itself."""
    return ConfigDict(
        dict(
            nonfinite=10,  # updates in a row that may be skipped because they are not finite
            step_s=600.0, first_step_s=3600.0,  # longest wait for a step; for one that is compiled first
            heartbeat_s=100,  # a process of several that says nothing for so long is dead
        )
    )
