"""Started in the world of TRL 1.12: trains with TRL's own PPO, and records every number of its updates."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

_OF_TRL = ("query_responses", "context_length", "logprobs", "ref_logprobs", "values", "scores", "advantages", "returns")


class Recorder(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Keeps the numbers of each update, which are local to TRL's ``train``, and the weights after it."""

    def __init__(self) -> None:
        self.updates: list[dict[str, Any]] = []
        self.trainer: Any = None

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Record an update."""
        frame: Any = sys._getframe()
        while frame.f_code is not PPOTrainer.train.__code__:
            frame = frame.f_back
        found = {name: frame.f_locals[name] for name in (*_OF_TRL, "metrics", "sequence_lengths")}
        model = self.trainer.model
        found |= {"policy": model.policy.state_dict(), "critic": model.value_model.state_dict()}
        self.updates.append(json_or_clone(found))


def json_or_clone(value: Any) -> Any:
    """A copy that later updates do not change."""
    if isinstance(value, dict):
        return {name: json_or_clone(one) for name, one in value.items()}
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def sample_with(lengths: list[int] | None, tokenizer: Any) -> None:
    """Have TRL sample completions of full length, or end them with EOS at these lengths.

    A padding or EOS token in between would end a completion, too.
    """
    generate = ppo_trainer.batch_generation
    special = torch.tensor([tokenizer.pad_token_id, tokenizer.eos_token_id])

    def sample(model: Any, queries: torch.Tensor, *args: Any) -> Any:
        while True:
            found, logits = generate(model, queries, *args)
            if not torch.isin(found[:, queries.shape[1] :], special).any():
                break
        if lengths is None:
            return found, logits
        for row, length in enumerate(lengths):
            found[row, queries.shape[1] + length - 1] = tokenizer.eos_token_id
        read = ppo_trainer.forward(model, found, tokenizer.pad_token_id).logits[:, queries.shape[1] - 1 : -1]
        return found, read / (args[-1].temperature)

    ppo_trainer.batch_generation = sample


def main() -> None:
    """Train as each job of a JSON file says, and save the record of each."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    whole = ppo_trainer.batch_generation
    for job in json.loads((folder / "jobs.json").read_text()):
        tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
        ppo_trainer.batch_generation = whole
        sample_with(job.get("lengths"), tokenizer)
        recorder = Recorder()
        rows = [{"input_ids": tokenizer(f"count{' one' * (number % 5)} {number}").input_ids} for number in range(24)]
        recorder.trainer = trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=str(folder / "trl"), report_to="none", save_strategy="no", use_cpu=True, bf16=False, **job["config"]
            ),
            processing_class=tokenizer,
            model=AutoModelForCausalLM.from_pretrained(folder / "policy"),
            ref_model=AutoModelForCausalLM.from_pretrained(folder / "reference"),
            reward_model=AutoModelForSequenceClassification.from_pretrained(folder / "reward"),
            value_model=AutoModelForSequenceClassification.from_pretrained(folder / "value"),
            train_dataset=Dataset.from_list(rows),
            callbacks=[recorder],
        )
        trainer.train()
        torch.save(recorder.updates, folder / f"{job['name']}.pt")


if __name__ == "__main__":
    main()
