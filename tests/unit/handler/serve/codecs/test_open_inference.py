"""Open Inference Protocol v2 in its JSON form."""

import json
from typing import Any

import numpy as np
import pytest

from tests.support.exact import DENSE, SPARSE
from tests.support.one_request import (
    codecs,
    model,
    open_inference,
    raw,
    signature,
)
from torchrec_handler.archive.format import InputSignature
from torchrec_handler.errors import InvalidRequest, PredictError, RequestError, RequestTooLarge
from torchrec_handler.serve.codecs.codec import NOTHING
from torchrec_handler.serve.codecs.open_inference import ANSWERED, OpenInference, Wanted


def tensor(**changes: Any) -> dict[str, Any]:
    """`float_features` of two rows; None leaves a key out."""
    whole = {"name": DENSE.name, "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def decode(*tensors: Any, **limits: int) -> np.ndarray[Any, Any]:
    body = json.dumps({"inputs": tensors}).encode()
    columns, _ = codecs(signature(DENSE, SPARSE), **limits).decode(raw(body))
    return columns.arrays[DENSE.name]


def refusal(*tensors: Any, kind: type[RequestError] = InvalidRequest, **limits: int) -> str:
    with pytest.raises(kind) as caught:
        decode(*tensors, **limits)
    return str(caught.value)


class TestDecode:
    @pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
    def test_data_may_be_flat_or_nested(self, data: Any) -> None:
        assert decode(tensor(data=data)).tolist() == [[1, 2, 3], [4, 5, 6]]

    @pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64", "INT8", "UINT64"])
    def test_floats_may_be_of_any_type_of_number(self, datatype: str) -> None:
        assert decode(tensor(datatype=datatype)).dtype == np.float64

    def test_gives_the_id_back(self) -> None:
        _, reply = codecs().decode(raw(json.dumps(open_inference()).encode()))
        assert reply.codec.name == "open_inference"
        assert reply.asked == Wanted(id="request 17")

    def test_reads_past_what_it_has_no_use_for(self) -> None:
        """Clients send parameters."""
        document = {
            "parameters": {"priority": 1},
            "inputs": [tensor(parameters={"binary_data_size": 0})],
            "outputs": [{"name": "default", "parameters": {"binary_data": False}}],
        }
        columns, _ = codecs(signature(DENSE)).decode(raw(json.dumps(document).encode()))
        assert list(columns.arrays) == [DENSE.name]

    def test_ids_may_be_none(self) -> None:
        body = {
            "inputs": [
                {"name": "id_list_features.lengths", "shape": [3], "datatype": "INT32"}
                | {"data": [0, 0, 0]},
                {"name": "id_list_features.values", "shape": [0], "datatype": "INT64", "data": []},
            ]
        }
        columns, _ = codecs(signature(SPARSE)).decode(raw(json.dumps(body).encode()))
        assert columns.arrays["id_list_features.values"].tolist() == []

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({}, "inputs: received an object, expected an array of tensors"),
            ([3], "inputs[0]: received 3, expected a tensor object"),
            (
                [tensor(name=None)],
                "inputs[0].name: missing, expected name, shape, datatype and data",
            ),
            (
                [tensor(), tensor(name="float_feature")],
                (
                    'inputs[1].name: received "float_feature", expected one of float_features, '
                    "id_list_features.lengths, id_list_features.values"
                ),
            ),
            (
                [tensor(name=["float_features"])],
                (
                    "inputs[0].name: received an array, expected one of float_features, "
                    "id_list_features.lengths, id_list_features.values"
                ),
            ),
            ([tensor(), tensor()], "inputs[1].name: float_features is given twice"),
        ],
    )
    def test_refuses_what_is_no_list_of_known_tensors(self, inputs: Any, message: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            codecs(signature(DENSE, SPARSE)).decode(raw(json.dumps({"inputs": inputs}).encode()))
        assert str(caught.value) == message

    @pytest.mark.parametrize("key", ["shape", "datatype", "data"])
    def test_refuses_a_tensor_that_lacks_a_key(self, key: str) -> None:
        assert refusal(tensor(**{key: None})) == (
            f"inputs[0] (float_features).{key}: missing, expected name, shape, datatype and data"
        )

    @pytest.mark.parametrize(
        ("datatype", "received"), [("BYTES", '"BYTES"'), ("fp32", '"fp32"'), (["FP32"], "an array")]
    )
    def test_refuses_a_datatype_that_is_no_number(self, datatype: Any, received: str) -> None:
        assert refusal(tensor(datatype=datatype)) == (
            f"inputs[0] (float_features).datatype: received {received}, expected INT8, INT16, "
            "INT32, INT64, UINT8, UINT16, UINT32, UINT64, FP16, FP32, FP64, BF16"
        )

    def test_refuses_ids_that_are_floats(self) -> None:
        ids = {"name": "id_list_features.values", "shape": [1], "datatype": "FP32", "data": [1]}
        assert refusal(ids) == (
            'inputs[0] (id_list_features.values).datatype: received "FP32", expected INT8, INT16, '
            "INT32, INT64, UINT8, UINT16, UINT32, UINT64"
        )

    @pytest.mark.parametrize(
        ("shape", "received"),
        [
            (6, "6"),
            ([], "an array"),
            ([2, "3"], "an array"),
            ([2, 3.0], "an array"),
            ([2, -3], "an array"),
            ([True, 6], "an array"),
            ([1, 1, 2, 3], "an array"),
            ([1] * 100, "an array"),
        ],
    )
    def test_refuses_a_shape_that_no_input_has(self, shape: Any, received: str) -> None:
        assert refusal(tensor(shape=shape)) == (
            f"inputs[0] (float_features).shape: received {received}, "
            "expected a list of 1 to 3 sizes"
        )

    @pytest.mark.parametrize(
        ("data", "received"),
        [
            ([1, 2, 3], "3"),
            ([1, 2, 3, 4, 5, 6, 7], "7"),
            ([[1, 2], [3, 4], [5, 6]], "3 x 2"),
            ([[[1, 2, 3], [4, 5, 6]]], "1 x 2 x 3"),
            ([], "0"),
        ],
    )
    def test_refuses_data_of_another_shape(self, data: Any, received: str) -> None:
        assert refusal(tensor(data=data)) == (
            f"inputs[0] (float_features).data: received {received} elements, "
            "expected 2 x 3 (its shape)"
        )

    @pytest.mark.parametrize("shape", [[0, 2**40], [2**62, 0, 2**62], [0, 3], [0]])
    def test_data_without_elements_comes_without_its_shape(self, shape: list[int]) -> None:
        """Whatever sizes stand beside the 0; there is no input for it to be."""
        assert decode(tensor(shape=shape, data=[])).shape == (0,)

    def test_names_the_element_at_fault(self) -> None:
        assert refusal(tensor(data=[1, 2, 3, 4, 5, "6"])) == (
            'inputs[0] (float_features).data[5]: received "6", expected numbers'
        )

    @pytest.mark.parametrize(
        ("datatype", "bad", "expected"),
        [
            ("INT8", 128, "INT8 (integers from -128 to 127)"),
            ("INT16", -32769, "INT16 (integers from -32768 to 32767)"),
            ("UINT8", -1, "UINT8 (integers from 0 to 255)"),
            ("UINT32", 2**32, "UINT32 (integers from 0 to 4294967295)"),
        ],
    )
    def test_refuses_an_id_that_its_datatype_cannot_hold(
        self, datatype: str, bad: int, expected: str
    ) -> None:
        ids = {"name": "id_list_features.values", "shape": [2], "datatype": datatype}
        assert refusal({**ids, "data": [1, bad]}) == (
            f"inputs[0] (id_list_features.values).data[1]: received {bad}, expected {expected}"
        )

    @pytest.mark.parametrize(
        ("datatype", "bad", "received", "expected"),
        [
            ("INT8", 300, "300.0", "INT8 (integers from -128 to 127)"),
            ("INT64", 2.5, "2.5", f"INT64 (integers from {-(2**63)} to {2**63 - 1})"),
            ("FP16", 1e5, "100000.0", "FP16 (up to 65504)"),
            ("FP32", -1e39, "-1e+39", "FP32 (up to 3.40282e+38)"),
            ("BF16", 3.4e38, "3.4e+38", "BF16 (up to 3.38953e+38)"),
        ],
    )
    def test_refuses_a_number_that_its_datatype_cannot_hold(
        self, datatype: str, bad: float, received: str, expected: str
    ) -> None:
        data = [[1, 2, 3], [4, bad, 6]]
        assert refusal(tensor(datatype=datatype, data=data)) == (
            f"inputs[0] (float_features).data[1][1]: received {received}, expected {expected}"
        )

    @pytest.mark.parametrize("name", ["name", "shape", "datatype", "data"])
    def test_refuses_a_key_given_twice(self, name: str) -> None:
        body = json.dumps({"inputs": [tensor()]}).replace(f'"{name}":', f'"{name}": 1, "{name}":')
        with pytest.raises(InvalidRequest) as caught:
            codecs(signature(DENSE)).decode(raw(body.encode()))
        assert str(caught.value) == f"inputs[0]: {name} is given twice"

    def test_refuses_data_outside_the_json(self) -> None:
        assert refusal(tensor(parameters={"binary_data_size": 24})) == (
            "inputs[0] (float_features).parameters.binary_data_size: the protocol's binary "
            "extension is not served; send and ask for data as JSON, or use protobuf"
        )


class TestWanted:
    """A request may name the outputs that it wants."""

    def test_they_alone_are_answered_in_its_order(self) -> None:
        body = {"inputs": [tensor()], "outputs": [{"name": "pair"}, {"name": "default"}]}
        asked = codecs(signature(DENSE))
        _, reply = asked.decode(raw(json.dumps(body).encode()))
        answer = {name: np.array([1.0]) for name in ("default", "flat", "pair")}
        content = asked.encode(answer, reply).body
        assert [output["name"] for output in json.loads(content)["outputs"]] == ["pair", "default"]

    def test_they_alone_are_answered_in_any_format(self) -> None:
        body = {"inputs": [tensor()], "outputs": [{"name": "pair"}]}
        asked = codecs(signature(DENSE))
        for accept in ("application/x-protobuf", "application/json"):
            _, reply = asked.decode(raw(json.dumps(body).encode(), accept=accept))
            content = asked.encode({"default": np.ones(1), "pair": np.ones(1)}, reply).body
            assert b"pair" in content
            assert b"default" not in content

    def test_refuses_one_that_the_model_does_not_have(self) -> None:
        body = {"inputs": [tensor()], "outputs": [{"name": "score"}]}
        asked = codecs(signature(DENSE))
        _, reply = asked.decode(raw(json.dumps(body).encode()))
        with pytest.raises(InvalidRequest) as caught:
            asked.encode({"default": np.array([1.0]), "flat": np.array([1.0])}, reply)
        assert str(caught.value) == (
            'outputs[0].name: received "score", expected one of default, flat'
        )

    @pytest.mark.parametrize(
        ("outputs", "message"),
        [
            ({}, "outputs: received an object, expected an array of objects with a name"),
            ([3], "outputs[0]: received 3, expected an object with a name"),
            ([{}], "outputs[0].name: received null, expected an output's name"),
            ([{"name": "a"}, {"name": "a"}], "outputs[1].name: a is given twice"),
            (
                [{"name": "a", "parameters": {"binary_data": True}}],
                (
                    "outputs[0].parameters.binary_data: the protocol's binary extension is not "
                    "served; send and ask for data as JSON, or use protobuf"
                ),
            ),
        ],
    )
    def test_refuses_what_names_no_outputs(self, outputs: Any, message: str) -> None:
        body = {"inputs": [tensor()], "outputs": outputs}
        with pytest.raises(InvalidRequest) as caught:
            codecs(signature(DENSE)).decode(raw(json.dumps(body).encode()))
        assert str(caught.value) == message


class TestLimits:
    """They are the model's: no shape that a client names raises them."""

    def test_rows(self) -> None:
        assert len(decode(tensor(), rows_per_request=2)) == 2
        assert refusal(tensor(), kind=RequestTooLarge, rows_per_request=1) == (
            "inputs[0] (float_features): received 6 elements, expected at most 3 "
            "(limits.rows_per_request x 3 features)"
        )

    @pytest.mark.parametrize("shape", [[1, 1000], [1000], [10, 100], [1, 1, 1000]])
    def test_elements_of_flat_data(self, shape: list[int]) -> None:
        large = tensor(shape=shape, data=[0] * 1000)
        assert refusal(large, kind=RequestTooLarge, rows_per_request=2) == (
            "inputs[0] (float_features): received 1000 elements, expected at most 6 "
            "(limits.rows_per_request x 3 features)"
        )

    def test_elements_of_data_that_its_shape_does_not_name(self) -> None:
        large = tensor(shape=[2, 3], data=[0] * 1000)
        assert refusal(large, kind=RequestTooLarge, rows_per_request=2) == (
            "inputs[0] (float_features).data: received 1000 elements, expected at most 6 "
            "(limits.rows_per_request x 3 features)"
        )

    @pytest.mark.parametrize("shape", [[1, 1000], [1000]])
    def test_ids(self, shape: list[int]) -> None:
        ids = {"name": "id_list_features.values", "shape": shape, "datatype": "INT64"}
        large = {**ids, "data": [0] * 1000}
        assert refusal(large, kind=RequestTooLarge, ids_per_request=999) == (
            "inputs[0] (id_list_features.values): received 1000 elements, expected at most 999 "
            "(limits.ids_per_request)"
        )

    def test_sizes_that_are_only_claimed(self) -> None:
        assert refusal(tensor(shape=[2**40, 2**40], data=[]), kind=RequestTooLarge) == (
            "inputs[0] (float_features): received 1208925819614629174706176 elements, "
            "expected at most 49152 (limits.rows_per_request x 3 features)"
        )


def test_an_input_may_be_called_inputs() -> None:
    """Then the body is JSON columns."""
    entry = InputSignature(name="inputs", type="dense", num_features=2)
    columns, reply = codecs(signature(entry)).decode(raw(b'{"inputs": [[1, 2]]}'))
    assert columns.arrays["inputs"].tolist() == [[1, 2]]
    assert reply.codec.name == "json_columns"


def encode(answer: Any, identifier: str | None = None) -> bytes:
    response = OpenInference(model()).encode(answer, Wanted(id=identifier))
    assert response.content_type == "application/json"
    return response.body


class TestEncode:
    def test_what_was_not_asked_in_the_protocols_form_is_plain_json(self) -> None:
        """Arguments of a method that is called alone may be called `inputs`."""
        answer = {"default": np.array([1, 2])}
        assert OpenInference(model()).encode(answer, NOTHING).body == b'{"default":[1,2]}'

    def test_names_types_and_shapes(self) -> None:
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "default": np.array([0.5, 0.25], np.float32),
            "pair": np.arange(6).reshape(2, 3),
            "mask": np.array([True, False]),
        }
        assert json.loads(encode(arrays, "17")) == {
            "model_name": "ranking",
            "id": "17",
            "outputs": [
                {"name": "default", "shape": [2], "datatype": "FP32", "data": [0.5, 0.25]},
                {"name": "pair", "shape": [2, 3], "datatype": "INT64", "data": [0, 1, 2, 3, 4, 5]},
                {"name": "mask", "shape": [2], "datatype": "BOOL", "data": [True, False]},
            ],
        }

    def test_without_an_id_there_is_none(self) -> None:
        assert encode({}) == b'{"model_name":"ranking","outputs":[]}'

    @pytest.mark.parametrize("dtype", sorted(ANSWERED))
    def test_every_type_that_it_names_can_be_written(self, dtype: str) -> None:
        document = json.loads(encode({"x": np.array([0, 1], dtype)}))
        assert document["outputs"][0]["data"] == [0, 1]

    def test_refuses_a_type_that_the_protocol_has_no_name_for(self) -> None:
        with pytest.raises(PredictError) as caught:
            encode({"x": np.array([object()])})
        assert str(caught.value) == "output 'x': object is no Open Inference data type"
