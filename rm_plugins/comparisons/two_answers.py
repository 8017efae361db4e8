"""Sequence classifiers that read a prompt and two answers to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from rm_plugins.comparisons.comparer import Comparer, Comparison, Verdicts
from rm_plugins.comparisons.logistic import logistic
from rm_plugins.comparisons.pair_template import PairTemplate
from rm_plugins.component import ModelSource
from rm_plugins.errors import DataError, SpecError, did_you_mean
from rm_plugins.models.identity import model_facts
from rm_plugins.models.settings import ModelSettings
from rm_plugins.models.trained_reward import TrainedReward
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.scores import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PARTS = ("{prompt}", "{first}", "{second}")
_PAIR_RM_PARTS = ("<|source|>{prompt}", "<|candidate1|>{first}", "<|candidate2|>{second}")
_PAIR_RM_PROMPT, _PAIR_RM_ROW = 1224, 2048
"""The most tokens of a prompt and of a row, for which PairRM was trained; both answers share what the prompt leaves."""
_ROLES = ("first", "second", "tie")


class TwoAnswers(Comparer):
    """A sequence classifier whose input is the prompt and both answers, such as an encoder that was trained on pairs.

    The input is made of `parts`. With ``special_tokens: each``, every part is encoded as a text of its own, with the tokenizer's special
    tokens around it, and the parts are joined. With ``once``, the parts are joined by `separator`, and special
    tokens are only around the whole: ``[CLS] prompt [SEP] first [SEP] second [SEP]``.

    A model with one output gives the logit that the first answer is better. A model with several outputs gives a softmax over `labels`.

    Checkpoints of PairRM for transformers (`rm_plugins.models.pair_rm.PairRM`) are read as they were trained: `parts`, `special_tokens` and
    the lengths have other defaults.

    Args:
        model: A model folder or hub id of a sequence classifier in transformers' format.
        parts: The templates of the parts, with ``{prompt}``, ``{first}`` and ``{second}``; by default these three. For PairRM, it is
            ``["<|source|>{prompt}", "<|candidate1|>{first}", "<|candidate2|>{second}"]``.
        special_tokens: ``once`` (the default) or ``each`` (the default for PairRM).
        separator: The text between parts, for ``once``; by default the tokenizer's separator token.
        max_part_tokens: The most tokens of each part, whose end is cut off; by default no part is cut, and a row that is longer than the
            model allows has failed. By default, PairRM reads 1,224 tokens of the prompt, and half of what is left of 2,048 of each answer.
        labels: For a model with several outputs: the output (its index or name) that each of ``first``, ``second`` and optionally ``tie``
            has; by default 0 is ``first`` and 1 is ``second``.
        tokenizer: The tokenizer's folder or id, if it is not beside the model.
        revision: The revision of a hub id.
        dtype: ``auto`` is float32 on a CPU and the checkpoint's own elsewhere.
        device: ``auto`` is this process's accelerator, else the CPU.
        max_batch_tokens: Padded tokens per micro-batch.

    Raises:
        ModelError: The model cannot be loaded, or its outputs do not fit `labels`.
        SpecError: The parts lack an answer, or a setting does not fit the others.
    """

    name: ClassVar[str] = "two-answers"
    keys_without_effect: ClassVar[frozenset[str]] = frozenset({"device", "max_batch_tokens"})

    def __init__(
        self,
        *,
        model: ModelSource,
        parts: Sequence[str] | None = None,
        special_tokens: Literal["once", "each"] | None = None,
        separator: str | None = None,
        max_part_tokens: Sequence[int] | None = None,
        labels: Mapping[str, int | str] | None = None,
        tokenizer: ModelSource | None = None,
        revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        device: str = "auto",
        max_batch_tokens: int | None = None,
    ) -> None:
        from rm_plugins.models.model_folder import is_pair_rm, load_config  # here, because it imports transformers

        self._is_pair_rm = is_pair_rm(load_config(model, revision=revision))
        parts = parts or (_PAIR_RM_PARTS if self._is_pair_rm else _PARTS)
        special_tokens = special_tokens or ("each" if self._is_pair_rm else "once")
        PairTemplate("".join(parts), needed=("first", "second"), key="parts")  # refuses parts without an answer
        self.parts = [PairTemplate(part) for part in parts]
        if special_tokens == "each" and separator is not None:
            raise SpecError("parts that have their own special tokens have no separator; leave it out.", key="separator")
        if max_part_tokens is not None and (len(max_part_tokens) != len(parts) or min(max_part_tokens) < 1):
            raise SpecError(f"give a positive number for each of the {len(parts)} parts.", key="max_part_tokens")
        self.special_tokens = special_tokens
        self.max_part_tokens = max_part_tokens
        settings = ModelSettings(
            head=0,  # any: the outputs are read here
            pair=False,
            max_length=_PAIR_RM_ROW if self._is_pair_rm else None,
            tokenizer=tokenizer,
            revision=revision,
            dtype=dtype,
            device=device,
            max_batch_tokens=max_batch_tokens,
        )
        self.trained = TrainedReward.load(model, settings, _pair_rm_class() if self._is_pair_rm else None)
        self.separator = separator if separator is not None else self._tokenizer.sep_token
        if special_tokens == "once" and self.separator is None:
            raise SpecError(
                f"the tokenizer of {model} has no separator token. Set the text between the parts.", key="separator"
            )
        self.columns = _columns_of(self.trained, labels)
        self._around = _special_tokens_around(self._tokenizer)

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self.trained.renderer.tokenizer

    @property
    def identity(self) -> dict[str, Any]:
        """Its settings, and the weights and the tokenizer instead of paths."""
        return {
            "parts": [part.text for part in self.parts],
            "special_tokens": self.special_tokens,
            "separator": self.separator,
            "max_part_tokens": None if self.max_part_tokens is None else list(self.max_part_tokens),
            "labels": self.columns,
            "model": model_facts(self.trained.renderer, self.trained.model),
        }

    def compare(self, samples: Sequence[Sample], asked: Sequence[Comparison]) -> Verdicts:
        """Run the model once for all comparisons."""
        errors: dict[int, str] = {}
        rows: dict[int, list[int]] = {}
        limit = self.trained.renderer.rendering.max_length
        for place, comparison in enumerate(asked):
            try:
                ids = self.token_ids(samples[comparison.first], samples[comparison.second])
            except DataError as error:
                errors[place] = str(error)
                continue
            if limit is not None and len(ids) > limit:
                errors[place] = (
                    f"prompt and answers have {len(ids)} tokens, and the model reads at most {limit}; set `max_part_tokens` to cut them"
                )
                continue
            rows[place] = ids
        probabilities = np.full(len(asked), np.nan)
        metadata: Mapping[str, Any] = {}
        if rows:
            outputs = self.trained.outputs([RenderedSample.of(ids) for ids in rows.values()])
            places = np.array([*rows])
            probabilities[places] = self._probabilities(outputs.values)
            errors |= {int(places[row]): str(error) for row, error in outputs.errors.items()}
            metadata = {name: outputs.metadata[name] for name in ("seconds",) if name in outputs.metadata}
        return Verdicts(probabilities, errors, metadata)

    def token_ids(self, first: Sample, second: Sample) -> list[int]:
        """The model's input for two answers.

        Raises:
            DataError: A message has a part that is not text.
        """
        each = self.special_tokens == "each"
        encoded: list[list[int]] = []
        for part in self.parts:
            limit = self._limit(encoded)
            row = self._tokenizer(
                part.fill(first, second),
                add_special_tokens=each,
                truncation=limit is not None,
                max_length=limit,
                verbose=False,
            )
            encoded.append(list(row["input_ids"]))
        if self._is_pair_rm:
            self._check_marks([token for part in encoded for token in part])
        if each:
            return [token for part in encoded for token in part]
        between = list(self._tokenizer(self.separator, add_special_tokens=False)["input_ids"])
        joined = encoded[0]
        for ids in encoded[1:]:
            joined = [*joined, *between, *ids]
        before, after = self._around
        return [*before, *joined, *after]

    def _limit(self, encoded: Sequence[Sequence[int]]) -> int | None:
        """The most tokens of the next part, after those that are encoded."""
        if self.max_part_tokens:
            return self.max_part_tokens[len(encoded)]
        if not self._is_pair_rm:
            return None
        return (_PAIR_RM_ROW - len(encoded[0])) // 2 if encoded else _PAIR_RM_PROMPT

    def _check_marks(self, ids: Sequence[int]) -> None:
        """Refuse a row that does not have each mark of PairRM once."""
        for mark in self.trained.model.marks:
            if (times := ids.count(mark)) != 1:
                raise DataError(
                    f"the input has the token {self._tokenizer.convert_ids_to_tokens(mark)!r} {times} times. It marks where a part begins, "
                    "so `parts` must have it once, and prompt and answers must not"
                )

    def _probabilities(self, outputs: FloatArray) -> FloatArray:
        """The probability that the first answer is better, float64 [M], from the outputs [M, outputs]; a tie is half a win."""
        if not self.columns:
            return logistic(outputs[:, 0])
        chosen = outputs[:, list(self.columns.values())]
        shares = np.exp(chosen - chosen.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        value = {"first": 1.0, "second": 0.0, "tie": 0.5}
        probabilities: FloatArray = np.clip(shares @ np.array([value[role] for role in self.columns]), 0.0, 1.0)
        return probabilities


def _pair_rm_class() -> type[PreTrainedModel]:
    from rm_plugins.models.pair_rm import PairRM

    return PairRM


def _special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer adds before and after a text."""
    whole, bare = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (True, False))
    start = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]


def _columns_of(trained: TrainedReward, labels: Mapping[str, int | str] | None) -> dict[str, int]:
    """The output of each of ``first``, ``second`` and ``tie``; empty for a model with one output, a logit."""
    names = [str(trained.model.config.id2label[index]) for index in range(trained.model.config.num_labels)]
    if len(names) == 1:
        if labels is not None:
            raise SpecError(f"{trained.source} has a single output, the logit that the first answer is better.", key="labels")
        return {}
    if labels is None:
        if len(names) != 2:
            raise SpecError(
                f"{trained.source} has the {len(names)} outputs {', '.join(names)}. Set which is which: "
                "`labels: {first: 0, second: 1, tie: 2}`.",
                key="labels",
            )
        return {"first": 0, "second": 1}
    columns = {}
    for role, label in labels.items():
        if role not in _ROLES:
            raise SpecError(f"there is no such meaning of an output. {did_you_mean(role, _ROLES)}", key=f"labels.{role}")
        known = 0 <= label < len(names) if isinstance(label, int) else label in names
        if not known:
            raise SpecError(
                f"{trained.source} has no output {label!r}. {did_you_mean(str(label), names)}", key=f"labels.{role}"
            )
        columns[role] = label if isinstance(label, int) else names.index(label)
    if not {"first", "second"} <= columns.keys() or len(set(columns.values())) != len(columns):
        raise SpecError("different outputs are needed for 'first' and 'second'.", key="labels")
    return columns
