"""What the client encodes and what it refuses, without a server."""

import re
import subprocess
import sys

import httpx
import numpy as np
import pytest
import torch

from examples.movielens.data import load
from examples.movielens.rows import Rows
from tests.support.movielens import jagged
from tests.support.paths import ROOT
from torchrec_handler.client import Client, encode


@pytest.fixture(scope="module")
def rows() -> Rows:
    return load().test().take(slice(30, 35))


def test_no_server_is_the_http_librarys_error() -> None:
    with Client("http://127.0.0.1:9/predictions/x") as client, pytest.raises(httpx.ConnectError):
        client.predict(b"")


def test_encode_names_what_disagrees(rows: Rows) -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            "received dense of 1 rows, id_list_features of 5 rows, "
            "expected inputs of one number of rows"
        ),
    ):
        encode(rows.dense[:1], jagged(rows))
    with pytest.raises(ValueError, match="id_list_features: received two KeyedJaggedTensors"):
        encode(rows.dense, jagged(rows), jagged(rows))
    with pytest.raises(ValueError, match=re.escape("dense: received shape (6,), expected 2 dim")):
        encode(rows.dense[0], jagged(rows))
    with pytest.raises(ValueError, match="received no input"):
        encode(None)


def test_weights_choose_the_input(rows: Rows) -> None:
    from torchrec_handler.message.predictor_pb2 import (  # noqa: PLC0415
        PredictionRequest,
    )

    weights = torch.ones(rows.values.size)
    embeddings = np.zeros((len(rows), 2, 3))
    body = encode(None, jagged(rows), jagged(rows, weights), embeddings=embeddings)
    request = PredictionRequest.FromString(body)
    assert request.batch_size == 5
    assert not request.id_list_features.weights
    assert len(request.id_score_list_features.weights) == 4 * rows.values.size
    assert request.embedding_features.num_features == 2


def test_it_needs_no_serving_dependency() -> None:
    """An application that asks should not have to install torch."""
    code = (
        "import torchrec_handler.client, sys;"
        "assert not {'torch', 'torchrec', 'ts', 'simdjson'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "handler")
