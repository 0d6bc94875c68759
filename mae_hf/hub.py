"""What is shared: the `model/` folder that anyone with transformers opens, its card, and the upload."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import PreTrainedModel

from mae_hf.checkpoint import write_folder
from mae_hf.config import ConfigError, FinetuneConfig, HubConfig, PretrainConfig
from mae_hf.models.loading import quiet_transformers


def save_model(
    folder: Path,
    model: PreTrainedModel,
    config: PretrainConfig | FinetuneConfig,
    metrics: Mapping[str, Any],
    encoder: PreTrainedModel | None = None,
) -> None:
    """Writes a model folder: config, safetensors, image processor and card; whole or not at all.

    Args:
        folder: the folder to write, a run's `model/`.
        model: the classifier, or the masked autoencoder.
        config: the config of the run.
        metrics: the final metrics, for the card; numbers are listed.
        encoder: with a masked autoencoder, its plain `vit`; goes to `encoder/` inside.
    """

    def write(beside: Path) -> None:
        parts = {beside: model} if encoder is None else {beside: model, beside / "encoder": encoder}
        for path, part in parts.items():
            with quiet_transformers():
                part.save_pretrained(path)
            (path / "preprocessor_config.json").write_text(json.dumps(image_processor(config), indent=2) + "\n")
        (beside / "README.md").write_text(model_card(config, metrics))

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


def model_card(config: PretrainConfig | FinetuneConfig, metrics: Mapping[str, Any]) -> str:
    """The model's README.md: metadata, results, data, recipe and how to load it."""
    pretrained = isinstance(config, PretrainConfig)
    task, tags = ("image-feature-extraction", ["masked-autoencoder"]) if pretrained else ("image-classification", [])
    rows = [f"| {key} | {value:.4f} |" for key, value in metrics.items() if isinstance(value, (int, float))]
    sources = ", ".join(f"`{source}`" for source in config.data.sources)
    name = config.hub.repo_id or "this/folder"
    header = ["---", "library_name: transformers", f"pipeline_tag: {task}", "tags:"]
    header += [f"- {tag}" for tag in ["mae_hf", "vit", *tags]] + ["---", ""]
    kind = "A masked autoencoder (ViT-MAE) and its encoder" if pretrained else "A ViT image classifier"
    origin = "" if pretrained else f" The encoder started from `{config.model.init}`."  # type: ignore[union-attr]
    return "\n".join(
        [
            *header,
            f"# {Path(config.output_dir).name}",
            "",
            f"{kind}, trained by [mae_hf] on {sources}.{origin}",
            "",
            "## Use",
            "```python",
            *(_USE_ENCODER if pretrained else _USE_CLASSIFIER).format(name=name).splitlines(),
            "```",
            "",
            "## Results",
            "| metric | value |",
            "|---|---|",
            *rows,
            "",
            "## Recipe",
            f"Images of {config.model.image_size} px in patches of {config.model.patch_size}; {config.train.epochs:g} epochs "
            f"of batch {config.train.batch_size}, AdamW, peak learning rate {config.train.learning_rate:.3g}, seed "
            f"{config.train.seed}. Validation images were set aside from `train` with seed {config.data.split_seed}.",
            "",
            "[mae_hf]: https://arxiv.org/abs/2111.06377",
            "",
        ]
    )


_USE_CLASSIFIER = """from transformers import pipeline

classify = pipeline("image-classification", "{name}")
classify("photo.png")"""

_USE_ENCODER = """from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{name}", subfolder="encoder")
encoder = AutoModel.from_pretrained("{name}", subfolder="encoder")
features = encoder(**processor(image, return_tensors="pt")).pooler_output  # the CLS token, nothing masked"""


def push(folder: Path, hub: HubConfig) -> str:
    """Uploads a model folder as it is, making the repository if needed; returns its address.

    Raises:
        ConfigError: no token, no right to write there, or no connection.
    """
    api = HfApi()
    try:
        url = api.create_repo(str(hub.repo_id), private=hub.private, exist_ok=True)
        api.upload_folder(repo_id=str(hub.repo_id), folder_path=folder, commit_message="Upload from mae_hf")
    except Exception as error:  # huggingface_hub raises its own, httpx's and OS errors
        raise ConfigError(
            f"{hub.repo_id} was not uploaded ({' '.join(str(error).split())[:200]}): log in with `hf auth login`, check "
            f"--hub.repo_id, and run the same command again; the model is in {folder}"
        ) from None
    return str(url)
