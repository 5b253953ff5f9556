"""How a stage is run and observed: its contract, paths, locks, reports. Nothing here computes."""

from loradag.config.problems import LoradagError
from loradag.runtime.atomic import replacing, write_json
from loradag.runtime.locking import exclusive
from loradag.runtime.paths import Paths
from loradag.runtime.process_memory import peak_memory_bytes, peak_rss_bytes
from loradag.runtime.stage import run_stage

__all__ = [
    "LoradagError",
    "Paths",
    "exclusive",
    "peak_memory_bytes",
    "peak_rss_bytes",
    "replacing",
    "run_stage",
    "write_json",
]
