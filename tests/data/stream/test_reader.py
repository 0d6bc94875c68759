"""Streamed images equal the cached ones, after every stop and on any number of processes; each has one note."""

import dataclasses
import json
import random
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_server import ShardServer, parquet, picture, tar

from mae_hf.config.data import DataConfig
from mae_hf.config.model import MAEConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.data.dataset import DeviceImages, ImageSet, load_evaluation_images, load_pretraining_images
from mae_hf.data.random import Draws
from mae_hf.data.stream import reader
from mae_hf.data.stream import shards as shards_module
from mae_hf.data.stream.reader import StreamedImages, StreamNotes, describe_notes, load_stream, read_notes
from mae_hf.errors import ConfigError, RunError
from mae_hf.files import read_json
from mae_hf.leakage.audit import (
    Audit,
    audit_pretraining,
    describe_audit,
    finish_stream_audit,
    seen_test_images,
    stream_search,
)
from mae_hf.training.losses import pretraining_loss

SIZE = 8
pytestmark = pytest.mark.usefixtures("impatient")
PICTURES = [picture(number) for number in range(60)]
SHARDS = {"a": PICTURES[:20], "b": PICTURES[20:25], "c": PICTURES[25:]}
CPU = torch.device("cpu")


def write(folder: Path, shards: dict[str, list[bytes]], make=tar, kind="tar") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pictures in shards.items():
        (folder / f"{name}.{kind}").write_bytes(make(pictures))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "shards", SHARDS)


def config_of(tmp_path: Path, source, batch_size=8, per_device_batch_size=None, **data) -> PretrainConfig:
    (tmp_path / "run").mkdir(exist_ok=True)  # as the run's lock does
    settings = {"stream_readers": 4, "stream_buffer": 16, "stream_held_out": 6, "cache_dir": str(tmp_path / "cache")}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    train = PretrainTrainConfig(
        batch_size=batch_size, per_device_batch_size=per_device_batch_size, epochs=4, warmup_ratio=0.25
    )
    return PretrainConfig(
        data=DataConfig(source=source, streaming=True, **(settings | data)),
        model=MAEConfig(image_size=SIZE, patch_size=4, **sizes),
        train=train,
        output_dir=str(tmp_path / "run"),
    )


def stream_of(config, num_processes=1, process_index=0, find_duplicate=lambda image: None):
    stream, _ = load_stream(config.data, SIZE)
    plan = config.train.plan(len(stream), num_processes)
    return StreamedImages(stream, config, plan, CPU, process_index, find_duplicate)


def batches(config, start, stop, **kwargs) -> list[torch.Tensor]:
    """The batches of steps `start` to `stop`, as a run that begins at `start` sees them."""
    images = stream_of(config, **kwargs)
    with images.reading(start, 10**9):
        return [images.batch(rows) for step in range(start, stop) for rows in images.sampler.micro_batches(step)]


def test_streamed_images_equal_the_cached_ones(tmp_path):
    source = write(tmp_path / "parquet", SHARDS, parquet, "parquet")
    stored, _ = load_pretraining_images(DataConfig(source=str(source), cache_dir=str(tmp_path / "cache")), SIZE)
    by_row = dict(zip(stored.split_rows.tolist(), stored.batch(range(len(stored))), strict=True))
    config = config_of(tmp_path, str(source))
    sampler = stream_of(config).sampler
    num_compared = 0
    for step, batch in enumerate(batches(config, 0, 12)):
        for row, image in zip(sampler.micro_batches(step)[0].tolist(), batch, strict=True):
            if row in by_row:  # the store has set others aside for validation
                assert torch.equal(image, by_row[row])
                num_compared += 1
    assert num_compared > 70


def test_the_model_gets_the_same_tensor_from_a_stream_and_from_the_cache(tmp_path):
    class Keep(torch.nn.Module):
        def forward(self, pixel_values, noise, loss_only):
            kept.append((pixel_values, noise))
            return dataclasses.make_dataclass("Output", ["loss"])(pixel_values.sum())

    kept: list = []
    source = write(tmp_path / "parquet", SHARDS, parquet, "parquet")
    config = config_of(tmp_path, str(source))
    stored, _ = load_pretraining_images(DataConfig(source=str(source), cache_dir=str(tmp_path / "cache")), SIZE)
    # the whole split, so that a row is the same number in both
    (store, _), *_ = stored.parts
    whole = DeviceImages(ImageSet([(store, np.arange(len(store.rows)))]), CPU, "never")
    images = stream_of(config)
    with images.reading(3, 10**9):
        rows = images.sampler.micro_batches(3)[0]
        pretraining_loss(Keep(), images, config)(Draws(config.train.seed, 0, rows, 0))
    pretraining_loss(Keep(), whole, config)(Draws(config.train.seed, 0, rows, 0))
    (pixels, noise), (expected_pixels, expected_noise) = kept
    assert torch.equal(pixels, expected_pixels)
    assert torch.equal(noise, expected_noise)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_resumed_run_sees_the_same_images_wherever_it_stopped(tmp_path, kind):
    source = write(tmp_path / "s", SHARDS, {"tar": tar, "parquet": parquet}[kind], kind)
    config = config_of(tmp_path, str(source))
    whole = batches(config, 0, 20)  # 6 steps an epoch
    starts = random.Random(0).sample(range(1, 19), 5)
    for start in starts:
        for step, batch in enumerate(batches(config, start, min(start + 4, 20)), start):
            assert torch.equal(batch, whole[step]), f"step {step} of a run that resumed at {start}"


@pytest.mark.parametrize(("num_processes", "per_device_batch_size"), [(2, None), (4, None), (2, 2), (1, 2)])
def test_processes_and_micro_batches_share_the_same_global_batches(
    tmp_path, folder, num_processes, per_device_batch_size
):
    alone = batches(config_of(tmp_path, str(folder)), 4, 9)
    config = config_of(tmp_path, str(folder), per_device_batch_size=per_device_batch_size)
    parts = [batches(config, 4, 9, num_processes=num_processes, process_index=i) for i in range(num_processes)]
    per_step = len(parts[0]) // 5
    for step in range(5):
        mine = [part[per_step * step + micro] for part in parts for micro in range(per_step)]
        assert torch.equal(torch.cat(mine), alone[step])


def test_failures_of_the_server_do_not_change_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "PAUSES", (0.0,) * 30)  # readers share the failures: one may meet many in a row
    files = {f"/s-{i}.tar": tar(pictures) for i, pictures in enumerate(SHARDS.values())}
    config = config_of(tmp_path, str(write(tmp_path / "s", {f"s-{i}": p for i, p in enumerate(SHARDS.values())})))
    expected = batches(config, 0, 12)
    faults = random.Random(1)
    with ShardServer(files) as server:
        config = config_of(tmp_path, f"{server.address}/s-{{0..2}}.tar")
        stream_of(config)  # counted in peace
        server.fault = lambda request: faults.choice([None, None, "slow", "drop", 500, 503])
        assert all(torch.equal(*pair) for pair in zip(batches(config, 0, 12), expected, strict=True))


def test_a_missing_server_stops_the_run_which_resumes_once_it_is_back(tmp_path):
    with ShardServer({"/s.tar": tar(PICTURES)}) as server:
        config = config_of(tmp_path, f"{server.address}/s.tar")
        whole = batches(config, 0, 10)
        images = stream_of(config)
        server.fault = lambda request: 503
        with images.reading(6, 10**9), pytest.raises(RunError, match=r"s\.tar cannot be read .*503"):
            images.batch(images.sampler.micro_batches(6)[0])
        server.fault = lambda request: None
        assert torch.equal(batches(config, 6, 7)[0], whole[6])


def test_a_bad_image_stops_the_run_and_is_named(tmp_path):
    source = write(tmp_path / "s", {"a": [*PICTURES[:30], b"no image", *PICTURES[30:]]})
    with pytest.raises(RunError, match=r"image 30 of .*a\.tar cannot be decoded .*--data\.on_bad_image skip"):
        batches(config_of(tmp_path, str(source)), 0, 7)


def test_a_skipped_image_is_always_replaced_by_the_same_image(tmp_path):
    source = write(tmp_path / "s", {"a": [*PICTURES[:30], b"no image", *PICTURES[30:]]})
    config = config_of(tmp_path, str(source), on_bad_image="skip")
    with pytest.warns(UserWarning, match="image 30 of .*another image replaces it"):
        whole = batches(config, 0, 12)
    for start in range(12):
        assert torch.equal(batches(config, start, start + 1)[0], whole[start])
    halves = [batches(config, 0, 12, num_processes=2, process_index=index) for index in range(2)]
    assert all(torch.equal(torch.cat(pair), batch) for *pair, batch in zip(*halves, whole, strict=True))
    notes = read_notes(tmp_path / "run")
    assert [(note["row"], note["kind"]) for note in notes] == [(30, "bad")]


@pytest.mark.filterwarnings("ignore:image 30")
def test_a_note_does_not_create_a_run_folder_again_that_was_moved(tmp_path):
    source = write(tmp_path / "s", {"a": [*PICTURES[:30], b"no image", *PICTURES[30:]]})
    config = config_of(tmp_path, str(source), on_bad_image="skip")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(RunError, match=r"run was moved or removed during the run: .* its new --output_dir"):
        batches(config, 0, 12)
    assert not (tmp_path / "run").exists()


def test_a_window_without_a_single_image_stops_the_run(tmp_path):
    source = write(tmp_path / "s", {"a": PICTURES[:10], "b": [b"no image"] * 50})
    with pytest.raises(RunError, match="none of the 4 images"), pytest.warns(UserWarning, match="image"):
        batches(config_of(tmp_path, str(source), on_bad_image="skip"), 0, 7)


def test_the_first_images_are_held_out_and_never_trained_on(tmp_path, folder):
    stream, held_out = load_stream(config_of(tmp_path, str(folder), stream_held_out=23).data, SIZE)
    assert (len(stream), len(held_out)) == (37, 23)
    every = stream_of(config_of(tmp_path, str(folder), stream_held_out=23)).sampler
    rows = np.concatenate([every.micro_batches(step)[0] for step in range(every.plan.steps_per_epoch)])
    assert rows.min() >= 23
    with pytest.raises(ConfigError, match=r"stream_held_out 60 leaves none of the 60 images"):
        load_stream(config_of(tmp_path, str(folder), stream_held_out=60).data, SIZE)


def labelled(folder: Path, pictures: list[bytes]) -> Path:
    """A source with a labelled train and test split, whose test images are these."""
    return write(folder, {"train-0": [picture(n) for n in range(500, 520)], "test-0": pictures}, parquet, "parquet")


@pytest.mark.parametrize("leave_out", [True, False])
def test_duplicates_of_test_images_are_replaced_or_only_noted(tmp_path, folder, leave_out):
    # Two are in the stream, one is held out, one is in neither.
    source = labelled(tmp_path / "labelled", [PICTURES[40], PICTURES[11], PICTURES[2], picture(999)])
    config = config_of(tmp_path, str(folder))
    config = dataclasses.replace(config, audit=dataclasses.replace(config.audit, leave_out=leave_out))
    evaluation = load_evaluation_images(config.data, [str(source)], SIZE)
    stream, held_out = load_stream(config.data, SIZE)
    _, kept, audit = audit_pretraining(stream, held_out, evaluation, leave_out)
    assert len(kept) == (5 if leave_out else 6)
    done = "left out" if leave_out else "kept"
    assert f"equal to one of the 4 test images are {done}; " in describe_audit(audit)
    assert describe_audit(audit).endswith("near-duplicates are not searched for in a stream")

    streamed = torch.cat(batches(config, 0, 18, find_duplicate=stream_search(held_out, evaluation)))
    [test] = evaluation["test"]
    found = [bool((streamed == image).flatten(1).all(1).any()) for image in test.batch(range(3))]
    assert found == ([False] * 3 if leave_out else [True, True, False])

    finished = finish_stream_audit(audit, read_notes(tmp_path / "run"))
    (tmp_path / "audit.json").write_text(json.dumps(dataclasses.asdict(finished)))
    audit = read_json(tmp_path / "audit.json", Audit)
    assert audit.num_test_duplicates == 3
    assert [(part.num_duplicated, part.num_seen) for part in audit.tests] == [(3, 0 if leave_out else 2)]
    assert sorted((pair.row, pair.against_row) for pair in audit.pairs) == [(2, 2), (11, 1), (40, 0)]
    assert "3 images duplicate 3 of the 4 test images" in describe_audit(audit)
    assert describe_audit(audit).endswith("near-duplicates are not searched for in a stream")
    assert len(audit.seen) == (0 if leave_out else 2)
    assert seen_test_images(audit, test) is None


def test_streamed_duplicates_of_held_out_images_are_replaced(tmp_path):
    """Otherwise the held-out loss would be on images that the model was trained on."""
    source = write(tmp_path / "shards", {"a": [*PICTURES[:20], PICTURES[3]], "b": [*PICTURES[20:], PICTURES[0]]})
    config = config_of(tmp_path, str(source))
    stream, held_out = load_stream(config.data, SIZE)
    *_, audit = audit_pretraining(stream, held_out, {"test": [], "validation": []}, leave_out=True)
    search = stream_search(held_out, {"test": [], "validation": []})
    streamed = torch.cat(batches(config, 0, 18, find_duplicate=search))
    assert not any(bool((streamed == image).flatten(1).all(1).any()) for image in held_out.batch(range(6)))
    audit = finish_stream_audit(audit, read_notes(tmp_path / "run"))
    assert (audit.num_test_duplicates, audit.num_validation_duplicates) == (0, 2)
    assert "2 images duplicate 2 of the 6 validation images (left out)" in describe_audit(audit)


def test_a_resumed_run_replaces_duplicates_alike(tmp_path, folder):
    source = labelled(tmp_path / "labelled", PICTURES[30::3])
    config = config_of(tmp_path, str(folder))
    _, held_out = load_stream(config.data, SIZE)
    search = stream_search(held_out, load_evaluation_images(config.data, [str(source)], SIZE))
    whole = batches(config, 0, 12, find_duplicate=search)
    for start in (1, 5, 8):
        assert torch.equal(batches(config, start, start + 1, find_duplicate=search)[0], whole[start])


def test_half_written_notes_of_a_killed_run_are_ignored(tmp_path, folder):
    source = labelled(tmp_path / "labelled", [PICTURES[40]])
    config = config_of(tmp_path, str(folder))
    _, held_out = load_stream(config.data, SIZE)
    search = stream_search(held_out, load_evaluation_images(config.data, [str(source)], SIZE))
    (tmp_path / "run" / "streamed-0.jsonl").write_text('\n{"row": 7, "kind": "bad"}\n{"row": 40, "ki')
    for _ in range(2):
        batches(config, 0, 6, find_duplicate=search)
    assert [note["row"] for note in read_notes(tmp_path / "run")] == [7, 40]
    assert (tmp_path / "run" / "streamed-0.jsonl").read_text().count("digest") == 1


def test_batches_out_of_order_are_refused(tmp_path, folder):
    images = stream_of(config_of(tmp_path, str(folder)))
    with images.reading(0, 10**9), pytest.raises(ValueError, match="in their order"):
        images.batch(images.sampler.micro_batches(1)[0])


def test_outside_of_reading_images_are_black(tmp_path, folder):
    images = stream_of(config_of(tmp_path, str(folder)))
    assert images.batch(np.arange(3)).shape == (3, SIZE, SIZE, 3)
    assert not images.batch(np.arange(3)).any()


def test_each_reader_reads_at_most_one_window_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "IMAGES_PER_TASK", 1)  # of decoded images, too, no more than two batches wait
    monkeypatch.setattr(reader, "AHEAD_PER_THREAD", 0)
    with ShardServer({f"/s-{i:02}.tar": tar(PICTURES[:4]) for i in range(40)}) as server:
        config = config_of(tmp_path, f"{server.address}/s-{{00..39}}.tar", batch_size=4, stream_readers=2)
        images = stream_of(config)
        server.gets.clear()
        with images.reading(0, 10**9):
            images.batch(images.sampler.micro_batches(0)[0])
            time.sleep(0.5)
            # windows of 8 images: in use, ahead, and one that the decoded batches were in; and shards cut at their ends
            assert len(set(server.gets)) <= 2 * (3 * 8 // 4 + 3)


@pytest.mark.parametrize("end", [3, 4, 7])
def test_only_images_of_needed_steps_are_decoded(tmp_path, end):
    source = write(tmp_path / "parquet", SHARDS, parquet, "parquet")
    images = stream_of(config_of(tmp_path, str(source)))
    decoded = []
    images._image = lambda window, encoded, position: decoded.append(1) or np.zeros((SIZE, SIZE, 3), np.uint8)
    with images.reading(3, end):
        for step in range(3, end):
            for rows in images.sampler.micro_batches(step):
                images.batch(rows)
        time.sleep(0.5)  # time for threads that did not stop
        assert len(decoded) == sum(len(rows) for step in range(3, end) for rows in images.sampler.micro_batches(step))


# ---- notes ----

DUPLICATE = {"kind": "equal", "digest": "aa", "against": [["digits", 3]]}


def test_threads_that_read_the_same_image_write_one_note(tmp_path):
    notes = StreamNotes(tmp_path, 0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: notes.add(number % 10, f"image {number % 10}", DUPLICATE), range(400)))
    rows = [json.loads(line)["row"] for line in (tmp_path / "streamed-0.jsonl").read_text().splitlines() if line]
    assert sorted(rows) == list(range(10))
    assert read_notes(tmp_path)[4] == {"row": 4, "image": "image 4", **DUPLICATE}


def test_only_a_line_that_was_cut_short_is_written_again(tmp_path):
    (tmp_path / "streamed-0.jsonl").write_text('\n{"row": 7, "kind": "bad"}\n{"row": 40, "ki')
    notes = StreamNotes(tmp_path, 0)
    for row in (7, 40, 40):
        notes.add(row, "an image", DUPLICATE)
    assert [(note["row"], note["kind"]) for note in read_notes(tmp_path)] == [(7, "bad"), (40, "equal")]
    assert (tmp_path / "streamed-0.jsonl").read_text().count("digest") == 1


def test_an_image_of_two_processes_counts_once(tmp_path):
    for process, rows in enumerate([(5, 1), (5, 9)]):
        for row in rows:
            StreamNotes(tmp_path, process).add(row, "an image", DUPLICATE)
    assert [note["row"] for note in read_notes(tmp_path)] == [1, 5, 9]


def test_the_first_bad_image_gives_a_warning_and_all_are_counted(tmp_path):
    notes = StreamNotes(tmp_path, 0)
    bad = {"kind": "bad", "cause": "torn"}
    with pytest.warns(UserWarning, match=r"image 1 of a\.tar cannot be decoded \(torn\).*streamed-0"):
        notes.add(1, "image 1 of a.tar", bad)
    with warnings.catch_warnings(action="error"):
        for row in (2, 3):
            notes.add(row, f"image {row} of a.tar", bad)
    assert describe_notes(read_notes(tmp_path)) == "bad images      3 could not be decoded and were replaced"
    assert describe_notes([]) == "bad images      none"


def test_a_run_folder_that_was_moved_is_not_created_again(tmp_path):
    with pytest.raises(RunError, match="run"):
        StreamNotes(tmp_path / "run", 0).add(0, "an image", DUPLICATE)
    assert not (tmp_path / "run").exists()
