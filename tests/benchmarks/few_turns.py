"""A contender run in the process of the test: it begins, and is stopped from within after a few steps."""

from collections.abc import Callable
from pathlib import Path

from benchmarks import drawn
from mae_hf.config.augment import CropConfig
from mae_hf.config.data import DataConfig
from mae_hf.config.model import MAEConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import PretrainTrainConfig

DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
SHAPE = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MODEL = MAEConfig(**SHAPE, **DECODER, intermediate_size=32, decoder_intermediate_size=32)


class _EnoughError(Exception):
    """The steps asked for are done."""


class _FewTurns:
    def __init__(self, num_steps: int) -> None:
        self.amounts: list[float] = []
        self.began = False
        self._num_steps = num_steps

    def begin(self) -> None:
        assert not self.amounts
        self.began = True

    def done(self, amount: float) -> None:
        assert self.began
        self.amounts.append(amount)
        if len(self.amounts) == self._num_steps:
            raise _EnoughError


def few(work: Callable[..., None], num_steps: int, **options: object) -> list[float]:
    """What a contender counts in its first steps."""
    turns = _FewTurns(num_steps)
    try:
        work(turns, **options)
    except _EnoughError:
        return turns.amounts
    raise AssertionError("a contender works for ever")


def small_run(folder: Path, **train: object) -> PretrainConfig:
    """A run on images that are drawn into `folder`, each cropped to the whole."""
    drawn.draw(folder, MODEL.image_size)
    return PretrainConfig(
        data=DataConfig(image_mean=(0.5, 0.4, 0.3), image_std=(0.3, 0.2, 0.1)),
        model=MODEL,
        augment=CropConfig(crop_scale=(1.0, 1.0), flip=False),
        train=PretrainTrainConfig(**({"batch_size": 8, "log_every_steps": 1, "warmup_ratio": 0} | train)),
        output_dir=str(folder),
    )
