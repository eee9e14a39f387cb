"""Losses of the three stages (PAIR-Former App. E)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pairformer.config import DistillConfig, LossConfig


def binary_loss(logit: Tensor, label: Tensor, weight: Tensor, config: LossConfig) -> Tensor:
    """Mean over rows, and members, of weight * (bce_weight * BCE + focal_weight * alpha_t * (1 - p_t)^gamma * BCE).

    Args:
        logit: (M,) before the sigmoid, or (E, M) of E members.
        label: (M,) float 0 or 1, smoothed here; p_t and alpha_t use the smoothed label.
        weight: (M,) float, see :func:`class_weights`.
        config: weights of the two terms, smoothing, focal constants.
    """
    target = (label * (1 - 2 * config.smoothing) + config.smoothing).expand_as(logit)
    bce = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    p = torch.sigmoid(logit)
    p_t = (p * target + (1 - p) * (1 - target)).clamp(1e-6, 1 - 1e-6)
    alpha_t = config.focal_alpha * target + (1 - config.focal_alpha) * (1 - target)
    focal = alpha_t * (1 - p_t) ** config.focal_gamma * bce
    return (weight * (config.bce_weight * bce + config.focal_weight * focal)).mean()


def class_weights(label: Tensor) -> Tensor:
    """(M,) weights under which both classes count equally and the mean weight is 1."""
    positive = label.mean()
    return torch.where(label > 0.5, 0.5 / positive, 0.5 / (1 - positive))


def mirna_weights(label: Tensor, mirna: NDArray[np.object_]) -> Tensor:
    """(M,) weights under which both classes of each miRNA count equally, 0 for miRNAs of one class, mean 1.

    A miRNA counts by the rows of its rarer class, so that none stands on a single row.
    """
    _, group = np.unique(mirna, return_inverse=True)
    positive = label.numpy() > 0.5
    count = np.stack([np.bincount(group, weights=part) for part in (~positive, positive)])  # (2, miRNAs)
    weight = (count.min(0) / np.maximum(count, 1))[positive.astype(int), group]
    return torch.from_numpy((weight / max(weight.sum() / max(len(weight), 1), 1e-9)).astype(np.float32))


def effect_loss(score: Tensor, target: Tensor) -> Tensor:
    """Mean over rows of 1 - Pearson's correlation of (E, B) scores with a (B,) target, and of what holds their scale.

    Experiments differ in strength, which correlation passes over; a tenth of the squared error over the target's
    variance keeps the scores in its unit.
    """
    s, t = score - score.mean(1, keepdim=True), target - target.mean()
    variance = t.square().mean() + 1e-6
    correlation = (s * t).mean(1) / (s.square().mean(1) * variance + 1e-6).sqrt()
    return (1 - correlation + 0.1 * (score - target).square().mean(1) / variance).mean()


def distill_share(epoch: int, epochs: int, config: DistillConfig) -> float:
    """alpha of an epoch: half a cosine from ``alpha_start`` to ``alpha_end``."""
    cosine = 0.5 * (1 + math.cos(math.pi * epoch / max(1, epochs - 1)))
    return config.alpha_end + (config.alpha_start - config.alpha_end) * cosine


def distill_logit(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * BCE(student / T, sigmoid(teacher / T)), mean over (M,) logits."""
    target = torch.sigmoid(teacher / temperature)
    return F.binary_cross_entropy_with_logits(student / temperature, target) * temperature**2


def distill_feature(projected: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cosine between projected student and teacher embeddings, both (M, D)."""
    return (1 - F.cosine_similarity(projected, teacher)).mean()


def distill_relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the two (M, M) cosine matrices; embeddings (M, D) and (M, E)."""
    s, t = F.normalize(student), F.normalize(teacher)
    return F.mse_loss(s @ s.T, t @ t.T)
