"""Rows are laid out as FBGEMM reads them, once, and every plan reads the same bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.inference.modules import quantize_inference_model

from tests.support.factories.kinds_base import KindFactory
from tests.support.factories.kinds_own import PartFactory, QuantizedAtOnceFactory
from tests.support.factories.kinds_pooled import (
    ManagedFactory,
    PositionWeightedFactory,
    SumFactory,
    WidthsFactory,
)
from tests.support.factories.kinds_sequence import SequenceFactory
from tests.support.kinds import CPU, prepare, random_batch
from torchrec_handler.archive.format import TableEntry, TableKey
from torchrec_handler.errors import ArchiveError, WeightsError
from torchrec_handler.load.attach import attach
from torchrec_handler.load.quantize import quantize, to_meta
from torchrec_handler.load.shard import shard
from torchrec_handler.options import Sharding, Tables
from torchrec_handler.tables.find import find_collections
from torchrec_handler.tables.rows import DATA_TYPES, encode_rows, quantized_rows
from torchrec_handler.tables.store import KEPT_SHARE, TableStore, layout

Rows = dict[TableKey, torch.Tensor]


def without_rows(kind: type[KindFactory], dtype: str = "int8") -> tuple[torch.nn.Module, Rows]:
    """A kind with quantized collections, and the rows they lack."""
    module: torch.nn.Module = kind().create_predict_module()
    found = find_collections(module)
    rows = to_meta(found.float_tables)
    quantize(module, found, Tables.model_validate({"dtype": dtype}), {})
    return module, rows


def sharded_without_rows(kind: type[KindFactory], **options: Any) -> torch.nn.Module:
    module, _ = without_rows(kind)
    sharded, _ = shard(module, find_collections(module), Sharding(**options), None, CPU)
    return sharded


@pytest.mark.parametrize("dtype", list(DATA_TYPES))
@pytest.mark.parametrize("kind", [SumFactory, SequenceFactory, PositionWeightedFactory])
def test_the_bytes_are_those_of_torchrecs_own_quantized_tables(
    kind: type[KindFactory], dtype: str
) -> None:
    module, rows = without_rows(kind, dtype)
    store = TableStore.encode(layout(find_collections(module)), rows)
    expected = quantized_rows(
        find_collections(
            quantize_inference_model(
                kind().create_predict_module(),
                fp_weight_dtype=DATA_TYPES[dtype].torch,
                quantization_dtype=DATA_TYPES[dtype].torch,
            )
        )
    )
    assert store.entries.keys() == expected.keys()
    for key, entry in store.entries.items():
        assert entry.dtype == dtype
        assert torch.equal(store.rows(entry), expected[key])


@pytest.mark.parametrize(
    ("dtype", "row_bytes"),
    [("float32", 32), ("float16", 16), ("int8", 12), ("int4", 8), ("int2", 6)],
)
def test_rows_are_packed_without_padding(dtype: str, row_bytes: int) -> None:
    """Scale and bias, then the values, as they are read from any offset."""
    rows = torch.randn(3, 8)
    encoded = encode_rows(rows, dtype)
    assert (encoded.dtype, encoded.shape) == (torch.uint8, (3, row_bytes))
    module, own = without_rows(SumFactory, dtype)
    assert own[layout(find_collections(module))[0].key].shape == (50, 8)
    assert [
        (entry.row_bytes, entry.offset % 128) for entry in layout(find_collections(module))
    ] == [
        (row_bytes, 0),
        (row_bytes, 0),
    ]


def test_rows_may_come_in_pieces_and_in_any_precision() -> None:
    """Each row is encoded on its own; what is encoded already stays so."""
    rows = torch.randn(5, 8)
    whole = encode_rows(rows, "int8")
    assert torch.equal(
        torch.cat([encode_rows(rows[:2], "int8"), encode_rows(rows[2:], "int8")]), whole
    )
    assert torch.equal(encode_rows(rows.t().contiguous().t(), "int8"), whole)
    assert torch.equal(encode_rows(rows.double(), "int8"), whole)
    halves = rows.half()
    assert torch.equal(encode_rows(halves, "int8"), encode_rows(halves.float(), "int8"))
    assert torch.equal(
        encode_rows(rows.bfloat16(), "int4"), encode_rows(rows.bfloat16().float(), "int4")
    )
    assert encode_rows(whole, "int8") is whole
    padded = torch.nn.functional.pad(whole, (0, 4))[:, :12]
    assert encode_rows(padded, "int8").is_contiguous()
    assert torch.equal(encode_rows(padded, "int8"), whole)


def test_tables_lie_one_behind_another_in_the_order_of_their_lookups() -> None:
    module, _ = without_rows(WidthsFactory)
    assert layout(find_collections(module)) == [
        TableEntry(
            collection="_module.collection",
            name=name,
            rows=rows,
            width=width,
            dtype="int8",
            row_bytes=width + 4,
            offset=offset,
        )
        for name, rows, width, offset in [
            ("t_user", 50, 16, 0),
            ("t_genre", 10, 8, 1024),
            ("t_movie", 40, 4, 1152),
            ("t_tag", 30, 12, 1536),
        ]
    ]


def test_rows_that_do_not_fit_are_refused() -> None:
    module, rows = without_rows(SumFactory)
    entries = layout(find_collections(module))
    user = TableKey("_module.collection", "t_user")
    for wrong, shape in [
        (torch.zeros(49, 8), "(49, 8), expected (50, 8)"),
        (torch.zeros(50, 7), "(50, 7), expected (50, 8)"),
        (torch.zeros(50, 8, dtype=torch.uint8), "(50, 8), expected (50, 12)"),
    ]:
        with pytest.raises(WeightsError) as caught:
            TableStore.encode(entries, {**rows, user: wrong})
        assert str(caught.value) == f"table 't_user': received weights of shape {shape}"
    with pytest.raises(WeightsError) as caught:
        TableStore.encode(entries, {user: rows[user]})
    assert str(caught.value) == (
        "table 't_movie': has no weights; the factory leaves it on the meta device, so build the "
        "archive with --weights"
    )


def test_the_rows_of_a_factory_that_quantized_itself_are_taken_out() -> None:
    """Without the padding of another row alignment, and without a copy."""
    module = QuantizedAtOnceFactory().create_predict_module()
    taken = quantized_rows(find_collections(module))
    operator = find_collections(module).lookups[0].operator
    assert operator.row_alignment == 16
    assert {key.table: tuple(rows.shape) for key, rows in taken.items()} == {
        "t_user": (50, 8),
        "t_movie": (40, 8),
    }
    assert {rows.untyped_storage().data_ptr() for rows in taken.values()} == {
        operator.weights_host.untyped_storage().data_ptr()
    }
    assert quantized_rows(find_collections(without_rows(SumFactory)[0])) == {}


def test_only_what_a_factory_quantized_is_taken_out() -> None:
    module = PartFactory().run_weights_dependent_transformations(
        PartFactory().create_predict_module()
    )
    assert [key for key, _ in quantized_rows(find_collections(module)).items()] == [
        ("_module.pooled.collection", "t_user"),
        ("_module.pooled.collection", "t_movie"),
    ]


@pytest.mark.parametrize(
    "options",
    [{}, {"world_size": 2}, {"world_size": 2, "type": "row_wise"}, {"world_size": 3}],
)
def test_one_mapped_file_serves_every_plan(options: dict[str, Any], tmp_path: Path) -> None:
    """All lookups share its memory, wherever its tables lie."""
    module, rows = without_rows(WidthsFactory)
    encoded = TableStore.encode(layout(find_collections(module)), rows)
    # Behind bytes of something else, and in another order than the lookups'.
    entries, content, offset = [], bytearray(b"\xff" * 300), 384
    for entry in reversed(list(encoded.entries.values())):
        block = encoded.rows(entry).numpy().tobytes()
        content.extend(b"\xff" * (offset - len(content)))
        content.extend(block)
        entries.append(TableEntry(**{**vars(entry), "offset": offset}))
        offset += -(-len(block) // 128) * 128 + 256
    path = tmp_path / "tables.bin"
    path.write_bytes(content)
    store = TableStore.map(path, entries)
    sharded = sharded_without_rows(WidthsFactory, **options)
    attach(find_collections(sharded), store, CPU)
    assert {
        lookup.operator.weights_host.data_ptr() for lookup in find_collections(sharded).lookups
    } == {store.buffer.data_ptr()}
    inputs = random_batch(WidthsFactory)
    expected = quantize_inference_model(WidthsFactory().create_predict_module())(inputs)
    torch.testing.assert_close(sharded(inputs), expected, atol=1e-6, rtol=0)


def test_an_unsharded_lookup_reads_packed_rows_too() -> None:
    """Managed collision's quantized form has no sharder here and stays as it is."""
    module, rows = without_rows(ManagedFactory)
    attach(find_collections(module), TableStore.encode(layout(find_collections(module)), rows), CPU)
    inputs = random_batch(ManagedFactory)
    expected = quantize_inference_model(ManagedFactory().create_predict_module())(inputs)
    assert torch.equal(module(inputs)["default"], expected["default"])


def mapped_as(path: Path) -> tuple[str, list[str]]:
    """Permissions and flags of a file's mapping in this process (proc_pid_smaps)."""
    block = Path("/proc/self/smaps").read_text(encoding="utf-8").partition(f" {path}\n")
    permissions = block[0].rpartition("\n")[2].split()[1]
    return permissions, block[2].partition("VmFlags:")[2].partition("\n")[0].split()


def mapped_store(folder: Path) -> tuple[TableStore, Path]:
    module, rows = without_rows(SumFactory)
    encoded = TableStore.encode(layout(find_collections(module)), rows)
    path = folder / "tables.bin"
    path.write_bytes(encoded.buffer.numpy().tobytes())
    return TableStore.map(path, list(encoded.entries.values())), path


def test_a_mapped_file_is_not_written(tmp_path: Path) -> None:
    """Workers share it, read-only also for the processor; what FBGEMM writes goes elsewhere."""
    store, path = mapped_store(tmp_path)
    permissions, flags = mapped_as(path)
    assert permissions == "r--s"
    assert not {"wr", "mw"} & set(flags)
    before = path.read_bytes()
    sharded = sharded_without_rows(SumFactory)
    attach(find_collections(sharded), store, CPU)
    sharded(random_batch(SumFactory))
    assert path.read_bytes() == before


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()


@pytest.mark.parametrize(("memory", "huge"), [(10**12, HUGE_PAGES), (1000, False)])
def test_tables_that_memory_keeps_are_read_in_huge_pages(
    memory: int, *, huge: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchrec_handler.tables.store._memory_bytes", lambda: memory)
    store, path = mapped_store(tmp_path)
    assert store.buffer.numel() > 1000 * KEPT_SHARE
    assert ("hg" in mapped_as(path)[1]) == huge


def test_an_archive_that_lacks_a_table_is_refused() -> None:
    module, rows = without_rows(SumFactory)
    store = TableStore.encode(layout(find_collections(module)), rows)
    entries = {key: entry for key, entry in store.entries.items() if key.table != "t_movie"}
    with pytest.raises(ArchiveError) as caught:
        attach(
            find_collections(sharded_without_rows(SumFactory)),
            TableStore(entries=entries, buffer=store.buffer),
            CPU,
        )
    assert str(caught.value) == (
        "table 't_movie' of _module.collection: the archive does not hold it"
    )


@pytest.mark.parametrize(
    ("field", "value", "held"),
    [
        ("rows", 49, "49 x 8 int8"),
        ("width", 16, "50 x 16 int8"),
        ("dtype", "int4", "50 x 8 int4"),
    ],
)
def test_an_archive_of_other_tables_is_refused(field: str, value: Any, held: str) -> None:
    module, rows = without_rows(SumFactory)
    store = TableStore.encode(layout(find_collections(module)), rows)
    key = TableKey("_module.collection", "t_user")
    entries = {**store.entries, key: TableEntry(**{**vars(store.entries[key]), field: value})}
    with pytest.raises(ArchiveError) as caught:
        attach(
            find_collections(sharded_without_rows(SumFactory)),
            TableStore(entries=entries, buffer=store.buffer),
            CPU,
        )
    assert str(caught.value) == (
        f"table 't_user': the archive holds {held}, the module expects 50 x 8 int8"
    )


def test_sharded_modules_are_told_from_others() -> None:
    module, _ = without_rows(SumFactory)
    assert not find_collections(module).is_sharded
    assert find_collections(sharded_without_rows(SumFactory)).is_sharded


@pytest.mark.parametrize("dtype", list(DATA_TYPES))
def test_rows_that_are_not_finite_are_named(dtype: str) -> None:
    """Where a worker encodes them itself: the factory's own."""
    module, rows = without_rows(SumFactory, dtype)
    rows[TableKey("_module.collection", "t_movie")][7, 3] = float("nan")
    with pytest.raises(WeightsError) as caught:
        TableStore.encode(layout(find_collections(module)), rows)
    assert str(caught.value) == (
        f"table 't_movie', {dtype}: row 7 holds nan, expected finite numbers"
    )


def test_rows_that_are_no_floating_point_numbers_are_named() -> None:
    module, rows = without_rows(SumFactory)
    rows[TableKey("_module.collection", "t_movie")] = rows[
        TableKey("_module.collection", "t_movie")
    ].long()
    with pytest.raises(WeightsError) as caught:
        TableStore.encode(layout(find_collections(module)), rows)
    assert str(caught.value) == ("table 't_movie': received rows of int64, expected floating point")


def test_a_model_prepared_twice_answers_twice() -> None:
    """Nothing of one model is kept for the next, not even its output data type."""
    inputs = random_batch(SumFactory)
    first = prepare(SumFactory().create_predict_module(), tables={"output_dtype": "float16"})
    second = prepare(SumFactory().create_predict_module())
    model: Any = first.predict_module
    model.over.half()
    assert first(inputs)["pooled"].dtype == torch.float16
    assert second(inputs)["pooled"].dtype == torch.float32
