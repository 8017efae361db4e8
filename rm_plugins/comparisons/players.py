"""The answers of a group as players: equal ones are one, in an order that does not depend on the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from rm_plugins.canonical_json import canonical_json
from rm_plugins.comparisons.schedules import Pair
from rm_plugins.samples import Sample


@dataclass(frozen=True, slots=True)
class Players:
    """The distinct answers to a prompt.

    Args:
        samples: One sample per player, [P], in the order of their keys. If equal answers have different columns, it is the one whose
            columns come first as JSON.
        keys: The key of each player, [P].
        by_row: The player of each row of the group.
        references: The player that each row is compared with, where there is a reference answer; else empty.
        seed: Changes what is drawn.
    """

    samples: Sequence[Sample]
    keys: Sequence[bytes]
    by_row: Mapping[int, int]
    references: Mapping[int, int]
    seed: int = 0

    @classmethod
    def of(
        cls, samples: Sequence[Sample], rows: Sequence[int], references: Mapping[int, Sample] | None = None, seed: int = 0
    ) -> Players:
        """The players of a group.

        Args:
            samples: The batch.
            rows: The rows of the group.
            references: The reference answer of each row, if there are any.
            seed: Changes what is drawn.

        >>> answers = [Sample("2+2?", answer) for answer in ("5", "4", "5")]
        >>> players = Players.of(answers, [0, 1, 2])
        >>> len(players), players.by_row[0] == players.by_row[2]
        (2, True)
        """
        references = references or {}
        entrants = {row: samples[row] for row in rows}
        keys = {row: sample.key for row, sample in entrants.items()}
        reference_keys = {row: sample.key for row, sample in references.items()}
        by_key: dict[bytes, list[Sample]] = {}
        for key, sample in [*zip(keys.values(), entrants.values(), strict=True), *_in_turn(reference_keys, references)]:
            by_key.setdefault(key, []).append(sample)
        places = {key: place for place, key in enumerate(sorted(by_key))}
        return cls(
            [_first_of_equals(by_key[key]) for key in places],
            list(places),
            {row: places[key] for row, key in keys.items()},
            {row: places[key] for row, key in reference_keys.items()},
            seed,
        )

    def __len__(self) -> int:
        return len(self.samples)

    def draw(self, *players: int) -> bytes:
        """Bytes that depend only on the seed and on these answers, for `rm_plugins.comparisons.schedules.Draw`."""
        drawn = blake2b(str(self.seed).encode(), digest_size=16)
        for player in players:
            drawn.update(self.keys[player])
        return drawn.digest()

    def reference_pairs(self) -> list[Pair]:
        """Each answer with its reference, if they differ; which of the two is first, is drawn."""
        pairs = sorted({(self.by_row[row], reference) for row, reference in self.references.items()})
        shown = [(one, other) if self.draw(one, other)[0] % 2 else (other, one) for one, other in pairs if one != other]
        return shown


def content_keys(players: Players) -> list[bytes]:
    """16 bytes for each player that are equal for equal prompts, answers and columns only, [P]."""
    columns = (canonical_json(sample.columns).encode() for sample in players.samples)
    return [blake2b(key + of_sample, digest_size=16).digest() for key, of_sample in zip(players.keys, columns, strict=True)]


def _in_turn(keys: Mapping[int, bytes], samples: Mapping[int, Sample]) -> list[tuple[bytes, Sample]]:
    return [(key, samples[row]) for row, key in keys.items()]


def _first_of_equals(samples: Sequence[Sample]) -> Sample:
    return samples[0] if len(samples) == 1 else min(samples, key=lambda sample: canonical_json(sample.columns))
