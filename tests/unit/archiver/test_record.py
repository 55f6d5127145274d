"""What quantizing changes."""

import pytest
import torch

from torchrec_archiver.record import Failure, Recorded, output_change
from torchrec_handler.archive.samples import Sample
from torchrec_handler.errors import BuildError


def calls(*scores: tuple[str, int, list[float]]) -> Recorded:
    return Recorded(
        samples={
            (qualname, number): Sample(
                qualname=qualname, rows=1, inputs={}, outputs={"score": (torch.tensor(values),)}
            )
            for qualname, number, values in scores
        },
        failures=[Failure(qualname="forward", rows=1, said="raised")],
    )


def test_calls_of_both_models_are_compared_by_method_and_request() -> None:
    """Either may have raised on some of them."""
    before = calls(("forward", 0, [1.0]), ("forward", 1, [10.0]), ("rank", 1, [5.0]))
    after = calls(("forward", 1, [10.5]), ("rank", 0, [7.0]), ("rank", 1, [5.25]))
    assert output_change(before, after) == {"forward": 0.5, "rank": 0.25}


def test_outputs_that_quantizing_reshapes_are_refused() -> None:
    with pytest.raises(BuildError) as caught:
        output_change(calls(("forward", 0, [1.0])), calls(("forward", 0, [1.0, 2.0])))
    assert str(caught.value) == (
        "samples: forward with 1 rows: the float model gives outputs of the shapes "
        "{'score': [[1]]}, the quantized one {'score': [[2]]}"
    )
