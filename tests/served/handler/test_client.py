"""The client, against a real server."""

import numpy as np
import pytest
import torch

from examples.movielens.data import load
from examples.movielens.rows import Rows
from tests.support.movielens import jagged
from torchrec_archiver.server import TorchServe
from torchrec_handler.client import Client, encode
from torchrec_handler.errors import AnswerError


@pytest.fixture(scope="module")
def rows() -> Rows:
    return load().test().take(slice(30, 35))


def test_tensors_go_in_and_arrays_come_out(movielens: TorchServe, rows: Rows) -> None:
    url = f"{movielens.inference.base_url}/predictions/movielens"
    with Client(url, token="unused here", timeout=30) as client:  # noqa: S106
        answer = client.predict(encode(torch.from_numpy(rows.dense), jagged(rows)))
    expected = movielens.predict("movielens", dict(rows.request())).json()
    np.testing.assert_allclose(answer["default"], expected["default"], atol=1e-7, rtol=0)


def test_an_error_is_raised_with_status_and_type(movielens: TorchServe, rows: Rows) -> None:
    with Client(f"{movielens.inference.base_url}/predictions/movielens") as client:
        with pytest.raises(AnswerError) as caught:
            client.predict(encode(rows.dense, jagged(rows)), qualname="rank")
        assert (caught.value.status, caught.value.type) == (404, "UnknownQualname")
        assert str(caught.value) == "qualname: received 'rank', expected one of forward"
    with Client(f"{movielens.inference.base_url}/predictions/nobody") as client:
        with pytest.raises(AnswerError) as caught:
            client.predict(encode(rows.dense, jagged(rows)))
        assert (caught.value.status, caught.value.type) == (404, "ModelNotFoundException")
