"""RewardTrainer with every loss, several outputs, adapters and presets, and what it says meanwhile."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, set_seed

import rm_plugins as rm
from rm_plugins.errors import DataError, ModelError, SpecError
from rm_plugins.evaluation import evaluate, evaluate_pairs
from rm_plugins.models.manifest import Manifest
from rm_plugins_trl import RewardConfig, RewardTrainer
from tests.conftest import make_tokenizer
from tests.trl.conftest import newest_trl

# TRL's and accelerate's own, on a machine without an accelerator.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning"),
]

PROMPT = {"prompt": "Name a colour."}
ANSWERS = [" It is blue.", " rain", " two"]
PAIRS = [{**PROMPT, "chosen": f" It is blue{'.' * n}", "rejected": " two", "margin": 0.5} for n in range(8)]
TIES = [{**row, "tie": n % 2 == 0, "margin": None} for n, row in enumerate(PAIRS)]
RANKED = [{**PROMPT, "completions": ANSWERS, "ranks": [0, 1, 2]}] * 8
BEST = [{**PROMPT, "completions": ANSWERS, "best": 0}] * 8
RATED = [{**PROMPT, "completions": ANSWERS, "scores": [3.0, 2.0, 1.0]}] * 8
ATTRIBUTES = [
    {
        **PROMPT,
        "completions": ANSWERS,
        "scores": [{"true": 3.0, "brief": 1.0}, {"true": 2.0, "brief": None}, {"true": 1.0, "brief": 3.0}],
    }
] * 8
LABELLED = [{**PROMPT, "completion": answer, "label": answer == ANSWERS[0]} for answer in (ANSWERS[0], ANSWERS[2]) * 4]

OF_PAIRS = (
    *("bradley-terry", "robust", "focal", "scaled", "hinge", "squared-hinge", "ipo", "margin-mse", "thurstone"),
    *("mean-variance", "grm", "odin"),
)
KINDS: dict[str, list[tuple[Any, list[dict[str, Any]]]]] = {
    **{name: [(name, PAIRS)] for name in OF_PAIRS},
    "rao-kupper": [("rao-kupper", TIES)],
    "davidson": [("davidson", TIES)],
    "soft-bradley-terry": [("soft-bradley-terry", [{**row, "confidence": 0.9} for row in PAIRS])],
    "k-wise": [("k-wise", RANKED), ("k-wise", RATED)],
    "plackett-luce": [("plackett-luce", RANKED)],
    "listnet": [("listnet", RANKED), ({"name": "listnet", "target": "labels"}, RATED)],
    "info-nce": [("info-nce", BEST)],
    "regression": [("regression", RATED), ({"name": "regression", "kind": "huber"}, ATTRIBUTES)],
    "quantile": [({"name": "quantile", "quantiles": 3}, RATED)],
    "binary": [("binary", LABELLED)],
    "bco": [("bco", LABELLED)],
}
KINDS["mean-variance"].append(({"name": "mean-variance", "data": "ratings"}, RATED))


STEPS = 16


def config(folder: Path, **settings: Any) -> RewardConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "gradient_checkpointing": False,
    }
    return RewardConfig(**{**defaults, **settings})


def trained(model: Any, folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Any:
    more = {name: settings.pop(name) for name in ("peft_config", "processing_class", "eval_dataset") if name in settings}
    source = model if isinstance(model, torch.nn.Module) else str(model)
    trainer = RewardTrainer(source, config(folder, **settings), train_dataset=Dataset.from_list(rows), **more)
    trainer.train()
    return trainer


def losses_of(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def rewards_of(folder: Path) -> np.ndarray:
    return rm.load(folder).score([rm.Sample("Name a colour.", answer) for answer in ANSWERS]).values


@pytest.fixture
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make the folder of a random causal language model."""

    def make(tied: bool = False) -> Path:
        tokenizer = make_tokenizer()
        found = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            tie_word_embeddings=tied,
        )
        set_seed(0)
        folder = tmp_path_factory.mktemp("language-model")
        Qwen2ForCausalLM(found).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def test_every_loss_is_trained_below() -> None:
    assert set(KINDS) == set(rm.Registry().all("loss"))


@pytest.mark.parametrize("members", [1, pytest.param(3, marks=newest_trl)])
@pytest.mark.parametrize(("loss", "rows"), [case for cases in KINDS.values() for case in cases], ids=str)
def test_a_loss_trains_saves_and_scores(
    loss: Any, rows: list[dict[str, Any]], members: int, language_model: Any, tmp_path: Path
) -> None:
    trainer = trained(language_model(), tmp_path, rows, loss=loss, members=members, bootstrap=members > 1)
    found = losses_of(trainer)
    assert np.mean(found[-4:]) < np.mean(found[:4])
    provider: Any = rm.load(tmp_path)
    assert provider.verify() == []
    scores = provider.score([rm.Sample("Name a colour.", answer) for answer in ANSWERS])
    # ODIN's two outputs may share the work in any way, and attributes that contradict each other have no better answer.
    if loss != "odin" and rows is not ATTRIBUTES:
        assert scores.values[0] > scores.values[2]
    if members > 1:
        apart = np.stack([scores.columns[f"member/{number}"] for number in range(members)], axis=1)
        assert scores.values == pytest.approx(apart.mean(axis=1))
        assert scores.columns["std"] == pytest.approx(apart.std(axis=1))
        assert scores.columns["std"].min() > 0
    training = Manifest.read(tmp_path / "reward_manifest.json").training
    assert (
        training["formula"] == rm.Registry().get("loss", training["loss"]["name"] if isinstance(loss, dict) else loss).formula
    )


class TestNeeds:
    @pytest.mark.parametrize(
        ("loss", "rows", "message"),
        [
            ("regression", PAIRS, "exactly|needs labels"),
            ("bradley-terry", LABELLED, "needs pairs, and the train dataset has none. Pairs come from"),
            ("k-wise", LABELLED, "needs pairs"),
            ("plackett-luce", LABELLED, "needs ranks"),
            ("scaled", RANKED, "needs margins, and the train dataset has none"),
            (
                "scaled",
                [*PAIRS, {**PAIRS[0], "margin": None}],
                "needs margins, and 1 of 9 pairs of the train dataset have none",
            ),
        ],
    )
    def test_data_without_what_the_loss_needs(
        self, loss: str, rows: list[dict[str, Any]], message: str, tiny_decoder: Any, tmp_path: Path
    ) -> None:
        with pytest.raises((DataError, SpecError), match=message):
            trained(tiny_decoder(), tmp_path, rows, loss=loss)

    def test_a_stream_without(self, tiny_decoder: Any, tmp_path: Path) -> None:
        stream = IterableDataset.from_generator(lambda: iter(LABELLED))
        trainer = RewardTrainer(str(tiny_decoder()), config(tmp_path, loss="plackett-luce"), train_dataset=stream)
        with pytest.raises(DataError, match="needs ranks, and a batch of the data has no such values"):
            trainer.train()

    def test_ties_that_nothing_is_learnt_of(self, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        trained(tiny_decoder(), tmp_path, TIES, max_steps=1)
        assert "has 4 ties, which the loss 'bradley-terry' ignores" in caplog.text
        caplog.clear()
        trained(tiny_decoder(), tmp_path, TIES, max_steps=1, loss="davidson")
        assert "ties, which the loss" not in caplog.text

    def test_a_stream_of_rankings_trains(self, tiny_decoder: Any, tmp_path: Path) -> None:
        stream = IterableDataset.from_generator(lambda: iter(RANKED))
        RewardTrainer(str(tiny_decoder()), config(tmp_path, loss="k-wise", max_steps=12), train_dataset=stream).train()
        best, _, worst = rewards_of(tmp_path)
        assert best > worst


class TestHeads:
    def test_attributes_are_named_and_weighted(self, tiny_decoder: Any, tmp_path: Path) -> None:
        rows, reward = ATTRIBUTES, {"true": 1.0, "brief": -0.5}
        trainer = trained(
            tiny_decoder(), tmp_path, rows, loss="regression", reward=reward, eval_dataset=Dataset.from_list(rows)
        )
        assert trainer.heads.labels == ("true", "brief")
        scores = rm.load(tmp_path).score([rm.Sample("Name a colour.", answer) for answer in ANSWERS])
        assert scores.values == pytest.approx(scores.columns["head/true"] - 0.5 * scores.columns["head/brief"])
        assert trainer.last_metrics["eval_true/correlation"] > 0.9
        assert (
            trainer.last_metrics["eval_accuracy"] == 1
        )  # by the weighted ratings: 2.5 beats -0.5, the middle one is not compared
        heads = json.loads((tmp_path / "reward_manifest.json").read_text())["heads"]
        assert heads == {"names": ["true", "brief"], "weights": [1.0, -0.5], "members": 1}

    def test_a_reward_of_unknown_attributes(self, tiny_decoder: Any, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="reward: kind is not an attribute of the data, which has true, brief"):
            trained(tiny_decoder(), tmp_path, ATTRIBUTES, loss="regression", reward={"kind": 1.0})

    def test_attributes_in_another_order(self, tiny_decoder: Any, tmp_path: Path) -> None:
        trainer = trained(tiny_decoder(), tmp_path, ATTRIBUTES, loss="regression", attributes=["brief"], max_steps=1)
        assert trainer.heads.names == ("brief",)

    def test_only_odins_quality_is_deployed(self, tiny_decoder: Any, tmp_path: Path) -> None:
        trainer = trained(tiny_decoder(), tmp_path, PAIRS, loss="odin", save_steps=12)
        deployed = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert deployed.config.num_labels == deployed.score.out_features == 1
        assert trainer.model.config.num_labels == trainer.model.score.out_features == 2
        assert AutoModelForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{STEPS}").config.num_labels == 2
        # A checkpoint keeps both outputs to go on from, and gives the same reward.
        assert rewards_of(tmp_path / f"checkpoint-{STEPS}") == pytest.approx(rewards_of(tmp_path), abs=1e-6)

    def test_a_model_that_has_other_outputs(self, tiny_decoder: Any, tmp_path: Path) -> None:
        folder = tiny_decoder()
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with pytest.raises(ModelError, match=r"num_labels=1, and the loss trains 2 outputs \(quality, length\)"):
            trained(model, tmp_path, PAIRS, loss="odin", processing_class=tokenizer)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, ignore_mismatched_sizes=True)
        trained(model, tmp_path, PAIRS, loss="odin", processing_class=tokenizer, max_steps=1)
        assert rm.load(tmp_path).verify() == []  # type: ignore[attr-defined]

    def test_an_encoder_has_several_outputs_too(self, tiny_encoder: Any, tmp_path: Path) -> None:
        trained(tiny_encoder(), tmp_path, PAIRS, loss="odin", members=2)
        assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.num_labels == 2
        assert rm.load(tmp_path).verify() == []  # type: ignore[attr-defined]

    def test_bootstraps_differ_by_member_and_stay_the_same(self, tiny_decoder: Any, tmp_path: Path) -> None:
        from rm_plugins_trl.reward_training.training_rows import bootstrap_repeats

        drawn = np.array([bootstrap_repeats(1, member, range(4_000)) for member in (0, 1)])
        assert (drawn == [bootstrap_repeats(1, member, range(4_000)) for member in (0, 1)]).all()
        assert drawn.mean() == pytest.approx(1, abs=0.03)
        assert drawn.var() == pytest.approx(1, abs=0.06)
        assert abs(np.corrcoef(drawn)[0, 1]) < 0.05
        with pytest.raises(SpecError, match="at least 2 for a bootstrap"):
            config(tmp_path, bootstrap=True)

    def test_grm_keeps_the_language_models_head_in_use(self, language_model: Any, tmp_path: Path) -> None:
        def likelihood(alpha: float, tied: bool) -> float:
            out = tmp_path / f"{alpha}-{tied}"
            trainer = trained(language_model(tied), out, PAIRS, loss={"name": "grm", "alpha": alpha})
            head = trainer.batch_forward.language_model_head
            ids = trainer.processing_class("Name a colour. It is blue.", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                hidden = trainer.model.model(ids).last_hidden_state[0, :-1]
            return -torch.nn.functional.cross_entropy(head(hidden), ids[0, 1:]).item()

        for tied in (False, True):
            assert likelihood(0.5, tied) > likelihood(0.0, tied) + 0.25


class TestAdapters:
    @pytest.mark.parametrize("loss", ["bradley-terry", "odin"])
    def test_merged_or_not_it_scores_the_same(self, loss: str, tiny_decoder: Any, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        model, found = tiny_decoder(), {}
        for merge in (False, True):
            adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
            out = tmp_path / str(merge)
            trained(model, out, PAIRS, loss=loss, members=2, peft_config=adapter, merge_adapter=merge)
            assert (out / "adapter_config.json").exists() is not merge
            assert (out / "model.safetensors").exists() is merge
            assert rm.load(out).verify() == []  # type: ignore[attr-defined]
            found[merge] = rewards_of(out)
        assert found[True] == pytest.approx(found[False], abs=1e-5)
        merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "True")
        assert not any("lora" in name for name, _ in merged.named_parameters())


class TestPresets:
    def test_what_is_not_given_is_set_and_said(
        self, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        args = RewardConfig(str(tmp_path), per_device_train_batch_size=3, report_to="none")
        trainer = RewardTrainer(str(tiny_decoder()), args, train_dataset=Dataset.from_list(PAIRS))
        assert (trainer.args.learning_rate, trainer.args.num_train_epochs, trainer.args.warmup_steps) == (2e-5, 1, 0.05)
        assert trainer.args.per_device_train_batch_size == trainer._train_batch_size == 3
        assert "The preset '<1B' sets learning_rate 2e-05, num_train_epochs 1, warmup_steps 0.05. You set per" in caplog.text

    def test_an_adapter_has_its_own(self, tiny_decoder: Any, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        adapter = peft.LoraConfig(r=4, target_modules=["q_proj"])
        args = RewardConfig(str(tmp_path), report_to="none")
        trainer = RewardTrainer(str(tiny_decoder()), args, train_dataset=Dataset.from_list(PAIRS), peft_config=adapter)
        assert trainer.args.learning_rate == 2e-4

    def test_everything_given_leaves_it_out(self, tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        args = config(tmp_path, num_train_epochs=2)
        trainer = RewardTrainer(str(tiny_decoder()), args, train_dataset=Dataset.from_list(PAIRS))
        assert trainer.preset is None
        assert "The preset" not in caplog.text


class TestWatching:
    ROWS = [{**row, "kind": "even" if n % 2 == 0 else "odd"} for n, row in enumerate(PAIRS)]  # noqa: RUF012

    def test_an_evaluation_says_everything(self, tiny_decoder: Any, tmp_path: Path) -> None:
        trainer = trained(
            *(tiny_decoder(), tmp_path, self.ROWS),
            eval_dataset=Dataset.from_list(self.ROWS),
            section_column="kind",
            members=2,
            per_device_eval_batch_size=3,
        )
        found = trainer.last_metrics
        names = ("accuracy", "margin", "ece", "std_reward", "length_correlation", "accuracy/even", "accuracy/odd")
        assert {f"eval_{name}" for name in (*names, "accuracy_longer", "member/0/accuracy", "member_std")} <= set(found)
        expected = evaluate_pairs(rm.load(tmp_path), self.ROWS)
        assert (found["eval_accuracy"], found["eval_margin"]) == pytest.approx((expected.accuracy, expected.margin), abs=1e-5)
        assert Manifest.read(tmp_path / "reward_manifest.json").training["metrics"]["eval_ece"] == found["eval_ece"]
        assert any("eval_accuracy/odd" in entry for entry in trainer.state.log_history)
        trainer.create_model_card()
        assert "`eval_accuracy/odd`" in (tmp_path / "README.md").read_text(encoding="utf-8")

    def test_lengths_are_those_that_evaluations_measure(self, tiny_decoder: Any, tmp_path: Path) -> None:
        words = ["blue", "two", "a very long answer that is cut", "It is blue and nothing else, as everybody can see"]
        rows = [
            {**PROMPT, "chosen": f" {words[n % 4]}{n}", "rejected": f" {words[(n + 1 + n // 4) % 4]}{n}"} for n in range(12)
        ]
        rows += [{"chosen": f"Q {n}?\nA: {words[n % 3]}", "rejected": f"Q {n}?\nA: {words[3]}"} for n in range(4)]
        trainer = trained(
            *(tiny_decoder(), tmp_path, rows),
            eval_dataset=Dataset.from_list(rows),
            max_length=16,
            overlong="truncate",
            per_device_eval_batch_size=3,
        )
        figures = evaluate(rm.load(tmp_path), rows, resamples=5).rewards[0].figures
        for name in ("accuracy_longer", "accuracy_shorter", "length_preference", "length_correlation"):
            assert trainer.last_metrics[f"eval_{name}"] == pytest.approx(figures[name].value, abs=1e-5), name

    def test_token_ids_have_no_length_in_characters(self, tiny_decoder: Any, tmp_path: Path) -> None:
        rows = [{"chosen_ids": [5, 6, 7], "rejected_ids": [8, 9]}] * 4
        trainer = trained(tiny_decoder(), tmp_path, rows, eval_dataset=Dataset.from_list(rows))
        assert "eval_accuracy" in trainer.last_metrics
        assert not {"eval_length_preference", "eval_length_correlation", "eval_accuracy_longer"} & set(trainer.last_metrics)

    def test_several_evaluation_sets_have_their_own_names(self, tiny_decoder: Any, tmp_path: Path) -> None:
        sets = {"easy": Dataset.from_list(PAIRS), "hard": Dataset.from_list([{**PAIRS[0], "rejected": PAIRS[0]["chosen"]}])}
        trainer = trained(tiny_decoder(), tmp_path, PAIRS, eval_dataset=sets)
        assert trainer.last_metrics["eval_easy_accuracy"] == 1
        assert trainer.last_metrics["eval_hard_accuracy"] == 0

    def test_stops_early_with_the_best_model(self, tiny_decoder: Any, tmp_path: Path) -> None:
        held_out = [{**PROMPT, "chosen": " It is blue.", "rejected": " two"}]
        trainer = trained(
            *(tiny_decoder(), tmp_path, PAIRS),
            eval_dataset=Dataset.from_list(held_out),
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=2,
            save_steps=2,
            early_stopping_patience=3,
        )
        assert trainer.state.global_step < STEPS  # an accuracy of 1 cannot get better
        assert trainer.state.best_metric == 1
        assert trainer.last_metrics["eval_accuracy"] == 1
        with pytest.raises(SpecError, match="needs evaluations"):
            config(tmp_path, early_stopping_patience=1)


class TestExactness:
    def test_accumulated_batches_of_different_sizes_are_one_batch(self, tiny_decoder: Any, tmp_path: Path) -> None:
        """Six rows in one batch, or as four and two, which must not weigh as much."""
        model, found = tiny_decoder(), []
        rows = [{**PROMPT, "completions": ANSWERS[: 2 + n % 2], "ranks": list(range(2 + n % 2))} for n in range(6)]
        for batch, accumulated in ((6, 1), (4, 2)):
            trainer = trained(
                *(model, tmp_path, rows),
                max_steps=2,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulated,
                save_strategy="no",
                optim="sgd",
            )
            found.append((losses_of(trainer), [parameter.detach().clone() for parameter in trainer.model.parameters()]))
        assert found[1][0] == pytest.approx(found[0][0], abs=1e-5)
        for one, other in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-4)

    @pytest.mark.parametrize(
        "settings",
        [
            {"share_prompts": False},
            {"max_batch_tokens": 16},
            {"gradient_checkpointing": True},
            {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 8},
        ],
        ids=str,
    )
    def test_what_only_changes_the_speed(self, settings: dict[str, Any], tiny_decoder: Any, tmp_path: Path) -> None:
        model = tiny_decoder()
        same = {"max_steps": 3, "save_strategy": "no", "per_device_train_batch_size": 8}
        expected = losses_of(trained(model, tmp_path, PAIRS, **same))
        assert losses_of(trained(model, tmp_path, PAIRS, **{**same, **settings})) == pytest.approx(expected, rel=1e-4)

    def test_half_precision_is_near(self, tiny_decoder: Any, tmp_path: Path) -> None:
        model, same = tiny_decoder(), {"max_steps": 3, "save_strategy": "no"}
        expected = losses_of(trained(model, tmp_path, PAIRS, **same))
        assert losses_of(trained(model, tmp_path, PAIRS, **same, bf16=True, use_cpu=True)) == pytest.approx(
            expected, rel=0.1, abs=5e-3
        )

    def test_weights_of_rows_count(self, tiny_decoder: Any, tmp_path: Path) -> None:
        model, same = tiny_decoder(), {"max_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 8}
        plain = losses_of(trained(model, tmp_path, PAIRS, **same))[0]
        doubled = losses_of(trained(model, tmp_path, [{**row, "weight": 2.0} for row in PAIRS], **same))[0]
        assert doubled == pytest.approx(2 * plain, rel=1e-4)
        assert math.isfinite(plain)


def test_the_preset_is_logged_once(tiny_decoder: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        RewardTrainer(
            str(tiny_decoder()), RewardConfig(str(tmp_path), report_to="none"), train_dataset=Dataset.from_list(PAIRS)
        )
    assert caplog.text.count("The preset") == 1
