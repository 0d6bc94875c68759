"""Export a classifier or an encoder as a folder that runs with onnxruntime, numpy and Pillow alone.

Shapes: N images, S their side, P patches, D features, C classes.
"""

import importlib.util
import logging
import warnings
from pathlib import Path

import jinja2
import numpy as np
import torch
from torch import Tensor, nn

from mae_hf import __version__
from mae_hf.config.commands import ExportConfig
from mae_hf.data.decode import border_colour
from mae_hf.errors import RunError, require
from mae_hf.evaluation.inference import LoadedModel, open_any
from mae_hf.files import write_folder
from mae_hf.hub import write_processor
from mae_hf.models.locate import title_of

_TOLERANCE = 1e-4  # absolute and relative, of onnxruntime against PyTorch
_MAX_FILE = 2 * 10**9  # bytes of weights in model.onnx; of a larger model, they are in model.onnx.data


def export(config: ExportConfig) -> None:
    """Write the folder, and compare onnxruntime with PyTorch."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    fix = "pip install 'mae_hf[onnx]'"
    require(not missing, f"the export needs {' and '.join(missing)}, which is not installed: {fix}")
    loaded = open_any(config.model)

    def write(beside: Path) -> None:
        comparison = write_onnx(loaded, beside / "model.onnx")
        loaded.network.config.save_pretrained(beside)
        write_processor(beside, loaded.network.config.image_size, loaded.data)
        readme = onnx_readme(loaded, title_of(config.model), comparison)
        (beside / "README.md").write_text(readme, encoding="utf-8")
        print(comparison)

    write_folder(Path(config.output).expanduser().absolute(), write)
    print(f"{config.output}/model.onnx, and code that runs it in {config.output}/README.md")


class _Outputs(nn.Module):
    """The exported outputs: `logits`, N x C, or `last_hidden_state`, N x (1 + P) x D, with `cls` and `mean`, N x D."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.network = loaded.network
        self.names = ["logits"] if loaded.class_names else ["last_hidden_state", "cls", "mean"]

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        if self.names == ["logits"]:
            return (self.network(pixel_values).logits,)
        tokens = self.network(pixel_values).last_hidden_state
        return tokens, tokens[:, 0], tokens[:, 1:].mean(dim=1)


def write_onnx(loaded: LoadedModel, file: Path) -> str:
    """Write a model as ONNX, for any number of images. Return a sentence that compares onnxruntime with PyTorch.

    The input is `pixel_values`, float32 (N, 3, S, S). RunError if onnxruntime gives other numbers.
    """
    outputs = _Outputs(loaded).eval()
    num_bytes = sum(4 * weights.numel() for weights in outputs.parameters())
    side = loaded.network.config.image_size
    pixel_values = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    logging.disable(logging.WARNING)  # that there is no torchvision
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch about itself
            torch.onnx.export(
                outputs, (pixel_values[:2],), file, dynamo=True, verbose=False, external_data=num_bytes > _MAX_FILE,
                input_names=["pixel_values"], output_names=outputs.names, dynamic_shapes=({0: "batch"},),
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    import onnxruntime  # of the extra `onnx`

    with torch.no_grad():
        expected = [output.numpy() for output in outputs(pixel_values)]
    found = onnxruntime.InferenceSession(file).run(outputs.names, {"pixel_values": pixel_values.numpy()})
    pairs = list(zip(found, expected, strict=True))
    largest = max(float(np.abs(theirs - ours).max()) for theirs, ours in pairs)
    versions = f"onnxruntime {onnxruntime.__version__} and PyTorch {torch.__version__}"
    if not all(np.allclose(theirs, ours, rtol=_TOLERANCE, atol=_TOLERANCE) for theirs, ours in pairs):
        raise RunError(f"{versions} differ by {largest:.1e}: try different versions")
    return f"Largest difference between {versions}: {largest:.1e}."


def onnx_readme(loaded: LoadedModel, title: str, comparison: str) -> str:
    """Return the README.md of an exported model: its input and outputs, and code that prepares an image and runs it."""
    text = Path(__file__).parents[1].joinpath("onnx.md").read_text(encoding="utf-8")
    template = jinja2.Template(text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    border = border_colour(loaded.data)
    return template.render(loaded=loaded, title=title, comparison=comparison, border=border, version=__version__)
