"""Compare fine-tuning from a pre-trained encoder with the same training from scratch, from the runs' folders.

python scripts/compare.py --pretrained runs/finetune/digits --scratch runs/finetune/digits-scratch \
    --output_dir runs/compare/digits

Several seeds of each arm: --pretrained runs/finetune/seed-* --scratch runs/finetune/scratch-seed-*
Any number of arms: --arm tuned=runs/finetune/digits --arm probe=runs/evaluate/digits-probes --arm ...
"""

from mae_hf.__main__ import main

if __name__ == "__main__":
    main("compare")
