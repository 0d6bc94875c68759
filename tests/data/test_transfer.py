"""Values do not change on their way to the device, and the host does not wait for a GPU."""

import numpy as np
import pytest
import torch

from mae_hf.data.transfer import to_device


@pytest.mark.parametrize("values", [np.arange(6, dtype=np.int64).reshape(2, 3), torch.arange(6).reshape(2, 3)])
def test_arrays_and_tensors_keep_shape_dtype_and_values(values):
    tensor = to_device(values, torch.device("cpu"))
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_does_not_wait_for_a_gpu():
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensor = to_device(np.arange(6), torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tensor.tolist() == list(range(6))
