"""audit.json: which images of pre-training duplicate test or validation images, and which of these the model has seen.

A run writes it. A copy without the pairs, which name rows of the data, travels with the model.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Literal

from mae_hf.files import read_json
from mae_hf.models.io import SavedModel

AUDIT = "audit.json"
EXACT_ONLY = "near-duplicates are not searched for in a stream"
EvaluationSplit = Literal["test", "validation"]


@dataclass(frozen=True)
class DuplicatePair:
    """An image and the test or validation image that it duplicates."""

    source: str  # of the image; of a streamed image its shard and number
    split: str  # of the image in that source, `streamed` for streamed images
    row: int  # of the image in the split, or its number in the stream
    against: str  # source of the test or validation image
    against_split: str  # `test` or `validation`, or the split that `prepare_data --audit_against` names
    against_row: int  # row in the split that the test or validation image was taken from
    kind: Literal["exact", "near"]  # whether the pixels are equal
    score: float  # correlation of the fine structure, 1 for exact duplicates
    held_out: bool = False  # whether pre-training held the image out, so that it was never trained on


@dataclass(frozen=True)
class AuditedSplit:
    """Test or validation images whose duplicates were searched for."""

    source: str
    split: EvaluationSplit
    num_images: int
    fingerprint: str  # of their pixels and labels (`ImageSet.fingerprint`)
    num_duplicated: int = 0  # of the images, those with a duplicate among the images of pre-training
    num_seen: int = 0  # of the images, those with a duplicate that pre-training was trained on


@dataclass(frozen=True)
class Audit:
    """The result of an audit."""

    pretrained: bool  # whether the model was pre-trained at all
    left_out: bool  # whether duplicates were left out of pre-training
    num_test_duplicates: int | None  # images to train on or held out that duplicate a test image; None during a stream
    num_validation_duplicates: int | None  # images to train on that duplicate a validation image; likewise
    audited: tuple[AuditedSplit, ...]  # the test and validation images whose duplicates were searched for
    seen: tuple[str, ...]  # hexadecimal digests of the pixels of the test images that pre-training has seen
    pairs: tuple[DuplicatePair, ...] = ()  # of duplicates; empty in the record that travels with the model
    streamed: bool = False  # whether the images to train on were streamed, and searched for exact duplicates only
    is_complete: bool = True  # whether the audit covers the training of the weights that pre-training started from

    @property
    def tests(self) -> list[AuditedSplit]:
        """The test images among the audited ones."""
        return [part for part in self.audited if part.split == "test"]


NOT_PRETRAINED = Audit(False, False, 0, 0, (), ())


def read_model_audit(name: str, revision: str | None = None) -> Audit | None:
    """Return the audit of a model's pre-training, None if the model has none; ConfigError if it cannot be read."""
    file = SavedModel(name, revision=revision).folder / AUDIT
    audit: Audit | None = read_json(file, Audit) if file.is_file() else None
    return audit


def continue_audit(audit: Audit, before: Audit | None) -> Audit:
    """Return the audit of a pre-training that started from weights with the audit `before`, None if they have none."""
    audited = {part.fingerprint: part for part in before.tests} if before else {}
    is_known = before is not None and before.is_complete and not before.streamed
    if before is None or not is_known or any(part.fingerprint not in audited for part in audit.tests):
        return replace(audit, is_complete=False)
    seen = tuple(sorted({*audit.seen, *before.seen}))
    parts = [
        replace(part, num_seen=max(part.num_seen, audited[part.fingerprint].num_seen)) if part in audit.tests else part
        for part in audit.audited
    ]
    return replace(audit, seen=seen, audited=tuple(parts))


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
    if not audit.is_complete:
        clauses.append("the images that its first weights were trained on are unknown")
    elif audit.left_out and audit.seen:
        clauses.append(f"test images that its first weights have seen: {len(audit.seen):,}")
    return "; ".join([*clauses, *([EXACT_ONLY] if audit.streamed and audit.audited else [])])
