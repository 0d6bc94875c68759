"""Search the images of pre-training for duplicates of test and validation images, and leave these duplicates out.

A duplicate of a test image makes the test score too good. A duplicate of a validation image makes the held-out loss
too good, and fine-tuning's choice of a checkpoint, since validation images are those that pre-training holds out.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mae_hf.data.cache import Store
from mae_hf.data.dataset import ImageSet
from mae_hf.data.splits import Split
from mae_hf.errors import ConfigError, require
from mae_hf.leakage.near_duplicates import Duplicates, find_duplicates, pixel_digest
from mae_hf.leakage.record import Audit, AuditedSplit, Evaluation, Pair

METHOD_VERSION = 2  # increase it when the search would find other pairs, or stores them in another way
UNWRITABLE = "cannot write {file} ({error}): choose another folder with --data.cache_dir"
SHOWN = 10  # pairs of rows in a printed line; the file has all of them

EvaluationSets = Mapping[Evaluation, Sequence[ImageSet]]


@dataclass(frozen=True, eq=False)
class Match:
    """The duplicates between the images of two splits.

    Args:
        images: the decoded images of pre-training.
        against: the decoded images they were compared with.
        found: the pairs, as indices into the arrays of both.
        numbers: the pairs as numbers in the two image sets that were compared, np.int64 (K, 2).
    """

    images: Store
    against: Store
    found: Duplicates
    numbers: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """The pairs as rows of both splits, np.int64 (K, 2); they differ from the indices where images were skipped."""
        pairs = self.found.pairs
        return np.stack([self.images.rows[pairs[:, 0]], self.against.rows[pairs[:, 1]]], axis=1)

    @property
    def picture(self) -> Path:
        """The file to draw the pairs in."""
        return self.against.path.with_suffix(f".audit-{self.images.digest[:8]}.png")

    def records(self, against_split: str, held_out: bool = False) -> list[Pair]:
        """Return the pairs for a file."""
        source, split, against = self.images.split.source, self.images.split.role, self.against.split.source
        kinds: list[Literal["exact", "near"]] = ["exact" if exact else "near" for exact in self.found.exact]
        return [
            Pair(source, split, row, against, against_split, other, kind, round(float(score), 4), held_out)
            for (row, other), kind, score in zip(self.rows.tolist(), kinds, self.found.scores, strict=True)
        ]


# ---- search ----


def find_matches(images: ImageSet, against: ImageSet) -> Iterator[Match]:
    """Yield the duplicates between two image sets, for each pair of their stores."""
    for store, indices, first in _parts(images):
        for other_store, other_indices, other_first in _parts(against):
            found = compare(store, other_store)
            # Both sets may hold rows of one split, such as train and a validation set carved from it.
            found = found.select(np.isin(found.pairs[:, 0], indices) & np.isin(found.pairs[:, 1], other_indices))
            own, other = found.pairs.T
            numbers = first + np.searchsorted(indices, own), other_first + np.searchsorted(other_indices, other)
            yield Match(store, other_store, found, np.stack(numbers, axis=1))


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
            np.savez(stream, pairs=found.pairs, scores=found.scores, exact=found.exact)
        temporary.replace(file)
    except OSError as error:
        raise ConfigError(UNWRITABLE.format(file=file, error=error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return found


# ---- pre-training ----


def audit_pretraining(
    train: ImageSet, held_out: ImageSet, evaluation: EvaluationSets, leave_out: bool
) -> tuple[ImageSet, ImageSet, Audit]:
    """Search for duplicates of test and validation images, and leave them out of pre-training.

    Training images must not duplicate a test or validation image, held-out images must not duplicate a test image.

    Args:
        train: the images to train on.
        held_out: validation images of the same sources, to compare losses on.
        evaluation: the test images of each source, and the validation images of sources that are only audited.
        leave_out: whether to leave duplicates out; otherwise they are only recorded.

    Returns:
        Both sets without the duplicates (or as they were), and the record.

    Raises:
        ConfigError: no image would be left.
    """
    (train, held_out), audit = _audit([train], held_out, evaluation, leave_out)
    return train, held_out, audit


def audit_held_out(held_out: ImageSet, evaluation: EvaluationSets, leave_out: bool) -> tuple[ImageSet, Audit]:
    """Do the same for a stream, whose training images are searched while they are read (`stream_search`)."""
    (held_out,), audit = _audit([], held_out, evaluation, leave_out)
    return held_out, replace(audit, streamed=True, num_test_duplicates=None, num_validation_duplicates=None)


def _audit(
    train: list[ImageSet], held_out: ImageSet, evaluation: EvaluationSets, leave_out: bool
) -> tuple[list[ImageSet], Audit]:
    sets = [*train, held_out]
    duplicates: list[set[int]] = [set() for _ in sets]  # numbers in each set
    audited, pairs, seen = [], [], set[bytes]()
    for split, images in _evaluation_sets(held_out, evaluation):
        audited.append(AuditedSplit(images.parts[0][0].split.source, split, len(images), images.fingerprint))
        for searched, numbers in zip(sets, duplicates, strict=True):
            if split == "validation" and searched is held_out:
                continue
            for match in find_matches(searched, images):
                numbers |= set(match.numbers[:, 0].tolist())
                pairs += match.records(split, held_out=searched is held_out)
                if split == "test" and searched is not held_out and not leave_out:
                    seen |= set(_digests(images, np.unique(match.numbers[:, 1])))
    audit = _count(Audit(True, leave_out, 0, 0, tuple(audited), tuple(sorted(d.hex() for d in seen)), tuple(pairs)))
    for images, numbers in zip(sets, duplicates, strict=True) if leave_out else ():
        require(
            len(numbers) < len(images),
            f"all {len(images)} images duplicate test or validation images: name another source (--data.source), or "
            "keep the duplicates (--audit.leave_out false)",
        )
    if leave_out:
        sets = [
            images.without(np.array(sorted(found), np.int64)) for images, found in zip(sets, duplicates, strict=True)
        ]
    return sets, audit


def _count(audit: Audit) -> Audit:
    """Set every number of an audit from its pairs."""
    parts = []
    for part in audit.audited:
        own = [pair for pair in audit.pairs if (pair.against, pair.against_split) == (part.source, part.split)]
        trained = {pair.against_row for pair in own if not pair.held_out and not audit.left_out}
        parts.append(replace(part, num_duplicated=len({pair.against_row for pair in own}), num_seen=len(trained)))
    images = {
        split: {(pair.source, pair.split, pair.row) for pair in audit.pairs if pair.against_split == split}
        for split in ("test", "validation")
    }
    test, validation = len(images["test"]), len(images["validation"])
    return replace(audit, audited=tuple(parts), num_test_duplicates=test, num_validation_duplicates=validation)


# ---- streams ----


def stream_search(held_out: ImageSet, evaluation: EvaluationSets) -> Callable[[np.ndarray], Mapping[str, Any] | None]:
    """Return a function that recognises streamed images equal to a test or validation image.

    It takes an image, np.uint8 (H, W, 3), and returns what to note about it, or None where the image is no duplicate.
    """
    notes: dict[bytes, dict[str, Any]] = {}
    for split, images in _evaluation_sets(held_out, evaluation):
        source = images.parts[0][0].split.source
        for digest, row in zip(_digests(images, range(len(images))), images.rows.tolist(), strict=True):
            note = notes.setdefault(digest, {"digest": digest.hex(), "against": []})
            note["against"].append([source, split, row])
    return lambda image: notes.get(pixel_digest(image)) if notes else None


def finish_stream_audit(audit: Audit, notes: Sequence[Mapping[str, Any]]) -> Audit:
    """Return the audit of a run whose images were streamed, after the last one was read.

    Args:
        audit: the audit before step 0, with the duplicates among the held-out images.
        notes: the notes about streamed images; those of kind `exact` are about duplicates.
    """
    notes = [note for note in notes if note["kind"] == "exact"]
    pairs = [
        Pair(note["image"], "streamed", note["row"], source, split, row, "exact", 1.0)
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
    return np.array([digest.hex() in audit.seen for digest in _digests(test, range(len(test)))], bool)


# ---- prepare_data --audit-against ----


def check_splits(splits: Sequence[Split], role: str) -> None:
    """Check, before any image is decoded, that there are unlabeled images and a split `role` to compare them with.

    Raises:
        ConfigError: one of the two is missing.
    """
    found = ", ".join(f"{split.role} of {split.source} ({len(split)} images)" for split in splits)
    roles = {split.role for split in splits}
    require("unlabeled" in roles, f"no unlabeled split to audit, only {found}: name a source with one (--data.source)")
    require(
        role in roles,
        f"no {role} split to audit against, only {found} (runs carve a missing one from train): choose another "
        "(--audit_against train) or name a source with one (--data.source)",
    )


def audit_stores(stores: Sequence[Store], role: str) -> list[Match]:
    """Search the unlabeled split of every source for duplicates of every split `role`: train, validation or test."""
    whole = {store: ImageSet([(store, np.arange(len(store.rows)))]) for store in stores}
    images, against = ([store for store in stores if store.split.role == wanted] for wanted in ("unlabeled", role))
    return [match for other in against for store in images for match in find_matches(whole[store], whole[other])]


def describe_matches(matches: Sequence[Match]) -> list[str]:
    """Return the duplicates in lines to print: exact ones first, then near-duplicates with their scores."""
    lines = []
    several = len({store.split.source for match in matches for store in (match.images, match.against)}) > 1
    for match in matches:
        for kind, sign in (("exact duplicates", "="), ("near-duplicates", "~")):
            chosen = match.found.exact if sign == "=" else ~match.found.exact
            rows, scores = match.rows[chosen], match.found.scores[chosen]
            images, against = (
                _part_of(store, column, several)
                for store, column in ((match.images, rows[:, 0]), (match.against, rows[:, 1]))
            )
            pairs = [
                f"{row} {sign} {other}" + (f" ({score:.2f})" if sign == "~" else "")
                for (row, other), score in zip(rows[:SHOWN], scores, strict=False)
            ]
            more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
            lines.append(f"{images} are {kind} of {against}" + (f": rows {', '.join(pairs)}{more}" if pairs else ""))
    return lines


def write_matches(matches: Sequence[Match]) -> list[str]:
    """Write `.audit.json` beside each store that was audited against, and return the files.

    Raises:
        ConfigError: a file cannot be written.
    """
    files = []
    for against in dict.fromkeys(match.against for match in matches):
        own = [match for match in matches if match.against is against]
        content = {
            "against": _describe_store(against),
            "unlabeled": [_describe_store(match.images) for match in own],
            "pairs": [asdict(pair) for match in own for pair in match.records(against.split.role)],
        }
        file = against.path.with_suffix(".audit.json")
        try:
            file.write_text(json.dumps(content) + "\n")
        except OSError as error:
            raise ConfigError(UNWRITABLE.format(file=file, error=error)) from error
        files.append(str(file))
    return files


def _describe_store(store: Store) -> dict[str, str | int]:
    """Return which images a store holds, for a JSON file."""
    split = store.split
    names = {"source": split.source, "split": split.role, "sha256": store.digest}
    return names | {"images": len(store.rows), "image_size": store.images.shape[1]}


def _part_of(store: Store, rows: np.ndarray, several: bool) -> str:
    """Return `8 of 246 unlabeled images`, with the source if there are several."""
    source = f" of {store.split.source}" if several else ""
    return f"{len(np.unique(rows)):,} of {len(store.rows):,} {store.split.role} images{source}"


# ---- image sets ----


def _evaluation_sets(held_out: ImageSet, evaluation: EvaluationSets) -> Iterator[tuple[Evaluation, ImageSet]]:
    """Yield test and validation images source by source; what pre-training holds out is validation."""
    yield from (("test", images) for images in evaluation["test"])
    yield from (("validation", ImageSet([part])) for part in held_out.parts)
    yield from (("validation", images) for images in evaluation["validation"])


def _parts(images: ImageSet) -> Iterator[tuple[Store, np.ndarray, int]]:
    """Yield each store of a set, the indices into it, and the number of its first image in the set."""
    firsts = accumulate((len(indices) for _, indices in images.parts), initial=0)
    return ((store, indices, first) for (store, indices), first in zip(images.parts, firsts, strict=False))


def _digests(images: ImageSet, numbers: Sequence[int] | np.ndarray) -> Iterator[bytes]:
    """Yield the digests of the pixels of some images, one image in memory at a time."""
    return (pixel_digest(images.batch([number])[0].numpy()) for number in numbers)
