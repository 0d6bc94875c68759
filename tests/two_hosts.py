"""Two hosts on one machine: network namespaces A and B, joined by a cable (a veth pair) that can be cut. Needs root.

`python tests/two_hosts.py FOLDER` pre-trains in FOLDER/one on one host and in FOLDER/two on two, cuts the cable in the
middle of FOLDER/cut, resumes that run, and writes FOLDER/report.json.

The hosts share a file system, as hosts that train together must, and nothing else: each has its own network stack, and
all that passes between their processes passes through the cable. The launcher of docs/devices.md starts the run whose
cable is cut. The others are forks with the environment of its processes, which start at once.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from chaos import Life
from forks import LIBRARIES, ROOT

HOSTS = {"mae-hf-a": "10.77.0.1", "mae-hf-b": "10.77.0.2"}
CABLE = ("mae-hf-veth-a", "mae-hf-veth-b")
TINY = "--model.hidden_size 24 --model.num_hidden_layers 2 --model.num_attention_heads 2 --model.intermediate_size 48"
RUN = f"--config configs/pretrain/digits.yaml {TINY} --model.decoder_hidden_size 16 --model.decoder_num_hidden_layers 1"
RUN += " --model.decoder_intermediate_size 32 --train.warmup_ratio 0 --train.log_every_steps 1"
RUN += " --train.save_every_epochs 0.2 --train.eval_every_epochs 100 --train.figure_every_epochs 100"
RUN += " --train.probe_every_epochs 0"


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[None]:
    """Two namespaces and the cable between them, removed at the end."""
    remove()
    try:
        ip("link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
        for (host, address), end in zip(HOSTS.items(), CABLE, strict=True):
            ip("netns", "add", host)
            ip("link", "set", end, "netns", host)
            ip("-n", host, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", host, "link", "set", end, "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield
    finally:
        remove()


def kill() -> None:
    """Kill what still runs on the hosts: workers have separate sessions and outlive their launcher."""
    for host in HOSTS:
        found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True)
        for pid in map(int, found.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def remove() -> None:
    """Remove the namespaces, and the cable with them."""
    kill()
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], capture_output=True)
    subprocess.run(["ip", "link", "del", CABLE[0]], capture_output=True)


def command_of(folder: Path, *more: str) -> list[str]:
    """The script and its arguments."""
    words = [str(ROOT / "scripts" / "pretrain.py"), *RUN.split(), "--output_dir", str(folder), *more]
    words[words.index("configs/pretrain/digits.yaml")] = str(ROOT / "configs" / "pretrain" / "digits.yaml")
    return words


@contextlib.contextmanager
def on(host: str) -> Iterator[None]:
    """Move this process to the network of a host, so that its forks stay there, and then back."""
    libc, its_own = ctypes.CDLL(None, use_errno=True), os.open("/proc/self/ns/net", os.O_RDONLY)
    other = os.open(f"/run/netns/{host}", os.O_RDONLY)
    try:
        assert libc.setns(other, 0) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert libc.setns(its_own, 0) == 0, os.strerror(ctypes.get_errno())
        os.close(its_own)
        os.close(other)


def fork(folder: Path, *more: str, logs: Path, places: Sequence[Path] = (ROOT, ROOT)) -> list[Life]:
    """Start the script on both hosts, in these folders, as a fork with the environment that the launcher gives it."""
    common = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    common |= {"LOCAL_RANK": "0", "MASTER_ADDR": next(iter(HOSTS.values())), "MASTER_PORT": "29500"}
    started = []
    for rank, (host, end) in enumerate(zip(HOSTS, CABLE, strict=True)):
        own = common | {"RANK": str(rank), "GLOO_SOCKET_IFNAME": end}
        with mock.patch.dict(os.environ, own), on(host):
            started.append(Life(command_of(folder, *more), Path(f"{logs}-{rank}.log"), places[rank]))
    return started


def errors_of(output: str) -> list[str]:
    """The errors that a host has printed."""
    return [line for line in output.splitlines() if "error: " in line]


def start(folder: Path, *more: str) -> list[subprocess.Popen[str]]:
    """Start the command of docs/devices.md on both hosts."""
    address = next(iter(HOSTS.values()))
    started = []
    for rank, (host, end) in enumerate(zip(HOSTS, CABLE, strict=True)):
        command = ["ip", "netns", "exec", host, sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
        command += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank)]
        command += ["--main_process_ip", address, "--main_process_port", "29500"]
        command += command_of(folder, *more)
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment |= {"GLOO_SOCKET_IFNAME": end}
        started.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(started: list[subprocess.Popen[str]], timeout: float = 300) -> list[dict[str, object]]:
    """Return exit code and output of each host. A process that does not end in time is killed."""
    begin, ended = time.monotonic(), []
    for process in started:
        try:
            output, _ = process.communicate(timeout=max(1.0, timeout - (time.monotonic() - begin)))
        except subprocess.TimeoutExpired:
            kill()
            output, _ = process.communicate()
        seconds = round(time.monotonic() - begin, 1)
        ended.append(
            {"code": process.returncode, "errors": errors_of(output), "seconds": seconds, "tail": output[-3000:]}
        )
    return ended


def lines(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, of a run that may still be writing."""
    path = folder / "metrics.jsonl"
    whole = (
        [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []
    )
    return [json.loads(line) for line in whole]


def main(folder: Path) -> None:
    """Run the tests that the first lines of this file describe."""
    report: dict[str, object] = {}
    epochs = ("--train.epochs", "1")
    for library in LIBRARIES:  # so that no fork needs to
        importlib.import_module(library)
    one = Life(command_of(folder / "one", *epochs), folder / "one.log")
    assert one.wait() == 0, one.text
    with two_hosts():
        two = fork(folder / "two", *epochs, logs=folder / "two")
        report["two"] = [{"code": host.wait(), "errors": errors_of(host.text)} for host in two]

        # a folder that is not shared: the same relative path in two places
        places = folder / "disk-of-a", folder / "disk-of-b"
        for place in places:
            place.mkdir()
        apart = fork(Path("runs", "apart"), *epochs, logs=folder / "apart", places=places)
        report["apart"] = [{"code": host.wait(), "errors": errors_of(host.text)} for host in apart]

        # the cable is cut after the first checkpoint: packets are lost without an error
        longer = ("--train.epochs", "100", "--train.timeout_minutes", "0.25")
        started = start(folder / "cut", *longer)
        while len(lines(folder / "cut")) < 6 and all(process.poll() is None for process in started):
            time.sleep(0.2)
        ip("-n", next(iter(HOSTS)), "link", "set", CABLE[0], "down")
        report["cut"] = finish(started)
        report["steps_before"] = len(lines(folder / "cut"))

        # the cable is back, and the same command resumes
        ip("-n", next(iter(HOSTS)), "link", "set", CABLE[0], "up")
        resumed = fork(folder / "cut", *longer, logs=folder / "resumed")
        goal = int(str(report["steps_before"])) + 20
        while len(lines(folder / "cut")) < goal and all(host.running() for host in resumed):
            time.sleep(0.2)
        report["steps_after"] = len(lines(folder / "cut"))
        report["went_on"] = [host.running() for host in resumed]
        kill()
        for host in resumed:
            host.wait()
    report["losses"] = {name: [line["train/loss"] for line in lines(folder / name)] for name in ("one", "two", "cut")}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
