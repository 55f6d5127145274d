"""Ids outside of their tables are counted by feature, once, whatever becomes of their requests."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from tests.support.exact import DENSE, SPARSE
from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import RequestError
from torchrec_handler.options import Options
from torchrec_handler.serve.request import Columns
from torchrec_handler.serve.validate import Validator


def validator(
    out_of_range_ids: Literal["reject", "zero", "modulo"], sparse: InputSignature = SPARSE
) -> Validator:
    signature = Signature(
        inputs=(sparse, DENSE), methods={"forward": True}, result_metadata="dict_of_tensor"
    )
    return Validator(signature, Options(out_of_range_ids=out_of_range_ids))


def columns(ids: list[int], price: float = 1.0) -> Columns:
    """A row with one user, one movie and two genres."""
    arrays = {
        "id_list_features.lengths": np.array([1, 1, 2]),
        "id_list_features.values": np.array(ids),
        "float_features": np.array([[30.0, price, 12.0]]),
    }
    return Columns(arrays=arrays)


def check(checked: Validator, *requests: Columns) -> list[bool]:
    """Which of them are refused."""
    outcomes = checked.check(requests, [checked.measure(one) for one in requests])
    return [isinstance(outcome, RequestError) for outcome in outcomes]


def test_of_a_request_that_is_refused_for_them() -> None:
    checked = validator("reject")
    assert check(checked, columns([1, 2, 3, 4]), columns([50, 2, 11, -1])) == [False, True]
    assert checked.out_of_range.counts() == {"user": 1, "movie": 0, "genres": 2}


@pytest.mark.parametrize("option", ["zero", "modulo"])
def test_where_they_are_replaced(option: Literal["zero", "modulo"]) -> None:
    checked = validator(option)
    assert check(checked, columns([50, 40, 3, 4]), columns([51, 2, 3, 4])) == [False, False]
    assert checked.out_of_range.counts() == {"user": 2, "movie": 1, "genres": 0}


def test_once_where_another_request_is_refused_behind_them() -> None:
    """The others are checked again then."""
    checked = validator("zero")
    good, bad = columns([50, 2, 3, 4]), columns([1, 2, 3, 4], price=float("inf"))
    assert check(checked, good, bad) == [False, True]
    assert checked.out_of_range.counts() == {"user": 1, "movie": 0, "genres": 0}


def test_by_the_input_where_features_have_no_names() -> None:
    checked = validator("zero", replace(SPARSE, features=()))
    assert check(checked, columns([50, 40, 3, 4])) == [False]
    assert checked.out_of_range.counts() == {"id_list_features": 2}
