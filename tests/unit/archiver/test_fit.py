"""Fitting a checkpoint to the predict module by the model's own names."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.hash_mc_evictions import HashZchEvictionConfig, HashZchEvictionPolicyName
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection

from tests.support.factories.packaged import QuantizedPredictFactory
from tests.support.factories.ranking import RankingPredictModule, seeded
from torchrec_archiver.checkpoint.entries import Checkpoint
from torchrec_archiver.checkpoint.read import read_checkpoint
from torchrec_archiver.fit import Weights, fit
from torchrec_handler.errors import BuildError
from torchrec_handler.load.weights import load_dense
from torchrec_handler.tables.find import find_collections

TABLES = {
    ("_module.sparse", "t_user"),
    ("_module.sparse", "t_movie"),
    ("_module.sparse", "t_genres"),
    ("_module.weighted", "t_tags"),
    ("_module.weighted", "t_clicks"),
}


def fit_all(checkpoint: Checkpoint, module: torch.nn.Module) -> Weights:
    return fit(checkpoint, module, find_collections(module))


def state() -> dict[str, torch.Tensor]:
    return dict(seeded().state_dict())


def held(content: Mapping[str, object]) -> Checkpoint:
    """What a file with this content gives."""
    return read_checkpoint(content, Path())


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(BuildError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("module", [RankingPredictModule(seeded("meta"), "cpu"), seeded("meta")])
def test_every_weight_goes_where_it_belongs(module: torch.nn.Module) -> None:
    """With and without a PredictModule around the trained model."""
    checkpoint = state()
    weights = fit_all(held(checkpoint), module)
    assert sorted(weights.dense) == ["over.0.bias", "over.0.weight", "over.2.bias", "over.2.weight"]
    assert {name for _, name in weights.rows} == {name for _, name in TABLES}
    for (collection, name), rows in weights.rows.items():
        key = f"{collection.removeprefix('_module.')}.embedding_bags.{name}.weight"
        assert rows.data_ptr() == checkpoint[key].data_ptr()


def test_a_module_that_its_factory_quantized_takes_float_rows() -> None:
    module = QuantizedPredictFactory().create_predict_module()
    weights = fit_all(held(state()), module)
    assert weights.rows.keys() == TABLES
    assert len(weights.dense) == 4


def _renamed(checkpoint: dict[str, torch.Tensor]) -> None:
    checkpoint["over.0.wieght"] = checkpoint.pop("over.0.weight")


def _prefixed(checkpoint: dict[str, torch.Tensor]) -> None:
    for name in list(checkpoint):
        if not name.startswith("over.0"):
            del checkpoint[name]
    checkpoint["model.over.0.bias"] = checkpoint.pop("over.0.bias")


def _several(checkpoint: dict[str, torch.Tensor]) -> None:
    checkpoint["over.0.weight"] = torch.zeros(3, 3)
    checkpoint["sparse.embedding_bags.t_user.weight"] = torch.zeros(49, 8)
    del checkpoint["over.2.bias"]
    checkpoint["criterion.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (
            _renamed,
            [
                "missing: over.0.weight (did you mean over.0.wieght?)",
                "unexpected: over.0.wieght (did you mean over.0.weight?)",
            ],
        ),
        (
            _several,
            [
                "missing: over.2.bias",
                "over.0.weight: received shape (3, 3), expected (16, 43)",
                ("sparse.embedding_bags.t_user.weight: received shape (49, 8), expected (50, 8)"),
                "unexpected: criterion.weight",
            ],
        ),
        (
            _prefixed,
            [
                "missing: over.0.bias (did you mean model.over.0.bias?)",
                "missing: over.2.bias (did you mean model.over.0.bias?)",
                "missing: over.2.weight",
                "missing: sparse.embedding_bags.t_genres.weight",
                "missing: sparse.embedding_bags.t_movie.weight",
                "missing: sparse.embedding_bags.t_user.weight",
                "missing: weighted.embedding_bags.t_clicks.weight",
                "missing: weighted.embedding_bags.t_tags.weight",
                "unexpected: model.over.0.bias (did you mean over.0.bias?)",
            ],
        ),
    ],
)
def test_every_fault_is_listed_at_once(
    change: Callable[[dict[str, torch.Tensor]], None], faults: list[str]
) -> None:
    checkpoint = state()
    change(checkpoint)
    module = RankingPredictModule(seeded("meta"), "cpu")
    said = error_of(lambda: fit_all(held(checkpoint), module))
    assert said.splitlines() == [
        "weights: the checkpoint does not fit the predict module",
        *(f"  {fault}" for fault in faults),
    ]


def test_what_was_taken_and_left_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """In one line; nothing of a plain state dict."""
    module = RankingPredictModule(seeded("meta"), "cpu")
    optimizer = {"state": {0: {"step": torch.zeros(1), "exp_avg": torch.zeros(1)}}}
    with caplog.at_level("INFO", "torchrec_archiver"):
        fit_all(held(state()), module)
        assert caplog.messages == []
        job = {"model": state(), "optimizer": optimizer, "epoch": 3, "best": torch.zeros(1)}
        fit_all(held(job), module)
        fit_all(
            held({name.replace("over.", "over._orig_mod."): v for name, v in state().items()}),
            module,
        )
    assert caplog.messages == [
        "weights: took 9 entries under 'model.'; left optimizer.* (2), best, epoch",
        "weights: took 9 entries; left nothing",
    ]


class Wrapped(torch.nn.Module):
    """A factory's own module around the trained one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = seeded("meta")


def test_a_prefix_that_the_checkpoint_lacks_is_said(caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = state()
    with caplog.at_level("INFO", "torchrec_archiver"):
        weights = fit_all(held({"state_dict": checkpoint}), Wrapped())
    assert torch.equal(weights.dense["net.over.0.bias"], checkpoint["over.0.bias"])
    assert caplog.messages == [
        (
            "weights: took 9 entries under 'state_dict.', as the model's names without 'net.'; "
            "left nothing"
        )
    ]


class Tied(torch.nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = torch.nn.Linear(3, 3, bias=False)
        self.decode = torch.nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight


@pytest.mark.parametrize("names", [["encode"], ["decode"], ["encode", "decode"]])
def test_tied_weights_may_be_there_once(names: list[str]) -> None:
    """As safetensors' `save_model` keeps them."""
    value = torch.rand(3, 3)
    weights = fit_all(held({f"{name}.weight": value for name in names}), Tied())
    assert torch.equal(weights.dense["encode.weight"], value)
    assert torch.equal(weights.dense["decode.weight"], value)


def hashed(*, train: bool, buckets: int = 2, **arguments: object) -> Any:
    """Multi-probe zero-collision hashing of one table, as it is trained and as it is served."""
    configs = [
        EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=16, feature_names=["f"])
    ]
    evict = {
        "eviction_policy_name": HashZchEvictionPolicyName.LRU_EVICTION,
        "eviction_config": HashZchEvictionConfig(features=["f"], single_ttl=24),
        "track_id_freq": True,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchrec makes a tensor of a tensor
        collision = HashZchManagedCollisionModule(
            zch_size=16,
            device=torch.device("cpu"),
            total_num_buckets=buckets,
            **(evict if train else {}),
            **arguments,
        )
    return ManagedCollisionEmbeddingBagCollection(
        EmbeddingBagCollection(tables=configs),
        ManagedCollisionCollection({"t": collision}, configs),
    )


def test_what_only_training_needs_of_managed_collision_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """FBGEMM trains it on GPUs only; what it would learn is put in by hand."""
    trained = hashed(train=True)
    collision = trained._managed_collision_collection._managed_collision_modules["t"]
    collision._hash_zch_identities.data = torch.arange(16).unsqueeze(1) + 2**62
    served = hashed(train=False).eval()
    with caplog.at_level("INFO", "torchrec_archiver"):
        weights = fit_all(held({"model": trained.state_dict()}), served)
    left = "model._managed_collision_collection._managed_collision_modules.t."
    assert caplog.messages[-1:] == [
        (
            f"weights: took 3 entries under 'model.'; left {left}_hash_zch_runtime_meta, "
            f"{left}_hash_zch_metadata"
        )
    ]
    load_dense(served, find_collections(served), weights.dense, torch.device("cpu"))
    loaded = served._managed_collision_collection._managed_collision_modules["t"]
    assert torch.equal(loaded._hash_zch_identities, collision._hash_zch_identities)


def test_what_an_older_checkpoint_lacks_of_managed_collision_is_the_module_s_own() -> None:
    trained = hashed(train=False, persist_hash_zch_bucket=False)
    served = hashed(train=True)
    weights = fit_all(held(trained.state_dict()), served)
    buckets = "_managed_collision_collection._managed_collision_modules.t._hash_zch_bucket"
    assert weights.dense[buckets].tolist() == [[2]]
    load_dense(served, find_collections(served), weights.dense, torch.device("cpu"))


def test_another_number_of_buckets_is_refused() -> None:
    """Ids would be looked for in other rows, without a word."""
    checkpoint = hashed(train=True, buckets=4).state_dict()
    name = "_managed_collision_collection._managed_collision_modules.t._hash_zch_bucket"
    assert error_of(lambda: fit_all(held(checkpoint), hashed(train=False))) == (
        f"weights: {name}: the checkpoint was trained with total_num_buckets=[[4]], the predict "
        "module has [[2]]; ids would be looked for where they are not"
    )


def test_weights_that_have_no_values_are_refused() -> None:
    checkpoint = {**state(), "over.0.bias": torch.zeros(16, device="meta")}
    assert error_of(lambda: fit_all(held(checkpoint), seeded("meta"))) == (
        "weights: over.0.bias were saved from the meta device, without values"
    )


def test_another_model_s_checkpoint_is_one_line() -> None:
    other = {f"encoder.{number}.weight": torch.zeros(2, 2) for number in range(5)}
    with pytest.raises(BuildError) as caught:
        fit_all(held(other), RankingPredictModule(seeded(), "cpu"))
    assert caught.value.sentence.startswith(
        "weights: none of the predict module's 9 weights is in the checkpoint: it has "
        "encoder.0.weight, encoder.1.weight, encoder.2.weight and 2 more, the module "
    )
    assert "\n" not in caught.value.sentence
    assert caught.value.hint == (
        "is it another model's? For this one's, under other names, see --weights-map"
    )
