"""The number of CPU cores that this process may use: for decoding threads and for torch."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path


def num_cores(root: Path = Path("/")) -> int:
    """Return the number of usable cores: the CPU affinity, or less if a container's CPU quota (cgroup) says so.

    Docker's `--cpus`, Kubernetes' CPU limits and systemd's `CPUQuota` set such quotas. The affinity does not show them.
    They are read below `root`.
    """
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for group, is_v1 in control_groups("cpu", root):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if is_v1 else ("cpu.max",)
        with contextlib.suppress(OSError, ValueError):  # the file is missing, or says "max"
            quota, period = map(int, " ".join((group / name).read_text() for name in names).split())
            limits += [math.ceil(quota / period)] if quota > 0 else []  # -1 is no limit
    return max(1, min(limits))


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, bool]]:
    """Yield the folder of this process's control group and of every group around it, and whether it is of cgroup v1.

    `controller` is `cpu` or `memory`.
    """
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return  # not Linux
    for _, controllers, path in groups:
        if not controllers or controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / (controller if controllers else "")
            # inside a container the path may be the host's, while the mount shows the container's own group at its root
            own = mount / path.lstrip("/")
            yield from ((group, bool(controllers)) for group in (own, *own.parents) if group.is_relative_to(mount))
