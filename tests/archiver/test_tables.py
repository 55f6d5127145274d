"""`tables.bin`: written block by block, each table at its offset, as the lookup reads its rows."""

from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch

from torchrec_archiver import tables
from torchrec_archiver.tables import write_tables
from torchrec_handler.archive import ROW_BITS, SCALE_BIAS_BYTES, TableEntry, align
from torchrec_handler.errors import BuildError
from torchrec_handler.load.tables import TableStore, encode_rows

WIDTH = 16
Rows = dict[tuple[str, str], torch.Tensor]


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
    write_tables(path, [only], {("sparse", "t"): rows}, progress=False)
    assert path.stat().st_size == only.nbytes
    assert torch.equal(TableStore.map(path, [only]).rows(only), encode_rows(rows, dtype))


def test_every_table_lies_at_its_offset(tmp_path: Path) -> None:
    first = entry("first", 5, "int8")
    second = entry("second", 7, "float16", align(first.nbytes))
    rows: Rows = {("sparse", "first"): random_rows(5), ("sparse", "second"): random_rows(7)}
    path = tmp_path / "tables.bin"
    write_tables(path, [first, second], rows, progress=False)
    store = TableStore.map(path, [first, second])
    assert torch.equal(store.rows(first), encode_rows(rows["sparse", "first"], "int8"))
    assert torch.equal(store.rows(second), encode_rows(rows["sparse", "second"], "float16"))
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
    rows: Rows = {("sparse", "t"): random_rows(10_000)}
    write_tables(tmp_path / "tables.bin", [only], rows, progress=False)
    assert sum(written) == only.nbytes
    assert {size % 2**16 for size in written[:-1]} == {0}


def test_a_pruned_table_keeps_its_first_rows(tmp_path: Path) -> None:
    rows = random_rows(50)
    pruned = entry("t", 20, "int8")
    path = tmp_path / "tables.bin"
    write_tables(path, [pruned], {("sparse", "t"): rows}, progress=False)
    assert torch.equal(TableStore.map(path, [pruned]).rows(pruned), encode_rows(rows[:20], "int8"))


def test_a_table_without_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        write_tables(tmp_path / "tables.bin", [entry("t", 5, "int8")], {}, progress=False)
    assert str(caught.value) == "table 't': has no rows; give a checkpoint with --weights"


def test_progress_is_shown_where_it_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: Rows = {("sparse", "t"): random_rows(50)}
    write_tables(tmp_path / "tables.bin", [entry("t", 50, "int8")], rows, progress=True)
    assert "tables: 100%" in capsys.readouterr().err
    write_tables(tmp_path / "tables.bin", [entry("t", 50, "int8")], rows, progress=False)
    assert capsys.readouterr() == ("", "")
