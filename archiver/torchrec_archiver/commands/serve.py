"""`torchrec-archiver serve`: a TorchServe, or a Triton, on archives, until Ctrl-C."""

import argparse
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from torchrec_archiver.command_line import add_keys, add_startup_timeout, keys_of
from torchrec_archiver.serving.settings import PORTS, SHIPPED, TRITON_PORTS, Port
from torchrec_handler.errors import ServeError

if TYPE_CHECKING:
    from torchrec_archiver.serving.running import Running

HELP = "start a server on archives, and print the line that asks them"

EXAMPLES = """\
torchrec-archiver serve model_store/shop.mar
torchrec-archiver serve model_store/shop.mar model_store/toys --port 9080 --workers 2
torchrec-archiver serve incoming/shop.mar --trusted-keys release.pub
torchrec-archiver serve model_store/shop.mar --server triton
"""

LONGEST_ANSWER = 200
"""Of what a model answered, shown."""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("archives", metavar="ARCHIVE", nargs="+", help="a .mar, .tar.gz or folder")
    parser.add_argument(
        "--server",
        choices=tuple(SERVERS),
        default=TORCHSERVE,
        help="which one; torchserve, or triton where that is installed",
    )
    tritons = {port.option: port.number for port in TRITON_PORTS}
    for port in PORTS:
        triton = f", Triton's {tritons[port.option]}" if port.option in tritons else ""
        parser.add_argument(
            port.option,
            type=_port,
            metavar="PORT",
            help=f"of the {port.opens} API; TorchServe's is {port.number}{triton}",
        )
    add_server(parser)
    add_keys(parser)
    parser.add_argument(
        "--ts-config",
        metavar="FILE",
        help="a config.properties of TorchServe in the place of the shipped one",
    )


def add_server(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of every command that starts a server."""
    parser.add_argument(
        "--workers", type=number, metavar="N", help="of each model; as its archive says"
    )
    add_startup_timeout(parser)
    parser.add_argument(
        "--folder",
        metavar="FOLDER",
        help="where the temporary folder is made that holds what is unpacked, and logs",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        ArchiveError: see `running`.
        ServeError: see `running`; or TorchServe ended by itself.
    """
    archives = [Path(path) for path in options.archives]
    title, start = SERVERS[options.server]
    print(f"Starting {title} with {', '.join(options.archives)} …", flush=True)
    try:
        with stoppable(), start(archives, options) as server:
            for asked in server.asked:
                if not asked.curl:
                    print(f"\n{asked.model} is ready, without a sample: {server.url}{asked.path}")
                    continue
                answer = asked.answer
                if len(answer) > LONGEST_ANSWER:
                    answer = f"{answer[:LONGEST_ANSWER]} …"
                print(f"\n{asked.model} answers {answer}; ask it again:\n\n{asked.curl}")
            ports = ", ".join(f"{opens} {port}" for opens, port in server.ports.items())
            print(
                f"\nServing after {server.seconds:.1f} s; ports: {ports}"
                f"\nLogs, until it stops: {server.frontend.logs}\nCtrl-C stops it",
                flush=True,
            )
            server.frontend.wait()
            message = f"{title} ended: {server.frontend.said()}"
            raise ServeError(message)
    except KeyboardInterrupt:
        print("Stopped; nothing is left of it", flush=True)
        return 0


def _torchserve(
    archives: Sequence[Path], options: argparse.Namespace
) -> AbstractContextManager["Running"]:
    from torchrec_archiver.serving.running import running  # noqa: PLC0415  it imports numpy

    return running(
        archives,
        ports=_ports(options, PORTS),
        config=Path(options.ts_config or SHIPPED / "config.properties"),
        workers=options.workers,
        folder=options.folder and Path(options.folder),
        keys=keys_of(options),
        seconds=options.startup_timeout,
    )


def _triton(
    archives: Sequence[Path], options: argparse.Namespace
) -> AbstractContextManager["Running"]:
    from torchrec_archiver.serving.triton import running  # noqa: PLC0415  it imports numpy

    others = [port for port in PORTS if port.option not in {one.option for one in TRITON_PORTS}]
    wrong = [*_ports(options, others), *(["--ts-config"] if options.ts_config else [])]
    if wrong:
        message = f"{wrong[0]}: is TorchServe's, and Triton has nothing like it"
        raise ServeError(message)
    return running(
        archives,
        ports=_ports(options, TRITON_PORTS),
        workers=options.workers,
        folder=options.folder and Path(options.folder),
        keys=keys_of(options),
        seconds=options.startup_timeout,
    )


TORCHSERVE = "torchserve"
SERVERS = {TORCHSERVE: ("TorchServe", _torchserve), "triton": ("Triton", _triton)}
"""What `--server` takes -> its name, and what starts it."""


def _ports(options: argparse.Namespace, known: Sequence[Port]) -> dict[str, int]:
    """Those that were given."""
    given = {port.option: getattr(options, _name(port.option)) for port in known}
    return {option: port for option, port in given.items() if port is not None}


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM, and a terminal that is closed, end a command as Ctrl-C does."""

    def stop(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def number(text: str) -> int:
    """A count, from 1 on.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        message = f"received {text!r}, expected a whole number from 1 on"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        message = f"received {text!r}, expected a port from 1 to 65535"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _name(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")
