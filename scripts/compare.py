"""Compare fine-tuning from a pre-trained encoder with the same training from scratch, from the runs' folders.

python scripts/compare.py --pretrained runs/finetune/digits --scratch runs/finetune/digits-scratch \
    --output_dir runs/compare/digits

Several seeds of each arm: --pretrained runs/finetune/seed-* --scratch runs/finetune/scratch-seed-*
"""

from mae_hf.commands import compare, exits

if __name__ == "__main__":
    exits.run(compare.main)
