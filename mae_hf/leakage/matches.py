"""The duplicates between stores: searched once, then kept beside the decoded images; printed, listed and drawn.

K pairs.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from mae_hf.data.cache import Store
from mae_hf.data.dataset import ImageSet
from mae_hf.data.splits import Split
from mae_hf.errors import ConfigError
from mae_hf.files import write_json, write_npz
from mae_hf.leakage.near_duplicates import Duplicates, find_duplicates
from mae_hf.leakage.record import DuplicatePair

METHOD_VERSION = 2  # increase it when the search would find other pairs, or stores them in another way
NUM_PRINTED = 10  # pairs of rows in a printed line; the file has all of them
NUM_DRAWN = 48  # pairs in the picture
COLUMNS = 4  # pairs beside each other


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
        pairs = []
        for (row, other), exact, score in zip(self.rows.tolist(), self.found.exact, self.found.scores, strict=True):
            kind: Literal["exact", "near"] = "exact" if exact else "near"
            score = round(float(score), 4)
            pairs.append(DuplicatePair(source, split, row, against, against_split, other, kind, score, held_out))
        return pairs


def find_matches(images: ImageSet, against: ImageSet) -> Iterator[Match]:
    """Yield the duplicates between two image sets, for each pair of their stores."""
    for store, indices in images.parts:
        for other, other_indices in against.parts:
            found = duplicates_between(store, other)
            # Both sets may hold rows of one split, such as train and a validation set carved from it.
            inside = np.isin(found.pairs[:, 0], indices) & np.isin(found.pairs[:, 1], other_indices)
            yield Match(store, other, found.select(inside))


def duplicates_between(images: Store, against: Store) -> Duplicates:
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
        task = f"searching {images.split.role} for duplicates of {against.split.role}"
        found = find_duplicates(images.images, against.images, task)
    try:
        write_npz(file, shared=True, **vars(found))
    except OSError as error:
        raise _unwritable(file, error) from error
    return found


def _unwritable(file: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write {file} ({error}): choose another folder with --data.cache_dir")


# ---- prepare_data --audit_against ----


def check_splits(splits: Sequence[Split], role: str) -> None:
    """Raise ConfigError, before any image is decoded, if there are no unlabeled images or no split `role`."""
    found = ", ".join(f"{split.role} of {split.source} ({len(split)} images)" for split in splits)
    for wanted, fix in (("unlabeled", ""), (role, "choose a different one (--audit_against train), or ")):
        if wanted not in {split.role for split in splits}:
            fix += "name a source that has one (--data.source)"
            raise ConfigError(f"no {wanted} split to audit, only {found}: {fix}")


def audit_stores(stores: Sequence[Store], role: str) -> list[Match]:
    """Search the unlabeled split of every source for duplicates of every split `role`: train, validation or test."""
    images, against = ([store for store in stores if store.split.role == wanted] for wanted in ("unlabeled", role))
    return [Match(store, other, duplicates_between(store, other)) for other in against for store in images]


def describe_match(match: Match) -> list[str]:
    """Return the duplicates in two lines to print, exact ones and near-duplicates."""
    lines = []
    for kind, chosen in (("exact duplicates", match.found.exact), ("near-duplicates", ~match.found.exact)):
        rows = match.rows[chosen]
        images, against = (
            f"{len(np.unique(column)):,} of {len(store.rows):,} {store.split.role} images of {store.split.source}"
            for store, column in ((match.images, rows[:, 0]), (match.against, rows[:, 1]))
        )
        shown = [f"{row} and {other}" for row, other in rows[:NUM_PRINTED]] + ["..."] * (len(rows) > NUM_PRINTED)
        lines.append(f"{images} are {kind} of {against}" + (f": rows {', '.join(shown)}" if shown else ""))
    return lines


def write_pairs(match: Match) -> Path:
    """Write the list of all pairs, each a `DuplicatePair`, beside the decoded images, and return the file.

    Raises:
        ConfigError: the file cannot be written.
    """
    file = match.file("json")
    try:
        write_json(file, [asdict(pair) for pair in match.records(match.against.split.role)], shared=True)
    except OSError as error:
        raise _unwritable(file, error) from error
    return file


def pairs_figure(images: np.ndarray, against: np.ndarray, found: Duplicates, rows: np.ndarray, title: str) -> Figure:
    """Draw pairs of images (N, H, W, 3) and (M, H, W, 3) side by side, the least certain first.

    Their numbers `rows`, np.int64 (K, 2), and their score are written above them.
    """
    order = np.argsort(found.scores, kind="stable")[:NUM_DRAWN]
    num_lines = max(1, -(-len(order) // COLUMNS))
    figure = Figure(figsize=(2.6 * COLUMNS, 1.55 * num_lines + 0.7), layout="constrained")
    panels = figure.subplots(num_lines, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    for panel, number in zip(panels, order, strict=False):
        left, right = images[found.pairs[number, 0]], against[found.pairs[number, 1]]
        gap = np.full((len(left), max(1, len(left) // 16), 3), 255, np.uint8)
        panel.imshow(np.concatenate([left, gap, right], axis=1), interpolation="nearest")
        kind = "exact" if found.exact[number] else f"near, {found.scores[number]:.2f}"
        panel.set_title(f"{rows[number, 0]} and {rows[number, 1]}: {kind}", fontsize=8)
    more = f"; {len(found) - NUM_DRAWN:,} more are not shown" if len(found) > NUM_DRAWN else ""
    figure.suptitle(f"{title}: {len(found):,} pairs, the least certain first{more}", fontsize=10)
    return figure
