"""What every stage shares: its contract, its paths, atomic writes, the device."""

from loradag.config.schema import LoradagError
from loradag.runtime.atomic import replacing, write_json
from loradag.runtime.device import compute_dtype, device, peak_memory_bytes, peak_rss_bytes
from loradag.runtime.paths import Paths
from loradag.runtime.stage import run_stage

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
