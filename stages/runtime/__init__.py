"""What every stage shares: its contract, its paths, atomic writes, the device."""

from conf.schema import LoradagError
from stages.runtime.atomic import replacing, write_json
from stages.runtime.device import compute_dtype, device, peak_memory_bytes, peak_rss_bytes
from stages.runtime.paths import Paths
from stages.runtime.stage import run_stage

__all__ = [
    "LoradagError",
    "Paths",
    "compute_dtype",
    "device",
    "peak_memory_bytes",
    "peak_rss_bytes",
    "replacing",
    "run_stage",
    "write_json",
]
