import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import SFTConfig, SFTTrainer

from loradag.compat.trl import keep_trained_parameters
from loradag.models.loading import load_model
from loradag.models.tokenizer import load_tokenizer
from loradag.quantization.conversion import quantize_checkpoint
from tests.quantization.options import options


def trained(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("guarded", [True, False])
def test_an_adapter_on_a_quantized_base_stays_as_it_was(tiny_base, tmp_path, guarded):
    """Unguarded, trl rounds it; if it no longer does, the guard can go."""
    quantize_checkpoint(tiny_base, tmp_path, options("nf4"))
    model = get_peft_model(
        load_model(tmp_path, torch.float32), LoraConfig(r=2, target_modules="all-linear")
    )
    before = trained(model)
    restore = keep_trained_parameters(model)
    SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        processing_class=load_tokenizer(tiny_base),
        train_dataset=Dataset.from_dict({"input_ids": [[1, 2, 3]]}),
    )
    if guarded:
        restore()
    after = trained(model)
    kept = all(
        after[name].dtype == before[name].dtype and torch.equal(after[name], before[name])
        for name in before
    )
    assert kept == guarded
