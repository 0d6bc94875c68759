"""Shards are found, counted and read, from files and from a server that fails in several ways."""

import io
import itertools
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from shard_server import ShardServer, parquet, picture, tar

from mae_hf.config.data import DataConfig
from mae_hf.data.stream import shards as shards_module
from mae_hf.data.stream.shards import PAUSES, PAUSES_AT_START, ShardReader, open_shards
from mae_hf.errors import ConfigError, RunError

pytestmark = pytest.mark.usefixtures("impatient")
PICTURES = [picture(number) for number in range(20)]
KINDS = {"parquet": parquet, "tar": tar}


@pytest.fixture
def server():
    files = {f"/s-{i}.{kind}": make(PICTURES[10 * i : 10 * i + 10]) for kind, make in KINDS.items() for i in range(2)}
    with ShardServer(files) as server:
        yield server


def config_of(tmp_path: Path, source) -> DataConfig:
    return DataConfig(source=source, streaming=True, cache_dir=str(tmp_path / "cache"))


def read(shards, shard, first, num):
    rows = shards.lengths[:shard].sum() + first + np.arange(num)
    return ShardReader(shards, threading.Event()).read(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_in_a_folder_are_found_counted_and_read_from_any_image(tmp_path, kind):
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, part in {"unlabeled-0": PICTURES[:7], "unlabeled-1": PICTURES[7:], "test-0": PICTURES[:1]}.items():
        (folder / f"{name}.{kind}").write_bytes(KINDS[kind](part))
    shards = open_shards(config_of(tmp_path, str(folder)))
    assert [Path(file).name for file in shards.files] == [f"unlabeled-0.{kind}", f"unlabeled-1.{kind}"]
    assert shards.lengths.tolist() == [7, 13]
    assert read(shards, 0, 0, 7) == PICTURES[:7]
    assert read(shards, 1, 3, 10) == PICTURES[10:]
    assert shards.where(8) == f"image 1 of {folder / f'unlabeled-1.{kind}'}"


@pytest.mark.parametrize("kind", KINDS)
def test_shards_at_an_address_are_the_same_as_in_a_folder(tmp_path, server, kind):
    shards = open_shards(config_of(tmp_path, f"{server.address}/s-{{0..1}}.{kind}"))
    assert shards.files == tuple(f"{server.address}/s-{i}.{kind}" for i in range(2))
    assert read(shards, 1, 0, 10) == PICTURES[10:]
    (tmp_path / "here").mkdir()
    for i in range(2):
        (tmp_path / "here" / f"s-{i}.{kind}").write_bytes(server.files[f"/s-{i}.{kind}"])
    assert open_shards(config_of(tmp_path, str(tmp_path / "here"))).fingerprint == shards.fingerprint


def test_sources_are_joined_in_their_given_order(tmp_path, server):
    sources = [f"{server.address}/s-1.tar", f"{server.address}/s-0.parquet"]
    shards = open_shards(config_of(tmp_path, sources))
    assert read(shards, 0, 0, 10) + read(shards, 1, 0, 10) == PICTURES[10:] + PICTURES[:10]


def test_a_tar_is_counted_again_only_after_it_changes(tmp_path, server):
    config = config_of(tmp_path, f"{server.address}/s-0.tar")
    open_shards(config)
    before = len(server.gets)
    open_shards(config)
    opened_again = len(server.gets) - before
    server.files["/s-0.tar"] = tar(PICTURES[:4])
    before = len(server.gets)
    assert open_shards(config).lengths.tolist() == [4]
    assert len(server.gets) - before > opened_again


def test_consecutive_pieces_are_read_from_one_connection(tmp_path, server):
    reader = ShardReader(open_shards(config_of(tmp_path, f"{server.address}/s-0.tar")), threading.Event())
    server.gets.clear()
    assert reader.read(np.arange(3)) + reader.read(np.arange(3, 10)) == PICTURES[:10]
    assert len(server.gets) == 1
    assert reader.read(np.arange(1)) == PICTURES[:1]
    assert len(server.gets) == 2


@pytest.mark.parametrize("fault", ["slow", "drop", 500, 503, 404, 429])
@pytest.mark.parametrize("kind", KINDS)
def test_occasional_failures_of_a_server_do_not_change_the_images(tmp_path, server, kind, fault):
    shards = open_shards(config_of(tmp_path, f"{server.address}/s-{{0..1}}.{kind}"))
    turns = itertools.count()
    server.fault = lambda request: fault if next(turns) % 2 == 0 else None
    reader = ShardReader(shards, threading.Event())
    assert reader.read(np.arange(2, 20)) == PICTURES[2:]
    assert next(turns) >= 2, "the server had a chance to fail"


@pytest.mark.parametrize("fault", ["drop", 500])
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_keeps_failing_is_named_with_shard_and_cause(tmp_path, server, kind, fault):
    shards = open_shards(config_of(tmp_path, f"{server.address}/s-0.{kind}"))
    server.fault = lambda request: fault
    with pytest.raises(RunError) as raised:
        read(shards, 0, 0, 10)
    message = str(raised.value)
    assert f"{server.address}/s-0.{kind} cannot be read from image " in message
    assert ("Not enough data" if fault == "drop" else "500") in message
    assert "after 3 retries" in message and "the same command resumes" in message and "\n" not in message


def test_before_a_run_an_unreachable_server_is_given_up_within_ten_seconds_of_pauses(tmp_path, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(shards_module, "PAUSES", PAUSES)  # which the other tests shorten
    monkeypatch.setattr(shards_module, "PAUSES_AT_START", PAUSES_AT_START)
    monkeypatch.setattr(shards_module.time, "sleep", pauses.append)
    config = DataConfig(source="http://127.0.0.1:9/0.tar", streaming=True, cache_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"0\.tar cannot be counted: ClientConnectorError"):
        open_shards(config)
    assert 0 < sum(pauses) < 10


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_counted_despite_occasional_failures_of_the_server(tmp_path, server, kind, monkeypatch):
    monkeypatch.setattr(shards_module, "COUNTED_AT_ONCE", 1)  # else one shard could meet every failure
    turns = itertools.count()
    server.fault = lambda request: ("drop", None, 503, None)[next(turns) % 4]
    assert open_shards(config_of(tmp_path, f"{server.address}/s-{{0..1}}.{kind}")).lengths.tolist() == [10, 10]


@pytest.mark.parametrize("damage", ["[]", "{", '{"a": [1]}', "[[]]"])
def test_a_damaged_cache_of_counts_is_made_anew(tmp_path, damage):
    config = config_of(tmp_path, str(tmp_path / "a.tar"))
    (tmp_path / "a.tar").write_bytes(tar(PICTURES))
    open_shards(config)
    [cache] = (tmp_path / "cache").glob("stream-*.json")
    whole = cache.read_text()
    cache.write_text(damage)
    assert open_shards(config).lengths.tolist() == [20]
    assert cache.read_text() == whole


def test_a_shard_that_has_become_shorter_is_named(tmp_path):
    file = tmp_path / "a.tar"
    file.write_bytes(tar(PICTURES))
    shards = open_shards(config_of(tmp_path, str(file)))
    file.write_bytes(tar(PICTURES[:5]))
    with pytest.raises(RunError, match=r"a\.tar ends after 5 images, 20 were counted"):
        read(shards, 0, 0, 20)


def test_a_source_without_shards_is_named_with_the_fix(tmp_path, server, image_folder):
    (tmp_path / "a.txt").write_text("no shard")
    (tmp_path / "broken.tar").write_bytes(b"no tar" * 1000)
    wrong = {
        "digits": "no source of shards",
        str(tmp_path / "a.txt"): "no source of shards",
        str(image_folder): "streaming reads parquet files or webdataset tars",
        f"{server.address}/s-0.zip": "streaming reads parquet files or webdataset tars",
        f"{server.address}/gone.parquet": "gone.parquet cannot be counted: ClientResponseError: 404",
        str(tmp_path / "broken.tar"): "broken.tar cannot be counted",
    }
    for source, message in wrong.items():
        with pytest.raises(ConfigError, match=message) as raised:
            open_shards(config_of(tmp_path, source))
        assert "--data.source" in str(raised.value) and "\n" not in str(raised.value)


def test_files_without_images_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"label": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="holds no images"):
        open_shards(config_of(tmp_path, str(tmp_path / "a.parquet")))


def test_a_missing_image_has_no_bytes(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": PICTURES[0], "path": None}, None], struct)
    pyarrow.parquet.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    assert read(open_shards(config_of(tmp_path, str(tmp_path / "a.parquet"))), 0, 0, 2) == [PICTURES[0], b""]


def test_a_sample_of_a_tar_is_its_first_image_and_other_members_are_none(tmp_path):
    members = [("a/0.cls", b"1"), ("a/0.JPG", PICTURES[0]), ("a/0.mask.png", PICTURES[1]), ("README.txt", b"text")]
    members += [("a/._1.png", b"x"), ("b/0.webp", PICTURES[2]), ("b.c/0.png", PICTURES[3])]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    shards = open_shards(config_of(tmp_path, str(tmp_path / "a.tar")))
    assert shards.lengths.tolist() == [3]
    assert read(shards, 0, 0, 3) == [PICTURES[0], *PICTURES[2:4]]
