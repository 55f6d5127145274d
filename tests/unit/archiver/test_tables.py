"""`tables.bin`: written block by block, each table at its offset, as the lookup reads its rows."""

from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.factories.kinds_own import ShardedFactory
from torchrec_archiver import progress, tables
from torchrec_archiver.tables import check_sharded, write_tables
from torchrec_handler.archive.format import ROW_BITS, SCALE_BIAS_BYTES, TableEntry, TableKey, align
from torchrec_handler.errors import BuildError, WeightsError
from torchrec_handler.tables.find import find_collections
from torchrec_handler.tables.rows import decode_rows, encode_rows
from torchrec_handler.tables.store import TableStore

WIDTH = 16
Rows = dict[TableKey, torch.Tensor]


def entry(name: str, rows: int, dtype: str, offset: int = 0) -> TableEntry:
    scale_bias = SCALE_BIAS_BYTES if dtype.startswith("int") else 0
    return TableEntry(
        collection="sparse",
        name=name,
        rows=rows,
        width=WIDTH,
        dtype=dtype,
        row_bytes=WIDTH * ROW_BITS[dtype] // 8 + scale_bias,
        offset=offset,
    )


def random_rows(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count)).to(dtype)


@pytest.mark.parametrize("dtype", list(ROW_BITS))
@pytest.mark.parametrize("source", [torch.float32, torch.float16])
def test_a_table_written_in_blocks_is_the_table_encoded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, source: torch.dtype
) -> None:
    monkeypatch.setattr(tables, "BLOCK_BYTES", 300)  # some rows, and not a whole number of them
    monkeypatch.setattr(tables, "HUGE_PAGE_BYTES", 256)
    rows = random_rows(50, source)
    only = entry("t", 50, dtype)
    path = tmp_path / "tables.bin"
    write_tables(path, [only], {TableKey("sparse", "t"): rows}, progress=False)
    assert path.stat().st_size == only.nbytes
    assert torch.equal(TableStore.map(path, [only]).rows(only), encode_rows(rows, dtype))


def test_every_table_lies_at_its_offset(tmp_path: Path) -> None:
    first = entry("first", 5, "int8")
    second = entry("second", 7, "float16", align(first.nbytes))
    rows: Rows = {
        TableKey("sparse", "first"): random_rows(5),
        TableKey("sparse", "second"): random_rows(7),
    }
    path = tmp_path / "tables.bin"
    write_tables(path, [first, second], rows, progress=False)
    store = TableStore.map(path, [first, second])
    assert torch.equal(store.rows(first), encode_rows(rows[TableKey("sparse", "first")], "int8"))
    assert torch.equal(
        store.rows(second), encode_rows(rows[TableKey("sparse", "second")], "float16")
    )
    padding = store.buffer[first.nbytes : second.offset]
    assert len(padding) == second.offset - first.nbytes
    assert not padding.any()


def test_a_file_is_written_in_whole_huge_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "HUGE_PAGE_BYTES", 2**16)
    written: list[int] = []

    class Recording(FileIO):
        def write(self, content: Any, /) -> int:
            written.append(memoryview(content).nbytes)
            return super().write(content)

    def open_recording(path: Path, mode: str) -> Recording:
        return Recording(path, mode)

    monkeypatch.setattr(Path, "open", open_recording)
    only = entry("t", 10_000, "int8")
    rows: Rows = {TableKey("sparse", "t"): random_rows(10_000)}
    write_tables(tmp_path / "tables.bin", [only], rows, progress=False)
    assert sum(written) == only.nbytes
    assert {size % 2**16 for size in written[:-1]} == {0}


def test_a_pruned_table_keeps_its_first_rows(tmp_path: Path) -> None:
    rows = random_rows(50)
    pruned = entry("t", 20, "int8")
    path = tmp_path / "tables.bin"
    write_tables(path, [pruned], {TableKey("sparse", "t"): rows}, progress=False)
    assert torch.equal(TableStore.map(path, [pruned]).rows(pruned), encode_rows(rows[:20], "int8"))


def test_a_table_without_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        write_tables(tmp_path / "tables.bin", [entry("t", 5, "int8")], {}, progress=False)
    assert str(caught.value) == "table 't': has no rows; give a checkpoint with --weights"


@pytest.mark.parametrize("dtype", list(ROW_BITS))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_rows_that_are_not_finite_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    value: float,
    source: torch.dtype,
) -> None:
    """In any block, from any source, whatever the table is stored as."""
    monkeypatch.setattr(tables, "BLOCK_BYTES", 300)
    rows = random_rows(50, source)
    rows[41, 5] = value
    with pytest.raises(BuildError) as caught:
        write_tables(
            tmp_path / "tables.bin",
            [entry("t", 50, dtype)],
            {TableKey("sparse", "t"): rows},
            progress=False,
        )
    assert str(caught.value) == (
        f"table 't', {dtype}: row 41 holds {value:g}, expected finite numbers; "
        "--allow-invalid-rows t takes the table as it is"
    )


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("float16", 65_536.0, "at most 65,504 in size"),
        ("int8", 1e5, "at most 65,504 in size, as scale and bias of a row are float16"),
        ("int4", -1e5, "at most 65,504 in size, as scale and bias of a row are float16"),
        ("int2", -1e5, "at most 65,504 in size, as scale and bias of a row are float16"),
        ("float32", 1e39, "at most 3.40282e+38 in size"),
    ],
)
def test_values_beyond_a_data_type_are_refused(
    tmp_path: Path, dtype: str, value: float, expected: str
) -> None:
    rows = random_rows(50, torch.float64)
    rows[41, 5] = value
    with pytest.raises(BuildError) as caught:
        write_tables(
            tmp_path / "tables.bin",
            [entry("t", 50, dtype)],
            {TableKey("sparse", "t"): rows},
            progress=False,
        )
    assert str(caught.value) == (
        f"table 't', {dtype}: row 41 holds {value:g}, expected {expected}; "
        "--allow-invalid-rows t takes the table as it is"
    )


@pytest.mark.parametrize("dtype", list(ROW_BITS))
def test_the_largest_value_of_a_data_type_is_held(tmp_path: Path, dtype: str) -> None:
    rows = torch.zeros(2, WIDTH)
    rows[0], rows[1, :2] = 65_504.0, -65_504.0
    only = entry("t", 2, dtype)
    path = tmp_path / "tables.bin"
    (measured,) = write_tables(path, [only], {TableKey("sparse", "t"): rows}, progress=False)
    read = decode_rows(TableStore.map(path, [only]).rows(only), dtype)
    assert torch.equal(read[0], rows[0])
    assert measured.max_error is not None
    assert float((read[1] - rows[1]).abs().max()) == measured.max_error
    assert measured.max_error <= {"float32": 0.0, "float16": 0.0}.get(dtype, 65_504 / 2)


def test_errors_of_a_table_that_is_taken_as_it_is_are_those_of_its_finite_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = torch.full((50, WIDTH), 1 + 2**-12)
    rows[41, 5], rows[41, 6] = float("nan"), 1e5
    only = entry("t", 50, "float16")
    path = tmp_path / "tables.bin"
    with caplog.at_level("WARNING"):
        (measured,) = write_tables(
            path, [only], {TableKey("sparse", "t"): rows}, progress=False, allowed=["t"]
        )
    assert (measured.max_error, measured.mean_error) == (2**-12, 2**-12)
    assert caplog.messages == [
        "table 't', float16: row 41 holds nan, expected finite numbers; it is taken as it is"
    ]


@pytest.mark.parametrize("dtype", list(ROW_BITS))
def test_rows_that_the_factory_encoded_are_checked_too(tmp_path: Path, dtype: str) -> None:
    rows = random_rows(50)
    rows[41] = float("nan")
    encoded = {TableKey("sparse", "t"): encode_rows(rows, dtype)}
    with pytest.raises(
        BuildError, match=r"table 't', .*: row 41 holds (nan|-inf), expected finite numbers"
    ):
        write_tables(tmp_path / "tables.bin", [entry("t", 50, dtype)], encoded, progress=False)


def test_rows_that_the_factory_sharded_are_checked_too() -> None:
    collections = find_collections(ShardedFactory().create_predict_module())
    check_sharded(collections, [])
    at = [
        (found, spec[0]) for found in collections.lookups for spec in found.operator.embedding_specs
    ]
    (lookup, name), *_ = at
    scale_and_bias = lookup.operator.split_embedding_weights(split_scale_shifts=False)[0][0]
    scale_and_bias[7, :4] = 0xFF  # NaN
    with pytest.raises(BuildError) as caught:
        check_sharded(collections, [])
    assert str(caught.value) == (
        f"table {name!r}, int8: row {lookup.first_rows[0] + 7} holds nan, expected finite numbers; "
        f"--allow-invalid-rows {name} takes the table as it is"
    )
    check_sharded(collections, [name])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_rows_that_are_no_floating_point_numbers_are_refused(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    rows: Rows = {TableKey("sparse", "t"): torch.ones(5, WIDTH).to(dtype)}
    with pytest.raises(WeightsError) as caught:
        write_tables(tmp_path / "tables.bin", [entry("t", 5, "int8")], rows, progress=False)
    assert str(caught.value) == (
        f"table 't': received rows of {str(dtype).removeprefix('torch.')}, expected floating point"
    )


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", list(ROW_BITS))
def test_errors_are_those_against_the_checkpoint_s_own_values(
    tmp_path: Path, dtype: str, source: torch.dtype
) -> None:
    rows = random_rows(50, source)
    path = tmp_path / "tables.bin"
    only = entry("t", 50, dtype)
    (measured,) = write_tables(path, [only], {TableKey("sparse", "t"): rows}, progress=False)
    read = decode_rows(TableStore.map(path, [only]).rows(only), dtype)
    off = (read.double() - rows.double()).abs()
    assert measured.max_error == pytest.approx(float(off.max()), rel=1e-5)
    assert measured.mean_error == pytest.approx(float(off.mean()), rel=1e-5)


def test_progress_is_shown_where_it_is_wanted_and_takes_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Rows = {TableKey("sparse", "t"): random_rows(50)}
    write_tables(tmp_path / "tables.bin", [entry("t", 50, "int8")], rows, progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress, "AFTER_SECONDS", 0.0)
    write_tables(tmp_path / "tables.bin", [entry("t", 50, "int8")], rows, progress=True)
    assert "tables: 100%" in capsys.readouterr().err
    write_tables(tmp_path / "tables.bin", [entry("t", 50, "int8")], rows, progress=False)
    assert capsys.readouterr() == ("", "")
