"""A signature is what the model itself shows: names, widths, rows behind each feature."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torchrec.inference.modules import PredictModule, quantize_inference_model, set_pruning_data
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.base import ForwardFactory
from tests.support.factories.kinds_base import Batch, KindFactory, keyed
from tests.support.factories.kinds_own import PrunedFactory, QuantizedAtOnceFactory, ShardedFactory
from tests.support.factories.kinds_pooled import (
    ManagedFactory,
    PositionWeightedFactory,
    SumFactory,
    WeightedFactory,
    WidthsFactory,
)
from tests.support.factories.kinds_ranking import DeepFmFactory, DlrmDcnFactory, DlrmFactory
from tests.support.factories.kinds_sequence import ManagedSequenceFactory, SequenceFactory
from tests.support.factories.kinds_two_tower import TwoTowerFactory
from tests.support.kinds import CPU, KINDS, prepare
from torchrec_handler.archive.format import Hashed, InputSignature, Signature
from torchrec_handler.errors import FactoryError
from torchrec_handler.load.dense import lower
from torchrec_handler.load.factory import run_factory
from torchrec_handler.load.signature.inputs import observe_signature
from torchrec_handler.options import Options
from torchrec_handler.tables.collection import Collection, Collections
from torchrec_handler.tables.find import find_collections


def sparse(name: str, features: Mapping[str, int | None], kind: str = "sparse") -> InputSignature:
    return InputSignature(
        name=name,
        type=kind,
        num_features=len(features),
        features=tuple(features),
        ids_below=tuple(features.values()),
        is_wide=None in features.values(),
    )


DENSE = InputSignature(name="float_features", type="dense", num_features=5)
RANKING = sparse("id_list_features", {"user": 50, "movie": 40, "genre": 10})
USER_MOVIE = sparse("id_list_features", {"user": 50, "movie": 40})
SHOWN: dict[type[KindFactory], tuple[tuple[InputSignature, ...], dict[str, list[int]]]] = {
    SumFactory: ((USER_MOVIE,), {"default": [1], "pooled": [1, 16]}),
    WidthsFactory: (
        (sparse("id_list_features", {"user": 50, "movie": 40, "genre": 10, "tag": 30}),),
        {"default": [1], "pooled": [1, 40]},
    ),
    WeightedFactory: (
        (sparse("id_score_list_features", {"tags": 30, "clicks": 20}, "weighted_sparse"),),
        {"default": [1], "pooled": [1, 16]},
    ),
    PositionWeightedFactory: (
        (replace(USER_MOVIE, longest=(6, 6)),),
        {"default": [1], "pooled": [1, 16]},
    ),
    ManagedFactory: (
        (sparse("id_list_features", {"user": None, "movie": None}),),
        {"default": [1], "pooled": [1, 16]},
    ),
    SequenceFactory: (
        (sparse("id_list_features", {"clicked": 40, "bought": 40, "genre": 10}),),
        {"default": [1], "padded": [1, 120]},
    ),
    ManagedSequenceFactory: (
        (sparse("id_list_features", {"movie": None, "genre": None}),),
        {"default": [1], "padded": [1, 80]},
    ),
    DlrmFactory: ((DENSE, RANKING), {"default": [1]}),
    DlrmDcnFactory: ((DENSE, RANKING), {"default": [1]}),
    DeepFmFactory: ((DENSE, RANKING), {"default": [1]}),
    TwoTowerFactory: (
        (
            sparse("user_features", {"user": 50, "city": 20}),
            sparse("item_features", {"movie": 40, "genre": 10}),
        ),
        {"default": [1]},
    ),
}


def observed(factory: Any, module: torch.nn.Module | None = None) -> Signature:
    """What a factory's module shows, as its factory made it or as it was made ready."""
    output = run_factory(factory, CPU, world_size=1)
    collections = find_collections(output.module)
    return observe_signature(output, module or output.module, collections, CPU)


def tables(rows: dict[str, int]) -> Collections:
    """Features of tables that the module itself does not have."""
    return Collections(found=(Collection(path="", module=None, kind="other", ids_below=rows),))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("sharding", [{}, {"world_size": 2, "type": "table_wise"}])
@pytest.mark.parametrize("kind", list(SHOWN))
def test_every_kind_shows_its_inputs_and_outputs(
    kind: type[KindFactory], sharding: dict[str, Any], dtype: str
) -> None:
    """As it is served: quantized, sharded and lowered."""
    module = prepare(kind().create_predict_module(), sharding=sharding)
    lower(module, Options.model_validate({"dense": {"dtype": dtype}}), CPU)
    inputs, outputs = SHOWN[kind]
    assert observed(kind(), module) == Signature(
        inputs=inputs,
        methods={name: entry.need_preproc for name, entry in kind().qualname_metadata().items()},
        result_metadata="dict_of_tensor",
        outputs=outputs,
    )


@pytest.mark.parametrize("name", list(KINDS))
def test_no_kind_needs_hints(name: str, caplog: pytest.LogCaptureFixture) -> None:
    signature = observed(KINDS[name]())
    assert all(entry.num_features for entry in signature.inputs)
    assert [record.message for record in caplog.records] == []


def test_rows_are_those_that_a_lookup_has() -> None:
    """Of a pruned table those that are left, whoever pruned it and wherever it is noted."""
    pruned = PrunedFactory()
    module = pruned.run_weights_independent_tranformations(pruned.create_predict_module())
    assert find_collections(module).ids_below == {"user": 30, "movie": 25}
    assert find_collections(quantize_inference_model(module)).ids_below == {"user": 30, "movie": 25}
    outside = PositionWeightedFactory().create_predict_module()
    set_pruning_data(outside, {"t_movie": 7}, [FeatureProcessedEmbeddingBagCollection])
    assert find_collections(outside).ids_below == {"user": 50, "movie": 7}


@pytest.mark.parametrize("kind", [QuantizedAtOnceFactory, ShardedFactory])
def test_a_factorys_own_collections_tell_their_rows(kind: type[KindFactory]) -> None:
    assert find_collections(kind().create_predict_module()).ids_below == {"user": 50, "movie": 40}


def test_a_feature_of_several_tables_is_limited_by_the_smallest() -> None:
    modules = [SumFactory().create_predict_module(), WidthsFactory().create_predict_module()]
    modules[1].predict_module.collection.embedding_bag_configs()[1].num_embeddings = 9
    rows = find_collections(torch.nn.ModuleList(modules)).ids_below
    assert rows == {"user": 50, "movie": 9, "genre": 10, "tag": 30}


def test_managed_collision_lifts_no_other_tables_limit() -> None:
    """The same feature may go to a plain table beside it."""
    modules = [ManagedFactory().create_predict_module(), SumFactory().create_predict_module()]
    assert find_collections(torch.nn.ModuleList(modules[:1])).ids_below == {}
    assert find_collections(torch.nn.ModuleList(modules)).ids_below == {"user": 50, "movie": 40}
    mapping = {
        "torchrec.modules.mc_embedding_modules.ManagedCollisionEmbeddingBagCollection": (
            "torchrec.quant.embedding_modules:QuantManagedCollisionEmbeddingBagCollection"
        )
    }
    assert (
        find_collections(prepare(modules[0], tables={"quantization_mapping": mapping})).ids_below
        == {}
    )


class Given(PredictModule):
    """Whatever a test gives as its forward."""

    def __init__(self, forward: Callable[[Batch], Any]) -> None:
        super().__init__(torch.nn.Linear(6, 1), "cpu")
        self.given = forward

    def predict_forward(self, batch: Batch) -> Any:
        return self.given(batch)


class GivenFactory(ForwardFactory):
    """A dense, a sparse and an embedding input, and what is said about them."""

    inputs = {"float_features": "dense", "id_list_features": "sparse"}  # noqa: RUF012  not changed

    def __init__(
        self,
        forward: Callable[[Batch], Any],
        hints: Mapping[str, Any] | None = None,
        inputs: dict[str, str] | None = None,
    ) -> None:
        self.forward = forward
        self.hints = hints or {}
        self.inputs = inputs or {"id_list_features": "sparse"}

    def create_predict_module(self) -> Any:
        return Given(self.forward)

    def model_inputs_data(self) -> dict[str, Any]:
        return dict(self.hints)


HIDDEN = (
    "the model does not show how many features it takes, so requests are not checked for it; "
    "let PredictFactory.model_inputs_data()[%r] give"
)
BOTH = {"float_features": "dense", "id_list_features": "sparse"}


def sizes(features: KeyedJaggedTensor) -> torch.Tensor:
    """Ids a row, [B]."""
    total: torch.Tensor = features.lengths().view(len(features.keys()), -1).sum(dim=0)
    return total


def input_of(factory: GivenFactory, name: str = "id_list_features") -> InputSignature:
    return next(entry for entry in observed(factory).inputs if entry.name == name)


def test_parts_of_an_input_are_not_taken_for_the_whole() -> None:
    """A collection splits what it gets; the parts share the whole's memory."""

    def forward(batch: Batch) -> Batch:
        first, second = keyed(batch, ["a", "b", "c"]).split([1, 2])
        return {"default": sizes(first) + sizes(second)}

    entry = input_of(GivenFactory(forward))
    assert (entry.num_features, entry.features) == (3, ("a", "b", "c"))


def test_an_input_that_the_model_cuts_itself_is_known_whole() -> None:
    """As a two-tower model does that gets one input for both sides."""

    def forward(batch: Batch) -> Batch:
        lengths, values = (batch[f"id_list_features.{part}"] for part in ("lengths", "values"))
        rows = lengths.numel() // 3
        users = int(lengths[:rows].sum())
        user = KeyedJaggedTensor(keys=["u"], lengths=lengths[:rows], values=values[:users])
        item = KeyedJaggedTensor(keys=["v", "w"], lengths=lengths[1:], values=values[users:])
        return {"default": sizes(user) * sizes(item)}

    entry = input_of(GivenFactory(forward))
    assert (entry.num_features, entry.features) == (3, ("u", "v", "w"))


def test_a_feature_under_two_names_is_limited_by_both() -> None:
    def forward(batch: Batch) -> Batch:
        return {"default": sizes(keyed(batch, ["a", "b"])) + sizes(keyed(batch, ["x", "b"]))}

    output = run_factory(GivenFactory(forward), CPU, world_size=1)
    signature = observe_signature(output, output.module, tables({"a": 9, "x": 4, "b": 7}), CPU)
    assert (signature.inputs[0].features, signature.inputs[0].ids_below) == (("a", "b"), (4, 7))


def test_a_single_feature_is_known_as_one() -> None:
    """As many as the first sample has, so that nothing has to change."""

    def forward(batch: Batch) -> Batch:
        layer = torch.nn.Linear(1, 1)
        return {"default": layer(batch["float_features"]).sum() + sizes(keyed(batch, ["a"]))}

    signature = observed(GivenFactory(forward, inputs=BOTH))
    assert [(entry.num_features, entry.features) for entry in signature.inputs] == [
        (1, ()),
        (1, ("a",)),
    ]


@pytest.mark.parametrize(
    "layers",
    [
        [torch.nn.BatchNorm1d(6).eval(), torch.nn.Linear(6, 1)],
        [torch.nn.LayerNorm(6), torch.nn.Linear(6, 1)],
        [torch.nn.Linear(6, 1)],
    ],
)
def test_the_width_of_a_dense_input_is_its_first_layers(layers: list[torch.nn.Module]) -> None:
    model = torch.nn.Sequential(*layers)
    factory = GivenFactory(
        lambda batch: {"default": model(batch["float_features"]).squeeze(1)},
        inputs={"float_features": "dense"},
    )
    assert input_of(factory, "float_features").num_features == 6


def test_a_dense_input_that_the_model_cuts_is_known_whole() -> None:
    first, second = torch.nn.Linear(2, 1), torch.nn.Linear(4, 1)

    def forward(batch: Batch) -> Batch:
        dense = batch["float_features"]
        return {"default": (first(dense[:, :2]) + second(dense[:, 2:])).squeeze(1)}

    factory = GivenFactory(forward, inputs={"float_features": "dense"})
    assert input_of(factory, "float_features").num_features == 6


@pytest.mark.parametrize("convert", [torch.Tensor.half, lambda dense: dense.to(torch.bfloat16)])
def test_dense_inputs_that_are_converted_first_are_known(
    convert: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """As in front of a dense part in half precision; cut, and several, of which none is guessed."""
    first, second = torch.nn.Linear(5, 1).half(), torch.nn.Linear(3, 1).half()

    def forward(batch: Batch) -> Batch:
        dense, other = convert(batch["dense"][:, 2:]), convert(convert(batch["other"]))
        return {"default": (first(dense.half()) + second(other.half())).squeeze(1)}

    signature = observed(GivenFactory(forward, inputs={"dense": "dense", "other": "dense"}))
    assert [entry.num_features for entry in signature.inputs] == [7, 3]


def test_a_dense_input_behind_others_has_the_width_that_is_left() -> None:
    """Changed, and put beside pooled embeddings before the first layer."""
    collection = SumFactory().create_predict_module().predict_module.collection
    over = torch.nn.Linear(16 + 7, 1)

    def forward(batch: Batch) -> Batch:
        pooled = collection(keyed(batch, ["user", "movie"])).values()
        dense = torch.log1p(batch["float_features"])
        return {"default": over(torch.cat([dense, pooled], dim=1)).squeeze(1)}

    signature = observed(GivenFactory(forward, inputs=BOTH))
    assert [entry.num_features for entry in signature.inputs] == [7, 2]


def test_a_wrong_guess_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """What a layer lacked was not the dense input's: that stays open."""
    layer = torch.nn.Linear(4, 1)

    def forward(batch: Batch) -> Batch:
        dense = torch.log1p(batch["float_features"]).sum(dim=1, keepdim=True)
        return {"default": layer(dense)}

    factory = GivenFactory(forward, inputs={"float_features": "dense"})
    assert input_of(factory, "float_features").num_features is None
    assert [record.message for record in caplog.records] == [
        (
            "signature: a sample of one row raised RuntimeError: mat1 and mat2 shapes cannot be "
            "multiplied (1x1 and 4x1)"
        ),
        f"signature: float_features: {HIDDEN % 'float_features'} 'features' or 'num_features'",
    ]


def hidden(batch: Batch) -> Batch:
    """Scores that show nothing of where they come from."""
    return {"default": batch["id_list_features.lengths"].clone().float().sum().reshape(1)}


def test_hidden_inputs_stay_open_and_say_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    factory = GivenFactory(hidden, inputs={"id_list_features": "sparse", "ad": "embedding"})
    assert observed(factory).inputs == (
        InputSignature(name="id_list_features", type="sparse"),
        InputSignature(name="ad", type="embedding"),
    )
    assert [record.message for record in caplog.records] == [
        f"signature: id_list_features: {HIDDEN % 'id_list_features'} 'features' or 'num_features'",
        f"signature: ad: {HIDDEN % 'ad'} 'num_features' and 'width'",
    ]


def test_hints_tell_what_a_model_hides(caplog: pytest.LogCaptureFixture) -> None:
    """Names of features lead to their tables' rows."""
    hints = {
        "id_list_features": {"features": ["a", "b"], "rows_per_table": [3, 4]},
        "ad": {"num_features": 2, "width": 16},
        "batch_size": 1_000,
    }
    factory = GivenFactory(hidden, hints, {"id_list_features": "sparse", "ad": "embedding"})
    output = run_factory(factory, CPU, world_size=1)
    signature = observe_signature(output, output.module, tables({"a": 3}), CPU)
    assert signature.inputs == (
        sparse("id_list_features", {"a": 3, "b": None}),
        InputSignature(name="ad", type="embedding", num_features=2, width=16),
    )
    assert caplog.records == []


def test_hints_name_features_and_the_model_tells_their_tables() -> None:
    """Clients' names need not be those of the model's own code."""

    def forward(batch: Batch) -> Batch:
        return {"default": sizes(keyed(batch, ["f0", "f1"]))}

    factory = GivenFactory(forward, {"id_list_features": {"features": ["user", "movie"]}})
    output = run_factory(factory, CPU, world_size=1)
    signature = observe_signature(output, output.module, tables({"f0": 3, "f1": 4}), CPU)
    assert signature.inputs == (sparse("id_list_features", {"user": 3, "movie": 4}),)


def test_hints_say_what_becomes_of_raw_values() -> None:
    """Any PredictFactory's."""

    def forward(batch: Batch) -> Batch:
        return {"default": sizes(keyed(batch, ["f0", "f1"]))}

    hint = {
        "features": ["user", "movie"],
        "hashed": {"user": {"seed": 7}},
        "out_of_range": {"movie": "zero"},
    }
    factory = GivenFactory(forward, {"id_list_features": hint})
    output = run_factory(factory, CPU, world_size=1)
    (found,) = observe_signature(output, output.module, tables({"f0": 3, "f1": 4}), CPU).inputs
    assert found.hashed == (Hashed(function="xxh64", rows=3, seed=7), None)
    assert found.out_of_range == (None, "zero")


@pytest.mark.parametrize("hint", [None, 13, ["a", "b"], {"rows_per_table": [3, 4]}])
def test_hints_in_another_form_are_not_ours(hint: Any) -> None:
    """TorchRec leaves open what model_inputs_data holds."""

    def forward(batch: Batch) -> Batch:
        return {"default": sizes(keyed(batch, ["a", "b"]))}

    factory = GivenFactory(forward, {"id_list_features": hint})
    assert observed(factory).inputs == (sparse("id_list_features", {"a": None, "b": None}),)


def test_hints_that_contradict_the_model_are_refused() -> None:
    def forward(batch: Batch) -> Batch:
        return {"default": sizes(keyed(batch, ["a", "b"]))}

    with pytest.raises(FactoryError) as caught:
        observed(GivenFactory(forward, {"id_list_features": {"features": ["user"]}}))
    assert str(caught.value) == (
        "GivenFactory.model_inputs_data['id_list_features']: received 1 features, the model takes 2"
    )


def test_a_model_that_raises_is_described_as_far_as_it_went(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing of the observing is left behind."""
    plain_init = KeyedJaggedTensor.__init__
    hooks = dict(torch.nn.modules.module._global_forward_pre_hooks)

    def forward(batch: Batch) -> Batch:
        keyed(batch, ["a", "b"])
        message = "no row of zeros"
        raise ValueError(message)

    signature = observed(GivenFactory(forward))
    hidden = replace(sparse("id_list_features", {"a": None, "b": None}), is_wide=False)
    assert signature.inputs == (hidden,)
    assert signature.outputs == {}
    assert [record.message for record in caplog.records] == [
        "signature: a sample of one row raised ValueError: no row of zeros"
    ]
    assert KeyedJaggedTensor.__init__ is plain_init
    assert dict(torch.nn.modules.module._global_forward_pre_hooks) == hooks


@pytest.mark.parametrize("raises", [True, False])
def test_a_model_that_catches_what_it_raises_is_known_too(raises: bool) -> None:  # noqa: FBT001
    """The call that shows something new is ended early, which a model may notice."""

    def forward(batch: Batch) -> Batch:
        try:
            return {"default": sizes(keyed(batch, ["a", "b"]))}
        except Exception as error:
            if raises:
                message = "wrapped"
                raise RuntimeError(message) from error
            return {"default": torch.zeros(1)}

    assert observed(GivenFactory(forward)).inputs[0].features == ("a", "b")


def test_a_model_that_always_wants_more_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    def forward(batch: Batch) -> Batch:
        lengths = batch["id_list_features.lengths"]
        return {"default": sizes(keyed(batch, [f"f{at}" for at in range(lengths.numel() + 1)]))}

    observed(GivenFactory(forward))
    assert caplog.records[0].message == (
        "signature: a sample of one row raised RuntimeError: it asked for more features in each of "
        "32 samples"
    )


@pytest.mark.parametrize(
    ("result", "shapes"),
    [
        ({"a": torch.zeros(2), "b": torch.zeros(1, 3)}, {"a": [2], "b": [1, 3]}),
        ({"a": (torch.zeros(1), torch.zeros(4))}, {"a": [[1], [4]]}),
        ({"a": 3, "b": [torch.zeros(1)]}, {"b": [[1]]}),
        (torch.zeros(1), {}),
    ],
)
def test_outputs_have_the_shape_of_one_row(result: Any, shapes: dict[str, Any]) -> None:
    """What is no tensor fails the request, not the loading."""
    assert observed(GivenFactory(lambda _: result)).outputs == shapes


def test_the_sample_is_of_one_row_and_of_the_inputs_types() -> None:
    """Ids exist in every table, weights are finite."""
    seen: list[Batch] = []

    def forward(batch: Batch) -> Batch:
        seen.append(batch)
        return {"default": torch.zeros(1)}

    kinds = {"d": "dense", "s": "sparse", "w": "weighted_sparse", "e": "embedding"}
    hints = {name: {"num_features": 2, "width": 3} for name in kinds}
    observed(GivenFactory(forward, hints, kinds))
    one, zero = torch.ones(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    expected = {
        "d": torch.zeros(1, 2),
        "s.lengths": one,
        "s.values": zero,
        "w.lengths": one,
        "w.values": zero,
        "w.weights": torch.ones(2),
        "e": [torch.zeros(1, 3), torch.zeros(1, 3)],
    }
    assert seen[0].keys() == expected.keys()
    torch.testing.assert_close(seen[0], expected)
