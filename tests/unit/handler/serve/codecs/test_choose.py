"""Which codec reads a request and which writes its answer; what holds for all of them."""

import json
import random
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.answered import ask
from tests.support.exact import (
    CPU,
    DENSE,
    INPUTS,
    SPARSE,
    Exact,
    batching,
    examples,
    predictor,
)
from tests.support.one_request import (
    BODIES,
    COLUMNS,
    INSTANCES,
    JSON,
    PROTOBUF,
    ROWS,
    codecs,
    content_type,
    floats,
    ints,
    message,
    open_inference,
    raw,
    signature,
)
from torchrec_handler.errors import InvalidRequest, PredictError, UnsupportedMediaType
from torchrec_handler.message.predictor_pb2 import PredictionRequest, PredictionResponse
from torchrec_handler.options import Options
from torchrec_handler.serve.batch import combine
from torchrec_handler.serve.codecs.codec import flat
from torchrec_handler.serve.codecs.open_inference import Wanted
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest
from torchrec_handler.serve.validate import Validator

FORMATS = sorted(BODIES)


def engine(result_metadata: str = "dict_of_tensor") -> Engine:
    module = Exact(INPUTS, result_metadata)
    served = predictor(module, *INPUTS, result_metadata=result_metadata)
    return Engine("ranking", served, Options())


class TestFormats:
    @pytest.mark.parametrize("name", FORMATS)
    def test_hold_the_same_arrays(self, name: str) -> None:
        columns, _ = codecs().decode(raw(BODIES[name], content_type(name)))
        assert columns.batch_size in (None, ROWS)
        assert {key: array.tolist() for key, array in columns.arrays.items()} == COLUMNS

    def test_give_the_same_answer(self) -> None:
        requests = [raw(BODIES[name], content_type(name), JSON) for name in FORMATS]
        answers = [json.loads(response.body) for response in ask(engine(), requests)]
        rows, columns, tensors, protobuf = (
            answers[FORMATS.index(name)]
            for name in ("json rows", "json columns", "open inference", "protobuf")
        )
        del rows["predictions"]
        assert rows == columns == protobuf
        assert {output["name"]: output["data"] for output in tensors["outputs"]} == {
            name: np.ravel(values).tolist() for name, values in columns.items()
        }

    @pytest.mark.parametrize("name", FORMATS)
    def test_need_no_content_type(self, name: str) -> None:
        """Over gRPC there is none; what the bytes are tells the format."""
        typed = codecs().decode(raw(BODIES[name], content_type(name)))
        for untyped in ("", "application/octet-stream"):
            columns, reply = codecs().decode(raw(BODIES[name], untyped))
            assert reply.codec.name == typed[1].codec.name == name.replace(" ", "_")
            assert reply.asked == typed[1].asked
            assert {key: array.tolist() for key, array in columns.arrays.items()} == COLUMNS

    @pytest.mark.parametrize("name", ["json rows", "json columns", "open inference"])
    def test_json_may_start_with_white_space(self, name: str) -> None:
        columns, _ = codecs().decode(raw(b"\r\n\t " + BODIES[name], ""))
        assert set(columns.arrays) == set(COLUMNS)

    def test_share_one_row(self) -> None:
        """The same user for three movies, in every format."""
        request = PredictionRequest(batch_size=3)
        request.float_features.num_features = 3
        request.float_features.values = floats([1, 2, 3])
        request.id_list_features.num_features = 3
        request.id_list_features.lengths = ints([1, 1, 1, 1, 1, 1, 0, 0, 0])
        request.id_list_features.values = ints([7, 7, 7, 1, 2, 3])
        columns = {
            "float_features": [1, 2, 3],
            "id_list_features.lengths": [1, 1, 1, 1, 1, 1, 0, 0, 0],
            "id_list_features.values": [7, 7, 7, 1, 2, 3],
        }
        tensors = [
            {"name": name, "shape": [len(data)], "datatype": "INT64", "data": data}
            for name, data in columns.items()
        ]
        shared = {"age": 1, "price": 2, "hour": 3, "user": 7}
        bodies = [
            request.SerializeToString(),
            json.dumps(columns).encode(),
            json.dumps({"inputs": tensors}).encode(),
            json.dumps(
                {"instances": [{"movie": 1}, {"movie": 2}, {"movie": 3}], "shared": shared}
            ).encode(),
        ]
        model = signature(DENSE, SPARSE)
        for body in bodies:
            valid = Validator(model, Options())(codecs(model).decode(raw(body, ""))[0])
            found = combine([valid], batching(DENSE, SPARSE), CPU).inputs
            assert valid.rows == 3
            assert {name: np.asarray(value).tolist() for name, value in found.items()} == {
                "float_features": [[1, 2, 3]] * 3,
                "id_list_features.lengths": [1, 1, 1, 1, 1, 1, 0, 0, 0],
                "id_list_features.values": [7, 7, 7, 1, 2, 3],
            }


class TestContentType:
    @pytest.mark.parametrize(
        ("content_type", "name"),
        [
            ("application/json", "json columns"),
            ("text/json", "json rows"),
            ("application/x-protobuf", "protobuf"),
            ("application/protobuf", "protobuf"),
        ],
    )
    def test_tells_the_codec(self, content_type: str, name: str) -> None:
        columns, _ = codecs().decode(raw(BODIES[name], content_type))
        assert set(columns.arrays) == set(COLUMNS)

    def test_goes_before_what_the_bytes_are(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            codecs().decode(raw(b"{}", PROTOBUF))
        assert str(caught.value) == (
            "body: not a PredictionRequest (truncated, or another message)"
        )

    @pytest.mark.parametrize("content_type", ["text/csv", "image/png", "multipart/form-data"])
    def test_that_no_codec_reads(self, content_type: str) -> None:
        with pytest.raises(UnsupportedMediaType) as caught:
            codecs().decode(raw(b"{}", content_type))
        assert str(caught.value) == (
            f"received content type '{content_type}', expected one of application/json, "
            "text/json, application/x-protobuf, application/protobuf, application/octet-stream"
        )

    def test_that_curl_sends_of_itself_says_how_to_send_another(self) -> None:
        with pytest.raises(UnsupportedMediaType) as caught:
            codecs().decode(raw(b"{}", "application/x-www-form-urlencoded"))
        assert str(caught.value) == (
            "received content type 'application/x-www-form-urlencoded', expected one of "
            "application/json, text/json, application/x-protobuf, application/protobuf, "
            "application/octet-stream; with curl, add -H 'Content-Type: application/json'"
        )

    def test_and_body_both_missing(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            codecs().decode(raw(b"", ""))
        assert str(caught.value) == "body: received nothing, expected a request"


class TestAccept:
    @pytest.mark.parametrize(
        ("name", "accept", "expected"),
        [
            ("json columns", "", "json_columns"),
            ("json rows", "", "json_rows"),
            ("open inference", "", "open_inference"),
            ("protobuf", "", "protobuf"),
            ("json columns", "*/*", "json_columns"),
            ("protobuf", "*/*", "protobuf"),
            ("json rows", "text/html", "json_rows"),
            ("json columns", "application/x-protobuf", "protobuf"),
            ("open inference", "Application/X-Protobuf", "protobuf"),
            ("json columns", "application/octet-stream", "protobuf"),
            ("protobuf", "application/octet-stream", "protobuf"),
            ("protobuf", "application/json", "json_columns"),
            (
                "protobuf",
                "text/html, application/json;q=0.9, application/x-protobuf",
                "json_columns",
            ),
            ("json rows", "application/json", "json_rows"),
            ("open inference", "application/json; charset=utf-8", "open_inference"),
        ],
    )
    def test_names_the_answers_format(self, name: str, accept: str, expected: str) -> None:
        _, reply = codecs().decode(raw(BODIES[name], content_type(name), accept))
        assert reply.codec.name == expected


class TestAnswer:
    """In the request's format, for every result type."""

    def test_as_json(self) -> None:
        (response,) = ask(engine(), [raw(BODIES["json columns"])])
        assert response.content_type == JSON
        assert shape(json.loads(response.body)) == {"default": [2], "flat": [6], "pair": [2, 2]}

    def test_as_json_of_several_tensors(self) -> None:
        (response,) = ask(engine("dict_of_tensors"), [raw(BODIES["json rows"])])
        answer = json.loads(response.body)
        assert [len(part) for part in answer["default"]] == [2, 6]
        assert [len(part) for part in answer["pair"]] == [2, 2, 6]

    def test_as_json_with_masks(self) -> None:
        (response,) = ask(engine("dict_with_mask_tensor"), [raw(BODIES["json rows"])])
        answer = json.loads(response.body)
        assert [list(part) for part in answer.values()] == [["values", "mask"]] * 3
        assert len(answer["flat"]["values"]) == 6
        assert answer["flat"]["mask"] == [False, True, False, False, True]

    @pytest.mark.parametrize(
        ("result_metadata", "expected"),
        [
            ("dict_of_tensor", {"default": [2], "flat": [6], "pair": [2, 2]}),
            (
                "dict_of_tensors",
                {"default.0": [2], "default.1": [6], "pair.0": [2, 2], "pair.1": [2]}
                | {"pair.2": [6]},
            ),
            (
                "dict_with_mask_tensor",
                {"default.values": [2], "default.mask": [5], "flat.values": [6]}
                | {"flat.mask": [5], "pair.values": [2, 2], "pair.mask": [1]},
            ),
        ],
    )
    def test_as_open_inference_and_protobuf(
        self, result_metadata: str, expected: dict[str, list[int]]
    ) -> None:
        tensors, binary = ask(
            engine(result_metadata),
            [raw(BODIES["open inference"]), raw(BODIES["protobuf"], PROTOBUF)],
        )
        assert tensors.content_type == JSON
        document = json.loads(tensors.body)
        assert document["model_name"] == "ranking"
        assert document["id"] == "request 17"
        assert {output["name"]: output["shape"] for output in document["outputs"]} == expected
        assert binary.content_type == PROTOBUF
        response = PredictionResponse.FromString(binary.body)
        assert {name: len(vector.data) for name, vector in response.predictions.items()} == {
            name: int(np.prod(sizes)) for name, sizes in expected.items()
        }
        for output in document["outputs"]:
            assert list(response.predictions[output["name"]].data) == output["data"]

    def test_of_another_kind_than_a_dict_is_json(self) -> None:
        """A method without need_preproc may return anything."""
        for name in FORMATS:
            _, reply = codecs().decode(raw(BODIES[name], content_type(name)))
            response = codecs().encode([np.array([1, 2]), "text"], reply)
            assert (response.content_type, response.body) == (JSON, b'[[1,2],"text"]')

    def test_that_is_no_array_is_refused_by_open_inference(self) -> None:
        _, reply = codecs().decode(raw(BODIES["open inference"]))
        with pytest.raises(PredictError) as caught:
            codecs().encode({"movie": "Amélie"}, reply)
        assert str(caught.value) == "output 'movie': str192 is no Open Inference data type"

    def test_of_bad_requests_is_json_whatever_was_accepted(self) -> None:
        (response,) = ask(engine(), [raw(b"{}", JSON, PROTOBUF)])
        assert (response.status, response.content_type) == (400, JSON)


def shape(answer: dict[str, Any]) -> dict[str, list[int]]:
    return {name: list(np.shape(values)) for name, values in answer.items()}


def test_flat_names_the_parts_of_an_output() -> None:
    array = np.array([1])
    answer = {"a": array, "b": [array, array], "c": {"values": array, "mask": array}, "d": 3}
    assert list(flat(answer)) == ["a", "b.0", "b.1", "c.values", "c.mask", "d"]


class TestArguments:
    """Of a method without need_preproc."""

    def test_of_json_are_its_values(self) -> None:
        body = b'{"instances": [1], "movie": {"id": 3}, "text": "Am\\u00e9lie", "none": null}'
        arguments, reply = codecs().decode_arguments(raw(body))
        assert arguments == {"instances": [1], "movie": {"id": 3}, "text": "Amélie", "none": None}
        answer = {"instances": np.array([1])}
        assert codecs().encode(answer, reply).body == b'{"instances":[1]}'

    @pytest.mark.parametrize("inputs", [[], [1], [{"name": "x"}], {"datatype": 1}, "text"])
    def test_may_be_called_inputs(self, inputs: Any) -> None:
        body = json.dumps({"inputs": inputs}).encode()
        arguments, reply = codecs().decode_arguments(raw(body))
        assert arguments == {"inputs": inputs}
        assert codecs().encode({"a": np.array([1])}, reply).body == b'{"a":[1]}'

    @pytest.mark.parametrize("name", ["open inference", "protobuf"])
    def test_of_other_formats_are_tensors(self, name: str) -> None:
        arguments, reply = codecs().decode_arguments(raw(BODIES[name], content_type(name)))
        assert reply.codec.name == name.replace(" ", "_")
        assert all(isinstance(value, torch.Tensor) for value in arguments.values())
        assert {key: value.tolist() for key, value in arguments.items()} == COLUMNS

    def test_may_be_written_to(self) -> None:
        """A protobuf's arrays are read-only views."""
        arguments, _ = codecs().decode_arguments(raw(BODIES["protobuf"], PROTOBUF))
        arguments["float_features"].add_(1)

    def test_deep_ones_are_read(self) -> None:
        body = b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}"
        arguments, _ = codecs().decode_arguments(raw(body))
        assert list(arguments) == ["a"]


class TestHostileBodies:
    """Small bodies that claim much: refused, and without the memory they claim."""

    IDS = 1_000
    BODIES = (
        json.dumps({"instances": [{}] * 16_000, "shared": {"movie": [1] * IDS}}),
        json.dumps({"instances": [{}] * 16_000, "shared": {"tags": [[1, 1]] * IDS}}),
        json.dumps({"instances": [{}] * 16_000, "shared": {"image": [1] * 100_000}}),
        json.dumps({**COLUMNS, "batch_size": 16_000, "id_list_features.values": [1] * IDS}).replace(
            'lengths": [1, 1, 2, 0, 0, 3]', f'lengths": [{IDS}, 0, 0]'
        ),
        json.dumps({**COLUMNS, "batch_size": 2**62}),
        json.dumps({**COLUMNS, "id_list_features.lengths": [2**62] * 6}),
        json.dumps({**COLUMNS, "embedding_features": [[[0] * 200_000]] * 2}),
        json.dumps({**COLUMNS, "float_features": [[[]] * 100_000]}),
        json.dumps({**COLUMNS, "id_list_features.values": [[]] * 100_000}),
        json.dumps(
            {"inputs": [{**open_inference()["inputs"][0], "shape": [2**31, 2**31]}]},
        ),
        message().SerializeToString() + PredictionRequest(batch_size=2**31 - 1).SerializeToString(),
    )

    @pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
    def test_are_refused_within_memory(self, body: str | bytes) -> None:
        content = body if isinstance(body, bytes) else body.encode()
        served = engine()
        tracemalloc.start()
        try:
            (response,) = ask(served, [raw(content, "")])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert response.status in (400, 413), response.body
        assert peak < 64 * 2**20

    @pytest.mark.parametrize("start", [b'{"float_features": ', b'{"instances": ', b'{"inputs": '])
    @pytest.mark.parametrize("opening", [b"[", b'{"a":'])
    @pytest.mark.parametrize("depth", [10_000, 500])
    def test_deep_ones_are_refused(self, start: bytes, opening: bytes, depth: int) -> None:
        closing = b"]" if opening == b"[" else b"}"
        body = start + opening * depth + b"1" + closing * depth + b"}"
        (response,) = ask(engine(), [raw(body)])
        assert response.status == 400, response.body


TENSOR_KEYS = ("name", "shape", "datatype", "data", "id")
KEYS = ("genres", "instances", "shared", "inputs", "batch_size", "x", *TENSOR_KEYS)

ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*COLUMNS, "instances", "shared", "FP32", "INT64"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*COLUMNS, *INSTANCES[0], *KEYS]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


class TestFuzz:
    """Whatever the bytes are: an answer or an error of the request, and nothing raised inside."""

    @examples(0.4)
    @given(st.binary(max_size=200), st.sampled_from([JSON, PROTOBUF, ""]))
    def test_random_bytes(self, body: bytes, content_type: str) -> None:
        answered_or_refused(raw(body, content_type))

    @examples(0.6)
    @given(ANY_JSON)
    def test_random_json(self, document: Any) -> None:
        answered_or_refused(raw(json.dumps(document).encode()))

    @examples(0.6)
    @given(st.sampled_from(["json columns", "json rows", "open inference"]), ANY_JSON, st.data())
    def test_good_json_with_a_part_replaced(
        self, name: str, part: Any, data: st.DataObject
    ) -> None:
        document = json.loads(BODIES[name])
        places = list(places_of(document))
        where, key = places[data.draw(st.integers(0, len(places) - 1))]
        where[key] = part
        answered_or_refused(raw(json.dumps(document).encode()))

    @examples()
    @given(st.sampled_from(FORMATS), st.integers(0, 2**32))
    def test_good_bodies_with_bytes_changed(self, name: str, seed: int) -> None:
        answered_or_refused(raw(mutated(BODIES[name], random.Random(seed)), content_type(name)))  # noqa: S311  reproducible mutations

    def test_the_bodies_that_are_changed_are_good(self) -> None:
        for name in FORMATS:
            (response,) = ask(ENGINE, [raw(BODIES[name], content_type(name))])
            assert response.status == 200


ENGINE = engine()


def answered_or_refused(request: RawRequest) -> None:
    (response,) = ask(ENGINE, [request])
    assert response.status in (200, 400, 413), response.body


def places_of(node: Any) -> Any:
    """Every place of a document that holds a value: its container and key."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, key
        if isinstance(value, dict | list):
            yield from places_of(value)


def mutated(body: bytes, chance: random.Random) -> bytes:
    """One to four changes: bytes replaced, put in, taken out, doubled, or the end cut off."""
    content = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        at, end = sorted(chance.randrange(len(content) + 1) for _ in range(2))
        end = min(end, at + 8)
        change = chance.randrange(5)
        if change == 0:
            content[at:end] = chance.randbytes(end - at)
        elif change == 1:
            content[at:at] = chance.choice([b"0", b"-", b"9" * 30, b"[", b"]", b",", b'"', b"\xff"])
        elif change == 2:
            del content[at:end]
        elif change == 3:
            content[at:at] = content[at:end]
        else:
            del content[max(at, 1) :]
    return bytes(content)


NESTED = (
    ("id_list_features.values", [7, [8, 3], [], 4, [1, [2]], 3, []]),
    ("id_list_features.lengths", [1, [1], 2, 0, 0, 3]),
    ("float_features", [[31, [9.5], 23], [42, 8, 7]]),
    ("embedding_features", [[[1, 2, 3, [4]], [5, 6, 7, 8]], [[0.5, 0, 0, 0], [0, 0, 0, 1]]]),
)


@pytest.mark.parametrize(("name", "nested"), NESTED)
@pytest.mark.parametrize("is_tensor", [False, True])
def test_a_list_where_others_hold_a_number_is_refused(
    name: str,
    nested: Any,
    is_tensor: bool,  # noqa: FBT001
) -> None:
    """simdjson reads through it, and finds as many numbers as there should be."""
    where = name
    document: dict[str, Any] = {**COLUMNS, name: nested}
    if is_tensor:
        document = open_inference()
        position = [tensor["name"] for tensor in document["inputs"]].index(name)
        document["inputs"][position]["data"] = nested
        where = f"inputs[{position}] ({name}).data"
    with pytest.raises(InvalidRequest) as caught:
        codecs().decode(raw(json.dumps(document).encode()))
    assert str(caught.value) == (
        f"{where}: its lists have different lengths, expected rows of one length"
    )


def test_brackets_elsewhere_are_no_lists() -> None:
    document = {**open_inference(), "id": "[[[", "outputs": [{"name": "default"}], "more": [[]]}
    columns, reply = codecs().decode(raw(json.dumps(document).encode()))
    assert reply.asked == Wanted(id="[[[", outputs=["default"])
    assert columns.arrays["float_features"].tolist() == COLUMNS["float_features"]
