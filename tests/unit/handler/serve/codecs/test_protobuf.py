"""TorchRec's own request message."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from grpc_tools import protoc

from tests.support.answered import ask
from tests.support.exact import DENSE, EMBEDDING, INPUTS, SPARSE, WEIGHTED, Exact, predictor
from tests.support.one_request import (
    BODIES,
    PROTOBUF,
    body,
    floats,
    ints,
    message,
    model,
    raw,
    signature,
)
from torchrec_handler.archive.format import InputSignature
from torchrec_handler.errors import InvalidRequest, PredictError
from torchrec_handler.message.predictor_pb2 import PredictionRequest, PredictionResponse
from torchrec_handler.options import Options
from torchrec_handler.serve.codecs.codec import NOTHING
from torchrec_handler.serve.codecs.protobuf import Protobuf
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import Columns

CLIENT = """
syntax = "proto3";
package predictor;
message SparseFeatures { int32 num_features = 1; bytes lengths = 2; bytes values = 3;
  bytes weights = 4; }
message FloatFeatures { int32 num_features = 1; bytes values = 2; }
message PredictionRequest { int32 batch_size = 1; FloatFeatures float_features = 2;
  SparseFeatures id_list_features = 3; SparseFeatures id_score_list_features = 4;
  FloatFeatures embedding_features = 5; SparseFeatures unary_features = 6; }
message FloatVec { repeated float data = 1; }
message PredictionResponse { map<string, FloatVec> predictions = 1; }
"""
"""A client's own copy of the message, in the package that TorchRec gives it."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """What protoc makes of a client's .proto."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "client.proto").write_text(CLIENT)
    assert protoc.main(["protoc", f"-I{folder}", f"--python_out={folder}", "client.proto"]) == 0
    yield load(folder / "client_pb2.py")
    del sys.modules["client_pb2"]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def codec(*inputs: InputSignature) -> Protobuf:
    return Protobuf(model(signature(*(inputs or INPUTS))))


def decode(request: Any, *inputs: InputSignature) -> Columns:
    read, _ = codec(*inputs).decode(body(request.SerializeToString()))
    return read


def encode(answer: Any) -> bytes:
    response = codec().encode(answer, NOTHING)
    assert response.content_type == PROTOBUF
    return response.body


def refusal(request: Any, *inputs: InputSignature) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode(request, *inputs)
    return str(caught.value)


def test_a_clients_bytes_are_served_as_they_are(client: ModuleType) -> None:
    """Built as TorchRec's own client builds them: empty messages for inputs there are none of."""
    request = client.PredictionRequest(
        batch_size=2,
        float_features=client.FloatFeatures(
            num_features=3, values=np.array([[1, 2, 3], [4, 5, 6]], np.float32).tobytes()
        ),
        id_list_features=client.SparseFeatures(
            num_features=3,
            lengths=np.array([1, 1, 0, 2, 0, 0], np.int32).tobytes(),
            values=np.array([7, 8, 3, 4], np.int32).tobytes(),
        ),
        id_score_list_features=client.SparseFeatures(num_features=0),
        embedding_features=client.FloatFeatures(num_features=0),
        unary_features=client.SparseFeatures(num_features=0),
    )
    engine = Engine(
        "ranking",
        predictor(Exact((DENSE, SPARSE), "dict_of_tensor"), DENSE, SPARSE),
        Options(),
    )
    document = (
        b'{"float_features": [[1, 2, 3], [4, 5, 6]], '
        b'"id_list_features.lengths": [1, 1, 0, 2, 0, 0], '
        b'"id_list_features.values": [7, 8, 3, 4]}'
    )
    answered, expected = ask(
        engine,
        [
            raw(request.SerializeToString(), PROTOBUF),
            raw(document, accept=PROTOBUF),
        ],
    )
    assert (answered.status, answered.content_type) == (200, PROTOBUF)
    assert answered.body == expected.body
    response = client.PredictionResponse.FromString(answered.body)
    assert {name: len(vector.data) for name, vector in response.predictions.items()} == {
        "default": 2,
        "flat": 6,
        "pair": 4,
    }


def test_ids_may_be_int64() -> None:
    """As the client in TorchRec's repository sends them, its lengths int32."""
    request = message()
    request.id_list_features.values = np.array([7, 8, 3, 4, 1, 2, 2**40], "<i8").tobytes()
    found = decode(request).arrays
    assert found["id_list_features.values"].tolist() == [7, 8, 3, 4, 1, 2, 2**40]
    assert found["id_list_features.lengths"].tolist() == [1, 1, 2, 0, 0, 3]


class TestDecode:
    def test_arrays_are_views_of_the_messages_bytes(self) -> None:
        for array in decode(message()).arrays.values():
            assert not array.flags.owndata

    def test_embeddings_come_by_row(self) -> None:
        """[B, F, D] in the message, [F, B, D] where columns are decoded."""
        block = np.arange(24).reshape(3, 2, 4)
        request = PredictionRequest(batch_size=3)
        request.embedding_features.num_features = 2
        request.embedding_features.values = floats(block)
        found = decode(request, EMBEDDING).arrays["embedding_features"]
        assert np.array_equal(found, block.transpose(1, 0, 2))

    def test_an_input_of_another_name_is_found_by_its_type(self) -> None:
        """The message has one field a type, and a model names its inputs as it likes."""
        request = message()
        request.ClearField("embedding_features")
        named = [
            InputSignature(name=name, type=entry.type, num_features=entry.num_features)
            for name, entry in {"numbers": DENSE, "ids": SPARSE, "scored": WEIGHTED}.items()
        ]
        assert sorted(decode(request, *named).arrays) == [
            "ids.lengths",
            "ids.values",
            "numbers",
            "scored.lengths",
            "scored.values",
            "scored.weights",
        ]

    def test_a_model_may_weigh_its_id_lists(self) -> None:
        """The name goes before the type."""
        weighted = InputSignature(name="id_list_features", type="weighted_sparse", num_features=1)
        request = PredictionRequest(batch_size=1)
        request.id_list_features.num_features = 1
        request.id_list_features.lengths = ints([2])
        request.id_list_features.values = ints([3, 4])
        request.id_list_features.weights = floats([0.5, 2])
        found = decode(request, weighted).arrays
        assert found["id_list_features.weights"].tolist() == [0.5, 2]

    def test_unary_features_are_an_input_of_their_own(self) -> None:
        unary = InputSignature(name="unary_features", type="sparse", num_features=1)
        request = PredictionRequest(batch_size=2)
        for field in (request.id_list_features, request.unary_features):
            field.num_features = 1
            field.lengths = ints([1, 1])
            field.values = ints([3, 4])
        ids = InputSignature(name="id_list_features", type="sparse", num_features=1)
        assert len(decode(request, ids, unary).arrays) == 4

    @pytest.mark.parametrize("size", range(1, 60, 7))
    def test_refuses_a_truncated_message(self, size: int) -> None:
        with pytest.raises(InvalidRequest) as caught:
            codec().decode(body(BODIES["protobuf"][:-size]))
        assert str(caught.value) == (
            "body: not a PredictionRequest (truncated, or another message)"
        )

    @pytest.mark.parametrize("rows", [0, -1])
    def test_refuses_a_message_without_rows(self, rows: int) -> None:
        request = message()
        request.batch_size = rows
        assert refusal(request) == f"batch_size: received {rows}, expected at least 1"

    def test_refuses_a_field_that_the_model_has_no_input_for(self) -> None:
        assert refusal(message(), DENSE) == (
            "id_list_features: unknown input, expected float_features"
        )

    @pytest.mark.parametrize("part", ["lengths", "values", "weights"])
    def test_refuses_content_without_a_number_of_features(self, part: str) -> None:
        """Dropping it would serve something else than what was sent."""
        request = PredictionRequest(batch_size=1)
        setattr(request.id_score_list_features, part, ints([1]))
        assert refusal(request) == (
            "id_score_list_features.num_features: received 0, expected at least 1"
        )

    def test_refuses_two_fields_for_one_input(self) -> None:
        request = PredictionRequest(batch_size=1)
        for field in (request.id_list_features, request.unary_features):
            field.num_features = 1
            field.lengths = ints([1])
            field.values = ints([3])
        ids = InputSignature(name="ids", type="sparse", num_features=1)
        assert refusal(request, ids) == "unary_features: another field gave ids already"

    def test_refuses_floats_for_an_input_of_ids(self) -> None:
        """Where a model gives a sparse input the name of a field of floats."""
        odd = InputSignature(name="float_features", type="sparse", num_features=3)
        request = PredictionRequest(batch_size=1)
        request.float_features.num_features = 3
        request.float_features.values = floats([1, 2, 3])
        assert refusal(request, odd) == (
            "float_features: the model's input of that name is sparse, the field is dense"
        )

    @pytest.mark.parametrize("part", ["lengths", "values", "weights"])
    def test_refuses_bytes_that_are_no_numbers(self, part: str) -> None:
        request = message()
        field = request.id_score_list_features
        setattr(field, part, getattr(field, part)[:-1])
        size = len(getattr(field, part))
        assert refusal(request) == (
            f"id_score_list_features.{part}: received {size} bytes, expected a multiple of 4"
        )

    def test_refuses_another_number_of_sparse_features(self) -> None:
        request = message()
        request.id_list_features.num_features = 2
        assert refusal(request) == "id_list_features.num_features: received 2, expected 3"

    def test_refuses_another_number_of_dense_values(self) -> None:
        request = message()
        request.float_features.values += floats([1])
        assert refusal(request) == (
            "float_features.values: received 7 numbers, expected 2 rows x 3 features = 6"
        )

    @pytest.mark.parametrize("values", [[], [1] * 9])
    def test_refuses_another_number_of_embedding_values(self, values: list[float]) -> None:
        request = message()
        request.embedding_features.values = floats(values)
        assert refusal(request) == (
            f"embedding_features.values: received {len(values)} numbers, "
            "expected 2 rows x 2 features x 4 wide"
        )


class TestSharing:
    """One row for a batch size of three."""

    def test_dense(self) -> None:
        request = PredictionRequest(batch_size=3)
        request.float_features.num_features = 3
        request.float_features.values = floats([1, 2, 3])
        assert decode(request, DENSE).arrays["float_features"].tolist() == [[1, 2, 3]]

    def test_sparse(self) -> None:
        request = PredictionRequest(batch_size=3)
        request.id_list_features.num_features = 3
        request.id_list_features.lengths = ints([1, 0, 2])
        request.id_list_features.values = ints([7, 8, 9])
        assert decode(request, SPARSE).arrays["id_list_features.lengths"].tolist() == [1, 0, 2]

    def test_embedding(self) -> None:
        request = PredictionRequest(batch_size=3)
        request.embedding_features.num_features = 2
        request.embedding_features.values = floats(range(8))
        found = decode(request, EMBEDDING).arrays["embedding_features"]
        assert found.tolist() == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]

    def test_an_embedding_whose_width_the_model_hides_is_not_shared(self) -> None:
        """Three rows of width 4 and one of width 12 are the same bytes."""
        hidden = InputSignature(name="embedding_features", type="embedding", num_features=1)
        request = PredictionRequest(batch_size=3)
        request.embedding_features.num_features = 1
        request.embedding_features.values = floats(range(12))
        assert decode(request, hidden).arrays["embedding_features"].shape == (1, 3, 4)


class TestEncode:
    def test_every_tensor_is_flat(self) -> None:
        arrays = {"default": np.array([[0.5, 1], [2, 3]]), "mask": np.array([True, False])}
        response = PredictionResponse.FromString(encode(arrays))
        assert {name: list(vector.data) for name, vector in response.predictions.items()} == {
            "default": [0.5, 1, 2, 3],
            "mask": [1, 0],
        }

    def test_what_is_too_large_for_a_float_is_infinite(self) -> None:
        response = PredictionResponse.FromString(encode({"x": np.array([1e39, -1e39])}))
        assert list(response.predictions["x"].data) == [np.inf, -np.inf]

    def test_refuses_what_is_no_number(self) -> None:
        with pytest.raises(PredictError) as caught:
            encode({"default": np.array(["a"])})
        assert str(caught.value) == "output 'default': str32 cannot be written as floats"
