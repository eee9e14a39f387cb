"""FASTA and pair tables as they come: any line end, gzip or not, damaged or empty."""

import gzip
import io
import shutil
import sys

import numpy as np
import pytest

from pairformer import testing
from pairformer.data import (
    PAIRS,
    SITES,
    DataError,
    PairTable,
    data_folder,
    load_pairs,
    load_sites,
    open_text,
    read_fasta,
)  # fmt: skip
from pairformer.sources import load_fold_changes

HEADER = "mirna_id\tmirna_seq\tutr_id\tutr_seq"
FASTA = b"\n>a first\nACGU\nacgt nn\n\n>b\r\nAC\r\nGU\r\n>\nA\n>empty\n>a\nG"
RECORDS = [("a", "ACGUacgtnn"), ("b", "ACGU"), ("record_9", "A"), ("empty", ""), ("a", "G")]


@pytest.fixture
def write(tmp_path):
    def write(content, name="file.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("content", "name"),
    [(FASTA, "a.fa"), (gzip.compress(FASTA), "a.fa.gz"), (gzip.compress(FASTA), "plain.fa"), (FASTA, "lying.gz")],
    ids=["plain", "gzip", "gzip without .gz", "plain with .gz"],
)
def test_fasta(write, content, name):
    path = write(content, name)
    found = list(read_fasta(path))
    assert [(r.name, r.sequence) for r in found] == RECORDS
    assert [r.where for r in found] == [f"{path}:{number}" for number in (2, 6, 9, 11, 12)]


@pytest.mark.parametrize("content", [b"", b"\n\r\n", gzip.compress(b"")], ids=["empty", "blank", "gzip"])
def test_empty_fasta(write, content):
    assert list(read_fasta(write(content))) == []


@pytest.mark.parametrize("content", [FASTA, gzip.compress(FASTA)], ids=["plain", "gzip"])
def test_standard_input(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    assert [(r.name, r.sequence) for r in read_fasta("-")] == RECORDS


def test_byte_order_mark(write):
    """A FASTA saved on Windows begins with a byte order mark, which was taken for text before the first '>'."""
    assert [r.name for r in read_fasta(write(b"\xef\xbb\xbf>a\r\nACGU\r\n"))] == ["a"]
    assert next(iter(PairTable(write(f"\ufeff{HEADER}\nm\tA\tu\tC\n")))).mirna_id == "m"


def test_foreign_bytes_survive(write, tmp_path):
    name = next(read_fasta(write(b">caf\xe9\nACGU\n"))).name
    with (tmp_path / "out").open("w", encoding="utf-8", errors="surrogateescape") as out:
        out.write(name)
    assert (tmp_path / "out").read_bytes() == b"caf\xe9"


def test_fasta_must_start_with_a_name(write):
    path = write("\n\nACGU\n>a\nACGU\n")
    with pytest.raises(DataError, match=rf"^{path}:3: FASTA must start with '>', got 'ACGU'$"):
        list(read_fasta(path))


@pytest.mark.parametrize("damage", [lambda c: c[:15], lambda c: c[:-3], lambda c: c[:-8] + bytes(8)])
def test_damaged_gzip(write, damage):
    """A gzip file cut short raised EOFError, which the command line reported as an interruption."""
    path = write(damage(gzip.compress(f">\t{HEADER}\n1\tm\tA\tu\tC\n".encode())))  # FASTA and table at once
    for read in (lambda: list(read_fasta(path)), lambda: list(PairTable(path))):
        with pytest.raises(DataError, match=rf"^{path}:\d+: gzip data must be whole, got "):
            read()


def test_pair_table(write):
    """Columns in any order; other columns, leading comments, empty lines, CRLF and gzip. A row may start with '#'."""
    header = "note\tutr_seq\tmirna_id\tutr_id\tmirna_seq\tnote"
    text = f"# about\n\n{header}\n1\tC\tm\tu\tA\t2\n\n#2\tG\tm\tu\tA\t\n".replace("\n", "\r\n")
    for content in (text.encode(), gzip.compress(text.encode()), text.replace("\r", "").encode()):
        path = write(content)
        table = PairTable(path)
        assert table.extra_columns == ("note", "note")
        rows = list(table)
        assert [(r.mirna_id, r.mirna, r.utr_id, r.utr) for r in rows] == [("m", "A", "u", "C"), ("m", "A", "u", "G")]
        assert [r.extra for r in rows] == [("1", "2"), ("#2", "")]
        assert [r.where for r in rows] == [f"{path}:4", f"{path}:6"]
        assert [r.fault for r in rows] == [None, None]


def test_ragged_rows_keep_their_place(write):
    path = write(f"{HEADER}\textra\nm\tA\tu\nm\tA\tu\tC\t\nm\tA\tu\tC\tx\ty")
    short, whole, long = PairTable(path)
    assert (short.fault, short.where) == ("row must have 5 cells, got 3", f"{path}:2")
    assert (short.mirna_id, short.utr, short.extra) == ("m", "", ("",))
    assert whole.fault is None
    assert (long.fault, long.extra) == ("row must have 5 cells, got 6", ("x",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: header must name mirna_id once, got 0 times; columns, between tabs, are none"),
        ("# only\n", "1: header must name mirna_id once, got 0 times"),
        ("# about\nmirna_id\tmirna_seq\tutr_id\n", "2: header must name utr_seq once, got 0 times"),
        (f"{HEADER}\tutr_id\n", "1: header must name utr_id once, got 2 times"),
    ],
)  # fmt: skip
def test_bad_header(write, text, message):
    path = write(text)
    with pytest.raises(DataError, match=f"^{path}:{message}"):
        PairTable(path)


def test_files_are_closed(write):
    """A pair table was left open (a ResourceWarning, an error here) unless read to the end."""
    path = write(f"{HEADER}\nm\tA\tu\tC\nm\tA\tu\tC\n")
    next(iter(PairTable(path)))
    next(read_fasta(write(FASTA, "a.fa")))
    with open_text(write(gzip.compress(b"x"), "a.gz")) as stream:
        assert stream.read() == "x"


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("PAIRFORMER_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="no data folder; name one with --data or the variable PAIRFORMER_DATA"):
        data_folder()
    with pytest.raises(FileNotFoundError, match=f"data folder must exist, got {tmp_path}/none"):
        data_folder(tmp_path / "none")
    monkeypatch.setenv("PAIRFORMER_DATA", str(tmp_path))
    assert data_folder() == tmp_path


def test_training_tables(write, tmp_path, rng):
    """Windows in a labelled pair, short ones and those that are no candidate are left out and counted."""
    for name in ("utr3_human", "miraw_cts", "miraw_pairs"):
        (tmp_path / name).mkdir()
    mirna = "UGAGGUAGUAGGUUGUAUAGUU"
    site = testing.random_rna(rng, 25) + "UACUACCUCA" + testing.random_rna(rng, 5)
    utr = testing.random_rna(rng, 200)
    columns = "ensembl_gene\tgene_symbol\tutr_id\tutr_seq\n"
    write(gzip.compress(f"{columns}E1\tLIN28\tE1\t{utr}\nE2\t\tE2\t{utr}\n".encode()), "utr3_human/utr3_human.tsv.gz")
    cts = [
        ("E1", site, "", 1),
        ("E2", site, "", 0),
        ("E1", site, "0", 1),  # any mark says that it is in a pair
        ("E1", site[1:], "", 1),
        ("E1", "C" * 40, "", 0),
    ]
    lines = [f"{gene}\t{mirna}\t{window}\t{label}\t{pair}\n" for gene, window, pair, label in cts]
    header = "mrna_id\tmirna_seq\tmrna_seq\tlabel\tin_miraw_pair\n"
    write(gzip.compress((header + "".join(lines)).encode()), "miraw_cts/cts.tsv.gz")
    sites, counts = load_sites(tmp_path / SITES, tmp_path)
    assert counts == {"rows": 5, "in_a_pair": 1, "no_candidate": 2, "used": 2}
    assert sites.one_hot.shape == (len(sites), 10, 50)
    assert sites.gene.tolist() == ["LIN28", "E2"]
    assert sites.label.tolist() == [1, 0]
    assert sites.esa_score.tolist() == [10, 10]
    write(f"mirna_seq\tutr_id\tgene_symbol\tlabel\n{mirna}\tE1\tLIN28\t1\n{mirna}\tE2\t\t0\n", "miraw_pairs/pairs.tsv")
    pairs = load_pairs(tmp_path / PAIRS, tmp_path)
    assert pairs.utr.tolist() == [utr, utr]
    assert pairs.family.tolist() == ["GAGGUAG"] * 2
    assert pairs.take(np.array([1])).gene.tolist() == ["E2"]


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        (
            "miraw_pairs/pairs.tsv",
            "utr_id\t",
            "utr\t",
            r"pairs\.tsv:1: header must name utr_seq or mrna_seq, or utr_id with",
        ),
        ("miraw_pairs/pairs.tsv", "\t1\n", "\t2\n", r"pairs\.tsv:2: label must be 0 or 1, got 2"),
        ("miraw_pairs/pairs.tsv", "U1\t", "U9\t", r"pairs\.tsv:2: utr_id must be in .*, got U9"),
        ("miraw_pairs/pairs.tsv", "\tLIN28\t", "\t", r"pairs\.tsv:2: row must have 4 cells, got 3"),
        ("miraw_pairs/pairs.tsv", "\tlabel\n", "\tutr_id\n", r"pairs\.tsv:1: header must name mirna_seq label, got"),
        (
            "miraw_pairs/pairs.tsv",
            "gene_symbol",
            "utr_id",
            r"pairs\.tsv:1: header must name each column once, got utr_id twice",
        ),
        (
            "miraw_pairs/pairs.tsv",
            "\nACGU",
            "\nACGN",
            r"pairs\.tsv:2: mirna_seq must be 1 to 35 letters ACGUT, got 'ACGN'",
        ),
        ("miraw_pairs/pairs.tsv", "ACGU\tU1\tLIN28\t1\n", "", r"pairs\.tsv:1: table must have rows below its header"),
    ],
)
def test_bad_training_tables_are_named(tmp_path, table, old, new, message):
    for name in ("utr3_human", "miraw_pairs"):
        (tmp_path / name).mkdir()
    with gzip.open(tmp_path / "utr3_human/utr3_human.tsv.gz", "wt") as out:
        out.write("utr_id\tutr_seq\nU1\tACGU\n")
    text = "mirna_seq\tutr_id\tgene_symbol\tlabel\nACGU\tU1\tLIN28\t1\n"
    (tmp_path / table).write_text(text)
    assert len(load_pairs(tmp_path / PAIRS, tmp_path)) == 1
    assert old in text
    (tmp_path / table).write_text(text.replace(old, new))
    with pytest.raises(DataError, match=message):
        load_pairs(tmp_path / PAIRS, tmp_path)


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("lfc.tsv.gz", "E0\tU0\t", "E0\tU0\tnan", r"lfc\.tsv\.gz:2: log2fc must be a finite number, got 'nan"),
        ("lfc.tsv.gz", "E0\tU0\t", "E0\tU0\tx", r"lfc\.tsv\.gz:2: log2fc must be a finite number, got 'x"),
        ("lfc.tsv.gz", "E0\tU0\t", "E99\tU0\t", r"lfc\.tsv\.gz:2: experiment must be in experiments\.tsv, got E99"),
        ("experiments.tsv", "\tKO\t", "\tko\t", r"experiments\.tsv:3: type must be OE or KO, got ko"),
        ("experiments.tsv", "E0\t", "E0\tN", r"experiments\.tsv:2: mirna_seq must be 1 to 35 letters ACGUT, got 'N"),
        ("gene_utr.tsv", "U0\tG0\tU0", "U0\tG0\tUX", r"gene_utr\.tsv:2: utr_id must be in .*, got UX"),
    ],
)
def test_bad_fold_changes_are_named(folder, tmp_path, table, old, new, message):
    shutil.copytree(folder, tmp_path / "data")
    path = tmp_path / "data/lfc_funmirbench" / table
    text = (gzip.decompress if table.endswith("gz") else bytes)(path.read_bytes()).decode()
    assert old in text
    text = text.replace(old, new, 1)
    path.write_bytes(gzip.compress(text.encode()) if table.endswith("gz") else text.encode())
    with pytest.raises(DataError, match=message):
        load_fold_changes(tmp_path / "data")


@pytest.mark.parametrize(
    "change", [str, lambda t: t.replace("\n", "\r\n"), gzip.compress], ids=["plain", "CRLF", "gzip"]
)
def test_your_own_pairs(write, change):
    """A table with sequences needs no data folder; T and lower case are read as RNA; names fall back on others."""
    text = "label\tutr_seq\tmirna_seq\tgene_symbol\n1\tacgtACGU\tugaggt\tLIN28\n0\tCCCC\tUGAGG\t\n"
    pairs = load_pairs(write(change(text.encode() if change is gzip.compress else text)))
    assert pairs.label.tolist() == [1, 0]
    assert pairs.mirna.tolist() == ["UGAGGU", "UGAGG"]
    assert pairs.utr.tolist() == ["ACGUACGU", "CCCC"]
    assert pairs.gene.tolist() == ["LIN28", "CCCC"]


def test_unlabelled_pairs(write):
    table = write("mirna_seq\tmrna_seq\tutr_id\tmrna_id\nUGAGGU\tACGU\tU1\tM1\nUGAGGU\tACGU\t\tM2\n")
    pairs = load_pairs(table, labelled=False)
    assert np.isnan(pairs.label).all()
    assert (pairs.gene.tolist(), pairs.utr_id.tolist()) == (["M1", "M2"], ["U1", "M2"])
    with pytest.raises(DataError, match=r"1: header must name mirna_seq label, got mirna_seq mrna_seq utr_id mrna_id"):
        load_pairs(table)


def test_words_for_no_utr_are_refused_by_line(write):
    table = write("mirna_seq\tutr_seq\tlabel\nUGAGGU\tACGU\t1\nUGAGGU\tSequence unavailable\t0\n")
    with pytest.raises(DataError, match=f"^{table}:3: utr must hold letters of the IUPAC nucleic acid code, got 'E'"):
        load_pairs(table)


def test_your_own_windows(write):
    """No mark of windows in a pair and no symbols are needed; another length than 40 nt is no site."""
    site = "ACGUACGUACGUACGUACGUACGUAUACUACCUCAACGUA"
    text = f"mirna_seq\tmrna_seq\tmrna_id\tlabel\nUGAGGUAGUAGGUUGUAUAGUU\t{site}\tG\t1\nUGAGGUAGUAG\t{site}A\tG\t0\n"
    table = write(text)
    with pytest.raises(
        DataError, match=rf"^{table}:1: windows of 40 nt with a candidate must have both labels, got 1 "
    ):
        load_sites(table)
    text += f"UGAGGUAGUAG\t{site[:20]} {site[20:]}\tG\t0\n\n"  # blanks are none of it, as in a table to be scored
    text += "UGAGGUAGUAG\tACGU-ACGU\tG\t0\n"
    text += f"UGAGGUAG\t{site}\tG\t0\n"
    sites, counts = load_sites(write(text))
    assert counts == {"rows": 5, "in_a_pair": 0, "no_candidate": 2, "used": 3}
    assert sites.window.tolist() == [site] * 3
    assert sites.one_hot.shape == (3, 10, 50)
    assert sites.label.tolist() == [1, 0, 0]
    assert load_sites(table, esa_min=9)[1] == {"rows": 5, "in_a_pair": 0, "no_candidate": 3, "used": 2}
