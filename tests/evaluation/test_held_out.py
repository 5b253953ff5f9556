import math
from dataclasses import replace

import pytest
import torch

from loradag.config.problems import LoradagError
from loradag.data.rows import Row, read_rows, write_rows
from loradag.data.tokenization import Rendered, Tokenization
from loradag.evaluation.held_out import HeldOut
from loradag.evaluation.measures import compare, measure
from loradag.models.loading import load_model
from loradag.models.tokenizer import load_tokenizer
from loradag.reporting import results
from loradag.runtime.report_files import check_report, completed, report_type
from tests.conftest import smoke_config

PROMPT, ANSWERS = "Wer? ", "Ich. Größe 東京 zählt hier und überall, mehr als man denkt."


@pytest.mark.parametrize("loss", ["full", "completion", "assistant"])
def test_bits_a_byte_are_of_the_bytes_of_the_scored_tokens(tiny_base, tmp_path, loss) -> None:
    """A row that was cut has the bytes of the tokens that are left, not those of its text."""
    tokenizer = load_tokenizer(tiny_base)
    text = PROMPT + ANSWERS
    spans = [(len(PROMPT), len(PROMPT) + 4), (len(PROMPT) + 5, len(text))]
    made = next(Tokenization(tokenizer).encode([Rendered(text, spans, [])])).cut(20)
    lists = {name: getattr(made, name).tolist() for name in made.__dataclass_fields__}
    row = Row("id", text, PROMPT, **lists)
    evaluate = replace(smoke_config().evaluate, loss=loss)
    write_rows(tmp_path / "eval.parquet", [row])
    rows = read_rows(tmp_path / "eval.parquet")
    found = HeldOut(tokenizer, rows, evaluate).measure(load_model(tiny_base, torch.float32))
    mask = {"full": [1] * 20}.get(loss) or getattr(row, f"{loss}_mask")
    scored = [id for id, counts in list(zip(row.input_ids, mask, strict=True))[1:] if counts]
    spelled = "".join(tokenizer.convert_ids_to_tokens(scored))  # a letter a byte
    assert found["tokens"] == len(scored)
    bits = found["nll"] * found["tokens"] / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits / len(spelled))
    assert len(spelled) < len(text.encode())


def test_where_eos_alone_is_scored_there_are_no_bits_a_byte(tiny_base, tmp_path) -> None:
    """As where every completion is empty."""
    tokenizer = load_tokenizer(tiny_base)
    row = Row("id", "a", "a", [5, tokenizer.eos_token_id], [0, 1], [0, 1], [1, 0])
    write_rows(tmp_path / "eval.parquet", [row])
    evaluate = smoke_config("evaluate.general.source=none", "evaluate.loss=completion").evaluate
    held_out = HeldOut(tokenizer, read_rows(tmp_path / "eval.parquet"), evaluate)
    measured = measure(load_model(tiny_base, torch.float32), held_out, evaluate)
    models = dict.fromkeys(("base", "quantized", "adapter"), measured)
    report = check_report("evaluate", compare(models) | {"samples": [], "dtype": "float32"})
    assert report["adapter"].keys() == {"perplexity", "nll", "tokens"}
    found = completed(report, report_type("evaluate"))
    assert [model.bits_per_byte for model in results.models({"evaluate": found})] == [None] * 2


@pytest.mark.parametrize("factor", [math.nan, 1e9])
def test_a_perplexity_that_is_no_number_is_refused(tiny_base, tmp_path, factor) -> None:
    """As where a model overflows float16."""
    model, tokenizer = load_model(tiny_base, torch.float32), load_tokenizer(tiny_base)
    model.get_output_embeddings().weight.data *= factor
    row = Row("id", "abc", "a", [5, 6, 7], [0, 1, 1], [0, 1, 1], [1, 1, 1])
    write_rows(tmp_path / "eval.parquet", [row])
    evaluate = smoke_config("evaluate.general.source=none").evaluate
    held_out = HeldOut(tokenizer, read_rows(tmp_path / "eval.parquet"), evaluate)
    with pytest.raises(
        LoradagError, match=r"held-out perplexity is (nan|inf), computed in torch\.float32"
    ):
        measure(model, held_out, evaluate)
