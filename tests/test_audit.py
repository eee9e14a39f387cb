"""What two tables share: against a plain twin, planted leaks, and the published splits."""

import csv
import gzip
import random
from itertools import combinations

import numpy as np
import pytest

from pairformer.data import PAIRS, UTRS, Pairs, load_pairs
from pairformer.testing import random_rna

pytest.importorskip("torch")
from pairformer.evaluation.audit import NEIGHBOURS, RELATIONS, name_genes, near_identical_groups, overlap
from pairformer.evaluation.protocols import PROTOCOLS

MIRNA, OTHER = "UGAGGUAGUAGGUUGUAUAGUU", "CAUUGCACUUGUCUCGGUCUGA"


def table(*rows):
    """Pairs from rows of label, miRNA, gene, UTR; row i of the table names its UTR "utr<i>"."""
    label, mirna, gene, utr = zip(*rows, strict=True) if rows else ((), (), (), ())
    columns = (np.array(column, object) for column in (mirna, gene, utr, [f"utr{i}" for i in range(len(rows))]))
    return Pairs(np.array(label, np.float32), *columns)


def found(a, b):
    """The relations of the one row of table b that have a counterpart."""
    result = overlap(a, b)
    return {relation for relation in RELATIONS if getattr(result, relation)[0]}


# The plain twin: sets of windows, every row against every row.


def clean(sequence):
    return sequence.upper().replace("T", "U")


def windows(utr):
    utr = clean(utr)
    parts = [utr[i : i + 40] for i in range(len(utr) - 39)] if len(utr) >= 40 else [utr]
    return {part for part in parts if part and set(part) <= set("ACGU")}


def near(a, b):
    shared = len(windows(a) & windows(b))
    return shared > 0 and 2 * shared >= min(len(windows(a)), len(windows(b)))


def genes(row):
    return {name.strip().upper() for name in row[2].split(",")} - {""}


def twin(a, b):
    """By relation, whether row b has a counterpart in row a."""
    a_mirna, b_mirna = clean(a[1]), clean(b[1])
    readable = bool(a_mirna) and set(a_mirna) <= set("ACGU") and set(b_mirna) <= set("ACGU")
    mirna, gene = readable and a_mirna == b_mirna, bool(genes(a) & genes(b))
    return {
        "pair": mirna and (gene or (clean(a[3]) == clean(b[3]) and bool(windows(a[3])))),
        "mirna": mirna,
        "family": readable and a_mirna[1:8] == b_mirna[1:8] != "",
        "gene": gene,
        "window": bool(windows(a[3]) & windows(b[3])),
        "near_identical": near(a[3], b[3]),
    }


def relative(rng, utrs):
    """A UTR made from others: mutated, cut, joined, repeated, masked, or in other letters."""
    utr, other = rng.choices(utrs, k=2)
    i, j = sorted(rng.choices(range(len(utr) + 1), k=2))
    return rng.choice(
        [
            utr,
            utr[i:],
            utr[:j],
            utr[i:j],
            utr + other,
            other[:i] + utr[i:],
            utr[i:j] * 3,
            utr[:i] + "G" + utr[i + 1 :],
            utr[:i] + "N" + utr[i:],
            utr.lower().replace("u", "t"),
        ]
    )


def random_rows(rng, utrs, size):
    family = random_rna(rng, 8)
    mirnas = [family + random_rna(rng, 12) for _ in range(3)] + [random_rna(rng, 20), family[:1], "ACGUNACGUA", ""]
    names = ["A", "B", "C,D", "D, E", "", " ,F"]
    return [(rng.randint(0, 1), rng.choice(mirnas), rng.choice(names), rng.choice(utrs)) for _ in range(size)]


@pytest.mark.parametrize("case", range(30))
def test_against_twin(case):
    rng = random.Random(case)
    utrs = [random_rna(rng, length) for length in (0, 5, 39, 40, 41, 79, 80, 120, 200)] + ["N" * 50, "ANG", "A" * 90]
    for _ in range(25):
        utrs.append(relative(rng, utrs))
    known, asked = random_rows(rng, utrs, 30), random_rows(rng, utrs, 37)
    result = overlap(table(*known), table(*asked))
    links = [[twin(a, b) for a in known] for b in asked]
    for relation in RELATIONS:
        expected = [any(link[relation] for link in row) for row in links]
        assert getattr(result, relation).tolist() == expected, relation
        assert [bool(name) for name in result.names[relation]] == expected
        assert result.shares[relation] == pytest.approx(sum(expected) / 37)
    for mask, same in ((result.same_label, True), (result.opposite_label, False)):
        assert mask.tolist() == [
            any(link["pair"] and (a[0] == b[0]) == same for a, link in zip(known, row, strict=True))
            for b, row in zip(asked, links, strict=True)
        ]
    backwards = overlap(table(*asked), table(*known))
    for relation in RELATIONS:
        expected = [any(row[i][relation] for row in links) for i in range(30)]
        assert getattr(backwards, relation).tolist() == expected, relation

    group = near_identical_groups(utrs)
    expected = np.arange(len(utrs))
    for i, j in combinations(range(len(utrs)), 2):
        if near(utrs[i], utrs[j]) or clean(utrs[i]) == clean(utrs[j]):
            expected[expected == expected[j]] = expected[i]
    assert (np.equal.outer(group, group) == np.equal.outer(expected, expected)).all()
    assert set(group) == set(range(group.max() + 1))


def test_planted_leaks(rng):
    """Each relation is found where it alone is planted."""
    utr, new = random_rna(rng, 300), random_rna(rng, 300)
    a = table((1, MIRNA, "TP53,MYC", utr), (0, OTHER, "KRAS", random_rna(rng, 30)))
    short = a.utr[1]
    assert found(a, table((1, "G" * 22, "new", new))) == set()
    assert found(a, table((1, MIRNA, "new", new))) == {"mirna", "family"}
    assert found(a, table((1, "C" + MIRNA[1:12], "new", new))) == {"family"}
    assert found(a, table((1, "G" * 22, "new,MYC", new))) == {"gene"}
    assert found(a, table((1, "G" * 22, " Myc", new))) == {"gene"}
    assert found(a, table((1, MIRNA, "MYC", new))) == {"pair", "mirna", "family", "gene"}
    assert found(a, table((1, "G" * 22, "new", new + utr[100:140]))) == {"window"}
    assert found(a, table((1, "G" * 22, "new", new + utr[100:139]))) == set()
    assert found(a, table((1, "G" * 22, "new", new[:50] + utr[100:]))) == {"window", "near_identical"}
    assert found(a, table((1, "G" * 22, "new", utr[100:140]))) == {"window", "near_identical"}
    assert found(a, table((1, "G" * 22, "new", utr[100:139]))) == set()
    assert found(a, table((1, "G" * 22, "new", short))) == {"window", "near_identical"}
    assert found(a, table((1, "G" * 22, "new", short + "A"))) == set()
    assert found(a, table((1, MIRNA.lower().replace("u", "t"), "new", utr.lower()))) == set(RELATIONS) - {"gene"}


def test_half_of_the_shorter(rng):
    """Of 40 distinct windows, 20 shared are enough and 19 are not; repeats count once."""
    asked = table((1, MIRNA, "", random_rna(rng, 79)))
    for shared, expected in ((20, True), (19, False)):
        longer = random_rna(rng, 200) + "N" + asked.utr[0][: 39 + shared]
        assert overlap(table((1, MIRNA, "", longer)), asked).near_identical[0] == expected
        assert overlap(asked, table((1, MIRNA, "", longer + "A" * 400))).near_identical[0] == expected
    repeats = "A" * 400 + "N" + asked.utr[0][:40]
    assert overlap(asked, table((1, MIRNA, "", repeats))).near_identical[0]


def test_unknown_letters(rng):
    """N equals nothing, so that masked or missing UTRs are not taken for one another."""
    for utr in ("", "N", "N" * 100, "ACGUNACGU", (random_rna(rng, 39) + "N") * 5):
        assert found(table((1, MIRNA, "", utr)), table((1, MIRNA, "", utr))) == {"mirna", "family"}
    utr = random_rna(rng, 60)
    masked = utr[:50] + "N" + utr[51:]
    assert found(table((1, "", "A", utr)), table((1, "", "B", masked))) == {"window", "near_identical"}


def test_labels_and_sentences(rng):
    utr = [random_rna(rng, 100) for _ in range(4)]
    a = table((0, MIRNA, "A", utr[0]), (1, MIRNA, "B", utr[1]), (0, MIRNA, "B", utr[1]), (1, OTHER, "E", utr[2]))
    b = table(
        (0, MIRNA, "A", utr[0]), (1, MIRNA, "B", utr[1]), (1, OTHER, "C", utr[2]), (1, "G" * 20, "D", utr[3]),
    )  # fmt: skip
    result = overlap(a, b)
    assert result.pair.tolist() == result.same_label.tolist() == [True, True, True, False]
    assert result.opposite_label.tolist() == [False, True, False, False]
    assert result.negative.tolist() == [True, False, False, False]
    lines = result.lines("train", "test")
    assert lines[0] == (
        f"pair: 3 of 4 rows of test (75.0 %) stand in train too (all 1 negatives); labels agree in 66.7 %, "
        f"differ in 1; such as {MIRNA} with A, {MIRNA} with B, {OTHER} with C"
    )
    assert lines[3] == "gene: 2 of 4 rows of test (50.0 %) stand in train too (all 1 negatives); such as A, B"
    assert lines[4] == (
        "window: 3 of 4 rows of test (75.0 %) stand in train too (all 1 negatives); such as utr0, utr1, utr2 (as utr3)"
    )
    assert (
        overlap(a, b.take(np.array([3]))).lines("train", "test")[3]
        == "gene: none of 1 rows of test stands in train too"
    )
    assert result.violations(["gene", "window"]) == [
        "gene: 2 of 4 rows, such as A of row 1",
        "window: 3 of 4 rows, such as utr0 of row 1",
    ]
    assert overlap(a, b.take(np.array([3]))).violations(RELATIONS) == []
    with pytest.raises(ValueError, match=r"claims must be among pair, mirna, .* got 'utr'"):
        result.violations(["utr"])


def test_rows_without_labels(rng):
    """A table that is to be predicted has no labels, and maybe no names but its sequences."""
    utr = random_rna(rng, 100)
    a, b = table((1, MIRNA, utr, utr)), table((float("nan"), MIRNA, utr, utr))
    for result in (overlap(a, b), overlap(b, a), overlap(b, b)):
        assert result.pair.all()
        assert not (result.same_label | result.opposite_label).any()
        assert result.lines("a", "b")[0] == (
            f"pair: 1 of 1 rows of b (100.0 %) stand in a too; such as {MIRNA} with {utr[:29]}..."
        )
    assert overlap(a, b).violations(["gene"]) == [f"gene: 1 of 1 rows, such as {utr[:57]}... of row 1"]


def test_a_gene_without_a_symbol_is_named_by_its_utr(rng, tmp_path):
    utr = random_rna(rng, 100)
    (tmp_path / UTRS).parent.mkdir()
    (tmp_path / UTRS).write_bytes(gzip.compress(f"gene_symbol\tutr_id\tutr_seq\n\tENST7\t{utr}\n".encode()))
    assert name_genes(table((1, MIRNA, "CLASH", utr[:50])), tmp_path).gene.tolist() == ["CLASH,ENST7"]


def test_utrs_under_a_gene_name_of_theirs_are_not_told(rng, tmp_path, command, capsys):
    path = tmp_path / "a.tsv"
    path.write_text(f"mirna_seq\tutr_seq\tgene_symbol\n{MIRNA}\t{random_rna(rng, 90)}\tA\n")
    assert command("audit", path, path) == 0
    assert capsys.readouterr().err == ""


def test_empty_tables():
    row, none = table((0, MIRNA, "A", "A" * 50)), table()
    for a, b in ((row, none), (none, row), (none, none)):
        result = overlap(a, b)
        assert set(result.shares.values()) == {0.0}
        assert result.violations(RELATIONS) == []
        assert len(result.lines("a", "b")) == len(RELATIONS)
        assert len(result.same_label) == len(b)
    assert near_identical_groups([]).tolist() == []
    assert near_identical_groups(["", "A", ""]).tolist() == [0, 1, 0]


def test_library_of_variants(rng):
    """Windows of more owners than are counted pair by pair still link: a whole library is one group."""
    utr = random_rna(rng, 200)
    library = [utr[:i] + letter + utr[i + 1 :] for i in range(200) for letter in "ACGU"]
    assert len(set(library)) > 9 * NEIGHBOURS
    assert set(near_identical_groups(library)) == {0}
    rng.shuffle(library)
    rows = [(1, MIRNA, "", utr) for utr in library]
    assert overlap(table(*rows[::2]), table(*rows[1::2])).shares["near_identical"] == 1


@pytest.fixture(scope="module")
def pair_columns(data):
    """The other columns of miraw_pairs, row by row in the order of load_pairs."""
    with (data / PAIRS).open() as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def test_half_split(data, pair_columns):
    """The paper's half-split: files 1-5 for development, 0 and 6-9 for the test."""
    sets = [set(row["sets"].split(",")) for row in pair_columns]
    pairs = load_pairs(data / PAIRS, data)
    development = pairs.take(np.array([bool(s & set("12345")) for s in sets]))
    test = pairs.take(np.array([bool(s & set("06789")) for s in sets]))
    result = overlap(development, test)
    assert result.negative.sum() == 548
    assert result.pair[result.negative].all()
    assert result.same_label[result.negative].all()
    assert result.violations(["pair"])


@pytest.mark.parametrize(
    ("name", "rows", "negatives"), [("half-split-b", 5480, 548), ("half-split-c", 5480, 548),
                                    ("half-split-deeptargetpro", 4023, 417)],
)  # fmt: skip
def test_other_half_splits(data, name, rows, negatives):
    """Every test negative is a training negative there too."""
    (fold,) = PROTOCOLS[name].folds(data)
    result = overlap(fold.train.join(fold.validation), fold.test)
    assert len(fold.test) == rows
    of_test = fold.test.take(fold.test.label < 0.5)
    assert len(set(zip(of_test.mirna, of_test.utr, strict=True))) == negatives
    assert result.pair[result.negative].all()
    assert result.same_label[result.negative].all()


def test_gene_folds(data, pair_columns):
    """The published folds keep genes apart, and near-identical UTRs but for the paralogues AQP12A and AQP12B."""
    fold = np.array([int(row["gene_fold"]) for row in pair_columns])
    pairs = load_pairs(data / PAIRS, data)
    group = near_identical_groups(pairs.utr)
    crossing = set()
    for f in sorted(set(fold)):
        result = overlap(pairs.take(fold != f), pairs.take(fold == f))
        assert result.violations(["pair", "gene"]) == []
        assert result.shares["window"] > 0.15
        crossing |= set(pairs.gene[fold == f][result.near_identical])
        # groups also join UTRs that are near identical only through a third one
        assert np.isin(group[fold == f], group[fold != f])[result.near_identical].all()
    assert crossing == {"AQP12A", "AQP12B"}
