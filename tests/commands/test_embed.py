"""What embed says when it has nothing to draw."""

import json
from pathlib import Path

from run_folders import write_arms

from mae_hf.commands.embed import embed
from mae_hf.config.commands import EmbedConfig
from mae_hf.config.data import DataConfig


def test_neighbours_of_a_single_image_are_not_drawn_and_the_reason_is_printed(tmp_path, image_folder: Path, capsys):
    pretraining, _, _ = write_arms(tmp_path, image_folder)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (pretraining / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
    data = DataConfig(source=[str(image_folder / "test" / "cat" / "20.png")])
    embed(EmbedConfig(data=data, model=str(pretraining), output=str(tmp_path / "one.parquet"), neighbours=3))
    assert "no nearest neighbours are drawn: there is only one image" in capsys.readouterr().out
    assert not (tmp_path / "one-neighbours.png").exists()
