"""Factories whose models answer for candidates instead of rows, or do not answer at all."""

from typing import Any

import torch
from torchrec.inference.modules import PredictModule, QualNameMetadata
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.base import ForwardFactory
from tests.support.factories.kinds_base import WIDTH, Batch, KindFactory, keyed

CANDIDATES = ("movie", "genre")


class Candidates(torch.nn.Module):
    """Scores of movies."""

    def __init__(self, tables_device: torch.device) -> None:
        super().__init__()
        tables = [
            EmbeddingConfig(
                name=f"t_{name}", num_embeddings=40, embedding_dim=WIDTH, feature_names=[name]
            )
            for name in CANDIDATES
        ]
        self.collection = EmbeddingCollection(tables=tables, device=tables_device)
        self.over = torch.nn.Linear(WIDTH, 1)


class CandidatesPredictModule(PredictModule):
    """A score for every movie, and, as a method of its own, for every id."""

    def predict_forward(self, batch: Batch) -> Batch:
        return {"scores": self.scores(batch)["movie"]}

    def everything(self, batch: Batch) -> Batch:
        scores = self.scores(batch)
        return {"scores": torch.cat([scores[name] for name in CANDIDATES])}

    def scores(self, batch: Batch) -> Batch:
        ids = {**batch, "candidates.values": batch["candidates.values"].long()}
        found = self.predict_module.collection(keyed(ids, CANDIDATES, "candidates"))
        over = self.predict_module.over
        return {name: over(found[name].values()).squeeze(1) for name in CANDIDATES}


class CandidatesFactory(KindFactory):
    """A ranker of candidates."""

    inputs = {"candidates": "sparse"}  # noqa: RUF012  not changed

    def model(self, tables_device: torch.device) -> Any:
        return Candidates(tables_device)

    def predict_module(self, model: torch.nn.Module) -> Any:
        return CandidatesPredictModule(model, "cpu")

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        return {name: QualNameMetadata(need_preproc=True) for name in ("forward", "everything")}


class AlikePredictModule(CandidatesPredictModule):
    """A score for each pair of a movie and its genre, whose lists have to be equally long."""

    def predict_forward(self, batch: Batch) -> Batch:
        scores = self.scores(batch)
        return {"scores": scores["movie"] + scores["genre"]}


class AlikeFactory(CandidatesFactory):
    """Two features of which nobody can tell the one that outputs count."""

    def predict_module(self, model: torch.nn.Module) -> Any:
        return AlikePredictModule(model, "cpu")

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        return {"forward": QualNameMetadata(need_preproc=True)}


class SaidFactory(AlikeFactory):
    """Says which."""

    def model_inputs_data(self) -> dict[str, Any]:
        return {"candidates": {"outputs": {"scores": "movie"}}}


class RaisingPredictModule(PredictModule):
    """Methods that raise on batches of some sizes."""

    def predict_forward(self, batch: Batch) -> Batch:
        return {"default": self.predict_module(batch["float_features"]).squeeze(1)}

    def few(self, batch: Batch) -> Batch:
        if len(batch["float_features"]) > 4:
            message = "too many rows"
            raise ValueError(message)
        return self.predict_forward(batch)

    def broken(self, batch: Batch) -> Batch:
        return {"default": batch["dense_features"]}


class RaisingFactory(ForwardFactory):
    """Answers, but for its method `few`, which takes few rows only."""

    inputs = {"float_features": "dense"}  # noqa: RUF012  not changed
    methods: tuple[str, ...] = ("forward", "few")

    def create_predict_module(self) -> Any:
        return RaisingPredictModule(torch.nn.Linear(3, 1), "cpu")

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        return {name: QualNameMetadata(need_preproc=True) for name in self.methods}


class BrokenMethodFactory(RaisingFactory):
    """A method that reads an input which is not there."""

    methods = ("forward", "broken")


class FewRowsPredictModule(RaisingPredictModule):
    """Takes few rows only."""

    def predict_forward(self, batch: Batch) -> Batch:
        if len(batch["float_features"]) > 16:
            message = "too many rows"
            raise ValueError(message)
        return super().predict_forward(batch)


class FewRowsFactory(RaisingFactory):
    """Answers small batches."""

    methods = ("forward",)

    def create_predict_module(self) -> Any:
        return FewRowsPredictModule(torch.nn.Linear(3, 1), "cpu")


class WrongInputPredictModule(PredictModule):
    """Never answers: its input has another name."""

    def predict_forward(self, batch: Batch) -> Batch:
        return {"default": self.predict_module(batch["dense_features"]).squeeze(1)}


class WrongInputFactory(RaisingFactory):
    """Its metadata do not fit its model."""

    methods = ("forward",)

    def create_predict_module(self) -> Any:
        return WrongInputPredictModule(torch.nn.Linear(3, 1), "cpu")


class UnwrittenPredictModule(PredictModule):
    """Raises what torch, too, raises of an operator that it has not for a device."""

    def predict_forward(self, batch: Batch) -> Batch:
        message = "to be written"
        raise NotImplementedError(message)


class UnwrittenFactory(RaisingFactory):
    """Its forward is left to be written."""

    methods = ("forward",)

    def create_predict_module(self) -> Any:
        return UnwrittenPredictModule(torch.nn.Linear(3, 1), "cpu")

    def model_inputs_data(self) -> dict[str, Any]:
        return {"float_features": {"num_features": 3}}


class ToldWrongInputFactory(WrongInputFactory):
    """Tells how many features its input has, so that samples can be drawn."""

    def model_inputs_data(self) -> dict[str, Any]:
        return {"float_features": {"num_features": 3}}


class HiddenPredictModule(PredictModule):
    """Shows nothing of how many features it takes."""

    def predict_forward(self, batch: Batch) -> Batch:
        return {"default": batch["float_features"].sum(dim=1)}


class HiddenFactory(RaisingFactory):
    """Of an input that nobody can draw."""

    methods = ("forward",)

    def create_predict_module(self) -> Any:
        return HiddenPredictModule(torch.nn.Linear(3, 1), "cpu")


class HiddenWidthFactory(HiddenFactory):
    """Of an input that is three wide, which its linear tells when it is called."""

    def create_predict_module(self) -> Any:
        return HiddenWidthPredictModule(torch.nn.Linear(3, 1), "cpu")


class HiddenWidthPredictModule(PredictModule):
    """Takes three features."""

    def predict_forward(self, batch: Batch) -> Batch:
        return {"default": self.predict_module(batch["float_features"]).squeeze(1)}


class HiddenFaultFactory(HiddenFactory):
    """Answers nothing, whatever it is given."""

    def create_predict_module(self) -> Any:
        return HiddenFaultPredictModule(torch.nn.Linear(3, 1), "cpu")


class HiddenFaultPredictModule(PredictModule):
    """Raises another error for each width."""

    def predict_forward(self, batch: Batch) -> Batch:
        message = f"{batch['float_features'].shape[1]} features"
        raise ValueError(message)


class FixedSlatePredictModule(CandidatesPredictModule):
    """A score for each of exactly seven movies a row."""

    def predict_forward(self, batch: Batch) -> Batch:
        if not (batch["candidates.lengths"].reshape(2, -1)[0] == 7).all():
            message = "a slate has seven movies"
            raise ValueError(message)
        return super().predict_forward(batch)


class FixedSlateFactory(AlikeFactory):
    """Takes nothing that can be drawn."""

    def model_inputs_data(self) -> dict[str, Any]:
        return {"candidates": {"features": CANDIDATES}}

    def predict_module(self, model: torch.nn.Module) -> Any:
        return FixedSlatePredictModule(model, "cpu")


class Countries(torch.nn.Module):
    """A few values of its own, beside TorchRec's tables."""

    def __init__(self, tables_device: torch.device) -> None:
        super().__init__()
        tables = [
            EmbeddingConfig(
                name="t_movie", num_embeddings=40, embedding_dim=WIDTH, feature_names=["movie"]
            )
        ]
        self.collection = EmbeddingCollection(tables=tables, device=tables_device)
        self.countries = torch.nn.Embedding(5, WIDTH)


class CountriesPredictModule(PredictModule):
    """Compares movies with countries."""

    def predict_forward(self, batch: Batch) -> Batch:
        both = keyed(batch, ("movie", "country"), "candidates")
        movies = self.predict_module.collection(
            KeyedJaggedTensor(
                keys=["movie"], values=both["movie"].values(), lengths=both["movie"].lengths()
            )
        )["movie"]
        countries = self.predict_module.countries(both["country"].values())
        return {"scores": (movies.values() * countries).sum(dim=1)}


class CountriesFactory(CandidatesFactory):
    """A feature is looked up in a torch.nn.Embedding, which nothing but its error limits."""

    def model(self, tables_device: torch.device) -> Any:
        return Countries(tables_device)

    def predict_module(self, model: torch.nn.Module) -> Any:
        return CountriesPredictModule(model, "cpu")

    def model_inputs_data(self) -> dict[str, Any]:
        return {"candidates": {"outputs": {"scores": "movie"}}}

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        return {"forward": QualNameMetadata(need_preproc=True)}
