"""Search the images of pre-training for duplicates of test and validation images, and leave these duplicates out.

A duplicate of a test image makes the test score too good. A duplicate of a validation image makes the held-out loss
too good, and fine-tuning's choice of a checkpoint, since pre-training holds out fine-tuning's validation images.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mae_hf.data.cache import Store
from mae_hf.data.dataset import ImageSet
from mae_hf.data.stream.order import Stream
from mae_hf.errors import ConfigError
from mae_hf.leakage.matches import find_matches
from mae_hf.leakage.near_duplicates import pixel_digest
from mae_hf.leakage.record import Audit, AuditedSplit, DuplicatePair, EvaluationSplit

EvaluationSets = Mapping[EvaluationSplit, Sequence[ImageSet]]
"""The test images of each source, and the validation images of sources that are only audited."""


def audit_pretraining(
    train: ImageSet | Stream, held_out: ImageSet, evaluation: EvaluationSets, leave_out: bool
) -> tuple[ImageSet | Stream, ImageSet, Audit]:
    """Search for duplicates of test and validation images, and leave them out of pre-training, or only record them.

    Training images must not duplicate a test or validation image. Held-out images, which are validation images of the
    same sources, must not duplicate a test image. A stream is searched while it is read (`stream_search`).

    Raises:
        ConfigError: no image would be left.
    """
    searched = [held_out] if isinstance(train, Stream) else [train, held_out]
    duplicates: dict[Store, set[int]] = defaultdict(set)  # indices into the images of a store
    audited, pairs, seen = [], [], set[str]()
    for split, images in _evaluation_sets(held_out, evaluation):
        audited.append(AuditedSplit(images.parts[0][0].split.source, split, len(images), images.fingerprint))
        for own in searched if split == "test" else searched[:-1]:
            for match in find_matches(own, images):
                duplicates[match.images] |= set(match.found.pairs[:, 0].tolist())
                pairs += match.records(split, held_out=own is held_out)
                if split == "test" and own is not held_out:
                    seen |= {pixel_digest(match.against.images[index]).hex() for index in match.found.pairs[:, 1]}
    audit = Audit(True, leave_out, 0, 0, tuple(audited), () if leave_out else tuple(sorted(seen)), tuple(pairs))
    if leave_out:
        held_out = _without(held_out, duplicates)
        train = train if isinstance(train, Stream) else _without(train, duplicates)
    if isinstance(train, Stream):
        return train, held_out, replace(audit, streamed=True, num_test_duplicates=None, num_validation_duplicates=None)
    return train, held_out, _count(audit)


def _evaluation_sets(held_out: ImageSet, evaluation: EvaluationSets) -> Iterator[tuple[EvaluationSplit, ImageSet]]:
    """Yield test and validation images source by source; what pre-training holds out is validation."""
    yield from (("test", images) for images in evaluation["test"])
    yield from (("validation", ImageSet([part])) for part in held_out.parts)
    yield from (("validation", images) for images in evaluation["validation"])


def _without(images: ImageSet, duplicates: Mapping[Store, set[int]]) -> ImageSet:
    parts = [(store, np.setdiff1d(indices, list(duplicates[store]))) for store, indices in images.parts]
    parts = [(store, indices) for store, indices in parts if len(indices)]
    if not parts:
        fix = "name another source (--data.source), or keep the duplicates (--audit.leave_out false)"
        raise ConfigError(f"all {len(images)} images duplicate test or validation images: {fix}")
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
