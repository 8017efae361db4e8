"""What lies beside a model's weights: its tokenizer, its manifest, its configuration. Imports no torch by itself."""

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
"""What lets the code in a checkpoint run that a spec names."""

_MOST_BYTES = 32 * 2**20
"""Of a configuration. The largest ones list a few thousand labels, and have a thousandth of that."""
_MOST_OF = {"_layers": 10_000, "n_layer": 10_000, "num_labels": 1_000_000}
"""What a configuration may ask for, by the end of its key: each is made one by one before a weight is looked at."""


def found_file(source: str, name: str, revision: str | None, **places: Any) -> Path | None:
    """A file of a model folder or hub id; None where there is none of that name.

    Args:
        source: The folder or id.
        name: The file's name.
        revision: The revision of the hub.
        places: Where transformers looks besides, such as ``cache_dir``.
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
        ManifestError: The file is no manifest that is known here.
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
        sources: Folders or ids, in the order of preference.
        model: What messages call the model that it is for.
        advice: The end of the error's message.
        code_setting: What lets a tokenizer's own code run, for the error's message.
        origin: Handed to transformers, such as ``revision`` and ``trust_remote_code``.

    Raises:
        ModelError: There is none.
    """
    problem: Exception | None = None
    for source in filter(None, sources):
        try:
            loaded = AutoTokenizer.from_pretrained(source, **{**origin, "trust_remote_code": allows_code(origin)})
        except Exception as error:  # transformers and the tokenizers library each have their own
            if needs_code(error):
                raise ModelError(reason_in_short(error, code_setting)) from error
            problem = error
            continue
        if not isinstance(loaded.model_max_length, (int, float)):
            raise ModelError(
                f"The tokenizer in {source} has the model_max_length {loaded.model_max_length!r:.80}; a number was expected."
            )
        # Without any of the tokenizer's files, transformers makes up one that knows its special tokens only.
        if len(loaded) > len(loaded.all_special_tokens):
            return loaded
        problem = ModelError(f"{source} has no tokenizer's files.")
    raise ModelError(f"No tokenizer could be loaded for {model}: {reason_in_short(problem)} {advice}") from problem


def load_config(source: str, *, code_setting: str = CODE_IN_SPEC, **origin: Any) -> PretrainedConfig | None:
    """The configuration of a model; None where there is none of a model, as beside a tokenizer or an adapter alone.

    Args:
        source: A folder or id.
        code_setting: What lets a configuration's own code run, for the error's message.
        origin: Handed to transformers, such as ``revision`` and ``trust_remote_code``.

    Raises:
        ModelError: It cannot be read, or has code of its own that may not run.
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
    except Exception as error:  # transformers has many of its own, and a file may hold anything
        raise ModelError(f"The configuration in {source} cannot be read: {reason_in_short(error, code_setting)}") from error
    return config


def allows_code(origin: Mapping[str, Any]) -> bool:
    """Whether the code in a checkpoint may run. Without an answer, transformers would ask for one on standard input."""
    return bool(origin.get("trust_remote_code"))


def needs_code(error: BaseException) -> bool:
    """Whether transformers refused a checkpoint for the code in it."""
    return "trust_remote_code" in str(error)


def reason_in_short(error: BaseException | None, code_setting: str = CODE_IN_SPEC) -> str:
    """Why something of a model could not be loaded, in a line.

    Args:
        error: What transformers raised.
        code_setting: What lets the code in a checkpoint run.
    """
    if error is not None and needs_code(error):
        refused = str(error).strip().partition(" You can inspect")[0].partition("\n")[0].rstrip(" .")
        return f"{refused}. Code of a checkpoint is not run unless you trust it: read it, then allow it with {code_setting}."
    return str(error).strip().partition("\n")[0] or type(error).__name__


def read_model_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file of a model.

    Raises:
        ModelError: The file is larger than such files are, or holds something else.
    """
    size = file.stat().st_size
    if size > _MOST_BYTES:
        raise ModelError(f"{file} has {size:,} bytes; a file of that name has {_MOST_BYTES:,} at most.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} must hold a mapping; it holds {content!r:.80}.")
    return content


def check_config_file(file: Path) -> None:
    """Refuse a model's configuration that would have transformers make more than any model has.

    Raises:
        ModelError: It cannot be read, or asks for too many layers or labels.
    """
    configs: list[tuple[str, Any]] = [("", read_model_json(file))]
    while configs:
        path, config = configs.pop()
        for name, value in config.items():
            where = f"{path}{name}"
            most = next((most for end, most in _MOST_OF.items() if name.endswith(end)), None)
            if most is not None and isinstance(value, (int, float)) and value > most:
                raise ModelError(f"{file}: {where} is {value:.6g}; {most:,} are the most that are loaded.")
            if isinstance(value, dict) and name.endswith("config"):  # such as a text_config beside one for images
                configs.append((f"{where}.", value))
