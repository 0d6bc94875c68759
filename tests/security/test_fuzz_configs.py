"""Untrusted YAML files: each becomes a config, or a ConfigError of one short line within a second, and runs no code."""

import contextlib
import os
import time
import unicodedata
from pathlib import Path

import pytest
import yaml
from fuzz import examples, file_with
from hypothesis import given
from hypothesis import strategies as st

from mae_hf.config import parse
from mae_hf.config.commands import EvaluateConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.errors import ConfigError

SECTIONS = ("data", "model", "train", "augment", "audit", "hub")
KEYS = [*parse.flatten(PretrainConfig()), *parse.flatten(FinetuneConfig())]
TOUCH = "!!python/object/apply:os.system ['touch FILE']"

# every letter is a list of nine aliases of the letter before; the last one expands to 9 ** 8 strings
LAUGHS = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True))
HOSTILE = {
    "a billion laughs": f"a: &a [x, x, x, x, x, x, x, x, x]\n{LAUGHS}output_dir: *h\n",
    "a billion laughs in one value": f"data:\n  source: [{', '.join(line[3:] for line in LAUGHS.splitlines())}]\n",
    "itself": "data: &a {source: *a}\n",
    "its own root": "&a\ndata: *a\n",
    "deep lists": "data: {source: " + "[" * 9000 + "]" * 9000 + "}\n",
    "deep mappings": "data: " + "{a: " * 9000 + "1" + "}" * 9000 + "\n",
    "Python's objects": "data: !!python/object/new:os.system [ls]\n",
    "Python's modules": "data: {source: !!python/module:os }\n",
    "a class path": "data: {source: {class_path: os.system, init_args: {command: ls}}}\n",
    "infinity": "train: {base_lr: 1e9999}\n",
    "no number": "data: {image_mean: [.nan, 0, 0]}\n",
    "an infinite deviation": "data: {image_std: [.inf, 1, 1]}\n",
    "5,000 digits": f"train: {{batch_size: {'9' * 5000}}}\n",
    "100,000 hexadecimal digits": f"train: {{batch_size: 0x{'f' * 100_000}}}\n",
    "a seed of 300 digits": f"train: {{seed: {'9' * 300}}}\n",
    "a huge image": "model: {image_size: 1000000000000, patch_size: 1}\n",
    "true for a number": "train: {batch_size: true}\n",
    "bytes": "output_dir: !!binary aGVsbG8=\n",
    "a set": "data: !!set {a, b}\n",
    "a list as key": "? [a, b]\n: 1\n",
    "null as key": "~: 2\n",
    "two documents": "hub: {}\n---\nhub: {}\n",
    "no date": "output_dir: 2001-99-99\n",
    "nothing": "",
    "NUL": 'output_dir: "\\0"\n',
    "a terminal's commands": 'output_dir: "\\e[2J"\n',
    "turned writing": 'output_dir: "\\u202egnp.exe"\n',
    "a line break in a class name": 'data: {class_names: ["a\\nb", c]}\n',
    "a class name of 10,000 characters": f"data: {{class_names: [{'a' * 10_000}, b]}}\n",
    "another config": "config: /etc/passwd\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_in_a_second_and_in_one_line(name: str):
    file = file_with(HOSTILE[name].encode(), ".yaml")
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        parse.read_file(PretrainConfig, file)
    assert time.process_time() - start < 1
    message = str(caught.value)
    assert len(message) < 2100
    assert message.isprintable()


def test_a_tag_runs_nothing(tmp_path: Path):
    for text in (TOUCH, f"{{source: {TOUCH} }}", "{source: '" + TOUCH.replace("'", "''") + "'}"):
        file = file_with(f"data: {text.replace('FILE', str(tmp_path / 'ran'))}\n".encode(), ".yaml")
        with contextlib.suppress(ConfigError):
            parse.read_file(PretrainConfig, file)
        assert not (tmp_path / "ran").exists()


def test_a_config_is_a_file_here_and_no_device_or_address(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("/dev/zero", str(tmp_path / "pipe.yaml"), "https://127.0.0.1:9/c.yaml", "x" * 5000, "a\0b"):
        with pytest.raises(ConfigError, match=r"not a file|cannot be read|neither a YAML file"):
            parse.read_command(PretrainConfig, [f"--config={name}"], "pretrain")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**30, max_value=10**400)
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["digits", "scratch", "1e9999", "0x1", "[", "{a: b}", "../..", "\x1b[2J", "\u202e", "null", "~"])
    | st.binary(max_size=5)
    | st.dates()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@st.composite
def contents(draw: st.DrawFn) -> dict:
    """Return sections with known keys and arbitrary values, and sometimes unknown keys."""
    content: dict = {}
    for key in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)):
        section, _, name = key.rpartition(".")
        target = content.setdefault(section, {}) if section else content
        target[name] = draw(VALUES)
    return content | draw(st.dictionaries(st.sampled_from(SECTIONS) | st.text(max_size=8), VALUES, max_size=1))


def outcome(config_class: type, file: Path) -> object:
    try:
        return parse.read_file(config_class, file)
    except ConfigError as error:
        return str(error)


def check(text: bytes) -> None:
    file = file_with(text, ".yaml")
    for config_class in (PretrainConfig, FinetuneConfig, EvaluateConfig):
        config = outcome(config_class, file)
        if isinstance(config, str):
            assert not {unicodedata.category(char) for char in config} & {"Cc", "Cs"}
            assert len(config) < 2100
        else:
            assert outcome(config_class, file_with(parse.to_yaml(config).encode(), ".yaml")) == config
    file.unlink()


@examples(25)
@given(contents())
def test_values_of_any_kind_become_a_config_that_can_be_read_back_or_one_error(content: dict):
    check(yaml.safe_dump(content, allow_unicode=True).encode())


@examples(25)
@given(st.binary(max_size=200) | st.text("{}[]:,&*!|>-?'\"%@#\n ab1.~\t", max_size=60).map(str.encode))
def test_bytes_of_any_kind_become_a_config_or_one_error(text: bytes):
    check(text)
