"""Memory: what this process may still take, and the most that it took, here and on its device."""

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def peak_rss_bytes() -> int:
    """The most memory this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage counts what the parent held before this one's exec
        return _kilobytes(status, "VmHWM") * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory_bytes() -> int:
    """The most memory held on the device that computes: the GPU's, or this process's."""
    import torch

    on_device = int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0
    return on_device or peak_rss_bytes()


def available_bytes() -> int:
    """What this process may still take of the machine's memory: the rest of its container's limit.

    Pages of files count as free, mapped ones as well: the system may drop them at any time.
    """
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([_kilobytes(meminfo, "MemAvailable") * 1024, *_left_in_cgroups()])


def _kilobytes(file: Path, field: str) -> int:
    fields = dict(line.split(":", 1) for line in file.read_text().splitlines())
    return int(fields[field].split()[0])


def _left_in_cgroups() -> Iterator[int]:
    """What is left of the limit of each control group that this process is in, of either version.

    [https://docs.kernel.org/admin-guide/cgroup-v2.html,
    https://docs.kernel.org/admin-guide/cgroup-v1/memory.html]
    """
    for line in MEMBERSHIP.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            root, prefix = CGROUPS / "memory", "total_"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        elif not controllers:
            root, prefix, limit, usage = CGROUPS, "", "memory.max", "memory.current"
        else:
            continue
        group = root / path.lstrip("/")
        # A container may see its own group as the root, and yet read its path on the host.
        for place in (group, *group.parents):
            if not place.is_relative_to(root):
                break
            try:
                most = (place / limit).read_text().strip()
                used = int((place / usage).read_text())
                stat = (place / "memory.stat").read_text().splitlines()
            except OSError:
                continue
            if most != "max":
                sizes = {name: int(size) for name, size in (entry.split() for entry in stat)}
                files = sizes[f"{prefix}inactive_file"] + sizes[f"{prefix}active_file"]
                yield int(most) - used + files
