"""Which arrays a body may hold, and how much of each."""

from tests.support.exact import DENSE, EMBEDDING, SPARSE, WEIGHTED
from tests.support.one_request import signature
from torchrec_handler.archive.format import InputSignature
from torchrec_handler.options import Limits
from torchrec_handler.serve.codecs.columns import Column, columns

LIMITS = Limits(rows_per_request=10, ids_per_request=100)


def test_every_input_has_its_arrays() -> None:
    assert list(columns(signature(DENSE, SPARSE, WEIGHTED, EMBEDDING), LIMITS)) == [
        "float_features",
        "id_list_features.lengths",
        "id_list_features.values",
        "id_score_list_features.lengths",
        "id_score_list_features.values",
        "id_score_list_features.weights",
        "embedding_features",
    ]


def test_numbers_are_limited_by_rows() -> None:
    found = columns(signature(DENSE, EMBEDDING), LIMITS)
    assert found == {
        "float_features": Column(
            is_integer=False, most=30, limit="limits.rows_per_request x 3 features"
        ),
        "embedding_features": Column(
            is_integer=False, most=80, limit="limits.rows_per_request x 2 features x 4 wide"
        ),
    }


def test_lengths_are_limited_by_rows_and_what_they_count_by_ids() -> None:
    assert columns(signature(WEIGHTED), LIMITS) == {
        "id_score_list_features.lengths": Column(
            is_integer=True, most=20, limit="limits.rows_per_request x 2 features"
        ),
        "id_score_list_features.values": Column(
            is_integer=True, most=100, limit="limits.ids_per_request"
        ),
        "id_score_list_features.weights": Column(
            is_integer=False, most=100, limit="limits.ids_per_request"
        ),
    }


def test_a_width_that_only_the_model_knows_sets_no_limit() -> None:
    found = columns(
        signature(
            InputSignature(name="a", type="dense"),
            InputSignature(name="b", type="embedding", num_features=2),
            InputSignature(name="c", type="sparse"),
        ),
        LIMITS,
    )
    assert {name: column.most for name, column in found.items()} == {
        "a": None,
        "b": None,
        "c.lengths": None,
        "c.values": 100,
    }
