"""The optimisation of both stages, and the numbers that follow from it."""

import math
from dataclasses import dataclass
from typing import Literal

from mae_hf.config.checks import Choice, check_above_zero, check_seed
from mae_hf.errors import require


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation. Precision and processes belong to `accelerate launch`, not here.

    Args:
        batch_size: images per optimizer step, over all devices and accumulation steps together.
        per_device_batch_size: most images a device holds at once; the rest is accumulated. Null: no accumulation.
        epochs: passes over the training images.
        base_lr: learning rate per 256 images; the optimizer gets `base_lr * batch_size / 256`.
        warmup_ratio: part of the steps with a linear warm-up; a cosine decay to 0 follows.
        weight_decay: AdamW's weight decay, on matrices only.
        adam_beta2: AdamW's second beta; the first is 0.9.
        max_grad_norm: gradients are clipped to this norm.
        seed: seed of initial weights, data order, crops and masks.
        log_every_steps: optimizer steps between two lines of metrics.jsonl.
        eval_every_epochs: epochs between two evaluations on validation images.
        save_every_epochs: epochs between two checkpoints.
        keep_checkpoints: checkpoints that are kept, the newest (and the best, when fine-tuning); 2 or more, since a
            damaged one is replaced by the one before it.
        max_skipped_windows: how often a loss or gradient that is not finite may send the run back to its last
            checkpoint, to go on with the batches after the bad one; 0: it stops.
        trackers: also log to these: `tensorboard`, `trackio`; one that fails later is left out, with a warning.
        compile: whether torch.compile makes the transformer layers: `always`, `never`, or `auto`, where a GPU is faster
            with it, which is tried before the first step.
        timeout_minutes: how long a process waits for the others before it gives them up: longer than one of them
            takes to decode images, or to save.
    """

    batch_size: int = 512
    per_device_batch_size: int | None = None
    epochs: float = 200.0
    base_lr: float = 1.5e-4
    warmup_ratio: float = 0.1
    weight_decay: float = 0.05
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0
    seed: int = 0
    log_every_steps: int = 20
    eval_every_epochs: float = 1.0
    save_every_epochs: float = 5.0
    keep_checkpoints: int = 2
    max_skipped_windows: int = 0
    trackers: tuple[Literal["tensorboard", "trackio"], ...] = ()
    compile: Choice = "auto"
    timeout_minutes: float = 30.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "base_lr", "max_grad_norm", "log_every_steps", "eval_every_epochs"):
            check_above_zero(f"train.{name}", getattr(self, name))
        for name in ("save_every_epochs", "timeout_minutes"):
            check_above_zero(f"train.{name}", getattr(self, name))
        require(
            self.keep_checkpoints >= 2,
            f"keep_checkpoints {self.keep_checkpoints} leaves none to go back to where the newest is damaged: choose 2 "
            "or more (--train.keep_checkpoints)",
        )
        require(
            self.max_skipped_windows >= 0,
            f"max_skipped_windows {self.max_skipped_windows} is negative: choose 0 (stop) or more "
            "(--train.max_skipped_windows)",
        )
        if self.per_device_batch_size is not None:
            check_above_zero("train.per_device_batch_size", self.per_device_batch_size)
        check_seed("train.seed", self.seed)
        require(
            0 <= self.warmup_ratio < 1,
            f"warmup_ratio {self.warmup_ratio} is not a part of the run: choose 0 (no warm-up) or a value below 1, "
            "such as 0.1 (--train.warmup_ratio)",
        )
        require(
            0 < self.adam_beta2 < 1,
            f"adam_beta2 {self.adam_beta2} is not between 0 and 1: 0.95 for pre-training, 0.999 for fine-tuning "
            "(--train.adam_beta2)",
        )
        require(
            self.weight_decay >= 0,
            f"weight_decay {self.weight_decay} is negative: choose 0 or more (--train.weight_decay)",
        )

    @property
    def learning_rate(self) -> float:
        """The peak learning rate that the optimizer gets."""
        return self.base_lr * self.batch_size / 256

    def plan(self, num_images: int, num_processes: int) -> "Plan":
        """Every duration in optimizer steps, and each device's share of the batch.

        Raises:
            ConfigError: fewer images than one batch, or a batch that cannot be split evenly.
        """
        require(
            num_images >= self.batch_size,
            f"batch_size {self.batch_size} is more than the {num_images} training images: choose at most {num_images} "
            "(--train.batch_size)",
        )
        steps_per_epoch = num_images // self.batch_size
        total_steps = max(1, round(self.epochs * steps_per_epoch))
        accumulation_steps = self._accumulation_steps(num_processes)
        return Plan(
            num_images=num_images,
            num_processes=num_processes,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
            warmup_steps=round(self.warmup_ratio * total_steps),
            eval_every_steps=max(1, round(self.eval_every_epochs * steps_per_epoch)),
            save_every_steps=max(1, round(self.save_every_epochs * steps_per_epoch)),
            accumulation_steps=accumulation_steps,
            micro_batch_size=self.batch_size // num_processes // accumulation_steps,
        )

    def _accumulation_steps(self, num_processes: int) -> int:
        require(
            self.batch_size % num_processes == 0,
            f"batch_size {self.batch_size} cannot be split over {num_processes} processes: choose a multiple of "
            f"{num_processes} (--train.batch_size)",
        )
        share = self.batch_size // num_processes
        size = self.per_device_batch_size or share
        divisors = [d for d in range(1, share + 1) if share % d == 0]
        require(
            size in divisors,
            f"per_device_batch_size {size} does not divide the {share} images of a device's share of batch_size "
            f"{self.batch_size}: choose one of {', '.join(map(str, divisors))} (--train.per_device_batch_size)",
        )
        return share // size


@dataclass(frozen=True)
class Plan:
    """A run in optimizer steps: what `TrainConfig`'s epochs and batch come to on these images and devices."""

    num_images: int
    num_processes: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    eval_every_steps: int
    save_every_steps: int
    accumulation_steps: int
    micro_batch_size: int

    @property
    def eval_batch_size(self) -> int:
        """Images at once per device in evaluations, which keep no gradients: up to 256, four micro-batches at most."""
        return max(self.micro_batch_size, min(256, 4 * self.micro_batch_size))

    def describe(self, train: TrainConfig) -> str:
        """The arithmetic behind each derived number, for people to check before step 0."""
        return "\n".join(
            [
                f"batch           {train.batch_size} = {self.num_processes} processes x {self.accumulation_steps} "
                f"accumulation steps x {self.micro_batch_size} images",
                f"steps per epoch {self.steps_per_epoch} = {self.num_images} images // {train.batch_size}",
                f"total steps     {self.total_steps} = {train.epochs:g} epochs x {self.steps_per_epoch}",
                f"warm-up steps   {self.warmup_steps} = {train.warmup_ratio:g} x {self.total_steps} total steps",
                f"learning rate   {train.learning_rate:.3g} = base_lr {train.base_lr:g} x {train.batch_size} / 256, "
                "cosine to 0 after the warm-up",
            ]
        )


@dataclass(frozen=True)
class PretrainTrainConfig(TrainConfig):
    """The optimisation of pre-training.

    Args:
        figure_every_epochs: epochs between two pictures of reconstructions.
        probe_every_epochs: epochs between two kNN probes of the encoder so far, from train to validation images, where
            the source has labels; 0: none.
    """

    figure_every_epochs: float = 20.0
    probe_every_epochs: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero("train.figure_every_epochs", self.figure_every_epochs)
        require(
            math.isfinite(self.probe_every_epochs) and self.probe_every_epochs >= 0,
            f"probe_every_epochs {self.probe_every_epochs} is not a number of epochs: choose 0 (never) or more "
            "(--train.probe_every_epochs)",
        )


@dataclass(frozen=True)
class FinetuneTrainConfig(TrainConfig):
    """The optimisation of fine-tuning.

    Args:
        layer_decay: factor on the learning rate per layer below the classifier; 1 treats all layers alike.
        ema_decay: decay per step of the exponential moving average of the weights, such as 0.999, which is then what is
            evaluated and shared; 0 keeps none.
    """

    batch_size: int = 256
    epochs: float = 100.0
    base_lr: float = 5e-4
    warmup_ratio: float = 0.05
    adam_beta2: float = 0.999
    layer_decay: float = 0.65
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.ema_decay < 1,
            f"ema_decay {self.ema_decay} is not a decay: choose 0 (no average) or less than 1, such as 0.999 "
            "(--train.ema_decay)",
        )
        require(
            0 < self.layer_decay <= 1,
            f"layer_decay {self.layer_decay} is not above 0 and at most 1: choose 0.65 to 0.9, or 1 for none "
            "(--train.layer_decay)",
        )
