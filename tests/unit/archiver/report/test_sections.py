"""What there is to show of an archive in tables."""

from dataclasses import replace

from tests.support.archives import hostile
from torchrec_archiver.report import sections
from torchrec_archiver.report.facts import facts
from torchrec_handler.archive.format import (
    INDEX,
    MANIFEST,
    Declined,
    Index,
    InputSignature,
    Replaced,
    Report,
    Signature,
    Sizes,
)
from torchrec_handler.archive.read import Call, Description

GOOD = hostile.described()


def described(index: Index) -> Description:
    return replace(GOOD, index=index)


def shown(description: Description, most: int = 100) -> dict[str, sections.Section]:
    return {section.title: section for section in sections.sections(description, most)}


def names(section: sections.Section) -> list[str]:
    return [column.name for column in section.columns]


def test_nothing_is_shown_of_what_is_not_there() -> None:
    signature = Signature(inputs=(), methods={}, result_metadata="dict_of_tensor")
    index = hostile.index([], signature=signature, plan=None, kernels=Report())
    assert list(shown(described(index))) == ["Members"]


def test_features_are_in_their_order() -> None:
    inputs = (
        InputSignature(name="float_features", type="dense", num_features=3),
        InputSignature(name="hidden", type="dense"),
        InputSignature(
            name="ids",
            type="sparse",
            num_features=2,
            features=("user", "movie"),
            ids_below=(7000, None),
            longest=(None, 5),
            is_wide=True,
        ),
        InputSignature(name="vectors", type="embedding", num_features=1, features=("v",), width=8),
    )
    signature = replace(GOOD.index.signature, inputs=inputs)
    section = shown(described(replace(GOOD.index, signature=signature)))["Inputs"]
    assert names(section) == ["input", "type", "place", "feature", "ids below", "most ids"]
    assert section.rows == (
        ("float_features", "dense", "", "3 not named", "", ""),
        ("hidden", "dense", "", "not known", "", ""),
        ("ids", "sparse, 64 bits", "0", "user", "7,000", "any"),
        ("", "", "1", "movie", "any", "5"),
        ("vectors", "embedding, width 8", "0", "v", "", ""),
    )


def test_tables_have_rows_width_type_bytes_and_errors() -> None:
    section = shown(GOOD)["Tables"]
    assert names(section) == [
        *("table", "rows", "width", "dtype", "bytes", "max error", "mean error"),
    ]
    assert section.rows == (
        ("t_user", "1", "8", "int8", "12 B", "0.001", "0.00025"),
        ("t_movie", "2", "8", "int8", "24 B", "0.002", "0.0005"),
    )
    assert section.total == ("2 tables", "3", "", "", "36 B", "", "")


def test_tables_of_one_name_say_their_collection() -> None:
    first, second = hostile.tables(["t", "t"])
    tables = (first, replace(second, collection="_module.other"))
    section = shown(described(replace(GOOD.index, tables=tables)))["Tables"]
    assert [row[:2] for row in section.rows] == [("t", "_module.tables"), ("t", "_module.other")]
    assert len(section.total) == len(section.columns)


def test_of_many_tables_the_largest_are_shown() -> None:
    section = shown(described(hostile.index(f"t_{at}" for at in range(10_000))), 3)["Tables"]
    assert [row[0] for row in section.rows] == ["t_9999", "t_9998", "t_9997"]
    assert section.total[0] == "10,000 tables"
    assert section.note == "3 tables, the largest ones, of 10,000; --json prints all"


def test_a_plan_is_shown_by_device_or_as_it_is() -> None:
    plan = (
        "module: _module.tables\n"
        "t_user  | [0, 0] | [1, 8] | rank:1/cpu\n"
        "t_movie | [0, 0] | [2, 8] | rank:0/cpu"
    )
    section = shown(described(replace(GOOD.index, plan=plan)))["Plan, where it was built"]
    assert section.rows == (
        ("rank:0/cpu", "t_movie", "0 to 1", "0 to 7", "24 B"),
        ("rank:1/cpu", "t_user", "0 to 0", "0 to 7", "12 B"),
    )
    assert section.total == ("", "2 shards", "", "", "36 B")
    assert section.note == "rank:0/cpu 24 B, rank:1/cpu 12 B"
    other = described(replace(GOOD.index, plan="one\ntwo\nthree"))
    section = shown(other, 2)["Plan, where it was built"]
    assert (section.rows, section.note) == (
        (("one",), ("two",)),
        "2 lines of 3; --json prints all",
    )


RANGES = [(1, 3), (5, 5), (7, 44), (1234, None)]
SAID = "up to 3 rows or 5 rows or 7 to 44 rows or 1,234 rows and more"


def test_kernels_say_what_became_of_modules() -> None:
    kernels = Report(
        replaced=(
            Replaced(path="over", type="torch.nn.Linear", kernel="linear", dtype="int8"),
            Replaced(path="tables", type="Bags", kernel="direct", dtype=None),
            Replaced(
                path="forward",
                type="Module",
                kernel="graph",
                dtype="float32",
                sizes=tuple(Sizes(least=least, most=most) for least, most in RANGES),
            ),
        ),
        declined=(Declined(path="other", kernel="dlrm", why="has hooks"),),
    )
    section = shown(described(replace(GOOD.index, kernels=kernels)))["Kernels, where it was built"]
    assert section.rows == (
        ("linear", "over", "Linear replaced, in int8"),
        ("direct", "tables", "Bags replaced, bit for bit"),
        (
            "graph",
            "forward",
            f"Module replaced, in float32, with {SAID}; else called as it is",
        ),
        ("dlrm", "other", "declined: has hooks"),
    )


def test_members_are_those_that_are_there_and_those_that_are_listed() -> None:
    description = replace(GOOD, sizes={INDEX: 1000, MANIFEST: 500, "other": 1})
    assert shown(description)["Members"].rows == (
        (MANIFEST, "500 B", "0" * 64),
        (INDEX, "1.0 kB", ""),
        ("said", "missing", "said"),
        ("other", "1 B", "not listed"),
    )


def test_nothing_shown_is_more_than_a_line_of_printable_text() -> None:
    calls = tuple(Call(hostile.EVIL, rows) for rows in range(100))
    description = Description(
        index=hostile.evil(),
        model={"modelName": hostile.EVIL, "modelVersion": hostile.EVIL},
        sizes={hostile.EVIL: 1},
        calls=calls,
    )
    texts = list(facts(description).values())
    for section in sections.sections(description, 100):
        texts += [section.title, section.note, *(cell for row in section.rows for cell in row)]
    assert not [text for text in texts if not text.isprintable()]
    assert max(map(len, texts)) < 5000
