"""By whom a model without a manifest was trained, as far as its files tell, and how that engine scores with it. Imports no torch by itself.

A hint counts only where an engine writes it and nothing else does. Nothing is unpickled, and no code of the checkpoint runs.

| engine (version seen) | its sign in the files | read | pair | closes texts with EOS |
|---|---|---|---|---|
| OpenRLHF (0.3.6, 0.5.0, 0.8.0, 0.11.2) | config: class `RewardModel`, `value_head_prefix` | last | no | yes, conversations too |
| TRL (0.9.6 to 1.16.0) | card: tags `trl` and `reward-trainer` | before padding | no | from 0.24 on |
| axolotl (0.19.0) | card: tag `axolotl`; it trains with TRL | before padding | no | as its template does |
| ms-swift (4.6.0) | `args.json`: `swift_version`, `task_type: seq_cls` | before padding (1) | no | as its template does |
| sentence-transformers (3.4.1, 5.1.2, 6.2.0) | a file or keys of its own, or the card | before padding | yes | no |
| LLaMA-Factory (0.9.5) | `value_head.safetensors`, `value_head.bin` | last | no | as its template does |
| vLLM's converter of rerankers (0.32.0) | config: `use_sep_token` or `use_pad_token` is false | last | no | no |
| unknown | card: tag `cross-encoder` or `reranker`, or code with pairs | | yes | |

(1) Unknown with `padding_free` or `packing`: the last token is read in training, and the last that is not padding in scoring.

verl (0.9.1) trains no such model, and FlagEmbedding (1.4.2) leaves no sign: its rerankers are known by their cards alone.
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
_BY_ITS_CARD = "somebody whose model card shows pairs"
_A_CRITIC = "it is OpenRLHF's critic, which gives a value for each token and no reward"
_VALUE_HEADS = ("value_head.safetensors", "value_head.bin")
_TRL_TOKENIZES = (0, 12)
"""The first version of TRL whose RewardTrainer takes texts; earlier ones take token ids."""
_TRL_CLOSES_TEXTS = (0, 24)
"""The first one that closes texts with EOS."""

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
    """What the files beside a model tell of who trained it.

    Args:
        by: The engine, or engines where the files name several.
        read: Which token of a decoder's row it reads; None where the files do not tell, or contradict each other.
        pair: Whether it encodes prompt and completion as a pair; None likewise.
        append_eos: Whether it closes texts with EOS; None likewise.
        convention: Whose rules make token ids of its texts, where they are not TRL's.
        outputs: The number of outputs of the head, where the configuration does not tell.
        head: What the checkpoint calls the head, where transformers does not call it so.
        differences: What else that engine's number depends on and ours does not, each a sentence.
        unusable: Why no number of ours would be that engine's; None where there is no such reason.
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
    """By whom a model or adapter without a manifest was trained; None where its files do not tell.

    Args:
        source: Its folder or hub id.
        config: Its configuration; an adapter's base model's.
        revision: The revision of the hub.
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


def _agreed(told: Iterable[_Value | None]) -> _Value | None:
    """What all that tell anything tell; None where they contradict each other."""
    values = {value for value in told if value is not None}
    return values.pop() if len(values) == 1 else None


def _signs(files: _Files, config: PretrainedConfig) -> Iterator[TrainedElsewhere]:
    """What each engine that left its sign would do."""
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
    head = prefix if isinstance(prefix, str) else "value_head"  # what 0.5 calls it, which does not write it down
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
    # Without padding, training reads the last token of a row, and scoring afterwards the last that is not padding.
    without_padding = any(arguments.get(name) is True for name in ("padding_free", "packing"))
    is_reranker = arguments["task_type"] == "reranker"  # whose template writes query and document into one text
    differences = []
    if system := arguments.get("system"):
        differences.append(f"ms-swift put this system message before each conversation: {str(system)!r:.200}.")
    if is_reranker:
        differences.append(f"ms-swift writes query and document with its own template, {str(arguments.get('template'))!r:.80}.")
    return TrainedElsewhere(
        by="ms-swift",
        read=None if without_padding else "before-padding",
        pair=None if is_reranker else False,
        differences=tuple(differences),
    )


def _sentence_transformers(files: _Files, config: PretrainedConfig) -> TrainedElsewhere | None:
    """A CrossEncoder of sentence-transformers: 6 writes files of its own, 4 and 5 a key of the configuration, 3 another one."""
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
        differences.append(f"{name} puts this prompt before the first text: {str(prompts[default])!r:.200}.")
    if module.get("do_lower_case"):
        differences.append(f"{name} turns texts into lower case.")
    if len(files.modules) > 1 or module.get("transformer_task") not in (None, "sequence-classification"):
        unusable = f"{name} computes its score with modules of its own behind the model ({files.modules_in_words})"
    elif isinstance(modalities, Mapping) and "message" in modalities:
        unusable = f"{name} writes its pairs with a chat template that has the roles query and document"
    return TrainedElsewhere(
        by=name, read="before-padding", pair=True, append_eos=False, differences=tuple(differences), unusable=unusable
    )


def _llama_factory(files: _Files, config: PretrainedConfig) -> TrainedElsewhere | None:
    if not _architecture(config).endswith(("ForCausalLM", "ForConditionalGeneration")):
        return None
    head = next((name for name in _VALUE_HEADS if files.has(name)), None)
    if head is None:
        return None
    reason = f"its head is in {head}, where LLaMA-Factory writes it and transformers does not read it"
    return TrainedElsewhere(by="LLaMA-Factory", read="last", pair=False, unusable=reason)


def _is_converted_for_vllm(config: PretrainedConfig) -> bool:
    """Whether vLLM, which reads these keys, takes query and document as one text."""
    return any(getattr(config, name, None) is False for name in ("use_sep_token", "use_pad_token"))


def _architecture(config: PretrainedConfig) -> str:
    """The name of the class that a checkpoint says it is of."""
    names = config.architectures
    return str(names[0]) if names else ""


class _Files:
    """The files beside a model that say something of its training. What cannot be read says nothing."""

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
        """The modules of sentence-transformers that make up a model."""
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
        """The model card, and that of the training whose checkpoint this is."""
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
        """What the card's front matter says of the model's kind; of the last one, where there are two."""
        said: dict[str, Any] = {"tags": []}
        for text in self._cards:
            matter = _FRONT_MATTER.match(text)
            lines = "".join(_CARD_KEYS.findall(matter[1])) if matter else ""
            try:
                settings = parsed_yaml(lines, _CARD)
            except SpecError:
                continue
            if isinstance(settings, dict):
                tags = settings.pop("tags", None)
                said["tags"] += tags if isinstance(tags, list) else [tags]
                said |= settings
        return said

    @property
    def tags(self) -> set[str]:
        return {tag for tag in self.card["tags"] if isinstance(tag, str)}

    @property
    def card_names_pairs(self) -> bool:
        """Whether the card's front matter names a model of pairs."""
        return bool(self.tags & {"cross-encoder", "reranker"}) or self.card.get("pipeline_tag") == "text-ranking"

    @property
    def card_shows_pairs(self) -> bool:
        """Whether the card says that the model takes pairs, in its front matter or in an example, and in none renders conversations."""
        in_code = any(_PAIRS_IN_CODE.search(text) for text in self._cards)
        return self.card_names_pairs or (in_code and not any("apply_chat_template" in text for text in self._cards))

    @property
    def trl_closes_texts(self) -> bool | None:
        """Whether the version of TRL that the card names closes texts with EOS; None where the card does not tell."""
        versions = [match for text in self._cards for match in _TRL_VERSION.findall(text)]
        version = tuple(map(int, versions[-1])) if versions else ()
        return version >= _TRL_CLOSES_TEXTS if version >= _TRL_TOKENIZES else None
