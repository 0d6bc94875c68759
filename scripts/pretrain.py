"""Pre-train a masked autoencoder on unlabelled images.

accelerate launch --quiet --config_file configs/accelerate/one_process.yaml scripts/pretrain.py \
    --config configs/pretrain/digits.yaml
"""

from mae_hf.__main__ import main

if __name__ == "__main__":
    main("pretrain")
