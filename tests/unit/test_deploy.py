"""What a container and a cluster are told fits the repository, and passes their own linters."""

import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.support.paths import ROOT

CONTAINERFILE = ROOT / "Containerfile"
MANIFESTS = sorted((ROOT / "docs" / "kubernetes").glob("*.yaml"))


def test_the_containerfile_passes_its_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [str(linter), str(CONTAINERFILE)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_containerfile_copies_what_is_there_and_installs_as_the_readme_does() -> None:
    text = CONTAINERFILE.read_text(encoding="utf-8")
    copied = [
        path
        for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE)
        for path in line.split()[:-1]
    ]
    assert len(copied) > 8
    assert all((ROOT / path).exists() for path in copied)
    assert "make install" in text
    assert not re.search(r"^USER (root|0)", text, re.MULTILINE)


def test_ports_are_opened_and_management_is_not(tmp_path: Path) -> None:
    """By the container's own command."""
    text = CONTAINERFILE.read_text(encoding="utf-8")
    found = re.search(r"sed -E .*? > (model_store/container.properties)", text, re.DOTALL)
    assert found
    made = tmp_path / "container.properties"
    command = found[0].replace(found[1], str(made))
    subprocess.run(["/bin/bash", "-c", command], cwd=ROOT, check=True)
    shipped = (ROOT / "model_store" / "config.properties").read_text(encoding="utf-8")
    changed = set(made.read_text(encoding="utf-8").splitlines()) - set(shipped.splitlines())
    assert changed == {
        "inference_address=http://0.0.0.0:8080",
        "metrics_address=http://0.0.0.0:8082",
        "grpc_inference_address=0.0.0.0",
    }


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_what_kubernetes_takes(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_probes_ask_as_the_page_says() -> None:
    page = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    (block,) = (
        text
        for text in re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        if "readinessProbe" in text
    )
    shown = yaml.safe_load(block)["readinessProbe"]["exec"]["command"]
    (deployment, *_) = yaml.safe_load_all(MANIFESTS[0].read_text(encoding="utf-8"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["exec"]["command"] == shown
