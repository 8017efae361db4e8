"""What lies beside a model's weights: its tokenizer, its manifest, its configuration. Imports no torch by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoTokenizer
from transformers.utils import cached_file

from rm_plugins.errors import ModelError
from rm_plugins.models.manifest import MANIFEST_NAME, Manifest, trained_rendering
from rm_plugins.rendering.render import Renderer, configured_renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def found_file(source: str, name: str, revision: str | None) -> Path | None:
    """A file of a model folder or hub id; None where there is none of that name."""
    path = cached_file(
        source,
        name,
        revision=revision,
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
    **origin: Any,
) -> PreTrainedTokenizerBase:
    """The first tokenizer that can be loaded.

    Args:
        sources: Folders or ids, in the order of preference.
        model: What messages call the model that it is for.
        advice: The end of the error's message.
        origin: Handed to transformers, such as ``revision`` and ``trust_remote_code``.

    Raises:
        ModelError: There is none.
    """
    problem: Exception | None = None
    for source in filter(None, sources):
        try:
            loaded = AutoTokenizer.from_pretrained(source, **{"trust_remote_code": False, **origin})
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = error
            continue
        # Without any of the tokenizer's files, transformers makes up one that knows its special tokens only.
        if len(loaded) > len(loaded.all_special_tokens):
            return loaded
        problem = ModelError(f"{source} has no tokenizer's files.")
    raise ModelError(f"No tokenizer could be loaded for {model}: {str(problem).partition(chr(10))[0]} {advice}") from problem


def load_renderer(source: str, settings: Mapping[str, Any]) -> Renderer:
    """What renders for a model of which only the tokenizer is needed, as the model's own provider does.

    Args:
        source: The model's folder or id, or one that holds its tokenizer alone. A manifest there says how samples are rendered, and
            a configuration how many tokens the model takes.
        settings: What the spec says otherwise; the keyword arguments of `configured_renderer`.

    Raises:
        ModelError: There is no tokenizer, or it lacks what the rendering needs.
    """
    tokenizer = load_tokenizer([source], source)
    manifest = read_manifest(source)
    config = None
    if manifest is None and found_file(source, "config.json", None):
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"The configuration in {source} cannot be read: {error}") from error
    return configured_renderer(tokenizer, trained_rendering(tokenizer, manifest, config), **settings)
