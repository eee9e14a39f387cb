"""Pair probabilities of the energy model, beside sums over every structure and ViennaRNA's."""

import math
import re
import zlib

import numpy as np
import pytest

from pairformer import _core, folding
from pairformer.folding import decode, f1

KINDS = ("CG", "GC", "GU", "UG", "AU", "UA")
STACK, HAIRPIN_MISMATCH, INTERNAL_MISMATCH, BEFORE, AFTER = (t.astype(int) for t in _core.energy_tables())
TRNA = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"


def codes(*sequences):
    side = max(map(len, sequences))
    return np.array([["ACGUN".index(x) for x in s.ljust(side, "G")] for s in sequences], np.uint8)


def probabilities(*sequences, threads=1, variant="auto"):
    return _core.pair_probabilities(codes(*sequences), np.array([len(s) for s in sequences]), threads, variant)


def structures(sequence, begin, end):
    """Every set of pairs without crossings of the letters from begin to end, with 3 letters in a hairpin and more."""
    if begin >= end:
        yield ()
        return
    yield from structures(sequence, begin + 1, end)
    for at in range(begin + 4, end):
        if sequence[begin] + sequence[at] in KINDS:
            for inside in structures(sequence, begin + 1, at):
                for after in structures(sequence, at + 1, end):
                    yield ((begin, at), *inside, *after)


class Energy:
    """Slow twin of the energies: of one structure, loop by loop, in tenths of a kcal/mol."""

    def __init__(self, sequence):
        self.sequence = sequence

    def kind(self, i, j):
        return KINDS.index(self.sequence[i] + self.sequence[j])

    def letter(self, i):
        return "ACGU".find(self.sequence[i]) if 0 <= i < len(self.sequence) else -1

    def weak(self, i, j, cost):
        return cost * (self.kind(i, j) >= KINDS.index("GU"))

    def stem(self, i, j):
        """A helix that ends with i and j, seen from before i and after j."""
        before, after, kind = self.letter(i - 1), self.letter(j + 1), self.kind(i, j)
        dangling = (BEFORE[kind, before] if before >= 0 else 0) + (AFTER[kind, after] if after >= 0 else 0)
        return dangling + self.weak(i, j, 5)

    def mismatch(self, table, i, j):
        a, b = self.letter(i), self.letter(j)
        return table[a, b] if min(a, b) >= 0 else 0

    def length(self, table, n):
        return table[n] if n < len(table) else table[-1] + round(10.7856 * math.log(n / (len(table) - 1)))

    def loop(self, i, j, inside):
        """The loop that (i, j) closes; inside: the pairs that it leads to."""
        if not inside:
            end = self.mismatch(HAIRPIN_MISMATCH[self.kind(i, j)], i + 1, j - 1) if j - i > 4 else self.weak(i, j, 5)
            return self.length([0, 0, 0, 54, 56, 57, 54, 60, 55, 64], j - i - 1) + end
        if len(inside) > 1:
            around = Energy("".join(self.sequence[at] for at in (j - 1, j, i, i + 1)))  # as seen from inside
            return 93 - 9 * (len(inside) + 1) + around.stem(1, 2) + sum(self.stem(*pair) for pair in inside)
        k, m = inside[0]
        left, right = k - i - 1, j - m - 1
        if left + right > 30:
            return math.inf
        stack = STACK[self.kind(i, j), self.kind(m, k)]
        if left + right == 0:
            return stack
        if min(left, right) == 0:
            ends = stack if left + right == 1 else self.weak(i, j, 5) + self.weak(k, m, 5)
            return self.length([0, 38, 28, 32, 36, 40, 44], left + right) + ends
        cost = self.length([0, 0, 5, 17, 11, 20, 20], left + right) + self.weak(i, j, 7) + self.weak(k, m, 7)
        cost += min(30, 6 * abs(left - right))
        if left + right == 2:
            return cost - 19 * (self.sequence[i + 1] + self.sequence[j - 1] == "GG")
        if min(left, right) == 1:
            return cost
        return cost + self.mismatch(INTERNAL_MISMATCH, i + 1, j - 1) + self.mismatch(INTERNAL_MISMATCH, m + 1, k - 1)

    def __call__(self, pairs):
        outside, inside = [], {pair: [] for pair in pairs}
        for pair in pairs:
            around = [p for p in pairs if p[0] < pair[0] and pair[1] < p[1]]
            (inside[max(around)] if around else outside).append(pair)
        return sum(self.stem(*pair) for pair in outside) + sum(self.loop(*pair, inside[pair]) for pair in pairs)


def twin(sequence):
    energy, total = Energy(sequence), 0.0
    found = np.zeros((len(sequence), len(sequence)))
    for pairs in structures(sequence, 0, len(sequence)):
        weight = math.exp(-energy(pairs) / 6.1632)
        total += weight
        for i, j in pairs:
            found[i, j] += weight
            found[j, i] += weight
    return found / total


@pytest.mark.parametrize("length", [0, 1, 4, 5, 9, 14, 19])
def test_probabilities_are_those_of_every_structure(length):
    rng = np.random.default_rng([2020, length])
    for _ in range(4):
        sequence = "".join(rng.choice(list("ACGGUN" if length == 14 else "ACGGU"), length))
        np.testing.assert_allclose(probabilities(sequence)[0], twin(sequence), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("sequence", ["GGCGAAAGCGCAAAGCACC", "GGACGAAAGUGCGAAAGCAC", "GAGGAGACAACAC", "GGGAGAAACGCC",
                                      pytest.param("GGC" + 480 * "A" + "GCC", id="long hairpin")])  # fmt: skip
def test_loops_of_every_kind(sequence):
    """Three helices, bulges and internal loops, whose probabilities a short random sequence leaves near 0."""
    np.testing.assert_allclose(probabilities(sequence)[0], twin(sequence), rtol=1e-5, atol=1e-15)


@pytest.mark.parametrize(("before", "after"), [
    (15, 15), (15, 16), (30, 0), (0, 30), (0, 31), (29, 1), (1, 29), (28, 2), (2, 28), (4, 1), (1, 22), (25, 3),
])  # fmt: skip
def test_loops_up_to_their_limit(before, after):
    """Of 30 letters at most, however many on each side; hairpins have no limit."""
    sequence = "GG" + before * "A" + "GC" + 40 * "A" + "GC" + after * "A" + "CC"
    expected = twin(sequence)
    np.testing.assert_allclose(probabilities(sequence)[0], expected, rtol=1e-5, atol=1e-15)
    assert expected[0, -1] > 0


@pytest.mark.parametrize("variant", _core.variants())
def test_every_variant_of_the_loops(variant):
    rng = np.random.default_rng(7)
    batch = [TRNA, *("".join(rng.choice(list("ACGUN"), n)) for n in (18, 40, 41, 130))]
    np.testing.assert_allclose(probabilities(*batch, variant=variant), probabilities(*batch), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(probabilities(batch[1], variant=variant)[0], twin(batch[1]), rtol=1e-5, atol=1e-12)


def test_energy_of_a_hairpin_by_hand():
    """Two stacks of GC on GC, and a loop of four A on a GC pair: 5.6 - 1.1 kcal/mol; no letter dangles."""
    assert Energy("GGGAAAACCC")(((0, 9), (1, 8), (2, 7))) == 2 * -33 + 56 - 11


def test_a_batch_is_its_sequences_whatever_its_threads():
    rng = np.random.default_rng(5)
    batch = ["".join(rng.choice(list("ACGU"), n)) for n in (60, 1, 33, 80)]
    found = probabilities(*batch, threads=3)
    for row, sequence in zip(found, batch, strict=True):
        n = len(sequence)
        np.testing.assert_array_equal(row[:n, :n], probabilities(sequence)[0])
        assert not row[n:].any()
        assert not row[:, n:].any()
        np.testing.assert_array_equal(row, row.T)
        assert row.min() >= 0
        assert row.sum(0).max() < 1 + 1e-5


HAIRPIN = "G" * 12 + "AAAA" + "C" * 12
OTHER = "C" * 12 + "AAAA" + "G" * 12


@pytest.mark.parametrize("sequence", [
    "A" * 500, "G" * 248 + "AAAA" + "C" * 248, "GC" * 250, "ACGU" * 125, 9 * HAIRPIN + 8 * OTHER + "AAAACAAAAGA",
])  # fmt: skip
def test_longest_sequences_stay_in_range(sequence):
    found = probabilities(sequence)[0]
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.sum(0).max() < 1 + 1e-5
    assert found.any() == (sequence != "A" * 500)


def test_wrong_arguments():
    given = codes("GGGAAAACCC")
    with pytest.raises(TypeError, match="codes must be uint8"):
        _core.pair_probabilities(given.astype(np.int64), np.array([10]), 1)
    for lengths, told in (
        ([11], r"lengths must be in \[0, 10\], got 11"),
        ([-1], "got -1"),
        ([1, 2], "must have 1 rows"),
    ):
        with pytest.raises(ValueError, match=told):
            _core.pair_probabilities(given, np.array(lengths), 1)
    with pytest.raises(ValueError, match=r"lengths must be in \[0, 500\], got 501"):
        _core.pair_probabilities(np.zeros((1, 501), np.uint8), np.array([501]), 1)


def test_tables_are_viennarna_s(tmp_path):
    RNA = pytest.importorskip("RNA")
    RNA.params_save(str(tmp_path / "energies"))
    text = re.sub(r"/\*.*?\*/", "", (tmp_path / "energies").read_text())

    def table(name, kinds, *sides):
        numbers = re.search(rf"# {name}\n(.*?)\n\n", text, re.S)[1].replace("DEF", "-50").split()
        return np.array(numbers[: kinds * math.prod(sides)], int).reshape(kinds, *sides)[:6] // 10

    np.testing.assert_array_equal(table("stack", 6, 7)[:, :6], STACK)
    np.testing.assert_array_equal(table("mismatch_hairpin", 7, 5, 5)[:, 1:, 1:], HAIRPIN_MISMATCH)
    internal = table("mismatch_internal", 7, 5, 5)[:, 1:, 1:]
    np.testing.assert_array_equal(internal, INTERNAL_MISMATCH + np.array([0, 0, 7, 7, 7, 7])[:, None, None])
    np.testing.assert_array_equal(table("dangle5", 7, 5)[:, 1:], BEFORE)
    np.testing.assert_array_equal(table("dangle3", 7, 5)[:, 1:], AFTER)


def test_structures_are_near_viennarna_s():
    """Of the tRNA and of random sequences; ViennaRNA has values of its own for the smallest loops."""
    RNA = pytest.importorskip("RNA")
    rng = np.random.default_rng(zlib.crc32(b"near"))
    sequences = [TRNA, *("".join(rng.choice(list("ACGU"), 60)) for _ in range(40))]
    scores = []
    for sequence in sequences:
        fold = RNA.fold_compound(sequence)
        fold.exp_params_rescale(fold.mfe()[1])
        fold.pf()
        theirs = np.array(fold.bpp())[1:, 1:]
        scores.append(f1(decode(probabilities(sequence)[0], 0.5), decode(theirs + theirs.T, 0.5)))
    assert np.mean(scores) > 0.8


def test_squares_that_are_worked_on_at_a_time_have_few_cells(monkeypatch):
    cells, native = [], _core.pair_probabilities

    def counted(codes, *rest):
        cells.append(len(codes) * codes.shape[1] ** 2)
        return native(codes, *rest)

    monkeypatch.setattr(_core, "pair_probabilities", counted)
    monkeypatch.setattr(folding, "CELLS", 1000)
    assert [len(square) for square in folding.equilibrium(["A", *["GAAAC" * 4] * 5])] == [1, *[20] * 5]
    assert cells == [800, 800, 800]
