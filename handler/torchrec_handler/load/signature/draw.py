"""Inputs that a signature allows, drawn: what a model is tried on before anybody asks it.

Letters in shapes: B rows, F features, D width, N ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from torchrec_handler.archive.format import InputSignature, Signature


@dataclass(frozen=True, kw_only=True)
class Style:
    """How long drawn lists of ids are."""

    least: int
    most: int
    alike: Literal["none", "input", "all"] = "none"
    """In each row as long as those of the other features: of the same input, or of all inputs."""
    last: int = 0
    """Those of the last row are so long, or as long as there are weights for; 0: as the others."""


STYLES = (
    Style(least=0, most=3),
    Style(least=1, most=3),
    Style(least=0, most=1),
    Style(least=1, most=3, alike="input"),
    Style(least=1, most=3, alike="all"),
    Style(least=1, most=1),
)
"""In the order in which they are tried: not every model takes empty lists, or lists of any length
beside each other."""


def open_inputs(signature: Signature) -> list[str]:
    """Inputs whose number of features, or width, only the model knows: nothing can be drawn."""
    return [
        entry.name
        for entry in signature.inputs
        if entry.num_features is None or (entry.type == "embedding" and entry.width is None)
    ]


def draw_lengths(
    inputs: Sequence[InputSignature], rows: int, style: Style, generator: np.random.Generator
) -> dict[str, npt.NDArray[np.int32]]:
    """Draw lengths [F, B] of every sparse input; the longest list of each feature is `style.most`.

    F is 1 where the signature leaves it open.
    """

    def draw(features: int) -> npt.NDArray[np.int32]:
        lengths = generator.integers(style.least, style.most + 1, (features, rows), dtype=np.int32)
        lengths[np.arange(features), generator.integers(0, rows, features)] = style.most
        return lengths

    common = draw(1)
    most = [longest for entry in inputs for longest in entry.longest if longest is not None]
    last = min([style.last, *most])
    drawn = {}
    for entry in inputs:
        if "sparse" in entry.type:
            features = entry.num_features or 1
            lengths = {"none": draw(features), "input": draw(1), "all": common}[style.alike]
            drawn[entry.name] = np.repeat(lengths, features // len(lengths), axis=0)
            if style.last:
                drawn[entry.name][:, -1] = last
    return drawn


def draw_inputs(
    inputs: Sequence[InputSignature], rows: int, style: Style, generator: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Draw a batch, as a predict module takes it but for embedding inputs, [F, B, D] each.

    Ids are 0 and 1: they exist in nearly every table.
    """
    lengths = draw_lengths(inputs, rows, style, generator)
    drawn: dict[str, npt.NDArray[np.generic]] = {}
    for entry in inputs:
        features = entry.num_features or 1
        if entry.type == "dense":
            drawn[entry.name] = generator.standard_normal((rows, features), dtype=np.float32)
        elif entry.type == "embedding":
            shape = (features, rows, entry.width or 1)
            drawn[entry.name] = generator.standard_normal(shape, dtype=np.float32)
        else:
            of_input = lengths[entry.name]
            limits = [2 if limit is None else min(limit, 2) for limit in entry.ids_below]
            below = np.repeat(limits or [2] * features, of_input.sum(axis=1))
            drawn[f"{entry.name}.lengths"] = of_input.reshape(-1)
            dtype = np.int64 if entry.is_wide else np.int32
            drawn[f"{entry.name}.values"] = generator.integers(0, below, dtype=dtype)
            if entry.type == "weighted_sparse":
                drawn[f"{entry.name}.weights"] = generator.random(below.size, dtype=np.float32)
    return {name: torch.from_numpy(value) for name, value in drawn.items()}
