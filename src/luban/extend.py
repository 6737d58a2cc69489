"""Everything that a component of your own is made of, in one place.

Example:
    >>> from luban.extend import Family, register
"""

from luban.adapt._base import Adaptation
from luban.data.augment._base import Augmenter
from luban.data.batch import Batch
from luban.data.contracts import Cleaner, Encoded, Field, Flat, Processor, Source, Spec, Split
from luban.data.ragged import Ragged
from luban.models._base import Model
from luban.models._encoders import Encoder
from luban.models._network import Family, Network
from luban.objectives._base import Loss, Objective, Supervised, TargetFacts
from luban.recipe import Component, Section
from luban.registry import register
from luban.training.callbacks._base import Callback
from luban.training.optimizers._base import Optimizer
from luban.training.progress import Progress
from luban.training.schedules._base import Schedule

__all__ = [
    "Adaptation",
    "Augmenter",
    "Batch",
    "Callback",
    "Cleaner",
    "Component",
    "Encoded",
    "Encoder",
    "Family",
    "Field",
    "Flat",
    "Loss",
    "Model",
    "Network",
    "Objective",
    "Optimizer",
    "Processor",
    "Progress",
    "Ragged",
    "Schedule",
    "Section",
    "Source",
    "Spec",
    "Split",
    "Supervised",
    "TargetFacts",
    "register",
]
