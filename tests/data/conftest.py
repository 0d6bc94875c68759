"""Fixtures of the tests of streamed images."""

import pytest

from mae_hf.data.stream import shards


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between retries."""
    for name in ("PAUSES", "PAUSES_AT_START"):
        monkeypatch.setattr(shards, name, (0.0, 0.0, 0.0))
