"""The images of each batch, as a pure function of its number: a resumed run has nothing to load or to replay."""

import numpy as np
import torch
from numpy.typing import NDArray

from mae_hf.data.random import integer_seed


class BatchSampler:
    """The rows of every global batch: a new permutation for each epoch, divided into batches.

    Batches are numbered by optimizer steps. The last incomplete batch of an epoch is left out. A batch has the same
    images however it is split over processes and micro-batches.

    Mixup and CutMix pair the first image of a batch with the last, the second with the last but one. A micro-batch of
    even size contains whole pairs, in the same symmetric order. So any split pairs the same images.

    Args:
        num_images: images of the training set.
        batch_size: images per optimizer step, over all processes and micro-batches together. `TrainConfig.plan` makes
            sure that it is a multiple of their number, and not above `num_images`.
        seed: seed of the order.
        num_processes: processes that share the batch.
        process_index: this process, from 0.
        accumulation_steps: micro-batches per process and optimizer step.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
        accumulation_steps: int = 1,
    ) -> None:
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.num_processes = num_processes
        self.process_index = process_index
        self.accumulation_steps = accumulation_steps
        self._order_epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self.num_images // self.batch_size

    def epoch(self, batch_index: int) -> int:
        """The epoch that batch `batch_index` belongs to, both from 0."""
        return batch_index // self.batches_per_epoch

    def micro_batches(self, batch_index: int) -> list[NDArray[np.int64]]:
        """This process's rows of batch `batch_index` (from 0), one int64 array (B,) per micro-batch."""
        folded = np.arange(self.batch_size)
        folded = np.stack((folded, folded[::-1]), axis=1).ravel()[: self.batch_size]  # first, last, second, ...
        positions = folded.reshape(self.num_processes, self.accumulation_steps, -1)[self.process_index]
        start = batch_index % self.batches_per_epoch * self.batch_size
        return list(self._permutation(self.epoch(batch_index))[start + np.sort(positions)])

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        # Only the permutation in use is kept. No result depends on earlier calls.
        if epoch != self._order_epoch:
            generator = torch.Generator().manual_seed(integer_seed(self.seed, epoch, "order"))
            self._order = torch.randperm(self.num_images, generator=generator).numpy()
            self._order_epoch = epoch
        return self._order
