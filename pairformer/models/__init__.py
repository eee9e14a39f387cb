"""PyTorch models; importing this package loads torch."""

from pairformer.models.additive import AdditiveHead
from pairformer.models.encoders import CheapEncoder, ExpensiveEncoder
from pairformer.models.pair_former import PairFormer
from pairformer.models.pooling import DeepSets, GatedAttention
from pairformer.models.rnaformer import RNAformer
from pairformer.models.set_transformer import ISAB, MAB, PMA, SAB, SetTransformer

__all__ = [
    "ISAB", "MAB", "PMA", "SAB", "AdditiveHead", "CheapEncoder", "DeepSets", "ExpensiveEncoder", "GatedAttention",
    "PairFormer", "RNAformer", "SetTransformer",
]  # fmt: skip
