"""Where a source lies. It needs no library, so that a wrong name is told before the imports that take seconds."""

import re
from pathlib import Path

from mae_hf.errors import require


def check_source(source: str, streaming: bool = False) -> None:
    """Raises ConfigError unless a source is something that can be read, or may be a Hub id.

    Args:
        source: as the user named it.
        streaming: whether its images are streamed from shards.
    """
    path = Path(source).expanduser()
    suffixes = (".parquet", ".tar") if streaming else (".parquet",)
    is_there = path.is_dir() or (path.is_file() and path.suffix in suffixes) or _is_hub_id(source)
    if streaming:
        require(
            is_there or is_address(source),
            f"{source} is no source of shards that exists: name a folder with parquet files or webdataset tars, such a "
            "file, its address (https://..., {000..099} for many) or a Hub id user/name (--data.source)",
        )
        return
    require(
        not is_address(source),
        f"{source} is an address, which can only be streamed: --data.streaming true, or download the files",
    )
    require(
        source == "digits" or is_there,
        f"{source} is neither a folder nor a parquet file that exists: name `digits`, a Hub id user/name, a folder "
        "of parquet files, of images or of STL-10 binaries (--data.source)",
    )


def is_address(source: str) -> bool:
    """Whether a source is on a web server."""
    return source.startswith(("http://", "https://"))


def _is_hub_id(source: str) -> bool:
    """Whether a source that is not there can be meant as `user/name`."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source)) and not source.endswith((".parquet", ".tar"))
