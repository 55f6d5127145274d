"""The edge: what the model can take passes, everything else is refused in words."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.exact import CPU, DENSE, EMBEDDING, SPARSE, WEIGHTED, batching, examples
from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import InvalidRequest, RequestError, RequestTooLarge
from torchrec_handler.options import Limits, Options
from torchrec_handler.serve.batch import combine
from torchrec_handler.serve.request import Columns, Sparse, ValidRequest
from torchrec_handler.serve.validate import Validator

Arrays = Mapping[str, Any]


def validate(
    arrays: Arrays,
    *inputs: InputSignature,
    batch_size: int | None = None,
    options: Options | None = None,
) -> ValidRequest:
    made = {name: np.array(value) for name, value in arrays.items()}
    columns = Columns(arrays=made, batch_size=batch_size)
    return validator(*inputs, options=options)(columns)


def validator(*inputs: InputSignature, options: Options | None = None) -> Validator:
    signature = Signature(
        inputs=inputs, methods={"forward": True}, result_metadata="dict_of_tensor"
    )
    return Validator(signature, options or Options())


def refusal(
    expected: type[RequestError],
    arrays: Arrays,
    *inputs: InputSignature,
    batch_size: int | None = None,
    options: Options | None = None,
) -> str:
    with pytest.raises(expected) as caught:
        validate(arrays, *inputs, batch_size=batch_size, options=options)
    return str(caught.value)


def sparse(lengths: Any, values: Any, weights: Any = None) -> dict[str, Any]:
    """Arrays of SPARSE, or of WEIGHTED where there are weights."""
    name = (SPARSE if weights is None else WEIGHTED).name
    arrays = {f"{name}.lengths": np.array(lengths), f"{name}.values": np.array(values, np.int64)}
    return arrays if weights is None else {**arrays, f"{name}.weights": np.array(weights)}


def limits(**most: int) -> Options:
    return Options(limits=Limits(**most))


class TestDense:
    def test_passes_as_float32(self) -> None:
        valid = validate({DENSE.name: [[1, 2, 3], [4, 5, 6.5]]}, DENSE)
        block = valid.inputs[DENSE.name]
        assert valid.rows == 2
        assert isinstance(block, np.ndarray)
        assert block.dtype == np.float32
        assert block.tolist() == [[1, 2, 3], [4, 5, 6.5]]

    def test_one_row_may_be_a_flat_list(self) -> None:
        valid = validate({DENSE.name: [1, 2, 3]}, DENSE)
        assert valid.rows == 1
        assert np.asarray(valid.inputs[DENSE.name]).tolist() == [[1, 2, 3]]

    def test_a_width_that_only_the_model_knows_passes(self) -> None:
        hidden = InputSignature(name="float_features", type="dense")
        assert validate({"float_features": [[1, 2], [3, 4]]}, hidden).rows == 2

    @pytest.mark.parametrize(
        ("value", "received"),
        [
            ([[1, 2], [3, 4]], "2 x 2"),
            ([1, 2], "2"),
            ([[[1, 2, 3]]], "1 x 1 x 3"),
            (np.zeros((0, 3)), "0 x 3"),
            ([[]], "1 x 0"),
            ([], "0"),
        ],
    )
    def test_refuses_another_shape(self, value: Any, received: str) -> None:
        assert refusal(InvalidRequest, {DENSE.name: value}, DENSE) == (
            f"float_features: received shape {received}, expected B rows x 3 features"
        )

    def test_refuses_a_wrong_width_beside_a_batch_size(self) -> None:
        assert refusal(InvalidRequest, {DENSE.name: [[1, 2]]}, DENSE, batch_size=4) == (
            "float_features: received shape 1 x 2, expected 4 rows x 3 features"
        )

    def test_refuses_another_number_of_rows_than_batch_size(self) -> None:
        arrays = {DENSE.name: [[1, 2, 3], [4, 5, 6]]}
        assert refusal(InvalidRequest, arrays, DENSE, batch_size=3) == (
            "float_features: received 2 rows, expected 3 (or 1 for all)"
        )

    @pytest.mark.parametrize(
        ("value", "shown"),
        [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf"), (1e39, "1e+39")],
    )
    def test_refuses_what_is_no_finite_float32(self, value: float, shown: str) -> None:
        assert refusal(InvalidRequest, {DENSE.name: [[0, 0, 0], [0, value, value]]}, DENSE) == (
            f"float_features[1][1]: received {shown}, expected a finite float32"
        )


class TestEmbedding:
    def test_is_given_by_feature_and_batched_by_row(self) -> None:
        block = np.arange(24).reshape(2, 3, 4)
        valid = validate({EMBEDDING.name: block}, EMBEDDING)
        assert valid.rows == 3
        assert np.array_equal(np.asarray(valid.inputs[EMBEDDING.name]), block.transpose(1, 0, 2))

    @pytest.mark.parametrize(
        ("shape", "received"),
        [
            ((3, 5, 4), "3 x 5 x 4"),
            ((2, 5, 3), "2 x 5 x 3"),
            ((2, 4), "2 x 4"),
            ((8,), "8"),
            ((2, 0, 4), "2 x 0 x 4"),
        ],
    )
    def test_refuses_another_shape(self, shape: tuple[int, ...], received: str) -> None:
        assert refusal(InvalidRequest, {EMBEDDING.name: np.zeros(shape)}, EMBEDDING) == (
            f"embedding_features: received shape {received}, expected 2 features x B rows x 4 wide"
        )

    def test_says_what_only_the_model_knows(self) -> None:
        hidden = InputSignature(name="embedding_features", type="embedding")
        arrays = {"embedding_features": np.zeros((2, 4))}
        assert refusal(InvalidRequest, arrays, hidden, batch_size=2) == (
            "embedding_features: received shape 2 x 4, expected F features x 2 rows x D wide"
        )

    def test_names_the_place_of_a_fault_as_the_client_sent_it(self) -> None:
        block = np.zeros((2, 3, 4))
        block[1, 2, 0] = np.nan
        assert refusal(InvalidRequest, {EMBEDDING.name: block}, EMBEDDING) == (
            "embedding_features[1][2][0]: received nan, expected a finite float32"
        )


class TestSparse:
    def test_passes_as_int32_feature_by_feature(self) -> None:
        valid = validate(sparse([2, 0, 1, 1, 0, 0], [1, 2, 3, 4]), SPARSE)
        found = valid.inputs[SPARSE.name]
        assert valid.rows == 2
        assert isinstance(found, Sparse)
        assert found.lengths.dtype == found.values.dtype == np.int32
        assert found.lengths.tolist() == [[2, 0], [1, 1], [0, 0]]
        assert found.values.tolist() == [1, 2, 3, 4]
        assert found.weights is None

    def test_lengths_may_be_f_by_b(self) -> None:
        """ValidationTest: lengths pass with one axis and with two."""
        flat = validate(sparse([2, 0, 1, 1, 0, 0], [1, 2, 3, 4]), SPARSE)
        square = validate(sparse([[2, 0], [1, 1], [0, 0]], [1, 2, 3, 4]), SPARSE)
        for valid in (flat, square):
            found = valid.inputs[SPARSE.name]
            assert isinstance(found, Sparse)
            assert found.lengths.tolist() == [[2, 0], [1, 1], [0, 0]]

    def test_lengths_by_row_are_no_lengths_by_feature(self) -> None:
        """Taken flat, B x F would be served as other rows' ids."""
        arrays = sparse([[1, 1, 1], [1, 1, 1]], [1, 2, 3, 4, 5, 6])
        assert refusal(InvalidRequest, arrays, SPARSE, batch_size=2) == (
            "id_list_features.lengths: received shape 2 x 3, expected 3 features x 2 rows = 6"
        )

    def test_features_without_any_id_pass(self) -> None:
        found = validate(sparse([0, 0, 0], []), SPARSE).inputs[SPARSE.name]
        assert isinstance(found, Sparse)
        assert found.values.tolist() == []

    def test_lengths_that_do_not_add_up(self) -> None:
        """ValidationTest: lengths 1, 2, 1, 1 for four values fail."""
        assert refusal(InvalidRequest, sparse([1, 2, 2], [1, 2, 3, 4]), SPARSE) == (
            "id_list_features.values: received 4 ids, expected 5, "
            "the sum of id_list_features.lengths"
        )

    def test_refuses_a_number_of_lengths_that_is_not_f_times_b(self) -> None:
        arrays = {DENSE.name: np.zeros((3, 3)), **sparse(np.ones(8, np.int64), range(8))}
        assert refusal(InvalidRequest, arrays, DENSE, SPARSE) == (
            "id_list_features.lengths: received 8 lengths, expected 3 features x 3 rows = 9"
        )

    def test_refuses_lengths_that_tell_no_rows(self) -> None:
        assert refusal(InvalidRequest, sparse([1, 1], [1, 2]), SPARSE) == (
            "id_list_features.lengths: received 2 lengths, expected 3 features x B rows"
        )

    def test_refuses_a_request_without_rows(self) -> None:
        assert refusal(InvalidRequest, sparse([], []), SPARSE) == (
            "id_list_features: holds no rows, expected at least one "
            "(where no input tells the rows, give batch_size)"
        )

    def test_where_the_model_hides_its_features_batch_size_tells_the_rows(self) -> None:
        hidden = InputSignature(name="id_list_features", type="sparse")
        valid = validate(sparse([1, 0, 2, 1], [1, 2, 3, 4]), hidden, batch_size=2)
        found = valid.inputs["id_list_features"]
        assert isinstance(found, Sparse)
        assert found.lengths.tolist() == [[1, 0], [2, 1]]
        arrays = sparse([1, 0, 2, 1], [1, 2, 3, 4])
        assert refusal(InvalidRequest, arrays, hidden, batch_size=3) == (
            "id_list_features.lengths: received 4 lengths, expected F features x 3 rows"
        )
        assert refusal(InvalidRequest, arrays, hidden) == (
            "id_list_features: holds no rows, expected at least one "
            "(where no input tells the rows, give batch_size)"
        )

    def test_refuses_lengths_of_no_feature_where_the_model_hides_them(self) -> None:
        hidden = InputSignature(name="id_list_features", type="sparse")
        assert refusal(InvalidRequest, sparse(np.zeros((0, 3), np.int64), []), hidden) == (
            "id_list_features.lengths: received shape 0 x 3, expected F features x 3 rows"
        )

    def test_refuses_three_axes_of_lengths(self) -> None:
        arrays = sparse(np.ones((3, 1, 1), np.int64), [1, 2, 3])
        assert refusal(InvalidRequest, arrays, SPARSE) == (
            "id_list_features.lengths: received shape 3 x 1 x 1, expected 3 features x 1 rows = 3"
        )

    def test_refuses_nested_values(self) -> None:
        assert refusal(InvalidRequest, sparse([1, 1, 0], [[1, 2]]), SPARSE) == (
            "id_list_features.values: received shape 1 x 2, expected a flat list"
        )

    def test_refuses_negative_lengths(self) -> None:
        """One more and one less would add up."""
        assert refusal(InvalidRequest, sparse([1, -1, 2], [1, 2]), SPARSE) == (
            "id_list_features.lengths[1]: received -1, expected 0 or more"
        )

    @pytest.mark.parametrize("length", [1_048_577, 2**62])
    def test_refuses_lengths_beyond_the_limit(self, length: int) -> None:
        """Among them those whose sum overflows to what is expected: 4 x 2**62 is 0 in 64 bits."""
        arrays = sparse([length, length, 0, length, length, 0], [])
        assert refusal(RequestTooLarge, arrays, SPARSE) == (
            f"id_list_features.lengths[0]: received {length}, expected at most 1048576 "
            "(limits.ids_per_request)"
        )


class TestWeightedSparse:
    def test_passes_with_float32_weights(self) -> None:
        found = validate(sparse([1, 2], [1, 2, 3], [1, 0.5, -2]), WEIGHTED).inputs[WEIGHTED.name]
        assert isinstance(found, Sparse)
        assert found.weights is not None
        assert found.weights.dtype == np.float32
        assert found.weights.tolist() == [1, 0.5, -2]

    @pytest.mark.parametrize(
        ("weights", "received"), [([1.0, 2.0], "2"), ([[1.0, 2.0, 3.0]], "1 x 3")]
    )
    def test_refuses_another_number_of_weights(self, weights: Any, received: str) -> None:
        assert refusal(InvalidRequest, sparse([1, 2], [1, 2, 3], weights), WEIGHTED) == (
            f"id_score_list_features.weights: received {received} weights, "
            "expected 3, one for each of id_score_list_features.values"
        )

    def test_refuses_weights_that_are_not_finite(self) -> None:
        arrays = sparse([1, 2], [1, 2, 3], [1.0, np.inf, 2.0])
        assert refusal(InvalidRequest, arrays, WEIGHTED) == (
            "id_score_list_features.weights[1]: received inf, expected a finite float32"
        )

    def test_refuses_missing_weights(self) -> None:
        arrays = sparse([1, 0], [1], [1.0])
        del arrays[f"{WEIGHTED.name}.weights"]
        assert refusal(InvalidRequest, arrays, WEIGHTED) == (
            "id_score_list_features.weights: missing, received "
            "id_score_list_features.lengths, id_score_list_features.values"
        )


class TestMissing:
    def test_names_what_was_received(self) -> None:
        assert refusal(InvalidRequest, {DENSE.name: [[1, 2, 3]]}, DENSE, SPARSE) == (
            "id_list_features.lengths: missing, received float_features"
        )

    def test_says_when_nothing_was_received(self) -> None:
        assert refusal(InvalidRequest, {}, DENSE) == "float_features: missing, received nothing"

    def test_names_missing_values(self) -> None:
        assert refusal(InvalidRequest, {f"{SPARSE.name}.lengths": [1, 1, 1]}, SPARSE) == (
            "id_list_features.values: missing, received id_list_features.lengths"
        )


class TestIds:
    """SPARSE has tables of 50, 40 and 10 rows."""

    def test_the_last_row_of_each_table_passes(self) -> None:
        assert validate(sparse([1, 1, 1], [49, 39, 9]), SPARSE).rows == 1

    @pytest.mark.parametrize("number", [10, 2**31, 2**32 + 1, 2**63 - 1, -1, -(2**63)])
    def test_refuses_an_id_out_of_its_tables_range(self, number: int) -> None:
        """Ids beyond int32 included, which would come out as small ones."""
        assert refusal(
            InvalidRequest, sparse([1, 2, 0, 0, 0, 2], [1, 2, 3, 4, number]), SPARSE
        ) == (
            f"id_list_features.values[4]: received id {number} of feature 'genres', expected 0 to 9"
        )

    def test_where_the_model_hides_its_features_ids_are_int32(self) -> None:
        hidden = InputSignature(name="id_list_features", type="sparse", num_features=3)
        assert validate(sparse([1, 1, 1], [0, 1, 2**31 - 1]), hidden).rows == 1
        assert refusal(InvalidRequest, sparse([1, 1, 1], [0, 1, 2**31]), hidden) == (
            "id_list_features.values[2]: received id 2147483648, expected 0 to 2147483647"
        )

    def test_a_feature_of_unknown_range_is_checked_for_int32_alone(self) -> None:
        mapped = InputSignature(
            name="id_list_features",
            type="sparse",
            num_features=2,
            features=("hashed", "movie"),
            ids_below=(None, 40),
        )
        assert validate(sparse([1, 1], [2**31 - 1, 39]), mapped).rows == 1
        assert refusal(InvalidRequest, sparse([1, 1], [1, 40]), mapped) == (
            "id_list_features.values[1]: received id 40 of feature 'movie', expected 0 to 39"
        )

    def test_zero_looks_up_row_0(self) -> None:
        options = Options(out_of_range_ids="zero")
        ids = [50, 49, 2**40, -1, 9]
        found = validate(sparse([2, 1, 2], ids), SPARSE, options=options).inputs[SPARSE.name]
        assert isinstance(found, Sparse)
        assert found.values.tolist() == [0, 49, 0, 0, 9]

    def test_modulo_takes_the_remainder_by_the_tables_rows(self) -> None:
        options = Options(out_of_range_ids="modulo")
        ids = [53, 49, 2**40, -1, 19]
        found = validate(sparse([2, 1, 2], ids), SPARSE, options=options).inputs[SPARSE.name]
        assert isinstance(found, Sparse)
        assert found.values.tolist() == [3, 49, 2**40 % 40, 9, 9]

    def test_drop_leaves_the_id_out_of_its_list(self) -> None:
        options = Options(out_of_range_ids="drop")
        arrays = sparse([2, 0, 1, 1, 0, 2], [50, 49, 2**40, -1, 9, 10])
        found = validate(arrays, SPARSE, options=options).inputs[SPARSE.name]
        assert isinstance(found, Sparse)
        assert found.lengths.tolist() == [[1, 0], [0, 0], [0, 1]]
        assert found.values.tolist() == [49, 9]

    @pytest.mark.parametrize(("option", "expected"), [("zero", 0), ("modulo", 2**31 - 3)])
    def test_options_hold_for_int32_ids_of_unknown_range(self, option: Any, expected: int) -> None:
        """As protobuf brings them."""
        hidden = InputSignature(name="id_list_features", type="sparse", num_features=1)
        arrays = {
            "id_list_features.lengths": np.array([2], np.int32),
            "id_list_features.values": np.array([-3, 5], np.int32),
        }
        valid = validate(arrays, hidden, options=Options(out_of_range_ids=option))
        found = valid.inputs["id_list_features"]
        assert isinstance(found, Sparse)
        assert found.values.tolist() == [expected, 5]


class TestSharing:
    """A block of one row is every row's, whatever tells how many there are."""

    ROWS = 3
    ONE: ClassVar[Arrays] = {
        DENSE.name: [[1, 2, 3]],
        **sparse([2, 0, 1], [4, 5, 6]),
        **sparse([1, 2], [7, 8, 9], [1, 2, 3]),
        EMBEDDING.name: np.arange(8).reshape(2, 1, 4),
    }
    FULL: ClassVar[Arrays] = {
        DENSE.name: [[1, 2, 3]] * 3,
        **sparse([2, 2, 2, 0, 0, 0, 1, 1, 1], [4, 5, 4, 5, 4, 5, 6, 6, 6]),
        **sparse(
            [1, 1, 1, 2, 2, 2],
            [7, 7, 7, 8, 9, 8, 9, 8, 9],
            [1, 1, 1, 2, 3, 2, 3, 2, 3],
        ),
        EMBEDDING.name: np.repeat(np.arange(8).reshape(2, 1, 4), 3, axis=1),
    }
    INPUTS = (DENSE, SPARSE, WEIGHTED, EMBEDDING)

    @pytest.mark.parametrize("entry", INPUTS, ids=lambda entry: entry.type)
    @pytest.mark.parametrize("batch_size", [3, None])
    def test_one_input(self, entry: InputSignature, batch_size: int | None) -> None:
        """The others tell the rows, or `batch_size` does."""
        mixed = {
            name: (self.ONE if name.startswith(entry.name) else self.FULL)[name]
            for name in self.ONE
        }
        self.assert_full(validate(mixed, *self.INPUTS, batch_size=batch_size))

    @pytest.mark.parametrize("entry", INPUTS, ids=lambda entry: entry.type)
    def test_all_inputs_but_one(self, entry: InputSignature) -> None:
        mixed = {
            name: (self.FULL if name.startswith(entry.name) else self.ONE)[name]
            for name in self.ONE
        }
        self.assert_full(validate(mixed, *self.INPUTS))

    def test_all_inputs(self) -> None:
        self.assert_full(validate(self.ONE, *self.INPUTS, batch_size=3))

    def test_a_flat_dense_row(self) -> None:
        self.assert_full(validate({**self.FULL, DENSE.name: [1, 2, 3]}, *self.INPUTS))

    def test_f_by_1_lengths(self) -> None:
        lengths = {f"{SPARSE.name}.lengths": [[2], [0], [1]]}
        values = {f"{SPARSE.name}.values": [4, 5, 6]}
        self.assert_full(validate({**self.FULL, **lengths, **values}, *self.INPUTS))

    def test_two_rows_are_not_shared_by_three(self) -> None:
        arrays = {**self.FULL, DENSE.name: [[1, 2, 3]] * 2}
        assert refusal(InvalidRequest, arrays, *self.INPUTS) == (
            "float_features: received 2 rows, expected 3 (or 1 for all)"
        )

    def test_what_is_shared_takes_no_memory_of_its_own(self) -> None:
        valid = validate({DENSE.name: [[1, 2, 3]]}, DENSE, batch_size=16_000)
        assert np.asarray(valid.inputs[DENSE.name]).strides[0] == 0

    def test_ids_that_are_shared_are_held_once(self) -> None:
        """By features that have any, where there is more than one row."""
        found = validate(sparse([2, 0, 1], [4, 5, 6]), SPARSE, batch_size=16_000)
        held = found.inputs[SPARSE.name]
        assert isinstance(held, Sparse)
        assert held.values.tolist() == [4, 5, 6]
        assert held.lengths.shape == (3, 16_000)
        assert held.lengths.sum(axis=1).tolist() == [2, 0, 1]
        assert held.shared is not None
        assert held.shared.tolist() == [True, False, True]
        for lengths, batch_size in (([1, 0, 2], 1), ([0, 0, 0], 3)):
            alone = validate(sparse(lengths, range(sum(lengths))), SPARSE, batch_size=batch_size)
            held = alone.inputs[SPARSE.name]
            assert isinstance(held, Sparse)
            assert held.shared is None

    def test_features_that_a_codec_says_are_shared(self) -> None:
        columns = Columns(
            arrays=sparse([2, 0, 0, 1, 1, 1, 0, 0, 0], [4, 5, 6, 7, 8]),
            shared={SPARSE.name: np.array([True, False, True])},
            batch_size=3,
        )
        held = validator(SPARSE, options=limits(ids_per_request=9))(columns).inputs[SPARSE.name]
        assert isinstance(held, Sparse)
        assert held.shared is not None
        assert held.shared.tolist() == [True, False, False]
        with pytest.raises(RequestTooLarge) as caught:
            validator(SPARSE, options=limits(ids_per_request=8))(columns)
        assert str(caught.value) == (
            "received 9 ids of id_list_features, expected at most 8 ids (limits.ids_per_request)"
        )

    def assert_full(self, valid: ValidRequest) -> None:
        full = validate(self.FULL, *self.INPUTS, batch_size=self.ROWS)
        assert valid.rows == full.rows == self.ROWS
        found, expected = (
            combine([request], batching(*self.INPUTS), CPU).inputs for request in (valid, full)
        )
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert np.array_equal(np.asarray(found[name]), np.asarray(value)), name


class TestLimits:
    def test_rows(self) -> None:
        options = limits(rows_per_request=2)
        assert validate({DENSE.name: np.ones((2, 3))}, DENSE, options=options).rows == 2
        arrays = {DENSE.name: np.ones((3, 3))}
        assert refusal(RequestTooLarge, arrays, DENSE, options=options) == (
            "received 3 rows, expected at most 2 (limits.rows_per_request)"
        )

    def test_rows_that_are_only_claimed(self) -> None:
        """Before one shared row is given to all of them."""
        arrays = {DENSE.name: np.ones((1, 3))}
        assert refusal(RequestTooLarge, arrays, DENSE, batch_size=10**18) == (
            "received 1000000000000000000 rows, expected at most 16384 (limits.rows_per_request)"
        )

    def test_ids(self) -> None:
        options = limits(ids_per_request=4)
        assert validate(sparse([2, 1, 1], [1, 2, 3, 4]), SPARSE, options=options).rows == 1
        arrays = sparse([2, 2, 1], [1, 2, 3, 4, 5])
        assert refusal(RequestTooLarge, arrays, SPARSE, options=options) == (
            "received 5 ids of id_list_features, expected at most 4 ids (limits.ids_per_request)"
        )

    def test_ids_of_all_inputs_count(self) -> None:
        options = limits(ids_per_request=4)
        arrays = {**sparse([1, 1, 1], [1, 2, 3]), **sparse([1, 1], [1, 2], [1, 1])}
        assert refusal(RequestTooLarge, arrays, SPARSE, WEIGHTED, options=options) == (
            "received 3 ids of id_list_features and 2 ids of id_score_list_features, "
            "expected at most 4 ids (limits.ids_per_request)"
        )

    def test_shared_ids_count_once_a_row(self) -> None:
        """Before they are repeated."""
        arrays = sparse([1000, 0, 0], [1] * 1000)
        assert refusal(RequestTooLarge, arrays, SPARSE, batch_size=16_000) == (
            "received 1000 ids of id_list_features x 16000 rows, expected at most 1048576 ids "
            "(limits.ids_per_request)"
        )


def test_a_list_that_is_longer_than_its_position_weights_is_refused() -> None:
    entry = replace(SPARSE, longest=(2, *[None] * (len(SPARSE.ids_below) - 1)))
    rest = [0] * (len(SPARSE.ids_below) - 1)
    assert validate(sparse([2, *rest], [1, 1]), entry).rows == 1
    assert refusal(InvalidRequest, sparse([3, *rest], [1, 1, 1]), entry) == (
        f"{SPARSE.name}.lengths: received 3 ids of feature {SPARSE.features[0]!r} in row 0, "
        "expected at most 2, the positions that have a weight"
    )


def test_wide_ids_stay_as_they_are() -> None:
    rest = [0] * (len(SPARSE.ids_below) - 1)
    entry = replace(SPARSE, ids_below=(None, *SPARSE.ids_below[1:]), is_wide=True)
    block = validate(sparse([2, *rest], [3, 2**63 - 1]), entry).inputs[SPARSE.name]
    assert isinstance(block, Sparse)
    assert (block.values.dtype.name, block.values.tolist()) == ("int64", [3, 2**63 - 1])
    for policy in ("zero", "modulo"):
        options = Options.model_validate({"out_of_range_ids": policy})
        block = validate(sparse([1, *rest], [2**62]), entry, options=options).inputs[SPARSE.name]
        assert isinstance(block, Sparse)
        assert block.values.tolist() == [2**62]
    block = validate(sparse([2, *rest], [-1, 2**63 - 1]), entry, options=options).inputs[
        SPARSE.name
    ]
    assert isinstance(block, Sparse)
    assert block.values[1] == 2**63 - 1


LEAST_ROWS = 10
"""Of all tables."""
LONGEST = 3
LIMITED = limits(ids_per_request=40, rows_per_request=4)
TOGETHER = (DENSE, replace(SPARSE, longest=(LONGEST, None, LONGEST)), WEIGHTED, EMBEDDING)
FAULTS = ("shape", "lengths", "sums", "longest", "ids", "floats")
Outcome = ValidRequest | RequestError

good_numbers = st.floats(-1e30, 1e30)
numbers = good_numbers | st.sampled_from([np.nan, np.inf, 1e39])


@st.composite
def sparse_arrays(draw: st.DrawFn, entry: InputSignature, rows: int, fault: str) -> Arrays:
    features = entry.num_features or 0
    count = features * draw(st.sampled_from([rows, rows, 1]))
    size = draw(st.sampled_from([1, 1, 2, LONGEST]))
    if fault == "longest":
        size = LONGEST + 2
    lengths = np.array(
        [draw(st.integers(0, size)) for _ in range(count)],
        draw(st.sampled_from([np.int32, np.int64])),
    )
    total = int(lengths.sum()) + (draw(st.integers(-1, 1)) if fault == "sums" else 0)
    if fault == "lengths":
        lengths[draw(st.integers(0, count - 1))] = draw(st.sampled_from([-1, 41]))
    most = 2**40 if fault == "ids" else LEAST_ROWS - 1
    values = [draw(st.integers(-1 if fault == "ids" else 0, most)) for _ in range(max(total, 0))]
    if draw(st.booleans()):
        lengths = lengths.reshape(features, -1)
    if fault == "shape":
        lengths = lengths.reshape(-1)[1:]
    kind = np.int64 if fault == "ids" else draw(st.sampled_from([np.int32, np.int64]))
    arrays = {f"{entry.name}.lengths": lengths, f"{entry.name}.values": np.array(values, kind)}
    if entry.type == "weighted_sparse":
        size = len(values) + (fault == "shape")
        weights = [draw(numbers if fault == "floats" else good_numbers) for _ in range(size)]
        arrays[f"{entry.name}.weights"] = np.array(weights, np.float64)
    return arrays


@st.composite
def requests(draw: st.DrawFn) -> Columns:
    """Half of them good; each of the others may be off in any of its inputs."""
    rows = draw(st.sampled_from([*[1] * 5, *[2] * 4, 5]))
    is_good = draw(st.booleans())
    arrays: dict[str, Any] = {}
    for entry in TOGETHER:
        fault = "" if is_good else draw(st.sampled_from([*[""] * 12, *FAULTS]))
        if entry.type in ("sparse", "weighted_sparse"):
            arrays |= draw(sparse_arrays(entry, rows, fault))
            continue
        own = draw(st.sampled_from([rows, rows, 1]))
        is_dense = entry.type == "dense"
        features, width = entry.num_features or 0, entry.width or 0
        shape: tuple[int, ...] = (own, features) if is_dense else (features, own, width)
        block = np.full(shape, draw(good_numbers))
        if fault == "floats":
            block.flat[draw(st.integers(0, block.size - 1))] = draw(numbers)
        arrays[entry.name] = block[..., 1:] if fault == "shape" else block
        if is_dense and own == 1 and draw(st.booleans()):
            arrays[entry.name] = block.reshape(-1)
    if not is_good and draw(st.sampled_from([True, *[False] * 9])):
        arrays.pop(draw(st.sampled_from(sorted(arrays))))
    return Columns(arrays=arrays, batch_size=draw(st.sampled_from([None, rows])))


def outcome(check: Validator, columns: Columns) -> Outcome:
    try:
        return check(columns)
    except RequestError as error:
        return error


def check_together(check: Validator, batch: Sequence[Columns]) -> Sequence[Outcome]:
    """As an engine does: those that can be measured are checked in one call."""
    measured = {}
    outcomes: dict[int, Outcome] = {}
    for at, columns in enumerate(batch):
        try:
            measured[at] = check.measure(columns)
        except RequestError as error:
            outcomes[at] = error
    checked = check.check([batch[at] for at in measured], list(measured.values()))
    outcomes.update(zip(measured, checked, strict=True))
    return [outcomes[at] for at in range(len(batch))]


def arrays_of(request: ValidRequest) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for name, value in request.inputs.items():
        if isinstance(value, Sparse):
            found |= {f"{name}.{part}": array for part, array in value._asdict().items()}
        else:
            found[name] = value
    return found


def assert_alike(received: Outcome, expected: Outcome) -> None:
    assert type(received) is type(expected)
    if isinstance(received, RequestError):
        assert vars(received) == vars(expected)
        return
    assert isinstance(expected, ValidRequest)
    assert received.rows == expected.rows
    mine, others = arrays_of(received), arrays_of(expected)
    assert mine.keys() == others.keys()
    for name, array in mine.items():
        if array is None:
            assert others[name] is None
            continue
        assert (array.dtype, array.shape) == (others[name].dtype, others[name].shape)
        np.testing.assert_array_equal(array, others[name])


class TestTogether:
    """What becomes of a request does not depend on those that it is checked with."""

    @examples()
    @given(
        st.lists(requests(), min_size=1, max_size=5),
        st.sampled_from(["reject", "zero", "modulo", "drop"]),
    )
    def test_as_alone(self, batch: list[Columns], out_of_range_ids: Any) -> None:
        options = LIMITED.model_copy(update={"out_of_range_ids": out_of_range_ids})
        check = validator(*TOGETHER, options=options)
        alone = [outcome(check, columns) for columns in batch]
        for received, expected in zip(check_together(check, batch), alone, strict=True):
            assert_alike(received, expected)

    def test_each_is_told_its_own_faults_in_its_own_places(self) -> None:
        """Those of one rule at once, those of the next after it, and the good ones pass."""
        check = validator(SPARSE, WEIGHTED, DENSE)
        weighted = sparse([1, 1], [1, 2], [1.0, 1.0])
        good: dict[str, Any] = {DENSE.name: np.zeros(3), **sparse([1, 1, 1], [1, 2, 3]), **weighted}
        batch = [
            good,
            {**good, **sparse([2, -1, 2], [1, 2, 3])},
            {**good, **sparse([1, 1, 1], [1, 2, 10])},
            {**good, **sparse([1, 1, -2], [])},
            {**good, **sparse([1, 1], [1, 2], [1.0, np.nan])},
            {**good, **sparse([3, 1, 0], [1, 2, 3, 40])},
            {**good, DENSE.name: np.array([0, np.inf, 0])},
            {**good, **sparse([1, 1, 2], [1, 2, 3])},
            {**good, **sparse([2_000_000, 1, 1], [1, 2, 3])},
            good,
        ]
        outcomes = check_together(check, [Columns(arrays=arrays) for arrays in batch])
        assert [str(one) if isinstance(one, RequestError) else "" for one in outcomes] == [
            "",
            "id_list_features.lengths[1]: received -1, expected 0 or more",
            "id_list_features.values[2]: received id 10 of feature 'genres', expected 0 to 9",
            "id_list_features.lengths[2]: received -2, expected 0 or more",
            "id_score_list_features.weights[1]: received nan, expected a finite float32",
            "id_list_features.values[3]: received id 40 of feature 'movie', expected 0 to 39",
            "float_features[0][1]: received inf, expected a finite float32",
            (
                "id_list_features.values: received 3 ids, expected 4, "
                "the sum of id_list_features.lengths"
            ),
            (
                "id_list_features.lengths[0]: received 2000000, expected at most 1048576 "
                "(limits.ids_per_request)"
            ),
            "",
        ]

    def test_a_list_that_is_too_long_is_told_by_its_row(self) -> None:
        check = validator(replace(SPARSE, longest=(2, None, 1)))
        good = Columns(arrays=sparse([2, 2, 5, 0, 1, 1], [1] * 11))
        long = Columns(arrays=sparse([2, 2, 0, 0, 1, 2], [1] * 7))
        assert isinstance(check(good), ValidRequest)
        outcomes = check_together(check, [good, long, good])
        assert str(outcomes[1]) == (
            "id_list_features.lengths: received 2 ids of feature 'genres' in row 1, "
            "expected at most 1, the positions that have a weight"
        )
        assert isinstance(outcomes[0], ValidRequest)
        assert isinstance(outcomes[2], ValidRequest)

    def test_what_a_codec_says_is_shared_is_each_requests_own(self) -> None:
        arrays = sparse([2, 0, 0, 1, 0, 0, 1, 1, 1], [4, 5, 6, 7, 8, 9])
        masks = ([True, False, False], [False, True, False], [True, True, False], None)
        batch = [
            Columns(
                arrays=arrays,
                shared={} if mask is None else {SPARSE.name: np.array(mask)},
                batch_size=3,
            )
            for mask in masks
        ]
        check = validator(SPARSE)
        assert len({check.measure(columns).form for columns in batch}) == 1
        for valid, mask in zip(check_together(check, batch), masks, strict=True):
            assert isinstance(valid, ValidRequest)
            held = valid.inputs[SPARSE.name]
            assert isinstance(held, Sparse)
            assert (None if held.shared is None else held.shared.tolist()) == mask

    def test_models_that_hide_their_features_are_asked_by_each_requests_shapes(self) -> None:
        hidden = InputSignature(name="id_list_features", type="sparse")
        batch = [
            Columns(arrays=sparse([1] * 4, [1, 2, 3, 4]), batch_size=rows) for rows in (1, 2, 4, 2)
        ]
        shapes = []
        for valid in check_together(validator(hidden), batch):
            assert isinstance(valid, ValidRequest)
            held = valid.inputs[SPARSE.name]
            assert isinstance(held, Sparse)
            shapes.append(held.lengths.shape)
        assert shapes == [(4, 1), (2, 2), (1, 4), (2, 2)]

    def test_short_requests_share_arrays_and_long_ones_are_not_copied_together(self) -> None:
        check = validator(DENSE)
        short, long = (Columns(arrays={DENSE.name: np.zeros((rows, 3))}) for rows in (2, 8_000))
        blocks = [
            np.asarray(valid.inputs[DENSE.name]).base
            for valid in check_together(check, [short, long, short, long])
            if isinstance(valid, ValidRequest)
        ]
        assert blocks[0] is blocks[2]
        assert blocks[1] is not blocks[3]
