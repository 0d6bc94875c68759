"""Check the name of a source, without any library: a wrong one is reported before the imports that take seconds."""

import re
from pathlib import Path

from mae_hf.errors import require


def check_source(source: str, streaming: bool = False) -> None:
    """Raise ConfigError unless a source can be read or may be a Hub id.

    Args:
        source: as the user named it.
        streaming: whether its images are streamed from shards.
    """
    path = Path(source).expanduser()
    suffixes = (".parquet", ".tar") if streaming else (".parquet",)
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) and not source.endswith((".parquet", ".tar"))
    exists = path.is_dir() or (path.is_file() and path.suffix in suffixes) or bool(is_hub_id)
    if streaming:
        require(
            exists or is_address(source),
            f"{source} is no source of shards that exists. Name a folder with parquet files or webdataset tars, one "
            "such file, an address (https://..., {000..099} for many files) or a Hub id user/name (--data.source)",
        )
        return
    require(
        not is_address(source),
        f"{source} is an address: only pretrain can stream it (--data.streaming true). For other commands, "
        "download the files",
    )
    require(
        source == "digits" or exists,
        f"{source} is neither a folder nor a parquet file that exists. Name `digits`, a Hub id user/name, or a folder "
        "of parquet files, images or STL-10 binaries (--data.source)",
    )


def is_address(source: str) -> bool:
    """Whether a source is on a web server."""
    return source.startswith(("http://", "https://"))
