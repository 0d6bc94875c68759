"""Checks of single values that several config dataclasses share."""

import math
from typing import Literal

from mae_hf.errors import require

Choice = Literal["auto", "always", "never"]


def check_above_zero(key: str, value: float) -> None:
    require(
        math.isfinite(value) and value > 0,
        f"{key.split('.')[-1]} {value} is not above 0: choose a positive number (--{key})",
    )


def check_words(key: str, words: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    wrong = [word for word in words if word not in allowed]
    require(
        not wrong,
        f"{key} {', '.join(wrong)} is unknown: choose among {', '.join(allowed)} (--{key} {','.join(allowed)})",
    )


def check_seed(key: str, value: int) -> None:
    require(
        0 <= value < 2**32,
        f"{key.split('.')[-1]} {value} is not a seed: choose a whole number from 0 to {2**32 - 1} (--{key})",
    )
