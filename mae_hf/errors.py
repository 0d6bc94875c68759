"""Text that others see, without secrets and without what a terminal would obey; names that can be shown as they are.

Every error of mae_hf passes through `clean`, and so do the commands and reasons that a run writes down.
"""

import os
import re
import unicodedata

MAX_MESSAGE = 2000  # characters of a message; the fix stands at its end
MAX_NAME = 200  # characters of a class's name

_HIDDEN = "***"
# user:password@ of an address; a value of its query that opens something; a token of the Hub; a header
_SECRETS = (
    (re.compile(r"(?<=://)[^/\s?#'\"]+(?=@)"), _HIDDEN),
    (re.compile(r"([?&;][\w.%-]*(?:token|key|secret|sig|signature|password|passwd|credential|auth)[\w.%-]*=)"
                r"[^&;\s'\"]+", re.IGNORECASE), rf"\1{_HIDDEN}"),
    (re.compile(r"\b(?:hf|api_org)_(?:[a-z]+_)?[A-Za-z0-9]{16,}"), f"hf_{_HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic) +[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {_HIDDEN}"),
)  # fmt: skip
# marks that turn the direction of writing, so that a text reads as another one (Unicode Technical Report 36, 3.1)
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def redact(text: str) -> str:
    """The text with `***` in place of passwords and tokens: in addresses, of the Hub, and the value of `HF_TOKEN`."""
    own = os.environ.get("HF_TOKEN", "")
    if len(own) >= 8:
        text = text.replace(own, _HIDDEN)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def clean(text: str) -> str:
    """The text as a line for terminals, logs and files: redacted, control characters escaped, at most 2,000 long."""
    text = redact(text)
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE // 2]} [...] {text[-MAX_MESSAGE // 2 :]}"
    return "".join(repr(char)[1:-1] if _is_control(char) else char for char in text)


def is_plain(text: str) -> bool:
    """Whether a name can be shown, printed and written as it is: no control, turning or undecodable character."""
    return not any(_is_control(char) for char in text)


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _TURNING


class ConfigError(ValueError):
    """The command or the config is wrong: one line with the value seen, what is allowed, and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(clean(message))


class RunError(RuntimeError):
    """The run failed: one line with what happened, where, and how to go on."""

    def __init__(self, message: str) -> None:
        super().__init__(clean(message))


def moved_away(folder: object) -> RunError:
    """What ends a run whose folder is no longer there: no other one is begun in its place."""
    return RunError(f"{folder} is gone: where it was moved, the same command with its new --output_dir goes on")


class RunStopped(BaseException):
    """A signal has stopped the command: one line with the signal and where the state was saved.

    It is no Exception, like KeyboardInterrupt, so that no library takes it for an error and retries.

    Args:
        message: that line.
        signal_number: the signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(clean(message))
        self.signal_number = signal_number


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
