"""The README runs."""

import re

from tests.support.readme import DEFAULT_SERVER, Readme


def test_the_readme_trains_archives_and_asks(two_tower: str, two_tower_readme: Readme) -> None:
    printed = two_tower_readme.run("Ask", {DEFAULT_SERVER: two_tower})
    assert '{"default":[' in printed
    assert '{"embedding":[[' in printed
    assert "The best 10 movies for user 42" in printed
    assert re.search(r"│ popularity +│ +0\.0820 │ +0\.4371 │", printed)
    assert "│ served towers │" in printed


def test_the_readme_serves_what_it_archives(two_tower_readme: Readme) -> None:
    assert "serve model_store/two_tower.mar\n" in two_tower_readme.commands("Serve")
    assert (two_tower_readme.folder / "model_store" / "two_tower.mar").is_file()
