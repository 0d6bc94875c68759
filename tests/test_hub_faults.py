"""A Hub that fails at any request of an upload or a download: one line says what to do, and the same call finishes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
TINY = """--model.hidden_size 24 --model.num_hidden_layers 1 --model.num_attention_heads 2 --model.intermediate_size 24
    --model.decoder_num_hidden_layers 1 --train.epochs 1 --train.warmup_ratio 0 --augment.crop_scale [1,1]"""
REMEDIES = {  # status -> a part of the message; 0 is a connection that is closed without an answer
    401: "hf auth login",
    403: "hf auth login",
    404: "check the name",
    429: "wait some minutes",
    503: "the Hub failed: wait a little",
    0: "check the network and HF_ENDPOINT",
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `observe` saw in a process that knows only this Hub."""
    folder = tmp_path_factory.mktemp("faults")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent))), "HF_HOME": str(folder / "home")}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("action", ["upload", "download"])
@pytest.mark.parametrize("status", REMEDIES)
def test_a_failure_at_any_request_is_one_line_with_the_remedy_and_the_same_call_finishes(seen, action, status):
    failures = seen[action][str(status)]
    assert len(failures) >= 3, "every request was tried"
    for message, is_whole in failures:
        assert is_whole, message
        assert "\n" not in message and len(message) < 700
        assert REMEDIES[status] in message
        assert ("finished, and its model is in" if action == "upload" else "cannot be read from the Hub") in message


def test_a_run_is_finished_before_its_upload_fails_and_the_same_command_uploads(seen):
    message, is_finished, card, logs = seen["run"]
    assert "cannot upload to me/run (503 planted)" in message and is_finished
    assert 'from_pretrained("me/run")' in card and "path/to/this/folder" not in card
    assert logs == ["runs/run/events.out.tfevents.0"], "the Hub shows training metrics of TensorBoard's files there"
    assert "(curves.png)" in card and "precision no." in card


def test_a_finished_run_is_uploaded_with_the_licence_and_without_the_pictures_that_are_asked_for(seen):
    card, files = seen["private"]
    assert "license: mit" in card and "![" not in card and "## Recipe" in card
    assert not [name for name in files if name.endswith(".png") or ".tfevents." in name]


def test_a_model_behind_terms_is_named_with_the_page_to_accept_them(seen):
    assert "403 planted): accept its terms at http://127.0.0.1" in seen["gated"]
    assert "/me/model, and log in (`hf auth login`" in seen["gated"]


def test_a_run_reports_within_fifteen_seconds_that_the_hub_does_not_answer(seen):
    assert "check the network and HF_ENDPOINT" in seen["silent"][0] and seen["silent"][1] < 15


def observe(folder: Path) -> dict[str, Any]:
    """Upload and download a folder while the Hub fails from request 1 on, from request 2 on, and so on."""
    import shutil
    import socket
    import time

    from hub_server import WRITE_TOKEN, Hub

    hub = Hub()
    os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": WRITE_TOKEN}
    from huggingface_hub import constants

    from mae_hf.__main__ import run_command
    from mae_hf.config.runs import HubConfig
    from mae_hf.errors import ConfigError, RunError
    from mae_hf.hub import prepare_upload, upload
    from mae_hf.models.io import SavedModel

    time.sleep = lambda seconds: None  # huggingface_hub waits between its retries
    model = folder / "model"
    for part in (model, model / "autoencoder"):
        part.mkdir()
        (part / "config.json").write_text("{}")
        (part / "model.safetensors").write_bytes(os.urandom(100))
    (model / "README.md").write_text("# A card")

    def send(repo: str) -> bool:
        """Upload the folder, and return whether all of it has arrived."""
        upload(model, HubConfig(push=True, repo_id=repo))
        return {"README.md", "autoencoder/model.safetensors"} <= hub.find(f"models/{repo}", "main")[1].keys()

    def fetch(repo: str) -> bool:
        return {path.name for path in SavedModel(repo).folder.iterdir()} == {"config.json", "model.safetensors"}

    def break_every_request(action: Any, status: int) -> list[tuple[str, bool]]:
        """Return the message of each failure, and whether the same call finished afterwards."""
        failures: list[tuple[str, bool]] = []
        for first in range(1, 30):
            repo = f"me/model-{status}-{first}" if action is send else "me/model"
            shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
            before = len(hub.requests)
            hub.fault = lambda: status if len(hub.requests) - before >= first else None  # noqa: B023
            try:
                action(repo)
            except (ConfigError, RunError) as error:
                hub.fault = lambda: None
                failures.append((str(error), action(repo)))
            else:
                break  # the action makes fewer requests
        hub.fault = lambda: None
        return failures

    with hub:
        send("me/model")
        found: dict[str, Any] = {
            name: {status: break_every_request(action, status) for status in REMEDIES}
            for name, action in (("upload", send), ("download", fetch))
        }
        words = f"--config configs/pretrain/digits.yaml {TINY} --train.trackers [tensorboard] --output_dir {folder}/run"
        words += " --hub.push --hub.repo_id me/run"
        asked = len(hub.requests)
        hub.fault = lambda: 503 if len(hub.requests) > asked + 2 else None  # the run asks twice at its start
        with pytest.raises(RunError) as failed:
            run_command("pretrain", words.split(), "pretrain")
        is_finished = (folder / "run" / "metrics.json").is_file()
        hub.fault = lambda: None
        run_command("pretrain", words.split(), "pretrain")
        files = hub.find("models/me/run", "main")[1]
        logs = [name for name in files if name.startswith("runs/")]
        found["run"] = [str(failed.value), is_finished, files["README.md"].decode(), logs]
        words = words.replace("me/run", "me/private") + " --hub.pictures false --hub.license mit"
        run_command("pretrain", words.split(), "pretrain")
        files = hub.find("models/me/private", "main")[1]
        found["private"] = [files["README.md"].decode(), list(files)]

        shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
        hub.fault = lambda: 403
        with pytest.raises(ConfigError) as caught:
            _ = SavedModel("me/model").folder
        found["gated"] = str(caught.value)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts connections and never answers
        constants.ENDPOINT = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(ConfigError) as caught:
            prepare_upload(HubConfig(push=True, repo_id="me/new"))
        found["silent"] = [str(caught.value), time.monotonic() - started]
    return found


if __name__ == "__main__":
    print(json.dumps(observe(Path(sys.argv[1]))))
