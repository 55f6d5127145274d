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
    assert list(_commands()) == [
        *("init", "build", "inspect", "verify", "compare", "predict", "serve", "bench"),
        *("delta", "apply", "squash", "rollback"),
        *("plan", "join", "triton-repository", "sign", "admit", "swap", "completion"),
    ]


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
        "--html": ("FILE", False, None, None),
        "--time": (None, False, False, None),
    }


def test_the_options_of_the_others_are_these() -> None:
    archive = ("ARCHIVE", True, None, None)
    positional = {
        name: [action.dest for action in command._actions if not action.option_strings]
        for name, command in _commands().items()
    }
    assert positional["compare"] == ["a", "b"]
    assert positional["predict"] == ["archive", "requests"]
    assert _options(_commands()["verify"]) == {
        "": archive,
        "--no-replay": (None, False, True, None),
        "--startup-timeout": ("S", False, 600.0, None),
        "--trusted-keys": ("PATH", False, [], None),
        "--allow-invalid-rows": ("TABLE", False, [], None),
        "--json": (None, False, False, None),
    }
    assert _options(_commands()["admit"]) == {
        "": archive,
        "--into": ("FOLDER", True, None, None),
        "--trusted-keys": ("PATH", False, [], None),
        "--allow-invalid-rows": ("TABLE", False, [], None),
        "-f --force": (None, False, False, None),
    }
    assert _options(_commands()["join"]) == {
        "": archive,
        "--rdzv-endpoint": ("HOST:PORT", True, None, None),
        "--nnodes": ("N", True, None, None),
        "--node-rank": ("N", True, None, None),
        "--nproc-per-node": ("N", False, 1, None),
        "--rdzv-id": ("NAME", False, None, None),
        "--folder": ("FOLDER", False, None, None),
        "--trusted-keys": ("PATH", False, [], None),
    }
    assert _options(_commands()["compare"]) == {
        "": ("B", True, None, None),
        "--requests": ("PATH", False, None, None),
        "--max-difference": ("X", False, None, None),
        "--json": (None, False, False, None),
    }
    assert _options(_commands()["init"]) == {
        "": ("FOLDER", True, None, None),
        "--model": ("MODULE:NAME", False, None, None),
        "--weights": ("CHECKPOINT", False, None, None),
        "-f --force": (None, False, False, None),
    }
    assert positional["plan"] == ["archive"]
    assert _options(_commands()["plan"]) == {
        "": ("ARCHIVE", False, None, None),
        "--tables": ("FILE", False, None, None),
        "--nodes": ("N", False, 1, None),
        "--ranks-per-node": ("N", False, 1, None),
        "--memory": ("BYTES", False, None, None),
        "--type": (None, False, "table_wise", ("table_wise", "row_wise")),
        "--row-wise": ("TABLE", False, [], None),
        "--exchange-dtype": (None, False, "float32", ("float32", "float16", "bfloat16")),
        "--rows": ("N", False, 1000, None),
        "--ids-per-feature": ("X", False, 1.0, None),
        "--json": (None, False, False, None),
    }
    assert _options(_commands()["predict"]) == {
        "": ("REQUEST", True, None, None),
        "--qualname": ("METHOD", False, "forward", None),
        "--content-type": ("TYPE", False, None, None),
        "--accept": ("TYPE", False, None, None),
    }


DELTAS: dict[str, tuple[object, ...]] = {
    "--base": ("ARCHIVE", True, None, None),
    "--folder": ("FOLDER", True, None, None),
    "--trusted-keys": ("PATH", False, [], None),
}
SIGNED = {"--sign": ("KEY", False, None, None), "--ask-password": (None, False, False, None)}


def test_the_options_of_deltas_are_these() -> None:
    assert _options(_commands()["delta"]) == {
        "--weights": ("PATH", True, None, None),
        "--weights-map": ("OLD=NEW", False, [], None),
        "--weights-key": ("KEY", False, None, None),
        "--ignore-weights": ("PATTERN", False, [], None),
        "--after": ("N", False, None, None),
        "--max-rows": ("ROWS", False, 100_000, None),
        "--no-outputs": (None, False, False, None),
        **DELTAS,
        **SIGNED,
    }
    assert _options(_commands()["apply"]) == {
        "": ("DELTA", True, None, None),
        "--wait": ("SECONDS", False, None, None),
        "--management-address": ("URL", False, "http://127.0.0.1:8081", None),
        **DELTAS,
    }
    assert _options(_commands()["squash"]) == {
        "--from": ("N", False, 1, None),
        "--to": ("N", False, None, None),
        "--remove": (None, False, False, None),
        **DELTAS,
        **SIGNED,
    }
    assert _options(_commands()["rollback"]) == {
        "--to": ("N", True, None, None),
        **DELTAS,
        **SIGNED,
    }


SERVER = {
    "--workers": ("N", False, None, None),
    "--startup-timeout": ("S", False, 600.0, None),
    "--folder": ("FOLDER", False, None, None),
}


def test_the_options_of_serve_are_these() -> None:
    assert _options(_commands()["serve"]) == {
        "": ("ARCHIVE", True, None, None),
        "--server": (None, False, "torchserve", ("torchserve", "triton")),
        "--port": ("PORT", False, None, None),
        "--management-port": ("PORT", False, None, None),
        "--metrics-port": ("PORT", False, None, None),
        "--grpc-port": ("PORT", False, None, None),
        "--grpc-management-port": ("PORT", False, None, None),
        "--ts-config": ("FILE", False, None, None),
        **SERVER,
        "--trusted-keys": ("PATH", False, [], None),
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
            (
                "factory: module 'tests.support.factories.ranking' has no class 'Shop'\n"
                "hint: its classes are Ranking, RankingPredictModule, RankingPredictFactory, "
                "MetaRankingPredictFactory"
            ),
        ),
        (
            ("--factory", "tests.support.factories.ranking:RankingPredictModule"),
            (
                "factory: tests.support.factories.ranking:RankingPredictModule is not a "
                "torchrec.inference.modules.PredictFactory\n"
                "hint: did you mean RankingPredictFactory?"
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
            (
                "config scale.pkl: {folder}/nowhere.pkl cannot be read: No such file or directory\n"
                "hint: {folder} holds model_store, tmp"
            ),
        ),
        (
            ("--config", "scale.pkl"),
            (
                "argument --config: received 'scale.pkl', expected NAME=PATH\n"
                "hint: torchrec-archiver build --help"
            ),
        ),
        (
            ("--config", "=path"),
            (
                "argument --config: received '=path', expected NAME=PATH\n"
                "hint: torchrec-archiver build --help"
            ),
        ),
        (
            ("--config", "a=x", "--config", "a=y"),
            "--config: 'a' is given twice: x and y",
        ),
        (
            ("--weights", "{folder}/nowhere.pt"),
            "weights: {folder}/nowhere.pt does not exist\nhint: {folder} holds model_store, tmp",
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
                "argument --weights-map: received 'module', expected OLD=NEW\n"
                "hint: torchrec-archiver build --help"
            ),
        ),
        (
            ("--max-output-error", "little"),
            (
                "argument --max-output-error: invalid float value: 'little'\n"
                "hint: torchrec-archiver build --help"
            ),
        ),
        (
            ("--extra-files", "{folder}/nowhere"),
            (
                "extra file nowhere: {folder}/nowhere cannot be read: No such file or directory\n"
                "hint: {folder} holds model_store, tmp"
            ),
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
            (
                "config file: {folder}/nowhere cannot be read: No such file or directory\n"
                "hint: {folder} holds model_store, tmp"
            ),
        ),
        (
            ("--requirements-file", "{folder}/nowhere"),
            (
                "requirements file: {folder}/nowhere cannot be read: No such file or directory\n"
                "hint: {folder} holds model_store, tmp"
            ),
        ),
        (
            ("--archive-format", "zip"),
            (
                "argument --archive-format: invalid choice: 'zip' (choose from 'auto', 'default', "
                "'zip-store', 'no-archive', 'tgz')\nhint: torchrec-archiver build --help"
            ),
        ),
        (
            ("--weight", "x"),
            (
                "unrecognized arguments: --weight x\n"
                "hint: did you mean --weights? See torchrec-archiver build --help"
            ),
        ),
        (
            ("--model-name",),
            ("argument --model-name: expected one argument\nhint: torchrec-archiver build --help"),
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
            ("the following arguments are required: COMMAND\nhint: torchrec-archiver --help"),
        ),
        (
            ("bild",),
            (
                "argument COMMAND: invalid choice: 'bild' (choose from 'init', 'build', "
                "'inspect', 'verify', 'compare', 'predict', 'serve', 'bench', 'delta', 'apply', "
                "'squash', 'rollback', 'plan', 'join', 'triton-repository', 'sign', 'admit', "
                "'swap', 'completion')\nhint: did you mean build? See torchrec-archiver --help"
            ),
        ),
        (
            ("build",),
            (
                "the following arguments are required: --model-name, --version, --factory\n"
                "hint: torchrec-archiver build --help"
            ),
        ),
    ],
)
def test_what_is_missing_is_one_error_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 1
    assert capsys.readouterr() == ("", f"ERROR: {message}\n")


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_the_help_of_every_command_shows_examples_of_it(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, "--help") == 0
    _, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
    assert f"  torchrec-archiver {name} " in examples


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", "--help") == 0
    out = capsys.readouterr().out
    for option in ("--config NAME=PATH", "--extra-files PATH[,PATH]", "--force"):
        assert option in out


def test_every_command_has_its_line_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for name in command_line.COMMANDS:
        assert f"\n    {name}" in shown


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"torchrec-archiver {__version__}\n"


HELLO = """
from torchrec_handler.errors import BuildError

HELP = "say hello"
EXAMPLES = "torchrec-archiver hello --name you"

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
    assert "    hello            say hello\n" in capsys.readouterr().out
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
    [
        ("--help",),
        ("--version",),
        *((name, "--help") for name in command_line.COMMANDS),
        ("inspect", "{folder}"),
        ("completion", "bash"),
    ],
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


def test_an_older_python_is_told_before_anything_of_it_is_read() -> None:
    code = "import sys; sys.version_info = (3, 9, 2); import torchrec_archiver.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        (
            "ERROR: torchrec-serve runs on Python 3.11 and newer, this is 3.9\n"
            "hint: make its environment with a newer one: python3.11 -m venv .venv\n"
        ),
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_is_given_commands_and_options(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("completion", shell) == 0
    script = capsys.readouterr().out
    for word in (*command_line.COMMANDS, "--weights-map", "--max-difference", "zip-store"):
        assert word.removeprefix("--") in script


def test_bash_completes_commands_options_choices_and_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("completion", "bash") == 0
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    (tmp_path / "shop.mar").touch()

    def completed(*words: str) -> list[str]:
        script = (
            f"source completion; COMP_WORDS=(torchrec-archiver {' '.join(words)} ''); "
            f"COMP_CWORD={len(words) + 1}; _shtab_torchrec_archiver; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", script],  # noqa: S607
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    assert set(command_line.COMMANDS) <= set(completed())
    assert completed("build", "--archive-format")[:2] == ["auto", "default"]
    assert "shop.mar" in completed("verify")
