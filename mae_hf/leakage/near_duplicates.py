"""Search for duplicates between two sets of images: exact ones (equal pixels) and near-duplicates.

A near-duplicate was compressed, resized, cropped by up to a tenth of its side, brightened, changed in contrast, or
mirrored. Candidates are found by their low frequencies, with a matrix product: of whole images, an image and a corner
or centre crop of the other, and an image and the mirrored other. Each is aligned with its partner by least squares
(Lucas and Kanade, IJCAI 1981, with gain and offset). It is a near-duplicate if the fine structure of both correlates.
docs/audit.md reports the measured recall and how the thresholds were chosen.

Shapes: N images, M images they are compared with, H = W their side, K pairs, S side of a thumbnail, G of a grid.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from mae_hf.progress import Progress

CHUNK = 512  # images in memory at a time
SIDE = 48  # of thumbnails
GRID = 8  # frequencies in each direction that find candidates
COLOUR_GRID = 4  # the same for the two colour differences
CROP = 0.9  # side of the crops
NUM_CANDIDATES = 4  # per image and crop
ALIKE = 0.7  # minimum cosine between the low frequencies of candidates
PROMISING = 0.5  # minimum correlation of the fine structure after alignment at half size
NEAR = 0.82  # minimum correlation of the fine structure of a near-duplicate
DETAILED = 0.2  # minimum part of the fine structure that is finest, between neighbouring pixels of a thumbnail
CLIP = 3.0  # fine structure is clipped at this many times its mean size, otherwise two black bars would be alike
CONTRAST = 1.0  # minimum standard deviation of the fine structure, in grey levels

Box = tuple[tuple[float, float], tuple[float, float]]  # left and right edge, top and bottom edge, each from 0 to 1
_LOW, _HIGH, _MIDDLE, _ALL = (0.0, CROP), (1 - CROP, 1.0), ((1 - CROP) / 2, (1 + CROP) / 2), (0.0, 1.0)
WHOLE: Box = (_ALL, _ALL)
CROPS: tuple[Box, ...] = ((_LOW, _LOW), (_LOW, _HIGH), (_HIGH, _LOW), (_HIGH, _HIGH), (_MIDDLE, _MIDDLE))
_LEAST, _GREATEST = (0.8, -0.3, 0.8, -0.3), (1.25, 0.3, 1.25, 0.3)  # limits of scale and shift


class _View(NamedTuple):
    """A way to compare an image with its partner: which part of each, and whether the partner is mirrored."""

    own: Box
    partner: Box
    mirrored: bool = False

    def warp(self) -> Tensor:
        """Return (a, b, c, d): point (x, y) of the image, from -1 to 1, is point (ax + b, cy + d) of its partner."""
        (left, right), (top, bottom) = self.own if self.partner == WHOLE else self.partner
        a, b, c, d = warp = torch.tensor([right - left, left + right - 1, bottom - top, top + bottom - 1])
        return torch.stack([1 / a, -b / a, 1 / c, -d / c]) if self.partner == WHOLE else warp


_VIEWS = (
    *(_View(WHOLE, box) for box in (WHOLE, *CROPS)),
    _View(WHOLE, WHOLE, mirrored=True),
    *(_View(box, WHOLE) for box in CROPS),
)
_PARTS = {(view.partner, view.mirrored) for view in _VIEWS}  # of `against`; of `images` one less is used


def find_duplicates(images: np.ndarray, against: np.ndarray, task: str = "searching for duplicates") -> pd.DataFrame:
    """Return every pair of equal images, and the near-duplicates.

    An image has at most `NUM_CANDIDATES` near-duplicates for each way of cropping. Images without detail have none,
    because they all look alike: one plain colour, or 8 pixels enlarged to 32. `images`, np.uint8 (N, H, W, 3), and
    `against`, np.uint8 (M, H, W, 3), are read in chunks; about 12 kB are kept for each image of `against`.

    The columns are `image` and `against`, the indices of both, ascending; `kind`, which is `exact` where the pixels are
    equal, else `near`; and `score`, the correlation of the fine structure, 1 where the pixels are equal.
    """
    exact = dict.fromkeys(exact_duplicates(images, against), 1.0)
    near: dict[tuple[int, int], float] = {}
    with Progress(desc=task, total=len(against) + len(images), unit="image") as progress:
        chunks = [(grey.half(), frequencies) for grey, frequencies in _described_chunks(against, progress)]
        partners = torch.cat([grey for grey, _ in chunks])
        partner_frequencies = {part: torch.cat([frequencies[part] for _, frequencies in chunks]) for part in _PARTS}
        start = 0
        for grey, frequencies in _described_chunks(images, progress):
            for view in _VIEWS:
                partner = partner_frequencies[view.partner, view.mirrored]
                rows, columns = _candidates(frequencies[view.own, False], partner)
                other = partners[columns].float()
                for index, score in _compare(grey[rows], other.flip(-1) if view.mirrored else other, view.warp()):
                    pair = start + int(rows[index]), int(columns[index])
                    near[pair] = max(score, near.get(pair, 0.0))
            start += len(grey)
    scores = dict(sorted((near | exact).items()))
    found = pd.DataFrame(list(scores), columns=["image", "against"], dtype=np.int64)
    found["kind"] = ["exact" if pair in exact else "near" for pair in scores]
    found["score"] = np.array(list(scores.values()), np.float32)
    return found


def exact_duplicates(images: np.ndarray, against: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the indices of every pair of equal images, (N, H, W, 3) and (M, H, W, 3), reading one image at a time."""
    found = defaultdict(list)
    for index, image in enumerate(np.asarray(against)):  # a memory map makes each image slower to get
        found[pixel_digest(image)].append(index)
    for index, image in enumerate(np.asarray(images)):
        yield from ((index, other) for other in found.get(pixel_digest(image), ()))


def pixel_digest(image: np.ndarray) -> bytes:
    """Return 16 bytes of BLAKE2b of an image's size and pixels, np.uint8 (H, W, 3)."""
    return hashlib.blake2b(str(image.shape).encode() + image.tobytes(), digest_size=16).digest()


def _described_chunks(
    images: np.ndarray, progress: Progress
) -> Iterator[tuple[Tensor, dict[tuple[Box, bool], Tensor]]]:
    """Yield grey thumbnails (n, S, S) of n images at a time, and the low frequencies of parts of them."""
    for start in range(0, len(images), CHUNK):
        pixels = torch.from_numpy(np.array(images[start : start + CHUNK])).permute(0, 3, 1, 2).float()
        thumbnails = functional.adaptive_avg_pool2d(pixels, min(SIDE, images.shape[1]))
        grey = thumbnails.mean(1)
        energy, finest = (_fine_structure(grey, window).square().mean((1, 2)) for window in (5, 3))
        # without detail, as in an enlarged smaller image, all cosines are 0
        detailed = ((energy > CONTRAST**2) & (finest > DETAILED * energy))[:, None]
        frequencies = {
            (box, mirrored): _low_frequencies(thumbnails.flip(-1) if mirrored else thumbnails, box) * detailed
            for box, mirrored in _PARTS
        }
        yield grey, frequencies
        progress.update(len(grey))


def _low_frequencies(thumbnails: Tensor, box: Box) -> Tensor:
    """Return the low frequencies of a part of each image, without brightness and contrast, (n, F) of norm 1.

    Weights compensate the 1 / f fall-off of photographs and let colour count more: otherwise all skies would be alike.
    """
    side = thumbnails.shape[-1]
    index = torch.arange(GRID)  # the discrete cosine transform of G x G cells
    cosines = functional.normalize(torch.cos(torch.pi * (index + 0.5) * index[:, None] / GRID), dim=1)
    of_rows, of_columns = (cosines @ _cells(low, high, side) for low, high in (box[1], box[0]))
    colours = torch.tensor([[1.0, 1, 1], [1, -1, 0], [0.5, 0.5, -1]])
    colours = functional.normalize(colours, dim=1) * torch.tensor([[1.0], [2], [2]])
    weights = (index[:, None] ** 2 + index**2).float().clamp_min(1) ** 0.375
    found = torch.einsum("oc,nchw->nohw", colours, of_rows @ thumbnails @ of_columns.T) * weights
    brightness = found[:, 0].flatten(1)[:, 1:]
    difference = found[:, 1:, :COLOUR_GRID, :COLOUR_GRID].flatten(1)
    return functional.normalize(torch.cat([brightness, difference], 1), dim=1)


def _cells(low: float, high: float, side: int) -> Tensor:
    """Return the weights that average S pixels into G equal cells between `low` and `high` in [0, 1], (G, S)."""
    edges, pixel = torch.linspace(low * side, high * side, GRID + 1), torch.arange(side)
    overlap = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return functional.normalize(overlap.clamp_min(0), p=1, dim=1)


def _candidates(own: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the largest cosines above `ALIKE`, at most `NUM_CANDIDATES` for a row."""
    cosines = own @ partners.T
    rows = torch.nonzero(cosines.amax(1) > ALIKE)[:, 0]
    values, columns = cosines[rows].topk(min(NUM_CANDIDATES, cosines.shape[1]), dim=1)
    chosen = values > ALIKE
    return rows[:, None].expand_as(columns)[chosen], columns[chosen]


def _compare(images: Tensor, partners: Tensor, warp: Tensor) -> list[tuple[int, float]]:
    """Return index and score of the near-duplicates among pairs of grey thumbnails (K, S, S), aligned from `warp`."""
    half = [functional.avg_pool2d(thumbnails[:, None], 2)[:, 0] for thumbnails in (images, partners)]
    warps, scores = _align(half[0], half[1], warp.expand(len(images), 4), steps=4, window=3)
    promising = torch.nonzero(scores > PROMISING)[:, 0]
    _, scores = _align(images[promising], partners[promising], warps[promising], steps=4, window=5)
    return [(int(i), float(score)) for i, score in zip(promising, scores, strict=True) if score > NEAR]


def _fine_structure(thumbnails: Tensor, window: int) -> Tensor:
    """Subtract the local mean from grey thumbnails (K, S, S)."""
    return thumbnails - functional.avg_pool2d(thumbnails, window, 1, window // 2, count_include_pad=False)


def _align(images: Tensor, partners: Tensor, warps: Tensor, steps: int, window: int) -> tuple[Tensor, Tensor]:
    """Find grey thumbnails (K, S, S) in their partners by Gauss-Newton steps over scale, shift, gain and offset.

    Returns the warps (K, 4), as of `_View.warp`, with the highest scores, and these scores: the correlation of the fine
    structure where both overlap. `window` is the side of the local mean that is subtracted.
    """
    num, side, _ = images.shape
    if not num:
        return warps, torch.zeros(0)
    at = (torch.arange(side) + 0.5) / side * 2 - 1
    down, right = torch.gradient(partners, dim=(1, 2))
    sources = torch.stack([partners, right * side / 2, down * side / 2], 1)
    best, best_warps = torch.full((num,), -1.0), warps
    for step in range(steps + 1):
        x, y = warps[:, :1] * at + warps[:, 1:2], warps[:, 2:3] * at + warps[:, 3:]
        grid = torch.stack([x[:, None].expand(num, side, side), y[:, :, None].expand(num, side, side)], -1)
        inside = ((x.abs() <= 1)[:, None] & (y.abs() <= 1)[:, :, None]).float()
        sampled = functional.grid_sample(sources, grid, align_corners=False, padding_mode="border")
        moved, slope_x, slope_y = sampled.unbind(1)
        score = _correlation(_fine_structure(images, window), _fine_structure(moved, window), inside)
        best_warps = torch.where((score > best)[:, None], warps, best_warps)
        best = torch.maximum(score, best)
        if step == steps:
            break
        terms = [moved, torch.ones_like(moved), slope_x * at, slope_x, slope_y * at[:, None], slope_y]
        jacobian = torch.stack(terms, 1).flatten(2)
        weighted = jacobian * inside.flatten(1)[:, None]
        normal = weighted @ jacobian.transpose(1, 2)
        # A little damping: an image without structure in one direction does not determine its shift there.
        normal = normal + torch.diag_embed(normal.diagonal(dim1=1, dim2=2) * 1e-3 + 1e-3)
        solution = torch.linalg.solve(normal, weighted @ images.flatten(1)[:, :, None])[:, :, 0]
        warps = warps + (solution[:, 2:] / solution[:, :1].clamp_min(0.2)).clamp(-0.1, 0.1)
        warps = torch.minimum(torch.maximum(warps, torch.tensor(_LEAST)), torch.tensor(_GREATEST))
    return best_warps, best


def _correlation(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted correlation of each pair of (K, S, S), outliers clipped, (K,)."""
    total = weights.sum((1, 2), keepdim=True)
    limits = [CLIP * (values.abs() * weights).sum((1, 2), keepdim=True) / total for values in (first, second)]
    first, second = first.clamp(-limits[0], limits[0]), second.clamp(-limits[1], limits[1])
    first, second = (values - (values * weights).sum((1, 2), keepdim=True) / total for values in (first, second))
    norms = (first.square() * weights).sum((1, 2)) * (second.square() * weights).sum((1, 2))
    return (first * second * weights).sum((1, 2)) / norms.sqrt().clamp_min(1e-6)
