"""The errors and findings of mae_hf, and text that is safe to show: without secrets and without control characters."""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MAX_MESSAGE = 2000  # characters of a message; it ends with the fix
MAX_NAME = 200  # characters of a class's name

_HIDDEN = "***"
# user:password@ in an address; a secret in its query; a token of the Hub; an authorization header
_SECRETS = (
    (re.compile(r"(?<=://)[^/\s?#'\"]+(?=@)"), _HIDDEN),
    (re.compile(r"([?&;][\w.%-]*(?:token|key|secret|sig|signature|password|passwd|credential|auth)[\w.%-]*=)"
                r"[^&;\s'\"]+", re.IGNORECASE), rf"\1{_HIDDEN}"),
    (re.compile(r"\b(?:hf|api_org)_(?:[a-z]+_)?[A-Za-z0-9]{16,}"), f"hf_{_HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic) +[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {_HIDDEN}"),
)  # fmt: skip
# Control characters, surrogates and separators of lines (Cc, Cs, Zl, Zp), and marks that reverse the direction of text,
# which can hide what a name says (Unicode Technical Report 36, 3.1).
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def redact(text: str) -> str:
    """Return the text with `***` in place of passwords, tokens and the value of `HF_TOKEN`."""
    own = os.environ.get("HF_TOKEN", "")
    if len(own) >= 8:
        text = text.replace(own, _HIDDEN)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def clean(text: str) -> str:
    """Return the text as one line: redacted, at most 2,000 characters, with control characters escaped."""
    text = redact(text)
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE // 2]} [...] {text[-MAX_MESSAGE // 2 :]}"
    return _UNSAFE.sub(lambda found: repr(found[0])[1:-1], text)


def is_plain(text: str) -> bool:
    """Return whether a name has no control, direction-reversing or undecodable characters."""
    return not _UNSAFE.search(text)


class _OneLine(BaseException):
    """An error with a message of one line that is safe to show."""

    def __init__(self, message: str) -> None:
        super().__init__(clean(message))


class ConfigError(_OneLine, ValueError):
    """The command or the config is wrong. The message says the value, what is allowed, and the fix."""


class RunError(_OneLine, RuntimeError):
    """The run failed. The message says what happened, where, and how to resume."""


class RunStopped(_OneLine, KeyboardInterrupt):
    """A signal stopped the command. It is no Exception, so that no library treats it as an error and retries.

    Notebooks treat it like the interrupt of a cell.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


@dataclass(frozen=True)
class Finding:
    """A line of `doctor` about a model or images: something is right, worth knowing, or wrong."""

    severity: Literal["ok", "note", "fault"]
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.severity:<5}  " + clean(f"{self.text}: {self.fix}" if self.fix else self.text)


def shorten(names: Sequence[str]) -> str:
    """Return the first three names and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class PlainWarning(UserWarning):
    """A warning that commands print as one line, without the file and line of the code."""


def warn(message: str) -> None:
    """Warn with one line, once per process for the same line."""
    warnings.warn(clean(message), PlainWarning, stacklevel=2)


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def lacks_memory(error: BaseException) -> bool:
    """Return whether an allocation has failed: of Python, or of torch on a GPU or a CPU."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"OutOfMemoryError", "MemoryError"}) or "can't allocate memory" in str(error)
