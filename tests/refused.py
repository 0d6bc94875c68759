"""Whether a config is refused with a message that names the value, what is allowed, and the flag."""

import re

import pytest

from mae_hf.errors import ConfigError


def check_refused(config_class: type, fields: dict[str, object], message: str) -> None:
    """Check that `config_class(**fields)` raises a ConfigError of one line with all parts of `message`, in order.

    Args:
        message: parts of the message, separated by ` .. `.
    """
    with pytest.raises(ConfigError) as caught:
        config_class(**fields)
    pattern = ".*".join(re.escape(part) for part in message.split(" .. "))
    assert re.search(pattern, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def id_of(value: object) -> str:
    return re.sub(r"\W+", "_", str(value))[:60]
