"""What rm-plugins adds to TRL's model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_plugins.evaluation.model_card import write_model_card
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.files import write_atomically

_OF_THE_MACHINE = ("runtime", "_per_second", "num_tokens")


def complete_model_card(
    folder: Path, model: str, training: Mapping[str, Any], evaluations: Mapping[str, Evaluation] | None = None
) -> None:
    """Add to TRL's model card in a folder how the reward was trained and how it is used, and what the last evaluations found.

    `model` is the folder's name or the hub id, `training` what the manifest records; evaluations have the names of their figures.
    """
    shown = tuple(f"eval_{name}/" for name in evaluations or ())  # with more to them, in sections of their own
    metrics = {name: value for name, value in training["metrics"].items() if not name.startswith(shown)}
    section = reward_section(model, {**training, "metrics": metrics})
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    # What TRL writes of a base model that is a folder, and of a model that has no place on the hub.
    text = text.replace("[None](https://huggingface.co/None)", _base(training["base_model"]))
    text = text.replace('pipeline(model="None"', f'pipeline(model="{model}"')
    write_atomically(path, text.replace("## Training procedure", f"{section}\n## Training procedure", 1))
    for evaluation in (evaluations or {}).values():
        write_model_card(folder, evaluation)


def _base(source: str) -> str:
    return f"`{Path(source).resolve().name}`, a local model" if source else "a model that was made in Python"


def reward_section(model: str, training: Mapping[str, Any]) -> str:
    """The section of the model card on how the reward was trained and how it is used."""
    rows = {
        "Loss": training["loss"],
        "Regularizers": ", ".join(f"{name} {weight}" for name, weight in training["regularizers"].items()) or "none",
        "Formula": f"`{training['formula']}`" if training["formula"] else "",
        "Preset": training["preset"] or "none",
        "Rows": ", ".join(f"{name} {count}" for name, count in training["rows"].items()) or "streamed",
        "Over-long rows": ", ".join(f"{name} {count}" for name, count in training["overlong"].items()) or "none",
        "Pairs with equal token ids": ", ".join(f"{name} {count}" for name, count in training["equal_pairs"].items() if count),
        "Steps": training["steps"],
        "Learning rate": training["learning_rate"],
    }
    for name, value in training["metrics"].items():
        if not name.endswith(_OF_THE_MACHINE) and name != "epoch":
            rows[f"`{name}`"] = f"{value:.4g}"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value != "")
    return f"""## Reward

| | |
|---|---|
{table}

The score is a raw reward: higher is better, and only differences mean something. `reward_manifest.json` records how text
becomes token ids, so that the model scores the same everywhere:

```python
import rm_plugins as rm

rewards = rm.load("{model}")
rewards.score([rm.Sample("Question: 2+2?\\n", "4")]).values
```

```python
from rm_plugins_trl import reward_func

GRPOTrainer(..., reward_funcs=[reward_func("{model}")])
```
"""
