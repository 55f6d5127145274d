"""TorchServe's processes: started in a folder of their own, watched, ended, none left behind."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from torchrec_archiver.serving import java, settings
from torchrec_archiver.serving.session import Session

STARTED_BY = ("-m", "ts.model_server", "--start", "--foreground", "--ncs")
"""What the command `torchserve` runs, found wherever the packages of this Python lie."""

BINARIES = str(Path(sys.executable).parent)

NO_FILES = "-XX:-UsePerfData"
"""For Java, which otherwise keeps a file of counters in /tmp/hsperfdata_USER."""

OLD_JAVA = "UnsupportedClassVersionError"
STACK = re.compile(r"\s+at |\s*\.\.\. \d+ more|Traceback ")
WORKERS = " MODEL_LOG - "
FAULT = re.compile(r"\b(Exception|Error)\b|\w(Exception|Error):|^ERROR|^Invalid |^--|not found")


class Frontend(Session):
    """TorchServe inside of a `with` block, which writes into one folder only."""

    def __init__(  # noqa: PLR0913  what a server may be given
        self,
        configuration: Mapping[str, str],
        temp: Path,
        *,
        model_store: Path,
        models: Sequence[str] = (),
        log_config: Path | None = settings.LOG_CONFIG,
        logs: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Keep what it is started with.

        Args:
            configuration: TorchServe's settings.
            temp: from `temporary`; one server's alone.
            model_store: where archives are read from.
            models: what it loads at its start, `NAME=ARCHIVE` each.
            log_config: a log4j2.xml; None where the settings say where logging is configured.
            logs: a folder; one in `temp` when not given.
            variables: of its processes, beside this process's own.
        """
        super().__init__(temp)
        self._logs = logs or temp / "logs"
        self._configuration = configuration
        self._model_store = model_store
        self._models = models
        self._log_config = log_config
        self._variables = variables or {}

    def __enter__(self) -> Self:
        """Start it; it need not answer yet.

        Raises:
            ServeError: there is no Java.
        """
        found = java.environment()
        self.logs.mkdir(exist_ok=True)
        flags = f"{self._configuration.get('vmargs', '')} {NO_FILES}".strip()
        config = self.temp / "config.properties"
        settings.write({**self._configuration, "vmargs": flags}, config)
        command = [sys.executable, *STARTED_BY, "--model-store", str(self._model_store)]
        command += ["--ts-config", str(config)]
        if self._log_config is not None:
            command += ["--log-config", str(self._log_config)]
        if self._models:
            command += ["--models", *self._models]
        self._start(
            command,
            {
                **found,
                # TorchServe calls torchrun by its name.
                "PATH": os.pathsep.join(filter(None, (os.environ.get("PATH"), BINARIES))),
                "TEMP": str(self.temp),
                "TMPDIR": str(self.temp),
                "LOG_LOCATION": str(self.logs),
                "METRICS_LOCATION": str(self.logs),
                **self._variables,
            },
        )
        return self

    @property
    def logs(self) -> Path:
        """The folder of TorchServe's logs."""
        return self._logs

    def log(self) -> str:
        """What the workers printed."""
        path = self.logs / "model_log.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def said(self) -> str:
        """What it printed itself that tells why it ended: one line, without Java's stacks."""
        text = self.output()
        if OLD_JAVA in text:
            return f"this Java is too old for TorchServe, which needs 17; {java.INSTALL}"
        told = (
            line.strip()
            for line in text.splitlines()
            if FAULT.search(line) and not STACK.match(line) and WORKERS not in line
        )
        return next(told, "it was killed, or printed no reason")
