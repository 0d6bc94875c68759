"""Evaluate a classifier on test images, or probe the frozen features of an encoder.

accelerate launch --quiet --config_file configs/accelerate/one_process.yaml scripts/evaluate.py \
    --model runs/finetune/digits --data.source digits --output_dir runs/evaluate/digits
accelerate launch --quiet --config_file configs/accelerate/one_process.yaml scripts/evaluate.py \
    --model runs/pretrain/digits --data.source digits --probe knn,linear,head,rank \
    --output_dir runs/evaluate/digits-probes
"""

from mae_hf.__main__ import main

if __name__ == "__main__":
    main("evaluate")
