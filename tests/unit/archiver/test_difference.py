"""How far apart two versions' answers are, by output."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from torchrec_archiver.difference import Call, Difference, Worst, differences, rank_correlation
from torchrec_handler.errors import BuildError


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(BuildError) as caught:
        call()
    return str(caught.value)


def call(request: int, qualname: str = "forward", **outputs: Any) -> Call:
    return Call(qualname, request, {name: [np.array(part)] for name, part in outputs.items()})


def test_the_measures_of_an_output() -> None:
    a = [call(1, score=[0.1, 0.2, 0.3]), call(2, score=[0.4])]
    b = [call(1, score=[0.1, 0.3, 0.2]), call(2, score=[0.8])]
    (found,), left = differences(a, b)
    assert left == []
    assert found[:3] == ("forward", "score", 4)
    assert found.largest == pytest.approx(0.4)
    assert found.mean == pytest.approx(0.6 / 4)
    assert found.rank_correlation == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert found.differing == 3
    assert list(found.worst[:1]) == [Worst(2, 0, 0.4, 0.8)]
    assert {(row.request, row.row) for row in found.worst[1:]} == {(1, 1), (1, 2)}


def test_a_row_of_several_values_is_as_far_apart_as_its_worst() -> None:
    a = [call(1, vector=[[0.0, 1.0], [2.0, 3.0]])]
    b = [call(1, vector=[[0.0, 1.5], [2.25, 3.0]])]
    (found,), _ = differences(a, b)
    assert found.rows == 2
    assert found.mean == pytest.approx(0.75 / 4)
    assert list(found.worst) == [Worst(1, 0, 1.0, 1.5), Worst(1, 1, 2.0, 2.25)]


def test_what_is_not_finite_in_one_alone_is_infinitely_far_apart() -> None:
    same = [call(1, score=[math.nan, math.inf])]
    (found,), _ = differences(same, same)
    assert (found.largest, found.differing, list(found.worst)) == (0.0, 0, [])
    (found,), _ = differences(same, [call(1, score=[1.0, math.inf])])
    assert (found.largest, found.mean, found.differing) == (math.inf, math.inf, 1)


def test_ids_are_counted_where_they_differ() -> None:
    (found,), _ = differences([call(1, ids=[5, 6, 7])], [call(1, ids=[5, 7, 6])])
    assert found == Difference(
        qualname="forward",
        output="ids",
        rows=3,
        largest=None,
        mean=None,
        rank_correlation=None,
        differing=2,
        worst=[Worst(1, 1, 6.0, 7.0), Worst(1, 2, 7.0, 6.0)],
    )


def test_what_only_one_has_is_not_compared() -> None:
    a = [call(1, x=[1.0], y=[1.0]), call(1, "user"), Call("item", 1, None, "raised KeyError: 'a'")]
    b = [call(1, x=[1.0], z=[1.0]), call(1, "shop"), call(1, "item", v=[1.0])]
    found, left = differences(a, b)
    assert [one.output for one in found] == ["x"]
    assert sorted(left) == [
        "forward: the first has no output 'z'",
        "forward: the second has no output 'y'",
        "item: request 1: the first raised KeyError: 'a'",
        "shop: the first has no such method",
        "user: the second has no such method",
    ]


def test_nothing_in_common_is_an_error() -> None:
    assert error_of(lambda: differences([call(1, "user", x=[1.0])], [])) == (
        "compare: the two have no answer in common: user: the second has no such method"
    )


def test_another_shape_is_an_error() -> None:
    a, b = [call(3, x=[[1.0, 2.0]])], [call(3, x=[1.0])]
    assert error_of(lambda: differences(a, b)) == (
        "compare: forward, request 3, output 'x': the first gives [1, 2], the second [1]; "
        "only versions that answer in one shape can be compared"
    )


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3], [10, 200, 3000], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 1, 2, 3], [1, 2, 3, 4], 0.9486832980505138),  # scipy.stats.spearmanr's
        ([1, 1, 1], [1, 2, 3], None),
        ([1], [2], None),
    ],
)
def test_rank_correlation(a: list[int], b: list[int], expected: float | None) -> None:
    assert rank_correlation(np.array(a), np.array(b)) == (
        None if expected is None else pytest.approx(expected)
    )
