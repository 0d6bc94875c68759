"""Small tensors on their way to the device, without waiting for it."""

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """`values` on the device; a GPU copies them when its turn comes, and the host goes on.

    A plain `.to(device)` from ordinary memory makes the host wait until the GPU has worked off all that is queued.

    Args:
        values: any shape and dtype, in the host's memory.
        device: where they are needed.

    Returns:
        The tensor there; on a CPU it shares the memory of `values`.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
