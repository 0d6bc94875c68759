"""Every setting: the check of its range, its help, and that something reads it."""

import ast
import dataclasses
import itertools
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import docstring_parser
import pytest
from refused import check_refused

from benchmarks.config import BenchmarkConfig
from mae_hf.config.commands import (
    DemoConfig,
    DoctorConfig,
    EvaluateConfig,
    FewLabelsConfig,
    PrepareConfig,
    ReconstructConfig,
)
from mae_hf.config.fields import Count, Positive, Range, Rate, Seed, Settings, Share, ending, words
from mae_hf.config.model import MAEConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig

ROOT = Path(__file__).parents[2]
COMMANDS = (
    *(PretrainConfig, FinetuneConfig, PrepareConfig, EvaluateConfig, FewLabelsConfig, ReconstructConfig, DemoConfig),
    *(DoctorConfig, BenchmarkConfig),
)


def _sections(config_class: type) -> set[type]:
    """The class and the classes of its sections."""
    hints = typing.get_type_hints(config_class)
    return {config_class, *(hint for hint in hints.values() if dataclasses.is_dataclass(hint))}


CLASSES = sorted({section for command in COMMANDS for section in _sections(command)}, key=lambda cls: cls.__name__)


@dataclass(frozen=True)
class Example(Settings):
    """A section with a field of every kind."""

    section = "example"
    count: Count = 3
    seed: Seed = 0
    rate: Rate = 0.1
    shares: tuple[Share, Share] = (0.2, 1.0)
    limit: Positive | None = None
    decay: Annotated[float, Range(above=0, below=1)] = 0.9
    offset: float = 0.5
    name: str = "x"
    names: tuple[str, ...] = ()
    choice: Literal["auto", "never"] = "auto"
    trackers: tuple[Literal["a", "b"], ...] = ()
    method: Annotated[str, words("knn", "linear")] = "knn"
    output: Annotated[str, ending(".png")] | None = None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 0, "example.count is 0 but must be above 0, such as 3 (--example.count)"),
        ("count", None, "example.count is null but must have a value (--example.count)"),
        ("seed", -1, "example.seed is -1 but must be at least 0 and at most 4294967295, such as 0 (--example.seed)"),
        ("seed", 2**32, "example.seed is 4294967296 but"),
        ("seed", 2**999, "example.seed is a number of 1000 bits: choose a smaller one (--example.seed)"),
        ("rate", 1.0, "example.rate is 1.0 but must be at least 0 and below 1, such as 0.1 (--example.rate)"),
        ("rate", -0.1, "example.rate is -0.1 but"),
        ("shares", (0.5, 1.5), "example.shares is [0.5, 1.5] but must be above 0 and at most 1, such as [0.2, 1.0] ("),
        ("shares", (0.0, 1.0), "example.shares is [0.0, 1.0] but"),
        ("limit", 0.0, "example.limit is 0.0 but must be above 0 (--example.limit)"),
        ("limit", math.inf, "example.limit is inf but must be finite (--example.limit)"),
        ("decay", 1.0, "example.decay is 1.0 but must be above 0 and below 1, such as 0.9 (--example.decay)"),
        ("decay", math.nan, "example.decay is nan but must be finite"),
        ("offset", -math.inf, "example.offset is -inf but must be finite"),
        ("name", "a\nb", "example.name a\\nb contains control characters: remove them (--example.name)"),
        (
            "names",
            ("a", "hf_" + "x" * 34),
            "example.names hf_*** contains a password or token .. HF_TOKEN (--example.na",
        ),
        (
            "choice",
            "always",
            "example.choice is always but must be one of auto, never, such as auto (--exam",
        ),
        ("trackers", ("a", "c"), "example.trackers is ['a', 'c'] but must be one of a, b"),
        ("method", "knn,svm", "example.method is knn,svm but must be one or more of knn,linear, such as knn (--exam"),
        ("method", "", "example.method is  but must be one or more of knn,linear"),
        ("output", "a.jpg", "example.output is a.jpg but must be a file name that ends in .png (--example.output)"),
    ],
)
def test_a_value_outside_its_range_is_refused_with_the_range_and_the_flag(name, value, message):
    check_refused(Example, {name: value}, message)


def test_values_at_the_ends_of_a_range_are_accepted():
    Example(count=1, seed=2**32 - 1, rate=0.0, shares=(1e-9, 1.0), limit=None, decay=0.999, method="linear,knn")
    assert type(Example(count=1).count) is int


def _declared(config_class: type) -> list[tuple[str, object]]:
    """The name and the range of every field that declares one."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    parts = ((name, part) for name, hint in hints.items() for part in (hint, *typing.get_args(hint)))
    return [(name, part.__metadata__[0]) for name, part in parts if hasattr(part, "__metadata__")]


@pytest.mark.parametrize("config_class", CLASSES, ids=lambda cls: cls.__name__)
def test_every_declared_range_is_checked_when_the_config_is_made(config_class):
    fields = dataclasses.fields(config_class)
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    required = {field.name: "x.png" for field in fields if (field.default, field.default_factory) == missing}
    prefix = f"{config_class.section}." if config_class.section else ""
    for name, allowed in _declared(config_class):
        wrong: object = "no such value"
        if isinstance(allowed, Range):
            lowest = next(bound for bound in (allowed.above, allowed.at_least) if math.isfinite(bound))
            wrong = lowest - 1 if name not in ("crop_scale", "image_std") else (lowest - 1,) * 2
        check_refused(
            config_class, required | {name: wrong}, f"{prefix}{name} is .. must be {allowed} .. --{prefix}{name})"
        )


def test_a_section_knows_its_name():
    sections = {(name, hint) for command in COMMANDS for name, hint in typing.get_type_hints(command).items()}
    for name, hint in sections:
        assert not dataclasses.is_dataclass(hint) or hint.section == name


@pytest.mark.parametrize("config_class", CLASSES, ids=lambda cls: cls.__name__)
def test_configs_are_frozen_and_have_a_first_line_for_the_help(config_class):
    assert config_class.__dataclass_params__.frozen
    assert config_class.__doc__.splitlines()[0].endswith(".")


@pytest.mark.parametrize("config_class", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_has_help_and_no_help_is_left_of_a_removed_field(config_class):
    hints = typing.get_type_hints(config_class)
    values = {name for name, hint in hints.items() if not dataclasses.is_dataclass(hint)}
    helped = set()
    for ancestor in config_class.__mro__[:-2]:  # without Settings and object
        own = {param.arg_name for param in docstring_parser.parse(ancestor.__doc__).params if param.description}
        assert own <= set(vars(ancestor)["__annotations__"]), f"{ancestor.__name__} explains a field without value"
        helped |= own
    assert values <= helped


def _names_read(tree: ast.AST) -> set[str]:
    """Attributes that the code reads, and its strings, since some fields are read as `getattr(config, name)`."""
    nodes = list(ast.walk(tree))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    return attributes | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_no_field_is_a_dead_option():
    files = [path for folder in ("mae_hf", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]
    own = [path for path in files if path.parent.name == "config" or path == ROOT / "benchmarks" / "config.py"]
    read = set().union(*(_names_read(ast.parse(path.read_text())) for path in files if path not in own))
    # the dataclasses' own derived numbers count as readers, their checks do not
    for node in itertools.chain.from_iterable(ast.walk(ast.parse(path.read_text())) for path in own):
        if isinstance(node, ast.FunctionDef) and node.name not in ("__post_init__", "describe"):
            read |= _names_read(node)
    whole = {field.name for field in dataclasses.fields(MAEConfig)}  # models.mae.mae_config takes all of vars(config)
    dead = [
        f"{config_class.__name__}.{name}"
        for config_class in CLASSES
        for name in typing.get_type_hints(config_class)
        if name not in read and not (config_class is MAEConfig and name in whole)
    ]
    assert not dead
