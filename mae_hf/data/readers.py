"""The splits of parquet files, tables of images and Hub datasets by role, and the shards that can be streamed."""

import glob
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import datasets
import pyarrow.dataset
from datasets.data_files import sanitize_patterns
from huggingface_hub import HfApi, metadata_load
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from mae_hf.data.hub_errors import explain_hub_error
from mae_hf.data.locations import SHARD_SUFFIXES, check_source, is_address
from mae_hf.data.splits import names_by_role, role_of
from mae_hf.errors import ConfigError, require


def read_datasets(source: str, revision: str | None) -> dict[str, datasets.Dataset]:
    """The splits by role of a parquet file, a folder of them or of images with tables of labels, or a Hub dataset.

    ConfigError if the source does not exist or cannot be read, or the names of its splits are not clear.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".parquet":
        return _read_parquet(source, _files_by_split([path]))
    if path.is_dir() and any(path.rglob("*.parquet")):
        return _read_parquet(source, _files_by_card(path) or _files_by_split(sorted(path.rglob("*.parquet")), path))
    if path.is_dir():
        return _read_tables(source, path)
    return _read_hub(source, revision)


def find_shards(source: str, revision: str | None) -> list[str]:
    """The paths or addresses of the shards to pre-train on: the files of the split `unlabeled`, or else of `train`.

    ConfigError if the source does not exist, has no such split, or has files of other kinds.
    """
    check_source(source, streaming=True)
    path = Path(source).expanduser()
    if is_address(source):
        groups = {"unlabeled": expand_address(source)}
    elif path.is_file():
        groups = {"unlabeled": [str(path)]}
    elif path.is_dir():
        listed = _files_by_card(path).items()
        groups = {name: [file for each in patterns for file in sorted(glob.glob(each))] for name, patterns in listed}
        shards = sorted(file for file in path.rglob("*") if file.suffix in SHARD_SUFFIXES)
        groups = groups or _files_by_split(shards, path)
    else:
        _ask_hub(source, revision)
        builder = _load(source, datasets.load_dataset_builder, source, revision=revision)
        groups = {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}
    names = names_by_role(source, groups)
    files = groups.get(names.get("unlabeled") or names.get("train") or "", [])
    suffixes = sorted({Path(urlsplit(file).path).suffix for file in files})
    if len(suffixes) != 1 or suffixes[0] not in SHARD_SUFFIXES:
        found = f"files of {suffixes}" if files else "no unlabeled or train split"
        fix = "streaming reads parquet files or webdataset tars, one kind per source"
        raise ConfigError(f"{source} has {found}: {fix}; other sources work without --data.streaming (--data.source)")
    return files


def expand_address(address: str) -> list[str]:
    """`https://host/{00..12}.tar` as its 13 addresses."""
    before, *braces = re.split(r"\{(\d+)\.\.(\d+)\}", address, maxsplit=1)
    if not braces:
        return [address]
    start, stop, after = braces
    numbers = [str(number).zfill(len(start)) for number in range(int(start), int(stop) + 1)]
    return [before + number + rest for number in numbers for rest in expand_address(after)]


def _files_by_card(folder: Path) -> dict[str, list[str]]:
    """The files of each split as the folder's README.md lists them, by name; empty if it lists none.

    `load_dataset(folder)` would serve its cached copy even after such a file was replaced.
    """
    card = folder / "README.md"
    try:
        configs = ((metadata_load(card) if card.is_file() else None) or {}).get("configs") or []
        chosen = [each for each in configs if each.get("default") or each["config_name"] == "default"] or configs
        names = [str(each["config_name"]) for each in chosen]
        listed = [item for each in chosen for item in sanitize_patterns(each.get("data_files", {})).items()]
        groups = {str(name): [str(pattern) for pattern in patterns] for name, patterns in listed}
    except Exception as error:  # PyYAML's own, the datasets library's, and any other for fields of wrong types
        raise ConfigError(f"{card} has metadata that cannot be read ({error}): correct or remove it") from None
    fix = "name the folder or file of one config (--data.source)"
    require(len(names) <= 1, f"{card} lists the configs {', '.join(names)}: {fix}")
    files = [file for patterns in groups.values() for file in patterns]
    outside = [file for file in files if Path(file).is_absolute() or ".." in Path(file).parts or "://" in file]
    require(not outside, f"{card} names files outside of its folder, {', '.join(outside[:3])}: remove them")
    return {name: [str(folder / file) for file in patterns] for name, patterns in groups.items()}


def _files_by_split(files: list[Path], folder: Path | None = None) -> dict[str, list[str]]:
    """The files of each split by name, which is the first word of the file's name or of a folder above it."""
    groups: dict[str, list[str]] = {}
    for file in files:
        parts = file.relative_to(folder).parts if folder else (file.name,)
        words = [re.split(r"[-_.]", part)[0] for part in reversed(parts)]
        name = next((word for word in words if role_of(word)), words[0])
        groups.setdefault(name, []).append(str(file))
    if not any(role_of(name) for name in groups):  # files without split names are one split
        groups = {"train": [str(file) for file in files]}
    return groups


def _read_parquet(source: str, files: dict[str, list[str]]) -> dict[str, datasets.Dataset]:
    # Without this, pyarrow keeps all that it has read of a file in memory.
    scan = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
    found = {}
    for role, name in names_by_role(source, files).items():  # one call each, because splits may differ in their columns
        options = {"data_files": {"train": files[name]}, "fragment_scan_options": scan}
        found[role] = _load_local(f"{name} of {source}", "parquet", **options)
    return found


def _read_tables(source: str, folder: Path) -> dict[str, datasets.Dataset]:
    """A folder of images with tables of their labels (`metadata.csv`), as the datasets library reads it."""
    splits = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir() and role_of(entry.name)]
    found = {}
    # One call per split, because the datasets library takes class folders such as test_tube for splits.
    for role, name in (names_by_role(source, splits) if splits else {"train": ""}).items():
        files = {"data_dir": str(folder / name), "data_files": {"train": "**"}}
        drop = True if role == "unlabeled" else None
        found[role] = _load_local(f"{role} of {source}", "imagefolder", drop_labels=drop, **files)
    return found


def _read_hub(source: str, revision: str | None) -> dict[str, datasets.Dataset]:
    is_downloaded = (Path(datasets.config.HF_DATASETS_CACHE) / source.replace("/", "___")).is_dir()
    _ask_hub(source, revision, is_downloaded)
    loaded = _load(source, datasets.load_dataset, source, revision=revision)
    found = {str(name): split for name, split in loaded.items()}
    # Without a connection the datasets library takes the copy that it used last, of any revision.
    commits = {Path(file["filename"]).parent.name for split in found.values() for file in split.cache_files}
    pinned = revision if re.fullmatch("[0-9a-f]{7,40}", revision or "") else None
    if pinned and not all(commit.startswith(pinned) for commit in commits):
        last = f"{source} at revision {revision} is not the copy that was downloaded last ({', '.join(commits)})"
        fix = "connect to a network, or name that commit (--data.revision)"
        raise ConfigError(f"{last}, and the Hub does not answer: {fix}")
    return {role: found[name] for role, name in names_by_role(source, found).items()}


def _ask_hub(source: str, revision: str | None, is_downloaded: bool = False) -> None:
    """Raise ConfigError unless the Hub has a dataset, or does not answer and the dataset was downloaded before."""
    try:  # the datasets library itself would retry for half a minute
        HfApi().dataset_info(source, revision=revision, timeout=10)
    except Exception as error:  # of the HTTP library, the Hub or the offline mode
        if is_downloaded and not isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
            return
        where = f"{source} at revision {revision}" if revision else source
        cause, fix = explain_hub_error(error, f"datasets/{source}") or (type(error).__name__, "check the name")
        problem = f"{where} is not a folder here and cannot be read from the Hub ({cause}): {fix}"
        fix = "then run the same command again; without a network try --config digits (--data.source)"
        raise ConfigError(f"{problem}, {fix}") from error


def _load_local(source: str, *args: Any, **options: Any) -> datasets.Dataset:
    """Load a split of local files, without the library's bars, which call that a download."""
    were_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return _load(source, datasets.load_dataset, *args, split="train", **options)
    finally:
        if were_shown:
            datasets.enable_progress_bars()


def _load(source: str, load: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of the datasets library, whose many exceptions become one line."""
    try:
        return load(*args, **options)
    except Exception as error:  # ValueError, OSError, pyarrow's, DatasetGenerationError, ...
        if answer := explain_hub_error(error, f"datasets/{source}"):
            problem = f"{source} cannot be read from the Hub ({answer[0]}): {answer[1]}"
            raise ConfigError(f"{problem}, then run the same command again (--data.source)") from error
        cause = error.__cause__ or error
        line = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if "corresponds to no data" in line or "BatchSize must be greater than 0" in line:
            line = "it is empty"  # datasets says it in other words, and pyarrow for a file without a row
        raise ConfigError(f"{source} cannot be read as a dataset: {line} (--data.source)") from error
