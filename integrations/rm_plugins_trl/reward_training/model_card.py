"""The model card of a trained reward: TRL's, with a plain title, how the reward is used, and how it was trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rm_plugins.evaluation.model_card import write_model_card
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.files import write_atomically
from rm_plugins.models.manifest import MANIFEST_NAME, Manifest

_OF_THE_MACHINE = ("runtime", "_per_second", "num_tokens")
_NAMELESS = re.compile(
    r"(final_?|base_?)?(model|checkpoint|output|out|tmp|temp|latest|best|weights)s?|checkpoint-\d+|tmp\w{8}|[0-9a-f]{40}"
)
"""Names of folders that say nothing of the model in them, such as temporary ones."""
_IN_CACHE = re.compile(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots[/\\]")


def complete_model_card(
    folder: Path, model: str, training: Mapping[str, Any], evaluations: Mapping[str, Evaluation] | None = None
) -> None:
    """Make TRL's model card in a folder say how the reward was trained and how it is used, and what the last evaluations measured.

    Args:
        folder: The model's folder.
        model: The folder's name or the hub id.
        training: What the manifest records.
        evaluations: The evaluations by the name of their figures.
    """
    shown = tuple(f"eval_{name}/" for name in evaluations or ())  # with more to them, in sections of their own
    metrics = {name: value for name, value in training["metrics"].items() if not name.startswith(shown)}
    path = folder / "README.md"
    head, text = _split(path.read_text(encoding="utf-8"))
    dataset = re.search(r" on the (?P<link>\[[^]]*\]\([^)]*\)) dataset", text)
    text = re.sub(r"\n# Model Card for (.*)\n", r"\n# \1\n", text, count=1)
    text = re.sub(
        r"This model is a fine-tuned version of .*\nIt has been trained using .*\n",
        lambda _: (
            f"A reward model, {_origin(training['base_model'])}{f', trained on {dataset[1]}' if dataset else ''}. It scores a text: "
            "higher is better.\n"
        ),
        text,
        count=1,
    )
    section = f"{quick_start(model, outputs=_outputs(folder))}\n{reward_section({**training, 'metrics': metrics})}\n## Training procedure"
    text = re.sub(r"## Quick start\n.*?\n## Training procedure", lambda _: section, text, count=1, flags=re.DOTALL)
    text = text.replace(
        "This model was trained with Reward.",
        "This model was trained with `RewardTrainer` of rm-plugins, which is based on TRL's.\n",
    )
    text = text.replace("### Framework versions\n\n", f"### Framework versions\n\n- rm-plugins: {version('rm-plugins')}\n")
    text = re.sub(r"\n\s*\n(\s*\n)*", "\n\n", text)
    write_atomically(path, f"{head}{text.rstrip()}\n")
    for evaluation in (evaluations or {}).values():
        write_model_card(folder, evaluation)


def _split(card: str) -> tuple[str, str]:
    """The metadata of a card, with what the hub searches by and without what TRL writes for want of a licence; and its text."""
    _, metadata, text = card.split("---\n", 2)
    lines = [line for line in metadata.splitlines() if line.strip() not in ("licence: license", "license: license")]
    lines = [line for tag in lines for line in ([tag, "- reward-model"] if tag == "tags:" else [tag])]
    if not any(line.startswith("pipeline_tag:") for line in lines):
        lines.append("pipeline_tag: text-classification")
    return "\n".join(["---", *lines, "---\n"]), text


def _origin(source: str) -> str:
    """What the model was trained from, as the card says it: a hub id, a folder by its name, or nothing that others could find."""
    if not source:
        return "trained from a model that was made in Python"
    if cached := _IN_CACHE.search(f"{source}/"):
        source = f"{cached[1]}/{cached[2]}"
    elif Path(source).exists() or source.startswith((".", "/", "~")):
        name = Path(source).resolve().name
        return (
            "fine-tuned from a local model"
            if _NAMELESS.fullmatch(name.lower())
            else f"fine-tuned from the local model `{name}`"
        )
    return f"fine-tuned from [{source}](https://huggingface.co/{source})"


def _outputs(folder: Path) -> int:
    path = folder / MANIFEST_NAME
    heads = Manifest.read(path).heads if path.is_file() else None
    return 1 if heads is None else len(heads)


def quick_start(model: str, outputs: int = 1) -> str:
    """The section with the code that scores a text, which runs in the folder that the model's folder is in.

    Args:
        model: The folder's name or the hub id.
        outputs: The model's outputs; what transformers' pipeline returns is the reward only where there is one.
    """
    pipeline = f"""
Without rm-plugins, render the text as `reward_manifest.json` says; the score is the raw reward:

```python
from transformers import pipeline

rewarder = pipeline("text-classification", model="{model}")
print(rewarder("Question: 2+2?\\n4")[0]["score"])
```
"""
    return f"""## Quick start

`{model}` is the model's folder, or its id on the hub.

```python
import rm_plugins as rm

rewards = rm.load("{model}")
print(rewards.score([rm.Sample("Question: 2+2?\\n", "4")]).values)
```
{pipeline if outputs == 1 else ""}
In TRL's GRPO, RLOO and Online DPO trainers:

```python
from rm_plugins_trl import reward_func

reward_funcs = [reward_func("{model}")]
```
"""


def reward_section(training: Mapping[str, Any]) -> str:
    """The section of the model card on how the reward was trained."""
    rows = {
        "Loss": training["loss"],
        "Regularizers": ", ".join(f"{name} {weight}" for name, weight in training["regularizers"].items()),
        "Formula": f"`{training['formula']}`" if training["formula"] else "",
        "Preset": training["preset"] or "",
        "Rows": ", ".join(f"{name} {count}" for name, count in training["rows"].items()) or "streamed",
        "Over-long rows": ", ".join(f"{name} {count}" for name, count in training["overlong"].items() if count),
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

Only differences between scores mean something. `reward_manifest.json` records how text becomes token ids, so that the model scores
the same everywhere.
"""
