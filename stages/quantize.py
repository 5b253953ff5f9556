"""Store the frozen base at fewer bits, and measure the quantization error.

Reads `artifacts/base` (and the calibration rows, where the scheme needs them); writes
`artifacts/quantized`: a checkpoint that later stages load without quantizing again. With
`quantize=none` that folder only records the scheme, and later stages load the base.
"""

from contextlib import ExitStack

from loradag.config.quantize import Quantize
from loradag.runtime import Paths, peak_rss_bytes, replacing, run_stage, write_json
from loradag.runtime.report_keys import QuantizeReport


def quantize(paths: Paths, quantize: Quantize) -> QuantizeReport:
    from loradag.data.calibration_rows import read_calibration_rows
    from loradag.models.pinning import weights_folder
    from loradag.quantization.calibration import calibrate, layer_inputs
    from loradag.quantization.conversion import measure_unquantized, quantize_checkpoint

    base = weights_folder(paths.base)
    activations = inputs = calibrated = None
    with replacing(paths.quantized) as folder, ExitStack() as stack:
        folder.mkdir()
        if quantize.scheme == "static_w8a8" or quantize.is_rounded_by_inputs:
            rows = read_calibration_rows(
                paths.prepared / "calibration.parquet",
                quantize.calibration_rows or 0,
                f"quantize.scheme = {quantize.scheme}",
            )
            if quantize.is_rounded_by_inputs:
                inputs = stack.enter_context(layer_inputs(base, folder, rows, quantize))
            else:
                activations = calibrate(base, folder, rows, quantize)
            calibrated = len(rows)
        if quantize.scheme == "none":
            measured = measure_unquantized(base)
        else:
            measured = quantize_checkpoint(base, folder, quantize, activations, inputs)
        write_json(folder / "scheme.json", {"scheme": quantize.scheme})
    return {
        "scheme": quantize.scheme,
        "peak_rss_bytes": peak_rss_bytes(),
        "calibration_rows": calibrated,
        **measured,
    }


if __name__ == "__main__":
    run_stage(quantize)
