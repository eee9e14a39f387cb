"""Folding: windows, bad letters, the command, and the protocols, on small models."""

import csv
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pairformer
from pairformer.folding import decode, dot_bracket, equilibrium, f1, pairs_of
from pairformer.testing import random_rna

torch = pytest.importorskip("torch")
from pairformer.fold import Folder  # noqa: E402
from pairformer.fold_config import FoldConfig  # noqa: E402
from pairformer.models import RNAformer  # noqa: E402
from pairformer.models.rnaformer import AxialAttention, pair_probabilities, sdp_axial_attention  # noqa: E402
from pairformer.saved import model_directory  # noqa: E402
from pairformer.structures import TEST, known, read_parquet  # noqa: E402

WINDOW = 20
SMALL = FoldConfig(16, 1, 2, expand=1, dropout=0.0, max_length=WINDOW, distance_buckets=8, pair_types=True,
                   symmetric=True, final_bias=-1.0, passes=2, threshold=0.3)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Directory of a small model whose pairs depend on letters and distance."""
    torch.manual_seed(2020)
    model = RNAformer(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp("fold")
    model.save(directory, half=False)
    return directory


def mean_over_windows(model, sequence, window=WINDOW):
    """The rule in words: fold each window by itself, average a pair over the windows that hold both its bases, and
    what is unpaired over those that hold a base."""
    length = len(sequence)
    begins = [0] if length <= window else [*range(0, length - window, window // 2), length - window]
    total, count, unpaired = np.zeros((length, length)), np.zeros((length, length)), [[] for _ in sequence]
    for begin in begins:
        matrix = pair_probabilities(model, [sequence[begin : begin + window]], SMALL.passes)[0]
        for i, j in np.ndindex(matrix.shape):
            if abs(i - j) > 3:
                total[begin + i, begin + j] += matrix[i, j]
                count[begin + i, begin + j] += 1
        for i, row in enumerate(matrix):
            left = 1 - sum(value for j, value in enumerate(row) if abs(i - j) > 3)
            unpaired[begin + i].append(min(max(left, 0), 1))
    return total / np.maximum(count, 1), [np.mean(said) for said in unpaired]


@pytest.mark.parametrize("length", [1, 19, 20, 21, 30, 47])
def test_windows_are_averaged(place, rng, length):
    sequence = random_rna(rng, length)
    fold = pairformer.fold(sequence, model=place, threads=1)
    expected, unpaired = mean_over_windows(RNAformer.load(place), sequence)
    expected[expected < 0.001] = 0
    np.testing.assert_allclose(fold.matrix(), expected, atol=1e-5)
    np.testing.assert_allclose(fold.unpaired, unpaired, atol=1e-5)
    assert fold.structure == dot_bracket(fold.pairs, length)
    assert all(fold.matrix()[i, j] > SMALL.threshold and j - i > 3 for i, j in fold.pairs)
    assert len(np.unique(fold.pairs)) == fold.pairs.size
    if length > 40:
        assert len(fold.pairs)


def test_neither_batch_nor_threads_matter(place, rng):
    sequences = [random_rna(rng, rng.randint(0, 50)) for _ in range(30)]
    together = pairformer.fold(sequences, model=place, threads=2)
    for sequence, fold in zip(sequences, together, strict=True):
        alone = pairformer.fold(sequence, model=place, threads=1)
        assert fold.sequence == sequence
        np.testing.assert_allclose(fold.matrix(), alone.matrix(), atol=2e-3)
    before = torch.get_num_threads()
    again = pairformer.fold(sequences, model=place, threads=1)
    assert torch.get_num_threads() == before
    for one, other in zip(together, again, strict=True):
        np.testing.assert_array_equal(one.probability, other.probability)


def attends(model):
    """What its blocks attend by."""
    return {module.attention for module in model.modules() if isinstance(module, AxialAttention)}


def test_fused_attention_folds_alike(place, tmp_path, rng):
    """Under Triton's interpreter where there is no GPU; a CPU attends by PyTorch."""
    pytest.importorskip("triton")
    from pairformer.kernels import use_kernels
    from pairformer.kernels.axial_attention import axial_attention

    RNAformer.load(place).save(tmp_path, half=False)
    sequences = [random_rna(rng, length) for length in (0, 13, 20, 20)]
    folder = Folder(tmp_path, device="cpu", threads=2)
    plain = folder.fold(sequences)
    assert attends(folder.model) == {sdp_axial_attention}
    use_kernels(folder.model)
    assert attends(folder.model) == {axial_attention}
    for one, other in zip(folder.fold(sequences), plain, strict=True):
        np.testing.assert_allclose(one.matrix(), other.matrix(), atol=2e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_folds_as_a_cpu_does(place, rng):
    """By the fused attention."""
    from pairformer.kernels.axial_attention import axial_attention

    sequences = [random_rna(rng, length) for length in (0, 13, 20, 33, 47)]
    folder = Folder(place, device="cuda")
    assert attends(folder.model) == {axial_attention}
    for one, other in zip(folder.fold(sequences), pairformer.fold(sequences, model=place, device="cpu"), strict=True):
        np.testing.assert_allclose(one.matrix(), other.matrix(), atol=2e-3)


def test_windows_longer_than_what_was_trained_on(place, tmp_path, rng):
    model = RNAformer.load(place)
    model.config = replace(SMALL, window=40)
    model.save(tmp_path, half=False)
    for length in (35, 47):
        sequence = random_rna(rng, length)
        found = pairformer.fold(sequence, model=tmp_path, threads=1)
        expected, unpaired = mean_over_windows(model, sequence, 40)
        np.testing.assert_allclose(found.matrix(), np.where(expected < 0.001, 0, expected), atol=1e-5)
        np.testing.assert_allclose(found.unpaired, unpaired, atol=1e-5)
        assert np.diff(found.possible).max() >= WINDOW


def test_rewritten_model_is_read_again(place, tmp_path, rng):
    sequence, model = random_rna(rng, 30), RNAformer.load(place)
    model.save(tmp_path, half=False)
    first = pairformer.fold(sequence, model=tmp_path).matrix()
    model.head.bias.data += 1
    model.save(tmp_path, half=False)
    assert (pairformer.fold(sequence, model=tmp_path).matrix() > first).sum() > 30


def test_nearest_pairs_are_impossible(place):
    found, free = pairformer.fold("ACGU", model=place), pairformer.fold("ACGU", model=place, min_loop=0)
    assert (len(found.possible), found.unpaired.min()) == (0, 1)
    assert len(free.possible) == 6
    assert free.unpaired.max() < 1


@pytest.mark.parametrize("length", [0, 12, 120, 500, 700])
def test_energies_alone(rng, length):
    sequence = random_rna(rng, length)
    fold = pairformer.fold(sequence, model="energies", threads=1)
    begins = [0] if length <= 500 else [0, length - 500]
    expected = np.zeros((len(begins), length, length))
    for total, begin in zip(expected, begins, strict=True):
        (matrix,) = equilibrium([sequence[begin : begin + 500]])
        total[begin : begin + 500, begin : begin + 500] = matrix
    expected = expected.sum(0)
    expected[200:500, 200:500] /= len(begins)
    expected[expected < 0.001] = 0
    np.testing.assert_allclose(fold.matrix(), expected, atol=1e-6)
    np.testing.assert_array_equal(fold.pairs, decode(fold.matrix(), 0.5, min_loop=3))


def test_threads_and_letters_of_energies(rng):
    sequences = [random_rna(rng, rng.randint(0, 60)) for _ in range(40)]
    for one, other in zip(equilibrium(sequences), equilibrium(sequences[::-1], threads=3)[::-1], strict=True):
        np.testing.assert_array_equal(one, other)
    for wrong, message in ((["ACGU", "acgt"], "sequences must have letters ACGUN, got acgt"),
                           ("ACGU", "sequences must be a list of strings, got 'ACGU'")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            equilibrium(wrong)


def test_energies_need_no_pytorch():
    """In a process that has none; batch, threads and letters as of any model."""
    code = (
        "import sys; sys.modules['torch'] = None; import pairformer; "
        "one, two, bad = pairformer.fold(['GGGGAAAACCCC', 'gggtaaaaaccc', 'x'], model='energies', threads=2); "
        "assert one.structure == '((((....))))', one; assert two.sequence == 'GGGUAAAAACCC'; assert bad.message\n"
        "try: pairformer.fold('ACGU')\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("model fold needs PyTorch; install pairformer with its extra torch")
    assert "or take model energies" in done.stdout


@pytest.mark.parametrize(("settings", "message"), [
    ({"passes": 2}, "passes must be None for energies, which make none, got 2"),
    ({"device": "cuda"}, "device must be auto or cpu for energies, got 'cuda'"),
])  # fmt: skip
def test_what_energies_do_not_have(settings, message):
    with pytest.raises(ValueError, match=message):
        pairformer.fold("ACGU", model="energies", **settings)


def test_letters(place):
    given = ["acgtACGUnnGGGAAACCC", "", "ACGUACGUNNGGGAAACCC", "ACGURYGGGAAACCC", "ACGUNNGGGAAACCC", "ACG-U"]
    one, empty, other, ambiguous, plain, bad = pairformer.fold(given, model=place)
    assert pairformer.fold("RYSWKMBDHVN", model=place).sequence == "N" * 11
    assert one.sequence == other.sequence
    np.testing.assert_allclose(one.matrix(), other.matrix(), atol=1e-6)
    assert ambiguous.sequence == plain.sequence
    assert (empty.structure, len(empty.pairs), len(empty.unpaired), empty.message) == ("", 0, 0, None)
    assert bad.message == "sequence must hold letters of the IUPAC nucleic acid code, got '-' at position 4"
    assert bad.structure == ""
    assert np.isnan([bad.expected_f1, bad.threshold]).all()
    assert bad.matrix().shape == (0, 0)
    with pytest.raises(ValueError, match=r"sequence must hold letters of the IUPAC .* code, got '-' at position 4"):
        pairformer.fold("ACG-U", model=place)
    good, *strange = pairformer.fold(["ACGU", None, b"ACGU", 7, "ßA"], model=place)
    assert good.message is None
    assert [fold.message for fold in strange[:3]] == [
        f"sequence must be a string, got {kind}" for kind in ("NoneType", "bytes", "int")
    ]
    assert strange[3].message.endswith("got 'ß' at position 1")
    assert pairformer.fold([], model=place) == []
    for wrong in (None, b"ACGU", 7):
        with pytest.raises(TypeError, match="sequence must be a string or a sequence of strings"):
            pairformer.fold(wrong, model=place)


@pytest.mark.parametrize("method", ["nested", "matching", "raw"])
def test_pairs_are_those_that_decode_draws(place, rng, method):
    sequence, drawn = random_rna(rng, 40), []
    for threshold in np.quantile(pairformer.fold(sequence, model=place).probability, (0.2, 0.5, 0.95)).tolist():
        found = pairformer.fold(sequence, model=place, method=method, threshold=threshold)
        np.testing.assert_array_equal(found.pairs, decode(found.matrix(), threshold, method, min_loop=3))
        drawn.append(len(found.pairs))
    assert drawn[0] > drawn[2]


@pytest.mark.parametrize("method", ["nested", "matching", "raw"])
def test_an_rna_tells_the_threshold_it_chose(rng, method):
    """Drawn at it, its pairs are the same; with the weights that ship RNAs choose several."""
    sequences = ["", "A", *(random_rna(rng, 40) for _ in range(20))]
    own = pairformer.fold(sequences, method=method)
    for threshold in {fold.threshold for fold in own}:
        for fold, again in zip(own, pairformer.fold(sequences, method=method, threshold=threshold), strict=True):
            assert again.threshold == threshold
            assert fold.threshold != threshold or np.array_equal(fold.pairs, again.pairs)
    assert 1 < len({fold.threshold for fold in own} & {0.1, 0.2, 0.3, 0.4, 0.5}) == len({f.threshold for f in own})


def test_raw_draws_every_pair_above_the_threshold(place, rng):
    sequence = random_rna(rng, 40)
    raw = pairformer.fold(sequence, model=place, method="raw", threshold=0.05)
    assert raw.pairs.tolist() == [
        [i, j] for (i, j), p in zip(raw.possible.tolist(), raw.probability, strict=True) if p > 0.05 and j - i > 3
    ]
    matched = pairformer.fold(sequence, model=place, threshold=0.05)
    assert raw.structure == matched.structure == dot_bracket(matched.pairs, 40)
    assert len(raw.pairs) > len(matched.pairs) > 0


def test_more_crossings_than_brackets_are_left_undrawn(place):
    """Pairs (i, i + 31) for 31 bases in a row all cross each other."""
    folder = Folder(place)
    band = np.zeros((62, 62), np.float32)
    band[:31, 31] = 0.9
    fold = folder._drawn("A" * 62, band, np.zeros(62, np.float32))
    assert len(fold.pairs) == 31
    assert len(pairs_of(fold.structure)) == 30


@pytest.mark.parametrize(("changes", "message"), [
    ({"passes": 0}, "passes must be in"),
    ({"threshold": 0.0}, "threshold must be in"),
    ({"threshold": 2.0}, "threshold must be in"),
    ({"threshold": True}, "threshold must be a finite number, got True"),
    ({"method": "best"}, "method must be one of nested, matching, raw, got 'best'"),
    ({"min_loop": -1}, "min_loop must be 0 or more, got -1"),
    ({"min_loop": 2.5}, "min_loop must be an int, got 2.5"),
    ({"threshold": "a"}, "threshold must be a finite number, got 'a'"),
    ({"threads": -1}, "threads must be 0"),
    ({"device": "nonsense"}, "device must be auto, cpu or one PyTorch finds here"),
])  # fmt: skip
def test_wrong_settings(place, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pairformer.fold("ACGU", **{"model": place, **changes})


def test_nothing_can_pair():
    """However long a loop must be; that there is no pair is then sure."""
    open_rna, loops = pairformer.fold(["A" * 20, "GGGGAAAACCCC"], model="energies", min_loop=10**30)
    assert (open_rna.expected_f1, loops.expected_f1) == (1, 1)
    assert (open_rna.structure, loops.structure) == ("." * 20, "." * 12)
    assert pairformer.fold("A" * 20, model="energies").expected_f1 == 1


def test_models_of_another_kind(place, additive_model):
    with pytest.raises(FileNotFoundError, match=r"model must be fold, energies or a directory with config.json"):
        pairformer.fold("ACGU", model="default")
    with pytest.raises(ValueError, match="config must have fields among"):
        pairformer.fold("ACGU", model=additive_model)
    with pytest.raises(ValueError, match="config must have fields among"):
        pairformer.predict("ACGU", "ACGU", model=place)


def test_svg_has_an_arc_for_each_pair(place, rng):
    fold = pairformer.fold(random_rna(rng, 40), model=place)
    drawing = ElementTree.fromstring(fold.svg())
    kinds = [element.tag.rpartition("}")[2] for element in drawing]
    assert (kinds.count("path"), kinds.count("text")) == (len(fold.pairs), 40)
    assert ElementTree.fromstring(pairformer.fold("", model=place).svg()) is not None


@pytest.mark.parametrize("name", ["x.dbn", "x.dbn.gz"])
def test_a_place_that_cannot_be_written_is_told_first(place, command, tmp_path, capsys, name):
    """It left an empty PATH.part."""
    words = ["fold", "ACGU", "--model", place, "-o", tmp_path / name, "--svg", tmp_path / "nowhere" / "x.svg"]
    assert command(*words) == 74
    told = capsys.readouterr().err
    assert "output must be a writable file" in told
    assert "what was written is in" not in told
    assert not list(tmp_path.iterdir())


def test_arguments_that_are_no_rna(place, command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argument in ("data", "kras", "ACGX", ""):
        assert command("fold", argument, "--model", place) == 66
        assert f"sequence must be letters ACGUTN or a FASTA file, got {argument!r}" in capsys.readouterr().err
    (tmp_path / "x.fa").write_text(">a\nACGU\n>b\nAC-U\n>c\nACGU\n")
    assert command("fold", "x.fa", "--model", place, "--strict") == 65
    assert "x.fa:3: b: sequence must hold letters" in capsys.readouterr().err


def test_command_writes_what_fold_finds(place, command, tmp_path, rng, capsys):
    names, sequences = ["one", "bad", "two"], [random_rna(rng, 45), "ACXG", random_rna(rng, 12)]
    fasta = tmp_path / "x.fa"
    fasta.write_text(
        "".join(f">{name} about it\n{sequence}\n" for name, sequence in zip(names, sequences, strict=True))
    )
    assert command("fold", fasta, "--model", place, "-o", tmp_path / "x.dbn", "--svg", tmp_path / "x.svg") == 0
    told = capsys.readouterr().err
    assert "x.fa:3: bad: sequence must hold letters" in told
    assert "3 sequences, 1 invalid" in told
    assert told.count("folded in windows of that length") == 1
    found = pairformer.fold(sequences, model=place)
    expected = [f">{name}\n{fold.sequence}\n{fold.structure}\n" for name, fold in zip(names, found, strict=True)]
    assert (tmp_path / "x.dbn").read_text() == expected[0] + expected[2]
    assert (tmp_path / "x.svg").read_text() == found[0].svg("one")
    assert command("fold", fasta, "--model", place, "-o", tmp_path / "x.JSONL") == 0
    rows = [json.loads(line) for line in (tmp_path / "x.JSONL").read_text().splitlines()]
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert (rows[1]["message"], rows[1]["structure"], rows[0]["message"]) == (found[1].message, None, None)
    assert [row["threshold"] for row in rows] == [SMALL.threshold, None, SMALL.threshold]
    assert [pair[:2] for pair in rows[0]["pairs"]] == (pairs_of(rows[0]["structure"]) + 1).tolist()
    np.testing.assert_allclose([pair[2] for pair in rows[0]["possible"]], found[0].probability, atol=1e-4)
    np.testing.assert_allclose(rows[0]["unpaired"], found[0].unpaired, atol=1e-4)
    assert rows[0]["expected_f1"] == pytest.approx(found[0].expected_f1, abs=1e-4)
    assert command("fold", sequences[2], "--model", place) == 0
    assert capsys.readouterr().out == f">sequence\n{sequences[2]}\n{found[2].structure}\n"


@pytest.mark.parametrize("name", ["x.ct", "x.BPSEQ", "x.svg", "x.fa", "x.fasta.gz", "x.csv", "x.tsv", "x.json"])
def test_a_format_that_is_not_written_is_refused(command, tmp_path, capsys, name):
    """It was dot-bracket under that name."""
    assert command("fold", "ACGU", "--model", "energies", "-o", tmp_path / name) == 2
    told = capsys.readouterr().err
    assert "--output must end in .dbn for names, sequences and dot-brackets, or in .jsonl for pairs and prob" in told
    assert f"got {tmp_path / name}; --svg FILE draws" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.dbn", "x.txt", "x", "x.fact"])
def test_any_other_name_has_dot_brackets(command, tmp_path, name):
    assert command("fold", "ACGU", "--model", "energies", "-o", tmp_path / name) == 0
    assert (tmp_path / name).read_text() == ">sequence\nACGU\n....\n"


def test_options_of_the_command_are_those_of_fold(place, command, tmp_path, rng):
    settings = {"passes": 1, "threshold": 0.05, "method": "raw", "min_loop": 12}
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    sequence, out = random_rna(rng, 40), tmp_path / "x.jsonl"
    assert command("fold", sequence, "--model", place, "-o", out, *words) == 0
    found, expected = json.loads(out.read_text()), pairformer.fold(sequence, model=place, **settings)
    assert [pair[:2] for pair in found["pairs"]] == (expected.pairs + 1).tolist()
    np.testing.assert_allclose(found["unpaired"], expected.unpaired, atol=1e-4)


@pytest.fixture
def protocols(tmp_path, rng):
    """A data folder of the protocols' tables, of a few RNAs each."""
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    (tmp_path / "rna").mkdir()
    rows = [{"bprna_id": f"r{n}", "split": "bprna_ts0", "source_id": str(n), "sequence": random_rna(rng, length),
             "pairs": "1-9 2-8 0-11"} for n, length in enumerate((160, 81, 80, 30, 45, 12, 15, 33))]  # fmt: skip
    known = [{"bprna_id": "t", "split": "TR0", "label_kind": "full", "rfam_acc": "", "sequence": rows[5]["sequence"],
              "length": 12, "pairs": "0-9", "near_ts0": False, "near_pdb": False}]  # fmt: skip
    known += [known[0] | {"bprna_id": name, "split": "TS0", "rfam_acc": "RF1"} for name in ("r0", "r3")]
    seeds = [
        {
            **known[0],
            "seq_name": "s",
            "rfam_acc": "RF1",
            "clan": "",
            "new_family": False,
            "sequence": "ACGUACGU",
            "length": 8,
        }
    ]
    for name, table in (("rnaformer_test_sets", rows), ("bprna1m90", known), ("rfam142_seed", seeds)):
        pq.write_table(pa.Table.from_pylist(table), tmp_path / "rna" / f"{name}.parquet")
    peers = "\n".join(f"r{n},{'' if n == 3 else n / 10}" for n in range(8))
    (tmp_path / "rna" / "ts0_peer_f1.csv").write_text(f"bprna_id,Peer\n{peers}\n")
    return tmp_path


def test_ts0_report(place, protocols, command, capsys):
    out = protocols / "out"
    words = ("evaluate", "--protocol", "ts0", "--data", protocols, "--out", out)
    assert command(*words, "--model", place) == 0
    printed = capsys.readouterr().out
    assert "1 of 8 sequences stand letter for letter in the training pool" in printed
    assert "intervals are of 7 families, drawn with replacement" in printed
    report = json.loads((out / "report.json").read_text())
    assert report["run"]["passes"] == SMALL.passes
    report = report["summary"]
    assert {group: scores["model"]["n"] for group, scores in report.items()} == {
        "all": 8, "up to 80 nt": 6, "81 to 160 nt": 2, "up to 20 nt, the longest learnt": 2}  # fmt: skip
    rnas = list(csv.DictReader((out / "rnas.tsv").read_text().splitlines(), delimiter="\t"))
    own = np.array([float(row["model"]) for row in rnas])
    np.testing.assert_allclose(report["all"]["model"]["all pairs"]["macro"], own.mean(), atol=1e-4)
    folds = pairformer.fold([row["sequence"] for row in read_parquet(protocols / TEST)], model=place)
    for row, fold in zip(rnas, folds, strict=True):
        assert float(row["expected"]) == pytest.approx(fold.expected_f1, abs=1e-4)
    peer = report["all"]["Peer"]
    there = np.arange(8) != 3
    assert peer["n"] == 7
    np.testing.assert_allclose(peer["difference"]["mean"], (own - np.arange(8) / 10)[there].mean(), atol=1e-4)
    assert peer["difference"]["low"] <= peer["difference"]["mean"] <= peer["difference"]["high"]
    slipping = np.mean([f1(fold.pairs, [[1, 9], [2, 8], [0, 11]], slip=1) for fold in folds])
    np.testing.assert_allclose(report["all"]["model"]["all pairs"]["slip_macro"], slipping, atol=1e-6)
    right = sum(len({(1, 9), (2, 8), (0, 11)} & {*map(tuple, fold.pairs.tolist())}) for fold in folds)
    micro = 2 * right / (sum(len(fold.pairs) for fold in folds) + 3 * len(folds))
    np.testing.assert_allclose(report["all"]["model"]["all pairs"]["micro"], micro, atol=1e-6)
    said = np.concatenate([fold.unpaired for fold in folds])
    free = np.concatenate([[n not in (0, 1, 2, 8, 9, 11) for n in range(len(fold.sequence))] for fold in folds])
    opened = report["all"]["model"]["unpaired"]
    np.testing.assert_allclose(opened["brier"], np.mean((said - free) ** 2), atol=1e-6)
    better = said[free][:, None] - said[~free]
    np.testing.assert_allclose(opened["roc_auc"], np.mean((better > 0) + 0.5 * (better == 0)), atol=1e-6)
    rows = read_parquet(protocols / TEST)
    by_energies = pairformer.fold([row["sequence"] for row in rows], model="energies")
    expected = [f1(fold.pairs, [[1, 9], [2, 8], [0, 11]]) for fold in by_energies]
    np.testing.assert_allclose([float(row["energies"]) for row in rnas], expected, atol=1e-4)
    assert command(*words, "--model", "energies") == 2
    assert "model must be one that learnt, energies have a row beside it" in capsys.readouterr().err
    assert command(*words, "--model", place, "--resamples", 1) == 0
    one = json.loads((out / "report.json").read_text())["summary"]["all"]["Peer"]["difference"]
    assert one["low"] == one["high"]


def test_an_output_is_of_one_protocol_model_and_data(place, protocols, command, capsys):
    """Another run overwrote the report."""
    pq, out, peers = pytest.importorskip("pyarrow.parquet"), protocols / "out", protocols / "rna" / "ts0_peer_f1.csv"
    words = ("evaluate", "--data", protocols, "--out", out, "--device", "cpu", "--protocol")
    assert command(*words, "ts0", "--model", place) == 0
    report = (out / "report.json").read_bytes()
    assert ", cpu, " in json.loads(report)["run"]["machine"]
    table = pq.read_table(protocols / TEST)
    made = table.slice(0, 2).set_column(table.schema.get_field_index("split"), "split", [["synthetic_test"] * 2])
    pq.write_table(made, protocols / TEST)
    for protocol, model in (("synthetic", place), ("ts0", "fold")):
        assert command(*words, protocol, "--model", model) == 2
        pq.write_table(table, protocols / TEST)
        assert f"out must be a new directory or hold the same run, got {out} with other" in capsys.readouterr().err
    peers.write_text(peers.read_text().replace("0.7", "0.8"))
    assert command(*words, "ts0", "--model", place) == 2
    assert "other settings in run.json" in capsys.readouterr().err
    assert (out / "report.json").read_bytes() == report
    assert command("evaluate", "--data", protocols, "--out", out, "--protocol", "ts0", "--device", "nonsense") == 2
    assert "device must be auto, cpu or one PyTorch finds here, got nonsense" in capsys.readouterr().err


def test_missing_data_is_named(command, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    words = ["--protocol", "ts0", "--model", "fold", "--data", tmp_path, "--out", tmp_path / "out"]
    assert command("evaluate", *words) == 66
    assert "rnaformer_test_sets.parquet: No such file" in capsys.readouterr().err


def test_an_rna_that_cannot_be_folded_has_no_pairs(place):
    from pairformer.evaluation.structure import _unpaired

    rows = known([{"id": "a", "sequence": "ACGUA", "pairs": "0-4"}], "id")
    assert _unpaired(pairformer.fold(["AC-UA"], model=place), rows).tolist() == [1] * 5


def test_canonical_nested():
    from pairformer.evaluation.structure import canonical_nested

    #           0123456789
    sequence = "GGACUUCCAU"
    pairs = np.array([[0, 7], [1, 6], [2, 5], [3, 4], [4, 9]])  # (3, 4) is CU; (4, 9) is UU
    assert canonical_nested(sequence, pairs).tolist() == [[0, 7], [1, 6], [2, 5]]
    crossing = np.array([[0, 6], [1, 7], [2, 9]])  # (2, 9) crosses both others, those cross each other
    assert canonical_nested(sequence, crossing).tolist() == [[0, 6]]
    assert canonical_nested(sequence, np.empty((0, 2), np.int64)).shape == (0, 2)
    shared = np.array([[0, 5], [0, 6], [1, 7]])  # (0, 6) shares a base with the first and crosses the last
    assert canonical_nested("GGAAAUUC", shared).tolist() == [[0, 5]]


@pytest.mark.parametrize("words", [["--train"], ["--stage3.epochs", "2"], ["--size", "paper"], ["--k-max", "4"]])
def test_structure_protocols_take_no_training(command, tmp_path, capsys, words):
    assert command("evaluate", "--protocol", "ts0", "--out", tmp_path, "--data", tmp_path, *words) == 2
    assert "takes --model, --data, --out, --resamples, --device, --threads alone" in capsys.readouterr().err


def test_the_weights_that_ship():
    fold = pairformer.fold("GGGGCGCAAAAGCGCCCC")
    assert fold.structure == "(((((((....)))))))"
    place = model_directory("fold", FoldConfig)
    assert sum(path.stat().st_size for path in place.iterdir()) < 6e6
    bent = pairformer.fold("GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA")
    cloverleaf = "(((((((..((((........)))).((((.........)))).....(((((.......))))))))))))...."
    assert f1(pairs_of(bent.structure), pairs_of(cloverleaf)) > 0.85


def test_the_page_runs_as_printed(capsys):
    page = (Path(__file__).parent.parent / "docs" / "fold.md").read_text()
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, scope)
    assert scope["f"].structure
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    for kind, start, unpaired in printed:
        assert f"{kind} {start} {float(unpaired):.3f}" in page
    assert len(printed) == 2


def test_arcs_are_named_and_shaded_by_their_pairs():
    """Positions count from 1; the more probable, the darker."""
    found = pairformer.fold("GGGGAAAACCCCAGGUAAAACC", model="energies", threshold=0.01)
    value = [found.matrix()[i, j] for i, j in found.pairs]
    names = re.findall("<title>(.*?)</title>", found.svg())
    assert names == [f"{i + 1}-{j + 1} {p:.3f}" for (i, j), p in zip(found.pairs.tolist(), value, strict=True)]
    shades = [float(shade) for shade in re.findall('stroke-opacity="(.*?)"', found.svg())]
    assert min(value) < 0.8
    assert shades == pytest.approx([0.2 + 0.8 * p for p in value], abs=0.006)


@pytest.mark.parametrize(("length", "numbers"), [
    (0, []), (9, []), (10, [10]), (200, list(range(10, 201, 10))), (201, [50, 100, 150, 200])])  # fmt: skip
def test_positions_and_ends_are_marked(rng, length, numbers):
    """Under the letter they number, all of it within the drawing."""
    drawing = ElementTree.fromstring(pairformer.fold(random_rna(rng, length), model="energies").svg())
    box = [float(number) for number in drawing.get("viewBox").split()]
    assert box == [0, 0, float(drawing.get("width")), float(drawing.get("height"))]
    name = "{http://www.w3.org/2000/svg}"
    letters, (first, last, *ticks) = drawing.findall(f"{name}text"), drawing.findall(f"{name}g/{name}text")
    assert (first.text, last.text, [int(tick.text) for tick in ticks]) == ("5'", "3'", numbers)
    assert [tick.get("x") for tick in ticks] == [letters[number - 1].get("x") for number in numbers]
    assert len(drawing.findall(f"{name}g/{name}path")) == len(numbers)
    for text in drawing.iter(f"{name}text"):
        assert 3 * len(text.text) <= float(text.get("x")) <= box[2] - 3 * len(text.text)
        assert 10 <= float(text.get("y")) <= box[3] - 2


def test_a_drawing_has_its_record_s_name():
    """Also one with what XML has no letter for."""
    fold = pairformer.fold("ACGU", model="energies")
    assert "<title>" not in fold.svg()
    for name, title in (("<a> & 'b\"", "<a> & 'b\""), ("é\x01\udce9", "é??")):
        drawing = ElementTree.fromstring(fold.svg(name).encode())
        assert (drawing[0].tag.rpartition("}")[2], drawing[0].text) == ("title", title)


def test_a_pair_that_crosses_several_goes_before_they_do():
    """Also where it begins before all of them."""
    from pairformer.evaluation.structure import canonical_nested

    pairs = np.array([[0, 30], [10, 42], [12, 40]])
    assert canonical_nested("G" * 20 + "C" * 23, pairs).tolist() == [[10, 42], [12, 40]]
