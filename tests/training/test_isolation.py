"""What a recipe inside another process may not change there."""

import logging
import os
import random
import warnings
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch._dynamo  # now, because it changes the environment when it is first imported
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from mae_hf.training.isolation import isolated


class Held:
    """Something that a failed recipe still holds."""


def state() -> dict[str, object]:
    """What a caller could notice."""
    return {
        "environment": dict(os.environ),
        "random": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "suppress_errors": torch._dynamo.config.suppress_errors,
        "dtype": torch.get_default_dtype(),
        "log level": logging.getLogger().level,
        "log handlers": list(logging.getLogger().handlers),
        "warnings": list(warnings.filters),
    }


def disturb(divisor: int = 1) -> None:
    Accelerator(cpu=True, gradient_accumulation_steps=3)
    set_seed(7)
    random.random(), np.random.random(), torch.rand(1)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch._dynamo.config.suppress_errors = True
    os.environ["MAE_HF_TEST"] = "1"
    os.environ.pop("HOME", None)
    _ = 1 / divisor


def test_the_process_is_afterwards_as_before():
    before = state()
    with isolated("no"):
        disturb()
        assert state() != before
    after = state()
    assert [key for key in before if before[key] != after[key]] == []


def test_it_is_also_as_before_after_an_error():
    before = state()
    with pytest.raises(ZeroDivisionError), isolated("no"):
        disturb(0)
    assert state() == before


def test_precision_can_differ_between_calls_and_an_accelerator_outside_keeps_its_own():
    AcceleratorState._reset_state(reset_partial_state=True)
    own = Accelerator(cpu=True, gradient_accumulation_steps=5)
    for precision in ("bf16", "no", "bf16"):
        with isolated(precision):
            assert Accelerator(cpu=True).mixed_precision == precision
        assert own.mixed_precision == "no" and own.gradient_accumulation_steps == 5
    AcceleratorState._reset_state(reset_partial_state=True)


def test_none_takes_the_precision_of_the_launcher(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with isolated(None):
        assert Accelerator(cpu=True).mixed_precision == "bf16"


def test_a_failed_recipe_frees_its_lock_and_its_memory_although_the_traceback_is_kept():
    found: list[weakref.ref[Held]] = []

    def recipe(fail: Callable[[], object]) -> None:
        held = Held()
        found.append(weakref.ref(held))
        try:
            fail()
        except ZeroDivisionError:
            raise ValueError from None

    def fail() -> None:
        held = Held()
        found.append(weakref.ref(held))
        _ = 1 / 0

    with pytest.raises(ValueError) as caught, isolated("no"):  # noqa: PT011 (any)
        recipe(fail)
    assert caught.value.__traceback__ is not None
    assert [held() for held in found] == [None, None]
