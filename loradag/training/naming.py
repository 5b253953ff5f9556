"""What a training method is called in reports and on pages."""

from loradag.config.adapter import Adapter
from loradag.config.train import Train


def method_name(adapter: Adapter, train: Train) -> str:
    """What the two make together: `lora`, `qat`, `qat_lora`; `sft` where neither adds to it."""
    names = [name for name in (train.method, adapter.variant) if name not in ("sft", "none")]
    return "_".join(names) or "sft"
