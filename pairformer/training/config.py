"""Every number of the training, checked when it is set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pairformer.config import at_least, check


@dataclass(frozen=True)
class LossConfig:
    """Binary loss of all stages: weighted BCE plus focal, on smoothed labels (App. E)."""

    bce_weight: float = 0.01
    """Share of plain BCE."""
    focal_weight: float = 1.0
    """Share of focal loss."""
    focal_alpha: float = 0.5
    """Focal weight of positives; 0.5, since classes are weighted equally already (the paper has 0.4)."""
    focal_gamma: float = 1.0
    """Focal exponent."""
    smoothing: float = 0.05
    """Labels become ``smoothing`` and ``1 - smoothing``."""

    def __post_init__(self) -> None:
        for name in ("bce_weight", "focal_weight", "focal_gamma"):
            check(getattr(self, name) >= 0, name, "not be negative", getattr(self, name))
        check(0 <= self.smoothing < 0.5, "smoothing", "be in [0, 0.5)", self.smoothing)
        check(0 < self.focal_alpha < 1, "focal_alpha", "be in (0, 1)", self.focal_alpha)


@dataclass(frozen=True)
class DistillConfig:
    """Stage 2 adds to the binary loss what the teacher knows (App. E, eq. 21)."""

    temperature: float = 2.0
    """Softens both logits."""
    alpha_start: float = 0.8
    """Share of the teacher's logits against the labels, first epoch."""
    alpha_end: float = 0.5
    """The same, last epoch; half a cosine between."""
    feature_weight: float = 0.1
    """Of 1 - cosine between the projected embedding and the teacher's."""
    relation_weight: float = 1.0
    """Of the squared difference of the two cosine matrices of a batch."""


@dataclass(frozen=True)
class StageConfig:
    """How one stage is optimised: AdamW, cosine to zero, EMA weights kept."""

    epochs: int
    """Passes over the data."""
    batch_size: int
    """Windows (stages 1, 2) or pairs (stage 3)."""
    lr: float
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Of AdamW, on matrices only."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema_decay: float = 0.99
    """Of the exponential moving average that is served; step s uses min(ema_decay, (1 + s) / (10 + s))."""
    joint_epochs: int = 0
    """Stage 3: the last epochs, in which the expensive encoder is trained too."""
    joint_lr: float = 0.0
    """Peak learning rate of the expensive encoder in those."""

    def __post_init__(self) -> None:
        at_least(self, "epochs", 1)
        at_least(self, "batch_size", 1)
        check(self.lr > 0, "lr", "be positive", self.lr)
        check(0 <= self.joint_epochs <= self.epochs, "joint_epochs", f"be in 0..{self.epochs}", self.joint_epochs)
        check(self.joint_lr > 0 or not self.joint_epochs, "joint_lr", "be positive for joint epochs", self.joint_lr)


@dataclass(frozen=True)
class TrainConfig:
    """The three stages. Epochs were fixed on folds disjoint in gene and miRNA family."""

    rng_seed: int = 2020
    """Of initial weights, batches and dropout."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Binary loss of all stages."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """What stage 2 adds."""
    stage1: StageConfig = field(default_factory=lambda: StageConfig(3, 512, 5e-3))
    """Expensive encoder on labelled windows."""
    stage2: StageConfig = field(default_factory=lambda: StageConfig(5, 256, 6e-3))
    """Cheap encoder from the expensive one."""
    stage3: StageConfig = field(default_factory=lambda: StageConfig(6, 32, 5e-4, 1e-2, joint_epochs=2, joint_lr=1e-4))
    """Aggregator on pairs, then both."""

    def with_epochs(self, epochs: tuple[int, int, int] | None = None, joint: int | None = None) -> TrainConfig:
        """The same with other epochs of the stages, or with other joint epochs at the end of stage 3."""
        counts = epochs or tuple(stage.epochs for stage in (self.stage1, self.stage2, self.stage3))
        joint = min(self.stage3.joint_epochs, counts[2]) if joint is None else joint
        return replace(
            self,
            stage1=replace(self.stage1, epochs=counts[0]),
            stage2=replace(self.stage2, epochs=counts[1]),
            stage3=replace(self.stage3, epochs=counts[2], joint_epochs=joint),
        )
