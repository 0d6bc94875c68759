"""A Hub dataset as `data.source`, read by the unmodified datasets library from a Hub on this machine."""

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `observe` saw in a separate process, because the libraries read the Hub's address at import."""
    folder = tmp_path_factory.mktemp("hub")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MAE_HF_"))}
    environment |= {
        "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent))),
        "HF_HOME": str(folder),
        "MAE_HF_CACHE": str(folder / "mae_hf"),
    }
    command = [sys.executable, __file__]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_hub_dataset_has_its_splits_by_role_with_labels_and_class_names(seen):
    classes = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    assert seen["splits"] == {
        "train": [20, [number % 10 for number in range(20)], classes],
        "test": [10, list(range(10)), classes],
        "unlabeled": [6, None, None],
    }


def test_the_images_arrive_whole_and_in_order(seen):
    assert seen["reds"]["main"] == [200 + number for number in range(10)]


def test_parquet_files_and_tars_of_the_hub_are_streamed(seen):
    assert seen["streamed"]["me/tiny-stl10"] == [50 + number for number in range(6)]
    assert seen["streamed"]["me/tars"] == [95, 255, 193, 248]  # the first reds of pictures 0 to 3


def test_a_pinned_revision_gives_the_images_of_that_commit(seen):
    assert seen["reds"]["first"] == [100 + number for number in range(10)]


@pytest.mark.parametrize("revision", ["v9", "0000000"])
def test_a_missing_revision_is_named(seen, revision):
    message = seen["errors"][revision]
    assert f"me/tiny-stl10 at revision {revision} is not a folder here and cannot be read from the Hub" in message
    assert "--data.source" in message


def test_a_missing_dataset_is_named(seen):
    assert seen["errors"]["absent"].startswith("me/absent is not a folder here and cannot be read from the Hub")


def test_without_a_connection_the_message_says_what_works_offline(seen):
    assert "me/other is not a folder here" in seen["errors"]["no connection"]
    assert "--config digits" in seen["errors"]["no connection"]


def test_a_downloaded_dataset_is_read_offline(seen):
    assert seen["reds"]["first, offline"] == seen["reds"]["first"]


def test_a_different_downloaded_revision_is_refused_offline(seen):
    assert "revision" in seen["errors"]["second, offline"] and "--data.revision" in seen["errors"]["second, offline"]


def test_every_error_is_one_line_within_seconds(seen):
    assert not [name for name, message in seen["errors"].items() if "\n" in message]
    assert seen["slowest error"] < 15


def observe() -> dict[str, Any]:
    """Serves a small STL-10 with three commits, reads it, and reads it again when it is gone."""
    import time

    from hub_server import Hub

    hub = Hub()
    os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}

    import datasets
    from huggingface_hub import constants
    from PIL import Image
    from shard_server import picture, tar

    from mae_hf.config.data import STL10_CLASSES, DataConfig
    from mae_hf.data.dataset import load_labelled_images
    from mae_hf.data.sources import load_splits
    from mae_hf.data.stream.shards import ShardReader, open_shards
    from mae_hf.errors import ConfigError

    def parquet(first_red: int, labels: list[int]) -> bytes:
        images = [Image.new("RGB", (8, 8), (first_red + number, 0, 0)) for number in range(len(labels))]
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(STL10_CLASSES))}
        )
        file = io.BytesIO()
        datasets.Dataset.from_dict({"image": images, "label": labels}, features).to_parquet(file)
        return file.getvalue()

    train = {"train": parquet(0, [number % 10 for number in range(20)]), "unlabeled": parquet(50, [-1] * 6)}
    revisions = {}
    for name, red in {"first": 100, "second": 150, "main": 200}.items():
        splits = {**train, "test": parquet(red, list(range(10)))}
        files = {f"data/{split}-00000-of-00001.parquet": data for split, data in splits.items()}
        revisions[name] = hub.commit("datasets/me/tiny-stl10", files)
    hub.commit("datasets/me/other", files)

    def config(revision: str | None, source: str = "me/tiny-stl10") -> DataConfig:
        return DataConfig(source=source, revision=revision)

    def reds(revision: str | None) -> list[int]:
        test = load_labelled_images(config(revision), 8, roles=("test",))["test"]
        return test.batch(range(len(test)))[:, 0, 0, 0].tolist()

    errors, seconds = {}, []

    def fail(name: str, revision: str | None, source: str = "me/tiny-stl10") -> None:
        start = time.monotonic()
        try:
            load_labelled_images(config(revision, source), 8)
            errors[name] = "none"
        except ConfigError as error:
            errors[name] = str(error)
        seconds.append(time.monotonic() - start)

    hub.commit("datasets/me/tars", {f"a-{i}.tar": tar([picture(2 * i), picture(2 * i + 1)]) for i in range(2)})

    def stream(source: str) -> list[int]:
        shards = open_shards(DataConfig(source=source, streaming=True))
        reader = ShardReader(shards, threading.Event())
        encoded = reader.read(np.arange(shards.lengths.sum()))
        return [Image.open(io.BytesIO(image)).getpixel((0, 0))[0] for image in encoded]

    with hub:
        found = load_splits(config(None), "me/tiny-stl10")
        labels = {role: None if split.labels is None else split.labels.tolist() for role, split in found.items()}
        splits = {role: [len(split), labels[role], split.class_names] for role, split in found.items()}
        seen = {"main": reds(None), "first": reds(revisions["first"])}
        fail("v9", "v9")
        fail("0000000", "0000000")
        fail("absent", None, "me/absent")
        streamed = {"me/tiny-stl10": stream("me/tiny-stl10"), "me/tars": stream("me/tars")}
    fail("no connection", None, "me/other")
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = (
        True  # saves the minutes of waiting for a Hub that is gone
    )
    seen["first, offline"] = reds(revisions["first"])
    fail("second, offline", revisions["second"])
    return {"splits": splits, "reds": seen, "errors": errors, "slowest error": max(seconds), "streamed": streamed}


if __name__ == "__main__":
    print(json.dumps(observe()))
