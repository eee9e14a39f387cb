"""Parts for other multi-instance-learning tools: choose few instances of large bags, aggregate them, check both.

Importing this loads NumPy only; the names that need torch load it when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pairformer.mil.baselines import MMR, FacilityLocation, FarthestPoint, KMeansPlusPlus, Random, TopK, UniformPosition
from pairformer.mil.selectors import Selection, Selector, STSelector

if TYPE_CHECKING:
    from pairformer.mil.aggregator import SetAggregator
    from pairformer.mil.budgeted import BudgetedMIL
    from pairformer.mil.folders import select_folder
    from pairformer.mil.for_sklearn import BagClassifier
    from pairformer.mil.for_torchmil import SelectCollate, TorchMILModel

_WHERE = {
    "SetAggregator": "aggregator",
    "BudgetedMIL": "budgeted",
    "select_folder": "folders",
    "BagClassifier": "for_sklearn",
    "SelectCollate": "for_torchmil",
    "TorchMILModel": "for_torchmil",
}
__all__ = [
    "MMR", "BagClassifier", "BudgetedMIL", "FacilityLocation", "FarthestPoint", "KMeansPlusPlus", "Random",
    "STSelector", "SelectCollate", "Selection", "Selector", "SetAggregator", "TopK", "TorchMILModel",
    "UniformPosition", "select_folder",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"pairformer.mil.{_WHERE[name]}"), name)
