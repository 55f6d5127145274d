"""The README runs."""

import re

from tests.support.readme import DEFAULT_SERVER, Readme


def test_the_readme_trains_archives_and_asks(sequence: str, sequence_readme: Readme) -> None:
    printed = sequence_readme.run("Ask", {DEFAULT_SERVER: sequence})
    assert '{"movies":[' in printed
    assert "The next movies of user 42" in printed
    assert re.search(r"│ popularity +│ +0\.0551 │", printed)
    assert "│ served model │" in printed


def test_the_readme_serves_what_it_archives(sequence_readme: Readme) -> None:
    assert "serve model_store/sequence.mar\n" in sequence_readme.commands("Serve")
    assert (sequence_readme.folder / "model_store" / "sequence.mar").is_file()
