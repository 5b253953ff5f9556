"""Merge the adapter into its base, and verify that the merged model computes what was trained.

Reads `artifacts/base`, `artifacts/quantized`, `artifacts/adapter` and held-out rows of
`data/prepared`; writes `artifacts/merged`, a complete model. Past `merge.tolerance` the stage
fails, states by how much, and writes nothing.
"""

from loradag.config.merge import Merge
from loradag.runtime import Paths, peak_rss_bytes, replacing, run_stage
from loradag.runtime.report_keys import MergeReport


def merge(paths: Paths, merge: Merge) -> MergeReport:
    from loradag.merging.merged_model import write_merged
    from loradag.merging.verification import verify_merge

    with replacing(paths.merged) as folder:
        write_merged(paths, folder, base=merge.base, dtype=merge.dtype)
        peak = peak_rss_bytes()
        parity = verify_merge(paths, folder, merge)
    return {"base": merge.base, "peak_rss_bytes": peak, **parity}


if __name__ == "__main__":
    run_stage(merge)
