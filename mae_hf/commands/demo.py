"""Serve a web page to try a classifier or a masked autoencoder, until Ctrl-C."""

from pathlib import Path

from mae_hf.commands.space import write_space
from mae_hf.config.commands import DemoConfig
from mae_hf.errors import ConfigError, warn
from mae_hf.models.locate import title_of


def demo(config: DemoConfig) -> None:
    """Serve the page until Ctrl-C, or write a Space that serves it. ConfigError without gradio."""
    try:
        from mae_hf.commands.demo_page import LAUNCH, build_page, describe, open_shown
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        fix = "pip install 'mae_hf[demo]'"
        raise ConfigError(f"the demo needs gradio, which is not installed: {fix}") from None
    loaded = open_shown(config.model)
    if config.export_space is not None:
        write_space(Path(config.export_space), loaded, title_of(config.model), describe(config.model, loaded))
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
