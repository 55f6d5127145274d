"""Building archives from Python: every argument, every format, and every way to fail."""

import importlib.metadata
import json
import pickle
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from torch.package.importer import sys_importer
from torch.package.package_importer import PackageImporter
from torchrec.inference.modules import quantize_inference_model

from tests.support.archives import good
from tests.support.factories.kinds_own import ShardedFactory
from tests.support.factories.large import LargePredictFactory
from tests.support.factories.packaged import (
    ConfiguredPredictFactory,
    EmptyPredictFactory,
    HousePredictFactory,
    QuantizedPredictFactory,
    RenamingPredictFactory,
    Scale,
)
from tests.support.factories.packagers import LOADER, HousePackager
from tests.support.factories.ranking import (
    MetaRankingPredictFactory,
    RankingPredictFactory,
    RankingPredictModule,
    seeded,
)
from torchrec_archiver import DefaultPackager, build_archive, progress
from torchrec_archiver.model_config import read_model_config
from torchrec_archiver.store import ArchiveFormat
from torchrec_handler.archive.format import (
    DENSE,
    INDEX,
    MANIFEST,
    MODEL_CONFIG,
    PACKAGE,
    REQUIREMENTS,
    SAMPLES,
    TABLES,
    Index,
    sha256,
)
from torchrec_handler.errors import BuildError, TorchRecServeError
from torchrec_handler.load.package import open_package
from torchrec_handler.ranks import init_process_group


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(seeded().state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def build(store: Path, **arguments: Any) -> Path:
    """An archive's folder, served in place."""
    return good.build(store, archive_format="no-archive", **arguments)


def scores(folder: Path, **options: Any) -> torch.Tensor:
    return good.scores(good.load_folder(folder, **options).module)


def index_of(folder: Path) -> Index:
    return Index.loads((folder / INDEX).read_text())


# What is built.


@pytest.mark.parametrize("archive_format", get_args(ArchiveFormat))
def test_every_format_loads_and_scores(
    store: Path, tmp_path: Path, archive_format: ArchiveFormat
) -> None:
    archive = good.build(store, archive_format=archive_format)
    assert list(store.iterdir()) == [archive]
    folder = good.unpack(archive, tmp_path / "unpacked")
    torch.testing.assert_close(scores(folder), good.expected_scores())


def test_an_archive_holds_these_members(store: Path) -> None:
    folder = build(store)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        PACKAGE,
        MODEL_CONFIG,
        DENSE,
        TABLES,
        SAMPLES,
        INDEX,
        MANIFEST,
    }


def test_the_index_lists_every_member_s_digest_and_what_built_it(store: Path) -> None:
    folder = build(store, extra_files={"movies.json": "{}", "index.bin": b"\0"})
    index = index_of(folder)
    assert index.sha256 == {
        member: sha256(folder / member)
        for member in (PACKAGE, MODEL_CONFIG, DENSE, TABLES, SAMPLES, MANIFEST)
    }
    assert index.extra_files == ("movies.json", "index.bin")
    assert index.format_version == "1.1"
    assert index.versions["torch"] == importlib.metadata.version("torch")
    assert {"torchrec-serve", "torchrec"} <= set(index.versions)


def test_the_manifest_names_model_and_version(store: Path) -> None:
    folder = build(store, model_name="shop.ranking-2", version="2.1")
    assert folder == store / "shop.ranking-2"
    assert json.loads((folder / MANIFEST).read_text())["model"] == {
        "modelName": "shop.ranking-2",
        "modelVersion": "2.1",
        "handler": "torchrec_handler.handler",
        "serializedFile": "predict_factory.pt",
        "configFile": "model-config.yaml",
    }


def test_a_config_file_is_followed(store: Path, tmp_path: Path) -> None:
    text = "# ours\nmaxWorkers: 4\nminWorkers: 4\ntorchrec: {tables: {per_table: {t_user: int4}}}\n"
    (tmp_path / "my.yaml").write_text(text)
    folder = build(store, config_file=tmp_path / "my.yaml")
    assert (folder / MODEL_CONFIG).read_bytes() == read_model_config(tmp_path / "my.yaml")[0]
    assert (folder / MODEL_CONFIG).read_text().startswith(text)
    assert {entry.name: entry.dtype for entry in index_of(folder).tables} == {
        "t_user": "int4",
        "t_movie": "int8",
        "t_genres": "int8",
        "t_tags": "int8",
        "t_clicks": "int8",
    }


def test_a_requirements_file_goes_under_torchserve_s_name(store: Path, tmp_path: Path) -> None:
    """Whatever it is called: a file named like a member must not take its place."""
    (tmp_path / "tables.bin").write_text("httpx\n")
    folder = build(store, requirements_file=tmp_path / "tables.bin")
    assert (folder / REQUIREMENTS).read_text() == "httpx\n"
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["model"]["requirementsFile"] == "requirements.txt"
    assert index_of(folder).sha256[REQUIREMENTS] == sha256(folder / REQUIREMENTS)
    torch.testing.assert_close(scores(folder), good.expected_scores())


def test_configs_and_extra_files_are_objects_texts_bytes_or_paths(
    store: Path, tmp_path: Path
) -> None:
    (tmp_path / "scale.pkl").write_bytes(pickle.dumps(Scale(2.0)))
    (tmp_path / "five").write_text("5")
    (tmp_path / "eleven").write_bytes(b"\x0b")
    given: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
        (
            {"scale.pkl": Scale(2.0), "scale.txt": "5"},
            {"scale.txt": "7", "scale.bin": b"\x0b"},
        ),
        (
            {"scale.pkl": tmp_path / "scale.pkl", "scale.txt": tmp_path / "five"},
            {"scale.txt": b"7", "scale.bin": tmp_path / "eleven"},
        ),
    ]
    for configs, extra_files in given:
        folder = build(
            store,
            factory=ConfiguredPredictFactory,
            configs=configs,
            extra_files=extra_files,
            force=True,
        )
        torch.testing.assert_close(scores(folder), good.expected_scores() * (2 * 5 * 7 * 11))


def test_factory_and_packager_may_be_named(store: Path) -> None:
    folder = build(
        store,
        factory="tests.support.factories.packaged:HousePredictFactory",
        packager="tests.support.factories.packagers:HousePackager",
    )
    assert "tests.support.factories.house" in open_package(folder / PACKAGE).importer.extern_modules
    torch.testing.assert_close(scores(folder), good.expected_scores() * 3)


def test_a_packager_of_one_s_own_is_obeyed(store: Path) -> None:
    folder = build(store, factory=HousePredictFactory, packager=HousePackager)
    package = open_package(folder / PACKAGE)
    assert (
        package.importer.import_module("tests.support.factories.house")
        is sys.modules["tests.support.factories.house"]
    )
    mocked = package.importer.import_module("tests.support.factories.telemetry").send
    with pytest.raises(NotImplementedError, match="was mocked out during packaging"):
        mocked("event")


def test_loader_code_may_be_given(store: Path) -> None:
    folder = build(store, loader_code=LOADER)
    assert open_package(folder / PACKAGE).factory.made_by == "my loader"
    torch.testing.assert_close(scores(folder), good.expected_scores())


def test_a_factory_out_of_another_package_is_packed_again(
    store: Path, tmp_path: Path, weights: Path
) -> None:
    first = tmp_path / "first.pt"
    DefaultPackager.save_predict_factory(MetaRankingPredictFactory, {}, first, {})
    importer = PackageImporter(str(first))
    factory = importer.import_module("tests.support.factories.ranking").MetaRankingPredictFactory
    folder = build(
        store,
        factory=factory,
        configs={"name.txt": "ranking"},
        weights=weights,
        package_importer=[importer, sys_importer],
    )
    torch.testing.assert_close(scores(folder), good.expected_scores())


def test_weights_come_from_a_checkpoint(store: Path, weights: Path) -> None:
    folder = build(
        store,
        factory=MetaRankingPredictFactory,
        configs={"name.txt": "ranking"},
        weights=str(weights),
    )
    torch.testing.assert_close(scores(folder), good.expected_scores())


def test_a_checkpoint_goes_before_the_factory_s_own_weights(store: Path, tmp_path: Path) -> None:
    state = {name: value * 2 for name, value in seeded().state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    folder = build(store, weights=tmp_path / "weights.pt")
    model = seeded()
    model.load_state_dict(state)
    expected = good.scores(quantize_inference_model(RankingPredictModule(model, "cpu")))
    torch.testing.assert_close(scores(folder), expected)
    assert not torch.allclose(expected, good.expected_scores())


def test_a_module_that_the_factory_quantized_takes_a_float_checkpoint(
    store: Path, weights: Path
) -> None:
    folder = build(store, factory=QuantizedPredictFactory, weights=weights)
    torch.testing.assert_close(scores(folder), good.expected_scores())


def test_weights_are_kept_by_the_names_that_the_worker_loads_them_by(store: Path) -> None:
    """The factory renames them in a transformation, which the worker runs after loading them."""
    folder = build(store, factory=RenamingPredictFactory)
    torch.testing.assert_close(scores(folder), good.expected_scores())


def test_an_archive_is_replaced_by_force(store: Path) -> None:
    first = good.build(store).read_bytes()
    second = good.build(store, version="2.0", force=True).read_bytes()
    assert first != second
    assert [path.name for path in store.iterdir()] == ["ranking.mar"]


def test_progress_is_shown_where_it_is_wanted(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "AFTER_SECONDS", 0.0)
    build(store, progress=True, weights=seeded().state_dict())
    said = capsys.readouterr().err
    assert "checkpoint: 100%" in said
    assert "tables: 100%" in said
    build(store, force=True, weights=seeded().state_dict())
    assert capsys.readouterr() == ("", "")


# What is left as it was.


@contextmanager
def without_process_group() -> Iterator[None]:
    """Other tests of this process may have started it, as a worker does."""
    if dist.is_initialized():
        dist.destroy_process_group()
    yield


def test_the_process_that_builds_is_left_as_it_was(store: Path) -> None:
    """A training script may build an archive and go on with all its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with without_process_group():
            build(store)
            assert not dist.is_initialized()
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_process_group_that_was_there_stays(store: Path) -> None:
    init_process_group()
    group = dist.group.WORLD
    assert group is not None
    good.load_folder(build(store))
    assert dist.group.WORLD is group


# What is refused, and leaves nothing.


@dataclass(frozen=True, kw_only=True)
class Wrong:
    name: str
    message: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Written into the test's folder; `{folder}` in arguments and message is that folder."""


WRONG = [
    Wrong(
        name="no checkpoint",
        arguments={
            "factory": MetaRankingPredictFactory,
            "configs": {"name.txt": "ranking"},
        },
        message="table 't_user': has no rows; give a checkpoint with --weights",
    ),
    Wrong(
        name="no dense weights",
        arguments={"factory": EmptyPredictFactory},
        message=(
            "weights: the factory leaves over.0.weight, over.0.bias, over.2.weight, over.2.bias on "
            "meta; give --weights"
        ),
    ),
    Wrong(
        name="no config",
        arguments={"factory": MetaRankingPredictFactory},
        message=(
            "MetaRankingPredictFactory.create_predict_module asks for 'name.txt', a config that "
            "the package does not hold; give it with --config"
        ),
    ),
    Wrong(
        name="checkpoint for a sharded module",
        arguments={"factory": ShardedFactory, "weights": "{folder}/weights.pt"},
        message=(
            "weights: the factory returns a sharded module, which keeps its own weights; leave "
            "--weights out, or let the factory return the module unsharded"
        ),
    ),
    Wrong(
        name="checkpoint missing",
        arguments={"weights": "{folder}/nowhere.pt"},
        message="weights: {folder}/nowhere.pt does not exist; {folder} holds model_store, tmp",
    ),
    Wrong(
        name="config file missing",
        arguments={"config_file": "{folder}/nowhere.yaml"},
        message=(
            "config file: {folder}/nowhere.yaml cannot be read: No such file or "
            "directory; {folder} holds model_store, tmp"
        ),
    ),
    Wrong(
        name="config file with asynchronous workers",
        arguments={"config_file": "{folder}/my.yaml"},
        files={"my.yaml": b"asyncCommunication: true"},
        message="config file: {folder}/my.yaml: asyncCommunication: received True, expected false: "
        "TorchServe 0.12 then lets one error answer every request in flight, and none has a time "
        "limit",
    ),
    Wrong(
        name="config file not YAML",
        arguments={"config_file": "{folder}/my.yaml"},
        files={"my.yaml": b"maxWorkers: [1\n"},
        message=(
            "config file: {folder}/my.yaml is not YAML: line 2: expected ',' or ']', but got "
            "'<stream end>'"
        ),
    ),
    Wrong(
        name="config file not text",
        arguments={"config_file": "{folder}/my.yaml"},
        files={"my.yaml": b"a\0b"},
        message=(
            "config file: {folder}/my.yaml is not YAML: unacceptable character #x0000: special "
            'characters are not allowed in "<byte string>", position 1'
        ),
    ),
    Wrong(
        name="unknown option",
        arguments={"config_file": "{folder}/my.yaml"},
        files={"my.yaml": b"torchrec: {dense: {type: int8}}\n"},
        message=(
            "torchrec.dense.type: unknown option (did you mean dtype?), "
            "expected one of dtype, max_error"
        ),
    ),
    Wrong(
        name="option for a table that is not there",
        arguments={"config_file": "{folder}/my.yaml"},
        files={"my.yaml": b"torchrec: {tables: {per_table: {t_shop: int4}}}\n"},
        message=(
            "torchrec.tables.per_table: names t_shop, but the tables to quantize are "
            "t_clicks, t_genres, t_movie, t_tags, t_user"
        ),
    ),
    Wrong(
        name="requirements file missing",
        arguments={"requirements_file": "{folder}/requirements.txt"},
        message=(
            "requirements file: {folder}/requirements.txt cannot be read: No such file or "
            "directory; {folder} holds model_store, tmp"
        ),
    ),
    Wrong(
        name="config missing",
        arguments={"configs": {"c.pkl": Path("{folder}/c.pkl")}},
        message=(
            "config c.pkl: {folder}/c.pkl cannot be read: No such file or "
            "directory; {folder} holds model_store, tmp"
        ),
    ),
    Wrong(
        name="extra file missing",
        arguments={"extra_files": {"movies.json": Path("{folder}/movies.json")}},
        message=(
            "extra file movies.json: {folder}/movies.json cannot be read: No such file or "
            "directory; {folder} holds model_store, tmp"
        ),
    ),
    Wrong(
        name="extra file of another type",
        arguments={"extra_files": {"movies.json": 5}},
        message="extra file movies.json: received a int, expected text or bytes",
    ),
    Wrong(
        name="unknown format",
        arguments={"archive_format": "zip"},
        message=(
            "archive format: received 'zip', expected one of auto, default, zip-store, no-archive, "
            "tgz"
        ),
    ),
    Wrong(
        name="version",
        arguments={"version": "1/0"},
        message=(
            "version: received '1/0', expected text that an address holds as it is, like '1.0' or "
            "'2024-11-24'"
        ),
    ),
    Wrong(
        name="model name",
        arguments={"model_name": "../ranking"},
        message=(
            "model name: received '../ranking', expected letters, digits, '_', '-' and '.', "
            "a letter or a digit first"
        ),
    ),
    Wrong(
        name="factory",
        arguments={"factory": RankingPredictModule},
        message=(
            f"factory: {RankingPredictModule} is not a torchrec.inference.modules.PredictFactory"
        ),
    ),
]


def _in(folder: Path, value: Any) -> Any:
    if isinstance(value, str | Path):
        return type(value)(str(value).replace("{folder}", str(folder)))
    if isinstance(value, Mapping):
        return {name: _in(folder, item) for name, item in value.items()}
    return value


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong.name))
def test_wrong_arguments_are_named_and_nothing_is_left(
    wrong: Wrong, store: Path, workspace: Path, tmp_path: Path
) -> None:
    for name, content in wrong.files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TorchRecServeError) as caught:
        good.build(store, **_in(tmp_path, wrong.arguments))
    assert str(caught.value) == _in(tmp_path, wrong.message)
    assert not list(store.iterdir())
    assert not list(workspace.iterdir())


def test_a_full_disk_is_an_error_with_its_reason(store: Path, workspace: Path) -> None:
    """Here: files may not grow over a megabyte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(BuildError) as caught:
            good.build(store, factory=LargePredictFactory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == f"{workspace}: cannot be written: File too large"
    assert not list(store.iterdir())
    assert not list(workspace.iterdir())


def test_the_archive_that_is_there_outlives_a_build_that_fails(store: Path, tmp_path: Path) -> None:
    archive = good.build(store)
    before = archive.read_bytes()
    with pytest.raises(BuildError):
        good.build(store, weights=tmp_path / "nowhere.pt", force=True)
    assert list(store.iterdir()) == [archive]
    assert archive.read_bytes() == before


def test_an_archive_that_is_there_is_not_replaced_without_force(store: Path) -> None:
    archive = good.build(store)
    before = archive.read_bytes()
    with pytest.raises(BuildError) as caught:
        build_archive(
            model_name="ranking",
            version="1.0",
            factory=RankingPredictFactory,
            export_path=str(store),
        )
    assert str(caught.value) == f"{archive} already holds version 1.0; replace it with --force"
    assert archive.read_bytes() == before
