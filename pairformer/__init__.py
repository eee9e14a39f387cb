"""Predict which 3'UTRs a microRNA represses, and by which sites."""

import os

# Threads of PyTorch that wait by spinning take the cores from the process they wait for: with two such processes on
# two cores a prediction took 44 times as long. Read when PyTorch loads; a value set by the user stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
from pairformer.predict import Prediction, Predictions, predict
from pairformer.scan import scan
from pairformer.selector import Selection, STSelector

__all__ = ["Candidates", "Prediction", "Predictions", "STSelector", "Selection", "predict", "scan"]
__version__ = "0.1.0"
