"""The command line and YAML: precedence, one converter for both, errors that name the fix, and a round trip."""

import dataclasses
import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import docstring_parser
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_hf.config import parse as parsing
from mae_hf.config.commands import (
    DoctorConfig,
    EmbedConfig,
    EvaluateConfig,
    PredictConfig,
    PrepareConfig,
    ReconstructConfig,
)
from mae_hf.config.data import DataConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.errors import ConfigError

ROOT = Path(__file__).parents[2]


def parse(*words: str, config_class=PretrainConfig):
    return parsing.read_command(config_class, words, prog="test")


def error_of(*words: str, config_class=PretrainConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*words, config_class=config_class)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write


# ---- precedence ----


def test_without_words_the_defaults_hold():
    assert parse() == PretrainConfig()
    assert parse(config_class=FinetuneConfig) == FinetuneConfig()


@pytest.mark.parametrize("flag_first", [False, True])
def test_a_flag_beats_yaml_beats_the_default_wherever_it_stands(write, flag_first):
    file = ["--config", write("train: {seed: 5, epochs: 100}\ndata: {source: digits}\n")]
    flag = ["--train.seed", "7"]
    config = parse(*flag, *file) if flag_first else parse(*file, *flag)
    assert (config.train.seed, config.train.epochs, config.data.source) == (7, 100.0, "digits")
    assert config.train.batch_size == PretrainConfig().train.batch_size
    assert config.model == PretrainConfig().model


def test_the_later_of_two_files_wins(tmp_path):
    for name, text in {"a": "train: {seed: 1, epochs: 30}", "b": "train: {seed: 2}"}.items():
        (tmp_path / name).write_text(text)
    config = parse(f"--config={tmp_path / 'a'}", "--config", str(tmp_path / "b"))
    assert (config.train.seed, config.train.epochs) == (2, 30.0)


# ---- one converter ----

SAME = [  # key, how it is written, value
    ("train.base_lr", "1e-4", 1e-4),
    ("train.base_lr", "1.0e-4", 1e-4),
    ("train.base_lr", "2", 2.0),
    ("train.epochs", "30", 30.0),
    ("train.per_device_batch_size", "null", None),
    ("augment.flip", "false", False),
    ("augment.crop_scale", "[0.5, 1]", (0.5, 1.0)),
    ("data.class_names", '["0", "1"]', ("0", "1")),
    ("data.class_names", "null", None),
    ("data.source", "digits", "digits"),
    ("data.source", "[first, second]", ["first", "second"]),
    ("train.trackers", "[tensorboard, trackio]", ("tensorboard", "trackio")),
    ("model.loss", "huber", "huber"),
    ("output_dir", "runs/a b", "runs/a b"),
]


@pytest.mark.parametrize(("key", "text", "value"), SAME)
def test_yaml_and_flags_are_read_alike(write, key, text, value):
    section, _, name = key.rpartition(".")
    file = write(f"{section}: {{{name}: {text}}}" if section else f"{name}: {text}")
    for config in (parse("--config", file), parse(f"--{key}", text), parse(f"--{key}={text}")):
        found = parsing.flatten(config)[key]
        assert found == value
        assert type(found) is type(value)


def test_a_revision_that_looks_like_a_number_stays_a_string(write):
    assert parse("--data.revision", "1e3").data.revision == "1e3"
    assert parse("--config", write("data: {revision: '1e3'}")).data.revision == "1e3"
    assert "revision 1000.0 is not of type str" in error_of("--config", write("data: {revision: 1e3}"))


def test_a_bare_switch_is_on():
    config = parse("--hub.push", "--hub.repo_id", "user/name", "--model.norm_pix_loss")
    assert (config.hub.push, config.model.norm_pix_loss) == (True, True)
    assert parse("--hub.push", "false").hub.push is False


def test_a_flag_may_be_spelled_with_hyphens_and_its_value_keeps_them():
    config = parse("--output-dir=a-b=c-d", "--train.base-lr", "1e-4", "--model.norm-pix-loss", "--data.source", "a-b")
    assert (config.output_dir, config.train.base_lr, config.data.source) == ("a-b=c-d", 1e-4, "a-b")
    assert config.model.norm_pix_loss is True
    assert parse("--output-dir", "one-two").output_dir == "one-two"


def test_a_key_in_yaml_has_one_spelling(write):
    assert "unknown key output-dir: the nearest one is output_dir " in error_of("--config", write("output-dir: x"))


# ---- errors ----

WRONG = [  # section, key, value: what the message says
    ("train", "base_lr", "abc", ("base_lr abc", "float", "--train.base_lr")),
    ("train", "batch_size", "1.5", ("batch_size 1.5", "int", "--train.batch_size")),
    ("train", "batch_size", "true", ("batch_size True", "int", "--train.batch_size")),
    ("train", "trackers", "tensorboard", ("trackers tensorboard", "[first,second]", "--train.trackers")),
    ("train", "trackers", "[w&b]", ("trackers w&b is not a list of tensorboard, wandb, trackio,", "--train.trackers")),
    ("augment", "flip", "maybe", ("flip maybe", "bool", "--augment.flip")),
    ("augment", "crop_scale", "[0.5]", ("crop_scale [0.5]", "float, float", "--augment.crop_scale")),
    ("data", "on_bad_image", "stop", ("on_bad_image stop", "one of raise, skip", "--data.on_bad_image")),
    ("data", "class_names", "[0, 1]", ("class_names [0, 1]", "tuple[str, ...]", "--data.class_names")),
    ("data", "fold", "first", ("fold first is not of type int or null", "--data.fold")),
    ("model", "loss", "l3", ("loss l3", "one of l1, mse, huber", "--model.loss")),
    ("model", "patch_size", "10", ("patch_size 10", "image_size 96", "8, 12, 16", "--model.patch_size")),
]


@pytest.mark.parametrize(("section", "key", "text", "parts"), WRONG)
def test_a_wrong_value_is_named_with_what_is_allowed_and_the_flag(write, section, key, text, parts):
    for message in (
        error_of(f"--{section}.{key}", text),
        error_of("--config", write(f"{section}:\n  {key}: {text}\n")),
    ):
        assert all(part in message for part in parts), message


def test_a_number_that_no_float_can_hold_is_refused(write):
    huge = 10**400
    for words in ([f"--train.epochs={huge}"], ["--config", write(f"train:\n  epochs: {huge}\n")]):
        assert error_of(*words).startswith("a number is beyond ±1e308: choose a smaller one")
    with pytest.raises(ConfigError, match="a number is beyond ±1e308: choose a smaller one"):
        parsing.read_settings(PretrainConfig, {"train.epochs": huge})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.base_lrr", "train.base_lr"),
        ("trian.base_lr", "train.base_lr"),
        ("base_lr", "train.base_lr"),
        ("model.mask_ration", "model.mask_ratio"),
        ("mask_ratio", "model.mask_ratio"),
        ("train.warmup_epochs", "train.warmup_ratio"),
        ("train.num_epochs", "train.epochs"),
        ("train.eval_every_steps", "train.eval_every_epochs"),
        ("train.mask_ratio", "model.mask_ratio"),
        ("outputdir", "output_dir"),
        ("dta.source", "data.source"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_nearest_one(write, key, nearest):
    section, _, name = key.rpartition(".")
    file = write(f"{section}:\n  {name}: 1\n" if section else f"{name}: 1\n")
    assert f"{file} has the unknown key {key}: the nearest one is {nearest} " in error_of("--config", file)
    assert f"the command line has the unknown key {key}: the nearest one is {nearest} " in error_of(f"--{key}", "1")


def test_a_key_of_the_other_stage_is_unknown():
    assert "unknown key model.mask_ratio" in error_of("--model.mask_ratio", "0.5", config_class=FinetuneConfig)
    assert "unknown key train.layer_decay" in error_of("--train.layer_decay", "0.5")


@pytest.mark.parametrize("text", ["train: 3", "train: digits", "train:", "train: [1]"])
def test_a_section_in_yaml_must_have_keys(write, text):
    file = write(text)
    assert f"{file} gives the section train a value" in error_of("--config", file)


def test_a_section_is_no_flag():
    assert "the command line gives the section train a value" in error_of("--train", "{seed: 1}")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_a_file_without_sections_is_refused_with_an_example(write, text):
    file = write(text)
    message = error_of("--config", file)
    assert file in message
    assert "see config.yaml of any run" in message


@pytest.mark.parametrize("content", [b"train: [\n", b"a: b: c\n", b"\xff\xfe\x00"])
def test_broken_yaml_names_the_file(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    assert f"{path} cannot be read as YAML" in error_of("--config", str(path))


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "no.yaml", tmp_path):
        assert error_of("--config", str(path)) == f"{path} is not a file that exists (--config)"


def test_a_preset_is_found_by_its_name():
    for config_class, stage in ((PretrainConfig, "pretrain"), (FinetuneConfig, "finetune")):
        file = ROOT / "configs" / stage / "stl10_tiny.yaml"
        assert parse("--config", "stl10_tiny", config_class=config_class) == parsing.read_file(config_class, file)
    assert parse("--config=digits", "--train.epochs", "3").train.epochs == 3
    with pytest.raises(ConfigError, match=r"config stl10 is neither .*: presets are digits, .*tiny \(--config\)"):
        parse("--config", "stl10")
    with pytest.raises(ConfigError, match="this command has no presets"):
        parse("--config", "stl10_tiny", config_class=EvaluateConfig)


@pytest.mark.parametrize("word", ["digits", "-x"])
def test_words_that_fit_nowhere_are_refused(word):
    assert error_of(word) == f"{word} belongs to no setting: write --NAME VALUE (see --help)"


@pytest.mark.parametrize("words", [("--config",), ("--train.seed",), ("--train.seed", "--hub.push")])
def test_a_flag_without_its_value_is_named(words):
    assert error_of(*words) == f"{words[0]} has no value: write {words[0]}=VALUE"


def test_required_keys_are_named():
    message = error_of("--model", "here", config_class=EvaluateConfig)
    assert message == "output_dir must be given: add --output_dir VALUE, or set it in the file of --config"
    assert "add --model VALUE --output_dir VALUE" in error_of(config_class=EvaluateConfig)


def test_words_that_are_allowed_once_or_not_at_all_are_listed():
    message = error_of("--audit_against", "nothing", config_class=PrepareConfig)
    assert message == "audit_against nothing is not one of train, validation, test (--audit_against)"


# ---- a config as words ----


def test_a_command_to_type_starts_as_this_process_was_started(monkeypatch):
    words = ["--data.source", "my photos"]
    monkeypatch.setattr(sys, "argv", ["scripts/pretrain.py"])
    assert parsing.command_line("compare", words) == "python scripts/compare.py --data.source 'my photos'"
    half = parsing.command_line("finetune", words, "bf16")
    file = "configs/accelerate/one_process.yaml"
    assert half == (
        f"accelerate launch --quiet --config_file {file} --mixed_precision bf16 scripts/finetune.py "
        "--data.source 'my photos'"
    )
    assert (ROOT / file).is_file() and (ROOT / "scripts/finetune.py").is_file()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mae_hf", "pretrain"])
    assert parsing.command_line("compare", words) == "mae_hf compare --data.source 'my photos'"
    assert parsing.command_line("finetune", [], "no") == "mae_hf finetune"
    launch, name = parsing.command_line("finetune", [], "fp16").split(" --mixed_precision fp16 -m ")
    assert name == "mae_hf finetune" and Path(launch.split()[-1]).is_file()


# ---- a config as YAML ----


def test_print_config_is_a_valid_config_that_gives_the_same(tmp_path, capsys):
    words = ["--config", "configs/pretrain/digits.yaml", "--train.base_lr", "1e-5", "--data.source", "[a, b]"]
    words[1] = str(ROOT / words[1])
    with pytest.raises(SystemExit) as exited:
        parse(*words, "--print_config")
    assert exited.value.code == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert parsing.read_file(PretrainConfig, path) == parse(*words)
    assert parse(*words).train.base_lr == 1e-5


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("[pf]*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_a_preset_survives_being_written_and_read(path, tmp_path):
    config_class = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}[path.parent.name]
    config = parsing.read_file(config_class, path)
    (tmp_path / "config.yaml").write_text(parsing.to_yaml(config))
    assert parsing.read_file(config_class, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "text", ["1e3", "-1.5e-3", ".5e1", "1_0", "0x1f", "null", "on", "2024-01-01", "~", "a: b", "#", "- x", "[", "'"]
)
def test_a_string_that_yaml_may_take_for_something_else_survives(text, tmp_path):
    config = dataclasses.replace(
        PretrainConfig(), data=DataConfig(revision="1e3", class_names=(text,)), output_dir=text
    )
    (tmp_path / "config.yaml").write_text(parsing.to_yaml(config))
    assert parsing.read_file(PretrainConfig, tmp_path / "config.yaml") == config


@pytest.mark.parametrize("source", ["[", "[]", "[;]", " [a", "- a", "-"])
def test_a_source_that_would_be_read_back_as_a_list_is_refused(source):
    with pytest.raises(ConfigError, match=r"data.source .* reads like a list: .*--data.source"):
        DataConfig(source=source)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=200)


@settings(max_examples=15, deadline=None)
@given(
    base_lr=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(0, 2**32 - 1),
    names=st.none() | st.lists(TEXT, max_size=3, unique=True).map(tuple),
    source=TEXT.filter(lambda text: not re.match(r"\s*(\[|-(\s|$))", text)) | st.lists(TEXT, min_size=1, max_size=2),
    output_dir=TEXT,
)
def test_any_config_survives_being_written_and_read(tmp_path_factory, base_lr, seed, names, source, output_dir):
    config = PretrainConfig()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, class_names=names, source=source),
        train=dataclasses.replace(config.train, base_lr=base_lr, seed=seed),
        output_dir=output_dir,
    )
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(parsing.to_yaml(config), encoding="utf-8")
    assert parsing.read_file(PretrainConfig, path) == config


# ---- a script as a process ----

SCRIPTS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "reconstruct": ReconstructConfig,
    "prepare_data": PrepareConfig,
    "embed": EmbedConfig,
    "predict": PredictConfig,
    "doctor": DoctorConfig,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_lists_every_flag_with_its_help_and_range(name):
    done = _python(str(ROOT / "scripts" / f"{name}.py"), "--help", COLUMNS="1000")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert {"--config", "--print_config"} <= set(words)
    for key, help_text in _leaves(SCRIPTS[name]):
        assert {f"--{key}", f"--{key},"} & set(words)
        assert " ".join(help_text.split()) in " ".join(words)
    assert "(type: float above 0 and below 1, default: 0.1)" in " ".join(words)


def test_a_wrong_command_ends_with_code_2_and_one_line():
    done = _python(str(ROOT / "scripts" / "pretrain.py"), "--model.patch_size", "10")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: model.patch_size 10 does not divide image_size 96: choose 2, 3, 4, 6, 8, 12, 16"
    )
    assert done.stderr.count("\n") == 1


def test_the_command_line_is_read_without_torch():
    heavy = {"torch", "numpy", "transformers", "datasets"}
    code = f"import sys, mae_hf.config.parse; print(sorted({heavy} & sys.modules.keys()))"
    assert _python("-c", code).stdout.strip() == "[]"


def _python(*words: str, **environment: str) -> subprocess.CompletedProcess:
    env = os.environ | {"RANK": "0"} | environment
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, cwd=ROOT, timeout=300)


def _leaves(config_class: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every flag with its help, as the docstrings of the class and its ancestors have it."""
    params = [param for cls in config_class.__mro__[:-1] for param in docstring_parser.parse(cls.__doc__).params]
    helps = {param.arg_name: param.description for param in params}
    for name, hint in typing.get_type_hints(config_class).items():
        if dataclasses.is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, helps[name]


def test_what_is_dumped_is_plain_yaml():
    assert yaml.safe_load(parsing.to_yaml(PretrainConfig()))["augment"] == {"crop_scale": [0.2, 1.0], "flip": True}


def test_python_values_give_the_config_that_flags_give(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("train: {epochs: 7, base_lr: 1e-4}\n")
    values = {"train.epochs": 3, "data.source": ["a", "b"], "data.image_mean": (0.1, 0.2, 0.3), "data.revision": "1e3"}
    flags = ("--train.epochs=3", "--data.source=[a, b]", "--data.image_mean=[0.1, 0.2, 0.3]", "--data.revision=1e3")
    for base in (file, str(file), parse(f"--config={file}")):
        assert parsing.read_settings(PretrainConfig, values, base) == parse(f"--config={file}", *flags)
    assert parsing.read_settings(PretrainConfig, {}) == parse()
    folder = parsing.read_settings(PretrainConfig, {"output_dir": Path("a folder")}).output_dir
    assert folder == "a folder"


@pytest.mark.parametrize(
    "setting", [("train.epochs", "many"), ("train.epochs", -1), ("train.loss", 1), ("hub", {}), ("model.loss", "l3")]
)
def test_python_values_have_the_errors_of_flags(setting: tuple[str, object]):
    key, value = setting
    with pytest.raises(ConfigError) as caught:
        parsing.read_settings(PretrainConfig, {key: value})
    assert str(caught.value) == error_of(f"--{key}={value}").replace("the command line", "settings")
