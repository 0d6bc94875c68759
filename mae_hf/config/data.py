"""Where the images come from and how they are split; which copies of test images are looked for."""

import math
from dataclasses import dataclass
from typing import Literal

from mae_hf.config.checks import Choice, check_above_zero, check_seed
from mae_hf.errors import MAX_NAME, is_plain, require

STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

STL10_MEAN = (0.4467, 0.4398, 0.4066)

STL10_STD = (0.2603, 0.2566, 0.2713)

NUM_FOLDS = 10

Triple = tuple[float, float, float]


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
            check_above_zero(f"data.{name}", getattr(self, name))
        require(
            self.stream_buffer >= self.stream_readers,
            f"stream_buffer {self.stream_buffer} has no image for each of the {self.stream_readers} readers: choose "
            "4096, or at least so many (--data.stream_buffer)",
        )
        check_seed("data.split_seed", self.split_seed)
        check_seed("data.label_seed", self.label_seed)

    @property
    def has_label_set(self) -> bool:
        """Whether a fold or a part of `train`'s labels is all that may be used, for validation, too."""
        return self.fold is not None or self.label_fraction is not None

    @property
    def sources(self) -> tuple[str, ...]:
        """`source` as a tuple, one or many."""
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)


def check_not_streamed(data: DataConfig) -> None:
    require(
        not data.streaming,
        "data.streaming is for scripts/pretrain.py: labelled images are few, and are decoded once and kept; leave it "
        "out (--data.streaming false)",
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
