"""Any number of processes and micro-batches sees the same images, in a new order each epoch."""

import numpy as np
import pytest

from mae_hf.config.train import TrainConfig
from mae_hf.data.sampler import BatchSampler

PLAN = TrainConfig(batch_size=8).plan(num_images=30, num_processes=1)


def rows_of_step(step, num_processes, accumulation_steps, batch_size=8, num_images=30, seed=0):
    """The global batch, process after process, each as its own sampler gives it."""
    per_device = batch_size // (num_processes * accumulation_steps)
    config = TrainConfig(batch_size=batch_size, per_device_batch_size=per_device)
    plan = config.plan(num_images, num_processes)
    samplers = [BatchSampler(plan, seed, index) for index in range(num_processes)]
    micro_batches = [rows for sampler in samplers for rows in sampler.micro_batches(step)]
    assert len(micro_batches) == num_processes * accumulation_steps
    assert {len(rows) for rows in micro_batches} == {batch_size // len(micro_batches)}
    return np.concatenate(micro_batches)


def test_an_epoch_visits_each_image_at_most_once_and_all_but_the_last_incomplete_batch():
    sampler = BatchSampler(PLAN, seed=0)
    assert PLAN.steps_per_epoch == 3
    for epoch in range(4):
        seen = np.concatenate([rows for step in range(3) for rows in sampler.micro_batches(3 * epoch + step)])
        assert seen.dtype == np.int64
        assert len(seen) == 24 == len(np.unique(seen))
        assert seen.min() >= 0
        assert seen.max() < 30


@pytest.mark.parametrize(("num_processes", "accumulation_steps"), [(1, 2), (2, 1), (4, 1), (4, 2), (8, 1), (2, 4)])
def test_all_processes_and_micro_batches_together_see_each_image_once(num_processes, accumulation_steps):
    for step in (0, 2, 3, 17):
        whole = rows_of_step(step, 1, 1)
        found = rows_of_step(step, num_processes, accumulation_steps)
        np.testing.assert_array_equal(np.sort(found), np.sort(whole), err_msg=f"step {step}")


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_pairs_of_the_batch_are_pairs_of_one_micro_batch(parts):
    whole = rows_of_step(1, 1, 1, batch_size=12)
    partner = dict(zip(whole.tolist(), whole[::-1].tolist(), strict=True))
    for rows in rows_of_step(1, 1, parts, batch_size=12).reshape(parts, -1).tolist():
        assert [partner[row] for row in rows] == rows[::-1]


def test_a_batch_of_odd_size_can_be_split():
    for parts in (1, 3, 5, 15):
        found = rows_of_step(1, 1, parts, batch_size=15)
        np.testing.assert_array_equal(np.sort(found), np.sort(rows_of_step(1, 1, 1, batch_size=15)))


def test_a_batch_does_not_depend_on_earlier_calls():
    steps = list(range(12))
    running = BatchSampler(PLAN, seed=5)
    sequence = [running.micro_batches(step)[0] for step in steps]
    for step in reversed(steps):
        np.testing.assert_array_equal(BatchSampler(PLAN, seed=5).micro_batches(step)[0], sequence[step])
        np.testing.assert_array_equal(running.micro_batches(step)[0], sequence[step])


def test_epochs_and_seeds_have_different_orders():
    orders = [tuple(rows_of_step(step, 1, 1, batch_size=30, seed=seed)) for seed in range(5) for step in range(5)]
    assert len(set(orders)) == 25
    assert tuple(range(30)) not in orders


def test_all_images_are_equally_frequent_over_many_epochs():
    sampler = BatchSampler(PLAN, seed=0)
    counts = np.bincount(np.concatenate([sampler.micro_batches(step)[0] for step in range(3 * 1000)]), minlength=30)
    assert abs(counts - 800).max() < 5 * np.sqrt(1000 * 0.8 * 0.2)


def test_the_epoch_of_each_step_is_known():
    sampler = BatchSampler(PLAN, seed=0)
    assert [sampler.plan.epoch(step) for step in (0, 2, 3, 5, 6)] == [0, 0, 1, 1, 2]
