"""The readers that `loading` times, each in a process of its own.

    python loading_readers.py ours|tfrecord|lerobot WORK STEPS STRIDE

Prints the processor seconds, of all threads, for all windows of WORK/windows.json:
what other programs take of the machine does not count. The first window is read
before the clock starts.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def ours(work: Path, windows: Sequence[dict], steps: int, stride: int) -> Callable[[], None]:
    """Random access to our store: decoded pictures, actions, captions as arrays."""
    from wallwm_jax.events.store import open_store

    store = open_store(work / "store", "train")

    def read() -> None:
        for window in windows:
            event = store[window["event"]]
            assert event.length == steps and event.captions["action"]

    store[windows[0]["event"]]
    return read


def tfrecord(work: Path, windows: Sequence[dict], steps: int, stride: int) -> Callable[[], None]:
    """The same records from front to back: both checksums, then the same decoding."""
    from wallwm_jax.episodes.tfrecord import masked_crc
    from wallwm_jax.events import coding

    def read() -> None:
        count = 0
        with open(work / "events.tfrecord", "rb") as file:
            while length := file.read(8):
                assert int.from_bytes(file.read(4), "little") == masked_crc(length)
                data = file.read(int.from_bytes(length, "little"))
                assert int.from_bytes(file.read(4), "little") == masked_crc(data)
                event = coding.decode_event(data, stride)
                assert event.length == steps
                count += 1
        assert count == len(windows)

    return read


def lerobot(work: Path, windows: Sequence[dict], steps: int, stride: int) -> Callable[[], None]:
    """LeRobot's own dataset: one query for the window's frames and actions."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(1)
    info = json.loads((work / "lerobot/meta/info.json").read_text())
    seconds = {
        "action": [k / info["fps"] for k in range(steps)],
        **{
            key: [k / info["fps"] for k in range(0, steps + 1, stride)]
            for key, feature in info["features"].items()
            if feature["dtype"] == "video"
        },
    }
    data = LeRobotDataset("local/events", root=work / "lerobot", delta_timestamps=seconds)
    first = [row["dataset_from_index"] for row in data.meta.episodes]

    def read() -> None:
        for window in windows:
            item = data[first[window["episode"]] + window["frame"]]
            assert item["action"].shape[0] == steps and item["subtask"]

    data[first[windows[0]["episode"]] + windows[0]["frame"]]
    return read


def main(argv: Sequence[str]) -> None:
    """Reads everything once and prints the processor seconds."""
    name, work, steps, stride = argv[0], Path(argv[1]), int(argv[2]), int(argv[3])
    windows = json.loads((work / "windows.json").read_text())
    readers = {"ours": ours, "tfrecord": tfrecord, "lerobot": lerobot}
    read = readers[name](work, windows, steps, stride)
    start = time.process_time()
    read()
    print(time.process_time() - start)


if __name__ == "__main__":
    main(sys.argv[1:])
