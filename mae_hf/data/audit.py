"""Which unlabeled images are also in a labelled split: pre-training has then seen what is scored later.

Only equal pixels are found, as the store holds them: a copy in another file format counts, one that was compressed,
enlarged or cropped does not.

Shapes: N images, H = W the side of the square images.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mae_hf.config import ConfigError, require
from mae_hf.data.sources import Split
from mae_hf.data.store import CHUNK, Store

DIGEST_BYTES = 16
SHOWN = 10  # pairs of rows in a line; the file has them all


def check_audit(splits: Sequence[Split], role: str) -> None:
    """Raises unless there are unlabeled images, and a split `role` to look for them in: before anything is decoded.

    Args:
        splits: every split of every source.
        role: the split to audit against: `train`, `validation` or `test`.

    Raises:
        ConfigError: either is missing.
    """
    found = ", ".join(f"{split.role} of {split.source} ({len(split)} images)" for split in splits)
    roles = {split.role for split in splits}
    require("unlabeled" in roles, f"no unlabeled split to audit, only {found}: name a source with one (--data.source)")
    require(
        role in roles,
        f"no {role} split to audit against, only {found} (runs carve a missing one from train): choose another "
        "(--audit_against train) or name a source with one (--data.source)",
    )


def audit(stores: Sequence[Store], role: str) -> list[str]:
    """Looks for the unlabeled images in every split `role`, and writes `.audit.json` beside the store of that split.

    Args:
        stores: the images of every split of every source.
        role: the split to audit against: `train`, `validation` or `test`.

    Returns:
        What was found, in lines to print.

    Raises:
        ConfigError: the file cannot be written.
    """
    lines = []
    unlabeled = [store for store in stores if store.split.role == "unlabeled"]
    several = len({store.split.source for store in stores}) > 1
    for against in [store for store in stores if store.split.role == role]:
        records = []
        for store in unlabeled:
            pairs = exact_duplicates(store.images, against.images)
            rows = np.stack([store.rows[pairs[:, 0]], against.rows[pairs[:, 1]]], axis=1)
            records.append({**_describe(store), "pairs_of_rows": rows.tolist()})
            copied, copies = _count(store, rows[:, 0], several), _count(against, rows[:, 1], several)
            lines.append(f"{copied} equal {copies}{_show(rows)}")
        file = _write({"method": "equal pixels", "against": _describe(against), "unlabeled": records}, against)
        lines.append(f"  all pairs of rows (unlabeled, {role}) are in {file}")
    return lines


def exact_duplicates(images: np.ndarray, against: np.ndarray) -> np.ndarray:
    """Every pair of equal images, by a digest of 16 bytes of the pixels of each.

    Args:
        images: np.uint8 (N, H, W, 3), memory-mapped or not; read one image at a time.
        against: np.uint8 (M, H, W, 3), likewise.

    Returns:
        Their indices, np.int64 (k, 2), ascending; an image that has several copies is in as many pairs.
    """
    digests = _digests(against)
    order = np.argsort(digests, kind="stable")
    digests = digests[order]
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(images), CHUNK):
        chunk = _digests(images[start : start + CHUNK])
        first, last = (np.searchsorted(digests, chunk, side) for side in ("left", "right"))
        for place in np.flatnonzero(last > first):
            copies = order[first[place] : last[place]]
            found.append(np.stack([np.full(len(copies), start + place), copies], axis=1))
    return np.concatenate(found)


def _digests(images: np.ndarray) -> np.ndarray:
    """BLAKE2b of each image's size and pixels, (N,) of 16 bytes."""
    digests = np.empty((len(images), DIGEST_BYTES), np.uint8)
    size = str(images.shape[1:]).encode()
    for digest, image in zip(digests, images, strict=True):
        state = hashlib.blake2b(size, digest_size=DIGEST_BYTES)
        state.update(np.ascontiguousarray(image).data)
        digest[:] = np.frombuffer(state.digest(), np.uint8)
    return digests.view(f"V{DIGEST_BYTES}")[:, 0]


def _describe(store: Store) -> dict[str, str | int]:
    split = store.split
    return {
        "source": split.source,
        "split": split.role,
        "images": len(store.rows),
        "image_size": store.images.shape[1],
        "sha256": store.digest,
    }


def _count(store: Store, rows: np.ndarray, several: bool) -> str:
    """`8 of 246 unlabeled images`, with the source if there is more than one."""
    source = f" of {store.split.source}" if several else ""
    return f"{len(np.unique(rows)):,} of {len(store.rows):,} {store.split.role} images{source}"


def _show(rows: np.ndarray) -> str:
    shown = ", ".join(f"{left} = {right}" for left, right in rows[:SHOWN])
    more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
    return f": rows {shown}{more}" if shown else ""


def _write(record: dict, against: Store) -> Path:
    file = against.path.with_suffix(".audit.json")
    try:
        file.write_text(json.dumps(record))
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error}): choose another folder (--data.cache_dir)") from error
    return file
