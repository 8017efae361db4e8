"""How much a call of the scoring engine computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Work:
    """The work of scoring a batch, summed over all variants of a model.

    Args:
        rows: Requested rows.
        duplicates: Rows with the same token ids as another row, which were not computed.
        cached: Rows whose scores came from the score cache.
        tokens: Tokens of all rows.
        unique_tokens: Tokens that the model computed, without padding: duplicates and shared beginnings count once.
        padded_tokens: The same including padding.
        seconds: Wall time.
    """

    rows: int = 0
    duplicates: int = 0
    cached: int = 0
    tokens: int = 0
    unique_tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0

    def as_metadata(self) -> dict[str, float]:
        """The fields by name, with ``tokens_per_second`` and ``duplicate_share`` (both 0 if nothing was scored)."""
        return {
            **asdict(self),
            "tokens_per_second": self.tokens / self.seconds if self.seconds else 0.0,
            "duplicate_share": self.duplicates / self.rows if self.rows else 0.0,
        }
