"""Scan and encoding: bit-identical to TargetNet's aligner, whatever the variant, the threads or the letters."""

import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pairformer
from pairformer import _core, reference, testing
from pairformer import data as tables

LET7 = "UGAGGUAGUAGGUUGUAUAGUU"
PAIRS = {(a, b): float(a + b in ("AU", "UA", "CG", "GC", "GU", "UG")) for a in "ACGU" for b in "ACGU"}
rna = st.text("ACGU", max_size=120)
mirna = st.text("ACGU", min_size=1, max_size=35)


def rows_of(candidates, bag=0):
    """(start, score, position, gapped miRNA, gapped window) of one bag."""
    rows = np.arange(*candidates.offsets[bag : bag + 2])
    columns = (candidates.start[rows], candidates.esa_score[rows], candidates.position[rows])
    aligned = candidates.aligned_rows(rows)
    return [(int(s), int(e), p, str(a), str(b)) for s, e, p, (a, b) in zip(*columns, aligned, strict=True)]


def hard_windows(rng, count):
    """miRNAs and windows rich in ties: few letters, repeats, complements, short miRNAs."""
    for k in range(count):
        letters = ("ACGU", "GU", "AU", "GUU", "CG")[k % 5]
        mirna = testing.random_rna(rng, rng.choice((1, 2, 5, 6, 9, 10, 11, 22, 35)), letters)
        window = testing.random_rna(rng, 40, letters)
        if k % 7 == 0:
            window = (testing.random_rna(rng, rng.randint(1, 3)) * 40)[:40]
        if k % 11 == 0:
            complement = mirna[:10].translate(str.maketrans("ACGU", "UGCA"))[::-1]
            window = (testing.random_rna(rng, 35) + complement + testing.random_rna(rng, 5))[-40:]
        yield mirna, window


def biopython_alignment(mirna, seed_part):
    """As TargetNet calls the aligner, which is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairwise2 = pytest.importorskip("Bio.pairwise2")
    return pairwise2.align.globaldx(mirna[:10], seed_part, PAIRS, one_alignment_only=True)[0]


def test_alignment_equals_biopython(rng):
    """Score, gapped strings and ties of 4,000 windows, as TargetNet's own call yields them."""
    pairs = list(hard_windows(rng, 4000))
    candidates = pairformer.scan(*zip(*pairs, strict=True), esa_min=0)
    assert (candidates.n_candidates == 1).all()
    aligned = candidates.aligned_rows(np.arange(len(pairs)))
    for (mirna, window), score, (top, bottom) in zip(pairs, candidates.esa_score, aligned, strict=True):
        seed_part = window[::-1][5:15]
        best = biopython_alignment(mirna, seed_part)
        assert (int(best.score), best.seqA, best.seqB) == (score, top, bottom), (mirna, window)


def test_encoding_equals_reference(rng):
    pairs = list(hard_windows(rng, 1000))
    candidates = pairformer.scan(*zip(*pairs, strict=True), esa_min=0)
    one_hot = candidates.encode(threads=2)
    assert one_hot.shape == (1000, 10, 50)
    for (mirna, window), ours in zip(pairs, one_hot, strict=True):
        np.testing.assert_array_equal(ours, reference.encode(mirna, window))


def test_worked_example():
    """A perfect let-7 site: ten pairs, no gap, the window's centre as its position."""
    seed_part = LET7[:10].translate(str.maketrans("ACGU", "UGCA"))[::-1]
    utr = "A" * 25 + seed_part + "C" * 5 + "A" * 10
    candidates = pairformer.scan(LET7, utr, esa_min=10)
    assert candidates.start.tolist() == [0]
    assert candidates.position[0] == np.float32(19.5 / 49)
    assert candidates.aligned(0) == (LET7[:10], seed_part[::-1])
    window = candidates.encode()[0]
    assert "".join("ACGU-"[c] for c in window[5:, 5:15].argmax(0)) == seed_part[::-1]
    assert window[:5].sum() == len(LET7)
    assert window[5:].sum() == 40


@pytest.mark.parametrize("variant", _core.variants())
@settings(deadline=None, max_examples=60)
@given(mirna, rna, st.integers(0, 10))
def test_variants_equal_reference(variant, mirna, utr, esa_min):
    candidates = pairformer.scan(mirna, utr, esa_min, variant=variant)
    assert rows_of(candidates) == reference.scan(mirna, utr, esa_min)


@settings(deadline=None)
@given(mirna, st.text("ACGTUNacgtun-éß*", min_size=40, max_size=200))
def test_foreign_letters_drop_their_windows(mirna, utr):
    candidates = pairformer.scan(mirna, utr, esa_min=3)
    assert rows_of(candidates) == reference.scan(mirna, utr, esa_min=3)
    windows = [utr[i : i + 40] for i in range(len(utr) - 39)]
    assert candidates.n_dropped[0] == sum(not set(w) <= set("ACGTUacgtu") for w in windows)


def test_a_short_utr_of_other_letters_is_no_utr():
    """Databases write words where they know no UTR; shorter than a window, they lose none that could be told."""
    with pytest.raises(ValueError, match="utr must hold letters of the IUPAC nucleic acid code, got 'e' at position 2"):
        pairformer.scan(LET7, "Sequenceunavailable")
    code = "ACGUTRYSWKMBDHVN"
    assert pairformer.scan(LET7, ["Sequenceunavailable", code + code.lower(), "", "X" * 40]).status.tolist() == [
        "invalid", "no_window", "no_window", "no_candidate"]  # fmt: skip


def test_letters_are_normalised(rng):
    utr = testing.random_rna(rng, 300)
    plain = rows_of(pairformer.scan(LET7, utr))
    assert plain
    assert rows_of(pairformer.scan(LET7.lower().replace("u", "t"), utr.lower().replace("u", "T"))) == plain


@pytest.mark.parametrize("length", [0, 1, 39, 40, 41, 551, 552, 16_423, 16_424, 40_000])
def test_block_and_task_borders(rng, length):
    """Every variant and thread count gives the same rows at sizes around the internal borders."""
    utr = testing.random_rna(rng, length)
    expected = pairformer.scan(LET7, utr, variant="baseline", threads=1)
    assert expected.n_candidates[0] > 0.5 * (length - 39) or length < 100
    for variant in _core.variants():
        for threads in (1, 2, 5):
            other = pairformer.scan(LET7, [utr, utr], variant=variant, threads=threads)
            for bag in (0, 1):
                span = slice(*other.offsets[bag : bag + 2])
                for name in ("start", "esa_score", "position", "alignment"):
                    np.testing.assert_array_equal(getattr(other, name)[span], getattr(expected, name))


def test_rows_are_small():
    candidates = pairformer.scan(LET7, "ACGU" * 30)
    columns = (candidates.start, candidates.esa_score, candidates.position, candidates.alignment)
    assert sum(column.itemsize for column in columns) <= 16


def test_statuses():
    utr = "ACGU" * 30
    split = f"{utr[:60]}\t{utr[60:]}"
    mirnas = [LET7, LET7, LET7, "", "ACGX", "A" * 36, None, LET7, "CCCCC", LET7, "ACGXX", LET7 + "G", LET7, LET7, LET7]
    utrs = [utr, "A" * 39, "N" * 80, utr, utr, utr, utr, 7, utr, split, split, split, "AC GX", "NA", "nan"]
    candidates = pairformer.scan(mirnas, utrs)
    statuses = ["ok", "no_window", "no_candidate"] + ["invalid"] * 5 + ["no_candidate"] + ["invalid"] * 6
    assert candidates.status.tolist() == statuses
    assert candidates.n_candidates.tolist() == [candidates.n_candidates[0]] + [0] * 14
    assert candidates.n_dropped.tolist() == [0, 0, 41] + [0] * 12
    assert candidates.utr_length.tolist() == [120, 39, 80, 120, 120, 120, 120, 0, 120, 121, 121, 121, 5, 2, 3]
    blank = "utr must hold no blanks, got {!r} at position {}; pass ''.join(utr.split())"
    assert candidates.messages == {
        3: "mirna must have 1 to 35 letters, got 0",
        4: "mirna must have letters ACGU (or T) only, got 'X' at position 4",
        5: "mirna must have 1 to 35 letters, got 36; is it a hairpin, or a UTR?",
        6: "mirna must be a string, got NoneType",
        7: "utr must be a string, got int",
        9: blank.format("\t", 61),
        10: "mirna must have letters ACGU (or T) only, got 'X' at position 4",
        11: blank.format("\t", 61),
        12: blank.format(" ", 3),
        13: "utr must be a sequence, got 'NA', which stands for none; leave the pair out",
        14: "utr must be a sequence, got 'nan', which stands for none; leave the pair out",
    }
    assert len(pairformer.scan([], [])) == 0


def test_a_bag_alone_is_what_it_was_among_others():
    utrs = ["ACGU" * 30, "ACGU" * 20 + "X" + "ACGU" * 20, "ACGU", "A CGU" * 20]
    bags = pairformer.scan(LET7, utrs)
    for bag in range(4):
        alone = bags.alone(bag)
        assert alone.messages == ({0: bags.messages[bag]} if bag in bags.messages else {})
        assert rows_of(alone) == rows_of(bags, bag)
        for name in ("status", "n_candidates", "n_dropped", "utr_length"):
            assert getattr(alone, name).tolist() == getattr(bags, name)[[bag]].tolist()


def test_errors():
    with pytest.raises(ValueError, match="mirna must have 1 to 35 letters, got 0"):
        pairformer.scan("", "ACGU")
    with pytest.raises(ValueError, match=r"mirna must have letters ACGU .* got 'N' at position 2"):
        pairformer.scan([LET7, "ANA"], "ACGU", strict=True)
    blanks = ["ACGU", "ACGU" * 10 + " ", "\n" + "ACGU" * 10]  # the first is told
    for mirna, utr, strict in ((LET7, blanks[1], False), ([LET7] * 3, blanks, True)):
        with pytest.raises(ValueError, match="utr must hold no blanks, got ' ' at position 41"):
            pairformer.scan(mirna, utr, strict=strict)
    with pytest.raises(ValueError, match=r"utr must be as many as mirna \(2\), got 3"):
        pairformer.scan([LET7] * 2, ["A"] * 3)
    wrong = [(3, "int; pass its letters"), (Path("x.fa"), "Path; pass its letters"),
             (b"ACGU", r"bytes; pass mirna\.decode\(\)"), (np.array("ACGU"), r"ndarray; pass mirna\.ravel\(\)"),
             (iter([LET7]), r"iterator; pass list\(mirna\)")]  # fmt: skip
    for value, hint in wrong:
        with pytest.raises(TypeError, match=f"mirna must be a string or a sequence of strings, got .*{hint}"):
            pairformer.scan(value, "ACGU")
    for name, number in (("esa_min", 6.5), ("threads", "2")):
        with pytest.raises(TypeError, match=f"{name} must be an int, got {number!r}"):
            pairformer.scan(LET7, "ACGU", **{name: number})
    with pytest.raises(ValueError, match=r"esa_min must be in 0\.\.10, got 11"):
        pairformer.scan(LET7, "ACGU", 11)
    with pytest.raises(ValueError, match=r"variant must be one of auto, .*portable on this processor, got mmx"):
        pairformer.scan(LET7, "ACGU", variant="mmx")
    candidates = pairformer.scan(LET7, "ACGU" * 30)
    with pytest.raises(ValueError, match="rows must be in"):
        candidates.encode(np.array([10_000]))
    for rows, kind in ((candidates.esa_score > 7, "bool"), ([0.5], "float64")):
        with pytest.raises(TypeError, match=f"rows must be row numbers, got {kind}"):
            candidates.encode(rows)
    with pytest.raises(ValueError, match=r"rows must have shape \(M,\), got \(1, 2\)"):
        candidates.encode(np.array([[0, 1]]))
    with pytest.raises(ValueError, match=r"esa_min must be in 0\.\.10, got 18446744073709551616"):
        pairformer.scan(LET7, "ACGU", esa_min=2**64)
    assert pairformer.scan(LET7, "ACGU", threads=2**64).n_candidates.tolist() == [0]
    with pytest.raises(ValueError, match=r"threads must be 0 \(all\) or more, got -3"):
        pairformer.scan(LET7, "ACGU", threads=-3)


def test_native_rows_are_checked():
    """The extension refuses rows that point outside their sequences or cannot be an alignment; codes stay as read."""
    batch = pairformer.scan([LET7, LET7[:5]], ["ACGU" * 30 + "N" + "ACGU" * 10] * 2).batch
    again = pickle.loads(pickle.dumps(batch))
    row = lambda bag, start, bits: (np.array([bag]), np.array([start], np.int32), np.array([bits], np.uint32))  # noqa: E731
    assert _core.encode(batch, *row(0, 80, 0), 1).shape == (1, 10, 50)
    assert _core.encode(batch, *row(1, 121, 1 << 4 | 1 << 10), 1).shape == (1, 10, 50)
    for name in ("mirna", "mirna_offsets", "utr", "utr_offsets", "bag_mirna", "bag_utr"):
        assert not getattr(batch, name).flags.writeable
        np.testing.assert_array_equal(getattr(again, name), getattr(batch, name))
    for bad, message in [
        (row(2, 0, 0), "bag must be in"),
        (row(-1, 0, 0), "bag must be in"),
        *[(row(0, start, 0), "start must name a window") for start in (-1, 81, 120, 122, 2**31 - 1)],
        (row(1, 0, 1 << 5 | 1 << 10), "alignment must pair as many"),
        (row(0, 0, 1), "alignment must pair as many"),
        (row(0, 0, 1 << 20), "alignment must pair as many"),
    ]:
        with pytest.raises(ValueError, match=message):
            _core.encode(batch, *bad, 1)
    with pytest.raises(TypeError, match="start must be int32, got int64"):
        _core.encode(batch, np.array([0]), np.array([0]), np.array([0], np.uint32), 1)


def test_real_counts(data):
    """Candidates of the ten miRAW sets, as published."""
    import csv

    pairs = tables.load_pairs(data / tables.PAIRS, data)
    n = pairformer.scan(pairs.mirna, pairs.utr).n_candidates
    with (data / "miraw_pairs/pairs.tsv").open() as lines:
        sets = [[int(s) for s in row["sets"].split(",")] for row in csv.DictReader(lines, delimiter="\t")]
    assert n.sum() == 8_789_429
    assert (
        sum(int(k) * sum(s in (0, 6, 7, 8, 9) for s in member) for k, member in zip(n, sets, strict=True)) == 7_485_055
    )
    assert sum(int(k) * len(member) for k, member in zip(n, sets, strict=True)) == 14_963_635
    assert (n == 0).sum() == 64


def test_real_windows_equal_biopython(data):
    """Every window of real UTRs of real pairs, sampled."""
    pairs = tables.load_pairs(data / tables.PAIRS, data)
    rng = random.Random(7)
    for i in rng.sample(range(len(pairs)), 12):
        utr = pairs.utr[i][:400]
        candidates = pairformer.scan(pairs.mirna[i], utr, esa_min=0)
        for start, score, _, top, bottom in rows_of(candidates)[::9]:
            seed_part = utr[start : start + 40][::-1][5:15]
            best = biopython_alignment(pairs.mirna[i], seed_part)
            assert (int(best.score), best.seqA, best.seqB) == (score, top, bottom)


def test_a_foreign_letter_far_from_the_end_drops_its_windows():
    """Long sequences are read in parts of a million letters; any of them may hold the letter."""
    utr = "ACGU" * 15 + "N" + "ACGU" * (1 << 18)
    candidates = pairformer.scan(LET7, utr, esa_min=0)
    assert candidates.n_dropped.tolist() == [40]
    np.testing.assert_array_equal(candidates.start, np.delete(np.arange(len(utr) - 39), np.s_[21:61]))
