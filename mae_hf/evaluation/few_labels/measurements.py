"""What has been measured: a line and the predictions of each, read again by a later run.

Shapes: n test images, C classes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mae_hf.errors import require
from mae_hf.evaluation.predictions import write_predictions
from mae_hf.evaluation.probing import scores_of
from mae_hf.evaluation.unseen import unseen_metrics

KEY = ("label_set", "arm", "method", "pooling")


class Results:
    """The measurements of a folder: lines of results.jsonl and files of predictions/.

    A line is one label set, arm, method and pooling; a last one that a killed run has not finished is dropped.

    Args:
        folder: where they are.
        labels: int (n,), the classes of the test images.
        class_names: the C classes.
        seen: bool (n,), the test images that the encoder's pre-training has seen; None where that is not known.
    """

    def __init__(self, folder: Path, labels: np.ndarray, class_names: Sequence[str], seen: np.ndarray | None) -> None:
        self._folder, self._path = folder, folder / "results.jsonl"
        self._labels, self._class_names, self._seen = labels, class_names, seen
        path = self._path
        text = path.read_text() if path.exists() else ""
        if not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
            if path.exists():
                path.write_text(text)
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
        self._keys = {_key(line) for line in self.lines}

    def has(self, label_set: str, arm: str, method: str, pooling: str | None) -> bool:
        """Whether this has been measured."""
        return (label_set, arm, method, pooling) in self._keys

    def add(self, line: dict[str, Any], probabilities: np.ndarray) -> None:
        """Scores one measurement and writes it: its predictions, then its line.

        Both arms are scored on the same images: all, and those that the pre-training of the encoder has not seen.

        Args:
            line: what is known of it, without scores.
            probabilities: float (n, C), of the test images.
        """
        name = "-".join(str(line[key]) for key in KEY if line[key] is not None)
        write_predictions(self._folder / "predictions" / f"{name}.parquet", self._labels, probabilities, self._seen)
        unseen = unseen_metrics(probabilities, self._labels, self._class_names, self._seen)
        line = line | scores_of(probabilities, self._labels, self._class_names)
        line |= {f"unseen_{key}": unseen[f"test_unseen/{key}"] for key in ("accuracy", "f1") if len(unseen) > 1}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        self._keys.add(_key(line))


def check_inputs(path: Path, inputs: dict[str, Any]) -> None:
    """Sees to it that a folder's results all come from one model, one set of images and one recipe.

    Args:
        path: the JSON file that holds the inputs of the folder; written if it is missing.
        inputs: what the results depend on, by name; a name that either side lacks is not compared.

    Raises:
        ConfigError: an input has changed; it is named.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    changed = [f"{name}: {known[name]} -> {value}" for name, value in inputs.items() if known.get(name, value) != value]
    require(
        not changed,
        f"{path.parent} holds results of other inputs ({'; '.join(changed)}): choose another --output_dir",
    )
    path.write_text(json.dumps(known | inputs, indent=2) + "\n")


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[key] for key in KEY)
