"""The machine files of configs/accelerate, read as `accelerate launch --config_file` reads them."""

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).parents[1] / "configs" / "accelerate"
EXPECTED = {  # file: (distributed_type, num_processes, mixed_precision, use_cpu)
    "cpu.yaml": ("NO", 1, "no", True),
    "one_gpu.yaml": ("NO", 1, "bf16", False),
    "many_gpus.yaml": ("MULTI_GPU", 8, "bf16", False),
}


def test_every_machine_file_is_expected_here():
    assert {path.name for path in FOLDER.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_the_machine_that_the_file_promises(name):
    config = load_config_from_file(str(FOLDER / name))
    seen = (config.distributed_type.value, config.num_processes, config.mixed_precision, config.use_cpu)
    assert seen == EXPECTED[name]
    assert config.num_machines == 1


def test_launching_with_the_cpu_file_gives_one_process_in_full_precision(tmp_path):
    script = tmp_path / "show.py"
    script.write_text(
        "from accelerate import Accelerator\n"
        "a = Accelerator()\n"
        "print('seen', a.num_processes, a.mixed_precision, a.device.type)\n"
    )
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(FOLDER / "cpu.yaml"),
        str(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "seen 1 no cpu" in done.stdout
