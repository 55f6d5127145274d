"""Raw values: hashed as in training, filled in where they are missing, dropped as if never sent."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.exact import DENSE, SPARSE, WEIGHTED, examples
from torchrec_handler.archive.format import Hashed, InputSignature, Signature
from torchrec_handler.errors import InvalidRequest
from torchrec_handler.hashing import hash_ids
from torchrec_handler.options import Options
from torchrec_handler.serve.request import Columns, Sparse, ValidRequest
from torchrec_handler.serve.validate import Validator

HASHED = replace(
    SPARSE,
    hashed=(
        Hashed(function="xxh64", rows=50, seed=7),
        None,
        Hashed(function="xxh64", rows=9, seed=0),
    ),
)
DEFAULTS = replace(DENSE, defaults=(None, 9.5, -1.0))

IDS = st.integers(-3, 60)
ROWS = 2


def valid(
    arrays: Mapping[str, Any], *inputs: InputSignature, options: Options | None = None
) -> ValidRequest:
    signature = Signature(
        inputs=inputs, methods={"forward": True}, result_metadata="dict_of_tensor"
    )
    made = {name: np.asarray(value) for name, value in arrays.items()}
    return Validator(signature, options or Options())(Columns(arrays=made))


def held(arrays: Mapping[str, Any], entry: InputSignature, policy: str = "reject") -> Sparse:
    options = Options.model_validate({"out_of_range_ids": policy})
    found = valid(arrays, entry, options=options).inputs[entry.name]
    assert isinstance(found, Sparse)
    return found


def sparse(
    entry: InputSignature, lists: list[list[list[int]]], *, kept: bool = False
) -> dict[str, Any]:
    """Arrays of lists by feature and row; `kept` ids alone are those that the tables have."""
    known = entry.ids_below
    flat = [
        [
            (at, one)
            for at, one in enumerate(ids)
            if not kept or 0 <= one < (known[feature] or 2**63)
        ]
        for feature, rows in enumerate(lists)
        for ids in rows
    ]
    arrays: dict[str, Any] = {
        f"{entry.name}.lengths": np.array([len(ids) for ids in flat]),
        f"{entry.name}.values": np.array([one for ids in flat for _, one in ids], np.int64),
    }
    if entry.type == "weighted_sparse":
        weights = [at + one / 7 for ids in flat for at, one in ids]
        arrays[f"{entry.name}.weights"] = np.array(weights)
    return arrays


def lists_of(features: int) -> st.SearchStrategy[list[list[list[int]]]]:
    ids = st.lists(IDS, max_size=3)
    rows = st.lists(ids, min_size=ROWS, max_size=ROWS)
    return st.lists(rows, min_size=features, max_size=features)


class TestHashing:
    def test_ids_become_rows_by_their_features_hash(self) -> None:
        given = [-1, 2**63 - 1, 39, 5, -(2**63)]
        arrays = sparse(HASHED, [[given[:2], []], [[], given[2:3]], [given[3:], []]])
        found = held(arrays, HASHED)
        assert found.values.dtype == np.int32
        assert found.values.tolist() == [
            *hash_ids(given[:2], 50, 7),
            39,
            *hash_ids(given[3:], 9),
        ]

    def test_int32_ids_are_those_of_64_bits(self) -> None:
        """As protobuf brings them."""
        arrays = sparse(HASHED, [[[-1]], [[3]], [[-7]]])
        narrow = {name: array.astype(np.int32) for name, array in arrays.items()}
        found = held(narrow, HASHED).values.tolist()
        assert found == held(arrays, HASHED).values.tolist()
        assert found == [*hash_ids([-1], 50, 7), 3, *hash_ids([-7], 9)]

    def test_ids_that_are_no_hash_are_checked_in_their_own_words(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            held(sparse(HASHED, [[[9**9]], [[40]], [[9**9]]]), HASHED)
        assert str(caught.value) == (
            "id_list_features.values[1]: received id 40 of feature 'movie', expected 0 to 39"
        )

    @pytest.mark.parametrize("policy", ["reject", "zero", "modulo", "drop"])
    def test_a_hashed_id_is_never_out_of_range(self, policy: str) -> None:
        whole = replace(SPARSE, hashed=(Hashed(function="xxh64", rows=10, seed=3),) * 3)
        arrays = sparse(whole, [[[-5, 10**6]], [[10**12]], [[]]])
        assert held(arrays, whole, policy).values.tolist() == [
            *hash_ids([-5, 10**6, 10**12], 10, 3)
        ]

    def test_wide_ids_may_be_hashed_into_all_there_are(self) -> None:
        wide = replace(
            SPARSE,
            ids_below=(None, 40, 10),
            is_wide=True,
            hashed=(Hashed(function="xxh64", rows=2**63, seed=0), None, None),
        )
        found = held(sparse(wide, [[[7]], [[1]], [[2]]]), wide)
        assert found.values.dtype == np.int64
        assert found.values.tolist() == [*hash_ids([7], 2**63), 1, 2]

    def test_what_rows_share_is_hashed_once(self) -> None:
        arrays = {
            DENSE.name: np.zeros((3, 3)),
            **sparse(HASHED, [[[8]], [[1, 2]], [[9**9]]]),
        }
        found = valid(arrays, DENSE, HASHED).inputs[HASHED.name]
        assert isinstance(found, Sparse)
        assert found.shared is not None
        assert found.shared.tolist() == [True, True, True]
        assert found.values.tolist() == [*hash_ids([8], 50, 7), 1, 2, *hash_ids([9**9], 9)]


class TestDrop:
    @pytest.mark.parametrize("entry", [SPARSE, WEIGHTED], ids=["sparse", "weighted"])
    def test_is_as_if_the_id_had_not_been_sent(self, entry: InputSignature) -> None:
        @examples()
        @given(lists_of(entry.num_features or 0))
        def check(lists: list[list[list[int]]]) -> None:
            dropped = held(sparse(entry, lists), entry, "drop")
            expected = held(sparse(entry, lists, kept=True), entry)
            assert dropped.lengths.tolist() == expected.lengths.tolist()
            assert dropped.values.tolist() == expected.values.tolist()
            if entry is WEIGHTED:
                assert dropped.weights is not None
                assert expected.weights is not None
                assert dropped.weights.tolist() == expected.weights.tolist()

        check()

    def test_features_have_words_of_their_own(self) -> None:
        """Which go before the option; the others' is the option."""
        entry = replace(SPARSE, out_of_range=("drop", None, "modulo"))
        arrays = sparse(entry, [[[50, 1], [-1]], [[40], [2]], [[13], [9]]])
        found = held(arrays, entry, "zero")
        assert found.lengths.tolist() == [[1, 0], [1, 1], [1, 1]]
        assert found.values.tolist() == [1, 0, 2, 3, 9]
        with pytest.raises(InvalidRequest) as caught:
            held(arrays, entry)
        assert str(caught.value) == (
            "id_list_features.values[3]: received id 40 of feature 'movie', expected 0 to 39"
        )

    def test_a_feature_may_refuse_where_the_option_drops(self) -> None:
        entry = replace(SPARSE, out_of_range=("reject", None, None))
        assert held(sparse(entry, [[[1]], [[40]], [[9]]]), entry, "drop").values.tolist() == [1, 9]
        with pytest.raises(InvalidRequest) as caught:
            held(sparse(entry, [[[50]], [[40]], [[9]]]), entry, "drop")
        assert str(caught.value) == (
            "id_list_features.values[0]: received id 50 of feature 'user', expected 0 to 49"
        )

    def test_what_is_left_needs_position_weights(self) -> None:
        entry = replace(SPARSE, longest=(2, None, None))
        found = held(sparse(entry, [[[1, 50, 2]], [[]], [[]]]), entry, "drop")
        assert found.values.tolist() == [1, 2]
        with pytest.raises(InvalidRequest) as caught:
            held(sparse(entry, [[[1, 50, 2, 3]], [[]], [[]]]), entry, "drop")
        assert str(caught.value) == (
            "id_list_features.lengths: received 3 ids of feature 'user' in row 0, "
            "expected at most 2, the positions that have a weight"
        )


class TestDefaults:
    def test_stand_for_numbers_that_are_missing(self) -> None:
        nan = np.nan
        given = [[1, nan, nan], [2, 3, nan], [4, nan, 5]]
        assert np.asarray(valid({DENSE.name: given}, DEFAULTS).inputs[DENSE.name]).tolist() == [
            [1, 9.5, -1],
            [2, 3, -1],
            [4, 9.5, 5],
        ]

    def test_what_has_none_may_not_be_missing(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            valid({DENSE.name: [[1, np.nan, 2], [np.nan, 1, 2]]}, DEFAULTS)
        assert str(caught.value) == (
            "float_features[1][0]: received nan, expected a finite float32"
        )

    def test_infinity_is_not_missing(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            valid({DENSE.name: [1, np.inf, 2]}, DEFAULTS)
        assert str(caught.value) == (
            "float_features[0][1]: received inf, expected a finite float32"
        )
