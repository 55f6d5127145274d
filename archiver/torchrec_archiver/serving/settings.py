"""TorchServe's settings: those that this project ships, and what is changed of them."""

import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torchrec_handler.errors import ServeError

SHIPPED = Path(__file__).parents[1] / "model_store"
"""The repository's folder of that name, which the installed package holds too."""
CONFIG = SHIPPED / "config.properties"
LOG_CONFIG = SHIPPED / "log4j2.xml"


class Port(NamedTuple):
    """One of the ports that TorchServe opens."""

    option: str
    """Of the command line."""
    setting: str
    """Of config.properties: an address that ends with the port, or the port alone."""
    host: str
    """The setting that tells where a port alone is opened; empty for an address."""
    number: int
    """TorchServe's own."""
    opens: str
    """In words."""


PORTS = (
    Port("--port", "inference_address", "", 8080, "inference"),
    Port("--management-port", "management_address", "", 8081, "management"),
    Port("--metrics-port", "metrics_address", "", 8082, "metrics"),
    Port("--grpc-port", "grpc_inference_port", "grpc_inference_address", 7070, "gRPC"),
    Port(
        "--grpc-management-port",
        "grpc_management_port",
        "grpc_management_address",
        7071,
        "gRPC management",
    ),
)

TRITON_PORTS = (
    Port("--port", "http-port", "http-address", 8000, "inference"),
    Port("--metrics-port", "metrics-port", "metrics-address", 8002, "metrics"),
    Port("--grpc-port", "grpc-port", "grpc-address", 8001, "gRPC"),
)
"""Those that Triton opens; its settings are its options."""

ADDRESS = re.compile(r"http://([^:/]+):(\d+)/?")


class Place(NamedTuple):
    """Where something listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """How this machine reaches it."""
        host = "127.0.0.1" if self.host in {"", "0.0.0.0"} else self.host  # noqa: S104
        return f"http://{host}:{self.port}"


def read(path: Path) -> dict[str, str]:
    """Read a config.properties: setting -> value.

    Raises:
        ServeError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"--ts-config: {path} cannot be read: {getattr(error, 'strerror', error)}"
        raise ServeError(message) from error
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def write(settings: Mapping[str, str], path: Path) -> None:
    """Write a config.properties."""
    lines = [f"{name}={value}\n" for name, value in settings.items()]
    path.write_text("".join(lines), encoding="utf-8")


def with_ports(
    settings: Mapping[str, str], ports: Mapping[str, int], known: Sequence[Port] = PORTS
) -> dict[str, str]:
    """Put ports in the place of those that the settings name.

    Args:
        settings: of the server.
        ports: by the options of `known`.
        known: ports of the server.
    """
    changed = dict(settings)
    for one in known:
        if one.option in ports:
            number = str(ports[one.option])
            host = place(settings, one).host
            changed[one.setting] = number if one.host else f"http://{host}:{number}"
    return changed


def place(settings: Mapping[str, str], port: Port) -> Place:
    """Where TorchServe opens a port.

    Raises:
        ServeError: an address is not HTTP's, or no port.
    """
    if port.host:
        number = settings.get(port.setting, str(port.number))
        if not number.isdecimal():
            message = f"{port.setting}: received {number}, expected a port"
            raise ServeError(message)
        return Place(settings.get(port.host, "127.0.0.1"), int(number))
    address = settings.get(port.setting, f"http://127.0.0.1:{port.number}")
    found = ADDRESS.fullmatch(address)
    if found is None:
        message = f"{port.setting}: received {address}, expected http://HOST:PORT"
        raise ServeError(message)
    return Place(found[1], int(found[2]))


def check_free(settings: Mapping[str, str], known: Sequence[Port] = PORTS) -> None:
    """See that every port can be opened.

    Raises:
        ServeError: some cannot; names all of them, and options that give others.
    """
    refused = {one: why for one in known if (why := _why_not(place(settings, one)))}
    if not refused:
        return
    first, why = next(iter(refused.items()))
    if len(refused) == 1:
        message = (
            f"port {place(settings, first).port} ({first.opens}, {first.setting}): {why}; "
            f"stop what listens there, or give another one with {first.option}"
        )
        raise ServeError(message)
    named = ", ".join(f"{place(settings, one).port} ({one.opens})" for one in refused)
    free = free_ports(known)
    others = " ".join(f"{one.option} {free[one.option]}" for one in refused)
    message = f"ports {named}: {why}; stop what listens there, or give others"
    raise ServeError(message, hint=f"these are free: {others}")


def _why_not(wanted: Place) -> str:
    """Why a port cannot be opened; empty where it can."""
    try:
        socket.create_server(wanted).close()
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0
        return os.strerror(number) if number > 0 else str(error)
    return ""


def free_ports(known: Sequence[Port] = PORTS) -> dict[str, int]:
    """Ports of 127.0.0.1 that nothing listens on, by the options of `known`."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in known]
    ports = [int(found.getsockname()[1]) for found in sockets]
    for found in sockets:
        found.close()
    return dict(zip((one.option for one in known), ports, strict=True))
