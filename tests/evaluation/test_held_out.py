import math
from dataclasses import replace

import pytest
import torch

from loradag.data.rows import Row, read_rows, write_rows
from loradag.data.tokenization import Rendered, Tokenization
from loradag.evaluation.held_out import HeldOut
from loradag.models.loading import load_model
from loradag.models.tokenizer import load_tokenizer
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
