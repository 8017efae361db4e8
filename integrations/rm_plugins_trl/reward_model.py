"""A provider in the form in which TRL's own PPO, Nash-MD and XPO take a reward model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import maybe_apply_chat_template

import rm_plugins as rm
from rm_plugins.data.plain_values import plain_row
from rm_plugins.errors import DataError, ScoringError, UnsupportedError
from rm_plugins.handed_over import HandedOver, handed_over
from rm_plugins.training.session import RewardInTraining
from rm_plugins_trl.reward_scoring import training_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerState

    from rm_plugins_trl.reward_scoring import Spec

POLICY_COLUMNS = ("prompt", "input_ids", "attention_mask", "token_type_ids")
"""Columns that the policy sees; the reward may use all others."""


@dataclass
class AnnouncedPrompts:
    """A batch of prompts that TRL's own PPO trainer will complete and score, in order and possibly in chunks.

    Args:
        prompt_ids: int64 [B, context], padded on the left.
        prompts: The prompt of each row with its columns, as samples without a completion, [B].
        observe: Called with the scores of every chunk; None in an evaluation.
        training: The trainer's state.
    """

    prompt_ids: torch.Tensor
    prompts: Sequence[rm.Sample]
    observe: Callable[[rm.Scores], None] | None
    training: TrainerState | None = None
    taken: int = 0

    def take(self, ids: torch.Tensor) -> tuple[Sequence[rm.Sample], int]:
        """The prompts of the next rows, and where their completions begin.

        Args:
            ids: int64 [b, length], the next `b` rows: their prompts and completions.

        Raises:
            ScoringError: They are not the announced rows.
        """
        rows = slice(self.taken, self.taken + len(ids))
        announced = self.prompt_ids[rows].to(ids.device)
        context = announced.shape[1]
        if not torch.equal(ids[:, :context], announced):
            raise ScoringError(
                f"The trainer passed {len(ids)} rows to score, but they are not rows {rows.start} to {rows.stop - 1} of the last batch of "
                f"{len(self.prompts)} rows, so their prompts are unknown. Score each batch of the data loader once, in its order."
            )
        self.taken = rows.stop
        return self.prompts[rows], context


class RewardModel(nn.Module):
    """Any provider as a reward model whose ``get_reward`` TRL's PPO (up to 1.12), Nash-MD and XPO (up to 1.13) can call.

    These trainers give a reward model only the policy's token ids. The true prompt and the row's columns come from
    `PPOTrainer` with TRL up to 1.12, which announces its rows, or from `prompts`. The completion is the policy's text up to its first
    padding token, decoded without special tokens, as in GRPO; under a conversational prompt it is one assistant message.
    If neither gives a prompt, the whole decoded text is the completion of an empty prompt.

    It has no parameters, is its own backbone, and repeats a row's reward along the sequence, so any position may be
    read.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        processing_class: The policy's tokenizer, with a padding token.
        prompts: The prompt dataset of Nash-MD or XPO: rows with ``prompt``, text or messages, and any columns.

    Raises:
        SpecError: The spec is wrong.
        DataError: A row has no prompt, or two rows that the policy cannot tell apart differ in their columns.
        UnsupportedError: The tokenizer has no padding token.
    """

    base_model_prefix = "backbone"
    watchers: list[Callable[[Sequence[rm.Sample], rm.Scores, TrainerState | None], None]]
    """Called after every batch that was scored in this process, with the trainer's state or None, but not for a trainer's evaluation;
    not part of a copy."""

    def __init__(
        self,
        spec: Spec,
        processing_class: PreTrainedTokenizerBase,
        prompts: Iterable[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if processing_class.pad_token_id is None:
            raise UnsupportedError(
                "The policy's tokenizer has no padding token. Set one first, such as `tokenizer.pad_token = tokenizer.eos_token`."
            )
        self.provider = rm.load(spec)
        self.watchers = []
        self._scorer = RewardInTraining(self.provider, self.provider.label)
        self.processing_class = processing_class
        self.config = PretrainedConfig(name_or_path=self.provider.label)
        self.score = nn.Identity()
        self.announced: AnnouncedPrompts | None = None
        self._known = None if prompts is None else _KnownPrompts(prompts, processing_class)

    @property
    def backbone(self) -> RewardModel:
        """The module that TRL calls for the hidden states."""
        return self

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **unused: Any
    ) -> SequenceClassifierOutput:
        """Score a batch.

        Args:
            input_ids: int64 [B, L], prompts padded on the left, then completions padded on the right.
            attention_mask: bool or int64 [B, L], 0 at padding tokens, regardless of their id.
            unused: What else TRL passes to a backbone.

        Returns:
            ``logits`` float32 [B, 1], and ``hidden_states`` with one tensor, the same numbers as float32 [B, L, 1].

        Raises:
            DataError: A row does not begin with a known prompt.
            ScoringError: The provider failed or abstained.
            UnsupportedError: The prompts are conversations, and unknown.
        """
        pad = self.processing_class.pad_token_id
        # TRL masks by `ids != pad` and writes 0 there; undoing that restores an EOS inside a prompt where EOS is the padding.
        ids = input_ids if attention_mask is None else torch.where(attention_mask.bool(), input_ids, pad)
        samples = self._samples(ids)
        training = None if self.announced is None else self.announced.training
        whole = {} if training is None else {"trainer_state": training}
        with handed_over(HandedOver(samples, whole, {})):
            scores = self._scorer.score(samples, training_of(training))
        abstained = scores.abstained.nonzero()[0].tolist()
        if abstained:
            raise ScoringError(
                f"The reward {self.provider.label!r} abstained on {len(abstained)} of {len(scores)} samples (first: item "
                f"{abstained[0]}), and this trainer needs a number for each. Give the spec `on_error: {{fallback: SPEC}}` to "
                "have failures scored by another reward; a reward that abstains by its own choice must give a number here.",
                rows=abstained,
            )
        if self.announced is None or self.announced.observe is not None:
            for watcher in self.watchers:
                watcher(samples, scores, training)
        if self.announced is not None and self.announced.observe is not None:
            self.announced.observe(scores)
        rewards = torch.tensor(scores.values, dtype=torch.float32, device=input_ids.device)[:, None]
        repeated = rewards[:, None].expand(-1, input_ids.shape[1], -1)
        return SequenceClassifierOutput(logits=rewards, hidden_states=(repeated,))

    def _samples(self, ids: torch.Tensor) -> list[rm.Sample]:
        if self.announced is not None:
            prompts, context = self.announced.take(ids)
        elif self._known is not None:
            prompts, context = self._known.find(ids.tolist())
        else:
            return [rm.Sample("", text) for text in decoded_texts(ids.tolist(), self.processing_class)]
        pad = self.processing_class.pad_token_id
        completions = [row[: row.index(pad)] if pad in row else row for row in ids[:, context:].tolist()]
        texts = self.processing_class.batch_decode(completions, skip_special_tokens=True)
        return [replace(prompt, completion=text) for prompt, text in zip(prompts, texts, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        # A trainer's batch means nothing in another process, and holds on to the trainer.
        return {**self.__dict__, "announced": None, "watchers": []}


def prompt_of(row: Mapping[str, Any], where: str) -> rm.Sample:
    """A dataset row's prompt and columns, as a sample without a completion.

    Args:
        row: Columns by name.
        where: What an error message calls the row.

    Raises:
        DataError: There is no prompt, or it is neither text nor messages.
    """
    row = plain_row(row)
    if row.get("prompt") is None:
        raise DataError(f"{where} has no 'prompt'; it has the columns {', '.join(map(repr, row)) or 'none'}.")
    columns = {name: value for name, value in row.items() if name not in POLICY_COLUMNS}
    try:
        return rm.Sample(row["prompt"], "", columns)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def decoded_texts(ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Token ids as text, without padding and special tokens.

    Args:
        ids: Token ids per row.
        tokenizer: The policy's tokenizer.

    Raises:
        UnsupportedError: The ids were made by the chat template; a conversation cannot be told from its tokens.
    """
    marker = _generation_prompt(tokenizer)
    if marker and any(marker in text for text in tokenizer.batch_decode(ids)):
        raise UnsupportedError(
            f"These token ids were made by the policy's chat template (they contain {marker!r}), and the conversation cannot "
            "be read back from them. Keep the messages: a `prompt` column beside `input_ids` for PPOTrainer, or "
            "`RewardModel(..., prompts=dataset)` for Nash-MD and XPO."
        )
    pad = tokenizer.pad_token_id
    kept = [[token for token in row if token != pad] for row in ids]
    return [str(text) for text in tokenizer.batch_decode(kept, skip_special_tokens=True)]


def _generation_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template opens the assistant's turn with; empty where there is no such thing."""
    if not tokenizer.chat_template:
        return ""
    turn = [{"role": "user", "content": "."}]
    closed, opened = (
        str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=adds)) for adds in (False, True)
    )
    return opened.removeprefix(closed).strip() if opened.startswith(closed) else ""


class _KnownPrompts:
    """Finds prompts again by the token ids that Nash-MD and XPO make of them."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> None:
        self._pad = tokenizer.pad_token_id
        self._by_ids: dict[tuple[int, ...], rm.Sample] = {}
        numbers: dict[tuple[int, ...], int] = {}
        for number, row in enumerate(rows):
            prompt = prompt_of(row, f"Row {number} (counted from 0) of `prompts`")
            ids = self._without_left_padding(_online_prompt_ids(row, tokenizer))
            if self._by_ids.setdefault(ids, prompt) != prompt:
                raise DataError(
                    f"Rows {numbers[ids]} and {number} of `prompts` (counted from 0) are the same prompt to the policy but differ in "
                    "what the reward sees. These trainers give a reward model only token ids, which do not tell the rows apart. Leave "
                    "out the columns that the reward does not need, such as ids, or keep one of the rows."
                )
            numbers.setdefault(ids, number)
        self._lengths = sorted({len(ids) for ids in self._by_ids})

    def _without_left_padding(self, ids: Sequence[int]) -> tuple[int, ...]:
        # Where the beginning-of-text token is the padding token, a prompt's own cannot be told from the padding before it.
        start = next((position for position, token in enumerate(ids) if token != self._pad), len(ids))
        return tuple(ids[start:])

    def find(self, rows: Sequence[Sequence[int]]) -> tuple[list[rm.Sample], int]:
        """The prompt of each row, and where in the rows the completions begin.

        A completion may continue its prompt into another known one. What a single row leaves open, the batch mostly settles:
        completions begin at one position in all of its rows. The last such position counts.

        Raises:
            DataError: There is no such position.
        """
        candidates: list[dict[int, rm.Sample]] = []
        for row in rows:
            kept = self._without_left_padding(row)
            start = len(row) - len(kept)
            prefixes = (kept[:length] for length in self._lengths if length <= len(kept))
            candidates.append({start + len(ids): self._by_ids[ids] for ids in prefixes if ids in self._by_ids})
        shared = set.intersection(*map(set, candidates))
        if not shared:
            unknown = next((number for number, prompts in enumerate(candidates) if not prompts), 0)
            raise DataError(
                f"Row {unknown} of the batch does not begin with any of the {len(self._by_ids)} prompts that the RewardModel was "
                "given. `prompts` must be the dataset that the trainer trains on, and `processing_class` the policy's tokenizer."
            )
        context = max(shared)
        return [prompts[context] for prompts in candidates], context


def _online_prompt_ids(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids that the online trainers' ``training_step`` makes of a row's prompt, without truncation."""
    text = maybe_apply_chat_template(dict(row), tokenizer)["prompt"]
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    begins = tokenizer.bos_token_id is None or ids[:1] == [tokenizer.bos_token_id]
    return ids if begins else [tokenizer.bos_token_id, *ids]
