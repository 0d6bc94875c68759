"""Which unlabeled images are also in a labelled split: pre-training has then seen what is scored later.

Equal pixels count, as the store holds them, and near copies (`mae_hf.leakage.near_copies`).
"""

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mae_hf.data.cache import Store
from mae_hf.data.sources import Split
from mae_hf.errors import ConfigError, require
from mae_hf.leakage.near_copies import Copies, find_copies

METHOD_VERSION = 1  # raise it when other pairs would be found
SHOWN = 10  # pairs of rows in a line; the file has them all
UNWRITABLE = "{file} cannot be written ({error}): choose another folder (--data.cache_dir)"


@dataclass(frozen=True, eq=False)
class Finding:
    """The copies between the images of two splits.

    Args:
        images: the unlabeled images.
        against: the images that they were compared with.
        copies: the pairs, as indices into the arrays of both.
    """

    images: Store
    against: Store
    copies: Copies

    @property
    def rows(self) -> np.ndarray:
        """The pairs as rows of both splits, np.int64 (K, 2); other than the indices where images were skipped."""
        pairs = self.copies.pairs
        return np.stack([self.images.rows[pairs[:, 0]], self.against.rows[pairs[:, 1]]], axis=1)

    @property
    def picture(self) -> Path:
        """Where the picture of the pairs belongs."""
        return self.against.path.with_suffix(f".audit-{self.images.digest[:8]}.png")


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


def audit(stores: Sequence[Store], role: str) -> list[Finding]:
    """Looks for the images of each unlabeled split in every split `role`.

    Args:
        stores: the images of every split of every source, of one size.
        role: the split to audit against: `train`, `validation` or `test`.

    Raises:
        ConfigError: the cache cannot be written.
    """
    return [
        Finding(images, against, compare(images, against))
        for against in stores
        if against.split.role == role
        for images in stores
        if images.split.role == "unlabeled"
    ]


def compare(images: Store, against: Store) -> Copies:
    """The copies between two stores; the same two are compared once, and the result lies beside the first.

    Raises:
        ConfigError: the result cannot be written.
    """
    key = hashlib.sha256(f"{METHOD_VERSION} {images.digest} {against.digest}".encode()).hexdigest()[:20]
    file = images.path.with_name(f"copies-{key}.npz")
    try:
        with np.load(file) as kept:
            return Copies(kept["pairs"], kept["scores"], kept["equal"])
    except Exception:  # not there, or not whole: zipfile, NumPy and the disk raise their own
        copies = find_copies(images.images, against.images)
    temporary = file.with_suffix(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "wb") as stream:
            np.savez(stream, pairs=copies.pairs, scores=copies.scores, equal=copies.equal)
        os.replace(temporary, file)
    except OSError as error:
        raise ConfigError(UNWRITABLE.format(file=file, error=error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return copies


def describe(findings: Sequence[Finding]) -> list[str]:
    """What was found, in lines to print: equal pixels first, then near copies with their scores."""
    lines = []
    several = len({store.split.source for found in findings for store in (found.images, found.against)}) > 1
    for found in findings:
        for kind, sign in (("equal", "="), ("are near copies of", "~")):
            chosen = found.copies.equal if sign == "=" else ~found.copies.equal
            rows, scores = found.rows[chosen], found.copies.scores[chosen]
            copied, copies = _count(found.images, rows[:, 0], several), _count(found.against, rows[:, 1], several)
            pairs = [f"{left} {sign} {right}" for left, right in rows]
            if sign == "~":
                pairs = [f"{pair} ({score:.2f})" for pair, score in zip(pairs, scores, strict=True)]
            more = f" and {len(pairs) - SHOWN:,} more" if len(pairs) > SHOWN else ""
            lines.append(f"{copied} {kind} {copies}" + (f": rows {', '.join(pairs[:SHOWN])}{more}" if pairs else ""))
    return lines


def write_audit(findings: Sequence[Finding]) -> list[Path]:
    """Writes `.audit.json` beside the store of each split that was audited against, and returns the files.

    Raises:
        ConfigError: a file cannot be written.
    """
    files = []
    for against in dict.fromkeys(found.against for found in findings):
        parts = [
            {**describe_store(found.images), "pairs": pair_records(found)}
            for found in findings
            if found.against is against
        ]
        file = against.path.with_suffix(".audit.json")
        try:
            file.write_text(json.dumps({"against": describe_store(against), "unlabeled": parts}))
        except OSError as error:
            raise ConfigError(UNWRITABLE.format(file=file, error=error)) from error
        files.append(file)
    return files


def pair_records(found: Finding) -> list[dict[str, int | float | str]]:
    """Each pair for a JSON file: `row` and `against_row` of the splits, `kind` (`equal` or `near`) and `score`."""
    return [
        {
            "row": int(row),
            "against_row": int(against_row),
            "kind": "equal" if equal else "near",
            "score": round(float(score), 4),
        }
        for (row, against_row), equal, score in zip(found.rows, found.copies.equal, found.copies.scores, strict=True)
    ]


def describe_store(store: Store) -> dict[str, str | int]:
    """Which images a store holds, for a JSON file."""
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
