"""Loads a sequence-classification checkpoint, and refuses one whose scores would mean nothing."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import cached_file

from rm_plugins.errors import MissingDependencyError, ModelError, RmPluginsError
from rm_plugins.scoring.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Checkpoint", "default_device", "load_checkpoint"]

_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model, its tokenizer, and the manifest beside it, if there is one."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    manifest: Manifest | None


def default_device() -> torch.device:
    """This process's accelerator (the one of its ``LOCAL_RANK`` under a launcher), else the CPU."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or not torch.accelerator.is_available():
        return torch.device("cpu")
    local_rank = os.environ.get("LOCAL_RANK")
    index = torch.accelerator.current_device_index() if local_rank is None else int(local_rank)
    return torch.device(accelerator.type, index % max(1, torch.accelerator.device_count()))


def load_checkpoint(
    source: str,
    *,
    tokenizer: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: torch.device,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Load a model folder, a LoRA adapter folder, or a hub id, for scoring.

    Args:
        source: The folder or id.
        tokenizer: Where the tokenizer is, if not beside the model.
        revision: The revision of a hub id.
        dtype: ``auto`` for float32 on a CPU and the checkpoint's own elsewhere, or the name of a dtype.
        device: Where the model runs.
        attn_implementation: Handed to transformers.
        trust_remote_code: Whether code in the checkpoint may run.

    Raises:
        ModelError: Nothing of that name is here or on the hub, it cannot be loaded, or it has no tokenizer, no
            configuration, or no trained classification head.
    """
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", _ADAPTER_CONFIG)):
        raise ModelError(f"{source} is no model folder: it has neither config.json nor {_ADAPTER_CONFIG}.")
    shared: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    arguments = {**shared, "dtype": _dtype(dtype, device), "use_safetensors": True}
    if attn_implementation is not None:
        arguments["attn_implementation"] = attn_implementation
    adapter = _found(source, _ADAPTER_CONFIG, revision)
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"] if adapter else None
    try:
        model = _load_adapter(source, base, arguments) if base else _load_whole(source, arguments)
        model = model.to(device).eval()
    except RmPluginsError:
        raise
    except Exception as error:  # the hub, transformers, safetensors and torch each have their own
        what = source if folder.exists() else f"{source!r} is no folder here, and as a model id it"
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{what} cannot be loaded: {type(error).__name__}: {reason}") from error
    manifest = _found(source, MANIFEST_NAME, revision)
    return Checkpoint(
        model,
        _load_tokenizer([tokenizer] if tokenizer else [source, base], source, shared),
        Manifest.read(manifest) if manifest else None,
    )


def _found(source: str, name: str, revision: str | None) -> Path | None:
    path = cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(path) if path else None


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    return torch.float32 if device.type == "cpu" else "auto"


def _load_whole(source: str, arguments: dict[str, Any]) -> PreTrainedModel:
    model, info = AutoModelForSequenceClassification.from_pretrained(source, output_loading_info=True, **arguments)
    missing = sorted(info["missing_keys"])
    if missing:
        architecture = ", ".join(model.config.architectures or []) or "no named architecture"
        raise ModelError(
            f"{source} is no trained reward model: its checkpoint ({architecture}) has no weights for "
            f"{', '.join(missing[:3])}, which would be random and so would every score. Train it as a sequence classifier "
            "first (`rm-plugins train`), or name another folder."
        )
    return model


def _load_adapter(source: str, base: str, arguments: dict[str, Any]) -> PreTrainedModel:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingDependencyError(f"{source} is a LoRA adapter; install peft to load it: pip install peft.") from error
    head_labels = _adapter_head_labels(source, arguments["revision"])
    shared = {**arguments, "revision": None}
    try:
        labels = AutoConfig.from_pretrained(base, trust_remote_code=arguments["trust_remote_code"]).num_labels
        model, info = AutoModelForSequenceClassification.from_pretrained(
            base,
            output_loading_info=True,
            num_labels=head_labels or labels,
            ignore_mismatched_sizes=head_labels is not None,  # the base may have a head of another size, which is replaced
            **shared,
        )
    except OSError as error:
        raise ModelError(f"{source} is an adapter of {base!r}, which cannot be loaded: {error}") from error
    if info["missing_keys"] and head_labels is None:
        raise ModelError(
            f"{source} is an adapter of {base!r}, and neither holds a trained score head ({', '.join(info['missing_keys'])}). "
            "Train the adapter with modules_to_save=['score'], as rm_plugins_trl.RewardTrainer does."
        )
    others = [key for key in map(_key, info["mismatched_keys"]) if not key.startswith(("score.", "classifier."))]
    if others:
        raise ModelError(
            f"{source} is an adapter of {base!r}, whose weights do not fit its configuration: {', '.join(others)}."
        )
    # The adapter lives inside the base model's layers, so the base model by itself scores with it.
    return PeftModel.from_pretrained(model, source, revision=arguments["revision"]).get_base_model()


def _key(mismatched: Any) -> str:
    """The name of a weight that does not fit, which transformers gives with both shapes."""
    return str(mismatched if isinstance(mismatched, str) else mismatched[0])


def _adapter_head_labels(source: str, revision: str | None) -> int | None:
    """The number of outputs of the head that an adapter carries; None if it carries none."""
    weights = _found(source, _ADAPTER_WEIGHTS, revision)
    if weights is None:
        raise ModelError(f"{source} has an {_ADAPTER_CONFIG} but no {_ADAPTER_WEIGHTS}.")
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if name.endswith(("score.weight", "classifier.weight", "classifier.out_proj.weight")):
                return int(file.get_slice(name).get_shape()[0])
    return None


def _load_tokenizer(sources: list[str | None], model: str, shared: dict[str, Any]) -> PreTrainedTokenizerBase:
    problem: Exception | None = None
    for source in filter(None, sources):
        try:
            found = AutoTokenizer.from_pretrained(source, **shared)
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = error
            continue
        # Without any of the tokenizer's files, transformers makes up one that knows its special tokens only.
        if len(found) > len(found.all_special_tokens):
            return found
        problem = ModelError(f"{source} has no tokenizer's files.")
    raise ModelError(
        f"No tokenizer could be loaded for {model}: {str(problem).partition(chr(10))[0]} Save the tokenizer beside the model, or "
        "name another with the spec's key 'tokenizer'."
    ) from problem
