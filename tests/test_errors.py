"""Shown text has no secrets and no control characters; a config with a secret is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_hf.config import parse
from mae_hf.config.commands import EvaluateConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.errors import ConfigError, RunError, RunStopped, clean, is_plain, redact

TOKEN = "hf_" + "aB3" * 11 + "x"
SECRETS = (
    f"https://user:{TOKEN[3:]}@host/x.parquet",
    f"https://{TOKEN[3:]}@host/{{000..099}}.tar",
    f"https://host/x.parquet?token={TOKEN[3:]}",
    f"https://host/x.parquet?a=b&X-Amz-Signature={TOKEN[3:]}&c=d",
    f"https://host/x.parquet?sig={TOKEN[3:]}",
    f"https://host/x.parquet?AWSAccessKeyId={TOKEN[3:]}",
    f"https://host/x.parquet?api_key={TOKEN[3:]}",
    f"Authorization: Bearer {TOKEN[3:]}",
    TOKEN,
    f"{TOKEN}/name",
)
KEPT = ("https://host/x.parquet?page=3", "user/name", "a@b.c", "https://host/{000..099}.tar", "hf_hub", "the key=value")


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_replaced_anywhere_in_a_text(text):
    assert TOKEN[3:] not in redact(f"cannot read {text}: try again")
    for error in (ConfigError(text), RunError(text), RunStopped(text, 15)):
        assert TOKEN[3:] not in str(error)


@pytest.mark.parametrize("text", KEPT)
def test_text_without_secrets_stays(text):
    assert redact(text) == text


def test_the_value_of_hf_token_is_replaced(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my own words")
    assert redact("401: my own words are wrong") == "401: *** are wrong"


@pytest.mark.parametrize("text", [text for text in SECRETS if "Bearer" not in text])
@pytest.mark.parametrize("key", ["data.source", "output_dir", "hub.repo_id"])
def test_a_secret_in_a_setting_is_refused_before_anything_is_written(text, key):
    words = [f"--{key}={text}", *(["--data.streaming=true"] if key == "data.source" else [])]
    with pytest.raises(ConfigError, match=r"contains a password or token.*netrc.*HF_TOKEN") as caught:
        parse.read_command(PretrainConfig, words, "pretrain")
    assert TOKEN[3:] not in str(caught.value)


def test_no_error_about_the_command_line_repeats_a_secret():
    lines = [["--model.init", TOKEN], ["--hub.token", TOKEN], ["--train.seed", TOKEN], [f"--{TOKEN}"], [TOKEN]]
    for words in lines:
        with pytest.raises(ConfigError) as caught:
            parse.read_command(FinetuneConfig, words, "finetune")
        assert TOKEN[3:] not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        parse.read_command(EvaluateConfig, ["--model", TOKEN, "--data.source", "digits"], "evaluate")
    assert TOKEN[3:] not in str(caught.value)


def test_control_characters_of_a_message_are_escaped():
    shown = clean("\x1b[2Ja\r\n\x9b31mb\u202ec\x00\udcff\u2028")
    assert shown == r"\x1b[2Ja\r\n\x9b31mb\u202ec\x00\udcff\u2028"


def test_a_long_message_keeps_its_beginning_and_the_fix_at_its_end():
    shown = clean(f"begin {'x' * 100_000} end")
    assert shown.startswith("begin x")
    assert shown.endswith("x end")
    assert len(shown) < 2010


@pytest.mark.parametrize(
    ("name", "plain"),
    [("<script>", True), ("../x", True), ("🦊\u200d🔥", True), ("שלום", True), ("", True), ("a\nb", False)]
    + [(f"a{char}b", False) for char in "\x00\x07\x1b\x7f\x9b\u200f\u202e\u2066\u2028\udcff"],
)
def test_names_may_hold_any_letters_but_no_hidden_characters(name, plain):
    assert is_plain(name) is plain


@given(st.text(max_size=50))
def test_clean_text_is_plain_and_cleaning_it_again_changes_nothing(text):
    assert is_plain(clean(text))
    assert clean(clean(text)) == clean(text)


def test_run_json_keeps_no_secret_of_a_command(monkeypatch):
    from accelerate import Accelerator

    from mae_hf.training.provenance import environment

    monkeypatch.setattr("sys.argv", ["scripts/pretrain.py", *SECRETS, "--train.seed", "3"])
    command = environment(Accelerator(cpu=True))["command"]
    assert TOKEN[3:] not in command
    assert command.endswith("--train.seed 3")
