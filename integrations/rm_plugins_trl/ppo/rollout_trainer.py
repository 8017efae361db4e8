"""The part of PPO that makes rollouts: completions with their rewards, log-probabilities, values, advantages and returns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rm_plugins.engine.token_forward import TokenForward
from rm_plugins.errors import DataError, TrainingError
from rm_plugins_trl.ppo.advantages import explained_variance, generalized_advantages, token_rewards, whitened
from rm_plugins_trl.ppo.config import PPOConfig
from rm_plugins_trl.ppo.kl import kl_terms
from rm_plugins_trl.ppo.open_grpo import OpenGRPOTrainer
from rm_plugins_trl.ppo.policy import Reference
from rm_plugins_trl.ppo.progress import Progress
from rm_plugins_trl.ppo.prompts import given_prompt_ids, refuse_unreadable
from rm_plugins_trl.ppo.rewards import CompletionRewards, unlearned
from rm_plugins_trl.ppo.rollout import Generation, Reading, Rollout, by_completion
from rm_plugins_trl.ppo.steps import StepRewards
from rm_plugins_trl.ppo.value_functions import Critic
from rm_plugins_trl.reward_model import POLICY_COLUMNS
from rm_plugins_trl.reward_training.quiet import without_noise

CALMER = "Lower learning_rate, raise kl_coef, or set target_kl; resume from an earlier checkpoint."
"""What to do about a training that diverges."""

_ENDLESS = 5
_ENDLESS_COMPLETIONS = 32
"""After how many rollouts, and how many completions, without any end to warn."""


class RolloutTrainer(OpenGRPOTrainer):
    """Generates, scores and reads completions; `rm_plugins_trl.ppo.trainer.PPOTrainer` learns from them."""

    settings: PPOConfig
    """The configuration."""
    log_completions: bool
    reference: Reference
    critic: Critic
    progress: Progress
    """Where the training is in its rollout."""
    _policy: TokenForward
    _critic: Any
    _attention: ExitStack
    """The contexts in which a pass runs forward and backward."""
    _completion_rewards: CompletionRewards
    _steps: StepRewards
    _rows: Sequence[dict[str, Any]] = ()
    _generation: Generation | None = None
    _reading: Reading | None = None
    """The reading of the rollout, where the next `compute_loss` would read the same completions with the same weights."""
    _endless: float = 0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; takes and returns what transformers' trainer does. A training continues as if there had been no evaluation."""
        device = self.accelerator.device
        with (
            without_noise(disable_bars=self.args.disable_tqdm),
            unlearned(self.reward_funcs, self.state.stateful_callbacks),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            return super().evaluate(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; takes and returns what transformers' trainer does.

        Raises:
            DataError: The dataset is a stream that ends before the first rollout.
        """
        found = super().train(*args, **kwargs)
        if self.state.global_step == 0 and not isinstance(self.train_dataset, Sized):
            raise DataError(
                f"train_dataset is a stream that ends before the {self.args.generation_batch_size // self.num_generations} prompts of one "
                "rollout, so there is nothing to train on. Give more rows, or make the rollout smaller: set per_device_train_batch_size, "
                "gradient_accumulation_steps or num_mini_batches."
            )
        return found

    def generate_completions(self, sampling: bool = False) -> None:
        """Sample and score completions of ``eval_dataset`` and show them, as after the training of TRL 1.12's example.

        Args:
            sampling: Whether the prompts of one evaluation batch are enough.

        Raises:
            DataError: There is no ``eval_dataset``.
        """
        if self.eval_dataset is None:
            raise DataError(
                "generate_completions samples completions of eval_dataset, and there is none. Give one to PPOTrainer."
            )
        given = self.eval_dataset if isinstance(self.eval_dataset, Mapping) else {"": self.eval_dataset}
        rows = self.args.eval_batch_size * self.accelerator.num_processes
        (Path(self.args.output_dir) / "completions").mkdir(parents=True, exist_ok=True)  # where TRL writes them, too
        before, self.log_completions = self.log_completions, True
        try:
            for name, dataset in given.items():
                some = sampling and not (isinstance(dataset, Sized) and len(dataset) <= rows)
                self.evaluate(dataset.take(rows) if some else dataset, metric_key_prefix=f"eval_{name}" if name else "eval")
        finally:
            self.log_completions = before

    def _total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Tensor = self.accelerator.reduce(numbers, reduction="sum")
        return total

    def next_batch(self, rows: list[dict[str, Any]]) -> Rollout:
        """The completions that the next forward pass learns from; generates new ones where the last were used up."""
        if self.mode == "eval":
            evaluated: Rollout = self.roll_out(rows)
            return evaluated
        progress, passes = self.progress, self.args.steps_per_generation
        if progress.place == 0 or progress.rollout is None:
            progress.start(self.roll_out(rows))
        if progress.place % passes == 0 or not progress.order:
            progress.shuffle(passes, self.args.gradient_accumulation_steps, self._total)
        return progress.part(passes)

    def tokenized(self, prompts: list[Any]) -> list[list[int]] | None:
        """The token ids of prompts whose rows say how they are made."""
        if self.tools or self.environment_factories is not None:
            return None  # they are part of the prompt
        return given_prompt_ids(self._rows, self.processing_class, self._dataset)

    @property
    def _dataset(self) -> str:
        return "eval_dataset" if self.mode == "eval" else "train_dataset"

    def read(self, prompt_ids: list[list[int]]) -> None:
        """Refuse prompts without a token, and those that are too long."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        refuse_unreadable(prompt_ids, positions, self.max_completion_length, f"A row of {self._dataset}")

    def generated(
        self, prompt_ids: list[list[int]], completion_ids: list[list[int]], tool_mask: list[list[int]] | None
    ) -> None:
        """Take in what was generated."""
        self.read(prompt_ids)  # a rollout function makes its own
        self._generation = Generation.of(prompt_ids, completion_ids, tool_mask, self.accelerator.device)

    def rollout_log_probs(self, width: int) -> Tensor:
        """The log-probabilities of what was generated, under the policy, [N, width]."""
        generation = self._generated
        if generation.log_probs is None:
            self._read(generation)
        assert generation.log_probs is not None
        return nn.functional.pad(generation.log_probs, (0, width - generation.log_probs.shape[1]))

    def rewarded(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row without the columns that are the policy's alone."""
        return {name: value for name, value in row.items() if name == "prompt" or name not in POLICY_COLUMNS}

    def scored(self, score: Callable[[], Tensor]) -> Tensor:
        """The rewards, which a single process waits for while it reads what it has generated."""
        if self.accelerator.num_processes > 1:  # both communicate, which must not happen at once
            rewards = score()
            self._read_all()
        else:
            with ThreadPoolExecutor(1, "rewards") as pool:
                pending = pool.submit(score)
                self._read_all()
                rewards = pending.result()
        self._generated.rewards = rewards
        return rewards

    @property
    def _generated(self) -> Generation:
        assert self._generation is not None, "nothing was generated"
        return self._generation

    def _read(self, generation: Generation) -> None:
        """Ask policy and critic about what was generated.

        If the next forward pass of the updates takes the same completions, it takes this reading, with its gradients, too.
        """
        learns = self.mode == "train"
        is_next = not learns or self.args.steps_per_generation == 1
        keeps = learns and is_next
        model = self.model_wrapped if keeps else self.model
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.set_grad_enabled(keeps), self.accelerator.autocast():
            size = len(generation.rows) if keeps else self.settings.local_rollout_forward_batch_size
            for rows, starts in generation.chunks(size):
                policy = self.read_policy(model, rows, starts)
                parts.append((self.read_values(rows, starts, policy.hidden), policy.log_probs.float(), policy.entropy))
            values, log_probs, entropy = map(torch.cat, zip(*parts, strict=True))
        generation.log_probs, generation.values = (
            by_completion(tokens.detach(), generation.is_token) for tokens in (log_probs, values)
        )
        self._reading = Reading(values, log_probs, entropy) if is_next else None

    def read_policy(self, model: nn.Module, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> Any:
        """The policy's `TokenOutput` for completions; without gradients while the critic learns alone."""
        self._attention.enter_context(self._policy.attention())
        with torch.no_grad() if self.critic_alone else nullcontext():
            return (self.model if self.critic_alone else model)(rows=rows, completion_starts=starts)

    def read_values(self, rows: Sequence[Sequence[int]], starts: Sequence[int], hidden: Tensor | None) -> Tensor:
        """The critic's values of completions, [T]. Its gradients are exchanged with the policy's, once a step."""
        is_last = self.mode == "eval" or self.accelerator.sync_gradients
        with nullcontext() if is_last else self.accelerator.no_sync(model=self._critic):
            self._attention.enter_context(self.critic.attention())
            values: Tensor = self._critic(rows=rows, starts=starts, hidden=hidden).float()
        return values

    @property
    def critic_alone(self) -> bool:
        """Whether only the critic learns now."""
        return self.mode == "train" and self.state.global_step < self.settings.critic_warmup_steps

    def _read_all(self) -> None:
        generation = self._generated
        if self.reference.is_used:
            with torch.no_grad(), self.reference.of(self.model) as reference, self.accelerator.autocast():
                read = [
                    reference(rows=rows, completion_starts=starts).log_probs.float()
                    for rows, starts in generation.chunks(self.settings.local_rollout_forward_batch_size)
                ]
            generation.ref_log_probs = by_completion(torch.cat(read), generation.is_token)
        if generation.log_probs is None:  # last, because its activations may stay until the updates
            self._read(generation)

    def rolled_out(self, rows: list[dict[str, Any]], learn: Callable[[], dict[str, Any]]) -> Rollout:
        """Completions of the rows' prompts, with everything that the losses need.

        Raises:
            DataError: A row has no prompt, or one that the policy cannot continue.
            ScoringError: The reward abstained on all completions, or is infinite.
            TrainingError: The policy's probabilities are not finite, or the KL divergence is not, or is larger than ``max_kl``.
        """
        self._rows, self._reading = rows, None
        try:
            found = learn()
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            raise TrainingError(
                f"Step {self.state.global_step}: the policy's probabilities are not finite, so nothing can be sampled. {self._evidence()} "
                f"{CALMER}"
            ) from error
        generation = self._generated
        self._generation = None
        learns = self.mode == "train"
        has_ended = self.accelerator.gather(generation.has_ended(self.end_tokens))
        if learns:
            self._see_ends(has_ended)
        scores = self._completion_rewards(generation.rewards, self.reward_weights, has_ended, learns=learns)
        local = scores[self.accelerator.process_index * len(rows) :][: len(rows)].to(self.accelerator.device)
        mask = generation.chosen & ~local.isnan()[:, None]
        log_probs, values = generation.log_probs, generation.values
        assert log_probs is not None and values is not None
        reference = generation.ref_log_probs if generation.ref_log_probs is not None else log_probs
        kl = kl_terms(log_probs, reference, self.settings.kl_estimator) * generation.chosen
        mean_kl = self._mean(kl.sum(1))
        self._refuse_exploded(mean_kl)
        steps = self._steps.of_tokens(generation, self.reward_weights, self._decoded)
        if steps is not None:
            steps = steps / self._completion_rewards.divisor
        rewards = token_rewards(local.nan_to_num(), kl, mask, self.progress.kl.weight, steps)
        if self.settings.whiten_rewards:
            rewards = whitened(rewards, mask, self._total, shift_mean=False)
        advantages, returns = generalized_advantages(rewards, values, mask, self.settings.gamma, self.settings.lam)
        explained = explained_variance(returns, values, mask, self._total)
        logged = self.accelerator.gather((advantages.sum(1) / mask.sum(1).clamp(min=1)).contiguous())
        self.replace_logged_advantages(logged.tolist())
        if self.settings.whiten_advantages:
            advantages = whitened(advantages, mask, self._total)
        if learns:
            self.record({"episode": self._episodes()})
        penalty = -self.progress.kl.weight * mean_kl
        score = float(scores.nanmean())
        self.drop_figures("frac_reward_zero_std")
        self.record(
            {
                **({"objective/kl": mean_kl} if self.reference.is_used else {}),  # without a reference, there is no divergence
                "objective/entropy": self._mean(-(log_probs * generation.chosen).sum(1)),
                "objective/scores": score,
                "objective/non_score_reward": penalty,
                "objective/rlhf_reward": score + penalty,
                "objective/kl_coef": self.progress.kl.weight,
                "objective/abstained": float(scores.isnan().double().mean()),
                "critic/explained_variance": explained,
            }
        )
        if learns:
            self.progress.kl.update(mean_kl, len(scores))
        weights = found.get("importance_sampling_ratio")
        weights = None if weights is None else weights.expand(len(rows), -1)[:, : mask.shape[1]].expand(mask.shape)
        return Rollout(generation.rows, generation.starts, mask, log_probs, values, advantages, returns, weights)

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.processing_class.decode(ids, skip_special_tokens=True))

    def _see_ends(self, has_ended: Tensor) -> None:
        """Warn, once, of a policy that does not end what it writes."""
        self._endless = 0 if has_ended.any() else self._endless + 1
        is_endless = self._endless >= _ENDLESS and self._endless * len(has_ended) >= _ENDLESS_COMPLETIONS
        if is_endless and self.max_completion_length > 1 and self.accelerator.is_main_process:
            warnings.warn(
                f"All completions of the last {self._endless} rollouts were cut off at response_length={self.max_completion_length}: the "
                "policy did not end one. Raise response_length, or set missing_eos_penalty, such as 1.0, so that it learns to end. If it "
                "ends with another token than its tokenizer's EOS, set stop_token_id.",
                stacklevel=2,
            )
            self._endless = -math.inf

    def _mean(self, numbers: Tensor) -> float:
        """The mean of a number of each completion over all processes."""
        total, count = self._total(torch.stack([numbers.double().sum(), numbers.new_tensor(len(numbers), dtype=torch.double)]))
        return float(total / count)

    def _episodes(self) -> int:
        """The number of completions that have been generated for training."""
        steps = self.settings.num_ppo_epochs * self.settings.num_mini_batches
        return int((self.state.global_step // steps + 1) * self.args.generation_batch_size)

    def _refuse_exploded(self, kl: float) -> None:
        limit = self.settings.max_kl
        if math.isfinite(kl) and (limit is None or kl <= limit):
            return
        what = "is not finite" if not math.isfinite(kl) else f"is larger than max_kl={limit}"
        raise TrainingError(
            f"Step {self.state.global_step}: the policy's KL divergence from the reference, {kl:.4g} per completion, {what}. "
            f"{self._evidence()} The policy was not changed by this rollout. {CALMER}"
        )

    def _evidence(self) -> str:
        """What the last logs say about the course of the training."""
        shown = ("objective/kl", "objective/scores", "policy/approxkl_avg")
        entries = [entry for entry in self.state.log_history if "objective/scores" in entry][-3:]
        said = [
            f"step {entry['step']}: " + ", ".join(f"{name} {entry[name]:.4g}" for name in shown if entry.get(name) is not None)
            for entry in entries
        ]
        return f"Before: {'; '.join(said)}." if said else "Nothing was logged before."
