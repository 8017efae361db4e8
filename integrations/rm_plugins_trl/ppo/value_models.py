"""The sequence classifiers that PPO's value models are: made of the policy, loaded from a folder, and checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification

from rm_plugins.engine.prefix_cache import is_causal, is_decoder
from rm_plugins.errors import ModelError
from rm_plugins.missing_path import not_there
from rm_plugins.models.adapters import without_adapter
from rm_plugins.models.checkpoint import load_model, module_of
from rm_plugins.models.embeddings import embedded_tokens
from rm_plugins.models.model_folder import found_file, load_config, load_tokenizer, reason_in_short
from rm_plugins.models.own_weights import own_weights
from rm_plugins.models.settings import ModelSettings
from rm_plugins.models.trained_elsewhere import trained_elsewhere

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CODE_SETTING = "PPOConfig(trust_remote_code=True)"
"""What lets the code in a policy's checkpoint run."""

_ADVICE = "Give a sequence classifier with one label as `value_model`."
_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "  Zwölf naïve Ångström, 東京 🙂 1,234.50 + 67 = ?",
    "def f(x):\n\treturn [x, 2*x]  # doubled",
)
"""Texts that tokenizers of different families split differently."""


def policy_as_value_model(
    policy: PreTrainedModel, *, trust_remote_code: bool = False, advice: str = _ADVICE
) -> PreTrainedModel:
    """A sequence classifier with one label, a random head, and a backbone with the policy's weights.

    Args:
        policy: A causal language model, which stays as it is; the adapter of a PEFT model is merged in the copy. A copy of the policy is
            then in memory for a moment, in addition to the classifier.
        trust_remote_code: Whether code in the policy's checkpoint may run.
        advice: The end of the error's message.

    Raises:
        ModelError: There is no sequence classifier for the policy's architecture, or the weights do not fit it.
    """
    try:
        plain = deepcopy(policy).merge_and_unload() if is_peft_model(policy) else policy
        model = empty_classifier(plain.config, plain.dtype, trust_remote_code=trust_remote_code)
        backbone = getattr(plain, plain.base_model_prefix)
        getattr(model, model.base_model_prefix).load_state_dict(backbone.state_dict())
    except (AttributeError, RuntimeError, ValueError) as error:
        reason = reason_in_short(error, CODE_SETTING)
        raise ModelError(
            f"The policy ({type(policy).__name__}) cannot be turned into a value model: {reason} {advice}"
        ) from error
    return model


def empty_classifier(config: PretrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool) -> PreTrainedModel:
    """A sequence classifier with one label and random weights; `config` is copied."""
    config = deepcopy(config)
    config.num_labels = 1
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        config, dtype=dtype, trust_remote_code=trust_remote_code
    )
    return model


def zero_head(model: PreTrainedModel) -> PreTrainedModel:
    """Set the weights of a classifier's head to zero, so that every value is zero until it has learned; returns the model."""
    with torch.no_grad():
        for parameter in model.score.parameters():
            parameter.zero_()
    return model


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Switch off dropout for good, that of layers and that of attention and other functions; returns the model."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return model


def load_value_model(
    source: str, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A sequence classifier on the CPU from a folder or hub id, and the tokenizer beside it, if there is one.

    A language model gets one label and a head of zeros. An adapter of a classifier is merged.

    Args:
        source: The folder or hub id, with weights as safetensors.
        dtype: The dtype of the weights.
        trust_remote_code: Whether code in the checkpoint may run.

    Raises:
        ModelError: It is not a model, has no weights as safetensors, lacks weights beside the head, or has code that may not run.
    """
    if not Path(source).is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ModelError(f"There is no folder {source!r} to load a value model from{not_there(Path(source), source)}")
    config = load_config(source, code_setting=CODE_SETTING, trust_remote_code=trust_remote_code)
    if config is not None and _is_language_model(source, config):
        base, model = None, _with_new_head(source, dtype, trust_remote_code)
    else:
        name = str(dtype).removeprefix("torch.")
        settings = ModelSettings(device="cpu", dtype=name, trust_remote_code=trust_remote_code)  # type: ignore[arg-type]
        model, base = load_model(source, settings)
        model = without_adapter(model, source)
    model.requires_grad_(True)  # an adapter's base is frozen
    return model, _tokenizer_beside(source, base, trust_remote_code=trust_remote_code)


def _tokenizer_beside(source: str, base: str | None, *, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    places = [place for place in (source, base) if place and found_file(place, "tokenizer_config.json", None)]
    if not places:
        return None
    return load_tokenizer(places, source, code_setting=CODE_SETTING, trust_remote_code=trust_remote_code)


def _is_language_model(source: str, config: PretrainedConfig) -> bool:
    """Whether a checkpoint has no head of a classifier, neither transformers' nor that of another engine."""
    if not str((config.architectures or [""])[0]).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return False
    elsewhere = trained_elsewhere(source, config)
    return elsewhere is None or (elsewhere.head is None and elsewhere.outputs is None and elsewhere.unusable is None)


def _with_new_head(source: str, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source,
            num_labels=1,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # from the hub, transformers, safetensors or torch
        raise ModelError(
            f"The value model {source} cannot be loaded: {reason_in_short(error, CODE_SETTING)} {_ADVICE}"
        ) from error
    missing = sorted(key for key in info["missing_keys"] if module_of(model, key) != "score")
    if missing or not isinstance(getattr(model, "score", None), nn.Module):
        lacks = f"its checkpoint has no weights for {', '.join(missing[:3])}" if missing else "it has no score head"
        raise ModelError(f"The value model {source} cannot be used: {lacks}. {_ADVICE}")
    return zero_head(own_weights(model))


def check_value_model(model: Any, name: str) -> None:
    """Check that a model gives one value for each token, from the tokens up to it.

    Args:
        model: The model.
        name: What messages call it.

    Raises:
        ModelError: It has an adapter, no score head, several labels, or reads later tokens.
    """
    kind = type(model).__name__
    load = "AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=1)"
    if is_peft_model(model) or hasattr(model, "peft_config"):
        raise ModelError(
            f"{name} ({kind}) has an adapter, and all of a value model is trained. Merge the adapter first: "
            "value_model=MODEL.merge_and_unload()."
        )
    if not is_decoder(model):
        raise ModelError(
            f"{name} ({kind}) is not a decoder that scores hidden states with a head named `score`. An encoder would read the tokens that "
            f"are still to come, so its values would be wrong. Load a decoder of the policy's vocabulary: {load}."
        )
    if not is_causal(model):
        raise ModelError(
            f"{name} ({kind}) has attention to later tokens (`is_causal`, `use_bidirectional_attention` in its configuration), so its "
            f"values would depend on tokens that are still to come. Load a decoder with causal attention: {load}."
        )
    if not isinstance(getattr(model, "score", None), nn.Module):
        raise ModelError(f"{name} ({kind}) has no score head. Load it as a sequence classifier: {load}.")
    if model.config.num_labels != 1:
        raise ModelError(
            f"{name} ({kind}) has {model.config.num_labels} labels ({', '.join(map(str, model.config.id2label.values()))}), and a value is "
            "one number. Give a sequence classifier with one label."
        )


def policy_vocabulary(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that a policy can write, and their ids.

    Tokens beyond its embeddings are left out, as is the padding token unless it also ends texts: no row has them.

    Args:
        policy: The policy.
        tokenizer: Its tokenizer.
    """
    known = embedded_tokens(policy)
    plain = _plain(tokenizer)
    padding = {plain.pad_token} - {plain.eos_token}
    return {token: number for token, number in _ids(plain).items() if number < known and token not in padding}


def vocabulary_digest(vocabulary: Mapping[str, int]) -> str:
    """The SHA-256 of tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()


def check_vocabulary(
    model: PreTrainedModel,
    name: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    own_tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Check that a value model reads the policy's token ids as the same tokens.

    With its own tokenizer, the token ids are compared; it may have more tokens, and embeddings may have different numbers of unused rows,
    as in Qwen2.5's models of different sizes. Without one, the embeddings must have equally many rows.

    Args:
        model: The value model.
        name: What messages call it.
        policy: The policy.
        tokenizer: The policy's tokenizer.
        own_tokenizer: The value model's, if it is known.

    Raises:
        ModelError: The vocabularies differ.
    """
    known, of_policy = embedded_tokens(model), embedded_tokens(policy)
    if own_tokenizer is None:
        if known != of_policy and math.isfinite(known):
            raise ModelError(
                f"{name} has embeddings of {known:,} token ids and no tokenizer beside it, and the policy's are of {of_policy:,}, so it "
                "cannot be seen that they have the same vocabulary. Name a folder or hub id with a tokenizer as `value_model`."
            )
        return
    if difference := _difference(policy, tokenizer, own_tokenizer):
        raise ModelError(
            f"{name} has another vocabulary than the policy: {difference}. It would read the policy's token ids as other text. Use a "
            "model that was trained with the policy's tokenizer."
        )
    most = 1 + max(policy_vocabulary(policy, tokenizer).values())
    if known < most:
        raise ModelError(
            f"{name} has embeddings of {known:,} token ids, and the policy writes {most:,}. Use a model of the policy's vocabulary."
        )


def _difference(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """The first difference of another tokenizer from the policy's, in words."""
    ids = _ids(other)
    for token, number in sorted(policy_vocabulary(policy, tokenizer).items(), key=lambda item: item[1]):
        if ids.get(token) != number:
            has = "lacks it" if token not in ids else f"gives it the id {ids[token]}"
            return f"the policy's tokenizer has the token {token!r} with the id {number}, and the other {has}"
    for text in _PROBES:
        split = [_plain(one)(text, add_special_tokens=False)["input_ids"] for one in (tokenizer, other)]
        if split[0] != split[1]:
            counts = " and ".join(str(len(tokens)) for tokens in split)
            return f"the two tokenizers make different token ids ({counts}) of the text {text!r}"
    return None


def _ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    vocabulary: dict[str, int] = _plain(tokenizer).get_vocab()
    return vocabulary


def _plain(tokenizer: Any) -> Any:
    """The tokenizer of a processor, or the tokenizer itself."""
    return getattr(tokenizer, "tokenizer", tokenizer)
