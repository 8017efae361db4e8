"""The state that a reward learns while scoring: collected from all its parts, and restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rm_plugins.component import Transform
from rm_plugins.errors import DataError
from rm_plugins.provider import Provider, transforms_of


def reward_state(provider: Provider) -> dict[str, dict[str, Any]]:
    """The state of a provider, its parts and their transforms, as JSON values.

    Returns:
        Path in the spec to state, of those that learn. The provider itself has the path ``""``.
    """
    return {path: state for path, part in _parts(provider) if (state := part.state())}


def restore_reward_state(provider: Provider, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore what `reward_state` returned.

    Args:
        provider: The reward, made of the same spec.
        state: Path in the spec to state.

    Raises:
        DataError: The reward is another one: something has gone that had learned, or something learns that has no state.
    """
    parts = dict(_parts(provider))
    gone, new = state.keys() - parts.keys(), {path for path in parts.keys() - state.keys() if parts[path].state()}
    problems = [f"a part with saved state is missing: {path or 'the reward itself'}" for path in state if path in gone]
    problems += [f"a part that learns has no saved state: {path or 'the reward itself'}" for path in parts if path in new]
    for path, learned in () if problems else state.items():
        try:
            parts[path].load_state(learned)
        except DataError as error:
            problems.append(f"{path}: {error}")
        if not parts[path].state():
            problems.append(f"a part with saved state no longer learns: {path or 'the reward itself'}")
    if problems:
        raise DataError(
            f"The reward {provider.label!r} does not match the saved state ({'; '.join(problems)}). Use the spec that the state was "
            "saved with, or start without the state."
        )


def _parts(provider: Provider) -> Iterator[tuple[str, Provider | Transform]]:
    for path, part in provider.walk():
        yield path, part
        for place, transform in transforms_of(part).items():
            yield f"{path}.{place}" if path else place, transform
