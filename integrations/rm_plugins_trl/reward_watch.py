"""Watches rewards in TRL's trainers."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback

from rm_plugins.training.watcher import RewardWatcher
from rm_plugins_trl.trl_internals import place_first

logger = logging.getLogger(__name__)

_TRAINERS_FIGURES = {
    "kl": "kl",  # GRPO and RLOO, with beta > 0
    "objective/kl": "kl",  # PPO and Online DPO
    "completions/mean_length": "completion_tokens",
}
"""What trainers log that is kept beside the figures of the rewards, and its name there."""


class RewardWatch(RewardWatcher, TrainerCallback):
    """Looks for signs that the policy exploits its rewards, and keeps a journal of what they scored.

    It sees every batch that its rewards score in training, but not in evaluation. It adds figures of each reward to the trainer's logs
    as ``watch/NAME/FIGURE``, each the mean over the steps since the last entry. They are the figures of
    `rm_plugins.training.reward_history.step_figures`, and ``warnings``, the number of warnings. They are always in
    ``trainer.state.log_history``. Callbacks that report to wandb and other trackers run before the trainer's ``callbacks=[...]``, and
    would not see the figures. `attach` therefore puts the watch first.

    After a resume it continues with the journal; without a journal, it starts from the beginning.

    It takes the arguments of `rm_plugins.training.watcher.RewardWatcher`. The rewards are made with `reward_func`, or are the reward
    model of PPO.
    """

    def attach(self, trainer: Any) -> RewardWatch:
        """Put it before all callbacks of a trainer, in place of handing it in as one of them; returns itself.

        Args:
            trainer: A trainer of TRL or transformers.
        """
        place_first(trainer, [self])
        return self

    # --- What the trainer calls -------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start or resume, and listen to the rewards."""
        self.begin(state, state.global_step, rank=args.process_index, processes=args.world_size)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave out what was scored for an evaluation."""
        self.forget_batches()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take in what was scored in this step, and warn."""
        for evidence in self.end_step(state.global_step):
            logger.warning("Step %d: %s", state.global_step, evidence.message)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add to the logs what was measured since the last."""
        if logs is None or any(name.startswith("eval_") for name in logs):
            return
        self.on_step_end(args, state, control)  # PPO logs a step before it ends it
        trainers = {kept: float(logs[name]) for name, kept in _TRAINERS_FIGURES.items() if logs.get(name) is not None}
        self.add_trainer_figures(state.global_step, trainers)
        figures = self.unlogged_figures()
        logs.update(figures)
        if state.log_history:  # whose last entry is a copy of the logs
            state.log_history[-1].update(figures)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the journal as far as the checkpoint goes."""
        self.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the journal, and stop listening."""
        self.end()
