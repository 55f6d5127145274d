"""The model as every peer runs it: TorchRec's own quantized module, called in float32.

Shapes: B rows, F features, D width, N ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torchrec.inference.modules import quantize_inference_model
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.criteo import DENSE_FEATURES, CriteoConfig, build_model, make_weights

CONFIG = CriteoConfig(rows=(100_000,) * 26)
FEATURES = len(CONFIG.rows)
SCALE = 2.0
"""Of the tables' weights: with it, scores of random rows have a standard deviation of 0.14."""

ROWS_PER_CALL = 1024
"""At most, where requests are put together: in a call with 16,000 a row takes 1.5 times as long."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a request holds."""

    dense: npt.NDArray[np.float32]
    """[B, 13]."""
    lengths: npt.NDArray[np.int32]
    """[F * B], feature by feature."""
    values: npt.NDArray[np.int32]
    """[N]."""

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Read a decoded JSON body."""
        return cls(
            dense=np.array(document["float_features"], dtype=np.float32),
            lengths=np.array(document["id_list_features.lengths"], dtype=np.int32),
            values=np.array(document["id_list_features.values"], dtype=np.int32),
        )

    @property
    def rows(self) -> int:
        """B."""
        return len(self.dense)


class StockModel:
    """The quantized module, its weights read from a checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        torch.set_num_threads(1)
        self._features = CONFIG.features
        self._model = build_model(CONFIG, "meta")
        weights = torch.load(checkpoint, weights_only=True)
        # The tables' rows overlap in the file; the quantization operator needs them whole.
        whole = {name: value.contiguous() for name, value in weights.items()}
        self._model.load_state_dict(whole, assign=True)
        quantize_inference_model(self._model.eval())

    def __call__(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """Score rows: [B]."""
        with torch.inference_mode():
            sparse = KeyedJaggedTensor(
                keys=self._features,
                values=torch.from_numpy(inputs.values),
                lengths=torch.from_numpy(inputs.lengths),
            )
            logits = self._model(torch.from_numpy(inputs.dense), sparse)
            scores: npt.NDArray[np.float32] = torch.sigmoid(logits).reshape(-1).numpy()
        return scores


def score(model: StockModel, parts: Sequence[Inputs]) -> list[npt.NDArray[np.float32]]:
    """The scores of each request, of as few calls as `ROWS_PER_CALL` allows."""
    groups: list[list[Inputs]] = []
    rows = ROWS_PER_CALL
    for part in parts:
        if rows + part.rows > ROWS_PER_CALL:
            groups.append([])
            rows = 0
        groups[-1].append(part)
        rows += part.rows
    return [scores for group in groups for scores in cut(model(merge(group)), group)]


def merge(parts: Sequence[Inputs]) -> Inputs:
    """Make one batch of several requests."""
    if len(parts) == 1:
        return parts[0]
    lengths = [part.lengths.reshape(FEATURES, -1) for part in parts]
    feature = np.concatenate([np.repeat(np.arange(FEATURES), one.sum(axis=1)) for one in lengths])
    order = np.argsort(feature, kind="stable")
    return Inputs(
        dense=np.concatenate([part.dense for part in parts]),
        lengths=np.concatenate(lengths, axis=1).reshape(-1),
        values=np.concatenate([part.values for part in parts])[order],
    )


def cut(scores: npt.NDArray[np.float32], parts: Sequence[Inputs]) -> list[npt.NDArray[np.float32]]:
    """Cut a batch's scores into those of each request."""
    return np.split(scores, np.cumsum([part.rows for part in parts])[:-1])


def scaled_weights() -> dict[str, torch.Tensor]:
    """The weights that all servers serve; different rows get different scores."""
    weights = make_weights(CONFIG)
    for value in weights.values():
        if value.shape == (CONFIG.rows[0], CONFIG.width):
            # Rows overlap in memory: each number is scaled once.
            value.as_strided((value.shape[0] + value.shape[1] - 1,), (1,)).mul_(SCALE)
    return weights


def random_inputs(rows: int, random: np.random.Generator) -> Inputs:
    """Rows with one id a feature, anywhere in the tables."""
    return Inputs(
        dense=random.standard_normal((rows, DENSE_FEATURES), dtype=np.float32),
        lengths=np.ones(FEATURES * rows, dtype=np.int32),
        values=random.integers(0, CONFIG.rows[0], FEATURES * rows).astype(np.int32),
    )
