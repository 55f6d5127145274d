"""Loading whole archives in this process: this project's, plain ones, and what they may hold."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchrec.inference.model_packager import PredictFactoryPackager

from tests.support.archives import good
from tests.support.archives.plain import build_plain
from tests.support.factories import house
from tests.support.factories.packaged import (
    ConfiguredPredictFactory,
    HousePredictFactory,
    NamesakePredictFactory,
    NoTablesPredictFactory,
    RecordingPredictFactory,
    Scale,
    TelemetryPredictFactory,
)
from tests.support.factories.packagers import ForgetfulPackager, HousePackager, OwnPackager
from tests.support.factories.ranking import MetaRankingPredictFactory, RankingPredictFactory, seeded
from torchrec_archiver import DefaultPackager, build_archive
from torchrec_handler.archive.format import DENSE, INDEX, MANIFEST, MODEL_CONFIG, SAMPLES, TABLES
from torchrec_handler.archive.samples import read_samples, save_samples
from torchrec_handler.errors import (
    ArchiveError,
    FactoryError,
    InvalidRequest,
    LoadError,
    OptionError,
    WeightsError,
)
from torchrec_handler.load.loader import load
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options, read_options

CONFIGS: Mapping[str, Any] = {"scale.pkl": Scale(2.0), "scale.txt": "5"}
EXTRA_FILES: Mapping[str, str | bytes] = {"scale.txt": "7", "scale.bin": b"\x0b"}


def load_plain(folder: Path, factory: type[RankingPredictFactory], **arguments: Any) -> Predictor:
    """A plain archive, made and loaded as TorchServe would, with the options it holds."""
    unpacked = good.unpack(build_plain(folder, factory, **arguments), folder / "unpacked")
    config = yaml.safe_load((unpacked / MODEL_CONFIG).read_text())
    return load(unpacked, read_options(config), good.CPU)


def error_of(folder: Path, factory: type[RankingPredictFactory], **arguments: Any) -> str:
    with pytest.raises(LoadError) as caught:
        load_plain(folder, factory, **arguments)
    return str(caught.value)


# An archive of this project's.


def test_a_loaded_archive_scores_as_torchrec_s_own_module(tmp_path: Path) -> None:
    predictor = good.load_folder(good.build(tmp_path, archive_format="no-archive"))
    torch.testing.assert_close(good.scores(predictor.module), good.expected_scores())


def test_a_predictor_says_all_that_serving_needs(tmp_path: Path) -> None:
    folder = good.build(tmp_path, archive_format="no-archive")
    predictor = good.load_folder(folder)
    assert predictor.index is not None
    assert predictor.signature == predictor.index.signature
    assert [entry.name for entry in predictor.signature.inputs] == list(predictor.batching)
    assert predictor.result_metadata == "dict_of_tensor"
    assert list(predictor.qualnames) == ["forward"]
    assert predictor.device == good.CPU
    assert predictor.tables is not None
    assert tuple(predictor.tables.entries.values()) == predictor.index.tables
    assert predictor.plan is not None
    assert not predictor.module.training


def test_weights_of_a_checkpoint_are_those_that_are_served(tmp_path: Path) -> None:
    """The factory leaves its tables on meta; the archive brings rows and dense weights."""
    torch.save(seeded().state_dict(), tmp_path / "weights.pt")
    folder = good.build(
        tmp_path,
        factory=MetaRankingPredictFactory,
        configs={"name.txt": "ranking"},
        weights=tmp_path / "weights.pt",
        archive_format="no-archive",
    )
    torch.testing.assert_close(good.scores(good.load_folder(folder).module), good.expected_scores())


def test_transformations_run_before_and_after_the_weights_are_loaded(tmp_path: Path) -> None:
    torch.save(seeded().state_dict(), tmp_path / "weights.pt")
    folder = good.build(
        tmp_path,
        factory=RecordingPredictFactory,
        weights=tmp_path / "weights.pt",
        archive_format="no-archive",
    )
    module: Any = good.load_folder(folder).module
    trained = seeded().state_dict()["over.0.weight"][0].tolist()
    assert module.seen == {"independent": [0.5] * len(trained), "dependent": trained}


def test_a_plan_of_the_package_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = good.build(tmp_path, archive_format="no-archive", configs={"name.txt": "ranking"})
    with pytest.raises(FactoryError) as caught:
        good.load_folder(folder, sharding={"plan": "plan.pkl"})
    assert str(caught.value) == (
        "package: loading the config 'plan.pkl' asks for 'plan.pkl', a config that the package "
        "does not hold; give it with --config"
    )


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / INDEX).read_text())
    change(document)
    (folder / INDEX).write_text(json.dumps(document))


def error_of_folder(folder: Path) -> str:
    with pytest.raises(ArchiveError) as caught:
        good.load_folder(folder)
    return str(caught.value)


def test_tables_that_the_factory_brings_do_not_stand_in_for_those_of_an_archive(
    tmp_path: Path,
) -> None:
    """They are untrained where a checkpoint was given."""
    folder = good.build(tmp_path, archive_format="no-archive")
    (folder / TABLES).unlink()
    edit(folder, lambda index: (index["sha256"].pop(TABLES), index["tables"].clear()))
    assert error_of_folder(folder) == (
        "archive.json: lists no tables, but the module has 5; the archive was altered or damaged, "
        "build or copy it again"
    )


def test_weights_that_the_factory_brings_do_not_stand_in_for_those_of_an_archive(
    tmp_path: Path,
) -> None:
    folder = good.build(tmp_path, factory=NoTablesPredictFactory, archive_format="no-archive")
    assert good.load_folder(folder).module is not None
    (folder / DENSE).unlink()
    edit(folder, lambda index: index["sha256"].pop(DENSE))
    assert error_of_folder(folder) == (
        "dense.safetensors: archive.json does not list it, but the module's weights are not its "
        "factory's; the archive was altered or damaged, build or copy it again"
    )


def test_every_sample_that_was_recorded_must_be_there(tmp_path: Path) -> None:
    folder = good.build(tmp_path, archive_format="no-archive")
    save_samples(read_samples(folder / SAMPLES)[:1], folder / SAMPLES)
    assert error_of_folder(folder) == (
        "samples.safetensors: received 1 samples, expected 4; the archive was altered or damaged, "
        "build or copy it again"
    )


def test_an_option_that_the_tables_in_the_archive_cannot_follow_is_refused(
    tmp_path: Path,
) -> None:
    """Their data type was chosen when they were written."""
    folder = good.build(tmp_path, archive_format="no-archive")
    with pytest.raises(LoadError) as caught:
        good.load_folder(folder, tables={"dtype": "int4"})
    assert str(caught.value) == (
        "table 't_user': the archive holds 50 x 8 int8, the module expects 50 x 8 int4"
    )


def with_rows(folder: Path, rows: list[int | None]) -> Path:
    """An archive whose signature says this of the rows of its features' tables, 50, 40 and 10."""
    archive = good.build(folder, archive_format="no-archive")
    index = json.loads((archive / INDEX).read_text())
    index["signature"]["inputs"][1]["ids_below"] = rows
    (archive / INDEX).write_text(json.dumps(index))
    return archive


def test_a_signature_that_lets_ids_behind_a_table_pass_is_refused(tmp_path: Path) -> None:
    """The lookups trust it, and would read another table's rows, or behind the file."""
    assert error_of_folder(with_rows(tmp_path, [51, 40, 10])) == (
        "archive.json: ids of 'user' may be below 51, but its table has 50 rows; the archive was "
        "altered or damaged, build or copy it again"
    )


@pytest.mark.parametrize("rows", [[], [50, 40], [50, 40, 10, 3]])
def test_rows_are_said_of_every_feature(tmp_path: Path, rows: list[int | None]) -> None:
    assert error_of_folder(with_rows(tmp_path, rows)) == (
        f"archive.json: signature: id_list_features: ids_below is said of {len(rows)} features, "
        "it has 3; the archive was altered or damaged, build or copy it again"
    )


def test_a_signature_that_takes_any_id_has_its_lookups_guarded(tmp_path: Path) -> None:
    predictor = good.load_folder(with_rows(tmp_path, [None, 40, 10]))
    inputs = good.batch()
    inputs["id_list_features.values"][0] = 50
    with pytest.raises(InvalidRequest, match="'user'"):
        predictor.module(inputs)


# Plain archives.


@pytest.mark.parametrize("packager", [DefaultPackager, OwnPackager])
def test_a_plain_archive_of_any_packager_is_served(
    tmp_path: Path, packager: type[PredictFactoryPackager]
) -> None:
    predictor = load_plain(tmp_path, RankingPredictFactory, packager=packager)
    assert predictor.index is None
    torch.testing.assert_close(good.scores(predictor.module), good.expected_scores())


def test_a_dense_feature_may_be_called_like_a_sparse_one(tmp_path: Path) -> None:
    """Ids are checked against tables, numbers are not."""
    archive = build_archive(
        model_name="namesake",
        version="1.0",
        factory=NamesakePredictFactory,
        export_path=tmp_path,
        archive_format="no-archive",
    )
    signature = load(archive, Options(), torch.device("cpu")).signature
    assert signature.inputs[0].features == ("user", "movie", "genres")


def test_a_plain_archive_s_handler_is_the_file_that_it_was_given(tmp_path: Path) -> None:
    folder = build_plain(tmp_path, RankingPredictFactory, archive_format="no-archive")
    assert json.loads((folder / MANIFEST).read_text())["model"] == {
        "modelName": "plain",
        "serializedFile": "predict_factory.pt",
        "handler": "predict_factory_handler.py",
        "modelVersion": "1.0",
        "configFile": "model-config.yaml",
    }
    assert (folder / "predict_factory_handler.py").is_file()
    torch.testing.assert_close(good.scores(good.load_folder(folder).module), good.expected_scores())


def test_a_plain_archive_s_options_are_followed(tmp_path: Path) -> None:
    predictor = load_plain(
        tmp_path,
        RankingPredictFactory,
        model_config="minWorkers: 1\ntorchrec: {tables: {dtype: float16}}\n",
    )
    assert predictor.tables is not None
    assert {entry.dtype for entry in predictor.tables.entries.values()} == {"float16"}


def test_a_plain_archive_s_wrong_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        load_plain(
            tmp_path, RankingPredictFactory, model_config="torchrec: {tables: {dtype: int7}}\n"
        )
    assert str(caught.value) == (
        "torchrec.tables.dtype: received 'int7', "
        "expected 'float32', 'float16', 'int8', 'int4' or 'int2'"
    )


def test_a_plain_archive_has_no_weights_but_the_factory_s(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load_plain(tmp_path, MetaRankingPredictFactory, configs={"name.txt": "ranking"})
    assert str(caught.value) == (
        "table 't_user': has no weights; the factory leaves it on the meta device, so build the "
        "archive with --weights"
    )


# What the package holds.


def test_configs_and_extra_files_reach_the_factory(tmp_path: Path) -> None:
    predictor = load_plain(
        tmp_path, ConfiguredPredictFactory, configs=CONFIGS, extra_files=EXTRA_FILES
    )
    expected = good.expected_scores() * (2 * 5 * 7 * 11)
    torch.testing.assert_close(good.scores(predictor.module), expected)


def test_configs_and_extra_files_reach_the_factory_of_a_built_archive(tmp_path: Path) -> None:
    folder = good.build(
        tmp_path,
        factory=ConfiguredPredictFactory,
        configs=CONFIGS,
        extra_files=EXTRA_FILES,
        archive_format="no-archive",
    )
    predictor = good.load_folder(folder)
    assert predictor.index is not None
    assert predictor.index.extra_files == ("scale.txt", "scale.bin")
    expected = good.expected_scores() * (2 * 5 * 7 * 11)
    torch.testing.assert_close(good.scores(predictor.module), expected)


@pytest.mark.parametrize(
    ("configs", "extra_files", "said"),
    [
        (
            {"scale.pkl": {"factor": 2.0}, "scale.txt": "5"},
            EXTRA_FILES,
            (
                "raised AssertionError: The loaded config <class 'dict'> is not of type "
                "<class '<torch_package>.tests.support.factories.packaged.Scale'>"
            ),
        ),
        (
            {"scale.txt": "5"},
            EXTRA_FILES,
            (
                "asks for 'scale.pkl', a config that the package does not hold; "
                "give it with --config"
            ),
        ),
        (
            {"scale.pkl": Scale(2.0)},
            EXTRA_FILES,
            (
                "asks for 'scale.txt', a config that the package does not hold; "
                "give it with --config"
            ),
        ),
        (
            {},
            EXTRA_FILES,
            (
                "asks for 'scale.pkl', a config that the package does not hold; "
                "give it with --config"
            ),
        ),
        (
            CONFIGS,
            {"scale.txt": "7"},
            (
                "asks for 'scale.bin', an extra file that the package does not hold; "
                "give it with --extra-files"
            ),
        ),
        (
            CONFIGS,
            {},
            "asks for an extra file that the package does not hold; give it with --extra-files",
        ),
    ],
)
def test_a_config_or_extra_file_that_is_missing_or_wrong_is_named(
    tmp_path: Path, configs: Mapping[str, Any], extra_files: Mapping[str, str | bytes], said: str
) -> None:
    found = error_of(tmp_path, ConfiguredPredictFactory, configs=configs, extra_files=extra_files)
    assert good.unmangled(found) == f"ConfiguredPredictFactory.create_predict_module {said}"


def test_a_packager_that_externs_the_config_functions_is_told(tmp_path: Path) -> None:
    said = error_of(tmp_path, ConfiguredPredictFactory, configs=CONFIGS, packager=ForgetfulPackager)
    assert said == (
        "ConfiguredPredictFactory.create_predict_module raised NameError: name "
        "'torch_package_importer' is not defined; the packager must intern "
        "torchrec.inference.model_packager"
    )


def test_an_extern_module_is_the_worker_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says when the archive is loaded counts, not what it said when it was packed."""
    archive = build_plain(tmp_path, HousePredictFactory, packager=HousePackager)
    monkeypatch.setattr(house, "FACTOR", 13.0)
    predictor = good.load_folder(good.unpack(archive, tmp_path / "unpacked"))
    torch.testing.assert_close(good.scores(predictor.module), good.expected_scores() * 13)


def test_an_interned_module_is_the_package_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = build_plain(tmp_path, HousePredictFactory)
    monkeypatch.setattr(house, "FACTOR", 13.0)
    predictor = good.load_folder(good.unpack(archive, tmp_path / "unpacked"))
    torch.testing.assert_close(good.scores(predictor.module), good.expected_scores() * 3)


def test_a_mocked_module_stays_mocked(tmp_path: Path) -> None:
    """The factory's module imports it, and is served; the worker has it, and does not use it."""
    predictor = load_plain(tmp_path, HousePredictFactory, packager=HousePackager)
    torch.testing.assert_close(good.scores(predictor.module), good.expected_scores() * 3)
    assert "tests.support.factories.telemetry" in sys.modules
    said = error_of(tmp_path, TelemetryPredictFactory, packager=HousePackager)
    assert good.unmangled(said) == (
        "TelemetryPredictFactory.create_predict_module raised NotImplementedError: Object "
        "'<torch_package>.tests.support.factories.telemetry.send' was mocked out during packaging "
        "but it is being used in __call__"
    )
