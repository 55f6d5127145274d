"""Has Triton load an instance again that ended by itself, or was killed.

Triton's python backend goes on without an instance whose process has gone, and answers each of its
requests with an error. But where it polls its repository (`--model-control-mode=poll`) it loads a
model anew whose files have changed, and the other instances answer until that is done.
"""

import subprocess
from pathlib import Path

WHEN_IT_ENDS = 'cat > /dev/null; [ -e "$1" ] && touch -c "$1" 2> /dev/null'


class Ending:
    """Touches a file when this process ends, however it ends, unless that was called for."""

    def __init__(self, file: Path) -> None:
        # It reads until there is nobody left who could write.
        self._watcher = subprocess.Popen(  # noqa: S603  our own command
            ["/bin/sh", "-c", WHEN_IT_ENDS, "sh", str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def called_for(self) -> None:
        """The server ends this process, and it is not to come back."""
        self._watcher.kill()
        self._watcher.communicate()
