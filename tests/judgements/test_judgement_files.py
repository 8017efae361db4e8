"""Judged rows of files, of published data, and of the documentation."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from datasets import Dataset

from rm_plugins.data.judgements import attribute_names, judgement
from rm_plugins.data.row_files import read_rows
from tests.judgements.conftest import FOUR, PAIR, USER, completions, verdict


class TestFiles:
    """Rows as libraries hand them over."""

    ROWS: tuple[dict[str, Any], ...] = (
        {**PAIR, "tie": True},
        completions(ranks=[1, 2, 2]),
        completions("a", "b", scores=[{"helpful": 4.5, "brief": 1.0}, {"helpful": 2.0, "brief": None}]),
        completions(best=2),
        {"prompt": [USER], "completions": ["4", "5"], "labels": [True, False]},
        {"messages": [USER, FOUR], "label": False},
    )

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row))
    def test_parquet_and_datasets(self, row: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "row.parquet"
        parquet.write_table(arrow.Table.from_pylist([row]), path)
        (read,) = read_rows(str(path))
        for found in (judgement(read), judgement(Dataset.from_list([row])[0])):
            assert verdict(found) == verdict(judgement(row))
            assert [sample.completion for sample in found.samples] == [s.completion for s in judgement(row).samples]

    def test_columns_that_other_rows_have_are_null(self) -> None:
        rows = [row for row in self.ROWS if isinstance(row.get("prompt", "Q"), str) and "messages" not in row]
        absent = dict.fromkeys(name for row in rows for name in row)
        for row, read in zip(rows, Dataset.from_list([{**absent, **row} for row in rows]), strict=True):
            assert (judgement(read).format, verdict(judgement(read))) == (judgement(row).format, verdict(judgement(row)))

    def test_decimals_and_missing_keys(self, tmp_path: Path) -> None:
        path = tmp_path / "row.parquet"
        scores = [[{"helpful": Decimal("4.50"), "brief": None}, {"helpful": Decimal("2.25"), "brief": Decimal("1.00")}]]
        parquet.write_table(arrow.table({"completions": [["a", "b"]], "scores": scores}), path)
        (read,) = read_rows(str(path))
        assert judgement(read).labels == ((4.5, None), (2.25, 1.0))


class TestRealData:
    @staticmethod
    def rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)

    @pytest.mark.parametrize(
        ("name", "pairs"),
        [("ukp_convarg_strict", 11_650), ("llmbar", 884), ("pandalm_human", 842), ("rt_sentence_polarity_pairs", 5_331)],
    )
    def test_pairs(self, name: str, pairs: int, data_folder: Path) -> None:
        found = [judgement(row) for row in self.rows(data_folder, name)]
        assert len(found) == pairs
        assert {row.format for row in found} == {"preference"}
        assert {row.pairs for row in found} == {((0, 1),)}

    def test_labelled_solutions(self, data_folder: Path) -> None:
        rows = [{**row, "labels": row["is_correct"]} for row in self.rows(data_folder, "gsm8k_solutions_labelled")]
        assert len(rows) == 1_319
        for row in rows:
            found = judgement(row)
            good = sum(row["is_correct"])
            assert len(found.samples) == 4
            assert len(found.pairs) == good * (4 - good)
            assert all(row["is_correct"][winner] and not row["is_correct"][loser] for winner, loser in found.pairs)
            assert all(isinstance(sample.completion[0], dict) for sample in found.samples)

    def test_ratings(self, data_folder: Path) -> None:
        names = ("understandability", "naturalness", "coherence", "engagingness", "groundedness", "overall")
        rows = [{**row, "prompt": row["dialogue"]} for row in self.rows(data_folder, "topical_chat_ratings")]
        assert {attribute_names(row) for row in rows} == {names}
        for row in rows:
            found = judgement(row, names)
            assert found.labels == tuple(tuple(rating[name] for name in names) for rating in row["scores"])
            assert len(found.pairs) + len(found.ties) == 15
            means = [sum(rating.values()) / 6 for rating in row["scores"]]
            assert all(means[winner] > means[loser] for winner, loser in found.pairs)
            assert all(means[one] == pytest.approx(means[other], abs=1e-8) for one, other in found.ties)
        overall = [judgement(row, reward={"overall": 1.0}) for row in rows]
        assert sum(len(found.ties) for found in overall) > sum(len(judgement(row).ties) for row in rows)


def test_the_pages_rows_are_what_it_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    said = {}
    for section in sections:
        title = section.partition("\n")[0]
        found = [
            json.loads(line)
            for block in re.findall(r"^```json\n(.*?)^```", section, re.M | re.S)
            for line in block.splitlines()
        ]
        if found:
            said[title] = {judgement(row).format for row in found}
    assert said == {
        "Preference": {"preference"},
        "Ranking": {"ranking"},
        "Ratings": {"ratings"},
        "Best of n": {"best-of"},
        "Labelled": {"labelled"},
    }
