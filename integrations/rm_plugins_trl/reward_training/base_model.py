"""The model and the tokenizer that a training starts from: what can be refused before a weight is loaded."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification

from rm_plugins.engine.partitioned import parameter_count
from rm_plugins.engine.prefix_cache import is_decoder
from rm_plugins.engine.transformers_internals import loads_whole
from rm_plugins.errors import ModelError, SpecError
from rm_plugins.missing_path import nearest_path, not_there
from rm_plugins.models.model_folder import CONFIG_NAME, load_config, load_tokenizer
from rm_plugins_trl.reward_training.checkpoints import complete_checkpoints

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

CODE_SETTING = "RewardConfig(trust_remote_code=True), or --trust_remote_code on the command line"
"""What lets the code run that is in the checkpoint to train."""


def trusts_code(args: Any) -> bool:
    """Whether code in the checkpoint that is trained may run. Without an answer, transformers would ask for one on standard input."""
    given = (args.model_init_kwargs or {}).get("trust_remote_code")
    return bool(args.trust_remote_code if given is None else given)


def check_model_named(model: Any) -> None:
    """Refuse a training without a model.

    Raises:
        SpecError: No model was given.
    """
    if model is None:
        raise SpecError(
            "Name the model to train: --model_name_or_path FOLDER_OR_ID on the command line (or model_name_or_path in the --config file), "
            "RewardTrainer(model=...) in Python."
        )


def source_of(model: Any) -> str:
    """The path or hub id of the model to train; empty for one that was made in Python.

    Raises:
        SpecError: No model was given.
    """
    check_model_named(model)
    return model if isinstance(model, str) else str(model.config.name_or_path)


def model_config(source: str, args: Any) -> PretrainedConfig:
    """The configuration of the model to train.

    Raises:
        ModelError: There is no such model, or its configuration cannot be read.
    """
    settings = dict(args.model_init_kwargs or {})
    path = Path(source)
    if not path.exists() and not _is_hub_id(source):
        raise ModelError(
            f"There is no folder {source!r}{not_there(path, source)} A model id of the hub has the form OWNER/NAME."
        )
    config = load_config(
        source, code_setting=CODE_SETTING, revision=settings.get("revision"), trust_remote_code=trusts_code(args)
    )
    if config is not None:
        return config
    if path.is_file():
        raise ModelError(f"{source!r} is a file. Name the folder of a model, with its {CONFIG_NAME}, weights and tokenizer.")
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{source!r} holds an adapter without its base model. Train a whole model: one that was trained with merge_adapter=True, or "
            "what peft's merge_and_unload() makes of the adapter and its base."
        )
    if path.is_dir():
        checkpoints = [
            checkpoint.path.name for checkpoint in complete_checkpoints(path) if (checkpoint.path / CONFIG_NAME).is_file()
        ]
        hint = f" It holds {', '.join(checkpoints)}: name one of them." if checkpoints else ""
        raise ModelError(f"The folder {source!r} has no {CONFIG_NAME}, so it holds no model to train.{hint}")
    offline = " HF_HUB_OFFLINE is set, so only models that were downloaded before can be used." if _is_offline() else ""
    meant = nearest_path(path)
    local = f" Did you mean {str(meant)!r}?" if meant else ""
    raise ModelError(
        f"There is no folder {source!r}, and no model of that id could be read from the hub.{local}{offline} Check the spelling, the "
        "network, and for a private model your login (`hf auth login`)."
    )


def _is_hub_id(source: str) -> bool:
    owner, _, name = source.partition("/")
    return not source.startswith((".", "/", "~")) and "/" not in name and bool(owner) and "\\" not in source


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def size_and_kind(model: Any, args: Any) -> tuple[int, bool]:
    """The number of a model's parameters, and whether it is an encoder; those of a path or hub id are counted without loading them.

    Raises:
        ModelError: There is no such model.
    """
    if isinstance(model, str):
        config = model_config(model, args)
        with loads_whole(), torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trusts_code(args))
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return parameter_count(model), not is_decoder(plain)


def base_tokenizer(given: Any, model: Any, args: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that is trained with: a copy of the one that was handed over, else the one beside the model.

    Args:
        given: The tokenizer that was handed over, or None.
        model: The model, or its path or hub id.
        args: The trainer's arguments.

    Raises:
        ModelError: There is none, or it has no vocabulary or no token to pad with.
    """
    source = source_of(model)
    name = source or "a model that was made in Python"
    if given is None:
        tokenizer = load_tokenizer(
            [source or None],
            name,
            advice=(
                f"Without its tokenizer, {name} cannot be trained. Save the tokenizer of its base model beside it "
                "(AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER)), or hand it over: RewardTrainer(processing_class=...)."
            ),
            code_setting=CODE_SETTING,
            revision=(args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None,
            trust_remote_code=trusts_code(args),
        )
    else:
        tokenizer = copy.deepcopy(given)
        plain = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        if len(plain) <= len(plain.all_special_tokens):
            raise ModelError(
                f"The tokenizer that was passed has {len(plain)} tokens, all of them special: it has no vocabulary, and every text "
                "would be the same to the model. Load it from a folder with its files (tokenizer.json, vocab.txt or the like)."
            )
    plain = getattr(tokenizer, "tokenizer", tokenizer)
    padding = args.pad_token or plain.pad_token or args.eos_token or plain.eos_token
    if padding is None:
        raise ModelError(
            f"The tokenizer of {name} has neither a padding token nor an EOS token. Set one of its vocabulary (tokenizer.pad_token = ...), "
            "and save it beside the model or hand it over: RewardTrainer(processing_class=tokenizer)."
        )
    for setting, token in (("pad_token", padding), ("eos_token", args.eos_token)):
        if token is not None and token not in plain.get_vocab():
            raise ModelError(
                f"The {setting} {token!r} is not in the vocabulary of the tokenizer of {name}, which has {len(plain)} tokens. Name one "
                "that is."
            )
    return tokenizer
