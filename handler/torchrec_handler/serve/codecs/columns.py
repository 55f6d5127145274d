"""Which arrays a body may hold, told by the signature once, used by every codec."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torchrec_handler.archive.format import Signature
from torchrec_handler.options import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One array of a body."""

    is_integer: bool
    most: int | None
    """How many elements it may hold; None where the model alone knows its width."""
    limit: str
    """How `most` comes about, for messages."""
    features: tuple[str, ...] = ()
    """[F] names, where something is said of raw values."""
    hashed: tuple[bool, ...] = ()
    """Of values, [F]: whose ids may be strings and any integers of 64 bits; empty for nobody's."""
    lengths: str = ""
    """Of such values: the array that tells whose they are."""
    defaults: tuple[bool, ...] = ()
    """Of a dense input, [F]: whose numbers may be missing; empty for nobody's."""


def columns(signature: Signature, limits: Limits) -> Mapping[str, Column]:
    """Every array by name: `NAME`, or `NAME.lengths`, `NAME.values` and `NAME.weights`."""
    found = {}
    rows, ids = limits.rows_per_request, limits.ids_per_request
    for entry in signature.inputs:
        sizes = {"features": entry.num_features}
        if entry.type == "embedding":
            sizes["wide"] = entry.width
        known = [size for size in sizes.values() if size is not None]
        most = rows * math.prod(known) if len(known) == len(sizes) else None
        limit = " x ".join(["limits.rows_per_request", *(f"{sizes[key]} {key}" for key in sizes)])
        if entry.type in ("dense", "embedding"):
            column = Column(is_integer=False, most=most, limit=limit)
            if entry.defaults:
                may_miss = tuple(one is not None for one in entry.defaults)
                column = replace(column, features=entry.features, defaults=may_miss)
            found[entry.name] = column
            continue
        found[f"{entry.name}.lengths"] = Column(is_integer=True, most=most, limit=limit)
        limit = "limits.ids_per_request"
        column = Column(is_integer=True, most=ids, limit=limit)
        if entry.hashed:
            hashed = tuple(one is not None for one in entry.hashed)
            lengths = f"{entry.name}.lengths"
            column = replace(column, features=entry.features, hashed=hashed, lengths=lengths)
        found[f"{entry.name}.values"] = column
        if entry.type == "weighted_sparse":
            found[f"{entry.name}.weights"] = Column(is_integer=False, most=ids, limit=limit)
    return found
