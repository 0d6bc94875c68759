"""Draw what a masked autoencoder makes of hidden patches: original, masked, reconstruction.

python scripts/reconstruct.py --model runs/pretrain/digits --data.source digits --output digits.png
python scripts/reconstruct.py --model user/name --data.source '[cat.png, dog.jpg]' --output reconstruction.png
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mae_hf.config import parse
from mae_hf.config.commands import ReconstructConfig
from mae_hf.models.locate import FIX_MODEL, find_model


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the picture that the command line asks for."""
    config = parse.read_command(ReconstructConfig, argv, prog="scripts/reconstruct.py")

    find_model(config.model, FIX_MODEL)  # before the imports that take seconds

    from mae_hf import figures
    from mae_hf.data.dataset import load_image_files, load_pretraining_images
    from mae_hf.evaluation.reconstruction import draw_reconstructions
    from mae_hf.models.io import read_normalization
    from mae_hf.models.mae import MaskedAutoencoder

    model = MaskedAutoencoder.from_pretrained(config.model).eval()
    mean, std = read_normalization(config.model)
    data = dataclasses.replace(config.data, image_mean=mean, image_std=std)
    if all(Path(source).is_file() and not source.endswith(".parquet") for source in data.sources):
        images = load_image_files(data.sources, model.config.image_size)
    else:  # images that pre-training with this source holds out
        _, held_out = load_pretraining_images(data, model.config.image_size)
        images = held_out.batch(range(min(config.num_images, len(held_out))))
    figure = draw_reconstructions(model, images, data, title=config.model)
    figures.save(figure, config.output)
    print(f"{len(images)} images in {config.output}")
