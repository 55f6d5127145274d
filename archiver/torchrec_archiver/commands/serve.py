"""`torchrec-archiver serve`: a TorchServe on archives, until Ctrl-C."""

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from torchrec_archiver.command_line import add_keys, add_startup_timeout, keys_of
from torchrec_archiver.serving.settings import PORTS, SHIPPED
from torchrec_handler.errors import ServeError

HELP = "start TorchServe on archives, and print the line that asks them"

EXAMPLES = """\
torchrec-archiver serve model_store/shop.mar
torchrec-archiver serve model_store/shop.mar model_store/toys --port 9080 --workers 2
torchrec-archiver serve incoming/shop.mar --trusted-keys release.pub
"""

LONGEST_ANSWER = 200
"""Of what a model answered, shown."""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("archives", metavar="ARCHIVE", nargs="+", help="a .mar, .tar.gz or folder")
    for port in PORTS:
        parser.add_argument(
            port.option,
            type=_port,
            metavar="PORT",
            help=f"of TorchServe's {port.opens} API; {port.number} as the settings are shipped",
        )
    add_server(parser)
    add_keys(parser)
    parser.add_argument(
        "--ts-config",
        metavar="FILE",
        help="a config.properties in the place of the shipped one",
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
    from torchrec_archiver.serving.running import running  # noqa: PLC0415  it imports numpy

    archives = [Path(path) for path in options.archives]
    given = {port.option: getattr(options, _name(port.option)) for port in PORTS}
    print(f"Starting TorchServe with {', '.join(options.archives)} …", flush=True)
    try:
        with (
            stoppable(),
            running(
                archives,
                ports={option: port for option, port in given.items() if port is not None},
                config=Path(options.ts_config or SHIPPED / "config.properties"),
                workers=options.workers,
                folder=options.folder and Path(options.folder),
                keys=keys_of(options),
                seconds=options.startup_timeout,
            ) as server,
        ):
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
            message = f"TorchServe ended: {server.frontend.said()}"
            raise ServeError(message)
    except KeyboardInterrupt:
        print("Stopped; nothing is left of it", flush=True)
        return 0


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
