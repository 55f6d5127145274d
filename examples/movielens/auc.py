"""The one figure by which training, quantizing and serving are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def auc(label: NDArray[np.bool_], score: NDArray[np.floating[Any]]) -> float:
    """Return the area under the ROC curve: how often a click scores above a non-click.

    Args:
        label: [B], true for a click.
        score: [B]; rows with equal scores count as half above each other.

    Raises:
        ValueError: when there is no click or nothing but clicks.
    """
    clicks = int(label.sum())
    others = len(label) - clicks
    if not clicks or not others:
        msg = f"received {clicks} clicks in {len(label)} rows, expected both clicks and others"
        raise ValueError(msg)
    _, position, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[position]
    return float((rank[label].sum() - clicks * (clicks + 1) / 2) / (clicks * others))
