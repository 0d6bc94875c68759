"""Which images a batch has, as a pure function of its number: nothing to save, nothing to replay on resume."""

import numpy as np
import torch
from numpy.typing import NDArray

from mae_hf.data.random import integer_seed


class BatchSampler:
    """The rows of every global batch: each epoch a new permutation, cut into batches.

    A batch's number counts from the first of the run: it is that of the optimizer step which takes it, unless
    batches were skipped. The last incomplete one of an epoch is left out. A batch is the same set of images however it
    is split over processes and micro-batches, and a micro-batch of even size holds, with each image, the one at the
    mirror place of the batch (first with last), in mirror places of its own: whatever pairs images pairs the same ones
    in any split.

    Args:
        num_images: images of the training set.
        batch_size: images per optimizer step, over all processes and micro-batches together: at most `num_images`, and
            a multiple of the number of these, which `TrainConfig.plan` sees to.
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
        places = folded.reshape(self.num_processes, self.accumulation_steps, -1)[self.process_index]
        start = batch_index % self.batches_per_epoch * self.batch_size
        return list(self._permutation(self.epoch(batch_index))[start + np.sort(places)])

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        # Only the epoch in use is kept; asking for another one makes it afresh, so no answer depends on the last one.
        if epoch != self._order_epoch:
            generator = torch.Generator().manual_seed(integer_seed(self.seed, epoch, "order"))
            self._order = torch.randperm(self.num_images, generator=generator).numpy()
            self._order_epoch = epoch
        return self._order
