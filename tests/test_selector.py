"""STSelector: hand-worked bags, its properties, and the C++ code against its NumPy twin."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairformer import STSelector, _core, reference, testing
from pairformer.config import SelectorConfig

DIMS_2020 = [32, 43, 47, 10, 59, 23, 7, 0, 31, 1, 5, 54, 20, 21, 40, 3, 51, 18, 49, 16, 46, 14, 24, 48]
DIMS_2020 += [22, 55, 36, 39, 12, 62, 63, 52]


def one_bag(logit, position=None, keys=None):
    """(cheap_logit, keys, position, offsets) of a single bag."""
    n = len(logit)
    return (
        np.array(logit, np.float32),
        np.zeros(n, np.uint32) if keys is None else np.array(keys, np.uint32),
        np.zeros(n, np.float32) if position is None else np.array(position, np.float32),
        np.array([0, n], np.int64),
    )


def picked(selection):
    return dict(zip(selection.rows.tolist(), selection.reason.tolist(), strict=True))


def assert_same_as_twin(config: SelectorConfig, bags, threads: int = 0) -> None:
    ours = _core.select(*bags, config, threads)
    twins = reference.select(*bags, config)
    for mine, theirs in zip(ours, twins, strict=True):
        np.testing.assert_array_equal(mine, theirs, strict=True)


def coarse_bags(rng, sizes, width=8, levels=4):
    """Many ties everywhere: few logits, positions and keys."""
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    n = int(offsets[-1])
    logit = (rng.integers(-levels, levels, n) / 4).astype(np.float32)
    position = (rng.integers(0, 33, n) / 32).astype(np.float32)
    embedding = rng.integers(-1, 2, (n, width)).astype(np.float32)
    return logit, embedding, position, offsets


# Hand-worked bags.


def test_top_k_ties_go_to_smaller_position_then_row():
    bags = one_bag([1, 2, 1, 1, 1], [0.5, 0.9, 0.1, 0.1, 0.0])
    assert picked(STSelector(k_max=3, variant="S0").select(*bags)) == {1: 0, 4: 0, 2: 0}
    without_position = (bags[0], None, None, bags[3])
    assert picked(STSelector(k_max=3, variant="S0").select(*without_position)) == {0: 0, 1: 0, 2: 0}


def test_negative_zero_ties_with_zero():
    bags = one_bag([0.0, -0.0, 0.0], [0.2, 0.1, -0.0])
    assert picked(STSelector(k_max=1, variant="S0").select(*bags)) == {2: 0}
    assert picked(STSelector(k_max=2, variant="S0").select(*bags)) == {1: 0, 2: 0}


def test_every_bin_gets_its_best():
    """K1 = 2 takes rows 0 and 1; bins 0, 1 and 3 are left with one place each."""
    bags = one_bag([9, 8, 7, 1, 2, 5, 4], [0, 0.1, 0.2, 0.3, 0.4, 0.8, 0.9])
    selector = STSelector(k_max=5, rho=0.4, variant="S1", n_bins=4)
    assert picked(selector.select(*bags)) == {0: 0, 1: 0, 2: 1, 4: 1, 5: 1}


def test_fewer_places_than_bins_go_to_the_heaviest():
    bags = one_bag([9, 1, 5, 3, 1], [0, 0, 0.3, 0.6, 0.9])
    selector = STSelector(k_max=3, rho=0.34, variant="S1", n_bins=4, top_t=1)
    assert picked(selector.select(*bags)) == {0: 0, 2: 1, 3: 1}
    level = one_bag([9, 1, 1, 1, 1], [0, 0.9, 0.6, 0.3, 0])
    assert picked(selector.select(*level)) == {0: 0, 4: 1, 3: 1}


def test_duplicates_leave_their_bin_and_come_back_as_fill():
    """One bin, cap 2: of key 7 only the two best survive, so the last place is filled by logit."""
    bags = one_bag([9, 8, 7, 6, 5, 4], keys=[7, 7, 7, 7, 7, 3])
    selector = STSelector(k_max=5, rho=0.2, n_bins=1)
    assert picked(selector.select(*bags)) == {0: 0, 1: 1, 2: 1, 5: 1, 3: 2}
    assert picked(STSelector(k_max=4, rho=0.25, n_bins=1).select(*bags)) == {0: 0, 1: 1, 2: 1, 5: 1}
    assert picked(STSelector(k_max=4, rho=0.25, n_bins=1, variant="S1").select(*bags)) == {
        0: 0,
        1: 1,
        2: 1,
        3: 1,
    }


def test_bin_size_bounds_a_bin():
    bags = one_bag([9, 8, 7, 6, 5, 4], [0, 0, 0, 0, 0, 0.9])
    selector = STSelector(k_max=5, rho=0.2, variant="S1", n_bins=2, bin_size=2)
    assert picked(selector.select(*bags)) == {0: 0, 1: 1, 2: 1, 5: 1, 3: 2}


def test_quotas_by_largest_remainder():
    """Weights 4, 2, 1 after one place each and 4 more: shares 2.29, 1.14, 0.57 -> 2, 1, 1."""
    weights = np.log([4.0, 2.0, 1.0])
    logit = np.concatenate([[50.0], *([w] + [-60.0] * 9 for w in weights)])
    position = np.concatenate([[0.0], np.repeat([0.1, 0.5, 0.9], 10)])
    selector = STSelector(k_max=8, rho=0.125, variant="S1", n_bins=3, top_t=1, z_normalize=False)
    selection = selector.select(*one_bag(logit, position))
    assert np.bincount((selection.rows[1:] - 1) // 10).tolist() == [3, 2, 2]


def test_equal_remainders_go_to_the_heavier_bin():
    """Weights 1 and 3 after one place each and 2 more: shares 0.5 and 1.5."""
    logit = np.concatenate([[50.0], [0.0] + [-60.0] * 5, [0.0] * 3 + [-60.0] * 5])
    position = np.concatenate([[0.0], np.repeat([0.1, 0.9], [6, 8])])
    selector = STSelector(k_max=5, rho=0.2, variant="S1", n_bins=2, top_t=3, z_normalize=False, exponent_clip=40)
    assert (selector.select(*one_bag(logit, position)).rows[1:] > 6).sum() == 3


def test_equal_bins_get_equal_quotas():
    """The published loop shrinks what is left inside a pass: bins 0-5 got 11 places, the last ones 5."""
    position = np.arange(32 * 20) % 32 / 32 + 1 / 64
    selector = STSelector(k_max=256, rho=0, variant="S1")
    selection = selector.select(*one_bag(np.zeros(640), position))
    assert np.bincount(selection.rows % 32).tolist() == [8] * 32


def test_positions_outside_the_unit_interval_join_the_end_bins():
    bags = one_bag([5, 1, 2, 3, 4], [0.5, -0.5, 0.1, 1.5, 1.0])
    selector = STSelector(k_max=3, rho=0.34, variant="S1", n_bins=2)
    assert picked(selector.select(*bags)) == {0: 0, 2: 1, 4: 1}


def test_bins_are_found_in_double_precision():
    """float32 0.7 is under 0.7 and in bin 6 of 10; a product rounded to float32 would be 7."""
    bags = one_bag([9, 5, 4, 1], [0.0, 0.7, 0.75, 0.65])
    assert picked(STSelector(k_max=3, rho=0.34, variant="S1", n_bins=10).select(*bags)) == {0: 0, 1: 1, 2: 1}


def test_scores_under_the_clip_weigh_something():
    bags = one_bag([50] + [-1000] * 8, [0] + [0.1] * 4 + [0.9] * 4)
    selector = STSelector(k_max=5, rho=0.2, variant="S1", n_bins=2, z_normalize=False)
    assert picked(selector.select(*bags)) == {0: 0, 1: 1, 2: 1, 5: 1, 6: 1}


def test_hash_dimensions_of_the_published_seed():
    np.testing.assert_array_equal(_core.simhash_dims(2020, 64), DIMS_2020)
    np.testing.assert_array_equal(reference.simhash_dims(2020, 64), DIMS_2020)


def test_key_bit_is_strictly_positive():
    embedding = np.zeros((4, 64), np.float32)
    embedding[0, DIMS_2020[0]] = 1
    embedding[1, DIMS_2020[31]] = np.finfo(np.float32).tiny
    embedding[2, DIMS_2020[3]] = -1
    embedding[3, :] = np.nan
    np.testing.assert_array_equal(STSelector().keys(embedding), np.array([1, 2**31, 0, 0], np.uint32))


# Against the twin.

ODD_CONFIGS = [
    SelectorConfig(),
    SelectorConfig(variant="S0"),
    SelectorConfig(variant="S1"),
    SelectorConfig(k_max=1),
    SelectorConfig(k_max=1, rho=0),
    SelectorConfig(k_max=7, rho=1),
    SelectorConfig(k_max=13, rho=0.29, n_bins=3, bin_size=4, hash_bits=3, key_cap=1),
    SelectorConfig(k_max=40, rho=0, n_bins=5, top_t=1, tau_w=0.25),
    SelectorConfig(k_max=100, rho=0.1, score="sigmoid", exponent_clip=1.5),
    SelectorConfig(k_max=100, rho=0.29, z_normalize=False, tau_w=3.0, n_bins=1),  # 28.999999999999996 places
    SelectorConfig(k_max=200, n_bins=(7, 31, 64), bin_size=(9, 5, 3), hash_bits=(2, 3, 32), rng_seed=7),
    SelectorConfig(k_max=300, rho=0.3, pool_factor=2, pool_min=16, pool_max=700, pool_steps=(64, 512)),
    SelectorConfig(k_max=256, rho=0.2, n_bins=(8, 16, 24), hash_bits=4),
    SelectorConfig(k_max=600),
]
SIZES = [0, 1, 2, 63, 64, 65, 0, 97, 131, 257, 601, 1380]


@pytest.mark.parametrize("config", ODD_CONFIGS, ids=lambda c: f"{c.variant}-{c.k_max}-{c.rho}")
@pytest.mark.parametrize("spread", [1.0, 0.3])
def test_twin_on_random_bags(config, spread):
    bags = testing.bags_of_sizes(np.random.default_rng(1), np.array(SIZES), dim=24, spread=spread)
    assert_same_as_twin(config, bags)


@pytest.mark.parametrize("config", ODD_CONFIGS, ids=lambda c: f"{c.variant}-{c.k_max}-{c.rho}")
def test_twin_on_coarse_bags(config):
    rng = np.random.default_rng(2)
    for levels in (1, 2, 40):
        assert_same_as_twin(config, coarse_bags(rng, SIZES, levels=levels))


def test_twin_on_extreme_logits():
    rng = np.random.default_rng(3)
    logit, *others = coarse_bags(rng, [300, 300, 300])
    logit[:300] = -8
    logit[17] = np.finfo(np.float32).max
    logit[300:600] *= np.finfo(np.float32).smallest_subnormal * 8
    logit[600:] = np.sign(rng.standard_normal(300)) * np.finfo(np.float32).max
    for variant in ("S0", "S1", "S2"):
        assert_same_as_twin(SelectorConfig(k_max=50, variant=variant, rho=0.3), (logit, *others))


@st.composite
def problems(draw):
    """Odd configurations with bags from all different to all equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(0, 700), max_size=4))
    width = draw(st.integers(1, 80))
    config = SelectorConfig(
        k_max=draw(st.integers(1, 600)),
        rho=draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])),
        variant=draw(st.sampled_from(["S0", "S1", "S2"])),
        n_bins=draw(st.sampled_from([1, 2, 32, 33, (32, 32, 64)])),
        bin_size=draw(st.sampled_from([1, 3, (32, 64, 64)])),
        key_cap=draw(st.integers(1, 3)),
        top_t=draw(st.sampled_from([1, 8])),
    )
    if draw(st.booleans()):
        return config, coarse_bags(rng, sizes, width, levels=draw(st.sampled_from([1, 3, 100])))
    spread = draw(st.sampled_from([0.1, 1.0]))
    return config, tuple(testing.bags_of_sizes(rng, np.array(sizes, np.int64), width, spread))


@settings(deadline=None, max_examples=100)
@given(problems())
def test_twin_on_any_problem(problem):
    config, bags = problem
    assert_same_as_twin(config, bags)


# Properties.


@settings(deadline=None, max_examples=60)
@given(problems())
def test_budget_and_layout(problem):
    config, bags = problem
    rows, ends, reason = _core.select(*bags, config)
    sizes = np.diff(bags[3])
    np.testing.assert_array_equal(np.diff(ends), np.minimum(sizes, config.k_max))
    assert (reason <= 2).all()
    for b, (first, last) in enumerate(pairwise(bags[3])):
        mine = slice(ends[b], ends[b + 1])
        assert (np.diff(rows[mine]) > 0).all()
        assert ((rows[mine] >= first) & (rows[mine] < last)).all()
        if sizes[b] <= config.k_max:
            assert (reason[mine] == 0).all()
        elif config.variant != "S0":
            assert (reason[mine] == 0).sum() == int(config.rho * config.k_max)


@settings(deadline=None, max_examples=60)
@given(problems(), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(problem, random):
    """Where (logit, position) are distinct."""
    config, (logit, embedding, position, offsets) = problem
    rng = np.random.default_rng(random.getrandbits(32))
    position = rng.permutation(len(logit)).astype(np.float32) / np.float32(max(1, len(logit)))
    order = np.concatenate(
        [first + rng.permutation(last - first) for first, last in pairwise(offsets)] or [np.zeros(0)]
    ).astype(np.int64)
    rows, _, reason = _core.select(logit, embedding, position, offsets, config)
    moved, _, moved_reason = _core.select(logit[order], embedding[order], position[order], offsets, config)
    back = np.argsort(order[moved])
    np.testing.assert_array_equal(order[moved][back], rows)
    np.testing.assert_array_equal(moved_reason[back], reason)


@settings(deadline=None, max_examples=30)
@given(problems())
def test_bags_do_not_see_each_other(problem):
    config, (logit, embedding, position, offsets) = problem
    rows, ends, reason = _core.select(logit, embedding, position, offsets, config)
    for b, (first, last) in enumerate(pairwise(offsets)):
        bag = slice(first, last)
        alone = _core.select(logit[bag], embedding[bag], position[bag], np.array([0, last - first]), config)
        np.testing.assert_array_equal(alone[0] + first, rows[ends[b] : ends[b + 1]])
        np.testing.assert_array_equal(alone[2], reason[ends[b] : ends[b + 1]])


@settings(deadline=None, max_examples=30)
@given(problems())
def test_keys_are_as_good_as_embeddings(problem):
    config, (logit, embedding, position, offsets) = problem
    keys = _core.simhash_keys(embedding, config.rng_seed)
    np.testing.assert_array_equal(keys, reference.simhash_keys(embedding, config.rng_seed), strict=True)
    for one, other in zip(
        _core.select(logit, embedding, position, offsets, config),
        _core.select(logit, keys, position, offsets, config),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, max_examples=60)
@given(problems())
def test_no_key_exceeds_its_cap_among_the_coverage_of_a_bin(problem):
    config, bags = problem
    config = dataclasses.replace(config, variant="S2", n_bins=8, hash_bits=24)
    rows, ends, reason = _core.select(*bags, config)
    keys = reference.simhash_keys(bags[1], config.rng_seed) & np.uint32(2**24 - 1)
    bins = np.clip(np.floor(8 * bags[2].astype(np.float64)), 0, 7).astype(np.int64)
    for first, last in pairwise(ends):
        coverage = rows[first:last][reason[first:last] == 1]
        _, counts = np.unique(np.stack([bins[coverage], keys[coverage]]), axis=1, return_counts=True)
        assert counts.max(initial=0) <= config.key_cap


@pytest.mark.parametrize("width", [1, 20, 64])
def test_centred_keys_are_those_of_bags_less_their_means(width):
    rng = np.random.default_rng(6)
    embedding, offsets = rng.gamma(1.0, size=(300, width)).astype(np.float32), np.array([0, 0, 1, 120, 300])
    centred = np.concatenate([bag - bag.mean(0, dtype=np.float64).astype(np.float32)
                              for bag in np.split(embedding, offsets[2:-1])])  # fmt: skip
    keys = STSelector(rng_seed=7).keys(embedding, offsets=offsets)
    np.testing.assert_array_equal(keys, reference.simhash_keys(centred, 7), strict=True)
    with pytest.raises(ValueError, match="offsets must end at 300"):
        STSelector().keys(embedding, offsets=offsets[:-1])
    large = np.array([[1e8], [1], [-1e8], [0.25]], np.float32)  # their sum is 1.25 in double precision only
    assert STSelector().keys(large, offsets=np.array([0, 4])).tolist() == [1, 1, 0, 0]


def test_threads_do_not_matter():
    bags = testing.heavy_tailed_bags(np.random.default_rng(4), 60)
    assert bags.offsets[-1] > 2**14
    config = SelectorConfig(n_bins=20)
    expected = _core.select(*bags, config, 1)
    embedding, offsets = bags.cheap_embedding, bags.offsets
    keys, centred = _core.simhash_keys(embedding, 2020, 1), _core.simhash_keys(embedding, 2020, 1, offsets)
    for threads in (0, 2, 5):
        for one, other in zip(_core.select(*bags, config, threads), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(_core.simhash_keys(embedding, 2020, threads), keys)
        np.testing.assert_array_equal(_core.simhash_keys(embedding, 2020, threads, offsets), centred)


@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 3, 0]])
def test_empty_batches_and_bags(sizes):
    bags = testing.bags_of_sizes(np.random.default_rng(5), np.array(sizes, np.int64))
    selection = STSelector(k_max=2).select(*bags)
    np.testing.assert_array_equal(np.diff(selection.offsets), np.minimum(sizes, 2))
    indices, mask = selection.padded(2)
    assert indices.shape == mask.shape == (len(sizes), 2)


# Padding.


def test_padded():
    bags = testing.bags_of_sizes(np.random.default_rng(6), np.array([2, 0, 5]))
    selection = STSelector(k_max=3, variant="S0").select(*bags)
    indices, mask = selection.padded(4)
    assert indices.dtype == np.int64
    assert mask.dtype == np.bool_
    assert mask.tolist() == [[True, True, False, False], [False] * 4, [True, True, True, False]]
    np.testing.assert_array_equal(indices[mask], selection.rows)
    assert (indices[~mask] == -1).all()
    with pytest.raises(ValueError, match=r"k_max must be at least 3 \(the largest bag\), got 2"):
        selection.padded(2)


# Errors.


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "nan"), (-np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
@pytest.mark.parametrize("k_max", [5, 500])
def test_not_finite_is_refused_by_name(bad, word, k_max):
    bags = list(one_bag(np.arange(30), np.linspace(0, 1, 30)))
    selector = STSelector(k_max=k_max)
    bags[2][21] = bad
    with pytest.raises(ValueError, match=f"position must be finite, got {word} at row 21; "):
        selector.select(*bags)
    bags[0][17] = bags[0][19] = bad
    with pytest.raises(ValueError, match=f"cheap_logit must be finite, got {word} at row 17; "):
        selector.select(*bags)


def test_first_bad_row_is_named_whatever_the_threads():
    bags = testing.bags_of_sizes(np.random.default_rng(7), np.full(40, 500), dim=1)
    bags.cheap_logit[[5001, 12000, 19999]] = np.nan
    for threads in (1, 3):
        with pytest.raises(ValueError, match="at row 5001;"):
            STSelector(variant="S1").select(*bags, threads=threads)


FAULTS = {
    "cheap_logit must be float32, got float64": (TypeError, 0, np.zeros(9)),
    "cheap_logit must have shape (N,), got (3, 3)": (ValueError, 0, np.zeros((3, 3), np.float32)),
    "cheap_logit must be C-contiguous": (ValueError, 0, np.zeros(18, np.float32)[::2]),
    "cheap_logit must be C-contiguous and aligned": (ValueError, 0, np.frombuffer(bytes(37), "<f4", offset=1)),
    "cheap_logit must be a NumPy array or a CPU tensor, got list": (TypeError, 0, [0.0] * 9),
    "cheap_embedding must be (N, D) embeddings or (N,) keys for variant S2, got None": (ValueError, 1, None),
    "cheap_embedding as keys (N,) must be uint32, got float32": (TypeError, 1, np.zeros(9, np.float32)),
    "cheap_embedding as keys (N,) must be uint32, got int32": (TypeError, 1, np.zeros(9, np.int32)),
    "cheap_embedding must be float32, got float16": (TypeError, 1, np.zeros((9, 4), np.float16)),
    "cheap_embedding must have 9 rows (as cheap_logit), got 8": (ValueError, 1, np.zeros((8, 4), np.float32)),
    "cheap_embedding must have 9 rows (as cheap_logit), got 7": (ValueError, 1, np.zeros(7, np.uint32)),
    "position must be an (N,) array for variants S1 and S2, got None": (ValueError, 2, None),
    "position must be float32, got int64": (TypeError, 2, np.zeros(9, np.int64)),
    "position must have 9 rows (as cheap_logit), got 10": (ValueError, 2, np.zeros(10, np.float32)),
    "offsets must be int64, got int32": (TypeError, 3, np.array([0, 9], np.int32)),
    "offsets must start at 0, got 1": (ValueError, 3, np.array([1, 9])),
    "offsets must start at 0, got no entry": (ValueError, 3, np.zeros(0, np.int64)),
    "offsets must not fall, got 4 after 6 at entry 2": (ValueError, 3, np.array([0, 6, 4, 9])),
    "offsets must end at 9 (rows of cheap_logit), got 8": (ValueError, 3, np.array([0, 8])),
    "offsets must have shape (B + 1,), got ()": (ValueError, 3, np.array(0)),
}


@pytest.mark.parametrize("message", FAULTS)
def test_wrong_arrays_are_refused(message):
    error, place, value = FAULTS[message]
    bags = list(one_bag(np.arange(9)))
    bags[place] = value
    with pytest.raises(error) as caught:
        STSelector(k_max=4).select(*bags)
    assert str(caught.value).startswith(message)


BAD_FIELDS = {
    "k_max must be in [1, 2147483647], got 0": {"k_max": 0},
    "k_max must be an int, got 2.5": {"k_max": 2.5},
    "rho must be in [0, 1], got 1.5": {"rho": 1.5},
    "rho must be a finite number, got 'a'": {"rho": "a"},
    "variant must be one of S0, S1, S2, got 'S3'": {"variant": "S3"},
    "score must be one of logit, sigmoid, got 'rank'": {"score": "rank"},
    "hash_bits must be in [1, 32], got 33": {"hash_bits": 33},
    "n_bins must have 3 values, got (1, 2)": {"n_bins": (1, 2)},
    "tau_w must be above 0, got 0": {"tau_w": 0},
    "exponent_clip must be in (0, 300], got 301": {"exponent_clip": 301},
    "pool_max must be in [1024, 2147483647], got 9": {"pool_max": 9},
    "pool_steps must not fall, got (9, 8)": {"pool_steps": (9, 8)},
    "z_eps must be above 0, got": {"z_eps": Fraction(1, 10**400)},  # 0 as a float: it divided 0
    "tau_w must be within 3.4e+38, as float32 is, got": {"tau_w": 10**400},
    "z_normalize must be True or False, got 'false'": {"z_normalize": "false"},
}


@pytest.mark.parametrize("message", BAD_FIELDS)
def test_wrong_fields_are_refused(message):
    with pytest.raises((ValueError, TypeError)) as caught:
        STSelector(**BAD_FIELDS[message])
    assert str(caught.value).startswith(message)


def test_masked_arrays_are_refused():
    logit = np.ma.masked_array(np.zeros(4, np.float32), mask=[1, 1, 0, 0])
    with pytest.raises(TypeError, match="cheap_logit must be a plain array, got a masked one"):
        STSelector(2, variant="S0").select(logit, None, None, np.array([0, 4]))


# PyTorch.


def test_tensors_in_tensors_out():
    torch = pytest.importorskip("torch")
    arrays = tuple(testing.bags_of_sizes(np.random.default_rng(8), np.array([300, 0, 40]), spread=0.3))
    logit, embedding, position, offsets = (torch.from_numpy(array) for array in arrays)
    selector = STSelector(k_max=32)
    expected = selector.select(*arrays)
    keys = selector.keys(embedding)
    assert keys.dtype == torch.uint32
    weights = logit.clone().requires_grad_()
    for signal in (embedding, keys, keys.view(torch.int32)):
        selection = selector.select(weights, signal, position, offsets)
        for name in ("rows", "offsets", "reason"):
            tensor = getattr(selection, name)
            assert isinstance(tensor, torch.Tensor)
            np.testing.assert_array_equal(tensor.numpy(), getattr(expected, name), strict=True)
    indices, mask = selection.padded(32)
    assert isinstance(indices, torch.Tensor)
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(indices.numpy(), expected.padded(32)[0])


def test_tensors_that_numpy_cannot_share_are_refused():
    torch = pytest.importorskip("torch")
    logit, keys, position, offsets = (torch.from_numpy(array) for array in one_bag(np.arange(9)))
    selector = STSelector(k_max=4)
    with pytest.raises(TypeError, match=r"cheap_logit must have a dtype that NumPy has, got torch\.bfloat16"):
        selector.select(logit.bfloat16(), keys, position, offsets)
    with pytest.raises(TypeError, match="cheap_logit must be on the CPU, got meta; pass cheap_logit"):
        selector.select(logit.to("meta"), keys, position, offsets)


@pytest.mark.parametrize("variant", ["S0", "S1", "S2"])
@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_kept_rows_come_first_as_in_the_twin(variant, rho, share):
    rng = np.random.default_rng(3)
    pools = {"pool_factor": 1, "pool_min": 1, "pool_steps": (20, 36)}  # by the places that kept rows leave
    config = SelectorConfig(k_max=40, rho=rho, variant=variant, n_bins=(4, 8, 16), **pools)
    for bags in (
        coarse_bags(rng, [0, 1, 39, 40, 41, 300, 900]),
        testing.bags_of_sizes(rng, np.array([50, 700, 2000]), dim=16),
    ):
        bags = tuple(bags)
        keep = rng.integers(1, 4, len(bags[0])).astype(np.uint8) * (rng.random(len(bags[0])) < share)
        ours = _core.select(*bags, config, 1, keep)
        for mine, theirs in zip(ours, reference.select(*bags, config, keep), strict=True):
            np.testing.assert_array_equal(mine, theirs, strict=True)
        rows, offsets, _ = ours
        for bag, (first, last) in enumerate(pairwise(bags[3])):
            mine = set(rows[offsets[bag] : offsets[bag + 1]])
            marked = {int(first) + i for i in np.flatnonzero(keep[first:last])}
            assert len(mine) == min(40, last - first)
            assert len(mine & marked) == min(40, len(marked))
            highest = {row for row in marked if keep[row] == 3}
            assert len(mine & highest) == min(40, len(highest))


def test_a_bag_without_places_for_top_rows_forgets_the_bag_before():
    logit, keys, position, _ = one_bag([1, 2, 3, 4, 5, 9, 9, 8, 7, 6], np.linspace(0, 1, 10))
    keep = np.array([0, 0, 0, 0, 0, 1, 1, 0, 0, 0], np.uint8)
    selector = STSelector(k_max=4, rho=0.4, variant="S1", n_bins=2)
    selection = selector.select(logit, keys, position, np.array([0, 5, 10]), threads=1, keep=keep)
    assert picked(selection) == {1: 1, 2: 1, 3: 1, 4: 0, 5: 3, 6: 3, 7: 1, 8: 1}


def test_keep_must_be_a_mask_of_all_rows():
    bags = one_bag([3, 2, 1])
    selector = STSelector(k_max=1, variant="S0")
    assert picked(selector.select(*bags, keep=np.array([False, False, True]))) == {2: 3}
    with pytest.raises(ValueError, match="keep must have 3 rows"):
        selector.select(*bags, keep=np.array([True]))
    with pytest.raises(TypeError, match="keep must be uint8, got int64"):
        selector.select(*bags, keep=np.zeros(3, np.int64))
