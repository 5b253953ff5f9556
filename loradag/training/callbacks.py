"""What the trainer calls at its steps: a progress bar, and when to stop, log and save."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, ProgressCallback


class LossBar(ProgressCallback):
    """A bar with the losses and the time that is left, not a line a step."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[str, str] = {}

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        found = {name: (logs or {}).get(name) for name in ("loss", "eval_loss")}
        self.losses |= {name: f"{loss:.3f}" for name, loss in found.items() if loss is not None}
        if self.training_bar is not None:
            self.training_bar.set_postfix(self.losses)


class Stopping(EarlyStoppingCallback):
    """Stops early, logs the loss of the last step, and leaves no checkpoint of it.

    Resumed from one, the trainer would train one step more.
    """

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Without the base class's advice to keep the best weights: that is `train.keep`."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_training_stop:
            control.should_log, control.should_save = True, False

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **options: Any
    ) -> None:
        super().on_evaluate(args, state, control, metrics, **options)
        if control.should_training_stop:
            control.should_log, control.should_save = True, False  # logged as the epoch ends
            if state.best_metric is None or metrics["eval_loss"] < state.best_metric:
                state.best_model_checkpoint = None  # the model as it is now is the best
