"""Task scores through lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

An optional dependency: `pip install 'loradag[tasks]'`.
"""

from __future__ import annotations

import logging
from typing import Any

from loradag.config.evaluate import Evaluate
from loradag.config.problems import LoradagError

Scores = dict[str, dict[str, float]]  # {task: {metric: value}}


def score_tasks(model: Any, tokenizer: Any, evaluate: Evaluate) -> Scores:
    """What `model` scores on `evaluate.tasks`; empty where there are none.

    Raises:
        LoradagError: the harness is not installed, or does not know a task.
    """
    if not evaluate.tasks:
        return {}
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise LoradagError(
            f"evaluate.tasks = {evaluate.tasks}: {error.name} is not installed. Install the extra: "
            "pip install 'loradag[tasks]'."
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=evaluate.tasks_path)
    if unknown := sorted(set(evaluate.tasks) - set(manager.all_tasks)):
        raise LoradagError(
            f"evaluate.tasks: lm-evaluation-harness has no {', '.join(unknown)}. "
            "`lm-eval ls tasks` lists what it has; your own are YAML files in evaluate.tasks_path."
        )
    results = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
        tasks=list(evaluate.tasks),
        task_manager=manager,
        limit=evaluate.tasks_limit,
        bootstrap_iters=0,
        log_samples=False,
    )
    return {
        task: {
            name.removesuffix(",none"): float(value)
            for name, value in sorted(measured.items())
            if isinstance(value, int | float) and "stderr" not in name
        }
        for task, measured in sorted(results["results"].items())
    }
