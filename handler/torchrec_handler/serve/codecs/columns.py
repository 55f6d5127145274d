"""Which arrays a body may hold, told by the signature once, used by every codec."""

from collections.abc import Mapping
from dataclasses import dataclass

from torchrec_handler.archive import Signature
from torchrec_handler.options import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One array of a body."""

    is_integer: bool
    most: int
    """How many elements its outermost list may hold."""
    limit: str
    """The option that says so."""


def columns(signature: Signature, limits: Limits) -> Mapping[str, Column]:
    """Every array by name: `NAME`, or `NAME.lengths`, `NAME.values` and `NAME.weights`."""
    found = {}
    rows, ids = limits.rows_per_request, limits.ids_per_request
    for entry in signature.inputs:
        if entry.type in ("dense", "embedding"):
            # Outermost are the rows of a dense input (or one row's features), and the features
            # of an embedding input.
            most = max(rows, entry.num_features or 0)
            found[entry.name] = Column(is_integer=False, most=most, limit="rows_per_request")
            continue
        most = rows * entry.num_features if entry.num_features else ids
        lengths = Column(is_integer=True, most=most, limit="rows_per_request")
        found[f"{entry.name}.lengths"] = lengths
        values = Column(is_integer=True, most=ids, limit="ids_per_request")
        found[f"{entry.name}.values"] = values
        if entry.type == "weighted_sparse":
            weights = Column(is_integer=False, most=ids, limit="ids_per_request")
            found[f"{entry.name}.weights"] = weights
    return found
