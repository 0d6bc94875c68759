"""The speed of mae_hf, compared with stock transformers: the contenders take turns on one machine."""
