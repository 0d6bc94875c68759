"""Serve a web page to try a classifier or a masked autoencoder, or write it as a Hugging Face Space."""

import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path

from mae_hf import __version__
from mae_hf.config.commands import DemoConfig
from mae_hf.errors import ConfigError, require, warn
from mae_hf.evaluation.inference import LoadedModel
from mae_hf.files import write_folder
from mae_hf.hub import write_processor
from mae_hf.models.io import quiet_transformers
from mae_hf.models.locate import title_of

_APP = '''"""A page to try the model in this folder, made with mae_hf."""

import sys

sys.dont_write_bytecode = True  # this folder is published

from mae_hf.commands.demo_page import LAUNCH, build_page, open_shown  # noqa: E402

build_page("model", open_shown("model"), {title!r}, {about!r}).launch(**LAUNCH)
'''
_README = """---
title: {title}
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: mit
tags: [mae_hf]
---

A page to try the model in `model/`, made with mae_hf {version}. The MIT licence covers mae_hf, not the model.

On your own machine, type `pip install -r requirements.txt gradio=={gradio}`, then `python app.py`.
"""


def demo(config: DemoConfig) -> None:
    """Serve the page until Ctrl-C, or write a Space that serves it. ConfigError without gradio."""
    is_installed = importlib.util.find_spec("gradio") is not None
    require(is_installed, "the demo needs gradio, which is not installed: pip install 'mae_hf[demo]'")
    from mae_hf.commands.demo_page import LAUNCH, build_page, describe, open_shown

    loaded = open_shown(config.model)
    if config.export_space is not None:
        _write_space(Path(config.export_space), loaded, title_of(config.model), describe(config.model, loaded))
        return
    page = build_page(config.model, loaded)
    try:
        # without the thread lock, the address is printed after the page has started
        page.launch(server_name=config.host, server_port=config.port, prevent_thread_lock=True, **LAUNCH)
    except OSError:  # which gradio raises for a taken port
        raise ConfigError(f"port {config.port} is taken: choose another (--port {config.port + 1})") from None
    if config.host != "127.0.0.1":
        warn(f"everyone who can reach port {config.port} of this machine can use the demo (--host {config.host})")
    print(f"{config.model} is shown at http://127.0.0.1:{config.port}; Ctrl-C ends it", flush=True)
    page.block_thread()


def _write_space(folder: Path, loaded: LoadedModel, title: str, about: str) -> None:
    """Write a folder with everything that the page needs, even mae_hf. It contains no images of the run."""
    try:
        needed = [line for line in importlib.metadata.requires("mae_hf") or [] if "extra ==" not in line]
    except importlib.metadata.PackageNotFoundError:
        fix = "pip install 'mae_hf[demo]', or pip install -e '.[demo]' in a checkout"
        raise ConfigError(f"a Space needs mae_hf, which is not installed: {fix}") from None
    index = "--extra-index-url https://download.pytorch.org/whl/cpu"  # without CUDA

    def write(beside: Path) -> None:
        (beside / "app.py").write_text(_APP.format(title=title, about=about), encoding="utf-8")
        (beside / "requirements.txt").write_text("\n".join([index, *needed]) + "\n")
        gradio = importlib.metadata.version("gradio")
        readme = _README.format(title=json.dumps(title), gradio=gradio, version=__version__)
        (beside / "README.md").write_text(readme, encoding="utf-8")
        with quiet_transformers():
            loaded.model.save_pretrained(beside / "model")
        write_processor(beside / "model", loaded.model.config.image_size, loaded.data)
        licence = next(file for file in importlib.metadata.files("mae_hf") or [] if file.name == "LICENSE")
        shutil.copy(licence.locate(), beside / "LICENSE")  # which goes with every copy of mae_hf
        shutil.copytree(Path(__file__).parents[1], beside / "mae_hf", ignore=shutil.ignore_patterns("__pycache__"))

    write_folder(folder.expanduser().absolute(), write)
    print(f"{folder} is a Space: try it (cd {folder}; python app.py; http://127.0.0.1:7860), or publish it:")
    print(f"hf upload user/name {folder} --repo-type space")
