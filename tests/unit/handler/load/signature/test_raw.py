"""What a factory says of raw values is in the signature, or refused where it stands."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.exact import DENSE, SPARSE, WEIGHTED
from torchrec_handler.archive.format import Hashed, InputSignature, Signature
from torchrec_handler.errors import FactoryError
from torchrec_handler.load.signature.raw import with_raw
from torchrec_handler.simple import Hashed as SaidHashed
from torchrec_handler.simple import SimpleFactory, dense, sparse, weighted_sparse

HIDDEN = InputSignature(name="hidden", type="sparse", num_features=2)
OPEN = InputSignature(
    name="open", type="sparse", num_features=1, features=("raw",), ids_below=(None,), is_wide=True
)
SIGNATURE = Signature(
    inputs=(DENSE, SPARSE, WEIGHTED, HIDDEN, OPEN), methods={}, result_metadata="dict_of_tensor"
)


class Factory:
    """Its name is told."""


def observed(said: Any) -> dict[str, InputSignature]:
    output: Any = SimpleNamespace(factory=Factory(), model_inputs_data=said)
    inputs = with_raw(SIGNATURE, output).inputs
    return {entry.name: entry for entry in inputs}


def test_what_is_said_of_a_feature_stands_in_its_place() -> None:
    found = observed(
        {
            DENSE.name: {"defaults": {"hour": 12, "age": -0.5}},
            SPARSE.name: {
                "hashed": {"movie": {"seed": 7, "rows": 30}, "user": {}},
                "out_of_range": {"genres": "drop"},
            },
            OPEN.name: {"hashed": {"raw": {}}},
        }
    )
    assert found[DENSE.name].defaults == (-0.5, None, 12.0)
    assert found[SPARSE.name].hashed == (
        Hashed(function="xxh64", rows=50, seed=0),
        Hashed(function="xxh64", rows=30, seed=7),
        None,
    )
    assert found[SPARSE.name].out_of_range == (None, None, "drop")
    assert found[OPEN.name].hashed == (Hashed(function="xxh64", rows=2**63, seed=0),)
    assert (found[WEIGHTED.name], found[HIDDEN.name]) == (WEIGHTED, HIDDEN)


def test_a_factory_that_says_nothing_leaves_the_signature_as_it_is() -> None:
    said = {SPARSE.name: {"features": SPARSE.features}, "anything": [1], OPEN.name: "open"}
    assert tuple(observed(said).values()) == SIGNATURE.inputs


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        (
            DENSE.name,
            {"hashed": {"age": {}}},
            "['hashed']: the input is dense, this can be said of sparse or weighted_sparse ones",
        ),
        (
            SPARSE.name,
            {"defaults": {"user": 1}},
            "['defaults']: the input is sparse, this can be said of dense ones",
        ),
        (
            SPARSE.name,
            {"hashed": ["user"]},
            "['hashed']: received ['user'], expected a mapping of features",
        ),
        (
            SPARSE.name,
            {"hashed": {"item": {}}},
            "['hashed']: received the feature 'item', expected of user, movie, genres",
        ),
        (
            HIDDEN.name,
            {"hashed": {"item": {}}},
            "['hashed']: received the feature 'item', expected of none that are known by name",
        ),
        (
            SPARSE.name,
            {"hashed": {"user": {"salt": 1}}},
            "['hashed']['user']: received {'salt': 1}, expected nothing but 'seed' and 'rows'",
        ),
        (
            SPARSE.name,
            {"hashed": {"user": 7}},
            "['hashed']['user']: received 7, expected nothing but 'seed' and 'rows'",
        ),
        (
            SPARSE.name,
            {"hashed": {"user": {"seed": -1}}},
            (
                "['hashed']['user']: seed: received -1, "
                f"expected a whole number from 0 to {2**63 - 1}"
            ),
        ),
        (
            SPARSE.name,
            {"hashed": {"user": {"rows": "9"}}},
            f"['hashed']['user']: rows: received '9', expected a whole number from 1 to {2**63}",
        ),
        (
            SPARSE.name,
            {"hashed": {"user": {"rows": 51}}},
            (
                "['hashed']['user']: received 51 rows, expected at most 50, "
                "those of the feature's table"
            ),
        ),
        (
            SPARSE.name,
            {"out_of_range": {"user": "clip"}},
            (
                "['out_of_range']['user']: received 'clip', "
                "expected one of reject, zero, modulo, drop"
            ),
        ),
        (
            SPARSE.name,
            {"hashed": {"user": {}}, "out_of_range": {"user": "drop"}},
            (
                "['out_of_range']: received the feature 'user', which is hashed: "
                "no id of it is out of range"
            ),
        ),
        *(
            (
                DENSE.name,
                {"defaults": {"age": value}},
                f"['defaults']['age']: received {value!r}, expected a finite float32",
            )
            for value in ("1", True, None, float("nan"), float("inf"), 1e39)
        ),
    ],
)
def test_what_cannot_be_done_is_named(name: str, said: Any, message: str) -> None:
    with pytest.raises(FactoryError) as caught:
        observed({name: said})
    assert str(caught.value) == f"Factory.model_inputs_data[{name!r}]{message}"


def test_a_simple_factory_says_the_same_in_its_inputs() -> None:
    class Says(SimpleFactory):
        @property
        def inputs(self) -> Any:
            return {
                DENSE.name: dense("age", "price", "hour", defaults={"hour": 12}),
                SPARSE.name: sparse(
                    "user",
                    "movie",
                    "genres",
                    hashed={"user": SaidHashed(), "movie": SaidHashed(seed=7, rows=30)},
                    out_of_range={"genres": "drop"},
                ),
                WEIGHTED.name: weighted_sparse(
                    "tags", "clicks", hashed={"tags": SaidHashed(seed=1)}
                ),
            }

        def model(self, device: Any) -> Any:
            raise NotImplementedError

        def forward(self, model: Any, batch: Any) -> Any:
            raise NotImplementedError

    data = Says().model_inputs_data()
    assert data == {
        DENSE.name: {"features": ["age", "price", "hour"], "defaults": {"hour": 12}},
        SPARSE.name: {
            "features": ["user", "movie", "genres"],
            "hashed": {"user": {"seed": 0}, "movie": {"seed": 7, "rows": 30}},
            "out_of_range": {"genres": "drop"},
        },
        WEIGHTED.name: {"features": ["tags", "clicks"], "hashed": {"tags": {"seed": 1}}},
    }
    found = observed(data)
    assert found[SPARSE.name].hashed[1] == Hashed(function="xxh64", rows=30, seed=7)
    assert found[WEIGHTED.name].hashed == (Hashed(function="xxh64", rows=30, seed=1), None)
