"""Pre-training on a stream through the script: failing servers, signals, resumed runs, two processes."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forks import run
from safetensors.torch import load_file
from shard_server import ShardServer, parquet, picture, tar

from mae_hf.training.run_folder import read_metrics

ROOT = Path(__file__).parents[1]
PICTURES = [picture(number) for number in range(120)]
SHARDS = {f"s-{i}.tar": tar(PICTURES[30 * i : 30 * i + 30]) for i in range(4)}
SETTINGS = shlex.split("""--data.streaming true --data.stream_readers 2 --data.stream_buffer 16
    --data.stream_held_out 10
    --model.image_size 8 --model.patch_size 4 --model.hidden_size 16 --model.num_hidden_layers 1
    --model.num_attention_heads 2 --model.intermediate_size 16 --model.decoder_hidden_size 16
    --model.decoder_num_hidden_layers 1 --model.decoder_num_attention_heads 2 --model.decoder_intermediate_size 16
    --train.batch_size 10 --train.epochs 6 --train.warmup_ratio 0.2 --train.save_every_epochs 0.4
    --train.log_every_steps 5""")
# The script with less patience, so that a server that is gone is given up after a second.
IMPATIENT = """if True:
    import datasets, runpy
    from mae_hf.data.stream import shards
    shards.PAUSES = shards.PAUSES_AT_START = (0.0, 0.1)
    for name in ("READ", "OPEN"):
        setattr(datasets.config, f"STREAMING_{name}_RETRY_INTERVAL", 0.01)
        setattr(datasets.config, f"STREAMING_{name}_MAX_RETRIES", 2)
    runpy.run_path("scripts/pretrain.py", run_name="__main__")
"""


def pretrain(tmp_path: Path, name: str, source: object, processes: int = 1) -> subprocess.CompletedProcess:
    script = tmp_path / "impatient.py"
    script.write_text(IMPATIENT)
    folders = ("--data.cache_dir", tmp_path / f"cache-{name}", "--output_dir", tmp_path / name)
    data = ("--data.source", source, "--audit.sources", f"[{tmp_path / 'labelled'}]")
    return run(script, *SETTINGS, *data, *folders, processes=processes)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["counting", "training"])
def test_sigterm_ends_a_run_that_waits_for_its_server(tmp_path, phase):
    """With the full retries, which pause for 86 seconds; a preempted machine has 30."""
    with ShardServer({f"/{name}": data for name, data in SHARDS.items()}) as server:
        patience = 0 if phase == "counting" else 30
        server.fault = lambda request: 503 if len(server.gets) > patience else None
        settings = (*SETTINGS, "--data.source", f"{server.address}/s-{{0..3}}.tar", "--audit.sources", "[]")
        folders = ("--data.cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "run")
        command = [sys.executable, "scripts/pretrain.py", *map(str, (*settings, *folders))]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while len(server.gets) <= patience + 4:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.1)
        time.sleep(1)  # now all threads pause between two retries
        process.terminate()
        sent = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert time.monotonic() - sent < 20
    assert "stopped: SIGTERM" in errors and "Traceback" not in errors
    if phase == "training":
        assert "saved as" in errors


@pytest.mark.slow
def test_a_run_that_its_server_stopped_resumes_on_two_processes_with_equal_results(tmp_path):
    for name, pictures in {"train": [picture(n) for n in range(900, 920)], "test": [PICTURES[50], PICTURES[3]]}.items():
        (tmp_path / "labelled").mkdir(exist_ok=True)
        (tmp_path / "labelled" / f"{name}.parquet").write_bytes(parquet(pictures))
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, data in SHARDS.items():
        (folder / name).write_bytes(data)
    whole = pretrain(tmp_path, "whole", folder)
    assert whole.returncode == 0, whole.stderr
    copies = "2 images duplicate 2 of the 2 test images (left out)"
    assert copies in whole.stdout
    assert copies in (tmp_path / "whole" / "model" / "README.md").read_text()
    assert json.loads((tmp_path / "whole" / "model" / "autoencoder" / "audit.json").read_text())["streamed"] is True

    with ShardServer({f"/{name}": data for name, data in SHARDS.items()}) as server:
        address = f"{server.address}/s-{{0..3}}.tar"
        server.fault = lambda request: 503 if len(server.gets) > 30 else None
        stopped = pretrain(tmp_path, "stopped", address)
        assert stopped.returncode == 1
        line = next(line for line in stopped.stderr.splitlines() if "cannot be read from image" in line)
        assert server.address in line and "503" in line and "the same command resumes" in line
        assert "Traceback" not in stopped.stderr
        reached = int(max(path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()).removeprefix("step-"))
        server.fault = lambda request: "drop" if len(server.gets) % 7 == 0 else "slow"
        resumed = pretrain(tmp_path, "stopped", address, processes=2)
        assert resumed.returncode == 0, resumed.stderr[-4000:]
        assert f"from step {reached}" in resumed.stdout and 0 < reached < 66
        assert copies in resumed.stdout
    for key in ("step", "train/loss", "eval/loss"):
        found, wanted = (
            [line[key] for line in read_metrics(tmp_path / n) if key in line] for n in ("stopped", "whole")
        )
        assert found == pytest.approx(wanted, abs=1e-4), key
    found, wanted = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("stopped", "whole"))
    assert all((found[key] - wanted[key]).abs().max() < 1e-3 for key in wanted)
