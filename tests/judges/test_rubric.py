"""Rubrics: criteria from a spec or a column, one score by the formula, and missing verdicts that never become numbers."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.errors import DataError, ScoringError, SpecError
from rm_plugins.identity import fingerprint, fingerprints_of_parts
from rm_plugins.judges import Judge, Question, Reply
from rm_plugins.providers.judged.criteria import Criterion, read_criteria
from rm_plugins.providers.judged.rubric import Rubric
from rm_plugins.providers.judged.weighted_criteria import weighted_score
from tests.fake_servers.chat import chat
from tests.fake_servers.judge import Choice, choice
from tests.judges.scripted import ScriptedJudge, text_of
from tests.servers import serving

SAMPLES = [rm.Sample("Say hello to Ann.", text) for text in ("Hello Ann!", "Hi.", "Go away, Ann!", "Hello Ann, hello!")]
CRITERIA: list[Any] = [
    {"name": "named", "text": "It names Ann.", "weight": 3},
    {"name": "greets", "text": "It greets."},
    {"name": "rude", "text": "It is rude.", "negative": True},
]


def verdicts(completion: str) -> dict[str, str]:
    """The truth about a completion, by criterion."""
    facts = {
        "It names Ann.": "Ann" in completion,
        "It greets.": "Hello" in completion or "Hi" in completion,
        "It is rude.": "away" in completion,
    }
    return {text: "yes" if fact else "no" for text, fact in facts.items()}


def completion_in(text: str) -> str:
    return text.partition("<response>\n")[2].partition("\n</response>")[0]


def truthful(question: Question) -> str:
    """Answers rightly, in the form that is asked for."""
    text = text_of(question)
    truth = verdicts(completion_in(text))
    asked = [criterion for criterion in truth if criterion in text]
    asked.sort(key=text.index)
    if question.schema is None:
        return truth[asked[0]]
    return json.dumps({str(number): truth[criterion] for number, criterion in enumerate(asked, start=1)})


def rubric(answer: Callable[[Question], Reply | str] = truthful, **settings: Any) -> Rubric:
    settings = {"criteria": CRITERIA, **settings} if "criteria_column" not in settings else settings
    made = rm.load({"provider": "rubric", "judge": ScriptedJudge(answer), **settings})
    assert isinstance(made, Rubric)
    return made


EXPECTED = [1.0, 0.25, 0.5, 1.0]  # (3 named + greets - rude) / 4


@pytest.mark.parametrize("per_question", [None, 1, 2, 3, 9])
def test_the_score_is_the_weighted_mean_however_many_criteria_a_question_has(per_question: int | None) -> None:
    reward = rubric(per_question=per_question)
    scores = reward.score(SAMPLES)
    assert scores.values.tolist() == EXPECTED
    assert {name: part.values.tolist() for name, part in scores.parts.items()} == {
        "named": [1, 0, 1, 1],
        "greets": [1, 1, 0, 1],
        "rude": [0, 0, 1, 0],
    }
    assert {part.kind for part in scores.parts.values()} == {"criterion"}
    assert next(iter(scores.columns)) == "criterion/named"
    questions = 4 * math.ceil(3 / (per_question or 3))
    assert scores.metadata["calls"] == questions == len(reward.judge.asked)  # type: ignore[attr-defined]
    assert (scores.metadata["prompt_tokens"], scores.metadata["completion_tokens"]) == (10 * questions, 2 * questions)
    assert set(reward.metrics) <= set(scores.metadata)


@given(order=st.permutations(range(4)), size=st.integers(1, 4), per_question=st.integers(1, 3))
def test_neither_the_order_nor_the_batch_changes_a_score(order: Sequence[int], size: int, per_question: int) -> None:
    reward = rubric(per_question=per_question)
    found = np.concatenate(
        [reward.score([SAMPLES[row] for row in order[start : start + size]]).values for start in range(0, 4, size)]
    )
    assert found.tolist() == [EXPECTED[row] for row in order]


def test_label_probabilities_give_the_expected_value() -> None:
    def answer(question: Question) -> Reply:
        assert question.labels == ("yes", "no")
        return Reply("yes", {"yes": 0.6, "no": 0.2})

    scores = rubric(answer, per_question=1).score(SAMPLES[:1])
    assert scores.parts["named"].values.tolist() == pytest.approx([0.75])
    assert scores.values.tolist() == pytest.approx([(3 * 0.75 + 0.75 - 0.75) / 4])


def test_a_level_of_several_tokens_is_read_from_the_text() -> None:
    criteria = [{"name": "a", "text": "Is it clear?", "levels": {"not at all": 0, "partially": 0.5, "fully": 1}}]
    scores = rubric(
        lambda question: Reply("Partially", {name: 0.001 for name in question.labels}), criteria=criteria, per_question=1
    )
    assert scores.score(SAMPLES[:1]).values.tolist() == [0.5]
    low = rubric(
        lambda question: Reply("Perhaps", {name: 0.001 for name in question.labels}), criteria=criteria, per_question=1
    )
    assert np.isnan(low.score(SAMPLES[:1]).values).all()
    assert "less than min_label_mass" in str(low.score(SAMPLES[:1]).parts["a"].errors[0])


def test_a_level_in_a_text_that_was_cut_off_is_not_read() -> None:
    criteria = [{"name": "a", "text": "Is it clear?", "levels": {"not at all": 0, "partially": 0.5, "fully": 1}}]
    app = chat(lambda text: choice(("The", {"The": 1.0}), "\n", "partially", finish_reason="length"))
    with serving(app) as url:
        spec = {"provider": "rubric", "judge": {"name": "openai", "url": url}, "criteria": criteria, "per_question": 1}
        reward = rm.load(spec)
        scores = reward.score(SAMPLES[:1])
        reward.close()
    assert scores.abstained.all()
    assert "less than min_label_mass" in str(scores.parts["a"].errors[0])


# What becomes of missing verdicts

MISSING: list[tuple[Reply | str, str]] = [
    (Reply("", error="the judge's answer was cut off at max_tokens"), "cut off"),
    (Reply("", error="the judge refused to answer"), "refused"),
    ('{"1": "yes", "2": "yes"}', "no verdict on criterion 3"),
    ('{"1": "yes", "2": "yes", "3": "perhaps"}', "the verdict 'perhaps' on criterion 3 is not one of 'yes', 'no'"),
    ('{"1": "yes", "2": "yes", "3": null}', "no verdict on criterion 3"),
    ('{"1": "yes", "2": "yes", "3": 0.5}', "the verdict '0.5' on criterion 3"),
    ('{"1": "oui", "2": "oui", "3": "non"}', "the verdict 'oui'"),
    ('{"1": "yes", "2": "yes", "3": "no", "3": "yes"}', "the key '3' twice"),
    ('<think>{"1": "yes", "2": "yes", "3": "no"}</think>', "no JSON object"),
    ("1. yes\n2. yes\n3. yes\n3. no", "different verdicts on criterion 3: no, yes"),
    ("All criteria are met.", "no JSON object"),
    ('{"0": "yes", "1": "yes", "2": "no"}', "a verdict on criterion 0, but they are numbered from 1 to 3"),
    ('{"1": "yes", "2": "yes", "3": "no", "4": "no"}', "a verdict on criterion 4"),
    ("0. yes\n1. yes\n2. no\n3. no", "a verdict on criterion 0"),
]


@pytest.mark.parametrize(("reply", "reason"), MISSING)
def test_a_missing_verdict_abstains_and_its_reason_is_told(
    reply: Reply | str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    reward = rubric(lambda question: reply)
    scores = reward.score(SAMPLES[:1])
    assert np.isnan(scores.values).all()
    assert scores.errors == {}
    assert any(reason in str(error) for part in scores.parts.values() for error in part.errors.values())
    assert scores.details["missing"][0] == scores.metadata["missing"] == reward.counts["missing"] > 0
    assert reason in caplog.text


@pytest.mark.parametrize(("reply", "reason"), MISSING)
def test_a_missing_verdict_may_be_an_error(reply: Reply | str, reason: str) -> None:
    with pytest.raises(ScoringError, match=r"item 0: there is no verdict on the criterion '(named|rude)'"):
        rubric(lambda question: reply, missing="raise").score(SAMPLES[:1])
    assert rubric(lambda question: reply, missing="raise", on_error="abstain").score(SAMPLES[:1]).abstained.all()


def test_a_missing_verdict_may_be_left_out() -> None:
    def without(*numbers: int) -> Callable[[Question], str]:
        return lambda question: json.dumps({str(number): "yes" for number in (1, 2, 3) if number not in numbers})

    assert rubric(without(3), missing="skip").score(SAMPLES[:1]).values.tolist() == [1.0]
    assert rubric(without(1), missing="skip").score(SAMPLES[:1]).values.tolist() == [0.0]  # (1 - 1) / 1
    assert rubric(without(1, 2), missing="skip").score(SAMPLES[:1]).abstained.all(), "a fault alone says nothing of the rest"
    assert rubric(without(1, 2, 3), missing="skip").score(SAMPLES[:1]).abstained.all()
    required = [{**CRITERIA[0], "required": True}, *CRITERIA[1:]]
    assert rubric(without(1), missing="skip", criteria=required).score(SAMPLES[:1]).abstained.all()
    assert rubric(without(2), missing="skip", criteria=required).score(SAMPLES[:1]).values.tolist() == pytest.approx([2 / 3])


def test_a_sample_without_verdicts_does_not_affect_the_others() -> None:
    def answer(question: Question) -> Reply | str:
        return Reply("", error="filtered") if "away" in completion_in(text_of(question)) else truthful(question)

    assert rubric(answer).score(SAMPLES).values.tolist() == pytest.approx([1.0, 0.25, math.nan, 1.0], nan_ok=True)


# The answer's form


@pytest.mark.parametrize(
    "reply",
    [
        '{"1": "yes", "2": "no", "3": "no"}',
        '```json\n{"1": "Yes", "2": "NO", "3": "no"}\n```',
        '<think>2 is met</think>{"1": true, "2": false, "3": false}',
        '{"1": {"reason": "so", "verdict": "yes"}, "2": {"verdict": "no"}, "3": {"verdict": "no"}}',
        "1. yes\n2. no\n3. no",
        "**1:** Yes.\n**2:** No.\n**3:** No.",
        "Criterion 1: yes\nCriterion 2: no\nCriterion 3: no",
        "2024: a good year.\n1. yes\n2. no\n3. no",
        '{"1": "yes", "2": "no", "3": "no", "overall": "good"}',
    ],
)
def test_forms_of_an_answer(reply: str) -> None:
    assert rubric(lambda question: reply).score(SAMPLES[:1]).values.tolist() == [0.75]


def test_what_the_judge_is_asked() -> None:
    reward = rubric(reference_column="good", explain=True, system="Be strict.")
    sample = rm.Sample("Say hello to Ann.", "Hi {{ 1 + 1 }}", {"good": "Hello Ann."})
    (asked,) = reward._questions(0, sample, reward.criteria or ())
    assert [message["role"] for message in asked.question.messages] == ["system", "user"]
    text = text_of(asked.question)
    assert all(part in text for part in ("1. It names Ann.", "3. It is rude.", "Possible verdicts: yes, no.", "Hello Ann."))
    assert "Hi {{ 1 + 1 }}" in text
    assert text.endswith('as in {"1": {"reason": "...", "verdict": "yes"}}.')
    schema = asked.question.schema
    assert schema is not None and schema["required"] == ["1", "2", "3"]
    assert schema["properties"]["1"]["properties"]["verdict"]["enum"] == ["yes", "no"]
    assert reward.render(sample).startswith("Be strict.")
    with pytest.raises(DataError, match="item 0: the row has no column 'good', which holds the reference answer"):
        reward.score([rm.Sample("a", "b")])


def test_a_template_of_ones_own_reaches_every_column() -> None:
    template = "{{ level }}: {{ completion }} {% for c in criteria %}{{ c.number }}={{ c.text }};{% endfor %}{{ instruction }}"
    reward = rubric(lambda question: '{"1": "yes"}', criteria=["Is good."], template=template)
    assert reward.render(rm.Sample("", "x", {"level": 3})).startswith("3: x 1=Is good.;Answer with a JSON object")
    scores = reward.score([rm.Sample("", "x", {"level": 3}), rm.Sample("", "x")], on_error="abstain")
    assert scores.values.tolist() == pytest.approx([1.0, math.nan], nan_ok=True)
    assert "item 1: The template uses 'level', but the row has no such column" in str(scores.errors[1])


# Criteria


def test_criteria_from_a_column() -> None:
    def row(*criteria: Any, text: str = "Hello Ann!") -> rm.Sample:
        return rm.Sample("", text, {"rubric": criteria[0] if len(criteria) == 1 else list(criteria)})

    samples = [
        row(CRITERIA),
        row(json.dumps(CRITERIA[:2]), text="Hi."),
        row(np.array(["It greets.", "It names Ann."], dtype=object), text="Hi."),
        row([{"title": "rude", "description": "It is rude.", "weight": -1.0, "tags": ["x"]}], text="Go away!"),
        row([{"name": None, "text": "It greets.", "levels": None, "weight": None, "negative": None}]),
    ]
    scores = rubric(criteria_column="rubric").score(samples)
    assert scores.values.tolist() == [1.0, 0.25, 0.5, -1.0, 1.0]
    assert {name: part.values.tolist() for name, part in scores.parts.items()} == {
        "named": pytest.approx([1, 0, math.nan, math.nan, math.nan], nan_ok=True),
        "greets": pytest.approx([1, 1, math.nan, math.nan, math.nan], nan_ok=True),
        "rude": pytest.approx([0, math.nan, math.nan, 1, math.nan], nan_ok=True),
    }


def test_many_names_are_not_parts() -> None:
    samples = [rm.Sample("", "x", {"r": [{"name": f"n{number}", "text": "It greets."}]}) for number in range(70)]
    scores = rubric(criteria_column="r").score(samples)
    assert scores.parts == {}
    assert scores.values.tolist() == [0.0] * 70


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ([], "is empty: a rubric needs at least one criterion"),
        (None, r"the column 'rubric', which holds the criteria, is null"),
        (math.nan, r"the column 'rubric', which holds the criteria, is null"),
        ("[" * 100_000, "must be a list of criteria, or JSON with one"),
        (f'[{{"text": "a", "weight": 1{"0" * 400}}}]', r"\[0\].weight must be a finite number of at most 1e\+12"),
        ([{"text": "a", "weight": 1e308}, {"text": "b", "weight": 1e308}], r"\[0\].weight must be a finite number of at most"),
        ([{"text": "a", "levels": ["*", "**"]}], r"\[0\].levels needs names that differ in more than case and punctuation"),
        ([{"text": "a", "levels": {"yes": 1, "no": 0.5, "No.": 0}}], "has 'no' and 'No.'"),
        ("not JSON", "must be a list of criteria, or JSON with one"),
        ({"text": "x"}, "must be a list of criteria, not dict"),
        ([""], r"\[0\] has no text"),
        (["a", "  "], r"\[1\] has no text"),
        ([{"name": "x"}], r"\[0\] has no text"),
        ([3], r"\[0\] must be a text or a mapping"),
        (["Is polite.", "is  POLITE"], r"\[1\] is the same criterion as .*\[0\]"),
        ([{"text": "Is polite."}, {"text": "Is polite.", "negative": True}], r"\[0\] and .*\[1\] contradict each other"),
        ([{"text": "a", "name": "x"}, {"text": "b", "name": "x"}], r"\[1\] has the same name as .*\[0\]: 'x'"),
        ([{"text": "a", "weight": 0}], r"\[0\].weight is 0"),
        ([{"text": "a", "weight": math.inf}], r"\[0\].weight must be a finite number"),
        ([{"text": "a", "weight": "3"}], r"\[0\].weight must be a finite number"),
        ([{"text": "a", "weight": -1, "negative": False}], r"\[0\] contradicts itself"),
        ([{"text": "a", "required": "yes"}], r"\[0\].required must be true or false"),
        ([{"text": "a", "requierd": True}], r"\[0\] has the unknown key 'requierd'. Did you mean 'required'\?"),
        ([{"text": "a", "criterion": "b"}], r"\[0\] has 'text' twice, also as 'criterion'"),
        ([{"text": "a", "levels": {"yes": 1}}], r"\[0\].levels needs at least two different names"),
        ([{"text": "a", "levels": {"Yes": 1, "yes": 0}}], r"\[0\].levels needs at least two different names"),
        ([{"text": "a", "levels": {"yes": 1, "no": 1}}], r"\[0\].levels has the same value for every level"),
        ([{"text": "a", "levels": ["x", "x"]}], r"\[0\].levels has a level twice"),
        ([{"text": "a", "levels": "yes"}], r"\[0\].levels must be a mapping"),
    ],
)
def test_wrong_criteria_are_errors_that_say_where(criteria: Any, message: str) -> None:
    column = rubric(criteria_column="rubric")
    good = rm.Sample("", "Hello Ann!", {"rubric": CRITERIA})
    scores = column.score([good, rm.Sample("", "x", {"rubric": criteria})], on_error="abstain")
    assert scores.values.tolist() == pytest.approx([1.0, math.nan], nan_ok=True)
    with pytest.raises(DataError, match=message):
        raise scores.errors[1]
    if isinstance(criteria, list):
        with pytest.raises(SpecError, match=f"criteria: .*{message}" if message.startswith("is ") else "criteria"):
            rubric(criteria=criteria)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"criteria_column": "x", "criteria": ["a"]}, "criteria: a rubric needs either 'criteria' or 'criteria_column'"),
        ({"criteria": None}, "criteria: a rubric needs either"),
        ({"per_question": 0}, "per_question: must be at least 1"),
        ({"explain": True, "per_question": 1}, "explain: needs more than one criterion"),
        ({"min_label_mass": 0.0}, "min_label_mass: must be a probability above 0"),
        ({"missing": "zero"}, "missing: "),
        ({"template": "{{ criteria }}"}, "template: the template must use 'completion' or 'messages'"),
        ({"template": "{{ completion }}"}, "template: the template must use 'criteria' or 'criterion'"),
        ({"template": "{{ completion"}, "template: not a valid Jinja template"),
        ({"judge": "nobody"}, "There is no judge called 'nobody'"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises((SpecError, rm.errors.UnknownNameError), match=message):
        rm.load({"provider": "rubric", "judge": ScriptedJudge(truthful), "criteria": ["a"], **keys})


# The formula

levels = st.lists(st.floats(-5, 5), min_size=2, max_size=4, unique=True).map(
    lambda values: {str(place): value for place, value in enumerate(values)}
)
criterion = st.builds(
    Criterion,
    text=st.just("x"),
    weight=st.floats(0.1, 5),
    required=st.booleans(),
    negative=st.booleans(),
    levels=levels.filter(lambda found: max(found.values()) - min(found.values()) > 0.1),
)


@given(data=st.data(), criteria=st.lists(criterion, min_size=1, max_size=5))
def test_a_better_verdict_never_lowers_the_score(data: st.DataObject, criteria: list[Criterion]) -> None:
    values = [data.draw(st.sampled_from([*each.levels.values()])) for each in criteria]
    place = data.draw(st.integers(0, len(criteria) - 1))
    changed = criteria[place]
    better = [value for value in changed.levels.values() if changed.met(value) >= changed.met(values[place])]
    improved = [*values]
    improved[place] = data.draw(st.sampled_from(better))
    assert weighted_score(criteria, improved) >= weighted_score(criteria, values) - 1e-9


@given(criteria=st.lists(criterion, min_size=1, max_size=5))
def test_required_criteria_that_are_not_met_give_the_lowest_score(criteria: list[Criterion]) -> None:
    worst = [each.span[each.negative] for each in criteria]
    best = [each.span[not each.negative] for each in criteria]
    for place, each in enumerate(criteria):
        if each.required:
            values = [*best]
            values[place] = worst[place]
            assert weighted_score(criteria, values) == pytest.approx(weighted_score(criteria, worst))


def test_ordinal_levels_are_in_equal_steps_from_the_worst() -> None:
    (found,) = read_criteria([{"text": "a", "levels": ["bad", "fair", "good"]}], "criteria")
    assert found.levels == {"bad": 0.0, "fair": 0.5, "good": 1.0}


# The rest of the package


def test_a_rubric_is_a_spec_and_its_cache_and_timeouts_do_not_count() -> None:
    spec: dict[str, Any] = {
        "provider": "rubric",
        "judge": {"name": "openai", "url": "http://127.0.0.1:1", "model": "judge"},
        "criteria": ["Is polite."],
    }
    made = rm.load(spec)
    assert made.spec == spec
    assert made.concurrent
    other = rm.load({**spec, "judge": {**spec["judge"], "url": "http://127.0.0.1:2", "timeout": 9.0}})
    assert fingerprint(other) == fingerprint(made)
    assert fingerprint(rm.load({**spec, "judge": {**spec["judge"], "model": "another"}})) != fingerprint(made)
    assert fingerprint(rm.load({**spec, "criteria": ["Is rude."]})) != fingerprint(made)
    unnamed = {"name": "openai", "url": "http://127.0.0.1:1"}
    here, there = (rm.load({**spec, "judge": {**unnamed, "url": f"http://127.0.0.1:{port}"}}) for port in (1, 2))
    assert fingerprint(here) != fingerprint(there)
    assert fingerprints_of_parts(here) == fingerprints_of_parts(there)
    assert pickle.loads(pickle.dumps(made)).spec == spec
    made.close()


def test_a_plug_in_registers_a_judge() -> None:
    class Always(Judge):
        name = "always"

        def __init__(self, *, says: str = "yes") -> None:
            self.says = says

        def ask(self, questions: Sequence[Question]) -> list[Reply]:
            return [Reply(self.says) for _ in questions]

    hooks: Mapping[str, Any] = {"rm_register_judges": rm.hookimpl(lambda: [Always])}
    registry = rm.Registry([SimpleNamespace(__name__="mine", **hooks)])
    spec = {"provider": "rubric", "judge": {"name": "always"}, "criteria": ["a"], "per_question": 1}
    assert rm.load(spec, registry=registry).score(SAMPLES[:1]).values.tolist() == [1.0]


@pytest.mark.parametrize("per_question", [None, 1])
def test_over_a_real_socket(per_question: int | None, tmp_path: Any) -> None:
    def answer(text: str) -> Choice:
        single = "one criterion" in text
        said = truthful(Question(({"role": "user", "content": text},), schema=None if single else {}))
        return choice((said, {said: 0.9, "yes" if said == "no" else "no": 0.1})) if single else choice(said)

    app = chat(answer)
    with serving(app) as url:
        judge = {"name": "openai", "url": url, "cache": str(tmp_path)}
        reward = rm.load({"provider": "rubric", "judge": judge, "criteria": CRITERIA, "per_question": per_question})
        scores = reward.score(SAMPLES)
        again = reward.score([*reversed(SAMPLES)])
        reward.close()
    if per_question is None:
        assert scores.values.tolist() == EXPECTED
    else:
        assert scores.values[0] == pytest.approx((3 * 0.9 + 0.9 - 0.1) / 4)
    assert again.values.tolist() == scores.values.tolist()[::-1]
    assert (scores.metadata["calls"], again.metadata["calls"]) == (len(app.state.bodies), 0)
    assert again.metadata["cached"] == scores.metadata["calls"]
    assert scores.metadata["completion_tokens"] == 2 * scores.metadata["calls"]
