"""A run that starts from a Wan of one's own: what it inherits, keeps out, and refuses."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brought import (
    CHANNELS,
    PARTS,
    TEXT,
    TEXT_WIDTH,
    brought_config,
    dit,
    shaken,
    vae,
    write_pipeline,
)
from safetensors.numpy import load_file, save_file

from experiments.evaluate import policy_of
from experiments.prepare_data import encode
from wallwm_jax.convert import load_pretrained, save_converted, save_pretrained
from wallwm_jax.evaluate.offline import video_report
from wallwm_jax.evaluate.run import open_split
from wallwm_jax.input.loader import Loader
from wallwm_jax.input.prompts import PieceTokeniser
from wallwm_jax.models.codec import Codec
from wallwm_jax.train import fingerprint
from wallwm_jax.train.build import build_denoiser
from wallwm_jax.train.checkpoint import CheckpointError
from wallwm_jax.train.encode import open_encoded
from wallwm_jax.train.loop import initial_state, train
from wallwm_jax.train.pretrained import PretrainedError, open_sources
from wallwm_jax.train.run import build_run
from wallwm_jax.train.saved import read_meta, read_params


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan") / "pipeline"
    write_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def encoded(pipeline, prepared, tmp_path_factory):
    """Encoded by the brought codec, nothing trained; do not train in it."""
    config = brought_config(
        tmp_path_factory.mktemp("brought"), pipeline, Path(prepared.workdir) / "dataset"
    )
    encode(config, "behaviour", open_sources(config))
    return config


def copy_of(config, workdir, pipeline=None):
    """The same config over copies of its folders."""
    shutil.copytree(config.workdir, workdir, dirs_exist_ok=True)
    other = config.copy_and_resolve_references()
    other.workdir = str(workdir)
    if pipeline is not None:
        shutil.copytree(Path(config.pretrained.video).parent, pipeline)
        other.pretrained.update({slot: str(pipeline / part) for slot, part in PARTS.items()})
    return other


@pytest.fixture(scope="module")
def trained(encoded, tmp_path_factory):
    """Both stages, over a pipeline of its own."""
    folder = tmp_path_factory.mktemp("brought_trained")
    config = copy_of(encoded, folder / "run", folder / "pipeline")
    for stage in ("video", "action"):
        config.stage = stage
        train(build_run(config))
    return config


def checkpoints(config, stage):
    return Path(config.workdir) / stage / "checkpoints"


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


def change_one_weight(folder):
    """The same file with one number changed."""
    (path,) = folder.glob("*.safetensors")
    content = load_file(path)
    name = sorted(content)[0]
    content[name] = content[name] + np.float32(0.5)
    save_file(content, path, metadata={"format": "pt"})


def test_latents_are_the_codecs_normalised_means(encoded):
    module, params = load_pretrained(encoded.pretrained.codec)
    held_out = open_split(Path(encoded.data.folder), Path(encoded.workdir) / "encoded", "test")
    event, record = held_out.events[1], held_out.latents[1]
    clips = np.stack([event.frames[v] for v in held_out.latents.manifest.views])
    z = module.apply(
        {"params": params}, jnp.asarray(clips / 127.5 - 1, jnp.float32), method="encode"
    )
    z = (z - np.array(module.config.latent_mean)) / np.array(module.config.latent_std)
    np.testing.assert_allclose(record.latents, z, atol=2e-3 * np.abs(z).max())  # float16
    assert not (Path(encoded.workdir) / "encoded" / "codec.npz").exists()


def test_before_the_first_step_the_tower_is_the_wan_in_every_view(encoded):
    config = encoded.copy_and_resolve_references()
    config.stage = "video"
    run = build_run(config)
    state, _ = initial_state(run)
    wan, params = load_pretrained(config.pretrained.video)
    sizes, keys = run.denoiser.video_config, jax.random.split(jax.random.key(0), 3)
    z = jax.random.normal(keys[0], (1, sizes.views, 3, 4, 4, CHANNELS))
    text = jax.random.normal(keys[1], (1, 1, 5, TEXT_WIDTH))
    mask = jnp.arange(5)[None, None] < 3
    sigma = jax.random.uniform(keys[2], (1, 3))
    ones, index = jnp.ones((1, 3), jnp.int32), jnp.arange(3)[None]
    velocity, _ = run.denoiser.video.apply(
        {"params": state.params["video"]},
        z,
        1000 * sigma[..., None],
        text,
        mask,
        ones,
        index,
        12.0 * ones[..., None],
    )
    tokens = jnp.repeat(1000 * sigma, 4, axis=1)
    for view in range(sizes.views):
        alone = wan.apply(
            {"params": params}, z[:, view], tokens, jnp.where(mask[..., None], text, 0)[:, 0]
        )
        assert np.abs(alone).max() > 0.1
        np.testing.assert_allclose(velocity[:, view], alone, atol=2e-5 * np.abs(alone).max())
    jax.tree.map(
        np.testing.assert_array_equal,
        state.frozen["text"],
        load_pretrained(config.pretrained.text)[1],
    )
    np.testing.assert_array_equal(
        state.ema["video"]["blocks"]["wan"]["table"], params["blocks"]["table"]
    )


def test_checkpoints_name_what_is_frozen_and_do_not_copy_it(trained):
    for stage in ("video", "action"):
        assert set(read_params(checkpoints(trained, stage), 2)) == {"video", "action"}
        meta = read_meta(checkpoints(trained, stage), 2)
        assert {slot: r["folder"] for slot, r in meta["pretrained"].items()} == dict(
            trained.pretrained
        )
        assert meta["input"]["codec"] == {"channels": CHANNELS, "patch": 4}
    logs = [(Path(trained.workdir) / s / "metrics.jsonl").read_text() for s in ("video", "action")]
    losses = [json.loads(line)["loss"] for log in logs for line in log.splitlines()]
    assert len(losses) == 4 and np.isfinite(losses).all()


def test_a_policy_imagines_and_acts(trained):
    policy = policy_of(trained, 1)
    assert isinstance(policy.tokeniser, PieceTokeniser)
    assert policy.denoiser.text_config == TEXT.config
    assert policy.denoiser.video_config.text_padding == "zeros"
    rng = np.random.default_rng(0)
    frames = {view: rng.integers(0, 255, (16, 16, 3), np.uint8) for view in policy.views}
    state = np.zeros(policy.dims.state, np.float32)
    batch = policy.batch(frames, state, "open the drawer", 9)
    key_frame = np.stack([frames[v] for v in policy.views])[:, None] / np.float32(127.5) - 1
    codec = Codec(load_pretrained(trained.pretrained.codec)[0])
    np.testing.assert_allclose(
        batch.latents[0, :, :1], codec.encode(policy.params["codec"], key_frame), atol=1e-5
    )
    pose = (np.zeros(3, np.float32), np.eye(3, dtype=np.float32))
    out = policy(frames, state, "open the drawer", 9, *pose, jax.random.key(1))
    assert out.positions.shape == (9, 3) and np.isfinite(out.positions).all()
    folder = Path(trained.workdir)
    held_out = open_split(Path(trained.data.folder), folder / "encoded", "test")
    numbers, clips = video_report(policy_of(trained, 4), held_out, 1, jax.random.key(2))
    assert np.isfinite(list(numbers.values())).all() and clips[0].shape[2:] == (16, 16, 3)


def test_interrupted_and_resumed_equals_uninterrupted(trained, encoded, tmp_path, monkeypatch):
    config = copy_of(encoded, tmp_path)
    config.stage = "video"
    give, calls = Loader.__next__, iter(range(9))

    def fails_at_the_second(self):
        if next(calls) == 1:
            raise RuntimeError("power cut")
        return give(self)

    monkeypatch.setattr(Loader, "__next__", fails_at_the_second)
    with pytest.raises(RuntimeError, match="power cut"):
        train(build_run(config))
    monkeypatch.undo()
    assert train(build_run(config))["resumed_from"] == 1
    ours, theirs = (read_params(checkpoints(c, "video"), 2) for c in (config, trained))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_changed_or_missing_folder_is_refused_and_a_moved_one_found(trained, tmp_path):
    config = copy_of(trained, tmp_path / "run", tmp_path / "pipeline")
    old = Path(trained.pretrained.text)
    policy = policy_of(config, 1)  # moved: the config says where
    assert policy.params["text"].keys() == policy_of(trained, 1).params["text"].keys()
    change_one_weight(tmp_path / "pipeline" / "text_encoder")
    with pytest.raises(PretrainedError, match="needs the text weights of SHA-256") as caught:
        policy_of(config, 1)
    assert "text_encoder has" in one_line(caught)
    config.stage = "video"
    with pytest.raises(
        CheckpointError, match=r"pretrained\.text: checkpoint .*, config "
    ) as caught:
        train(build_run(config))
    one_line(caught)
    config.pretrained.text = ""
    hidden = old.with_name("hidden")
    old.rename(hidden)
    try:
        with pytest.raises(PretrainedError, match="is not there") as caught:
            policy_of(config, 1)
    finally:
        hidden.rename(old)
    assert str(old) in one_line(caught)
    change_one_weight(tmp_path / "pipeline" / "vae")
    config.pretrained.text = str(old)
    with pytest.raises(RuntimeError, match="was encoded with the codec of SHA-256") as caught:
        build_run(config)
    assert "prepare_data" in one_line(caught)


def test_a_folder_is_hashed_once(encoded, monkeypatch):
    def never(path):
        raise AssertionError(f"{path} was read again")

    known = open_sources(encoded)
    monkeypatch.setattr(fingerprint, "file_sha256", never)
    assert {s: x.sha256 for s, x in open_sources(encoded).items()} == {
        s: x.sha256 for s, x in known.items()
    }


def test_converted_folders_bring_the_same(encoded, tmp_path):
    config = encoded.copy_and_resolve_references()
    config.workdir = str(tmp_path)
    config.video.param_dtype = "bfloat16"
    public = open_sources(config)
    for slot, part in PARTS.items():
        save_converted(*load_pretrained(config.pretrained[slot]), tmp_path / part)
        config.pretrained[slot] = str(tmp_path / part)
    shutil.copytree(Path(encoded.pretrained.text).parent / "tokenizer", tmp_path / "tokenizer")
    for slot, source in open_sources(config).items():
        assert source.module == public[slot].module
        assert source.sha256 != public[slot].sha256
        jax.tree.map(np.testing.assert_array_equal, source.load(), public[slot].load())


def test_the_form_of_conditioning_follows_from_the_channels(encoded, tmp_path):
    config = encoded.copy_and_resolve_references()
    module = dit(in_channels=2 * CHANNELS + 4)
    save_pretrained(module, shaken(module), tmp_path / "transformer")
    config.pretrained.video = str(tmp_path / "transformer")
    config.workdir = str(tmp_path)
    sources = open_sources(config)
    data = open_encoded(Path(encoded.workdir) / "encoded", sources["codec"])
    video = build_denoiser(config, data, sources).video_config
    assert (video.conditioning, video.text_padding) == ("channels", "zeros")
    codec, params = Codec(sources["codec"].module), sources["codec"].load()
    grey = np.asarray(codec.encode(params, np.zeros((1, 17, 16, 16, 3), np.float32)))
    np.testing.assert_allclose(video.blank_latent, grey[0, -1].mean((0, 1)), rtol=1e-5)


MISTAKES = {
    "a codec as the tower": (
        {"pretrained.video": "{pipeline}/vae"},
        "pretrained.video: .*vae holds AutoencoderKLWan; this slot takes a Wan DiT .*'transformer'",
    ),
    "a tower as the codec": ({"pretrained.codec": "{pipeline}/transformer"}, "takes a Wan VAE"),
    "a whole pipeline": ({"pretrained.video": "{pipeline}"}, "is a whole pipeline; name one of"),
    "no folder": ({"pretrained.codec": "{pipeline}/nothing"}, "codec: .*nothing: no such folder"),
    "no size": (
        {"video.size": "tiny"},
        "'tiny' but config.pretrained.video .*video.size=inherited",
    ),
    "no name": ({"pretrained.text": ""}, "text.size is 'inherited' but .* names no folder"),
    "a size beside the folder": ({"video.width": 48}, "config.video.width is set but .*remove it"),
    "a picture too small": ({"data.image_size": 20}, "image_size is 20, .* multiple of 8"),
    "an unknown slot": ({"pretrained.vae": "x"}, "unknown key 'vae'; known are video, text, codec"),
    "a wider text": ({"pretrained.video": "{odd}/wide"}, "captions of width 14, .*text gives 12"),
    "other latents": ({"pretrained.codec": "{odd}/vae"}, "latents of 4 channels, .*codec has 6"),
    "the fitted codec": ({"pretrained.codec": ""}, "latents of 4 channels, config.codec has 16"),
    "odd channels": ({"pretrained.video": "{odd}/channels"}, "takes 7 channels .* no form"),
    "our own text": (
        {"pretrained.text": "", "text.size": "tiny"},
        r"captions of width 12, config.text gives 64",
    ),
    "no tokeniser": ({"pretrained.text": "{odd}/text"}, "no tokenizer.json and no spiece.model"),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Parts that are whole but do not fit the pipeline's."""
    folder = tmp_path_factory.mktemp("odd")
    parts = dict(wide=dit(text_width=14), channels=dit(in_channels=7), vae=vae(6), text=TEXT)
    for name, module in parts.items():
        save_pretrained(module, shaken(module), folder / name)
    return folder


@pytest.mark.parametrize(("changes", "words"), MISTAKES.values(), ids=MISTAKES)
def test_what_does_not_fit_is_one_line_before_any_work(changes, words, encoded, pipeline, odd):
    config = encoded.copy_and_resolve_references()
    with config.unlocked():
        for key, value in changes.items():
            section, name = key.split(".")
            config[section][name] = (
                value.format(pipeline=pipeline, odd=odd) if isinstance(value, str) else value
            )
    with pytest.raises(PretrainedError, match=words) as caught:
        open_sources(config)
    one_line(caught)
