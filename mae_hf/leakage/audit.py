"""Which images of pre-training duplicate test or validation images, and which of these the model has seen.

A duplicate of a test image makes the test score too good. A duplicate of a validation image makes the held-out loss
too good, and fine-tuning's choice of a checkpoint, since pre-training holds out fine-tuning's validation images. A run
writes `audit.json`. A copy without the pairs, which name rows of the data, travels with the model.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mae_hf.data.cache import Store
from mae_hf.data.dataset import ImageSet
from mae_hf.data.stream.order import Stream
from mae_hf.errors import require
from mae_hf.files import read_json
from mae_hf.leakage.matches import DuplicatePair, find_matches
from mae_hf.leakage.near_duplicates import pixel_digest
from mae_hf.models.io import SavedModel

AUDIT = "audit.json"
EvaluationSplit = Literal["test", "validation"]
EvaluationSets = Mapping[str, Sequence[ImageSet]]
"""By split: the test images of each source, and the validation images of sources that are only audited."""


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


def audit_pretraining(
    train: ImageSet | Stream, held_out: ImageSet, evaluation: EvaluationSets, leave_out: bool
) -> tuple[ImageSet | Stream, ImageSet, Audit]:
    """Search for duplicates of test and validation images, and leave them out of pre-training, or only record them.

    Training images must not duplicate a test or validation image. Held-out images, which are validation images of the
    same sources, must not duplicate a test image. A stream is searched while it is read (`stream_search`). ConfigError
    if no image would be left.
    """
    searched = [held_out] if isinstance(train, Stream) else [train, held_out]
    duplicates: dict[Store, set[int]] = defaultdict(set)  # indices into the images of a store
    audited, pairs, seen = [], [], set[str]()
    for split, images in _evaluation_sets(held_out, evaluation):
        audited.append(AuditedSplit(images.parts[0][0].split.source, split, len(images), images.fingerprint))
        for own in searched if split == "test" else searched[:-1]:
            for match in find_matches(own, images):
                duplicates[match.images] |= set(match.found["image"])
                pairs += match.records(split, held_out=own is held_out)
                if split == "test" and own is not held_out and not leave_out:
                    seen |= {pixel_digest(match.against.images[index]).hex() for index in match.found["against"]}
    audit = Audit(True, leave_out, None, None, tuple(audited), tuple(sorted(seen)), tuple(pairs))
    held_out = _without(held_out, duplicates) if leave_out else held_out
    if isinstance(train, Stream):
        return train, held_out, replace(audit, streamed=True)
    return _without(train, duplicates) if leave_out else train, held_out, _count(audit)


def _evaluation_sets(held_out: ImageSet, evaluation: EvaluationSets) -> Iterator[tuple[EvaluationSplit, ImageSet]]:
    """Yield test and validation images source by source; what pre-training holds out is validation."""
    yield from (("test", images) for images in evaluation["test"])
    yield from (("validation", ImageSet([part])) for part in held_out.parts)
    yield from (("validation", images) for images in evaluation["validation"])


def _without(images: ImageSet, duplicates: Mapping[Store, set[int]]) -> ImageSet:
    parts = [(store, np.setdiff1d(indices, list(duplicates[store]))) for store, indices in images.parts]
    parts = [(store, indices) for store, indices in parts if len(indices)]
    fix = "name another source (--data.source), or keep the duplicates (--audit.leave_out false)"
    require(bool(parts), f"all {len(images)} images duplicate test or validation images: {fix}")
    return ImageSet(parts)


def _count(audit: Audit) -> Audit:
    """Set every number of an audit from its pairs."""
    parts = []
    for part in audit.audited:
        own = [pair for pair in audit.pairs if (pair.against, pair.against_split) == (part.source, part.split)]
        trained = {pair.against_row for pair in own if not pair.held_out and not audit.left_out}
        parts.append(replace(part, num_duplicated=len({pair.against_row for pair in own}), num_seen=len(trained)))
    test, validation = (
        len({(pair.source, pair.split, pair.row) for pair in audit.pairs if pair.against_split == split})
        for split in ("test", "validation")
    )
    return replace(audit, audited=tuple(parts), num_test_duplicates=test, num_validation_duplicates=validation)


def stream_search(held_out: ImageSet, evaluation: EvaluationSets) -> Callable[[np.ndarray], Mapping[str, Any] | None]:
    """Return a function of a streamed image, np.uint8 (H, W, 3): what to note if it equals an evaluation image."""
    notes: dict[bytes, dict[str, Any]] = {}
    for split, images in _evaluation_sets(held_out, evaluation):
        source = images.parts[0][0].split.source
        for digest, row in zip(_digests(images), images.split_rows.tolist(), strict=True):
            note = notes.setdefault(digest, {"digest": digest.hex(), "against": []})
            note["against"].append([source, split, row])
    return lambda image: notes.get(pixel_digest(image)) if notes else None


def finish_stream_audit(audit: Audit, notes: Sequence[Mapping[str, Any]]) -> Audit:
    """Join the audit before step 0, of the held-out images, and the notes about all streamed images."""
    notes = [note for note in notes if note["kind"] == "exact"]
    pairs = [
        DuplicatePair(note["image"], "streamed", note["row"], source, split, row, "exact", 1.0)
        for note in notes
        for source, split, row in note["against"]
    ]
    seen = {note["digest"] for note in notes if any(split == "test" for _, split, _ in note["against"])}
    return _count(replace(audit, pairs=(*audit.pairs, *pairs), seen=() if audit.left_out else tuple(sorted(seen))))


def seen_test_images(audit: Audit | None, test: ImageSet) -> np.ndarray | None:
    """Return which test images, of the size that pre-training takes, it has seen: bool (n,), or None if unknown.

    It is unknown without an audit, with an audit of other test images, after a stream, in which near-duplicates are not
    searched for, or if pre-training started from weights without an audit.
    """
    if audit is None:
        return None
    if not audit.pretrained:
        return np.zeros(len(test), bool)
    if audit.streamed or not audit.is_complete or test.fingerprint not in [part.fingerprint for part in audit.tests]:
        return None
    return np.array([digest.hex() in audit.seen for digest in _digests(test)], bool)


def _digests(images: ImageSet) -> Iterator[bytes]:
    """Yield the digest of each image's pixels, one image in memory at a time."""
    return (pixel_digest(images.batch([number])[0].numpy()) for number in range(len(images)))


def read_model_audit(name: str, revision: str | None = None) -> Audit | None:
    """Return the audit of a model's pre-training, None if the model has none; ConfigError if it cannot be read."""
    file = SavedModel(name, revision=revision).folder / AUDIT
    return read_json(file, Audit) if file.is_file() else None


def continue_audit(audit: Audit, before: Audit | None) -> Audit:
    """Return the audit of a pre-training that started from weights with the audit `before`, None if they have none."""
    num_seen = {part.fingerprint: part.num_seen for part in before.tests} if before else {}
    is_known = before is not None and before.is_complete and not before.streamed
    if before is None or not is_known or any(part.fingerprint not in num_seen for part in audit.tests):
        return replace(audit, is_complete=False)
    tests = [replace(part, num_seen=max(part.num_seen, num_seen[part.fingerprint])) for part in audit.tests]
    others = [part for part in audit.audited if part.split != "test"]
    return replace(audit, seen=tuple(sorted({*audit.seen, *before.seen})), audited=(*tests, *others))


def describe_audit(audit: Audit) -> str:
    """Return the result of an audit in a line."""
    if not audit.pretrained:
        return "trained from scratch: no test image was seen without its label"
    clauses = [] if audit.tests else ["no test images to search for: name a source that has some (--audit.sources)"]
    done = "left out" if audit.left_out else "kept"
    for split, num in (("test", audit.num_test_duplicates), ("validation", audit.num_validation_duplicates)):
        parts = [part for part in audit.audited if part.split == split]
        total, duplicated = sum(part.num_images for part in parts), sum(part.num_duplicated for part in parts)
        if parts and num is None:
            clauses.append(f"streamed images that are equal to one of the {total:,} {split} images are {done}")
        elif parts and num:
            verb = "images duplicate" if num > 1 else "image duplicates"
            clauses.append(f"{num:,} {verb} {duplicated:,} of the {total:,} {split} images ({done})")
        elif parts:
            clauses.append(f"no image duplicates any of the {total:,} {split} images")
    if not audit.is_complete:
        clauses.append("the images that its first weights were trained on are unknown")
    elif audit.left_out and audit.seen:
        clauses.append(f"test images that its first weights have seen: {len(audit.seen):,}")
    if audit.streamed and audit.audited:
        clauses.append("near-duplicates are not searched for in a stream")
    return "; ".join(clauses)
