"""Fixtures of the tests of streamed images."""

import pytest

from mae_hf.data.stream import shards


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between retries."""
    monkeypatch.setattr(shards, "PAUSES", (0.0, 0.0, 0.0))
