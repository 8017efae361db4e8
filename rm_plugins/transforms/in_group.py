"""What transforms within groups share: by what the groups are made."""

from __future__ import annotations

from typing import ClassVar

from rm_plugins.component import Transform
from rm_plugins.errors import SpecError


class TransformInGroup(Transform):
    """A transform that looks at the other scores of a sample's group.

    Args:
        group: The column that names a sample's group; by default, the samples of a prompt in the batch are a group.

    Raises:
        SpecError: `group` is empty.
    """

    depends_on_batch: ClassVar[bool] = True

    def __init__(self, *, group: str | None = None) -> None:
        if group is not None and not group.strip():
            raise SpecError("must be the name of a column; leave it out to group samples by their prompt.", key="group")
        self.group = group
