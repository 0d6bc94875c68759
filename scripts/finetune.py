"""Fine-tune a classifier from a pre-trained encoder, or train the same network from scratch.

accelerate launch --quiet --config_file configs/accelerate/one_process.yaml scripts/finetune.py \
    --config configs/finetune/digits.yaml --model.init runs/pretrain/digits
accelerate launch --quiet --config_file configs/accelerate/one_process.yaml scripts/finetune.py \
    --config configs/finetune/digits.yaml --model.init scratch --output_dir runs/finetune/digits-scratch
"""

from mae_hf.__main__ import main

if __name__ == "__main__":
    main("finetune")
