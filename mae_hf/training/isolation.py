"""A recipe inside somebody else's process, such as a notebook: it starts clean, and leaves the process as it was."""

import contextlib
import os
import random
import traceback
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

Precision = Literal["no", "bf16", "fp16"]


@contextlib.contextmanager
def isolated(precision: Precision | None) -> Iterator[None]:
    """Run the body as in a new process with this mixed precision; by default, the launcher's, or `no`.

    Accelerate's global state, the global random generators, the environment variables and torch's threads are
    afterwards as before. Only glibc keeps the settings of `use_cpu_well`.
    """
    shared = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before = [(state, dict(state)) for state in (*shared, os.environ)]
    python_state, numpy_state, num_threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    dynamo = torch._dynamo.config
    for state in shared:
        state.clear()
    if precision is not None:
        os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    try:
        with torch.random.fork_rng(devices), dynamo.patch(suppress_errors=dynamo.suppress_errors):
            yield
    except BaseException as error:
        # a notebook keeps the last traceback, and with its frames the lock of the run and the memory of the model
        raised: BaseException | None = error
        while raised is not None:
            traceback.clear_frames(raised.__traceback__)
            raised = raised.__context__
        raise
    finally:
        for state, content in before:
            state.clear()
            state.update(content)
        torch.set_num_threads(num_threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
