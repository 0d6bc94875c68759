"""Where a source lies. It needs no library, so that a wrong name is told before the imports that take seconds."""

import re
from pathlib import Path

from mae_hf.config import require


def check_source(source: str) -> None:
    """Raises ConfigError unless a source is something that can be read, or may be a Hub id."""
    path = Path(source).expanduser()
    require(
        source == "digits" or path.is_dir() or (path.is_file() and path.suffix == ".parquet") or _is_hub_id(source),
        f"{source} is neither a folder nor a parquet file that exists: name `digits`, a Hub id user/name, a folder "
        "of parquet files, of images or of STL-10 binaries (--data.source)",
    )


def _is_hub_id(source: str) -> bool:
    """Whether a source that is not there can be meant as `user/name`."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source)) and not source.endswith(".parquet")
