"""A rank without a server, or whose server asks another one: it looks up what the leader asks.

`python -m torchrec_handler.front.follow FOLDER`, as torchrun starts it on a joined machine, follows
until the leader is gone.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from torchrec_handler.archive.format import MODEL_CONFIG
from torchrec_handler.archive.trust import trusted_keys
from torchrec_handler.errors import LoadError, Unusable
from torchrec_handler.load.loader import load_follower
from torchrec_handler.load.process import become_worker
from torchrec_handler.options import read_options
from torchrec_handler.ranks import meet
from torchrec_handler.tables.exchange import Follower

logger = logging.getLogger(__name__)


def follow_beside(follower: Follower, end: Callable[[Unusable], Any]) -> None:
    """Follow in a thread, beside a server that goes on.

    Args:
        follower: ready.
        end: called once there is nobody to follow.
    """

    def run() -> None:
        try:
            follower.run()
        except Unusable as error:
            end(error)

    threading.Thread(target=run, name="follow", daemon=True).start()


def main(folder: Path) -> int:
    """Join the ranks that torchrun tells of, and follow; gives the exit status."""
    device = torch.device("cpu")
    try:
        config = yaml.safe_load((folder / MODEL_CONFIG).read_bytes())
        options = read_options(config)
        become_worker(options, device)
        ranks = meet(leads=False)
        if ranks is None:
            logger.error("ERROR: ranks: this is the only one, so there is nobody to follow")
            return 1
        follower = load_follower(folder, options, device, ranks, trusted_keys())
        logger.warning(
            "FOLLOW rank %d of %d looks up for rank %d", ranks.own, ranks.size, ranks.leader
        )
        follower.run()
    except (LoadError, Unusable) as error:
        logger.error("ERROR: %s", error)  # noqa: TRY400  which says all
        return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    # What Python does at an end may wait for ranks that are gone.
    os._exit(main(Path(sys.argv[1])))
