"""Measuring with few labels again: only results of the same inputs share a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from run_folders import write_arms

from mae_hf.commands import few_labels as recipe
from mae_hf.config.commands import FewLabelsConfig
from mae_hf.config.data import DataConfig
from mae_hf.errors import ConfigError


def test_other_seen_test_images_are_other_inputs_even_if_there_are_as_many(tmp_path, image_folder: Path, monkeypatch):
    pretraining, _, _ = write_arms(tmp_path, image_folder)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (pretraining / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    data = DataConfig(source=str(image_folder), class_names=None)
    config = FewLabelsConfig(
        data=data, model=str(pretraining), output_dir=str(tmp_path / "out"), protocol="budgets", method="knn", draws=1
    )
    for first_is_seen, is_refused in ((True, False), (True, False), (False, True)):
        seen = np.array([first_is_seen, not first_is_seen, False, False])
        monkeypatch.setattr(recipe, "seen_test_images", lambda audit, test, seen=seen: seen)
        if is_refused:
            with pytest.raises(
                ConfigError, match=r"holds results of other inputs \(seen: .*choose another --output_dir"
            ):
                recipe.few_labels(config)
        else:
            recipe.few_labels(config)
