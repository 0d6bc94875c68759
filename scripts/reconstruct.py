"""Draw how a masked autoencoder reconstructs masked patches: original, masked, reconstruction.

python scripts/reconstruct.py --model runs/pretrain/digits --data.source digits --output digits.png
python scripts/reconstruct.py --model user/name --data.source '[cat.png, dog.jpg]' --output reconstruction.png
"""

from mae_hf.__main__ import main

if __name__ == "__main__":
    main("reconstruct")
