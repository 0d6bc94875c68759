"""Measure an encoder with few labels: ten folds of the training images, or budgets of 1 to 100 % of the labels.

python scripts/few_labels.py --model runs/pretrain/digits --data.source digits --protocol budgets --scratch true \
    --output_dir runs/few_labels/digits
python scripts/few_labels.py --model runs/pretrain/digits --data.source digits --method knn,linear,finetune \
    --finetune_config configs/finetune/digits.yaml --output_dir runs/few_labels/digits-folds
"""

from mae_hf.__main__ import main

if __name__ == "__main__":
    main("few_labels")
