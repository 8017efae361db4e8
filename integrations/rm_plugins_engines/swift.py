"""Rewards for ms-swift 4.6: a class for ``--reward_funcs``, synchronous or asynchronous, and a plug-in for ``--reward_model_plugin``.

ms-swift hands over whole batches with messages, so that the reward renders them itself. It adds up its reward functions, and a None counts
as 0 there. So a sample cannot be left out: ``no_reward`` is ``"raise"`` or a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_plugins.data.plain_values import plain_row, plain_value
from rm_plugins.errors import DataError, MissingDependencyError
from rm_plugins.samples import Sample
from rm_plugins_engines.engine_reward import EngineReward, NoReward
from rm_plugins_engines.shared_reward import Spec

ENGINE = "ms-swift"

_TOKEN_IDS = "response_token_ids"
_OF_THE_RUN = ("trainer_state", "trajectory_inputs", "prompt_id", "request_id", _TOKEN_IDS, "rollout_infos")
"""What ms-swift hands over that is not in the dataset's row, and cannot be part of a sample."""


def register(spec: Spec, *, no_reward: NoReward = "raise") -> None:
    """Register a reward in ms-swift: `orm` and `model_plugin` as ``rm_plugins``, and `async_orm` as ``rm_plugins_async``.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        no_reward: What a sample without a reward becomes, as in `orm`.

    Raises:
        MissingDependencyError: ms-swift is not installed, or too old.
        SpecError: An argument is wrong.
    """
    function, asynchronous = orm(spec, no_reward=no_reward), async_orm(spec, no_reward=no_reward)
    from swift.rewards import orms, rm_plugins

    orms["rm_plugins"], orms["rm_plugins_async"] = function, asynchronous
    rm_plugins["rm_plugins"] = model_plugin(spec, no_reward=no_reward)


def orm(spec: Spec, *, no_reward: NoReward = "raise") -> type[Any]:
    """A synchronous reward class for ``orms``, ms-swift's registry of ``--reward_funcs``.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        no_reward: What a sample without a reward becomes: ``"raise"``, which ends the training, or a number.

    Raises:
        MissingDependencyError: ms-swift is not installed, or too old.
        SpecError: An argument is wrong.
        UnsupportedError: `no_reward` is ``"drop"``.
    """
    base = _base("ORM")
    reward = _reward(spec, no_reward)

    class RMPluginsORM(base):  # type: ignore[misc, valid-type]  # ms-swift's class
        """Scores a batch."""

        def __call__(self, completions: Sequence[str], /, **columns: Any) -> list[float]:
            return [outcome.number for outcome in reward.score(samples_of(completions, columns))]

    return RMPluginsORM


def async_orm(spec: Spec, *, no_reward: NoReward = "raise") -> type[Any]:
    """The same as an asynchronous class, which ms-swift runs at the same time as its other asynchronous rewards; see `orm`.

    Rewards that compare samples, or learn from them, need the synchronous class.
    """
    base = _base("AsyncORM")
    reward = _reward(spec, no_reward, in_step=False)

    class RMPluginsAsyncORM(base):  # type: ignore[misc, valid-type]  # ms-swift's class
        """Scores a batch."""

        async def __call__(self, completions: Sequence[str], /, **columns: Any) -> list[float]:
            return [outcome.number for outcome in await reward.score_async(samples_of(completions, columns))]

    return RMPluginsAsyncORM


def model_plugin(spec: Spec, *, no_reward: NoReward = "raise") -> type[Any]:
    """A class for ``rm_plugins``, ms-swift's registry of ``--reward_model_plugin``.

    ms-swift loads the model of ``--reward_model`` in any case; the scores come from the spec. Use `orm` unless a script needs a model
    plug-in.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        no_reward: What a sample without a reward becomes, as in `orm`.

    Raises:
        SpecError: An argument is wrong.
    """
    reward = _reward(spec, no_reward)

    class RMPluginsModelPlugin:
        """Scores a batch of rows."""

        def __init__(self, model: Any = None, template: Any = None) -> None:
            self.model = model
            self.template = template

        def __call__(self, inputs: Sequence[Mapping[str, Any]], **others: Any) -> list[float]:
            samples = [
                _sample(row["messages"], {name: value for name, value in row.items() if name != "messages"}) for row in inputs
            ]
            return [outcome.number for outcome in reward.score(samples)]

    return RMPluginsModelPlugin


def samples_of(completions: Sequence[str], columns: Mapping[str, Any]) -> list[Sample]:
    """The samples of a call of ms-swift.

    Args:
        completions: The last messages' contents, [N].
        columns: The other arguments; lists, arrays and tensors of N items are columns, and ``messages`` has the conversations, each with
            its completion.

    Raises:
        DataError: There are no messages, or their number differs from that of the completions; or a conversation ends otherwise.
    """
    conversations = columns.get("messages")
    if conversations is None or len(conversations) != len(completions):
        raise DataError(
            f"ms-swift hands over {len(completions)} completions with {'no' if conversations is None else len(conversations)} `messages`; "
            "one conversation for each is needed. Call the reward with the column `messages`."
        )
    skipped = {"messages", *_OF_THE_RUN} - {_TOKEN_IDS}
    others = plain_row({name: values for name, values in columns.items() if name not in skipped})
    by_row = {
        name: values for name, values in others.items() if isinstance(values, (list, tuple)) and len(values) == len(completions)
    }
    return [
        _sample(messages, {name: by_row[name][row] for name in by_row}, completion)
        for row, (completion, messages) in enumerate(zip(completions, conversations, strict=True))
    ]


def _sample(messages: Sequence[Mapping[str, Any]], columns: Mapping[str, Any], completion: str | None = None) -> Sample:
    """A conversation that ends with the completion, whose last message may have another content."""
    turns = [{name: value for name, value in message.items() if name != "loss"} for message in plain_value(list(messages))]
    if not turns or turns[-1].get("role") != "assistant":
        raise DataError("A conversation of ms-swift must end with the assistant's message, which is scored.")
    if completion is not None:
        turns[-1]["content"] = completion
    written = [place for place, turn in enumerate(turns) if turn.get("role") == "assistant"]
    for place in written:
        if _is_token_ids(turns[place].get("content")):
            raise DataError(
                f"ms-swift hands over the content of messages[{place}] as token ids, which only the policy's tokenizer can read: "
                f"{turns[place]['content']!r:.80}. Its multi-turn schedulers do that. Let the scheduler return messages with text."
            )
    generated = min(max(1, _generated_turns(columns.get(_TOKEN_IDS))), len(written))
    start = written[-generated]
    kept = {name: value for name, value in columns.items() if name not in _OF_THE_RUN}
    return Sample(turns[:start], turns[start:], plain_row(kept))


def _is_token_ids(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(item, int) for item in content)
    return isinstance(content, Mapping)


def _generated_turns(token_ids: Any) -> int:
    """How many turns a multi-turn rollout has generated: it has a list of token ids for each, and any other rollout a single list."""
    ids = plain_value(token_ids)
    return len(ids) if isinstance(ids, list) and all(isinstance(turn, list) for turn in ids) else 1


def _reward(spec: Spec, no_reward: NoReward, *, in_step: bool = True) -> EngineReward:
    return EngineReward(spec, ENGINE, no_reward=no_reward, groups=in_step, in_step=in_step)


def _base(name: str) -> type[Any]:
    try:
        from swift.rewards import orm as theirs
    except ImportError as error:
        raise MissingDependencyError(
            f"A reward class for ms-swift needs `swift.rewards`, as in version 4.6, which cannot be imported here ({error}): "
            "pip install -U ms-swift."
        ) from error
    base: type[Any] = getattr(theirs, name)
    return base
