"""What a loss is, and what a regularizer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from rm_plugins.errors import SpecError, did_you_mean
from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.needs import BATCH_NEEDS, Need, NeedName
from rm_plugins.models.heads import Heads

if TYPE_CHECKING:
    from torch import Tensor

Item: TypeAlias = Literal["pairs", "comparisons", "groups", "rows", "labels"]
"""What a loss is a mean over: pairs; pairs and ties; groups; rows; or labels that are not missing."""


class _Term(ABC):
    name: ClassVar[str]
    formula: ClassVar[str] = ""
    """The formula in one line, for `rm-plugins list`; by default that of the docstring's line ``Formula: ...``."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        lines = [line.strip() for line in (cls.__doc__ or "").splitlines()]
        given = [line.removeprefix("Formula: ") for line in lines if line.startswith("Formula: ")]
        if given and "formula" not in vars(cls):
            cls.formula = given[0]

    @abstractmethod
    def __call__(self, batch: RewardBatch) -> Tensor:
        """The scalar value on a batch, differentiable in ``batch.rewards``."""


class Loss(_Term):
    """A reward-model loss: a mean over the items of a batch, each times its weight.

    Its constructor's annotated keyword arguments are its schema: ``RewardConfig(loss={"name": NAME, ...})``.
    """

    needs: ClassVar[frozenset[NeedName | Need]] = frozenset({"pairs"})
    """What the data must have, by name, or as a `Need` of the loss's own; a dataset without it is refused."""
    mean_over: ClassVar[Item] = "pairs"
    """What the loss is a mean over; the trainer weighs batches of different sizes by it."""

    def heads(self, attributes: Sequence[str]) -> Heads:
        """The outputs that the loss trains, given the names of the data's attributes.

        Raises:
            SpecError: The loss cannot be trained on these attributes.
        """
        return Heads()

    def deployed(self, heads: Heads) -> Sequence[int]:
        """The outputs, of one member, that the final model keeps: all of them, unless some serve training only."""
        return range(len(heads.names))

    def state(self) -> Mapping[str, Any]:
        """What the loss remembers from batch to batch, as JSON, saved in checkpoints."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""


class FunctionLoss(Loss):
    """A function of a batch as a loss over pairs.

    Args:
        function: Takes a `RewardBatch`, returns a scalar.
    """

    def __init__(self, function: Callable[[RewardBatch], Tensor]) -> None:
        self.function = function

    @property
    def name(self) -> str:  # type: ignore[override]  # a registered class has it once and for all
        """The function's own name."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, batch: RewardBatch) -> Tensor:
        """What the function returns."""
        return self.function(batch)


class Regularizer(_Term):
    """A term added to a loss with a weight: ``RewardConfig(regularizers={NAME: WEIGHT})``."""


def needs_of(loss: Loss) -> tuple[Need, ...]:
    """What a loss needs, in the order of the names.

    Raises:
        SpecError: A name is unknown.
    """
    needs: list[Need] = []
    for need in loss.needs:
        if isinstance(need, str):
            if need not in BATCH_NEEDS:
                raise SpecError(
                    f"The loss {type(loss).__name__} needs {need!r}, which is unknown. {did_you_mean(need, BATCH_NEEDS)} "
                    "For anything else, give an `rm_plugins.losses.Need`."
                )
            need = BATCH_NEEDS[need]
        needs.append(need)
    return tuple(sorted(needs, key=lambda need: need.name))


def own_needs(loss: Loss) -> tuple[Need, ...]:
    """The needs that a loss declares, which reach it in ``batch.extras``.

    Raises:
        SpecError: One has the name of a field of `RewardBatch`, two have the same name, or a name is unknown.
    """
    own = tuple(need for need in needs_of(loss) if need not in BATCH_NEEDS.values())
    names = [need.name for need in own]
    taken = {field.name for field in fields(RewardBatch)}
    for name in names:
        if name in taken or names.count(name) > 1:
            raise SpecError(
                f"The loss {type(loss).__name__} has a need called {name!r}, but that name is taken. Choose another name."
            )
    return own
