"""What TorchRec's own packager packs, through a real TorchServe."""

from pathlib import Path

import pytest
import torch
from torch.package.importer import sys_importer
from torch.package.package_exporter import PackageExporter
from torch.package.package_importer import PackageImporter

from tests.support.archives import good
from tests.support.factories.packaged import ConfiguredPredictFactory, Scale
from tests.support.factories.packagers import (
    LOADER,
    MockingPackager,
)
from tests.support.factories.ranking import RankingPredictFactory
from torchrec_archiver import DefaultPackager
from torchrec_archiver.server import TorchServe


def test_what_a_package_may_hold_is_served(server: TorchServe, tmp_path: Path) -> None:
    """Text and pickled configs, extra files of text and bytes, a mock, a loader; as .tar.gz."""
    archive = good.build(
        tmp_path,
        model_name="configured",
        factory=ConfiguredPredictFactory,
        configs={"scale.pkl": Scale(2.0), "scale.txt": "5"},
        extra_files={"scale.txt": "7", "scale.bin": b"\x0b"},
        packager=MockingPackager,
        loader_code=LOADER,
        archive_format="tgz",
    )
    answer = server.register(archive)
    assert answer.is_success, answer.text
    scores = server.predict("configured", good.request()).json()["logit"]
    server.unregister("configured")
    expected = good.expected_scores() * (2 * 5 * 7 * 11)
    torch.testing.assert_close(torch.tensor(scores), expected)


def test_a_factory_that_was_packed_again_is_served(server: TorchServe, tmp_path: Path) -> None:
    """As a folder, which TorchServe serves in place."""
    package = tmp_path / "predict_factory.pt"
    DefaultPackager.save_predict_factory(RankingPredictFactory, {}, package, {})
    first = PackageImporter(str(package))
    archive = good.build(
        tmp_path,
        model_name="repacked",
        factory=first.import_module("tests.support.factories.ranking").RankingPredictFactory,
        package_importer=[first, sys_importer],
        archive_format="no-archive",
    )
    answer = server.register(archive)
    assert answer.is_success, answer.text
    scores = server.predict("repacked", good.request()).json()["logit"]
    server.unregister("repacked")
    torch.testing.assert_close(torch.tensor(scores), good.expected_scores())


def test_an_extern_module_that_a_worker_lacks_is_named_in_its_log(
    server: TorchServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Packager(DefaultPackager):
        @classmethod
        def set_extern_modules(cls, pe: PackageExporter) -> None:
            super().set_extern_modules(pe)
            pe.extern("house_library")

    (tmp_path / "house_library.py").write_text("FACTOR = 3\n")
    (tmp_path / "extern_factory.py").write_text(
        "import house_library\n"
        "from tests.support.factories.ranking import RankingPredictFactory\n"
        "class ShopPredictFactory(RankingPredictFactory): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    archive = good.build(
        tmp_path,
        model_name="extern",
        factory="extern_factory:ShopPredictFactory",
        packager=Packager,
    )
    answer = server.register(archive)
    is_named = server.logs_soon(
        "FactoryError: predict_factory.pt: making the factory needs the extern module "
        "'house_library', which this worker lacks; install it, list it in --requirements-file, or "
        "let the packager intern it"
    )
    server.unregister("extern")
    assert answer.status_code == 500, answer.text
    assert is_named, server.log()[-3000:]
