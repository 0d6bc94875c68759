"""Check the name of a source, without any library: a wrong one is reported before the imports that take seconds."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mae_hf.errors import ConfigError, require

SHARD_SUFFIXES = (".parquet", ".tar")


def check_source(source: str, streaming: bool = False) -> None:
    """Raise ConfigError unless a source can be read, or streamed from shards, or may be a Hub id."""
    path = Path(source).expanduser()
    suffixes = SHARD_SUFFIXES if streaming else (".parquet",)
    exists = path.is_dir() or (path.is_file() and path.suffix in suffixes) or is_hub_id(source)
    if streaming:
        require(
            exists or is_address(source),
            f"{source} is no source of shards that exists. Name a folder with parquet files or webdataset tars, one "
            "such file, an address (https://..., {000..099} for many files) or a Hub id user/name (--data.source)",
        )
        return
    fix = "only pretrain can stream it (--data.streaming true). For other commands, download the files"
    require(not is_address(source), f"{source} is an address: {fix}")
    require(
        source == "digits" or exists,
        f"{source} is neither a folder nor a parquet file that exists. Name `digits`, a Hub id user/name, or a folder "
        "of parquet files, images or STL-10 binaries (--data.source)",
    )


def are_files(sources: Sequence[str]) -> bool:
    """Return whether the sources are files, such as images, and not one of parquet."""
    return all(Path(source).expanduser().is_file() and not source.endswith(".parquet") for source in sources)


def check_images(sources: Sequence[str], output: str) -> None:
    """Raise ConfigError unless these are image files or one source, and the output is outside of it."""
    if not are_files(sources):
        missing = [source for source in sources if not Path(source).expanduser().is_file()]
        problem = f"{', '.join(missing[:3])} is not a file: name image files, or one folder or source alone"
        require(len(sources) == 1, f"{problem} (--data.source)")
        check_source(sources[0])
    path = Path(output).expanduser().absolute()
    for source in sources:
        place = Path(source).expanduser().absolute()
        is_part = place.exists() and place in (path, *path.parents)
        require(not is_part, f"{output} would be written into the source {source}: choose a file elsewhere (--output)")


def check_output(output: str, flag: str, kind: Literal["file", "folder", "new folder"]) -> None:
    """Raise ConfigError unless a file or folder of this name can be written, which may exist; a new folder if empty."""
    path = (Path(output) if kind == "folder" else Path(output).expanduser()).absolute()
    if kind == "file":
        require(not path.is_dir(), f"{output} is a folder: name a file in it ({flag})")
    elif kind == "folder":
        require(path.is_dir() or not path.exists(), f"{output} is not a folder: choose another {flag}")
    else:
        is_free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        require(is_free, f"{output} exists and is not an empty folder: choose a new folder ({flag})")
    try:
        parents = path.parents if kind == "file" else (path, *path.parents)
        with tempfile.TemporaryFile(dir=next(folder for folder in parents if folder.exists())):
            pass  # permissions do not tell it: /proc grants them, and a disk may be read-only
    except OSError as error:
        raise ConfigError(f"{output} cannot be written ({error.strerror}): choose another folder ({flag})") from None


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a Hub id, user/name, and does not name a file of images."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not name.endswith(SHARD_SUFFIXES)


def is_address(source: str) -> bool:
    """Whether a source is on a web server."""
    return source.startswith(("http://", "https://"))
