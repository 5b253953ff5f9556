"""Peak memory of this process and of the device that it computes on."""

import resource
import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """The most memory this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage counts what the parent held before this one's exec
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory_bytes() -> int:
    """The most memory held on the device that computes: the GPU's, or this process's."""
    import torch

    on_device = int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0
    return on_device or peak_rss_bytes()
