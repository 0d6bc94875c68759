"""What the datasets library can read: parquet files, folders of images and Hub datasets, as splits by name."""

import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow.dataset
from datasets.data_files import sanitize_patterns
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import HfApi, metadata_load
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from mae_hf.errors import ConfigError, require

ROLES = {
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


def read_datasets(source: str, revision: str | None) -> dict[str, datasets.Dataset]:
    """The splits of a source that the datasets library reads, by the names they have there.

    Args:
        source: parquet file, folder of parquet files or of images, or Hub id; `check_source` has let it pass.
        revision: branch, tag or commit of a Hub dataset.

    Raises:
        ConfigError: the source is not there or cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".parquet":
        return _read_parquet(source, files_by_split([path]))
    if path.is_dir() and any(path.rglob("*.parquet")):
        return _read_parquet(source, files_by_card(path) or files_by_split(sorted(path.rglob("*.parquet")), path))
    if path.is_dir():
        return _read_image_folder(source, path)
    return _read_hub(source, revision)


def files_by_card(folder: Path) -> dict[str, list[str]]:
    """The files of each split as the folder's README.md lists them, none if it does not.

    Read here, because `load_dataset(folder)` goes on serving its cached copy when such a file is replaced.
    """
    card = folder / "README.md"
    try:
        configs = ((metadata_load(card) if card.is_file() else None) or {}).get("configs") or []
        default = [config for config in configs if config.get("default") or config["config_name"] == "default"]
    except Exception as error:  # PyYAML's, and what comes of fields of other kinds
        raise ConfigError(f"{card} has metadata that cannot be read ({error}): mend or remove them") from None
    default = default or configs
    require(
        len(default) <= 1,
        f"{card} lists the configs {', '.join(config['config_name'] for config in default)}: name the folder or the "
        "file of one (--data.source)",
    )
    if not default or "data_files" not in default[0]:
        return {}
    try:
        patterns = sanitize_patterns(default[0]["data_files"])
    except Exception as error:  # the datasets library's, and what comes of fields of other kinds
        raise ConfigError(f"{card} has data_files that cannot be read ({error}): mend or remove them") from None
    strange = [str(pattern) for paths in patterns.values() for pattern in paths if not _is_inside(str(pattern))]
    require(not strange, f"{card} names files outside of its folder, {', '.join(strange[:3])}: leave them out")
    return {str(name): [str(folder / pattern) for pattern in paths] for name, paths in patterns.items()}


def _is_inside(pattern: str) -> bool:
    """Whether a path in a card, which may be a stranger's, stays in the card's folder and on this machine."""
    return not Path(pattern).is_absolute() and ".." not in Path(pattern).parts and "://" not in pattern


def files_by_split(files: list[Path], folder: Path | None = None) -> dict[str, list[str]]:
    """The files of each split, by the split's name at the start of the file's name or of a folder's above it."""
    groups: dict[str, list[str]] = {}
    for file in files:
        parts = file.relative_to(folder).parts if folder else (file.name,)
        words = [re.split(r"[-_.]", part)[0] for part in reversed(parts)]
        name = next((word for word in words if word in ROLES), words[0])
        groups.setdefault(name, []).append(str(file))
    if not any(name in ROLES for name in groups):  # files without split names are one split
        groups = {"train": [str(file) for file in files]}
    return groups


def _read_parquet(source: str, files: dict[str, list[str]]) -> dict[str, datasets.Dataset]:
    # otherwise pyarrow holds all that it has read of a file until its end
    scan = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
    # each split by itself, since they may differ in columns
    return {
        name: _load(
            f"{name} of {source}", "parquet", data_files={"train": paths}, split="train", fragment_scan_options=scan
        )
        for name, paths in files.items()
    }


def _read_image_folder(source: str, folder: Path) -> dict[str, datasets.Dataset]:
    suffixes = set(ImageFolder.EXTENSIONS)
    require(
        any(file.suffix.lower() in suffixes for file in folder.rglob("*")),
        f"{source} holds no images, parquet files or STL-10 binaries: name the folder that does (--data.source)",
    )
    subfolders = {entry.name: entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    if not any(name in ROLES for name in subfolders):
        subfolders = {"train": folder}
    # each split by itself: the datasets library takes class folders such as test_tube for splits
    return {
        name: _load(
            f"{name} of {source}",
            "imagefolder",
            data_dir=str(subfolder),
            data_files={"train": "**"},
            split="train",
            drop_labels=True if ROLES.get(name) == "unlabeled" else None,
        )
        for name, subfolder in subfolders.items()
        if name in ROLES or any(file.suffix.lower() in suffixes for file in subfolder.rglob("*"))
    }


def _read_hub(source: str, revision: str | None) -> dict[str, datasets.Dataset]:
    where = f"{source} at revision {revision}" if revision else source
    try:  # without this question the datasets library tries for half a minute before it says so
        HfApi().dataset_info(source, revision=revision, timeout=10)
    except Exception as error:  # of the HTTP library, the Hub or the offline mode
        answered = isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError))
        if answered or not (Path(datasets.config.HF_DATASETS_CACHE) / source.replace("/", "___")).is_dir():
            raise ConfigError(
                f"{where} is not a folder here and cannot be read from the Hub ({type(error).__name__}): check the "
                "name, the download needs a network; without one try --config configs/pretrain/digits.yaml "
                "(--data.source)"
            ) from error
    found = dict(_load(source, source, revision=revision))
    # without a connection the datasets library takes the copy it used last, whatever revision that is
    commits = {Path(file["filename"]).parent.name for split in found.values() for file in split.cache_files}
    require(
        not re.fullmatch("[0-9a-f]{7,40}", revision or "")
        or all(commit.startswith(revision or "") for commit in commits),
        f"{where} is not what was downloaded last ({', '.join(commits)}) and the Hub does not answer: connect to a "
        "network, or name that commit (--data.revision)",
    )
    return found


def _load(source: str, path: str, **options: Any) -> Any:
    """`datasets.load_dataset`, with its many exceptions as one line."""
    try:
        return datasets.load_dataset(path, **options)
    except Exception as error:  # ValueError, OSError, pyarrow's, DatasetGenerationError, ...
        cause = error.__cause__ or error
        line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if "corresponds to no data" in line or "BatchSize must be greater than 0" in line:
            line = "it is empty"  # in the words of datasets, or of pyarrow for a file without a row
        raise ConfigError(f"{source} cannot be read as a dataset: {line} (--data.source)") from error
