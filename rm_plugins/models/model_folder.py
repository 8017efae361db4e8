"""Reads a model folder except for its weights: tokenizer, manifest, configuration. Does not import torch itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoTokenizer
from transformers.utils import cached_file

from rm_plugins.errors import ModelError
from rm_plugins.models.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

CONFIG_NAME = "config.json"
CODE_IN_SPEC = "`trust_remote_code: true` in the spec"
"""The setting that allows code in a checkpoint to run, for error messages."""

_MOST_BYTES = 32 * 2**20
"""The largest configuration file. Real ones with a few thousand labels have a thousandth of that."""
_MOST_OF = {"_layers": 10_000, "n_layer": 10_000, "num_labels": 1_000_000}
"""The largest values in a configuration, by the end of the key: layers and labels are created before weights are read."""


def found_file(source: str, name: str, revision: str | None, **places: Any) -> Path | None:
    """The path of a file of a model folder or hub id; None if it does not exist.

    Args:
        source: The folder or hub id.
        name: The file's name.
        revision: The revision on the hub.
        places: Further arguments of transformers, such as ``cache_dir``.
    """
    path = cached_file(
        source,
        name,
        revision=revision,
        **places,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(path) if path else None


def read_manifest(source: str, revision: str | None = None) -> Manifest | None:
    """The manifest of a model, if it has one.

    Raises:
        ManifestError: The file is not a manifest, or has an unknown version.
    """
    path = found_file(source, MANIFEST_NAME, revision)
    return Manifest.read(path) if path else None


def load_tokenizer(
    sources: Sequence[str | None],
    model: str,
    *,
    advice: str = "Save the tokenizer beside the model, or name another with the spec's key 'tokenizer'.",
    code_setting: str = CODE_IN_SPEC,
    **origin: Any,
) -> PreTrainedTokenizerBase:
    """The first tokenizer that can be loaded.

    Args:
        sources: Folders or hub ids, in order of preference.
        model: The name of the model in messages.
        advice: The end of the error message.
        code_setting: The setting that allows a tokenizer's own code to run, for the error message.
        origin: Arguments for transformers, such as ``revision`` and ``trust_remote_code``.

    Raises:
        ModelError: No tokenizer can be loaded.
    """
    problem: Exception | None = None
    for source in filter(None, sources):
        try:
            loaded = AutoTokenizer.from_pretrained(source, **{**origin, "trust_remote_code": allows_code(origin)})
        except Exception as error:  # from transformers or the tokenizers library
            if needs_code(error):
                raise ModelError(reason_in_short(error, code_setting)) from error
            problem = error
            continue
        if not isinstance(loaded.model_max_length, (int, float)):
            raise ModelError(
                f"The tokenizer in {source} has the model_max_length {loaded.model_max_length!r:.80}; a number was expected."
            )
        # If there are no tokenizer files, transformers creates a tokenizer that only knows special tokens.
        if len(loaded) > len(loaded.all_special_tokens):
            return loaded
        problem = ModelError(f"{source} has no tokenizer files.")
    raise ModelError(f"No tokenizer could be loaded for {model}: {reason_in_short(problem)} {advice}") from problem


def load_config(source: str, *, code_setting: str = CODE_IN_SPEC, **origin: Any) -> PretrainedConfig | None:
    """The configuration of a model; None if there is none, as in a folder with only a tokenizer or an adapter.

    Args:
        source: A folder or hub id.
        code_setting: The setting that allows a configuration's own code to run, for the error message.
        origin: Arguments for transformers, such as ``revision`` and ``trust_remote_code``.

    Raises:
        ModelError: It cannot be read, or needs code of its own that is not allowed to run.
    """
    places = {name: value for name, value in origin.items() if name not in ("revision", "trust_remote_code")}
    try:
        file = found_file(source, CONFIG_NAME, origin.get("revision"), **places)
        if file is None:
            return None
        check_config_file(file)
        config: PretrainedConfig = AutoConfig.from_pretrained(source, **{**origin, "trust_remote_code": allows_code(origin)})
    except ModelError:
        raise
    except Exception as error:  # from transformers, or because of the contents of the file
        raise ModelError(f"The configuration in {source} cannot be read: {reason_in_short(error, code_setting)}") from error
    return config


def is_pair_rm(config: PretrainedConfig | None) -> bool:
    """Whether a model is a `rm_plugins.models.pair_rm.PairRM`."""
    return config is not None and config.architectures == ["DebertaV2PairRM"]


def allows_code(origin: Mapping[str, Any]) -> bool:
    """Whether code in a checkpoint may run. Always a boolean, because transformers would otherwise ask on standard input."""
    return bool(origin.get("trust_remote_code"))


def needs_code(error: BaseException) -> bool:
    """Whether transformers refused a checkpoint because of the code in it."""
    return "trust_remote_code" in str(error)


def reason_in_short(error: BaseException | None, code_setting: str = CODE_IN_SPEC) -> str:
    """The reason why a part of a model could not be loaded, in one line.

    Args:
        error: The exception of transformers.
        code_setting: The setting that allows code in a checkpoint to run.
    """
    if error is not None and needs_code(error):
        refused = str(error).strip().partition(" You can inspect")[0].partition("\n")[0].rstrip(" .")
        return f"{refused}. Code in a checkpoint runs only if you allow it: read it, then allow it with {code_setting}."
    return str(error).strip().partition("\n")[0] or type(error).__name__


def read_model_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file of a model.

    Raises:
        ModelError: The file is too large, or is not a JSON mapping.
    """
    size = file.stat().st_size
    if size > _MOST_BYTES:
        raise ModelError(f"{file} is too large: it has {size:,} bytes; the limit is {_MOST_BYTES:,}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} must contain a mapping; it contains {content!r:.80}.")
    return content


def check_config_file(file: Path) -> None:
    """Refuse a model's configuration with unrealistic numbers of layers or labels, before transformers creates them.

    Raises:
        ModelError: It cannot be read, or has too many layers or labels.
    """
    configs: list[tuple[str, Any]] = [("", read_model_json(file))]
    while configs:
        path, config = configs.pop()
        for name, value in config.items():
            where = f"{path}{name}"
            most = next((most for end, most in _MOST_OF.items() if name.endswith(end)), None)
            if most is not None and isinstance(value, (int, float)) and value > most:
                raise ModelError(f"{file}: {where} is {value:.6g}; the limit is {most:,}.")
            if isinstance(value, dict) and name.endswith("config"):  # such as the text_config of a vision model
                configs.append((f"{where}.", value))
