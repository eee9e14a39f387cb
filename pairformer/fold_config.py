"""Every number of a structure model and of its training, checked when it is set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pairformer._core import LONGEST
from pairformer.config import StageConfig, StoredConfig, at_least, check, check_number, check_switches, check_within


@dataclass(frozen=True)
class FoldConfig(StoredConfig):
    """An RNAformer. The defaults are the published form of width 64.

    Raises:
        ValueError: a field is out of its range.
        TypeError: an integer field is not an integer.
    """

    width: int = 64
    """Width of the pair latent; published with 64, 128 and 256."""
    layers: int = 6
    """Blocks."""
    heads: int = 4
    """Attention heads; must divide the width."""
    attention: str = "axial"
    """"axial": along rows, then along columns. "full": one attention among all cells of the square, whose cost grows
    with the fourth power of the length."""
    transition: str = "conv3"
    """"conv3": two 3x3 convolutions, 90 % of the published form's parameters. "pointwise": cell by cell."""
    expand: int = 4
    """Hidden width of the transition over the latent's."""
    dropout: float = 0.1
    """On the output of the transition; half of it on that of either attention."""
    max_length: int = 500
    """Longest RNA trained on. Positions from here on share one embedding; with ``distance_buckets``, distances do."""
    window: int = 0
    """:func:`pairformer.fold` folds longer RNAs in windows of so many bases; 0: of ``max_length``."""
    distance_buckets: int = 0
    """Embed the signed distance j - i in place of absolute positions, in this many buckets each way: the near half of
    them one distance each, the others growing with it; 0: absolute positions, as published."""
    pair_types: bool = False
    """Whether each of the 25 combinations of two letters has an embedding of its own."""
    energies: bool = False
    """Whether the probability of each pair by the energies of helices and loops, and its odds, enter the latent
    (:func:`pairformer.folding.equilibrium`); for RNAs and windows of up to 500."""
    symmetric: bool = False
    """Whether logits are averaged with their transpose."""
    final_bias: float | None = None
    """First value of the bias of a head with one logit; None: the published head of two classes without a bias."""
    passes: int = 6
    """Passes over the stack that :func:`pairformer.fold` makes."""
    threshold: float | None = 0.5
    """:func:`pairformer.fold` draws pairs above this probability; 0.001 or more. None: each RNA has its own, as
    :func:`pairformer.folding.decode` says."""

    def __post_init__(self) -> None:
        check_switches(self)
        for name in ("width", "layers", "heads", "expand", "max_length", "passes"):
            at_least(self, name, 1)
        if self.threshold is not None:
            check(not isinstance(self.threshold, bool), "threshold", "be a finite number", self.threshold)
            check_within(self, "threshold", "[0.001, 1]")
        for name in ("distance_buckets", "window"):
            at_least(self, name, 0)
        check(self.width % self.heads == 0, "heads", f"divide the width {self.width}", self.heads)
        for name, known in (("attention", ("axial", "full")), ("transition", ("conv3", "pointwise"))):
            check(getattr(self, name) in known, name, f"be one of {', '.join(known)}", repr(getattr(self, name)))
        check_within(self, "dropout", "[0, 1)")
        check(self.distance_buckets != 1, "distance_buckets", "be 0 or 2 and more", self.distance_buckets)
        check(self.distance_buckets <= self.max_length, "distance_buckets",
              f"not exceed max_length {self.max_length}", self.distance_buckets)  # fmt: skip
        for name in ("max_length", "window") if self.energies else ():
            check(getattr(self, name) <= LONGEST, name, f"be {LONGEST} or less with energies", getattr(self, name))
        if self.final_bias is not None:
            check_number("final_bias", self.final_bias)


@dataclass(frozen=True)
class FoldStageConfig(StageConfig):
    """One stage of a structure model's training; an epoch is a number of steps, each on RNAs of about one length."""

    batch_size: int
    """Bases of a step: as many RNAs as make so many with the longest."""
    steps: int = 100
    """Of an epoch."""
    teacher: float = 0.0
    """Share of the steps on folds of the thermodynamic model; the others are on known structures."""
    warmup: int = 100
    """Steps over which the learning rate rises."""
    cells: int = 0
    """Most pairs of bases of a step, L^2 of each RNA, which its memory grows with; 0: any number. One RNA is always
    taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "steps", 1)
        for name in ("warmup", "cells"):
            at_least(self, name, 0)
        check_within(self, "teacher", "[0, 1]")


@dataclass(frozen=True)
class FoldTrainConfig:
    """Training of a structure model: on a teacher's pair probabilities, then on known structures and some of those."""

    rng_seed: int = 2020
    """Of weights, dropout and what each step sees."""
    teacher_rows: int = 40_000
    """Sequences that RNAfold folds for the teacher; 0: no first stage, where ``tune.teacher`` is 0 too."""
    bucket: int = 16
    """RNAs whose lengths, rounded up to a multiple, are equal can share a step; 1: no padding anywhere."""
    least_passes: int = 1
    """Fewest passes over the stack, drawn for each step; all but the last are without gradients."""
    most_passes: int = 3
    """Most passes."""
    keep_share: float = 0.5
    """Share of the cells far from any pair that count in the loss."""
    half: bool = True
    """Whether matrix products and convolutions run in bfloat16."""
    parts: int = 1
    """Parts of a step that threads of a CPU work on side by side."""
    validation: int = 20
    """One family in so many is held out of training."""
    teach: FoldStageConfig = field(default_factory=lambda: FoldStageConfig(8, 16_000, 1e-3, 1e-2, teacher=1.0))
    """First stage."""
    tune: FoldStageConfig = field(default_factory=lambda: FoldStageConfig(30, 16_000, 1e-3, 1e-2, teacher=0.3))
    """Second stage."""

    def __post_init__(self) -> None:
        check_switches(self)
        for name in ("bucket", "least_passes", "parts"):
            at_least(self, name, 1)
        for name in ("teacher_rows", "rng_seed", "most_passes"):
            at_least(self, name, 0)
        at_least(self, "validation", 2)
        check(self.least_passes <= self.most_passes, "most_passes", f"be {self.least_passes} or more", self.most_passes)
        check_within(self, "keep_share", "[0, 1]")
        check(self.teacher_rows > 0 or not self.tune.teacher, "teacher_rows", "be 1 or more where tune has a share",
              "0; set tune.teacher to 0")  # fmt: skip


FOLD_RECIPES = ("cpu", "gpu")


def fold_recipe(name: str) -> tuple[FoldConfig, FoldTrainConfig]:
    """Model and training of a structure model: "cpu" for two hours of two cores, "gpu" for one GPU, twice as wide."""
    check(name in FOLD_RECIPES, "recipe", f"be one of {', '.join(FOLD_RECIPES)}", repr(name))
    inputs: dict[str, Any] = {"distance_buckets": 32, "pair_types": True, "symmetric": True, "final_bias": -4.0}
    if name == "gpu":
        return (
            FoldConfig(heads=2, max_length=160, passes=1, **inputs),
            FoldTrainConfig(
                most_passes=1,
                teach=FoldStageConfig(8, 16_000, 1e-3, 1e-2, teacher=1.0, cells=1_000_000),
                tune=FoldStageConfig(30, 16_000, 1e-3, 1e-2, teacher=0.3, cells=1_000_000),
            ),
        )  # fmt: skip
    return (
        FoldConfig(32, 4, 2, expand=2, dropout=0.0, max_length=160, passes=1, **inputs),
        FoldTrainConfig(
            teacher_rows=20_000, bucket=1, most_passes=1, keep_share=1.0, parts=2,
            teach=FoldStageConfig(6, 1_600, 2e-3, 1e-2, teacher=1.0),
            tune=FoldStageConfig(24, 1_600, 2e-3, 1e-2, teacher=0.2),
        ),
    )  # fmt: skip
