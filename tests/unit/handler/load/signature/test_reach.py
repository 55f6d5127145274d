"""Which ids come to the tables as they were sent, and what becomes of others."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torchrec.inference.modules import PredictModule, QualNameMetadata
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.base import ForwardFactory
from torchrec_handler.archive.format import Signature
from torchrec_handler.errors import FactoryError, InvalidRequest
from torchrec_handler.load.factory import run_factory
from torchrec_handler.load.signature.inputs import observe_signature
from torchrec_handler.load.signature.reach import guard, lets_rows_pass
from torchrec_handler.tables.find import find_collections

CPU = torch.device("cpu")
ROWS = 8

Batch = dict[str, torch.Tensor]


def bags(*, is_weighted: bool = False, rows: int = ROWS) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(
            name=f"t_{feature}", embedding_dim=4, num_embeddings=rows, feature_names=[feature]
        )
        for feature in ("user", "item")
    ]
    return EmbeddingBagCollection(tables=tables, is_weighted=is_weighted, device=CPU)


class Changed(PredictModule):
    """Looks up what a function makes of ids."""

    def __init__(
        self, model: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__(model, "cpu")
        self._change = change

    def predict_forward(self, batch: Batch) -> Batch:
        kjt = KeyedJaggedTensor(
            keys=["user", "item"],
            values=self._change(batch["ids.values"]),
            lengths=batch["ids.lengths"],
            weights=batch.get("ids.weights"),
        )
        return {"default": self.predict_module(kjt).values().sum(dim=1)}


def factory(
    change: Callable[[torch.Tensor], torch.Tensor], kind: str = "sparse", **arguments: Any
) -> Any:
    class Factory(ForwardFactory):
        inputs = {"ids": kind}  # noqa: RUF012

        def create_predict_module(self) -> Any:
            return Changed(bags(**arguments), change)

    return Factory()


def observed(given: Any) -> tuple[Signature, torch.nn.Module]:
    output = run_factory(given, CPU, world_size=1)
    collections = find_collections(output.module)
    signature = observe_signature(output, output.module, collections, CPU)
    guard(output.module, collections)
    return signature, output.module


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: ids % ROWS,
        lambda ids: (ids.long() * 3 + 1) % ROWS,
        lambda ids: ids.clamp(max=ROWS - 1),
        lambda ids: torch.where(ids < ROWS, ids, 0),
    ],
    ids=["modulo", "hash", "clamp", "unknown ones are 0"],
)
def test_a_model_that_changes_ids_takes_any(change: Callable[[torch.Tensor], Any]) -> None:
    signature, module = observed(factory(change))
    assert signature.changes_ids
    (entry,) = signature.inputs
    assert (entry.ids_below, entry.is_wide) == ((None, None), True)
    ids = torch.tensor([2**62 + 9, 2])
    given = {"ids.values": ids, "ids.lengths": torch.ones(2, dtype=torch.int32)}
    tables: Any = module.predict_module
    rows = [
        tables.embedding_bags[f"t_{name}"].weight[row].sum()
        for name, row in zip(("user", "item"), change(ids), strict=True)
    ]
    torch.testing.assert_close(module(given)["default"], torch.stack(rows).sum(dim=0, keepdim=True))


@pytest.mark.parametrize(
    "change",
    [lambda ids: ids, lambda ids: ids.long(), lambda ids: ids.clone(), lambda ids: ids + 0],
    ids=["as they are", "long", "copied", "added 0"],
)
def test_ids_that_come_as_they_were_sent_are_limited(change: Callable[..., Any]) -> None:
    signature, _ = observed(factory(change))
    assert not signature.changes_ids
    (entry,) = signature.inputs
    assert (entry.ids_below, entry.is_wide) == ((ROWS, ROWS), False)


def written(ids: torch.Tensor) -> torch.Tensor:
    """As TorchRec's managed collision writes rows of int64: into a tensor like the ids."""
    return torch.empty_like(ids).scatter_(0, torch.arange(len(ids)), ids.long())


@pytest.mark.parametrize(
    ("change", "below"), [(written, ROWS), (lambda ids: written(ids) % ROWS, None)]
)
def test_a_model_that_takes_int64_alone_is_given_it(
    change: Callable[[torch.Tensor], Any], below: int | None
) -> None:
    signature, _ = observed(factory(change))
    (entry,) = signature.inputs
    assert (entry.features, entry.ids_below, entry.is_wide) == (
        ("user", "item"),
        (below, below),
        True,
    )


class Two(PredictModule):
    """The second input alone has to be int64."""

    def predict_forward(self, batch: Batch) -> Batch:
        bags: Any = self.predict_module
        ids = {"user": batch["users.values"], "item": written(batch["items.values"])}
        lengths = {"user": batch["users.lengths"], "item": batch["items.lengths"]}
        given = [
            KeyedJaggedTensor(keys=[name], values=ids[name], lengths=lengths[name]) for name in ids
        ]
        return {"default": bags(KeyedJaggedTensor.concat(given)).values().sum(dim=1)}


class TwoFactory(ForwardFactory):
    inputs = {"users": "sparse", "items": "sparse"}  # noqa: RUF012

    def create_predict_module(self) -> Any:
        return Two(bags(), "cpu")


def test_an_input_that_takes_int32_is_given_it_beside_another() -> None:
    signature, _ = observed(TwoFactory())
    assert [(entry.name, entry.is_wide) for entry in signature.inputs] == [
        ("users", False),
        ("items", True),
    ]


def test_what_a_model_raises_on_any_ids_is_told_as_it_was_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused(ids: torch.Tensor) -> torch.Tensor:
        message = f"no {ids.dtype}"
        raise ValueError(message)

    signature, _ = observed(factory(refused))
    assert [entry.is_wide for entry in signature.inputs] == [False]
    assert caplog.messages[0] == (
        "signature: a sample of one row raised ValueError: no torch.int32"
    )


class Misspelt(PredictModule):
    def predict_forward(self, batch: Batch) -> Batch:
        kjt = KeyedJaggedTensor(
            keys=["user", "itme"], values=batch["ids.values"], lengths=batch["ids.lengths"]
        )
        return {"default": self.predict_module(kjt).values().sum(dim=1)}


class MisspeltFactory(ForwardFactory):
    inputs = {"ids": "sparse"}  # noqa: RUF012

    def create_predict_module(self) -> Any:
        return Misspelt(bags(), "cpu")

    def model_inputs_data(self) -> dict[str, Any]:
        return {"ids": {"features": ["user", "itme"]}}


def test_a_feature_that_is_misspelt_is_named(caplog: pytest.LogCaptureFixture) -> None:
    observed(MisspeltFactory())
    assert caplog.messages[0] == (
        "signature: a sample of one row raised KeyError: 'item'; no input has item of the tables' "
        "features, and no table itme of the inputs'"
    )


def test_a_row_that_a_model_made_beyond_its_table_is_refused() -> None:
    """A native lookup would read what lies behind it."""
    _, module = observed(factory(lambda ids: ids * 3))
    given = {"ids.values": torch.tensor([2, 3]), "ids.lengths": torch.ones(2, dtype=torch.int32)}
    with pytest.raises(InvalidRequest) as caught:
        module(given)
    assert str(caught.value) == (
        "feature 'item': the model made the row 9 of its ids, its table has 8 rows"
    )


class Twice(PredictModule):
    """Looks ids up as they were sent, and what it makes of them in a smaller table."""

    def __init__(self) -> None:
        small = EmbeddingBagConfig(
            name="t_b", embedding_dim=4, num_embeddings=ROWS, feature_names=["b"]
        )
        collections = [EmbeddingBagCollection(tables=[small], device=CPU), bags(rows=100)]
        super().__init__(torch.nn.ModuleList(collections), "cpu")

    def predict_forward(self, batch: Batch) -> Batch:
        small, large = self.predict_module
        values, lengths = batch["ids.values"], batch["ids.lengths"]
        raw = KeyedJaggedTensor(keys=["user", "item"], values=values, lengths=lengths)
        made = KeyedJaggedTensor(keys=["b"], values=values[:1] * 3, lengths=lengths[:1])
        return {"default": large(raw).values().sum(dim=1) + small(made).values().sum(dim=1)}


def test_what_a_model_makes_beside_ids_as_they_were_sent_is_checked_too() -> None:
    class Factory(ForwardFactory):
        inputs = {"ids": "sparse"}  # noqa: RUF012

        def create_predict_module(self) -> Any:
            return Twice()

    signature, module = observed(Factory())
    assert signature.inputs[0].ids_below == (100, 100)
    assert signature.changes_ids
    given = {"ids.values": torch.tensor([3, 3]), "ids.lengths": torch.ones(2, dtype=torch.int32)}
    with pytest.raises(InvalidRequest):
        module(given)


class WithSimilar(Changed):
    """A second method, which looks up other rows than the first."""

    def similar(self, batch: Batch) -> Batch:
        return Changed.predict_forward(self, {**batch, "ids.values": batch["ids.values"] * 3})


def with_similar(*, need_preproc: bool) -> tuple[Signature, Any]:
    class Factory(ForwardFactory):
        inputs = {"ids": "sparse"}  # noqa: RUF012

        def create_predict_module(self) -> Any:
            return WithSimilar(bags(), lambda ids: ids)

        def qualname_metadata(self) -> dict[str, QualNameMetadata]:
            similar = QualNameMetadata(need_preproc=need_preproc)
            return {"forward": QualNameMetadata(need_preproc=True), "similar": similar}

    return observed(Factory())


def test_what_another_method_makes_of_ids_is_checked() -> None:
    signature, module = with_similar(need_preproc=True)
    assert signature.inputs[0].ids_below == (None, None)  # its own rows are others
    assert signature.changes_ids
    given = {"ids.values": torch.tensor([2, 3]), "ids.lengths": torch.ones(2, dtype=torch.int32)}
    module(given)
    with pytest.raises(InvalidRequest, match="feature 'item': the model made the row 9 of its ids"):
        module.similar(given)


def test_lookups_of_a_method_that_is_given_its_arguments_as_they_came_are_checked() -> None:
    """Nobody has compared them with the tables."""
    signature, _ = with_similar(need_preproc=False)
    assert not signature.changes_ids
    assert lets_rows_pass(signature)
    limited, _ = observed(factory(lambda ids: ids))
    assert not lets_rows_pass(limited)
    hidden = replace(limited, inputs=(replace(limited.inputs[0], num_features=None, ids_below=()),))
    assert lets_rows_pass(hidden)


def test_weights_that_nobody_reads_are_named(caplog: pytest.LogCaptureFixture) -> None:
    observed(factory(lambda ids: ids, "weighted_sparse"))
    warnings = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert warnings == [
        (
            "signature: _module: is given weights of user, item, but has is_weighted=False, so "
            "they change nothing, here as in training; if they should, give the collection "
            "is_weighted=True"
        )
    ]
    caplog.clear()
    observed(factory(lambda ids: ids, "weighted_sparse", is_weighted=True))
    assert [one.message for one in caplog.records if one.levelno == logging.WARNING] == []


def test_a_table_of_more_rows_than_32_bits_count_is_refused() -> None:
    config = EmbeddingBagConfig(
        name="t_user", embedding_dim=4, num_embeddings=2**31, feature_names=["user"]
    )
    module = EmbeddingBagCollection(tables=[config], device=torch.device("meta"))
    with pytest.raises(FactoryError) as caught:
        find_collections(module)
    assert str(caught.value) == (
        "table 't_user': has 2147483648 rows, expected at most 2147483647: lookups count rows in "
        "32 bits; split the table"
    )
