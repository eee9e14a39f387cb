"""Influence of tokens: by hand on a sum, against differences on a Set Transformer, and the bound of Theorem B.8."""

import numpy as np
import pytest

from pairformer import testing
from pairformer.config import AggregatorConfig, ModelConfig
from pairformer.scan import scan

torch = pytest.importorskip("torch")
from pairformer.analysis import all_tokens, influence, masked_logits  # noqa: E402
from pairformer.models import PairFormer, SetTransformer  # noqa: E402


def test_a_sum_by_hand():
    """f = sum a.z: every token matters alike, and eq. 12 holds with equality where all products are positive."""
    a = torch.tensor([3.0, 4.0])
    tokens = torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.0, 0.0], [0.6, 0.8]])

    def total(padded, mask):
        return ((padded * mask[:, :, None]) @ a).sum(1)

    found = influence(total, tokens, n_masks=4)
    np.testing.assert_allclose(found.sensitivity, [5, 5, 5, 5])
    np.testing.assert_allclose(found.weight, 0.25)
    kept = np.array([1, 2])
    assert found.uncovered(kept) == pytest.approx(0.5)
    assert found.tail(3) == pytest.approx(0.25)
    assert found.tail(4) == found.tail(9) == 0
    loose, sharp = found.bound(kept)
    assert loose == pytest.approx(2 * 10 * 5)
    full, part = masked_logits(total, tokens, [np.arange(4), kept])
    assert sharp == pytest.approx(full - part) == pytest.approx(7.5)
    nothing = influence(lambda padded, mask: 0 * padded.sum((1, 2)), tokens)
    np.testing.assert_allclose(nothing.weight, 0.25)


def test_sensitivities_are_gradients(rng):
    """Without masks, against central differences; with masks they only grow; a masked token is never read."""
    torch.manual_seed(0)
    model = SetTransformer(5, AggregatorConfig(width=8, layers=1, heads=2, hidden=8)).eval().double()
    tokens = torch.randn(6, 5, dtype=torch.float64)
    plain = influence(model, tokens, n_masks=0)
    step, mask = 1e-5, torch.ones(1, 6, dtype=torch.bool)
    for i in range(6):
        slopes = []
        for j in range(5):
            up, down = tokens.clone(), tokens.clone()
            up[i, j] += step
            down[i, j] -= step
            with torch.no_grad():
                slopes.append(float(model(up[None], mask) - model(down[None], mask)) / (2 * step))
        assert plain.sensitivity[i] == pytest.approx(np.linalg.norm(slopes), rel=1e-5)
    more = influence(model, tokens, n_masks=20)
    assert (more.sensitivity >= plain.sensitivity - 1e-12).all()
    assert (more.sensitivity > plain.sensitivity + 1e-9).any()
    assert more.weight.sum() == pytest.approx(1)
    order = np.argsort(-more.weight)
    assert more.uncovered(order[:2]) == pytest.approx(more.tail(2))
    assert min(more.uncovered(np.array(pair)) for pair in ((0, 1), (2, 5), (3, 4))) >= more.tail(2) - 1e-12


def test_tokens_of_a_whole_bag(rng):
    """All tokens under a mask give what the budgeted forward gives for the same rows."""
    torch.manual_seed(0)
    model = PairFormer(ModelConfig(aggregator=AggregatorConfig(width=16, layers=1, hidden=16))).eval()
    candidates = scan(["UGAGGUAGUAGGUUGUAUAGUU"], [testing.random_rna(rng, 300)])
    tokens = all_tokens(model, candidates)
    budgeted = model(candidates, k_max=16)
    logits = masked_logits(model.aggregators[0], tokens, [budgeted.selection.rows, np.arange(len(tokens))])
    assert logits[0] == pytest.approx(float(budgeted.pooled.logit.detach()), abs=1e-5)
    assert logits[1] == pytest.approx(float(model(candidates, k_max=len(tokens)).pooled.logit.detach()), abs=1e-5)
    two = scan(["UGAGGUAGUAGGUUGUAUAGUU"] * 2, [testing.random_rna(rng, 90)] * 2)
    for bags, n in ((two, len(two.start)), (scan(["UGAGGUAG"], ["ACGU"]), 0)):
        with pytest.raises(ValueError, match=f"candidates must be of one bag with at least one, got .* with {n}"):
            all_tokens(model, bags)
