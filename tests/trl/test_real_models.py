"""The main job on real models and real text: MiniLM learns, SmolLM2 is trained against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

import rm_plugins as rm
from rm_plugins.evaluation import evaluate_pairs
from rm_plugins_trl import reward_func
from tests.trl.conftest import HELD_OUT, grpo_config, newest_trl, write_jsonl
from tests.warm_process import run_warm

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
]


@newest_trl
def test_minilm_learns_polarity(polarity_model: Path, polarity_pairs: list[dict[str, Any]]) -> None:
    """At least 0.85 of 400 held-out pairs, in the program, in the library, and in the manifest alike."""
    found = evaluate_pairs(rm.load(polarity_model), polarity_pairs[-HELD_OUT:])
    assert found.pairs == HELD_OUT
    assert found.accuracy >= 0.85
    manifest = json.loads((polarity_model / "reward_manifest.json").read_text(encoding="utf-8"))
    assert manifest["training"]["metrics"]["eval_accuracy"] == pytest.approx(found.accuracy)


@newest_trl
def test_verify_score_and_evaluate_it(polarity_model: Path, polarity_pairs: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "pairs.jsonl", polarity_pairs[-50:])
    assert "matches its reward_manifest.json" in run_warm("rm_plugins", "verify", polarity_model)
    run_warm("rm_plugins", "score", polarity_model, rows)
    scored = [json.loads(line) for line in (tmp_path / "pairs.scored.jsonl").read_text(encoding="utf-8").splitlines()]
    accuracy = sum(row["chosen_score"] > row["rejected_score"] for row in scored) / len(scored)
    assert f"{accuracy:.1%} [" in run_warm("rm_plugins", "evaluate", polarity_model, rows)


def real_prompts(pairs: list[dict[str, Any]], count: int) -> Dataset:
    """Conversational prompts that begin a real sentence of a review, to be gone on with."""
    starts = [" ".join(row["chosen"][0]["content"].split()[:4]) for row in pairs[:count]]
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": f"Finish this film review: {start}"}], "start": start} for start in starts]
    )


@newest_trl
def test_grpo_of_smollm2(
    polarity_model: Path, smollm2_path: Path, polarity_pairs: list[dict[str, Any]], tmp_path: Path
) -> None:
    trainer = GRPOTrainer(
        model=str(smollm2_path),
        reward_funcs=[reward_func(polarity_model, name="polarity")],
        args=grpo_config(tmp_path, num_generations=4, max_completion_length=16),
        train_dataset=real_prompts(polarity_pairs, 8),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/polarity/mean" in entry]
    assert len(logged) == 2
    assert all(entry["rewards/polarity/std"] > 0 for entry in logged)
    assert all(entry["rewards/polarity/abstained"] == 0 for entry in logged)
    assert all(entry["rewards/polarity/tokens_per_second"] > 0 for entry in logged)
    assert all(0 <= entry["rewards/polarity/duplicate_share"] < 1 for entry in logged)


def test_ppo_of_smollm2(polarity_model: Path, smollm2_path: Path, polarity_pairs: list[dict[str, Any]], tmp_path: Path) -> None:
    from rm_plugins_trl import PPOConfig, PPOTrainer

    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(tmp_path),
            reward_model_path=str(polarity_model),
            per_device_train_batch_size=2,
            total_episodes=4,
            response_length=12,
            stop_token="eos",
            num_sample_generations=0,
            num_ppo_epochs=2,
            logging_steps=1,
            report_to="none",
            gradient_checkpointing=False,
            save_strategy="no",
        ),
        model=AutoModelForCausalLM.from_pretrained(smollm2_path, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(smollm2_path, padding_side="left"),
        train_dataset=real_prompts(polarity_pairs, 8),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
    assert len(logged) == 2
    name = trainer.reward_model.provider.label
    for entry in logged:
        assert entry[f"rewards/{name}/mean"] == pytest.approx(entry["objective/scores"], abs=1e-4)
        assert entry[f"rewards/{name}/std"] > 0
