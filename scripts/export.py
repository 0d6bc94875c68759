"""Export a classifier, or the encoder of a masked autoencoder, for programs without PyTorch.

python scripts/export.py --model runs/finetune/digits --format onnx --output digits-onnx
python scripts/export.py --model user/name --format onnx --output name-onnx
"""

from mae_hf.__main__ import main

if __name__ == "__main__":
    main("export")
