"""TRL's RewardTrainer with losses by name, encoders, and models that score the same everywhere afterwards."""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoConfig
from trl import RewardTrainer as TrlRewardTrainer
from trl.data_utils import get_dataset_column_names

from rm_plugins.data import preference_samples
from rm_plugins.errors import DataError
from rm_plugins.losses import Loss, RewardBatch
from rm_plugins.scoring import Renderer, Rendering
from rm_plugins.spec import component
from rm_plugins_trl.model_card import reward_section
from rm_plugins_trl.reward_config import RewardConfig
from rm_plugins_trl.trained_manifest import score_statistics, write_trained_manifest

if TYPE_CHECKING:
    from datasets import IterableDataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["RewardTrainer"]

logger = logging.getLogger(__name__)

_REMEMBERED = 2_000  # training rewards whose statistics are saved where there is no evaluation data


class RewardTrainer(TrlRewardTrainer):
    """Trains a reward model on preference data, for every encoder and decoder that classifies sequences.

    It takes the arguments of TRL's ``RewardTrainer`` and differs in this:

    - the loss and its regularizers are looked up by name (``RewardConfig(loss=..., regularizers=...)``);
    - samples are rendered and tokenized by the same code that scores them later, so tokenizers without EOS or without a chat
      template train too;
    - pairs longer than ``max_length`` are counted in `overlong` and reported;
    - the final model is saved into ``output_dir`` (unless ``save_strategy="no"``), with ``reward_manifest.json`` beside it and
      with ``problem_type="regression"``, which makes ``pipeline("text-classification")`` return the raw reward.

    Args:
        model: A model id, a folder, or a sequence classifier with one label.
        args: The arguments; TRL's own `RewardConfig` gives the default loss.
        kwargs: Everything else that TRL's trainer takes.

    Raises:
        DataError: A row is no preference pair, or no pair is short enough.
        UnknownNameError: The loss or a regularizer is registered by nobody.
        SpecError: An argument of the loss is wrong.
    """

    def __init__(self, model: Any, args: Any = None, **kwargs: Any) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = RewardConfig(f"{Path(name).name}-Reward")
        spec = getattr(args, "loss", "bradley-terry")
        self.loss: Loss = component("loss", spec)
        weights = args.regularizer_weights if isinstance(args, RewardConfig) else {}
        if not isinstance(args, RewardConfig) and args.center_rewards_coefficient is not None:
            weights = {"centering": args.center_rewards_coefficient}
        self.regularizers: dict[str, tuple[float, Callable[[RewardBatch], torch.Tensor]]] = {
            name: (weight, component("regularizer", name)) for name, weight in weights.items()
        }
        self.overlong: dict[str, int] = {}
        self.pairs: dict[str, int] = {}
        self.renderer: Renderer | None = None
        self._position_limit = _position_limit(model, args)
        self._rewards: dict[str, deque[float]] = {"train": deque(maxlen=_REMEMBERED), "eval": deque()}
        self._last_metrics: dict[str, float] = {}
        _keep_head(kwargs.get("peft_config"))
        super().__init__(model, args, **kwargs)
        self.model.config.problem_type = "regression"
        self._takes_use_cache = "use_cache" in inspect.signature(self._plain_model().forward).parameters
        if hasattr(self.model, "peft_config") and not _trains_head(self.model):
            logger.warning(
                "The adapter does not train the score head, which therefore stays as it was initialized. Make the adapter with "
                "modules_to_save=['score'] (or 'classifier'), or hand its peft_config to the trainer."
            )

    # --- Data -------------------------------------------------------------------------------------------------------------

    def _prepare_dataset(
        self, dataset: Dataset | IterableDataset, processing_class: PreTrainedTokenizerBase, args: Any, dataset_name: str
    ) -> Dataset | IterableDataset:
        if self.renderer is None:
            self.renderer = Renderer(processing_class, self._rendering(processing_class, args))
        columns = get_dataset_column_names(dataset)
        tokenized = {"chosen_ids", "rejected_ids"} <= set(columns)
        limit = self.renderer.rendering.max_length
        truncate = getattr(args, "overlong", "drop") == "truncate"
        listed = isinstance(dataset, Dataset)
        with PartialState().local_main_process_first():
            if not tokenized:
                keep = [name for name in columns if name == "margin"]
                dataset = dataset.map(
                    _tokenized_pairs,
                    batched=True,
                    with_indices=True,
                    fn_kwargs={"renderer": self.renderer, "name": dataset_name},
                    remove_columns=[name for name in columns if name not in keep],
                    **_map_settings(listed, args, f"Tokenizing {dataset_name} dataset"),
                )
            if limit is None:
                if listed:
                    self.pairs[dataset_name] = len(dataset)
                return dataset
            if not listed:
                # How many pairs of a stream are too long is not known before it ends: they are counted as they pass.
                if truncate:
                    return dataset.map(_cut, fn_kwargs={"limit": limit, "renderer": self.renderer})
                return dataset.filter(self._counted_fit, fn_kwargs={"limit": limit, "name": dataset_name})
            long = sum(map(_is_long(limit), dataset["chosen_ids"], dataset["rejected_ids"]))
            total = len(dataset)
            if long and truncate:
                dataset = dataset.map(
                    _cut,
                    fn_kwargs={"limit": limit, "renderer": self.renderer},
                    **_map_settings(listed, args, f"Truncating {dataset_name} >{limit} tokens"),
                )
            elif long:
                dataset = dataset.filter(
                    lambda row: not _is_long(limit)(row["chosen_ids"], row["rejected_ids"]),
                    **_map_settings(listed, args, f"Filtering {dataset_name} >{limit} tokens"),
                )
        self.overlong[dataset_name], self.pairs[dataset_name] = long, len(dataset)
        if long:
            message = (
                f"{long} of {total} pairs of the {dataset_name} dataset ({long / total:.1%}) are longer than {limit} tokens"
            )
            if not self.pairs[dataset_name]:
                raise DataError(f"{message}, so none is left. Raise max_length, or set overlong='truncate'.")
            if args.should_log:
                logger.warning("%s and were %s.", message, "truncated" if truncate else "dropped")
        return dataset

    def _rendering(self, tokenizer: PreTrainedTokenizerBase, args: Any) -> Rendering:
        rendering = Rendering.default(tokenizer, self._position_limit)
        limits = [limit for limit in (args.max_length, rendering.max_length) if limit is not None]
        if args.max_length is not None and min(limits) < args.max_length:
            logger.info("max_length is %d, the model's own limit, not %d.", min(limits), args.max_length)
        return replace(rendering, max_length=min(limits, default=None))

    def _counted_fit(self, row: dict[str, Any], limit: int, name: str) -> bool:
        long = _is_long(limit)(row["chosen_ids"], row["rejected_ids"])
        self.overlong[name] = self.overlong.get(name, 0) + long
        return not long

    # --- Loss and metrics -------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss and its regularizers on one batch, whose first half holds the winners and second half the losers."""
        mode = "train" if self.model.training else "eval"
        margins = inputs.pop("margin", None)
        if self._takes_use_cache:
            inputs["use_cache"] = False  # a cache is of no use in training, and conflicts with gradient checkpointing
        outputs = model(**inputs)
        pairs = torch.arange(len(outputs.logits), device=outputs.logits.device).view(2, -1).T
        batch = RewardBatch(
            rewards=outputs.logits,
            pairs=pairs,
            groups=torch.arange(len(pairs), device=pairs.device).repeat(2),
            lengths=inputs["attention_mask"].sum(dim=1),
            margins=margins,
        )
        loss = self.loss(batch)
        for name, (weight, regularizer) in self.regularizers.items():
            term = regularizer(batch)
            loss = loss + weight * term
            self._log_mean(mode, f"regularizers/{name}", term.detach())
        self._log_batch(mode, batch)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _log_batch(self, mode: str, batch: RewardBatch) -> None:
        if mode == "train":
            tokens = self.accelerator.gather_for_metrics(batch.lengths.sum()).sum().item()
            self._total_train_tokens += tokens // getattr(self, "_tp_size", 1)
        metrics = self._metrics[mode]
        metrics["num_tokens"] = [self._total_train_tokens]
        # Pair by pair, so that a last batch of fewer pairs does not weigh more than its share.
        winners, losers = (self.accelerator.gather_for_metrics(side[:, 0]).float() for side in (batch.winners, batch.losers))
        rewards = torch.cat([winners, losers])
        self._rewards[mode].extend(rewards.tolist())
        metrics["accuracy"].extend((winners > losers).float().tolist())
        metrics["margin"].extend((winners - losers).tolist())
        metrics["mean_reward"].extend(rewards.tolist())
        metrics["min_reward"].append(rewards.min().item())
        metrics["max_reward"].append(rewards.max().item())

    def _log_mean(self, mode: str, name: str, value: torch.Tensor) -> None:
        self._metrics[mode][name].append(self.accelerator.gather_for_metrics(value).mean().item())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as TRL does; the rewards seen become the score statistics of the manifest."""
        self._rewards["eval"].clear()
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        self._last_metrics = {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))}
        return metrics

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL does, then save the final model into ``output_dir`` unless ``save_strategy`` is ``no``."""
        result = super().train(*args, **kwargs)
        for name, long in self.overlong.items():
            if long and name not in self.pairs:
                logger.warning("%d pairs of the streamed %s dataset were too long and were dropped.", long, name)
        if self.args.save_strategy != "no":
            self.save_model()
        return result

    # --- Saving -----------------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.renderer is None:
            return
        source = "eval" if self._rewards["eval"] else "train"
        write_trained_manifest(
            Path(output_dir if output_dir is not None else self.args.output_dir),
            # The weights of a sharded model are not all here, and so cannot score the golden samples.
            None if self.is_fsdp_enabled or self.is_deepspeed_enabled else self._plain_model(),
            self.renderer,
            statistics=score_statistics(self._rewards[source], source),
            training=self._training_facts(),
        )

    def _plain_model(self) -> PreTrainedModel:
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _training_facts(self) -> dict[str, Any]:
        return {
            "base_model": self.model.config._name_or_path,
            "loss": self.args.to_dict().get("loss", "bradley-terry"),
            "regularizers": {name: weight for name, (weight, _) in self.regularizers.items()},
            "pairs": self.pairs,
            "overlong": self.overlong,
            "steps": self.state.global_step,
            "epochs": self.state.epoch,
            "learning_rate": self.args.learning_rate,
            "pairs_per_step": self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            "seed": self.args.seed,
            "metrics": self._last_metrics,
        }

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's model card, with how the reward was trained and how to use it."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / "README.md"
            name = self.hub_model_id or Path(self.args.output_dir).name
            section = reward_section(name, self._training_facts())
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("## Training procedure", f"{section}\n## Training procedure", 1), encoding="utf-8")


def _position_limit(model: Any, args: Any) -> int | None:
    """The model's own limit on positions."""
    if isinstance(model, str):
        config = AutoConfig.from_pretrained(model, trust_remote_code=getattr(args, "trust_remote_code", False))
    else:
        config = model.config
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _keep_head(peft_config: Any) -> None:
    """Make an adapter train and save the score head, without which it would score at random when loaded."""
    if peft_config is not None:
        peft_config.task_type = "SEQ_CLS"  # peft then adds the head, whatever the model calls it


def _trains_head(model: Any) -> bool:
    return any(found.requires_grad and ("score." in name or "classifier." in name) for name, found in model.named_parameters())


def _map_settings(listed: bool, args: Any, description: str) -> dict[str, Any]:
    """Arguments of `Dataset.map` that a stream does not take."""
    return {"num_proc": args.dataset_num_proc, "desc": description} if listed else {}


def _is_long(limit: int) -> Callable[[list[int], list[int]], bool]:
    return lambda chosen, rejected: max(len(chosen), len(rejected)) > limit


def _cut(row: dict[str, Any], limit: int, renderer: Renderer) -> dict[str, Any]:
    return {name: renderer.truncated(row[name], limit) for name in ("chosen_ids", "rejected_ids")}


def _tokenized_pairs(columns: dict[str, list[Any]], rows: list[int], renderer: Renderer, name: str) -> dict[str, list[Any]]:
    """Token ids of a batch of preference rows."""
    sides: tuple[list[Any], list[Any]] = ([], [])
    for position, row in enumerate(rows):
        try:
            pair = preference_samples({column: values[position] for column, values in columns.items()})
        except DataError as error:
            raise DataError(f"Row {row} of the {name} dataset: {error}") from error
        for side, sample in zip(sides, pair, strict=True):
            side.append(sample)
    return {column: renderer.untruncated_ids(side) for column, side in zip(("chosen_ids", "rejected_ids"), sides, strict=True)}
