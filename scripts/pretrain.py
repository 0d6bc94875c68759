"""Pre-train a masked autoencoder on unlabelled images.

accelerate launch scripts/pretrain.py --config configs/pretrain/digits.yaml
"""

from mae_hf.commands import exits, pretrain

if __name__ == "__main__":
    exits.run(pretrain.main)
