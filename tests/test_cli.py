"""Commands as a user types them: tables, files, streams, exit codes."""

import contextlib
import functools
import gzip
import io
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import pairformer
from pairformer import testing
from pairformer.engines import NativeEngine
from pairformer.outputs import PAIR_HEADER, SITE_HEADER, open_output
from pairformer.saved import WEIGHTS

pytest.importorskip("torch")
from pairformer.models import PairFormer

LET7 = "UGAGGUAGUAGGUUGUAUAGUU"


@pytest.fixture
def command(command, model, monkeypatch, capsys):
    """Run ``pairformer`` in this process: arguments and standard input -> exit code, stdout, stderr."""

    def run(name, *arguments, stdin=b""):
        chosen = ["--model", str(model)] if name == "predict" and "--model" not in arguments else []
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin))))
        return command(name, *arguments, *chosen), *capsys.readouterr()

    return run


@pytest.fixture
def files(tmp_path, rng, monkeypatch):
    """A folder with mirnas.fa, utrs.fa.gz and pairs.tsv; the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    utrs = [testing.random_rna(rng, 270) + "CUACCUCA" + "G" * 22, "ACGU", testing.random_rna(rng, 150).lower()]
    (tmp_path / "mirnas.fa").write_text(f">let7 human\n{LET7}\n>bad\nACGN\n")
    fasta = "".join(f">u{i}\n{utr[:90]}\r\n{utr[90:]}\r\n" for i, utr in enumerate(utrs))
    (tmp_path / "utrs.fa.gz").write_bytes(gzip.compress(fasta.encode()))
    rows = [("x", "m1", LET7, "u1", utrs[0], "y"), ("", "m2", "", "u2", utrs[0], "z"), ("x", "m3"),
            ("x", "m4", LET7, "u4", "", "\u00e9"), ("", "m5", LET7, "u5", utrs[0], "y", "past the end")]  # fmt: skip
    header = "note\tmirna_id\tmirna_seq\tutr_id\tutr_seq\tlabel"
    (tmp_path / "pairs.tsv").write_text("\n".join([header, *map("\t".join, rows)]) + "\n")
    return tmp_path


def cells(text):
    """Rows of a table without its '#' lines."""
    return [line.split("\t") for line in text.splitlines() if not line.startswith("#")]


def test_all_against_all(command, files):
    """UTR by UTR; -o and stdout are the same; the header says what was run; any thread count."""
    code, out, err = command("predict", "mirnas.fa", "utrs.fa.gz", "--rejects", "rejects.tsv")
    assert code == 0
    first, header, *_ = out.splitlines()
    sha = PairFormer.load(first.split("model=")[1].split()[0]).metadata["model_sha256"]
    assert first.startswith(f"# pairformer {pairformer.__version__} model=")
    assert first.endswith(f" model_sha256={sha[:16]} engine=native k_max=16 esa_min=6 prior=0.5")
    assert tuple(header.split("\t")) == PAIR_HEADER
    assert " ".join(PAIR_HEADER) == "mirna_id utr_id utr_length n_candidates probability logit status"
    rows = cells(out)[1:]
    assert [row[:2] for row in rows] == [[m, u] for u in ("u0", "u1", "u2") for m in ("let7", "bad")]
    assert [row[-1] for row in rows] == ["ok", "invalid", "no_window", "invalid", "ok", "invalid"]
    assert rows[1][2:6] == ["300", "0", "NA", "NA"]
    assert rows[2][2:6] == ["4", "0", "0.5", "0"]
    assert err.startswith("6 pairs, 1 without a candidate, 3 invalid, ")
    assert command("predict", "mirnas.fa", "utrs.fa.gz", "-o", "out.tsv", "--threads", 1)[:2] == (0, "")
    assert cells((files / "out.tsv").read_text()) == cells(out)
    rejects = cells((files / "rejects.tsv").read_text())
    assert rejects[0] == ["where", "mirna_id", "utr_id", "message"]
    fault = "mirna must have letters ACGU (or T) only, got 'N' at position 4"
    assert rejects[1:] == [["mirnas.fa:3", "bad", f"u{i}", fault] for i in range(3)]


def test_settings_of_the_command_are_those_of_predict(command, model, rng):
    utr = testing.random_rna(rng, 300)
    code, out, _ = command("predict", LET7, utr, "--k-max", 3, "--prior", 0.1, "--engine", "torch")
    assert (code, out.splitlines()[0].partition(" engine=")[2]) == (0, "torch k_max=3 esa_min=6 prior=0.1")
    found = pairformer.predict(LET7, utr, model=model, k_max=3, prior=0.1, engine="torch")
    assert [float(cell) for cell in cells(out)[1][4:6]] == pytest.approx([found.probability, found.logit], rel=1e-4)


def test_pair_table(command, files):
    """Rows out = pairs asked, in order, extra columns last; a ragged row is invalid and says why."""
    code, out, err = command("predict", "--pairs", "pairs.tsv", "--rejects", "rejects.tsv")
    assert code == 0
    header, *rows = cells(out)
    assert header == [*PAIR_HEADER, "note", "label"]
    assert [(row[0], row[6], *row[7:]) for row in rows] == [
        ("m1", "ok", "x", "y"), ("m2", "invalid", "", "z"), ("m3", "invalid", "x", ""), ("m4", "no_window", "x", "é"),
        ("m5", "invalid", "", "y"),
    ]  # fmt: skip
    assert cells((files / "rejects.tsv").read_text())[1:] == [
        ["pairs.tsv:3", "m2", "u2", "mirna must have 1 to 35 letters, got 0"],
        ["pairs.tsv:4", "m3", "", "row must have 6 cells, got 2"],
        ["pairs.tsv:6", "m5", "u5", "row must have 6 cells, got 7"],
    ]
    assert err.startswith("5 pairs, 1 without a candidate, 3 invalid, ")
    stdin = gzip.compress((files / "pairs.tsv").read_bytes().replace(b"\n", b"\r\n"))
    assert command("predict", "--pairs", "-", stdin=stdin)[:2] == (0, out)


def test_sites_file(command, files, model):
    """Columns of the contract, 1-based and inclusive, the same sites as in Python."""
    asked = ("--explain", "--accessibility", "--sites", "-", "-o", "pairs.out")
    code, out, _ = command("predict", "mirnas.fa", "utrs.fa.gz", *asked)
    assert code == 0
    assert out.splitlines()[1] == "# coordinates are 1-based and inclusive"
    columns = (
        "mirna_id utr_id start end seed_start seed_end site_id seed_type esa_score cheap_logit logit position reason "
        "mirna_aligned utr_aligned"
    )
    assert " ".join(SITE_HEADER) == columns
    header, *rows = cells(out)
    assert header == [*SITE_HEADER, "weight", "unpaired"]
    assert all(
        (row[16] == "NA") == (row[7] == "none") and (row[16] == "NA" or 0 <= float(row[16]) <= 1) for row in rows
    )
    utrs = [line.split("\n", 1)[1].replace("\n", "") for line in _text(files / "utrs.fa.gz").split(">")[1:]]
    expected, predict = [], functools.partial(pairformer.predict, model=model, explain=True)
    for number in (0, 2):
        p, candidates = (call(LET7, utrs[number]) for call in (predict, pairformer.scan))
        for site in p.sites:
            seed = (
                ["NA"] * 3 if site["site_id"] < 0 else [site["seed_start"] + 1, site["seed_end"], site["site_id"] + 1]
            )
            numbers = [site["cheap_logit"], site["logit"], site["position"]]
            aligned = candidates.aligned(int(np.flatnonzero(candidates.start == site["start"])[0]))
            expected.append(["let7", f"u{number}", site["start"] + 1, site["end"], *seed, site["seed_type"],
                             site["esa_score"], *numbers, site["reason"]])  # fmt: skip
            assert tuple(rows[len(expected) - 1][13:15]) == aligned
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert row[:9] + row[12:13] == [str(cell) for cell in wanted[:9] + wanted[12:]]
        np.testing.assert_allclose([float(cell) for cell in row[9:12]], wanted[9:12], rtol=1e-5, atol=1e-6)


def test_sites_of_the_repressed_alone(command, files, additive_model, rng, monkeypatch):
    """The other pairs keep their rows, and nothing of a row depends on it; an invalid pair has no site to list."""
    (files / "mirnas.fa").write_text(f">let7\n{LET7}\n>bad\nACGN\n>mir1\nUGGAAUGUAAAGAAGUAUGUAU\n")
    utrs = [testing.random_rna(rng, n) + "CUACCUCA" + testing.random_rna(rng, 90) + "ACAUUCCA" * k + "C" * 40
            for n, k in ((300, 1), (30, 2))]  # fmt: skip
    (files / "utrs.fa.gz").write_bytes(gzip.compress("".join(f">u{i}\n{u}\n" for i, u in enumerate(utrs)).encode()))
    asked = ("predict", "mirnas.fa", "utrs.fa.gz", "--model", additive_model, "--prior", 0.1, "--sites", "sites.tsv")
    asked += ("--draw", "drawn.txt")
    code, everything, _ = command(*asked, "--explain")
    pairs, every = cells(everything)[1:], cells((files / "sites.tsv").read_text())
    drawn = (files / "drawn.txt").read_text().split("\n\n")[1:-1]
    changes = {tuple(row[:2]): float(row[7]) for row in pairs if row[6] == "ok"}
    middle = sum(sorted(changes.values())[1:3]) / 2
    assert code == 0
    assert len(changes) == 4
    read, score = [], NativeEngine.score
    for below, bags in ((middle, 2), (-100, 0), (100, 4)):
        shown = {pair for pair, change in changes.items() if change < below}
        assert command(*asked, "--explain", "--sites-below", below)[:2] == (0, everything)
        text, drawings = ((files / name).read_text() for name in ("sites.tsv", "drawn.txt"))
        assert cells(text) == [every[0], *(row for row in every if tuple(row[:2]) in shown)]
        of = [tuple(drawing.split(":")[0].split(" on ")) for drawing in drawn]
        assert drawings.split("\n\n")[1:-1] == [text for text, pair in zip(drawn, of, strict=True) if pair in shown]
        assert [t.splitlines()[0].rpartition(" ")[2] for t in (text, drawings)] == [f"sites_below={below:g}"] * 2
        assert len(shown) == bags
    assert len({pair[1] for pair in of}) == len({pair[0] for pair in of}) == 2
    monkeypatch.setattr(
        NativeEngine, "score", lambda self, found, *given: read.append(len(found)) or score(self, found, *given)
    )
    (files / "utrs.fa.gz").write_bytes(gzip.compress(b">u\n" + b"GACU" * 100 + b"\n>v\n" + b"GACA" * 110 + b"\n"))
    assert command(*asked, "--sites-below", -100)[0] == 0
    assert read == [0]  # no encoder is asked


def test_a_row_and_a_drawing_of_each_seed_match(command, files, additive_model, model):
    """The window that contributes, as it is among all; drawn the same whether the table is written or not."""
    (files / "utrs.fa.gz").write_bytes(gzip.compress(f">u\n{'G' * 60}CUACCUCA{'G' * 40}CUACCUCG{'G' * 50}\n".encode()))
    asked = ("predict", LET7, "utrs.fa.gz", "--model", additive_model, "-o", "pairs.tsv", "--draw")
    assert command(*asked, "drawn.txt", "--sites", "all.tsv")[0] == 0
    assert command(*asked, "again.txt", "--sites", "matches.tsv", "--seed-matches")[0] == 0
    (_, *every), (_, *matches) = (cells((files / name).read_text()) for name in ("all.tsv", "matches.tsv"))
    assert matches == [row for row in every if float(row[15])]
    assert [(files / name).read_text().split("\n")[0].endswith(" seed_matches=1")
            for name in ("matches.tsv", "all.tsv", "again.txt")] == [True, False, False]  # fmt: skip
    assert [row[4:8] for row in matches] == [["61", "68", "1", "8mer"], ["109", "115", "2", "7mer-m8"]]
    assert [len([row for row in every if row[6] == number]) > 3 for number in ("1", "2")] == [True, True]
    text = (files / "drawn.txt").read_text()
    assert (files / "again.txt").read_text() == text
    one, other = (int(row[2]) for row in matches)
    window = ("G" * 60 + "CUACCUCA" + "G" * 40 + "CUACCUCG" + "G" * 50)[one - 1 : one + 39]
    assert text.split("\n\n")[1] == (
        f"mirna on u: 8mer at 61-68, contribution {matches[0][15]}\n"
        f"UTR   5' {window} 3'  {one}-{one + 39}\n{' ' * (9 + 60 - one)}:||||||||\n"
        f"miRNA 3' {LET7[::-1].rjust(69 - one)} 5'"
    )
    assert f"  {other}-{other + 39}\n" in text.split("\n\n")[2]
    assert text.count("miRNA 3'") == 2
    assert command("predict", LET7, "utrs.fa.gz", "-o", "pairs.tsv", "--draw", "drawn.txt")[0] == 0  # no contributions
    assert "mirna on u: 7mer-m8 at 109-115\n" in (files / "drawn.txt").read_text()


def test_scan_command(command, files, monkeypatch):
    """Every candidate once, whatever the number made into text at a time."""
    code, out, err = command("scan", LET7, "utrs.fa.gz", "--esa-min", 8)
    assert code == 0
    assert err.startswith("3 pairs, 1 without a candidate, 0 invalid, ")
    header, *rows = cells(out)
    assert " ".join(header) == "mirna_id utr_id start end esa_score position mirna_aligned utr_aligned"
    utr = _text(files / "utrs.fa.gz").split(">")[1].split("\n", 1)[1].replace("\n", "")
    found = pairformer.scan(LET7, utr, 8)
    starts = [(int(row[2]) - 1, int(row[3]), int(row[4])) for row in rows if row[1] == "u0"]
    wanted = zip(found.start.tolist(), (found.start + 40).tolist(), found.esa_score.tolist(), strict=True)
    assert starts == list(wanted)
    monkeypatch.setattr("pairformer.cli.ROWS", 7)
    assert command("scan", LET7, "utrs.fa.gz", "--esa-min", 8)[1] == out
    assert command("scan", "mirnas.fa", "utrs.fa.gz")[2].count("mirnas.fa:3: bad: mirna must have letters") == 1


def _text(path):
    return gzip.decompress(path.read_bytes()).decode().replace("\r\n", "\n")


def test_first_reason_is_told(command, files):
    """Without --rejects a job full of invalid pairs said only how many they were."""
    code, _, err = command("predict", "mirnas.fa", "utrs.fa.gz")
    assert code == 0
    first, summary = err.splitlines()
    assert first.startswith(
        "mirnas.fa:3: bad: mirna must have letters ACGU (or T) only, got 'N' at position 4; all reasons"
    )
    assert summary.startswith("6 pairs, 1 without a candidate, 3 invalid")


def test_a_fault_of_a_utr_is_told_where_it_stands(command, files):
    (files / "u.fa").write_text(f">u0\n{'ACGU' * 20}\n>ENSG1|ENST1\nSequence unavailable\n")
    code, _, err = command("predict", "mirnas.fa", "u.fa", "--rejects", "bad.tsv")
    assert code == 0
    reasons = [row[:3] for row in cells((files / "bad.tsv").read_text())[1:]]
    assert reasons == [
        ["mirnas.fa:3", "bad", "u0"],
        ["u.fa:3", "let7", "ENSG1|ENST1"],
        ["mirnas.fa:3", "bad", "ENSG1|ENST1"],
    ]
    wanted = "u.fa:3: ENSG1|ENST1: utr must hold letters of the IUPAC nucleic acid code, got 'e' at position 2"
    assert wanted in command("scan", LET7, "u.fa")[2]
    code, _, err = command("predict", LET7, "u.fa", "--strict", "-o", "out.tsv")
    assert (code, wanted in err) == (65, True)


def test_long_sequence_as_argument(command, rng):
    """A sequence longer than a file name may be (255) raised OSError."""
    code, out, _ = command("predict", LET7, testing.random_rna(rng, 3000))
    assert code == 0
    assert cells(out)[1][:3] == ["mirna", "utr", "3000"]
    assert command("predict", "A" * 40, "ACGU")[0] == 0


def test_nothing_asked(command, files):
    (files / "empty.fa").touch()
    code, out, err = command("predict", LET7, "empty.fa", "--sites", "sites.tsv", "--rejects", "rejects.tsv")
    assert (code, cells(out)) == (0, [list(PAIR_HEADER)])
    assert err.startswith("empty.fa holds no record\n0 pairs, 0 invalid, ")


def test_records_of_one_name_are_told(command, files, rng):
    utrs = [testing.random_rna(rng, 60) for _ in range(4)]
    records = [f">{name}\n{utr}\n" for name, utr in zip(["a 1", "b", "a 2", "b"], utrs, strict=True)]
    (files / "u.fa").write_text("".join(records))
    code, out, err = command("predict", LET7, "u.fa")
    assert [row[1] for row in cells(out)[1:]] == ["a", "b", "a", "b"]
    assert (code, err.splitlines()[0]) == (0, "u.fa:5: a: another record has that name, which ends at the first blank; "
                                              "rows of both look alike")  # fmt: skip
    assert len(err.splitlines()) == 2


def test_letters_passed_over_are_told(command, files, rng, model):
    """Gaps of an alignment, or a protein, took windows away and nothing said so."""
    utr = testing.random_rna(rng, 100)
    (files / "p.fa").write_text(f">short\nMKV\n>gap\n{utr[:50]}-{utr[50:]}\n>p2\n{'MKVLATEF' * 10}\n>u\n{'C' * 50}\n")
    code, out, err = command("predict", LET7, "p.fa")
    assert code == 0
    status = [row[PAIR_HEADER.index("status")] for row in cells(out)[1:]]
    assert status == ["no_window", "ok", "no_candidate", "no_candidate"]
    told, summary = err.splitlines()
    assert told == ("p.fa:3: UTR gap: 40 windows hold letters outside ACGU and were passed over; remove gaps; "
                    "pairs like this: 2")  # fmt: skip
    assert summary.startswith("4 pairs, 3 without a candidate, 0 invalid")
    assert command("scan", LET7, "p.fa")[2].splitlines()[0] == told
    found = pairformer.predict([LET7] * 3, [f"{utr[:50]}-{utr[50:]}", utr, f"{utr[:50]} {utr[50:]}"], model=model)
    assert found.n_dropped.tolist() == [40, 0, 0]
    assert found[0].n_dropped == 40
    assert found.message[2] == "utr must hold no blanks, got ' ' at position 51; pass ''.join(utr.split())"
    (files / "blanks.tsv").write_text(f"mirna_id\tmirna_seq\tutr_id\tutr_seq\nm\t{LET7} \tu\t {utr[:50]} {utr[50:]}\n")
    assert float(cells(command("predict", "--pairs", "blanks.tsv")[1])[1][5]) == pytest.approx(found.logit[1], rel=1e-5)


def test_an_output_takes_its_place_when_it_is_whole(command, files):
    """A run that failed emptied the results of one before."""
    for suffix in ("", ".gz"):
        table, done = files / f"out.tsv{suffix}", ("predict", LET7, "utrs.fa.gz", "-o", f"out.tsv{suffix}")
        assert command(*done)[0] == 0
        old = table.read_bytes()
        assert len(cells((gzip.decompress(old) if suffix else old).decode())) == 4
        assert not (files / f"out.tsv{suffix}.part").exists()
        (files / "bad.fa").write_text(f">a\n{'ACGU' * 20}\nACGU>b\n")
        code, _, err = command("predict", LET7, "bad.fa", "-o", f"out.tsv{suffix}")
        assert code == 65
        assert "bad.fa:3: FASTA must have '>' only where a line begins, got 'ACGU>b'" in err
        assert f"what was written is in {table}.part" in err
        assert table.read_bytes() == old
        left = (files / f"out.tsv{suffix}.part").read_bytes()
        assert len(cells((gzip.decompress(left) if suffix else left).decode())) == 1
        assert command(*done, "--sites", "none/sites.tsv")[0] == 74
        assert table.read_bytes() == old
    (files / "link.tsv").symlink_to("out.tsv.gz")  # what a link leads to says how it is written
    assert command("predict", LET7, "utrs.fa.gz", "-o", "link.tsv")[0] == 0
    assert (files / "out.tsv.gz").read_bytes() == old
    assert (files / "link.tsv").is_symlink()
    (files / "cut.gz").write_bytes(gzip.compress(b">a\nACGU\n>b\nACGU\n", mtime=0)[:-4])
    assert command("predict", LET7, "cut.gz", "-o", "out.tsv")[0] == 65
    assert [row[1] for row in cells((files / "out.tsv.part").read_text())[1:]] == ["a"]  # what came before the damage
    assert command("predict", "mirnas.fa", "utrs.fa.gz", "--strict", "-o", "out.tsv")[0] == 65
    assert len(cells((files / "out.tsv.part").read_text())) == 7


def test_two_runs_may_write_one_output(files, monkeypatch):
    monkeypatch.chdir(files)
    with contextlib.ExitStack() as one, contextlib.ExitStack() as other:
        first, second = (open_output(run, "both.tsv") for run in (one, other))
        first.write("first\n" * 3)
        second.write("second\n")
        other.close()
        assert (files / "both.tsv").read_text() == "second\n"
    assert (files / "both.tsv").read_text() == "first\n" * 3
    assert not list(files.glob("both*.part"))


def test_foreign_bytes_in_names(command, files):
    (files / "u.fa").write_bytes(b">caf\xe9\nACGU\n")
    assert command("predict", LET7, "u.fa", "-o", "out.tsv")[0] == 0
    assert b"\nmirna\tcaf\xe9\t4\t" in (files / "out.tsv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--pairs", "pairs.tsv", "--strict"], 65, "pairs.tsv:3: m2: mirna must have 1 to 35 letters, got 0"),
        (["mirnas.fa", "utrs.fa.gz", "--strict"], 65, "mirnas.fa:3: bad: mirna must have letters"),
        (["A" * 36, "ACGU", "--strict"], 65, "argument MIRNA: mirna: mirna must have 1 to 35 letters, got 36"),
        ([LET7, "pairs.tsv"], 65, "pairs.tsv:1: FASTA must start with '>', got 'note"),
        (["--pairs", "mirnas.fa"], 65, "mirnas.fa:1: header must name mirna_id once, got 0 times"),
        ([LET7, "cut.gz"], 65, "cut.gz:3: gzip data must be whole, got Compressed file ended"),
        (["--pairs", "none.tsv"], 66, "none.tsv: No such file or directory"),
        ([LET7, "no-file.fa"], 66, "utr must be letters ACGUTN or a FASTA file, got 'no-file.fa'; no such file"),
        (["", "ACGU"], 66, "mirna must be letters ACGUTN or a FASTA file, got ''; no such file"),
        ([LET7, "utrs"], 66, "utr must be letters ACGUTN or a FASTA file, got 'utrs'; no such file"),
        (["mirnas.fa", "utrs.fa.gz", "--explain"], 2, "--explain adds a column to the site table; name one"),
        (
            ["mirnas.fa", "utrs.fa.gz", "--accessibility"],
            2,
            "--accessibility adds a column to the site table; name one",
        ),
        (
            [LET7, "ACGU", "--sites", "-", "-o", "a", "--sites-below", "0"],
            2,
            "--sites-below needs a model with additive",
        ),
        ([LET7, "ACGU", "--model", "default", "--sites-below", "0"], 2, "name a file with --sites or --draw"),
        ([LET7, "ACGU", "--seed-matches"], 2, "--seed-matches shortens the site table; name one with --sites FILE"),
        ([LET7, "ACGU", "--draw", "-"], 2, "after an error), got '-' twice"),
        ([LET7, "."], 66, "utr must be letters ACGUTN or a FASTA file, got the directory ."),
        (
            [LET7, "ACGU", "--model", "none"],
            66,
            "model must be default, paper or a directory with config.json, got none",
        ),
        ([LET7], 2, "give MIRNA and UTR, or --pairs"),
        ([LET7, "ACGU", "--pairs", "pairs.tsv"], 2, "give MIRNA and UTR, or --pairs, not both"),
        (["-", "-"], 2, "only one of MIRNA and UTR can be '-'"),
        ([LET7, "ACGU", "--k-max", "0"], 2, "--k-max"),
        ([LET7, "ACGU", "--threads", "-1"], 2, "--threads"),
        ([LET7, "ACGU", "--engine", "fast"], 2, "'fast' is not one of 'auto', 'native', 'torch'"),
        ([LET7, "ACGU", "--device", "abacus"], 2, "device must be auto, cpu or one PyTorch finds here, got abacus"),
        ([LET7, "ACGU", "-o", "none/out.tsv"], 74, "output must be a writable file, got none/out.tsv; No such file"),
        ([LET7, "ACGU", "--sites", "-"], 2, "after an error), got '-' twice"),
        ([LET7, "ACGU", "-o", "a", "--rejects", "./a"], 2, "after an error), got './a' twice"),
        ([LET7, "ACGU", "-o", "."], 74, "output must be a writable file, got .; Is a directory"),
        ([LET7, "utrs.fa.gz", "-o", "utrs.fa.gz"], 2, "got 'utrs.fa.gz' twice or as an input"),
        ([LET7, "utrs.fa.gz", "-o", "hard.gz"], 2, "got 'hard.gz' twice or as an input"),
        ([LET7, "ACGU", "-o", "a", "--sites", "a.part"], 2, "got 'a.part' twice or as an input"),
        ([LET7, "b.part", "-o", "b"], 2, "got 'b' twice or as an input"),
        ([LET7, "ACGU", "--sites", ""], 74, "output must be a writable file, got"),
        ([LET7, "ACGU", "--model", WEIGHTS / "fold"], 2, "model must be as PairFormer.save wrote it, got"),
        ([LET7, "ACGU", "-o", "/dev/null", "--sites", "/dev/null"], 0, "1 pairs, 1 without a candidate, 0 invalid"),
    ],
)
def test_exit_codes(command, files, arguments, code, message):
    """Among them: a cut gzip file was "interrupted" (130), an output over an input emptied it."""
    (files / "cut.gz").write_bytes(gzip.compress(b">a\nACGU\n")[:-4])
    (files / "hard.gz").hardlink_to(files / "utrs.fa.gz")
    (files / "b.part").write_text(">b\nACGU\n")
    before = (files / "utrs.fa.gz").read_bytes()
    found, _, err = command("predict", *arguments)
    assert found == code, err
    assert message in err
    assert "Traceback" not in err
    assert (files / "utrs.fa.gz").read_bytes() == before
    assert (files / "b.part").read_text() == ">b\nACGU\n"


def test_help(command):
    for name in ("predict", "scan", "train"):
        code, out, err = command(name, "--help")
        assert (code, err) == (0, "")
        assert out.startswith(f"Usage: pairformer {name}")
    assert command("--version")[1] == f"pairformer, version {pairformer.__version__}\n"


# As a user types it

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | {"OMP_NUM_THREADS": "1"}


def typed(*arguments, stdout=subprocess.PIPE, stdin=b""):
    command = [sys.executable, "-m", "pairformer", *map(str, arguments)]
    done = subprocess.run(
        command, input=stdin, stdout=stdout, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_standard_input_is_not_overwritten(tmp_path):
    (tmp_path / "u.fa").write_text(">u\nACGU\n")
    with (tmp_path / "u.fa").open() as stdin:
        command = [sys.executable, "-m", "pairformer", "scan", LET7, "-", "-o", str(tmp_path / "u.fa")]
        assert subprocess.run(command, stdin=stdin, env=ENVIRONMENT, timeout=60, check=False).returncode == 2
    assert (tmp_path / "u.fa").read_text() == ">u\nACGU\n"


def test_typed(model):
    stdin = gzip.compress(b">u\nACGU\n>v\n" + b"A" * 50)
    code, out, err = typed("predict", LET7, "-", "--model", model, stdin=stdin)
    assert code == 0
    rows = cells(out.decode())[1:]
    assert rows == [
        ["mirna", "u", "4", "0", "0.5", "0", "no_window"],
        ["mirna", "v", "50", "0", "0.5", "0", "no_candidate"],
    ]
    assert err.startswith("2 pairs, 2 without a candidate, 0 invalid")


def test_a_pipe_can_be_an_output():
    """As in -o >(gzip), whose path leads nowhere that could be opened."""
    reader, writer = os.pipe()
    arguments = [sys.executable, "-m", "pairformer", "scan", LET7, "ACGU" * 12, "-o", f"/dev/fd/{writer}"]
    assert subprocess.run(arguments, pass_fds=[writer], capture_output=True).returncode == 0
    os.close(writer)
    with open(reader) as pipe:
        assert len(cells(pipe.read())) == 10


@pytest.mark.parametrize("records", [1, 20_000])
def test_closed_pipe_is_silent(tmp_path, records):
    """Output small enough to wait for the last flush ended in a message of the interpreter."""
    (tmp_path / "u.fa").write_text("".join(f">u{i}\n{'CUACCUCA' * 5}\n" for i in range(records)))
    reader, writer = os.pipe()
    os.close(reader)
    code, _, err = typed("scan", LET7, tmp_path / "u.fa", "--esa-min", 0, stdout=writer)
    os.close(writer)
    assert code == 1
    assert err.splitlines()[1:] == []
    assert err == "" or err.startswith(f"{records} pairs")


def test_closed_streams(tmp_path):
    """Closed standard streams (``2>&-``) ended in an AttributeError."""
    command = [sys.executable, "-m", "pairformer", "scan", "-", "ACGU", "-o", str(tmp_path / "out.tsv")]
    shell = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", shell, "sh", *command], env=ENVIRONMENT, timeout=60, check=False)
    assert done.returncode == 0
    assert len(cells((tmp_path / "out.tsv").read_text())) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk():
    """A write that fails is an error of one line, not a traceback."""
    with open("/dev/full", "wb") as full:
        code, _, err = typed("scan", LET7, "CUACCUCA" * 6, stdout=full)
    assert code == 74
    assert err.splitlines()[-1] == "pairformer: [Errno 28] No space left on device"
    assert "Traceback" not in err


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(kind):
    """Ctrl-C, or what timeout and batch systems send, while standard input is read."""
    # A test run in the background inherits an ignored SIGINT; a terminal's child does not.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import pairformer.__main__"
    with subprocess.Popen(
        [sys.executable, "-c", code, "scan", "-", "ACGU"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        process.stdin.write(b">x\n" + b"ACGU\n" * 100_000)  # more than a pipe holds: returns once it is being read
        process.send_signal(kind)
        assert process.wait(30) == 130
        assert process.stdout.read() == b""
        assert process.stderr.read().strip() == b"interrupted"


def test_a_signal_that_is_ignored_stays_so():
    """As under nohup or trap; and the commands run in a thread."""
    code = """if True:
        import signal, sys, threading
        from pairformer import cli
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.argv = ["pairformer", "--version"]
        for run in (cli.main, threading.Thread(target=cli.main).run):
            run()
        thread = threading.Thread(target=cli.main)
        thread.start()
        thread.join()
        signal.raise_signal(signal.SIGTERM)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr, done.stdout.count(b"pairformer, version")) == (0, b"", 3)


def test_a_table_written_again_keeps_who_may_read_it(command, files):
    (files / "out.tsv").touch(0o600)
    assert command("predict", LET7, "utrs.fa.gz", "-o", "out.tsv")[0] == 0
    assert (files / "out.tsv").stat().st_mode & 0o777 == 0o600


def test_a_packed_table_does_not_tell_the_time(command, files):
    """Equal runs give equal files, whenever they are made."""
    assert command("predict", LET7, "utrs.fa.gz", "-o", "out.tsv.gz")[0] == 0
    assert (files / "out.tsv.gz").read_bytes()[4:8] == bytes(4)  # the time in gzip's header
