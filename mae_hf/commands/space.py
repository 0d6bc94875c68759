"""Write a model and its page as a Hugging Face Space: a folder with everything that the page needs, even mae_hf."""

import base64
import hashlib
import importlib.metadata
import json
import zipfile
from pathlib import Path

from mae_hf import __version__
from mae_hf.errors import ConfigError, require
from mae_hf.evaluation.loaded import LoadedModel
from mae_hf.files import write_folder
from mae_hf.hub import write_processor
from mae_hf.models.io import quiet_transformers

WHEEL = f"mae_hf-{__version__}-py3-none-any.whl"
_APP = '''"""A page to try the model in this folder, made with mae_hf."""

import shutil
import sys
import tempfile

# A Space installs requirements.txt before it has the other files, so the wheel is unpacked here.
package = tempfile.mkdtemp()
shutil.unpack_archive("{wheel}", package, "zip")
sys.path.insert(0, package)

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


def write_space(folder: Path, loaded: LoadedModel, title: str, about: str) -> None:
    """Write the folder: `app.py`, `requirements.txt`, a README.md for the Hub, `model/` and the wheel of mae_hf.

    It contains no images of the run. ConfigError if mae_hf or gradio is not installed.
    """
    try:
        package, gradio = importlib.metadata.distribution("mae_hf"), importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError as error:
        fix = "pip install 'mae_hf[demo]', or pip install -e '.[demo]' in a checkout"
        raise ConfigError(f"a Space needs {error.name}, which is not installed: {fix}") from None
    needed = [line for line in package.requires or [] if "extra ==" not in line]
    index = "--extra-index-url https://download.pytorch.org/whl/cpu"  # without CUDA

    def write(beside: Path) -> None:
        (beside / "app.py").write_text(_APP.format(wheel=WHEEL, title=title, about=about), encoding="utf-8")
        (beside / "requirements.txt").write_text("\n".join([index, *needed]) + "\n")
        readme = _README.format(title=json.dumps(title), gradio=gradio, version=__version__)
        (beside / "README.md").write_text(readme, encoding="utf-8")
        with quiet_transformers():
            loaded.model.save_pretrained(beside / "model")
        write_processor(beside / "model", loaded.model.config.image_size, loaded.data)
        write_wheel(beside / WHEEL, package)

    write_folder(folder.expanduser().absolute(), write)
    print(f"{folder} is a Space: try it (cd {folder}; python app.py; http://127.0.0.1:7860), or publish it:")
    print(f"hf upload user/name {folder} --repo-type space")


def write_wheel(file: Path, package: importlib.metadata.Distribution) -> None:
    """Write the wheel of mae_hf from the files of any installation, without a build tool or a network."""
    root = Path(__file__).parents[1]
    found = {*root.rglob("*"), *(root / "configs").rglob("*")}  # in a checkout, configs is a link
    paths = [path for path in sorted(found) if path.is_file() and "__pycache__" not in path.parts]
    contents = {f"mae_hf/{path.relative_to(root).as_posix()}": path.read_bytes() for path in paths}
    metadata = package.read_text("METADATA") or package.read_text("PKG-INFO")
    require(bool(metadata), "mae_hf is installed without its metadata: install it again (pip install)")
    info = f"mae_hf-{__version__}.dist-info"
    wheel = "Wheel-Version: 1.0\nGenerator: mae_hf\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    texts = {"METADATA": metadata, "WHEEL": wheel, "entry_points.txt": package.read_text("entry_points.txt")}
    contents |= {f"{info}/{name}": text.encode() for name, text in texts.items() if text}
    record = [f"{info}/RECORD,,"]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(content)}")
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", "\n".join(record) + "\n")
