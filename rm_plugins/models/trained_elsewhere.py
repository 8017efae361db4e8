"""Detects which engine trained a model without a manifest, from its files, and how that engine scores. Does not import torch itself.

Only hints that a single engine writes are used. Nothing is unpickled, and no code of the checkpoint runs.

| engine (tested versions) | its sign in the files | read | pair | ends texts with EOS |
|---|---|---|---|---|
| OpenRLHF (0.3.6, 0.5.0, 0.8.0, 0.11.2) | config: class `RewardModel`, `value_head_prefix` | last | no | yes, conversations too |
| TRL (0.9.6 to 1.16.0) | card: tags `trl` and `reward-trainer` | before padding | no | from 0.24 on |
| axolotl (0.19.0) | card: tag `axolotl`; it trains with TRL | before padding | no | like its template |
| ms-swift (4.6.0) | `args.json`: `swift_version`, `task_type: seq_cls` | before padding (1) | no | like its template |
| sentence-transformers (3.4.1, 5.1.2, 6.2.0) | a file or keys of its own, or the card | before padding | yes | no |
| LLaMA-Factory (0.9.5) | `value_head.safetensors`, `value_head.bin` | last | no | like its template |
| vLLM's converter of rerankers (0.32.0) | config: `use_sep_token` or `use_pad_token` is false | last | no | no |
| unknown | card: tag `cross-encoder` or `reranker`, or code with pairs | | yes | |

(1) Unknown with `padding_free` or `packing`: training then reads the last token, and scoring the last one that is not padding.

verl (0.9.1) does not train such models. FlagEmbedding (1.4.2) leaves no sign; its rerankers are recognized only by their cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rm_plugins.errors import ModelError, SpecError
from rm_plugins.models.model_folder import found_file, read_model_json
from rm_plugins.rendering.rendering import Convention, Read
from rm_plugins.written_settings import parsed_yaml, read_text

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_Value = TypeVar("_Value")

_CARD = "README.md"
_BY_ITS_CARD = "an unknown engine (its model card shows pairs)"
_A_CRITIC = "it is OpenRLHF's critic, which gives a value for each token and no reward"
_VALUE_HEADS = ("value_head.safetensors", "value_head.bin")
_TRL_TOKENIZES = (0, 12)
"""The first version of TRL whose RewardTrainer takes texts; earlier versions take token ids."""
_TRL_CLOSES_TEXTS = (0, 24)
"""The first version of TRL that ends texts with EOS."""

_CHECKPOINT = re.compile(r"checkpoint-\d+")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_CARD_KEYS = re.compile(r"^(?:tags|library_name|pipeline_tag):.*\n(?:(?:[ \t-].*)?\n)*", re.MULTILINE)
_TRL_VERSION = re.compile(r"^- TRL: (\d+)\.(\d+)", re.MULTILINE)
_PAIRS_IN_CODE = re.compile(
    r"\btokenizer\(\s*(?:pairs\b|(?:questions?|query|queries|prompts?|instructions?)\s*,\s*"
    r"(?:answers?|responses?|completions?|documents?|docs?|passages?|texts?)\s*[,)])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedElsewhere:
    """How the engine that trained a model scores with it, from the model's files.

    Args:
        by: The engine, or several engines if the files name several.
        read: The token of a decoder's row that it reads; None if the files do not tell or contradict each other.
        pair: Whether it encodes prompt and completion as a pair; None if unknown.
        append_eos: Whether it ends texts with EOS; None if unknown.
        convention: Its rules for tokenizing texts, if they are not TRL's.
        outputs: The number of outputs of the head, if the configuration does not have it.
        head: The name of the head in the checkpoint, if it differs from transformers' name.
        differences: Sentences about further things that affect the engine's scores but not ours.
        unusable: Why our scores cannot match the engine's; None if they can.
    """

    by: str
    read: Read | None = None
    pair: bool | None = None
    append_eos: bool | None = None
    convention: Convention | None = None
    outputs: int | None = None
    head: str | None = None
    differences: tuple[str, ...] = ()
    unusable: str | None = None


def trained_elsewhere(source: str, config: PretrainedConfig, revision: str | None = None) -> TrainedElsewhere | None:
    """The engine that trained a model or adapter without a manifest; None if its files do not tell.

    Args:
        source: The folder or hub id.
        config: The configuration of the model, or of an adapter's base model.
        revision: The revision on the hub.
    """
    files = _Files(source, revision)
    signs = [*_signs(files, config)]
    if not signs:
        return None
    return TrainedElsewhere(
        by=" and ".join(dict.fromkeys(sign.by for sign in signs)),
        read=_agreed(sign.read for sign in signs),
        pair=_agreed(sign.pair for sign in signs),
        append_eos=_agreed(sign.append_eos for sign in signs),
        convention=_agreed(sign.convention for sign in signs),
        outputs=_agreed(sign.outputs for sign in signs),
        head=_agreed(sign.head for sign in signs),
        differences=tuple(difference for sign in signs for difference in sign.differences),
        unusable=next((sign.unusable for sign in signs if sign.unusable), None),
    )


def _agreed(candidates: Iterable[_Value | None]) -> _Value | None:
    """The only value besides None; None if there is none or several."""
    values = {value for value in candidates if value is not None}
    return values.pop() if len(values) == 1 else None


def _signs(files: _Files, config: PretrainedConfig) -> Iterator[TrainedElsewhere]:
    """The scoring of each engine that left its sign."""
    tags = files.tags
    if (sign := _openrlhf(config)) is not None:
        yield sign
    if (sign := _ms_swift(files)) is not None:
        yield sign
    elif "axolotl" in tags:
        yield TrainedElsewhere(by="axolotl", read="before-padding", pair=False)
    elif {"trl", "reward-trainer"} <= tags:
        yield TrainedElsewhere(by="TRL", read="before-padding", pair=False, append_eos=files.trl_closes_texts)
    if (sign := _sentence_transformers(files, config)) is not None:
        yield sign
    elif files.card_shows_pairs:
        yield TrainedElsewhere(by=_BY_ITS_CARD, pair=True)
    if (sign := _llama_factory(files, config)) is not None:
        yield sign
    if _is_converted_for_vllm(config):
        yield TrainedElsewhere(by="vLLM's converter of rerankers", read="last", pair=False, append_eos=False)


def _openrlhf(config: PretrainedConfig) -> TrainedElsewhere | None:
    architecture = _architecture(config)
    prefix = getattr(config, "value_head_prefix", None)
    is_its_class = architecture in ("RewardModel", "CriticModel") and hasattr(config, "normalize_reward")
    if not is_its_class and not isinstance(prefix, str):
        return None
    head = prefix if isinstance(prefix, str) else "value_head"  # the name in version 0.5, which does not store it
    differences = []
    if getattr(config, "normalize_reward", None) is True:
        mean, std = getattr(config, "mean", 0.0), getattr(config, "std", 1.0)
        differences.append(f"OpenRLHF subtracts {mean!s:.40} from its scores and divides them by {std!s:.40}.")
    return TrainedElsewhere(
        by="OpenRLHF",
        read="last",
        pair=False,
        append_eos=True,
        convention="openrlhf",
        outputs=1,
        head=None if head == "score" else head,
        differences=tuple(differences),
        unusable=_A_CRITIC if architecture == "CriticModel" else None,
    )


def _ms_swift(files: _Files) -> TrainedElsewhere | None:
    arguments = files.json("args.json")
    if not isinstance(arguments.get("swift_version"), str) or arguments.get("task_type") not in ("seq_cls", "reranker"):
        return None
    # Without padding, training reads the last token of a row, but scoring reads the last one that is not padding.
    without_padding = any(arguments.get(name) is True for name in ("padding_free", "packing"))
    is_reranker = arguments["task_type"] == "reranker"  # its template writes query and document into one text
    differences = []
    if system := arguments.get("system"):
        differences.append(f"ms-swift adds this system message before each conversation: {str(system)!r:.200}.")
    if is_reranker:
        differences.append(f"ms-swift writes query and document with its own template, {str(arguments.get('template'))!r:.80}.")
    return TrainedElsewhere(
        by="ms-swift",
        read=None if without_padding else "before-padding",
        pair=None if is_reranker else False,
        differences=tuple(differences),
    )


def _sentence_transformers(files: _Files, config: PretrainedConfig) -> TrainedElsewhere | None:
    """A CrossEncoder of sentence-transformers: version 6 writes its own files, 4 and 5 a key of the configuration, 3 another key."""
    settings = files.json("config_sentence_transformers.json")
    is_cross_encoder = settings.get("model_type") == "CrossEncoder"
    older = getattr(config, "sentence_transformers", None)
    has_older = isinstance(older, Mapping) and bool({"activation_fn", "version"} & older.keys())
    has_oldest = getattr(config, "sbert_ce_default_activation_function", None) is not None
    in_card = files.card_names_pairs and "sentence-transformers" in [*files.tags, files.card.get("library_name")]
    if not (is_cross_encoder or has_older or has_oldest or in_card):
        return None
    name = "sentence-transformers"
    if not is_cross_encoder:
        return TrainedElsewhere(by=name, read="before-padding", pair=True, append_eos=False)
    module = files.json("sentence_bert_config.json")
    modalities = module.get("modality_config")
    differences, unusable = [], None
    prompts, default = settings.get("prompts"), settings.get("default_prompt_name")
    if isinstance(prompts, Mapping) and isinstance(default, str) and prompts.get(default):
        differences.append(f"{name} adds this prompt before the first text: {str(prompts[default])!r:.200}.")
    if module.get("do_lower_case"):
        differences.append(f"{name} converts texts to lower case.")
    if len(files.modules) > 1 or module.get("transformer_task") not in (None, "sequence-classification"):
        unusable = f"{name} computes its score with its own modules after the model ({files.modules_in_words})"
    elif isinstance(modalities, Mapping) and "message" in modalities:
        unusable = f"{name} renders its pairs with a chat template with the roles query and document"
    return TrainedElsewhere(
        by=name, read="before-padding", pair=True, append_eos=False, differences=tuple(differences), unusable=unusable
    )


def _llama_factory(files: _Files, config: PretrainedConfig) -> TrainedElsewhere | None:
    if not _architecture(config).endswith(("ForCausalLM", "ForConditionalGeneration")):
        return None
    head = next((name for name in _VALUE_HEADS if files.has(name)), None)
    if head is None:
        return None
    reason = f"LLaMA-Factory stored its head in {head}, which transformers does not read"
    return TrainedElsewhere(by="LLaMA-Factory", read="last", pair=False, unusable=reason)


def _is_converted_for_vllm(config: PretrainedConfig) -> bool:
    """Whether vLLM, which reads these keys, takes query and document as one text."""
    return any(getattr(config, name, None) is False for name in ("use_sep_token", "use_pad_token"))


def _architecture(config: PretrainedConfig) -> str:
    """The name of the model class in the configuration."""
    names = config.architectures
    return str(names[0]) if names else ""


class _Files:
    """The files of a model with information about its training. Files that cannot be read are ignored."""

    def __init__(self, source: str, revision: str | None) -> None:
        self._source = source
        self._revision = revision

    def has(self, name: str) -> bool:
        return found_file(self._source, name, self._revision) is not None

    def json(self, name: str) -> dict[str, Any]:
        file = found_file(self._source, name, self._revision)
        try:
            return read_model_json(file) if file else {}
        except ModelError:
            return {}

    @cached_property
    def modules(self) -> list[Any]:
        """The modules in sentence-transformers' ``modules.json``."""
        file = found_file(self._source, "modules.json", self._revision)
        try:
            modules = parsed_yaml(read_text(file), str(file)) if file else []  # JSON is YAML
        except SpecError:
            return []
        return modules if isinstance(modules, list) else []

    @property
    def modules_in_words(self) -> str:
        kinds = (str(module.get("type")).rpartition(".")[2] for module in self.modules if isinstance(module, Mapping))
        return ", ".join(kinds) or "modules.json"

    @cached_property
    def _cards(self) -> list[str]:
        """The model card and, for a checkpoint of a training, the card of the training."""
        files = [found_file(self._source, _CARD, self._revision)]
        folder = Path(self._source)
        if folder.is_dir() and _CHECKPOINT.fullmatch(folder.resolve().name):
            files.append(folder.resolve().parent / _CARD)
        texts = []
        for file in files:
            try:
                texts += [read_text(file)] if file is not None and file.is_file() else []
            except SpecError:
                continue
        return texts

    @cached_property
    def card(self) -> dict[str, Any]:
        """The keys about the model's kind in the front matter of the cards; later cards override earlier ones, and tags are joined."""
        matter_keys: dict[str, Any] = {"tags": []}
        for text in self._cards:
            matter = _FRONT_MATTER.match(text)
            lines = "".join(_CARD_KEYS.findall(matter[1])) if matter else ""
            try:
                settings = parsed_yaml(lines, _CARD)
            except SpecError:
                continue
            if isinstance(settings, dict):
                tags = settings.pop("tags", None)
                matter_keys["tags"] += tags if isinstance(tags, list) else [tags]
                matter_keys |= settings
        return matter_keys

    @property
    def tags(self) -> set[str]:
        return {tag for tag in self.card["tags"] if isinstance(tag, str)}

    @property
    def card_names_pairs(self) -> bool:
        """Whether the card's front matter marks the model as one for pairs."""
        return bool(self.tags & {"cross-encoder", "reranker"}) or self.card.get("pipeline_tag") == "text-ranking"

    @property
    def card_shows_pairs(self) -> bool:
        """Whether the card shows that the model takes pairs: in its front matter, or in an example and no example has a chat template."""
        in_code = any(_PAIRS_IN_CODE.search(text) for text in self._cards)
        return self.card_names_pairs or (in_code and not any("apply_chat_template" in text for text in self._cards))

    @property
    def trl_closes_texts(self) -> bool | None:
        """Whether the version of TRL in the card ends texts with EOS; None if the card has no version."""
        versions = [match for text in self._cards for match in _TRL_VERSION.findall(text)]
        version = tuple(map(int, versions[-1])) if versions else ()
        return version >= _TRL_CLOSES_TEXTS if version >= _TRL_TOKENIZES else None
