"""Cause every fault that a run must survive in real runs, and check that they end as if nothing had happened.

    python tests/chaos.py --kills 30 --output table.md

The commands pre-train and fine-tune a very small model on the digits. They run in forks of this process, which has
imported all libraries, so that a start takes seconds; launchers and several processes start as a user starts them. A
resumed run must end with the bytes of the undisturbed one: weights, optimizer, predictions, and metrics.jsonl without
its clock.
"""

import argparse
import errno
import functools
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
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from forks import LIBRARIES, ROOT, become, free_port
from PIL import Image
from safetensors.torch import load_file

SHAPE = "--model.hidden_size 24 --model.num_hidden_layers 1 --model.num_attention_heads 2 --model.intermediate_size 48"
DECODER = "--model.decoder_hidden_size 16 --model.decoder_num_hidden_layers 1 --model.decoder_intermediate_size 32"
# 54 or 57 steps of two micro-batches. They log every 2, save every 6 or 7, and evaluate every 13, 18 or 19 steps
OFTEN = "--train.warmup_ratio 0.25 --train.log_every_steps 2 --train.per_device_batch_size 16"
COMMANDS = {
    "pretrain": f"scripts/pretrain.py --config configs/pretrain/digits.yaml {SHAPE} {DECODER} {OFTEN} --train.epochs 3 "
    "--train.save_every_epochs 0.35 --train.eval_every_epochs 1 --train.figure_every_epochs 2",
    "finetune": f"scripts/finetune.py --config configs/finetune/digits.yaml --model.init scratch {SHAPE} {OFTEN} "
    "--train.batch_size 32 --train.epochs 8 --train.save_every_epochs 0.9 --train.eval_every_epochs 2",
}  # fmt: skip


@dataclass
class Row:
    """The results of one kind of fault.

    Args:
        fault: its name.
        note: remarks, and every problem.
        tried: number of faults.
        survived: faults after which the run ended like the undisturbed one, or was rightly refused.
        steps_lost: for each fault, the steps that had been logged and were repeated.
        damaged: files that have their name but are not whole.
    """

    fault: str
    note: str = ""
    tried: int = 0
    survived: int = 0
    steps_lost: list[int] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def add(self, problems: Sequence[object], times: int = 1) -> None:
        """Count faults; they are survived if there are no problems."""
        self.tried += times
        self.survived += 0 if problems else times
        self.note += f" {problems}" if problems else ""

    def cells(self) -> tuple[str, ...]:
        """Return the row's cells in the table."""
        lost = self.steps_lost
        steps = f"{sum(lost) / len(lost):.1f}, {max(lost)}" if lost else ""
        return self.fault, str(self.tried), str(self.survived), steps, str(len(self.damaged)), self.note


class Life:
    """A command in a fork of this process, from its start to its end.

    Args:
        words: the command.
        log: the file for its output.
        folder: where it runs.
    """

    def __init__(self, words: Sequence[str], log: Path, folder: Path = ROOT) -> None:
        self.log = log
        self.run = folder / words[words.index("--output_dir") + 1]
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            become(words, log, log, dict(os.environ), folder)

    def running(self) -> bool:
        """Return whether it has not ended yet."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def wait(self, number: int | None = None) -> int:
        """Send a signal, if any, and return the exit code."""
        if number is not None:
            os.kill(self.pid, number)
        wait_until(lambda: not self.running(), 300)
        assert self.code is not None
        return self.code

    def _last(self, pattern: str, default: int = 0) -> int:
        found = re.findall(pattern, self.text)
        return int(found[-1]) if found else default

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def start(self) -> int:
        """The step that it resumed from; very large if the run was finished already."""
        return self._last(r"from step (\d+)", 10**9 * ("is finished" in self.text))

    @property
    def total(self) -> int:
        """The steps of the whole run."""
        return self._last(r"total steps +(\d+)", 10**9)

    @property
    def step(self) -> int:
        """The last step that it has logged."""
        logged = self.run / "metrics.jsonl"
        if self.total == 10**9 or not logged.exists():  # a resumed run has not yet removed the steps that it repeats
            return self.start
        return int(max(re.findall(r'"step": (\d+)', logged.read_text()), key=int, default=self.start))


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Return once `condition()` is true; raise `TimeoutError` after that many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} is not true after {seconds} s")
        time.sleep(0.003)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest last."""
    return sorted(folder.glob("checkpoints/step-????????"))


# ---- what must be whole, and what must be equal ----


def damaged(folder: Path) -> list[str]:
    """Return the files that have their name but are not whole."""
    wrong = []
    for path in checkpoints(folder):
        for name, digest in json.loads((path / "digests.json").read_text()).items():
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
    """Return metrics.jsonl without its clock."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("train/images_per_second", "probe/seconds")}
        for line in read
    ]


def differences(found: Path, expected: Path) -> list[str]:
    """Return the files in which a finished run differs from the undisturbed one."""
    last = [checkpoints(path)[-1].relative_to(path) for path in (found, expected)]
    names = ["metrics.json", "predictions.parquet", "model/model.safetensors", "model/autoencoder/model.safetensors"]
    names += [str(last[1] / name) for name in ("model.safetensors", "train_state.json")]
    contents = [
        [(path / name).read_bytes() if (path / name).exists() else b"" for name in names] for path in (found, expected)
    ]
    different = [name for name, one, other in zip(names, *contents, strict=True) if one != other]
    different += ["metrics.jsonl"] if lines(found) != lines(expected) else []
    states = [
        torch.load(path / step / "optimizer.bin", weights_only=True)["state"]
        for path, step in zip((found, expected), last, strict=True)
    ]
    equal = all(
        torch.equal(states[0][number][key], value)
        for number, values in states[1].items()
        for key, value in values.items()
    )
    return different + ([] if equal else ["optimizer.bin"])


# ---- the faults ----


class Chaos:
    """The undisturbed runs, and the faults in other runs.

    Args:
        folder: for all runs.
        seed: of the random moments.
        stages: `pretrain`, `finetune` or both.
        variants: number of signals that stop a run, and of kinds of damage to a checkpoint; at most 3.
    """

    def __init__(self, folder: Path, seed: int, stages: tuple[str, ...], variants: int) -> None:
        self.folder = folder
        self.stages = stages
        self.variants = slice(variants)
        self.random = random.Random(seed)
        self.numbers = itertools.count()
        for stage in stages:
            life = self.start(stage, self.reference(stage))
            assert life.wait() == 0, life.text

    def reference(self, stage: str) -> Path:
        """Return the undisturbed run."""
        return self.folder / f"{stage}-undisturbed"

    def new(self, stage: str) -> Path:
        """Return a new run folder."""
        return self.folder / f"{stage}-{next(self.numbers)}"

    def start(self, stage: str, folder: Path, *flags: str) -> Life:
        """Start a command."""
        words = [*COMMANDS[stage].split(), "--output_dir", str(folder), *flags]
        return Life(words, self.folder / f"{next(self.numbers)}.log")

    def resume(
        self, row: Row, stage: str, folder: Path, step: int, problems: Sequence[object] = (), times: int = 1
    ) -> Life:
        """Resume a run to its end, compare it with the undisturbed one, and remove it.

        Args:
            row: counts the result.
            step: the last step that was made.
            problems: of the fault itself.
            times: number of faults of this run.
        """
        life = self.start(stage, folder)
        code = life.wait()
        row.steps_lost.append(max(0, step - life.start))
        wrong = [f"exit code {code}: {life.text[-500:]}"] if code else differences(folder, self.reference(stage))
        row.damaged += damaged(folder)
        row.add([*problems, *wrong], times)
        shutil.rmtree(folder)
        return life

    def killed(self, stage: str, folder: Path) -> int:
        """Start a run and kill it soon after its second save; return the last step that it logged."""
        life = self.start(stage, folder)
        wait_until(lambda: len(checkpoints(folder)) == 2)
        time.sleep(self.random.uniform(0, 0.1))
        life.wait(signal.SIGKILL)
        return life.step

    def kills(self, count: int, *, while_saving: bool) -> Row:
        """Kill runs at random moments, most of them several times."""
        row = Row("SIGKILL while a checkpoint is written" if while_saving else "SIGKILL at a random moment")
        wait = self._wait_for_save if while_saving else self._wait_for_moment
        stages = itertools.cycle(self.stages)
        while row.tried < count:
            stage = next(stages)
            folder, killed, step = self.new(stage), 0, 0
            while row.tried + killed < count and killed < 4:
                life = self.start(stage, folder)
                if not wait(life, folder):
                    break
                life.wait(signal.SIGKILL)
                if killed and "from step" in life.text:
                    row.steps_lost.append(max(0, step - life.start))
                killed, step = killed + 1, max(step, life.step)
                row.damaged += damaged(folder)
            self.resume(row, stage, folder, step, times=killed)
        return row

    def _wait_for_moment(self, life: Life, folder: Path) -> bool:
        """Wait for a moment of the start, the next 25 steps or the end; return whether the run has not ended."""
        seconds = self.random.uniform(0, 1)
        if self.random.random() < 0.8:
            steps = self.random.randint(0, 25)
            seconds = self.random.uniform(0, 0.2)
            wait_until(lambda: not life.running() or (life.step and life.step >= min(life.start + steps, life.total)))
        end = time.monotonic() + seconds
        wait_until(lambda: not life.running() or time.monotonic() > end)
        return life.running()

    def _wait_for_save(self, life: Life, folder: Path) -> bool:
        """Wait for one of the next four saves; return whether the run has not ended."""
        count, seen = self.random.randint(1, 4), set[str]()
        while life.running():
            seen |= {path.name for path in folder.glob("checkpoints/.step-*.partial")}
            if len(seen) == count:
                time.sleep(self.random.uniform(0, 0.01))
                return True
        return False

    def stopped(self) -> Row:
        """Stop runs by a signal: they save, print the command that resumes, and lose nothing."""
        signals = {"SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP, "Ctrl-C": signal.SIGINT}
        names = list(signals)[self.variants]
        row = Row(", ".join(names))
        for stage, name in itertools.product(self.stages, names):
            number = signals[name]
            folder = self.new(stage)
            life = self.start(stage, folder)
            wait_until(lambda folder=folder: checkpoints(folder))
            time.sleep(self.random.uniform(0, 0.3))
            code = life.wait(number)
            saved = re.search(r"saved as \S+/step-(\d+); to resume, type: python scripts/", life.text)
            problems = [] if code == 128 + number and saved else [f"exit code {code}: {life.text[-500:]}"]
            row.damaged += damaged(folder)
            self.resume(row, stage, folder, int(saved[1]) if saved else 0, problems)
        return row

    def torn_checkpoint(self) -> Row:
        """Damage the newest checkpoint."""
        row = Row("damaged checkpoint")

        def flip(file: Path) -> None:
            content = bytearray(file.read_bytes())
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            file.write_bytes(content)

        damages = (flip, lambda file: os.truncate(file, 100), Path.unlink)[self.variants]
        for stage, damage in itertools.product(self.stages, damages):
            folder = self.new(stage)
            step = self.killed(stage, folder)
            newest = checkpoints(folder)[-1]
            file = self.random.choice(sorted(newest.iterdir()))
            damage(file)
            life = self.resume(row, stage, folder, step)
            if f"{newest.name} is damaged (" not in life.text:
                row.note += f" {file} was not missed"
        return row

    def torn_records(self) -> Row:
        """Tear the small files of a run, as a power cut does."""
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
            self.resume(row, stage, folder, step)
        return row

    def disk_full(self) -> Row:
        """Fill a small disk at a random moment, and make room again later."""
        row = Row("disk full")
        for stage in self.stages:
            with small_disk(self.folder / f"disk-{next(self.numbers)}") as disk:
                folder = disk / "run"
                life = self.start(stage, folder)
                wait_until(lambda folder=folder: len(checkpoints(folder)) == 2)
                time.sleep(self.random.uniform(0, 0.5))
                with (disk / "filler").open("wb", buffering=0) as filler, until_full():
                    while True:
                        filler.write(bytes(4096))
                code = life.wait()
                (disk / "filler").unlink()
                said = re.search(r"No space left|; 0\.0 MiB free", life.text) and "Traceback" not in life.text
                ended = code == 0  # before the disk was full
                problems = [] if ended or (code == 1 and said) else [f"exit code {code}: {life.text[-800:]}"]
                row.damaged += damaged(folder)
                self.resume(row, stage, folder, life.step, problems)
        return row

    def read_only(self) -> Row:
        """Start runs on a disk that cannot be written."""
        row = Row("read-only output", "refused, exit code 2")
        with small_disk(self.folder / "read-only", "ro") as disk:
            for stage in self.stages:
                life = self.start(stage, disk / "run")
                refused = life.wait() == 2 and "(Read-only file system): choose another --output_dir" in life.text
                row.add([] if refused else [life.text[-500:]])
        return row

    def two_runs(self) -> Row:
        """Start a second run in the folder of a running one."""
        row = Row("two runs in one folder", "the second is refused, exit code 2")
        for stage in self.stages:
            folder = self.new(stage)
            first = self.start(stage, folder)
            wait_until(lambda folder=folder: (folder / "checkpoints").exists())
            second = self.start(stage, folder)
            refused = second.wait() == 2 and f"is in use by process {first.pid} on" in second.text
            problems = [] if refused and first.wait() == 0 else [first.text[-500:], second.text[-500:]]
            row.add(problems or differences(folder, self.reference(stage)))
            row.damaged += damaged(folder)
        return row

    @contextmanager
    def two_processes(self, row: Row) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
        """Start a run on two processes, and yield its folder and launcher after two saves."""
        folder = self.new("pretrain")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        command += ["--main_process_port", str(free_port()), *COMMANDS["pretrain"].split(), "--output_dir", str(folder)]
        launcher = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_until(lambda: len(checkpoints(folder)) >= 2, 300)
        yield folder, launcher
        row.damaged += damaged(folder)

    def rank_dies(self) -> Row:
        """Kill one of two processes. The launcher ends, and one process resumes what two have started."""
        row = Row("one of two processes dies")
        for victim in (1, 0):
            with self.two_processes(row) as (folder, launcher):
                os.kill(process_of_rank(launcher.pid, victim), signal.SIGKILL)
                died = time.monotonic()
                output, _ = launcher.communicate(timeout=60)
                row.note += f"rank {victim}: over in {time.monotonic() - died:.0f} s; "
                named = re.search(rf"rank +: {victim} .*\n +exitcode +: -9 .*SIGKILL", output)
                told = victim == 0 or "lost contact with its peers (" in output
                code = self.start("pretrain", folder).wait()
            found, expected = (lines(path) for path in (folder, self.reference("pretrain")))
            close = len(found) == len(expected) and all(
                abs(one.get(key, 0) - other.get(key, 0)) < 1e-5
                for one, other in zip(found, expected, strict=True)
                for key in ("step", "epoch", "train/loss", "eval/loss")
            )
            row.add([] if named and told and code == 0 and close else [output[-2000:], code, close])
        return row

    def launched(self) -> Row:
        """Send Ctrl-C and SIGTERM to `accelerate launch` and its children, as a terminal and a scheduler do."""
        row = Row("Ctrl-C and SIGTERM under accelerate launch, two processes")
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.two_processes(row) as (folder, launcher):
                os.killpg(launcher.pid, number)
                output, _ = launcher.communicate(timeout=60)
                saved = re.search(r"saved as \S+/step-(\d+); to resume, type: .* python -m accelerate", output)
                life = self.start("pretrain", folder)
                code = life.wait()
            lost = int(saved[1]) - life.start if saved else 0
            row.steps_lost.append(lost)
            row.add([] if saved and launcher.returncode and code == 0 and not lost else [output[-2000:], code])
        return row


@contextmanager
def until_full() -> Iterator[None]:
    """End a block when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@contextmanager
def small_disk(folder: Path, options: str = "rw") -> Iterator[Path]:
    """Mount a file system of 8 MiB in memory; this needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=8m,{options}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount() -> bool:
    """Return whether this process may mount a small disk."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


def process_of_rank(launcher: int, rank: int) -> int:
    """Return the process id of a rank of this launcher."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={rank}" in (path / "environ").read_text().split("\0"):
                return int(path.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise LookupError(f"{launcher} has no process of rank {rank}")


def run(
    folder: Path, kills: int, saves: int, *, stages: tuple[str, ...], launcher: bool, variants: int = 3, seed: int = 0
) -> list[Row]:
    """Cause all faults, and return a row for each kind.

    Args:
        folder: an empty folder for the runs.
        kills: number of SIGKILLs at random moments.
        saves: number of SIGKILLs while a checkpoint is written.
        stages: `pretrain`, `finetune` or both.
        launcher: whether to include the faults that need `accelerate launch`, which take a minute.
        variants: number of signals that stop a run, and of kinds of damage to a checkpoint.
        seed: of the random moments.
    """
    for library in LIBRARIES:  # so that no fork needs to
        importlib.import_module(library)
    chaos = Chaos(folder, seed, stages, variants)
    faults: list[Callable[[], Row]] = [
        functools.partial(chaos.kills, kills, while_saving=False),
        functools.partial(chaos.kills, saves, while_saving=True),
        *(chaos.stopped, chaos.torn_checkpoint, chaos.torn_records, chaos.two_runs),
        *([chaos.disk_full, chaos.read_only] if may_mount() else []),
        *([chaos.launched, chaos.rank_dies] if launcher else []),
    ]
    rows = []
    for fault in faults:
        started = time.monotonic()
        rows.append(fault())
        print(f"{time.monotonic() - started:6.1f} s  {rows[-1]}", file=sys.stderr, flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """Return the rows in Markdown, with their sums."""
    head = ("fault", "tried", "survived", "steps lost (mean, most)", "files damaged", "")
    total = Row("all", "" if may_mount() else "full and read-only disks need root", sum(row.tried for row in rows))
    total.survived = sum(row.survived for row in rows)
    total.damaged = [name for row in rows for name in row.damaged]
    cells = [head, ("---",) * len(head), *(row.cells() for row in (*rows, total))]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def main() -> None:
    """Run the command of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="SIGKILLs, a third of them while a checkpoint is written")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--output", type=Path, help="file for the table")
    arguments = parser.parse_args()
    started = time.monotonic()
    saves = arguments.kills // 3
    with tempfile.TemporaryDirectory(prefix="mae_hf-chaos-") as folder:
        stages = tuple(COMMANDS)
        rows = run(Path(folder), arguments.kills - saves, saves, stages=stages, launcher=True, seed=arguments.seed)
    text = table(rows)
    print(f"{time.monotonic() - started:.0f} s\n\n{text}")
    if arguments.output:
        arguments.output.write_text(text)
    sys.exit(any(row.damaged or row.survived < row.tried for row in rows))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
