"""One call of the predict module, and its result on the host."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from torchrec_handler.errors import InvalidRequest, PredictError
from torchrec_handler.serve.predict import call, predict


class Returns(torch.nn.Module):
    """Returns what it was made with."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, _batch: Mapping[str, torch.Tensor]) -> Any:
        return self.result


def refusal(result: Any, result_metadata: str) -> str:
    with pytest.raises(PredictError) as caught:
        predict(Returns(result), "forward", {}, result_metadata)
    return str(caught.value)


TENSOR = torch.tensor([1.0])


class TestPredict:
    def test_a_tensor_a_name(self) -> None:
        result = predict(Returns({"default": TENSOR}), "forward", {}, "dict_of_tensor")
        assert {name: [part.tolist() for part in parts] for name, parts in result.items()} == {
            "default": [[1]]
        }

    @pytest.mark.parametrize("kind", [list, tuple])
    @pytest.mark.parametrize("result_metadata", ["dict_of_tensors", "dict_with_mask_tensor"])
    def test_tensors_a_name(self, kind: Any, result_metadata: str) -> None:
        module = Returns({"default": kind([TENSOR, TENSOR + 1])})
        result = predict(module, "forward", {}, result_metadata)
        assert [part.tolist() for part in result["default"]] == [[1], [2]]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_comes_as_float32(self, dtype: torch.dtype) -> None:
        module = Returns({"default": torch.tensor([0.5, 2], dtype=dtype)})
        array = predict(module, "forward", {}, "dict_of_tensor")["default"][0]
        assert array.dtype == np.float32
        assert array.tolist() == [0.5, 2]

    def test_what_has_no_axis_has_one_row(self) -> None:
        """A model that squeezes its result does so for a batch of one row too."""
        module = Returns({"default": torch.tensor(3.0)})
        assert predict(module, "forward", {}, "dict_of_tensor")["default"][0].tolist() == [3]

    def test_needs_no_gradients(self) -> None:
        layer = torch.nn.Linear(1, 1)

        class Scores(torch.nn.Module):
            def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                scores = layer(batch["x"])
                assert not scores.requires_grad
                return {"default": scores}

        result = predict(Scores(), "forward", {"x": torch.ones(2, 1)}, "dict_of_tensor")
        assert result["default"][0].shape == (2, 1)

    @pytest.mark.parametrize(
        ("result", "result_metadata", "message"),
        [
            (
                [TENSOR],
                "dict_of_tensor",
                "forward: returned list, expected a dict (dict_of_tensor)",
            ),
            (
                {"default": [1.0]},
                "dict_of_tensor",
                "forward: output 'default' is list, expected a tensor (dict_of_tensor)",
            ),
            (
                {"default": TENSOR},
                "dict_of_tensors",
                (
                    "forward: output 'default' is Tensor, expected a tuple of tensors "
                    "(dict_of_tensors)"
                ),
            ),
            (
                {"default": (TENSOR, 1.0)},
                "dict_of_tensors",
                "forward: output 'default' is tuple, expected a tuple of tensors (dict_of_tensors)",
            ),
            (
                {"default": TENSOR.to(torch.complex64)},
                "dict_of_tensor",
                "forward: output 'default' is complex64, expected a dense tensor of real numbers",
            ),
            (
                {"default": (TENSOR, TENSOR.to_sparse())},
                "dict_of_tensors",
                "forward: output 'default' is sparse_coo, expected a dense tensor of real numbers",
            ),
            (
                {"default": (TENSOR,)},
                "dict_with_mask_tensor",
                (
                    "forward: output 'default' is tuple, expected a tuple of a value tensor and "
                    "a mask tensor (dict_with_mask_tensor)"
                ),
            ),
        ],
    )
    def test_refuses_what_result_metadata_does_not_promise(
        self, result: Any, result_metadata: str, message: str
    ) -> None:
        assert refusal(result, result_metadata) == message


class Similar(torch.nn.Module):
    """Has a method without need_preproc."""

    def similar(self, movie_id: int, *, count: int = 2) -> dict[str, Any]:
        near = torch.arange(count) + movie_id
        return {"movies": near, "nested": [{"half": near.half() / 2}, (near, "text", None, True)]}


class TestCall:
    def test_gives_the_payload_as_keyword_arguments(self) -> None:
        result = call(Similar(), "similar", {"movie_id": 3, "count": 4})
        assert result["movies"].tolist() == [3, 4, 5, 6]

    def test_takes_tensors_at_any_depth_to_the_host(self) -> None:
        result = call(Similar(), "similar", {"movie_id": 3})
        half, (near, *rest) = result["nested"]
        assert half["half"].dtype == np.float32
        assert half["half"].tolist() == [1.5, 2]
        assert isinstance(near, np.ndarray)
        assert rest == ["text", None, True]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "similar: missing a required argument: 'movie_id'"),
            (
                {"movie_id": 3, "limit": 1},
                "similar: got an unexpected keyword argument 'limit'",
            ),
        ],
    )
    def test_refuses_arguments_that_the_method_does_not_take(
        self, arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidRequest) as caught:
            call(Similar(), "similar", arguments)
        assert str(caught.value) == message

    def test_a_type_error_of_the_method_itself_passes_through(self) -> None:
        """It is no fault of the request's arguments as such."""
        with pytest.raises(TypeError):
            call(Similar(), "similar", {"movie_id": "three"})
