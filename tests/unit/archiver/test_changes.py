"""What is called to see how far outputs are off, and what is said of it."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch

from torchrec_archiver.changes import ROWS, Changes
from torchrec_archiver.record import Recorded, record
from torchrec_archiver.samples import draw_requests
from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import BuildError
from torchrec_handler.load.factory import FactoryOutput, run_factory
from torchrec_handler.simple import Batch, Input, SimpleFactory, dense

CPU = torch.device("cpu")
SIGNATURE = Signature(
    inputs=(InputSignature(name="x", type="dense", num_features=3),),
    methods={"forward": True},
    result_metadata="dict_of_tensor",
)


class Sums(SimpleFactory):
    """Sums of rows, and the largest of them."""

    inputs: ClassVar[Mapping[str, Input]] = {"x": dense("a", "b", "c")}

    def model(self, device: torch.device) -> torch.nn.Module:
        return torch.nn.Linear(3, 1, device=device)

    def forward(self, model: torch.nn.Module, batch: Batch) -> Mapping[str, Any]:
        score = model(batch["x"]).reshape(-1)
        return {"score": score, "is_good": score > 0}


@pytest.fixture
def output() -> FactoryOutput:
    return run_factory(Sums(), CPU, world_size=1)


def changes(output: FactoryOutput, batches: list[int]) -> Changes:
    requests = draw_requests(SIGNATURE, batches=batches)
    return Changes(output.module, output, SIGNATURE, record(output.module, output, requests))


@pytest.mark.parametrize("batches", [[2, 1], [1, 64, 2000]], ids=["few", "many"])
def test_outputs_are_off_by_what_a_bias_moved(output: FactoryOutput, batches: list[int]) -> None:
    """Also where few rows are requested: more are drawn. Masks do not count."""
    found = changes(output, batches)
    assert found.rows == ROWS
    assert found.measure() == (0.0, 0.0)
    (bias,) = (one for one in output.module.parameters() if one.dim() == 1)
    with torch.no_grad():
        bias.add_(0.25)
    assert found.guess() == pytest.approx(0.25, abs=1e-6)
    assert found.measure() == pytest.approx((0.25, 0.25), abs=1e-6)
    assert found.measure(0.1).largest == pytest.approx(0.25, abs=1e-6)


def test_calls_have_each_number_of_rows_that_a_type_is_for(output: FactoryOutput) -> None:
    found = changes(output, [2, 1])
    assert [sample.rows for sample in found._calls] == [1000, 128, 63, 63, 63, 63, 11, 1, 2]


@pytest.mark.parametrize("give", [torch.Tensor.long, lambda score: score * torch.nan])
def test_nothing_is_decided_by_what_cannot_be_off(
    monkeypatch: pytest.MonkeyPatch, output: FactoryOutput, give: Callable[..., torch.Tensor]
) -> None:
    monkeypatch.setattr(
        Sums, "forward", lambda _, model, batch: {"best": give(model(batch["x"]).reshape(-1))}
    )
    with pytest.raises(BuildError) as caught:
        changes(output, [2, 1])
    assert str(caught.value) == (
        "dense.dtype: 'auto' is decided by how far outputs are off, and no output of the samples "
        "is a finite floating point number; name a type"
    )


def test_nothing_is_decided_without_a_call(output: FactoryOutput) -> None:
    with pytest.raises(BuildError) as caught:
        Changes(
            output.module,
            output,
            Signature(
                inputs=(InputSignature(name="x", type="dense"),),
                methods={"forward": True},
                result_metadata="dict_of_tensor",
            ),
            Recorded(samples={}),
        )
    assert str(caught.value) == (
        "dense.dtype: 'auto' is decided on samples, and there are none; give requests that the "
        "model takes with --samples, or name a type"
    )
