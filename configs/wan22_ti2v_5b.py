"""Wan2.2-TI2V-5B with three cameras and a 30-layer action tower, as it is trained on TPU pods.

    python -m experiments.aot --config=configs/wan22_ti2v_5b.py --topology=v5p:4x4x4 --what=video
    python -m experiments.aot --config=configs/wan22_ti2v_5b.py --topology=v5p:4x4x4 --plan

Compiled with the options of `parallel/compiler_options.py`, libtpu 0.0.42.1: on 64 v5p chips
(data4 x fsdp16) stage "video" with remat "projections" takes 80 GB of a chip's 103 at 7 sequences;
on 256 v6e chips (--config.mesh.data=16) stage "action" with "full" 17.5 GB of 34 at 4. A full
compile takes minutes on quiet cores, --quick less than one.
A view of 192x224 pixels is 12x14 latents and 6x7 = 42 tokens, so three views
are 126 tokens per latent frame and 4158 per sequence of 33.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The shape; every key can be overridden as --config.key=value."""
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict(dict(views=3, height=192, width=224, state=20))  # pixels; numbers
    config.codec = ConfigDict(dict(channels=48, patch=16))  # of the Wan2.2 VAE
    config.pack = ConfigDict(
        dict(
            sequences=0,  # 0: one for every chip
            frames=33,  # latent: 129 frames of video
            max_latent_frames=33,
            actions=0,  # 0: as many as the frames cover, 256
            events=1,
            text_length=512,
        )
    )
    # Captions are encoded in the step: umT5-XXL rides along frozen, sharded like everything else.
    config.text = ConfigDict(dict(size="xxl", dtype="bfloat16", param_dtype="bfloat16"))
    config.video = ConfigDict(
        dict(
            size="wan2.2-ti2v-5b", duration=True, conditioning="clean", text_padding="zeros",
            remat="full", unroll=1, attention="auto", dtype="bfloat16", param_dtype="float32",
        )
    )
    config.action = ConfigDict(
        dict(width=1024, heads=8, ffn=4096, remat="full", unroll=1, attention="auto", dtype="bfloat16")
    )
    config.objective = ConfigDict(
        dict(
            shift=5.0, action_shift=1.0, sight_cone=1.0, cone_scale=1.5, cone_depth=(0.05, 3.0),
            s_star=45.0, s_star_steps=50, s_star_window=1.0, action_draws=6, action_target="v",
        )
    )
    common = dict(
        optimizer="muon", learning_rate=1e-4, adamw_learning_rate=1e-4, weight_decay=0.01,
        warmup=1000, final=0.1, clip_norm=1.0, ema=0.9999, steps=100_000, accumulate=1,
    )
    config.stages = ConfigDict(
        dict(video=dict(common), action=dict(common), scratch=dict(common))
    )
    # A sub-axis of the torus: weights gathered over a whole v5p torus would become all-reduces.
    config.mesh = ConfigDict(dict(data=4, fsdp=-1, tensor=1, context=1))
    return config
