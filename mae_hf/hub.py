"""The shared `model/` folder, which opens with transformers alone, its card, and the upload to the Hub."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from transformers import PreTrainedModel

from mae_hf.config.commands import FinetuneConfig, HubConfig, PretrainConfig, RunConfig
from mae_hf.config.data import DataConfig
from mae_hf.data.decode import border_colour
from mae_hf.data.locations import is_hub_id
from mae_hf.errors import ConfigError
from mae_hf.files import write_folder
from mae_hf.leakage.audit import AUDIT, Audit, audit_json, describe_audit
from mae_hf.models.io import RESIZE_KEY, quiet_transformers
from mae_hf.models.locate import AUTOENCODER
from mae_hf.models.mae import MaskedAutoencoder, export_encoder


def save_model(
    folder: Path, model: PreTrainedModel, config: RunConfig, metrics: Mapping[str, Any], audit: Audit | None = None
) -> None:
    """Write a model folder with config, weights, image processor, audit and card. It is whole or missing.

    Of a masked autoencoder, it is the plain encoder, and its subfolder `autoencoder/` is the whole. The card shows the
    final `metrics`. `audit` says which test images pre-training has seen; rows of the data and paths of this machine
    stay here.
    """

    def write(beside: Path) -> None:
        parts: dict[Path, PreTrainedModel] = {beside: model}
        if isinstance(model, MaskedAutoencoder):
            parts = {beside: export_encoder(model), beside / AUTOENCODER: model}
        for path, part in parts.items():
            with quiet_transformers():
                part.save_pretrained(path)
            processor = image_processor(config.model.image_size, config.data)
            (path / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
            if audit is not None:
                audited = tuple(replace(each, source=_public_name(each.source)) for each in audit.audited)
                (path / AUDIT).write_text(audit_json(replace(audit, pairs=(), audited=audited)))
        (beside / "README.md").write_text(model_card(config, metrics, audit), encoding="utf-8")

    write_folder(folder, write)


def image_processor(size: int, data: DataConfig) -> dict[str, Any]:
    """Return the `preprocessor_config.json` that prepares images as `data` says: resize, centre crop, normalise.

    CLIP's processor resizes the shorter side and accepts grey images. ViT's squeezes images into a square and refuses
    grey ones. No processor pads evenly: after `data.resize pad` it leaves the size alone, and the card says what to do.
    """
    square, resize = {"height": size, "width": size}, data.resize
    return {
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


def model_card(config: RunConfig, metrics: Mapping[str, Any], audit: Audit | None = None) -> str:
    """Return the model's README.md: metadata, how to load it, results and recipe.

    Names on the Hub become links. Paths of this machine are cut to their last part.
    """
    return _TEMPLATE.render(
        model=config.model,
        border=border_colour(config.data) if config.data.resize == "pad" else None,
        train=config.train,
        metadata=_metadata(config, metrics).to_yaml(),
        title=Path(config.output_dir).resolve().name,
        repo=config.hub.repo_id or "path/to/this/folder",
        is_classifier=isinstance(config, FinetuneConfig),
        sources=" and ".join(_link(source, "datasets/") for source in config.data.sources),
        init="" if config.model.is_new else f"the encoder {_link(config.model.init)}",
        metrics=metrics,
        rows=list(_rows(metrics)),
        has_probes=any(key.startswith("probe/") for key in metrics),
        audit=describe_audit(audit) if audit else "",
    )


def _metadata(config: RunConfig, metrics: Mapping[str, Any]) -> ModelCardData:
    fields: dict[str, Any] = {"library_name": "transformers", "tags": ["mae_hf", "vit", "masked-autoencoder"]}
    fields["datasets"] = [source for source in config.data.sources if _is_hub_id(source)] or None
    if not config.model.is_new and _is_hub_id(config.model.init):
        fields["base_model"] = config.model.init
    if isinstance(config, PretrainConfig):
        return ModelCardData(pipeline_tag="image-feature-extraction", **fields)
    if config.model.is_new:
        fields["tags"].remove("masked-autoencoder")
    source = _public_name(config.data.sources[0])
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


def _rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The name and value of every number; numbers by class have a row each."""
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _rows({f"{key}: {name}": number for name, number in value.items()})
        elif isinstance(value, (int, float)):
            yield key, f"{value}" if isinstance(value, int) else f"{value:.4f}"


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
    return re.sub(r"[^\w .,:;/()+-]", lambda found: f"&#{ord(found[0])};", value)


_TEMPLATE = jinja2.Environment(
    finalize=_escape, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
).from_string(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))


def push(folder: Path | None, hub: HubConfig) -> str:
    """Upload a model folder, and return the address of its repository, which is created if it does not exist.

    Without a folder, nothing is uploaded: call that before a run starts, so that a wrong token or name shows at once.
    Raises ConfigError for these, for a missing right to write and for a missing connection.
    """
    try:
        address = HfApi().create_repo(str(hub.repo_id), private=hub.private, exist_ok=True)
        if folder is not None:
            HfApi().upload_folder(repo_id=str(hub.repo_id), folder_path=folder, commit_message="Upload from mae_hf")
        return str(address)
    except Exception as error:  # errors of huggingface_hub, of httpx and of the system
        reason, fix = str(error), "check the network, HF_ENDPOINT and --hub.repo_id"
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            reason = f"{status} {error.server_message or error.response.reason_phrase}"
            fix = "the Hub failed: wait a little" if status >= 500 else _FIXES.get(status, fix)
        elif isinstance(error, HFValidationError):
            fix = "name it user/name (--hub.repo_id)"
        elif isinstance(error, OfflineModeIsEnabled):
            fix = "unset HF_HUB_OFFLINE"
        line = " ".join(reason.split())[:200]
        fix += ", then run the same command again" + (f"; the model is in {folder}" if folder else "")
        raise ConfigError(f"cannot upload to {hub.repo_id} ({line}): {fix}") from None


_FIXES = {
    401: "log in with a token that may write (`hf auth login`; HF_TOKEN takes precedence)",
    403: "use a token that may write there (`hf auth login`), or choose another repository (--hub.repo_id user/name)",
}
