"""mae_hf: pre-train a Vision Transformer as a masked autoencoder, transfer it, and measure the gain."""

__version__ = "0.1.0"
