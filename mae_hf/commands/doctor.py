"""Say what is wrong with a model or with images, and how to mend it."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from mae_hf.config.commands import DoctorConfig
from mae_hf.data.dataset import ImageSet
from mae_hf.data.survey import channel_flags, decode_splits, describe_classes, describe_files, find_splits
from mae_hf.errors import Finding
from mae_hf.leakage.matches import describe_copies
from mae_hf.models.diagnosis import examine_model
from mae_hf.models.io import SavedModel
from mae_hf.models.locate import AUTOENCODER, model_folders


def doctor(config: DoctorConfig) -> None:
    """Print a line for each finding, and exit with 1 if one is a fault."""
    is_model = _is_model(config.name) if config.kind is None else config.kind == "model"
    num_faults, subject = 0, "use the model" if is_model else "train on these images"
    for line in _of_model(config.name) if is_model else _of_images(config):
        print(f"  {line}" if isinstance(line, Finding) else line, flush=True)
        num_faults += isinstance(line, Finding) and line.severity == "fault"
    if num_faults:
        which = "1 fault: mend it" if num_faults == 1 else f"{num_faults} faults: mend them"
        print(f"{which} before you {subject}")
        sys.exit(1)
    print("no fault was found")


def _is_model(name: str) -> bool:
    if model_folders(name) or Path(name).expanduser().exists() or name == "digits":
        return bool(model_folders(name))
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # of the network: `SavedModel` takes the last download, or says why none exists
        return not isinstance(error, RepositoryNotFoundError) or isinstance(error, GatedRepoError)
    return True


def _of_model(name: str) -> Iterator[Finding | str]:
    folders = model_folders(name)
    if not folders:
        folder = SavedModel(name, "if it names images, add --kind source").folder
        root = folder.parent if folder.name == AUTOENCODER else folder
        with contextlib.suppress(Exception):  # the encoder beside the autoencoder; without a network, the last download
            snapshot_download(name, allow_patterns=["config.json", "preprocessor_config.json", "model*.safetensors"])
        folders = model_folders(str(root)) or [folder]
    for folder in folders:
        yield str(folder)
        yield from examine_model(folder)


def _of_images(config: DoctorConfig) -> Iterator[Finding | str]:
    yield config.name
    data = dataclasses.replace(config.data, source=config.name)

    # ---- without decoding ----
    splits, findings = find_splits(data)
    yield from findings
    yield from describe_classes(splits)
    yield from describe_files(splits, config.image_size)

    # ---- pixels ----
    stores, findings = decode_splits(splits, config.image_size, data)
    yield from findings
    yield from describe_copies(stores)
    chosen = [store for store in stores if store.split.role in ("unlabeled", "train")] or stores
    if chosen:
        images = ImageSet([(store, np.arange(len(store.rows))) for store in chosen])
        yield Finding("ok", f"mean and standard deviation, for pretrain: {channel_flags(images)}")
