"""What is shared: the `model/` folder that anyone with transformers opens, its card, and the upload."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from transformers import PreTrainedModel

from mae_hf.config.commands import FinetuneConfig, PretrainConfig
from mae_hf.config.hub import HubConfig
from mae_hf.errors import ConfigError
from mae_hf.files import write_folder
from mae_hf.leakage.record import AUDIT, Audit, audit_json, describe_audit
from mae_hf.models.classifier import SCRATCH
from mae_hf.models.loading import quiet_transformers


def save_model(
    folder: Path,
    model: PreTrainedModel,
    config: PretrainConfig | FinetuneConfig,
    metrics: Mapping[str, Any],
    encoder: PreTrainedModel | None = None,
    audit: Audit | None = None,
) -> None:
    """Writes a model folder: config, safetensors, image processor, audit and card; whole or not at all.

    Args:
        folder: the folder to write, a run's `model/`.
        model: the classifier, or the masked autoencoder.
        config: the config of the run.
        metrics: the final metrics, for the card.
        encoder: with a masked autoencoder, its plain `vit`; goes to `encoder/` inside.
        audit: which test images pre-training has seen, if that is known.
    """

    def write(beside: Path) -> None:
        parts = {beside: model} if encoder is None else {beside: model, beside / "encoder": encoder}
        for path, part in parts.items():
            with quiet_transformers():
                part.save_pretrained(path)
            (path / "preprocessor_config.json").write_text(json.dumps(image_processor(config), indent=2) + "\n")
            if audit is not None:
                (path / AUDIT).write_text(audit_json(_public_audit(audit)))
        (beside / "README.md").write_text(model_card(config, metrics, audit), encoding="utf-8")

    write_folder(folder, write)


def image_processor(config: PretrainConfig | FinetuneConfig) -> dict[str, Any]:
    """The `preprocessor_config.json` that prepares images as the run did: shorter side, centre crop, normalise.

    CLIP's processor does just that and accepts grey images; ViT's squeezes other shapes into a square and refuses grey.
    """
    size = config.model.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.data.image_mean),
        "image_std": list(config.data.image_std),
    }


def model_card(config: PretrainConfig | FinetuneConfig, metrics: Mapping[str, Any], audit: Audit | None = None) -> str:
    """The model's README.md: metadata, how to load it, results and recipe.

    What is on the Hub is linked; of what lies on this machine only the last part of the path is named.
    """
    model, train = config.model, config.train
    sources = " and ".join(_link(source, "datasets/") for source in config.data.sources)
    if isinstance(config, PretrainConfig):
        use, kind = _USE_ENCODER, f"A masked autoencoder and its encoder, trained without labels on images of {sources}"
        recipe = f"{config.model.mask_ratio:.0%} of the patches hidden, loss {config.model.loss}"
        recipe += " on patches normalised one by one" if config.model.norm_pix_loss else ""
        explanation = "`eval/loss` is the loss on images held out from training, with fixed masks."
        if any(key.startswith("probe/") for key in metrics):
            explanation += (
                " `probe/` looks at the features with labels of train and validation images; training had none."
            )
    else:
        origin = "random weights" if config.model.init == SCRATCH else f"the encoder {_link(config.model.init)}"
        use, kind = _USE_CLASSIFIER, f"A ViT image classifier, trained on {sources}, starting from {origin}"
        recipe = f"drop-path {config.model.drop_path:g}, layer-wise learning rate decay {config.train.layer_decay:g}"
        explanation = "`test/` is measured on the test images; `eval/` on the validation images, which chose the epoch."
        if "test_unseen/accuracy" in metrics:
            explanation += " `test_unseen/` leaves out the test images that pre-training has seen."
    return "\n".join(
        [
            "---",
            _metadata(config, metrics).to_yaml(),
            "---",
            "",
            f"# {_plain(Path(config.output_dir).resolve().name)}",
            "",
            f"{kind}; made with mae_hf, a toolkit for masked autoencoders ([He et al. 2022]({_PAPER})).",
            "",
            "## Use",
            "```python",
            use.format(name=config.hub.repo_id or "path/to/this/folder"),
            "```",
            "",
            "## Results",
            "| metric | value |",
            "|---|---|",
            *(f"| {name} | {value if isinstance(value, int) else f'{value:.4f}'} |" for name, value in _rows(metrics)),
            "",
            explanation,
            "",
            "## Test images in pre-training",
            f"{describe_audit(audit)}." if audit else "Not known: the encoder came without an audit.",
            "",
            "## Recipe",
            f"Images of {model.image_size} px in patches of {model.patch_size} px; {recipe}; AdamW, {train.epochs:g} "
            f"epochs of batch {train.batch_size}, peak learning rate {train.learning_rate:.3g} after "
            f"{100 * train.warmup_ratio:g} % of the steps as warm-up, then cosine; seed {train.seed}.",
            "",
        ]
    )


def _public_audit(audit: Audit) -> Audit:
    """Return the audit as it travels with the model: without paths of this machine and without rows of the data."""
    return replace(audit, pairs=(), audited=tuple(replace(p, source=_public_name(p.source)) for p in audit.audited))


def _metadata(config: PretrainConfig | FinetuneConfig, metrics: Mapping[str, Any]) -> ModelCardData:
    """The card's front matter."""
    fields: dict[str, Any] = {"library_name": "transformers", "tags": ["mae_hf", "vit", "masked-autoencoder"]}
    fields["datasets"] = [source for source in config.data.sources if _is_hub_id(source)] or None
    if isinstance(config, PretrainConfig):
        return ModelCardData(pipeline_tag="image-feature-extraction", **fields)
    if config.model.init == SCRATCH:
        fields["tags"].remove("masked-autoencoder")
    elif _is_hub_id(config.model.init):
        fields["base_model"] = config.model.init
    source = _public_name(config.data.sources[0])
    results = [
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
    if results:
        fields |= {"model_name": Path(config.output_dir).resolve().name, "eval_results": results}
    return ModelCardData(pipeline_tag="image-classification", **fields)


def _rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Name and value of every number, those by class too."""
    for key, value in metrics.items():
        if isinstance(value, (int, float)):
            yield _plain(key), value
        elif isinstance(value, Mapping):
            yield from ((f"{_plain(key)}: {_plain(str(name))}", number) for name, number in value.items())


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def _public_name(name: str) -> str:
    return name if _is_hub_id(name) else Path(name).expanduser().resolve().name


def _link(name: str, kind: str = "") -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if _is_hub_id(name) else _plain(_public_name(name))


def _plain(text: str) -> str:
    """Text that neither Markdown nor HTML reads anything into, in a table cell too."""
    return re.sub(r"[^\w .,:;/()+-]", lambda found: f"&#{ord(found[0])};", text)


_PAPER = "https://arxiv.org/abs/2111.06377"

_USE_CLASSIFIER = """from transformers import pipeline

classify = pipeline("image-classification", "{name}")
classes = classify("photo.png")  # [{{"label": ..., "score": ...}}, ...], the most probable first"""

_USE_ENCODER = """from PIL import Image
from transformers import AutoImageProcessor, AutoModel, ViTMAEForPreTraining

processor = AutoImageProcessor.from_pretrained("{name}", subfolder="encoder")
encoder = AutoModel.from_pretrained("{name}", subfolder="encoder")
inputs = processor(Image.open("photo.png"), return_tensors="pt")
features = encoder(**inputs).pooler_output  # the CLS token, nothing masked

autoencoder = ViTMAEForPreTraining.from_pretrained("{name}")
prediction = autoencoder(**inputs).logits  # the pixels of each patch, other patches hidden at every call"""


def create_repository(hub: HubConfig) -> str:
    """Makes the repository to upload to, unless it is there, and returns its address.

    Call it before a run starts: what is wrong with the token or the name shows now, and not when the run is done.

    Raises:
        ConfigError: no token, no right to write there, a name that the Hub does not take, or no connection.
    """
    with _uploading(hub, "run the same command again"):
        return str(HfApi().create_repo(str(hub.repo_id), private=hub.private, exist_ok=True))


def push(folder: Path, hub: HubConfig) -> str:
    """Uploads a model folder as it is, making the repository if needed; returns its address.

    Raises:
        ConfigError: as `create_repository`.
    """
    with _uploading(hub, f"run the same command again; the model is in {folder}"):
        api = HfApi()
        url = api.create_repo(str(hub.repo_id), private=hub.private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Upload from mae_hf")
    return str(url)


@contextmanager
def _uploading(hub: HubConfig, then: str) -> Iterator[None]:
    """Turns what goes wrong on the way to the Hub into one line that names the fix."""
    try:
        yield
    except Exception as error:  # huggingface_hub raises its own, httpx's and OS errors
        reason, fix = str(error), "check the network, HF_ENDPOINT and --hub.repo_id"
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            reason, fix = f"{status} {error.server_message or error.response.reason_phrase}", _FIXES.get(status, fix)
        elif isinstance(error, HFValidationError):
            fix = "name it user/name (--hub.repo_id)"
        elif isinstance(error, OfflineModeIsEnabled):
            fix = "unset HF_HUB_OFFLINE"
        line = " ".join(reason.split())[:200]
        raise ConfigError(f"{hub.repo_id} cannot be uploaded to ({line}): {fix}, then {then}") from None


_FIXES = {
    401: "log in with a token that may write (`hf auth login`; HF_TOKEN, where set, comes first)",
    403: "take a token that may write there (`hf auth login`), or name another repository (--hub.repo_id user/name)",
    500: "the Hub failed, wait a little",
    502: "the Hub failed, wait a little",
    503: "the Hub failed, wait a little",
}
