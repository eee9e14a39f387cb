"""A classifier of bags in the manner of scikit-learn: lists of arrays in, labels out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.validation import check_is_fitted
from torch import nn

from pairformer.config import as_int
from pairformer.metrics import sigmoid
from pairformer.mil.aggregator import SetAggregator
from pairformer.mil.budgeted import BudgetedMIL, check_one_loss
from pairformer.mil.selectors import STSelector
from pairformer.models.pair_former import chunks, pack_tokens

SCORER_RATE = 10  # of the learning rate


class BagClassifier(ClassifierMixin, BaseEstimator):
    """Two classes of bags, by a module trained with AdamW; for ``cross_val_score``, ``GridSearchCV`` and the like.

    A bag is an array (n, D); ``X`` is a list of them, n = 0 included. Features are standardised with the training
    instances. Training and prediction run on the CPU, with the threads that torch has.

    Args:
        module: None for an alternating ``BudgetedMIL`` (linear scorer, encoder of one hidden layer,
            ``SetAggregator``) where ``k_max`` is given, and for ``SetAggregator`` on all instances where it is not; or
            a function of D to a module that maps padded bags (B, P, D) and mask (B, P), True = real, to logits (B,);
            a ``BudgetedMIL`` that alternates is trained by its own loss.
        k_max: most instances of a bag that are encoded; None beside a ``module``, which has its own budget if any.
        epochs, batch_size, learning_rate, weight_decay: of AdamW, gradient norm at most 1. The scorer of a
            ``BudgetedMIL`` has ten times the rate.
        validation: share of the training bags that picks the epoch: those bags are not trained on, and the weights of
            the epoch with their least cross-entropy are kept; 0 keeps the last.
        rng_seed: of weights, batches and the validation bags.
    """

    def __init__(
        self, module: Callable[[int], nn.Module] | None = None, k_max: int | None = None, epochs: int = 40,
        batch_size: int = 16, learning_rate: float = 1e-3, weight_decay: float = 1e-2, validation: float = 0.0,
        rng_seed: int = 0,
    ) -> None:  # fmt: skip
        self.module, self.k_max, self.epochs, self.batch_size = module, k_max, epochs, batch_size
        self.learning_rate, self.weight_decay, self.validation = learning_rate, weight_decay, validation
        self.rng_seed = rng_seed

    def fit(self, X: Sequence[NDArray], y: Any) -> BagClassifier:
        """Train on bags ``X`` with labels ``y`` (B,) of two classes.

        Raises:
            ValueError: a bag is no (n, D) array of finite numbers, no bag has an instance, labels are not of two
                classes, ``batch_size`` or ``epochs`` is below 1, a ``BudgetedMIL`` that alternates is a
                part of ``module`` and not the whole, ``module`` stands beside a ``k_max``, ``validation`` takes no bag
                or all of them, or a loss is not finite.
            TypeError: ``module`` is a module, not what makes one.
        """
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        self.classes_, target = np.unique(y, return_inverse=True)
        if len(self.classes_) != 2 or len(y) != len(X):
            raise ValueError(f"y must hold two classes for {len(X)} bags, got {len(self.classes_)} in {len(y)}")
        for name in ("batch_size", "epochs"):
            if as_int(name, getattr(self, name)) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if isinstance(self.module, nn.Module):
            raise TypeError(f"module must be a function of D that makes a module, got {type(self.module).__name__}; "
                            "pass lambda width: module")  # fmt: skip
        if self.module is not None and self.k_max is not None:
            raise ValueError(f"k_max must be None beside a module, got {self.k_max}; give the module its own budget")
        aside = round(self.validation * len(X)) if 0 <= self.validation < 1 else len(X)
        if aside == len(X) or (self.validation and not aside):
            rule = f"0, or a share that takes one of {len(X)} bags or more and leaves one"
            raise ValueError(f"validation must be {rule}, got {self.validation}")
        filled = [bag for bag in X if len(bag)]
        if not filled:
            raise ValueError("X must hold an instance, got empty bags only")
        self.n_features_in_ = np.shape(filled[0])[-1]
        instances = np.concatenate([self._bag(bag, i) for i, bag in enumerate(X) if len(bag)])
        self.mean_, self.scale_ = instances.mean(0), instances.std(0)
        self.scale_[self.scale_ == 0] = 1
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.rng_seed)
            self.module_ = (self.module or self._default)(self.n_features_in_).float()
            if not isinstance(self.module_, BudgetedMIL):
                check_one_loss(self.module_)
            self._train(self._standardised(X), torch.from_numpy(target).float(), aside)
        return self

    def decision_function(self, X: Sequence[NDArray]) -> NDArray[np.float32]:
        """Logits (B,) of the second class."""
        check_is_fitted(self, "module_")
        bags = self._standardised(X)
        parts = [self._logits(bags[part]) for part in chunks(len(bags), self.batch_size)]
        return torch.cat(parts).numpy() if parts else np.empty(0, np.float32)

    def predict_proba(self, X: Sequence[NDArray]) -> NDArray[np.float32]:
        """(B, 2) probabilities, not calibrated."""
        second = sigmoid(self.decision_function(X).astype(np.float64))
        return np.stack([1 - second, second], 1)

    def predict(self, X: Sequence[NDArray]) -> NDArray:
        """(B,) classes."""
        second = self.decision_function(X) > 0  # first: it says where there are no classes yet
        return self.classes_[second.astype(int)]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _default(self, width: int) -> nn.Module:
        if self.k_max is None:
            return SetAggregator(width)
        encoder = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 64))
        return BudgetedMIL(nn.Linear(width, 1), encoder, SetAggregator(64), STSelector(self.k_max), "alternating")

    def _bag(self, bag: Any, number: int) -> NDArray[np.float64]:
        array = np.asarray(bag, np.float64)
        if array.ndim != 2 or array.shape[1] != self.n_features_in_ or not np.isfinite(array).all():
            right = array.ndim == 2 and array.shape[1] == self.n_features_in_
            got = "NaN or infinity" if right else array.shape
            raise ValueError(
                f"X must hold arrays (n, {self.n_features_in_}) of finite numbers, got {got} at bag {number}"
            )
        return array

    def _standardised(self, X: Sequence[NDArray]) -> list[torch.Tensor]:
        empty = np.empty((0, self.n_features_in_))
        bags = (self._bag(bag if len(bag) else empty, i) for i, bag in enumerate(X))
        arrays = [(bag - self.mean_) / self.scale_ for bag in bags]
        return [torch.from_numpy(array).float() for array in arrays]

    def _train(self, bags: list[torch.Tensor], target: torch.Tensor, n_aside: int) -> None:
        module = self.module_
        order = torch.randperm(len(bags))
        aside, used = order[:n_aside], order[n_aside:]
        scorers = [part.scorer for part in module.modules() if isinstance(part, BudgetedMIL)]
        fast = dict.fromkeys(weight for scorer in scorers for weight in scorer.parameters())
        others = [weight for weight in module.parameters() if weight not in fast]
        groups: list[dict[str, Any]] = [
            {"params": others},
            {"params": list(fast), "lr": SCORER_RATE * self.learning_rate},
        ]
        groups = [group for group in groups if group["params"]]
        optimiser = torch.optim.AdamW(groups, self.learning_rate, weight_decay=self.weight_decay)
        least, kept = np.inf, None
        self.validation_losses_: list[float] = []
        for epoch in range(1, self.epochs + 1):
            module.train()
            for batch in used[torch.randperm(len(used))].split(int(self.batch_size)):
                for loss in _losses(module, [bags[i] for i in batch], target[batch]):
                    if not loss.isfinite():
                        raise ValueError(f"loss must be finite, got {loss.item()} in epoch {epoch}; lower "
                                         f"learning_rate, which is {self.learning_rate}")  # fmt: skip
                    optimiser.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                    optimiser.step()
            if len(aside):
                parts = [self._logits([bags[i] for i in part]) for part in aside.split(int(self.batch_size))]
                self.validation_losses_.append(float(_loss(torch.cat(parts), target[aside])))
                if self.validation_losses_[-1] < least:
                    least = self.validation_losses_[-1]
                    kept = {name: value.clone() for name, value in module.state_dict().items()}
        if kept is not None:
            module.load_state_dict(kept)

    @torch.no_grad()
    def _logits(self, bags: list[torch.Tensor]) -> torch.Tensor:
        return _apply(self.module_.eval(), bags).float()


_loss = nn.functional.binary_cross_entropy_with_logits


def _losses(module: nn.Module, bags: list[torch.Tensor], target: torch.Tensor) -> Iterator[torch.Tensor]:
    """What is to be minimised, one after the other: an alternating BudgetedMIL has a loss for its scorer too."""
    if not isinstance(module, BudgetedMIL) or module.straight_through:
        yield _loss(_apply(module, bags), target)
        return
    ends = np.cumsum([0, *map(len, bags)])
    for _ in range(2):
        loss = module.loss(torch.cat(bags), target, offsets=ends)
        if loss.requires_grad:  # a scorer such as a norm has nothing to learn
            yield loss


def _apply(module: nn.Module, bags: list[torch.Tensor]) -> torch.Tensor:
    """Logits of bags, padded in groups whose sizes are within a factor of 4: a huge bag does not pad all the others."""
    order = sorted(range(len(bags)), key=lambda i: -len(bags[i]))
    groups: list[list[int]] = []
    for i in order:
        if not groups or len(bags[i]) < len(bags[groups[-1][0]]) // 4:
            groups.append([])
        groups[-1].append(i)
    logits = [
        module(*pack_tokens(torch.cat([bags[i] for i in group]), np.cumsum([0, *(len(bags[i]) for i in group)])))
        for group in groups
    ]
    return torch.cat(logits)[torch.tensor(order).argsort()]
