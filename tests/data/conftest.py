"""Fixtures of the tests of streamed images."""

import datasets
import pytest

from mae_hf.data.stream import shards


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses; what the datasets library retries is left on, but for its number."""
    monkeypatch.setattr(shards, "PAUSES", (0.0, 0.0, 0.0))
    for name, value in {"RETRY_INTERVAL": 0.01, "MAX_RETRIES": 2}.items():
        for kind in ("READ", "OPEN"):
            monkeypatch.setattr(datasets.config, f"STREAMING_{kind}_{name}", value)
