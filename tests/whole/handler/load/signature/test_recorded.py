"""A signature that is not the factory's and the model's is found when the archive is loaded."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.archives import good
from tests.support.archives.plain import build_plain
from tests.support.factories.outputs import (
    CandidatesFactory,
    FixedSlateFactory,
    HiddenFactory,
    ToldWrongInputFactory,
    WrongInputFactory,
)
from torchrec_archiver import build_archive
from torchrec_handler.archive.format import INDEX, SAMPLES
from torchrec_handler.errors import ArchiveError, FactoryError

MEND = "the archive was altered or damaged, build or copy it again"

Change = Callable[[Any], None]


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good.build(tmp_path_factory.mktemp("store"), archive_format="no-archive")


@pytest.fixture
def change(ranking: Path) -> Iterator[Callable[[Change], None]]:
    """Alters the archive's signature, for one test."""
    text = (ranking / INDEX).read_text()

    def alter(how: Change) -> None:
        index = json.loads(text)
        how(index["signature"])
        (ranking / INDEX).write_text(json.dumps(index))

    yield alter
    (ranking / INDEX).write_text(text)


def set_input(number: int, key: str, value: Any) -> Change:
    return lambda signature: signature["inputs"][number].update({key: value})


INPUTS = (
    "{'float_features': 'dense', 'id_list_features': 'sparse', "
    "'id_score_list_features': 'weighted_sparse'}"
)


@pytest.mark.parametrize("self_test", [True, False])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            set_input(0, "name", "dense_features"),
            (
                f"holds {INPUTS.replace('float_features', 'dense_features')}, the factory's "
                f"batching_metadata {INPUTS}"
            ),
        ),
        (
            set_input(0, "type", "embedding"),
            (
                f"holds {INPUTS.replace('dense', 'embedding')}, the factory's batching_metadata "
                f"{INPUTS}"
            ),
        ),
        (
            lambda signature: signature["methods"].update(rank=True),
            (
                "holds {'forward': True, 'rank': True}, the factory's qualname_metadata "
                "{'forward': True}"
            ),
        ),
        (
            lambda signature: signature.update(result_metadata="dict_of_tensors"),
            "holds dict_of_tensors, the factory's result_metadata dict_of_tensor",
        ),
        (
            set_input(0, "num_features", 4),
            "float_features of 1 rows has the shape [1, 4], in the samples [1, 3]",
        ),
        (
            lambda signature: signature["splits"]["forward"]["logit"][0]["counts"][0].update(
                input="id_list_features"
            ),
            ("splits: forward: output 'logit': received [2] for 2 rows, which is not cut so"),
        ),
        (
            lambda signature: signature["splits"]["forward"].pop("logit"),
            ("splits: forward: output 'logit': received [2] for 2 rows, which is not cut so"),
        ),
    ],
)
def test_a_signature_of_something_else_is_refused(
    change: Callable[[Change], None],
    ranking: Path,
    how: Change,
    message: str,
    self_test: bool,  # noqa: FBT001
) -> None:
    """Whether the worker tests itself or not."""
    change(how)
    with pytest.raises(ArchiveError) as caught:
        good.load_folder(ranking, self_test=self_test)
    assert str(caught.value) == f"{INDEX}: signature: {message}; {MEND}"


def test_a_model_that_takes_nothing_drawn_any_more_is_refused(
    change: Callable[[Change], None], ranking: Path
) -> None:
    """Where no samples show the fault."""
    (ranking / SAMPLES).rename(ranking.parent / SAMPLES)
    text = (ranking / INDEX).read_text()

    def without_samples(signature: Any) -> None:
        signature["inputs"][0]["num_features"] = 4

    try:
        change(without_samples)
        index = json.loads((ranking / INDEX).read_text())
        del index["sha256"][SAMPLES]
        index["samples"] = 0
        (ranking / INDEX).write_text(json.dumps(index))
        with pytest.raises(ArchiveError) as caught:
            good.load_folder(ranking)
    finally:
        (ranking.parent / SAMPLES).rename(ranking / SAMPLES)
        (ranking / INDEX).write_text(text)
    assert str(caught.value).startswith(f"{INDEX}: signature: forward raised RuntimeError: ")
    assert str(caught.value).endswith(f", whatever is drawn for its inputs; {MEND}")


def test_a_model_that_only_takes_its_samples_is_served(tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    ids = {"candidates.lengths": [7, 1], "candidates.values": [1] * 8}
    samples.write_text(json.dumps({"batch_size": 1, **ids}))
    archive = build_archive(
        model_name="slate",
        version="1.0",
        factory=FixedSlateFactory,
        samples=samples,
        export_path=tmp_path,
        archive_format="no-archive",
    )
    assert good.load_folder(archive).signature.splits
    assert good.load_folder(archive, self_test=False).signature.splits


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"factor": 0}, ": received the factor 0, expected 1 or more"),
        (
            {"input": "float_features"},
            ": received 'float_features', expected one of id_list_features, id_score_list_features",
        ),
        (
            {"input": "id_list_features", "features": [3]},
            ": received the features [3], id_list_features has 3",
        ),
    ],
)
def test_splits_that_count_what_is_not_there_are_refused(
    change: Callable[[Change], None], ranking: Path, how: Any, message: str
) -> None:
    change(lambda signature: signature["splits"]["forward"]["logit"][0]["counts"][0].update(how))
    with pytest.raises(ArchiveError) as caught:
        good.load_folder(ranking)
    assert str(caught.value) == f"{INDEX}: signature.splits['forward']['logit']{message}"


# Plain archives hold no signature: what they count is seen when they are loaded.


def load_plain(folder: Path, factory: Any, **options: Any) -> Any:
    unpacked = build_plain(folder, factory, archive_format="no-archive")
    return good.load_folder(unpacked, **options).signature.splits


def test_a_plain_archive_s_outputs_are_seen_at_load(tmp_path: Path) -> None:
    splits = load_plain(tmp_path, CandidatesFactory)
    (split,) = splits["forward"]["scores"]
    assert (split.counts[0].input, split.counts[0].features) == ("candidates", (0,))


@pytest.mark.parametrize("factory", [ToldWrongInputFactory, WrongInputFactory])
def test_a_plain_archive_s_model_that_raises_on_all_that_is_drawn_is_not_served(
    tmp_path: Path, factory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless the worker shall not test itself; also where inputs that are not there are read."""
    message = (
        "forward raised KeyError: 'dense_features', whatever was drawn for the inputs "
        "float_features; if PredictFactory.model_inputs_data can tell more of them, let it; "
        "torchrec.self_test: false serves the model all the same"
    )
    with pytest.raises(FactoryError) as caught:
        load_plain(tmp_path, factory)
    assert str(caught.value) == message
    assert load_plain(tmp_path, factory, self_test=False) == {}
    assert f"outputs: {message}" in [record.message for record in caplog.records]


def test_a_plain_archive_that_hides_its_inputs_is_served_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_plain(tmp_path, HiddenFactory) == {}
    assert caplog.records[-1].message == (
        "outputs: requests of forward are called one by one, since it is not known how to cut "
        "what a batch gives"
    )
