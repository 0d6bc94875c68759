"""The shards of streamed images: parquet files or webdataset tars on this machine, on a server or on the Hub.

The datasets library streams them. If a server fails, the library retries 20 times, every 5 seconds. After that we open
the shard again and skip to the same image, because a tar cannot be read on after its connection broke.
"""

import functools
import hashlib
import io
import itertools
import json
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import datasets
import fsspec
import numpy as np
import pyarrow.dataset
import pyarrow.parquet
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext
from datasets.utils.file_utils import xopen

from mae_hf.config.data import DataConfig
from mae_hf.data.cache import cache_folder
from mae_hf.data.locations import is_address
from mae_hf.data.readers import find_shards
from mae_hf.data.stream.order import Encoded, Stream
from mae_hf.errors import ConfigError, RunError, require
from mae_hf.files import write_json
from mae_hf.progress import Progress

PAUSES = (1.0, 5.0, 20.0, 60.0)  # seconds between retries of a shard; they start over after each image
SILENCE = 60.0  # seconds without a byte after which a connection counts as lost
REFUSALS = (401, 403, 404, 410)  # statuses for which a retry is useless
COUNTED_AT_ONCE = 16
MAX_BYTES = 2**26  # of an encoded image
ROWS_AT_ONCE = 64  # of a parquet file in memory

Result = TypeVar("Result")


class _Tars(WebDataset):
    """Webdataset tars of which only images are read, up to MAX_BYTES each.

    The library would decompress and decode other members by their endings; here they are empty.
    """

    DECODERS: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _get_pipeline_from_tar(cls, tar_path: str, tar_iterator: Any) -> Any:
        images = {f".{ending}" for ending in cls.IMAGE_EXTENSIONS}
        members = (
            (name, io.BytesIO(file.read(MAX_BYTES))) if Path(name).suffix.lower() in images
            # with another ending, because the library decompresses by it
            else (f"{name}_", io.BytesIO())
            for name, file in tar_iterator
        )  # fmt: skip
        return super()._get_pipeline_from_tar(tar_path, members)


class ShardReader:
    """Reads pieces of shards, with retries until `stopped` is set. A piece after the last one keeps its connection."""

    def __init__(self, stream: Stream, stopped: threading.Event) -> None:
        self._stream = stream
        self._stopped = stopped
        self._position = (-1, 0)  # shard, and the image that comes next
        self._images: Iterator[Encoded] = iter(())

    def read(self, shard: int, first: int, num: int) -> list[Encoded]:
        """`num` images of a shard from image `first` on, still encoded.

        Raises:
            RunError: the shard cannot be read, or has fewer images than were counted.
        """
        return [self._read_one(shard, at) for at in range(first, first + num)]

    def _read_one(self, shard: int, at: int) -> Encoded:
        def read() -> Encoded:
            if self._position != (shard, at):
                self._images = self._stream.openers[shard](at)
            self._position = (-1, 0)  # until the image is read
            image = next(self._images)
            self._position = (shard, at + 1)
            return image

        file, num = self._stream.files[shard], self._stream.lengths[shard]
        try:
            return _retry(read, useless=lambda error: isinstance(error, StopIteration), wait=self._stopped.wait)
        except StopIteration:
            fix = "restore the file, or start a new run in another --output_dir"
            raise RunError(f"{file} ends after {at} images, {num} were counted: {fix}") from None
        except Exception as error:
            what = f"{file} cannot be read from image {at} on ({_cause(error)}), after {len(PAUSES)} retries"
            fix = "once it can be read, the same command resumes from the last checkpoint"
            raise RunError(f"{what}: {fix}") from error


def open_shards(config: DataConfig) -> Stream:
    """The shards of every source, counted; nothing is decoded.

    Raises:
        ConfigError: a source does not exist, has other files, or cannot be counted.
    """
    groups = [find_shards(source, config.revision) for source in config.sources]
    files = [file for group in groups for file in group]
    counted = _count_all(files, cache_folder(config))
    names = [[Path(urlsplit(file).path).name, *counted[file]] for file in files]
    fingerprint = f"{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}-{config.stream_held_out}"
    lengths = np.array([counted[file][1] for file in files], np.int64)
    openers = [opener for group in groups for opener in _openers(group)]
    return Stream(tuple(files), lengths, config.stream_held_out, fingerprint, tuple(openers))


def _openers(files: Sequence[str]) -> list[Callable[[int], Iterator[Encoded]]]:
    """For each file, the function that reads its images from a number on."""
    from aiohttp import ClientTimeout  # it takes time to import

    # aiohttp's own limit of five minutes per file would cut off a tar that is read at the speed of training.
    patience = {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=SILENCE)}}
    options: dict[str, Any] = {"storage_options": {"http": patience, "https": patience}}
    options["data_files"] = DataFilesDict(train=DataFilesList(list(files), [("",)] * len(files)))

    def open_tars() -> tuple[Any, list[str]]:
        # The library would retry on the broken connection; ShardReader opens a new one.
        datasets.config.STREAMING_READ_MAX_RETRIES = 1
        dataset = _Tars(**options).as_streaming_dataset("train")
        return dataset, [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]

    def open_parquet() -> tuple[Any, list[str]]:
        with xopen(files[0], "rb") as file:
            names = pyarrow.parquet.read_schema(file).names
        columns = [name for name in ("image", "img") if name in names][:1]
        # Without this, pyarrow keeps all that it has read of a file in memory.
        scan = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
        read = {"columns": columns, "batch_size": ROWS_AT_ONCE, "fragment_scan_options": scan}
        return Parquet(**options, **read).as_streaming_dataset("train") if columns else None, columns

    try:
        dataset, columns = _ask(files[0], open_tars if _is_tar(files[0]) else open_parquet)
    except Exception as error:
        raise ConfigError(f"{files[0]} cannot be read as a shard: {_cause(error)} (--data.source)") from error
    needed = "a parquet file has them in a column `image`, a tar as files with the ending of an image (--data.source)"
    require(len(columns) > 0, f"{files[0]} holds no images: {needed}")
    images = dataset.decode(False).select_columns(columns)
    assert images.num_shards == len(files)
    return [functools.partial(_read, images, columns, index) for index in range(len(files))]


def _read(images: datasets.IterableDataset, columns: Sequence[str], index: int, start: int) -> Iterator[Encoded]:
    """The images of a file from number `start` on; no bytes where a row has none."""
    for example in images.shard(images.num_shards, index).skip(start):
        image = next((example[column] for column in columns if example[column] is not None), b"")
        yield image["bytes"] or image["path"] or b"" if isinstance(image, dict) else image


def _count_all(files: Sequence[str], folder: Path) -> dict[str, tuple[int, int]]:
    """Bytes and images of each file. The cache keeps the counts until a file changes."""
    cache = folder / f"stream-{hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()[:20]}.json"
    try:
        kept = json.loads(cache.read_text())
    except (OSError, ValueError):
        kept = {}

    def count(file: str) -> None:
        try:
            state = _ask(file, lambda: _state(file))
            if kept.get(file, [None])[0] != state:
                kept[file] = [state, _ask(file, lambda: _count(file))]
        except Exception as error:
            raise ConfigError(f"{file} cannot be counted: {_cause(error)} (--data.source)") from error

    try:
        # Unlike ThreadPoolExecutor, this pool does not wait for its threads if a signal or an error ends it.
        with ThreadPool(COUNTED_AT_ONCE) as pool:
            list(Progress(pool.imap(count, files), "counting images", len(files), unit="shard"))
    finally:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(cache, dict(kept), shared=True)  # a copy, because a thread may still count
        except OSError as error:
            raise ConfigError(f"{cache} cannot be written ({error}): choose another (--data.cache_dir)") from error
    return {file: (kept[file][0][0], kept[file][1]) for file in files}


def _state(file: str) -> list[Any]:
    """What changes with a file: its size first, then its time or tag."""
    # As in the datasets library: with the password of ~/.netrc and the proxy of the environment.
    options = {"client_kwargs": {"trust_env": True}} if is_address(file) else {}
    filesystem, path = fsspec.core.url_to_fs(file, **options)
    info = filesystem.info(path)
    return [info["size"], *(str(info.get(key, "")) for key in ("mtime", "ETag", "Last-Modified", "blob_id"))]


def _count(file: str) -> int:
    """Images of a shard: a parquet file says it in its footer, a tar is read to its end."""
    with xopen(file, "rb") as stream:
        if not _is_tar(file):
            return int(pyarrow.parquet.read_metadata(stream).num_rows)
        keys = []
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.issparse():  # a few bytes that claim to be gigabytes
                    raise ValueError(f"its member {member.name} is sparse: pack the images anew, without --sparse")
                # As in the datasets library: only files count, except hidden ones, and neighbours with one key are one.
                if member.isreg() and not os.path.basename(member.name).startswith((".", "__")):
                    keys.append(base_plus_ext(member.name)[0])
        return len(list(itertools.groupby(key for key in keys if key is not None)))


def _ask(file: str, action: Callable[[], Result]) -> Result:
    """Return the result of `action` on a file, retried if a server failed."""

    def useless(error: Exception) -> bool:
        cause = error.__cause__ or error
        return "://" not in file or getattr(cause, "status", None) in REFUSALS or isinstance(cause, FileNotFoundError)

    return _retry(action, useless, time.sleep)


def _retry(action: Callable[[], Result], useless: Callable[[Exception], bool], wait: Callable[[float], Any]) -> Result:
    """Return the result of `action`, retried unless that is useless or `wait` returns True."""
    for pause in PAUSES:
        try:
            return action()
        except Exception as error:  # of the HTTP libraries, the Hub's, pyarrow's, tarfile's
            if useless(error) or wait(pause):
                raise
    return action()


def _is_tar(file: str) -> bool:
    return urlsplit(file).path.endswith(".tar")


def _cause(error: BaseException) -> str:
    """The cause of an error as one line; the datasets library hides it behind its own `Server Disconnected`."""
    error = error.__cause__ or error
    return " ".join(f"{type(error).__name__}: {error}".split())
