"""Compute the features of images into a parquet file, and draw their nearest neighbours and a map."""

import dataclasses
from pathlib import Path

import numpy as np

from mae_hf import figures
from mae_hf.config.commands import EmbedConfig
from mae_hf.data.cache import open_stores
from mae_hf.data.dataset import ImageSet
from mae_hf.data.sources import list_images
from mae_hf.errors import require
from mae_hf.evaluation.tables import draw_map, draw_neighbours, write_features
from mae_hf.models.io import image_size_of, open_encoder, prepared_as
from mae_hf.training.distributed import end_processes, start_accelerator
from mae_hf.training.hardware import attention_for


def embed(config: EmbedConfig) -> None:
    """Compute the features, or resume, and draw what the config asks for."""
    accelerator = start_accelerator(shards=False, alone="embed.py")
    output = Path(config.output).expanduser()
    # an image that cannot be decoded has no features
    data = dataclasses.replace(prepared_as(config.model, config.data), on_bad_image="skip")
    encoder = open_encoder(config.model, attention_for(accelerator))

    # ---- the images ----
    splits = list_images(data, like_training=True)
    chosen = [split for split in splits if config.split in (None, split.role)]
    found = ", ".join(split.role for split in splits)
    require(bool(chosen), f"{data.sources[0]} has no split {config.split}, only {found}: choose another (--split)")
    stores = open_stores(chosen, image_size_of(encoder), data)
    images = ImageSet([(store, np.arange(len(store.rows))) for store in stores])

    # ---- their features ----
    write_features(accelerator, accelerator.prepare(encoder), images, data, config.batch_size, output)
    left_out = sum(len(store.bad) for store in stores)
    print(f"{len(images)} images in {output}{f', {left_out} could not be decoded' if left_out else ''}")

    # ---- pictures ----
    ending = config.figures.format
    features = f"{config.pooling} features of {figures.label_of(config.model, 40)}"
    if config.neighbours and len(images) == 1:
        print("no nearest neighbours are drawn: there is only one image")
    elif config.neighbours:
        title = f"Nearest neighbours by {features}"
        figure = draw_neighbours(output, images, config.pooling, config.neighbours, title)
        print(f"nearest neighbours in {figures.save(figure, output.with_name(f'{output.stem}-neighbours.{ending}'))}")
    if config.map:
        figure = draw_map(output, images, config.pooling, f"t-SNE of {features}")
        print(f"map in {figures.save(figure, output.with_name(f'{output.stem}-map.{ending}'))}")
    end_processes(accelerator)
