"""The command line: its options, what it prints, and one ERROR line for whatever is wrong."""

import argparse
import json
import logging
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.archives import good
from tests.factories.packaged import Scale
from tests.factories.ranking import RankingPredictFactory, seeded
from torchrec_archiver import DefaultPackager, commands
from torchrec_archiver import __main__ as command_line
from torchrec_handler import __version__
from torchrec_handler.archive.format import (
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    MODEL_CONFIG,
    PACKAGE,
    REQUIREMENTS,
    Index,
    Signature,
)
from torchrec_handler.load.package import open_package

ROOT = Path(__file__).parents[2]
SAMPLE = {
    "float_features": [[0.5, 1.0, 1.5]],
    "id_list_features.lengths": [1, 1, 2],
    "id_list_features.values": [49, 39, 0, 9],
    "id_score_list_features.lengths": [1, 0],
    "id_score_list_features.values": [29],
    "id_score_list_features.weights": [0.5],
}
"""A request of the ranking model."""

FACTORY = "tests.factories.ranking:RankingPredictFactory"


@pytest.fixture(autouse=True)
def _same_logging() -> Iterator[None]:
    """The command line sets up logging for its own process."""
    root = logging.getLogger()
    handlers, filters, level = list(root.handlers), list(root.filters), root.level
    yield
    root.handlers[:], root.filters[:] = handlers, filters
    root.setLevel(level)


def run(*arguments: str | Path) -> int:
    try:
        return command_line.main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse's way
        return int(end.code or 0)


def build(store: Path, *arguments: str | Path) -> int:
    return run(
        *("build", "--model-name", "ranking", "--version", "1.0"),
        *("--factory", FACTORY, "--export-path", store, *arguments),
    )


# The options.


def _options(parser: argparse.ArgumentParser) -> dict[str, tuple[object, ...]]:
    return {
        " ".join(action.option_strings): (
            action.metavar,
            action.required,
            action.default,
            action.choices,
        )
        for action in parser._actions
        if action.dest != "help"
    }


def _commands() -> dict[str, argparse.ArgumentParser]:
    found = next(action for action in command_line._parser()._actions if action.choices)
    return dict(found.choices or {})


def test_the_commands_are_these() -> None:
    assert list(_commands()) == ["build", "inspect"]


def test_the_options_of_build_are_these() -> None:
    """A user's scripts rest on them: names are torch-model-archiver's where it has them."""
    packager = "torchrec_archiver.package:DefaultPackager"
    formats = ("auto", "default", "zip-store", "no-archive", "tgz")
    assert _options(_commands()["build"]) == {
        "--model-name": (None, True, None, None),
        "--version": (None, True, None, None),
        "--factory": ("MODULE:CLASS", True, None, None),
        "--config": ("NAME=PATH", False, [], None),
        "--weights": ("PATH", False, None, None),
        "--weights-map": ("OLD=NEW", False, [], None),
        "--weights-key": ("KEY", False, None, None),
        "--ignore-weights": ("PATTERN", False, [], None),
        "--samples": ("PATH", False, None, None),
        "--max-output-error": ("X", False, None, None),
        "--allow-invalid-rows": ("TABLE", False, [], None),
        "--allow-failing-samples": (None, False, False, None),
        "--extra-files": ("PATH[,PATH]", False, [], None),
        "--packager": ("MODULE:CLASS", False, packager, None),
        "--export-path": ("FOLDER", False, ".", None),
        "--config-file": ("PATH", False, None, None),
        "--requirements-file": ("PATH", False, None, None),
        "--archive-format": (None, False, "auto", formats),
        "-f --force": (None, False, False, None),
    }


def test_the_options_of_inspect_are_these() -> None:
    assert _options(_commands()["inspect"]) == {
        "": ("ARCHIVE", True, None, None),
        "--json": (None, False, False, None),
    }


def test_every_command_has_its_line_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for name in command_line.COMMANDS:
        assert f"    {name} " in shown


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"torchrec-archiver {__version__}\n"


HELLO = """
from torchrec_handler.errors import BuildError

HELP = "say hello"

def add(parser):
    parser.add_argument("--name", default="nobody")

def run(options):
    if options.name == "nobody":
        raise BuildError("nobody is there")
    print(f"Hello {options.name}")
    return 7
"""


def test_a_command_is_one_module_and_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hello.py").write_text(HELLO)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    monkeypatch.setattr(command_line, "COMMANDS", (*command_line.COMMANDS, "hello"))
    assert run("--help") == 0
    assert "    hello     say hello\n" in capsys.readouterr().out
    assert run("hello", "--name", "you") == 7
    assert capsys.readouterr() == ("Hello you\n", "")
    assert run("hello") == 1
    assert capsys.readouterr() == ("", "ERROR: nobody is there\n")
    del sys.modules["torchrec_archiver.commands.hello"]


IN_A_FRESH_PROCESS = """
import sys, time
from torchrec_archiver.__main__ import main

try:
    status = main()
except SystemExit as end:
    status = end.code
heavy = {"torch", "torchrec", "fbgemm_gpu", "numpy", "ts"} & set(sys.modules)
assert not heavy, heavy
print(time.process_time(), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("build", "--help"), ("inspect", "{folder}")],
    ids=" ".join,
)
def test_what_builds_nothing_imports_no_torch_and_takes_no_time(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """CPU time, since other processes are on this machine's cores."""
    index = Index(
        format_version=FORMAT_VERSION,
        versions={},
        signature=Signature(inputs=(), methods={"forward": True}, result_metadata="dict_of_tensor"),
        tables=(),
        extra_files=(),
        sha256={},
        samples=0,
    )
    (tmp_path / INDEX).write_text(index.dumps())
    done = subprocess.run(
        [
            *(sys.executable, "-c", IN_A_FRESH_PROCESS),
            *(argument.replace("{folder}", str(tmp_path)) for argument in arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert float(done.stderr) < 0.5


def test_every_option_in_one_real_command(tmp_path: Path, store: Path, workspace: Path) -> None:
    """The installed console script, from the folder of the user's own modules."""
    state = {f"module.{name}": value for name, value in seeded().state_dict().items()}
    checkpoint = {"model": state, "ema": {**state, "criterion.weight": torch.zeros(1)}}
    torch.save(checkpoint, tmp_path / "weights.pt")
    (tmp_path / "samples.jsonl").write_text(f"{json.dumps(SAMPLE)}\n")
    (tmp_path / "scale.pkl").write_bytes(pickle.dumps(Scale(2.0)))
    (tmp_path / "five.txt").write_text("5")
    (tmp_path / "scale.txt").write_text("7")
    (tmp_path / "scale.bin").write_bytes(b"\x0b")
    (tmp_path / "model-config.yaml").write_text("torchrec: {tables: {dtype: int8}}\n")
    (tmp_path / "needs.txt").write_text("httpx\n")
    (store / "shop.mar").write_text("an old one")
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("torchrec-archiver")), "build"),
            *("--model-name", "shop", "--version", "2.0"),
            *("--factory", "tests.factories.packaged:ConfiguredPredictFactory"),
            *("--config", f"scale.pkl={tmp_path}/scale.pkl"),
            *("--config", f"scale.txt={tmp_path}/five.txt"),
            *("--weights", str(tmp_path / "weights.pt"), "--weights-map", "module.="),
            *("--weights-key", "ema", "--ignore-weights", "criterion.*"),
            *("--samples", str(tmp_path / "samples.jsonl"), "--max-output-error", "1e6"),
            *("--extra-files", f"{tmp_path}/scale.txt, {tmp_path}/scale.bin"),
            *("--packager", "tests.factories.packagers:LoaderCodePackager"),
            *("--export-path", str(store)),
            *("--config-file", str(tmp_path / "model-config.yaml")),
            *("--requirements-file", str(tmp_path / "needs.txt")),
            *("--archive-format", "zip-store", "--force"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (
        0,
        (
            "INFO: requirements.txt: TorchServe installs it only where it has "
            "install_py_dep_per_model=true\n"
        ),
    )
    assert done.stdout.splitlines()[-1] == str(store / "shop.mar")
    assert [path.name for path in store.iterdir()] == ["shop.mar"]
    assert not list(workspace.iterdir())
    with zipfile.ZipFile(store / "shop.mar") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    folder = good.unpack(store / "shop.mar", tmp_path / "unpacked")
    model = json.loads((folder / MANIFEST).read_text())["model"]
    assert (model["modelName"], model["modelVersion"]) == ("shop", "2.0")
    assert (folder / REQUIREMENTS).read_text() == "httpx\n"
    assert (folder / MODEL_CONFIG).read_text().startswith("torchrec: {tables: {dtype: int8}}\n")
    assert Index.loads((folder / INDEX).read_text()).extra_files == ("scale.txt", "scale.bin")
    assert open_package(folder / PACKAGE).factory.made_by == "my loader"
    predictor = good.load_folder(folder)
    torch.testing.assert_close(
        good.scores(predictor.module), good.expected_scores() * (2 * 5 * 7 * 11)
    )


def test_the_archive_s_path_is_printed_last(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(store, "--archive-format", "default") == 0
    out, error = capsys.readouterr()
    assert out.splitlines()[-1] == str(store / "ranking.mar")
    assert not error


@pytest.mark.parametrize("force", ["-f", "--force"])
def test_an_archive_is_replaced_by_force(store: Path, force: str) -> None:
    (store / "ranking.mar").write_text("an old one")
    assert build(store, force) == 0
    assert zipfile.is_zipfile(store / "ranking.mar")


def test_extra_files_may_be_given_together_and_one_by_one(store: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path in paths:
        path.write_text(path.name)
    together = f"{paths[0]},{paths[1]}"
    assert build(store, "--extra-files", together, "--extra-files", paths[2]) == 0
    folder = good.unpack(store / "ranking.mar", tmp_path / "unpacked")
    index = Index.loads((folder / INDEX).read_text())
    assert index.extra_files == ("a.txt", "b.txt", "c.txt")


def test_a_factory_out_of_another_package_is_packed_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a packager of the user's own, which knows where the factory came from."""
    first = tmp_path / "first.pt"
    DefaultPackager.save_predict_factory(RankingPredictFactory, {}, first, {})
    (tmp_path / "repacked.py").write_text(
        "from torch.package import PackageImporter, sys_importer\n"
        "from torchrec_archiver import DefaultPackager\n"
        "importer = PackageImporter('first.pt')\n"
        "module = importer.import_module('tests.factories.ranking')\n"
        "RepackedPredictFactory = module.RankingPredictFactory\n"
        "class RepackingPackager(DefaultPackager):\n"
        "    @classmethod\n"
        "    def save_predict_factory(cls, *args):\n"
        "        importers = [importer, sys_importer]\n"
        "        super().save_predict_factory(*args, package_importer=importers)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    named = ("--factory", "repacked:RepackedPredictFactory")
    assert build(store, *named, "--packager", "repacked:RepackingPackager") == 0
    folder = good.unpack(store / "ranking.mar", tmp_path / "unpacked")
    torch.testing.assert_close(good.scores(good.load_folder(folder).module), good.expected_scores())


# What is wrong.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--factory", "shop"),
            "factory: received 'shop', expected MODULE:CLASS",
        ),
        (
            ("--factory", "tests.factories.ranking:Shop"),
            "factory: module 'tests.factories.ranking' has no class 'Shop'",
        ),
        (
            ("--factory", "tests.factories.ranking:RankingPredictModule"),
            (
                "factory: tests.factories.ranking:RankingPredictModule is not a "
                "torchrec.inference.modules.PredictFactory"
            ),
        ),
        (
            ("--packager", FACTORY),
            (
                f"packager: {FACTORY} is not a "
                "torchrec.inference.model_packager.PredictFactoryPackager"
            ),
        ),
        (
            ("--model-name", "a b"),
            (
                "model name: received 'a b', expected letters, digits, '_', '-' and '.', "
                "a letter or a digit first"
            ),
        ),
        (
            ("--version", ""),
            (
                "version: received '', expected text that an address holds as it is, like '1.0' or "
                "'2024-11-24'"
            ),
        ),
        (
            ("--config", "scale.pkl={folder}/nowhere.pkl"),
            ("config scale.pkl: {folder}/nowhere.pkl cannot be read: No such file or directory"),
        ),
        (
            ("--config", "scale.pkl"),
            (
                "argument --config: received 'scale.pkl', expected NAME=PATH; "
                "see torchrec-archiver build --help"
            ),
        ),
        (
            ("--config", "=path"),
            (
                "argument --config: received '=path', expected NAME=PATH; "
                "see torchrec-archiver build --help"
            ),
        ),
        (
            ("--config", "a=x", "--config", "a=y"),
            "--config: 'a' is given twice: x and y",
        ),
        (
            ("--weights", "{folder}/nowhere.pt"),
            "weights: {folder}/nowhere.pt does not exist",
        ),
        (
            ("--weights", "{folder}"),
            (
                "weights: {folder} is a folder without .metadata (torch.distributed.checkpoint), "
                "one *.safetensors.index.json or *.bin.index.json, or files of ranks (.pt, .pth, "
                ".bin, .ckpt, .safetensors)"
            ),
        ),
        (
            ("--weights-map", "module"),
            (
                "argument --weights-map: received 'module', expected OLD=NEW; "
                "see torchrec-archiver build --help"
            ),
        ),
        (
            ("--max-output-error", "little"),
            (
                "argument --max-output-error: invalid float value: 'little'; "
                "see torchrec-archiver build --help"
            ),
        ),
        (
            ("--extra-files", "{folder}/nowhere"),
            "extra file nowhere: {folder}/nowhere cannot be read: No such file or directory",
        ),
        (
            ("--extra-files", "x/movies.json,y/movies.json"),
            "--extra-files: 'movies.json' is given twice: x/movies.json and y/movies.json",
        ),
        (
            ("--weights-map", "a=b", "--weights-map", "a="),
            "--weights-map: 'a' is given twice: b and ",
        ),
        (
            ("--extra-files", "{folder}"),
            "extra file {name}: {folder} cannot be read: Is a directory",
        ),
        (
            ("--export-path", "{folder}/nowhere"),
            "export path: {folder}/nowhere is not a folder; make it first",
        ),
        (
            ("--config-file", "{folder}/nowhere"),
            "config file: {folder}/nowhere cannot be read: No such file or directory",
        ),
        (
            ("--requirements-file", "{folder}/nowhere"),
            "requirements file: {folder}/nowhere cannot be read: No such file or directory",
        ),
        (
            ("--archive-format", "zip"),
            (
                "argument --archive-format: invalid choice: 'zip' (choose from 'auto', 'default', "
                "'zip-store', 'no-archive', 'tgz'); see torchrec-archiver build --help"
            ),
        ),
        (
            ("--weight", "x"),
            "unrecognized arguments: --weight x; see torchrec-archiver --help",
        ),
        (
            ("--model-name",),
            ("argument --model-name: expected one argument; see torchrec-archiver build --help"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_is_one_error_line_and_leaves_nothing(  # noqa: PLR0913, PLR0917  fixtures
    arguments: tuple[str, ...],
    message: str,
    store: Path,
    workspace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def here(text: str) -> str:
        return text.replace("{folder}", str(tmp_path)).replace("{name}", tmp_path.name)

    assert build(store, *map(here, arguments)) == 1
    assert capsys.readouterr() == ("", f"ERROR: {here(message)}\n")
    assert not list(store.iterdir())
    assert not list(workspace.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (),
            ("the following arguments are required: COMMAND; see torchrec-archiver --help"),
        ),
        (
            ("bild",),
            (
                "argument COMMAND: invalid choice: 'bild' (choose from 'build', 'inspect'); "
                "see torchrec-archiver --help"
            ),
        ),
        (
            ("build",),
            (
                "the following arguments are required: --model-name, --version, --factory; "
                "see torchrec-archiver build --help"
            ),
        ),
    ],
)
def test_what_is_missing_is_one_error_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 1
    assert capsys.readouterr() == ("", f"ERROR: {message}\n")


def test_a_checkpoint_that_does_not_fit_is_listed_under_one_error(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = dict(seeded().state_dict())
    state["over.0.wieght"] = state.pop("over.0.weight")
    torch.save(state, tmp_path / "weights.pt")
    assert build(store, "--weights", tmp_path / "weights.pt") == 1
    out, error = capsys.readouterr()
    assert not out
    assert error == (
        "ERROR: weights: the checkpoint does not fit the predict module\n"
        "  missing: over.0.weight (did you mean over.0.wieght?)\n"
        "  unexpected: over.0.wieght (did you mean over.0.weight?)\n"
    )
    assert not list(store.iterdir())


def test_a_training_checkpoint_is_taken_with_one_line_of_what_was_taken(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"model": seeded().state_dict(), "optimizer": {"lr": 0.1}, "epoch": 3}
    torch.save(job, tmp_path / "last.pt")
    assert build(store, "--weights", tmp_path / "last.pt") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "weights" in line]
    assert said == ["INFO: weights: took 9 entries under 'model.'; left optimizer.*, epoch"]


def test_a_factory_that_fails_is_one_error_line(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The build runs the code that will serve, so its errors are the worker's."""
    name = "tests.factories.packaged:TelemetryPredictFactory"
    packager = "tests.factories.packagers:HousePackager"
    assert build(store, "--factory", name, "--packager", packager) == 1
    out, error = capsys.readouterr()
    assert not out
    assert good.unmangled(error) == (
        "ERROR: TelemetryPredictFactory.create_predict_module raised NotImplementedError: Object "
        "'<torch_package>.tests.factories.telemetry.send' was mocked out during packaging but it "
        "is being used in __call__\n"
    )
    assert not list(store.iterdir())


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", "--help") == 0
    out = capsys.readouterr().out
    for option in ("--config NAME=PATH", "--extra-files PATH[,PATH]", "--force"):
        assert option in out
