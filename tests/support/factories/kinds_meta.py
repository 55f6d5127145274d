"""Kinds whose tables have no rows until an archive brings them."""

from tests.support.factories.kinds_own import OwnTypeFactory, PrunedFactory, QuantizedFactory
from tests.support.factories.kinds_pooled import (
    ManagedFactory,
    PositionWeightedEachFactory,
    PositionWeightedFactory,
    SumFactory,
    WidthsFactory,
)
from tests.support.factories.kinds_ranking import DeepFmFactory, DlrmFactory
from tests.support.factories.kinds_sequence import ManagedSequenceFactory, SequenceFactory
from tests.support.factories.kinds_two_tower import TwoTowerFactory


class MetaSumFactory(SumFactory):
    tables_device = "meta"


class MetaWidthsFactory(WidthsFactory):
    tables_device = "meta"


class MetaPositionWeightedFactory(PositionWeightedFactory):
    tables_device = "meta"


class MetaPositionWeightedEachFactory(PositionWeightedEachFactory):
    tables_device = "meta"


class MetaManagedFactory(ManagedFactory):
    tables_device = "meta"


class MetaSequenceFactory(SequenceFactory):
    tables_device = "meta"


class MetaManagedSequenceFactory(ManagedSequenceFactory):
    tables_device = "meta"


class MetaDlrmFactory(DlrmFactory):
    tables_device = "meta"


class MetaDeepFmFactory(DeepFmFactory):
    tables_device = "meta"


class MetaTwoTowerFactory(TwoTowerFactory):
    tables_device = "meta"


class MetaQuantizedFactory(QuantizedFactory):
    tables_device = "meta"


class MetaPrunedFactory(PrunedFactory):
    tables_device = "meta"


class MetaOwnTypeFactory(OwnTypeFactory):
    tables_device = "meta"


META = (
    MetaSumFactory,
    MetaWidthsFactory,
    MetaPositionWeightedFactory,
    MetaPositionWeightedEachFactory,
    MetaManagedFactory,
    MetaSequenceFactory,
    MetaManagedSequenceFactory,
    MetaDlrmFactory,
    MetaDeepFmFactory,
    MetaTwoTowerFactory,
)
