"""Decode the images of every source before the runs need them, search for leaks, and measure the channels.

python scripts/prepare_data.py --data.source digits --image_size 32 --audit_against test
"""

from mae_hf.__main__ import main

if __name__ == "__main__":
    main("prepare_data")
