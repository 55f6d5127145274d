"""A factory that does where it is loaded what the environment says; nothing where it is built."""

import os
import sys
import time
from collections.abc import Callable, Mapping

import torch

from tests.support.factories.ranking import RankingPredictFactory

HOSTILE = "TESTS_HOSTILE"
"""The variable that names one of `DEEDS`."""


def _raise() -> None:
    message = "not today"
    raise ValueError(message)


DEEDS: Mapping[str, Callable[[], object]] = {
    "": lambda: None,
    "raise": _raise,
    "sys.exit": lambda: sys.exit(0),
    "os._exit": lambda: os._exit(0),
    "hang": lambda: time.sleep(3600),
    "much memory": lambda: torch.empty(2**50),
}


class HostilePredictFactory(RankingPredictFactory):
    """Otherwise a good one."""

    def create_predict_module(self) -> torch.nn.Module:
        """The ranking model, where it comes to that."""
        DEEDS[os.environ.get(HOSTILE, "")]()
        return super().create_predict_module()
