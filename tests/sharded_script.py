"""A script on CPU processes with its weights in shards: `torchrun tests/sharded_script.py SCRIPT.py ARGUMENTS`.

Accelerate goes to FSDP2 from several GPUs only, and quietly to DDP from several CPUs. Told that these are several GPUs,
it takes its own way to FSDP2, over gloo: what is sharded, saved, loaded and gathered is real, CUDA and NCCL are not.
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
