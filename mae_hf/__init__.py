"""mae_hf: pre-train a Vision Transformer as a masked autoencoder, transfer it, and measure the gain.

The functions are the commands (docs/python.md): `pretrain`, `finetune`, `probe`, `embed`, `predict`, `compare` and
`reconstruct`; `load` opens a model.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["compare", "embed", "finetune", "load", "predict", "pretrain", "probe", "reconstruct"]

if TYPE_CHECKING:
    from mae_hf.api import compare, embed, finetune, load, predict, pretrain, probe, reconstruct


def __getattr__(name: str) -> Any:
    """Import the functions when one is first used: they need torch, which takes seconds."""
    if name in __all__:
        return getattr(importlib.import_module("mae_hf.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
