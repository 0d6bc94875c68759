"""Which images are copies of others: equal pixels, and near copies.

A near copy was compressed, resized, cropped by up to a tenth of its side, brightened, changed in contrast, or mirrored.
Candidates have similar low frequencies: of both images as a whole, of the corner and centre crops of either, or of the
mirrored one; that is a matrix product. Each candidate is then laid over its partner by least squares (Lucas and Kanade,
IJCAI 1981, with gain and offset), and is a near copy if the fine structure of the two correlates. How many copies that
finds, and the thresholds, are measured in docs/audit.md.

Shapes: N images, M images they are compared with, H = W their side, K pairs, S side of a thumbnail, G of a grid.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

DIGEST_BYTES = 16
CHUNK = 512  # images in memory at a time
SIDE = 48  # of thumbnails
GRID = 8  # frequencies per direction that find candidates
COLOUR_GRID = 4  # those of the two colour differences
CROP = 0.9  # side of the crops that are looked for
NUM_CANDIDATES = 4  # per image and crop
ALIKE = 0.7  # least cosine of a candidate's low frequencies
PROMISING = 0.5  # least correlation of the fine structure when laid over each other at half size
NEAR = 0.82  # least correlation of the fine structure of a near copy
DETAILED = 0.2  # least part of the fine structure that is finest, between neighbouring pixels of a thumbnail
CLIP = 3.0  # times the mean size of the fine structure, where it is cut off: else two black bars are alike
CONTRAST = 1.0  # least standard deviation of the fine structure, in grey levels

Box = tuple[tuple[float, float], tuple[float, float]]
_LOW, _HIGH, _MIDDLE, _ALL = (0.0, CROP), (1 - CROP, 1.0), ((1 - CROP) / 2, (1 + CROP) / 2), (0.0, 1.0)
WHOLE: Box = (_ALL, _ALL)
_LEAST, _GREATEST = (0.8, -0.3, 0.8, -0.3), (1.25, 0.3, 1.25, 0.3)  # of the scale and shift of a copy
CROPS: tuple[Box, ...] = ((_LOW, _LOW), (_LOW, _HIGH), (_HIGH, _LOW), (_HIGH, _HIGH), (_MIDDLE, _MIDDLE))


@dataclass(frozen=True, eq=False)
class Copies:
    """Pairs of an image and its copy.

    Args:
        pairs: np.int64 (K, 2), index of the image and of the one that it was compared with, ascending.
        scores: np.float32 (K,), correlation of the fine structure, 1 where the pixels are equal.
        equal: bool (K,), whether the pixels are equal.
    """

    pairs: np.ndarray
    scores: np.ndarray
    equal: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)

    def select(self, chosen: np.ndarray) -> "Copies":
        """The pairs that a mask or indices choose."""
        return Copies(self.pairs[chosen], self.scores[chosen], self.equal[chosen])


def find_copies(images: np.ndarray, against: np.ndarray) -> Copies:
    """Every pair of equal images, and the near copies.

    An image has at most `NUM_CANDIDATES` near copies for each way of cropping. Images without detail of their own (one
    colour, or 8 pixels enlarged to 32) have none: all of those look alike.

    Args:
        images: np.uint8 (N, H, W, 3), memory-mapped or not; read in chunks.
        against: np.uint8 (M, H, W, 3), likewise; about 12 kB are kept for each.

    Raises:
        ValueError: the images have another size than those they are compared with.
    """
    if images.shape[1:] != against.shape[1:]:
        raise ValueError(f"images of {images.shape[1:]} cannot be compared with images of {against.shape[1:]}")
    equal = exact_duplicates(images, against)
    known = set(map(tuple, equal.tolist()))
    near = {pair: score for pair, score in _near_copies(images, against).items() if pair not in known}
    pairs = np.concatenate([equal, np.array(list(near), np.int64).reshape(-1, 2)])
    scores = np.concatenate([np.ones(len(equal), np.float32), np.array(list(near.values()), np.float32)])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Copies(pairs, scores, np.arange(len(pairs)) < len(equal)).select(order)


def exact_duplicates(images: np.ndarray, against: np.ndarray) -> np.ndarray:
    """Every pair of equal images, by a digest of 16 bytes of the pixels of each.

    Args:
        images: np.uint8 (N, H, W, 3), memory-mapped or not; read one image at a time.
        against: np.uint8 (M, H, W, 3), likewise.

    Returns:
        Their indices, np.int64 (K, 2), ascending; an image that has several copies is in as many pairs.
    """
    digests = digests_of(against)
    order = np.argsort(digests, kind="stable")
    digests = digests[order]
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(images), 16):
        chunk = digests_of(images[start : start + 16])
        first, last = (np.searchsorted(digests, chunk, side) for side in ("left", "right"))
        for place in np.flatnonzero(last > first):
            copies = order[first[place] : last[place]]
            found.append(np.stack([np.full(len(copies), start + place), copies], axis=1))
    return np.concatenate(found)


def digests_of(images: np.ndarray) -> np.ndarray:
    """BLAKE2b of each image's size and pixels, (N,) of 16 bytes."""
    digests = np.empty((len(images), DIGEST_BYTES), np.uint8)
    size = str(images.shape[1:]).encode()
    for digest, image in zip(digests, images, strict=True):
        state = hashlib.blake2b(size, digest_size=DIGEST_BYTES)
        state.update(np.ascontiguousarray(image).data)
        digest[:] = np.frombuffer(state.digest(), np.uint8)
    return digests.view(f"V{DIGEST_BYTES}")[:, 0]


def _near_copies(images: np.ndarray, against: np.ndarray) -> dict[tuple[int, int], float]:
    """Score of every pair of near copies; those of equal pixels are among them where they have detail."""
    side = min(SIDE, images.shape[1])
    # each way of seeing an image: mirrored or not, and which part of it
    views = [(False, WHOLE), *((False, box) for box in CROPS), (True, WHOLE)]
    grey: list[torch.Tensor] = []
    frequencies: list[list[torch.Tensor]] = [[] for _ in views]
    for start in range(0, len(against), CHUNK):
        thumbnails = _thumbnails(against[start : start + CHUNK], side)
        grey.append(thumbnails.mean(1).half())
        detailed = _has_detail(thumbnails.mean(1))[:, None]  # without, all cosines are 0
        for kept, (mirrored, box) in zip(frequencies, views, strict=True):
            kept.append(_low_frequencies(thumbnails.flip(-1) if mirrored else thumbnails, box) * detailed)
    partners, whole = torch.cat(grey), [torch.cat(kept) for kept in frequencies]
    warps = [*(_warp(box) for _, box in views), *(_inverse(_warp(box)) for box in CROPS)]
    scores: dict[tuple[int, int], float] = {}
    for start in range(0, len(images), CHUNK):
        thumbnails = _thumbnails(images[start : start + CHUNK], side)
        detailed = _has_detail(thumbnails.mean(1))[:, None]
        own = [_low_frequencies(thumbnails, box) * detailed for box in (WHOLE, *CROPS)]
        products = [(own[0], other) for other in whole]  # the image is a part of its partner, or the whole
        products += [(part, whole[0]) for part in own[1:]]  # the partner is a part of it
        for view, (ours, theirs) in enumerate(products):
            rows, columns = _candidates(ours, theirs)
            mine, other = thumbnails.mean(1)[rows], partners[columns].float()
            if view == len(views) - 1:
                other = other.flip(-1)
            for place, score in _compare(mine, other, warps[view]):
                pair = start + int(rows[place]), int(columns[place])
                scores[pair] = max(score, scores.get(pair, 0.0))
    return scores


def _thumbnails(images: np.ndarray, side: int) -> torch.Tensor:
    """Images (n, H, W, 3) reduced by averaging, float (n, 3, S, S)."""
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    return functional.adaptive_avg_pool2d(pixels, side)


def _low_frequencies(thumbnails: torch.Tensor, box: Box) -> torch.Tensor:
    """The low frequencies of a part of each image but for its mean, (n, F) of norm 1.

    Weighted, because a photograph's fall off with 1 / f, and its colours say less than its brightness: left so, all
    skies would be alike. Brightness and contrast have no part in it.
    """
    side = thumbnails.shape[-1]
    of_rows, of_columns = (_cosines() @ _cells(low, high, side) for low, high in (box[1], box[0]))
    colours = torch.tensor([[1.0, 1, 1], [1, -1, 0], [0.5, 0.5, -1]])
    colours = functional.normalize(colours, dim=1) * torch.tensor([[1.0], [2], [2]])
    f = torch.arange(GRID)
    weights = (f[:, None] ** 2 + f**2).float().clamp_min(1) ** 0.375
    found = torch.einsum("oc,nchw->nohw", colours, of_rows @ thumbnails @ of_columns.T) * weights
    brightness = found[:, 0].flatten(1)[:, 1:]
    difference = found[:, 1:, :COLOUR_GRID, :COLOUR_GRID].flatten(1)
    return functional.normalize(torch.cat([brightness, difference], 1), dim=1)


def _cosines() -> torch.Tensor:
    """The discrete cosine transform, (G, G)."""
    place = torch.arange(GRID)
    return functional.normalize(torch.cos(torch.pi * (place + 0.5) * place[:, None] / GRID), dim=1)


def _cells(low: float, high: float, side: int) -> torch.Tensor:
    """The part of each of G equal cells, between two places in [0, 1], that each of S pixels fills, (G, S)."""
    edges, pixel = torch.linspace(low * side, high * side, GRID + 1), torch.arange(side)
    overlap = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return functional.normalize(overlap.clamp_min(0), p=1, dim=1)


def _candidates(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the most alike, at most `NUM_CANDIDATES` a row."""
    cosines = ours @ theirs.T
    rows = torch.nonzero(cosines.amax(1) > ALIKE)[:, 0]
    values, columns = cosines[rows].topk(min(NUM_CANDIDATES, cosines.shape[1]), dim=1)
    chosen = values > ALIKE
    return rows[:, None].expand_as(columns)[chosen], columns[chosen]


def _compare(mine: torch.Tensor, other: torch.Tensor, warp: torch.Tensor) -> list[tuple[int, float]]:
    """Index and score of the near copies among pairs of grey thumbnails (K, S, S), laid over each other from `warp`."""
    if not len(mine):
        return []
    half = [functional.avg_pool2d(thumbnails[:, None], 2)[:, 0] for thumbnails in (mine, other)]
    warps, scores = _lay_over(half[0], half[1], warp.expand(len(mine), 4), steps=4, window=3)
    place = torch.nonzero(scores > PROMISING)[:, 0]
    if not len(place):
        return []
    _, scores = _lay_over(mine[place], other[place], warps[place], steps=4, window=5)
    return [(int(i), float(score)) for i, score in zip(place, scores, strict=True) if score > NEAR]


def _has_detail(thumbnails: torch.Tensor) -> torch.Tensor:
    """Whether grey thumbnails (K, S, S) have fine structure, and not only that of a smaller image enlarged."""
    fine = _fine_structure(thumbnails, 5)
    finest = thumbnails - _local_mean(thumbnails, 3)
    energy = fine.square().mean((1, 2))
    return (energy > CONTRAST**2) & (finest.square().mean((1, 2)) > DETAILED * energy)


def _local_mean(thumbnails: torch.Tensor, window: int) -> torch.Tensor:
    return functional.avg_pool2d(thumbnails, window, 1, window // 2, count_include_pad=False)


def _fine_structure(thumbnails: torch.Tensor, window: int) -> torch.Tensor:
    """Grey thumbnails (K, S, S) less their local mean."""
    return thumbnails - _local_mean(thumbnails, window)


def _warp(box: Box) -> torch.Tensor:
    """(a, b, c, d): place (x, y) of the part, from -1 to 1, is place (ax + b, cy + d) of the whole image."""
    (left, right), (top, bottom) = box
    return torch.tensor([right - left, left + right - 1, bottom - top, top + bottom - 1])


def _inverse(warp: torch.Tensor) -> torch.Tensor:
    a, b, c, d = warp
    return torch.stack([1 / a, -b / a, 1 / c, -d / c])


def _lay_over(
    mine: torch.Tensor, other: torch.Tensor, warps: torch.Tensor, steps: int, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds where `mine` lies in `other`: Gauss-Newton steps over scale, shift, gain and offset.

    Args:
        mine: grey thumbnails (K, S, S).
        other: their partners (K, S, S).
        warps: where to start, (K, 4) as `_warp` gives it.
        steps: Gauss-Newton steps.
        window: side of the local mean that is no part of the fine structure.

    Returns:
        The warps of the highest scores, and these: the correlation of the fine structure where both images are.
    """
    num, side, _ = mine.shape
    at = (torch.arange(side) + 0.5) / side * 2 - 1
    down, right = torch.gradient(other, dim=(1, 2))
    sources = torch.stack([other, right * side / 2, down * side / 2], 1)
    best, best_warps = torch.full((num,), -1.0), warps
    for step in range(steps + 1):
        x, y = warps[:, :1] * at + warps[:, 1:2], warps[:, 2:3] * at + warps[:, 3:]
        grid = torch.stack([x[:, None].expand(num, side, side), y[:, :, None].expand(num, side, side)], -1)
        inside = ((x.abs() <= 1)[:, None] & (y.abs() <= 1)[:, :, None]).float()
        moved, slope_x, slope_y = functional.grid_sample(
            sources, grid, align_corners=False, padding_mode="border"
        ).unbind(1)
        score = _correlation(_fine_structure(mine, window), _fine_structure(moved, window), inside)
        best_warps = torch.where((score > best)[:, None], warps, best_warps)
        best = torch.maximum(score, best)
        if step == steps:
            break
        terms = [moved, torch.ones_like(moved), slope_x * at, slope_x, slope_y * at[:, None], slope_y]
        jacobian = torch.stack(terms, 1).flatten(2)
        weighted = jacobian * inside.flatten(1)[:, None]
        normal = weighted @ jacobian.transpose(1, 2)
        # a little damping: an image without structure in a direction cannot say where it lies
        normal = normal + torch.diag_embed(normal.diagonal(dim1=1, dim2=2) * 1e-3 + 1e-3)
        solution = torch.linalg.solve(normal, weighted @ mine.flatten(1)[:, :, None])[:, :, 0]
        warps = warps + (solution[:, 2:] / solution[:, :1].clamp_min(0.2)).clamp(-0.1, 0.1)
        warps = torch.minimum(torch.maximum(warps, torch.tensor(_LEAST)), torch.tensor(_GREATEST))
    return best_warps, best


def _correlation(first: torch.Tensor, second: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted correlation of each pair of (K, S, S), outliers cut off, (K,)."""
    total = weights.sum((1, 2), keepdim=True)
    limits = [CLIP * (values.abs() * weights).sum((1, 2), keepdim=True) / total for values in (first, second)]
    first, second = first.clamp(-limits[0], limits[0]), second.clamp(-limits[1], limits[1])
    first, second = (values - (values * weights).sum((1, 2), keepdim=True) / total for values in (first, second))
    norms = (first.square() * weights).sum((1, 2)) * (second.square() * weights).sum((1, 2))
    return (first * second * weights).sum((1, 2)) / norms.sqrt().clamp_min(1e-6)
