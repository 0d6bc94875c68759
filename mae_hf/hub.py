"""The shared `model/` folder, which opens with transformers alone, its card, and the upload to the Hub."""

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import PreTrainedModel

from mae_hf.config.data import DataConfig
from mae_hf.config.runs import FinetuneConfig, HubConfig, PretrainConfig, RunConfig
from mae_hf.data.decode import border_colour
from mae_hf.data.hub_errors import explain_hub_error
from mae_hf.data.locations import is_hub_id
from mae_hf.errors import ConfigError, RunError
from mae_hf.evaluation.statistics import describe_accuracy
from mae_hf.files import write_folder, write_json
from mae_hf.leakage.audit import AUDIT, Audit, describe_audit
from mae_hf.models.io import PROCESSOR, RESIZE_KEY, quiet_transformers
from mae_hf.models.locate import AUTOENCODER
from mae_hf.models.mae import MaskedAutoencoder, export_encoder
from mae_hf.training.provenance import RunRecord

_THIS_FOLDER = "path/to/this/folder"  # in a card, until the model has a repository
_UNKNOWN = RunRecord()


def save_model(
    folder: Path,
    model: PreTrainedModel,
    config: RunConfig,
    metrics: Mapping[str, Any],
    audit: Audit | None = None,
    record: RunRecord = _UNKNOWN,
    pictures: Mapping[str, Path] | None = None,
) -> None:
    """Write a model folder with config, weights, image processor, audit and card. It is whole or missing.

    For a masked autoencoder, the folder is the plain encoder, and its subfolder `autoencoder/` is the whole model. The
    card shows the final `metrics`, data and hardware of `record`, and the `pictures` by their captions. `audit` says
    which test images pre-training has seen. Rows of the data and paths of this machine are left out.
    """

    def write(beside: Path) -> None:
        parts: dict[Path, PreTrainedModel] = {beside: model}
        if isinstance(model, MaskedAutoencoder):
            parts = {beside: export_encoder(model), beside / AUTOENCODER: model}
        for path, part in parts.items():
            with quiet_transformers():
                part.save_pretrained(path)
            write_processor(path, config.model.image_size, config.data)
            if audit is not None:
                audited = tuple(replace(each, source=_public_name(each.source)) for each in audit.audited)
                write_json(path / AUDIT, asdict(replace(audit, pairs=(), audited=audited)))
        wanted = pictures if pictures and config.hub.pictures else {}
        shown = {caption: Path(shutil.copy(path, beside)) for caption, path in wanted.items() if path.is_file()}
        card = model_card(config, metrics, audit, record, shown)
        (beside / "README.md").write_text(card, encoding="utf-8")

    write_folder(folder, write)


def write_processor(folder: Path, size: int, data: DataConfig) -> None:
    """Write the image processor beside a model, which prepares images as `data` says: resize, centre crop, normalise.

    CLIP's processor resizes the shorter side and accepts grey images. ViT's squeezes images into a square and refuses
    grey ones. No processor pads evenly: after `data.resize pad` it leaves the size alone, and the card says what to do.
    """
    square, resize = {"height": size, "width": size}, data.resize
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": resize != "pad",
        "size": square if resize == "squash" else {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": resize == "crop",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.image_mean),
        "image_std": list(data.image_std),
        **({} if resize == "crop" else {RESIZE_KEY: resize}),
    }
    (folder / PROCESSOR).write_text(json.dumps(processor, indent=2) + "\n")


def model_card(
    config: RunConfig,
    metrics: Mapping[str, Any],
    audit: Audit | None = None,
    record: RunRecord = _UNKNOWN,
    pictures: Mapping[str, Path] | None = None,
) -> str:
    """Return the model's README.md: metadata, how to load it, results, pictures (caption -> file) and recipe.

    Names on the Hub become links. Paths of this machine are cut to their last part.
    """
    num = record.num_test_images if "test/accuracy" in metrics else None
    rows: dict[str, Any] = {}
    for key, value in metrics.items():  # numbers by class have a row each
        rows |= {f"{key}: {name}": each for name, each in value.items()} if isinstance(value, Mapping) else {key: value}
    return _TEMPLATE.render(
        model=config.model,
        border=border_colour(config.data) if config.data.resize == "pad" else None,
        train=config.train,
        metadata=_metadata(config, metrics).to_yaml(),
        title=Path(config.output_dir).resolve().name,
        repo=_THIS_FOLDER,
        is_classifier=isinstance(config, FinetuneConfig),
        sources=" and ".join(_link(source, "datasets/") for source in config.data.sources),
        init="" if config.model.is_new else f"the encoder {_link(config.model.init)}",
        metrics=metrics,
        rows=rows,
        audit=describe_audit(audit) if audit else "",
        record=record,
        interval=describe_accuracy(round(metrics["test/accuracy"] * num), num) if num else "",
        pictures=pictures or {},
    )


def _metadata(config: RunConfig, metrics: Mapping[str, Any]) -> ModelCardData:
    fields: dict[str, Any] = {"library_name": "transformers", "tags": ["mae_hf", "vit", "masked-autoencoder"]}
    fields["license"] = config.hub.license
    fields["datasets"] = [source for source in config.data.sources if _is_hub_id(source)] or None
    if not config.model.is_new and _is_hub_id(config.model.init):
        fields["base_model"] = config.model.init
    if isinstance(config, PretrainConfig):
        return ModelCardData(pipeline_tag="image-feature-extraction", **fields)
    if config.model.is_new:
        fields["tags"].remove("masked-autoencoder")
    source = _public_name(config.data.sources[0])
    fields["metrics"] = ["accuracy", "f1"]
    fields["eval_results"] = [
        EvalResult(
            task_type="image-classification",
            dataset_type=source,
            dataset_name=source,
            dataset_split=None if config.data.test_fraction else "test",  # a part of train is no split of the dataset
            dataset_revision=config.data.revision,
            metric_type=metric,
            metric_value=float(metrics[f"test/{metric}"]),
        )
        for metric in ("accuracy", "f1", "loss")
        if f"test/{metric}" in metrics
    ]
    name = Path(config.output_dir).resolve().name
    return ModelCardData(pipeline_tag="image-classification", model_name=name, **fields)


def _is_hub_id(name: str) -> bool:
    return is_hub_id(name) and not Path(name).exists()


def _public_name(name: str) -> str:
    return name if _is_hub_id(name) else Path(name).expanduser().resolve().name


def _link(name: str, kind: str = "") -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if _is_hub_id(name) else _escape(_public_name(name))


def _escape(value: Any) -> Any:
    """Text in which neither Markdown nor HTML finds markup, in a table cell too. What is marked `safe` stays."""
    if hasattr(value, "__html__") or not isinstance(value, str):
        return value
    return re.sub(r"[^\w .,:;/()%+-]", lambda found: f"&#{ord(found[0])};", value)


_TEMPLATE = jinja2.Environment(
    finalize=_escape, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
).from_string(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))


def prepare_upload(hub: HubConfig) -> None:
    """Create the repository unless it exists, so that a wrong token or name is reported before a run starts.

    ConfigError for these, for a token that may not write, and for a Hub that does not answer for 10 seconds.
    """
    try:
        _create_repository(hub)
    except Exception as error:  # of huggingface_hub, of the HTTP library and of the system
        raise ConfigError(_failed_upload(error, hub)) from None


def upload(folder: Path, hub: HubConfig) -> str:
    """Upload a run's `model/` in one commit, and return the address of its repository, which the card then names.

    The run's TensorBoard files go to `runs/`, where the Hub expects training metrics. They hold pictures, too, so they
    stay here if the card has none. RunError if the upload fails: the folder remains, and the same command uploads it
    later.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    try:
        card = ModelCard(files["README.md"].read_text(encoding="utf-8").replace(_THIS_FOLDER, str(hub.repo_id)))
        if hub.license:
            card.data["license"] = hub.license
        if hub.pictures:
            for number, path in enumerate(sorted((folder.parent / "trackers").glob("*/*.tfevents.*"))):
                # not by its own name, which names this machine; its subfolders hold the paths of the config
                files[f"runs/{path.parent.name}/events.out.tfevents.{number}"] = path
        else:
            files = {name: path for name, path in files.items() if path.suffix != ".png"}
            card.text = re.sub(r"!\[.*\n\n.*\n\n", "", card.text)
        operations = [CommitOperationAdd(name, path) for name, path in files.items() if name != "README.md"]
        operations.append(CommitOperationAdd("README.md", str(card).encode()))
        address = _create_repository(hub)
        HfApi().create_commit(str(hub.repo_id), operations, commit_message="Upload from mae_hf")
    except Exception as error:  # as above
        raise RunError(f"{_failed_upload(error, hub)}; the run is finished, and its model is in {folder}") from None
    return address


def _create_repository(hub: HubConfig) -> str:
    with contextlib.suppress(RepositoryNotFoundError):  # it is created
        HfApi().model_info(str(hub.repo_id), timeout=10)  # creating has no limit in time
    return str(HfApi().create_repo(str(hub.repo_id), private=hub.private, exist_ok=True))


def _failed_upload(error: Exception, hub: HubConfig) -> str:
    unknown = (" ".join(f"{type(error).__name__}: {error}".split())[:200], "check the files and the network")
    cause, fix = explain_hub_error(error, str(hub.repo_id), writes=True) or unknown
    return f"cannot upload to {hub.repo_id} ({cause}): {fix}, then run the same command again"
