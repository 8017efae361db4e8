"""TRL's RewardTrainer for every loss and data format, whose models give the same scores everywhere."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from datasets import Dataset, IterableDataset
from transformers import EarlyStoppingCallback

from rm_plugins.engine.batch_forward import BatchForward
from rm_plugins.losses import Regularizer, RewardBatch
from rm_plugins.losses.loss import needs_of, own_needs
from rm_plugins.losses.needs import BATCH_NEEDS
from rm_plugins.models.embeddings import embedded_tokens
from rm_plugins.rendering.positions import position_limit
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering
from rm_plugins_trl.configs import own_copy
from rm_plugins_trl.reward_training.adapters import own_adapter, warn_of_untrained_head
from rm_plugins_trl.reward_training.base_model import base_tokenizer, model_config, size_and_kind, source_of
from rm_plugins_trl.reward_training.checkpoints import begin_checkpoint
from rm_plugins_trl.reward_training.chosen_loss import chosen_loss, chosen_regularizer
from rm_plugins_trl.reward_training.deepspeed import check_deepspeed, check_states, gather_when_saving, zero_stage
from rm_plugins_trl.reward_training.fsdp_settings import check_checkpoint, check_is_sharded, check_settings
from rm_plugins_trl.reward_training.indistinguishable import count_equal_pairs
from rm_plugins_trl.reward_training.language_model_head import language_model_head
from rm_plugins_trl.reward_training.loss_trainer import LossTrainer
from rm_plugins_trl.reward_training.model_card import complete_model_card
from rm_plugins_trl.reward_training.prepared_dataset import check_needs, prepared_dataset, unformatted
from rm_plugins_trl.reward_training.presets import preset
from rm_plugins_trl.reward_training.quiet import without_noise
from rm_plugins_trl.reward_training.resuming import (
    base_digest,
    changed_since,
    checkpoint_of_all,
    load_loss_states,
    loss_facts,
    made_with,
    save_loss_states,
    save_made_with,
)
from rm_plugins_trl.reward_training.reward_config import RewardConfig
from rm_plugins_trl.reward_training.reward_evaluation import attached_evaluations
from rm_plugins_trl.reward_training.reward_log import RewardLog
from rm_plugins_trl.reward_training.same_start import started_together
from rm_plugins_trl.reward_training.saving import (
    check_weights,
    locate_base,
    pickled_by_name,
    training_facts,
    write_trained_manifest,
)
from rm_plugins_trl.reward_training.score_head import (
    HEADS,
    check_outputs,
    deployed_head,
    head_layer,
    load_classifier,
    name_outputs,
    trained_heads,
)
from rm_plugins_trl.reward_training.sharded_saving import save_sharded
from rm_plugins_trl.reward_training.started_folder import warn_of_overwriting
from rm_plugins_trl.reward_training.training_rows import Collator, Tokenization, looked_at, sample_format
from rm_plugins_trl.reward_training.trl_batches import trl_batches
from rm_plugins_trl.trl_internals import OpenRewardTrainer, is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_SIGNATURE = inspect.signature(OpenRewardTrainer.__init__)


class RewardTrainer(LossTrainer):
    """Trains a reward model on judged texts, for every encoder and decoder that classifies sequences.

    It takes the arguments of TRL's ``RewardTrainer``, with these differences:

    - data may be preference pairs, rankings, ratings, best-of lists or labelled texts (`rm_plugins.data.judgements`);
    - the loss and its regularizers are looked up by name (``RewardConfig(loss=..., regularizers=...)``), the model has the
      outputs that the loss trains, and each process computes the loss of the whole batch of all processes;
    - samples are rendered and tokenized by the same code that scores them later, so tokenizers without EOS or without a chat
      template train too;
    - rows run without padding if the model allows it, and share the computation of common prefixes. If a subclass overrides a method that
      reads a batch, or a ``data_collator`` is given, batches are TRL's (`uses_trl_batches`);
    - rows longer than ``max_length`` are counted in `overlong` and reported;
    - hyperparameters that are not given come from the preset for the model's kind and size;
    - the final model is saved into ``output_dir`` (unless ``save_strategy="no"``), together with ``reward_manifest.json`` and
      with ``problem_type="regression"``, which makes ``pipeline("text-classification")`` return the raw reward.

    Args:
        model: A model id, a folder, or a sequence classifier with the outputs that the loss trains.
        args: The arguments; TRL's own `RewardConfig` gives the default loss.
        arguments: Everything else that TRL's trainer takes, in its order. A model object is trained in place, and its
            configuration changes; all other arguments stay unchanged.
        more: The same by name.

    Attributes:
        heads: The model's outputs.
        rows: The number of rows used, by dataset.
        overlong: The dataset rows with a text longer than ``max_length``, by dataset.
        equal_pairs: The pairs whose winner and loser have equal token ids, by dataset; not counted in streams.
        preset: What the preset has set; None if it set nothing.
        loss_facts: The loss's name, formula and arguments.
        base_digest: A digest of the weights at the start of training.
        resumed: The checkpoints that the training resumed from, each with the changes since.
        last_metrics: The metrics of the last evaluation.
        trained_items: The number of items that the loss was a mean over in the last training, such as pairs.
        trained_on: Whether the training data is text or conversations; None where it is both, or tokenized already.

    Raises:
        DataError: A row is in none of the formats, no row is short enough, or the data lacks what the loss needs.
        ModelError: The model has other outputs than the loss trains.
        UnknownNameError: No loss or regularizer of that name is registered.
        SpecError: An argument of the loss is wrong.
    """

    model: Any

    uses_trl_batches: ClassVar[bool | None] = None
    """Whether batches are TRL's, padded and of pairs; None decides by whether a subclass or an argument reads them."""

    def __init__(self, model: Any, args: Any = None, *arguments: Any, **more: Any) -> None:
        kwargs = dict(_SIGNATURE.bind(self, model, args, *arguments, **more).arguments)
        for name in ("self", "model", "args"):
            kwargs.pop(name, None)
        name = source_of(model)
        if args is None:
            args = RewardConfig(f"{Path(name).name}-Reward")
        settings = args = own_copy(args)
        args.accelerator_config = copy.copy(args.accelerator_config)
        config = model_config(model, args) if isinstance(model, str) else model.config  # which refuses a path to nowhere
        quantization = [kwargs.get("quantization_config"), (args.model_init_kwargs or {}).get("quantization_config")]
        check_deepspeed(args, quantization=next(filter(None, quantization), getattr(config, "quantization_config", None)))
        if not isinstance(args, RewardConfig):  # TRL's own, which says nothing of what is ours
            centering = args.center_rewards_coefficient
            settings = RewardConfig(args.output_dir, use_cpu=args.use_cpu, center_rewards_coefficient=centering)
        loss = chosen_loss(settings.loss)
        self._own_needs = own_needs(loss)
        self._needs_logprobs = BATCH_NEEDS["logprobs"] in needs_of(loss)
        self.loss_facts = loss_facts(loss)
        self.losses = [copy.deepcopy(loss) for _ in range(settings.members)]
        self.regularizers: dict[str, tuple[float, Callable[[RewardBatch], torch.Tensor] | Regularizer]] = {
            term: (weight, chosen_regularizer(term)) for term, weight in settings.regularizer_weights.items()
        }
        self._settings = settings
        data = kwargs["train_dataset"] = unformatted(kwargs.get("train_dataset"))
        rated, warnings = looked_at(data, settings.weight_column) if isinstance(data, (Dataset, IterableDataset)) else ((), [])
        self.trained_on = sample_format(data) if isinstance(data, (Dataset, IterableDataset)) else None
        self._batches = trl_batches(type(self), RewardTrainer, args, kwargs.get("data_collator"), data, loss)
        self.attributes = tuple(settings.attributes or rated)
        for warning in warnings:
            logger.warning(warning)
        self.heads, self._reward = trained_heads(loss, self.attributes, settings.reward, settings.members)
        self.overlong: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.equal_pairs: dict[str, int] = {}
        self.renderer: Renderer | None = None
        self.preset: str | None = None
        if isinstance(args, RewardConfig) and args.unset:
            has_adapter = kwargs.get("peft_config") is not None or hasattr(model, "peft_config")
            parameters, is_encoder = size_and_kind(model, args)
            sized = preset(parameters, adapter=has_adapter, encoder=is_encoder)
            self.preset, self._preset_notice = args.take_preset(sized)
        self._reward_log = RewardLog(self.heads, self.attributes)
        self._evaluated_at: int | None = None
        self.last_metrics: dict[str, float] = {}
        self.resumed: list[dict[str, Any]] = []
        self._made_with: dict[str, Any] | None = None
        # TRL and peft change these; the caller's objects stay unchanged.
        peft_config = own_adapter(kwargs.get("peft_config"), model)
        tokenizer = base_tokenizer(kwargs.get("processing_class"), model, args)
        model_settings = args.model_init_kwargs
        if isinstance(model, str):
            model, untrained = load_classifier(model, args, self.heads, kwargs.pop("quantization_config", None))
            if peft_config is not None and (beside := untrained - {*HEADS}):  # such as the pooler of an encoder
                peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or ()), *beside})
            args.model_init_kwargs = None  # they are in the model now
        kwargs |= {"peft_config": peft_config, "processing_class": tokenizer}
        check_outputs(model, self.heads)
        self._model_config, self._known_tokens = model.config, partial(embedded_tokens, model)
        if settings.early_stopping_patience is not None:
            stopping = EarlyStoppingCallback(settings.early_stopping_patience)
            kwargs["callbacks"] = [*(kwargs.get("callbacks") or ()), stopping]
        model.config.num_labels = 1  # TRL refuses any other number, because of its own loss
        if self._batches is None:
            counts_tokens = args.include_num_input_tokens_seen not in (False, "no")
            kwargs["data_collator"] = Collator(loss.mean_over, self._own_needs, counts_tokens)
            args.remove_unused_columns = False  # our collator takes the columns that it needs
            args.accelerator_config.dispatch_batches = False  # accelerate can cut tensors only
        with without_noise(disable_bars=args.disable_tqdm):
            super().__init__(model, args, **kwargs)
        self.args.model_init_kwargs = model_settings
        if zero_stage(self.args) == 3:
            gather_when_saving(self.accelerator.state.deepspeed_plugin)
        locate_base(self.model)
        self.base_digest = base_digest(self.plain_model())
        plain = self.plain_model()
        name_outputs(plain, self.heads)
        plain.config.problem_type = "regression"
        self._head_layer = head_layer(plain) if len(self.heads) > 1 else None
        self.batch_forward = BatchForward(
            plain,
            settings.max_batch_tokens,
            share_prefixes=settings.share_prompts,
            language_model_head=language_model_head(plain) if self._needs_logprobs else None,
            read=settings.read,
        )
        if self._batches is not None:
            self.batch_forward.packs = False
            if self.args.should_log:
                logger.warning("%s", self._batches.notice)
        if self.preset is not None and self.args.should_log:
            logger.warning("%s", self._preset_notice)
        warn_of_untrained_head(self.model)

    # --- Data -------------------------------------------------------------------------------------------------------------

    def prepare_dataset(
        self, dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, args: Any, name: str
    ) -> Dataset | IterableDataset:
        """Render and tokenize a dataset, and drop or truncate rows that are too long."""
        if self.renderer is None:
            rendering = Rendering.up_to(args.max_length, tokenizer, self._model_config)
            read, pair = self._settings.read, self._settings.pair
            rendering = replace(rendering, read=read, pair=pair, append_eos=rendering.append_eos and not pair)
            self.renderer = Renderer(tokenizer, rendering)
        dataset = unformatted(dataset)
        tokenization = Tokenization(
            self.renderer,
            name,
            self.attributes,
            self._reward,
            self._settings.section_column,
            truncate=self._settings.overlong == "truncate",
            own=self._own_needs,
            rated_once=name == "train" and not self._settings.attributes and not isinstance(dataset, Dataset),
            weight=self._settings.weight_column,
            known_tokens=self._known_tokens(),
        )
        tokenized = prepared_dataset(
            dataset,
            tokenization,
            self.overlong,
            for_trl=self._batches is not None,
            usual_length=Rendering.default(tokenizer, position_limit(self._model_config)).max_length,
            num_proc=args.dataset_num_proc,
            reports=args.should_log,
        )
        if isinstance(tokenized, Dataset):
            self.rows[name] = len(tokenized)
            if self._batches is None:
                self.equal_pairs[name] = count_equal_pairs(tokenized, name, reports=args.should_log)
                check_needs(tokenized, self.losses[0], name, reports=args.should_log)
        return tokenized

    # --- Training and evaluation ------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as TRL does; the rewards give the score statistics of the manifest."""
        attached_evaluations(self)
        check_is_sharded(self)
        self._reward_log.start_evaluation()
        before, self._metric_prefix = self._metric_prefix, kwargs.get("metric_key_prefix", "eval")
        try:
            with without_noise():
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        finally:
            self._metric_prefix = before
        self.last_metrics = {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))}
        self._evaluated_at = self.state.global_step
        return metrics

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict as TRL does; the dataset may have any of the formats or be tokenized."""
        check_is_sharded(self)
        return super().predict(self.prepared(test_dataset, "test"), *args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train as TRL does, then evaluate, and save the final model into ``output_dir`` unless ``save_strategy`` is ``no``.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or True (or ``"true"``) for the last one in ``output_dir``, which skips
                incomplete ones; if there is none, training starts from the beginning.
            kwargs: What TRL's ``train`` takes.

        Raises:
            DataError: The checkpoint was not saved completely, or is of another training.
            ProcessError: The processes have different data, settings, packages or weights, or one of them does not answer.
            TrainingError: The loss or a weight is not finite; the last good checkpoint is kept.
        """
        evaluations = attached_evaluations(self)
        self._made_with = None
        self.trained_items = 0
        check_settings(self)
        checkpoint = started_together(self, partial(checkpoint_of_all, resume_from_checkpoint, Path(self.args.output_dir)))
        if checkpoint is not None:
            check_states(self.args, checkpoint)
            check_checkpoint(self, checkpoint)
            changed = changed_since(self.what_decides(), checkpoint, allowed=self._settings.resume_changed)
            self.resumed = [{"checkpoint": checkpoint.name, "changed": changed}] if changed else []
            load_loss_states(self.losses, checkpoint)
        warn_of_overwriting(self.args, resumes=checkpoint is not None)
        with without_noise(disable_bars=self.args.disable_tqdm):
            result = super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **kwargs)
        if checkpoint is not None and not self.trained_items and self.args.should_log:
            logger.warning("%s is the last step of its training, so nothing was left to train.", checkpoint)
        for name, long in self.overlong.items():
            if long and name not in self.rows:
                logger.warning("%d rows of the streamed %s dataset were too long and were dropped.", long, name)
        if self.eval_dataset is not None and (self._evaluated_at != self.state.global_step or self.args.load_best_model_at_end):
            summary = self.state.log_history[-1:]
            self.evaluate()
            for entry in summary:  # which scripts expect to be the last one
                self.state.log_history.remove(entry)
                self.state.log_history.append(entry)
        if self.args.save_strategy != "no":
            self.save_model()
            if evaluations:
                self.create_model_card()
        return result

    # --- Saving -----------------------------------------------------------------------------------------------------------

    def save(self, folder: Path, *, checkpoint: bool) -> None:
        """Save the model: with all outputs in a checkpoint, otherwise with those that are deployed.

        Raises:
            TrainingError: A weight is not finite.
        """
        check_weights(self.model, self.state.global_step, self.args.output_dir)
        if checkpoint and self.args.should_save:
            begin_checkpoint(folder)
        with pickled_by_name(self.args), without_noise(disable_bars=self.args.disable_tqdm):
            if is_sharded(self):
                save_sharded(self, folder, partial(write_trained_manifest, self, folder), checkpoint=checkpoint)
            else:
                with nullcontext() if checkpoint else self._deployed():
                    super().save(folder, checkpoint=checkpoint)
                    if self.args.should_save:
                        write_trained_manifest(self, folder, self.plain_model())
        if checkpoint and self.args.should_save and folder != Path(self.args.output_dir):  # which is pushed to the hub
            save_loss_states(self.losses, folder)
            save_made_with(self.what_decides(), folder)

    def what_decides(self) -> dict[str, Any]:
        """What the checkpoints of a training are made with; computed once, because it reads all training data."""
        if self._made_with is None:
            self._made_with = made_with(self)
        return self._made_with

    @contextmanager
    def _deployed(self) -> Iterator[None]:
        """Within it, the model is the deployed one: merged with its adapter if asked for, and without outputs that only training needs."""
        trained, heads = self.model, self.heads
        if self._settings.merge_adapter and hasattr(trained, "merge_and_unload"):
            self.model = copy.deepcopy(self.accelerator.unwrap_model(trained)).merge_and_unload()
        try:
            with deployed_head(self.plain_model(), heads, self.losses[0].deployed(heads)) as self.heads:
                yield
        finally:
            self.model, self.heads = trained, heads

    def plain_model(self) -> PreTrainedModel:
        """The model without wrappers such as DDP and peft's."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def create_model_card(self, model_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """TRL's model card, completed: how to use the reward, how it was trained, and the results of a `RewardEvaluation`.

        Args:
            model_name: The name of the model in the card; by default the last part of the hub id or of the folder's path.
            args: As TRL's trainer takes them.
            kwargs: Likewise.
        """
        folder = Path(self.args.output_dir).resolve()
        model = self.hub_model_id or self.args.hub_model_id or folder.name
        super().create_model_card(model_name or Path(model).name, *args, **kwargs)
        if self.is_world_process_zero():
            evaluations = {name: last for callback in attached_evaluations(self) for name, last in callback.last.items()}
            complete_model_card(folder, model, training_facts(self), evaluations)
