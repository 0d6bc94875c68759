"""Show a classifier or a masked autoencoder at work on a web page of this machine; Ctrl-C ends it.

python scripts/demo.py --model runs/finetune/digits
python scripts/demo.py --model user/name --port 7861
"""

from collections.abc import Sequence

from mae_hf.config import parse
from mae_hf.config.commands import DemoConfig
from mae_hf.errors import ConfigError
from mae_hf.models.locate import FIX_MODEL, find_model


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the page that the command line asks for until it is interrupted."""
    config = parse.read_command(DemoConfig, argv, prog="scripts/demo.py")

    find_model(config.model, FIX_MODEL)  # before the imports that take seconds

    from mae_hf.demo import build_page

    page = build_page(config.model)
    try:
        page.launch(
            server_name="127.0.0.1",
            server_port=config.port,
            share=False,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,  # to say where the page is once it is there
        )
    except OSError:  # gradio's word for a taken port
        raise ConfigError(f"port {config.port} is taken: choose another (--port {config.port + 1})") from None
    print(f"{config.model} is shown at http://127.0.0.1:{config.port}; Ctrl-C ends it", flush=True)
    page.block_thread()
