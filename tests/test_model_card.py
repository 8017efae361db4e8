"""Evaluations in model cards: what is written, what is replaced, and what is left alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

import rm_plugins as rm
from rm_plugins.errors import DataError, ModelError
from rm_plugins.evaluation.model_card import evaluation_section, write_model_card
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.evaluation.run import evaluate
from rm_plugins.suites import Suite, SuiteItem, SuiteResult, SuiteSection, SuiteTable

CARD = """---
license: mit
base_model: somebody/colours
tags:
- generated_from_trainer
model_name: painted
---

# Model Card for painted

Words of the author.

## Training procedure

Painted with care.
"""


class Length(rm.Provider):
    """The length of a completion."""

    name = "length"

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        """Characters."""
        return rm.Scores(np.array([float(len(str(sample.completion))) for sample in samples]))


class Halves(Suite):
    """A benchmark of one section."""

    name = "halves"
    source = "nobody/halves"
    rule = "The share of right pairs."

    def rows(self, raw: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows as they are."""
        yield from map(dict, raw)

    def result(self, items: Sequence[SuiteItem]) -> SuiteResult:
        """The share."""
        score = sum(bool(item.scores[0] > item.scores[1]) for item in items) / len(items)
        table = SuiteTable("By domain", ("code",), ("easy", "hard"), ((0.25, float("nan")),))
        section = SuiteSection("all", score, 1.0, len(items))
        return SuiteResult("halves", self.rule, score, (section,), {"hardest": 0.125}, (table,))


def rows(right: int, wrong: int, section: str = "maths") -> list[dict[str, Any]]:
    pairs = [(" long answer", " no")] * right + [(" no", " long answer")] * wrong
    return [
        {"prompt": f"Q{number}", "chosen": chosen, "rejected": rejected, "section": section}
        for number, (chosen, rejected) in enumerate(pairs)
    ]


def evaluated(right: int = 30, wrong: int = 10, *, source: str = "/somewhere/held.jsonl", **settings: Any) -> Evaluation:
    section = settings.pop("section_name", "maths")
    return evaluate(Length(), rows(right, wrong, section), source=source, resamples=50, **settings)


def results(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = metadata(path).to_dict()["model-index"][0]["results"]
    return found


def metadata(path: Path) -> Any:
    return ModelCard(path.read_text(encoding="utf-8")).data


def accuracy_in(found: Mapping[str, Any]) -> float:
    return next(float(metric["value"]) for metric in found["metrics"] if metric["type"] == "accuracy")


def test_the_section_has_figures_intervals_sections_findings_and_the_data() -> None:
    evaluation = evaluated()
    text = evaluation_section(evaluation)
    accuracy = evaluation.rewards[0].figures["accuracy"]
    assert "## Evaluation on held.jsonl\n" in text
    assert "/somewhere" not in text  # nobody else's business
    assert f"| Accuracy | 75.0% | {accuracy.low:.1%} to {accuracy.high:.1%} |" in text
    assert f"| maths | 40 | 0.0% | 75.0% | {accuracy.low:.1%} to {accuracy.high:.1%} |" in text
    assert f"SHA-256 `{evaluation.data.digest}`" in text
    assert "40 rows with 40 pairs and 80 samples of 40 prompts" in text
    assert "- **Alarm**: Length decides" in text
    assert "| AUC across prompts |" in text


def test_names_of_sections_break_no_table() -> None:
    text = evaluation_section(evaluated(section_name="a|b\n<!-- end of the evaluation -->"))
    assert "| a\\|b &lt;!-- end of the evaluation --> |" in text
    assert text.count("<!-- end of the evaluation -->") == 1


def test_a_benchmarks_own_score_comes_first(tmp_path: Path) -> None:
    evaluation = evaluated(suite=Halves())
    text = evaluation_section(evaluation)
    assert "## Evaluation on halves (held.jsonl)" in text
    assert "**halves: 0.750.** The share of right pairs." in text
    assert "| all | 40 | 0.750 | 1 |" in text
    assert "| By domain | easy | hard |\n|---|---|---|\n| code | 0.250 | none |" in text
    assert "| hardest | 0.125 |" in text
    assert text.index("**halves") < text.index("| Accuracy |")
    first = results(write_model_card(tmp_path, evaluation))[0]["metrics"][0]
    assert first == {"type": "score", "value": 0.75, "name": "halves score"}


def test_a_folder_without_a_card_gets_a_short_one(tmp_path: Path) -> None:
    folder = tmp_path / "painted"
    folder.mkdir()
    path = write_model_card(folder, evaluated())
    assert path == folder / "README.md"
    text = path.read_text(encoding="utf-8")
    assert "# painted\n" in text
    assert "## Evaluation on held.jsonl" in text
    assert metadata(path).library_name == "transformers"
    assert metadata(path).model_name == "painted"
    assert [entry.name for entry in folder.iterdir()] == ["README.md"]


def test_an_existing_card_keeps_everything_else(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    path = write_model_card(tmp_path, evaluated())
    text, data = path.read_text(encoding="utf-8"), metadata(path)
    assert (data.license, data.base_model, data.model_name) == ("mit", "somebody/colours", "painted")
    assert data.tags == ["generated_from_trainer"]
    assert text.index("Words of the author.") < text.index("## Evaluation") < text.index("## Training procedure")
    assert "Painted with care." in text


def test_an_evaluation_on_the_same_data_takes_the_earlier_ones_place(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    write_model_card(tmp_path, evaluated())
    once = write_model_card(tmp_path, evaluated(source="other.jsonl")).read_text(encoding="utf-8")
    # From another folder it is the same file to a reader.
    path = write_model_card(tmp_path, evaluated(20, 20, source="held.jsonl"))
    text = path.read_text(encoding="utf-8")
    assert re.findall("## Evaluation on (.*)", text) == ["held.jsonl", "other.jsonl"]
    assert "| Accuracy | 50.0% |" in text
    assert sorted((found["dataset"]["name"], accuracy_in(found)) for found in results(path)) == [
        ("held.jsonl", 0.5),
        ("other.jsonl", 0.75),
    ]
    again = write_model_card(tmp_path, evaluated(20, 20, source="held.jsonl")).read_text(encoding="utf-8")
    assert again.count("## ") == text.count("## ") == once.count("## ")


def test_results_that_others_have_written_stay(tmp_path: Path) -> None:
    index = (
        "model-index:\n- name: painted\n  results:\n  - task: {type: text-classification}\n"
        "    dataset: {name: Theirs, type: theirs}\n    metrics: [{type: accuracy, value: 0.9}]\n---\n"
    )
    (tmp_path / "README.md").write_text(CARD.replace("model_name: painted\n---\n", index), encoding="utf-8")
    found = results(write_model_card(tmp_path, evaluated()))
    assert [(entry["dataset"]["name"], accuracy_in(entry)) for entry in found] == [("Theirs", 0.9), ("held.jsonl", 0.75)]


def test_a_dataset_is_named_with_its_split(tmp_path: Path) -> None:
    evaluation = evaluated(source="somebody/pairs")
    path = write_model_card(tmp_path, replace(evaluation, data=replace(evaluation.data, split="test")))
    assert "## Evaluation on somebody/pairs (test)" in path.read_text(encoding="utf-8")
    dataset = results(path)[0]["dataset"]
    assert (dataset["type"], dataset["split"], dataset["args"]) == (
        "somebody/pairs",
        "test",
        {"sha256": evaluation.data.digest},
    )


def test_the_other_reward_of_an_evaluation(tmp_path: Path) -> None:
    class Brevity(Length):
        """Shorter is better."""

        name = "brevity"

        def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
            """Characters, negated."""
            return rm.Scores(-super().score_batch(samples).values)

    found = evaluate({"a": Length(), "b": Brevity()}, rows(30, 10), source="held.jsonl", resamples=50)
    assert "| Accuracy | 25.0% |" in evaluation_section(found, 1)
    assert accuracy_in(results(write_model_card(tmp_path, found, 1))[0]) == 0.25


def test_a_card_without_metadata_and_with_other_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(b"# Mine\r\n\r\nWords.\r\n")
    write_model_card(tmp_path, evaluated())
    write_model_card(tmp_path, evaluated())
    found = path.read_bytes().decode()
    assert found.count("## Evaluation") == 1
    assert "Words.\r\n\r\n<!-- rm-plugins" in found
    assert "\n" not in found.partition("# Mine")[2].replace("\r\n", "")


def test_metadata_that_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("---\ntags: [\n---\n# Mine\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"README\.md cannot be read as a model card: .* Correct its metadata"):
        write_model_card(tmp_path, evaluated())
    assert path.read_text(encoding="utf-8") == "---\ntags: [\n---\n# Mine\n"


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no folder"):
        write_model_card(tmp_path / "absent", evaluated())
