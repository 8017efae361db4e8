"""The policy that PPO trains, its tokenizer, and the reference from which it must not move far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from transformers import ProcessorMixin

from rm_plugins.errors import ModelError, UnsupportedError, did_you_mean
from rm_plugins.models.embeddings import embedded_tokens
from rm_plugins.models.model_folder import load_tokenizer
from rm_plugins_trl.language_models import load_language_model
from rm_plugins_trl.ppo.value_models import CODE_SETTING, policy_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_REFERENCE_ADAPTER = "ref"
_REFERENCE_FILE = "reference.pt"


def load_policy(model: PreTrainedModel | str | None, args: Any, quantization_config: Any = None) -> PreTrainedModel:
    """The policy, in float32 unless ``args.model_init_kwargs`` has another ``dtype``, with the adapter and the end token of `args`.

    Args:
        model: The policy, or its folder or hub id; by default ``args.sft_model_path``.
        args: The configuration of PPO.
        quantization_config: How a policy given by name is quantized.

    Raises:
        ModelError: It cannot be loaded, or has code of its own that may not run.
        UnsupportedError: There is none, or it has no adapter of the given name.
    """
    quantized = {} if quantization_config is None else {"quantization_config": quantization_config}
    settings = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {}), **quantized}
    policy = given_policy(args.sft_model_path if model is None else model, **settings)
    if args.model_adapter_name is not None:
        _check_adapter(policy, "model_adapter_name", args.model_adapter_name)
        policy.set_adapter(args.model_adapter_name)
    if args.stop_token_id is not None:
        ends = policy.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        policy.generation_config.eos_token_id = [*dict.fromkeys([*ends, args.stop_token_id])]
    return policy


def _check_adapter(policy: Any, setting: str, name: str) -> None:
    adapters = list(getattr(policy, "peft_config", None) or {})
    if name not in adapters:
        has = did_you_mean(name, adapters) if adapters else "It has none."
        raise UnsupportedError(f"{setting}={name!r} is not an adapter of the policy. {has}")


def given_policy(model: PreTrainedModel | str | None, **settings: Any) -> PreTrainedModel:
    """The policy itself, or what is loaded from its folder or hub id.

    Args:
        model: The policy, or its folder or hub id.
        settings: How one is loaded; see `rm_plugins_trl.language_models.load_language_model`.

    Raises:
        ModelError: It cannot be loaded, or has code of its own that may not run.
        UnsupportedError: There is none.
    """
    if model is None:
        raise UnsupportedError(
            "PPO needs a policy: PPOTrainer(..., model=MODEL), where MODEL is a model, a folder or a hub id."
        )
    return load_language_model(model, code_setting=CODE_SETTING, **settings) if isinstance(model, str) else model


def policy_tokenizer(
    policy: PreTrainedModel, given: PreTrainedTokenizerBase | None, *, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """A copy of the given tokenizer, or the one beside the policy; EOS becomes the padding token where there is none.

    Raises:
        ModelError: There is none beside the policy.
        UnsupportedError: It is a processor of images.
    """
    if isinstance(given, ProcessorMixin):
        raise UnsupportedError(
            f"PPO trains on text alone, and processing_class is a {type(given).__name__}, which reads images, too. Give its tokenizer: "
            "processing_class=PROCESSOR.tokenizer."
        )
    if given is not None:
        tokenizer = deepcopy(given)
    else:
        source = policy.config.name_or_path
        tokenizer = load_tokenizer(
            [source],
            f"the policy {source!r}",
            advice="Give it as `processing_class`.",
            code_setting=CODE_SETTING,
            padding_side="left",
            trust_remote_code=trust_remote_code,
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@dataclass(frozen=True)
class Reference:
    """The reference policy.

    Args:
        model: A model of its own; None if it is the policy with another adapter or without one, or if there is no KL penalty.
        adapter: The policy's adapter that is the reference; None for the policy without an adapter.
        is_used: Whether there is a KL penalty.
    """

    model: Any = None
    adapter: str | None = None
    is_used: bool = True

    def check_sync(self, args: Any) -> None:
        """Check that there is a model for ``sync_ref_model`` to change.

        Raises:
            UnsupportedError: There is none.
        """
        if args.sync_ref_model and self.model is None:
            raise UnsupportedError(
                "sync_ref_model=True moves a reference model towards the policy, and there is none: kl_coef is 0, or the reference is the "
                "policy with another adapter. Leave sync_ref_model out."
            )

    def prepared(self, accelerator: Any) -> Reference:
        """The same on the accelerator's device, without gradients."""
        if self.model is None:
            return self
        self.model.requires_grad_(False)
        return replace(self, model=accelerator.prepare_model(self.model, evaluation_mode=True))

    def save(self, folder: Path) -> None:
        """Write the weights of a model of its own, which moves with ``sync_ref_model``, into a checkpoint."""
        torch.save(self.model.state_dict(), folder / _REFERENCE_FILE)

    def load(self, folder: Path) -> None:
        """Take over the weights that `save` wrote."""
        self.model.load_state_dict(torch.load(folder / _REFERENCE_FILE, map_location="cpu", weights_only=True))

    @contextmanager
    def of(self, policy: Any) -> Iterator[Any]:
        """The model to call for the reference's log-probabilities; within it, a policy's adapters are the reference's."""
        if self.model is not None:
            yield self.model
        elif self.adapter is None:
            with policy.disable_adapter():
                yield policy
        else:
            trained = policy.active_adapter
            policy.set_adapter(self.adapter)
            try:
                yield policy
            finally:
                policy.set_adapter(trained)


def reference_of(
    policy: Any, given: PreTrainedModel | None, args: Any, peft_config: Any, tokenizer: PreTrainedTokenizerBase
) -> Reference:
    """The reference for a policy that is not trained yet.

    It is the given model, if there is one. Otherwise it is the policy without its new adapter, a copy of the adapter that the policy
    already has, or a copy of the policy.

    Raises:
        ModelError: The given model lacks tokens that the policy writes.
        UnsupportedError: The given model is the policy itself, or the policy has no adapter of the given name.
    """
    if not args.kl_coef and args.adaptive_kl_target is None and args.max_kl is None:
        return Reference(is_used=False)
    if given is not None:
        if given is policy:
            raise UnsupportedError("`ref_model` is the policy itself, which changes in training. Leave it out, or give a copy.")
        known, written = embedded_tokens(given), 1 + max(policy_vocabulary(policy, tokenizer).values())
        if known < written:
            raise ModelError(
                f"`ref_model` has embeddings of {known:,} token ids, and the policy writes {written:,}. Use a model of the policy's "
                "vocabulary."
            )
        return Reference(given)
    if peft_config is not None:
        return Reference()
    if args.ref_adapter_name is not None:
        _check_adapter(policy, "ref_adapter_name", args.ref_adapter_name)
    if not is_peft_model(policy):
        return Reference(deepcopy(policy))
    if args.ref_adapter_name is not None:
        return Reference(adapter=args.ref_adapter_name)
    trained = policy.active_adapter
    policy.add_adapter(_REFERENCE_ADAPTER, policy.peft_config[trained])
    for name, parameter in policy.named_parameters():
        if f".{trained}." in name:
            policy.get_parameter(name.replace(f".{trained}.", f".{_REFERENCE_ADAPTER}.")).data.copy_(parameter.data)
    return Reference(adapter=_REFERENCE_ADAPTER)
