"""Archives of every kind of model, for servers that have to answer alike."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from examples.movielens.data import Dataset
from examples.sequence import train as sequence
from examples.sequence.model import NextMovie
from examples.two_tower import train as two_tower
from examples.two_tower.model import TwoTower
from tests.support.factories import simple, uncommon
from tests.support.factories.fuzzed import FuzzedPredictFactory
from tests.support.factories.kinds_own import (
    OwnMappingFactory,
    PartFactory,
    PrunedFactory,
    QuantizedFactory,
    ShardedFactory,
)
from tests.support.factories.kinds_pooled import WideFactory
from tests.support.factories.kinds_scripted import ScriptedFactory, TorchRecsDlrmFactory
from tests.support.factories.kinds_tupled import MaskedFactory, SeveralFactory
from tests.support.factories.outputs import CandidatesFactory, CountriesFactory, SaidFactory
from tests.support.factories.typed import TypedFactory
from tests.support.kinds import KINDS
from torchrec_archiver import build_archive

CPU = torch.device("cpu")
FLOAT32: Mapping[str, Any] = {"tables": {"dtype": "float32"}}

COMMON: Mapping[str, Any] = {
    "several": simple.Several,
    "raw_ids": simple.RawIds,
    "masked": MaskedFactory,
    "typed": TypedFactory,
    "wide": WideFactory,
    "buckets": uncommon.BucketsFactory,
}
"""One of each kind of input, output and method."""
OTHERS: Mapping[str, Any] = {
    **{f"kind_{name}": kind for name, kind in KINDS.items()},
    "every_input": simple.EveryInput,
    "pairs": SeveralFactory,
    "candidates": CandidatesFactory,
    "said": SaidFactory,
    "countries": CountriesFactory,
    "fuzzed": FuzzedPredictFactory,
    "methods": uncommon.MethodsFactory,
    "towers": uncommon.TowersFactory,
    "scripted": ScriptedFactory,
    "torchrecs_dlrm": TorchRecsDlrmFactory,
    "quantized": QuantizedFactory,
    "part": PartFactory,
    "pruned": PrunedFactory,
    "own_mapping": OwnMappingFactory,
    "sharded": ShardedFactory,
}

SAMPLES: Mapping[Any, Sequence[Mapping[str, Any]]] = {
    TorchRecsDlrmFactory: [
        {
            "float_features": [[0.1 * row, 0.5, -1.0] for row in range(rows)],
            "id_list_features.lengths": [1, 2] * rows,
            "id_list_features.values": [row % 10 for row in range(3 * rows)],
        }
        for rows in (1, 4)
    ]
}
"""Requests to a model that shows too little for some to be drawn."""


def build(
    factory: Any, folder: Path, name: str, options: Mapping[str, Any] = FLOAT32, **given: Any
) -> Path:
    """An archive that is served in place by one worker, its tables as they are."""
    if isinstance(factory, type) and issubclass(factory, simple.EveryInput):
        given["weights"] = simple.seeded().state_dict()
    if factory in SAMPLES:
        given["samples"] = folder / f"{name}.jsonl"
        lines = map(json.dumps, SAMPLES[factory])
        given["samples"].write_text("\n".join(lines), encoding="utf-8")
    settings = {"minWorkers": 1, "maxWorkers": 1, "torchrec": dict(options)}
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return build_archive(
        model_name=name,
        version="1.0",
        factory=factory,
        export_path=folder,
        archive_format="no-archive",
        config_file=config,
        **given,
    )


def build_example(name: str, dataset: Dataset, folder: Path) -> Path:
    """An archive of `two_tower` or `sequence`, untrained."""
    torch.manual_seed(0)
    if name == "two_tower":
        towers = two_tower.model_config(dataset)
        config: Any = towers
        model: torch.nn.Module = TwoTower(towers, CPU)
        factory = "examples.two_tower.factory:TwoTowerPredictFactory"
    else:
        config = sequence.model_config(dataset.train_ratings)
        model = NextMovie(config, CPU)
        factory = "examples.sequence.factory:NextMoviePredictFactory"
    given = {"configs": {"config.pkl": config}, "weights": model.state_dict()}
    return build(factory, folder, name, **given)
