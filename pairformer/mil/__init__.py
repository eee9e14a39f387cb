"""Parts for other multi-instance-learning tools: choose few instances of large bags, aggregate them, check both.

Importing this loads NumPy only. ``SetAggregator``, ``BudgetedMIL``, ``BagClassifier`` and ``select_folder`` load what
they need when they are first asked for, as do ``SelectCollate`` and ``TorchMILModel``, for torchmil.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pairformer.mil.baselines import MMR, FacilityLocation, FarthestPoint, KMeansPlusPlus, Random, TopK, UniformPosition
from pairformer.mil.selectors import Selection, Selector, STSelector

if TYPE_CHECKING:
    from pairformer.mil.aggregator import SetAggregator as SetAggregator
    from pairformer.mil.budgeted import BudgetedMIL as BudgetedMIL
    from pairformer.mil.folders import select_folder as select_folder
    from pairformer.mil.for_sklearn import BagClassifier as BagClassifier
    from pairformer.mil.for_torchmil import SelectCollate as SelectCollate
    from pairformer.mil.for_torchmil import TorchMILModel as TorchMILModel

_WHERE = {
    "SetAggregator": "aggregator",
    "BudgetedMIL": "budgeted",
    "select_folder": "folders",
    "BagClassifier": "for_sklearn",
    "SelectCollate": "for_torchmil",
    "TorchMILModel": "for_torchmil",
}
__all__ = [
    "MMR", "FacilityLocation", "FarthestPoint", "KMeansPlusPlus", "Random", "STSelector", "Selection", "Selector",
    "TopK", "UniformPosition",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"pairformer.mil.{_WHERE[name]}"), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} needs {error.name}, which is not installed", name=error.name) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
