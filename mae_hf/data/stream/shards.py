"""The shards of streamed images: parquet files or webdataset tars on this machine, on a server or on the Hub.

The datasets library streams them. If a server fails, the library retries 20 times, every 5 seconds. After that we open
the shard again and skip to the same image, because a tar cannot be read on after its connection broke.
"""

import functools
import glob
import hashlib
import io
import itertools
import json
import os
import re
import secrets
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from huggingface_hub import HfApi
from numpy.typing import NDArray
from tqdm import tqdm

from mae_hf.config.data import DataConfig
from mae_hf.data.cache import cache_folder
from mae_hf.data.locations import check_source, is_address
from mae_hf.data.readers import files_by_card, files_by_split
from mae_hf.data.splits import names_by_role
from mae_hf.errors import ConfigError, RunError, require

PAUSES = (1.0, 5.0, 20.0, 60.0)  # seconds between retries of a shard; they start over after each image
SILENCE = 60.0  # seconds without a byte after which a connection counts as lost
REFUSALS = (401, 403, 404, 410)  # statuses for which a retry is useless
COUNTED_AT_ONCE = 16
MAX_BYTES = 2**26  # of an encoded image
ROWS_AT_ONCE = 64  # of a parquet file in memory
SUFFIXES = (".parquet", ".tar")

Encoded = bytes | str
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


@dataclass(frozen=True, eq=False)
class Stream:
    """The shards to pre-train on: the files of one or several sources, in the order of their names."""

    files: tuple[str, ...]  # (K,), paths or addresses
    lengths: NDArray[np.int64]  # (K,), images of each
    num_held_out: int  # images that are held out, the first of the stream
    fingerprint: str  # of the names, sizes and lengths of the files, not of their paths, and of `num_held_out`
    openers: tuple[Callable[[int], Iterator[Encoded]], ...]  # each reads the images of a file from a given one on

    def __len__(self) -> int:
        return int(self.lengths.sum()) - self.num_held_out

    def where(self, row: int) -> str:
        """The name of an image in a message, from its number over all shards."""
        ends = np.cumsum(self.lengths)
        shard = int(np.searchsorted(ends, row, side="right"))
        return f"image {row - int(ends[shard] - self.lengths[shard])} of {self.files[shard]}"


class ShardReader:
    """Reads pieces of shards, with retries until `stopped` is set.

    A piece that follows the last one is read from the same connection.
    """

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
        images: list[Encoded] = []
        pauses = iter(PAUSES)
        while len(images) < num:
            at = first + len(images)
            try:
                if self._position != (shard, at):
                    self._images = self._stream.openers[shard](at)
                images.append(next(self._images))
                self._position = (shard, at + 1)
                pauses = iter(PAUSES)
            except StopIteration:
                raise RunError(
                    f"{self._stream.files[shard]} ends after {at} images, {self._stream.lengths[shard]} were counted: "
                    "restore the file, or start a new run in another --output_dir"
                ) from None
            except Exception as error:  # of the HTTP libraries, the Hub's, pyarrow's, tarfile's
                self._position = (-1, 0)
                pause = next(pauses, None)
                if pause is None or self._stopped.wait(pause):
                    raise RunError(
                        f"{self._stream.files[shard]} cannot be read from image {at} on ({_cause(error)}), after "
                        f"{len(PAUSES)} retries: once it can be read, the same command resumes from the last checkpoint"
                    ) from error
        return images


def open_shards(config: DataConfig) -> Stream:
    """The shards of every source, counted; nothing is decoded.

    Raises:
        ConfigError: a source does not exist, has other files, or cannot be counted.
    """
    found = {source: _find_files(source, config.revision) for source in config.sources}
    files = [file for source in config.sources for file in found[source]]
    counted = _count_all(files, cache_folder(config))
    names = [[Path(urlsplit(file).path).name, *counted[file]] for file in files]
    fingerprint = f"{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}-{config.stream_held_out}"
    lengths = np.array([counted[file][1] for file in files], np.int64)
    openers = [opener for source in config.sources for opener in _openers(source, found[source])]
    return Stream(tuple(files), lengths, config.stream_held_out, fingerprint, tuple(openers))


def _find_files(source: str, revision: str | None) -> list[str]:
    """The files of the split to pre-train on: `unlabeled`, or else `train`."""
    check_source(source, streaming=True)
    path = Path(source).expanduser()
    groups: dict[str, list[str]] = {}
    if is_address(source):
        groups = {"unlabeled": _expand(source)}
    elif path.is_file():
        groups = {"unlabeled": [str(path)]}
    elif path.is_dir():
        found = [file for suffix in SUFFIXES for file in sorted(path.rglob(f"*{suffix}"))]
        listed = {name: [f for p in paths for f in sorted(glob.glob(p))] for name, paths in files_by_card(path).items()}
        groups = listed or files_by_split(found, path)
    else:
        try:  # the datasets library itself would retry for half a minute
            HfApi().dataset_info(source, revision=revision, timeout=10)
            listed = datasets.load_dataset_builder(source, revision=revision).config.data_files or {}
            groups = {str(name): list(files) for name, files in listed.items()}
        except Exception as error:  # of the HTTP library, the Hub, the datasets library
            raise ConfigError(
                f"{source} does not exist here and cannot be read from the Hub ({type(error).__name__}): check the "
                "name and the revision (--data.source, --data.revision)"
            ) from error
    names = names_by_role(source, groups)
    name = names.get("unlabeled") or names.get("train")
    files = list(groups[name]) if name else []
    suffixes = {Path(urlsplit(file).path).suffix for file in files}
    require(
        len(suffixes) == 1 and suffixes <= set(SUFFIXES),
        f"{source} has {f'files of {sorted(suffixes)}' if files else 'no unlabeled or train split'}: streaming reads "
        "parquet files or webdataset tars, one kind per source; other sources work without --data.streaming "
        "(--data.source)",
    )
    return files


def _expand(address: str) -> list[str]:
    """`https://host/{00..12}.tar` as its 13 addresses."""
    before, *braces = re.split(r"\{(\d+)\.\.(\d+)\}", address, maxsplit=1)
    if not braces:
        return [address]
    start, stop, after = braces
    numbers = [str(number).zfill(len(start)) for number in range(int(start), int(stop) + 1)]
    return [before + number + rest for number in numbers for rest in _expand(after)]


def _openers(source: str, files: Sequence[str]) -> list[Callable[[int], Iterator[Encoded]]]:
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
        dataset, columns = _patiently(files[0], open_tars if _is_tar(files[0]) else open_parquet)
    except Exception as error:
        raise ConfigError(f"{files[0]} cannot be read as a shard: {_cause(error)} (--data.source)") from error
    require(
        len(columns) > 0,
        f"{files[0]} of {source} holds no images: a parquet file has them in a column `image`, a tar as files with the "
        "ending of an image (--data.source)",
    )
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

    def count(file: str) -> list[Any]:
        state = _patiently(file, lambda: _state(file))
        return kept[file] if kept.get(file, [None])[0] == state else [state, _patiently(file, lambda: _count(file))]

    try:
        # Unlike ThreadPoolExecutor, this pool does not wait for its threads if a signal or an error ends it.
        with ThreadPool(COUNTED_AT_ONCE) as pool:
            counts = pool.imap(count, files)
            for file in tqdm(files, desc="counting images", unit="shard", disable=None):
                try:
                    kept[file] = next(counts)
                except Exception as error:
                    raise ConfigError(f"{file} cannot be counted: {_cause(error)} (--data.source)") from error
    finally:
        _write(cache, {file: kept[file] for file in files if file in kept})
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
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            # As in the datasets library: hidden files do not count, and neighbours with one key are one example.
            names = (member.name for member in tar if _is_whole(member))
            keys = (base_plus_ext(name)[0] for name in names if not os.path.basename(name).startswith((".", "__")))
            return sum(1 for _ in itertools.groupby(key for key in keys if key is not None))


def _is_whole(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file; the datasets library ignores links, devices and folders, too."""
    if member.issparse():  # a few bytes that claim to be gigabytes
        raise ValueError(f"its member {member.name} is a sparse file: pack the images anew, without --sparse")
    return member.isreg()


def _patiently(file: str, action: Callable[[], Result]) -> Result:
    """Return the result of `action`, retried if a server failed."""
    for pause in PAUSES:
        try:
            return action()
        except Exception as error:  # of the HTTP libraries and the Hub's
            cause = error.__cause__ or error
            if "://" not in file or getattr(cause, "status", None) in REFUSALS or isinstance(cause, FileNotFoundError):
                raise
            time.sleep(pause)
    return action()


def _is_tar(file: str) -> bool:
    return urlsplit(file).path.endswith(".tar")


def _write(cache: Path, content: dict[str, Any]) -> None:
    temporary = cache.with_suffix(f".{secrets.token_hex(8)}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content))
        os.replace(temporary, cache)
    except OSError as error:
        raise ConfigError(f"{cache} cannot be written ({error}): choose another folder (--data.cache_dir)") from error


def _cause(error: BaseException) -> str:
    """The cause of an error as one line; the datasets library hides it behind its own `Server Disconnected`."""
    error = error.__cause__ or error
    return " ".join(f"{type(error).__name__}: {error}".split())
