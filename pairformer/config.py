"""Every number of a model and of its training, checked when it is set."""

from __future__ import annotations

import contextlib
import math
import operator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from numbers import Real
from typing import Any, TypeVar

import numpy as np

from pairformer import _core

Stored = TypeVar("Stored", bound="StoredConfig")
_INT_MAX, _FLOAT_MAX = 2**31 - 1, 3.4e38
SITE_FEATURES, CONTEXT_FEATURES, BAG_FEATURES = 10, 3, 12
SEED_TYPES = ("none", "offset 6mer", "6mer", "7mer-A1", "7mer-m8", "8mer")
LEAST_SEED = "offset 6mer"  # of the sites that additive heads read


@dataclass(frozen=True)
class ExpensiveConfig:
    """The encoder that reads the selected candidates."""

    channels: tuple[int, ...] = (16, 16, 32, 32)
    """Width of the stem and of each residual block."""
    stem_kernel: int = 5
    """Columns the stem sees."""
    block_kernel: int = 3
    """Columns each convolution of a block sees."""
    se_reduction: int = 8
    """Channel attention squeezes the width by this factor."""
    pooled_length: int = 12
    """Bins the 50 columns are averaged into."""
    dropout: float = 0.1
    """Before each convolution of a block and before pooling."""

    @property
    def width(self) -> int:
        """Width of the embedding h."""
        return self.channels[-1] * self.pooled_length

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        check(len(self.channels) >= 2, "channels", "name two or more widths", self.channels)
        for width in self.channels:
            _check_int("channels", width, 1)
        for name in ("stem_kernel", "block_kernel", "se_reduction", "pooled_length"):
            at_least(self, name, 1)
        check_within(self, "dropout", "[0, 1)")


@dataclass(frozen=True)
class CheapConfig:
    """The encoder that scores every candidate."""

    channels: tuple[int, int] = (16, 32)
    """Widths of the two strided convolutions."""
    width: int = 64
    """Width of the embedding, whose signs are the selector's hash."""
    hidden: int = 64
    """Hidden width of the logit head."""
    meta_dropout: float = 0.2
    """On ESA score and position, in training."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        check(len(self.channels) == 2, "channels", "name two widths", self.channels)
        for width in self.channels:
            _check_int("channels", width, 1)
        at_least(self, "width", 1)
        at_least(self, "hidden", 1)
        check_within(self, "meta_dropout", "[0, 1)")


@dataclass(frozen=True)
class AggregatorConfig:
    """Tokens to pair logit. ``AggregatorConfig.paper()`` is the paper's size."""

    kind: str = "set_transformer"
    """"set_transformer", "deep_sets" or "gated_attention"; the last two relate no token to another. "none": the
    additive head alone."""
    width: int = 64
    """Model width d."""
    layers: int = 3
    """Attention blocks before pooling (Set Transformer)."""
    heads: int = 2
    """Attention heads; must divide the width (Set Transformer)."""
    hidden: int = 128
    """Width of the feed-forward parts, of phi or of the gate."""
    dropout: float = 0.1
    """On attention weights, attention output and feed-forward output."""
    pool_seeds: int = 1
    """Learned queries of the pooling; several are averaged (Set Transformer)."""
    inducing_points: int = 0
    """Set Transformer; 0: full self-attention (SAB); else ISAB through this many points."""
    additive: int = 0
    """Hidden width of the additive head, which predicts repression as a sum over sites; 0: none, as in the paper."""
    length_gate: float = 0.0
    """How steeply what an aggregator counts for falls with the UTR's length at first; it is learnt. 0: it counts in
    full. Only beside an additive head: it knows more than the seed site in windows of 50 nt, less in whole UTRs."""
    members: int = 1
    """Aggregators, and additive heads, whose outputs are averaged; they share encoders and selection."""

    @classmethod
    def paper(cls) -> AggregatorConfig:
        """d 256, 8 heads, feed-forward 512."""
        return cls(width=256, heads=8, hidden=512)

    def __post_init__(self) -> None:
        kinds = ("set_transformer", "deep_sets", "gated_attention", "none")
        check(self.kind in kinds, "kind", f"be one of {', '.join(kinds)}", repr(self.kind))
        for name in ("width", "heads", "hidden", "pool_seeds", "members"):
            at_least(self, name, 1)
        for name in ("layers", "inducing_points", "additive"):
            at_least(self, name, 0)
        check(self.kind != "none" or self.additive > 0, "additive", "be 1 or more for kind none", self.additive)
        _check_weight(self, "length_gate")
        check(not self.length_gate or self.additive > 0, "length_gate", "be 0 without an additive head",
              self.length_gate)  # fmt: skip
        check_within(self, "dropout", "[0, 1)")
        check(self.width % self.heads == 0, "heads", f"divide the width {self.width}", self.heads)


@dataclass(frozen=True)
class SelectorConfig:
    """STSelector, PAIR-Former sec. 4.4 and App. D.

    ``n_bins``, ``bin_size`` and ``hash_bits`` have one value per pool class (see ``pool_steps``); a
    single int stands for three equal ones.

    Raises:
        ValueError: a field is out of its range.
        TypeError: an integer field is not an integer.
    """

    k_max: int = 64
    """Budget: most candidates kept per bag. A bag of n candidates gets K = min(k_max, n)."""

    rho: float = 0.5
    """Share of the budget for the best logits, K1 = floor(rho K); the other K2 = K - K1 are coverage.
    Ignored by S0; 1 makes S1 and S2 plain top-K."""

    variant: str = "S2"
    """"S0" top-K, "S1" + position bins and quotas, "S2" + SimHash duplicates."""

    score: str = "logit"
    """What bin weights are made of: "logit", or "sigmoid" of it. The order of candidates is the same for
    both, so it is always taken from the logit."""

    pool_factor: int = 8
    """Pool size L = min(max(pool_factor K, pool_min), pool_max)."""

    pool_min: int = 1024
    """Least pool size."""

    pool_max: int = 4096
    """Largest pool size."""

    pool_steps: tuple[int, int] = (1024, 2048)
    """Pool classes: L up to the first step, up to the second, and above."""

    n_bins: int | tuple[int, int, int] = (32, 32, 64)
    """Position bins. Position p is in bin floor(n_bins p); p < 0 counts as 0, p >= 1 is in the last bin."""

    bin_size: int | tuple[int, int, int] = (32, 64, 64)
    """Most candidates kept per bin before duplicates are dropped."""

    hash_bits: int | tuple[int, int, int] = (24, 32, 32)
    """Bits of the SimHash key that count: the low ones."""

    key_cap: int = 2
    """Most candidates kept per bin and hash key."""

    top_t: int = 8
    """Candidates that make the weight of a bin."""

    tau_w: float = 1.0
    """Temperature of the bin weights."""

    z_normalize: bool = True
    """Whether bin weights use z-scores (over all survivors of the bag, population standard deviation)."""

    z_eps: float = 1e-6
    """Added to that standard deviation."""

    exponent_clip: float = 20.0
    """Exponents of the bin weights are clipped to [-exponent_clip, exponent_clip]."""

    rng_seed: int = 2020
    """Seed of the permutation that picks the hash dimensions."""

    def __post_init__(self) -> None:
        check(self.variant in ("S0", "S1", "S2"), "variant", "be one of S0, S1, S2", repr(self.variant))
        check(self.score in ("logit", "sigmoid"), "score", "be one of logit, sigmoid", repr(self.score))
        for name in ("k_max", "pool_factor", "pool_min", "key_cap", "top_t"):
            _check_int(name, getattr(self, name), 1)
        _check_int("pool_max", self.pool_max, self.pool_min)
        _check_int("rng_seed", self.rng_seed, 0, 2**32 - 1)
        check_within(self, "rho", "[0, 1]")
        _check_positive("tau_w", self.tau_w)
        _check_positive("z_eps", self.z_eps)
        _check_positive("exponent_clip", self.exponent_clip, 300)
        check_switches(self)
        self._check_tuple("pool_steps", 2)
        check(self.pool_steps[0] <= self.pool_steps[1], "pool_steps", "not fall", repr(self.pool_steps))
        self._check_tuple("n_bins", 3, 2**16)
        self._check_tuple("bin_size", 3)
        self._check_tuple("hash_bits", 3, 32)

    def _check_tuple(self, name: str, length: int, high: int = _INT_MAX) -> None:
        value = getattr(self, name)
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * length
        check(len(values) == length, name, f"have {length} values", repr(value))
        for one in values:
            _check_int(name, one, 1, high)
        object.__setattr__(self, name, values)


@dataclass(frozen=True)
class StoredConfig:
    """A config that is kept beside weights."""

    def to_dict(self) -> dict:
        """Plain nested dict, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls: type[Stored], values: dict) -> Stored:
        """Inverse of :meth:`to_dict`; an unknown name is an error."""
        made: dict[str, Any] = {f.name: f.default_factory for f in fields(cls)}
        check(set(values) <= set(made), "config", f"have fields among {sorted(made)}", sorted(values))
        return cls(**{name: made[name](**value) if is_dataclass(made[name]) else value
                      for name, value in values.items()})  # fmt: skip


@dataclass(frozen=True)
class ModelConfig(StoredConfig):
    """A whole PAIR-Former."""

    expensive: ExpensiveConfig = field(default_factory=ExpensiveConfig)
    """Encoder of the selected candidates."""
    cheap: CheapConfig = field(default_factory=CheapConfig)
    """Encoder of all candidates."""
    selector: SelectorConfig = field(default_factory=SelectorConfig)
    """Which candidates the expensive encoder reads."""
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    """Tokens to pair logit."""
    token: tuple[str, ...] = ("embedding", "logit", "esa", "position")
    """Parts of a token, in this order, among "embedding", "logit", "esa", "position", "site" (seed match, local A and
    U, 3' pairing, distance to both ends, UTR length: ``Candidates.site_features``), "context" (the nearest other sites
    selected: ``Candidates.site_context``) and "duplex" (``Candidates.duplex_energy`` over 10)."""
    esa_min: int = 6
    """Least ESA score of a candidate."""
    keep_seed: str = "none"
    """Sites with this seed match or a longer one are always selected, the best window of each: "none" (the paper),
    "offset 6mer", "6mer", "7mer-A1", "7mer-m8" or "8mer"."""
    empty_logit: float = 0.0
    """Logit of a bag without candidates: a constant, even odds, never learned."""
    logit_scale: float = 1.0
    """probability = sigmoid(logit_scale * logit); fitted on held-out folds."""
    effect_scale: float = 1.0
    """log2 fold change = -effect_scale * repression, of the additive head; fitted on held-out folds."""
    effect_interval: tuple[float, ...] = ()
    """Lowest and highest log2 that measured fold changes lie off the predicted in 90 % of held-out genes, or empty."""
    effect_widening: tuple[float, float] = (0.0, 0.0)
    """What the two grow by, outwards, for each log2 of predicted repression."""

    @property
    def token_width(self) -> int:
        """Width of a token, 387 by default."""
        widths = {"embedding": self.expensive.width, "site": SITE_FEATURES, "context": CONTEXT_FEATURES}
        return sum(widths.get(part, 1) for part in self.token)

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", tuple(self.token))
        known = ("embedding", "logit", "esa", "position", "site", "context", "duplex")
        check(
            bool(self.token) and len(set(self.token)) == len(self.token) and set(self.token) <= set(known),
            "token", f"name distinct parts of {known}", self.token,
        )  # fmt: skip
        check(self.keep_seed in SEED_TYPES, "keep_seed", f"be one of {', '.join(SEED_TYPES)}", repr(self.keep_seed))
        _check_int("esa_min", self.esa_min, 0, 10)
        check_number("empty_logit", self.empty_logit)
        _check_positive("logit_scale", self.logit_scale)
        _check_positive("effect_scale", self.effect_scale)
        for name in ("effect_interval", "effect_widening"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            for number in getattr(self, name):
                check_number(name, number)
        ends, growth = self.effect_interval, self.effect_widening
        check(not ends or (len(ends) == 2 and ends[0] < 0 < ends[1]), "effect_interval",
              "be empty or hold a negative and a positive number", ends)  # fmt: skip
        check(len(growth) == 2 and min(growth) >= 0, "effect_widening",
              "be two numbers of 0 or more", growth)  # fmt: skip


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
            _check_weight(self, name)
        check_within(self, "smoothing", "[0, 0.5)")
        check_within(self, "focal_alpha", "(0, 1)")


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

    def __post_init__(self) -> None:
        _check_positive("temperature", self.temperature)
        for name in ("alpha_start", "alpha_end"):
            check_within(self, name, "[0, 1]")
        for name in ("feature_weight", "relation_weight"):
            _check_weight(self, name)


@dataclass(frozen=True)
class StageConfig:
    """How one stage is optimised: AdamW, cosine to zero, EMA weights kept."""

    epochs: int
    """Passes over the data."""
    batch_size: int
    """Windows (stages 1, 2) or pairs (stage 3, additive heads)."""
    lr: float
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Of AdamW, on matrices only; the encoder of joint epochs has none."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema_decay: float = 0.99
    """Of the exponential moving average that is served; step s uses min(ema_decay, (1 + s) / (10 + s))."""

    def __post_init__(self) -> None:
        at_least(self, "epochs", 1)
        at_least(self, "batch_size", 1)
        _check_positive("lr", self.lr)
        check(isinstance(self.clip, Real) and self.clip > 0, "clip", "be above 0", repr(self.clip))
        _check_weight(self, "weight_decay")
        check_within(self, "ema_decay", "[0, 1)")


@dataclass(frozen=True)
class JointStageConfig(StageConfig):
    """A stage whose last epochs train the expensive encoder too."""

    joint_epochs: int = 0
    """The last epochs, in which the expensive encoder is trained too."""
    joint_lr: float = 0.0
    """Peak learning rate of the expensive encoder in those."""

    def __post_init__(self) -> None:
        super().__post_init__()
        joint_epochs = as_int("joint_epochs", self.joint_epochs)
        check(0 <= joint_epochs <= self.epochs, "joint_epochs", f"be in 0..{self.epochs}", joint_epochs)
        _check_weight(self, "joint_lr")
        check(self.joint_lr > 0 or not self.joint_epochs, "joint_lr", "be positive for joint epochs", self.joint_lr)


@dataclass(frozen=True)
class SourceConfig:
    """Weight of each source in the losses; 0 leaves it out."""

    windows: float = 1.0
    """Stages 1, 2: labelled windows of 40 nt, both classes alike."""
    clash_windows: float = 0.0
    """Stages 1, 2: the best candidate of each CLASH window, negatives with the positives' miRNAs; both classes of each
    miRNA alike."""
    clash_original: float = 0.0
    """Stages 1, 2: the same of CLASH windows with uncorrected negatives."""
    labels: float = 1.0
    """Stage 3, aggregators: labelled pairs."""
    per_mirna: bool = False
    """Whether labels count so that both classes of each miRNA weigh the same, and miRNAs of one class nothing;
    else the classes of all pairs do."""
    decoys: float = 0.0
    """Stage 3, aggregators and additive heads: positive pairs against the same miRNAs and genes in another pairing,
    drawn anew each epoch."""
    clash: float = 0.0
    """Stage 3, aggregators: windows of CLASH, each a bag."""
    instances: float = 0.0
    """Stage 3, encoder in joint epochs: labelled windows inside labelled pairs, where these have a share and they are
    selected: lambda of PAIR-Former eq. 8."""
    effects: float = 0.0
    """Stage 3, additive heads: measured fold changes, one experiment at a time: 1 - correlation with the head's
    repression, and a tenth of the squared error over the variance; experiments of laboratories with one count half."""
    components: int = 0
    """How many leading components of other families' experiments are taken out of a fold change: what genes do
    whatever the miRNA is."""
    baseline: float = 1.0
    """Stage 3, additive heads: what is kept, once they have learnt, of how their baselines differ between pairs. Other
    laboratories bear them out in part."""

    @property
    def of_data_folder(self) -> bool:
        """Whether a source has a share that is read from the data folder, beside windows and pairs."""
        return any((self.clash_windows, self.clash_original, self.clash, self.instances, self.effects))

    def __post_init__(self) -> None:
        check_switches(self)
        at_least(self, "components", 0)
        for f in fields(self):
            if f.type == "float":
                _check_weight(self, f.name)


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
    stage3: JointStageConfig = field(
        default_factory=lambda: JointStageConfig(6, 32, 5e-4, 1e-2, joint_epochs=2, joint_lr=1e-4)
    )
    """Aggregator on pairs, then both."""
    additive: StageConfig = field(default_factory=lambda: StageConfig(24, 64, 3e-3, 1e-2, clip=0.1))
    """Additive heads, where there are any, first in stage 3."""
    sources: SourceConfig = field(default_factory=SourceConfig)
    """What the stages learn from: weight of each source in the loss, 0 leaves it out."""
    budgets: tuple[int, ...] = ()
    """Budgets k_max that stage 3 draws from, one per batch, so that one model serves each; empty: the model's own."""

    def __post_init__(self) -> None:
        check(not self.sources.instances or self.sources.labels > 0, "labels",
              "have a share where instances do, which lie in labelled pairs", self.sources.labels)  # fmt: skip
        check(not self.sources.instances or self.stage3.joint_epochs > 0, "joint_epochs",
              "be 1 or more, with a joint_lr, where instances have a share", self.stage3.joint_epochs)  # fmt: skip
        _check_int("rng_seed", self.rng_seed, 0, 2**32 - 1)
        object.__setattr__(self, "budgets", tuple(self.budgets))
        check(all(as_int("budgets", k) >= 1 for k in self.budgets), "budgets", "be 1 or more each", self.budgets)


RECIPES = ("default", "paper")


def recipe(name: str, size: str = "default") -> tuple[ModelConfig, TrainConfig]:
    """Model and training of the weights of this name that ship with the package.

    "paper": the paper's form in the default size, trained on labels alone. "default": seed sites are never dropped,
    tokens know what surrounds them, an additive head beside a Set Transformer that pools without self-attention and
    counts by the UTR's length, five of each, trained on fold changes, decoys, CLASH and labels weighted within each
    miRNA, with the encoders frozen. ``size`` "paper" has aggregators of ``AggregatorConfig.paper()``'s size.
    """
    check(name in RECIPES, "recipe", f"be one of {', '.join(RECIPES)}", repr(name))
    sized = AggregatorConfig.paper() if size == "paper" else AggregatorConfig()
    if name == "paper":
        return ModelConfig(aggregator=sized), TrainConfig()
    return (
        ModelConfig(
            aggregator=replace(sized, layers=0, additive=32, length_gate=1.05, members=5),
            token=("embedding", "logit", "esa", "position", "site", "context", "duplex"),
            keep_seed="offset 6mer",
        ),
        TrainConfig(
            stage3=JointStageConfig(12, 64, 1e-3, 1e-2),
            additive=StageConfig(24, 64, 3e-3, 1e-2, clip=0.0067),
            sources=SourceConfig(
                clash_windows=1.0,
                clash_original=1.0,
                per_mirna=True,
                decoys=1.0,
                clash=1.0,
                effects=0.067,
                components=5,
                baseline=0.75,
            ),
        ),
    )


def check(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{name} must {rule}, got {value}")


def as_int(name: str, value: Any) -> int:
    """TypeError for what is none, or true or false."""
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{name} must be an int, got {value!r}")


def usable_threads(threads: int) -> int:
    """``threads`` checked, and no more than there are processors: thousands would exhaust the machine."""
    threads = as_int("threads", threads)
    if threads < 0:
        raise ValueError(f"threads must be 0 (all) or more, got {threads}")
    return min(threads, _core.available_threads())


def _check_int(name: str, value: Any, low: int, high: int = _INT_MAX) -> None:
    check(low <= as_int(name, value) <= high, name, f"be in [{low}, {high}]", repr(value))


def as_bool(name: str, value: Any) -> bool:
    """TypeError for what is neither true nor false."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_switches(config: Any) -> None:
    for f in fields(config):
        if f.type == "bool":
            object.__setattr__(config, f.name, as_bool(f.name, getattr(config, f.name)))


def check_number(name: str, value: Any) -> None:
    size: Any = abs(value) if isinstance(value, Real) else math.nan
    check(size < math.inf, name, "be a finite number", repr(value))
    check(size <= _FLOAT_MAX, name, f"be within {_FLOAT_MAX:g}, as float32 is", repr(value))


def _check_positive(name: str, value: Any, high: float = _FLOAT_MAX) -> None:
    check_number(name, value)
    rule = "above 0" if high == _FLOAT_MAX else f"in (0, {high:g}]"
    check(0 < float(value) <= high, name, f"be {rule}", repr(value))


def _check_weight(config: object, name: str) -> None:
    check_number(name, getattr(config, name))
    check(getattr(config, name) >= 0, name, "not be negative", getattr(config, name))


def at_least(config: object, name: str, least: int) -> None:
    _check_int(name, getattr(config, name), least)


def check_within(config: object, name: str, interval: str) -> None:
    """ValueError unless the field is a number of an interval written as in "[0, 1)"."""
    value = getattr(config, name)
    check_number(name, value)
    low, high = map(float, interval[1:-1].split(","))
    inside = low <= value <= high and (interval[0] == "[" or value > low) and (interval[-1] == "]" or value < high)
    check(inside, name, f"be in {interval}", value)
