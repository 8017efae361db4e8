"""TRL's PPO with any provider as its reward, and with prompts instead of token ids as its data (TRL up to 1.12)."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

import rm_plugins as rm
from rm_plugins.errors import MissingDependencyError
from rm_plugins.processes import all_gathered
from rm_plugins_trl.configs import bf16_by_default, given_configuration, own_copy, with_help
from rm_plugins_trl.ppo.policy import given_policy, policy_tokenizer
from rm_plugins_trl.ppo.prompts import given_ids, no_prompts, no_rows, not_a_dataset, prompt_ids, too_few_prompts
from rm_plugins_trl.ppo.rewards import given_reward, is_module
from rm_plugins_trl.ppo.value_models import policy_as_value_model
from rm_plugins_trl.reward_model import AnnouncedPrompts, RewardModel, decoded_texts, prompt_of
from rm_plugins_trl.reward_scoring import detail_metric

try:
    with warnings.catch_warnings():
        # TRL warns whoever imports an experimental trainer, which here is we and not the user.
        warnings.filterwarnings("ignore", r"You are importing from 'trl\.experimental'")
        from trl.experimental.ppo import PPOConfig as TrlPPOConfig
        from trl.experimental.ppo import PPOTrainer as TrlPPOTrainer
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"TRL {version('trl')} is installed, and its PPO needs the package {error.name!r}, which is not installed: "
        f"`pip install {error.name}`. With TRL 1.13 or later, PPO does not need it."
    ) from None  # the message says all

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerState

    from rm_plugins_trl.reward_scoring import Spec

_Rows: TypeAlias = Sequence[Mapping[str, Any]]

_ROW = "dataset_row"
"""The key under which a batch carries the numbers of its rows."""

_STATISTICS: Mapping[str, Callable[[Any], Any]] = {
    "mean": np.mean,
    "std": lambda values: np.std(values, ddof=1) if len(values) > 1 else 0.0,
    "min": np.min,
    "max": np.max,
}


@with_help
@dataclass
class PPOConfig(TrlPPOConfig):
    """TRL's ``PPOConfig`` whose ``reward_model_path`` may be any spec.

    Unlike TRL's, it starts on a machine without an accelerator: ``bf16`` is on by default only if an accelerator supports it.

    Args:
        reward_model_path: The reward that `PPOTrainer` loads, unless it is given another one: a model folder, a hub id, a URL,
            ``module:function``, a spec file, or a name of ``rm_plugins.yaml``.
        bf16: Whether to use bf16; if None, it is used if the accelerator supports it.
        trust_remote_code: Whether code in the policy's checkpoint may run.
    """

    reward_model_path: str | None = None
    bf16: bool | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = bf16_by_default(self.fp16)
        super().__post_init__()


class PPOTrainer(TrlPPOTrainer):
    """TRL's ``PPOTrainer`` with any provider as its reward.

    It differs from TRL's ``PPOTrainer``:

    - the reward sees the true prompt, text or messages, every column of the row, and the decoded completion, as in GRPO;
    - datasets hold a ``prompt``, text or messages, which is tokenized here (``tools`` and ``chat_template_kwargs`` reach the
      chat template). TRL's datasets of ``input_ids`` work too; their prompt is the decoded ids, if there is no ``prompt``;
    - tokenizer, reward, reference and value model have defaults;
    - each log has ``rewards/LABEL/mean``, ``std`` (unbiased), ``min`` and ``max`` of the rewards since the last log, before the
      trainer's penalties, ``rewards/LABEL/DETAIL``, the mean of each detail, and the means of the provider's `metrics`;
    - a checkpoint's ``trainer_state.json`` has what the reward has learned (see `RewardInTraining`).

    Arguments have TRL's names and order. Only the policy and the reward are required.

    Args:
        args: The configuration.
        processing_class: The policy's tokenizer. By default the one beside the policy; EOS becomes the padding token of a
            tokenizer without one.
        model: The policy, or its folder or hub id, which is loaded in float32.
        ref_model: The reference policy, by default a copy, or the policy without its adapter.
        reward_model: Anything that `rm_plugins.load` takes, a `RewardModel`, or a sequence classifier, which TRL then calls
            with the policy's token ids. By default ``args.reward_model_path`` is loaded.
        train_dataset: Rows with ``prompt``, or with ``input_ids``. Only `train` needs them.
        value_model: The value model, by default a sequence classifier whose backbone is a copy of the policy's.
        data_collator: Pads ``input_ids`` on the left, from rows that have them.
        eval_dataset: Rows of the same kind, to sample completions for; a stream is read whole. If it is several datasets by
            name, which TRL accepts but cannot sample from, their rows take turns.
        optimizers: The optimizer and the learning rate scheduler; those of `args` where None.
        callbacks: Callbacks beside TRL's own.
        peft_config: The adapter that the policy is trained with.
        config: Another name of `args`.

    Raises:
        SpecError: The reward's spec is wrong.
        ModelError: The policy has no tokenizer beside it, or cannot be turned into a value model.
        DataError: `train_dataset` is empty, or the first row of a dataset has neither ``prompt`` nor ``input_ids``.
        UnsupportedError: There is no policy, no reward, or both `args` and `config`; or `train_dataset` is not one dataset of known length.
    """

    def __init__(
        self,
        args: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model: PreTrainedModel | str | None = None,
        ref_model: PreTrainedModel | None = None,
        reward_model: Spec | nn.Module | None = None,
        train_dataset: _Rows | None = None,
        value_model: PreTrainedModel | None = None,
        data_collator: Callable[[list[dict[str, Any]]], Any] | None = None,
        eval_dataset: _Rows | Mapping[str, _Rows] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        *,
        config: Any = None,
    ) -> None:
        args = given_configuration(args, config)
        args = PPOConfig() if args is None else own_copy(args)
        trusted = bool(getattr(args, "trust_remote_code", False))  # TRL's own configuration has no such field
        policy = given_policy(model, trust_remote_code=trusted)
        tokenizer = policy_tokenizer(policy, processing_class, trust_remote_code=trusted)
        given = given_reward(reward_model, args.reward_model_path)
        reward = given if is_module(given) else RewardModel(given, tokenizer)
        train_prompts = None if train_dataset is None else _Prompts(train_dataset, tokenizer, "train_dataset")
        eval_prompts = None if eval_dataset is None else _eval_prompts(eval_dataset, tokenizer)
        episodes = args.total_episodes
        super().__init__(
            args=args,
            processing_class=tokenizer,
            model=policy,
            ref_model=ref_model,
            reward_model=reward,
            # TRL wants to count and shuffle rows while it is made; `train` refuses this one.
            train_dataset=[None] if train_prompts is None else train_prompts,
            value_model=policy_as_value_model(policy, trust_remote_code=trusted) if value_model is None else value_model,
            data_collator=_Collator(tokenizer.pad_token_id, data_collator),
            eval_dataset=eval_prompts,
            optimizers=optimizers,
            callbacks=callbacks,
            peft_config=deepcopy(peft_config),
        )
        if train_prompts is None:
            self.train_dataset = None
            args.total_episodes = episodes  # TRL derived it from the number of rows
        self.dataloader: Any
        self.eval_dataloader: Any
        self._scored: list[rm.Scores] = []
        self._label = ""
        self._metrics: tuple[str, ...] = ()
        if isinstance(reward, RewardModel):
            self._label = reward.provider.label
            self._metrics = reward.provider.metrics
            if train_prompts is not None:
                self.dataloader = _AnnouncedBatches(self.dataloader, train_prompts, reward, self._state, self._observe)
            if eval_prompts is not None:
                self.eval_dataloader = _AnnouncedBatches(self.eval_dataloader, eval_prompts, reward, self._state, None)

    def train(self) -> None:
        """Train.

        Raises:
            DataError: There is no training dataset, or it does not fill one batch.
            ScoringError: The reward failed, or abstained.
        """
        if self.train_dataset is None:
            raise no_prompts()
        if len(self.dataloader) == 0:
            raise too_few_prompts(
                len(self.train_dataset),
                self.args.batch_size,
                "per_device_train_batch_size * gradient_accumulation_steps * processes",
            )
        super().train()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log, with the statistics of the rewards since the last one; every process must call it."""
        super().log({**logs, **self._reward_metrics()}, start_time)

    def _state(self) -> TrainerState:
        return self.state

    def _observe(self, scores: rm.Scores) -> None:
        kept = {name: scores.metadata[name] for name in self._metrics if name in scores.metadata}
        self._scored.append(replace(scores, metadata=kept))

    def _reward_metrics(self) -> dict[str, float]:
        # Every process gets the scores of all processes, so the metrics have the same names in each.
        scored = [scores for of_process in all_gathered(self._scored, "the scores since the last log") for scores in of_process]
        self._scored = []
        if not scored:
            return {}
        values = np.concatenate([scores.values for scores in scored])
        metrics = {name: float(statistic(values)) for name, statistic in _STATISTICS.items()}
        columns = [scores.columns for scores in scored]
        for detail in sorted(set().union(*columns)):
            column = np.concatenate([batch[detail] for batch in columns if detail in batch])
            known = column[~np.isnan(column)]
            if len(known):
                metrics[detail_metric(detail)] = float(known.mean())
        for metric in sorted(set().union(*(scores.metadata for scores in scored))):
            metrics[metric] = statistics.fmean(scores.metadata[metric] for scores in scored if metric in scores.metadata)
        return {f"rewards/{self._label}/{name}": value for name, value in metrics.items()}


class _Prompts(Dataset[dict[str, Any]]):
    """The rows of a dataset, each with the policy's token ids of its prompt and its number.

    Rows are tokenized when they are read, because generation takes far longer, and stay unchanged; a new column of an Arrow table
    would change them.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        if isinstance(rows, Mapping) or not isinstance(rows, Sized):
            raise not_a_dataset(rows, name, "one dataset with a length")
        if len(rows) == 0:
            raise no_rows(name)
        self.rows = rows
        self.tokenizer = tokenizer
        self.name = name
        self[0]  # an error in every row shows before training

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = self.rows[number]
        return {**row, "input_ids": prompt_ids(row, self.tokenizer, self._where(number)), _ROW: number}

    def prompt(self, number: int) -> rm.Sample:
        """The row as the reward sees it, without a completion."""
        row = self.rows[number]
        if row.get("prompt") is None and (ids := given_ids(row)):
            row = {**row, "prompt": decoded_texts([ids], self.tokenizer)[0]}
        return prompt_of(row, self._where(number))

    def _where(self, number: int) -> str:
        return f"Row {number} (counted from 0) of {self.name}"


class _PromptsInTurn(Dataset[dict[str, Any]]):
    """The prompts of several datasets, one of each in turn, so that each batch has prompts of all."""

    def __init__(self, datasets: Sequence[_Prompts]) -> None:
        self.datasets = datasets
        self.places = sorted((row, place) for place, prompts in enumerate(datasets) for row in range(len(prompts)))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row, place = self.places[number]
        return {**self.datasets[place][row], _ROW: number}

    def prompt(self, number: int) -> rm.Sample:
        """The row as the reward sees it, without a completion."""
        row, place = self.places[number]
        return self.datasets[place].prompt(row)


def _eval_prompts(dataset: Any, tokenizer: PreTrainedTokenizerBase) -> _Prompts | _PromptsInTurn | None:
    """The prompts to sample completions for; None if there are no rows, as TRL then samples nothing."""
    named = {f"[{name!r}]": rows for name, rows in dataset.items()} if isinstance(dataset, Mapping) else {"": dataset}
    known = {name: list(rows) if isinstance(rows, IterableDataset) else rows for name, rows in named.items()}
    prompts = [
        _Prompts(rows, tokenizer, f"eval_dataset{name}")
        for name, rows in known.items()
        if not (isinstance(rows, Sized) and len(rows) == 0)
    ]
    return _PromptsInTurn(prompts) if len(prompts) > 1 else next(iter(prompts), None)


@dataclass(frozen=True, slots=True)
class _Collator:
    """Pads token ids on the left, or calls the given collator, and keeps the rows' numbers."""

    pad_token_id: int
    collate: Callable[[list[dict[str, Any]]], Any] | None

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = torch.tensor([item.pop(_ROW) for item in items])
        if self.collate is not None:
            return {**self.collate(items), _ROW: numbers}
        ids = torch.full((len(items), max(len(item["input_ids"]) for item in items)), self.pad_token_id)
        for row, item in enumerate(items):
            ids[row, -len(item["input_ids"]) :] = torch.tensor(item["input_ids"])
        return {"input_ids": ids, _ROW: numbers}


@dataclass(eq=False)
class _AnnouncedBatches:
    """A data loader that tells the reward model which prompts it hands out, as it hands them out.

    Nothing earlier could do so: accelerate's loaders collate one batch ahead. Other attributes are those of the loader.
    """

    loader: Any
    prompts: _Prompts | _PromptsInTurn
    reward_model: RewardModel
    training: Callable[[], TrainerState]
    observe: Callable[[rm.Scores], None] | None

    def __post_init__(self) -> None:
        self.prompts.prompt(0)  # ids that cannot be read back show before training

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            prompts = [self.prompts.prompt(number) for number in batch[_ROW].tolist()]
            announced = AnnouncedPrompts(batch["input_ids"], prompts, self.observe, self.training())
            self.reward_model.announced = announced
            try:
                yield batch
            finally:
                # Completions for evaluation are sampled between two training batches, and must not stay.
                if self.reward_model.announced is announced:
                    self.reward_model.announced = None

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not there yet, while a copy is being made
            raise AttributeError(name)
        return getattr(self.loader, name)
