"""The optimisation of both stages, and the numbers that follow from it."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from mae_hf.config.fields import Count, NotNegative, Positive, Range, Rate, Seed, Settings, Share, Switch

Tracker = Literal["tensorboard", "wandb", "trackio", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab"]


@dataclass(frozen=True)
class TrainConfig(Settings):
    """The optimisation. Mixed precision and the number of processes are set with `accelerate launch`, not here.

    Args:
        batch_size: images per optimizer step, over all devices and accumulation steps together.
        per_device_batch_size: number of images on a device at once, the micro-batch; the batch is accumulated from
            these. `auto`: the largest number that fits into the free memory. null: no accumulation.
        epochs: passes over the training images.
        minutes: duration of steps and evaluations, instead of `epochs`. The run measures its speed to count its steps.
        base_lr: learning rate per 256 images; the optimizer gets `base_lr * batch_size / 256`.
        warmup_ratio: share of the steps with a linear warm-up; a cosine decay to 0 follows.
        weight_decay: AdamW's weight decay, on matrices only.
        adam_beta2: AdamW's second beta; the first is 0.9.
        max_grad_norm: gradients are clipped to this norm.
        seed: seed of initial weights, data order, crops and masks.
        log_every_steps: optimizer steps between two lines of metrics.jsonl.
        eval_every_epochs: epochs between two evaluations on validation images.
        save_every_epochs: epochs between two checkpoints.
        keep_checkpoints: newest checkpoints to keep, besides fine-tuning's best; at least 2, if the newest is damaged.
        trackers: additional trackers, which must be installed. If one fails, the run continues without it.
        compile: whether torch.compile compiles the transformer layers: `always`, `never`, or `auto`, on a GPU only.
        timeout_minutes: how long a rank waits for its peers before it fails; longer than decoding or saving takes.
    """

    section = "train"
    quick = ""  # a preset for a small machine, and how long it takes there
    batch_size: Count = 512
    per_device_batch_size: Count | Literal["auto"] | None = "auto"
    epochs: Positive = 200.0
    minutes: Positive | None = None
    base_lr: Positive = 1.5e-4
    warmup_ratio: Rate = 0.1
    weight_decay: NotNegative = 0.05
    adam_beta2: Annotated[float, Range(above=0, below=1)] = 0.95
    max_grad_norm: Positive = 1.0
    seed: Seed = 0
    log_every_steps: Count = 20
    eval_every_epochs: Positive = 1.0
    save_every_epochs: Positive = 5.0
    keep_checkpoints: Annotated[int, Range(at_least=2)] = 2
    trackers: tuple[Tracker, ...] = ()
    compile: Switch = "auto"
    timeout_minutes: Positive = 30.0

    @property
    def learning_rate(self) -> float:
        """The peak learning rate that the optimizer gets."""
        return self.base_lr * self.batch_size / 256

    def micro_batch_sizes(self, num_processes: int) -> list[int]:
        """Return the numbers of images that a device can take at once, ascending; the last one needs no accumulation.

        Raises ConfigError if the processes cannot share the batch.
        """
        problem = f"cannot be divided among {num_processes} processes: choose a multiple of {num_processes}"
        self.check("batch_size", self.batch_size % num_processes == 0, problem)
        share = self.batch_size // num_processes
        return [size for size in range(1, share + 1) if share % size == 0]

    def plan(self, num_images: int, num_processes: int, micro_batch_size: int | None = None) -> "Plan":
        """Return every duration in optimizer steps, and each device's share of the batch.

        `micro_batch_size` is what `auto` stands for; by default no accumulation. Raises ConfigError for fewer images
        than one batch, and for a batch that cannot be split evenly.
        """
        problem = f"is above the number of training images, {num_images}: choose at most {num_images}"
        self.check("batch_size", self.batch_size <= num_images, problem)
        sizes = self.micro_batch_sizes(num_processes)
        chosen = None if self.per_device_batch_size == "auto" else self.per_device_batch_size
        micro_batch_size = chosen or micro_batch_size or sizes[-1]
        allowed = ", ".join(map(str, sizes))
        problem = f"does not divide the {sizes[-1]} images per device of a batch: choose one of {allowed}"
        self.check("per_device_batch_size", micro_batch_size in sizes, problem)
        steps_per_epoch = num_images // self.batch_size
        total_steps = max(1, round(self.epochs * steps_per_epoch))
        return Plan(self, num_images, num_processes, steps_per_epoch, total_steps, micro_batch_size)


@dataclass(frozen=True)
class Plan:
    """A run in optimizer steps, computed from a `TrainConfig`, the number of images and the number of processes."""

    train: TrainConfig
    num_images: int
    num_processes: int
    steps_per_epoch: int
    total_steps: int
    micro_batch_size: int

    @property
    def warmup_steps(self) -> int:
        """The number of first steps in which the learning rate rises."""
        return round(self.train.warmup_ratio * self.total_steps)

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of a process per optimizer step."""
        return self.train.batch_size // (self.num_processes * self.micro_batch_size)

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, both from 0."""
        return step // self.steps_per_epoch

    def steps(self, epochs: float) -> int:
        """Return the number of steps nearest to this number of epochs, at least 1."""
        return max(1, round(epochs * self.steps_per_epoch))

    @property
    def eval_batch_size(self) -> int:
        """Images per device and forward pass in evaluations, which need no gradients: up to 256 or 4 micro-batches."""
        return max(self.micro_batch_size, min(256, 4 * self.micro_batch_size))

    def describe(self) -> str:
        """Return the arithmetic behind each derived number, printed before step 0."""
        train = self.train
        length = f"{train.epochs:g} epochs x {self.steps_per_epoch}"
        length = f"what fits into {train.minutes:g} minutes" if train.minutes else length
        return (
            f"batch           {train.batch_size} = {self.num_processes} processes x {self.accumulation_steps} "
            f"accumulation steps x {self.micro_batch_size} images\n"
            f"steps per epoch {self.steps_per_epoch} = {self.num_images} images // {train.batch_size}\n"
            f"total steps     {self.total_steps} = {length}\n"
            f"warm-up steps   {self.warmup_steps} = {train.warmup_ratio:g} x {self.total_steps} total steps\n"
            f"learning rate   {train.learning_rate:.3g} = base_lr {train.base_lr:g} x {train.batch_size} / 256, "
            "cosine to 0 after the warm-up"
        )


@dataclass(frozen=True)
class PretrainTrainConfig(TrainConfig):
    """The optimisation of pre-training.

    Args:
        figure_every_epochs: epochs between two figures of reconstructions.
        probe_every_epochs: epochs between two kNN probes of the encoder on validation images, if the source has labels.
            With 0, the probes run only after the last step. A linear probe always follows the last step.
    """

    quick = "--config stl10_tiny takes 30 minutes on 2 CPU cores"
    figure_every_epochs: Positive = 20.0
    probe_every_epochs: NotNegative = 10.0


@dataclass(frozen=True)
class FinetuneTrainConfig(TrainConfig):
    """The optimisation of fine-tuning.

    Args:
        layer_decay: factor on the learning rate per layer below the classifier; 1 trains all layers alike.
        ema_decay: decay per step of an exponential moving average of the weights, such as 0.999. The average is then
            evaluated and shared instead of the weights; 0 switches it off.
        min_steps: minimum number of optimizer steps, for few labels. If `epochs` gives fewer, epochs and the intervals
            between evaluations and checkpoints grow by the same factor. The batch is at most the training set. 0
            keeps the batch and the epochs as they are.
    """

    quick = "--config stl10_tiny takes 19 minutes on a CPU core"
    batch_size: Count = 256
    epochs: Positive = 100.0
    base_lr: Positive = 5e-4
    warmup_ratio: Rate = 0.05
    adam_beta2: Annotated[float, Range(above=0, below=1)] = 0.999
    layer_decay: Share = 0.65
    ema_decay: Rate = 0.0
    min_steps: Annotated[int, Range(at_least=0)] = 0

    def fit(self, num_images: int, num_processes: int = 1) -> "FinetuneTrainConfig":
        """Return the recipe with the batch and the durations that `min_steps` gives it for that many images."""
        batch_size = min(self.batch_size, num_images - num_images % num_processes)
        if not self.min_steps or batch_size == 0:
            return self
        factor = max(1.0, self.min_steps / (self.epochs * (num_images // batch_size)))
        lengths = {key: getattr(self, key) * factor for key in ("epochs", "eval_every_epochs", "save_every_epochs")}
        if batch_size < self.batch_size:  # the limit of a device may not divide the new batch
            lengths["per_device_batch_size"] = FinetuneTrainConfig.per_device_batch_size
        return replace(self, batch_size=batch_size, **lengths)
