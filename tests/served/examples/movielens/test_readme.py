"""The README runs."""

import re
from pathlib import Path

from tests.support.readme import DEFAULT_SERVER, Readme
from torchrec_archiver.server import TorchServe


def test_the_readme_trains_archives_and_asks(movielens: TorchServe, tmp_path: Path) -> None:
    (tmp_path / "model_store").mkdir()
    readme = Readme("movielens", tmp_path)
    # Beside a server, two threads wait for each other.
    output = "--output build/movielens"
    trained = readme.run("Train", {output: f"{output} --threads 1"})
    found = re.search(
        r"^test AUC (0\.\d+) \(user mean \+ movie mean: 0\.7673\)", trained, re.MULTILINE
    )
    assert found, trained
    assert float(found[1]) >= 0.775
    readme.run("Archive")
    assert (tmp_path / "model_store" / "movielens.mar").is_file()
    server = str(movielens.inference.base_url).rstrip("/")
    printed = readme.run("Ask", {DEFAULT_SERVER: server})
    assert "The best 5 of 20 movies for user 42" in printed
    assert f"{server}/predictions/movielens" in printed
