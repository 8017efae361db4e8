"""The demonstration: its world, and the whole of it in small."""

from __future__ import annotations

import json
import re
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.cli.printed import Console
from rm_plugins.data.rows import preference_samples
from rm_plugins.errors import DataError
from rm_plugins_trl.demo.preference_world import read_world
from rm_plugins_trl.demo.run import FILES, FOLDERS, run_demo
from rm_plugins_trl.demo.world import GOLD_WEIGHTS, gold, gold_parts, make_world
from rm_plugins_trl.demo.world import Request as WorldRequest
from tests.trl.conftest import newest_trl, write_jsonl

PROMPT = "Write two sentences about the fox. Mention the kite.\n"
SMALL = {"pairs": 64, "held_out_pairs": 16, "demonstrations": 64, "held_out_prompts": 8}


class TestWorld:
    def test_same_seed_same_world(self) -> None:
        assert make_world(3, **SMALL) == make_world(3, **SMALL)
        assert make_world(3, **SMALL) != make_world(4, **SMALL)

    @pytest.mark.parametrize(
        ("completion", "lost"),
        [
            ("The fox finds the kite. The fox rests by the gate.", {}),
            ("The fox finds the drum. The fox rests by the gate.", {"thing": 1}),
            ("The owl finds the kite. The fox rests by the gate.", {"subject": 0.5}),
            ("The fox finds the kite at noon.", {"count": 0.5}),
            ("The fox finds the kite. The fox finds the kite.", {"variety": 0.5}),
            ("The fox finds the kite. the fox rests by the", {"form": 0.5}),
            ("", dict.fromkeys(GOLD_WEIGHTS, 1)),
        ],
    )
    def test_gold_by_hand(self, completion: str, lost: dict[str, float]) -> None:
        assert gold(PROMPT, completion) == pytest.approx(1 - sum(GOLD_WEIGHTS[name] * share for name, share in lost.items()))

    def test_gold_knows_its_world_only(self) -> None:
        assert gold("What is 2+2?", "4") is None
        assert rm.load("rm_plugins_trl.demo.world:gold_reward").score([rm.Sample("What?", "4")]).abstained.all()
        assert set(gold_parts(WorldRequest("fox", "kite", 2), "The fox.")) == set(GOLD_WEIGHTS)

    def test_labels_are_noisy_as_said(self) -> None:
        def agreement(**noise: Any) -> float:
            pairs = make_world(0, pairs=2_000, held_out_pairs=1, demonstrations=1, **noise).pairs
            gaps = [(gold(row["prompt"], row["chosen"]) or 0) - (gold(row["prompt"], row["rejected"]) or 0) for row in pairs]
            decided = [gap > 0 for gap in gaps if abs(gap) > 1e-9]
            return sum(decided) / len(decided)

        assert agreement(sharpness=600, flip_rate=0.0) == 1.0
        assert agreement(sharpness=600, flip_rate=0.2) == pytest.approx(0.8, abs=0.03)

    def test_rows_are_trls_and_held_out_prompts_are_unseen(self) -> None:
        world = make_world(0, **SMALL)
        for row in world.pairs + world.held_out_pairs:
            chosen, rejected = preference_samples(row)
            assert chosen.completion != rejected.completion
        seen = {row["prompt"] for row in world.pairs + world.demonstrations + world.prompts}
        assert not seen & {row["prompt"] for row in world.held_out_prompts + world.held_out_pairs}


@newest_trl
def test_the_whole_demonstration_in_small(tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = run_demo(out, steps=2, world=make_world(0, **SMALL), console=Console(file=StringIO()))
    assert {path.name for path in out.iterdir()} == {*FOLDERS, *FILES}
    text = summary.read_text(encoding="utf-8")
    assert re.search(r"gold \(true\) reward \| \d\.\d+ ± \d\.\d+ \| \d\.\d+ ± ", text)
    figures = json.loads((out / "curves.json").read_text(encoding="utf-8"))
    assert [point["step"] for point in figures["steps"]] == [1, 2]
    assert set(figures["steps"][0]) == {"step", "kl", "learned", "gold"}
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert rm.load(out / "reward-model").verify() == []  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="is not empty"):
        run_demo(out)
    # The commands that the summary tells to run next.
    (shell,) = (line.strip() for line in text.splitlines() if "echo" in line)
    subprocess.run(shell, shell=True, check=True, cwd=out)
    assert yaml.safe_load((out / "rm_plugins.yaml").read_text(encoding="utf-8")).keys() == {"demo_reward", "gold", "helpful"}
    assert "rewards.helpful --bf16 false  # on a GPU, leave out --bf16 false" in text
    ranked = CliRunner().invoke(main, ["rank", str(out / "reward-model"), str(out / "completions.jsonl"), "--best", "1"])
    assert ranked.exit_code == 0
    assert len((out / "completions.ranked.jsonl").read_text(encoding="utf-8").splitlines()) == 8


@newest_trl
def test_with_a_model_a_policy_and_data_of_ones_own(tiny_decoder: Any, tiny_policy: Path, tmp_path: Path) -> None:
    said = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "Blue."), ("rejected", "two"))}
    rows = [{"prompt": [{"role": "user", "content": f"Name a colour, number {number}."}], **said} for number in range(12)]
    data = write_jsonl(tmp_path / "mine.jsonl", rows)
    arguments = ["--output-dir", tmp_path / "out", "--steps", 1, "--dataset", data]
    arguments += ["--model", tiny_decoder(), "--policy", tiny_policy]
    found = CliRunner().invoke(main, ["demo", *map(str, arguments)], catch_exceptions=False)
    assert found.exit_code == 0
    assert "gold" not in (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert "| learned reward |" in found.output
    assert not (tmp_path / "out" / "policy-before").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "Q", "chosen": "a"}], "row 1: there is no 'rejected'"),
        ([{"chosen": "a", "rejected": "b"}], "row 1: there is no prompt"),
        ([{"prompt": "Q", "chosen": "a", "rejected": "b"}], "has 1 different prompts"),
    ],
)
def test_data_that_cannot_be_used(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_world(str(write_jsonl(tmp_path / "in.jsonl", rows)), pairs=10)
