"""What is killed: commands on small data and models, and what they must have written in the end."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

RULES = '''
import time


def slow_length(samples):
    """The completion's length, as slowly as a model would say it."""
    time.sleep(0.004)
    return [float(len(sample.completion_text)) for sample in samples]


def vowels(samples):
    """How many vowels the completion has."""
    time.sleep(0.004)
    return [float(sum(sample.completion_text.count(vowel) for vowel in "aeiou")) for sample in samples]
'''
LEARNS = """
provider: sum
transform: [{name: zscore, running: true}, {name: clip, low: -3}]
members:
  - {provider: function, function: "rules:slow_length", transform: {name: zscore, running: true, warmup: 8}}
  - {provider: function, function: "rules:vowels", transform: rank-in-group}
"""
PLAIN = """
provider: sum
members:
  - {provider: function, function: "rules:slow_length"}
  - {provider: function, function: "rules:vowels"}
"""
WORDS = ("a", "sea", "of", "reeds", "under", "the", "old", "moon", "and", "nothing", "else")
ROWS = 300


def text(number: int) -> str:
    """Words that look like others to no other number."""
    return " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 3 + number % 7))


class Job(ABC):
    """A command, in a folder of its own.

    Args:
        inputs: The folder with what every job is given: ``rules.py``, specs, rows, and the models ``start-0``, ``start-1`` and ``policy``.
    """

    name: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]
    """What is in the folder when it is done, besides what was there before."""
    kills_workers: ClassVar[bool] = False
    """Whether the processes that it starts are killed too, and not only the command itself."""

    def __init__(self, inputs: Path) -> None:
        self.inputs = inputs

    def prepare(self, folder: Path) -> None:
        """Put into an empty folder what is there before the command runs."""
        for name in ("rules.py", "learns.yaml", "plain.yaml", "rows.jsonl", "pairs.jsonl"):
            shutil.copy(self.inputs / name, folder / name)

    @abstractmethod
    def arguments(self, folder: Path) -> Sequence[str]:
        """The command line, which is the same one each time but where something must be said to go on."""

    def result(self, folder: Path) -> dict[str, str]:
        """What was written, by its name, in a form that is equal where it must be."""
        return {name: digest(folder / name) for name in self.outputs}

    def check(self, folder: Path) -> None:
        """Look at the folder after a kill; raises AssertionError where something is half there."""
        for name in self.outputs:
            if (folder / name).is_file():
                self.check_whole(folder / name)

    def check_whole(self, file: Path) -> None:
        """An output has a name only when all of it is there."""
        assert file.stat().st_size > 0, f"{file.name} is empty"


class Score(Job):
    """``score`` with a reward that learns while it scores."""

    name = "score"
    outputs = ("out.jsonl",)

    def arguments(self, folder: Path) -> Sequence[str]:
        """Thirty batches."""
        return ["score", "learns.yaml", "rows.jsonl", "-o", "out.jsonl", "--batch-size", "10"]


class Processes(Job):
    """``score`` by two processes."""

    name = "processes"
    outputs = ("out.jsonl",)
    kills_workers = True

    def arguments(self, folder: Path) -> Sequence[str]:
        """Thirty blocks."""
        return ["score", "plain.yaml", "rows.jsonl", "-o", "out.jsonl", "--batch-size", "10", "--processes", "2"]


class Rank(Job):
    """``rank`` with two rewards, of which one learns, and a curve."""

    name = "rank"
    outputs = ("out.jsonl", "curve.json")

    def arguments(self, folder: Path) -> Sequence[str]:
        """Best and worst of each prompt."""
        options = ["--pairs", "best-random", "--curve", "curve.json", "--gold", "plain.yaml", "--n", "4", "--batch-size", "10"]
        return ["rank", "learns.yaml", "rows.jsonl", "-o", "out.jsonl", *options]

    def result(self, folder: Path) -> dict[str, str]:
        """The pairs, and the curve but for its date."""
        return {name: undated(folder / name) for name in self.outputs}


class Generate(Rank):
    """``rank`` of what a policy writes, which is kept."""

    name = "generate"
    outputs = ("out.jsonl", "completions.jsonl")

    def arguments(self, folder: Path) -> Sequence[str]:
        """Four completions of each of 24 prompts, two prompts at a time."""
        sampling = ["--n", "4", "--max-new-tokens", "6", "--generation-batch-size", "8"]
        kept = ["--keep-completions", "completions.jsonl", "--batch-size", "10"]
        policy = str(self.inputs / "policy")
        return ["rank", "plain.yaml", "prompts.jsonl", "-o", "out.jsonl", "--generate", policy, *sampling, *kept]

    def prepare(self, folder: Path) -> None:
        """There are prompts."""
        super().prepare(folder)
        (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "{text(number)}", "x": NaN}}\n' for number in range(24)))


class Evaluate(Job):
    """``evaluate`` of two rewards."""

    name = "evaluate"
    outputs = ("out.json",)

    def arguments(self, folder: Path) -> Sequence[str]:
        """Few resamples, for they are not what is looked at."""
        options = ["--resamples", "50", "--batch-size", "10"]
        return ["evaluate", "learns.yaml", "plain.yaml", "pairs.jsonl", "-o", "out.json", *options]

    def result(self, folder: Path) -> dict[str, str]:
        """Everything but the date."""
        return {name: undated(folder / name) for name in self.outputs}


class Calibrate(Job):
    """``calibrate``, which replaces an older calibration."""

    name = "calibrate"
    outputs = ("out.yaml",)

    def prepare(self, folder: Path) -> None:
        """There is an older one."""
        super().prepare(folder)
        (folder / "out.yaml").write_text("provider: constant\nvalue: 1\n")

    def arguments(self, folder: Path) -> Sequence[str]:
        """It has nothing to go on with, and begins anew."""
        return ["calibrate", "plain.yaml", "rows.jsonl", "-o", "out.yaml", "--overwrite"]

    def check_whole(self, file: Path) -> None:
        """It is the old or the new one."""
        assert file.read_text().endswith(("value: 1\n", "reference: null\n")) or "std:" in file.read_text(), (
            "half a calibration"
        )


class Merge(Job):
    """``merge``, which replaces an older model."""

    name = "merge"
    outputs = ("out",)

    def prepare(self, folder: Path) -> None:
        """There is an older one."""
        shutil.copytree(self.inputs / "start-0", folder / "out")

    def arguments(self, folder: Path) -> Sequence[str]:
        """Two members."""
        return ["merge", str(self.inputs / "start-0"), str(self.inputs / "start-1"), "-o", "out", "--overwrite"]

    def result(self, folder: Path) -> dict[str, str]:
        """Every file of the model."""
        return {path.name: digest(path) for path in sorted((folder / "out").iterdir())}

    def check(self, folder: Path) -> None:
        """There is a model at every moment, the old one or the new one."""
        assert (folder / "out").is_dir(), "the output is gone"
        is_new = (folder / "out" / "reward_manifest.json").is_file()
        assert is_new or self.result(folder) == {
            path.name: digest(path) for path in sorted((self.inputs / "start-0").iterdir())
        }
        if is_new:
            manifest = json.loads((folder / "out" / "reward_manifest.json").read_text())
            assert all(digest(folder / "out" / name) == known["sha256"] for name, known in manifest["files"].items())


class JudgeData(Job):
    """``judge-data``, which replaces older questions."""

    name = "judge-data"
    outputs = ("questions",)

    def prepare(self, folder: Path) -> None:
        """There are older ones."""
        super().prepare(folder)
        (folder / "questions").mkdir()
        (folder / "questions" / "train.jsonl").write_text("{}\n")

    def arguments(self, folder: Path) -> Sequence[str]:
        """Half of the prompts are held out."""
        return ["judge-data", "pairs.jsonl", "-o", "questions", "--held-out", "0.5", "--overwrite"]

    def result(self, folder: Path) -> dict[str, str]:
        """Both sides of the split."""
        return {path.name: digest(path) for path in sorted((folder / "questions").iterdir())}

    def check(self, folder: Path) -> None:
        """There are the old or all of the new questions."""
        sizes = {path.name: len(path.read_text().splitlines()) for path in (folder / "questions").iterdir()}
        assert sizes == {"train.jsonl": 1} or sum(sizes.values()) == ROWS, f"half of the questions: {sizes}"


class Train(Job):
    """``train``, which goes on from its last checkpoint."""

    name = "train"
    outputs = ("out",)

    def arguments(self, folder: Path) -> Sequence[str]:
        """A checkpoint every second step."""
        options = {
            "model_name_or_path": self.inputs / "start-0",
            "dataset_name": "pairs.jsonl",
            "output_dir": "out",
            "max_steps": 10,
            "save_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            **({"resume_from_checkpoint": True} if list(folder.glob("out/checkpoint-*")) else {}),
        }
        return ["train", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]

    def result(self, folder: Path) -> dict[str, str]:
        """The weights."""
        return {path.name: digest(path) for path in sorted((folder / "out").glob("*.safetensors"))}

    def check(self, folder: Path) -> None:
        """What a checkpoint has too little, the next start must find out."""


JOBS: dict[str, type[Job]] = {
    job.name: job for job in (Score, Processes, Rank, Generate, Evaluate, Train, Merge, Calibrate, JudgeData)
}


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def undated(path: Path) -> str:
    """A text without the moment at which it was written."""
    return re.sub(r'"created": "[^"]*"', "", path.read_text())


def write_inputs(folder: Path) -> None:
    """Make what every job is given, but for the models."""
    (folder / "rules.py").write_text(RULES)
    (folder / "learns.yaml").write_text(LEARNS)
    (folder / "plain.yaml").write_text(PLAIN)
    rows = [{"prompt": f"Q{number // 6}", "completion": text(number), "x": float("nan")} for number in range(ROWS)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    pairs = [{"prompt": f"Q{number}", "chosen": text(number), "rejected": text(number + 1)} for number in range(ROWS // 2)]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in pairs))


def write_models(folder: Path) -> None:
    """Make a policy, and two reward models that were trained from one start, as far as anyone can tell."""
    import torch
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    from tests.conftest import make_tokenizer
    from tests.policies import make_policy

    make_policy(folder / "policy")
    tokenizer = make_tokenizer()
    tokens = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, num_labels=1, **sizes, **tokens)
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(config)
    for number in range(2):
        for parameter in model.parameters():
            parameter.data += 1e-3 * number * torch.randn_like(parameter)
        model.save_pretrained(folder / f"start-{number}")
        tokenizer.save_pretrained(folder / f"start-{number}")
