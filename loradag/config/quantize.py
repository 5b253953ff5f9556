"""The section `quantize`."""

from dataclasses import dataclass

from omegaconf import MISSING

from loradag.config.rules import (
    Rule,
    at_least,
    between,
    one_of,
    rule_field,
)

BNB_SCHEMES = ("nf4", "fp4", "int8")
TORCHAO_SCHEMES = ("symmetric", "asymmetric", "dynamic_w8a8", "static_w8a8")
INPUT_ROUNDINGS = ("awq", "gptq")  # by the layers' inputs on the calibration rows


@dataclass
class Quantize:
    """How the frozen base is stored. Null where a scheme has no such option."""

    scheme: str = one_of("none", *BNB_SCHEMES, *TORCHAO_SCHEMES)
    double_quant: bool | None = MISSING  # nf4, fp4: quantize the block scales too
    block_size: int | None = rule_field(
        Rule("must be 32, 64, 128, 256, 512, 1024, 2048 or 4096",
             lambda v: v in (32, 64, 128, 256, 512, 1024, 2048, 4096), "Use 64, QLoRA's choice.")
    )  # fmt: skip
    threshold: float | None = at_least(0)  # int8: activations beyond it stay in 16 bits
    bits: int | None = between(2, 8)
    granularity: str | None = one_of("tensor", "channel", "group")
    group_size: int | None = at_least(2)
    symmetric_range: str | None = one_of(
        "absmax", "minmax"
    )  # minmax: (max − min) / (2^b − 1), which clips
    rounding: str | None = one_of("nearest", *INPUT_ROUNDINGS)  # symmetric, asymmetric
    observer: str | None = one_of("minmax", "percentile")  # static_w8a8
    percentile: float | None = between(50, 100)
    activation_granularity: str | None = one_of("tensor", "channel")
    activation_zero_point: bool | None = MISSING  # static_w8a8: asymmetric activations
    # static_w8a8, awq, gptq: at most; the report has the actual number
    calibration_rows: int | None = at_least(1)
    skip_modules: list[str] = MISSING  # not quantized

    @property
    def is_rounded_by_inputs(self) -> bool:
        """Whether weights are rounded by the layers' inputs on the calibration rows."""
        return self.rounding in INPUT_ROUNDINGS
