"""Site tables: seed types against hand-worked windows and a slow twin, numbering, drawings."""

import itertools

import numpy as np
import pytest

import pairformer
from pairformer import testing
from pairformer.config import ModelConfig
from pairformer.sites import SEED_TYPES, draw, seed_matches, seed_windows, select_sites, site_table

LET7 = "UGAGGUAGUAGGUUGUAUAGUU"
WATSON_CRICK = {"AU", "UA", "CG", "GC"}
# what each type's matched letters are, as the reverse complement of miRNA letters [a:b] and an A or not
MATCHED = {"8mer": (1, 8, "A"), "7mer-m8": (1, 8, ""), "7mer-A1": (1, 7, "A"), "6mer": (1, 7, ""),
           "offset 6mer": (2, 8, "")}  # fmt: skip


def complement(rna):
    """Reverse complement."""
    return rna[::-1].translate(str.maketrans("ACGU", "UGCA"))


def matched(mirna, seed_type):
    first, last, a = MATCHED[seed_type]
    return complement(mirna[first:last]) + a


def window_match(mirna, window):
    """Slow twin of seed_matches: (type, start, end, anchor) in the window, by comparing strings."""
    for seed_type, (first, last, a) in MATCHED.items():
        if len(mirna) < last:
            continue
        # letters opposite the seed in 25..34, the A may be beside; the last place first
        for start in range(35 - (last - first), 24, -1):
            if window[start:].startswith(matched(mirna, seed_type)):
                end = start + last - first
                return seed_type, start, end + len(a), end + first - 1
    return "none", -1, -1, -1


def matches(mirna, utr):
    """(type, start, end, anchor) of every window, by seed_matches."""
    candidates = pairformer.scan(mirna, utr, esa_min=0)
    kind, start, end, anchor = seed_matches(candidates, np.arange(len(candidates.start)))
    names = [SEED_TYPES[k] for k in kind]
    return list(zip(names, start.tolist(), end.tolist(), anchor.tolist(), strict=True))


def table_of(mirna, utr):
    candidates = pairformer.scan(mirna, utr)
    rows = np.arange(len(candidates.start))
    return candidates, site_table(candidates, rows, rows, rows + 1, (rows % 4).astype(np.uint8), {"weight": rows + 2})


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("CUACCUCA", ("8mer", 28, 36)),
        ("CUACCUCG", ("7mer-m8", 28, 35)),
        ("GUACCUCA", ("7mer-A1", 29, 36)),
        ("GUACCUCG", ("6mer", 29, 35)),
        ("CUACCUGG", ("offset 6mer", 28, 34)),
        ("CUACCUGA", ("offset 6mer", 28, 34)),
        ("GUACCUGA", ("none", -1, -1)),
        ("CUAUCUCA", ("none", -1, -1)),  # G-U inside the seed
        ("CUACCUUA", ("offset 6mer", 28, 34)),  # G-U at letter 2
        ("UUACCUCA", ("7mer-A1", 29, 36)),  # G-U at letter 8
    ],
)
def test_seed_types(site, expected):
    """let-7 letters 2-8 are GAGGUAG, so an 8mer reads CUACCUC and A."""
    window = "G" * 28 + site + "GGGG"
    found = matches(LET7, window)[0]
    assert found[:3] == expected
    assert found[3] == (-1 if expected[0] == "none" else 35)
    # A1 is judged by the UTR letter alone, whatever letter 1 of the miRNA
    assert {matches(letter + LET7[1:], window)[0] for letter in "ACGU"} == {found}


@pytest.mark.parametrize(("after", "expected"), [(5, "7mer-m8"), (4, "offset 6mer"), (3, "none"), (0, "none")])
def test_match_at_the_end_of_the_utr(after, expected):
    """The seed part of the last window ends 5 nt before the UTR does."""
    utr = "G" * 50 + "CUACCUC" + "G" * after
    assert matches(LET7, utr)[-1][0] == expected


def test_short_mirnas():
    """A type needs the miRNA letters it is made of: 7 for 6mer and 7mer-A1, 8 for the others."""
    eight_mer, offset = ("G" * 28 + site + "GGGG" for site in ("CUACCUCA", "CUACCUGA"))
    found = [matches(LET7[:length], eight_mer)[0][0] for length in (1, 5, 6, 7, 8, 9)]
    assert found == ["none", "none", "none", "7mer-A1", "8mer", "8mer"]
    assert [matches(LET7[:length], offset)[0][0] for length in (7, 8)] == ["none", "offset 6mer"]


def test_seed_types_equal_twin(rng):
    """3,000 windows with planted, overlapping and broken matches; miRNAs of 1 to 35 letters."""
    pairs = []
    for k in range(3000):
        letters = ("ACGU", "AU", "CG", "GAU")[k % 4]
        mirna = testing.random_rna(rng, rng.choice((1, 5, 6, 7, 8, 9, 22, 22, 35)), letters)
        window = testing.random_rna(rng, 40, letters)
        if k % 3:
            part = complement(mirna[rng.randint(0, 2) : rng.randint(7, 8)]) + rng.choice("AACGU")
            at = rng.randint(23, 30)
            window = (window[:at] + part + window[at + len(part) :])[:40]
        pairs.append((mirna, window))
    candidates = pairformer.scan(*zip(*pairs, strict=True), esa_min=0)
    assert (candidates.n_candidates == 1).all()
    found = seed_matches(candidates, np.arange(len(pairs)))
    names = [SEED_TYPES[kind] for kind in found[0]]
    expected = [window_match(*pair) for pair in pairs]
    assert list(zip(names, *(column.tolist() for column in found[1:]), strict=True)) == expected
    assert min(names.count(name) for name in SEED_TYPES) > 30


def test_site_table(rng):
    """Ascending half-open windows; the seed's place holds the letters its type says; equal id, equal match."""
    sites_of_let7 = complement(LET7[1:8]) + testing.random_rna(rng, 90) + complement(LET7[:8]) + "A" * 60
    utrs = ["", testing.random_rna(rng, 150) + sites_of_let7, "G" * 90 + sites_of_let7]
    spelled = [utrs[0], utrs[1].lower().replace("u", "t"), utrs[2]]
    candidates, table = table_of([LET7] * 3, spelled)
    for given, name in enumerate(("cheap_logit", "logit", "weight")):
        assert table[name].tolist() == list(range(given, len(table) + given))
    assert table["reason"][:5].tolist() == ["top", "coverage", "fill", "seed", "top"]
    for bag, utr in enumerate(utrs):
        sites = table[slice(*candidates.offsets[bag : bag + 2])]
        assert (np.diff(sites["start"]) > 0).all()
        assert (sites["end"] - sites["start"] == 40).all()
        typed = sites[sites["seed_type"] != "none"]
        assert (sites["site_id"] >= 0).tolist() == (sites["seed_type"] != "none").tolist()
        assert (sites["seed_start"][sites["site_id"] < 0] == -1).all()
        anchors = []
        for site in typed:
            assert utr[site["seed_start"] : site["seed_end"]] == matched(LET7, site["seed_type"])
            first, _, a = MATCHED[site["seed_type"]]
            anchors.append(site["seed_end"] - len(a) + first - 1)
        # numbered 0, 1, ... from the 5' end of each UTR, one number for each place of miRNA letter 1
        places = sorted(set(anchors))
        assert typed["site_id"].tolist() == [places.index(anchor) for anchor in anchors]
        assert bag == 0 or len(typed) > len(places) >= 2


def test_no_site():
    _, sites = table_of(["", LET7], ["ACGU", "ACGU"])
    assert len(sites) == 0
    assert sites["site_id"].dtype == np.int32


def test_draw(rng):
    """Bars stand between the letters that pair; coordinates are 1-based. Of a window without a seed match there are as
    many as its ESA score, of one with it every letter of the match has one and nothing stands beside a gap."""
    seen = []
    for k in range(600):
        mirna = testing.random_rna(rng, rng.choice((1, 5, 8, 10, 11, 22, 35)), ("ACGU", "GU")[k % 2])
        utr = testing.random_rna(rng, 60, ("ACGU", "GUA")[k % 2])
        if k % 3 == 0:
            at = rng.randrange(24, 45)
            part = complement(mirna[rng.randint(1, 2) : rng.randint(7, 8)]) + rng.choice("AC")
            utr = utr[:at] + part + utr[at + len(part) :]
        candidates = pairformer.scan(mirna, utr, esa_min=0)
        typed = [row for row, match in enumerate(matches(mirna, utr)) if match[0] != "none"]
        row = rng.choice(typed if typed and k % 2 else range(len(candidates.start)))
        start = int(candidates.start[row])
        top, marks, bottom = draw(candidates, row).split("\n")
        label, _, window, _, place = top.split()
        assert (label, place) == ("UTR", f"{start + 1}-{start + 40}")
        assert window.replace("-", "") == utr[start : start + 40]
        assert bottom.startswith("miRNA 3' ")
        assert bottom.endswith(" 5'")
        assert bottom[9:-3].strip().replace("-", "") == mirna[::-1]
        for above, mark, below in zip(top[9:], marks.ljust(len(top))[9:], bottom[9:-3].ljust(len(top)), strict=False):
            assert (mark == "|") <= (above + below in WATSON_CRICK)
            assert (mark == ":") <= (above + below in {"GU", "UG"})
        kind, first, last, _ = matches(mirna, utr)[row]
        seen.append(kind)
        if kind == "none":
            assert marks.count("|") + marks.count(":") == candidates.esa_score[row]
            continue
        first_drawn = len(top[: top.index(window)])
        assert "-" not in window + bottom[9:]
        paired = [first_drawn + i - start for i in range(first, last)]
        has_a = kind in ("8mer", "7mer-A1")
        assert {marks[i] for i in paired[: len(paired) - has_a]} == {"|"}
        letters = [len(bottom) - 4 - i for i in paired]  # of the miRNA, from 0
        assert letters == list(range(letters[0], letters[-1] - 1, -1))
        assert letters[-1] == (0 if has_a else 2 if kind == "offset 6mer" else 1)
        assert marks[:9].isspace()
        assert len(marks[9:].strip()) <= 10
    assert min(seen.count(kind) for kind in SEED_TYPES) > 3


def test_draw_reads_like_this():
    utr = "A" * 20 + "CUAUACAACCUACUACCUCAGCGCA"
    candidates = pairformer.scan(LET7, utr, esa_min=10)
    assert draw(candidates, 0) == "\n".join(
        [
            "UTR   5' AAAAAAAAAAAAAAACUAUACAACCUACUACCUCAGCGCA 3'  6-45",
            "                                  ||||||||||",
            "miRNA 3'              UUGAUAUGUUGGAUGAUGGAGU 5'",
        ]
    )


def features_twin(mirna, utr, start):
    """Slow twin of Candidates.site_features, letter by letter."""
    seed_type, first, last, anchor = window_match(mirna, utr[start : start + 40])
    if seed_type == "none":
        first, last, anchor = 25, 35, 34
    first, last, anchor = first + start, last + start, anchor + start
    flanks = utr[max(0, first - 30) : first] + utr[last : last + 30]
    best = 0.0
    for offset in range(-5, 6):
        run = 0.0
        for i in range(8, len(mirna)):
            at = anchor - i - offset
            pairs = 0 <= at < len(utr) and mirna[i] + utr[at] in WATSON_CRICK
            run = run + (1 if 13 <= i + 1 <= 16 else 0.5) if pairs else 0
            best = max(best, run - 0.5 * max(0, abs(offset) - 2))
    return [
        *(seed_type == kind for kind in SEED_TYPES[1:]),
        sum(letter in "AU" for letter in flanks) / len(flanks),
        best / 4,
        *(np.log1p(n) / 10 for n in (first, len(utr) - last, len(utr))),
    ]


@pytest.mark.parametrize("mirna", [LET7, "ACGUACGUA", "UGAG", LET7 + "ACGUACGUACGUA"])
def test_site_features_are_the_twin_s(rng, mirna):
    site = complement(mirna[1:8]) + "A"
    utr = "".join(testing.random_rna(rng, 45) + site for _ in range(4)) + "N" + testing.random_rna(rng, 50) + site
    candidates = pairformer.scan(mirna, utr, esa_min=0)
    expected = [features_twin(mirna, utr, int(start)) for start in candidates.start]
    found = candidates.site_features()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
    assert (found[:, 4].sum() > 0) == (len(mirna) >= 8)
    rows = np.array([5, 0, 5])
    np.testing.assert_array_equal(candidates.site_features(rows), found[rows])
    np.testing.assert_array_equal(candidates.site_features(threads=3), found)


@pytest.mark.parametrize(("mirna", "utr", "expected"), [
    (LET7, "C" * 20 + complement(LET7)[:-1] + "A", 9.0),  # letters 9-22 in one run: four count 1, ten 1/2
    (LET7, "C" * 20 + complement(LET7[8:]) + "CCCCC" + complement(LET7[1:8]) + "A", 7.5),  # five letters off: less 1.5
    (LET7[:8] + LET7[3:8] + "CACACACAC", "A" * 20 + complement(LET7[:8] + "CACACACAC"), 7.5),  # off the other way
    (LET7[:8] + "CA" * 12, complement(LET7[:8] + "CA" * 12), 14.0),  # 24 letters, to the first one of the UTR
])  # fmt: skip
def test_three_prime_matches_up_to_five_letters_off_the_register(mirna, utr, expected):
    utr += "C" * 40
    candidates = pairformer.scan(mirna, utr, esa_min=0)
    found = candidates.site_features()
    np.testing.assert_allclose(found, [features_twin(mirna, utr, int(s)) for s in candidates.start], rtol=1e-6)
    assert found[found[:, :5].any(1), 6].max() == pytest.approx(expected / 4)


STACKS = {  # kcal/mol: miRNA 5'->3' over window 3'->5'
    "AA/UU": -0.9, "AU/UA": -1.1, "UA/AU": -1.3, "CU/GA": -2.1, "CA/GU": -2.1, "GU/CA": -2.2, "GA/CU": -2.4,
    "CG/GC": -2.4, "GG/CC": -3.3, "GC/CG": -3.4, "AG/UU": -0.6, "AU/UG": -1.4, "CG/GU": -1.4, "CU/GG": -2.1,
    "GG/CU": -1.5, "GU/CG": -2.5, "GA/UU": -1.3, "GG/UU": -0.5, "GU/UG": 1.3, "UA/GU": -1.0, "UG/GU": 0.3,
}  # fmt: skip


def stack(a, b, c, d):
    """Energy of the pairs a-c and b-d, a before b in the miRNA and c after d in the window; either way round."""
    return STACKS.get(f"{a}{b}/{c}{d}", STACKS.get(f"{d}{c}/{b}{a}"))


def duplex_twin(mirna, window):
    """Slow twin of Candidates.duplex_energy: every pair after every other."""
    opposite, best = window[::-1], {}
    pairs = {"AU", "UA", "CG", "GC", "GU", "UG"}
    end = lambda i, j: 0.0 if {mirna[i], opposite[j]} == {"C", "G"} else 0.5  # noqa: E731
    for i, j in itertools.product(range(len(mirna)), range(len(opposite))):
        if mirna[i] + opposite[j] not in pairs:
            continue
        found = [end(i, j)]
        for p, q in itertools.product(range(i), range(j)):
            letters = i - p - 1 + j - q - 1
            if (p, q) in best:
                found.append(best[p, q] + (
                    2 + 0.3 * letters + end(p, q) + end(i, j) if letters
                    else stack(mirna[p], mirna[i], opposite[q], opposite[j])
                ))  # fmt: skip
        best[i, j] = min(found)
    return min([0.0, *(energy + end(*pair) for pair, energy in best.items())])


@pytest.mark.parametrize("mirna", [LET7, "ACGUACGUA", "UGAG", "GUGUUGGU", LET7 + "ACGUACGUACGUA", "AAAAAAA",
                                   "GGCG" + "A" * 18 + "CCGC"])  # fmt: skip
def test_duplex_energies_are_the_twin_s(rng, mirna):
    utr = testing.random_rna(rng, 40) + complement(mirna) + testing.random_rna(rng, 8) + "G" * 20
    utr += "A" * 12 + complement(mirna[-4:]) + complement(mirna[:4]) + "A" * 30  # a loop of the miRNA's middle
    candidates = pairformer.scan(mirna, utr, esa_min=0)
    rows = np.arange(0, len(candidates.start), 7)[::-1].copy()
    found = candidates.duplex_energy(rows)
    expected = [duplex_twin(mirna, utr[start : start + 40]) for start in candidates.start[rows]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32
    assert found.min() < -5 or len(mirna) < 9


def test_threads_and_order_of_rows_do_not_change_duplex_energies(rng):
    utrs = [testing.random_rna(rng, length) for length in (700, 300, 900)]
    candidates = pairformer.scan([testing.random_rna(rng, length) for length in (22, 9, 35)], utrs)
    one = candidates.duplex_energy()
    np.testing.assert_array_equal(candidates.duplex_energy(threads=3), one)
    rows = np.array(rng.sample(range(len(one)), len(one)))
    np.testing.assert_array_equal(candidates.duplex_energy(rows, threads=2), one[rows])


def test_energy_of_a_duplex_by_hand():
    """Seven pairs, a letter on either side, three pairs; and nothing that pairs."""
    utrs = ["A" * 25 + "GGC" + "A" + "GCCGUCC" + "A" * 4, "A" * 40]
    candidates = pairformer.scan(["GGACGGC" + "A" + "GCC"] * 2, utrs, esa_min=0)
    by_hand = -3.3 - 2.4 - 2.2 - 2.4 - 3.3 - 3.4 + (2 + 2 * 0.3) - 3.4 - 3.3  # GG GA AC CG GG GC, loop, GC CC
    np.testing.assert_allclose(candidates.duplex_energy(), [by_hand, 0], atol=1e-5)


def test_bag_features_are_the_twin_s():
    """Letter by letter; N counts for a length, not for a share."""
    weak, counted = complement(LET7[1:6]) + "A", []
    for mirna, utr in [(LET7, weak * 3 + "CUACCUCA" + "N" * 9 + "C" * 50), ("UGAGG", weak * 2),
                       ("UGAGGU", weak[:-1] + "CC" + weak), ("ACGUACGUA", "N" * 7)]:  # fmt: skip
        candidates = pairformer.scan(mirna, utr, esa_min=0)
        expected = [np.log1p(len(utr)) - 7, np.log1p(len(candidates.start)) - 7]
        for place, (letters, scale) in zip((1, 5, 8), ((utr, 16), (mirna, 8), (mirna[1:8], 4)), strict=True):
            known = sum(letter in "ACGU" for letter in letters)
            expected[place:place] = [scale * (letters.count(b) / known - 0.25) if known else 0.0 for b in "ACG"]
        match = complement(mirna[1:6]) + "A"
        places = sum(utr.startswith(match, i) for i in range(len(utr))) if len(mirna) > 5 else 0
        np.testing.assert_allclose(candidates.bag_features()[0], [*expected, np.log1p(places)], rtol=1e-5, atol=1e-6)
        counted.append(places)
    assert counted == [4, 0, 1, 0]


def context_twin(mirna, utr, starts):
    """Slow twin of Candidates.site_context for the chosen windows of one bag."""
    best, anchors = {}, []
    for i, start in enumerate(starts):
        seed_type, _, _, anchor = window_match(mirna, utr[start : start + 40])
        anchors.append(start + (34 if seed_type == "none" else anchor))
        rank = SEED_TYPES.index(seed_type)
        if rank and rank > best.get(anchors[-1], (0, 0))[0]:
            best[anchors[-1]] = (rank, i)
    standing = {i for _, i in best.values()}
    for i, anchor in enumerate(anchors):
        upstream = min([anchor - site for site in best if site < anchor] + [10_000])
        downstream = min([site - anchor for site in best if site > anchor] + [10_000])
        yield [i in standing, np.log1p(upstream) / 10, np.log1p(downstream) / 10]


@pytest.mark.parametrize("mirna", [LET7, "ACGUACGUA", "UGAG"])
def test_site_context_is_the_twin_s(rng, mirna):
    parts = [complement(mirna[a:b]) + letter for a, b, letter in ((1, 8, "A"), (1, 7, "C"), (2, 8, "G"), (1, 8, ""))]
    utrs = ["".join(testing.random_rna(rng, rng.randint(0, 50)) + part for part in parts * 2) for _ in range(3)]
    utrs[2] += "A" * 12_000 + utrs[1]
    candidates = pairformer.scan([mirna] * 3, utrs, esa_min=4)
    rows = np.array(sorted(rng.sample(range(len(candidates.start)), len(candidates.start) * 2 // 3)))
    offsets = np.searchsorted(rows, candidates.offsets)
    starts = np.split(candidates.start[rows], offsets[1:-1])
    expected = [line for utr, some in zip(utrs, starts, strict=True) for line in context_twin(mirna, utr, list(some))]
    np.testing.assert_allclose(candidates.site_context(rows, offsets), expected, rtol=1e-6)
    assert sum(line[0] for line in expected) >= (3 if len(mirna) > 4 else 0)


def test_rows_of_other_bags_are_refused(rng):
    candidates = pairformer.scan([LET7] * 2, [testing.random_rna(rng, 200) for _ in range(2)], esa_min=0)
    rows = np.arange(candidates.offsets[1], candidates.offsets[2])
    with pytest.raises(ValueError, match="rows must be bag by bag at offsets, got rows of other bags"):
        candidates.site_context(rows, np.array([0, len(rows), len(rows)]))
    with pytest.raises(ValueError, match=r"rows must be in 0\.\.\d+, got -1\.\.0"):
        candidates.site_context(np.array([-1, 0]), np.array([0, 1, 2]))
    with pytest.raises(TypeError, match="rows must be row numbers, got bool"):
        seed_matches(candidates, candidates.start > 3)
    with pytest.raises(ValueError, match=r"seed_type must be one of none, offset 6mer, .* got '7mer'"):
        seed_windows(candidates, np.zeros(len(candidates.start), np.float32), "7mer")
    for call in (candidates.encode, candidates.duplex_energy):
        with pytest.raises(TypeError, match=r"threads must be an int, got 1\.5"):
            call(rows, threads=1.5)


@pytest.mark.parametrize("seed_type", SEED_TYPES)
def test_one_window_of_each_site_is_kept(rng, seed_type):
    """Against all windows of all sites, one by one; a selection that keeps them has them whatever the logits say."""
    site = complement(LET7[1:8]) + "A"
    cut = [site[a:b] for a in range(3) for b in range(5, 9)]
    utrs = ["".join(testing.random_rna(rng, rng.randint(0, 60)) + part for part in cut) for _ in range(5)] + ["ACGU"]
    tandem = [("U" * 22, "A" * 90), ("UGU" * 7, "ACA" * 30 + "A" * 10 + "CA" * 30)]  # a site at every place, or nearly
    candidates = pairformer.scan([LET7] * 6 + [m for m, _ in tandem], utrs + [u for _, u in tandem])
    logit = np.round(np.random.default_rng(1).normal(size=len(candidates.start)), 1).astype(np.float32)
    mask = seed_windows(candidates, logit, seed_type, threads=2)
    if seed_type == "none":
        assert mask is None
        return
    kind, _, _, anchor = seed_matches(candidates, np.arange(len(candidates.start)))
    best = {}
    for row, bag in enumerate(candidates.bag_of()):
        place = (int(bag), int(anchor[row]))
        if kind[row] >= SEED_TYPES.index(seed_type):
            best[place] = max(best.get(place, (0, 0.0, 0)), (int(kind[row]), float(logit[row]), -row))
    assert sorted(-row for _, _, row in best.values()) == np.flatnonzero(mask).tolist()
    assert len(best) >= 5
    config = ModelConfig(keep_seed=seed_type)
    selection = select_sites(config, candidates, logit, np.zeros(len(logit), np.uint32), k_max=52)
    assert set(np.flatnonzero(mask)) <= set(selection.rows)
