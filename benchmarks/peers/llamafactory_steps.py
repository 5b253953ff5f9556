"""Train some steps with LLaMA-Factory, in its own environment; prints a line of JSON.

    PYTHON benchmarks/peers/llamafactory_steps.py '{"model_name_or_path": ..., ...}'

Its options as it documents them, with the CPU seconds and the tokens of each step but the first.
"""

import json
import sys
import time

from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback

steps = []


class Stopwatch(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        self.started, self.seen = time.process_time(), state.num_input_tokens_seen

    def on_step_end(self, args, state, control, **_):
        if state.global_step > 1:
            seconds = time.process_time() - self.started
            steps.append([seconds, int(state.num_input_tokens_seen) - int(self.seen)])


run_exp(args=json.loads(sys.argv[1]), callbacks=[Stopwatch()])
print("\n" + json.dumps(steps))
