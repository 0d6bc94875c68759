"""Run a script with sharded weights on CPU processes: `torchrun tests/sharded_script.py SCRIPT.py ARGUMENTS`.

Accelerate uses FSDP2 with several GPUs only, and silently DDP with several CPUs. This script makes it believe that it
has several GPUs, so that it uses FSDP2 over gloo. Sharding, saving, loading and gathering are real; CUDA and NCCL are
not involved.
"""

import os
import runpy
import sys

import yaml
from accelerate.state import DistributedType, PartialState

# what `accelerate launch --config_file configs/accelerate/fsdp2.yaml` exports
with open(os.path.join(os.path.dirname(__file__), "..", "configs", "accelerate", "fsdp2.yaml")) as file:
    for key, value in yaml.safe_load(file)["fsdp_config"].items():
        os.environ[key.upper()] = str(value)
os.environ["ACCELERATE_USE_FSDP"] = "true"
PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
