"""Templates reach every column, run no code of the texts, and say what is wrong when they are loaded."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError, SpecError
from rm_plugins.judges import Template, shipped_templates
from rm_plugins.samples import RenderedSample

SAMPLE = rm.Sample("2+2?", "4", {"reference": "four", "level": 3, "tags": ["sum", "easy"]})


def test_every_column_can_be_used() -> None:
    template = Template(
        "{{ prompt }} {{ completion }} {{ reference }} {{ level + 1 }} {{ tags | join('/') }} {{ messages | length }}"
    )
    assert template.render(SAMPLE) == "2+2? 4 four 4 sum/easy 2"
    assert template.names == {"prompt", "completion", "reference", "level", "tags", "messages"}


def test_conversations_are_written_out_and_are_messages_too() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Time?"}]
    template = Template("{{ prompt }}|{{ completion }}|{% for m in messages %}{{ m.role }}={{ m['content'] }};{% endfor %}")
    assert template.render(rm.Sample(turns, "Noon")) == (
        "User: Hi\n\nAssistant: Yes?\n\nUser: Time?|Noon|user=Hi;assistant=Yes?;user=Time?;assistant=Noon;"
    )


@pytest.mark.parametrize(
    "text", ["{{ 7 * 7 }}", "{% for x in range(9) %}x{% endfor %}", "{# gone #}", "{{ prompt.__class__ }}"]
)
def test_a_text_is_never_code(text: str) -> None:
    template = Template("{{ prompt }}|{{ completion }}|{{ column }}")
    assert template.render(rm.Sample(text, text, {"column": text})) == f"{text}|{text}|{text}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ prompt.__class__.__mro__ }}{{ completion }}",
        "{{ completion.format.__globals__ }}",
        "{{ '{0.__class__}'.format(completion) }}",
        "{% set _ = tags.append('x') %}{{ completion }}",
        "{{ ().__class__.__base__.__subclasses__() }}{{ completion }}",
    ],
)
def test_a_template_reaches_neither_into_python_nor_changes_a_value(template: str) -> None:
    with pytest.raises(DataError):
        Template(template).render(SAMPLE)
    assert SAMPLE.columns["tags"] == ["sum", "easy"]


def test_an_absent_column_is_named_with_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"uses 'refrence', but the row has no such column\. Did you mean 'reference'\?"):
        Template("{{ completion }} {{ refrence }}").render(SAMPLE)


def test_a_column_may_be_optional() -> None:
    template = Template("{{ completion }}{% if note is defined %} ({{ note }}){% endif %}")
    assert template.render(SAMPLE) == "4"
    assert template.render(rm.Sample("", "4", {"note": "n"})) == "4 (n)"


@pytest.mark.parametrize("criteria", [{"text": "Is short.", "weight": 2}, [{"text": "Is short."}], ["Is short."], "Is short."])
@pytest.mark.parametrize("name", ["pointwise", "pairwise"])
def test_criteria_of_any_form_are_shown(name: str, criteria: Any) -> None:
    given = {"instruction": "", "first": "", "second": ""}
    text = Template(name, given=given).render(rm.Sample("2+2?", "4", {"criteria": criteria}), given)
    assert "Is short." in text
    assert "weight" not in text


def test_a_row_without_columns_is_told() -> None:
    with pytest.raises(DataError, match=r"uses 'level', but the row has no such column\. It has no columns besides"):
        Template("{{ completion }} {{ level }}").render(rm.Sample("", "4"))


def test_a_null_is_not_written_out() -> None:
    template = Template("{{ completion }} {{ note }}{{ other or 'none' }}")
    with pytest.raises(DataError, match=r"one of the columns 'note', 'other', which is null .* use {% if NAME is not none %}"):
        template.render(rm.Sample("", "4", {"note": float("nan"), "other": None}))
    assert template.render(rm.Sample("", "4", {"note": 0, "other": None})) == "4 0none"
    guarded = Template("{{ completion }}{% if note is not none %} ({{ note }}){% endif %}")
    assert guarded.render(rm.Sample("", "4", {"note": None})) == "4"


def test_a_conversation_in_a_column_is_written_out() -> None:
    column = [{"role": "assistant", "content": "four"}]
    assert Template("{{ completion }} {{ reference }}").render(rm.Sample("", "4", {"reference": column})) == "4 four"


def test_what_a_value_cannot_do_is_an_error_of_the_row() -> None:
    with pytest.raises(DataError, match=r"The template cannot be filled in: .*"):
        Template("{{ level.name }} {{ completion }}").render(SAMPLE)
    for template in (
        "{% for x in range(10**9) %}x{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range }}",
        "{{ completion * 10**13 }}",
        "{{ 9**9**9 }}",
        "{% set big = 9**99 %}{{ big**big }}",
    ):
        with pytest.raises(DataError, match="The template cannot be filled in"):
            Template("{{ completion }}" + template).render(SAMPLE)
    with pytest.raises(DataError, match="ZeroDivisionError"):
        Template("{{ 1 / zero }} {{ completion }}").render(rm.Sample("", "", {"zero": 0}))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ completion", "template: not a valid Jinja template: line 1"),
        ("a\n{% if %}{{ completion }}", "line 2"),
        ("{{ completion }}{% include 'x' %}", "template: a template cannot include, import or extend another one"),
        ("{% extends 'pointwise' %}{{ completion }}", "template: a template cannot include, import or extend another one"),
        ("{{ completion | shout }}", "template: not a valid Jinja template: .*shout"),
        ("{{ prompt }}", "must use 'completion' or 'messages'"),
        ("pointwize", r"Did you mean 'pointwise'\? Allowed: listwise, pairwise, pointwise"),
        ("absent.jinja", "There is no file"),
    ],
)
def test_a_wrong_template_is_refused_when_it_is_loaded(template: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Template(template, needed=("completion", "messages"))


def test_a_template_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("Rate {{ completion }}", encoding="utf-8")
    assert Template(str(tmp_path / "mine.jinja")).render(SAMPLE) == "Rate 4"
    (tmp_path / "mark.jinja").write_text("Rate {{ completion }}", encoding="utf-8-sig")
    assert Template(str(tmp_path / "mark.jinja")).render(SAMPLE) == "Rate 4"
    (tmp_path / "bad.jinja").write_bytes(b"\xff{{ completion }}")
    with pytest.raises(SpecError, match="utf-8"):
        Template(str(tmp_path / "bad.jinja"))


def test_only_a_regular_file_of_a_moderate_size_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jinja")
    with pytest.raises(SpecError, match="is a pipe"):
        Template(str(tmp_path / "pipe.jinja"))
    (tmp_path / "folder.jinja").mkdir()
    with pytest.raises(SpecError, match="is a folder"):
        Template(str(tmp_path / "folder.jinja"))
    (tmp_path / "large.jinja").write_text("x" * 1_100_000, encoding="utf-8")
    with pytest.raises(SpecError, match="is too large: it has more than 1,048,576"):
        Template(str(tmp_path / "large.jinja"))


def test_the_shipped_ones_show_what_they_are_given() -> None:
    assert shipped_templates() == ["listwise", "pairwise", "pointwise", "rubric", "rubric-single"]
    given: dict[str, dict[str, Any]] = {
        "pointwise": {},
        "pairwise": {"first": "<<one>>", "second": "<<two>>"},
        "listwise": {"responses": ["<<one>>", "<<two>>"]},
        "rubric": {"criteria": [{"number": 1, "text": "<<one>>", "verdicts": ["<<two>>", "no"]}]},
        "rubric-single": {"criterion": {"text": "<<one>> <<two>>"}},
    }
    for name, values in given.items():
        template = Template(name, given=(*values, "instruction"))
        text = template.render(SAMPLE, {**values, "instruction": "<<say>>"})
        assert "2+2?" in text
        assert text.endswith("<<say>>")
        assert all(each in text for each in (["<<one>>", "<<two>>"] if values else ["4"]))
        assert ("four" in text) == (name != "listwise")
        assert "four" not in template.render(rm.Sample("2+2?", "4"), {**values, "instruction": ""})
        assert "\n\n\n" not in text


def test_it_goes_to_another_process() -> None:
    template = pickle.loads(pickle.dumps(Template("{{ completion }}!")))
    assert template.render(SAMPLE) == "4!"


def test_arrays_can_be_shown_and_token_ids_cannot() -> None:
    assert Template("{{ completion }}{{ ids[1] }}").render(rm.Sample("", "x", {"ids": np.array([1, 2])})) == "x2"
    with pytest.raises(DataError, match="reads text"):
        Template("{{ completion }}").render(RenderedSample.of([1, 2]))
