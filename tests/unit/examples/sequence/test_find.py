"""What is said where no server answers."""

import re

import numpy as np
import pytest

from examples.movielens.files import read_ratings
from examples.movielens.rows import Bags
from examples.sequence.data import steps_to_test
from examples.sequence.find import FindError, find


@pytest.fixture(scope="module")
def histories() -> Bags:
    return steps_to_test(read_ratings()).history.take(np.arange(0, 19_633, 200))


def test_no_server_is_told(histories: Bags) -> None:
    message = "http://127.0.0.1:9/predictions/sequence: [Errno 111] Connection refused"
    with pytest.raises(FindError, match=f"^{re.escape(message)}$"):
        find("http://127.0.0.1:9/", histories)
