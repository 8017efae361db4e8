"""A chat template that writes the day it is used on scores the same on every day."""

from __future__ import annotations

import json
import warnings
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.errors import ManifestError, SpecError
from rm_plugins.identity import fingerprint
from rm_plugins.models.golden import golden_scores
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import Manifest
from rm_plugins.rendering.template_date import dated
from tests.conftest import MakeFolder

TEMPLATE = (
    "{%- if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% else %}{% set day = '26 Jul 2024' %}{% endif -%}"
    "Today: {{ day }}\n{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
)
SAMPLE = rm.Sample([{"role": "user", "content": "Name a colour."}], "Blue.")


@pytest.fixture
def folder(tiny_decoder: MakeFolder) -> Path:
    folder = tiny_decoder()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def tomorrow(monkeypatch: pytest.MonkeyPatch) -> type[date]:
    class Tomorrow(date):
        @classmethod
        def today(cls) -> Tomorrow:
            return cls.fromisoformat((date.today() + timedelta(days=1)).isoformat())

    monkeypatch.setattr("rm_plugins.rendering.render.date", Tomorrow)
    return Tomorrow


@pytest.mark.parametrize("before", ["", "\n", "  \n  ", "  {% if true %}x{% endif %}\n", "{#- a comment -#}\n"])
@pytest.mark.parametrize("form", ["%d %b %Y", "%-d.%-m.%y, %A", "%B %d, %Y", "%Y-%m-%d %H:%M", "week %V, day %j, 100%%", "%x"])
def test_every_form_of_a_date_is_written_as_transformers_writes_it(before: str, form: str, tiny_tokenizer: Any) -> None:
    template = f"{before}Today: {{{{ strftime_now('{form}') }}}}{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}"
    now = datetime.now().strftime(form)
    expected = tiny_tokenizer.apply_chat_template(SAMPLE.messages, chat_template=template, tokenize=False)
    pinned = tiny_tokenizer.apply_chat_template(SAMPLE.messages, chat_template=dated(template, date.today()), tokenize=False)
    assert pinned == (expected if "%H" not in form else expected.replace(now, date.today().strftime(form)))


def score(reward: Any) -> float:
    return float(reward.score([SAMPLE]).values[0])


def test_it_is_said_aloud_and_kept_while_the_reward_is_loaded(folder: Path) -> None:
    today = date.today()
    with pytest.warns(UserWarning, match=f"writes today's date, .* uses {today.isoformat()} now; set `template_date`"):
        reward = rm.load(str(folder))
    assert f"Today: {today:%d %b %Y}\n" in reward.render(SAMPLE)


def test_a_spec_pins_it(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (rm.load(str(folder), template_date=day) for day in ("2026-01-02", "2026-01-03"))
    assert "Today: 02 Jan 2026\n" in first.render(SAMPLE)
    assert score(first) != score(second)
    assert fingerprint(first) != fingerprint(second)
    with pytest.raises(SpecError, match="template_date: must be a day such as 2026-11-29, not 'soon'"):
        rm.load(str(folder), template_date="soon")


@pytest.mark.filterwarnings("ignore:The chat template writes:UserWarning")
def test_a_manifest_keeps_it(folder: Path, tomorrow: type[date], monkeypatch: pytest.MonkeyPatch) -> None:
    trained: Any = rm.load(str(folder), template_date="2026-05-04")
    manifest = Manifest(
        created_by={},
        rendering=trained.renderer.rendering,
        dtype="float32",
        golden=golden_scores(trained.model, trained.renderer, Heads()),
    )
    manifest.write(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score(rm.load(str(folder))) == score(trained)
    assert "Today: 04 May 2026\n" in rm.load(str(folder)).render(SAMPLE)


def test_loading_compares_a_sample_that_meets_the_template(tiny_decoder: MakeFolder) -> None:
    folder = tiny_decoder()
    trained: Any = rm.load(str(folder))
    golden = golden_scores(trained.model, trained.renderer, Heads())
    Manifest(created_by={}, rendering=trained.renderer.rendering, dtype="float32", golden=golden).write(folder)
    rm.load(str(folder))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(f"Be kind.{template}")
    with pytest.raises(ManifestError, match="the tokenizer or the rendering gives other token ids"):
        rm.load(str(folder))


def test_other_manifests_are_as_they_were(tiny_decoder: MakeFolder) -> None:
    trained: Any = rm.load(str(tiny_decoder()))
    manifest = Manifest(created_by={}, rendering=trained.renderer.rendering, dtype="float32")
    assert "template_date" not in json.loads(manifest.model_dump_json())["rendering"]
