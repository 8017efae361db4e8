"""Determines how a model's samples were rendered in its training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rm_plugins.models.manifest import Manifest
from rm_plugins.models.model_folder import load_config, load_tokenizer, read_manifest
from rm_plugins.models.trained_elsewhere import trained_elsewhere
from rm_plugins.rendering.pairs import separates_pairs
from rm_plugins.rendering.positions import position_limit
from rm_plugins.rendering.render import Renderer, configured_renderer
from rm_plugins.rendering.rendering import Rendering

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_NO_SETTING = "no setting here: save its tokenizer in a form that transformers reads without code"


def renderer_of(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    manifest: Manifest | None,
    config: PretrainedConfig | None,
    settings: Mapping[str, Any],
    *,
    revision: str | None = None,
) -> Renderer:
    """The renderer of a model: from the settings, else its manifest, else the engine that trained it, else TRL's default.

    Args:
        source: The model's folder or hub id.
        tokenizer: The model's tokenizer.
        manifest: The model's manifest, if it has one.
        config: The model's configuration, if it is known.
        settings: The settings of the spec: keyword arguments of `configured_renderer`, None if unset.
        revision: The revision on the hub.

    Raises:
        ModelError: The tokenizer lacks what the rendering needs.
    """
    pad_token_id = tokenizer.pad_token_id if config is None else config.get_text_config().pad_token_id
    if manifest is None:
        rendering = Rendering.default(tokenizer, position_limit(config))
        rendering = _from_files(rendering, source, tokenizer, config, settings, pad_token_id, revision)
    else:
        rendering = manifest.rendering
    if settings.get("pair"):
        rendering = replace(rendering, append_eos=False)
    return configured_renderer(tokenizer, rendering, pad_token_id=pad_token_id, **settings)


def load_renderer(source: str, settings: Mapping[str, Any]) -> Renderer:
    """The same renderer as the model's own provider has, loaded without the model's weights.

    Args:
        source: The folder or hub id of the model, or one with only its tokenizer. If there is a manifest, its rendering is used; if there
            is a configuration, its token limit is used.
        settings: The settings of the spec: keyword arguments of `configured_renderer`.

    Raises:
        ModelError: There is no tokenizer, or it lacks what the rendering needs.
    """
    tokenizer = load_tokenizer([source], source, code_setting=_NO_SETTING)
    config = load_config(source, code_setting=_NO_SETTING)
    return renderer_of(source, tokenizer, read_manifest(source), config, settings)


def _from_files(
    rendering: Rendering,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig | None,
    settings: Mapping[str, Any],
    pad_token_id: int | None,
    revision: str | None,
) -> Rendering:
    """The default rendering, adjusted to the engine that trained the model; warns, or leaves `pair` unset, if that is unknown."""
    elsewhere = trained_elsewhere(source, config, revision) if config is not None else None
    if elsewhere is not None:
        for difference in elsewhere.differences:
            warnings.warn(f"{source} was trained by {elsewhere.by}, which may give other scores: {difference}", stacklevel=4)
        append_eos = rendering.append_eos and elsewhere.append_eos is not False
        rendering = replace(rendering, append_eos=append_eos, convention=elsewhere.convention or rendering.convention)
    if separates_pairs(tokenizer) and not (_is_causal(config) and not _ends_with_cls(tokenizer)):
        return replace(rendering, pair=None if elsewhere is None else elsewhere.pair)
    if elsewhere is not None and elsewhere.pair:
        rendering = replace(rendering, pair=True, append_eos=False)
    if pad_token_id is None:
        return replace(rendering, read="last")
    if elsewhere is not None and elsewhere.read is not None:
        return replace(rendering, read=elsewhere.read)
    if settings.get("read") is None and pad_token_id == tokenizer.eos_token_id:
        unknown = (
            "the files of the model do not show who trained it"
            if elsewhere is None
            else f"the files show training by {elsewhere.by}, but not which token it reads"
        )
        warnings.warn(
            f"{source} has no reward manifest, and pads with its EOS token {tokenizer.eos_token!r}: transformers and TRL score a row at "
            f"the token before a final EOS, OpenRLHF and vLLM at the EOS itself, and {unknown}. The rule of transformers is used. Set "
            "`read: before-padding` or `read: last` in the spec.",
            stacklevel=4,
        )
    return rendering


def _ends_with_cls(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer ends texts with its CLS token, like that of XLNet, which would otherwise count as a decoder."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return tokenizer.cls_token_id is not None and ids[-1:] == [tokenizer.cls_token_id]


def _is_causal(config: PretrainedConfig | None) -> bool:
    """Whether a configuration belongs to a decoder: transformers has a causal but no masked language model of this type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = None if config is None else config.get_text_config().model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
