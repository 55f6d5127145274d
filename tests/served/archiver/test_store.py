"""Every version of a model store is served."""

from pathlib import Path

import pytest

from tests.support.archives import good
from tests.support.factories.ranking import seeded
from torchrec_archiver.server import TorchServe


def test_every_version_of_a_store_is_served(tmp_path: Path) -> None:
    """By its address, whether loaded with all of the store or registered by its file's name."""
    store = tmp_path / "model_store"
    store.mkdir()
    doubled = {name: value * 2 for name, value in seeded().state_dict().items()}
    archives = [
        good.build(store, version="1.0"),
        good.build(store, version="2.0", archive_format="no-archive", weights=doubled),
    ]
    with TorchServe(tmp_path / "served", {"load_models": "all"}, store) as server:
        archives.append(good.build(store, version="10:00+b", archive_format="tgz"))
        assert [path.name for path in archives] == [
            "ranking.mar",
            "ranking-2.0",
            "ranking-10:00+b.tar.gz",
        ]
        assert server.register(archives[-1]).is_success
        answers = {}
        for version in ("1.0", "2.0", "10:00+b"):
            answer = server.inference.post(f"/predictions/ranking/{version}", json=good.request())
            answers[version] = answer.json()["logit"]
        found = server.management.get("/models/ranking/all").json()
    assert sorted(model["modelVersion"] for model in found) == ["1.0", "10:00+b", "2.0"]
    expected = good.expected_scores().tolist()
    assert answers["1.0"] == answers["10:00+b"] == pytest.approx(expected, rel=1e-4)
    assert answers["2.0"] != pytest.approx(expected, rel=0.1)
