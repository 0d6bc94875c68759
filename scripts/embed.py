"""Compute the features of images, and draw their nearest neighbours and a map.

python scripts/embed.py --model runs/pretrain/digits --data.source digits --output digits.parquet --neighbours 6 --map
python scripts/embed.py --model user/name --data.source photos --output photos.parquet
"""

from mae_hf.__main__ import main

if __name__ == "__main__":
    main("embed")
