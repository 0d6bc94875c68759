"""mae_hf: pre-train a Vision Transformer as a masked autoencoder, transfer it, and measure what that was worth."""

__version__ = "0.1.0"
