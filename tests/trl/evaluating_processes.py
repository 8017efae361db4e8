"""Started on two processes: trains a reward model with a `RewardEvaluation`, and lets one process fail in another evaluation."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset

from rm_plugins.engine.engine import ScoringEngine
from rm_plugins.errors import ScoringError
from rm_plugins_trl import RewardConfig, RewardEvaluation, RewardTrainer


def main() -> None:
    """Train and evaluate, and write what each process saw."""
    model, rows_file, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    rows = [json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines()]
    rank = int(os.environ["RANK"])
    scored: list[int] = []
    broken = False
    outputs = ScoringEngine.outputs

    def counted(self: ScoringEngine, ids: Any) -> Any:
        if broken:
            raise ScoringError("this process cannot score")
        scored.append(len(ids))
        return outputs(self, ids)

    ScoringEngine.outputs = counted  # type: ignore[method-assign]
    evaluation = RewardEvaluation({"held": rows}, resamples=20, batch_size=len(rows))
    trainer = RewardTrainer(
        model,
        RewardConfig(
            output_dir=str(folder),
            max_steps=2,
            per_device_train_batch_size=2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            eval_strategy="steps",
            eval_steps=1,
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_held/margin",
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:4]),
        callbacks=[evaluation],
    )
    trainer.evaluate()
    before = list(scored)
    trainer.train()
    found = {"figures": trainer.last_metrics, "scored": before, "best": trainer.state.best_metric}
    broken = rank == 1
    found["one fails"] = [name for name in trainer.evaluate() if name.startswith("eval_held/")]
    broken = False
    trainer.pop_callback(evaluation)
    trainer.add_callback(RewardEvaluation({"uneven": rows[: 4 + rank]}, resamples=20))
    found["uneven"] = [name for name in trainer.evaluate() if name.startswith("eval_uneven/")]
    assert trainer.accelerator.num_processes == 2
    (folder / f"process-{rank}.json").write_text(json.dumps(found))
    trainer.accelerator.wait_for_everyone()
    # Not the usual end: where gloo's threads still hold a tensor, Python's tearing down aborts or blocks the process.
    os._exit(0)


if __name__ == "__main__":
    main()
