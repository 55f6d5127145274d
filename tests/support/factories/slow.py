"""A model of which only one worker is ready at first."""

import os
import time
from pathlib import Path
from typing import Any

from tests.support.factories.typed import TypedFactory

FOLDER = "slow"
"""In TorchServe's TEMP. Where it is there, all workers but one wait in it."""
GO = "go"
"""What they wait for."""


class SlowFactory(TypedFactory):
    """Takes its time in a second worker."""

    def create_predict_module(self) -> Any:
        """The module, now or later."""
        folder = Path(os.environ.get("TEMP", "/nowhere"), FOLDER)
        if folder.exists():
            try:
                (folder / "first").mkdir()
            except FileExistsError:
                while not (folder / GO).exists():
                    time.sleep(0.05)
        return super().create_predict_module()
