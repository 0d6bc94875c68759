"""Two hosts have the losses of one. After a cut cable both stop with a message, and the run resumes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_hosts.py")


def reason() -> str:
    """The reason why two hosts cannot be created here, or an empty text."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the program ip (iproute2)"
    made = subprocess.run(["ip", "netns", "add", "mae-hf-try"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", "mae-hf-try"], capture_output=True)
    return "" if made.returncode == 0 else f"no network namespaces here: {made.stderr.strip()}"


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    if why := reason():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("hosts")
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
def test_two_hosts_have_the_losses_of_one(report):
    assert [host["code"] for host in report["two"]] == [0, 0], report["two"]
    assert len(report["losses"]["two"]) == 19
    assert report["losses"]["two"] == pytest.approx(report["losses"]["one"], abs=1e-5)


@pytest.mark.slow
def test_an_output_folder_that_the_hosts_do_not_share_is_refused(report):
    assert all(host["code"] != 0 for host in report["apart"])
    assert "the machines do not share" in report["apart"][0]["errors"][0]


@pytest.mark.slow
def test_a_cut_cable_stops_both_hosts_with_a_message_and_the_run_resumes(report):
    for host in report["cut"]:
        assert host["code"] not in (0, -9), "ended by itself"
        assert len(host["errors"]) == 1
        assert "lost contact with its peers" in host["errors"][0]
    assert report["went_on"] == [True, True]
    assert report["steps_after"] >= report["steps_before"] + 20
