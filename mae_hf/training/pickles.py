"""Check the pickles of a sharded checkpoint before torch opens them, since torch would run any code in them."""

import io
import pathlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata

_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")


class _ShardsUnpickler(pickle.Unpickler):
    """Unpickles the description of shards, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class of this name; raise `UnpicklingError` if a description of shards does not need it."""
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
    """Check every pickle of a checkpoint that torch.distributed.checkpoint opens without `weights_only`.

    These are the descriptions of shards, and all values that are not tensors. A checkpoint without shards has none.

    Raises:
        pickle.UnpicklingError: a pickle contains something else.
    """
    for file in folder.rglob("*.metadata"):
        with file.open("rb") as opened:
            description = _ShardsUnpickler(opened).load()
        kinds = description.state_dict_metadata
        for index, stored in description.storage_data.items():
            if isinstance(kinds.get(index.fqn), metadata.BytesStorageMetadata):
                with (file.parent / stored.relative_path).open("rb") as opened:
                    opened.seek(stored.offset)
                    torch.load(io.BytesIO(opened.read(stored.length)), weights_only=True)
