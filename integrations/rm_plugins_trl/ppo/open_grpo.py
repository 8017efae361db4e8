"""TRL's ``GRPOTrainer``, with the private places that PPO changes under public names.

Read in TRL 1.13.0, 1.14.0, 1.15.0 and 1.16.0. A release may change them without notice; ``tests/trl/test_trl_internals.py`` fails for
each that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import dedent
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Sampler
from trl import GRPOTrainer


class OpenGRPOTrainer(GRPOTrainer):
    """What TRL's trainer does, and hooks that a subclass overrides; by themselves they only change the names of figures."""

    _evaluated = ""
    """The name of the dataset that is being evaluated, where there are several."""

    _name = "PPO"
    _tag_names: ClassVar[list[str]] = ["trl", "ppo"]
    _paper: ClassVar[dict[str, str]] = {
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": dedent("""\
            @article{schulman2017proximal,
                title  = {{Proximal Policy Optimization Algorithms}},
                author = {John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov},
                year   = 2017,
                eprint = {arXiv:1707.06347},
            }"""),
    }
    """What TRL's model card says of the training."""

    # --- To call ----------------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """``train`` or ``eval``."""
        return "train" if self.model.training else "eval"

    def record(self, figures: Mapping[str, float]) -> None:
        """Have the next log show the mean of each figure since the last one."""
        for name, value in figures.items():
            self._metrics[self.mode][name].append(float(value))

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end a completion; before TRL 1.15 only the tokenizer's EOS token does."""
        tokenizer: Any = self.processing_class
        return list(getattr(self, "eos_token_ids", None) or [tokenizer.eos_token_id])

    def drop_figures(self, *names: str) -> None:
        """Have the next log leave out what TRL recorded under these names."""
        for name in names:
            self._metrics[self.mode].pop(name, None)

    def replace_logged_advantages(self, advantages: Sequence[float]) -> None:
        """Show these, one for each completion of all processes, in the table of completions instead of GRPO's."""
        logged = self._logs["advantages"]
        for _ in range(min(len(advantages), len(logged))):
            logged.pop()
        logged.extend(advantages)

    def roll_out(self, rows: list[dict[str, Any]]) -> Any:
        """Generate completions for rows of the dataset, score them, and return what is learned from them."""
        return self._generate_and_score_completions(rows)

    # --- Hooks ------------------------------------------------------------------------------------------------------------

    def tokenized(self, prompts: list[Any]) -> list[list[int]] | None:
        """The token ids of each prompt; None leaves it to TRL."""
        return None

    def read(self, prompt_ids: list[list[int]]) -> None:
        """Called with the token ids of the prompts that completions are going to be generated for."""

    def generated(
        self, prompt_ids: list[list[int]], completion_ids: list[list[int]], tool_mask: list[list[int]] | None
    ) -> None:
        """Called with what this process has generated; the mask is 1 for the tokens that the policy chose."""

    def rollout_log_probs(self, width: int) -> Tensor | None:
        """Log-probabilities [N, width] of what was generated, under the policy; None leaves it to TRL."""
        return None

    def rewarded(self, row: dict[str, Any]) -> dict[str, Any]:
        """The columns of a row that reach the rewards."""
        return row

    def scored(self, score: Callable[[], Tensor]) -> Tensor:
        """The rewards of all processes, [N of all, reward functions]: call `score`, which every process must do once."""
        return score()

    def rolled_out(self, rows: list[dict[str, Any]], learn: Callable[[], dict[str, Any]]) -> Any:
        """What is learned from rows of the dataset; `learn` generates, calls the rewards and returns TRL's tensors."""
        return learn()

    def next_batch(self, rows: list[dict[str, Any]]) -> Any:
        """What `compute_loss` gets for the rows of a generation batch."""
        return super()._prepare_inputs(rows)

    def save_more(self, folder: str, *, is_checkpoint: bool) -> None:
        """Save what TRL's trainer does not have; every process calls it."""

    def load_more(self, folder: str) -> None:
        """Load it from a checkpoint."""

    def load_best(self, folder: str) -> None:
        """Called when the policy of the best checkpoint has been loaded at the training's end."""

    # --- TRL's and transformers' names ------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Evaluate; the figures of one of several datasets have its name, as its loss has: ``eval_NAME_reward``."""
        before = self._evaluated
        self._evaluated = metric_key_prefix.removeprefix("eval").removeprefix("_")
        try:
            found: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._evaluated = before
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; takes what transformers' trainer does."""
        if self._evaluated and self.mode == "eval":
            figures = self._metrics["eval"]
            for name in [*figures]:
                figures[f"{self._evaluated}_{name}"] = figures.pop(name)
        super().log(logs, start_time)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        ids = self.tokenized(prompts)
        found = super()._tokenize_prompts(prompts) if ids is None else (ids, None, {})
        self.read(found[0])
        return found

    def _generate(self, prompts: list[Any]) -> Any:
        found = super()._generate(prompts)
        self.generated(*found[:3])
        return found

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        width = kwargs["logits_to_keep"] if "logits_to_keep" in kwargs else args[3]
        log_probs = self.rollout_log_probs(width)
        return super()._get_per_token_logps_and_entropies(*args, **kwargs) if log_probs is None else (log_probs, None, None)

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
        calculate, rows = super()._calculate_rewards, [self.rewarded(row) for row in inputs]
        return self.scored(lambda: calculate(rows, *args, **kwargs))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        learn = super()._generate_and_score_completions
        return self.rolled_out(inputs, lambda: learn(inputs))

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        return self.next_batch(generation_batch)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return _ByEpoch(super()._get_train_sampler(dataset), lambda: int(self.state.epoch or 0))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.load_more(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self.load_best(self.state.best_model_checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy and the critic, by default into ``args.output_dir``."""
        super().save_model(output_dir, _internal_call)
        self.save_more(output_dir or self.args.output_dir, is_checkpoint=_internal_call)


class _ByEpoch(Sampler[int]):
    """TRL's sampler, whose order depends on the epoch alone, so that a resumed training reads the rows that it would have read.

    It asks for the epoch: ``set_epoch`` does not reach a sampler inside the loader of a resumed training on several processes.
    """

    def __init__(self, sampler: Any, epoch: Callable[[], int]) -> None:
        self.sampler = sampler
        self.epoch = epoch

    def __iter__(self) -> Any:
        generator: torch.Generator | None = getattr(self.sampler, "generator", None)
        if generator is not None and self.sampler.seed is not None:
            generator.manual_seed(self.sampler.seed + self.epoch())
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)
