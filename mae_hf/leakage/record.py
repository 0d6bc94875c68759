"""Which test images pre-training has seen: looked for before it starts, kept with the model, read when it is scored.

The record is a dict as JSON has it, `audit.json` of a run and of its model:
    pretrained    whether images without labels were seen at all
    left_out      whether the copies of test images were left out
    num_copies    images to pre-train on, or held out from them, that are copies of a test image
    tests         the test images that were looked for: `source`, `images`, `num_copied`, `num_seen` and `fingerprint`
    seen          digests of the pixels of those that pre-training has seen
    pairs         every copy by its row (not with the model, whose rows nobody else has)
    streamed      true where the images came as a stream: equal pixels were looked for among all that came, near copies
                  only among those held out; `num_copies` is None until the run is done
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mae_hf.data.dataset import ImageSet
from mae_hf.errors import require
from mae_hf.leakage.audit import Finding, compare, pair_records
from mae_hf.leakage.near_copies import digests_of

Record = dict[str, Any]
CAVEAT = "; near copies are not looked for in a stream"
NOT_PRETRAINED: Record = {"pretrained": False, "left_out": False, "num_copies": 0, "tests": [], "seen": []}


def audit_pretraining(
    train: ImageSet, held_out: ImageSet, tests: Sequence[ImageSet], leave_out: bool
) -> tuple[ImageSet, ImageSet, Record]:
    """Looks for test images among those of pre-training, and leaves their copies out.

    Args:
        train: the images to train on.
        held_out: those to compare losses on.
        tests: the test images of each source, of the same size.
        leave_out: whether to leave copies out; otherwise they are only recorded.

    Returns:
        Both sets without the copies (or as they were), and the record.

    Raises:
        ConfigError: nothing would be left.
    """
    (train, held_out), record = _audit([train], held_out, tests, leave_out)
    return train, held_out, record


def audit_held_out(held_out: ImageSet, tests: Sequence[ImageSet], leave_out: bool) -> tuple[ImageSet, Record]:
    """The same where the images to train on are streamed: they are looked at as they come, see `copies_to_find`."""
    (held_out,), record = _audit([], held_out, tests, leave_out)
    return held_out, record | {"streamed": True, "num_copies": None}


def _audit(
    train: Sequence[ImageSet], held_out: ImageSet, tests: Sequence[ImageSet], leave_out: bool
) -> tuple[list[ImageSet], Record]:
    sets = [*train, held_out]
    copies: list[set[int]] = [set() for _ in sets]  # rows of each
    pairs, described, digests = [], [], []
    for test in tests:
        copied: list[set[int]] = [set() for _ in sets]  # rows of test that have a copy there
        for images, rows, test_rows in zip(sets, copies, copied, strict=True):
            for own, other, records in _copies_between(images, test):
                rows |= own
                test_rows |= other
                pairs += records
        seen = sorted(set().union(*copied[:-1])) if not leave_out else []
        digests += [bytes(digest).hex() for digest in _digests(test, seen)]
        described.append(
            {
                "source": test.parts[0][0].split.source,
                "images": len(test),
                "num_copied": len(set().union(*copied)),
                "num_seen": len(seen),
                "fingerprint": test.fingerprint,
            }
        )
    record: Record = {"pretrained": True, "left_out": leave_out, "num_copies": sum(map(len, copies))}
    record |= {"tests": described, "seen": sorted(set(digests)), "pairs": pairs}
    if not leave_out:
        return sets, record
    for images, rows in zip(sets, copies, strict=True):
        require(
            len(rows) < len(images),
            f"all {len(images)} images are copies of test images: name another source (--data.source), or pre-train "
            "on them all the same (--audit.leave_out false)",
        )
    return [_without(images, rows) for images, rows in zip(sets, copies, strict=True)], record


def copies_to_find(tests: Sequence[ImageSet]) -> dict[bytes, Record]:
    """What to write down about a streamed image that has the pixels of a test image, by the digest of these pixels.

    Args:
        tests: the test images of each source.
    """
    found: dict[bytes, Record] = {}
    for test in tests:
        source = test.parts[0][0].split.source
        for index, row in enumerate(test.rows):
            digest = bytes(_digests(test, [index])[0])
            note = found.setdefault(digest, {"digest": digest.hex(), "against": []})
            note["against"].append([source, int(row)])
    return found


def finish_stream_audit(record: Record, notes: Sequence[Record]) -> Record:
    """The record of a run whose images were streamed, once they have come.

    Args:
        record: that of before step 0, with the copies among the images held out.
        notes: what was written down about streamed images; of those with equal pixels, as in `copies_to_find`.
    """
    copies = [note for note in notes if note["kind"] == "equal"]
    pairs = [
        {"source": note["image"], "split": "streamed", "against": source, "row": note["row"], "against_row": row}
        | {"kind": "equal", "score": 1.0}
        for note in copies
        for source, row in note["against"]
    ]
    held_out = {(pair["source"], pair["row"]) for pair in record["pairs"]}
    streamed = {(pair["against"], pair["against_row"]) for pair in pairs}
    every = streamed | {(pair["against"], pair["against_row"]) for pair in record["pairs"]}
    seen = set() if record["left_out"] else streamed
    tests = [
        test
        | {"num_copied": len([source for source, _ in every if source == test["source"]])}
        | {"num_seen": len([source for source, _ in seen if source == test["source"]])}
        for test in record["tests"]
    ]
    digests = [] if record["left_out"] else sorted({note["digest"] for note in copies})
    found = {"num_copies": len(held_out) + len(copies), "tests": tests, "seen": digests}
    return record | found | {"pairs": [*record["pairs"], *pairs]}


def describe_audit(record: Record) -> str:
    """What was found, in a line."""
    if not record["pretrained"]:
        return "trained from scratch: no test image was seen without its label"
    if not record["tests"]:
        return "no test images to look for: name a source that has some (--audit.sources)"
    num_tests = sum(test["images"] for test in record["tests"])
    if record["num_copies"] is None:
        done = "left out" if record["left_out"] else "counted"
        return f"streamed images with the pixels of one of {num_tests:,} test images are {done} as they come{CAVEAT}"
    caveat = CAVEAT if record.get("streamed") else ""
    if not record["num_copies"]:
        return f"no image is a copy of one of the {num_tests:,} test images{caveat}"
    tests = " and ".join(f"{test['num_copied']:,} of the {test['images']:,} test images" for test in record["tests"])
    done = "left out" if record["left_out"] else "not left out"
    return f"{record['num_copies']:,} images are copies of {tests}: {done}{caveat}"


def seen_test_images(record: Record | None, test: ImageSet) -> np.ndarray | None:
    """Which of the test images pre-training has seen.

    Args:
        record: that of the model; None where it has none.
        test: the test images, of the size that pre-training takes.

    Returns:
        bool (n,), or None where it is not known: there is no record, these images were not looked for, or near copies
        of them were not, as in a stream.
    """
    if record is None:
        return None
    if not record["pretrained"]:
        return np.zeros(len(test), bool)
    if record.get("streamed") or test.fingerprint not in [audited["fingerprint"] for audited in record["tests"]]:
        return None
    known = set(record["seen"])
    return np.array([bytes(digest).hex() in known for digest in _digests(test, range(len(test)))], bool)


def _copies_between(images: ImageSet, test: ImageSet) -> Iterator[tuple[set[int], set[int], list[Record]]]:
    """For each pair of stores: the rows of both sets that are copies, and the pairs for the record."""
    offset = 0
    for store, indices in images.parts:
        test_offset = 0
        for against, test_indices in test.parts:
            copies = compare(store, against)
            # both may be parts of one split: test is carved from train where a source has none
            here = np.isin(copies.pairs[:, 0], indices) & np.isin(copies.pairs[:, 1], test_indices)
            found = Finding(store, against, copies.select(here))
            own, other = found.copies.pairs.T
            places = {"source": store.split.source, "split": store.split.role, "against": against.split.source}
            yield (
                set((offset + np.searchsorted(indices, own)).tolist()),
                set((test_offset + np.searchsorted(test_indices, other)).tolist()),
                [{**places, **pair} for pair in pair_records(found)],
            )
            test_offset += len(test_indices)
        offset += len(indices)


def _digests(images: ImageSet, rows: Sequence[int]) -> np.ndarray:
    """Digests of the pixels of some rows; one image in memory at a time."""
    return np.array([digests_of(images.batch([row]).numpy())[0] for row in rows])


def _without(images: ImageSet, rows: set[int]) -> ImageSet:
    return images.without(np.array(sorted(rows), np.int64))
