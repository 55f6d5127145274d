"""Every kind of model there is a factory of, and random requests for it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torchrec.distributed.types import ShardingPlan
from torchrec.inference.modules import quantize_dense, quantize_inference_model

from tests.support.factories.kinds_base import KindFactory
from tests.support.factories.kinds_pooled import (
    SEEN_IDS,
    ByPositionFactory,
    ManagedFactory,
    MeanFactory,
    PositionWeightedEachFactory,
    PositionWeightedFactory,
    SharedFactory,
    SumFactory,
    WeightedFactory,
    WidthsFactory,
)
from tests.support.factories.kinds_ranking import DeepFmFactory, DlrmDcnFactory, DlrmFactory
from tests.support.factories.kinds_sequence import ManagedSequenceFactory, SequenceFactory
from tests.support.factories.kinds_two_tower import TwoTowerFactory
from torchrec_archiver import build_archive
from torchrec_handler.archive.format import Signature
from torchrec_handler.load.attach import attach
from torchrec_handler.load.factory import run_factory
from torchrec_handler.load.loader import load
from torchrec_handler.load.quantize import quantize, to_meta, widen
from torchrec_handler.load.shard import shard
from torchrec_handler.load.signature.inputs import observe_signature
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options, Sharding, Tables
from torchrec_handler.tables.find import find_collections, is_collection
from torchrec_handler.tables.rows import DATA_TYPES, quantized_rows
from torchrec_handler.tables.store import TableStore, layout

CPU = torch.device("cpu")
KINDS: dict[str, type[KindFactory]] = {
    "sum": SumFactory,
    "mean": MeanFactory,
    "weighted": WeightedFactory,
    "shared": SharedFactory,
    "widths": WidthsFactory,
    "by-position": ByPositionFactory,
    "position-weighted": PositionWeightedFactory,
    "position-weighted-each": PositionWeightedEachFactory,
    "managed": ManagedFactory,
    "sequence": SequenceFactory,
    "managed-sequence": ManagedSequenceFactory,
    "dlrm": DlrmFactory,
    "dlrm-dcn": DlrmDcnFactory,
    "deepfm": DeepFmFactory,
    "two-tower": TwoTowerFactory,
}
MOST_IDS = 4
"""Ids a feature has in one row at most."""


def build(kind: type[KindFactory], folder: Path, name: str = "kind", **arguments: Any) -> Path:
    """An archive that is served in place."""
    return build_archive(
        model_name=name,
        version="1.0",
        factory=kind,
        export_path=folder,
        archive_format="no-archive",
        **arguments,
    )


def load_archive(archive: Path, **options: Any) -> Predictor:
    """Load an archive's folder in this process."""
    return load(archive, Options.model_validate(options), CPU)


def signature(kind: type[KindFactory]) -> Signature:
    """What the float model of a kind takes and gives."""
    output = run_factory(kind(), CPU, world_size=1)
    return observe_signature(output, output.module, find_collections(output.module), CPU)


def random_request(signature: Signature, rows: int, seed: int = 0) -> dict[str, Any]:
    """A request in JSON columns, with empty lists and ids up to each table's last row.

    Where any id is good, some that the model has seen and some that it has not.
    """
    random = np.random.default_rng(seed)
    request: dict[str, Any] = {}
    for entry in signature.inputs:
        features = entry.num_features
        assert features, f"{entry.name} is open: {signature}"
        if entry.type == "dense":
            request[entry.name] = random.standard_normal((rows, features)).round(3).tolist()
            continue
        lengths = random.integers(0, MOST_IDS + 1, (features, rows))
        ids = [
            random.integers(0, limit, count)
            if limit
            else random.choice([*SEEN_IDS, *random.integers(0, 2**31, 3)], count)
            for limit, count in zip(entry.ids_below, lengths.sum(axis=1), strict=True)
        ]
        request[f"{entry.name}.lengths"] = lengths.reshape(-1).tolist()
        request[f"{entry.name}.values"] = np.concatenate(ids).tolist()
        if entry.type == "weighted_sparse":
            weights = random.standard_normal(int(lengths.sum()))
            request[f"{entry.name}.weights"] = weights.round(3).tolist()
    return request


def batch(request: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A request as the predict module takes it."""
    return {
        name: torch.tensor(
            value, dtype=torch.int32 if name.endswith((".lengths", ".values")) else torch.float32
        )
        for name, value in request.items()
    }


def random_batch(kind: type[KindFactory], rows: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random request for a kind, as its predict module takes it."""
    return batch(random_request(signature(kind), rows, seed))


def prepare(
    module: torch.nn.Module,
    *,
    tables: dict[str, Any] | None = None,
    sharding: dict[str, Any] | None = None,
    plan: Any = None,
) -> torch.nn.Module:
    """Quantize and shard a module that has its rows, as loading does, and point it at them."""
    options = Options.model_validate({"tables": tables or {}, "sharding": sharding or {}})
    found = find_collections(module, options.tables.quantization_mapping)
    rows = to_meta(found.float_tables)
    quantize(module, found, options.tables, widen(found.float_tables, options.tables, rows))
    quantized = find_collections(module)
    store = TableStore.encode(layout(quantized), {**rows, **quantized_rows(quantized)})
    sharded, _ = shard(module, quantized, options.sharding, plan, CPU)
    attach(find_collections(sharded), store, CPU)
    return sharded


def torchrecs_float16(kind: type[KindFactory]) -> torch.nn.Module:
    """A kind's int8 module, its dense part converted by TorchRec's `quantize_dense` alone.

    That casts only what the predict module's children are given, and by position. So that it fits
    every kind, the lookups round what they give to float16 themselves.
    """
    module = prepare(kind().create_predict_module(), tables={"output_dtype": "float16"})
    collections = list({type(found) for found in module.modules() if is_collection(found)})
    quantize_dense(module, torch.half, additional_embedding_module_type=collections)
    return module


def archived(
    kind: type[KindFactory], folder: Path, name: str = "kind", **arguments: Any
) -> tuple[Path, Predictor]:
    """An archive, built with options, and what it loads as in this process."""
    options = arguments.pop("options", {})
    (folder / "config.yaml").write_text(yaml.safe_dump({"torchrec": options}))
    archive = build(kind, folder, name, config_file=folder / "config.yaml", **arguments)
    return archive, load_archive(archive, **options)


def stored(module: torch.nn.Module) -> dict[str, str]:
    """Table -> FBGEMM's name of the data type it is looked up in."""
    return {
        spec[0]: spec[3].value
        for lookup in find_collections(module).lookups
        for spec in lookup.operator.embedding_specs
    }


def torchrec_quantized(kind: type[KindFactory], dtype: str = "int8") -> torch.nn.Module:
    """What `quantize_inference_model` makes of a kind, unsharded."""
    module: torch.nn.Module = quantize_inference_model(
        kind().create_predict_module(),
        fp_weight_dtype=DATA_TYPES[dtype].torch,
        quantization_dtype=DATA_TYPES[dtype].torch,
    )
    return module


def assert_equal(module: torch.nn.Module, expected: torch.nn.Module, inputs: Any) -> None:
    """Bit for bit, and of rows that differ."""
    received, wanted = module(inputs), expected(inputs)
    assert wanted["default"].unique().numel() > 1
    for name, value in wanted.items():
        assert torch.equal(received[name], value), name


def assert_close(module: torch.nn.Module, expected: torch.nn.Module, inputs: Any) -> None:
    """To the rounding of a sum that was made in parts."""
    received, wanted = module(inputs), expected(inputs)
    assert wanted["default"].unique().numel() > 1
    for name, value in wanted.items():
        torch.testing.assert_close(received[name], value, atol=1e-6, rtol=0)


def quantized(kind: type[KindFactory]) -> torch.nn.Module:
    """A kind with quantized collections that have no rows yet."""
    module: torch.nn.Module = kind().create_predict_module()
    found = find_collections(module)
    to_meta(found.float_tables)
    quantize(module, found, Tables(), {})
    return module


def shard_all(
    module: torch.nn.Module, options: Sharding, plan: Any = None
) -> tuple[torch.nn.Module, Any]:
    """Shard every collection of a module, on the CPU."""
    return shard(module, find_collections(module), options, plan, CPU)


def plan_of(kind: type[KindFactory], **options: Any) -> ShardingPlan:
    """The plan that TorchRec's planner finds."""
    _, plan = shard_all(quantized(kind), Sharding(**options))
    assert plan is not None
    return plan
