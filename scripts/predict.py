"""Predict the classes of images: any folder of them, image files or a source, with or without labels.

python scripts/predict.py --model runs/finetune/digits --data.source digits --output digits.csv
python scripts/predict.py --model user/name --data.source cat.png dog.jpg --output predictions.parquet
"""

from mae_hf.__main__ import main

if __name__ == "__main__":
    main("predict")
