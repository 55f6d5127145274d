"""What the build measures and records: errors of tables, change of outputs, samples, memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.factories.dmp import DmpPredictFactory, build
from tests.support.factories.packaged import QuantizedPredictFactory
from tests.support.factories.ranking import seeded
from tests.support.kinds import KINDS
from tests.support.paths import ROOT
from torchrec_archiver import build_archive
from torchrec_handler.archive.format import SAMPLES, Index
from torchrec_handler.archive.read import read_index
from torchrec_handler.archive.samples import read_samples
from torchrec_handler.errors import BuildError, WeightsError

TABLE = re.compile(r"\bembedding(_bag)?s\.")
"""What a checkpoint's names of tables hold."""


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Large enough that int2 shows in the outputs."""
    torch.manual_seed(3)
    return {
        name: torch.randn_like(value) * 0.3 for name, value in build("cpu").state_dict().items()
    }


def built(folder: Path, dtype: str, weights: dict[str, torch.Tensor], **options: Any) -> Path:
    config = folder / "model-config.yaml"
    config.write_text(f"torchrec: {{tables: {{dtype: {dtype}}}}}\n", encoding="utf-8")
    return build_archive(
        model_name=dtype,
        version="1.0",
        factory=DmpPredictFactory,
        weights=weights,
        config_file=config,
        export_path=folder,
        archive_format="no-archive",
        **options,
    )


def test_errors_grow_as_bits_go(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """float32 loses nothing; the mean error is below the largest one."""
    changes: list[float] = []
    errors: list[float] = []
    for dtype in ("float32", "float16", "int8", "int4", "int2"):
        index = read_index(built(tmp_path, dtype, weights))
        changes.append(index.output_change["forward"] or 0.0)
        worst = max(entry.max_error or 0.0 for entry in index.tables)
        errors.append(worst)
        for entry in index.tables:
            assert entry.mean_error is not None
            assert entry.max_error is not None
            assert entry.mean_error <= entry.max_error
    assert errors == sorted(errors)
    assert errors[0] == changes[0] == 0.0
    assert changes == sorted(changes)
    assert changes[-1] > 0.01


def test_a_table_s_largest_error_is_that_of_its_rows(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    index = read_index(built(tmp_path, "float16", weights))
    for entry in index.tables:
        name = f"sparse_arch.embedding_bag_collection.embedding_bags.{entry.name}.weight"
        off = (weights[name] - weights[name].half().float()).abs()
        assert entry.max_error == pytest.approx(float(off.max()))
        assert entry.mean_error == pytest.approx(float(off.mean()), rel=1e-4)


def test_a_change_above_the_limit_fails_the_build(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with pytest.raises(BuildError) as caught:
        built(tmp_path, "int2", weights, max_output_error=1e-4)
    assert re.fullmatch(
        r"max output error: quantizing changes an output of forward by 0\.\d+, expected at most "
        r"0\.0001; the largest error of a table is [\d.]+ \(t\d, int2\)",
        str(caught.value),
    )
    assert not (tmp_path / "int2").exists()
    assert built(tmp_path, "float32", weights, max_output_error=0.0).exists()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rows_that_a_table_cannot_hold_fail_the_build(
    weights: dict[str, torch.Tensor], tmp_path: Path, dtype: str
) -> None:
    name = "sparse_arch.embedding_bag_collection.embedding_bags.t1.weight"
    weights = {**weights, name: weights[name].clone()}
    weights[name][3, 2] = float("nan")
    with pytest.raises(BuildError) as caught:
        built(tmp_path, dtype, weights)
    assert str(caught.value) == (
        f"table 't1', {dtype}: row 3 holds nan, expected finite numbers; "
        "--allow-invalid-rows t1 takes the table as it is"
    )
    assert not (tmp_path / dtype).exists()
    index = read_index(built(tmp_path, dtype, weights, allow_invalid_rows=["t1"]))
    assert 0 <= (index.tables[1].max_error or 0.0) < 0.1


def test_a_table_that_may_have_invalid_rows_must_be_there(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with pytest.raises(BuildError) as caught:
        built(tmp_path, "int8", weights, allow_invalid_rows=["t9"])
    assert str(caught.value) == ("allow invalid rows: names t9, but the tables are t0, t1, t2, t3")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.complex64])
def test_a_checkpoint_of_other_numbers_is_refused(
    weights: dict[str, torch.Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    """uint8 too, which is what encoded rows are."""
    name = "sparse_arch.embedding_bag_collection.embedding_bags.t1.weight"
    with pytest.raises(WeightsError) as caught:
        built(tmp_path, "int8", {**weights, name: weights[name].abs().to(dtype)})
    assert str(caught.value) == (
        f"table 't1': received rows of {str(dtype).removeprefix('torch.')}, expected floating point"
    )


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_checkpoint_of_another_type_is_measured_like_a_float_one(
    kind: str, source: torch.dtype, tmp_path: Path
) -> None:
    """Against its own values, read without converting whole tables."""
    factory = KINDS[kind]
    state = factory().create_predict_module().predict_module.state_dict()
    rows = {name: value for name, value in state.items() if TABLE.search(name)}
    converted = {**state, **{name: value.to(source) for name, value in rows.items()}}
    floats = {**state, **{name: value.to(source).float() for name, value in rows.items()}}
    changes = [
        read_index(
            build_archive(
                model_name=name,
                version="1.0",
                factory=factory,
                weights=weights,
                export_path=tmp_path,
            )
        ).output_change
        for name, weights in (("converted", converted), ("floats", floats))
    ]
    assert changes[0]
    assert changes[0] == pytest.approx(changes[1], rel=1e-5)


def test_a_limit_without_anything_to_compare_fails(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        build_archive(
            model_name="quantized",
            version="1.0",
            factory=QuantizedPredictFactory,
            weights=dict(seeded().state_dict()),
            export_path=tmp_path,
            max_output_error=1.0,
        )
    assert str(caught.value) == (
        "max output error: there is nothing to compare with: the factory gives quantized tables, "
        "or no samples were recorded"
    )


def test_samples_are_those_of_the_file(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    body = {
        "float_features": [[1, 2, 3, 4]] * 2,
        "id_list_features.lengths": [1] * 8,
        "id_list_features.values": list(range(8)),
    }
    (tmp_path / "samples.jsonl").write_text(json.dumps(body), encoding="utf-8")
    archive = built(tmp_path, "int8", weights, samples=tmp_path / "samples.jsonl")
    (sample,) = read_samples(archive / SAMPLES)
    assert (sample.qualname, sample.rows) == ("forward", 2)
    assert sample.inputs["id_list_features.values"].tolist() == list(range(8))


def test_a_wrong_prefix_map_is_one_error(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    trained = {f"module.{name}": value for name, value in weights.items()}
    assert built(tmp_path, "int8", trained, weights_map={"module.": ""}).exists()
    with pytest.raises(BuildError, match=r"weights-map: no entry starts with 'model\.'"):
        built(tmp_path, "int4", trained, weights_map={"model.": ""})


def test_memory_does_not_grow_with_a_checkpoint(tmp_path: Path) -> None:
    """Rows are read, encoded and let go block by block: a tenth of the floats is never held."""
    rows = 2_000_000
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from torchrec_archiver.tables import write_tables\n"
        "from torchrec_handler.archive.format import TableEntry\n"
        "folder = Path(sys.argv[1])\n"
        "state = torch.load(folder / 'weights.pt', mmap=True)\n"
        "entry = TableEntry(collection='c', name='t', rows=len(state['t']), width=64,\n"
        "                   dtype='int8', row_bytes=68, offset=0)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_tables(folder / 'tables.bin', [entry], {('c', 't'): state['t']}, progress=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    torch.save({"t": torch.ones(rows, 64)}, tmp_path / "weights.pt")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    grown = int(done.stdout) * 1024
    assert (tmp_path / "tables.bin").stat().st_size == rows * 68
    assert grown < rows * 64 * 4 / 4
    (tmp_path / "weights.pt").unlink()


def test_the_index_is_read_from_every_format(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    read: list[Index] = []
    for archive_format in ("default", "zip-store", "tgz", "no-archive"):
        (tmp_path / archive_format).mkdir()
        archive = build_archive(
            model_name="model",
            version="1.0",
            factory=DmpPredictFactory,
            weights=weights,
            export_path=tmp_path / archive_format,
            archive_format=archive_format,
        )
        read.append(read_index(archive))
    for index in read:
        assert index.tables == read[0].tables
        assert index.signature == read[0].signature
        assert index.plan is not None
        assert "table_wise" in index.plan


def test_the_server_s_own_user_may_read_every_member(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """A folder in the model store is served in place, seldom by the user who built it."""
    mask = os.umask(0o022)
    os.umask(mask)
    for path in built(tmp_path, "int8", weights).rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o777 == 0o666 & ~mask, path
