"""Every fault that a run should survive, done to real runs: they must end as if nothing had happened.

    python tests/chaos.py --kills 30 --output table.md

The scripts pre-train and fine-tune a very small model on the digits. They run in children of this process, which has
imported what takes long, so that a life takes seconds; launchers and several processes are started as a user does. A
run that went on ends with the bytes of the undisturbed one: weights, moments, predictions, metrics.jsonl without its
clock.
"""

import argparse
import errno
import hashlib
import importlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from forks import LIBRARIES, ROOT, become, free_port
from PIL import Image
from safetensors.torch import load_file

SHAPE = "--model.hidden_size 24 --model.num_hidden_layers 1 --model.num_attention_heads 2 --model.intermediate_size 48"
DECODER = "--model.decoder_hidden_size 16 --model.decoder_num_hidden_layers 1 --model.decoder_intermediate_size 32"
# 54 or 57 steps, two micro-batches each; lines, saves and evaluations every 5, 6 or 7 and 13 or 18 or 19 steps
OFTEN = "--train.warmup_ratio 0.25 --train.log_every_steps 5 --train.per_device_batch_size 16"
COMMANDS = {
    "pretrain": f"scripts/pretrain.py --config configs/pretrain/digits.yaml {SHAPE} {DECODER} {OFTEN} --train.epochs 3 "
    "--train.save_every_epochs 0.35 --train.eval_every_epochs 1 --train.figure_every_epochs 2",
    "finetune": f"scripts/finetune.py --config configs/finetune/digits.yaml --model.init scratch {SHAPE} {OFTEN} "
    "--train.batch_size 32 --train.epochs 8 --train.save_every_epochs 0.9 --train.eval_every_epochs 2",
}  # fmt: skip


@dataclass
class Row:
    """What came of one kind of fault.

    Args:
        fault: its name.
        tried: how often it was done.
        went_on: runs that it was done to and that ended like the undisturbed one, or that were rightly refused.
        steps_lost: for each time, steps that the progress bar had shown and that were made again.
        damaged: artefacts with their name that were not whole, right after a fault or in the end.
        note: what else is worth saying.
    """

    fault: str
    tried: int = 0
    went_on: int = 0
    steps_lost: list[int] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """Its line of the table."""
        lost = self.steps_lost
        steps = f"{sum(lost) / len(lost):.1f}, {max(lost)}" if lost else ""
        return self.fault, str(self.tried), str(self.went_on), steps, str(len(self.damaged)), self.note


class Life:
    """A script in a child of this process, from its start to its end.

    Args:
        stage: `pretrain` or `finetune`.
        folder: the run folder; what the script prints is in a file beside it.
        flags: more words of the command.
    """

    def __init__(self, stage: str, folder: Path, *flags: str) -> None:
        place = folder.parent if folder.parent.is_mount() else folder  # never on a disk that is made to fail
        self.log = place.with_name(f"{place.name}.log")
        self.log.unlink(missing_ok=True)
        words = [*COMMANDS[stage].split(), "--output_dir", str(folder), *flags]
        self.pid = os.fork()
        if self.pid == 0:
            become(words, self.log, self.log, dict(os.environ))

    def running(self) -> bool:
        """Whether it has not ended yet."""
        if not hasattr(self, "code"):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return not hasattr(self, "code")

    def send(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = 300) -> int:
        """Its exit code; minus the number of the signal that ended it."""
        wait_until(lambda: not self.running(), seconds)
        return self.code

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def start(self) -> int:
        """The step that it went on from; the last of all where there was nothing left to do."""
        found = re.search(r"from step (\d+)", self.text)
        return int(found[1]) if found else 10**9 * ("is finished" in self.text)

    @property
    def total(self) -> int:
        """The steps of the whole run."""
        found = re.search(r"total steps +(\d+)", self.text)
        return int(found[1]) if found else 10**9

    @property
    def step(self) -> int:
        """The last step that its progress bar has shown."""
        shown = re.findall(r"\| (\d+)/\d+ \[", self.text)
        return int(shown[-1]) if shown else self.start


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Returns once `condition()` is true; raises after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} is not true after {seconds} s")
        time.sleep(0.001)


# ---- what must be whole, and what must be equal ----


def damaged(folder: Path) -> list[str]:
    """Artefacts that have their name and are not whole: checkpoints, the model, records, lines that have ended."""
    wrong = []
    for path in folder.glob("checkpoints/step-????????"):
        digests = json.loads((path / "digests.json").read_text())
        for name, digest in digests.items():
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != digest:
                wrong.append(f"{path}/{name}")
    readers: dict[str, Callable[[Path], object]] = {
        "*.json": lambda file: json.loads(file.read_text()),
        "metrics.jsonl": lambda file: [json.loads(line) for line in file.read_text().split("\n")[:-1]],
        "config.yaml": lambda file: file.read_text().index("output_dir:"),
        "model/**/*.safetensors": load_file,
        "model/**/*.json": lambda file: json.loads(file.read_text()),
    }
    if (folder / "metrics.json").exists():
        readers["figures/*.png"] = lambda file: Image.open(file).load()
        wrong += [str(path) for path in folder.rglob(".*.partial")]
    for pattern, read in readers.items():
        for file in folder.glob(pattern):
            try:
                read(file)
            except Exception as error:
                wrong.append(f"{file}: {error}")
    return wrong


def lines(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without its clock."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "train/images_per_second"} for line in read]


def differences(found: Path, expected: Path) -> list[str]:
    """In what a finished run is not the undisturbed one, to the last bit."""
    different = []
    for name in ("metrics.json", "predictions.parquet", "model/model.safetensors", "model/encoder/model.safetensors"):
        one, other = (path / name for path in (found, expected))
        if one.exists() != other.exists() or (one.exists() and one.read_bytes() != other.read_bytes()):
            different.append(name)
    if lines(found) != lines(expected):
        different.append("metrics.jsonl")
    one, other = (max(path.glob("checkpoints/step-????????")) for path in (found, expected))
    for name in ("model.safetensors", "train_state.json"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            different.append(f"{one.name}/{name}")
    moments, expected_moments = (
        torch.load(path / "optimizer.bin", weights_only=True)["state"] for path in (one, other)
    )
    for number, values in expected_moments.items():
        if not all(torch.equal(moments[number][key], value) for key, value in values.items()):
            different.append(f"{one.name}/optimizer.bin")
    return different


# ---- the faults ----


class Chaos:
    """The undisturbed runs, and the faults that are done to others.

    Args:
        folder: for all runs.
        seed: of the random moments.
        stages: which of the two scripts.
    """

    def __init__(self, folder: Path, seed: int, stages: tuple[str, ...]) -> None:
        self.folder = folder
        self.stages = stages
        self.random = random.Random(seed)
        self.numbers = iter(range(10_000))
        for stage in self.stages:
            life = Life(stage, self.reference(stage))
            assert life.wait() == 0, life.text

    def reference(self, stage: str) -> Path:
        """The undisturbed run."""
        return self.folder / f"{stage}-undisturbed"

    def new(self, stage: str) -> Path:
        """A new run folder."""
        return self.folder / f"{stage}-{next(self.numbers):04d}"

    def finish(self, row: Row, stage: str, folder: Path, from_step: int, *, is_whole: bool = True) -> Life:
        """Goes on with a run to its end, and looks whether it is the undisturbed one.

        Args:
            row: gets what came of it.
            from_step: the last step that was made.
            is_whole: False where something was damaged on purpose.
        """
        row.damaged += damaged(folder) if is_whole else []
        life = Life(stage, folder)
        code = life.wait()
        row.steps_lost.append(max(0, from_step - life.start))
        wrong = [f"exit code {code}: {life.text[-500:]}"] if code else differences(folder, self.reference(stage))
        row.went_on += not wrong
        row.note += f" {folder.name}: {wrong}" if wrong else ""
        row.damaged += damaged(folder)
        shutil.rmtree(folder)
        return life

    def killed(self, stage: str, folder: Path) -> int:
        """A run that was killed soon after its second save; the last step that it has shown."""
        life = Life(stage, folder)
        wait_until(lambda: len(list(folder.glob("checkpoints/step-*"))) == 2)
        time.sleep(self.random.uniform(0, 0.1))
        life.send(signal.SIGKILL)
        life.wait()
        return life.step

    def kills(self, count: int, *, while_saving: bool) -> Row:
        """SIGKILL at random moments of runs, several times in most of them."""
        row = Row("SIGKILL while a checkpoint is written" if while_saving else "SIGKILL at a random moment")
        stages = itertools.cycle(self.stages)
        while row.tried < count:
            stage = next(stages)
            folder, runs_killed, step = self.new(stage), 0, 0
            while row.tried < count and runs_killed < 4:
                life = Life(stage, folder)
                if while_saving:
                    moment = self.random.randint(1, 4)  # of the saves from here on
                    if not self._wait_for_save(life, folder, moment):
                        break
                    time.sleep(self.random.uniform(0, 0.01))
                elif not self._wait_for_moment(life):
                    break
                life.send(signal.SIGKILL)
                life.wait()
                if runs_killed and "from step" in life.text:
                    row.steps_lost.append(max(0, step - life.start))
                row.tried, runs_killed, step = row.tried + 1, runs_killed + 1, max(step, life.step)
                row.damaged += damaged(folder)
            went_on = row.went_on
            self.finish(row, stage, folder, step)
            row.went_on = went_on + runs_killed * (row.went_on - went_on)
        return row

    def _wait_for_moment(self, life: Life) -> bool:
        """Waits for a moment of the start, of the next 25 steps or of what follows the last one; False if it ends."""
        seconds = self.random.uniform(0, 1)
        if self.random.random() < 0.8:
            steps = self.random.randint(0, 25)
            seconds = self.random.uniform(0, 0.2)
            wait_until(lambda: not life.running() or (life.step and life.step >= min(life.start + steps, life.total)))
        end = time.monotonic() + seconds
        wait_until(lambda: not life.running() or time.monotonic() > end)
        return life.running()

    def _wait_for_save(self, life: Life, folder: Path, count: int) -> bool:
        """Waits for the count-th save to begin; False where the run ends before."""
        seen: set[str] = set()
        while life.running():
            seen |= {path.name for path in folder.glob("checkpoints/.step-*.partial")}
            if len(seen) == count:
                return True
        return False

    def told(self, number: int) -> Row:
        """SIGTERM or Ctrl-C: it saves, says how to go on, and loses nothing."""
        row = Row({signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C", signal.SIGHUP: "SIGHUP"}[number])
        for stage in self.stages:
            folder = self.new(stage)
            life = Life(stage, folder)
            wait_until(lambda folder=folder: (folder / "checkpoints").exists())
            time.sleep(self.random.uniform(0, 0.3))
            life.send(number)
            code = life.wait()
            assert code == 128 + number and "; to resume, type: python scripts/" in life.text, (code, life.text)
            saved = int(re.search(r"saved as \S+/step-(\d+);", life.text)[1])
            row.tried += 1
            self.finish(row, stage, folder, saved)
        return row

    def torn(self) -> Row:
        """The newest checkpoint is not what was written."""
        row = Row("torn or tampered checkpoint")

        def flip(file: Path) -> None:
            content = bytearray(file.read_bytes())
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            file.write_bytes(content)

        faults: list[Callable[[Path], object]] = [flip, lambda file: os.truncate(file, 100), Path.unlink]
        for stage in self.stages:
            for fault in faults:
                folder = self.new(stage)
                step = self.killed(stage, folder)
                newest = max(folder.glob("checkpoints/step-????????"))
                file = self.random.choice(sorted(newest.iterdir()))
                fault(file)
                row.tried += 1
                life = self.finish(row, stage, folder, step, is_whole=False)
                if "is damaged (" not in life.text or newest.name not in life.text:
                    row.note += f" {file} was not missed"
        return row

    def records(self) -> Row:
        """The small files of a run are torn, as after a power cut."""
        row = Row("torn metrics.jsonl, torn run.json, a leftover of each kind")
        for stage in self.stages:
            folder = self.new(stage)
            step = self.killed(stage, folder)
            with (folder / "metrics.jsonl").open("a") as file:
                file.write('{"step": 20, "epo')
            os.truncate(folder / "run.json", 50)
            for leftover in (".metrics.jsonl.partial", ".config.yaml.partial"):
                (folder / leftover).write_text("half")
            for leftover in (".model.partial", "checkpoints/.step-00000009.partial"):
                (folder / leftover).mkdir(exist_ok=True)
            row.tried += 1
            self.finish(row, stage, folder, step, is_whole=False)
        return row

    def disk_full(self) -> Row:
        """Another program fills a small disk at a random moment; later there is room again."""
        row = Row("disk full")
        for stage in (*self.stages, *self.stages):
            with small_disk(self.folder / f"disk-{next(self.numbers):04d}") as disk:
                folder = disk / "run"
                life = Life(stage, folder)
                wait_until(lambda folder=folder: len(list(folder.glob("checkpoints/step-*"))) == 2)
                time.sleep(self.random.uniform(0, 0.5))
                with (disk / "filler").open("wb", buffering=0) as filler, until_full():
                    while True:
                        filler.write(bytes(4096))
                code = life.wait()
                (disk / "filler").unlink()
                row.tried += 1
                said = re.search(r"No space left| 0\.0 MiB were free", life.text) and "Traceback" not in life.text
                if code == 0:
                    row.note += " one had ended before"
                elif code != 1 or not said:
                    row.note += f" exit code {code}: {life.text[-800:]}"
                    row.went_on -= 1
                self.finish(row, stage, folder, life.step)
        return row

    def read_only(self) -> Row:
        """The disk takes nothing: refused before anything is loaded."""
        row = Row("read-only output")
        with small_disk(self.folder / "read-only", "ro") as disk:
            for stage in COMMANDS:
                life = Life(stage, disk / "run")
                row.tried += 1
                row.went_on += life.wait() == 2 and "(Read-only file system): choose another --output_dir" in life.text
        row.note = "refused, exit code 2"
        return row

    def two_runs(self) -> Row:
        """A second command on a folder where a run is at work."""
        row = Row("two runs in one folder")
        for stage in self.stages:
            folder = self.new(stage)
            first = Life(stage, folder)
            wait_until(lambda folder=folder: (folder / "checkpoints").exists())
            log = first.log.rename(first.log.with_suffix(".first"))
            second = Life(stage, folder)
            row.tried += 1
            code = second.wait()
            refused = code == 2 and f"is in use by process {first.pid} on" in second.text
            ended = first.wait() == 0
            log.unlink()
            wrong = differences(folder, self.reference(stage))
            row.went_on += refused and ended and not wrong
            row.damaged += damaged(folder)
        row.note = "the second is refused, exit code 2"
        return row

    def not_finite(self) -> Row:
        """A learning rate that no run survives: it stops before the weights are spoilt."""
        row = Row("loss or gradient not finite")
        for stage in self.stages:
            folder = self.new(stage)
            life = Life(stage, folder, "--train.base_lr", "1e30", "--train.warmup_ratio", "0.1")
            code = life.wait()
            row.tried += 1
            row.went_on += code == 1 and "is not finite; the last good checkpoint is" in life.text
            row.damaged += damaged(folder)
            for path in folder.glob("checkpoints/step-*/model.safetensors"):
                row.damaged += [str(path)] if not all(v.isfinite().all() for v in load_file(path).values()) else []
        row.note = "stopped, exit code 1"
        return row

    def rank_dies(self, victims: tuple[int, ...] = (1, 0)) -> Row:
        """One of two processes is killed; the launcher ends, and one process goes on with what two have begun."""
        row = Row("one of two processes dies")
        for victim in victims:
            folder = self.new("pretrain")
            launcher = launch("pretrain", folder, processes=2)
            wait_until(lambda folder=folder: len(list(folder.glob("checkpoints/step-*"))) == 2, 300)
            os.kill(process_of_rank(launcher.pid, victim), signal.SIGKILL)
            died = time.monotonic()
            output, _ = launcher.communicate(timeout=60)
            row.note += f"rank {victim}: over in {time.monotonic() - died:.0f} s; "
            named = re.search(rf"rank +: {victim} .*\n +exitcode +: -9 .*SIGKILL", output)
            told = victim == 0 or "lost contact with its peers (" in output
            row.tried += 1
            row.damaged += damaged(folder)
            life = Life("pretrain", folder)
            code = life.wait()
            found, expected = (lines(path) for path in (folder, self.reference("pretrain")))
            keys = ("step", "epoch", "train/loss", "eval/loss")
            close = len(found) == len(expected) and all(
                abs(one.get(key, 0) - other.get(key, 0)) < 1e-5
                for one, other in zip(found, expected, strict=True)
                for key in keys
            )
            row.went_on += bool(named) and told and code == 0 and close
            row.damaged += damaged(folder)
        return row

    def launched(self) -> Row:
        """Ctrl-C in a terminal, which goes to `accelerate launch` and its children, and SIGTERM to all of them."""
        row = Row("Ctrl-C and SIGTERM under accelerate launch, two processes")
        for number in (signal.SIGINT, signal.SIGTERM):
            folder = self.new("pretrain")
            launcher = launch("pretrain", folder, processes=2)
            wait_until(lambda folder=folder: len(list(folder.glob("checkpoints/step-*"))) == 2, 300)
            os.killpg(launcher.pid, number)
            output, _ = launcher.communicate(timeout=60)
            saved = re.search(r"saved as \S+/step-(\d+); to resume, type: .* python -m accelerate", output)
            row.tried += 1
            row.note += "" if saved else f" {output[-2000:]}"
            row.damaged += damaged(folder)
            life = Life("pretrain", folder)
            code = life.wait()
            row.went_on += bool(saved) and launcher.returncode != 0 and code == 0 and life.start == int(saved[1])
            row.steps_lost.append(int(saved[1]) - life.start if saved else 0)
            row.damaged += damaged(folder)
        return row


@contextmanager
def until_full() -> Iterator[None]:
    """Ends a block where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@contextmanager
def small_disk(folder: Path, options: str = "rw") -> Iterator[Path]:
    """A file system of 8 MiB in memory; only root may make one."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=8m,{options}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount() -> bool:
    """Whether this process may make a small disk."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


def launch(stage: str, folder: Path, processes: int) -> subprocess.Popen[str]:
    """`accelerate launch` on several processes of a CPU, in a process group of its own."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--main_process_port", str(free_port()), *COMMANDS[stage].split(), "--output_dir", str(folder)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def process_of_rank(launcher: int, rank: int) -> int:
    """The process id of a rank that this launcher has started."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={rank}" in (path / "environ").read_text().split("\0"):
                return int(path.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise LookupError(f"{launcher} has no process of rank {rank}")


def run(folder: Path, kills: int, saves: int, *, stages: tuple[str, ...], launcher: bool, seed: int = 0) -> list[Row]:
    """Does all faults; a row for each kind.

    Args:
        folder: an empty folder for the runs.
        kills: SIGKILLs at random moments.
        saves: SIGKILLs while a checkpoint is written.
        stages: which of `pretrain` and `finetune`.
        launcher: also those that need `accelerate launch` and two processes, which take a minute.
        seed: of the random moments.
    """
    for library in LIBRARIES:  # so that no child needs to
        importlib.import_module(library)
    chaos = Chaos(folder, seed, stages)
    faults: list[Callable[[], Row]] = [
        lambda: chaos.kills(kills, while_saving=False),
        lambda: chaos.kills(saves, while_saving=True),
        lambda: chaos.told(signal.SIGTERM),
        lambda: chaos.told(signal.SIGINT),
        lambda: chaos.told(signal.SIGHUP),
        chaos.torn,
        chaos.records,
        chaos.two_runs,
        chaos.not_finite,
    ]
    faults += [chaos.disk_full, chaos.read_only] if may_mount() else []
    faults += [chaos.launched, chaos.rank_dies] if launcher else []
    rows = []
    for fault in faults:
        started = time.monotonic()
        rows.append(fault())
        print(f"{time.monotonic() - started:6.1f} s  {rows[-1]}", file=sys.stderr, flush=True)
    if not may_mount():
        rows += [Row("disk full", note="not tried: needs root"), Row("read-only output", note="not tried: needs root")]
    return rows


def table(rows: list[Row]) -> str:
    """The rows in Markdown, with their sums."""
    head = ("fault", "tried", "survived", "steps lost (mean, most)", "artefacts damaged", "")
    total = Row("all", sum(row.tried for row in rows), sum(row.went_on for row in rows))
    total.damaged = [name for row in rows for name in row.damaged]
    cells = [head, ("---",) * len(head), *(row.cells() for row in (*rows, total))]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def main() -> None:
    """The command of the module's docstring."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="SIGKILLs, a third of them while a checkpoint is written")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mae_hf-chaos-") as folder:
        saves = arguments.kills // 3
        rows = run(
            Path(folder), arguments.kills - saves, saves, stages=tuple(COMMANDS), launcher=True, seed=arguments.seed
        )
    text = table(rows)
    print(f"{time.monotonic() - started:.0f} s\n\n{text}")
    if arguments.output:
        arguments.output.write_text(text)
    sys.exit(any(row.damaged or row.went_on < row.tried for row in rows))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
