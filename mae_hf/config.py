"""What a run is: frozen dataclasses, checked when they are made, and the numbers that follow from them.

The defaults are the `stl10_base` preset. Every field is a YAML key and a command line flag of the same name
(`train.base_lr`, `--train.base_lr`). A config that exists is consistent: each class checks itself and raises
`ConfigError` with the value seen, what is allowed and the flag that mends it.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from mae_hf.clean import MAX_NAME, clean, is_plain

STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
STL10_MEAN = (0.4467, 0.4398, 0.4066)
STL10_STD = (0.2603, 0.2566, 0.2713)
NUM_FOLDS = 10
MAX_SIZE = 65_536  # of an image's side, a width, a number of layers

Triple = tuple[float, float, float]
Pair = tuple[float, float]
Choice = Literal["auto", "always", "never"]


# Settings that have no part in a result, and that an unfinished run may change: where things lie, how the machine is
# used, who else is told, what is done about failures. (A run that went on has met no bad image; stored images are known
# by fingerprint.)
MACHINE_SETTINGS = frozenset(
    {"output_dir", "data.cache_dir", "data.on_device", "data.on_bad_image", "hub.push", "hub.repo_id", "hub.private"}
    | {"train.per_device_batch_size", "train.compile", "train.max_skipped_windows", "train.timeout_minutes"}
    | {"train.trackers"}
)


class ConfigError(ValueError):
    """The command or the config is wrong: one line with the value seen, what is allowed, and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(clean(message))


class RunError(RuntimeError):
    """The run failed: one line with what happened, where, and how to go on."""

    def __init__(self, message: str) -> None:
        super().__init__(clean(message))


def moved_away(folder: object) -> RunError:
    """What ends a run whose folder is no longer there: no other one is begun in its place."""
    return RunError(f"{folder} is gone: where it was moved, the same command with its new --output_dir goes on")


class RunStopped(RunError):
    """The run was told to stop, and has saved: one line with where, and how to go on.

    Args:
        message: that line.
        signal_number: what it was told by.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def check_class_names(names: tuple[str, ...], where: str) -> None:
    """Raises ConfigError unless class names can be printed, drawn and written into cards as they are."""
    for name in names:
        require(
            len(name) <= MAX_NAME and is_plain(name),
            f"{where} has a class name of {len(name)} characters, {name[:40]!r}: a name has at most {MAX_NAME} and no "
            "control characters, rename the class or name all (--data.class_names)",
        )


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are split.

    Args:
        source: `digits`, a Hub dataset id, a folder of parquet files or one such file, a folder of images, or the
            folder of the official STL-10 binaries. Pre-training takes several: `[first, second]`.
        revision: branch, tag or commit of a Hub dataset, so that a run can be repeated on the same rows.
        class_names: the class names that the labelled splits must have, in order, or the names of plain integer labels;
            null takes those of the source.
        image_mean: channel means, for pixels in [0, 1], that normalise the images.
        image_std: channel standard deviations, for pixels in [0, 1].
        validation_fraction: part of `train` that is set aside, by class, for validation.
        test_fraction: part of `train` that becomes `test` when the source has no test split.
        split_seed: seed of both of these draws.
        on_bad_image: `raise` stops at an image that cannot be decoded; `skip` leaves it out and counts it.
        cache_dir: where decoded images are kept; null is `~/.cache/mae_hf`, or `$MAE_HF_CACHE`.
        fold: train on one of ten folds of a fifth of `train`, 0 to 9: those of `fold_indices.txt` beside STL-10's
            binaries, else drawn ones. Validation is carved from the fold.
        label_fraction: part of `train`'s labels that are used, by class, 1 for all; validation is carved from it. With
            null all are trained on, but those of a validation split, which is carved where the source has none.
        label_seed: seed of that draw; a smaller part is within a greater one.
        on_device: whether a GPU holds all training images in its memory, as uint8: `always`, `never`, or `auto`, where
            they take at most a quarter of what is free. The result is the same.
        streaming: pre-train on shards that are read as they are needed, parquet files or webdataset tars, here, at an
            address (`https://host/{000..099}.tar`) or on the Hub; nothing of them is kept. Labels are not used.
        stream_readers: places of the stream that are read at once and mixed in every batch. They are shared out over
            the processes; `train.batch_size` must be a multiple.
        stream_buffer: images that are shuffled at a time, over all readers; as many again are read ahead.
        stream_held_out: first images of the stream that are held out, to compare losses on.
    """

    source: list[str] | str = "jxie/stl10"
    revision: str | None = None
    class_names: tuple[str, ...] | None = None
    image_mean: Triple = STL10_MEAN
    image_std: Triple = STL10_STD
    validation_fraction: float = 0.1
    test_fraction: float = 0.0
    split_seed: int = 0
    on_bad_image: Literal["raise", "skip"] = "raise"
    cache_dir: str | None = None
    fold: int | None = None
    label_fraction: float | None = None
    label_seed: int = 0
    on_device: Choice = "auto"
    streaming: bool = False
    stream_readers: int = 8
    stream_buffer: int = 4096
    stream_held_out: int = 1000

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "data.source is empty: name at least one source (--data.source digits)")
        require(
            0 < self.validation_fraction < 1,
            f"validation_fraction {self.validation_fraction} leaves no images to train or to validate on: choose a "
            "value between 0 and 1, such as 0.1 (--data.validation_fraction)",
        )
        require(
            0 <= self.test_fraction < 1,
            f"test_fraction {self.test_fraction} is not a part of the train split: choose 0 (the source has a test "
            "split) or a value below 1 (--data.test_fraction)",
        )
        require(
            all(map(math.isfinite, self.image_mean)),
            f"image_mean {list(self.image_mean)} has a value that is not finite: give the mean of each channel "
            "(--data.image_mean)",
        )
        require(
            all(std > 0 and math.isfinite(std) for std in self.image_std),
            f"image_std {list(self.image_std)} has a value that is not above 0: pixels are divided by it "
            "(--data.image_std)",
        )
        check_class_names(self.class_names or (), "data.class_names")
        require(
            self.fold is None or 0 <= self.fold < NUM_FOLDS,
            f"fold {self.fold} is not one of the {NUM_FOLDS} folds: choose 0 to {NUM_FOLDS - 1} (--data.fold)",
        )
        require(
            self.label_fraction is None or 0 < self.label_fraction <= 1,
            f"label_fraction {self.label_fraction} is not a part of the labels: choose a value above 0, such as 0.1, "
            "or 1 for all (--data.label_fraction)",
        )
        require(
            self.fold is None or self.label_fraction is None,
            f"fold {self.fold} and label_fraction {self.label_fraction} both restrict the labels: choose one "
            "(--data.fold, --data.label_fraction)",
        )
        for name in ("stream_readers", "stream_buffer", "stream_held_out"):
            _check_above_zero(f"data.{name}", getattr(self, name))
        require(
            self.stream_buffer >= self.stream_readers,
            f"stream_buffer {self.stream_buffer} has no image for each of the {self.stream_readers} readers: choose "
            "4096, or at least so many (--data.stream_buffer)",
        )
        _check_seed("data.split_seed", self.split_seed)
        _check_seed("data.label_seed", self.label_seed)

    @property
    def has_label_set(self) -> bool:
        """Whether a fold or a part of `train`'s labels is all that may be used, for validation, too."""
        return self.fold is not None or self.label_fraction is not None

    @property
    def sources(self) -> tuple[str, ...]:
        """`source` as a tuple, one or many."""
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)


@dataclass(frozen=True)
class EncoderConfig:
    """The Vision Transformer that both stages share.

    Args:
        image_size: side of the square input in pixels; images of other sizes are resized and cropped to it.
        patch_size: side of a patch in pixels; must divide `image_size`.
        hidden_size: width D of the encoder.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: attention heads of the encoder; must divide `hidden_size`.
        intermediate_size: width of the encoder's MLPs.
    """

    image_size: int = 96
    patch_size: int = 8
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072

    def __post_init__(self) -> None:
        for name in ("image_size", "hidden_size", "num_hidden_layers", "intermediate_size"):
            _check_above_zero(f"model.{name}", getattr(self, name))
            require(
                getattr(self, name) <= MAX_SIZE,
                f"{name} {getattr(self, name)} is above {MAX_SIZE}: choose a smaller one (--model.{name})",
            )
        divisors = [p for p in range(2, self.image_size // 2 + 1) if self.image_size % p == 0]
        require(
            len(divisors) > 0,
            f"image_size {self.image_size} cannot be cut into patches: choose a multiple of 8, such as 96 "
            "(--model.image_size)",
        )
        require(
            self.patch_size in divisors,
            f"patch_size {self.patch_size} does not divide image_size {self.image_size}: choose "
            f"{', '.join(map(str, divisors))} (--model.patch_size)",
        )
        _check_width("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)

    @property
    def num_patches(self) -> int:
        """N = (H / P)², the patches of an image."""
        return (self.image_size // self.patch_size) ** 2


def _check_above_zero(key: str, value: float) -> None:
    require(
        math.isfinite(value) and value > 0,
        f"{key.split('.')[-1]} {value} is not above 0: choose a positive number (--{key})",
    )


def _check_words(key: str, words: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    wrong = [word for word in words if word not in allowed]
    require(
        not wrong,
        f"{key} {', '.join(wrong)} is unknown: choose among {', '.join(allowed)} (--{key} {','.join(allowed)})",
    )


def _check_not_streamed(data: DataConfig) -> None:
    require(
        not data.streaming,
        "data.streaming is for scripts/pretrain.py: labelled images are few, and are decoded once and kept; leave it "
        "out (--data.streaming false)",
    )


def _check_seed(key: str, value: int) -> None:
    require(
        0 <= value < 2**32,
        f"{key.split('.')[-1]} {value} is not a seed: choose a whole number from 0 to {2**32 - 1} (--{key})",
    )


def _check_width(width_name: str, width: int, heads_name: str, heads: int) -> None:
    require(
        width % 4 == 0,
        f"{width_name} {width} is not a multiple of 4: the 2-d sine-cosine positions need sin and cos for two axes, "
        f"choose {max(4, width - width % 4)} or {width + 4 - width % 4} (--model.{width_name})",
    )
    allowed = [h for h in range(1, 33) if width % h == 0]
    require(
        heads in allowed,
        f"{heads_name} {heads} does not divide {width_name} {width}: choose one of {', '.join(map(str, allowed))} "
        f"(--model.{heads_name})",
    )


@dataclass(frozen=True)
class MAEConfig(EncoderConfig):
    """The masked autoencoder: the shared encoder, a lighter decoder, and the loss.

    Args:
        decoder_hidden_size: width of the decoder.
        decoder_num_hidden_layers: number of decoder layers.
        decoder_num_attention_heads: attention heads of the decoder; must divide `decoder_hidden_size`.
        decoder_intermediate_size: width of the decoder's MLPs.
        mask_ratio: part of the patches that is hidden from the encoder.
        loss: distance between prediction and pixels over the hidden patches: `l1`, `mse` or `huber` (delta 1).
        norm_pix_loss: predict each patch's pixels normalised by that patch's own mean and variance.
        decode_ratio: part of the hidden patches that a training step decodes; below 1 it is faster, and held-out losses
            still count all of them.
    """

    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 4
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    mask_ratio: float = 0.75
    loss: Literal["l1", "mse", "huber"] = "l1"
    norm_pix_loss: bool = False
    decode_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_intermediate_size"):
            _check_above_zero(f"model.{name}", getattr(self, name))
        _check_width(
            "decoder_hidden_size",
            self.decoder_hidden_size,
            "decoder_num_attention_heads",
            self.decoder_num_attention_heads,
        )
        require(
            0 <= self.mask_ratio <= 1 and 1 <= self.num_visible < self.num_patches,
            f"mask_ratio {self.mask_ratio} does not leave at least one of the {self.num_patches} patches visible and "
            "one hidden: choose a value such as 0.75 (--model.mask_ratio)",
        )
        require(
            0 < self.decode_ratio <= 1,
            f"decode_ratio {self.decode_ratio} is not above 0 and at most 1: choose 1 to decode all hidden patches in "
            "a step, 0.5 for half of them (--model.decode_ratio)",
        )

    @property
    def num_visible(self) -> int:
        """Patches the encoder sees; truncated exactly as transformers truncates."""
        return int(self.num_patches * (1 - self.mask_ratio))


@dataclass(frozen=True)
class ClassifierConfig(EncoderConfig):
    """The classifier: the shared encoder and where its weights come from.

    Args:
        init: folder or Hub id of a pre-trained encoder (a run folder will do), or `scratch` for the baseline.
        drop_path: rate of stochastic depth in the last layer, rising linearly from 0 in the first.
    """

    init: str = "runs/pretrain/stl10_base"
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.drop_path < 1,
            f"drop_path {self.drop_path} is not a probability below 1: choose 0 to switch it off, or 0.1 "
            "(--model.drop_path)",
        )


@dataclass(frozen=True)
class CropConfig:
    """The augmentation of pre-training (paper, section 4): random resized crop and flip, nothing else.

    Args:
        crop_scale: least and greatest part of the image's area that a random crop keeps.
        flip: mirror half of the images left to right; switch it off where left and right differ in meaning.
    """

    crop_scale: Pair = (0.2, 1.0)
    flip: bool = True

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        require(
            0 < low <= high <= 1,
            f"crop_scale {[low, high]} is not a range of areas: choose 0 < least <= greatest <= 1, such as [0.2, 1.0] "
            "(--augment.crop_scale)",
        )


@dataclass(frozen=True)
class AugmentConfig(CropConfig):
    """The augmentation and regularisation of fine-tuning.

    Args:
        rand_augment_ops: operations of RandAugment per image; 0 switches it off.
        rand_augment_magnitude: their strength, 0 to 10.
        mixup: alpha of mixup; 0 switches it off. With cutmix on too, each batch draws one of the two.
        cutmix: alpha of cutmix; 0 switches it off.
        label_smoothing: part of the label's weight that is spread over all classes.
        erase_probability: part of the images in which a random box becomes noise; 0 switches it off.
    """

    rand_augment_ops: int = 2
    rand_augment_magnitude: float = 9.0
    mixup: float = 0.8
    cutmix: float = 1.0
    label_smoothing: float = 0.1
    erase_probability: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.rand_augment_ops >= 0 and 0 <= self.rand_augment_magnitude <= 10,
            f"rand_augment_ops {self.rand_augment_ops}, rand_augment_magnitude {self.rand_augment_magnitude}: choose "
            "0 or more operations of strength 0 to 10 (--augment.rand_augment_ops, --augment.rand_augment_magnitude)",
        )
        require(
            self.mixup >= 0 and self.cutmix >= 0,
            f"mixup {self.mixup}, cutmix {self.cutmix}: choose 0 (off) or a positive alpha (--augment.mixup, "
            "--augment.cutmix)",
        )
        require(
            0 <= self.label_smoothing < 1,
            f"label_smoothing {self.label_smoothing} is not a part below 1: choose 0 or 0.1 "
            "(--augment.label_smoothing)",
        )
        require(
            0 <= self.erase_probability <= 1,
            f"erase_probability {self.erase_probability} is not a part of the images: choose 0 (off) to 1, such as "
            "0.25 (--augment.erase_probability)",
        )


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation. Precision and processes belong to `accelerate launch`, not here.

    Args:
        batch_size: images per optimizer step, over all devices and accumulation steps together.
        per_device_batch_size: most images a device holds at once; the rest is accumulated. Null: no accumulation.
        epochs: passes over the training images.
        base_lr: learning rate per 256 images; the optimizer gets `base_lr * batch_size / 256`.
        warmup_epochs: epochs of linear warm-up; a cosine to 0 follows.
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
    warmup_epochs: float = 20.0
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
            _check_above_zero(f"train.{name}", getattr(self, name))
        for name in ("save_every_epochs", "timeout_minutes"):
            _check_above_zero(f"train.{name}", getattr(self, name))
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
            _check_above_zero("train.per_device_batch_size", self.per_device_batch_size)
        _check_seed("train.seed", self.seed)
        require(
            0 <= self.warmup_epochs <= self.epochs,
            f"warmup_epochs {self.warmup_epochs} is not within the {self.epochs} epochs of the run: choose a smaller "
            "value (--train.warmup_epochs)",
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
        accumulation_steps = self._accumulation_steps(num_processes)
        return Plan(
            num_images=num_images,
            num_processes=num_processes,
            steps_per_epoch=steps_per_epoch,
            total_steps=max(1, round(self.epochs * steps_per_epoch)),
            warmup_steps=round(self.warmup_epochs * steps_per_epoch),
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
                f"warm-up steps   {self.warmup_steps} = {train.warmup_epochs:g} epochs x {self.steps_per_epoch}",
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
        _check_above_zero("train.figure_every_epochs", self.figure_every_epochs)
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
    warmup_epochs: float = 5.0
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


@dataclass(frozen=True)
class HubConfig:
    """Whether and where the finished model is uploaded.

    Args:
        push: upload `model/` when the run is done; needs `repo_id` and a token (`hf auth login` or `HF_TOKEN`).
        repo_id: the repository, `user/name`; made if it does not exist.
        private: make it private when it is made.
    """

    push: bool = False
    repo_id: str | None = None
    private: bool = False

    def __post_init__(self) -> None:
        require(
            self.repo_id is not None or not self.push,
            "hub.push needs a repository to push to: name it (--hub.repo_id user/name)",
        )
        require(
            self.repo_id is None or self.repo_id.count("/") == 1,
            f"repo_id {self.repo_id} is not of the form user/name: name both (--hub.repo_id user/name)",
        )


@dataclass(frozen=True)
class AuditConfig:
    """The search for test images among those to pre-train on: equal pixels and near copies.

    Args:
        sources: sources whose test images are looked for, besides those of `data.source`: `[first, second]`.
        leave_out: leave the copies out of pre-training; otherwise they are only counted and written down.
    """

    sources: tuple[str, ...] = ()
    leave_out: bool = True


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-train a masked autoencoder.

    Args:
        output_dir: the run folder; the same command on an unfinished run resumes it.
    """

    data: DataConfig = field(default_factory=DataConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    model: MAEConfig = field(default_factory=MAEConfig)
    augment: CropConfig = field(default_factory=CropConfig)
    train: PretrainTrainConfig = field(default_factory=PretrainTrainConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    output_dir: str = "runs/pretrain/stl10_base"

    def __post_init__(self) -> None:
        require(
            not (self.data.streaming and self.train.max_skipped_windows),
            f"max_skipped_windows {self.train.max_skipped_windows} would go back to batches that a stream has passed: "
            "leave it out with data.streaming (--train.max_skipped_windows 0)",
        )
        require(
            self.data.fold is None and self.data.label_fraction in (None, 1.0),
            "data.fold and data.label_fraction restrict labels, which pre-training does not use: leave them to "
            "scripts/finetune.py (--data.fold null --data.label_fraction null)",
        )
        readers = self.data.stream_readers
        require(
            not self.data.streaming or self.train.batch_size % readers == 0,
            f"batch_size {self.train.batch_size} cannot be shared out to {readers} readers of the stream: choose a "
            f"multiple of {readers} (--train.batch_size, --data.stream_readers)",
        )


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tune a classifier from a pre-trained encoder, or train the same network from scratch.

    Args:
        output_dir: the run folder; the same command on an unfinished run resumes it.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    output_dir: str = "runs/finetune/stl10_base"

    def __post_init__(self) -> None:
        require(
            len(self.data.sources) == 1,
            f"data.source names {len(self.data.sources)} sources: fine-tuning takes one, with labels (--data.source)",
        )
        _check_not_streamed(self.data)


@dataclass(frozen=True)
class PrepareConfig:
    """Decode the images of every source ahead of the runs.

    Args:
        image_size: side of the square images, the `model.image_size` of the runs.
        audit_against: look for the unlabeled images in this split, `train`, `validation` or `test`: equal pixels, and
            copies that were compressed, resized, slightly cropped, brightened or mirrored.
    """

    data: DataConfig = field(default_factory=DataConfig)
    image_size: int = 96
    audit_against: Literal["train", "validation", "test"] | None = None

    def __post_init__(self) -> None:
        require(
            self.image_size > 0,
            f"image_size {self.image_size} is not above 0: choose 96, or 32 for digits (--image_size)",
        )
        _check_not_streamed(self.data)


PROBES = ("knn", "linear", "head", "rank")


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a classifier on test images, or probe the frozen features of an encoder.

    Args:
        model: run folder, model folder or Hub id of a classifier, a masked autoencoder or an encoder.
        probe: how features are probed, several as `knn,linear`: `knn`, a vote of nearest neighbours; `linear`,
            logistic regression; `head`, the paper's batch normalisation and linear layer; `rank`, the dimensions in
            use, without labels. Left out, the model's own classifier is evaluated.
        batch_size: images at once per device.
        output_dir: folder for metrics.json, and predictions.parquet or predictions/PROBE-POOLING.parquet.
    """

    model: str
    output_dir: str
    data: DataConfig = field(default_factory=DataConfig)
    probe: str | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        _check_words("probe", self.probes, PROBES)
        _check_not_streamed(self.data)
        _check_above_zero("batch_size", self.batch_size)

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes asked for."""
        return tuple(self.probe.split(",")) if self.probe else ()


METHODS = ("knn", "linear", "finetune")


@dataclass(frozen=True)
class FewLabelsConfig:
    """Measure an encoder with few labels: on ten folds of the training images, or on budgets of 1 to 100 % of them.

    Args:
        model: run folder, model folder or Hub id of a masked autoencoder or an encoder.
        output_dir: folder for results.jsonl, summary.json and the picture; the same command goes on where it stopped.
        protocol: `folds`, STL-10's ten of 1,000 images, or ten drawn ones where the source has no fold_indices.txt;
            `budgets`, 1, 5, 10, 25 and 100 % of the labels.
        method: how labels are used, several as `knn,linear`: `knn` and `linear` on frozen features, and `finetune`.
        scratch: also measure the same network from random weights.
        draws: sets of labels that are drawn for each budget.
        finetune_config: YAML of fine-tuning, for its recipe; needed by `finetune`.
        min_steps: optimizer steps of a fine-tuning at least; where few labels would give fewer, epochs are stretched.
        batch_size: images at once per device, when features are computed.
    """

    model: str
    output_dir: str
    data: DataConfig = field(default_factory=DataConfig)
    protocol: Literal["folds", "budgets"] = "folds"
    method: str = "knn,linear"
    scratch: bool = False
    draws: int = 3
    finetune_config: str | None = None
    min_steps: int = 200
    batch_size: int = 256

    def __post_init__(self) -> None:
        _check_words("method", self.methods, METHODS)
        _check_not_streamed(self.data)
        for name in ("draws", "min_steps", "batch_size"):
            _check_above_zero(name, getattr(self, name))
        require(
            "finetune" not in self.methods or self.finetune_config is not None,
            "method finetune needs a recipe: name the YAML of a fine-tuning (--finetune_config "
            "configs/finetune/digits.yaml)",
        )
        require(
            not self.data.has_label_set,
            "data.fold and data.label_fraction are what this command varies: leave them out, and choose --protocol "
            "folds or budgets",
        )
        require(
            len(self.data.sources) == 1,
            f"data.source names {len(self.data.sources)} sources: labels come from one (--data.source)",
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods asked for."""
        return tuple(self.method.split(","))


@dataclass(frozen=True)
class ReconstructConfig:
    """Draw what a masked autoencoder makes of hidden patches.

    Args:
        model: run folder, model folder or Hub id of a masked autoencoder.
        output: the PNG file to write.
        num_images: images in the picture.
    """

    model: str
    output: str
    data: DataConfig = field(default_factory=DataConfig)
    num_images: int = 8

    def __post_init__(self) -> None:
        _check_not_streamed(self.data)
        _check_above_zero("num_images", self.num_images)
        require(
            self.output.endswith(".png"), f"output {self.output} is not a PNG file: give it the ending .png (--output)"
        )


@dataclass(frozen=True)
class DemoConfig:
    """Show a classifier or a masked autoencoder at work on a web page of this machine.

    Args:
        model: run folder, model folder or Hub id of a classifier or a masked autoencoder.
        port: the page is at http://127.0.0.1:port; other machines do not see it.
    """

    model: str
    port: int = 7860

    def __post_init__(self) -> None:
        require(
            1024 <= self.port < 2**16, f"port {self.port} is not a port for a page: choose 1024 to 65535 (--port 7860)"
        )


@dataclass(frozen=True)
class ScalingConfig:
    """The devices of `--plan`.

    Args:
        devices: most devices of the table, which has 1, 2, 4 and so on; they must be able to share the batch.
        device_tflops: dense matrix products that a device does in this precision, in TFLOP/s; null measures those of
            this machine.
        efficiency: the part of them that a step reaches (docs/benchmarks.md has measured ones).
        link_gb_per_second: what a device can send to another, in GB/s.
        memory_gib: memory of a device; what needs more is marked.
    """

    devices: int = 8
    device_tflops: float | None = None
    efficiency: float = 0.5
    link_gb_per_second: float = 25.0
    memory_gib: float = 80.0

    def __post_init__(self) -> None:
        for name in ("devices", "link_gb_per_second", "memory_gib"):
            _check_above_zero(f"scaling.{name}", getattr(self, name))
        if self.device_tflops is not None:
            _check_above_zero("scaling.device_tflops", self.device_tflops)
        require(
            0 < self.efficiency <= 1,
            f"efficiency {self.efficiency} is not a part of the peak: choose more than 0, at most 1 "
            "(--scaling.efficiency)",
        )


MEASURES = ("pretrain", "finetune", "features", "compile", "size")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure how many images per second mae_hf and stock transformers work through, in turns, on drawn images.

    Args:
        preset: YAML file of a pre-training run; its model, crops and batch are measured.
        measure: `pretrain`, `finetune` and `features` beside stock transformers; `compile`, compiled layers beside
            eager ones; `size`, 1,000 to 100,000 images. Several as `pretrain,finetune`.
        rounds: turns of each contender.
        seconds: least length of a turn, which has at least two steps.
        mixed_precision: of mae_hf; `no` is fp32. Stock is measured in fp32, pre-training also in bf16.
        output: a JSON file for the numbers; without it they are only printed.
        plan: instead of measuring, compute what the preset would take on other machines.
        scaling: those machines.
    """

    preset: str
    measure: str = "pretrain"
    rounds: int = 5
    seconds: float = 10.0
    mixed_precision: Literal["no", "bf16"] = "no"
    output: str | None = None
    plan: bool = False
    scaling: ScalingConfig = field(default_factory=ScalingConfig)

    def __post_init__(self) -> None:
        _check_words("measure", self.measures, MEASURES)
        _check_above_zero("rounds", self.rounds)
        _check_above_zero("seconds", self.seconds)
        require(
            self.output is None or self.output.endswith(".json"),
            f"output {self.output} is not a JSON file: give it the ending .json (--output)",
        )

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures asked for."""
        return tuple(self.measure.split(","))
