"""Training of structure models: what a step sees, parts of a step, pieces of a run, and that hairpins are learnt."""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pairformer import structures
from pairformer.structures import known, load_known, read_structures, save_structures, teacher_sequences

torch = pytest.importorskip("torch")
from pairformer.fold_config import FoldConfig, FoldStageConfig, FoldTrainConfig, fold_recipe  # noqa: E402
from pairformer.models import RNAformer  # noqa: E402
from pairformer.models.rnaformer import encode  # noqa: E402
from pairformer.training import fold  # noqa: E402
from pairformer.training.fold import Draw, train_fold  # noqa: E402

MODEL = FoldConfig(16, 2, 2, expand=1, dropout=0.0, max_length=16, distance_buckets=8, pair_types=True, symmetric=True,
                   final_bias=-3.0, passes=1)  # fmt: skip
STAGE = FoldStageConfig(epochs=2, batch_size=64, lr=1e-2, steps=3, warmup=2)
CONFIG = FoldTrainConfig(teacher_rows=0, bucket=1, most_passes=2, keep_share=0.5, half=False, validation=4,
                         parts=2, teach=replace(STAGE, teacher=1.0), tune=STAGE)  # fmt: skip


def hairpins(rng, count):
    """RNAs whose ends pair with each other, five bases of a loop between."""
    partner = dict(zip("ACGU", "UGCA", strict=True))
    rows: dict[str, dict] = {}
    while len(rows) < count:
        stem = "".join(rng.choices("ACGU", k=rng.randint(3, 5)))
        sequence = stem + "AAAAA" + "".join(partner[letter] for letter in reversed(stem))
        pairs, number = " ".join(f"{i}-{len(sequence) - 1 - i}" for i in range(len(stem))), len(rows)
        rows.setdefault(
            sequence, {"name": f"r{number}", "family": f"f{number % 40}", "sequence": sequence, "pairs": pairs}
        )
    return known(rows.values(), "name", "family")


def run(given, out, config=CONFIG, **more):
    return train_fold(given, None, out, MODEL, config, **more)


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_known_keeps_the_first_of_equal_sequences():
    rows = [{"id": "a", "rfam": "", "sequence": "ACGUA", "pairs": "0-4 1-3"},
            {"id": "b", "rfam": "RF1", "sequence": "GGGCC", "pairs": ""},
            {"id": "c", "rfam": "RF1", "sequence": "ACGUA", "pairs": "0-4"},
            {"id": "d", "rfam": "RF1", "sequence": "ACGUC", "pairs": "0-4 0-3"}]  # fmt: skip
    found = known(rows, "id", "rfam")
    assert found.name.tolist() == ["a", "b", "d"]
    assert found.family.tolist() == ["", "RF1", "RF1"]
    assert [part.tolist() for part in found.pairs] == [[[0, 4], [1, 3]], [], [[0, 4], [0, 3]]]
    assert found.length.tolist() == [5, 5, 5]
    assert found.unpaired().reshape(3, 5).tolist() == [[0, 0, 1, 0, 0], [1] * 5, [0, 1, 1, 0, 0]]


def test_saved_structures_come_back(tmp_path, rng):
    given = hairpins(rng, 7)
    given = replace(given, probability=structures._objects(np.float32([0.5] * len(p)) for p in given.pairs))
    with (tmp_path / "x.npz").open("wb") as out:
        save_structures(given, out)
    found = read_structures(tmp_path / "x.npz")
    assert found.sha256() == given.sha256()
    others = [{"sequence": given.sequence[::-1]}, {"family": given.family[::-1]}, {"pairs": given.pairs[::-1]},
              {"probability": structures._objects(p / 2 for p in given.probability)}]  # fmt: skip
    assert len({given.sha256(), *(replace(given, **other).sha256() for other in others)}) == 5
    assert all(np.array_equal(a, b) for a, b in zip(found.probability, given.probability, strict=True))
    with (tmp_path / "none.npz").open("wb") as out:
        save_structures(given.take(np.arange(0)), out)
    assert len(read_structures(tmp_path / "none.npz")) == 0


def test_the_teachers_sequences(rng):
    pool, utrs = hairpins(rng, 5), ["ACGU" * 30, "AC"]
    found = teacher_sequences(pool, utrs, 40, 16, np.random.default_rng(0))
    assert len(found) == 40
    assert set(found[:20]) <= {sequence[::-1][:16] for sequence in pool.sequence}
    assert all(8 <= len(window) <= 16 and window in utrs[0] for window in found[20:])
    assert len(teacher_sequences(pool, [], 7, 16, np.random.default_rng(0))) == 7


def test_rnafold_probabilities_and_structures():
    pytest.importorskip("RNA")
    sequence = "GGGGGAAAACCCCC"
    folded = structures.rnafold([sequence, "AAAA"])
    stem = {(i, 13 - i) for i in range(5)}
    strong = folded.pairs[0][folded.probability[0] > 0.5]
    assert set(map(tuple, strong.tolist())) == stem
    assert folded.probability[0].max() <= 1.0001
    assert folded.probability[0].min() >= 0.01
    fainter = structures.rnafold([sequence], least=1e-5)
    assert set(map(tuple, fainter.pairs[0].tolist())) > set(map(tuple, folded.pairs[0].tolist()))
    assert len(folded.pairs[1]) == 0
    best = structures.rnafold([sequence, "AAAA"], processes=2, least=None)
    assert set(map(tuple, best.pairs[0].tolist())) == stem


def test_draws_share_a_length_and_spread_over_families(rng):
    given = hairpins(rng, 60)
    family = given.family.copy()
    family[:30], family[30:40] = "large", ""
    given = replace(given, family=family)
    draw, generator = Draw(given, 2, 48), np.random.default_rng(0)
    seen = []
    for _ in range(400):
        batch = draw(generator)
        longest = -(-batch.length.max() // 2) * 2
        assert batch.length.min() > longest - 2
        assert len(batch) == max(1, 48 // longest)
        seen.extend(batch.family.tolist())
    _, at, size = np.unique(family, return_inverse=True, return_counts=True)
    weight = 1 / np.sqrt(size[at])
    weight[family == ""] = weight[family != ""].mean()
    for name in ("large", ""):
        share = np.mean([family == name for family in seen])
        assert share == pytest.approx(weight[family == name].sum() / weight.sum(), abs=0.1)  # lengths differ a little


def test_draws_of_unlimited_cells_are_those_of_ever(rng):
    """So the weights that ship can be made again."""
    draw, generator = Draw(hairpins(rng, 60), 1, 48), np.random.default_rng(0)
    assert [draw(generator).name.tolist() for _ in range(4)] == [
        ["r18", "r4", "r0"], ["r50", "r37", "r42"], ["r57", "r48", "r1"], ["r0", "r42", "r12"]]  # fmt: skip
    assert (STAGE.cells, fold_recipe("cpu")[1].teach.cells, fold_recipe("cpu")[1].tune.cells) == (0, 0, 0)


@pytest.mark.parametrize(("cells", "expected"), [(0, [9, 6, 1]), (999, [9, 6, 1]), (340, [5, 2, 1]), (1, [1, 1, 1])])
def test_a_step_has_so_many_bases_and_cells(cells, expected):
    """Of the longest of a bucket; one RNA at least."""
    rows = [{"name": str(n), "sequence": "A" * n, "pairs": ""} for n in (7, 8, 12, 50)]
    draw = Draw(known(rows, "name"), 4, 76, cells)
    assert draw.count == expected
    batch = draw(np.random.default_rng(0))
    assert len(batch) == dict(zip((8, 12, 52), expected, strict=True))[-(-batch.length.max() // 4) * 4]


def test_training_keeps_to_the_cells_of_its_stage(tmp_path, rng, monkeypatch):
    sizes, own = [], Draw.__call__
    monkeypatch.setattr(Draw, "__call__", lambda self, rng: sizes.append(own(self, rng)) or sizes[-1])
    given = hairpins(rng, 50)
    taught = replace(given, probability=structures._objects(np.ones(len(p), np.float32) for p in given.pairs))
    stages = {"teach": replace(CONFIG.teach, cells=400), "tune": replace(STAGE, teacher=0.5, cells=400)}
    train_fold(given, taught, tmp_path, MODEL, replace(CONFIG, teacher_rows=50, parts=1, **stages))
    assert len(sizes) == 12
    assert all(len(batch) == 400 // batch.length.max() ** 2 for batch in sizes)


def test_the_larger_recipe_follows_the_experiments_of_the_smaller():
    """One pass, short RNAs first, and steps that fit a GPU up to the longest."""
    model, config = fold_recipe("gpu")
    assert (model.passes, config.most_passes, model.max_length) == (1, 1, 160)
    rows = [{"name": str(n), "sequence": "A" * n, "pairs": ""} for n in (16, 160, 500)]
    for stage in (config.teach, config.tune):
        draw = Draw(known(rows, "name"), config.bucket, stage.batch_size, stage.cells)
        assert draw.count == [1000, 39, 3]


def test_parts_of_a_step_make_the_step(tmp_path, rng):
    given = hairpins(rng, 50)
    one, two = (run(given, tmp_path / str(parts), replace(CONFIG, keep_share=1.0, parts=parts)) for parts in (1, 2))
    torch.testing.assert_close(weights(one), weights(two), rtol=1e-3, atol=1e-3)  # saved in half precision
    torch.manual_seed(CONFIG.rng_seed)
    assert (weights(one) - weights(RNAformer(MODEL))).abs().max() > 1e-2


def test_threads_change_nothing(tmp_path, rng):
    given, before = hairpins(rng, 50), torch.get_num_threads()
    one, two = (run(given, tmp_path / str(t), replace(CONFIG, parts=2), threads=t) for t in (1, 2))
    torch.testing.assert_close(weights(one), weights(two), rtol=0, atol=0)
    assert torch.get_num_threads() == before


def test_pieces_of_a_run_make_the_run(tmp_path, rng):
    given = hairpins(rng, 50)
    whole = run(given, tmp_path / "whole", threads=2)
    calls, piece = 0, None
    while piece is None:
        piece = run(given, tmp_path / "pieces", threads=2, seconds=0)
        calls += 1
        assert calls < 9
    assert calls == 2  # an epoch each
    torch.testing.assert_close(weights(whole), weights(piece), rtol=0, atol=0)
    assert RNAformer.load(tmp_path / "pieces" / "model").config.threshold == whole.config.threshold


def test_families_are_held_out(tmp_path, rng, monkeypatch):
    given, drawn = hairpins(rng, 80), []
    own = Draw.__call__
    monkeypatch.setattr(Draw, "__call__", lambda self, rng: drawn.append(own(self, rng)) or drawn[-1])
    run(given, tmp_path / "run", replace(CONFIG, tune=replace(STAGE, steps=40)))
    held_out = {family for family in given.family if zlib.crc32(family.encode()) % 4 == 0}
    seen = {family for batch in drawn for family in batch.family}
    assert held_out
    assert seen == set(given.family) - held_out


def test_the_teacher_does_not_see_them_either(tmp_path, rng, monkeypatch):
    pytest.importorskip("RNA")
    with pytest.raises(FileNotFoundError):
        fold.prepare(lambda: tmp_path, tmp_path / "run", 16, CONFIG)
    assert not (tmp_path / "run").exists()  # it is not taken for a run of these settings
    given = hairpins(rng, 80)
    given = replace(given, family=np.where(np.arange(80) < 8, "", given.family).astype(object))
    monkeypatch.setattr(fold, "load_known", lambda folder, max_length: given)
    monkeypatch.setattr(fold, "load_utrs", lambda folder: {})
    config = replace(CONFIG, teacher_rows=400)
    learnt, teacher = fold.prepare(lambda: tmp_path, tmp_path / "run", 16, config)
    aside = fold.held_out(learnt, 4)
    assert aside.any()
    assert not aside[:8].any()  # of no family
    backwards = {sequence[::-1] for sequence in given.sequence[~aside]}
    assert set(teacher.sequence) <= backwards
    with pytest.raises(ValueError, match="other settings"):
        fold.prepare(lambda: tmp_path, tmp_path / "run", 16, replace(config, teacher_rows=5))
    (tmp_path / "run" / "rows" / "teacher.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"teacher.npz must be as it was prepared.*delete it"):
        fold.prepare(lambda: tmp_path, tmp_path / "run", 16, config)


@pytest.mark.parametrize("seconds", ["nan", "-1"])
def test_seconds_are_checked_before_anything_is_done(tmp_path, rng, command, capsys, seconds):
    words = ("train", "fold", "--data", tmp_path / "nowhere", "--out", tmp_path / "run", "--seconds", seconds)
    assert command(*words) == 2
    assert f"--seconds must be 0 or more, got {float(seconds)}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="seconds must be 0 or more, got"):
        run(hairpins(rng, 20), tmp_path / "run", seconds=float(seconds))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"rows": slice(0)}, "known must have a structure of 16 bases at most to learn, got 0"),
    ({"tune": replace(STAGE, teacher=0.5), "teacher_rows": 9}, "teacher must be given where tune has a share of it"),
    ({"dropout": 0.1}, "parts must be 1 with dropout"),
])  # fmt: skip
def test_wrong_runs(tmp_path, rng, changes, message):
    given, changes = hairpins(rng, 20), dict(changes)
    given = given.take(np.arange(20)[changes.pop("rows", slice(None))])
    model = replace(MODEL, dropout=changes.pop("dropout", 0.0))
    with pytest.raises(ValueError, match=message):
        train_fold(given, None, tmp_path, model, replace(CONFIG, **changes))


def test_nothing_held_out_keeps_the_threshold(tmp_path, rng):
    given = hairpins(rng, 20)
    given = replace(given, family=np.full(20, "", object))
    model = run(given, tmp_path)
    assert model.config.threshold == MODEL.threshold
    assert "held_out_families_f1" not in model.metadata


def test_a_pair_is_learnt_in_both_triangles(tmp_path, rng, monkeypatch):
    seen, own = [], fold.fold_loss
    monkeypatch.setattr(fold, "fold_loss", lambda logit, *given: seen.append(given[0]) or own(logit, *given))
    run(hairpins(rng, 20), tmp_path)
    assert all(target.any() and torch.equal(target, target.transpose(1, 2)) for target in seen)


def test_of_thresholds_that_are_as_good_the_largest_is_kept(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(fold, "_mean_f1", lambda model, rows, thresholds, *rest: np.ones(len(thresholds)))
    assert run(hairpins(rng, 50), tmp_path).config.threshold == 0.6


def test_hairpins_are_learnt(tmp_path, rng):
    given = hairpins(rng, 400)
    config = replace(CONFIG, half=True, tune=replace(STAGE, epochs=4, steps=30, batch_size=160, warmup=10))
    model = train_fold(given, None, tmp_path / "run", MODEL, config, threads=2)
    record = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert record["held_out_families_f1"] > 0.8
    assert model.config.threshold in (None, *np.round(np.arange(0.1, 0.65, 0.05), 2))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in log] == ["tune"] * 4
    assert log[-1]["loss"] < log[0]["loss"]


def test_training_goes_on_from_a_model(tmp_path, rng):
    given = hairpins(rng, 200)
    first = run(given, tmp_path / "first", replace(CONFIG, tune=replace(STAGE, epochs=20, batch_size=160)))
    start, short = tmp_path / "first" / "model", replace(CONFIG, tune=replace(STAGE, epochs=1, steps=1, lr=1e-6))
    longer = replace(MODEL, max_length=20, passes=2)
    model = train_fold(given, None, tmp_path / "more", longer, short, start=start)
    assert (model.config.max_length, model.config.passes) == (20, 2)
    torch.testing.assert_close(weights(model), weights(first), rtol=1e-3, atol=1e-4)
    assert model.metadata["start_sha256"] == first.metadata["model_sha256"]
    first.save(start, {"changed": 1})
    with pytest.raises(ValueError, match="hold the same run"):
        train_fold(given, None, tmp_path / "more", longer, short, start=start)


def test_a_model_to_go_on_from_needs_no_teacher(tmp_path, rng):
    given = hairpins(rng, 60)
    run(given, tmp_path / "first")
    taught = replace(given, probability=structures._objects(np.ones(len(p), np.float32) for p in given.pairs))
    config = replace(CONFIG, teacher_rows=60, tune=replace(STAGE, teacher=0.5))
    train_fold(given, taught, tmp_path / "more", MODEL, config, start=tmp_path / "first" / "model")
    log = [json.loads(line) for line in (tmp_path / "more" / "log.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in log} == {"tune"}


def test_energies_are_of_no_weight_to_a_model_that_learnt_without(tmp_path, rng):
    given, without = hairpins(rng, 20), replace(MODEL, energies=False)
    RNAformer(without).save(tmp_path / "first", half=False)
    config = replace(CONFIG, tune=replace(STAGE, epochs=1, steps=1, lr=1e-12))
    made = train_fold(given, None, tmp_path / "more", replace(MODEL, energies=True), config, start=tmp_path / "first")
    tokens, lengths = encode(given.sequence.tolist())
    expected = RNAformer.load(tmp_path / "first")(tokens, lengths, 1)
    torch.testing.assert_close(made(tokens, lengths, 1), expected, atol=0.01, rtol=0.01)  # saved in half precision
    assert made.config.energies
    with pytest.raises(ValueError, match="energies must be True, as in the model"):
        train_fold(given, None, tmp_path / "less", without, config, start=tmp_path / "more" / "model")


@pytest.mark.parametrize(("model", "config", "message"), [
    ({"width": 32}, {}, "width must be 16, as in the model .* that training goes on from, got 32"),
    ({"symmetric": False}, {}, "symmetric must be True, as in the model"),
    ({}, {"validation": 5}, "validation must be 4, as in the model .*, which learnt other families else, got 5"),
])  # fmt: skip
def test_another_form_is_no_model_to_go_on_from(tmp_path, rng, model, config, message):
    given = hairpins(rng, 20)
    RNAformer(MODEL).save(tmp_path / "first", {"train": {"validation": 4}})
    with pytest.raises(ValueError, match=message):
        train_fold(given, None, tmp_path / "more", replace(MODEL, **model), replace(CONFIG, **config),
                   start=tmp_path / "first")  # fmt: skip


def test_positions_that_are_embedded_keep_their_number(tmp_path, rng):
    placed = replace(MODEL, distance_buckets=0)
    RNAformer(placed).save(tmp_path / "first")
    with pytest.raises(ValueError, match="max_length must be 16, as in the model"):
        train_fold(hairpins(rng, 20), None, tmp_path / "more", replace(placed, max_length=20), CONFIG,
                   start=tmp_path / "first")  # fmt: skip


def test_the_command_trains(tmp_path, rng, command, folder, capsys):
    pytest.importorskip("RNA")
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    given = hairpins(rng, 60)
    rows = [{"bprna_id": name, "split": "VL0" if n < 6 else "TR0", "label_kind": "full", "rfam_acc": family,
             "sequence": sequence, "length": len(sequence), "pairs": " ".join(f"{i}-{j}" for i, j in pairs),
             "near_ts0": n == 7, "near_pdb": False}
            for n, (name, family, sequence, pairs) in enumerate(
                zip(given.name, given.family, given.sequence, given.pairs, strict=True))]  # fmt: skip
    data = tmp_path / "data"
    (data / "rna").mkdir(parents=True)
    (data / "utr3_human").symlink_to(folder / "utr3_human")
    pq.write_table(pa.Table.from_pylist(rows), data / "rna" / "bprna1m90.parquet")
    seeds = [{**row, "seq_name": row["bprna_id"], "clan": "", "new_family": n % 2 == 0} for n, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(seeds[:3]), data / "rna" / "rfam142_seed.parquet")
    ours = {sequence for n, sequence in enumerate(given.sequence) if n >= 6 and n != 7} | {given.sequence[1]}
    assert set(load_known(data).sequence) == ours  # a seed that VL0 has too is learnt
    size = ["--width", 16, "--layers", 1, "--expand", 1, "--max-length", 20, "--distance-buckets", 8]
    size += ["--teacher-rows", 30, "--teach.epochs", 1, "--teach.steps", 2, "--tune.epochs", 1, "--tune.steps", 2]
    assert command("train", "fold", "--data", data, "--out", tmp_path / "run", "--prepare", *size) == 0
    assert "30 folds of the teacher" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()
    assert command("train", "fold", "--data", tmp_path / "nowhere", "--out", tmp_path / "run", *size) == 0
    assert ("give --half false" in capsys.readouterr().err) == fold.halves_are_slow("cpu")
    assert len(read_structures(tmp_path / "run" / "rows" / "teacher.npz")) == 30
    assert command("fold", "GGGGAAAACCCC", "--model", tmp_path / "run" / "model") == 0
    rows = ["--max-length", 32, "--teacher-rows", 30]
    assert command("train", "fold", "--data", data, "--out", tmp_path / "more", "--prepare", *rows) == 0
    more = ["--start", tmp_path / "run" / "model", *rows, "--tune.epochs", 1, "--half", "no"]
    assert command("train", "fold", "--data", tmp_path, "--out", tmp_path / "more", "--tune.steps", 2, *more) == 0
    assert "give --half false" not in capsys.readouterr().err
    assert RNAformer.load(tmp_path / "more" / "model").config.max_length == 32
    assert command("train", "fold", "--data", data, "--out", tmp_path / "other", "--width", 32, *more) == 2
    assert "width must be 16, as in the model" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()  # said before anything is folded


def test_what_cannot_be_gone_on_from(command, tmp_path, capsys):
    """Energies fold without a model, and the refusal of them named them among what could be given."""
    assert command("train", "fold", "--out", tmp_path / "run", "--start", "energies") == 66
    assert "model must be fold or a directory with config.json, got energies" in capsys.readouterr().err


def test_help_of_training(command, capsys):
    """The heading over the small recipe's values said that they are the published form's."""
    assert command("train", "fold", "--help") == 0
    out = capsys.readouterr().out
    assert "An RNAformer:\n" in out
    assert " ".join(out.split()).count("--passes INTEGER Passes over the stack that pairformer.fold makes.") == 1


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="nothing else says what the processor has")
def test_which_processors_are_slow_in_halves():
    """Those without bfloat16 and without AVX-512, by which oneDNN makes up for it; never a GPU."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    if "avx2" not in words or words & {"avx512f", "avx_ne_convert"}:
        pytest.skip("a processor that has bfloat16, or can make up for it")
    assert fold.halves_are_slow("cpu") == torch.backends.mkldnn.is_available()
    assert not fold.halves_are_slow("cuda")


def test_which_structures_are_learnt(tmp_path):
    """Not what is near a test set; of equal sequences bpRNA's where its label has all pairs, else Rfam's."""
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    (tmp_path / "rna").mkdir()
    row = {"bprna_id": "b", "split": "TR0", "label_kind": "full", "rfam_acc": "RF1", "length": 8, "pairs": "0-7",
           "near_ts0": False, "near_pdb": False}  # fmt: skip
    bprna = [row | {"sequence": "AAAAAAAA"}, row | {"sequence": "CCCCCCCC", "label_kind": "part"},
             row | {"sequence": "GGGGGGGG", "near_ts0": True}, row | {"sequence": "UUUUUUUU", "near_pdb": True},
             row | {"sequence": "ACACACAC", "split": "TS0"}]  # fmt: skip
    seed = row | {"seq_name": "s", "clan": "CL1", "new_family": False, "pairs": "1-6"}
    seeds = [seed | {"sequence": sequence} for sequence in ("AAAAAAAA", "CCCCCCCC")]
    seeds += [seed | {"sequence": "AGAGAGAG", "new_family": True}, seed | {"sequence": "AUAUAUAU", "near_pdb": True}]
    for name, rows in (("bprna1m90", bprna), ("rfam142_seed", seeds)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rna" / f"{name}.parquet")
    found = load_known(tmp_path)
    assert {s: p.tolist() for s, p in zip(found.sequence, found.pairs, strict=True)} == {
        "AAAAAAAA": [[0, 7]], "CCCCCCCC": [[1, 6]],
    }  # fmt: skip
    assert set(found.family) == {"CL1"}


def test_real_pool(data):
    pytest.importorskip("pyarrow")
    training = load_known(data)
    assert len(training) == 35_950
    assert all(set(sequence) <= set("ACGUN") for sequence in training.sequence)
    assert all(pairs.max() < len(sequence) for pairs, sequence in zip(training.pairs, training.sequence, strict=True))


@pytest.mark.parametrize(("changes", "message"), [
    ({"validation": 1}, "validation must be"),
    ({"least_passes": 3, "most_passes": 2}, "most_passes must be 3 or more, got 2"),
    ({"keep_share": 2}, "keep_share must be in"),
    ({"teacher_rows": 0, "tune": replace(STAGE, teacher=0.5)},
     "teacher_rows must be 1 or more where tune has a share, got 0; set tune.teacher to 0"),
])  # fmt: skip
def test_wrong_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(fold_recipe("cpu")[1], **changes)


def test_unknown_recipe():
    with pytest.raises(ValueError, match="recipe must be one of cpu, gpu"):
        fold_recipe("tpu")


def test_windows_for_the_teacher_have_every_length_from_half_to_all():
    pool = known([{"sequence": "ACGU", "name": "a", "pairs": "0-3"}], "name")
    found = teacher_sequences(pool, ["ACGU" * 20], 400, 10, np.random.default_rng(0))
    assert set(map(len, found[200:])) == set(range(5, 11))
    assert set(found[:200]) == {"UGCA"}


def test_long_utrs_give_the_teacher_more_windows():
    pool = known([{"sequence": "ACGU", "name": "a", "pairs": "0-3"}], "name")
    found = teacher_sequences(pool, ["A" * 20, "C" * 980], 1000, 10, np.random.default_rng(0))
    assert sum("C" in window for window in found[500:]) / 500 == pytest.approx(0.98, abs=0.02)


def test_the_teacher_gives_pairs_from_the_least_probability_on(rng):
    pytest.importorskip("RNA", reason="ViennaRNA is not installed")
    sequence = "".join(rng.choice("ACGU") for _ in range(150))
    every, some = (structures.rnafold([sequence], 1, least) for least in (1e-6, 0.01))
    kept = every.probability[0] >= 0.01
    assert ((every.probability[0] < 0.02) & kept).any()
    np.testing.assert_array_equal(some.pairs[0], every.pairs[0][kept])
