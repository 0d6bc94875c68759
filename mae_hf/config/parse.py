"""Command line and YAML to a config, and a config back to YAML: one converter for both, errors in one line.

Precedence: dataclass default < YAML (`--config`) < flags. `--print_config` shows the result.
"""

import argparse
import dataclasses
import difflib
import itertools
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace

from mae_hf.errors import ConfigError, is_plain, redact, require

Config = TypeVar("Config")

_OWN_FLAGS = ("help", "config", "print_config")
# of a config file: 21,000 class names fit in, and reading it takes a second at most
_MAX_BYTES, _MAX_DEPTH, _MAX_EVENTS = 2**19, 8, 50_000
_MAX_INT = 2**63
# libyaml, which PyYAML is built with where there is a compiler, reads ten times as fast
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Parser(ArgumentParser):
    """jsonargparse's parser with errors in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(" ".join(message.split()))


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper with quotes around strings that begin like a number.

    A revision `1e3` is a string to PyYAML, which leaves it bare, and a number to the reader, jsonargparse.
    """

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = "'" if re.match(r"[-+.\d]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


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
    types = dict(_types(config_class))
    files, flags = _separate(sys.argv[1:] if argv is None else argv, types)
    for file in files:
        _check_keys([key for key, _ in _items(_read_yaml(Path(file)))], types, file)
    names = [word[2:].split("=")[0].removesuffix("+") for word in flags if word.startswith("--")]
    _check_keys([name for name in names if name not in _OWN_FLAGS], types, "the command line")
    parser = _parser(config_class, types, prog)
    try:  # the files first, so that flags win wherever --config stands: jsonargparse lets the later word win
        values = parser.parse_args([*(f"--config={file}" for file in files), *flags])
    except ConfigError as error:
        raise ConfigError(_in_short(str(error), types)) from None
    for key, value in _leaves({key: values[key] for key in typing.get_type_hints(config_class)}):
        require(
            value is not None or type(None) in typing.get_args(types.get(key)),
            f"{key.split('.')[-1]} null is not {_describe(types[key]) if key in types else 'a value'} (--{key})",
        )
        _check_value(key, value)
    return _build(config_class, values)


def load(config_class: type[Config], path: str | Path) -> Config:
    """The config in a YAML file, such as a run folder's `config.yaml`; raises `ConfigError` as `parse` does."""
    return parse(config_class, ["--config", str(path)], prog="mae_hf")


def dump(config: Any) -> str:
    """The config as YAML that `--config` reads back to an equal one."""
    return yaml.dump(_plain(dataclasses.asdict(config)), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def differences(old: Any, new: Any) -> list[str]:
    """`key: old value -> new value` for every field in which two configs of one class differ."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return [f"{key}: {before[key]} -> {after[key]}" for key in after if before[key] != after[key]]


def _parser(config_class: type, types: dict[str, Any], prog: str) -> _Parser:
    usage = "%(prog)s [--config FILE.yaml] [--section.key value ...]"
    parser = _Parser(prog=prog, usage=usage, description=(config_class.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file; flags win over it")
    parser.add_class_arguments(config_class)
    for action in parser._actions:
        if dataclasses.is_dataclass(types.get(action.dest)):
            action.help = argparse.SUPPRESS  # a section has no value of its own
    return parser


def _build(config_class: Callable[..., Config], values: Any) -> Config:
    """Makes the dataclass, its sections first, out of the parser's namespace."""
    fields = {
        key: _build(typing.cast(type, hint), values[key]) if dataclasses.is_dataclass(hint) else values[key]
        for key, hint in typing.get_type_hints(config_class).items()
    }
    return config_class(**fields)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """`(dotted key, value)` of every single value, those in lists too."""
    if isinstance(value, (dict, Namespace)):
        for name, item in (value if isinstance(value, dict) else vars(value)).items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item, key)
    else:
        yield key, value


def _check_value(key: str, value: Any) -> None:
    """What no setting may be: a number without bounds, a string that breaks a line or holds a secret."""
    if isinstance(value, int):
        require(
            abs(value) < _MAX_INT, f"{key} is a number of {value.bit_length()} bits: choose a smaller one (--{key})"
        )
    if isinstance(value, str):
        require(is_plain(value), f"{key} {value} has control characters: leave them out (--{key})")
        require(
            redact(value) == value,
            f"{key} {value} holds a password or token, which would be written into config.yaml, run.json and the card: "
            "leave it out, a server's belongs in ~/.netrc and the Hub's in `hf auth login` or HF_TOKEN "
            f"(--{key})",
        )


def _types(config_class: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the type of every field, sections included."""
    for key, hint in typing.get_type_hints(config_class).items():
        yield prefix + key, hint
        if dataclasses.is_dataclass(hint):
            yield from _types(typing.cast(type, hint), f"{prefix}{key}.")


def _in_short(message: str, types: dict[str, Any]) -> str:
    """jsonargparse's message about a value of the wrong type in our words; any other as it is."""
    wrong = re.match(r'Parser key "([\w.]+)": .*(?:Got|Given) value: (.*)', message)
    if wrong is None or wrong[1] not in types:
        return message
    key, value = wrong.groups()
    return f"{key.split('.')[-1]} {value} is not {_describe(types[key])} (--{key})"


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    return f"of type {name}{', written [first,second]' if re.search('tuple|list', name) else ''}"


def _separate(argv: Sequence[str], types: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The files of `--config`, and all other words; a bare `--hub.push` becomes `--hub.push=true`."""
    files, flags = [], []
    argv = [_underscored(word) if word.startswith("--") else word for word in argv]
    words = iter(itertools.zip_longest(argv, argv[1:]))
    for word, following in words:
        if word.startswith("--config="):
            files.append(word.removeprefix("--config="))
        elif word == "--config" and following is not None:
            files.append(following)
            next(words)
        elif types.get(word[2:]) is bool and (following is None or following.startswith("--")):
            flags.append(f"{word}=true")
        else:
            flags.append(word)
    return files, flags


def _underscored(flag: str) -> str:
    """A flag that is spelled with hyphens as the key it is: `--output-dir=a-b` as `--output_dir=a-b`."""
    name, equals, value = flag[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _read_yaml(path: Path) -> dict[str, Any]:
    """The content of a config file, which may come from a stranger: no tags, no aliases, nothing large or deep."""
    try:
        is_device = path.exists() and not path.is_file() and not path.is_dir()
        require(not is_device, f"{path} is not a file (--config)")  # a device may have no end
        require(
            path.stat().st_size <= _MAX_BYTES,
            f"{path} has {path.stat().st_size} bytes: a config has at most {_MAX_BYTES} (--config)",
        )
        text = path.read_text()
        _check_events(text, path)
        content = yaml.load(text, _LOADER)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror} (--config)") from None
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # PyYAML leaves some values to Python, which calls them wrong
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} does not hold sections with keys: see configs/pretrain/digits.yaml")
    return content


def _check_events(text: str, path: Path) -> None:
    """Looks through a file before anything is built of it: aliases of aliases grow without bounds."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, _LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1 if event.start_mark else 1
        require(
            number < _MAX_EVENTS, f"{path} has more than {_MAX_EVENTS} keys and values: a config has fewer (--config)"
        )
        require(depth <= _MAX_DEPTH, f"{path}, line {line} is nested more than {_MAX_DEPTH} deep: a config is not")
        require(not isinstance(event, yaml.AliasEvent), f"{path}, line {line} has an alias (*): write the value again")


def flatten(config: Any) -> list[tuple[str, Any]]:
    """`(dotted key, value)` of every field of a config."""
    return list(_items(dataclasses.asdict(config)))


def _items(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_keys(keys: Sequence[str], types: dict[str, Any], where: str) -> None:
    for key in keys:
        if key not in types:
            nearest = max(sorted(types), key=lambda name: _likeness(name, key))
            raise ConfigError(f"{where} has the unknown key {key}: the nearest one is {nearest} (see --help)")
        if dataclasses.is_dataclass(types[key]):
            first = next(name for name in types if name.startswith(f"{key}."))
            raise ConfigError(f"{where} gives the section {key} a value: only its keys have one, such as {first}")


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
