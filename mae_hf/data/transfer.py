"""Copy small tensors to the device without waiting for it."""

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copy values to the device. With a GPU, the copy is queued and the host continues.

    A plain `.to(device)` from ordinary memory would make the host wait until the GPU has finished its queue. On a CPU,
    the tensor shares the memory of `values`.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
