"""What takes a line each."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.support.archives import hostile
from torchrec_archiver.report.facts import facts
from torchrec_handler.archive.format import FORMAT_VERSION, Index, Report, Signature
from torchrec_handler.archive.read import Description

GOOD = hostile.described()


def with_index(index: Index) -> Description:
    return replace(GOOD, index=index)


def test_facts_are_a_line_each() -> None:
    assert facts(GOOD) == {
        "model": "shop 1.0",
        "size": "1.5 kB",
        "methods": "said, raw (keyword arguments)",
        "outputs": "dict_of_tensor: said [1, 'said']",
        "batched": "seen at load",
        "samples": "3 calls: forward with 1 and 4 rows; raw with 1 row",
        "output change": "said at most 0.5",
        "extra files": "said",
        "built with": "said said",
        "format": FORMAT_VERSION,
    }


def test_facts_of_little() -> None:
    signature = Signature(inputs=(), methods={}, result_metadata="dict_of_tensor")
    index = hostile.index(
        [], signature=signature, output_change={"forward": None}, extra_files=(), samples=7
    )
    found = facts(replace(GOOD, index=index, model={"modelName": ["x"]}, calls=()))
    assert {name: found[name] for name in ("model", "outputs", "samples", "extra files")} == {
        "model": "an archive without a manifest",
        "outputs": "dict_of_tensor: not observed",
        "samples": "7 calls",
        "extra files": "none",
    }
    assert found["output change"] == "forward not finite"


def test_a_newer_archive_says_that_not_all_is_shown() -> None:
    newer = with_index(replace(GOOD.index, format_version="1.7"))
    assert facts(newer)["format"] == f"1.7, read as {FORMAT_VERSION}; newer fields are not shown"


@dataclass(frozen=True, kw_only=True)
class NewerIndex(Index):
    """With fields that nobody has found a place for."""

    layer_dtypes: Mapping[str, str] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()


def test_fields_without_a_place_are_shown_as_they_are() -> None:
    fields = {name: getattr(GOOD.index, name) for name in Index.__dataclass_fields__}
    dtypes = {"over.0": "int8", "over.1": "\x1b"}
    found = facts(with_index(NewerIndex(**fields, layer_dtypes=dtypes)))
    assert found["layer dtypes"] == '{"over.0": "int8", "over.1": "\\u001b"}'
    assert "reports" not in found
    reports = facts(with_index(NewerIndex(**fields, reports=(Report(),))))["reports"]
    assert reports == '[{"replaced": [], "declined": []}]'
