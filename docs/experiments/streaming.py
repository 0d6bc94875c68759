"""Experiment: images per second of batches alone, from the image cache and from streams, in turns.

python docs/experiments/streaming.py [NUM_IMAGES]    (from the root of the repository; the default is 8192)
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.append("tests")
from shard_server import ShardServer, parquet, tar

from mae_hf.config.data import DataConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.data.dataset import DeviceImages, load_pretraining_images
from mae_hf.data.sampler import BatchSampler
from mae_hf.data.stream.reader import StreamedImages, load_stream

CPU, SIZE, BATCH, SHARDS, TURNS, STEPS = torch.device("cpu"), 96, 128, 16, 5, 40


def photograph(random: np.random.Generator) -> bytes:
    """A JPEG with soft colours and a little noise."""
    soft = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    noisy = np.clip(np.asarray(soft, np.int64) + random.integers(-8, 8, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def open_source(source: str, folder: Path) -> StreamedImages:
    data = DataConfig(
        source=source, streaming=True, cache_dir=str(folder / "cache"), stream_held_out=256, stream_buffer=2048
    )
    config = PretrainConfig(data=data, train=PretrainTrainConfig(batch_size=BATCH))
    stream, _ = load_stream(data, SIZE)
    return StreamedImages(stream, config, config.train.plan(len(stream), 1), CPU, 0, lambda image: None)


def turn(batches: Iterator[torch.Tensor]) -> tuple[float, float]:
    """Return images per second, and milliseconds of CPU time per image, over STEPS batches."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        next(batches)
    num = STEPS * BATCH
    return num / (time.perf_counter() - wall), 1000 * (time.process_time() - cpu) / num


def main(num_images: int) -> None:
    random = np.random.default_rng(0)
    pictures = [photograph(random) for _ in range(num_images)]
    each = num_images // SHARDS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, make in {"parquet": lambda part: parquet(part, 256), "tar": tar}.items():
            (folder / kind).mkdir()
            for i in range(SHARDS):
                (folder / kind / f"s-{i:02}.{kind}").write_bytes(make(pictures[i * each : (i + 1) * each]))
        files = {f"/{file.name}": file.read_bytes() for file in (folder / "tar").iterdir()}
        with ShardServer(files) as server:
            sources = {"parquet files": str(folder / "parquet"), "tars": str(folder / "tar")}
            sources["tars from a server"] = f"{server.address}/s-{{00..{SHARDS - 1}}}.tar"
            streams = {name: open_source(source, folder) for name, source in sources.items()}
            stored = DataConfig(source=str(folder / "parquet"), cache_dir=str(folder / "cache"))
            store = DeviceImages(load_pretraining_images(stored, SIZE)[0], CPU, "never")
            order = BatchSampler(PretrainTrainConfig(batch_size=BATCH).plan(len(store.labels), 1), 0)
            turns: dict[str, list[tuple[float, float]]] = {"store": [], **{name: [] for name in streams}}
            for number in range(TURNS):
                first = number * (STEPS + 1)
                turns["store"].append(turn(store.batch(order.micro_batches(first + step)[0]) for step in range(STEPS)))
                for name, images in streams.items():
                    steps = range(first, first + STEPS + 1)
                    with images.reading(first, 10**9):
                        batches = (images.batch(images.sampler.micro_batches(step)[0]) for step in steps)
                        next(batches)  # wait for the first window
                        turns[name].append(turn(batches))
    for name, found in turns.items():
        rate, cpu = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"{name:20} {rate:9,.0f} images/s, {cpu:.3f} ms of CPU time per image")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8192)
