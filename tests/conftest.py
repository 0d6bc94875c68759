"""Small drawn data sets that several tests share. Every image has a different colour, so tests can identify it."""

import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CACHE = tempfile.TemporaryDirectory(prefix="mae_hf-tests-")  # before any import of datasets, which reads it once
os.environ |= {"MAE_HF_CACHE": CACHE.name, "HF_DATASETS_CACHE": f"{CACHE.name}/datasets"}
# Under nohup and in the background of a shell, these are ignored, which the tests of signals must not inherit.
for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
# Each worker gets a separate core before anything imports torch, which then starts as many threads as it has cores.
# Two threads on one core wait for each other: a test of two seconds took eight minutes.
if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def coloured(number: int, size: int = 12) -> Image.Image:
    """A square of the colour (number, 2 number, 100)."""
    return Image.fromarray(np.full((size, size, 3), (number, 2 * number, 100), np.uint8))


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the order below; by default, files of many tests are first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first, so that the other processes have work until the last of them ends."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """train: 10 cats (0 to 9), 10 dogs (10 to 19); test: 2 and 2 (20 to 23); unlabeled: 6 (30 to 35)."""
    folder = tmp_path / "pictures"
    names = [f"train/{'cat' if i < 10 else 'dog'}" for i in range(20)]
    names += [f"test/{'cat' if i < 2 else 'dog'}" for i in range(4)]
    for number, name in [*enumerate(names), *((i, "unlabeled") for i in range(30, 36))]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        coloured(number).save(folder / name / f"{number:02}.png")
    return folder
