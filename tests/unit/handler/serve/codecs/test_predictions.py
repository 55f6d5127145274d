"""One prediction an instance, as clients of other servers expect."""

import json
from typing import Any

import numpy as np
import pytest

from tests.support.answered import ask
from tests.support.exact import FLAT, INPUTS, PAIR, ROWS, Exact, predictor
from tests.support.one_request import INSTANCES, raw
from torchrec_handler.archive.format import Count, OutputSplit
from torchrec_handler.options import Options
from torchrec_handler.serve.codecs.predictions import add
from torchrec_handler.serve.engine import Engine

IDS = OutputSplit(counts=(Count(factor=1, input="id_list_features"),), shape=())
SCORES = np.array([0.5, 0.25])


def predictions(answer: dict[str, Any], **splits: tuple[OutputSplit, ...]) -> Any:
    return add(answer, 2, splits).get("predictions")


class TestAdd:
    def test_of_one_output_they_are_its_values(self) -> None:
        answer = {"default": SCORES}
        assert add(answer, 2, {"default": (ROWS,)}) == {**answer, "predictions": [0.5, 0.25]}

    def test_several_values_a_row_are_a_list(self) -> None:
        assert predictions({"a": np.arange(6)}, a=(FLAT,)) == [[0, 1, 2], [3, 4, 5]]
        assert predictions({"a": np.arange(4).reshape(2, 2)}, a=(PAIR,)) == [[0, 1], [2, 3]]

    def test_of_several_outputs_they_are_objects(self) -> None:
        found = predictions({"a": SCORES, "b": np.arange(6)}, a=(ROWS,), b=(FLAT,))
        assert found == [{"a": 0.5, "b": [0, 1, 2]}, {"a": 0.25, "b": [3, 4, 5]}]

    def test_several_tensors_of_an_output_are_a_list(self) -> None:
        found = predictions({"a": [SCORES, np.arange(6)]}, a=(ROWS, FLAT))
        assert found == [[0.5, [0, 1, 2]], [0.25, [3, 4, 5]]]

    @pytest.mark.parametrize(
        ("answer", "splits"),
        [
            ({"a": SCORES}, {"a": (IDS,)}),
            ({"a": SCORES}, {}),
            ({"a": {"values": SCORES, "mask": SCORES > 0}}, {"a": (ROWS,)}),
            ({"predictions": np.arange(6)}, {"predictions": (ROWS,)}),
        ],
    )
    def test_never_guesses_what_an_instance_has(self, answer: Any, splits: Any) -> None:
        assert add(answer, 2, splits) is answer


class TestAnswer:
    def test_instances_are_answered_with_one_each(self) -> None:
        body = {"instances": INSTANCES, "parameters": {"top_k": 5}}
        served = predictor(Exact(INPUTS, "dict_of_tensor"), *INPUTS)
        (response,) = ask(Engine("ranking", served, Options()), [raw(json.dumps(body).encode())])
        answer = json.loads(response.body)
        assert answer["predictions"] == [
            {"default": answer["default"][row], "flat": answer["flat"][3 * row :][:3]}
            | {"pair": answer["pair"][row]}
            for row in range(len(INSTANCES))
        ]
