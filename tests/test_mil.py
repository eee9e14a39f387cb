"""pairformer.mil: forms of bags, rules of selection, adapters and the documentation."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pairformer
from pairformer import mil

ROOT = Path(__file__).parent.parent
SIZES = [5, 0, 1, 40, 200]
OFFSETS = np.concatenate([[0], np.cumsum(SIZES)])
N = int(OFFSETS[-1])
BASELINES = [
    mil.TopK, mil.Random, mil.UniformPosition, mil.FarthestPoint, mil.KMeansPlusPlus, mil.MMR, mil.FacilityLocation,
]  # fmt: skip


@pytest.fixture
def bags():
    """(scores, embeddings, positions in a plane, offsets)"""
    rng = np.random.default_rng(0)
    return (rng.normal(size=N).astype(np.float32), rng.normal(size=(N, 8)).astype(np.float32),
            rng.uniform(-50, 900, (N, 2)), OFFSETS)  # fmt: skip


def padded(values, places=210):
    """(B, P, ...) with padding first in each bag, holding 99; and the mask."""
    mask = np.arange(places) >= places - np.diff(OFFSETS)[:, None]
    out = np.full((*mask.shape, *values.shape[1:]), 99, values.dtype)
    out[mask] = values
    return out, mask


def same_rows(one, other):
    np.testing.assert_array_equal(np.asarray(one.rows), np.asarray(other.rows))
    np.testing.assert_array_equal(np.asarray(one.offsets), np.asarray(other.offsets))
    np.testing.assert_array_equal(np.asarray(one.reason), np.asarray(other.reason))


# Import.


def test_import_needs_no_torch():
    code = """
import sys
sys.modules["torch"] = None
import numpy as np
from pairformer import mil
assert mil.STSelector(2).select(np.arange(5.0), np.eye(5)).rows[-1] == 4
assert not {"sklearn", "click", "h5py"} & set(sys.modules)
from pairformer.mil import *
assert "BagClassifier" in dir(mil)
try:
    mil.SetAggregator
except ImportError as error:
    print(error)
try:
    mil.Nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.split("\n")[:2] == [
        "SetAggregator needs torch, which is not installed",
        "module 'pairformer.mil' has no attribute 'Nothing'",
    ]


# Forms.


@pytest.mark.parametrize("rule", [mil.STSelector, mil.MMR])
def test_every_form_selects_the_same(bags, rule):
    torch = pytest.importorskip("torch")
    scores, embeddings, _, offsets = bags
    selector = rule(16)
    expected = selector.select(*bags)
    (s, mask), (e, _), (p, _) = map(padded, bags[:3])
    same_rows(selector.select(s, e, p, mask=mask), expected)
    same_rows(selector.select(s, e, p, mask=mask.astype(np.uint8)), expected)
    tensors = [torch.from_numpy(part) for part in (*bags[:3], offsets)]
    found = selector.select(*tensors)
    assert isinstance(found.rows, torch.Tensor)
    same_rows(found, expected)
    jagged = [torch.nested.nested_tensor_from_jagged(part, tensors[3]) for part in tensors[:3]]
    found = selector.select(*jagged)
    same_rows(found, expected)
    np.testing.assert_array_equal(found.gather(jagged[1]), embeddings[expected.rows])
    narrow = [torch.from_numpy(part).to(torch.float64) for part in (scores, embeddings)]
    same_rows(selector.select(*narrow, tensors[2], tensors[3].int()), expected)


def test_one_bag_needs_no_offsets(bags):
    one = mil.STSelector(8).select(bags[0], bags[1])
    same_rows(one, mil.STSelector(8).select(bags[0], bags[1], offsets=np.array([0, N])))


def test_bfloat16_scores_are_cast():
    torch = pytest.importorskip("torch")
    found = mil.TopK(2).select(torch.tensor([1.0, 3.0, 2.0], dtype=torch.bfloat16))
    assert found.rows.tolist() == [1, 2]


def test_the_way_back(bags):
    """padded() indexes the caller's arrays; gather() gives what it names, with gradient."""
    torch = pytest.importorskip("torch")
    scores, embeddings, positions, _ = bags
    ragged = mil.STSelector(16).select(*bags)
    np.testing.assert_array_equal(ragged.gather(embeddings), embeddings[ragged.rows])
    indices, real = ragged.padded(20)
    np.testing.assert_array_equal(scores[indices[real]], scores[ragged.rows])
    (s, mask), (e, _) = padded(scores), padded(embeddings)
    found = mil.STSelector(16).select(s, e, padded(positions)[0], mask=mask)
    columns, real = found.padded(20)
    assert (columns[~real] == -1).all()
    taken = np.take_along_axis(s, columns.clip(0), 1)
    np.testing.assert_array_equal(taken[real], scores[ragged.rows])
    np.testing.assert_array_equal(found.gather(e), embeddings[ragged.rows])
    tokens, token_mask = found.gather_padded(e, 20)
    assert tokens.shape == (5, 20, 8)
    np.testing.assert_array_equal(tokens[token_mask], embeddings[ragged.rows])
    assert not tokens[~token_mask].any()
    leaf = torch.from_numpy(e).requires_grad_()
    found.gather_padded(leaf, 20)[0].sum().backward()
    np.testing.assert_array_equal(leaf.grad.any(2).sum(1), np.diff(found.offsets))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"scores": np.ones((2, 3))}, "offsets or mask must be given for scores of shape (2, 3), got neither"),
        ({"scores": [1.0]}, "scores must be a NumPy array or a tensor, got list"),
        ({"scores": np.arange(3)}, "scores must hold floating-point numbers, got int64; pass it as float32"),
        ({"scores": np.array([1, np.nan])}, "scores must be finite in float32, got nan at row 1; drop such rows"),
        ({"scores": np.array([1, 1e300])}, "scores must be finite in float32, got 1e+300 at row 1; drop such rows"),
        ({"scores": np.ones((3, 2)), "offsets": [0, 3]}, "scores must be one number per instance, got shape (3, 2)"),
        ({"scores": np.ones(3), "offsets": np.array([0, 2])}, "offsets must end at 3 (rows of scores), got 2"),
        ({"scores": np.ones(3), "offsets": np.array([0, 2, 1, 3])}, "offsets must not fall, got 1 after 2"),
        ({"scores": np.ones(3), "offsets": np.array([1, 3])}, "offsets must be (B + 1,) and start at 0, got [1, 3]"),
        ({"scores": np.ones(3), "offsets": np.array([0.0, 3])}, "offsets must hold integers, got float64"),
        ({"scores": np.ones((1, 3)), "mask": np.ones((1, 2))}, "scores must have shape (1, 2) as mask has, got (1, 3)"),
        ({"scores": np.ones((1, 2)), "mask": np.array([[0, -1]])}, "mask must hold only 0 and 1, got -1; True = real"),
        ({"scores": np.ones((1, 2)), "mask": np.ones((1, 2)), "offsets": [0, 2]}, "offsets must be None where mask is"),
        ({"scores": np.ones(3), "embeddings": np.ones((2, 4))}, "embeddings must have 3 rows (as scores), got shape"),
        ({"scores": np.ones(3), "embeddings": np.ones(3)}, "embeddings must be one vector, or one uint32 key, per"),
        ({"scores": np.ones(2), "embeddings": np.array([[0], [np.inf]])}, "embeddings must be finite in float32"),
        ({"scores": np.ones(2), "positions": np.ones((2, 3))}, "positions must be on a line or in a plane"),
        ({"scores": np.ones(2), "positions": np.array([0, np.nan])}, "positions must be finite in float64, got nan"),
        ({"scores": np.ones(2), "positions": np.array([1e308, -1e308])}, "positions must span less than the largest"),
        ({"scores": np.ones(2), "threads": -1}, "threads must be 0 (all) or more, got -1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        mil.STSelector(1).select(**call)


def test_bad_tensors_are_refused_by_name():
    torch = pytest.importorskip("torch")
    scores = torch.nested.nested_tensor_from_jagged(torch.rand(4), torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match="embeddings must be jagged as scores"):
        mil.TopK(1).select(scores, torch.rand(4, 2))
    with pytest.raises(ValueError, match="embeddings must have the offsets of scores"):
        mil.TopK(1).select(scores, torch.nested.nested_tensor_from_jagged(torch.rand(4, 2), torch.tensor([0, 2, 4])))
    with pytest.raises(ValueError, match="offsets and mask must be None for jagged scores"):
        mil.TopK(1).select(scores, offsets=torch.tensor([0, 4]))
    with pytest.raises(TypeError, match=r"scores must be on the CPU, got meta; pass scores.cpu\(\)"):
        mil.TopK(1).select(torch.ones(3, device="meta"))


# STSelector.


def test_positions_on_a_line_are_the_core_rule(bags):
    """Each bag scaled to [0, 1]; keys as the core makes them from embeddings without their mean."""
    scores, embeddings, positions, offsets = bags
    line = positions[:, 0]
    scaled, centred = np.empty(N, np.float32), np.empty_like(embeddings)
    for first, last in pairwise(offsets):
        bag = slice(first, last)
        if last > first:
            extent = np.ptp(line[bag])
            scaled[bag] = (line[bag] - line[bag].min()) / (extent or 1)
            centred[bag] = embeddings[bag] - embeddings[bag].mean(0, dtype=np.float64).astype(np.float32)
    for variant in ("S0", "S1", "S2"):
        core = pairformer.STSelector(16, variant=variant)
        expected = core.select(scores, core.keys(centred), scaled, offsets)
        same_rows(mil.STSelector(16, variant=variant).select(scores, embeddings, line, offsets), expected)
    ours = mil.STSelector(16)
    same_rows(ours.select(scores, ours.keys(embeddings, offsets), line, offsets), expected)
    plain = core.select(scores, embeddings, scaled, offsets)
    same_rows(mil.STSelector(16, center=False).select(scores, embeddings, line, offsets), plain)


def test_positions_in_a_plane_fill_a_grid():
    """One place for each of 3 x 3 cells beside the best score, whatever the units of the axes."""
    rng = np.random.default_rng(1)
    positions = rng.uniform(0, 1, (500, 2))
    positions[:2] = (0, 0), (1, 1)
    scores = rng.normal(size=500)
    cells = np.minimum((positions * 3).astype(int), 2) @ [3, 1]
    found = mil.STSelector(10, rho=0.1).select(scores, None, positions)
    best = {int(np.argmax(np.where(cells == c, scores, -np.inf))) for c in range(9)}
    assert found.rows[found.reason == 0].tolist() == [scores.argmax()]
    assert set(cells[found.rows[found.reason == 1]]) == set(range(9))
    assert len(best - set(found.rows.tolist())) == 0
    far = mil.STSelector(10, rho=0.1).select(scores, None, positions * [1000, 0.01] + 7)
    same_rows(far, found)


def test_embeddings_alone_are_covered_by_their_signs():
    """Four clusters, one of which has all the best scores: top-K sees one, STSelector all four, ReLU or not."""
    rng = np.random.default_rng(2)
    cluster = np.repeat(np.arange(4), 50)
    scores = rng.uniform(size=200) + 10 * (cluster == 0)
    corners = rng.choice([-1.0, 1.0], (4, 64))
    embeddings = corners[cluster] + 0.01 * rng.normal(size=(200, 64))
    for shift, variant in ((0, "S2"), (5, "S2"), (0, "S1")):  # 5: every feature is positive, as behind a ReLU
        found = mil.STSelector(32, variant=variant).select(scores, embeddings + shift)
        assert set(cluster[found.rows]) == {0, 1, 2, 3}
    assert set(cluster[mil.TopK(32).select(scores, embeddings).rows]) == {0}
    one_sided = mil.STSelector(32, center=False).select(scores, embeddings + 5)
    assert set(cluster[one_sided.rows]) == {0}


def test_nothing_to_cover_is_top_k(bags):
    found = mil.STSelector(16).select(bags[0], offsets=bags[3])
    same_rows(found, mil.TopK(16).select(bags[0], offsets=bags[3]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k_max": 0}, "k_max must be 1 or more, got 0"),
        ({"grid": 0}, "grid must be in 1..256, got 0"),
        ({"rho": 1.5}, "rho must be in"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        mil.STSelector(**arguments)
    with pytest.raises(TypeError, match=r"k_max must be an int, got 2\.5"):
        mil.TopK(2.5)
    with pytest.raises(TypeError, match="center must be True or False, got 'no'"):
        mil.STSelector(center="no")
    with pytest.raises(ValueError, match="balance must be a finite number, got 'x'"):
        mil.MMR(balance="x")


def test_a_rule_is_a_break_in_a_compiled_graph(bags):
    torch = pytest.importorskip("torch")
    scores, embeddings = (torch.from_numpy(part).float() for part in bags[:2])
    for rule in (mil.STSelector(4), mil.MMR(4), mil.Random(4)):
        asked = lambda s, e, rule=rule: rule.select(s * 2, e, offsets=bags[3]).rows + 1  # noqa: E731
        assert torch.equal(torch.compile(asked, backend="eager")(scores, embeddings), asked(scores, embeddings))


# Baselines.


def test_farthest_point_by_hand():
    """On a line: the best score at 0, then the far end, then the middle."""
    points = np.array([[0.0], [1], [4], [6], [10]])
    assert mil.FarthestPoint(3).select(np.array([9.0, 1, 1, 1, 1]), points).rows.tolist() == [0, 2, 4]
    copies = np.zeros((6, 2))
    assert len(set(mil.FarthestPoint(4).select(np.arange(6.0), copies).rows.tolist())) == 4


def test_mmr_by_hand():
    """Second best is a copy of the best: balance 1 takes it, 0.5 the other direction."""
    scores, points = np.array([1.0, 0.9, 0.7, 0.0]), np.array([[1.0, 0], [1, 0], [0, 1], [-1, 0]])
    assert mil.MMR(2, balance=1).select(scores, points).rows.tolist() == [0, 1]
    assert mil.MMR(2, balance=0.6).select(scores, points).rows.tolist() == [0, 2]
    assert mil.MMR(2, balance=0).select(scores, points).rows.tolist() == [0, 3]
    with pytest.raises(ValueError, match=r"balance must be in \[0, 1\], got 2"):
        mil.MMR(2, balance=2)


def test_facility_location_is_greedy():
    """Each step has the largest gain of all; the value is within 1 - 1/e of the best of all subsets."""
    from itertools import combinations

    rng = np.random.default_rng(3)
    points = rng.normal(size=(12, 3))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)

    def value(rows):
        return (1 + unit @ unit[list(rows)].T).max(1).sum()

    rows = mil.FacilityLocation(3).select(rng.normal(size=12), points).rows
    first = mil.FacilityLocation(1).select(rng.normal(size=12), points).rows
    assert first[0] in rows
    assert value(first) == pytest.approx(max(value([i]) for i in range(12)))
    assert value(rows) >= (1 - 1 / np.e) * max(value(some) for some in combinations(range(12), 3))


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # of submodlib
def test_facility_location_is_submodlibs():
    pytest.importorskip("submodlib", reason="submodlib is not installed")
    rng = np.random.default_rng(4)
    scores, points = rng.normal(size=150), rng.normal(size=(150, 5))
    theirs = mil.FacilityLocation(10, impl="submodlib").select(scores, points)
    same_rows(mil.FacilityLocation(10).select(scores, points), theirs)


def test_uniform_position_takes_every_third():
    order = np.random.default_rng(5).permutation(9)
    found = mil.UniformPosition(3).select(np.zeros(9), None, order.astype(float))
    assert sorted(order[found.rows]) == [1, 4, 7]
    with pytest.raises(ValueError, match="positions must be given for UniformPosition, got None"):
        mil.UniformPosition(3).select(np.zeros(9))


def test_random_and_k_means_plus_plus_follow_their_laws():
    """Frequencies over seeds: uniform for one; for the other the far point nearly always joins the first."""
    scores = np.random.default_rng(6).normal(size=10)
    drawn = np.concatenate([mil.Random(3, rng_seed=seed).select(scores).rows for seed in range(2000)])
    assert abs(np.bincount(drawn, minlength=10) / 600 - 1).max() < 0.15
    points = np.zeros((10, 1))
    points[:, 0] = np.arange(10) * 0.01
    points[7] = 100
    with_far = [7 in mil.KMeansPlusPlus(2, rng_seed=seed).select(scores, points).rows for seed in range(300)]
    assert np.mean(with_far) > 0.98
    # Two of three on a line, 0, 1 and 3: P(0 and 1) = (1/10 + 1/5) / 3.
    line = np.array([[0.0], [1], [3]])
    near = [mil.KMeansPlusPlus(2, rng_seed=s).select(scores[:3], line).rows.tolist() == [0, 1] for s in range(3000)]
    assert np.mean(near) == pytest.approx(0.1, abs=0.02)


def test_draws_of_neighbouring_seeds_and_of_equal_scores_are_apart():
    rng = np.random.default_rng(7)
    scores, points = rng.normal(size=200), rng.normal(size=(200, 2))
    for rule in (mil.Random, mil.KMeansPlusPlus):
        drawn = [set(rule(20, rng_seed=seed).select(scores, points).rows.tolist()) for seed in range(50)]
        shared = [len(one & other) for one, other in pairwise(drawn)]
        assert np.mean(shared) < 4  # of 20 out of 200
        equal = {tuple(rule(3, rng_seed=seed).select(np.zeros(200), points).rows) for seed in range(50)}
        assert len(equal) == 50


def test_a_plane_is_read_by_its_rows():
    """Of a lattice of 50 x 50 every other row is taken, the last one too."""
    row, column = np.divmod(np.arange(2500), 50)
    found = mil.UniformPosition(50).select(np.zeros(2500), None, np.stack([row, column], 1).astype(float))
    assert row[found.rows].tolist() == list(range(50))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 30), max_size=5), st.integers(1, 12), st.sampled_from([mil.STSelector, *BASELINES]),
       st.booleans())  # fmt: skip
def test_budget_of_any_bags(sizes, k_max, rule, ties):
    rng = np.random.default_rng(sum(sizes) + k_max)
    offsets = np.cumsum([0, *sizes])
    n = int(offsets[-1])
    scores, points = rng.normal(size=n), rng.normal(size=(n, 3))
    if ties:
        scores, points = np.round(scores), np.zeros((n, 3))
    found = rule(k_max).select(scores, points, points[:, :2], offsets)
    np.testing.assert_array_equal(np.diff(found.offsets), np.minimum(sizes, k_max))
    assert len(np.unique(found.rows)) == len(found.rows)
    for first, last, rows in zip(offsets, offsets[1:], np.split(found.rows, found.offsets[1:-1]), strict=False):
        assert ((rows >= first) & (rows < last)).all()
        assert (np.diff(rows) > 0).all()


# Adapters.


@pytest.fixture
def labelled():
    rng = np.random.default_rng(0)
    bags = [rng.normal(size=(n, 5)) for n in rng.integers(1, 12, 60)]
    for bag in bags[::2]:
        bag[0] += 4
    return bags, np.where(np.arange(60) % 2 == 0, "yes", "no")


@pytest.mark.parametrize("k_max", [None, 6])
def test_bag_classifier(labelled, k_max):
    torch = pytest.importorskip("torch")
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError
    from sklearn.model_selection import cross_val_score

    bags, labels = labelled
    for share in (-0.2, 0.01, 1.0):
        with pytest.raises(ValueError, match=f"validation must be 0, or a share .* got {share}"):
            mil.BagClassifier(validation=share).fit([np.ones((1, 2))] * 2, [0, 1])
    for wrong, message in (([0, np.nan], "y contains NaN"), ([0, 1, 2], "y must hold two classes for 3 bags, got 3")):
        with pytest.raises(ValueError, match=message):
            mil.BagClassifier().fit([np.ones((1, 2))] * len(wrong), wrong)
    two = np.int64(2)
    assert len(mil.BagClassifier(k_max=two, epochs=two, batch_size=two).fit(bags[:6], labels[:6]).predict(bags)) == len(
        bags
    )

    def budgeted(width, train="alternating"):
        scorer, encoder = torch.nn.Linear(width, 1), torch.nn.Linear(width, 4)
        return mil.BudgetedMIL(scorer, encoder, mil.SetAggregator(4), mil.TopK(2), train)

    for train in ("straight-through", "alternating"):
        learnt = mil.BagClassifier(lambda width, train=train: budgeted(width, train), epochs=1).fit(bags, labels)
        torch.manual_seed(learnt.rng_seed)
        fresh = budgeted(5)
        for learns, began in zip(learnt.module_.parameters(), fresh.parameters(), strict=True):
            assert learns.numel() == 1 or (learns != began).any()
    with pytest.raises(ValueError, match="module must be trained by a loss of its logits"):
        mil.BagClassifier(lambda width: torch.nn.Sequential(budgeted(width))).fit(bags, labels)
    with pytest.raises(TypeError, match="module must be a function of D that makes a module, got SetAggregator"):
        mil.BagClassifier(mil.SetAggregator(5)).fit(bags, labels)
    with pytest.raises(ValueError, match="k_max must be None beside a module, got 2"):
        mil.BagClassifier(mil.SetAggregator, k_max=2).fit(bags, labels)
    with pytest.raises(ValueError, match=r"loss must be finite, got nan in epoch .; lower learning_rate, which is 1e"):
        mil.BagClassifier(learning_rate=1e30, epochs=3).fit(bags, labels)
    for name in ("batch_size", "epochs"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            mil.BagClassifier(**{name: 0}).fit([np.ones((1, 2))] * 2, [0, 1])
    with pytest.raises(ValueError, match="finite numbers, got NaN or infinity at bag 1"):
        mil.BagClassifier().fit([np.ones((1, 2)), np.full((1, 2), np.nan)], [0, 1])
    unfitted = mil.BagClassifier()
    with pytest.raises(ValueError, match="y must hold two classes for 3 bags, got 1"):
        unfitted.fit(bags[:3], [0, 0, 0])
    with pytest.raises(NotFittedError):
        unfitted.predict(bags)
    assert not mil.BagClassifier().__sklearn_tags__().classifier_tags.multi_class
    model = mil.BagClassifier(k_max=k_max, epochs=12, learning_rate=3e-3, validation=0.2)
    assert cross_val_score(model, bags, labels, cv=2).mean() > 0.8
    model = clone(model).set_params(epochs=2)
    fitted = clone(model).fit(bags, labels)
    assert len(fitted.validation_losses_) == 2
    probability = fitted.predict_proba([*bags[:3], np.empty((0, 5))])
    np.testing.assert_allclose(probability.sum(1), 1)
    assert fitted.predict([]).tolist() == []
    with torch.no_grad():
        again = clone(model).fit(bags, labels)
    np.testing.assert_array_equal(again.decision_function(bags), fitted.decision_function(bags))
    with pytest.raises(ValueError, match=r"X must hold arrays \(n, 5\) of finite numbers, got \(2, 4\)"):
        fitted.predict([np.ones((2, 4))])
    with pytest.raises(ValueError, match="y must hold two classes for 60 bags, got 1 in 60"):
        clone(model).fit(bags, np.ones(60))


@pytest.mark.parametrize(("name", "values"), [("rng_seed", (0, 1)), ("weight_decay", (0.0, 10.0))])
def test_settings_of_a_classifier_act(labelled, name, values):
    pytest.importorskip("torch")
    fitted = [mil.BagClassifier(epochs=2, **{name: value}).fit(*labelled) for value in values]
    one, other = (model.decision_function(labelled[0]) for model in fitted)
    assert abs(one - other).max() > 1e-3


def test_a_budget_does_not_hide_rare_evidence():
    """One instance in twenty tells; a scorer that learns from the few that were kept may never show it."""
    pytest.importorskip("torch")
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    bags, labels = [rng.normal(size=(n, 5)) for n in rng.integers(1, 41, 400)], np.arange(400) % 2
    for bag, label in zip(bags, labels, strict=True):
        bag[0, 0] += 4 * label
    areas = []
    for rng_seed in range(3):  # one in six learns less, by rounding another on another processor
        fitted = mil.BagClassifier(k_max=4, epochs=20, rng_seed=rng_seed).fit(bags[:200], labels[:200])
        areas.append(roc_auc_score(labels[200:], fitted.decision_function(bags[200:])))
    assert np.median(areas) > 0.9


@pytest.mark.filterwarnings("ignore:Sparse invariant")  # of torchmil's collate
def test_torchmil_trains_and_prunes():
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchmil", reason="torchmil is not installed")
    from torchmil.models import MILModelWrapper

    bag = {"X": torch.randn(9, 4), "Y": torch.tensor(1.0), "y_inst": torch.arange(9),
           "coords": torch.randint(0, 99, (9, 2)), "adj": torch.rand(9, 9).to_sparse()}  # fmt: skip
    batch = mil.SelectCollate(mil.STSelector(3))([bag, bag])
    rows = batch["y_inst"][0]
    assert batch["X"].shape == (2, 3, 4)
    assert torch.equal(batch["X"][1], bag["X"][rows])
    assert torch.equal(batch["coords"][1], bag["coords"][rows])
    assert torch.equal(batch["adj"].to_dense()[0], bag["adj"].to_dense()[rows][:, rows])
    model = mil.TorchMILModel(mil.SetAggregator(4).eval())
    logits, losses = MILModelWrapper(model).compute_loss(batch)
    assert losses["BCEWithLogitsLoss"] == torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["Y"])
    assert model.predict(batch["X"], batch["mask"])[1].shape == (2, 3)
    one_of_nine = torch.eye(9)[8]  # a label of as many classes as the bag has instances
    batch = mil.SelectCollate(mil.STSelector(3), torch.nn.Linear(4, 1))([{**bag, "Y": one_of_nine}])
    assert torch.equal(batch["Y"][0], one_of_nine)
    budgeted = mil.BudgetedMIL(torch.nn.Linear(4, 1), torch.nn.Linear(4, 4), mil.SetAggregator(4), mil.TopK(2))
    attention = mil.TorchMILModel(budgeted.eval()).predict(bag["X"][None])[1]
    assert (attention > 0).sum() == 2
    budgeted = mil.BudgetedMIL(*budgeted.children(), mil.TopK(2), train="alternating")
    with pytest.raises(ValueError, match="module must be trained by a loss of its logits, got a BudgetedMIL that"):
        mil.TorchMILModel(budgeted).compute_loss(bag["Y"][None], bag["X"][None])


# Documentation.


def test_documented_code_runs(tmp_path, monkeypatch):
    """The blocks of docs/mil.md, one after the other, as printed."""
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "mil.md").read_text(), re.S)
    assert len(blocks) >= 4
    scope = {}
    for block in blocks:
        exec(block, scope)


def test_the_edge_of_a_plane_belongs_to_its_last_row():
    """Two rows of two, each read along: the instance farthest out is the first of its row, not a row of its own."""
    plane = np.array([[0, 0], [0, 1], [0.9, 1], [1, 0]])
    assert mil.UniformPosition(2).select(np.zeros(4), positions=plane).rows.tolist() == [1, 2]


def test_there_are_no_more_cells_of_embeddings_than_places_to_fill():
    bits = {k: mil.STSelector(k, rho=0.5).sign_bits for k in (1, 2, 8, 9, 64)}
    assert bits == {1: 0, 2: 0, 8: 2, 9: 2, 64: 5}  # of 1, 1, 4, 5 and 32 places


def test_bags_that_pick_the_epoch_are_not_trained_on():
    torch, seen = pytest.importorskip("torch"), {True: set(), False: set()}

    class Probe(torch.nn.Linear):
        def forward(self, x, mask):
            seen[self.training].update(x[:, 0, 0].tolist())
            return super().forward(x[:, 0])[:, 0]

    bags = [np.full((1, 1), value) for value in range(10)]
    mil.BagClassifier(lambda width: Probe(width, 1), epochs=2, validation=0.3).fit(bags, np.arange(10) % 2)
    assert (len(seen[True]), len(seen[False]), len(seen[True] & seen[False])) == (7, 3, 0)


def test_the_epoch_of_least_validation_loss_is_kept(labelled):
    pytest.importorskip("torch")
    for rng_seed in range(9):  # with some, by rounding others on another processor, the last epoch is the best
        settings = {"learning_rate": 0.1, "validation": 0.3, "rng_seed": rng_seed}
        fitted = mil.BagClassifier(epochs=12, **settings).fit(*labelled)
        best = int(np.argmin(fitted.validation_losses_))
        if best < 11:
            break
    assert best < 11
    early = mil.BagClassifier(epochs=best + 1, **settings).fit(*labelled)
    np.testing.assert_array_equal(fitted.decision_function(labelled[0]), early.decision_function(labelled[0]))
