"""The duplicates between stores: searched once, then kept beside the decoded images; printed, listed and drawn."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mae_hf.data.cache import Store
from mae_hf.data.dataset import ImageSet
from mae_hf.data.splits import Split
from mae_hf.errors import ConfigError, Finding, require
from mae_hf.figures import PAGE, for_paper
from mae_hf.files import write_file
from mae_hf.leakage.near_duplicates import find_duplicates, pixel_digest

METHOD_VERSION = 3  # increase it when the search would find other pairs, or stores them in another way
NUM_PRINTED = 10  # pairs of rows in a printed line; the file has all of them
NUM_DRAWN, COLUMNS = 48, 4  # pairs in the picture, and beside each other


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


class Match(NamedTuple):
    """The duplicates between the images of two splits."""

    images: Store  # of pre-training
    against: Store  # what they were compared with
    found: pd.DataFrame  # of `find_duplicates`; `row` and `against_row` also count images that were skipped

    def file(self, kind: str) -> Path:
        """Return the file for the list (`json`) or the picture (`png`) of the pairs, beside the decoded images."""
        return self.against.path.with_suffix(f".audit-{self.images.digest[:8]}.{kind}")

    def records(self, against_split: str, held_out: bool = False) -> list[DuplicatePair]:
        """Return the pairs for a file."""
        source, split, against = self.images.split.source, self.images.split.role, self.against.split.source
        return [
            DuplicatePair(source, split, row, against, against_split, other, kind, round(score, 4), held_out)
            for row, other, kind, score in self.found[["row", "against_row", "kind", "score"]].itertuples(index=False)
        ]


def find_matches(images: ImageSet, against: ImageSet) -> Iterator[Match]:
    """Yield the duplicates between two image sets, for each pair of their stores."""
    for store, indices in images.parts:
        for other, other_indices in against.parts:
            found = compare_stores(store, other).found
            # Both sets may hold rows of one split, such as train and a validation set carved from it.
            inside = found["image"].isin(indices) & found["against"].isin(other_indices)
            yield Match(store, other, found[inside])


def compare_stores(images: Store, against: Store) -> Match:
    """Return the duplicates between two stores, from the file beside `images` if one can be read, else write it."""
    key = hashlib.sha256(f"{METHOD_VERSION} {images.digest} {against.digest}".encode()).hexdigest()[:20]
    file = images.path.with_name(f"duplicates-{key}.parquet")
    try:
        found = pd.read_parquet(file, columns=["image", "against", "kind", "score"])
    except Exception:  # missing or torn: pyarrow and the disk raise errors of many types
        task = f"searching {images.split.role} for duplicates of {against.split.role}"
        found = find_duplicates(images.images, against.images, task)
        _write(file, found.to_parquet)
    rows = {"row": images.rows[found["image"]], "against_row": against.rows[found["against"]]}
    return Match(images, against, found.assign(**rows))


def _write(file: Path, write: Callable[[Path], object]) -> None:
    try:
        write_file(file, write, shared=True)
    except OSError as error:
        raise ConfigError(f"cannot write {file} ({error}): choose another folder with --data.cache_dir") from error


def check_splits(splits: Sequence[Split], role: str) -> None:
    """Raise ConfigError, before any image is decoded, if there are no unlabeled images or no split `role`."""
    found = ", ".join(f"{split.role} of {split.source} ({len(split)} images)" for split in splits)
    for wanted, fix in (("unlabeled", ""), (role, "choose a different one (--audit_against train), or ")):
        fix += "name a source that has one (--data.source)"
        require(wanted in [split.role for split in splits], f"no {wanted} split to audit, only {found}: {fix}")


def audit_stores(stores: Sequence[Store], role: str) -> list[Match]:
    """Search the unlabeled split of every source for duplicates of every split `role`: train, validation or test."""
    images, against = ([store for store in stores if store.split.role == wanted] for wanted in ("unlabeled", role))
    return [compare_stores(store, other) for other in against for store in images]


def describe_match(match: Match) -> Iterator[str]:
    """Yield the duplicates in two lines for `prepare_data`, exact ones and near-duplicates."""
    for kind, name in (("exact", "exact duplicates"), ("near", "near-duplicates")):
        pairs = match.found[match.found["kind"] == kind]
        images, against = (
            f"{column.nunique():,} of {len(store.rows):,} {store.split.role} images of {store.split.source}"
            for store, column in ((match.images, pairs["row"]), (match.against, pairs["against_row"]))
        )
        shown = [f"{pair.row} and {pair.against_row}" for pair in pairs[:NUM_PRINTED].itertuples()]
        shown += ["..."] * (len(pairs) > NUM_PRINTED)
        yield f"{images} are {name} of {against}" + (f": rows {', '.join(shown)}" if shown else "")


def write_pairs(match: Match) -> Path:
    """Write all pairs, each a `DuplicatePair`, beside the decoded images, and return the file; else ConfigError."""
    pairs = json.dumps([asdict(pair) for pair in match.records(match.against.split.role)], indent=2)
    _write(match.file("json"), lambda file: file.write_text(pairs + "\n"))
    return match.file("json")


def describe_copies(stores: Sequence[Store]) -> Iterator[Finding]:
    """Yield for `doctor` the copies within each split, equal images in two classes, and copies of evaluation images."""
    for store in stores:
        split = store.split
        table = pd.DataFrame({"digest": map(pixel_digest, np.asarray(store.images)), "row": store.rows})
        table["label"] = -1 if split.labels is None else split.labels[store.rows]
        groups = table[table.duplicated("digest", keep=False)].groupby("digest", sort=False)
        num_labels, rows = groups["label"].nunique(), groups["row"].agg(list)
        for is_wrong, problem in ((True, "in two classes, of which one is wrong"), (False, "more than once")):
            chosen = rows[(num_labels > 1) == is_wrong]
            if len(chosen):
                example = " and ".join(map(split.where, chosen.iloc[0][:2]))
                text = f"{split.role} has {len(chosen):,} of its images {problem}, such as {example}"
                yield Finding("fault" if is_wrong else "note", text)
    evaluated = [store for store in stores if store.split.role in ("validation", "test")]
    for against, store in itertools.product(evaluated, [store for store in stores if store not in evaluated]):
        match, role = compare_stores(store, against), against.split.role
        if not len(match.found):
            yield Finding("ok", f"no duplicates or near-duplicates of images of {role} are in {store.split.role}")
            continue
        first = match.found.iloc[0]
        example = f"{store.split.where(first['row'])} and {against.split.where(first['against_row'])}"
        num_exact = int((match.found["kind"] == "exact").sum())
        num, total = match.found["row"].nunique(), len(store.rows)
        which = f"{num:,} of {total:,} images of {store.split.role} duplicate or nearly duplicate images of {role}"
        of_train = f"remove them from {role} or train, otherwise scores are too good"
        fix = of_train if store.split.role == "train" else "mae_hf pretrain leaves them out (--audit.leave_out)"
        pairs = f"{len(match.found):,} pairs, {num_exact:,} of them equal, are in {write_pairs(match)}"
        yield Finding("fault", f"{which}, such as {example} ({pairs})", fix)


@for_paper
def pairs_figure(images: np.ndarray, against: np.ndarray, found: pd.DataFrame, title: str) -> Figure:
    """Draw the pairs of images (N, H, W, 3) and (M, H, W, 3) in a table like `Match.found`, the least certain first."""
    pairs = found.sort_values("score", kind="stable")[:NUM_DRAWN]
    num_lines = max(1, -(-len(pairs) // COLUMNS))
    figure = Figure(figsize=(PAGE, 1.05 * num_lines + 0.5), layout="constrained")
    panels = figure.subplots(num_lines, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    for panel, pair in zip(panels, pairs.itertuples(), strict=False):
        left, right = images[pair.image], against[pair.against]
        gap = np.full((len(left), max(1, len(left) // 16), 3), 255, np.uint8)
        panel.imshow(np.concatenate([left, gap, right], axis=1), interpolation="nearest")
        score = f", {pair.score:.2f}" if pair.kind == "near" else ""
        panel.set_title(f"{pair.row} and {pair.against_row}: {pair.kind}{score}")
    more = f"; {len(found) - NUM_DRAWN:,} more are not shown" if len(found) > NUM_DRAWN else ""
    figure.suptitle(f"{title}: {len(found):,} pairs, the least certain first{more}")
    return figure
