"""Replaying recorded samples: what is off is said, what two processors differ by is not."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from torchrec_handler.archive.format import DenseDtypes
from torchrec_handler.archive.samples import Sample, read_samples, save_samples
from torchrec_handler.errors import ArchiveError, SelfTestError
from torchrec_handler.load.self_test import (
    TOLERANCES,
    check_kind,
    compare,
    largest_change,
    self_test,
    tolerance_of,
)
from torchrec_handler.options import DenseDtype, Options

CPU = torch.device("cpu")


class Model(torch.nn.Module):
    """Two methods and an embedding input."""

    def forward(
        self, batch: dict[str, torch.Tensor | list[torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        dense, embeddings = batch["dense"], batch["embeddings"]
        assert isinstance(dense, torch.Tensor)
        assert isinstance(embeddings, list)
        return {"default": dense.sum(1) + torch.stack(embeddings).sum((0, 2))}

    def pairs(self, batch: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        dense = batch["dense"]
        return {"pair": (dense[:, 0].half(), dense[:, 1] > 0)}

    def broken(self, _: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        message = "no weights"
        raise RuntimeError(message)


def make(qualname: str = "forward") -> Sample:
    dense = torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.5, 0.25]])
    outputs: dict[str, tuple[torch.Tensor, ...]] = {"default": (torch.tensor([9.0, 5.0, 6.75]),)}
    if qualname == "pairs":
        outputs = {"pair": (dense[:, 0].clone(), dense[:, 1] > 0)}
    inputs = {"dense": dense, "embeddings": torch.ones(2, 3, 3)}
    return Sample(qualname=qualname, rows=3, inputs=inputs, outputs=outputs)


def changed(values: list[float]) -> Sample:
    return dataclasses.replace(make(), outputs={"default": (torch.tensor(values),)})


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = [make(), make("pairs")]
    save_samples(samples, tmp_path / "samples.safetensors")
    read = read_samples(tmp_path / "samples.safetensors")
    assert [(one.qualname, one.rows) for one in read] == [("forward", 3), ("pairs", 3)]
    for one, wanted in zip(read, samples, strict=True):
        assert one.inputs.keys() == wanted.inputs.keys()
        assert all(torch.equal(one.inputs[name], value) for name, value in wanted.inputs.items())
        for name, parts in wanted.outputs.items():
            assert all(map(torch.equal, one.outputs[name], parts))
    self_test(Model(), read[:1], "dict_of_tensor", TOLERANCES["float32"], CPU)
    self_test(Model(), read[1:], "dict_of_tensors", TOLERANCES["float32"], CPU)


def test_rounding_is_not_off() -> None:
    self_test(
        Model(), [changed([9.0005, 4.9998, 6.75])], "dict_of_tensor", TOLERANCES["float32"], CPU
    )
    self_test(Model(), [changed([9.05, 5.02, 6.75])], "dict_of_tensor", TOLERANCES["bfloat16"], CPU)


def test_what_is_as_good_as_0_is_not_off() -> None:
    """As a sigmoid of -80 is, whose logit is off by 1e-4 of itself."""
    where, expected = "output", torch.tensor([1.14e-35])
    compare(where, torch.tensor([1.13e-35]), expected, TOLERANCES["float32"])
    compare(where, torch.tensor([0.0]), expected, TOLERANCES["float32"])
    with pytest.raises(SelfTestError):
        compare(where, torch.tensor([2e-9]), expected, TOLERANCES["float32"])


def test_what_was_decided_by_layer_may_be_off_by_what_was_allowed() -> None:
    dense = DenseDtypes(
        dtypes={"over.weight": "bfloat16", "top.weight": "float32"},
        allowed=0.5,
        max_error=0.25,
        mean_error=0.125,
        rows=3,
        instructions=(),
    )
    options = Options.model_validate({"dense": {"dtype": "auto", "max_error": 0.5}})
    tolerance = tolerance_of(options, dense)
    assert tolerance == dataclasses.replace(TOLERANCES["bfloat16"], absolute=0.5)
    assert tolerance_of(Options(), None) == TOLERANCES["float32"]
    travels = Options.model_validate({"sharding": {"exchange_dtype": "float16"}})
    assert tolerance_of(travels, None) == TOLERANCES["float16"]
    exact = dataclasses.replace(dense, dtypes={"top.weight": "float32"})
    assert tolerance_of(travels, exact).floor == TOLERANCES["float16"].floor
    self_test(Model(), [changed([9.49, 4.51, 6.75])], "dict_of_tensor", tolerance, CPU)
    with pytest.raises(SelfTestError) as caught:
        self_test(Model(), [changed([9.51, 5.0, 6.75])], "dict_of_tensor", tolerance, CPU)
    assert str(caught.value) == (
        "self-test: forward, sample of 3 rows, output 'default'[0]: received 9, expected 9.51, at "
        "most 0.5 apart; this worker's model does not answer as it did when the archive was built"
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_output_that_is_off_by_one_percent_is_named(dtype: DenseDtype) -> None:
    off = "at most 0.0054 apart" if dtype == "float32" else "at most"
    message = (
        "self-test: forward, sample of 3 rows, output 'default'[1]: received 5, expected 5.1, "
        if dtype != "float32"
        else (
            "self-test: forward, sample of 3 rows, output 'default'[1]: received 5, expected 5.05, "
        )
    )
    wrong = changed([9.0, 5.05 if dtype == "float32" else 5.1, 6.75])
    with pytest.raises(SelfTestError) as caught:
        self_test(Model(), [make(), wrong], "dict_of_tensor", TOLERANCES[dtype], CPU)
    assert str(caught.value).startswith(message)
    assert off.partition(" apart")[0] in str(caught.value) or dtype == "float32"
    assert str(caught.value).endswith(
        "this worker's model does not answer as it did when the archive was built"
    )


def test_not_a_number_is_off() -> None:
    """No comparison with it is true, whichever side it is on."""
    nan, inf = float("nan"), float("inf")
    for values in ([nan, 5.0, 6.75], [9.0, 5.0, inf], [9.5, inf, 6.75]):
        with pytest.raises(SelfTestError):
            self_test(Model(), [changed(values)], "dict_of_tensor", TOLERANCES["float32"], CPU)
    dense = torch.tensor([[nan, 0.0], [inf, 0.0], [1.0, 2.0]])
    inputs = {"dense": dense, "embeddings": torch.ones(2, 3, 3)}
    outputs = {"default": (torch.tensor([nan, inf, 9.0]),)}
    same = Sample(qualname="forward", rows=3, inputs=inputs, outputs=outputs)
    self_test(Model(), [same], "dict_of_tensor", TOLERANCES["float32"], CPU)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            changed([9.0, 5.0]),
            (
                "self-test: forward, sample of 3 rows, output 'default': "
                "received shape (3,), expected (2,)"
            ),
        ),
        (
            dataclasses.replace(make(), outputs={"score": (torch.zeros(3),)}),
            ("self-test: forward, sample of 3 rows: received the outputs default, expected score"),
        ),
        (
            make("broken"),
            "self-test: broken, sample of 3 rows: raised RuntimeError: no weights",
        ),
        (
            make("absent"),
            (
                "self-test: absent, sample of 3 rows: raised AttributeError: "
                "'Model' object has no attribute 'absent'"
            ),
        ),
    ],
)
def test_every_other_difference_is_named(sample: Sample, message: str) -> None:
    with pytest.raises(SelfTestError) as caught:
        self_test(Model(), [sample], "dict_of_tensor", TOLERANCES["float32"], CPU)
    assert str(caught.value) == message


def test_a_file_that_holds_no_samples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.safetensors"
    path.write_bytes(b"12345678")
    with pytest.raises(ArchiveError, match=re.escape("samples.safetensors: cannot be read (")):
        read_samples(path)


def test_a_few_ids_may_change_places() -> None:
    """A near tie of scores may fall differently on another processor."""

    class Top(torch.nn.Module):
        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"movies": batch["ids"]}

    def sample(swapped: int) -> Sample:
        ids = torch.arange(20)
        recorded = torch.cat([ids[:swapped] + 1, ids[swapped:]])
        return Sample(
            qualname="forward", rows=2, inputs={"ids": ids}, outputs={"movies": (recorded,)}
        )

    self_test(Top(), [sample(0), sample(2)], "dict_of_tensor", TOLERANCES["float32"], CPU)
    with pytest.raises(SelfTestError) as caught:
        self_test(Top(), [sample(3)], "dict_of_tensor", TOLERANCES["float32"], CPU)
    assert str(caught.value).startswith(
        "self-test: forward, sample of 2 rows, output 'movies': 3 of 20 values differ, "
        "expected at most 10%; "
    )


def test_the_largest_change_is_over_all_outputs() -> None:
    before = {"a": (torch.tensor([1.0, 2.0]), torch.tensor([True])), "b": (torch.zeros(0),)}
    after = {"a": (torch.tensor([1.5, 1.0]), torch.tensor([True])), "b": (torch.zeros(0),)}
    assert largest_change(before, after) == 1.0
    assert largest_change({"ids": (torch.tensor([1]),)}, {"ids": (torch.tensor([900]),)}) == 0.0
    assert largest_change({}, {}) == 0.0


def test_what_is_not_finite_in_both_is_no_change() -> None:
    """Of a model that gives infinity on purpose; in one alone it is the largest there is."""
    before = {"a": (torch.tensor([1.0, torch.nan, torch.inf]),)}
    assert largest_change(before, {"a": (torch.tensor([1.5, torch.nan, torch.inf]),)}) == 0.5
    for other in (torch.nan, -torch.inf, 3.0):
        after = {"a": (torch.tensor([1.0, torch.nan, other]),)}
        assert largest_change(before, after) == torch.inf
        assert largest_change(after, before) == torch.inf


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (
            {"default": (torch.tensor([9.0, torch.nan, 1.0]),)},
            ", output 'default': holds numbers that are not finite, as the archive's are",
        ),
        (
            {"default": (torch.ones(2),)},
            (
                ", output 'default': received torch.float32 (2,), expected torch.float32 (3,), as "
                "the archive's"
            ),
        ),
        (
            {"default": (torch.ones(3, dtype=torch.int64),)},
            (
                ", output 'default': received torch.int64 (3,), expected torch.float32 (3,), as "
                "the archive's"
            ),
        ),
        ({"other": (torch.ones(3),)}, ": received the outputs other, expected default"),
    ],
)
def test_other_weights_give_other_numbers_and_nothing_else(
    outputs: dict[str, tuple[torch.Tensor, ...]], said: str
) -> None:
    check_kind(make(), {"default": (torch.tensor([-1e9, 0.0, 1.0]),)})
    infinite = changed([torch.inf, 5.0, 6.75])
    check_kind(infinite, {"default": (torch.tensor([1.0, torch.nan, 6.75]),)})
    with pytest.raises(SelfTestError) as error:
        check_kind(make(), outputs)
    assert str(error.value) == f"self-test: forward, sample of 3 rows{said}"
