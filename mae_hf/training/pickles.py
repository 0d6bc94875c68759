"""The pickles of a checkpoint in shards: looked at before torch opens them, since it would run the code in them."""

import io
import pathlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata

_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")


class _OfShards(pickle.Unpickler):
    """Makes what describes shards, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of this name; raises `UnpicklingError` where it has no part in a description of shards."""
        if module == metadata.__name__ and getattr(vars(metadata).get(name), "__module__", "") == module:
            return vars(metadata)[name]
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return getattr(pathlib, name)
        if module == "torch" and (name == "Size" or isinstance(vars(torch).get(name), torch.dtype)):
            return vars(torch)[name]
        if (module, name) in ((filesystem.__name__, "_StorageInfo"), ("torch.serialization", "_get_layout")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no part in a description of shards")


def check_shards(folder: Path) -> None:
    """Looks through what torch.distributed.checkpoint opens with all rights: descriptions, and values but tensors.

    Args:
        folder: a checkpoint; one without shards is left to who opens it.

    Raises:
        pickle.UnpicklingError: something else is in one of them.
    """
    for file in folder.rglob("*.metadata"):
        with file.open("rb") as opened:
            description = _OfShards(opened).load()
        kinds = description.state_dict_metadata
        for index, place in description.storage_data.items():
            if isinstance(kinds.get(index.fqn), metadata.BytesStorageMetadata):
                with (file.parent / place.relative_path).open("rb") as opened:
                    opened.seek(place.offset)
                    torch.load(io.BytesIO(opened.read(place.length)), weights_only=True)
