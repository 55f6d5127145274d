"""DLRM in one piece gives what TorchRec's gives, whatever its rows, tables and inputs."""

from typing import Any

import numpy as np
import pytest
import torch
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.kinds_base import KindFactory, seeded, table
from tests.support.factories.kinds_ranking import DlrmFactory
from tests.support.kinds import prepare, random_batch
from torchrec_handler.kernels.dlrm import Dlrm
from torchrec_handler.kernels.kernel import Report, Target
from torchrec_handler.kernels.packed import BLOCK_ROWS, FEW_ROWS
from torchrec_handler.kernels.products import INT8_ROWS
from torchrec_handler.kernels.registry import replace_forwards
from torchrec_handler.options import KernelDtype, Kernels
from torchrec_handler.tables.once import SharedInput, look_up_once

BOUNDS: dict[KernelDtype, float] = {
    "float32": 2e-6,
    "bfloat16": 1e-2,
    "int8": 2e-2,
}
"""How far a logit may be off, in units of the largest."""
ROWS = (1, FEW_ROWS - 1, FEW_ROWS, INT8_ROWS, BLOCK_ROWS + 1)
WIDTH = 64
FEATURES = ("user", "movie", "genre", "city", "tag")


def fuse(module: torch.nn.Module, dtype: KernelDtype) -> Report:
    return replace_forwards(module, Target(device=torch.device("cpu"), dtype=dtype), Kernels())


class WideFactory(DlrmFactory):
    """Layers large enough to be packed."""

    def collection(self, tables_device: torch.device) -> Any:
        configs = [table(name, 50, width=WIDTH) for name in FEATURES]
        return EmbeddingBagCollection(tables=configs, device=tables_device)

    def model(self, tables_device: torch.device) -> Any:
        return DLRM(
            embedding_bag_collection=self.collection(tables_device),
            dense_in_features=20,
            dense_arch_layer_sizes=[512, 256, WIDTH],
            over_arch_layer_sizes=[256, 128, 2],
        )


class MixedFactory(WideFactory):
    """Tables of three poolings and features that share one."""

    def collection(self, tables_device: torch.device) -> Any:
        configs = [
            table("user", 50, width=WIDTH, features=["user", "movie"]),
            table("genre", 50, width=WIDTH),
            table("city", 50, width=WIDTH, features=["city", "tag"]),
        ]
        return EmbeddingBagCollection(tables=configs, device=tables_device)


def inputs(rows: int, seed: int = 0) -> tuple[torch.Tensor, KeyedJaggedTensor]:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (len(FEATURES) * rows,), generator=random).int()
    return (
        torch.randn(rows, 20, generator=random),
        KeyedJaggedTensor(
            keys=list(FEATURES),
            lengths=lengths,
            values=torch.randint(0, 50, (int(lengths.sum()),), generator=random).int(),
        ),
    )


def models(kind: type[KindFactory], dtype: KernelDtype, **options: Any) -> tuple[Any, Any]:
    """TorchRec's, and the same in one piece."""
    plain, fused = (
        prepare(kind().create_predict_module(), **options).get_submodule("_module")
        for _ in range(2)
    )
    fuse(fused, dtype)
    assert isinstance(fused.forward, Dlrm)
    return plain, fused


def assert_close(received: torch.Tensor, expected: torch.Tensor, dtype: KernelDtype) -> None:
    assert received.shape == expected.shape
    assert received.dtype == torch.float32
    assert expected.std() > 0.05
    assert (received - expected).abs().max() < BOUNDS[dtype] * expected.abs().max()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_any_number_of_rows_in_every_data_type(dtype: KernelDtype, rows: int) -> None:
    plain, fused = models(WideFactory, dtype)
    with torch.inference_mode():
        assert_close(fused(*inputs(rows)), plain(*inputs(rows)), dtype)


OPTIONS: dict[str, dict[str, Any]] = {
    "float32 tables": {"tables": {"dtype": "float32"}},
    "int4 tables": {"tables": {"dtype": "int4"}},
    "tables of two types": {"tables": {"per_table": {"t_genre": "float16"}}},
    "float16 lookups": {"tables": {"output_dtype": "float16"}},
    "two devices": {"sharding": {"world_size": 2}},
    "row-wise": {"sharding": {"world_size": 2, "type": "row_wise"}},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [WideFactory, MixedFactory])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_tables_of_any_type_and_plan(
    options: dict[str, Any], kind: type[KindFactory], dtype: KernelDtype
) -> None:
    exact = {**options, "tables": {**options.get("tables", {}), "output_dtype": "float32"}}
    plain, _ = models(kind, dtype, **exact)
    _, fused = models(kind, dtype, **options)
    bound: KernelDtype = (
        "bfloat16" if options.get("tables") == {"output_dtype": "float16"} else dtype
    )
    with torch.inference_mode():
        for rows in (1, 80):
            assert_close(fused(*inputs(rows)), plain(*inputs(rows)), bound)


@pytest.mark.parametrize("rows", [3, 80])
def test_features_in_another_order(rows: int) -> None:
    """Which the first call's order is for TorchRec."""
    plain, fused = models(WideFactory, "float32")
    dense, sparse = inputs(rows)
    turned = sparse.permute([3, 1, 4, 0, 2])
    with torch.inference_mode():
        expected = plain(dense, turned)
        assert_close(fused(dense, turned), expected, "float32")
        assert_close(fused(dense, sparse), expected, "float32")


@pytest.mark.parametrize("rows", [5, 80])
def test_what_rows_share_is_looked_up_once(rows: int) -> None:
    """By the collection, whose job it is."""
    plain, fused = models(WideFactory, "float32")
    dense, _ = inputs(rows)
    lengths = torch.ones(len(FEATURES) * rows, dtype=torch.int32)
    values = torch.arange(len(FEATURES) * rows, dtype=torch.int32) % 50
    values[:rows] = 7
    shared = SharedInput(
        lengths=lengths,
        values=values,
        rows=np.array([rows]),
        shared=np.array([[True] + [False] * (len(FEATURES) - 1)]),
    )
    sparse = KeyedJaggedTensor(keys=list(FEATURES), lengths=lengths, values=values)
    with torch.inference_mode(), look_up_once([shared]):
        assert_close(fused(dense, sparse), plain(dense, sparse), "float32")


def test_tables_that_nobody_quantized() -> None:
    """As a factory may leave a type of its own; then the collection itself is asked."""
    model = seeded(WideFactory().model(torch.device("cpu")), 0)
    with torch.inference_mode():
        expected = model(*inputs(20))
        fuse(model, "float32")
        assert_close(model(*inputs(20)), expected, "float32")


def test_the_small_kind_too() -> None:
    batch = random_batch(DlrmFactory, 30)
    plain, fused = (prepare(DlrmFactory().create_predict_module()) for _ in range(2))
    fuse(fused, "float32")
    torch.testing.assert_close(fused(batch)["default"], plain(batch)["default"])
