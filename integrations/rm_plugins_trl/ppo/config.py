"""The arguments of `PPOTrainer` on TRL's living trainers (TRL from 1.13 on)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trl import GRPOConfig

from rm_plugins.errors import SpecError, UnsupportedError
from rm_plugins_trl.configs import bf16_by_default, with_help
from rm_plugins_trl.ppo.other_names import check_generation, check_grpo_arguments, check_other_names, takes_other_names
from rm_plugins_trl.ppo.ranges import check_choices, check_ranges
from rm_plugins_trl.reward_training.quiet import without_noise

_DERIVED_FROM = (
    "cliprange",
    "gradient_accumulation_steps",
    "kl_coef",
    "num_mini_batches",
    "num_ppo_epochs",
    "per_device_train_batch_size",
    "response_length",
)
"""The arguments that decide the arguments of TRL's trainer; those follow them when they are set later."""


@takes_other_names
@with_help
@dataclass
class PPOConfig(GRPOConfig):
    """The arguments of PPO: those of TRL's ``GRPOConfig`` about generation and training, and PPO's own.

    PPO's own have the names and defaults of ``PPOConfig`` of TRL up to 1.12. What that class derived, such as ``batch_size``, can be
    read. An argument of one of these classes that PPO does not have is refused, and the message names what replaces it.

    One optimizer step learns from a minibatch: ``per_device_train_batch_size * gradient_accumulation_steps`` completions on each
    process. A rollout has ``num_mini_batches`` of them, and trains ``num_ppo_epochs`` times on each. ``logging_steps``, ``save_steps``,
    ``eval_steps``, ``max_steps`` and the learning rate's schedule count optimizer steps.

    Unlike TRL's, it starts on a machine without an accelerator: ``bf16`` is on by default only if an accelerator supports it. Gradients
    are clipped to ``max_grad_norm`` (1.0 by default), which TRL up to 1.12 did not do.

    Args:
        learning_rate: The initial learning rate.
        temperature: The temperature of sampling, and of the log-probabilities that are trained.
        disable_dropout: Whether dropout is off in every model.
        bf16: Whether to use bf16; if None, it is used if the accelerator supports it.
        num_generations: The completions that are sampled for each prompt of a rollout.
        num_generations_eval: The completions that are sampled for each prompt of the evaluation; num_generations if None.
        sft_model_path: The policy, a folder or hub id, unless the trainer is given one as model.
        reward_model_path: The reward, unless the trainer is given one: a model folder, a hub id, a URL, ``module:function``, a spec
            file, or a name of ``rm_plugins.yaml``.
        total_episodes: The completions to train on in all, instead of num_train_epochs or max_steps; rounded up to whole rollouts.
        num_ppo_epochs: How often each rollout is trained on.
        num_mini_batches: The optimizer steps of one pass over a rollout, so that a rollout has num_mini_batches *
            gradient_accumulation_steps * per_device_train_batch_size completions on each process.
        response_length: The most tokens of a completion.
        stop_token: Completions end at the tokenizer's EOS token, with ``eos`` and with None. With None, TRL up to 1.12 let all run to
            response_length.
        stop_token_id: A further token that ends completions.
        missing_eos_penalty: What is subtracted from the score of a completion without an end.
        truncated_completions: What a completion without an end counts: ``score`` its score, ``penalty`` its score minus
            missing_eos_penalty (as score does where there is one), ``mask`` nothing.
        kl_coef: The weight of the KL divergence from the reference policy, which is subtracted from the reward of each token.
        kl_estimator: How it is estimated for a token: ``k1`` is the log-ratio, and ``k3`` has a lower variance and is never negative.
        adaptive_kl_target: The KL divergence of a completion that kl_coef is adapted to reach; None keeps kl_coef.
        adaptive_kl_horizon: The number of completions over which kl_coef is adapted.
        max_kl: The mean KL divergence of a completion at which the training ends with an error.
        cliprange: How far the ratio of new to old probability may leave 1 before its gradient is cut.
        target_kl: The KL divergence from the policy that sampled a rollout at which the remaining passes over it are skipped.
        critic: Where the value model starts: ``policy`` from a copy of the policy, ``reward`` from a copy of the reward model, ``head``
            as a linear head on the policy.
        critic_learning_rate: The learning rate of the value model; learning_rate if None.
        critic_warmup_steps: The first optimizer steps, in which the value model alone learns.
        vf_coef: The weight of the value loss.
        cliprange_value: How far a value may leave that of the rollout before its gradient is cut.
        gamma: The discount of the rewards of later tokens.
        lam: The lambda of generalized advantage estimation: 0 trusts the value model, 1 the rewards.
        whiten_advantages: Whether the advantages of a rollout are brought to mean 0 and standard deviation 1.
        whiten_rewards: Whether the rewards of a rollout's tokens are brought to standard deviation 1.
        reward_scaling: ``running`` divides scores by their standard deviation so far.
        reward_clip: Scores are limited to between minus this and this, after the scaling.
        pack: Whether the models read completions without padding, if the model allows it.
        max_batch_tokens: The most tokens that a model reads at a time with pack; by default it depends on the device.
        local_rollout_forward_batch_size: The most completions that a model reads at a time while a rollout is made.
        num_sample_generations: How often during the training completions for the evaluation prompts are sampled and shown: it sets
            eval_strategy, eval_steps and log_completions. 0 leaves these as they are.
        model_adapter_name: The adapter of the policy that is trained, if it has several.
        ref_adapter_name: The adapter of the policy that is the reference policy.
        dataset_num_proc: Has no effect: prompts are tokenized as completions are sampled. Scripts for TRL up to 1.12 read it where they
            tokenize the dataset themselves.

    Raises:
        SpecError: A value is out of its range, or two contradict each other.
        UnsupportedError: An argument is one that PPO does not have.
    """

    learning_rate: float = 3e-6
    temperature: float = 0.7
    disable_dropout: bool = True
    bf16: bool | None = None
    num_generations: int = 1
    num_generations_eval: int | None = None

    sft_model_path: str | None = None
    reward_model_path: str | None = None
    total_episodes: int | None = None
    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    response_length: int = 53
    stop_token: Literal["eos"] | None = None
    stop_token_id: int | None = None
    missing_eos_penalty: float | None = None
    truncated_completions: Literal["score", "mask", "penalty"] = "score"
    kl_coef: float = 0.05
    kl_estimator: Literal["k1", "k3"] = "k1"
    adaptive_kl_target: float | None = None
    adaptive_kl_horizon: int = 10_000
    max_kl: float | None = None
    cliprange: float = 0.2
    target_kl: float | None = None
    critic: Literal["policy", "reward", "head"] = "policy"
    critic_learning_rate: float | None = None
    critic_warmup_steps: int = 0
    vf_coef: float = 0.1
    cliprange_value: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    reward_scaling: Literal["none", "running"] = "none"
    reward_clip: float | None = None
    pack: bool = True
    max_batch_tokens: int | None = None
    local_rollout_forward_batch_size: int = 64
    num_sample_generations: int = 0
    model_adapter_name: str | None = None
    ref_adapter_name: str | None = None
    dataset_num_proc: int | None = None

    # What the living trainer reads under its own names is derived from the fields above, and so is no argument.
    beta: float = field(init=False, default=0.05)
    epsilon: float = field(init=False, default=0.2)
    num_iterations: int = field(init=False, default=4)
    max_completion_length: int = field(init=False, default=53)
    steps_per_generation: int | None = field(init=False, default=None)
    generation_batch_size: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_grpo_arguments(self)
        check_ranges(self)
        check_choices(self)
        self._check_contradictions()
        self._evaluate_for_samples()
        given: bool | None = vars(self)["bf16"]
        self.bf16 = bf16_by_default(self.fp16) if given is None else given
        generations = self.num_generations, self.num_generations_eval
        # GRPO needs groups of two and divides batches by them; PPO's own numbers are checked below.
        self.num_generations, self.num_generations_eval, self.steps_per_generation = 2, 1, 2
        self.generation_batch_size = None
        with without_noise():
            super().__post_init__()
        check_generation(self)
        if self.torch_compile:
            raise UnsupportedError(
                "torch_compile=True compiles for batches of one shape, and PPO reads completions without padding, in batches of any. Leave "
                "it out."
            )
        self.num_generations, self.num_generations_eval = generations
        self._derive()
        self._is_made = True
        self._check_batches()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the arguments of TRL's trainer that are derived from it follow."""
        super().__setattr__(name, value)
        if name in _DERIVED_FROM and "_is_made" in vars(self):
            self._derive()

    def _derive(self) -> None:
        self.beta, self.epsilon = self.kl_coef, self.cliprange
        self.num_iterations, self.max_completion_length = self.num_ppo_epochs, self.response_length
        self.steps_per_generation = self.gradient_accumulation_steps * self.num_mini_batches
        self.generation_batch_size = self.batch_size

    @property
    def micro_batch_size(self) -> int:
        """The completions of one backward pass, over all processes."""
        return int(self.per_device_train_batch_size * self.world_size)

    @property
    def local_mini_batch_size(self) -> int:
        """The completions of an optimizer step on each process."""
        return int(self.per_device_train_batch_size * self.gradient_accumulation_steps)

    @property
    def mini_batch_size(self) -> int:
        """The completions of an optimizer step, over all processes."""
        return int(self.local_mini_batch_size * self.world_size)

    @property
    def local_batch_size(self) -> int:
        """The completions of a rollout on each process."""
        return self.local_mini_batch_size * self.num_mini_batches

    @property
    def batch_size(self) -> int:
        """The completions of a rollout, over all processes."""
        return self.mini_batch_size * self.num_mini_batches

    @property
    def num_total_batches(self) -> int | None:
        """The rollouts that ``total_episodes`` need; None if it is not given."""
        return None if self.total_episodes is None else math.ceil(self.total_episodes / self.batch_size)

    @property
    def episode_steps(self) -> int | None:
        """The optimizer steps that ``total_episodes`` need, the trainer's ``max_steps``; None if it is not given."""
        batches = self.num_total_batches
        return None if batches is None else batches * self.num_ppo_epochs * self.num_mini_batches

    def to_dict(self) -> dict[str, Any]:
        """The arguments as plain values, for trackers and files."""
        return {**super().to_dict(), "stop_token": self.stop_token}  # transformers hides what ends in "_token"

    def check_other_names(self, given: Mapping[str, Any]) -> None:
        """Check arguments whose names are not fields here: each must have its derived value.

        Raises:
            UnsupportedError: One has another value; the message names the argument to set instead.
        """
        check_other_names(self, given)

    def _check_contradictions(self) -> None:
        if self.auto_find_batch_size:
            raise UnsupportedError(
                "auto_find_batch_size would change a rollout's size while it is trained on. Set a smaller per_device_train_batch_size, "
                "and a larger gradient_accumulation_steps to keep the minibatch."
            )
        if self.stop_token is not None and self.stop_token_id is not None:
            raise SpecError("stop_token and stop_token_id both say where a completion ends. Give one of them.")
        if self.truncated_completions == "penalty" and self.missing_eos_penalty is None:
            raise SpecError("truncated_completions='penalty' needs the penalty: set missing_eos_penalty, such as 1.0.")
        if self.truncated_completions == "mask" and self.missing_eos_penalty is not None:
            raise SpecError(
                "truncated_completions='mask' leaves out the completions that missing_eos_penalty is for. Give one of them."
            )
        if self.adaptive_kl_target is not None and self.kl_coef == 0:
            raise SpecError(
                "adaptive_kl_target multiplies kl_coef, which is 0 and would stay 0. Set kl_coef above 0, such as 0.05."
            )
        if self.max_batch_tokens is not None and not self.pack:
            raise SpecError("max_batch_tokens limits packed rows, and pack is False. Leave one of them out.")

    def _evaluate_for_samples(self) -> None:
        """Let ``num_sample_generations`` evaluations sample completions, as evenly as steps allow."""
        if not self.num_sample_generations:
            return
        share = 1 / max(self.num_sample_generations, 2)  # transformers takes a number below 1 as a share of all steps
        set_now = vars(self)
        strategy = getattr(set_now["eval_strategy"], "value", set_now["eval_strategy"])
        if strategy != "no" and (strategy, set_now["eval_steps"]) != ("steps", share):
            raise SpecError(
                f"num_sample_generations={self.num_sample_generations} sets eval_strategy='steps' and eval_steps={share:g}, and "
                f"eval_strategy is {strategy!r} with eval_steps {set_now['eval_steps']}. Leave num_sample_generations at 0, and set "
                "log_completions=True to see samples at each evaluation."
            )
        self.eval_strategy, self.eval_steps, self.log_completions = "steps", share, True

    def _check_batches(self) -> None:
        if self.batch_size % self.num_generations:
            raise SpecError(
                f"A rollout has {self.batch_size} completions (per_device_train_batch_size {self.per_device_train_batch_size} * "
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} * num_mini_batches {self.num_mini_batches} * "
                f"{self.world_size} processes), which num_generations={self.num_generations} does not divide. Change one of them."
            )
        generations = self.num_generations_eval or self.num_generations
        evaluated = self.per_device_eval_batch_size * self.world_size
        if self.eval_strategy != "no" and evaluated % generations:
            which = "num_generations_eval" if self.num_generations_eval else "num_generations"
            raise SpecError(
                f"An evaluation batch has {evaluated} completions (per_device_eval_batch_size {self.per_device_eval_batch_size} * "
                f"{self.world_size} processes), which {which}={generations} does not divide. Set num_generations_eval=1, or a "
                "per_device_eval_batch_size that it divides."
            )
        if self.episode_steps is not None and self.max_steps > 0 and self.max_steps != self.episode_steps:
            raise SpecError(
                f"total_episodes={self.total_episodes} are {self.episode_steps} optimizer steps, and max_steps is {self.max_steps}. "
                "Give one of them."
            )
