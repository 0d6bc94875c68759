"""The images of each batch, as a pure function of its number: a resumed run has nothing to load or to replay."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mae_hf.config.train import Plan
from mae_hf.data.random import permutation

_order_in_use = functools.lru_cache(maxsize=1)(permutation)


@dataclass(frozen=True)
class BatchSampler:
    """The rows of every global batch: a new permutation for each epoch, divided into batches.

    Batches are numbered by optimizer steps. The last incomplete batch of an epoch is left out. A batch has the same
    images however it is split over processes and micro-batches.

    Mixup and CutMix pair the first image of a batch with the last, the second with the last but one. A micro-batch of
    even size contains whole pairs, in the same symmetric order. So any split pairs the same images.
    """

    plan: Plan  # how many images, and how a batch is split
    seed: int  # of the order
    process_index: int = 0  # this process, from 0

    def micro_batches(self, step: int) -> list[NDArray[np.int64]]:
        """This process's rows of the batch of a step (from 0), one int64 array (B,) per micro-batch."""
        plan, size = self.plan, self.plan.train.batch_size
        folded = np.stack((np.arange(size), np.arange(size)[::-1]), axis=1).ravel()[:size]  # first, last, second, ...
        positions = folded.reshape(plan.num_processes, plan.accumulation_steps, -1)[self.process_index]
        start = step % plan.steps_per_epoch * size
        order = _order_in_use(plan.num_images, self.seed, plan.epoch(step), "order")
        return list(order[start + np.sort(positions)])
