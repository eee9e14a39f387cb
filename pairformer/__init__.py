"""Predict which 3'UTRs a microRNA represses, and by which sites."""

import os

# PyTorch's threads wait by spinning and so take the cores from what they wait for: two processes on two cores stall
# each other. A short spin keeps most of the speed of a process alone and shares fairly. Read when PyTorch loads; what
# the user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

try:
    import pairformer._core  # noqa: F401
except ImportError as error:
    from pathlib import Path

    if (Path(__file__).parent.parent / "CMakeLists.txt").exists():
        raise ImportError(
            "pairformer._core is not built in this checkout; run `make demo` or `pip install -e .` here, "
            "or start Python outside the checkout to use an installed pairformer"
        ) from error
    raise

from pairformer.bags import Candidates
from pairformer.fold import Fold, fold
from pairformer.predict import Prediction, Predictions, predict
from pairformer.scan import scan
from pairformer.selector import Selection, STSelector

__all__ = ["Candidates", "Fold", "Prediction", "Predictions", "STSelector", "Selection", "fold", "predict", "scan"]
__version__ = "0.1.0"
