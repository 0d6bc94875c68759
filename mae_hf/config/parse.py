"""Command line and YAML to a config, and a config back to YAML. One converter reads both.

Precedence: dataclass default < YAML (`--config`) < flags. `--print_config` shows the result.
"""

import argparse
import dataclasses
import json
import os
import re
import shlex
import sys
import typing
from collections.abc import Container, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from mae_hf.config.fields import Settings, ranges
from mae_hf.errors import ConfigError, require

Config = TypeVar("Config", bound=Settings)

CONFIGS = Path(__file__).parents[1] / "configs"  # presets and machine files; in a checkout, a link to `configs/`
_MAX_DEPTH = 8  # of a config file
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML was built with libyaml


class _Formatter(DefaultHelpFormatter):
    """jsonargparse's help with ranges that read as words: `float above 0`, not `Annotated[float, above 0]`."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = re.sub(r"Annotated\[(\w+), (.*?)\]", r"\1 \2", super()._expand_help(action))
        return re.sub(r"type: Optional\[(.*)\], default", r"type: \1 or null, default", text)


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper with quotes around strings that start like a number.

    For PyYAML, a revision `1e3` is a string that needs no quotes; for jsonargparse, which reads it, a number.
    """


_Dumper.add_implicit_resolver("!number", re.compile(r"[-+.\d]"), list("-+.0123456789"))


def read_command(config_class: type[Config], words: Sequence[str], prog: str) -> Config:
    """Return the config that the words of a command line describe; `prog` is the script's name, for `--help`.

    ConfigError names an unknown key and the nearest one, a value of the wrong type, or an inconsistent config.
    """
    parser, types = _parser(config_class, prog)
    if config_class.first_word and words and not words[0].startswith("-"):
        words = [f"--{config_class.first_word}", *words]
    words = [re.sub("(?<=^--)[^=]+", lambda name: name[0].replace("-", "_"), word) for word in words]  # --output-dir=a
    files_only = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    files_only.add_argument("--config", action="append", default=[])
    try:
        found, flags = files_only.parse_known_args(words)
        files = [_find_preset(config_class.presets, file) for file in found.config]
        for file in files:
            _check_keys([key for key, _ in _items(_read_yaml(Path(file)))], types, file)
        names = [word[2:].split("=")[0].removesuffix("+") for word in flags if word.startswith("--")]
        _check_keys([name for name in names if name not in ("help", "print_config")], types, "the command line")
        # Files first: for jsonargparse the later word wins, and a flag must win wherever --config stands.
        sections = parser.instantiate(parser.parse_args([*(f"--config={file}" for file in files), *flags]))
    except argparse.ArgumentError as error:
        raise ConfigError(_in_short(error, types)) from None
    except OverflowError:  # jsonargparse needs a float
        raise ConfigError("a number is beyond ±1e308: choose a smaller one (--help lists the ranges)") from None
    return config_class(**{name: sections[name] for name in typing.get_type_hints(config_class)})


def read_settings(
    config_class: type[Config], settings: Mapping[str, Any], base: str | Path | Config | None = None
) -> Config:
    """Return the config of Python values by dotted key, such as `{"train.epochs": 8}`; raises as `read_command` does.

    The other settings come from `base`, a YAML file, the name of a preset or a config, or are the defaults.
    """
    _check_keys(list(settings), dict(_types(config_class)), "settings")
    base = read_file(config_class, base) if isinstance(base, (str, Path)) else base
    problem = f"{type(base).__name__} is the config of a different command: give a {config_class.__name__} (config)"
    require(base is None or isinstance(base, config_class), problem)
    values = (flatten(base) if base else {}) | dict(settings)
    return read_command(config_class, [f"--{key}={_word(value)}" for key, value in values.items()], "mae_hf")


def read_file(config_class: type[Config], path: str | Path) -> Config:
    """Return the config in a YAML file, such as a run folder's `config.yaml`, or of a preset's name.

    Raises as `read_command` does.
    """
    return read_command(config_class, ["--config", str(path)], prog="mae_hf")


def to_yaml(config: Any) -> str:
    """Return the config as YAML, which `read_file` reads back to an equal config."""
    return yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flatten(config: Any) -> dict[str, Any]:
    """Return the value of every field of a config by its dotted key."""
    return dict(_items(dataclasses.asdict(config)))


def to_flags(config: Any, leave_out: Container[str] = ()) -> list[str]:
    """Return the words that give the settings of a config or section which are not the defaults."""
    before, words = flatten(type(config)()), list[str]()
    for name, value in flatten(config).items():
        key = f"{config.section}.{name}".strip(".")
        if value != before[name] and key not in leave_out:
            words += [f"--{key}", _word(value)]
    return words


def _word(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value, default=str)


def presets(command: str) -> list[str]:
    """Return the names of a command's presets."""
    return sorted(file.stem for file in (CONFIGS / command).glob("*.yaml")) if command else []


def command_line(name: str, words: Sequence[str], precision: str | None = None) -> str:
    """Return a command to type, in the form that started this process: a script of a checkout, or `mae_hf`.

    With a `precision`, `accelerate launch` starts one process. `mae_hf` needs no launcher for full precision.
    """
    script = Path(sys.argv[0])
    is_script = script.resolve().parent == CONFIGS.resolve().with_name("scripts")
    launch: list[str] = []
    if precision is not None and (is_script or precision != "no"):
        configs = script.parent.with_name("configs") if is_script else CONFIGS
        launch = ["accelerate", "launch", "--quiet", "--config_file", str(configs / "accelerate" / "one_process.yaml")]
        launch += [] if precision == "no" else ["--mixed_precision", precision]
    start = [*(launch or ["python"]), str(script.with_name(f"{name}.py"))]
    if not is_script:
        start = [*launch, "-m", "mae_hf", name] if launch else ["mae_hf", name]
    return shlex.join([*start, *words])


def _parser(config_class: type[Settings], prog: str) -> tuple[ArgumentParser, dict[str, Any]]:
    """Return the parser of a config, and the type of each of its settings and sections by dotted key."""
    types = dict(_types(config_class))
    usage = f"%(prog)s {config_class.first_word.upper()}".strip() + " [--config FILE.yaml] [--section.key value ...]"
    about = (config_class.__doc__ or "").split("\n")[0]
    parser = ArgumentParser(prog=prog, usage=usage, description=about, formatter_class=_Formatter, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file or preset; flags take precedence over it")
    parser.add_class_arguments(config_class)
    for action in parser._actions:
        if dataclasses.is_dataclass(types.get(action.dest)):
            action.help = argparse.SUPPRESS  # only the keys of a section have values
        elif types.get(action.dest) in (bool, bool | None):
            action.nargs, action.const = "?", True  # a bare --hub.push means true
    return parser, types


def _types(config_class: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, hint in typing.get_type_hints(config_class).items():
        yield prefix + key, hint
        if dataclasses.is_dataclass(hint):
            yield from _types(typing.cast(type, hint), f"{prefix}{key}.")


def _in_short(error: argparse.ArgumentError, types: dict[str, Any]) -> str:
    """Return the message of argparse or jsonargparse as one line in our words, with the fix."""
    message = " ".join(str(error).split())
    if missing := re.fullmatch("the following arguments are required: (.*)", message):
        flags = " ".join(f"--{name} VALUE" for name in missing[1].split(", "))
        return f"{missing[1]} must be given: add {flags}, or set it in the file of --config"
    message = re.sub(r"argument (--[\w.]+).*: expected one argument", r"\1 has no value: write \1=VALUE", message)
    fix = "write --NAME VALUE (see --help)"
    message = re.sub("unrecognized arguments: (.*)", rf"\1 belongs to no setting: {fix}", message)
    wrong = re.match(r'Parser key "([\w.]+)": .*(?:Got|Given) value: (.*)', message)
    if wrong is None or wrong[1] not in types:
        return message
    key, value = wrong.groups()
    hint = types[key]
    name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    is_list = re.search("tuple|list", name)
    words = next((repr(text).removeprefix("one of ") for text in ranges(hint)), "")  # of a Literal
    kind = "a whole number or" if "[int" in str(hint) else "a list of" if is_list else "one of"
    allowed = f"{kind} {words}" if words else "of type " + re.sub(r"Optional\[(.*)\]", r"\1 or null", name)
    return f"{key} {value} is not {allowed}{', written [first,second]' if is_list else ''} (--{key})"


def _find_preset(command: str, name: str) -> str:
    """Return the YAML file that `--config` means: a path, or the name of a preset of a command."""
    if name.endswith((".yaml", ".yml")) or "/" in name or os.path.isfile(name):
        return name
    known = presets(command)
    listed = f"presets are {', '.join(known)}" if known else "this command has no presets"
    require(name in known, f"config {name[:100]} is neither a YAML file nor a preset: {listed} (--config)")
    return str(CONFIGS / command / f"{name}.yaml")


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a config file, which may be untrusted: no tags, no aliases, not deep."""
    try:
        require(path.is_file(), f"{path} is not a file that exists (--config)")  # a device may never end
        text, depth = path.read_text(), 0
        for event in yaml.parse(text, _LOADER):  # aliases of aliases grow without limit, nesting fills the stack
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            where = f"{path}, line {event.start_mark.line + 1 if event.start_mark else 1}"
            require(depth <= _MAX_DEPTH, f"{where} is nested more than {_MAX_DEPTH} levels deep (--config)")
            is_alias = isinstance(event, yaml.AliasEvent)
            require(not is_alias, f"{where} has an alias (*): write the value again (--config)")
        content = yaml.load(text, _LOADER)
    except ConfigError:
        raise
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError where PyYAML lets Python convert a value
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ConfigError(f"{path} cannot be read as YAML: {reason} (--config)") from None
    require(isinstance(content, dict), f"{path} does not contain sections with keys: see config.yaml of any run")
    return content


def _items(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_keys(keys: Sequence[str], types: dict[str, Any], where: str) -> None:
    """Check that every key names a setting; otherwise name the nearest one."""
    for key in keys:
        if key not in types:
            settings = [name for name in types if not dataclasses.is_dataclass(types[name])]
            nearest = max(settings, key=lambda name: _likeness(name, key))
            raise ConfigError(f"{where} has the unknown key {key}: the nearest one is {nearest} (see --help)")
        if dataclasses.is_dataclass(types[key]):
            first = next(name for name in types if name.startswith(f"{key}."))
            raise ConfigError(f"{where} gives the section {key} a value: set its keys instead, such as {first}")


def _likeness(*names: str) -> float:
    """Return how alike two names are: as a whole, without the section, and in the first word after it."""
    last = [name.split(".")[-1] for name in names]
    first = [name.split("_")[0] for name in last]
    return sum(weight * SequenceMatcher(None, *pair).ratio() for weight, pair in ((1, names), (1, last), (0.25, first)))
