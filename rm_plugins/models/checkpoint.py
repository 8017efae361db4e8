"""Loads sequence-classification checkpoints, and refuses those with meaningless scores."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from rm_plugins.engine.transformers_internals import loads_whole
from rm_plugins.errors import MissingDependencyError, ModelError, RmPluginsError, SpecError
from rm_plugins.models.adapters import check_adapter
from rm_plugins.models.manifest import MANIFEST_NAME, Manifest
from rm_plugins.models.model_folder import (
    found_file,
    is_pair_rm,
    load_config,
    load_tokenizer,
    read_manifest,
    read_model_json,
    reason_in_short,
)
from rm_plugins.models.placement import Placement
from rm_plugins.models.settings import ModelSettings
from rm_plugins.models.trained_elsewhere import trained_elsewhere
from rm_plugins.one_thread import OneThread

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_ADAPTER_CONFIG = "adapter_config.json"
_LONGEST_PATH = 1_024
_ADAPTER_WEIGHTS = "adapter_model.safetensors"

_ONE_THREAD = OneThread()

_Shapes: TypeAlias = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model, its tokenizer, and its manifest if it has one."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    manifest: Manifest | None


def load_checkpoint(source: str, settings: ModelSettings, model_class: type[PreTrainedModel] | None = None) -> Checkpoint:
    """Load a model folder, a LoRA adapter folder, or a hub id, for scoring.

    Args:
        source: The folder or hub id.
        settings: How the model is loaded.
        model_class: A class with one output that the checkpoint has in place of a sequence classifier.

    Raises:
        ModelError: As for `load_model`, or it has no tokenizer.
    """
    model, base = load_model(source, settings, model_class)
    return _beside(model, source, base, settings)


def load_model(
    source: str, settings: ModelSettings, model_class: type[PreTrainedModel] | None = None
) -> tuple[PreTrainedModel, str | None]:
    """Load the model of a model folder, a LoRA adapter folder, or a hub id, without its tokenizer; returns an adapter's base model, too.

    The arguments are those of `load_checkpoint`.

    Raises:
        ModelError: It is neither a folder nor a hub id, it cannot be loaded, or it has no configuration or no trained classification
            head.
    """
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", _ADAPTER_CONFIG)):
        raise ModelError(
            f"{source} is not a model folder: it has neither config.json nor {_ADAPTER_CONFIG}. Name a model folder."
        )
    arguments, placement = _arguments(settings)
    with _loading(source):
        base = _base_of(source, settings.revision)
        of_adapter = _load_adapter(source, base, arguments, placement)[0] if base else None
        model = _load_whole(source, arguments, placement, model_class) if of_adapter is None else of_adapter.get_base_model()
        model = placement.placed(model, source)
    return model, base


def load_adapters(adapters: Sequence[str], settings: ModelSettings) -> tuple[Iterator[Checkpoint], list[Callable[[], None]]]:
    """Load several LoRA adapters, folders or hub ids, into the one base model that they were trained on.

    Returns:
        A checkpoint for each adapter, all with the same model, and a function for each adapter that makes the model score with it. The
        checkpoints are yielded one by one, because several large tokenizers take as much memory as a small model.

    Raises:
        SpecError: An entry is not an adapter, or has another base model or number of labels than the first.
        ModelError: As for `load_checkpoint`.
    """
    bases: list[str | None] = []
    for source in adapters:
        with _loading(source):
            bases.append(_base_of(source, None))
    shapes: list[_Shapes] = []
    for place, (source, base) in enumerate(zip(adapters, bases, strict=True)):
        where = f"adapters[{place}]"
        if base is None:
            raise SpecError(f"{source} is not a LoRA adapter: it has no {_ADAPTER_CONFIG}.", key=where)
        if os.path.realpath(base) != os.path.realpath(str(bases[0])):
            raise SpecError(
                f"{source} is an adapter of {base!r}, but {adapters[0]} (adapters[0]) is one of {bases[0]!r}; all must have the same base "
                "model. Combine models with different base models with an `ensemble`.",
                key=where,
            )
        with _loading(source):
            shapes.append(_adapter_weights(source, None))
        labels, first = _head_labels(shapes[-1]), _head_labels(shapes[0])
        if labels != first:
            raise SpecError(
                f"{source} has {_head_in_words(labels)}, but {adapters[0]} (adapters[0]) has {_head_in_words(first)}; all must have "
                "the same number of labels.",
                key=where,
            )
    names = [f"member_{place}" for place in range(len(adapters))]  # peft would confuse a bare number with that of a layer
    with _loading(adapters[0]):
        arguments, placement = _arguments(settings)
        model, missing_in_base = _load_adapter(adapters[0], str(bases[0]), arguments, placement, names[0])
    for source, name, weights in zip(adapters[1:], names[1:], shapes[1:], strict=True):
        with _loading(source):
            _check_every_weight(model.get_base_model(), missing_in_base, source, str(bases[0]), weights)
            missing = model.load_adapter(source, adapter_name=name, torch_device="cpu").missing_keys
            if missing:
                raise ModelError(
                    f"{source} has no weights for {', '.join(missing[:3])}, although its {_ADAPTER_CONFIG} requires them. Save it again."
                )
        whole = placement.placed(model.get_base_model(), adapters[0])
    checkpoints = (_beside(whole, source, base, settings) for source, base in zip(adapters, bases, strict=True))
    return checkpoints, [partial(model.set_adapter, name) for name in names]


def _head_in_words(labels: int | None) -> str:
    return "no head of its own" if labels is None else f"a head of {labels} labels"


def _arguments(settings: ModelSettings) -> tuple[dict[str, Any], Placement]:
    """The arguments of transformers' ``from_pretrained`` that do not depend on the model, and where the model goes."""
    placement = Placement.of(settings)
    attention = {} if settings.attn_implementation is None else {"attn_implementation": settings.attn_implementation}
    loading = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code, "use_safetensors": True}
    return {**loading, "dtype": placement.dtype, **attention}, placement


def _base_of(source: str, revision: str | None) -> str | None:
    """The base model of an adapter; None if the source is not an adapter.

    A path is relative to the working directory or, if it does not exist there, to the adapter's folder.

    Raises:
        ModelError: The adapter names no base model, or a path that is not a folder.
    """
    config = found_file(source, _ADAPTER_CONFIG, revision)
    if config is None:
        return None
    base = read_model_json(config).get("base_model_name_or_path")
    advice = f"Set base_model_name_or_path in {config} to an absolute path or a hub id."
    if not base or not isinstance(base, str) or len(base) > _LONGEST_PATH or "\0" in base:
        raise ModelError(f"The adapter {source} does not name its base model. {advice}")
    folders = [Path(base).expanduser(), config.parent / base]
    with suppress(OSError):  # raised for invalid names
        for folder in folders:
            if folder.is_dir():
                return str(folder)
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        places = " and ".join(dict.fromkeys(str(folder.absolute()) for folder in folders))
        raise ModelError(f"{source} is an adapter of {base!r}, which cannot be loaded: there is no folder {places}. {advice}")
    return str(base)


@contextmanager
def _loading(source: str) -> Iterator[None]:
    """Turn any exception of loading a model into a `ModelError`; only one thread at a time may enter.

    While loading, transformers sets the default dtype of the whole process, so two threads would affect each other's models.
    """
    try:
        with _ONE_THREAD, loads_whole():
            yield
    except RmPluginsError:
        raise
    except Exception as error:  # from the hub, transformers, safetensors or torch
        what = source if Path(source).exists() else f"{source!r} is not a folder here, and as a hub id it"
        raise ModelError(f"{what} cannot be loaded: {type(error).__name__}: {reason_in_short(error)}") from error


def _beside(model: PreTrainedModel, source: str, base: str | None, settings: ModelSettings) -> Checkpoint:
    """The model with its tokenizer and manifest."""
    tokenizers = [settings.tokenizer] if settings.tokenizer else [source, base]
    tokenizer = load_tokenizer(tokenizers, source, revision=settings.revision, trust_remote_code=settings.trust_remote_code)
    return Checkpoint(model, tokenizer, read_manifest(source, settings.revision))


def _load_whole(
    source: str, arguments: dict[str, Any], placement: Placement, model_class: type[PreTrainedModel] | None
) -> PreTrainedModel:
    config = load_config(source, revision=arguments["revision"], trust_remote_code=arguments["trust_remote_code"])
    if model_class is not None:
        head: dict[str, Any] = {"num_labels": 1}
    elif is_pair_rm(config):
        raise ModelError(
            f"{source} compares two answers, and has no score for a single one. Use it as a comparer: `provider: comparison` with "
            f"`comparer: {{name: two-answers, model: {source}}}`."
        )
    else:
        head = {} if config is None else _head_elsewhere(source, config, arguments["revision"])
    placed = placement.arguments(source, config, trust_remote_code=arguments["trust_remote_code"])
    model, info = (model_class or AutoModelForSequenceClassification).from_pretrained(
        source, output_loading_info=True, **head, **arguments, **placed
    )
    missing = sorted(info["missing_keys"])
    if missing:
        architecture = ", ".join(model.config.architectures or []) or "no named architecture"
        raise ModelError(
            f"{source} is not a trained reward model: its checkpoint ({architecture}) has no weights for "
            f"{', '.join(missing[:3])}, so every score would be random. Train it as a sequence classifier first "
            "(`rm-plugins train`), or name another folder."
        )
    return model


def _head_elsewhere(source: str, config: PretrainedConfig, revision: str | None) -> dict[str, Any]:
    """Arguments of transformers' ``from_pretrained`` for the head of a model that another engine trained.

    Raises:
        ModelError: The engine computes its score with parts that the model does not have.
    """
    elsewhere = None if found_file(source, MANIFEST_NAME, revision) else trained_elsewhere(source, config, revision)
    if elsewhere is None:
        return {}
    if elsewhere.unusable is not None:
        raise ModelError(
            f"{source} cannot be scored here as it was trained: {elsewhere.unusable}. Score with the engine that trained it, in your own "
            "function (`module:function`) or through a server."
        )
    outputs = {} if elsewhere.outputs is None else {"num_labels": elsewhere.outputs}
    renamed = {} if elsewhere.head is None else {"key_mapping": {rf"^{re.escape(elsewhere.head)}\.": "score."}}
    return {**outputs, **renamed}


def _load_adapter(
    source: str, base: str, arguments: dict[str, Any], placement: Placement, name: str = "default"
) -> tuple[Any, Iterable[str]]:
    """Load an adapter into its base model; returns peft's ``PeftModel`` and the weights that the base model lacks."""
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise MissingDependencyError(f"{source} is a LoRA adapter; install peft to load it: pip install peft.") from error
    if placement.split:
        raise ModelError(
            f"{source} is a LoRA adapter, which cannot be split with `tp_plan`. Merge it into its base model first."
        )
    check_adapter(PeftConfig.from_pretrained(source, revision=arguments["revision"]), source)
    weights = _adapter_weights(source, arguments["revision"])
    head_labels = _head_labels(weights)
    shared = {**arguments, "revision": None}
    try:
        config = load_config(base, trust_remote_code=arguments["trust_remote_code"])
        head = {} if config is None or head_labels is not None else _head_elsewhere(base, config, None)
        labels = head_labels or head.pop("num_labels", None) or (None if config is None else config.num_labels)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            base,
            output_loading_info=True,
            **({} if labels is None else {"num_labels": labels}),
            ignore_mismatched_sizes=head_labels
            is not None,  # the adapter replaces the base model's head, which may have another size
            **head,
            **shared,
            **placement.arguments(base, config, trust_remote_code=arguments["trust_remote_code"]),
        )
    except OSError as error:
        raise ModelError(
            f"{source} is an adapter of {base!r}, which cannot be loaded: {error} If it is a folder, set base_model_name_or_path in the "
            f"adapter's {_ADAPTER_CONFIG} to its absolute path."
        ) from error
    _check_every_weight(model, info["missing_keys"], source, base, weights)
    others = [key for key in map(_key, info["mismatched_keys"]) if not key.startswith(("score.", "classifier."))]
    if others:
        raise ModelError(
            f"{source} is an adapter of {base!r}, but these weights of the base model do not fit its configuration: "
            f"{', '.join(others)}. Load or save the base model again."
        )
    return PeftModel.from_pretrained(model, source, adapter_name=name, revision=arguments["revision"]), info["missing_keys"]


def _check_every_weight(
    model: PreTrainedModel, missing_in_base: Iterable[str], source: str, base: str, weights: _Shapes
) -> None:
    """Refuse an adapter if neither it nor its base model has some weight, because that would be random."""
    missing = sorted(set(missing_in_base) - weights.keys())
    if missing and _head_labels(weights) is None:
        raise ModelError(
            f"{source} is an adapter of {base!r}, but both lack a trained score head ({', '.join(missing)}). "
            "Train the adapter with modules_to_save=['score'], as rm_plugins_trl.RewardTrainer does."
        )
    if missing:
        modules = {module_of(model, key) for key in missing}
        modules.add("classifier" if hasattr(model, "classifier") else "score")
        raise ModelError(
            f"{source} is an adapter of {base!r}, but both lack weights for {', '.join(missing[:3])}, so every score would be random. "
            f"Train the adapter with modules_to_save={sorted(modules)}, as rm_plugins_trl.RewardTrainer does."
        )


def _key(mismatched: Any) -> str:
    """The name of a mismatched weight, which transformers may report together with both shapes."""
    return str(mismatched if isinstance(mismatched, str) else mismatched[0])


def module_of(model: PreTrainedModel, key: str) -> str:
    """The module of a weight, named as in an adapter's ``modules_to_save``: ``pooler``, ``score``."""
    return key.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]


def _head_labels(weights: _Shapes) -> int | None:
    """The number of outputs of an adapter's own head; None if it has no head."""
    ends = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
    return next((shape[0] for name, shape in weights.items() if name.endswith(ends)), None)


def _adapter_weights(source: str, revision: str | None) -> _Shapes:
    """The shapes of an adapter's weights, by their names in the base model."""
    weights = found_file(source, _ADAPTER_WEIGHTS, revision)
    if weights is None:
        raise ModelError(
            f"{source} has an {_ADAPTER_CONFIG} but no {_ADAPTER_WEIGHTS}. Save the adapter's weights as safetensors."
        )
    with safe_open(weights, framework="pt") as file:
        names = list(file.keys())
        return {name.removeprefix("base_model.model."): file.get_slice(name).get_shape() for name in names}
