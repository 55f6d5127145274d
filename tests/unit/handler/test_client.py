"""What the client encodes and what it refuses, without a server."""

import configparser
import re
import subprocess
import sys
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from examples.movielens.data import load
from examples.movielens.rows import Rows
from tests.support.movielens import jagged
from tests.support.paths import ROOT
from torchrec_handler.client import Client, encode
from torchrec_handler.hashing import to_ids
from torchrec_handler.message.predictor_pb2 import PredictionRequest


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
    weights = torch.ones(rows.values.size)
    embeddings = np.zeros((len(rows), 2, 3))
    body = encode(None, jagged(rows), jagged(rows, weights), embeddings=embeddings)
    request = PredictionRequest.FromString(body)
    assert request.batch_size == 5
    assert not request.id_list_features.weights
    assert len(request.id_score_list_features.weights) == 4 * rows.values.size
    assert request.embedding_features.num_features == 2


@pytest.mark.parametrize(
    "values",
    [["u-1", 2**64 - 1, -3], np.array(["u-1", 2**64 - 1, -3], object)],
)
def test_strings_are_sent_as_their_ids(values: Any) -> None:
    class Jagged:
        keys = staticmethod(lambda: ["user"])
        lengths = staticmethod(lambda: [2, 1])
        weights_or_none = staticmethod(lambda: None)

        def values(self) -> Any:
            return values

    request = PredictionRequest.FromString(encode(None, Jagged()))
    found = np.frombuffer(request.id_list_features.values, "<i8")
    assert found.tolist() == to_ids(["u-1", -1, -3]).tolist()


ALONE = """
import sys
from importlib.abc import MetaPathFinder

HAD = {*sys.stdlib_module_names, "torchrec_handler", "httpx", "numpy", "google", "xxhash"}
HAD |= {"httpcore", "h11", "anyio", "certifi", "idna", "typing_extensions"}  # httpx' own


class NothingElse(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] not in HAD:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NothingElse())
from torchrec_handler.client import Client, encode


class Jagged:
    keys = staticmethod(lambda: ["user", "movie"])
    lengths = staticmethod(lambda: [1, 0, 2, 1])
    values = staticmethod(lambda: [4, 3, 9, 8])
    weights_or_none = staticmethod(lambda: None)


Client("http://127.0.0.1:9/predictions/x").close()
sys.stdout.buffer.write(encode([[0.5], [1.5]], Jagged()))
own = {name for name in sys.modules if name.startswith("torch")}
assert own == {
    "torchrec_handler",
    "torchrec_handler.client",
    "torchrec_handler.errors",
    "torchrec_handler.hashing",
    "torchrec_handler.message",
    "torchrec_handler.message.predictor_pb2",
}, own
"""


def test_it_runs_where_there_is_httpx_numpy_protobuf_and_xxhash_alone() -> None:
    """An application that asks should not have to install torch."""
    done = subprocess.run([sys.executable, "-c", ALONE], check=True, capture_output=True)
    request = PredictionRequest.FromString(done.stdout)
    assert request.batch_size == 2
    assert np.frombuffer(request.id_list_features.values, "<i4").tolist() == [4, 3, 9, 8]


def test_its_types_are_told() -> None:
    """Both packages, and the generated message, whose stub has to be installed too."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    data = settings["options.package_data"]
    for package, folder in (("torchrec_archiver", "archiver"), ("torchrec_handler", "handler")):
        assert "py.typed" in data[package].split()
        assert (ROOT / folder / package / "py.typed").is_file()
    assert "*.pyi" in re.split(r"[,\s]+", data["torchrec_handler.message"])
