"""The shards of streamed images: parquet files or webdataset tars on this machine, on a server or on the Hub.

If a server fails, the shard is opened again, and read on from the same image.
"""

import contextlib
import hashlib
import itertools
import json
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, TypeVar
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from mae_hf.config.data import DataConfig
from mae_hf.data.cache import cache_folder
from mae_hf.data.decode import ENDINGS
from mae_hf.data.locations import is_address
from mae_hf.data.readers import find_shards
from mae_hf.data.stream.order import Encoded, Stream
from mae_hf.errors import ConfigError, RunError
from mae_hf.files import read_json, write_json
from mae_hf.progress import Progress

PAUSES = (1.0, 5.0, 20.0, 60.0, 60.0)  # seconds between retries of a shard; they start over after each image
PAUSES_AT_START = (1.0, 3.0, 5.0)  # seconds between retries before a run starts, while the user waits
CONNECTING = 10.0  # seconds until a server must accept a connection
SILENCE = 60.0  # seconds without a byte after which a connection counts as lost
REFUSALS = (401, 403, 404, 410)  # statuses for which a retry is useless
COUNTED_AT_ONCE = 16
MAX_BYTES = 2**26  # of an encoded image
ROWS_AT_ONCE = 64  # of a parquet file in memory

Result = TypeVar("Result")


class ShardReader:
    """Reads images of shards, with retries until `stopped` is set. For the next image, a connection is kept."""

    def __init__(self, stream: Stream, stopped: threading.Event) -> None:
        self._stream = stream
        self._stopped = stopped
        self._position = (-1, 0)  # shard, and the image that comes next
        self._images: Iterator[Encoded] = iter(())

    def read(self, rows: NDArray[np.int64]) -> list[Encoded]:
        """The images of `rows` (n,), still encoded; RunError if a shard cannot be read, or has lost images."""
        return [self._read_one(*self._stream.locate(row)) for row in rows.tolist()]

    def _read_one(self, shard: int, at: int) -> Encoded:
        def read() -> Encoded:
            if self._position != (shard, at):
                self._images = read_images(self._stream.files[shard], at)
            self._position = (-1, 0)  # until the image is read
            image = next(self._images)
            self._position = (shard, at + 1)
            return image

        file, num = self._stream.files[shard], self._stream.lengths[shard]
        try:
            return _retry(read, lambda error: isinstance(error, StopIteration), self._stopped.wait, PAUSES)
        except StopIteration:
            fix = "restore the file, or start a new run in another --output_dir"
            raise RunError(f"{file} ends after {at} images, {num} were counted: {fix}") from None
        except Exception as error:
            what = f"{file} cannot be read from image {at} on ({_cause(error)}), after {len(PAUSES)} retries"
            raise RunError(f"{what}: once it can be read, the same command resumes from the last checkpoint") from error


def open_shards(config: DataConfig) -> Stream:
    """The shards of every source, counted; ConfigError if one does not exist, has other files, or cannot be counted."""
    files = [file for source in config.sources for file in find_shards(source, config.revision)]
    counted = _count_all(files, cache_folder(config))
    names = [[Path(urlsplit(file).path).name, *counts] for file, counts in zip(files, counted, strict=True)]
    fingerprint = f"{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}-{config.stream_held_out}"
    lengths = np.array([num for _, num in counted], np.int64)
    return Stream(tuple(files), lengths, config.stream_held_out, fingerprint)


def read_images(file: str, start: int = 0) -> Iterator[Encoded]:
    """The images of a shard from number `start` on, still encoded; no bytes where a row has none."""
    if _is_tar(file):
        for image in itertools.islice(_tar_images(file), start, None):
            yield image.read(MAX_BYTES)
        return
    with _open(file) as stream:
        # Without this, pyarrow keeps all that it has read of a file in memory.
        table = pyarrow.parquet.ParquetFile(stream, pre_buffer=False)
        column = _image_column(table)
        for group in range(table.num_row_groups):
            num = table.metadata.row_group(group).num_rows
            if start < num:
                batches = table.iter_batches(ROWS_AT_ONCE, [group], [column])
                rows = itertools.chain.from_iterable(batch[0].to_pylist() for batch in batches)
                for image in itertools.islice(rows, start, None):
                    yield (image["bytes"] or image["path"] or b"") if isinstance(image, dict) else image or b""
            start = max(0, start - num)


def _tar_images(file: str) -> Iterator[IO[bytes]]:
    """The images of a webdataset tar: the first of each sample, open until the next one is asked for."""

    def images(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # else it would keep all of them
            if member.issparse():  # a few bytes that claim to be gigabytes
                raise ValueError(f"its member {member.name} is sparse: pack the images anew, without --sparse")
            name = PurePosixPath(member.name)
            if member.isreg() and name.name.lower().endswith(ENDINGS) and not name.name.startswith((".", "__")):
                yield member

    # A server sends a tar from its first to its last byte; on a disk, all that is left out is skipped.
    mode: Literal["r|", "r:"] = "r|" if "://" in file else "r:"
    with _open(file) as stream, tarfile.open(fileobj=stream, mode=mode) as tar:
        for _, sample in itertools.groupby(images(tar), key=lambda member: re.sub(r"\.[^/]*$", "", member.name)):
            opened = tar.extractfile(next(sample))
            assert opened is not None  # a regular file
            yield opened


def _count_all(files: Sequence[str], folder: Path) -> list[tuple[int, int]]:
    """Bytes and images of each file. The cache keeps the count of each state of a file."""
    cache = folder / f"stream-{hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()[:20]}.json"
    kept: dict[str, int] = {}
    with contextlib.suppress(ConfigError):  # there is none yet, or it is damaged
        kept |= read_json(cache, dict[str, int])

    def count(file: str) -> tuple[int, int]:
        deadline = time.monotonic() + CONNECTING

        def useless(error: Exception) -> bool:
            cause = error.__cause__ or error
            is_refused = getattr(cause, "status", None) in REFUSALS or isinstance(cause, FileNotFoundError)
            return "://" not in file or is_refused or time.monotonic() > deadline

        try:
            return _retry(lambda: _count(file, kept), useless, time.sleep, PAUSES_AT_START)
        except Exception as error:
            raise ConfigError(f"{file} cannot be counted: {_cause(error)} (--data.source)") from error

    try:
        # Unlike ThreadPoolExecutor, this pool does not wait for its threads if a signal or an error ends it.
        with ThreadPool(COUNTED_AT_ONCE) as pool:
            return list(Progress(pool.imap(count, files), "counting images", len(files), unit="shard"))
    finally:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(cache, dict(kept), shared=True)  # a copy, because a thread may still count
        except OSError as error:
            raise ConfigError(f"{cache} cannot be written ({error}): choose another (--data.cache_dir)") from error


def _count(file: str, kept: dict[str, int]) -> tuple[int, int]:
    """Bytes and images of a file. `kept` has counts by the file's name and what changes with it: size, time or tag.

    A parquet file says its number of images in its footer, a tar is read to its end.
    """
    filesystem, path = _filesystem(file)
    info = filesystem.info(path)
    key = " ".join([file, *(str(info.get(key, "")) for key in ("size", "mtime", "ETag", "Last-Modified", "blob_id"))])
    if key not in kept and _is_tar(file):
        kept[key] = sum(1 for _ in _tar_images(file))
    elif key not in kept:
        with _open(file) as stream:
            table = pyarrow.parquet.ParquetFile(stream)
            _image_column(table)
            kept[key] = table.metadata.num_rows
    if kept[key] == 0 and _is_tar(file):
        raise ValueError("it holds no images, which are files with the ending of an image")
    return info["size"], kept[key]


def _image_column(table: pyarrow.parquet.ParquetFile) -> str:
    for name in ("image", "img"):
        if name in table.schema_arrow.names:
            return name
    raise ValueError("it holds no images, which are in a column `image`")


def _open(file: str) -> Any:
    """An open file, on this machine, on a server or on the Hub. A tar of a server is one answer of it."""
    filesystem, path = _filesystem(file)
    return filesystem.open(path, block_size=0) if _is_tar(file) and "://" in file else filesystem.open(path)


def _filesystem(file: str) -> tuple[Any, str]:
    if not is_address(file):
        return fsspec.core.url_to_fs(file)
    from aiohttp import ClientTimeout  # it takes time to import

    # aiohttp's own limit of five minutes per file would cut off a tar that is read at the speed of training.
    timeout = ClientTimeout(total=None, sock_connect=CONNECTING, sock_read=SILENCE)
    # `trust_env` takes the password of ~/.netrc and the proxy of the environment
    return fsspec.core.url_to_fs(file, client_kwargs={"trust_env": True, "timeout": timeout})


def _retry(
    action: Callable[[], Result],
    useless: Callable[[Exception], bool],
    wait: Callable[[float], Any],
    pauses: Sequence[float],
) -> Result:
    """Return the result of `action`, retried after `pauses`, unless that is useless or `wait` returns True."""
    for pause in pauses:
        try:
            return action()
        except Exception as error:  # of the HTTP libraries, the Hub's, pyarrow's, tarfile's
            if useless(error) or wait(pause):
                raise
    return action()


def _is_tar(file: str) -> bool:
    return urlsplit(file).path.endswith(".tar")


def _cause(error: BaseException) -> str:
    """The cause of an error as one line."""
    error = error.__cause__ or error
    return " ".join(f"{type(error).__name__}: {error}".split())
