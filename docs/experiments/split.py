"""Experiment: splitting a batch changes losses after many steps only because sums are rounded in a different order.

python docs/experiments/split.py   # 20 minutes on one core, from the root of the repository

Pre-train on digits with whole batches and with two micro-batches, in single and in double precision. Rounding errors
shrink with 29 more bits. An error in the splitting would stay.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from mae_hf.config import parse
from mae_hf.config.runs import PretrainConfig
from mae_hf.data.dataset import DeviceImages, load_pretraining_images
from mae_hf.data.sampler import BatchSampler
from mae_hf.models.mae import build_mae
from mae_hf.training.loop import Training, gradients, update
from mae_hf.training.losses import pretraining_loss
from mae_hf.training.optim import build_optimizer, learning_rate_at, set_learning_rate
from mae_hf.training.signals import StopSignals

WORDS = ["--config", "configs/pretrain/digits.yaml", "--train.epochs=10", "--train.warmup_ratio=0.2"]


def losses(per_device_batch_size: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the loss of every step."""
    config = parse.read_command(
        PretrainConfig, [*WORDS, f"--train.per_device_batch_size={per_device_batch_size}"], "split"
    )
    accelerator = Accelerator(cpu=True)
    images, _ = load_pretraining_images(config.data, config.model.image_size)
    plan = config.train.plan(len(images), 1)
    sampler = BatchSampler(plan, config.train.seed)
    set_seed(config.train.seed)
    model = build_mae(config.model, "sdpa").to(dtype)
    optimizer = build_optimizer(model, config.train)
    device_images = DeviceImages(images, accelerator.device, config.data.on_device)
    loss_of = pretraining_loss(model, device_images, config)
    training = Training(accelerator, model, optimizer, config.train, sampler, loss_of)
    torch.set_default_dtype(dtype)  # the dtype of sums
    found = []
    for step in range(plan.total_steps):
        set_learning_rate(optimizer, learning_rate_at(step, plan, config.train.learning_rate))
        loss, _ = gradients(training, step, StopSignals(False))
        update(optimizer, torch.zeros((), dtype=torch.float32))
        found.append(loss)
    torch.set_default_dtype(torch.float32)
    return torch.stack(found)


def main() -> None:
    """Print the largest and the mean difference of the two splits, in both precisions."""
    in_single = torch.Tensor.float
    for dtype in (torch.float32, torch.float64):
        # mae_hf computes the loss in float32; this computes it in the dtype of the weights
        torch.Tensor.float = in_single if dtype == torch.float32 else torch.Tensor.double  # type: ignore[method-assign]
        apart = (losses(64, dtype) - losses(32, dtype)).abs()
        torch.Tensor.float = in_single  # type: ignore[method-assign]
        print(f"{dtype}: {len(apart)} steps, largest {apart.max():.1e}, mean {apart.mean():.1e}", flush=True)


if __name__ == "__main__":
    main()
