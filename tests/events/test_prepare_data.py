"""The entry point: a small real dataset, its settings, and its errors."""

import pytest
from experiments import prepare_data

from wallwm_jax.events.store import open_store
from wallwm_jax.sim import gl


def test_splits_never_share_a_seed():
    options = prepare_data.parse(["--tasks=reach,drawer-open"])
    parts = prepare_data.make_parts(options)
    seeds = {split: {s for p in parts if p.split == split for s in p.seeds}
             for split in ("train", "validation", "test")}
    assert [len(s) for s in seeds.values()] == [22, 3, 5]
    assert not seeds["train"] & (seeds["validation"] | seeds["test"])
    with pytest.raises(ValueError, match="splits are 100 seeds apart"):
        prepare_data.make_parts(prepare_data.parse(["--train_seeds=101"]))


def test_every_option_that_changes_bytes_is_a_setting():
    """Two command lines with the same settings must mean the same dataset."""
    plain = prepare_data.make_recipe(prepare_data.parse([])).settings
    for option in ("image_size=32", "noise=0.5", "max_steps=9", "segmentation=fixed",
                   "max_length=9", "chunk_length=9"):
        other = prepare_data.make_recipe(prepare_data.parse([f"--{option}"])).settings
        assert other != plain, option


@pytest.mark.parametrize("arguments", [["--tasks=juggle"], ["--test_seeds=-1"]])
def test_mistakes_end_in_one_line(arguments, tmp_path):
    with pytest.raises(SystemExit) as caught:
        prepare_data.main([f"--out={tmp_path / 'store'}", *arguments])
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("segmentation", ["behaviour", "fixed"])
def test_a_small_dataset(segmentation, tmp_path):
    try:
        gl.require_gl()
    except gl.GLUnavailable as error:
        pytest.skip(str(error))
    prepare_data.main([
        f"--out={tmp_path / 'store'}", "--tasks=drawer-open", "--train_seeds=1",
        "--validation_seeds=0", "--test_seeds=1", "--image_size=32", "--processes=1",
        f"--segmentation={segmentation}", "--chunk_length=16",
    ])  # fmt: skip
    store = open_store(tmp_path / "store", "train")
    event = store[0]
    assert set(event.frames) == {"ego", "side", "wrist"}
    assert event.frames["ego"].shape[1:] == (32, 32, 3)
    assert event.action_mask.nonzero()[0].tolist() == [0, 1, 2, 9]
    wanted = ["chunk"] if segmentation == "fixed" else ["align", "approach", "pull", "reach"]
    assert store.labels == wanted
    if segmentation == "fixed":
        assert event.captions["action"] == "open the drawer" and event.length == 16
