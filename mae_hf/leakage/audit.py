"""Search the images of pre-training for duplicates of test and validation images, and leave these duplicates out.

A duplicate of a test image makes the test score too good. A duplicate of a validation image makes the held-out loss
too good, and fine-tuning's choice of a checkpoint, since pre-training holds out fine-tuning's validation images.
"""

import hashlib
import json
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mae_hf.data.cache import Store
from mae_hf.data.dataset import ImageSet
from mae_hf.data.splits import Split
from mae_hf.data.stream.order import Stream
from mae_hf.errors import ConfigError, require
from mae_hf.leakage.near_duplicates import Duplicates, find_duplicates, pixel_digest
from mae_hf.leakage.record import Audit, AuditedSplit, DuplicatePair, EvaluationSplit

METHOD_VERSION = 2  # increase it when the search would find other pairs, or stores them in another way
SHOWN = 10  # pairs of rows in a printed line; the file has all of them

EvaluationSets = Mapping[EvaluationSplit, Sequence[ImageSet]]


@dataclass(frozen=True, eq=False)
class Match:
    """The duplicates between the images of two splits."""

    images: Store  # of pre-training
    against: Store  # what they were compared with
    found: Duplicates  # the pairs, as indices into the arrays of both

    @property
    def rows(self) -> np.ndarray:
        """The pairs as rows of both splits, np.int64 (K, 2); they differ from the indices where images were skipped."""
        pairs = self.found.pairs
        return np.stack([self.images.rows[pairs[:, 0]], self.against.rows[pairs[:, 1]]], axis=1)

    def file(self, kind: str) -> Path:
        """Return the file for the list (`json`) or the picture (`png`) of the pairs, beside the decoded images."""
        return self.against.path.with_suffix(f".audit-{self.images.digest[:8]}.{kind}")

    def records(self, against_split: str, held_out: bool = False) -> list[DuplicatePair]:
        """Return the pairs for a file."""
        source, split, against = self.images.split.source, self.images.split.role, self.against.split.source
        kinds: list[Literal["exact", "near"]] = ["exact" if exact else "near" for exact in self.found.exact]
        return [
            DuplicatePair(source, split, row, against, against_split, other, kind, round(float(score), 4), held_out)
            for (row, other), kind, score in zip(self.rows.tolist(), kinds, self.found.scores, strict=True)
        ]


# ---- search ----


def find_matches(images: ImageSet, against: ImageSet) -> Iterator[Match]:
    """Yield the duplicates between two image sets, for each pair of their stores."""
    for store, indices in images.parts:
        for other, other_indices in against.parts:
            found = compare(store, other)
            # Both sets may hold rows of one split, such as train and a validation set carved from it.
            inside = np.isin(found.pairs[:, 0], indices) & np.isin(found.pairs[:, 1], other_indices)
            yield Match(store, other, found.select(inside))


def compare(images: Store, against: Store) -> Duplicates:
    """Return the duplicates between two stores, from the file beside `images` if they were compared before.

    Raises:
        ConfigError: the file cannot be written.
    """
    key = hashlib.sha256(f"{METHOD_VERSION} {images.digest} {against.digest}".encode()).hexdigest()[:20]
    file = images.path.with_name(f"duplicates-{key}.npz")
    try:
        with np.load(file) as kept:
            return Duplicates(kept["pairs"], kept["scores"], kept["exact"])
    except Exception:  # missing or torn: zipfile, NumPy and the disk raise errors of many types
        found = find_duplicates(images.images, against.images)
    temporary = file.with_suffix(f".{secrets.token_hex(8)}.tmp")  # other processes may compare the same stores now
    try:
        with open(temporary, "wb") as stream:
            np.savez(stream, **vars(found))
        temporary.replace(file)
    except OSError as error:
        raise _unwritable(file, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return found


def _unwritable(file: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write {file} ({error}): choose another folder with --data.cache_dir")


# ---- pre-training ----


def audit_pretraining(
    train: ImageSet | Stream, held_out: ImageSet, evaluation: EvaluationSets, leave_out: bool
) -> tuple[ImageSet | Stream, ImageSet, Audit]:
    """Search for duplicates of test and validation images, and leave them out of pre-training.

    Training images must not duplicate a test or validation image, held-out images must not duplicate a test image.

    Args:
        train: the images to train on. A stream is searched while it is read (`stream_search`).
        held_out: validation images of the same sources, to compare losses on.
        evaluation: the test images of each source, and the validation images of sources that are only audited.
        leave_out: whether to leave duplicates out; otherwise they are only recorded.

    Returns:
        Both sets without the duplicates (or as they were), and the record.

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
    require(
        len(parts) > 0,
        f"all {len(images)} images duplicate test or validation images: name another source (--data.source), or keep "
        "the duplicates (--audit.leave_out false)",
    )
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


# ---- streams ----


def stream_search(held_out: ImageSet, evaluation: EvaluationSets) -> Callable[[np.ndarray], Mapping[str, Any] | None]:
    """Return a function that recognises streamed images equal to a test or validation image.

    It takes an image, np.uint8 (H, W, 3), and returns what to note about it, or None where the image is no duplicate.
    """
    notes: dict[bytes, dict[str, Any]] = {}
    for split, images in _evaluation_sets(held_out, evaluation):
        source = images.parts[0][0].split.source
        for digest, row in zip(_digests(images), images.split_rows.tolist(), strict=True):
            note = notes.setdefault(digest, {"digest": digest.hex(), "against": []})
            note["against"].append([source, split, row])
    return lambda image: notes.get(pixel_digest(image)) if notes else None


def finish_stream_audit(audit: Audit, notes: Sequence[Mapping[str, Any]]) -> Audit:
    """Return the audit of a streamed run after its last image was read.

    It joins the audit before step 0, of the held-out images, and the notes about streamed images.
    """
    notes = [note for note in notes if note["kind"] == "exact"]
    pairs = [
        DuplicatePair(note["image"], "streamed", note["row"], source, split, row, "exact", 1.0)
        for note in notes
        for source, split, row in note["against"]
    ]
    seen = {note["digest"] for note in notes if any(split == "test" for _, split, _ in note["against"])}
    return _count(replace(audit, pairs=(*audit.pairs, *pairs), seen=() if audit.left_out else tuple(sorted(seen))))


# ---- scores ----


def seen_test_images(audit: Audit | None, test: ImageSet) -> np.ndarray | None:
    """Return which test images pre-training has seen, bool (n,).

    Args:
        audit: the audit of the model's pre-training; None if it has none.
        test: the test images, at the size that pre-training takes.

    Returns:
        None where this is unknown: without an audit, with an audit of other test images, or after a stream, in which
        near-duplicates are not searched for.
    """
    if audit is None:
        return None
    if not audit.pretrained:
        return np.zeros(len(test), bool)
    if audit.streamed or test.fingerprint not in [part.fingerprint for part in audit.tests]:
        return None
    return np.array([digest.hex() in audit.seen for digest in _digests(test)], bool)


def _digests(images: ImageSet) -> Iterator[bytes]:
    """Yield the digest of each image's pixels, one image in memory at a time."""
    return (pixel_digest(images.batch([number])[0].numpy()) for number in range(len(images)))


# ---- prepare_data --audit_against ----


def check_splits(splits: Sequence[Split], role: str) -> None:
    """Check, before any image is decoded, that there are unlabeled images and a split `role` to compare them with.

    Raises:
        ConfigError: one of the two is missing.
    """
    found = ", ".join(f"{split.role} of {split.source} ({len(split)} images)" for split in splits)
    for wanted, fix in (("unlabeled", ""), (role, "choose a different one (--audit_against train), or ")):
        require(
            wanted in {split.role for split in splits},
            f"no {wanted} split to audit, only {found}: {fix}name a source that has one (--data.source)",
        )


def audit_stores(stores: Sequence[Store], role: str) -> list[Match]:
    """Search the unlabeled split of every source for duplicates of every split `role`: train, validation or test."""
    images, against = ([store for store in stores if store.split.role == wanted] for wanted in ("unlabeled", role))
    return [Match(store, other, compare(store, other)) for other in against for store in images]


def describe_match(match: Match) -> list[str]:
    """Return the duplicates in two lines to print, exact ones and near-duplicates."""
    lines = []
    for kind, chosen in (("exact duplicates", match.found.exact), ("near-duplicates", ~match.found.exact)):
        rows = match.rows[chosen]
        images, against = (
            f"{len(np.unique(column)):,} of {len(store.rows):,} {store.split.role} images of {store.split.source}"
            for store, column in ((match.images, rows[:, 0]), (match.against, rows[:, 1]))
        )
        shown = [f"{row} and {other}" for row, other in rows[:SHOWN]] + ["..."] * (len(rows) > SHOWN)
        lines.append(f"{images} are {kind} of {against}" + (f": rows {', '.join(shown)}" if shown else ""))
    return lines


def write_pairs(match: Match) -> Path:
    """Write the list of all pairs, each a `DuplicatePair`, beside the decoded images, and return the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    file = match.file("json")
    try:
        file.write_text(json.dumps([asdict(pair) for pair in match.records(match.against.split.role)]) + "\n")
    except OSError as error:
        raise _unwritable(file, error) from error
    return file
