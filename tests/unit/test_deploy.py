"""What a container and a cluster are told fits the repository, and passes their own linters."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.paths import ROOT
from torchrec_archiver.serving.triton import SETTINGS

CONTAINERFILE = ROOT / "Containerfile"
KUBERNETES = ROOT / "docs" / "kubernetes"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))


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
        known = as_pod(document) if document["kind"] == "InferenceService" else document
        kubernetes_validate.validate(known, kubernetes_validate.latest_version(), strict=True)


def as_pod(service: dict[str, Any]) -> dict[str, Any]:
    """A service of KServe's, of which there is no schema here, as the pod that it asks for."""
    assert service.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert service["spec"].keys() == {"predictor"}
    predictor = dict(service["spec"]["predictor"])
    assert predictor.pop("minReplicas") == 2
    (container,) = predictor["containers"]
    assert container["name"] == "kserve-container"
    return {**service, "apiVersion": "v1", "kind": "Pod", "spec": predictor}


def test_triton_is_started_as_the_page_says() -> None:
    (service,) = yaml.safe_load_all((KUBERNETES / "kserve-triton.yaml").read_text("utf-8"))
    (container,) = service["spec"]["predictor"]["containers"]
    options = dict(
        argument.removeprefix("--").partition("=")[::2] for argument in container["args"]
    )
    started = {name: value for name, value in SETTINGS.items() if name in options}
    assert started.items() <= options.items()
    assert options.keys() - started.keys() == {"model-repository", "http-port"}


def test_probes_ask_as_the_page_says() -> None:
    page = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    (block,) = (
        text
        for text in re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        if "readinessProbe" in text
    )
    shown = yaml.safe_load(block)["readinessProbe"]["exec"]["command"]
    (deployment, *_) = yaml.safe_load_all(
        (KUBERNETES / "movielens.yaml").read_text(encoding="utf-8")
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["exec"]["command"] == shown
