"""Launches run as asked or are refused; a sharded model trains, resumes and is shared like a whole one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import DistributedType
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from forks import ROOT, free_port, run
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from mae_hf.errors import ConfigError
from mae_hf.training.distributed import check_launch, check_shared, prepare
from mae_hf.training.optim import WeightAverage
from mae_hf.training.run_folder import lock_folder, read_metrics

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def exported(*words: str) -> dict[str, str]:
    """The environment that `accelerate launch WORDS script.py` gives a process, by accelerate's own code."""
    args, *_ = _validate_launch_command(launch_command_parser().parse_args([*words, "script.py"]))
    if not args.cpu and (args.multi_gpu or args.use_fsdp):
        return prepare_multi_gpu_env(args) | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "::1"}
    return prepare_simple_launcher_cmd_env(args)[1]


def check(environment: dict[str, str]) -> None:
    """Check the launch of a process with these environment variables alone."""
    with mock.patch.dict(os.environ, environment, clear=True):
        check_launch()


@pytest.fixture
def machine_file(tmp_path):
    """A machine file as `accelerate config` writes it for several CPU processes."""
    path = tmp_path / "machine.yaml"
    lines = ["compute_environment: LOCAL_MACHINE", "distributed_type: MULTI_CPU", "use_cpu: true", "num_processes: 2"]
    path.write_text("\n".join([*lines, "num_machines: 1", "mixed_precision: 'no'"]) + "\n")
    return str(path)


@pytest.mark.parametrize("words", [("--cpu", "--num_processes", "2"), ("--config_file", "FILE")])
def test_one_process_instead_of_several_is_refused_with_the_right_command(words, machine_file):
    environment = exported(*[machine_file if word == "FILE" else word for word in words])
    with pytest.raises(ConfigError, match=r"several processes but started one.*ACCELERATE_USE_CPU=true accelerate"):
        check(environment)


@pytest.mark.parametrize(
    "words",
    [
        ("--num_processes", "1"),
        ("--cpu",),
        ("--config_file", str(ROOT / "configs" / "accelerate" / "cpu.yaml")),
        ("--multi_gpu", "--num_processes", "2"),
        ("--config_file", str(ROOT / "configs" / "accelerate" / "two_cpus.yaml")),
        ("--config_file", str(ROOT / "configs" / "accelerate" / "fsdp2.yaml")),
    ],
)
def test_launches_that_run_as_asked_are_accepted(words):
    check(exported(*words))


def test_a_script_started_without_accelerate_may_have_a_master_address():
    check({"MASTER_ADDR": "10.0.0.1"})
    check({"MASTER_ADDR": "10.0.0.1", "ACCELERATE_MIXED_PRECISION": "no", "OMPI_COMM_WORLD_RANK": "0"})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, r"DeepSpeed is not supported: .*fsdp2\.yaml"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config is not supported"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version 1 is not supported: .*fsdp2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
    ],
)
def test_a_strategy_that_is_not_supported_is_refused(environment, message):
    with pytest.raises(ConfigError, match=message):
        check(environment)


def test_an_average_of_sharded_weights_is_refused():
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ConfigError, match="ema_decay averages whole weights, but FSDP shards them"):
        prepare(
            accelerator, torch.nn.Linear(1, 1), None, WeightAverage(torch.nn.Linear(1, 1), 0.5, torch.device("cpu"))
        )


def test_a_folder_that_several_machines_cannot_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    (tmp_path / "file").touch()
    two_machines = SimpleNamespace(num_processes=2, is_main_process=True)
    check_shared(two_machines, tmp_path / "file" / "runs" / "mine")  # which is not called a folder that is not shared
    with pytest.raises(ConfigError, match=r"cannot write to \S*file/runs/mine \(Not a directory\).*--output_dir"):
        lock_folder(two_machines, tmp_path / "file" / "runs" / "mine")


GATHER = """
import gc, json, sys
import torch
from mae_hf.config.model import MAEConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.models.mae import build_mae
from mae_hf.training.distributed import prepare, start_accelerator
from mae_hf.training.optim import build_optimizer

def megabytes():
    gc.collect()
    tensors = [value for value in gc.get_objects() if isinstance(value, torch.Tensor) and value.device.type == "cpu"]
    local = [getattr(value, "_local_tensor", value).untyped_storage() for value in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in local}.values()) / 2**20

accelerator, train = start_accelerator(), PretrainTrainConfig(batch_size=64)
model = build_mae(MAEConfig(hidden_size=192, num_hidden_layers=4, num_attention_heads=4), "sdpa")
expected = {name: value.clone() for name, value in model.state_dict().items()}
frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
before = megabytes() / 2  # `expected` is a second copy
prepared, optimizer, whole = prepare(accelerator, model, build_optimizer(model, train))
given = whole()
seen = {"gathered": given is not None}
if given is not None:
    seen["equal"] = all(torch.equal(value, expected[name]) for name, value in given.state_dict().items())
    seen["frozen"] = frozen == {name for name, value in given.named_parameters() if not value.requires_grad}
    seen["training"] = given.training
del given, expected
seen["part"] = megabytes() / before
open(f"{sys.argv[1]}/{accelerator.process_index}.json", "w").write(json.dumps(seen))
"""


@pytest.mark.slow
def test_a_sharded_model_is_gathered_on_the_main_process_alone_and_freed_after_use(tmp_path):
    (tmp_path / "gather.py").write_text(GATHER)
    done = run("tests/sharded_script.py", tmp_path / "gather.py", tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-4000:]
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (main["part"], other["part"]) == (pytest.approx(0.5, abs=0.1), pytest.approx(0.5, abs=0.1))
    del main["part"], other["part"]
    assert main == {"gathered": True, "equal": True, "frozen": True, "training": False}
    assert other == {"gathered": False}


# ---- real launches, of the real scripts ----

TINY = "--model.hidden_size 24 --model.num_hidden_layers 2 --model.num_attention_heads 2 --model.intermediate_size 48"
PRETRAIN = f"--config configs/pretrain/digits.yaml {TINY} --model.decoder_hidden_size 16 --train.warmup_ratio 0"
PRETRAIN += " --model.decoder_num_hidden_layers 1 --model.decoder_intermediate_size 32 --model.uniformity 0.1"
PRETRAIN += (
    " --train.epochs 0.32 --train.save_every_epochs 0.16 --train.log_every_steps 1 --train.figure_every_epochs 1"
)
FINETUNE = f"--config configs/finetune/digits.yaml {TINY} --model.init scratch --model.drop_path 0.3"
FINETUNE += " --augment.mixup 0.8 --augment.cutmix 1.0 --augment.erase_probability 0.25 --augment.rand_augment_ops 2"
FINETUNE += " --train.epochs 2 --train.warmup_ratio 0 --train.log_every_steps 1 --train.eval_every_epochs 1"
FINETUNE += " --train.per_device_batch_size 12"


def launch(kind: str, stage: str, folder: Path) -> str:
    """Run scripts/STAGE.py on one process, or on two (`launched`, `ddp` or `shards`), and return its output."""
    words = [f"scripts/{stage}.py", *{"pretrain": PRETRAIN, "finetune": FINETUNE}[stage].split()]
    words += ["--output_dir", str(folder)]
    if kind == "launched":
        start = [*LAUNCH, "--config_file", "configs/accelerate/two_cpus.yaml", "--main_process_port", str(free_port())]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*start, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    elif kind == "shards":
        done = run("tests/sharded_script.py", *words, processes=2)
    else:
        done = run(*words, processes=2 if kind == "ddp" else 1)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders by strategy and stage, each made once."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def make(kind: str, stage: str) -> Path:
        if (kind, stage) not in made:
            made[kind, stage] = folder / f"{kind}-{stage}"
            output = launch(kind, stage, made[kind, stage])
            assert f"= {1 if kind == 'one' else 2} processes x" in output
        return made[kind, stage]

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stage"), [("launched", "pretrain"), ("ddp", "finetune"), ("shards", "pretrain"), ("shards", "finetune")]
)
def test_two_processes_train_and_share_the_model_of_one(runs, kind, stage):
    folder, alone = runs(kind, stage), runs("one", stage)
    for key, tolerance in {"step": 0, "train/loss": 1e-5, "train/grad_norm": 1e-4}.items():
        found, wanted = ([line[key] for line in read_metrics(path)] for path in (folder, alone))
        assert len(found) == (6 if stage == "pretrain" else 10)
        assert found == pytest.approx(wanted, abs=tolerance), key
    found, wanted = weights(folder), weights(alone)
    assert found.keys() == wanted.keys()
    assert all(found[key].dtype == wanted[key].dtype == torch.float32 for key in wanted)
    assert all((found[key] - wanted[key]).abs().max() < 1e-4 for key in wanted)
    files = [sorted(str(p.relative_to(f)) for p in (f / "model").rglob("*")) for f in (folder, alone)]
    assert files[0] == files[1]
    assert (folder / "model" / "config.json").read_text() == (alone / "model" / "config.json").read_text()
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (folder, alone)]
    for key, value in metrics[1].items():
        if key.endswith(("accuracy", "f1", "loss")):
            # weights differ by rounding, so a probe may decide differently on one of the 60 validation images
            assert metrics[0][key] == pytest.approx(value, abs=0.03 if key.startswith("probe/") else 1e-5), key
    if stage == "finetune":
        assert pq.read_table(folder / "predictions.parquet")["index"].to_pylist() == list(range(497))
    else:
        assert AutoModel.from_pretrained(folder / "model").config.model_type == "vit"


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("launched", "ddp"), ("shards", "shards")])
def test_a_run_on_two_processes_resumes_from_its_checkpoint(runs, first, second, tmp_path):
    whole, folder = runs(first, "pretrain"), tmp_path / "run"
    shutil.copytree(whole, folder)
    for path in (folder / "model", folder / "checkpoints" / "step-00000006"):
        shutil.rmtree(path)
    (folder / "metrics.json").unlink()
    assert "from step 3" in launch(second, "pretrain", folder)
    assert [line["train/loss"] for line in read_metrics(folder)] == pytest.approx(
        [line["train/loss"] for line in read_metrics(whole)], abs=1e-7
    )
    found, wanted = weights(folder), weights(whole)
    assert all((found[key] - wanted[key]).abs().max() < 1e-7 for key in wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--train.seed $RANK --data.cache_dir cache$RANK",
            r"train.seed \(0, on process 1 1\): type the same command",
        ),
        (
            "--data.source images --train.batch_size 32",
            r"data_fingerprint \(\w{16}, on process 1 \w{16}\): put the same training images",
        ),
    ],
)
def test_processes_with_different_settings_or_images_are_refused(words, message, tmp_path):
    """As on two machines, where a command is typed twice. Otherwise each would train a different model."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 16, 16, 3), dtype=np.uint8)
    for rank, number in np.ndindex(2, 40):
        image = tmp_path / str(rank) / "images" / "unlabeled" / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[rank, number]).save(image)
    command = f"{ROOT}/scripts/pretrain.py {PRETRAIN} {words} --train.probe_every_epochs 0 --output_dir {tmp_path}/run"
    command = command.replace("configs/", f"{ROOT}/configs/")
    done = run(*command.split(), processes=2, folder=tmp_path / "$RANK")
    assert done.returncode != 0
    assert len(re.findall(rf"^error: the processes .* the same {message}", done.stderr, re.MULTILINE)) == 1, done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cpu", "--num_processes", "2"], "but started one"),
        (
            ["--use_fsdp", "--fsdp_version", "2", "--num_processes", "2"],
            "FSDP was asked for, but MULTI_CPU runs on cpu",
        ),
    ],
)
def test_processes_of_a_launch_that_does_not_run_as_asked_end_in_one_line_before_any_data_is_read(
    words, message, tmp_path, monkeypatch
):
    for name, value in exported(*words).items():
        monkeypatch.setenv(name, value)
    processes = 2 if "--use_fsdp" in words else 1
    command = ["scripts/pretrain.py", "--config", "configs/pretrain/digits.yaml", "--output_dir", tmp_path / "run"]
    done = run(*command, processes=processes)
    assert done.returncode != 0
    assert len(re.findall(rf"^error: .*{message}", done.stderr, re.MULTILINE)) == 1
    assert not (tmp_path / "run").exists()
