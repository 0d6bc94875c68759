"""The measures of the benchmark, and the contenders of each."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import drawn, ours, stock
from benchmarks.flops import features_gflop, finetuning_gflop, multiply_matrices, pretraining_gflop
from benchmarks.turns import Work
from mae_hf.config.fields import Switch
from mae_hf.config.runs import PretrainConfig

NUM_IMAGES = (1_000, 10_000, 100_000)  # of the measure `size`
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Contender:
    """A contender of a measure.

    Args:
        work: the function that does the work.
        precision: `fp32` or `bf16`; the peak throughput in that precision is measured, too.
        gflop: work per image; None without a model.
        unit: the unit of its turns.
        is_baseline: whether the others are compared with it.
        is_whole: whether it does all the work of a baseline, so that a ratio has a meaning.
    """

    work: Work
    precision: str
    gflop: float | None
    unit: str = "images"
    is_baseline: bool = False
    is_whole: bool = True


Contenders = dict[str, Contender]


@dataclass(frozen=True)
class Setup:
    """The settings of all contenders.

    Args:
        config: the pre-training run, with its model, crops and batch; `output_dir` is a folder for files.
        folder: the folder of the generated images.
        mixed_precision: mixed precision of mae_hf, `no` or `bf16`.
    """

    config: PretrainConfig
    folder: Path
    mixed_precision: str

    @property
    def precision(self) -> str:
        """The name of the precision in the table."""
        return "fp32" if self.mixed_precision == "no" else self.mixed_precision

    @property
    def images(self) -> ours.OpenImages:
        """A function that opens the generated images for mae_hf."""
        return partial(drawn.image_set, self.folder, self.config.model.image_size)

    def mae_hf(
        self,
        work: Callable[..., None],
        gflop: float,
        is_baseline: bool = False,
        is_whole: bool = True,
        **changes: Any,
    ) -> Contender:
        """Return a contender of mae_hf, with `changes` to the arguments of its work."""
        given = {"config": self.config, "precision": self.mixed_precision, "open_images": self.images} | changes
        return Contender(partial(work, **given), self.precision, gflop, is_baseline=is_baseline, is_whole=is_whole)

    def stock(self, work: Callable[..., None], gflop: float, precision: str = "fp32", **options: Any) -> Contender:
        """Return a baseline."""
        work = partial(work, config=self.config, folder=self.folder, **options)
        return Contender(work, precision, gflop, is_baseline=True)


def pretraining(setup: Setup) -> Contenders:
    """Pre-training: stock in both precisions, mae_hf as a whole and in parts."""
    config, model = setup.config, setup.config.model
    half = dataclasses.replace(config, model=dataclasses.replace(model, decode_ratio=0.5))
    preparation = partial(ours.preparation_alone, config=config, open_images=setup.images)
    gflop = pretraining_gflop(model)
    return {
        "stock fp32": setup.stock(stock.pretrain, gflop, bf16=False),
        "stock bf16": setup.stock(stock.pretrain, gflop, "bf16", bf16=True),
        "mae_hf": setup.mae_hf(ours.pretrain, gflop),
        "mae_hf, decode_ratio 0.5": setup.mae_hf(ours.pretrain, pretraining_gflop(half.model), config=half),
        "mae_hf, step alone": setup.mae_hf(ours.step_alone, gflop, is_whole=False),
        "mae_hf, preparation alone on one core": Contender(preparation, setup.precision, None, is_whole=False),
    }


def finetuning(setup: Setup) -> Contenders:
    """Fine-tuning with crop and flip only."""
    gflop = finetuning_gflop(setup.config.model, len(drawn.CLASS_NAMES))
    return {"stock fp32": setup.stock(stock.finetune, gflop), "mae_hf": setup.mae_hf(ours.finetune, gflop)}


def features(setup: Setup) -> Contenders:
    """The features of whole images."""
    gflop = features_gflop(setup.config.model)
    return {
        "stock fp32": setup.stock(stock.extract_features, gflop),
        "mae_hf": setup.mae_hf(ours.extract_features, gflop, batch_size=stock.FEATURES_BATCH),
    }


def compiling(setup: Setup) -> Contenders:
    """Pre-training with and without compiled layers."""

    def contender(mode: Switch) -> Contender:
        train = dataclasses.replace(setup.config.train, compile=mode)
        config = dataclasses.replace(setup.config, train=train)
        return setup.mae_hf(ours.pretrain, pretraining_gflop(config.model), mode == "never", config=config)

    return {"mae_hf, eager": contender("never"), "mae_hf, compiled": contender("always")}


def sizes(setup: Setup) -> Contenders:
    """Pre-training on data sets of different sizes."""
    drawn.repeat(setup.folder, setup.config.model.image_size, max(NUM_IMAGES))
    gflop = pretraining_gflop(setup.config.model)
    return {
        f"mae_hf, {num:,} images": setup.mae_hf(
            ours.pretrain, gflop, num == NUM_IMAGES[0], open_images=partial(drawn.repeated_set, setup.folder, num)
        )
        for num in NUM_IMAGES
    }


MEASURES = {
    "pretrain": pretraining,
    "finetune": finetuning,
    "features": features,
    "compile": compiling,
    "size": sizes,
}


def contenders_of(measure: str, setup: Setup) -> Contenders:
    """Return the contenders of a measure by name, with matrix products in each of their precisions."""
    found = MEASURES[measure](setup)
    for precision in sorted({contender.precision for contender in found.values()}):
        products = partial(multiply_matrices, dtype=DTYPES[precision])
        found[f"{precision} GEMM"] = Contender(products, precision, None, unit="GFLOP", is_whole=False)
    return found
