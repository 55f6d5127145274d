"""Every kind of model is archived, loaded and asked in process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.factories.kinds_base import KindFactory, trained
from tests.support.factories.kinds_meta import (
    META,
    MetaOwnTypeFactory,
    MetaPrunedFactory,
    MetaQuantizedFactory,
)
from tests.support.factories.kinds_own import (
    OwnTypeFactory,
    QuantizedFactory,
)
from tests.support.kinds import (
    KINDS,
    archived,
    batch,
    random_request,
    signature,
    torchrecs_float16,
)
from torchrec_handler.archive.samples import read_samples
from torchrec_handler.load.states import Predictor

QUANTIZED = "torchrec.quant.embedding_modules"
ROWS = 9
FLOAT16 = {"dense": {"dtype": "float16"}}


def save(module: Any, folder: Path) -> Path:
    """A checkpoint, as a training job saves it."""
    torch.save(module.predict_module.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def assert_answers(
    predictor: Predictor, expected: torch.nn.Module, tolerance: float, seed: int = 0
) -> None:
    """On random rows, which do not all get the same score."""
    inputs = batch(random_request(predictor.signature, ROWS, seed))
    received, wanted = predictor.module(inputs), expected(inputs)
    assert wanted["default"].unique().numel() > ROWS // 2
    for name, value in wanted.items():
        torch.testing.assert_close(received[name], value, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_float32_archive_answers_as_the_trained_model(name: str, tmp_path: Path) -> None:
    options = {"tables": {"dtype": "float32"}}
    _, predictor = archived(KINDS[name], tmp_path, options=options)
    assert_answers(predictor, KINDS[name]().create_predict_module(), 1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float16", 2e-3), ("int8", 2e-2), ("int4", 0.3), ("int2", 1.5)]
)
@pytest.mark.parametrize("name", [name for name in KINDS if name not in {"widths", "by-position"}])
def test_a_quantized_archive_answers_nearly_so(
    name: str, dtype: str, tolerance: float, tmp_path: Path
) -> None:
    """As near as a value of so few bits can be."""
    _, predictor = archived(KINDS[name], tmp_path, options={"tables": {"dtype": dtype}})
    assert predictor.tables
    assert {entry.dtype for entry in predictor.tables.entries.values()} == {dtype}
    assert_answers(predictor, KINDS[name]().create_predict_module(), tolerance)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_dense_part_in_float16_answers_as_torchrecs_quantize_dense(
    name: str, tmp_path: Path
) -> None:
    """Bit for bit, after a self-test against what the archiver recorded of it."""
    archive, predictor = archived(KINDS[name], tmp_path, options=FLOAT16)
    assert replace(predictor.signature, splits=None) == signature(KINDS[name])
    assert read_samples(archive / "samples.safetensors")
    inputs = batch(random_request(predictor.signature, ROWS))
    received = predictor.module(inputs)["default"]
    assert received.dtype == torch.float16
    assert received.unique().numel() > ROWS // 2
    assert torch.equal(received, torchrecs_float16(KINDS[name])(inputs)["default"])


@pytest.mark.parametrize("kind", META)
def test_a_checkpoint_gives_every_weight(kind: type[KindFactory], tmp_path: Path) -> None:
    """Tables that are on meta, position weights, managed collision's ids, and the dense part."""
    module = trained(kind)
    options = {"tables": {"dtype": "float32"}, "sharding": {"world_size": 2}}
    _, predictor = archived(kind, tmp_path, weights=save(module, tmp_path), options=options)
    assert_answers(predictor, module, 1e-6)


def test_a_checkpoint_gives_a_pruned_table_its_first_rows(tmp_path: Path) -> None:
    module = trained(MetaPrunedFactory)
    options = {"tables": {"dtype": "float32"}}
    _, predictor = archived(
        MetaPrunedFactory, tmp_path, weights=save(module, tmp_path), options=options
    )
    assert predictor.tables
    assert [entry.rows for entry in predictor.tables.entries.values()] == [30, 25]
    assert_answers(predictor, module, 1e-6)


def test_a_checkpoint_fits_a_model_that_its_factory_quantizes(tmp_path: Path) -> None:
    """It does so without rows, and the archive brings them in its data type."""
    module = trained(MetaQuantizedFactory)
    _, predictor = archived(MetaQuantizedFactory, tmp_path, weights=save(module, tmp_path))
    assert predictor.tables
    assert {entry.dtype for entry in predictor.tables.entries.values()} == {"int4"}
    assert_answers(predictor, QuantizedFactory().run_weights_dependent_transformations(module), 0)


def test_a_checkpoint_fits_a_type_that_is_quantized_on_request(tmp_path: Path) -> None:
    """Its tables go where tables go, not among the dense weights."""
    module = trained(MetaOwnTypeFactory)
    mapping = {f"{OwnTypeFactory.__module__}.OwnCollection": f"{QUANTIZED}:EmbeddingBagCollection"}
    options = {"tables": {"dtype": "float32", "quantization_mapping": mapping}}
    archive, predictor = archived(
        MetaOwnTypeFactory, tmp_path, weights=save(module, tmp_path), options=options
    )
    assert (archive / "tables.bin").stat().st_size >= 90 * 8 * 4
    assert (archive / "dense.safetensors").stat().st_size < 90 * 8 * 4
    assert_answers(predictor, module, 1e-6)
