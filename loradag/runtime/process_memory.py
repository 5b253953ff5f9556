"""Memory of this process, in bytes: what is available to it, and its peak so far."""

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def peak_rss_bytes() -> int:
    """The peak resident set size of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss includes the parent's memory before exec
        return _kilobytes(status, "VmHWM") * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory_bytes() -> int:
    """The peak on the compute device: what torch allocated on the GPU, else this process's RSS."""
    import torch

    on_device = int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0
    return on_device or peak_rss_bytes()


def available_bytes() -> int:
    """The memory that this process can still allocate, within the limit of its container.

    Cached pages of files count as available, mapped ones too: the kernel can drop them.
    """
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([_kilobytes(meminfo, "MemAvailable") * 1024, *_left_in_cgroups()])


def _kilobytes(file: Path, field: str) -> int:
    """The value of a field of a file in `/proc`, in KiB."""
    fields = dict(line.split(":", 1) for line in file.read_text().splitlines())
    return int(fields[field].split()[0])


def _left_in_cgroups() -> Iterator[int]:
    """What is left of the memory limit of each cgroup of this process, of version 1 or 2.

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
        # In a container the root may be its own cgroup, while this path is the one on the host.
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                most = (folder / limit).read_text().strip()
                used = int((folder / usage).read_text())
                stat = (folder / "memory.stat").read_text().splitlines()
            except OSError:
                continue
            if most != "max":
                sizes = {name: int(size) for name, size in (entry.split() for entry in stat)}
                files = sizes[f"{prefix}inactive_file"] + sizes[f"{prefix}active_file"]
                yield int(most) - used + files
