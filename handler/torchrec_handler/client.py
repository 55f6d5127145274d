"""A client for Python programs that hold tensors; needs neither torch nor TorchServe.

Shapes: B rows, F features, D width, N ids.
"""

from types import TracebackType
from typing import Any, Protocol, Self

import httpx
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from torchrec_handler.errors import AnswerError
from torchrec_handler.hashing import to_ids
from torchrec_handler.message.predictor_pb2 import (
    FloatFeatures,
    PredictionRequest,
    PredictionResponse,
    SparseFeatures,
)

PROTOBUF = "application/x-protobuf"
QUALNAME_HEADER = "X-TorchRec-Qualname"


class Jagged(Protocol):
    """What is read of a KeyedJaggedTensor; torchrec's own has it."""

    def keys(self) -> list[str]:
        """[F] feature names."""

    def lengths(self) -> Any:
        """[F * B], feature by feature."""

    def values(self) -> Any:
        """[N] ids; strings too where the feature is hashed."""

    def weights_or_none(self) -> Any:
        """[N] weights, or None."""


def encode(
    dense: npt.ArrayLike | None, *sparse: Jagged, embeddings: npt.ArrayLike | None = None
) -> bytes:
    """Encode a request as TorchRec's own message, `PredictionRequest`.

    Args:
        dense: [B, F] numbers, for `float_features`; None for a model without.
        sparse: KeyedJaggedTensors of B rows; the one with weights is for
            `id_score_list_features`, the one without for `id_list_features`.
        embeddings: [B, F, D] numbers, for `embedding_features`.

    Raises:
        ValueError: nothing tells B, two inputs disagree about it, or two KeyedJaggedTensors are
            for the same input.
    """
    request = PredictionRequest()
    rows: dict[str, int] = {}
    if dense is not None:
        block = np.asarray(dense, dtype="<f4")
        _expect_rank("dense", block, 2)
        request.float_features.CopyFrom(
            FloatFeatures(num_features=block.shape[1], values=block.tobytes())
        )
        rows["dense"] = block.shape[0]
    if embeddings is not None:
        block = np.asarray(embeddings, dtype="<f4")
        _expect_rank("embeddings", block, 3)
        request.embedding_features.CopyFrom(
            FloatFeatures(num_features=block.shape[1], values=block.tobytes())
        )
        rows["embeddings"] = block.shape[0]
    for jagged in sparse:
        weights = jagged.weights_or_none()
        name = "id_list_features" if weights is None else "id_score_list_features"
        if request.HasField(name):
            message = f"{name}: received two KeyedJaggedTensors, expected one"
            raise ValueError(message)
        lengths = np.asarray(jagged.lengths(), dtype="<i4")
        features = len(jagged.keys())
        getattr(request, name).CopyFrom(
            SparseFeatures(
                num_features=features,
                lengths=lengths.tobytes(),
                values=_ids(name, jagged.values()).tobytes(),
                weights=b"" if weights is None else np.asarray(weights, dtype="<f4").tobytes(),
            )
        )
        rows[name] = lengths.size // features if features else 0
    if len(set(rows.values())) != 1:
        received = ", ".join(f"{name} of {count} rows" for name, count in rows.items())
        message = f"received {received or 'no input'}, expected inputs of one number of rows"
        raise ValueError(message)
    request.batch_size = next(iter(rows.values()))
    return request.SerializeToString()


class Client:
    """Asks one model. Keeps its connections, so make one and share it between threads."""

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 10.0) -> None:
        """Connect at the first call.

        Args:
            url: of the model: `http://HOST:8080/predictions/NAME`, with `/VERSION` for one of it.
            token: TorchServe's inference token, where it wants one.
            timeout: seconds for each step of a call.
        """
        headers = {"Content-Type": PROTOBUF, "Accept": PROTOBUF}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._url = url
        self._http = httpx.Client(headers=headers, timeout=timeout)

    def predict(
        self, body: bytes, *, qualname: str | None = None
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Send what `encode` gave.

        Args:
            body: the message.
            qualname: the method to call; the model's `forward` when not given.

        Returns:
            Output name -> its values, flat float32, k a row where the model gives k.

        Raises:
            AnswerError: the server answered with an error, or with something else.
            httpx.HTTPError: there was no answer.
        """
        headers = {} if qualname is None else {QUALNAME_HEADER: qualname}
        answer = self._http.post(self._url, content=body, headers=headers)
        if answer.status_code != httpx.codes.OK:
            raise _error(answer)
        try:
            response = PredictionResponse.FromString(answer.content)
        except DecodeError:
            message = f"{self._url}: answered {answer.status_code} without a PredictionResponse"
            raise AnswerError(message, answer.status_code, "DecodeError") from None
        return {
            name: np.array(vector.data, dtype=np.float32)
            for name, vector in response.predictions.items()
        }

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _ids(name: str, values: Any) -> npt.NDArray[Any]:
    """As int32, which the servers that read this message take; int64 where that is too narrow.

    A string is sent as its id, which is what the server makes of it too.
    """
    ids = np.asarray(values)
    if ids.dtype.kind in "SU" or (ids.dtype.kind == "O" and str in set(map(type, ids.flat))):
        ids = to_ids(values)
    if not ids.size or (ids.min() >= -(2**31) and ids.max() < 2**31):
        return ids.astype("<i4")
    if ids.min() < -(2**63) or ids.max() >= 2**63:
        message = f"{name}: received ids {ids.min()} to {ids.max()}, expected ids of 64 bits"
        raise ValueError(message)
    return ids.astype("<i8")


def _expect_rank(name: str, block: npt.NDArray[Any], rank: int) -> None:
    if block.ndim != rank:
        message = f"{name}: received shape {block.shape}, expected {rank} dimensions, rows first"
        raise ValueError(message)


def _error(answer: httpx.Response) -> AnswerError:
    try:
        body = answer.json()
        return AnswerError(str(body["message"]), answer.status_code, str(body["type"]))
    except (ValueError, KeyError, TypeError):
        return AnswerError(answer.text[:500], answer.status_code, "HTTP")
