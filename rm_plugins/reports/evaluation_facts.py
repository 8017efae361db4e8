"""What was evaluated: everything that is needed to get the same numbers again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rm_plugins.evaluation.results import Evaluation, RewardResult
from rm_plugins.reports.numbers import count, number, share
from rm_plugins.reports.page import preview, text, unfolding
from rm_plugins.reports.reward_styles import RewardStyle, styled


def evaluated_facts(evaluation: Evaluation) -> str:
    """The data, the rewards and the evaluation itself."""
    data = evaluation.data
    facts = {"Source": data.source, "Split": data.split, "Benchmark": data.suite, "Digest of the rows": data.digest}
    facts |= {name.capitalize(): count(getattr(data, name)) for name in ("rows", "samples", "pairs", "prompts")}
    facts["Rows by format"] = ", ".join(f"{name}: {count(rows)}" for name, rows in data.formats.items())
    facts["Ratings and labels"] = ", ".join(data.attributes)
    if data.pairs:
        facts["The longer answer is better"] = share(data.longer_chosen)
        facts["Mean length of better answers"] = f"{count(data.length_chosen)} characters"
        facts["Mean length of worse answers"] = f"{count(data.length_rejected)} characters"
    made = {
        "Created": evaluation.created,
        **{name: _said(value) for name, value in evaluation.settings.items()},
        **evaluation.versions,
    }
    parts = [
        '<div class="facts"><div><h3>Data</h3>' + _list(facts) + "</div>",
        "<div><h3>Evaluation</h3>" + _list(made) + "</div></div>",
        "<h3>Rewards</h3>",
        *(_reward(reward, style, is_open=len(evaluation.rewards) == 1) for reward, style in styled(evaluation)),
    ]
    return "\n".join(parts)


def _reward(reward: RewardResult, style: RewardStyle, *, is_open: bool) -> str:
    facts = {"Name": reward.name, "Source": reward.source, "Fingerprint": reward.fingerprint}
    facts |= {
        "Samples scored": count(reward.samples),
        "Samples without a reward": count(reward.abstained),
        "Pairs": count(reward.pairs),
    }
    parts = [_list(facts)]
    if reward.spec is not None:
        parts.append(_block("Spec", _json(reward.spec)))
    if reward.manifest:
        parts.append(_block("Training, from the manifests", _json(reward.manifest)))
    if reward.rendering:
        parts.append(_block("A sample as the model sees it", reward.rendering))
    about = reward.source if reward.source != reward.name else ""
    shown = ", ".join(part for part in (about, f"fingerprint {reward.fingerprint}" if reward.fingerprint else "") if part)
    return unfolding(style.html + preview(shown), "\n".join(parts), is_open=is_open)


def _list(facts: Mapping[str, str]) -> str:
    entries = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts.items() if value)
    return f"<dl>{entries}</dl>"


def _block(title: str, content: str) -> str:
    return f'<p class="what">{text(title)}</p><pre class="sample" dir="auto">{text(content)}</pre>'


def _said(value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    return count(value) if isinstance(value, int) else number(value)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
