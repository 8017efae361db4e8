"""The loss of RewardTrainer, and what it logs: of the whole batch of all processes, for every loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.engine.partitioned import parameter_count
from rm_plugins.errors import TrainingError
from rm_plugins.losses import Loss, Regularizer, RewardBatch
from rm_plugins.losses.needs import BATCH_NEEDS, Need
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import ScoreStatistics
from rm_plugins.processes import all_gathered
from rm_plugins_trl.reward_training.batch_facts import BatchFacts
from rm_plugins_trl.reward_training.chosen_loss import described, value_of
from rm_plugins_trl.reward_training.global_batch import global_batch, summed_gradient, weight_of
from rm_plugins_trl.reward_training.last_batch import LAST, mark_last_batch, own_items, without_fillers
from rm_plugins_trl.reward_training.predictions import chosen_first
from rm_plugins_trl.reward_training.prepared_dataset import check_batch
from rm_plugins_trl.reward_training.reward_config import RewardConfig
from rm_plugins_trl.reward_training.reward_log import RewardLog
from rm_plugins_trl.reward_training.saving import how_to_go_on
from rm_plugins_trl.reward_training.training_rows import bootstrap_repeats
from rm_plugins_trl.reward_training.trl_batches import TRL_METRICS, TrlBatches
from rm_plugins_trl.trl_internals import OpenRewardTrainer

_SCALED_STEPS = 20
"""So many steps in a row may have a loss that is not finite with fp16, while its scale is adjusted."""


class LossTrainer(OpenRewardTrainer):
    """TRL's trainer, with the loss of the batch of all processes; `RewardTrainer` sets what it needs.

    Attributes:
        losses: The loss of each member.
        regularizers: Each regularizer with its weight, by name.
        heads: The model's outputs.
        batch_forward: Runs the rows of a batch.
        trained_items: The number of items that the loss was a mean over so far.
    """

    losses: list[Loss]
    regularizers: dict[str, tuple[float, Callable[[RewardBatch], torch.Tensor] | Regularizer]]
    heads: Heads
    batch_forward: BatchForward
    trained_items = 0
    _settings: RewardConfig
    _batches: TrlBatches | None
    _own_needs: tuple[Need, ...]
    _needs_logprobs: bool
    _head_layer: Any
    _reward_log: RewardLog
    _metric_prefix = "eval"
    _last_rewards = torch.zeros(0)
    _trained_tokens = 0
    _diverged = 0

    @property
    def score_statistics(self) -> ScoreStatistics | None:
        """Those of the last evaluation's rewards; without one, of the last training rewards."""
        source = "eval" if self._reward_log.rewards["eval"] else "train"
        return ScoreStatistics.of(self._reward_log.rewards[source], source)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss and its regularizers on the batch of all processes; `inputs` may be one of TRL's batches too."""
        mode = "train" if self.model.training else "eval"
        last = inputs.pop(LAST, None)
        if self._batches is None:
            outputs, facts = self._outputs(model, inputs), BatchFacts.of(inputs)
            known = {name: inputs[name] for name in ("groups", *BATCH_NEEDS) if name in inputs}
            extras = {need.name: inputs[need.name] for need in self._own_needs if need.name in inputs}
        else:
            outputs = model(**{name: value for name, value in inputs.items() if name != "margin"} | {"use_cache": False})
            known, extras = self._batches.judged(inputs), {}
            facts = self._batches.facts(inputs, self._pairs_of_last_batch() if mode == "eval" else None)
        own = RewardBatch(
            rewards=outputs.logits,
            logprobs=getattr(outputs, "logprobs", None),
            head=None if self._head_layer is None else weight_of(self._head_layer).to(outputs.logits.device),
            extras=extras,
            **known,
        )
        processes = self.accelerator.num_processes
        batch = global_batch(own, processes, self.accelerator.process_index, self._own_needs)
        check_batch(batch, self.losses[0])
        shares: list[BatchFacts] = all_gathered(facts, "the facts of a batch")
        whole = BatchFacts.joined(shares)
        if mode == "eval":
            kept = self._reward_log.fresh(whole.numbers)
        else:
            kept = [last is None or place < last for place in range(len(whole.numbers))]
        batch, whole = without_fillers(batch, whole, kept, self.losses[0].mean_over, self._own_needs)
        self._last_rewards = batch.rewards.detach()
        loss = self._loss(mode, batch, whole)
        self._reward_log.add(mode, batch, whole.numbers, whole.sections, whole.characters)
        if mode == "train":
            self._trained_tokens += whole.tokens // self.get_tp_size()
            self.trained_items += whole.items // self.get_tp_size()
            if num_items_in_batch is not None:
                # The mean over the items of all accumulated batches, whatever their sizes.
                loss = loss * (whole.items / max(int(num_items_in_batch), 1)) * self.current_gradient_accumulation_steps
            loss = summed_gradient(loss, processes)
        else:
            self._reward_log.add_loss(loss.item(), whole.items)
        return (loss, outputs) if return_outputs else loss

    def _outputs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The model's outputs for the rows of one of our batches."""
        starts = None
        if self._needs_logprobs:
            winners = set(inputs["pairs"][:, 0].tolist())
            starts = [start if row in winners else None for row, start in enumerate(inputs["completion_starts"])]
        return model(rows=[row.tolist() for row in inputs["rows"]], completion_starts=starts)

    def _pairs_of_last_batch(self) -> int | None:
        """The number of pairs in the last batch of an evaluation, where this is the last one and has further pairs that fill it up."""
        state = self.accelerator.gradient_state
        return state.remainder if state.end_of_dataloader and state.remainder > 0 else None

    def _loss(self, mode: str, batch: RewardBatch, facts: BatchFacts) -> torch.Tensor:
        """The mean over members of the loss and its regularizers."""
        width = len(self.heads.names)
        weights = batch.rewards.new_tensor(self.heads.weights)
        total = batch.rewards.sum() * 0.0
        for member, loss in enumerate(self.losses):
            own = slice(member * width, (member + 1) * width)
            part = replace(batch, rewards=batch.rewards[:, own], head=None if batch.head is None else batch.head[own])
            if self._settings.bootstrap and mode == "train":
                drawn = bootstrap_repeats(self.args.seed, member, facts.numbers)
                repeats = torch.as_tensor(drawn, dtype=part.rewards.dtype, device=part.rewards.device)[batch.groups]
                part = replace(part, weights=repeats if part.weights is None else part.weights * repeats)
            if loss.mean_over != "pairs" or len(part.pairs):  # a batch of ties has no pairs to average over
                total = total + value_of("loss", loss, part) / len(self.losses)
            reward = replace(part, rewards=(part.rewards @ weights)[:, None])
            for name, (weight, regularizer) in self.regularizers.items():
                term = value_of("regularizer", regularizer, reward)
                total = total + weight * term / len(self.losses)
                self._reward_log.add_term(mode, name, term.item(), facts.items)
        return total

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], int | None]:
        """The accumulated batches, and the number of items that the loss is a mean over in them, over all processes."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        if self._batches is not None:
            return batches, items
        if not batches:
            return batches, None
        mark_last_batch(self, batches[-1])
        mine = sum(own_items(batch, self.accelerator.process_index, self.losses[0].mean_over) for batch in batches)
        return batches, sum(all_gathered(mine, "the numbers of items of a step"))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """TRL's step, in which the model attends to packed rows.

        Raises:
            TrainingError: The loss is not finite; with fp16, whose loss is scaled, only if it stays so.
        """
        with self.batch_forward.attention():
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._diverged = 0 if torch.isfinite(loss).all() else self._diverged + 1
        if self._diverged > (_SCALED_STEPS if self.args.fp16 else 0):
            cause = (
                "The rewards of the batch are finite"
                if torch.isfinite(self._last_rewards).all()
                else "The model's rewards are not finite either"
            )
            raise TrainingError(
                f"The loss {described(self.losses[0])} is {float(loss.mean())} in step {self.state.global_step + 1} (epoch "
                f"{self.state.epoch or 0:.2f}). {cause}. {how_to_go_on(self.args.output_dir)}"
            )
        return loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        """The loss and the outputs; for preference pairs, the chosen ones first."""
        loss, outputs, labels = super().prediction_step(model, inputs, *args, **kwargs)
        return loss, outputs if self._batches is not None else chosen_first(outputs, inputs["groups"]), labels

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Six per token and parameter, as transformers counts; shared prefixes count each time they occur."""
        if self._batches is not None:
            return int(super().floating_point_ops(inputs))
        return 6 * sum(map(len, inputs["rows"])) * parameter_count(self.model, exclude_embeddings=True)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, with the statistics of the rewards since the last one."""
        mode = "train" if self.model.training else "eval"
        prefix = "" if mode == "train" else f"{self._metric_prefix}_"
        if f"{prefix}loss" in logs and mode == "eval" and (loss := self._reward_log.evaluated_loss()) is not None:
            logs[f"{prefix}loss"] = loss  # transformers counts batches of a stream as equally large
        metrics = self._reward_log.metrics(mode)
        if metrics:
            metrics["num_tokens"] = self._trained_tokens
        logs.update({f"{prefix}{name}": value for name, value in metrics.items()})
        if prefix not in ("", "eval_"):  # TRL uses the same names for all datasets
            logs.update({f"eval_{name}": metrics[name] for name in TRL_METRICS if name in metrics})
        super().log(logs, start_time)
