"""Models that do what models of users do, and few examples."""

from typing import Any

import torch
from torch.nn.utils import parametrizations
from torchrec.inference.modules import PredictModule, QualNameMetadata
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.kinds_base import WIDTH, Batch, KindFactory, table


class Bags(torch.nn.Module):
    """One collection and one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = EmbeddingBagCollection(tables=[table("user", 50), table("movie", 40)])
        self.over = torch.nn.Linear(2 * WIDTH, 1)


class BagsPredictModule(PredictModule):
    """Batch dict to scores."""

    def predict_forward(self, batch: Batch) -> Batch:
        model = self.predict_module
        pooled = model.bags(
            KeyedJaggedTensor(
                keys=["user", "movie"],
                values=batch["id_list_features.values"],
                lengths=batch["id_list_features.lengths"],
            )
        ).values()
        return {"default": model.over(pooled).squeeze(1)}


class BagsFactory(KindFactory):
    """What the others change."""

    def model(self, tables_device: torch.device) -> Any:  # noqa: ARG002
        return Bags()

    def predict_module(self, model: torch.nn.Module) -> Any:
        return BagsPredictModule(self.changed(model), "cpu")

    def changed(self, model: Any) -> Any:
        return model


def normalized(_module: Any, _given: Any, pooled: Any) -> Any:
    """A hook: each row of all features has the length 1."""
    values = torch.nn.functional.normalize(pooled.values(), dim=1)
    return type(pooled)(pooled.keys(), pooled.length_per_key(), values)


class HookedFactory(BagsFactory):
    def changed(self, model: Any) -> Any:
        model.bags.register_forward_hook(normalized)
        return model


class HookedTableFactory(BagsFactory):
    def changed(self, model: Any) -> Any:
        model.bags.embedding_bags["t_user"].register_forward_hook(lambda *given: 2 * given[2])
        return model


class Twice:
    """What low-rank adapters put in front of a forward."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *given: Any) -> Any:
        return 2 * self.forward(*given)


class PatchedFactory(BagsFactory):
    def changed(self, model: Any) -> Any:
        model.over.forward = Twice(model.over.forward)
        return model


class Same(Twice):
    """What profilers put there."""

    def __call__(self, *given: Any) -> Any:
        return self.forward(*given)


class PatchedBagsFactory(BagsFactory):
    def changed(self, model: Any) -> Any:
        model.bags.forward = Same(model.bags.forward)
        return model


class WeightNormFactory(BagsFactory):
    """Its layer's weight is computed by a hook, at each call."""

    def changed(self, model: Any) -> Any:
        torch.nn.utils.weight_norm(model.over)
        return model


class ParametrizedFactory(BagsFactory):
    def changed(self, model: Any) -> Any:
        parametrizations.weight_norm(model.over)
        return model


class NamedPredictModule(BagsPredictModule):
    """Calls its layer by keyword, with lengths in 64 bits."""

    def predict_forward(self, batch: Batch) -> Batch:
        model = self.predict_module
        features = KeyedJaggedTensor(
            keys=["user", "movie"],
            values=batch["id_list_features.values"],
            lengths=batch["id_list_features.lengths"].long(),
        )
        return {"default": model.over(input=model.bags(features).values()).squeeze(1)}


class NamedFactory(BagsFactory):
    def predict_module(self, model: torch.nn.Module) -> Any:
        return NamedPredictModule(model, "cpu")


class OffsetsPredictModule(BagsPredictModule):
    """Makes offsets of lengths."""

    def predict_forward(self, batch: Batch) -> Batch:
        model = self.predict_module
        lengths = batch["id_list_features.lengths"]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        features = KeyedJaggedTensor.from_offsets_sync(
            keys=["user", "movie"], values=batch["id_list_features.values"], offsets=offsets
        )
        return {"default": model.over(model.bags(features).values()).squeeze(1)}


class OffsetsFactory(BagsFactory):
    def predict_module(self, model: torch.nn.Module) -> Any:
        return OffsetsPredictModule(model, "cpu")


class BucketsPredictModule(BagsPredictModule):
    """A share of the longest list, of at least 8 ids."""

    def predict_forward(self, batch: Batch) -> Batch:
        lengths = batch["id_list_features.lengths"].view(2, -1)
        scores = super().predict_forward(batch)["default"]
        return {"default": scores, "share": lengths[0] / max(8, int(lengths.max()))}


class BucketsFactory(BagsFactory):
    def predict_module(self, model: torch.nn.Module) -> Any:
        return BucketsPredictModule(model, "cpu")


class TwoTables(torch.nn.Module):
    """Two collections of one key."""

    def __init__(self) -> None:
        super().__init__()
        self.few = EmbeddingBagCollection(tables=[table("few", 5, features=["id"])])
        self.many = EmbeddingBagCollection(tables=[table("many", 50, features=["id"])])


def pooled(collection: Any, batch: Batch, name: str) -> torch.Tensor:
    features = KeyedJaggedTensor(
        keys=["id"], values=batch[f"{name}.values"], lengths=batch[f"{name}.lengths"]
    )
    values: torch.Tensor = collection(features).values()
    return values.sum(dim=1)


class TowersPredictModule(PredictModule):
    """An input for each of them."""

    def predict_forward(self, batch: Batch) -> Batch:
        model = self.predict_module
        scores = pooled(model.few, batch, "user") * pooled(model.many, batch, "item")
        return {"default": scores}


class TowersFactory(KindFactory):
    inputs = {"user": "sparse", "item": "sparse"}  # noqa: RUF012  not changed

    def model(self, tables_device: torch.device) -> Any:  # noqa: ARG002
        return TwoTables()

    def predict_module(self, model: torch.nn.Module) -> Any:
        return TowersPredictModule(model, "cpu")


class MethodsPredictModule(PredictModule):
    """Methods that look one input up in different tables."""

    def predict_forward(self, batch: Batch) -> Batch:
        return {"default": pooled(self.predict_module.many, batch, "item")}

    def few(self, batch: Batch) -> Batch:
        return {"default": pooled(self.predict_module.few, batch, "item")}

    def hashed(self, batch: Batch) -> Batch:
        return self.few({**batch, "item.values": batch["item.values"] % 5})


class MethodsFactory(TowersFactory):
    inputs = {"item": "sparse"}  # noqa: RUF012  not changed
    methods: tuple[str, ...] = ("forward", "few")

    def predict_module(self, model: torch.nn.Module) -> Any:
        return MethodsPredictModule(model, "cpu")

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        return {name: QualNameMetadata(need_preproc=True) for name in self.methods}


class HashedMethodFactory(MethodsFactory):
    methods = ("forward", "hashed")
