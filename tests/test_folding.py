"""Pair probabilities to structures: round trips, each base once, and scores worked by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairformer.folding import decode, dot_bracket, f1, f1_of, matches, pairs_of


@st.composite
def matchings(draw, most=24):
    """(pairs, length): random pairs with crossings, each base at most once."""
    length = draw(st.integers(0, most))
    bases = draw(st.permutations(range(length)))
    count = draw(st.integers(0, length // 2))
    pairs = [sorted(bases[2 * k : 2 * k + 2]) for k in range(count)]
    return np.array(sorted(pairs), np.int64).reshape(-1, 2), length


def matrices(most=10):
    """Square matrices of few distinct values, so that many are equal."""
    return st.integers(0, most).flatmap(
        lambda n: st.lists(st.integers(0, 8), min_size=n * n, max_size=n * n).map(
            lambda values: np.array(values, float).reshape(n, n) / 8
        )
    )


def matching_by_hand(probability, threshold, min_loop):
    """The rule in words: again and again the best pair of bases that are free."""
    n = len(probability)
    left, chosen = set(range(n)), []
    while True:
        open_pairs = [
            (-(probability[i, j] + probability[j, i]) / 2, i, j)
            for i, j in itertools.combinations(sorted(left), 2)
            if j - i > min_loop and (probability[i, j] + probability[j, i]) / 2 > threshold
        ]
        if not open_pairs:
            return sorted(chosen)
        _, i, j = min(open_pairs)
        chosen.append((i, j))
        left -= {i, j}


@given(matrices(), st.sampled_from([0.0, 0.25, 0.5]), st.integers(0, 3))
@settings(deadline=None)
def test_matching_takes_the_best_free_pair_again_and_again(probability, threshold, min_loop):
    pairs = decode(probability, threshold, "matching", min_loop)
    assert pairs.dtype == np.int64
    assert pairs.flags.c_contiguous
    assert pairs.shape[1:] == (2,)
    assert list(map(tuple, pairs)) == matching_by_hand(probability, threshold, min_loop)
    assert len(np.unique(pairs)) == pairs.size
    np.testing.assert_array_equal(pairs, decode(probability.T, threshold, "matching", min_loop))


@pytest.mark.parametrize("method", ["nested", "matching", "raw"])
@given(probability=matrices(), min_loop=st.integers(0, 3))
@settings(deadline=None)
def test_an_rna_s_own_threshold_has_the_greatest_expected_f1(method, probability, min_loop):
    """Any pair, drawn or not, is true with its probability."""
    both = (probability + probability.T) / 2
    all_pairs = [both[i, j] for i, j in itertools.combinations(range(len(both)), 2) if j - i > min_loop]
    true = sum(all_pairs)

    def expected_f1(pairs):
        return 2 * sum(both[i, j] for i, j in pairs) / (len(pairs) + true) if true else 0.0

    found = decode(probability, None, method, min_loop).tolist()
    choices = [decode(probability, t, method, min_loop).tolist() for t in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert found in choices
    assert expected_f1(found) == pytest.approx(max(map(expected_f1, choices)))


def nested_sum(pairs, gain):
    """Slow twin: the greatest sum of gains of pairs that neither cross nor share a base."""
    if not pairs:
        return 0.0
    (i, j), rest = pairs[0], list(zip(pairs[1:], gain[1:], strict=True))
    without = nested_sum(pairs[1:], gain[1:])
    fits = [(pair, g) for pair, g in rest if {i, j}.isdisjoint(pair) and (i < pair[0] < j) == (i < pair[1] < j)]
    return max(without, gain[0] + nested_sum([pair for pair, _ in fits], [g for _, g in fits]))


def gain_of(pairs, both, threshold):
    return [both[pair] - threshold for pair in pairs]


@given(matrices(7), st.sampled_from([0.0, 0.25, 0.5]), st.integers(0, 3))
@settings(deadline=None)
def test_nested_pairs_have_the_greatest_sum(probability, threshold, min_loop):
    """One that crosses may be there too, if it is sure."""
    both = (probability + probability.T) / 2
    pairs = [tuple(pair) for pair in np.argwhere(np.triu(both > threshold, 1 + min_loop)).tolist()]
    found = [tuple(pair) for pair in decode(probability, threshold, min_loop=min_loop).tolist()]
    assert found == sorted(set(found) & set(pairs))
    assert len(np.unique(found)) == 2 * len(found)
    greatest = nested_sum(pairs, gain_of(pairs, both, threshold))
    assert nested_sum(found, gain_of(found, both, threshold)) == pytest.approx(greatest)
    unsure = [pair for pair in found if both[pair] <= (1 + threshold) / 2]
    assert not any(one[0] < other[0] < one[1] < other[1] for one, other in itertools.permutations(unsure, 2))


def test_nested_pairs_of_many_hairpins():
    """Far more bases than the longest pair spans: the best of each part."""
    rng = np.random.default_rng(0)
    both, greatest = np.zeros((120, 120)), 0.0
    for begin in range(0, 120, 8):
        part = np.triu(rng.random((8, 8)) * (rng.random((8, 8)) < 0.4), 1)
        both[begin : begin + 8, begin : begin + 8] = part + part.T
        pairs = [tuple(pair) for pair in np.argwhere(part > 0.25).tolist()]
        greatest += nested_sum(pairs, gain_of(pairs, part, 0.25))
    found = [tuple(pair) for pair in decode(both, 0.25).tolist()]
    assert len(found) > 15
    parts = [[pair for pair in found if pair[0] // 8 == part] for part in range(15)]
    assert sum(nested_sum(part, gain_of(part, both, 0.25)) for part in parts) == pytest.approx(greatest)


def test_what_crosses_has_to_be_sure():
    probability = np.zeros((20, 20))
    for i, j, p in ((0, 12, 0.6), (1, 11, 0.6), (5, 17, 0.7), (6, 16, 0.74), (7, 15, 0.76)):
        probability[i, j] = probability[j, i] = p
    assert decode(probability, 0.5).tolist() == [[5, 17], [6, 16], [7, 15]]
    for i, j in ((2, 10), (3, 9)):
        probability[i, j] = probability[j, i] = 0.95
    assert decode(probability, 0.5).tolist() == [[0, 12], [1, 11], [2, 10], [3, 9], [7, 15]]
    greedy = [[0, 12], [1, 11], [2, 10], [3, 9], [5, 17], [6, 16], [7, 15]]
    assert decode(probability, 0.5, "matching").tolist() == greedy


@given(matrices(), st.integers(0, 3))
@settings(deadline=None)
def test_raw_is_the_threshold_on_the_symmetric_matrix(probability, min_loop):
    pairs = decode(probability, method="raw", min_loop=min_loop)
    both = (probability + probability.T) / 2
    assert pairs.flags.c_contiguous
    assert pairs.tolist() == [[i, j] for i, j in np.ndindex(both.shape) if j - i > min_loop and both[i, j] > 0.5]


def test_a_base_keeps_its_best_partner():
    probability = np.zeros((6, 6))
    probability[0, 5], probability[1, 5], probability[1, 4] = 1.0, 1.0, 1.0
    probability[5, 0], probability[5, 1], probability[4, 1] = 0.8, 0.9, 0.2
    assert decode(probability, method="matching").tolist() == [[1, 5]]
    assert decode(probability).tolist() == [[0, 5], [1, 4]]  # together more above 0.5 than (1, 5) is
    assert decode(probability, method="raw").tolist() == [[0, 5], [1, 4], [1, 5]]
    assert decode(probability, threshold=0.95, method="raw").tolist() == []


@pytest.mark.parametrize(("change", "message"), [
    ({"probability": np.zeros((2, 3))}, r"probability must have shape \(L, L\), got \(2, 3\)"),
    ({"probability": np.full((2, 2), np.nan)}, r"probability must be in \[0, 1\], got"),
    ({"probability": np.full((2, 2), -1e-4)}, r"probability must be in \[0, 1\], got"),
    ({"probability": np.full((2, 2), 1.5)}, r"probability must be in \[0, 1\], got"),
    ({"method": "best"}, "method must be one of nested, matching, raw, got 'best'"),
    ({"min_loop": -1}, "min_loop must be 0 or more, got -1"),
])  # fmt: skip
def test_wrong_matrices(change, message):
    with pytest.raises(ValueError, match=message):
        decode(**{"probability": np.zeros((2, 2))} | change)


@given(matchings(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_structures_survive_the_round_trip_in_any_order(case, random):
    pairs, length = case
    text = dot_bracket(pairs, length)
    assert len(text) == length
    np.testing.assert_array_equal(pairs_of(text), pairs)
    shuffled = [random.sample(pair, 2) for pair in random.sample(pairs.tolist(), len(pairs))]
    assert dot_bracket(shuffled, length) == text


@given(matchings())
@settings(deadline=None)
def test_pairs_of_one_kind_of_bracket_do_not_cross(case):
    pairs, length = case
    text = dot_bracket(pairs, length)
    for (i, j), (k, m) in itertools.combinations(pairs.tolist(), 2):
        assert not (i < k < j < m and text[i] == text[k])


@pytest.mark.parametrize(("text", "pairs"), [
    ("", []),
    ("...", []),
    ("()", [[0, 1]]),
    ("((..))().", [[0, 5], [1, 4], [6, 7]]),
    ("((..[[..))..]]", [[0, 9], [1, 8], [4, 13], [5, 12]]),
    ("([{<A)]}>a", [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]),
])  # fmt: skip
def test_structures_by_hand(text, pairs):
    assert pairs_of(text).tolist() == pairs
    assert dot_bracket(pairs, len(text)) == text


@pytest.mark.parametrize(("call", "message"), [
    (lambda: pairs_of("(.))"), r"structure must open every bracket with '\(', got '\)' at position 3"),
    (lambda: pairs_of("..[(.)"), r"structure must close every bracket, got '\[' at position 2"),
    (lambda: pairs_of("(.["), r"structure must close every bracket, got '\(' at position 0"),
    (lambda: pairs_of("(.a)"), "structure must open every bracket with 'A', got 'a' at position 2"),
    (lambda: pairs_of(".-."), "structure must hold dots and brackets, got '-' at position 1"),
    (lambda: dot_bracket([(0, 5)], 5), "pairs must hold positions from 0 to 4, got"),
    (lambda: dot_bracket([(0, 5), (5, 7)], 8), r"pairs must have each base once, got \[5\] more often"),
    (lambda: dot_bracket([(2, 2)], 5), r"pairs must have each base once, got \[2\] more often"),
    (lambda: dot_bracket([(i, 31 + i) for i in range(31)], 62), "pairs must cross so that 30 kinds of brackets do"),
])  # fmt: skip
def test_wrong_structures(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("predicted", "true", "strict", "slipping"), [
    ([], [], 1.0, 1.0),
    ([(0, 9)], [], 0.0, 0.0),
    ([], [(0, 9)], 0.0, 0.0),
    ([(9, 0), (1, 8)], [(1, 8), (0, 9)], 1.0, 1.0),
    ([(0, 9), (1, 8)], [(0, 9), (2, 7)], 0.5, 0.5),  # (1, 8) slips on both sides
    ([(0, 9), (1, 7)], [(0, 9), (1, 8)], 0.5, 1.0),
    ([(0, 9), (0, 8), (5, 6)], [(0, 9)], 0.5, 0.8),  # two of three predicted, one of one true
    ([(0, 7)], [(0, 9)], 0.0, 0.0),
    ([(2, 9)], [(1, 9)], 0.0, 1.0),
    ([(1, 9)], [(0, 8)], 0.0, 0.0),  # both bases slip
])  # fmt: skip
def test_scores_by_hand(predicted, true, strict, slipping):
    assert f1(predicted, true) == pytest.approx(strict)
    assert f1(predicted, true, slip=1) == pytest.approx(slipping)


@given(matchings(), matchings())
@settings(deadline=None)
def test_scores_are_symmetric_and_grow_with_the_slip(one, other):
    one, other = one[0], other[0]
    scores = [f1(one, other, slip) for slip in range(3)]
    assert scores == sorted(scores)
    assert 0 <= scores[0] <= scores[2] <= 1
    assert f1(other[::-1], one, 1) == pytest.approx(scores[1])
    assert f1(one, one) == 1


def test_a_slip_is_not_negative():
    with pytest.raises(ValueError, match="slip must be 0 or more, got -1"):
        f1([], [], -1)


def test_figures_by_hand():
    predicted, true = [[0, 9], [1, 8], [2, 5]], [[0, 9], [1, 7]]
    assert matches(predicted, true) == (1, 3, 1, 2)
    assert matches(predicted, true, slip=1) == (2, 3, 2, 2)
    counts = np.array([matches(predicted, true), matches([], []), matches([], true), matches(true, true)])
    np.testing.assert_allclose(f1_of(counts), [f1(predicted, true), 1.0, 0.0, 1.0])
    np.testing.assert_allclose(f1_of(counts.sum(0, keepdims=True)), 2 * 3 / (5 + 6))
