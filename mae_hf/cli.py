"""Command line and YAML to a config, and a config back to YAML: one converter for both, errors in one line.

Precedence: dataclass default < YAML (`--config`) < flags. `--print_config` shows the result.
"""

import dataclasses
import difflib
import os
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser

from mae_hf.config import ConfigError, RunError

Config = TypeVar("Config")

_OWN_FLAGS = ("help", "config", "print_config")


class _Parser(ArgumentParser):
    """jsonargparse's parser with errors in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(" ".join(message.split()))


def parse(config_class: type[Config], argv: Sequence[str] | None, prog: str) -> Config:
    """The config that a command line asks for.

    Args:
        config_class: one of the config dataclasses.
        argv: the words after the script's name; None takes those of this process.
        prog: the script's name, for `--help`.

    Returns:
        The checked config.

    Raises:
        ConfigError: an unknown key (with the nearest one), a value of the wrong type, or an inconsistent config.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    known = set(_keys(config_class))
    for path in _config_paths(argv):
        if path.is_file():
            _check_keys(_flatten(_read_yaml(path)), known, str(path))
    flags = [word[2:].split("=")[0].removesuffix("+") for word in argv if word.startswith("--")]
    _check_keys([flag for flag in flags if flag not in _OWN_FLAGS], known, "the command line")
    parser = _parser(config_class, prog)
    return _instantiate(parser, config_class, parser.parse_args(argv))


def load(config_class: type[Config], path: str | Path) -> Config:
    """The config in a YAML file, such as a run folder's `config.yaml`; raises `ConfigError` as `parse` does."""
    return parse(config_class, ["--config", str(path)], prog="mae_hf")


def dump(config: Any) -> str:
    """The config as YAML that `--config` reads back to an equal one."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def differences(old: Any, new: Any) -> list[str]:
    """`key: old value -> new value` for every field in which two configs of one class differ."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return [f"{key}: {before[key]} -> {after[key]}" for key in after if before[key] != after[key]]


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a script's `main` and exits: 0 done, 1 the run failed, 2 the command or the config is wrong."""
    try:
        main()
    except (ConfigError, RunError) as error:
        if int(os.environ.get("RANK", "0")) == 0:  # one process speaks for all
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    sys.exit(0)


def _parser(config_class: type, prog: str) -> _Parser:
    parser = _Parser(prog=prog, usage="%(prog)s [--config FILE.yaml] [--section.key value ...]", description=(config_class.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file; flags after it win")
    parser.add_class_arguments(config_class)
    return parser


def _instantiate(parser: _Parser, config_class: type[Config], namespace: Any) -> Config:
    values = parser.instantiate(namespace)
    return config_class(**{field.name: values[field.name] for field in dataclasses.fields(config_class)})  # type: ignore[arg-type]


def _keys(config_class: type, prefix: str = "") -> Iterator[str]:
    """The dotted name of every field, sections included."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _keys(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")


def _config_paths(argv: Sequence[str]) -> Iterator[Path]:
    for index, word in enumerate(argv):
        if word == "--config" and index + 1 < len(argv):
            yield Path(argv[index + 1])
        elif word.startswith("--config="):
            yield Path(word.removeprefix("--config="))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not sections: see configs/pretrain/digits.yaml")
    return content


def flatten(config: Any) -> list[tuple[str, Any]]:
    """`(dotted key, value)` of every field of a config."""
    return list(_items(dataclasses.asdict(config)))


def _flatten(content: dict[str, Any]) -> list[str]:
    return [key for key, _ in _items(content)]


def _items(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_keys(keys: Sequence[str], known: set[str], where: str) -> None:
    for key in keys:
        if key not in known:
            nearest = max(sorted(known), key=lambda name: _likeness(name, key))
            raise ConfigError(f"{where} has the unknown key {key}: the nearest one is {nearest} (see --help)")


def _likeness(name: str, key: str) -> float:
    """How alike two dotted names are; the last word counts as much as the whole."""
    last_words = difflib.SequenceMatcher(None, name.split(".")[-1], key.split(".")[-1]).ratio()
    return last_words + difflib.SequenceMatcher(None, name, key).ratio()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
