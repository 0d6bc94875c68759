"""What both training recipes do before their first and after their last step."""

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from mae_hf import hub
from mae_hf.config import parse
from mae_hf.config.runs import RunConfig
from mae_hf.config.train import Plan
from mae_hf.errors import require
from mae_hf.files import write_text
from mae_hf.models.origin import find_start, keep_start
from mae_hf.training.checkpoint import Checkpoints
from mae_hf.training.distributed import check_same, check_shared, start_accelerator
from mae_hf.training.loop import Training
from mae_hf.training.memory import choose_micro_batch
from mae_hf.training.minutes import steps_that_fit
from mae_hf.training.provenance import RunRecord
from mae_hf.training.run_folder import RunLog, inspect_run, lock_folder, read_record


@dataclass
class OpenRun:
    """A run whose processes agree. Before it trains, its folder is locked against other runs."""

    config: RunConfig
    accelerator: Accelerator
    folder: Path
    checkpoints: Checkpoints
    start: Any = None  # `config.model`, with the run's own copy of the checkpoint as `init` where there is one
    lock: IO[str] | None = None  # until it is closed
    record: RunRecord = field(default_factory=RunRecord)  # run.json of an earlier start
    log: RunLog | None = None  # once it is started
    memory: str = ""  # what the run needs and what is free, in words

    def plan(self, config: RunConfig, num_images: int) -> Plan:
        """Return the run in optimizer steps, with the micro-batches that fit into memory; ConfigError if none fits."""
        size, self.memory = choose_micro_batch(config, self.accelerator, self.record.micro_batch_size)
        plan = config.train.plan(num_images, self.accelerator.num_processes, size)
        steps = self.record.total_steps if config.train.minutes else None
        return replace(plan, total_steps=steps or plan.total_steps)

    def fit_minutes(self, training: Training, plan: Plan, step: int) -> Plan:
        """Return the plan with the steps that fit into `train.minutes`; ConfigError if only an earlier start knew."""
        if self.config.train.minutes is None or self.record.total_steps is not None:
            return plan
        lost = f"{self.folder / 'run.json'} has lost its total_steps, which train.minutes has set"
        require(step == 0, f"{lost}: restore the file, or choose another --output_dir")
        if self.accelerator.is_main_process:  # config.yaml marks the folder as this run's: evaluations write into it
            write_text(self.folder / "config.yaml", parse.to_yaml(self.config))
        plan = replace(plan, total_steps=steps_that_fit(training))
        if self.accelerator.is_main_process:
            shutil.rmtree(self.folder / "figures", ignore_errors=True)  # of step 0
        return plan

    def start_log(
        self, step: int, plan: Plan, model: PreTrainedModel, facts: Mapping[str, Any], lines: Mapping[str, str]
    ) -> RunLog:
        """Write and print what the run starts with, after `step` optimizer steps. The model is not wrapped.

        `facts` are for run.json. `lines` are printed by their headings, besides folder, model size, device and plan.
        """
        accelerator = self.accelerator
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        sizes = {"total_steps": plan.total_steps, "micro_batch_size": plan.micro_batch_size}
        facts = {**facts, "init": self.config.model.init, "num_parameters": num_parameters, **sizes}
        self.log = RunLog(accelerator, self.config, step, facts)
        if accelerator.is_main_process:
            keep_start(self.start, self.folder)
        compiled = ", compiled layers" if facts["is_compiled"] else ""
        table = {"run": f"{self.folder}, from step {step}", **lines}
        table["model"] = f"{num_parameters / 1e6:.1f} M parameters, {lines['model']}"
        table["device"] = f"{accelerator.device.type}, precision {accelerator.mixed_precision}{compiled}"
        table["memory"] = self.memory
        accelerator.print(*(f"{heading:15} {text}" for heading, text in table.items()), plan.describe(), sep="\n")
        return self.log

    def end(self) -> None:
        """Upload `model/` of the finished run if the config says so, and free the folder; RunError if that fails."""
        with self.lock or contextlib.nullcontext():
            if self.config.hub.push and self.accelerator.is_main_process:
                print(f"uploaded to {hub.upload(self.folder / 'model', self.config.hub)}")


def open_run(config: RunConfig) -> OpenRun | None:
    """Start the processes of a run and lock its folder; None if the run is finished, which is printed.

    Raises ConfigError if the processes were started in a wrong way or with different settings, if the folder is in use,
    cannot be written to, or holds something else, and if the model cannot be uploaded.
    """
    folder = Path(config.output_dir)
    accelerator = start_accelerator(
        timeout_minutes=config.train.timeout_minutes,
        log_with=list(config.train.trackers) or None,
        project_dir=folder / "trackers",
    )
    check_same(accelerator, parse.flatten(config), "type the same command for all of them")
    check_shared(accelerator, folder)
    checkpoints = Checkpoints(accelerator, folder / "checkpoints", config.train.keep_checkpoints)
    run = OpenRun(config, accelerator, folder, checkpoints)
    if inspect_run(config) == "finished":
        accelerator.print(f"{folder} is finished: see {folder / 'metrics.json'}")
        run.end()
        return None
    run.lock = lock_folder(accelerator, folder)
    run.start = find_start(config.model, folder)
    run.record = broadcast_object_list([read_record(folder)])[0]
    if config.hub.push and accelerator.is_main_process:
        hub.prepare_upload(config.hub)  # a wrong token is reported now, not after the training
    return run
