"""The types of settings with their ranges, and the one place that checks every value."""

import math
import re
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from mae_hf.errors import is_plain, redact, require


@dataclass(frozen=True, repr=False)
class Range:
    """The range of a number, or of every number in a tuple: `Annotated[float, Range(above=0, at_most=1)]`."""

    above: float = -math.inf
    at_least: float = -math.inf
    below: float = math.inf
    at_most: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.above < value < self.below and self.at_least <= value <= self.at_most  # never true of inf and nan

    def __repr__(self) -> str:
        """The range in words, for `--help` and messages: `above 0 and at most 1`."""
        bounds = {name.replace("_", " "): bound for name, bound in vars(self).items() if math.isfinite(bound)}
        return " and ".join(f"{name} {bound}" for name, bound in bounds.items()) or "finite"


@dataclass(frozen=True, repr=False)
class Text:
    """The texts that match a regular expression, with their description."""

    pattern: str
    description: str

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __repr__(self) -> str:
        return self.description


def words(*allowed: str) -> Text:
    """Return the range of a value such as `knn,linear`."""
    word = "|".join(allowed)
    return Text(f"({word})(,({word}))*", f"one or more of {','.join(allowed)}")


def ending(*suffixes: str) -> Text:
    """Return the range of a file name."""
    return Text(f".*({'|'.join(map(re.escape, suffixes))})", f"a file name that ends in {' or '.join(suffixes)}")


Switch = Literal["auto", "always", "never"]
Count = Annotated[int, Range(above=0)]
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(above=0, at_most=1)]
Rate = Annotated[float, Range(at_least=0, below=1)]

_Value = TypeVar("_Value")
if TYPE_CHECKING:  # what runs see: `mae_hf.models.origin.resolve`, their first line, replaces null
    FromInit = Annotated[_Value, "null in a config that is not resolved"]
else:  # what users write: null means the value of the checkpoint that `model.init` names
    FromInit = typing.Optional


@dataclass(frozen=True)
class Settings:
    """Base class of every config: it checks each field when the config is made. Rules between fields come after."""

    section = ""  # what comes before the dot in a flag
    presets = ""  # the folder of a command's presets in configs/
    first_word = ""  # the setting of a command that its first word gives, without a flag

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            key = self._key(field.name)
            if value is None:
                require(type(None) in typing.get_args(hint), f"{key} is null but must have a value (--{key})")
            elif not is_dataclass(value):
                example = "" if field.default in (None, MISSING) else f", such as {_shown(field.default)}"
                for item in value if isinstance(value, (list, tuple)) else (value,):
                    _check_item(key, item)
                    for allowed in ranges(hint):
                        is_about = isinstance(item, str) == isinstance(allowed, Text)  # `auto` or a number above 0
                        problem = f"{key} is {_shown(value)} but must be {allowed}{example} (--{key})"
                        require(not is_about or item in allowed, problem)

    def _key(self, name: str) -> str:
        return f"{self.section}.{name}".strip(".")

    def check(self, name: str, is_right: bool, problem: str) -> None:
        """Raise ConfigError, as `model.patch_size 10 PROBLEM (--model.patch_size)`, unless a rule holds."""
        key = self._key(name)
        require(is_right, f"{key} {_shown(getattr(self, name))} {problem} (--{key})")


def _shown(value: Any) -> Any:
    return "null" if value is None else list(value) if isinstance(value, tuple) else value


def ranges(hint: Any) -> Iterator[Any]:
    """Yield the ranges in a type such as `Annotated[int, Range(above=0)] | None`."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        yield Text("|".join(map(re.escape, parts)), f"one of {', '.join(parts)}")
        return
    yield from getattr(hint, "__metadata__", ())
    for part in dict.fromkeys(parts):
        yield from ranges(part)


def _check_item(key: str, item: Any) -> None:
    """Refuse numbers that are huge or not finite, and text with control characters or secrets."""
    if isinstance(item, float):
        require(math.isfinite(item), f"{key} is {item} but must be finite (--{key})")
    if isinstance(item, int):
        problem = f"{key} is a number of {item.bit_length()} bits: choose a smaller one (--{key})"
        require(abs(item) < 2**63, problem)
    if isinstance(item, str):
        require(is_plain(item), f"{key} {item} contains control characters: remove them (--{key})")
        problem = "contains a password or token, which would be written into config.yaml, run.json and the model card"
        fix = "remove it. A server's password belongs in ~/.netrc, the Hub's token in `hf auth login` or HF_TOKEN"
        require(redact(item) == item, f"{key} {item} {problem}: {fix} (--{key})")
