"""The loop: neither the split of a batch nor an interruption changes a result, and a bad loss stops in time."""

import contextlib
import itertools
import math
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from small_training import DEFAULTS, NUM_IMAGES, Interrupted, batch, network, run
from torch import nn

from mae_hf.config.data import DataConfig
from mae_hf.config.model import MAEConfig
from mae_hf.config.runs import PretrainConfig
from mae_hf.config.train import PretrainTrainConfig
from mae_hf.data.dataset import DeviceImages, load_pretraining_images
from mae_hf.data.random import Draws
from mae_hf.data.sampler import BatchSampler
from mae_hf.errors import RunError, RunStopped
from mae_hf.models.mae import build_mae
from mae_hf.training import loop
from mae_hf.training.checkpoint import Checkpoints
from mae_hf.training.losses import pretraining_loss
from mae_hf.training.optim import build_optimizer, learning_rate_at
from mae_hf.training.run_folder import read_metrics
from mae_hf.training.signals import StopSignals


def lines_without_clock(folder) -> list[dict[str, float]]:
    return [
        {key: line[key] for key in line if key not in ("train/images_per_second", "probe/seconds")}
        for line in read_metrics(folder)
    ]


def test_a_run_is_the_textbook_loop(tmp_path):
    """Ten lines of plain PyTorch, without accumulation, log or checkpoints, give the same weights and losses."""
    model, state = run(tmp_path, log_every_steps=1)
    assert state.step == 20

    config = PretrainTrainConfig(**DEFAULTS)
    plan = config.plan(NUM_IMAGES, 1)
    sampler = BatchSampler(plan, seed=0)
    expected = network()
    optimizer = torch.optim.AdamW(expected.parameters())
    losses, norms = [], []
    for step in range(20):
        inputs, targets = batch(*sampler.micro_batches(step), step // 4)
        loss = nn.functional.mse_loss(expected(inputs), targets)
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, plan, 0.6 * 8 / 256)
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(expected.parameters(), 1.0).item())
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.6 * sum(losses[:4]), "there is something to learn"
    assert any(norm > 1 for norm in norms), "there is something to clip"
    lines = read_metrics(tmp_path)
    assert [line["train/loss"] for line in lines] == pytest.approx(losses, rel=1e-5)
    assert [line["train/grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4)
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [4, 2, 1])
def test_accumulation_does_not_change_the_losses(tmp_path, size):
    run(tmp_path / "whole", log_every_steps=1)
    run(tmp_path / "split", log_every_steps=1, per_device_batch_size=size)
    whole, split = ([line["train/loss"] for line in read_metrics(tmp_path / name)] for name in ("whole", "split"))
    assert len(split) == 20
    assert split == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("stop_at", [3, 12, 17])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, stop_at, ema_decay):
    expected, state = run(tmp_path / "whole", dropout=0.2, ema_decay=ema_decay)
    with pytest.raises(Interrupted):
        run(tmp_path / "resumed", dropout=0.2, ema_decay=ema_decay, stop_at=stop_at)
    torch.manual_seed(123)  # a new process starts from another random state
    resumed, resumed_state = run(tmp_path / "resumed", dropout=0.2, ema_decay=ema_decay)
    for found, wanted in zip(resumed.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, wanted)
    assert resumed_state == state
    assert lines_without_clock(tmp_path / "resumed") == lines_without_clock(tmp_path / "whole")


def assert_equal_runs(found: Path, expected: Path) -> None:
    """Check that weights, moments and states of the last checkpoints are equal, and the lines of the logs."""
    assert lines_without_clock(found) == lines_without_clock(expected)
    found, expected = (max((path / "checkpoints").glob("step-*")) for path in (found, expected))
    assert found.name == expected.name
    assert (found / "train_state.json").read_text() == (expected / "train_state.json").read_text()
    weights, other = (load_file(path / "model.safetensors") for path in (found, expected))
    assert all(torch.equal(weights[key], other[key]) for key in other)
    moments, other = (torch.load(path / "optimizer.bin")["state"] for path in (found, expected))
    assert moments.keys() == other.keys()
    assert all(torch.equal(moments[i][key], other[i][key]) for i in other for key in ("step", "exp_avg", "exp_avg_sq"))


def send(number: int, at: int):
    """Return a change that sends this process a signal during a step."""

    def change(step: int, loss: torch.Tensor) -> torch.Tensor:
        if step == at:
            os.kill(os.getpid(), number)
        return loss

    return change


@pytest.mark.parametrize("at", [0, *random.Random(5).sample(range(1, 19), 4), 19])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_saves_the_state_before_the_step_and_the_resumed_run_repeats_the_step(tmp_path, name, at):
    """The signal arrives during an accumulation, between lines of the log, during an epoch, or at the last step."""
    number = getattr(signal, name)
    settings = {"dropout": 0.2, "per_device_batch_size": 2, "best_key": "eval/loss"}
    run(tmp_path / "whole", **settings)
    handler = signal.getsignal(number)
    with pytest.raises(RunStopped) as caught:
        run(tmp_path / "stopped", change=send(number, at), **settings)
    assert signal.getsignal(number) is handler
    saved = tmp_path / "stopped" / "checkpoints" / f"step-{at:08d}"
    assert saved.is_dir()
    assert str(caught.value) == f"{name}: saved as {saved}"
    assert caught.value.signal_number == number
    run(tmp_path / "stopped", **settings)
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def test_a_signal_does_not_wait_for_the_remaining_micro_batches(tmp_path):
    computed = []

    def change(step: int, loss: torch.Tensor) -> torch.Tensor:
        computed.append(step)
        return send(signal.SIGTERM, 9)(step, loss)

    with pytest.raises(RunStopped):
        run(tmp_path, change=change, per_device_batch_size=1)
    assert computed.count(8) == 8 and computed.count(9) == 1


def test_a_signal_is_obeyed_though_a_library_swallows_what_it_raises(tmp_path):
    def change(step: int, loss: torch.Tensor) -> torch.Tensor:
        with contextlib.suppress(BaseException):
            send(signal.SIGTERM, 9)(step, loss)
        return loss

    with pytest.raises(RunStopped, match="step-00000009"):
        run(tmp_path, change=change, per_device_batch_size=4)


def test_a_signal_during_an_evaluation_waits_for_it(tmp_path):
    def evaluate(step: int) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"eval/loss": 1.0}

    with pytest.raises(RunStopped, match="step-00000006"):
        run(tmp_path, evaluate=evaluate)
    assert read_metrics(tmp_path)[-1]["eval/loss"] == 1.0


def test_a_run_stopped_at_every_step_equals_an_uninterrupted_one(tmp_path):
    run(tmp_path / "whole", dropout=0.2)
    for step in range(20):
        with pytest.raises(RunStopped):
            run(tmp_path / "stopped", dropout=0.2, change=send(signal.SIGTERM, step))
    run(tmp_path / "stopped", dropout=0.2)
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def test_random_numbers_of_an_evaluation_do_not_change_the_training(tmp_path):
    expected, _ = run(tmp_path / "plain", dropout=0.2)
    found, _ = run(
        tmp_path / "drawing", dropout=0.2, evaluate=lambda step: {"eval/loss": torch.rand(step).mean().item()}
    )
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_resuming_a_run_after_its_last_step_changes_nothing(tmp_path):
    expected, state = run(tmp_path)
    lines = read_metrics(tmp_path)
    again, state_again = run(tmp_path)
    assert state_again == state
    assert read_metrics(tmp_path) == lines
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), expected.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:removed 1 damaged lines")
def test_a_torn_last_line_is_evaluated_again(tmp_path):
    run(tmp_path)
    lines = read_metrics(tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text()
    for torn in (text[:-20], text[:-20] + "\n"):
        (tmp_path / "metrics.jsonl").write_text(torn)
        run(tmp_path)
        found = read_metrics(tmp_path)
        assert found[:-1] == lines[:-1]
        assert found[-1] == {key: lines[-1][key] for key in ("step", "epoch", "eval/loss")}


def test_the_log_has_a_line_when_it_is_due_and_at_evaluations(tmp_path):
    run(tmp_path)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 9, 12, 15, 18, 20]
    assert [line["step"] for line in lines if "eval/loss" in line] == [6, 12, 18, 20]
    assert [line["epoch"] for line in lines] == [line["step"] / 4 for line in lines]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000014", "step-00000020"]


def test_the_log_has_the_learning_rate_of_the_optimizer(tmp_path):
    run(tmp_path)
    rates = {line["step"]: line["train/learning_rate"] for line in read_metrics(tmp_path)}
    peak = 0.6 * 8 / 256
    assert rates[3] == pytest.approx(peak * 3 / 4)  # the third of four steps of warm-up
    assert rates[12] == pytest.approx(peak * 0.5971, rel=1e-3)  # (1 + cos(7/16 pi)) / 2
    assert 0 < rates[20] < peak / 50


def test_the_mean_loss_of_a_line_is_over_the_steps_since_the_last_one(tmp_path):
    run(tmp_path / "each", log_every_steps=1)
    run(tmp_path / "some")
    each = {line["step"]: line["train/loss"] for line in read_metrics(tmp_path / "each")}
    last = 0
    for line in read_metrics(tmp_path / "some"):
        steps = range(last + 1, line["step"] + 1)
        assert line["train/loss"] == pytest.approx(sum(each[step] for step in steps) / len(steps), rel=1e-5)
        last = line["step"]


def test_an_evaluation_runs_at_its_interval_and_at_the_end_if_it_says_so():
    for every, num_steps, at_end in itertools.product(range(1, 6), range(1, 13), (True, False)):
        evaluation = loop.Evaluation("evaluation", every, lambda step: {}, at_end)
        due = [step for step in range(1, num_steps + 1) if evaluation.is_due(step, step == num_steps)]
        assert due == [*range(every, num_steps, every), *([num_steps] if at_end else [])]


def test_images_per_second_count_steps_and_not_evaluations(tmp_path):
    def slow_step(step, loss):
        time.sleep(0.02)
        return loss

    def slow_evaluation(step):
        time.sleep(1)
        return {"eval/loss": 0.0}

    run(tmp_path, epochs=2, eval_every_epochs=1, log_every_steps=2, change=slow_step, evaluate=slow_evaluation)
    speeds = [line["train/images_per_second"] for line in read_metrics(tmp_path)]
    assert len(speeds) == 4  # steps 2, 4, 6 and 8, with a checkpoint at 7
    assert all(16 < speed <= 8 / 0.02 for speed in speeds), speeds


def test_the_best_checkpoint_is_kept_and_remembered(tmp_path):
    accuracy = {6: 0.5, 12: 0.9, 18: 0.9, 20: 0.7}  # an equal value later is no better
    _, state = run(
        tmp_path, evaluate=lambda step: {"eval/accuracy": accuracy[step]}, best_key="eval/accuracy", keep_checkpoints=2
    )
    assert (state.best_step, state.best_value) == (12, 0.9)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000012", "step-00000014", "step-00000020"]


def test_an_interrupted_run_remembers_its_best(tmp_path):
    accuracy = {6: 0.9, 12: 0.5, 18: 0.6, 20: 0.7}
    settings = {"evaluate": lambda step: {"eval/accuracy": accuracy[step]}, "best_key": "eval/accuracy"}
    with pytest.raises(Interrupted):
        run(tmp_path, stop_at=15, **settings)
    _, state = run(tmp_path, **settings)
    assert (state.best_step, state.best_value) == (6, 0.9)
    assert (tmp_path / "checkpoints" / "step-00000006").is_dir()


def test_weights_that_were_trained_before_the_run_may_stay_the_best_ones(tmp_path):
    accuracy = {0: 0.9, 6: 0.5, 12: 0.9, 18: 0.6, 20: 0.7}
    settings = {"evaluate": lambda step: {"eval/accuracy": accuracy[step]}, "best_key": "eval/accuracy"}
    settings |= {"starts_trained": True, "ema_decay": 0.9}
    model = network()
    _, state = run(tmp_path / "whole", **settings)
    assert (state.best_step, state.best_value) == (0, 0.9)
    lines = read_metrics(tmp_path / "whole")
    assert (lines[0], lines[1]["step"]) == ({"step": 0, "epoch": 0.0, "eval/accuracy": 0.9}, 3)
    best = load_file(tmp_path / "whole" / "checkpoints" / "step-00000000" / "model.safetensors")
    assert all(torch.equal(value, best[name]) for name, value in model.state_dict().items())
    for stop_at in (0, 9):
        with pytest.raises(Interrupted):
            run(tmp_path / "resumed", stop_at=stop_at, **settings)
    run(tmp_path / "resumed", **settings)
    assert_equal_runs(tmp_path / "resumed", tmp_path / "whole")


BAD = {
    "a loss that is not a number": lambda loss: loss * float("nan"),
    "an infinite loss": lambda loss: loss * float("inf"),
    "a loss that is not a number, with finite gradients": lambda loss: loss + float("nan"),
    "a gradient that is not a number": lambda loss: loss + (loss * 0).sqrt(),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_before_the_update(tmp_path, bad):
    with pytest.raises(Interrupted):
        run(tmp_path / "good", stop_at=9, save_every_epochs=2.25)  # leaves a checkpoint of 9 good steps
    with pytest.raises(RunError) as caught:
        run(tmp_path / "bad", change=lambda step, loss: BAD[bad](loss) if step == 9 else loss)
    message = str(caught.value)
    assert "of step 9 is not finite" in message
    assert f"the last good checkpoint is {tmp_path / 'bad' / 'checkpoints' / 'step-00000007'}" in message
    assert "--train.base_lr" in message
    assert "\n" not in message

    expected = load_file(tmp_path / "good" / "checkpoints" / "step-00000009" / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in caught.value.model.state_dict().items())


def test_no_evaluation_runs_after_the_run_folder_was_moved_away(tmp_path):
    def move(batch: int, loss: torch.Tensor) -> torch.Tensor:
        if batch == 5:
            (tmp_path / "run").rename(tmp_path / "moved")
        return loss

    def draw(step: int) -> dict[str, float]:
        (tmp_path / "run" / "figures").mkdir(parents=True)
        return {"eval/loss": 1.0}

    with pytest.raises(RunError, match="run was moved or removed during the run"):
        run(tmp_path / "run", change=move, evaluate=draw)
    assert not (tmp_path / "run").exists()


def test_the_message_says_if_there_is_no_checkpoint(tmp_path):
    with pytest.raises(RunError, match="the last good checkpoint is none yet"):
        run(tmp_path, change=lambda step, loss: loss * float("nan"))


def test_fp16_may_skip_steps_while_it_searches_its_loss_scale_but_not_endlessly(tmp_path):
    loss, overflow = torch.tensor(1.0), torch.tensor(float("inf"))
    checkpoints = Checkpoints(Accelerator(cpu=True), tmp_path, 2)
    failure = loop.first_failure(torch.zeros(4), loss, overflow, 3)
    searching = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=65536.0))
    loop.check_failure(searching, failure, checkpoints)
    assert not failure.any(), "forgotten: the next step starts anew"
    exhausted = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=0.5))
    for accelerator, bad_loss in ((exhausted, loss), (searching, overflow)):
        failure = loop.first_failure(torch.zeros(4), bad_loss, overflow, 3)
        with pytest.raises(RunError, match="of step 3 is not finite"):
            loop.check_failure(accelerator, failure, checkpoints)


def test_fp16_makes_no_update_from_a_non_finite_loss_with_finite_gradients():
    """GradScaler overwrites `found_inf`, and checks only gradients."""
    accelerator = Accelerator(cpu=True)
    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    optimizer = AcceleratedOptimizer(build_optimizer_of(model), device_placement=False, scaler=accelerator.scaler)
    config = PretrainTrainConfig(**DEFAULTS)
    sampler = BatchSampler(config.plan(NUM_IMAGES, 1), config.seed)
    for spoilt in (math.nan, math.inf):

        def loss_of(draws: Draws, spoilt: float = spoilt) -> torch.Tensor:
            inputs, targets = batch(draws.rows, draws.epoch)
            return nn.functional.mse_loss(model(inputs), targets) + spoilt

        signals = StopSignals(is_main_process=True)
        training = loop.Training(accelerator, model, optimizer, config, sampler, loss_of)
        loss, grad_norm = loop.gradients(training, 0, signals)
        loop.update(optimizer, loop.first_failure(torch.zeros(4), loss, grad_norm, 0)[0])
        assert not loss.isfinite()
        assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_the_first_failure_is_reported():
    good, bad = torch.tensor(0.25), torch.tensor(float("nan"))
    failure = torch.zeros(4)
    for step, (loss, norm) in enumerate([(good, good), (good, bad), (good, good), (bad, bad)]):
        failure = loop.first_failure(failure, loss, norm, step)
    assert failure[:3].tolist() == [1, 1, 0.25]
    assert failure[3].isnan()


def test_a_failed_step_changes_no_weight_though_the_host_does_not_check():
    """On a GPU the host rarely checks. Make steps of the real optimizer with and without failures."""

    def weights_after(failures: list[float]) -> list[torch.Tensor]:
        model = network()
        optimizer = build_optimizer_of(model)
        for step, failed in enumerate(failures):
            torch.manual_seed(step if not failed else 99)
            nn.functional.mse_loss(model(torch.randn(8, 4)), torch.randn(8, 1) * (math.nan if failed else 1)).backward()
            loop.update(optimizer, torch.tensor(failed))
            assert all(parameter.grad is None for parameter in model.parameters())
        moments = [value for state in optimizer.state.values() for value in state.values()]
        return [*model.parameters(), *moments]

    expected, found = weights_after([0.0, 0.0]), weights_after([0.0, 0.0, 1.0, 1.0])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(weights_after([0.0])[0], expected[0])


def build_optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    """Return the optimizer of a run for a model without a transformers config."""
    model.config = SimpleNamespace(num_hidden_layers=1)
    optimizer = build_optimizer(model, PretrainTrainConfig())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    return optimizer


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("on_device", ["always", "never"])
@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_steps_on_a_gpu_never_make_the_host_wait(on_device, precision):
    shape = {"image_size": 32, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = PretrainConfig(
        data=DataConfig(source="digits"), model=MAEConfig(**shape), train=PretrainTrainConfig(batch_size=16)
    )
    images, _ = load_pretraining_images(config.data, 32)
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests have asked for a CPU
    accelerator = Accelerator(mixed_precision=precision)
    model = build_mae(config.model, "sdpa")
    prepared, optimizer = accelerator.prepare(model, build_optimizer(model, config.train))
    loss_of = pretraining_loss(prepared, DeviceImages(images, accelerator.device, on_device), config)
    sampler = BatchSampler(config.train.plan(len(images), 1), config.train.seed)
    training = loop.Training(accelerator, prepared, optimizer, config.train, sampler, loss_of)
    failure = torch.zeros(4, device=accelerator.device)
    signals = StopSignals(is_main_process=True)
    try:
        for step in range(5):
            torch.cuda.set_sync_debug_mode("error" if step >= 2 else "default")  # the first steps may set things up
            loss, grad_norm = loop.gradients(training, step, signals)
            loss, _ = loop.over_processes(accelerator, loss, signals)
            failure = loop.first_failure(failure, loss, grad_norm, step)
            loop.update(optimizer, failure[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
        AcceleratorState._reset_state(reset_partial_state=True)
    assert not failure.any()
