"""Say what is wrong with a model or with images, and how to mend it. The exit code is 1 if something is wrong.

python scripts/doctor.py runs/pretrain/digits
python scripts/doctor.py digits
"""

from mae_hf.__main__ import main

if __name__ == "__main__":
    main("doctor")
