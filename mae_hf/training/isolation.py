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
    states, environment, num_threads = [dict(state) for state in shared], dict(os.environ), torch.get_num_threads()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    suppress_errors = torch._dynamo.config.suppress_errors
    for state in shared:
        state.clear()
    if precision is not None:
        os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    try:
        with torch.random.fork_rng(devices):
            yield
    except BaseException as error:
        # a notebook keeps the last traceback, and with its frames the lock of the run and the memory of the model
        raised: BaseException | None = error
        while raised is not None:
            traceback.clear_frames(raised.__traceback__)
            raised = raised.__context__
        raise
    finally:
        for state, before in zip(shared, states, strict=True):
            state.clear()
            state.update(before)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(num_threads)
        torch._dynamo.config.suppress_errors = suppress_errors
        random.setstate(python_state)
        np.random.set_state(numpy_state)
