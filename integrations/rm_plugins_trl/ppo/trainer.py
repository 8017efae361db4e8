"""PPO on TRL's GRPO trainer (TRL 1.13 and later), with any provider as its reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sized
from contextlib import ExitStack
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model, parse_flag_from_env
from torch import Tensor, nn

from rm_plugins.engine.token_forward import TokenForward
from rm_plugins.errors import DataError, TrainingError, UnsupportedError
from rm_plugins_trl.configs import given_configuration, own_copy
from rm_plugins_trl.ppo.config import PPOConfig
from rm_plugins_trl.ppo.critic import add_group, checkpointing, make_critic, trained_groups
from rm_plugins_trl.ppo.kl import AdaptiveKl
from rm_plugins_trl.ppo.losses import policy_loss, value_loss
from rm_plugins_trl.ppo.policy import load_policy, policy_tokenizer, reference_of
from rm_plugins_trl.ppo.progress import Progress
from rm_plugins_trl.ppo.prompts import no_prompts, placeholder, prompt_datasets, too_few_prompts
from rm_plugins_trl.ppo.rewards import CompletionRewards, reward_functions
from rm_plugins_trl.ppo.rollout import Reading, Rollout
from rm_plugins_trl.ppo.rollout_trainer import CALMER, RolloutTrainer
from rm_plugins_trl.ppo.steps import StepRewards
from rm_plugins_trl.reward_training.checkpoints import checkpoint_to_resume
from rm_plugins_trl.reward_training.quiet import without_noise
from rm_plugins_trl.trl_internals import SyncRefModelCallback, is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from rm_plugins_trl.reward_scoring import Spec

SHARDED = (
    "PPO does not run under FSDP or DeepSpeed: its critic is a second model beside the policy. Use plain data parallelism (`accelerate "
    "launch --multi_gpu`), with an adapter and `critic='head'` for a policy that is too large for it."
)


class PPOTrainer(RolloutTrainer):
    """Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347) of a language model, with any provider as its reward.

    Prompts, generation, tools, environments, reward functions, adapters and the log of completions are those of TRL's
    ``GRPOTrainer``. PPO adds a critic, a KL penalty for each token, generalized advantage estimates, and several epochs of minibatches
    with clipped losses. All averages are over the tokens of a minibatch in all processes, so that the number of processes does not
    change an update.

    Only the policy, the reward and the prompts are required. The first arguments have the names and the order of TRL 1.12's
    ``PPOTrainer``.

    Args:
        args: The configuration.
        processing_class: The policy's tokenizer. By default the one beside the policy; EOS becomes the padding token of a
            tokenizer without one.
        model: The policy, or its folder or hub id; by default ``args.sft_model_path``.
        ref_model: The reference policy, by default a copy of the policy, or the policy without its adapter.
        reward_model: A reward: anything that `rm_plugins.load` takes, or a sequence classifier. By default ``args.reward_model_path``.
        train_dataset: Rows with ``prompt``, text or messages, or with ``input_ids``; every other column reaches the reward.
        value_model: The critic: a sequence classifier with one label, or its folder or hub id; by default what ``args.critic`` says.
        data_collator: Refused, because prompts are tokenized here.
        eval_dataset: Rows of the same kind, or several datasets by name.
        optimizers: The optimizer and the learning rate scheduler; those of `args` where None. The critic's parameters are added.
        callbacks: Callbacks beside TRL's own.
        peft_config: The adapter that the policy is trained with.
        config: Another name of `args`.
        reward_funcs: Several rewards in place of `reward_model`, each as there, or a function with TRL's signature. They are weighed by
            ``args.reward_weights``.
        tools: Functions that the policy may call, as in GRPO.
        environment_factory: Environments, as in GRPO.
        rollout_func: Your own rollout, as in GRPO.
        quantization_config: How a policy given by name is quantized.

    Raises:
        SpecError: A reward's spec is wrong.
        ModelError: The policy has no tokenizer beside it, or the critic does not fit it.
        DataError: A dataset is empty, or its first row has no prompt.
        UnsupportedError: There is no policy, no reward or no prompts, or the arguments contradict each other.
    """

    def __init__(
        self,
        args: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model: PreTrainedModel | str | None = None,
        ref_model: PreTrainedModel | None = None,
        reward_model: Spec | nn.Module | None = None,
        train_dataset: Any = None,
        value_model: PreTrainedModel | str | None = None,
        data_collator: Any = None,
        eval_dataset: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        *,
        config: Any = None,
        reward_funcs: Any = None,
        tools: list[Callable[..., Any]] | None = None,
        environment_factory: Any = None,
        rollout_func: Any = None,
        quantization_config: Any = None,
    ) -> None:
        args = _arguments(given_configuration(args, config))
        if data_collator is not None:
            raise UnsupportedError(
                "PPOTrainer takes prompts and tokenizes them itself, so it has no use for a `data_collator`."
            )
        self.settings: PPOConfig = args
        rewards = reward_functions(
            reward_model, reward_funcs, args.reward_model_path, is_optional=environment_factory is not None
        )
        rewards.check_not_trained(value_model)
        with without_noise(disable_bars=args.disable_tqdm):
            policy = load_policy(model, args, quantization_config)
        tokenizer = policy_tokenizer(policy, processing_class, trust_remote_code=args.trust_remote_code)
        datasets = prompt_datasets(train_dataset, eval_dataset, tokenizer, has_environment=environment_factory is not None)
        has_prompts = datasets.train is not None or environment_factory is not None
        reference = reference_of(policy, ref_model, args, peft_config, tokenizer)
        reference.check_sync(args)
        critic = make_critic(
            value_model if value_model is not None else args.critic,
            policy,
            rewards.provider,
            tokenizer,
            max_tokens=args.max_batch_tokens,
            trust_remote_code=args.trust_remote_code,
        )
        kl_coef, args.beta = args.kl_coef, 0.0  # TRL would load a reference of its own
        sync_ref_model, args.sync_ref_model = args.sync_ref_model, False
        loading, args.model_init_kwargs = args.model_init_kwargs, None  # the policy is loaded already, of which TRL would warn
        with without_noise(disable_bars=args.disable_tqdm):
            super().__init__(
                model=policy,
                reward_funcs=rewards.functions,
                args=args,
                train_dataset=datasets.train if has_prompts else placeholder(args.generation_batch_size),
                eval_dataset=datasets.evaluation,
                processing_class=tokenizer,
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=deepcopy(peft_config),  # the trainer writes the policy's name into it
                tools=tools,
                environment_factory=environment_factory,
                rollout_func=rollout_func,
            )
        args.beta, args.sync_ref_model, args.model_init_kwargs = kl_coef, sync_ref_model, loading
        if args.stop_token_id is not None and args.stop_token_id not in self.end_tokens:
            raise UnsupportedError(
                f"stop_token_id needs TRL 1.15 or later, and TRL {version('trl')} is installed, where completions end at the tokenizer's "
                "EOS token alone. Leave it out, or upgrade: `pip install -U trl`."
            )
        if not has_prompts:
            self.train_dataset = None
        if is_sharded(self):
            raise UnsupportedError(SHARDED)
        self.reward_model: Any = rewards.functions[0] if len(rewards.functions) == 1 else None
        self.reference = reference.prepared(self.accelerator)
        self._policy = self._reader(self.model)
        if self.reference.model is not None:
            self._reader(self.accelerator.unwrap_model(self.reference.model))
        if sync_ref_model:
            self.add_callback(SyncRefModelCallback(ref_model=self.reference.model, accelerator=self.accelerator))
        self.critic = critic.to(self.accelerator.device).train()
        if getattr(args, "activation_checkpointing", args.gradient_checkpointing):
            with without_noise():
                self.critic.gradient_checkpointing_enable(checkpointing(args))
        self._critic: Any = self.accelerator.prepare_model(self.critic)
        self._completion_rewards = CompletionRewards(args)
        self._steps = StepRewards(rewards.functions)
        self.progress = Progress(
            AdaptiveKl(kl_coef, args.adaptive_kl_target, args.adaptive_kl_horizon),
            self._completion_rewards.scale,
            self._fixed(),
        )
        self._attention = ExitStack()

    def _reader(self, model: Any) -> TokenForward:
        """Lets a policy be read token by token."""
        plain = model.get_base_model() if is_peft_model(model) else model
        reader = TokenForward(plain, self.settings.max_batch_tokens, temperature=self.settings.temperature)
        reader.packs = reader.packs and self.settings.pack
        return reader

    def _fixed(self) -> dict[str, Any]:
        """The settings that decide what a checkpoint's rollout means."""
        names = (
            "num_mini_batches",
            "num_ppo_epochs",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "num_generations",
            "sync_ref_model",
        )
        return {"processes": self.accelerator.num_processes, **{name: getattr(self.args, name) for name in names}}

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; returns what transformers' trainer does.

        Args:
            resume_from_checkpoint: The folder of a checkpoint, or True for the last complete one in ``args.output_dir``.
            args: What else transformers' trainer takes.
            kwargs: What else transformers' trainer takes.

        Raises:
            DataError: There are no prompts to train on, or fewer than one rollout needs; or a checkpoint is incomplete, or of another
                training.
            ScoringError: The reward failed, or abstained on all completions of a rollout.
            TrainingError: A loss or the KL divergence is not finite, or the divergence is above ``max_kl``.
        """
        if self.train_dataset is None:
            raise no_prompts()
        prompts = self.args.generation_batch_size // self.num_generations
        if isinstance(self.train_dataset, Sized) and len(self.train_dataset) < prompts:
            raise too_few_prompts(
                len(self.train_dataset),
                prompts,
                "per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches * processes / num_generations",
            )
        self.progress.begin()
        checkpoint = checkpoint_to_resume(resume_from_checkpoint, Path(self.args.output_dir))
        with without_noise(disable_bars=self.args.disable_tqdm):
            return super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)

    # --- Updates ----------------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass; nothing where ``target_kl`` has ended the updates of this rollout."""
        args, progress = self.args, self.progress
        place = progress.advance(
            self.state.global_step, args.gradient_accumulation_steps, args.steps_per_generation * self.num_iterations
        )
        if progress.begins_step:
            self.critic.zero_grad()
        if progress.has_ended and place and progress.rollout is not None:
            return torch.zeros((), device=self.accelerator.device)
        with ExitStack() as self._attention:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of one batch of an evaluation; takes and returns what transformers' trainer does."""
        with ExitStack() as self._attention:
            return super().prediction_step(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: Rollout, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The loss of policy and critic for some completions.

        Raises:
            TrainingError: It is not finite.
        """
        settings, batch = self.settings, inputs
        is_token, alone = batch.is_token, self.critic_alone
        mask = batch.mask[is_token]
        read, self._reading = self._reading or self._read_again(model, batch), None
        values = read.values
        of_value = value_loss(values, batch.values[is_token], batch.returns[is_token], settings.cliprange_value)
        sums = {"loss/value_avg": of_value.loss, "val/clipfrac_avg": of_value.is_clipped.float()}
        per_token = settings.vf_coef * of_value.loss
        if not alone:
            assert read.log_probs is not None and read.entropy is not None
            log_ratio = read.log_probs - batch.log_probs[is_token]
            of_policy = policy_loss(log_ratio, batch.advantages[is_token], settings.cliprange)
            loss = of_policy.loss if batch.weights is None else of_policy.loss * batch.weights[is_token]
            per_token = per_token + loss - settings.entropy_coef * read.entropy
            sums |= {
                "loss/policy_avg": loss,
                "policy/clipfrac_avg": of_policy.is_clipped.float(),
                "policy/approxkl_avg": 0.5 * log_ratio.square(),
                "policy/entropy_avg": read.entropy,
                "val/ratio": log_ratio.exp(),
            }
        self._record_updates(sums, mask)
        mean = torch.where(mask, per_token, 0.0).sum() / self._tokens(mask)
        return mean * int(self.accelerator.num_processes)  # data parallelism divides by it

    def _read_again(self, model: nn.Module, batch: Rollout) -> Reading:
        if self.critic_alone and not self.critic.needs_hidden:
            return Reading(self.read_values(batch.rows, batch.starts, None))
        policy = self.read_policy(model, batch.rows, batch.starts)
        return Reading(self.read_values(batch.rows, batch.starts, policy.hidden), policy.log_probs.float(), policy.entropy)

    def _tokens(self, mask: Tensor) -> float:
        """The number of tokens that the loss is a mean over: those of the minibatch, in all its forward passes and processes."""
        if self.mode == "eval":
            return max(float(self._total(mask.sum())), 1.0)
        return self.progress.minibatch_tokens(self.args.steps_per_generation, self.args.gradient_accumulation_steps)

    def _record_updates(self, sums: Mapping[str, Tensor], mask: Tensor) -> None:
        stacked = torch.stack([torch.where(mask, numbers.detach(), 0.0).double().sum() for numbers in sums.values()])
        *totals, count = self._total(torch.cat([stacked, mask.sum().double()[None]])).tolist()
        means = {name: total / max(count, 1.0) for name, total in zip(sums, totals, strict=True)}
        broken = [name for name, mean in means.items() if not math.isfinite(mean)]
        if broken:
            raise TrainingError(self._broken(broken[0], means[broken[0]]))
        self.record(means)
        if self.mode == "train" and "policy/approxkl_avg" in means:
            self.progress.see_kl(
                means["policy/approxkl_avg"], self.settings.target_kl, ends_step=self.accelerator.sync_gradients
            )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer of policy and critic."""
        optimizer = super().create_optimizer(*args, **kwargs)
        present = {id(one) for group in optimizer.param_groups for one in group["params"]}
        if not present & {id(one) for one in self.critic.parameters()}:
            given = self.settings.critic_learning_rate
            rate = self.settings.learning_rate if given is None else given
            for group in trained_groups(self.critic, rate, self.args.weight_decay):
                add_group(optimizer, self.lr_scheduler, group)
            optimizer.register_step_pre_hook(self._before_step)
        return optimizer

    def _before_step(self, *_: Any) -> None:
        if self.critic_alone:
            for parameter in self.model.parameters():
                parameter.grad = None
        norm = _gradient_norm(self.critic)
        if self.accelerator.scaler is None:  # fp16's scaler leaves out a step that is not finite
            for name, found in (("policy", _gradient_norm(self.model)), ("critic", norm)):
                if not found.isfinite():
                    raise TrainingError(self._broken(f"the norm of the {name}'s gradient", float(found)))
        if self.args.max_grad_norm:
            nn.utils.clip_grads_with_norm_(self.critic.parameters(), self.args.max_grad_norm, norm)

    def _broken(self, what: str, value: float) -> str:
        return f"Step {self.state.global_step}: {what} is {value}. {self._evidence()} The weights are those before this step. {CALMER}"

    # --- Checkpoints ------------------------------------------------------------------------------------------------------

    def save_more(self, folder: str, *, is_checkpoint: bool) -> None:
        """Save the critic in ``critic/``, and in a checkpoint where the training is."""
        if self.accelerator.is_main_process:
            self.critic.save(Path(folder))
            if is_checkpoint and self.args.sync_ref_model:
                self.reference.save(Path(folder))
        if is_checkpoint:
            self.progress.save(Path(folder), self.accelerator.process_index)
            self.accelerator.wait_for_everyone()  # the file without which a checkpoint is incomplete is written later

    def load_more(self, folder: str) -> None:
        """Continue from a checkpoint.

        Raises:
            DataError: It was written with other batches, epochs or processes, or not by this trainer.
        """
        changed = self.progress.load(Path(folder), self.accelerator.process_index, self.accelerator.device)
        if changed:
            raise DataError(
                f"The training cannot be resumed from {folder} with other settings: {'; '.join(changed)}. Use the settings from before, or "
                "start a new training from the saved policy: PPOTrainer(model=FOLDER, value_model=FOLDER/critic, ...)."
            )
        self.critic.load(Path(folder))
        if self.args.sync_ref_model:
            self.reference.load(Path(folder))

    def load_best(self, folder: str) -> None:
        """Take over the critic that belongs to the policy."""
        self.critic.load(Path(folder))


def _gradient_norm(model: nn.Module) -> Tensor:
    return nn.utils.get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


def _arguments(given: Any) -> PPOConfig:
    """A copy of the configuration, with the number of optimizer steps that its episodes need.

    Raises:
        UnsupportedError: It is the configuration of another trainer, or asks for FSDP or DeepSpeed.
    """
    if given is None:
        given = PPOConfig()
    if not isinstance(given, PPOConfig):
        raise UnsupportedError(f"PPOTrainer needs a PPOConfig of rm_plugins_trl as `args`, not a {type(given).__name__}.")
    if given.fsdp or given.deepspeed or any(map(parse_flag_from_env, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))):
        raise UnsupportedError(SHARDED)
    args = own_copy(given)
    if args.episode_steps is not None:
        args.max_steps = args.episode_steps
    return args
