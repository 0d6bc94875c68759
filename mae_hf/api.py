"""The commands as Python functions, which also take images in memory and return what the command has written.

`settings` has the keys of the YAML files and flags: `{"train.epochs": 8}` is `--train.epochs 8`. ConfigError names the
flag of a wrong setting. RunError says how to resume. RunStopped, which is a KeyboardInterrupt, means that Ctrl-C
stopped the command after it had saved its state. The same call resumes, and returns a finished run at once.

`data` is a source as `data.source` names it, images in memory (`mae_hf.data.in_memory`), or None for the config's.
`config` is a YAML file, the name of a preset such as `stl10_tiny`, or a config. `precision` replaces the launcher's.
"""

import dataclasses
import html
import importlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas

from mae_hf.__main__ import COMMANDS, check_paths
from mae_hf.config.parse import read_settings
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.data.cache import cache_folder
from mae_hf.data.in_memory import store_images
from mae_hf.errors import require
from mae_hf.evaluation.inference import LoadedModel, open_any
from mae_hf.evaluation.reconstruction import OVER_TIME
from mae_hf.figures import data_url
from mae_hf.files import read_json
from mae_hf.training.isolation import Precision, isolated
from mae_hf.training.provenance import find_provenance

Options = Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class CommandResult:
    """What a command has written; a notebook shows its numbers and its picture.

    Args:
        folder: the folder of the command's files.
        metrics: its numbers by name.
        picture: its main figure, a PNG or SVG; None if it draws none.
        name: the model, as `load` takes it; None if there is none.
        file: the parquet, csv or PNG file that the command has written, if it is only one.
    """

    folder: Path
    metrics: dict[str, Any]
    picture: Path | None = None
    name: str | None = None
    file: Path | None = None

    @cached_property
    def table(self) -> pandas.DataFrame:
        """The rows that `embed` or `predict` has written."""
        file = str(self.file)
        require(file.endswith((".parquet", ".csv")), f"{self.folder} has no table: call mae_hf.embed or mae_hf.predict")
        return pandas.read_csv(file) if file.endswith(".csv") else pandas.read_parquet(file)

    @cached_property
    def model(self) -> LoadedModel:
        """The trained or probed model, opened when it is first used."""
        require(self.name is not None, f"{self.folder} holds no model: load one of its runs (mae_hf.load)")
        return load(str(self.name))

    def __repr__(self) -> str:
        shown = [f"{key} {text}" for key, text in self._numbers()]
        return f"<{self.file or self.folder}: {', '.join(shown[:6])}{', ...' if len(shown) > 6 else ''}>"

    def _repr_html_(self) -> str:
        numbers = [(html.escape(key), html.escape(text)) for key, text in self._numbers()]
        rows = "".join(f"<tr><td>{key}</td><td>{text}</td></tr>" for key, text in numbers)
        shown = f"<p>{html.escape(str(self.file or self.folder))}</p><table>{rows}</table>"
        if self.picture and self.picture.is_file():
            shown += f'<img style="max-width: 100%" src="{data_url(self.picture)}">'
        return shown

    def _numbers(self) -> list[tuple[str, str]]:
        if "answer" in self.metrics:
            return [("answer", str(self.metrics["answer"]))]
        return [(key, f"{value:.4g}") for key, value in self.metrics.items() if isinstance(value, int | float)]


ModelName = str | Path | CommandResult


def load(name: ModelName) -> LoadedModel:
    """Return the model of a result, a run folder, a model folder or a Hub id, which is called with images.

    A masked autoencoder with its decoder, such as a pre-training run's, is a `MaskedAutoencoder`. A fine-tuned model is
    a `ViTForImageClassification`. Everything else is an encoder, a `ViTModel`.
    """
    return open_any(_name_of(name))


def pretrain(
    data: Any = None, init: ModelName | None = None, *, labels: Any = None,
    config: str | Path | PretrainConfig | None = None, output_dir: str | Path | None = None,
    precision: Precision | None = None, settings: Options = None
) -> CommandResult:  # fmt: skip
    """Pre-train a masked autoencoder; the other arguments are described at the top of this file.

    `init` is what to continue from: a Hub id such as facebook/vit-mae-base, a folder or a result; `output_dir` is the
    run folder. By default, the config says both. `labels` are class names or numbers
    of a list of images, None where an image has none, or a dict of such lists; pre-training only probes with them.
    """
    names = {"model.init": init, "output_dir": output_dir}
    return _run("pretrain", names, data, labels, config, precision, settings, f"figures/{OVER_TIME}")


def finetune(
    data: Any = None, init: ModelName | None = None, *, labels: Any = None,
    config: str | Path | FinetuneConfig | None = None, output_dir: str | Path | None = None,
    precision: Precision | None = None, settings: Options = None
) -> CommandResult:  # fmt: skip
    """Fine-tune a classifier from an encoder, or train the same network from random weights with `init="scratch"`.

    `init` is a result of `pretrain`, a folder or a Hub id; by default, the config says it. The rest is as for
    `pretrain`.
    """
    names = {"model.init": init, "output_dir": output_dir}
    return _run("finetune", names, data, labels, config, precision, settings, "figures/confusion.png")


def probe(
    model: ModelName, data: Any = None, *, labels: Any = None, probes: str = "knn,linear",
    output_dir: str | Path | None = None, precision: Precision | None = None, settings: Options = None
) -> CommandResult:  # fmt: skip
    """Probe the frozen features of an encoder; metrics are by `PROBE/POOLING/NAME`, such as `linear/cls/accuracy`.

    `probes` is as for `evaluate --probe`. The folder is by default runs/probe/NAME of the model. By default, the
    settings of `data` come from the encoder's pre-training, so that fine-tuning has the same training images.
    """
    origin = find_provenance(_name_of(model)).config
    own = {f"data.{key}": value for key, value in dataclasses.asdict(origin.data).items()} if origin else {}
    settings = own | {"data.streaming": False} | dict(settings or {})
    names = {"model": model, "probe": probes, "output_dir": output_dir or _default("probe", model)}
    return _run("evaluate", names, data, labels, None, precision, settings)


def embed(
    model: ModelName, data: Any, *, output: str | Path | None = None, neighbours: int | None = 5,
    precision: Precision | None = None, settings: Options = None
) -> CommandResult:  # fmt: skip
    """Compute the features of images; the `table` of the result has a row for each, with `cls` and `mean`.

    `output` is the parquet file to write, by default runs/embed/NAME.parquet. The picture shows nearest neighbours.
    """
    file = Path(output or f"{_default('embed', model)}.parquet")
    names = {"model": model, "output": file, "neighbours": neighbours}
    form = (settings or {}).get("figures.format", "png")
    picture = f"{file.stem}-neighbours.{form}" if neighbours else ""
    return _run("embed", names, data, precision=precision, settings=settings, picture=picture)


def predict(
    model: ModelName, data: Any, *, output: str | Path | None = None, precision: Precision | None = None,
    settings: Options = None
) -> CommandResult:  # fmt: skip
    """Predict the classes of images; the `table` of the result has a row for each, with all probabilities.

    `output` is the csv or parquet file to write, by default runs/predict/NAME.parquet.
    """
    names = {"model": model, "output": output or f"{_default('predict', model)}.parquet"}
    return _run("predict", names, data, precision=precision, settings=settings)


def compare(
    pretrained: ModelName | Sequence[ModelName] | Mapping[str, ModelName | Sequence[ModelName]],
    scratch: ModelName | Sequence[ModelName] | None = None, *, output_dir: str | Path | None = None
) -> CommandResult:  # fmt: skip
    """Compare fine-tuning with the same training from scratch, or any number of arms; the folder holds index.html.

    Each arm is a result of `finetune`, a run folder, or several. For any number of arms, the first argument is a dict
    of arms by their names, which may also be results of `probe`. The folder is by default runs/compare/NAME of a run.
    """
    has_names = isinstance(pretrained, Mapping)
    arms = pretrained if isinstance(pretrained, Mapping) else {"pretrained": pretrained, "scratch": scratch or ()}
    folders = {
        name: [str(run.folder if isinstance(run, CommandResult) else run) for run in runs]
        for name, arm in arms.items()
        for runs in [[arm] if isinstance(arm, ModelName) else arm]
    }
    require(len(arms) > 1 and all(folders.values()), "compare needs the runs of two or more arms")
    unclear = [text for name, runs in folders.items() for text in (name, *runs) if "," in text or "=" in name]
    require(not unclear, f"{', '.join(unclear[:1])} contains a comma or =, which separate arms and runs: rename it")
    first = next(iter(folders.values()))[0]
    names: dict[str, Any] = {"output_dir": output_dir or _default("compare", first)}
    names |= {"arm": [f"{name}={','.join(runs)}" for name, runs in folders.items()]} if has_names else folders
    return _run("compare", names, picture="intervals.png")


def reconstruct(
    model: ModelName, data: Any, *, output: str | Path | None = None, settings: Options = None
) -> CommandResult:
    """Draw how a masked autoencoder reconstructs a list of images, or images that it holds out of a source.

    The drawing is the `picture` of the result, by default runs/reconstruct/NAME.png.
    """
    file = Path(output or f"{_default('reconstruct', model)}.png")
    images = data if isinstance(data, list | tuple) else ()
    names, source = {"model": model, "output": file}, None if images else data
    return _run("reconstruct", names, source, settings=settings, picture=file.name, images=images)


def _run(
    command: str, names: Mapping[str, Any], data: Any = None, labels: Any = None, config: Any = None,
    precision: Precision | None = None, settings: Options = None, picture: str = "", images: Sequence[Any] = ()
) -> CommandResult:  # fmt: skip
    """Run a command and return what it has written. `picture` is the name of a file in its folder.

    Images of `data` are stored in the cache, as a source that the config can name; `images` go to the command itself.
    """
    kind = COMMANDS[command]
    if isinstance(data, kind):
        require(config is None, "two configs are given: leave out `config`, or give the images as `data`")
        data, config = None, data
    given = {key: value for key, value in names.items() if value is not None}
    given = {key: _name_of(value) if isinstance(value, ModelName) else value for key, value in given.items()}
    run: Any = read_settings(kind, {**(settings or {}), **given}, config)
    is_source = isinstance(data, str | Path)
    require(labels is None or not (data is None or is_source), "labels are for images in memory: a source has its own")
    are_names = isinstance(data, list | tuple) and all(isinstance(item, str | Path) for item in data)
    if data is not None:
        source: Any = str(data) if is_source else None
        if are_names and command in ("embed", "predict"):  # which read image files where they are
            source = [str(file) for file in data]
        source = source or str(store_images(data, labels, cache_folder(run.data)))
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, source=source))
    check_paths(run)
    recipe = getattr(importlib.import_module(f"mae_hf.commands.{command}"), command)
    with isolated(precision):
        recipe(run, images) if images else recipe(run)
    file = Path(run.output).expanduser() if hasattr(run, "output") else None
    folder = file.parent if file else Path(run.output_dir)
    numbers = "comparison.json" if command == "compare" else "metrics.json"
    metrics = {} if file else read_json(folder / numbers, dict[str, object])
    name = run.output_dir if hasattr(run, "train") else getattr(run, "model", None)
    return CommandResult(folder, metrics, folder / picture if picture else None, name, file)


def _name_of(model: ModelName) -> str:
    return str(model.name or model.folder) if isinstance(model, CommandResult) else str(model)


def _default(command: str, model: ModelName) -> str:
    return str(Path("runs", command, Path(_name_of(model)).name))
