"""The images of a protocol: the labelled train images, of which a label set is some rows, and test."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from mae_hf.config.data import DataConfig
from mae_hf.data.dataset import ImageSet, load_labelled_images
from mae_hf.data.splits import Split, few_label_rows
from mae_hf.evaluation.few_labels.protocol import LabelSet
from mae_hf.evaluation.unseen import describe_seen
from mae_hf.leakage.audit import seen_test_images
from mae_hf.leakage.record import Audit


@dataclass(frozen=True, eq=False)
class ProtocolImages:
    """What every label set is taken from, and what every method is scored on.

    Args:
        train: all labelled train images that can be decoded, in parts.
        test: all test images.
        seen: bool (n_test,), which of them the encoder's pre-training has seen; None where that is not known.
    """

    train: tuple[ImageSet, ...]
    test: ImageSet
    seen: np.ndarray | None

    @property
    def split(self) -> Split:
        """The labelled train split."""
        return self.train[0].parts[0][0].split

    @property
    def rows(self) -> np.ndarray:
        """Rows of the train split that have an image and are no part of test, np.int64, ascending."""
        return np.sort(np.concatenate([part.rows for part in self.train]))

    @property
    def fingerprint(self) -> str:
        """Changes with any image or label."""
        return " ".join(part.fingerprint for part in (*self.train, self.test))

    def rows_of(self, label_set: LabelSet) -> np.ndarray:
        """Rows of the train split whose labels are in the set: the very images that fine-tuning on it gets."""
        return few_label_rows(self.split, self.rows, label_set.data)

    def describe(self) -> str:
        """Return the numbers of images, and how many test images pre-training has seen, to print."""
        numbers = f"{len(self.rows)} labelled train images; every accuracy is of all {len(self.test)} test images"
        return f"{numbers}\n{describe_seen(self.seen)}"


def load_protocol_images(data: DataConfig, image_size: int, audit: Audit | None) -> ProtocolImages:
    """Opens the images of a source with labels.

    Args:
        data: the source; its own validation split is not used.
        image_size: side of the images.
        audit: the audit of the encoder's pre-training; None if it has none.

    Raises:
        ConfigError: the source is wrong, or an image of it cannot be decoded.
    """
    images = load_labelled_images(dataclasses.replace(data, label_fraction=1.0), image_size)
    return ProtocolImages(
        train=(images["train"], images["validation"]),
        test=images["test"],
        seen=seen_test_images(audit, images["test"]),
    )
