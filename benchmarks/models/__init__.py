"""Models written as users write them, of modules that nobody here has seen: what kernels meet.

Weights are seeded and come with the factory; inputs are the user's or the candidate item's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.models import deepfm, din, dlrm_dcn, mmoe, sasrec, two_tower
from benchmarks.models.seeded import Feature
from torchrec_handler.simple import SimpleFactory


@dataclass(frozen=True, kw_only=True)
class Model:
    """One of them."""

    name: str
    factory: type[SimpleFactory]
    shared: tuple[str, ...]
    """Names of the inputs that belong to the user: all candidates of a request have them."""
    features: Mapping[str, Feature]
    """Of all sparse inputs."""


MODELS = (
    Model(
        name="DLRM-DCN",
        factory=dlrm_dcn.Factory,
        shared=dlrm_dcn.SHARED,
        features=dlrm_dcn.FEATURES,
    ),
    Model(name="DeepFM", factory=deepfm.Factory, shared=deepfm.SHARED, features=deepfm.FEATURES),
    Model(name="MMoE", factory=mmoe.Factory, shared=mmoe.SHARED, features=mmoe.USER | mmoe.ITEM),
    Model(
        name="DIN",
        factory=din.Factory,
        shared=din.SHARED,
        features=din.USER | din.HISTORY | din.ITEM,
    ),
    Model(
        name="two towers",
        factory=two_tower.Factory,
        shared=two_tower.SHARED,
        features=two_tower.USER | two_tower.ITEM,
    ),
    Model(
        name="SASRec",
        factory=sasrec.Factory,
        shared=sasrec.SHARED,
        features=sasrec.HISTORY | sasrec.ITEM,
    ),
)
