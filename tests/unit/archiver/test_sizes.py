"""The sizes of tables, as files and archives say them."""

from pathlib import Path

import pytest

from torchrec_archiver.sizes import Sizes, of_file, of_index, row_bytes
from torchrec_handler.archive.format import TableEntry, TableKey
from torchrec_handler.errors import TorchRecServeError


def test_a_file_lists_tables(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(
        "- {name: user, rows: 1_000, width: 64}\n"
        "- {name: item, rows: 10, width: 8, dtype: float16, features: 2, pooling_factor: 3, "
        "count: 2}\n"
    )
    item = Sizes(
        key=TableKey("tables", "item_0"),
        rows=10,
        width=8,
        dtype="float16",
        row_bytes=16,
        features=2,
        pooling_factor=3,
    )
    user = Sizes(
        key=TableKey("tables", "user"),
        rows=1000,
        width=64,
        dtype="int8",
        row_bytes=68,
        pooling_factor=1.5,
    )
    found = of_file(path, 1.5)
    assert found[:2] == [user, item]
    assert [table.key.table for table in found] == ["user", "item_0", "item_1"]


def test_an_archive_says_what_its_rows_take() -> None:
    entry = TableEntry(
        collection="a.b", name="t", rows=7, width=16, dtype="int4", row_bytes=12, offset=0
    )
    (found,) = of_index([entry], 2.0)
    assert (found.key, found.rows, found.row_bytes, found.features, found.pooling_factor) == (
        *(TableKey("a.b", "t"), 7, 12, 1, 2.0),
    )
    assert found.stored_as("int8").row_bytes == 20


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", 64), ("float16", 32), ("int8", 20), ("int4", 12), ("int2", 8)],
)
def test_bytes_of_a_row(dtype: str, expected: int) -> None:
    assert row_bytes(16, dtype) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "--tables: PATH is no YAML: while parsing a flow node"),
        ("tables", "--tables: PATH: tables: received 'tables', expected a valid list"),
        ("- {name: t, rows: 1}", "--tables: PATH: tables[0].width: is missing"),
        (
            "- {name: t, rows: 1, width: 4, wide: 4}",
            (
                "--tables: PATH: tables[0].wide: is not known, expected one of name, rows, width, "
                "dtype, features, pooling_factor, count"
            ),
        ),
        (
            "- {name: t, rows: 0, width: 4}",
            "--tables: PATH: tables[0].rows: received 0, expected greater than or equal to 1",
        ),
        (
            "- {name: t, rows: 1, width: 4}\n- {name: t, rows: 1, width: 4}",
            "--tables: PATH: two tables are called 't', expected a name each",
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(text)
    with pytest.raises(TorchRecServeError) as caught:
        of_file(path, 1.0)
    said = caught.value.sentence
    expected = message.replace("PATH", str(path))
    assert said.startswith(expected) if "YAML" in message else said == expected


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    with pytest.raises(TorchRecServeError) as caught:
        of_file(path, 1.0)
    assert caught.value.sentence == f"--tables: {path} cannot be read: No such file or directory"
    assert caught.value.hint == f"{tmp_path} is empty"
