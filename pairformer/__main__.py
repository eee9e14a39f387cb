"""``python -m pairformer`` is the command ``pairformer``."""

from pairformer.cli import main

main()
