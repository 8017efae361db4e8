"""How a model's samples were rendered in its training, as far as anything tells."""

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

_NO_SETTING = "no setting here: save its tokenizer in a form that transformers reads by itself"


def renderer_of(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    manifest: Manifest | None,
    config: PretrainedConfig | None,
    settings: Mapping[str, Any],
    *,
    revision: str | None = None,
) -> Renderer:
    """What renders a model's samples: as the settings say, else its manifest, else who trained it, else as TRL does.

    Args:
        source: The model's folder or hub id.
        tokenizer: Its tokenizer.
        manifest: Its manifest, if it has one.
        config: Its configuration, if it is known.
        settings: The spec's; the keyword arguments of `configured_renderer`, None where it says nothing.
        revision: The revision of a hub id.

    Raises:
        ModelError: The tokenizer lacks what the rendering needs.
    """
    pad_token_id = tokenizer.pad_token_id if config is None else config.get_text_config().pad_token_id
    if manifest is None:
        rendering = Rendering.default(tokenizer, position_limit(config))
        rendering = _told_by_files(rendering, source, tokenizer, config, settings, pad_token_id, revision)
    else:
        rendering = manifest.rendering
    if settings.get("pair"):
        rendering = replace(rendering, append_eos=False)
    return configured_renderer(tokenizer, rendering, pad_token_id=pad_token_id, **settings)


def load_renderer(source: str, settings: Mapping[str, Any]) -> Renderer:
    """What renders for a model of which only the tokenizer is needed, as the model's own provider does.

    Args:
        source: The model's folder or id, or one that holds its tokenizer alone. A manifest there says how samples are rendered, and
            a configuration how many tokens the model takes.
        settings: What the spec says otherwise; the keyword arguments of `configured_renderer`.

    Raises:
        ModelError: There is no tokenizer, or it lacks what the rendering needs.
    """
    tokenizer = load_tokenizer([source], source, code_setting=_NO_SETTING)
    config = load_config(source, code_setting=_NO_SETTING)
    return renderer_of(source, tokenizer, read_manifest(source), config, settings)


def _told_by_files(
    rendering: Rendering,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig | None,
    settings: Mapping[str, Any],
    pad_token_id: int | None,
    revision: str | None,
) -> Rendering:
    """A default rendering with what the files beside a model tell of who trained it; what nobody tells is asked for or warned of."""
    elsewhere = trained_elsewhere(source, config, revision) if config is not None else None
    if elsewhere is not None:
        for difference in elsewhere.differences:
            warnings.warn(f"{source} was trained by {elsewhere.by}, which may score it otherwise: {difference}", stacklevel=4)
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
        told = (
            "nothing beside the model tells who trained it"
            if elsewhere is None
            else f"what names {elsewhere.by} leaves it open"
        )
        warnings.warn(
            f"{source} has no reward manifest, and pads with its EOS token {tokenizer.eos_token!r}: transformers and TRL score a row at "
            f"the token before a closing EOS, OpenRLHF and vLLM at the EOS itself, and {told}. It is read as transformers does. Say it in "
            "the spec: `read: before-padding` or `read: last`.",
            stacklevel=4,
        )
    return rendering


def _ends_with_cls(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer closes texts with the token that a classifier reads, as XLNet's, which is among the decoders otherwise."""
    ids: list[int] = tokenizer("a")["input_ids"]
    return tokenizer.cls_token_id is not None and ids[-1:] == [tokenizer.cls_token_id]


def _is_causal(config: PretrainedConfig | None) -> bool:
    """Whether a configuration is of a decoder, which has a language model's head and none for masked words."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = None if config is None else config.get_text_config().model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
