"""The command line: its options, and one ERROR line for whatever is wrong."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import FACTORY, build, run
from torchrec_archiver import __main__ as command_line
from torchrec_archiver import commands
from torchrec_handler import __version__
from torchrec_handler.archive.format import FORMAT_VERSION, INDEX, Index, Signature

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
    assert list(_commands()) == ["build", "inspect", "serve", "bench"]


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


SERVER = {
    "--workers": ("N", False, None, None),
    "--folder": ("FOLDER", False, None, None),
}


def test_the_options_of_serve_are_these() -> None:
    assert _options(_commands()["serve"]) == {
        "": ("ARCHIVE", True, None, None),
        "--port": ("PORT", False, None, None),
        "--management-port": ("PORT", False, None, None),
        "--metrics-port": ("PORT", False, None, None),
        "--grpc-port": ("PORT", False, None, None),
        "--grpc-management-port": ("PORT", False, None, None),
        "--ts-config": ("FILE", False, None, None),
        **SERVER,
    }


def test_the_options_of_bench_are_these() -> None:
    assert _options(_commands()["bench"]) == {
        "": ("ARCHIVE", True, None, None),
        "--seconds": ("S", False, 10.0, None),
        "--connections": ("N[,N]", False, [1, 16, 64], None),
        "--rows": ("N[,N]", False, [1, 100, 1000], None),
        "--content-type": (
            None,
            False,
            "application/json",
            ("application/json", "application/x-protobuf"),
        ),
        "--requests": ("FILE", False, None, None),
        "--server": ("URL", False, None, None),
        **SERVER,
        "--picture": ("FILE", False, None, None),
        "--json": (None, False, False, None),
    }


# What is wrong.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--factory", "shop"),
            "factory: received 'shop', expected MODULE:CLASS",
        ),
        (
            ("--factory", "tests.support.factories.ranking:Shop"),
            "factory: module 'tests.support.factories.ranking' has no class 'Shop'",
        ),
        (
            ("--factory", "tests.support.factories.ranking:RankingPredictModule"),
            (
                "factory: tests.support.factories.ranking:RankingPredictModule is not a "
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
                "argument COMMAND: invalid choice: 'bild' (choose from 'build', 'inspect', "
                "'serve', 'bench'); see torchrec-archiver --help"
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


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", "--help") == 0
    out = capsys.readouterr().out
    for option in ("--config NAME=PATH", "--extra-files PATH[,PATH]", "--force"):
        assert option in out


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
