"""The order in which ``compute_metrics`` and ``predict`` get the outputs of a batch: TRL's."""

from __future__ import annotations

from typing import Any

import torch


def chosen_first(outputs: Any, groups: torch.Tensor) -> Any:
    """Outputs with the chosen rows of a batch of preference pairs first and then the rejected ones, as TRL's batches have them.

    Rows of other data, of which there are not two for each judgement, stay as they are.

    Args:
        outputs: A tensor [N, ...], or several; anything else is returned as it is.
        groups: int [N], the judgement of each row, ascending; the chosen row is the first of its two.

    >>> chosen_first(torch.tensor([1.0, -1.0, 2.0, -2.0]), torch.tensor([0, 0, 1, 1])).tolist()
    [1.0, 2.0, -1.0, -2.0]
    """
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(chosen_first(output, groups) for output in outputs)
    rows = len(groups)
    in_pairs = rows > 0 and rows % 2 == 0 and bool((torch.bincount(groups.cpu()) == 2).all())
    if not in_pairs or not isinstance(outputs, torch.Tensor) or outputs.shape[:1] != (rows,):
        return outputs
    return torch.cat([outputs[0::2], outputs[1::2]])
