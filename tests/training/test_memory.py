"""The memory that a run needs, the memory that is free, and the largest micro-batch that fits."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate import Accelerator

from mae_hf.config.augment import AugmentConfig
from mae_hf.config.model import ClassifierConfig, EncoderConfig, MAEConfig
from mae_hf.config.runs import FinetuneConfig, PretrainConfig
from mae_hf.config.train import FinetuneTrainConfig, PretrainTrainConfig
from mae_hf.errors import ConfigError, PlainWarning, RunError
from mae_hf.models.classifier import build_classifier
from mae_hf.models.layers import CPU_ATTENTION
from mae_hf.models.mae import build_mae
from mae_hf.training import memory
from mae_hf.training.memory import (
    activation_bytes,
    choose_micro_batch,
    explained_lack,
    free_memory,
    num_parameters,
    run_bytes,
)

SMALL = MAEConfig(
    image_size=48, patch_size=8, hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=192,
    decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=4, decoder_intermediate_size=128,
)  # fmt: skip
ENCODER = {field.name: getattr(SMALL, field.name) for field in dataclasses.fields(EncoderConfig)}
CLASSIFIER = ClassifierConfig(**ENCODER, init="scratch", drop_path=0.0)
MODELS = {
    "small": SMALL,
    "half decoded": dataclasses.replace(SMALL, decode_ratio=0.5),
    "one decoder layer": dataclasses.replace(SMALL, decoder_num_hidden_layers=1),
    "classifier": CLASSIFIER,
}
CPU = torch.device("cpu")


def build(model: EncoderConfig, attention: str) -> torch.nn.Module:
    if isinstance(model, MAEConfig):
        return build_mae(model, attention)
    return build_classifier(model, ("cat", "dog"), attention, seed=0)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_parameters_are_those_of_the_model_that_is_built(model):
    built = [parameter for name, parameter in build(model, "sdpa").named_parameters() if "classifier" not in name]
    trained = sum(parameter.numel() for parameter in built if parameter.requires_grad)
    assert num_parameters(model) == (trained, sum(parameter.numel() for parameter in built))


def kept_bytes(model: EncoderConfig, num_images: int, precision: str, attention: str) -> int:
    """What autograd keeps of a forward pass, each tensor once, without parameters."""
    network = build(model, attention).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    images = torch.randn(num_images, 3, model.image_size, model.image_size)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        network(images, **({"loss_only": True} if isinstance(model, MAEConfig) else {}))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("precision", "keeps_scores"), [("no", False), ("bf16", False), ("bf16", True)])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_activations_are_what_autograd_keeps_of_an_image_to_five_per_cent(model, precision, keeps_scores):
    attention = CPU_ATTENTION if keeps_scores else "sdpa"
    of_image = (kept_bytes(model, 6, precision, attention) - kept_bytes(model, 2, precision, attention)) / 4
    assert activation_bytes(model, precision, keeps_scores=keeps_scores) == pytest.approx(of_image, rel=0.05)


# ---- what is free ----


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A file system with this /proc/self/cgroup and these files in /sys/fs/cgroup."""
    for path, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": files[name] for name in files}}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


STAT = "anon 3\ninactive_file 1000\nactive_file 200\n"
STAT_V1 = "inactive_file 7\ntotal_inactive_file 1000\ntotal_active_file 200\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {}, 8_192_000),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5\n", "memory.stat": STAT}, 8_192_000),
        ("0::/\n", {"memory.max": "9000\n", "memory.current": "5000\n", "memory.stat": STAT}, 9000 - 3800),
        (
            "0::/job/step\n",
            {
                "job/step/memory.max": "max\n",
                "job/step/memory.current": "2000\n",
                "job/step/memory.stat": STAT,
                "job/memory.max": "7000\n",
                "job/memory.current": "2000\n",
                "job/memory.stat": STAT,
            },
            7000 - 800,
        ),
        (
            "4:memory:/docker/a\n1:cpu:/docker/a\n",
            {
                "memory/docker/a/memory.limit_in_bytes": "9000\n",
                "memory/docker/a/memory.usage_in_bytes": "5000\n",
                "memory/docker/a/memory.stat": STAT_V1,
            },
            9000 - 3800,
        ),
        ("0::/\n", {"memory.max": "9000\n", "memory.current": "99000\n", "memory.stat": STAT}, 0),
    ],
)
def test_free_memory_is_the_smallest_rest_of_the_machine_and_its_groups(tmp_path, cgroup, files, expected, monkeypatch):
    root = machine(tmp_path, cgroup, files)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8_192_000))
    assert free_memory(CPU, root) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_memory(CPU, root) == expected / 2, "two processes share it"


def test_without_groups_the_free_memory_is_what_the_kernel_says(tmp_path):
    file = Path("/proc/meminfo")
    if not file.exists():
        pytest.skip("this is not Linux")
    available = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", file.read_text())[1])
    assert free_memory(CPU, tmp_path) == pytest.approx(available, rel=0.2), "other processes take memory meanwhile"


def test_memory_that_an_earlier_call_has_freed_on_a_gpu_is_free(monkeypatch):
    """torch keeps it in its cache, and the driver counts it as used."""
    for name, value in {"mem_get_info": (1000, 9000), "memory_reserved": 700, "memory_allocated": 200}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory(torch.device("cuda")) == 1500


# ---- what fits ----


def pretraining(size: int | str | None = "auto", batch_size: int = 64) -> PretrainConfig:
    return PretrainConfig(model=SMALL, train=PretrainTrainConfig(batch_size=batch_size, per_device_batch_size=size))


def finetuning(**mixing: float) -> FinetuneConfig:
    train = FinetuneTrainConfig(batch_size=18)
    return FinetuneConfig(model=CLASSIFIER, augment=AugmentConfig(**mixing), train=train)


def needed(config: PretrainConfig | FinetuneConfig, size: int) -> float:
    train = dataclasses.replace(config.train, per_device_batch_size=size)
    return run_bytes(config, train.plan(config.train.batch_size, 1), Accelerator(cpu=True))


def choose(monkeypatch, config: PretrainConfig | FinetuneConfig, free: float, recorded: int | None = None) -> int:
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    return choose_micro_batch(config, Accelerator(cpu=True), recorded)[0]


@pytest.mark.parametrize(("fits", "chosen"), [(64, 64), (63, 32), (16, 16), (1, 1)])
def test_auto_takes_the_largest_part_of_the_batch_that_fits(monkeypatch, fits, chosen):
    assert choose(monkeypatch, pretraining(), needed(pretraining(), chosen) + 1) == chosen
    assert choose(monkeypatch, pretraining(), float("inf")) == 64


@pytest.mark.parametrize(("mixing", "chosen"), [({"mixup": 0.0, "cutmix": 0.0}, 9), ({"mixup": 0.8}, 6)])
def test_mixup_keeps_its_pairs(monkeypatch, mixing, chosen):
    config = finetuning(**mixing)
    assert choose(monkeypatch, config, needed(config, 9) + 1) == chosen


def test_a_resumed_run_keeps_its_micro_batch_unless_the_processes_cannot(monkeypatch):
    free = needed(pretraining(), 64) + 1
    assert choose(monkeypatch, pretraining(), free, recorded=8) == 8
    assert choose(monkeypatch, pretraining(), free, recorded=128) == 64


def test_a_model_that_does_not_fit_at_all_is_refused_with_what_helps(monkeypatch):
    with pytest.raises(ConfigError, match=r"a batch of 1 images needs about 0\.\d GiB, and 0\.0 GiB are free: .*tiny"):
        choose(monkeypatch, pretraining(), 1000)


@pytest.mark.parametrize("size", [64, None])
def test_a_size_that_was_asked_for_is_kept_with_a_warning(monkeypatch, size):
    with pytest.warns(
        PlainWarning, match=r"64 images at a time may need more .*--train\.per_device_batch_size 32 fits"
    ):
        assert choose(monkeypatch, pretraining(size), needed(pretraining(), 32) + 1) == 64


def test_images_on_a_gpu_leave_three_quarters(monkeypatch):
    accelerator = SimpleNamespace(
        device=torch.device("cuda"), mixed_precision="no", num_processes=1, distributed_type="NO"
    )
    config = pretraining()
    free = run_bytes(config, config.train.plan(64, 1), accelerator) * 1.1
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    monkeypatch.setattr(memory, "gather_object", lambda values: values)
    assert choose_micro_batch(config, accelerator)[0] < 64
    never = dataclasses.replace(config, data=dataclasses.replace(config.data, on_device="never"))
    assert choose_micro_batch(never, accelerator)[0] == 64


# ---- when memory runs out all the same ----


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_becomes_one_line_with_the_flag(error):
    message = r"32 images at a time .* type --train\.per_device_batch_size 16$"
    with pytest.raises(RunError, match=message), explained_lack(32):
        raise error


def test_an_allocation_that_really_fails_is_explained():
    with pytest.raises(RunError, match="can't allocate memory"), explained_lack(2):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_stay():
    with pytest.raises(RuntimeError, match="shapes"), explained_lack(2):
        raise RuntimeError("shapes differ")
