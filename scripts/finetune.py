"""Fine-tune a classifier from a pre-trained encoder, or train the same network from scratch.

accelerate launch scripts/finetune.py --config configs/finetune/digits.yaml --model.init runs/pretrain/digits
accelerate launch scripts/finetune.py --config configs/finetune/digits.yaml --model.init scratch \
    --output_dir runs/finetune/digits-scratch
"""

from mae_hf.commands import exits, finetune

if __name__ == "__main__":
    exits.run(finetune.main)
