"""Answers as JSON, whatever they hold."""

import json
from typing import Any

import numpy as np
import pytest

from torchrec_handler.errors import PredictError
from torchrec_handler.serve.codecs.json_values import encode


class TestEncode:
    def test_writes_arrays_as_lists(self) -> None:
        answer = {
            "default": np.array([0.5, 0.25], np.float32),
            "pair": np.arange(4, dtype=np.int64).reshape(2, 2),
            "tensors": [np.array([1.5]), np.array([True, False])],
            "masked": {"values": np.array([1], np.int32), "mask": np.array([False])},
        }
        assert encode(answer).body == (
            b'{"default":[0.5,0.25],"pair":[[0,1],[2,3]],"tensors":[[1.5],[true,false]],'
            b'"masked":{"values":[1],"mask":[false]}}'
        )

    def test_writes_every_float32_exactly(self) -> None:
        numbers = np.random.default_rng(7).random(1000, dtype=np.float32)
        read = np.array(json.loads(encode({"default": numbers}).body)["default"])
        assert np.array_equal(read.astype(np.float32), numbers)

    def test_writes_arrays_that_are_not_contiguous(self) -> None:
        assert encode(np.arange(6).reshape(2, 3).T).body == b"[[0,3],[1,4],[2,5]]"

    def test_writes_what_is_not_finite_as_null(self) -> None:
        """JSON has no other way to say it."""
        assert encode(np.array([np.nan, np.inf, 1.0])).body == b"[null,null,1.0]"

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            ({"a": object()}, "Type is not JSON serializable: object"),
            ({"a": "\ud800"}, "str is not valid UTF-8: surrogates not allowed"),
            ({"a": 2**64}, "Integer exceeds 64-bit range"),
            ({"a": np.array([1j])}, "Type is not JSON serializable: complex"),
        ],
    )
    def test_refuses_what_json_cannot_hold(self, value: Any, reason: str) -> None:
        with pytest.raises(PredictError) as caught:
            encode(value)
        assert str(caught.value) == f"the answer cannot be written as JSON: {reason}"
