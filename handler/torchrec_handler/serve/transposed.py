"""Blocks of values that lie row by row, column by column instead."""

from typing import Any

import numpy as np
import numpy.typing as npt


def transposed(sizes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Where the values of blocks that are to lie column by column are, [N].

    Args:
        sizes: of the blocks, [rows, columns], which lie row by row; their sum is N.
    """
    flat, taken = sizes.reshape(-1), sizes.T.reshape(-1)
    starts = (flat.cumsum() - flat).reshape(sizes.shape).T.reshape(-1)
    places: npt.NDArray[np.int64] = np.repeat(starts - (taken.cumsum() - taken), taken)
    places += np.arange(places.size)
    return places
