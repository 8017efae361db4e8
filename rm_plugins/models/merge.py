"""Averages the weights of reward models that were trained from the same initial weights.

Source: weight averaged reward models (WARM), Ramé et al. 2024, arXiv 2401.12187.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch.nn.functional import cosine_similarity
from transformers import AutoConfig

import rm_plugins
from rm_plugins.errors import ModelError, SpecError
from rm_plugins.files import check_output, replacing_folder
from rm_plugins.models.adapters import without_adapter
from rm_plugins.models.checkpoint import load_checkpoint
from rm_plugins.models.golden import golden_rows, golden_scores
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import Manifest, SampleFormat, ScoreStatistics, common_format, file_digests
from rm_plugins.models.settings import ModelSettings
from rm_plugins.models.trained_rendering import renderer_of
from rm_plugins.rendering.render import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SAME_START = 0.5
"""The smallest cosine similarity of two models' weight matrices that indicates the same initial weights.

Independently initialised matrices have a similarity near 0, even after training on the same data. Training changes weights by much less
than their norm; at 0.5, each model would have moved by the norm of its initial weights.
"""

_COMPARED_WEIGHTS = 10_000_000
_INCIDENTAL = {
    "_name_or_path",
    "architectures",
    "dtype",
    "initializer_range",
    "problem_type",
    "transformers_version",
    "use_cache",
}
_LABELS = {"id2label", "label2id"}
_SHOWN_DIFFERENCES = 3
_SHOWN_CHARACTERS = 60
_INSTEAD = "The scores of such models can be averaged instead, with `provider: ensemble`."


@dataclass(frozen=True, slots=True)
class _Member:
    """Facts about a model that are needed after its weights were averaged."""

    source: str
    manifest: Manifest | None
    renderer: Renderer
    heads: Heads | None
    facets: Mapping[str, Mapping[str, Any]]
    backbone: torch.Tensor
    head: torch.Tensor

    @property
    def start(self) -> str | None:
        """The base model in its manifest."""
        return self.manifest.training.get("base_model") if self.manifest is not None else None


def merge_models(
    sources: Sequence[str],
    out: Path,
    *,
    weights: Sequence[float] | None = None,
    allow_different_starts: bool = False,
    overwrite: bool = False,
    statistics: Callable[[Path], ScoreStatistics | None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Write a model with the mean of several models' weights.

    Members are read one at a time, and the mean is computed in float32, so this needs the memory of two float32 models. The result has the
    first member's dtype and configuration. It is written atomically.

    Args:
        sources: K model folders, LoRA adapter folders (which are merged into their base models first) or hub ids, at least two.
        out: The folder to write.
        weights: K non-negative weights; only their ratios matter. Equal by default.
        allow_different_starts: Whether to average members even if their weights show that they were trained from different initial weights.
        overwrite: Whether to replace the contents of `out`.
        statistics: Called with the finished folder before it becomes `out`; returns the score statistics for the manifest.
        progress: Called with each source after its weights were averaged.

    Returns:
        The manifest of the merged model.

    Raises:
        SpecError: There are fewer than two members, or the weights are invalid.
        ModelError: A member cannot be loaded or does not fit the first one, or `out` is not empty.
        OutputError: `out` cannot be written.

    Source: WARM, arXiv 2401.12187, section 3.1: the mean of the members' weights, under a shared pretraining.
    """
    shares = _normalized(sources, weights)
    _check_output(out, sources, overwrite)
    model, first = _read(sources[0])
    dtype = _stored_dtype(model)
    facts = [_facts(first, shares[0], first)]
    if progress is not None:
        progress(first.source)
    total = shares[0]
    for source, share in zip(sources[1:], shares[1:], strict=True):
        total += share
        # Update the running mean; if all weights so far are 0, the share is 0.
        facts.append(_averaged(model, first, source, share, share / total if total else 0.0, allow_different_starts))
        if progress is not None:
            progress(source)
    starts = {fact["base_model"] for fact in facts}
    training = {"base_model": starts.pop() if len(starts) == 1 else None, "members": facts}
    with replacing_folder(out) as folder:
        manifest = _write(folder, model, dtype, first, training, common_format(fact["trained_on"] for fact in facts))
        del model  # free its memory for computing the statistics
        if statistics is not None:
            manifest = manifest.model_copy(update={"statistics": statistics(folder)})
            manifest.write(folder)
    return manifest


def _normalized(sources: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if len(sources) < 2:
        raise SpecError(f"Averaging needs at least two models, not {len(sources)}.")
    weights = [1.0] * len(sources) if weights is None else list(weights)
    if len(weights) != len(sources) or not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights):
        raise SpecError(
            f"there must be one for each of the {len(sources)} models, not negative and not all 0; got {weights}.",
            key="weights",
        )
    return [weight / sum(weights) for weight in weights]


def _averaged(
    mean: PreTrainedModel, first: _Member, source: str, weight: float, share: float, allow_different_starts: bool
) -> dict[str, Any]:
    """Move `mean` towards a member by `share` of their distance; returns the facts about the member for the manifest."""
    model, member = _read(source)
    _check_facets(first, member)
    facts = _facts(member, weight, first)
    _check_start(first, member, facts["cosine"], facts["head_cosine"], allow_different_starts)
    others = _tensors(model)
    with torch.no_grad():
        for name, tensor in _tensors(mean).items():
            tensor.lerp_(others[name], share)
    return facts


def _read(source: str) -> tuple[PreTrainedModel, _Member]:
    checkpoint = load_checkpoint(source, ModelSettings(dtype="float32", device="cpu"))
    model, manifest, tokenizer = without_adapter(checkpoint.model, source), checkpoint.manifest, checkpoint.tokenizer
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"{source} is quantized, and quantized weights cannot be averaged. Merge the models before they are quantized."
        )
    for name, tensor in _tensors(model).items():
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"{source} has broken weights: {name} contains NaN or infinity. Leave it out, or train it again.")
    renderer = renderer_of(source, tokenizer, manifest, model.config, {})
    heads = Heads() if model.config.num_labels == 1 else None if manifest is None else manifest.heads
    member = _Member(
        source=source,
        manifest=manifest,
        renderer=renderer,
        heads=heads,
        facets={
            "configuration": _configuration(model, heads),
            "tokenizer": _vocabulary(tokenizer),
            "rendering": asdict(renderer.rendering),
            "heads": asdict(heads) if heads is not None else {},
            "tokenization": _token_ids(renderer),
        },
        backbone=_matrices(model, head=False),
        head=_matrices(model, head=True),
    )
    return model, member


def _stored_dtype(model: PreTrainedModel) -> torch.dtype:
    # From the file, because the configuration in memory has the dtype that the model was loaded in.
    dtype = AutoConfig.from_pretrained(model.name_or_path, trust_remote_code=False).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors to average, by name: floating-point parameters and buffers; tied tensors appear once."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in named.items() if tensor.is_floating_point()}


def _matrices(model: PreTrainedModel, *, head: bool) -> torch.Tensor:
    """The weight matrices of the head, or of everything else, as one vector; of large models, evenly spaced weights."""
    backbone = f"{model.base_model_prefix}."
    matrices = [
        parameter.detach().flatten()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and name.startswith(backbone) is not head
    ]
    size = sum(map(len, matrices))
    stride = math.ceil(size / _COMPARED_WEIGHTS) | 1  # odd, so that it visits all columns of a matrix
    return torch.cat([torch.empty(0), *(weights[::stride] for weights in matrices)])


def _facts(member: _Member, weight: float, first: _Member) -> dict[str, Any]:
    return {
        "source": member.source,
        "weight": weight,
        "manifest": None if member.manifest is None else member.manifest.digest,
        "base_model": member.start,
        "trained_on": None if member.manifest is None else member.manifest.trained_on,
        "cosine": float(cosine_similarity(first.backbone.double(), member.backbone.double(), dim=0)),
        "head_cosine": float(cosine_similarity(first.head.double(), member.head.double(), dim=0)),
    }


def _configuration(model: PreTrainedModel, heads: Heads | None) -> dict[str, Any]:
    """Everything that must be equal to average weights, by name: the class, the settings, the shapes of tensors."""
    ignored = _INCIDENTAL if heads is None else _INCIDENTAL | _LABELS
    shapes = {f"the shape of {name}": tuple(tensor.shape) for name, tensor in _tensors(model).items()}
    return {"the class": type(model).__name__, **_settings(model.config.to_dict(), ignored), **shapes}


def _settings(values: Mapping[Any, Any], ignored: set[str], path: str = "") -> dict[str, Any]:
    """The entries of a configuration by their dotted names, without dropout, in which members may differ."""
    settings: dict[str, Any] = {}
    for name, value in values.items():
        if name in ignored or "drop" in str(name):
            continue
        nested = isinstance(value, Mapping)
        settings.update(_settings(value, ignored, f"{path}{name}.") if nested else {f"{path}{name}": value})
    return settings


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    tokens = {f"the id of the token {token!r}": number for token, number in tokenizer.get_vocab().items()}
    return {**tokenizer.special_tokens_map, "the chat template": tokenizer.chat_template, **tokens}


def _token_ids(renderer: Renderer) -> dict[str, Any]:
    samples, ids = golden_rows(renderer)
    return {f"the token ids of {sample.prompt!r:.40}": row for sample, row in zip(samples, ids, strict=True)}


def _check_facets(first: _Member, member: _Member) -> None:
    for facet, wanted in first.facets.items():
        facts = member.facets[facet]
        different = [name for name in {**wanted, **facts} if wanted.get(name) != facts.get(name)]
        if different:
            shown = [_difference(name, wanted.get(name), facts.get(name)) for name in different[:_SHOWN_DIFFERENCES]]
            more = len(different) - len(shown)
            raise ModelError(
                f"{member.source} cannot be averaged with {first.source}, because it differs in its {facet}: "
                f"{'; '.join(shown)}{f'; and {more} more' if more else ''}. {_INSTEAD}"
            )


def _difference(name: str, wanted: object, value: object) -> str:
    if max(len(repr(wanted)), len(repr(value))) > _SHOWN_CHARACTERS:
        return name
    return f"{name} is {value!r}, not {wanted!r}"


def _check_start(first: _Member, member: _Member, cosine: float, head_cosine: float, allow_different_starts: bool) -> None:
    if cosine < SAME_START:
        bases = (
            f" Their manifests name the base models {member.start} and {first.start}." if member.start != first.start else ""
        )
        message = (
            f"{member.source} and {first.source} were not trained from the same weights: the cosine similarity of their weight "
            f"matrices is {cosine:.3f}, but at least {SAME_START} is expected.{bases} The mean of such models gives meaningless scores."
        )
        if not allow_different_starts:
            raise ModelError(f"{message} {_INSTEAD} To average them anyway, set allow_different_starts.")
        logger.warning("%s", message)
    if head_cosine < SAME_START:
        logger.warning(
            "The heads of %s and %s have a cosine similarity of %.3f, so their mean has a smaller norm and the scores have a smaller "
            "scale. To start members from the same head, train them with the same seed and different values of data_seed.",
            member.source,
            first.source,
            head_cosine,
        )


def _check_output(out: Path, sources: Sequence[str], overwrite: bool) -> None:
    check_output(out, is_folder=True)
    if not out.exists():
        return
    if any(Path(source).is_dir() and out.samefile(source) for source in sources):
        raise ModelError(f"{out} is one of the models to merge. Name another folder for the merged model.")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise ModelError(f"{out} is not empty. Name another folder, or set overwrite to replace it.")
    for path in out.iterdir():
        if path.is_dir():
            raise ModelError(
                f"{out} contains the folder {path.name}, so it is not just a model and is not replaced. Name another folder."
            )
    if not (out / "config.json").is_file():
        raise ModelError(f"{out} is not empty and not a model, so it is not replaced. Name another folder.")


def _set_dtype(model: PreTrainedModel, dtype: torch.dtype) -> None:
    # Only of the parameters, because transformers keeps rotary frequencies, which are buffers, in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _write(
    folder: Path,
    model: PreTrainedModel,
    dtype: torch.dtype,
    first: _Member,
    training: dict[str, Any],
    trained_on: SampleFormat | None,
) -> Manifest:
    heads = first.heads
    if heads is not None:
        model.config.problem_type = "regression"  # makes transformers' pipeline return the raw reward
        model.config.id2label = dict(enumerate(heads.labels))
        model.config.label2id = {label: number for number, label in enumerate(heads.labels)}
    _set_dtype(model, dtype)
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # hides an error of the system, such as a full disk
        raise OSError(str(error)) from error
    first.renderer.tokenizer.save_pretrained(folder)
    _set_dtype(model, torch.float32)  # compute golden scores in float32 from the weights as stored in the file
    manifest = Manifest(
        created_by={"rm-plugins": rm_plugins.__version__, **{name: version(name) for name in ("torch", "transformers")}},
        rendering=first.renderer.rendering,
        dtype="float32",
        heads=heads if heads is not None and len(heads) > 1 else None,
        training=training,
        trained_on=trained_on,
        files=file_digests(folder),
        golden=golden_scores(model, first.renderer, heads) if heads is not None else [],
    )
    manifest.write(folder)
    return manifest
