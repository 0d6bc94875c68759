"""Decode the images of every source ahead of the runs, look for leaks, and measure the channels.

python scripts/prepare_data.py --data.source digits --image_size 32 --audit-against test
"""

from mae_hf.commands import exits, prepare_data

if __name__ == "__main__":
    exits.run(prepare_data.main)
