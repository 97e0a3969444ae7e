"""The TFDS copy of a store holds the same events, and needs no TensorFlow."""

import sys

import numpy as np
import tensorflow_datasets as tfds

from data.metaworld_events.builder import MetaworldEvents
from wallwm_jax.events import build, carve
from wallwm_jax.events.store import EventWriter, open_store


def test_the_copy_equals_the_store(pull, tmp_path):
    with EventWriter(tmp_path / "store") as writer:
        for seed, split in ((0, "train"), (1, "train"), (200, "test")):
            episode = pull(seed)
            for event in build.events_of(episode, carve.carve(episode)):
                writer.add(event, split)
    builder = MetaworldEvents(store=tmp_path / "store", data_dir=tmp_path / "tfds")
    builder.download_and_prepare()

    # Read back as a stranger would, from the folder alone.
    folder = tmp_path / "tfds" / "metaworld_events" / "1.0.0"
    source = tfds.builder_from_directory(folder).as_data_source("train")
    store = open_store(tmp_path / "store", "train")
    assert len(source) == len(store)
    wanted = {(store[i].episode_id, store[i].index): store[i] for i in range(len(store))}
    for i in range(len(source)):
        have = source[i]
        want = wanted.pop((have["episode_id"].decode(), int(have["index"])))
        assert have["captions"]["action"].decode() == want.captions["action"]
        assert have["next_caption"].decode() == want.next_caption
        np.testing.assert_array_equal(have["actions"], want.actions)
        np.testing.assert_allclose(have["extrinsics"]["wrist"], want.extrinsics["wrist"], rtol=1e-6)
        np.testing.assert_array_equal(np.stack(list(have["frames"]["ego"])), want.frames["ego"])
    assert not wanted
    assert "tensorflow" not in sys.modules
