"""Try a classifier or a masked autoencoder on a web page of this machine; Ctrl-C ends it.

python scripts/demo.py --model runs/finetune/digits
python scripts/demo.py --model user/name --port 7861
"""

from mae_hf.__main__ import main

if __name__ == "__main__":
    main("demo")
