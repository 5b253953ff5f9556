"""lm-evaluation-harness: task scores of a local task, and a second opinion on our perplexity."""

import json
import math
from pathlib import Path

import pytest
import torch

from loradag.config.problems import LoradagError
from loradag.evaluation.perplexity import score
from loradag.evaluation.tasks import score_tasks
from loradag.models.loading import load_model
from loradag.models.tokenizer import load_tokenizer
from tests.conftest import run_stages, smoke_config

TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def tasks_path(tmp_path: Path) -> Path:
    rows = [
        {"question": f"{n} is", "choices": ["odd", "even"], "answer": (n + 1) % 2} for n in range(6)
    ]
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "capitals.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"))
    return folder


def choices(model, tokenizer, folder: Path) -> float:
    """The accuracy by hand: the choice with the higher log-likelihood after the question."""
    right = 0
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        scores = []
        for choice in row["choices"]:
            given = tokenizer(row["question"])["input_ids"]
            ids = tokenizer(f"{row['question']} {choice}")["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(float(logits[at - 1, ids[at]]) for at in range(len(given), len(ids))))
        right += scores.index(max(scores)) == row["answer"]
    return right / len(rows)


def test_a_local_task_is_scored_for_base_quantized_and_adapter(project, tasks_path) -> None:
    paths, config = project(
        "evaluate.tasks=[capitals]", f"evaluate.tasks_path={tasks_path}", "train.max_steps=1",
        "train.warmup_steps=0",
        "train.warmup_steps=0", "train.checkpoint_steps=1", "evaluate.dtype=float32",
    )  # fmt: skip
    reports = run_stages(paths, config, "prepare", "quantize", "train", "baseline", "evaluate")
    scores = reports["evaluate"]["tasks"]
    assert scores.keys() == {"base", "quantized", "adapter"}
    model, tokenizer = load_model(paths.base, torch.float32), load_tokenizer(paths.base)
    assert scores["base"]["capitals"]["acc"] == choices(model, tokenizer, tasks_path)


def test_an_unknown_task_is_named(tiny_base, tasks_path) -> None:
    evaluate = smoke_config("evaluate.tasks=[nosuch]", f"evaluate.tasks_path={tasks_path}").evaluate
    with pytest.raises(LoradagError, match="has no nosuch"):
        score_tasks(object(), object(), evaluate)


def test_its_rolling_perplexity_is_ours_on_the_same_windows(tiny_base) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = load_model(tiny_base, torch.float32), load_tokenizer(tiny_base)
    length = 32
    harness = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=length,
        prefix_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    ids = torch.randint(300, 1000, (4 * length,), generator=torch.Generator().manual_seed(0))
    text = tokenizer.decode(ids)
    ids = tokenizer(text)["input_ids"]
    ids = ids[: len(ids) // length * length]  # whole windows: the last ones are cut differently
    text = tokenizer.decode(ids)
    assert tokenizer(text)["input_ids"] == ids
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    (theirs,) = harness.loglikelihood_rolling([request], disable_tqdm=True)
    ours = score(
        model, [[tokenizer.bos_token_id, *ids]], None,
        window=length + 1, stride=length, batch_tokens=length + 1,
    )  # fmt: skip
    assert ours.tokens == len(ids)
    assert math.isclose(ours.nll_sum, -theirs, rel_tol=1e-3)
