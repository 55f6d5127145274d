"""What is said where no server answers."""

import re

import numpy as np
import pytest

from examples.movielens.data import Dataset
from examples.two_tower.embed import EmbedError, embed_users

USERS = np.array([1, 42, 943])


def test_no_server_is_told(dataset: Dataset) -> None:
    message = "http://127.0.0.1:9/predictions/two_tower: [Errno 111] Connection refused"
    with pytest.raises(EmbedError, match=f"^{re.escape(message)}$"):
        embed_users("http://127.0.0.1:9/", dataset, USERS)
