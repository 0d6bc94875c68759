"""Try a classifier or a masked autoencoder on a web page of this machine; Ctrl-C ends it."""

from mae_hf.config.commands import DemoConfig
from mae_hf.demo import build_page
from mae_hf.errors import ConfigError


def demo(config: DemoConfig) -> None:
    """Serve the page until Ctrl-C."""
    page = build_page(config.model)
    try:
        page.launch(
            server_name="127.0.0.1",
            server_port=config.port,
            share=False,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,  # print the address after the page has started
        )
    except OSError:  # gradio's word for a taken port
        raise ConfigError(f"port {config.port} is taken: choose another (--port {config.port + 1})") from None
    print(f"{config.model} is shown at http://127.0.0.1:{config.port}; Ctrl-C ends it", flush=True)
    page.block_thread()
