"""How many examples a fuzz test tries: few in the suite, as many as `MAE_HF_FUZZ` says (`make fuzz`).

    MAE_HF_FUZZ=1000 python -m pytest -n0 tests/security --hypothesis-show-statistics

Nothing here may take longer than `DEADLINE`, crash the process or end in anything but the one error that is meant.
"""

import os
import tempfile
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

FUZZ = int(os.environ.get("MAE_HF_FUZZ", "0"))
DEADLINE = 5.0 if FUZZ else 20.0  # seconds an example may take; a busy CI machine is slow


def examples(few: int) -> settings:
    """Run `few` examples, always the same; `MAE_HF_FUZZ=1000` runs 1,000 that differ from run to run."""
    return settings(
        max_examples=FUZZ or few,
        derandomize=not FUZZ,
        deadline=timedelta(seconds=DEADLINE),
        database=None,
        phases=[Phase.explicit, Phase.generate],  # shrinking an example that is slow takes minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


def file_with(content: bytes, ending: str) -> Path:
    """A new file with this content."""
    with tempfile.NamedTemporaryFile(suffix=ending, delete=False, dir=FOLDER.name) as file:
        file.write(content)
    return Path(file.name)


FOLDER = tempfile.TemporaryDirectory(prefix="mae_hf-fuzz-")
