"""A run fits its machine: the fastest attention, all cores, reused memory, compiled layers."""

import contextlib
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from forks import succeed
from torch import nn
from torch._dynamo.testing import CompileCounter

from mae_hf.config.model import ClassifierConfig, MAEConfig
from mae_hf.data.cores import num_cores
from mae_hf.errors import ConfigError, PlainWarning
from mae_hf.models.classifier import build_classifier, dropping_paths
from mae_hf.models.layers import CPU_ATTENTION
from mae_hf.models.mae import build_mae
from mae_hf.training.hardware import attention_for, compile_layers, use_cpu_well

MODEL = MAEConfig(
    image_size=16,
    patch_size=4,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    decoder_hidden_size=8,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    intermediate_size=32,
    decoder_intermediate_size=16,
)


@pytest.fixture(autouse=True)
def own_compiler_settings():
    with torch._dynamo.config.patch(suppress_errors=False):
        yield


@pytest.mark.parametrize(
    ("device", "precision", "attention"),
    [
        ("cpu", "no", "sdpa"),
        ("cpu", "bf16", "mae_hf_cpu"),
        ("cuda", "fp16", "sdpa"),
        ("cuda", "no", "sdpa"),
        ("cuda", "bf16", "sdpa"),
        ("mps", "bf16", "sdpa"),
    ],
)
def test_attention_is_the_fastest_kind_for_device_and_precision(device, precision, attention, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    accelerator = SimpleNamespace(device=torch.device(device), mixed_precision=precision)
    assert attention_for(accelerator) == attention


@pytest.mark.parametrize(
    ("capabilities", "device", "warns"),
    [({"avx512_bf16": False}, "cpu", True), ({"avx512_bf16": False}, "cuda", False), ({"bf16": True}, "cpu", False)],
)
def test_bf16_on_a_cpu_without_its_instructions_warns_that_fp32_is_faster(capabilities, device, warns, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    accelerator = SimpleNamespace(device=torch.device(device), mixed_precision="bf16", is_main_process=True)
    with pytest.warns(PlainWarning, match="fp32 is faster: leave out") if warns else contextlib.nullcontext():
        attention_for(accelerator)


def test_fp16_without_a_gpu_is_refused():
    accelerator = SimpleNamespace(device=torch.device("cpu"), mixed_precision="fp16")
    with pytest.raises(ConfigError, match=r"fp16 needs a GPU.*bf16"):
        attention_for(accelerator)


@pytest.mark.parametrize(
    ("device", "threads", "processes", "share"),
    [("cpu", 1, None, 1), ("cpu", 1, "2", 2), ("cpu", 3, None, None), ("cuda", 1, None, None)],
)
def test_a_cpu_run_gets_its_share_of_the_cores_unless_threads_were_chosen(
    monkeypatch, device, threads, processes, share
):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))  # this process's memory stays as it is
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        use_cpu_well(SimpleNamespace(device=torch.device(device)))
        assert torch.get_num_threads() == (max(1, num_cores() // share) if share else threads)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_freed_memory_stays_with_the_process(tmp_path):
    (tmp_path / "script.py").write_text("""if True:
        import ctypes, torch
        from types import SimpleNamespace
        from mae_hf.training.hardware import use_cpu_well
        use_cpu_well(SimpleNamespace(device=torch.device("cpu")))
        libc = ctypes.CDLL(None)
        libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
        before = libc.sbrk(0)
        torch.empty(3 << 30, dtype=torch.uint8)  # not touched: it takes no memory
        print((libc.sbrk(0) - before) >> 30)
    """)
    assert int(succeed(tmp_path / "script.py")) >= 3


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_a_large_tensor_requests_its_memory_from_the_kernel_once():
    """Counts page faults: 64 MiB are 16,384 pages, which every new tensor faults again without `use_cpu_well`."""
    code = """if True:
        import resource, torch
        from types import SimpleNamespace
        from mae_hf.training.hardware import use_cpu_well
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(4):
                torch.ones(2**24)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        before = faults()
        use_cpu_well(SimpleNamespace(device=torch.device("cpu")))
        faults()
        print(before, faults())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 20


def loss_of(model: nn.Module):
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.rand(4, 16, generator=torch.Generator().manual_seed(1))
    return lambda: model(images, noise=noise, loss_only=True).loss


def compiled_layers(model: nn.Module) -> list[bool]:
    layers = [*model.vit.layers, *model.decoder.decoder_layers]
    return [layer._compiled_call_impl is not None for layer in layers]


@pytest.mark.parametrize(
    ("mode", "device", "triton", "is_compiled"),
    [
        ("always", "cpu", False, True),
        ("auto", "cpu", True, False),
        ("auto", "cuda", True, True),
        ("auto", "cuda", False, False),
        ("never", "cuda", True, False),
    ],
)
def test_auto_compiles_on_a_gpu_with_triton(monkeypatch, mode, device, triton, is_compiled):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if triton else None)
    model = build_mae(MODEL, "sdpa")
    assert compile_layers(SimpleNamespace(device=torch.device(device)), model, mode) is is_compiled
    assert compiled_layers(model) == [is_compiled] * 3


@pytest.mark.slow
def test_compiled_layers_give_the_same_loss_and_gradients_under_the_same_names():
    model = build_mae(MODEL, CPU_ATTENTION)
    names, loss = list(model.state_dict()), loss_of(model)
    expected = loss()
    expected.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    assert compile_layers(Accelerator(cpu=True), model, "always")
    assert compiled_layers(model) == [True] * 3
    found = loss()
    found.backward()
    torch.testing.assert_close(found, expected)
    assert {name for name, value in model.named_parameters() if value.grad is not None} == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6)
    assert list(model.state_dict()) == names


def test_layers_that_cannot_be_compiled_run_eagerly_in_mode_auto(monkeypatch):
    model, compile_really = build_mae(MODEL, "sdpa"), nn.Module.compile
    expected = loss_of(model)()
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_really(module, backend=refuse))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert compile_layers(SimpleNamespace(device=torch.device("cuda")), model, "auto")
    assert torch.equal(loss_of(model)(), expected)


def refuse(graph, inputs):
    raise RuntimeError("no compiler on this machine")


def test_layers_of_one_shape_are_compiled_once_whatever_their_drop_path():
    shape = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2}
    config = ClassifierConfig(**shape, intermediate_size=32, init="scratch", drop_path=0.1)
    model = build_classifier(config, ("cat", "dog"), CPU_ATTENTION, seed=0)
    counter = CompileCounter()
    for layer in model.vit.layers:
        layer.compile(backend=counter)
    images = torch.randn(2, 3, 16, 16)
    drop_paths = [layer.dropout for layer in model.vit.layers[1:]]
    with dropping_paths(drop_paths, torch.rand(2, 22)), torch.autocast("cpu", torch.bfloat16):
        model(images).logits.sum().backward()
    assert 1 <= counter.frame_count <= 2, "the first layer has no drop path"
    with torch.compiler.set_stance("force_eager"):
        model.eval()(images[:1])
    assert counter.frame_count <= 2
