"""audit.json: which images of pre-training duplicate test or validation images, and which of these the model has seen.

A run writes it. A copy without the pairs, which name rows of the data, travels with the model.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from mae_hf.files import read_json
from mae_hf.models.io import Checkpoint

AUDIT = "audit.json"
EXACT_ONLY = "near-duplicates are not searched for in a stream"
Evaluation = Literal["test", "validation"]


@dataclass(frozen=True)
class Pair:
    """An image and the test or validation image that it duplicates.

    Args:
        source: data source of the image; of a streamed image its shard and number.
        split: the image's split in that source, `streamed` for streamed images.
        row: the image's row in the split, or its number in the stream.
        against: data source of the test or validation image.
        against_split: `test` or `validation`, or the split that `prepare_data --audit-against` names.
        against_row: row in the split that the test or validation image was taken from.
        kind: whether the pixels are equal.
        score: correlation of the fine structure, 1 for exact duplicates.
        held_out: whether pre-training held the image out, so that it was never trained on.
    """

    source: str
    split: str
    row: int
    against: str
    against_split: str
    against_row: int
    kind: Literal["exact", "near"]
    score: float
    held_out: bool = False


@dataclass(frozen=True)
class AuditedSplit:
    """Test or validation images whose duplicates were searched for.

    Args:
        source: their data source.
        split: how they are used.
        num_images: how many they are.
        fingerprint: of their pixels and labels (`ImageSet.fingerprint`).
        num_duplicated: how many have a duplicate among the images of pre-training.
        num_seen: how many have a duplicate that pre-training was trained on.
    """

    source: str
    split: Evaluation
    num_images: int
    fingerprint: str
    num_duplicated: int = 0
    num_seen: int = 0


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Args:
        pretrained: whether the model was pre-trained at all.
        left_out: whether duplicates were left out of pre-training.
        num_test_duplicates: images to train on or held out that duplicate a test image; None while a stream is read.
        num_validation_duplicates: images to train on that duplicate a validation image; likewise.
        audited: the test and validation images whose duplicates were searched for.
        seen: hexadecimal digests of the pixels of the test images that pre-training has seen.
        pairs: every pair of duplicates; empty in the record that travels with the model.
        streamed: whether the training images were streamed: only exact duplicates were searched for among these.
    """

    pretrained: bool
    left_out: bool
    num_test_duplicates: int | None
    num_validation_duplicates: int | None
    audited: tuple[AuditedSplit, ...]
    seen: tuple[str, ...]
    pairs: tuple[Pair, ...] = ()
    streamed: bool = False

    @property
    def tests(self) -> list[AuditedSplit]:
        """The test images among the audited ones."""
        return [part for part in self.audited if part.split == "test"]


NOT_PRETRAINED = Audit(False, False, 0, 0, (), ())


def read_model_audit(name: str, revision: str | None = None) -> Audit | None:
    """Return the audit of a model's pre-training, None if the model has none.

    Raises:
        ConfigError: the model does not exist, or its `audit.json` cannot be read.
    """
    file = Checkpoint(name, revision=revision).file(AUDIT)
    audit: Audit | None = None if file is None else read_json(file, Audit)
    return audit


def audit_json(audit: Audit) -> str:
    """Return the text of `audit.json`."""
    return json.dumps(asdict(audit)) + "\n"


def describe_audit(audit: Audit) -> str:
    """Return the result of an audit in a line."""
    if not audit.pretrained:
        return "trained from scratch: no test image was seen without its label"
    clauses = [] if audit.tests else ["no test images to search for: name a source that has some (--audit.sources)"]
    done = "left out" if audit.left_out else "kept"
    for split, num in (("test", audit.num_test_duplicates), ("validation", audit.num_validation_duplicates)):
        parts = [part for part in audit.audited if part.split == split]
        total, duplicated = sum(part.num_images for part in parts), sum(part.num_duplicated for part in parts)
        if not parts:
            continue
        if num is None:
            clauses.append(f"streamed images that are equal to one of the {total:,} {split} images are {done}")
        elif num:
            verb = "images duplicate" if num > 1 else "image duplicates"
            clauses.append(f"{num:,} {verb} {duplicated:,} of the {total:,} {split} images ({done})")
        else:
            clauses.append(f"no image duplicates any of the {total:,} {split} images")
    return "; ".join([*clauses, *([EXACT_ONLY] if audit.streamed and audit.audited else [])])
