"""Wan2.2-TI2V-5B with three cameras, as it is compiled for TPU pods.

    python -m experiments.aot --config=configs/wan22_ti2v_5b.py --topology=v5p:4x4x4

Takes under a minute on two cores (--quick: 20 s); expected: 2.8 GB of a v5p
chip's 103, and XLA's FLOPs of one layer within 0.5 % of ours.
A view of 192x224 pixels is 12x14 latents and 6x7 = 42 tokens, so three views
are 126 tokens per latent frame.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The shape; every key can be overridden as --config.key=value."""
    config = ConfigDict()
    config.data = ConfigDict(dict(views=3, height=192, width=224))  # pixels
    config.codec = ConfigDict(dict(channels=48, patch=16))  # of the Wan2.2 VAE
    config.pack = ConfigDict(
        dict(
            sequences=0,  # 0: one for every chip
            frames=33,  # latent: 129 frames of video
            events=1,
            text_length=512,
        )
    )
    config.video = ConfigDict(
        dict(
            size="wan2.2-ti2v-5b", duration=True, conditioning="clean", text_padding="zeros",
            remat="full", unroll=1, attention="auto", dtype="bfloat16", param_dtype="float32",
        )
    )
    # A sub-axis of the torus: weights gathered over a whole v5p torus would become all-reduces.
    config.mesh = ConfigDict(dict(data=4, fsdp=-1, tensor=1, context=1))
    return config
