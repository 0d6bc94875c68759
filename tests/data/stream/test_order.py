"""The order of a stream: every image once an epoch, the same batches on any number of processes, read in sequence."""

import numpy as np
import pytest

from mae_hf.config.data import DataConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.data.stream.order import Stream, StreamSampler
from mae_hf.errors import ConfigError

LENGTHS = [7, 1, 30, 12, 25, 9]  # 84 images; 80 after those held out


def sampler_of(
    num_processes=1, process_index=0, accumulation_steps=1, first=4, batch_size=8, seed=0, num_readers=4, buffer_size=24
):
    micro_batch_size = batch_size // num_processes // accumulation_steps
    config = PretrainConfig(
        data=DataConfig(streaming=True, stream_readers=num_readers, stream_buffer=buffer_size),
        train=PretrainTrainConfig(batch_size=batch_size, seed=seed, per_device_batch_size=micro_batch_size),
    )
    stream = Stream((), np.array(LENGTHS), first, "")
    return StreamSampler(stream, config, config.train.plan(len(stream), num_processes), process_index)


def rows_of_step(step, num_processes=1, accumulation_steps=1, **changes):
    """The global batch, process after process, each as its own sampler gives it."""
    samplers = [sampler_of(num_processes, index, accumulation_steps, **changes) for index in range(num_processes)]
    return np.concatenate([rows for sampler in samplers for rows in sampler.micro_batches(step)])


def test_an_epoch_visits_each_image_once_except_held_out_ones():
    sampler = sampler_of()
    assert (sampler.plan.num_images, sampler.plan.steps_per_epoch) == (80, 10)
    for epoch in range(5):
        seen = np.concatenate([rows for step in range(10) for rows in sampler.micro_batches(10 * epoch + step)])
        assert sorted(seen) == list(range(4, 84))


def test_images_that_fill_no_batch_are_left_out_and_differ_by_epoch():
    seen = [np.concatenate([rows_of_step(9 * e + s, first=5, num_readers=2) for s in range(9)]) for e in range(20)]
    assert all(len(rows) == 72 == len(np.unique(rows)) and rows.min() >= 5 for rows in seen)
    assert len(np.unique(np.concatenate(seen))) == 79


@pytest.mark.parametrize(("num_processes", "accumulation_steps"), [(1, 2), (2, 1), (4, 1), (2, 2), (1, 8)])
def test_any_number_of_processes_sees_the_same_images_in_the_same_order(num_processes, accumulation_steps):
    for step in (0, 5, 9, 10, 37):
        np.testing.assert_array_equal(rows_of_step(step, num_processes, accumulation_steps), rows_of_step(step))


def test_a_batch_does_not_depend_on_earlier_calls():
    running = sampler_of(seed=5)
    sequence = [running.micro_batches(step)[0] for step in range(30)]
    for step in reversed(range(30)):
        np.testing.assert_array_equal(sampler_of(seed=5).micro_batches(step)[0], sequence[step])


def windows_of(sampler, reader, epoch=0):
    """The windows that a reader opens in an epoch."""
    return sampler.windows(reader, epoch * sampler.plan.steps_per_epoch, (epoch + 1) * sampler.plan.steps_per_epoch)


def test_epochs_and_seeds_have_different_orders():
    orders = {tuple(rows_of_step(10 * epoch, seed=seed)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_window_is_shuffled_differently():
    sampler = sampler_of(num_readers=2, batch_size=2, buffer_size=20)
    orders = {tuple(sampler.window(e, r, i).order) for e in range(3) for r in range(2) for i in range(4)}
    assert len(orders) == 24


def test_a_row_is_located_in_its_shard():
    stream = Stream((), np.array(LENGTHS), 4, "")
    expected = [(shard, number) for shard, length in enumerate(LENGTHS) for number in range(length)]
    assert [stream.locate(row) for row in range(sum(LENGTHS))] == expected


def test_a_window_begins_where_the_previous_one_ended():
    sampler = sampler_of()
    for reader in range(4):
        ends = {}
        for window in windows_of(sampler, reader):
            for shard, number in map(sampler.stream.locate, window.rows.tolist()):
                assert number == ends.get(shard, number)
                ends[shard] = number + 1


def test_each_process_reads_its_own_part_and_a_window_is_as_large_as_its_share_of_the_buffer():
    own = [sampler_of(2, index) for index in range(2)]
    assert [list(sampler.readers) for sampler in own] == [[0, 1], [2, 3]]
    assert len(own[0].window(0, 0, 0).rows) == 24 // 4
    rows = [np.concatenate([window.rows for r in s.readers for window in windows_of(s, r)]) for s in own]
    assert not np.intersect1d(*rows).size


def test_a_batch_has_the_same_number_of_images_of_every_reader():
    sampler = sampler_of()
    for step in range(10):
        [rows], [(index, _)] = sampler.micro_batches(step), sampler.positions(step)
        assert [np.isin(rows, sampler.window(0, reader, index).rows).sum() for reader in range(4)] == [2] * 4


@pytest.mark.parametrize(("start", "end"), [(0, 20), (3, 9), (5, 6), (6, 6), (4, 13)])
def test_a_reader_opens_the_windows_of_its_batches_in_order_and_no_other(start, end):
    sampler = sampler_of(batch_size=12, buffer_size=20)
    for reader in sampler.readers:
        opened = [tuple(window.rows) for window in sampler.windows(reader, start, end)]
        needed = [
            tuple(sampler.window(step // 6, reader, index).rows)
            for step in range(start, end)
            for index, _ in sampler.positions(step)
        ]
        assert opened == [rows for rows, before in zip(needed, [None, *needed], strict=False) if rows != before]


def test_a_shard_is_not_read_if_all_its_images_are_held_out():
    sampler = sampler_of(first=8, batch_size=4)
    rows = [row for reader in range(4) for window in windows_of(sampler, reader) for row in window.rows.tolist()]
    assert {sampler.stream.locate(row)[0] for row in rows} == {2, 3, 4, 5}


def test_readers_that_cannot_be_divided_among_the_processes_are_refused():
    with pytest.raises(ConfigError, match=r"stream_readers 4 cannot be divided among 3 .*--data\.stream_readers"):
        sampler_of(num_processes=3, batch_size=12)
