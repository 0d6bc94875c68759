"""The machine files of configs/accelerate, read as `accelerate launch` reads them, and what configs/launch types."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

FOLDER = Path(__file__).parents[1] / "configs" / "accelerate"
EXPECTED = {  # file: (distributed_type, num_processes, num_machines, mixed_precision, use_cpu)
    "one_process.yaml": ("NO", 1, 1, "no", False),
    "cpu.yaml": ("NO", 1, 1, "no", True),
    "two_cpus.yaml": ("MULTI_GPU", 2, 1, "no", False),
    "one_gpu.yaml": ("NO", 1, 1, "bf16", False),
    "many_gpus.yaml": ("MULTI_GPU", 8, 1, "bf16", False),
    "fsdp2.yaml": ("FSDP", 8, 1, "bf16", False),
    "many_machines.yaml": ("MULTI_GPU", 16, 2, "bf16", False),
}


def test_every_machine_file_is_expected_here():
    assert {path.name for path in FOLDER.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_the_machine_that_the_file_promises(name):
    config = load_config_from_file(str(FOLDER / name))
    seen = (config.distributed_type.value, config.num_processes, config.num_machines)
    assert (*seen, config.mixed_precision, config.use_cpu) == EXPECTED[name]


def test_every_key_of_the_fsdp_section_is_one_that_accelerate_launch_knows():
    known = vars(launch_command_parser().parse_args(["script.py"]))
    section = load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config
    assert len(section) >= 5
    assert set(section) <= known.keys()


@pytest.mark.parametrize(("name", "seen"), [("cpu.yaml", "seen 1 no cpu"), ("one_process.yaml", "seen 1 no ")])
def test_launching_with_these_files_gives_one_process_in_full_precision(name, seen, tmp_path):
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
        str(FOLDER / name),
        str(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert seen in done.stdout
    assert name == "cpu.yaml" or "were not passed" not in done.stderr


@pytest.fixture
def programs(tmp_path):
    """A folder of programs that stand for those of a cluster; `accelerate` writes down what it is started with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    written = tmp_path / "started"
    written.mkdir()
    python = f"#!{sys.executable}\nimport json, os, pathlib, sys\n"
    texts = {
        "accelerate": python + f"pathlib.Path('{written}', str(os.getpid())).write_text(json.dumps(sys.argv[1:]))\n",
        "ssh": '#!/bin/bash\nexec bash -c "$2"\n',
        "scontrol": "#!/bin/bash\necho node0\necho node1\n",
        "srun": '#!/bin/bash\nshift\nfor i in 0 1; do SLURM_NODEID=$i "$@"; done\n',
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    return folder


@pytest.mark.parametrize("name", ["slurm.sh", "ssh.sh"])
def test_a_launch_template_starts_the_same_command_on_each_machine_with_its_own_rank(name, programs, tmp_path):
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "HOSTS": "node0 node1", "GPUS": "8"}
    environment |= {"SSH": "ssh", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "node[0-1]"}
    script = ["scripts/pretrain.py", "--output_dir", "a folder/with $signs"]
    command = ["bash", str(FOLDER.parent / "launch" / name), *script]
    environment |= {"SLURM_JOB_ID": "2500"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    words = [json.loads(path.read_text()) for path in (tmp_path / "started").iterdir()]
    parsed = [launch_command_parser().parse_args(each[1:]) for each in words]
    assert [each[0] for each in words] == ["launch", "launch"]
    assert sorted(args.machine_rank for args in parsed) == [0, 1]
    for args in parsed:
        assert (args.num_machines, args.num_processes, args.main_process_ip) == (2, 16, "node0")
        assert args.main_process_port == (30000 if name == "slurm.sh" else 29500)
        assert args.multi_gpu
        assert [args.training_script, *args.training_script_args] == script


def test_a_launch_over_ssh_stops_where_a_machine_fails(programs, tmp_path):
    (programs / "accelerate").write_text('#!/bin/bash\n[[ "$*" == *"--machine_rank 1"* ]] && exit 3\nexec sleep 60\n')
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "HOSTS": "a b", "GPUS": "8", "SSH": "ssh"}
    command = ["bash", str(FOLDER.parent / "launch" / "ssh.sh"), "scripts/pretrain.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 3
