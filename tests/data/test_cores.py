"""The number of cores follows the CPU quota of a container, which the affinity does not show."""

import os
from pathlib import Path

import pytest

from mae_hf.data.cores import num_cores


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A file system with this /proc/self/cgroup and these files in /sys/fs/cgroup."""
    for path, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": files[name] for name in files}}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


V1 = "4:memory:/docker/a\n1:cpu,cpuacct:/docker/a\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 16),
        ("0::/\n", {}, 16),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "400000 100000\n"}, 4),
        (V1, {"cpu/docker/a/cpu.cfs_quota_us": "300000\n", "cpu/docker/a/cpu.cfs_period_us": "100000\n"}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
    ],
)
def test_the_quota_of_a_control_group_limits_the_cores(tmp_path, cgroup, files, expected):
    assert num_cores(machine(tmp_path, cgroup, files)) == expected


def test_without_control_groups_the_affinity_decides(tmp_path):
    assert num_cores(tmp_path) == 16
