"""The number of CPU cores that this process may use: for decoding threads and for torch."""

import contextlib
import math
import os
from pathlib import Path


def num_cores(root: Path = Path("/")) -> int:
    """Return the number of usable cores: the CPU affinity, or less if a container's CPU quota (cgroup) says so.

    Docker's `--cpus`, Kubernetes' CPU limits and systemd's `CPUQuota` set such quotas. The affinity does not show them.

    Args:
        root: the file system to read the quota from; tests give their own.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> list[float]:
    """The CPU quotas, in cores, of this process's control group and of every group around it, cgroup v1 and v2."""
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []  # not Linux
    found = []
    for _, controllers, path in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        # inside a container the path may be the host's, while the mount shows the container's own group at its root
        own = mount / path.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(mount):
                with contextlib.suppress(OSError, ValueError):  # the file is missing, or says "max"
                    quota, period = map(int, " ".join((group / name).read_text() for name in names).split())
                    found += [quota / period] if quota > 0 else []  # -1 is no limit
    return found
