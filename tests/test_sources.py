"""What the default recipe learns from beside labelled pairs: fold changes, decoys, windows."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from pairformer.config import (
    AggregatorConfig,
    ExpensiveConfig,
    JointStageConfig,
    ModelConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)  # fmt: skip
from pairformer.data import PAIRS, SITES, DataError, columns, load_pairs, load_sites
from pairformer.engines import NativeEngine
from pairformer.metrics import ranking
from pairformer.scan import scan
from pairformer.sources import (
    FUNMIRBENCH,
    FoldChanges,
    MoreSources,
    load_fold_changes,
    load_instances,
    load_sources,
    read_fold_changes,
)

torch = pytest.importorskip("torch")
from pairformer import predict, training  # noqa: E402
from pairformer.evaluation.baselines import seed_sites  # noqa: E402
from pairformer.models import PairFormer  # noqa: E402
from pairformer.training import losses, stage1_encoder, stage3_aggregate  # noqa: E402
from pairformer.training.losses import effect_loss, mirna_weights  # noqa: E402

SMALL = ModelConfig(
    ExpensiveConfig(channels=(8, 8)), aggregator=AggregatorConfig(width=16, layers=1, heads=2, hidden=32, dropout=0.0)
)


def test_heads_learn_from_effects_and_from_decoys(folder, tmp_path):
    """Each source alone teaches the additive head that a seed site represses; the aggregators move it no more."""
    pairs = load_pairs(folder / PAIRS, folder)
    made = load_fold_changes(folder)
    bags = np.array([len(list(seed_sites(m, u))) for m, u in zip(made.mirna, made.utr, strict=True)])
    rng = np.random.default_rng(0)
    effects = replace(made, label=(0.5 * bags + rng.normal(0, 0.2, len(bags))).astype(np.float32))
    config = ModelConfig(aggregator=AggregatorConfig(width=16, layers=1, hidden=16, additive=8, members=2))
    stage = StageConfig(20, 16, 1e-2, ema_decay=0.5)
    for name, sources in (("effects", SourceConfig(effects=1.0)), ("decoys", SourceConfig(decoys=1.0))):
        torch.manual_seed(0)
        model = PairFormer(config)
        train = TrainConfig(additive=stage, stage3=JointStageConfig(1, 64, 1e-3), sources=sources)
        training.train_aggregator(
            model, training.Bags(model, pairs), None, train, tmp_path / name, MoreSources(effects=effects)
        )
        scored = NativeEngine.of(model).score(scan(made.mirna, made.utr))
        assert np.corrcoef(scored.repression, bags)[0, 1] > 0.5, name
        heads = torch.load(tmp_path / name / "additive.pt", weights_only=True)["average"]
        for key, value in model.additives.state_dict().items():
            assert torch.equal(value, heads[key])


def test_windows_of_all_sources(folder):
    """A CLASH window of 50 nt gives its best candidate; each source has its share, each miRNA both classes alike."""
    sites, _ = load_sites(folder / SITES, folder)
    sources = SourceConfig(windows=0.5, clash_windows=2.0, clash_original=3.0)
    more = load_sources(folder, sources)
    assert [name for name, _ in more.items()] == ["clash", "clash_original"]
    windows = stage1_encoder.weighted_windows(sites, more, sources, 6)
    np.testing.assert_allclose(windows.weight[: len(sites)], 0.5 * losses.class_weights(torch.from_numpy(sites.label)))
    own = windows.take(np.arange(len(sites), len(windows)))
    n = len(own) // 2
    assert own.take(np.arange(n)).weight.mean() == pytest.approx(2)
    assert own.take(np.arange(n, 2 * n)).weight.mean() == pytest.approx(3)
    candidates = scan(more.clash.mirna, more.clash.utr)
    best = np.maximum.reduceat(candidates.esa_score, candidates.offsets[:-1])
    row = {(m, u): i for i, (m, u) in enumerate(zip(more.clash.mirna, more.clash.utr, strict=True))}
    for i in range(n):
        pair = row[own.mirna[i], own.gene[i]]  # a window of 50 nt stands as its own gene
        assert own.label[i] == more.clash.label[pair]
        assert own.esa_score[i] == best[pair]
        of_pair = slice(*candidates.offsets[pair : pair + 2])
        first = candidates.start[of_pair][np.argmax(candidates.esa_score[of_pair])]
        assert own.window[i] == more.clash.utr[pair][first : first + 40]
        np.testing.assert_array_equal(own.one_hot[i], scan(own.mirna[i], own.window[i]).encode()[0])
    for mirna in set(own.mirna[:n]):
        mine = own.mirna[:n] == mirna
        total = [own.weight[:n][mine & (own.label[:n] == label)].sum() for label in (0, 1)]
        assert total[0] == pytest.approx(total[1], rel=1e-5)
    assert len(stage1_encoder.weighted_windows(sites, more, SourceConfig(windows=0, clash_windows=1), 6)) == n


def test_labelled_windows_teach_where_they_are_selected(folder, tmp_path):
    """Eq. 8: a window's own label reaches the encoder's logit of it, in joint epochs, if the window is selected."""
    pairs = load_pairs(folder / PAIRS, folder)
    pairs = pairs.take(np.array([len(utr) > 60 for utr in pairs.utr]))
    windows = replace(pairs, utr=np.array([utr[5:45] for utr in pairs.utr], object), label=1 - pairs.label)
    torch.manual_seed(0)
    model = PairFormer(SMALL)
    bags = training.Bags(model, pairs, (4, 64))
    instances = stage3_aggregate.Instances(bags, windows)
    starts = bags.candidates.start[instances.row]
    assert len(starts) > 50
    assert (starts == 5).all()
    owner = bags.candidates.bag_of(instances.row)
    np.testing.assert_array_equal(instances.label, 1 - pairs.label[owner])
    every = np.arange(len(pairs))
    few, all_of_them = (instances.of(every, k) for k in (4, None))
    assert 0 < len(few) < len(all_of_them)
    assert set(owner[instances.of(every[:9], None)]) <= set(range(9))

    config = TrainConfig(stage3=JointStageConfig(4, 16, 5e-3, ema_decay=0.5, joint_epochs=3, joint_lr=1e-2))
    before, found = {n: v.clone() for n, v in model.state_dict().items()}, []
    for share in (0.0, 5.0):
        model.load_state_dict(before)
        mine = replace(config, sources=SourceConfig(instances=share))
        training.train_aggregator(model, bags, None, mine, tmp_path / str(share), MoreSources(instances=windows))
        with torch.no_grad():
            logit = model.encode_selected(bags.candidates, instances.row[all_of_them])[1]
        found.append(ranking(instances.label[all_of_them], logit)["roc_auc"])
    assert found[1] > found[0] + 0.1
    with pytest.raises(ValueError, match="joint_epochs must be 1 or more, with a joint_lr, where"):
        TrainConfig(stage3=JointStageConfig(4, 16, 5e-3), sources=SourceConfig(instances=1.0))
    with pytest.raises(ValueError, match="labels must have a share where instances do"):
        replace(config, sources=SourceConfig(labels=0.0, decoys=1.0, instances=1.0))


def test_decoys_are_drawn_anew_each_epoch(folder):
    pairs = load_pairs(folder / PAIRS, folder)
    torch.manual_seed(0)
    model = PairFormer(SMALL)
    config = TrainConfig(sources=SourceConfig(labels=0.0, decoys=2.0))
    sources = stage3_aggregate._Sources(model, training.Bags(model, pairs), None, config)
    every = np.arange(len(sources))
    (positives, rows), (drawn, _) = sources.parts(every, 0)
    assert len(rows) == len(every) / 2 > 50
    assert (positives.label == 1).all()
    assert (drawn.label == 0).all()
    assert (drawn.weight == 2).all()
    known = set(zip(pairs.mirna, pairs.gene, strict=True))
    first = list(zip(drawn.bags.pairs.mirna, drawn.bags.pairs.gene, strict=True))
    assert known.isdisjoint(first)
    real = pairs.take(positives.rows)
    assert sorted(drawn.bags.pairs.gene) == sorted(real.gene)
    assert drawn.bags.pairs.mirna.tolist() == real.mirna.tolist()
    assert [part for part, _ in sources.parts(every, 0)][1] is drawn
    again = [part for part, _ in sources.parts(every, 1)][1].bags.pairs
    assert list(zip(again.mirna, again.gene, strict=True)) != first


def test_dropout_stays_on_while_decoys_are_drawn(folder, tmp_path):
    pairs, weights = load_pairs(folder / PAIRS, folder), []
    config = TrainConfig(stage3=JointStageConfig(1, 16, 5e-3), sources=SourceConfig(labels=0.0, decoys=1.0))
    for dropout in (0.0, 0.5):
        torch.manual_seed(0)
        model = PairFormer(replace(SMALL, aggregator=replace(SMALL.aggregator, dropout=dropout))).eval()
        training.train_aggregator(model, training.Bags(model, pairs), None, config, tmp_path / str(dropout))
        weights.append(model.aggregators[0].head[1].weight)
    assert not torch.equal(*weights)


def test_mirna_weights():
    label = torch.tensor([1, 1, 1, 0, 1, 0, 1, 1], dtype=torch.float32)
    mirna = np.array(["A", "A", "A", "A", "B", "B", "C", "C"], object)
    weight = mirna_weights(label, mirna)
    assert weight.mean() == pytest.approx(1)
    assert (weight[6:] == 0).all()  # one class: its name would be all there is to learn
    assert float(weight[:3].sum()) == pytest.approx(float(weight[3]))
    assert weight[4] == weight[5] == weight[3]


def test_effect_loss():
    """0 for the target itself; scale counts for little, sign for most."""
    target = torch.randn(500, generator=torch.Generator().manual_seed(0))
    assert float(effect_loss(target[None], target)) == pytest.approx(0, abs=1e-4)
    assert float(effect_loss(2 * target[None], target)) == pytest.approx(0.1, abs=0.01)
    assert float(effect_loss(-target[None], target)) == pytest.approx(2.4, abs=0.02)
    both = effect_loss(torch.stack([target, -target]), target)
    assert float(both) == pytest.approx(1.2, abs=0.02)


def test_fold_changes_are_centred(folder):
    """By hand: other families' mean of the gene in the series, then the experiment's median; KO turns the sign."""
    rows = load_fold_changes(folder)
    assert set(rows.experiment) == {f"E{e}" for e in range(9)} - {"E7"}
    table = {(c[0], c[1]): float(c[2]) for c in zip(*columns(folder / FUNMIRBENCH / "lfc.tsv.gz", "experiment",
             "gene_id", "log2fc"), strict=True)}  # fmt: skip
    for i in range(0, len(rows), 50):
        measured = table[rows.experiment[i], rows.utr_id[i]]
        assert rows.label[i] == pytest.approx(measured if rows.experiment[i] == "E1" else -measured)
    centred = rows.centred()
    for name in ("E3", "E8"):
        mine = rows.take(rows.experiment == name)
        alone = mine.label.astype(float)
        if name == "E3":
            others = (rows.family != mine.family[0]) & (rows.series == "GSE124530")
            alone -= [rows.label[others & (rows.utr_id == gene)].mean() for gene in mine.utr_id]
        expected = np.clip(alone - np.median(alone), -1.5, 1.5)
        np.testing.assert_allclose(centred.label[rows.experiment == name], expected, atol=1e-5)


def test_shared_components_of_fold_changes(folder):
    """By hand: a component planted in all experiments is gone."""
    rows = load_fold_changes(folder)
    same = rows.specific(0)
    np.testing.assert_array_equal(same.label, rows.label)
    experiments, row = np.unique(rows.experiment, return_inverse=True)
    genes, column = np.unique(rows.utr_id, return_inverse=True)
    rng = np.random.default_rng(3)
    own, planted = rng.normal(size=(len(experiments), len(genes))), rng.normal(size=len(genes))
    strength = rng.uniform(10, 20, len(experiments)) * rng.choice([-1, 1], len(experiments))
    label = (own + strength[:, None] * planted)[row, column].astype(np.float32)
    left = replace(rows, label=label).specific(1).label
    for name in experiments:
        mine = rows.experiment == name
        assert abs(np.corrcoef(left[mine], planted[column[mine]])[0, 1]) < 0.3
        assert abs(np.corrcoef(label[mine], planted[column[mine]])[0, 1]) > 0.95
        kept = own[experiments == name, column[mine]]
        assert np.corrcoef(left[mine], kept)[0, 1] > 0.8  # what is the experiment's alone stays
    rest = rows.experiment != "E2"  # is the same in whatever units E2 is
    louder = replace(rows, label=np.where(rest, label, 50 * label)).specific(1).label
    np.testing.assert_allclose(louder[rest], left[rest], atol=1e-3)
    # one family: nothing is known of others
    alone = rows.take(rows.family == rows.family[0])
    np.testing.assert_allclose(alone.specific(2).label, alone.label, atol=1e-6)


def test_default_recipe(folder, tmp_path, command):
    """As a user types it: the model predicts fold changes that its sites and the baseline add up to."""
    assert command("train", "all", "--data", folder, "--out", tmp_path / "run", "--stage1.epochs", 1, "--stage2.epochs",
                   1, "--stage3.epochs", 1, "--additive.epochs", 2, "--threads", 1) == 0  # fmt: skip
    model = PairFormer.load(tmp_path / "run/model")
    assert model.config.keep_seed == "offset 6mer"
    assert model.metadata["trained_on"]["effects"] > 300
    mirna, utr = "UGAGGUAGUAGGUUGUAUAGUU", "ACGU" * 20 + "CUACCUCA" + "GACU" * 20
    for engine in ("native", "torch"):
        found = predict(mirna, utr, model=tmp_path / "run/model", engine=engine)
        assert found.interval is None  # no held-out folds were given
        assert found.percentile == 50
        contribution = found.sites["contribution"]
        assert found.log2_fold_change == pytest.approx(found.baseline + contribution.sum(), abs=1e-6)
        assert (contribution <= 0).all()
        assert (contribution < 0).sum() == len(set(found.sites["site_id"]) - {-1}) > 0


@pytest.mark.parametrize("families", [4, 5])
def test_five_families_make_a_series_centred(families):
    """What a gene does in all experiments is taken out where enough families tell it apart from a miRNA's effect."""
    row, gene = (part.ravel() for part in np.indices((families, 3)))
    text = [np.array([f"{name}{i}" for i in of], object) for name, of in (("U", gene), ("E", row), ("S", 0 * row))]
    mirna = np.array([f"A{'ACGU'[i % 4]}{'ACGU'[i // 4]}GGGGGAA" for i in row], object)
    effects = FoldChanges((gene - 1).astype(np.float32), mirna, text[0], text[0], text[0], *text[1:])
    np.testing.assert_allclose(effects.centred().label, 0 * gene if families == 5 else gene - 1, atol=1e-6)


def test_experiments_of_a_weak_signal_are_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    path = tmp_path / "data" / FUNMIRBENCH / "experiments.tsv"
    path.write_text(path.read_text().replace("\tgood", "\tweak", 1))
    assert set(load_fold_changes(tmp_path / "data").experiment) == {f"E{e}" for e in range(9)} - {"E7"}


def own_fold_changes(folder, **columns):
    """A table of your own that says what the data folder does; ``columns`` are added, a text or one of each row."""
    rows = load_fold_changes(folder)
    table = {"experiment": rows.experiment, "mirna_seq": rows.mirna, "utr_seq": rows.utr, "utr_id": rows.utr_id}
    table |= {"gene_symbol": rows.gene, "log2_fold_change": [str(-label) for label in rows.label]}
    table |= {name: [cell] * len(rows) if isinstance(cell, str) else cell for name, cell in columns.items()}
    return "\n".join(map("\t".join, [[*table], *zip(*table.values(), strict=True)])) + "\n"


def test_fold_changes_of_your_own(folder, tmp_path):
    """The same rows as of the data folder, with what is known of them; alone, each experiment is a laboratory."""
    rows, path = load_fold_changes(folder), tmp_path / "mine.tsv"
    path.write_text(own_fold_changes(folder, series=rows.series))
    read = read_fold_changes(path)
    for name in ("mirna", "utr", "utr_id", "gene", "experiment", "series", "label"):
        assert getattr(read, name).tolist() == getattr(rows, name).tolist(), name
    path.write_text(own_fold_changes(folder, mirna_seq=[s.lower().replace("u", "t") for s in rows.mirna], type="KO"))
    read = read_fold_changes(path)
    assert read.mirna.tolist() == rows.mirna.tolist()
    np.testing.assert_array_equal(read.label, -rows.label)
    assert read.series.tolist() == read.experiment.tolist()
    np.testing.assert_array_equal(
        read.take(read.experiment == "E3").specific(5).label, -rows.label[rows.experiment == "E3"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[1] + "x", *lines[2:]], r":2: log2_fold_change must be a finite number, got '"),
        (
            lambda lines: [lines[0], lines[1].replace("E0", "E1"), *lines[2:]],
            r":3: experiment E1 must have one mirna_seq",
        ),
        (lambda lines: [*lines, lines[1]], r":\d+: utr_id must stand once in experiment E0, got U\d+ again"),
        (lambda lines: lines[:8], r":1: experiment E0 must have 10 genes or more to rank, got "),
        (lambda lines: lines[:1], r":1: table must have rows below its header"),
        (lambda lines: [lines[0].replace("experiment", "test"), *lines[1:]], r":1: header must name experiment"),
    ],
    ids=["number", "two miRNAs", "twice", "few", "none", "no experiment"],
)
def test_bad_fold_changes_of_your_own_are_named(folder, tmp_path, change, message):
    path = tmp_path / "mine.tsv"
    path.write_text("\n".join(change(own_fold_changes(folder).splitlines())) + "\n")
    with pytest.raises(DataError, match=r"mine\.tsv" + message):
        read_fold_changes(path)


def test_training_on_fold_changes_of_your_own(folder, tmp_path, command, capsys):
    """No data folder: pairs, fold changes and encoders are given; what teaches nothing is refused."""
    pairs = load_pairs(folder / PAIRS, folder)
    lines = ["mirna_seq\tutr_seq\tlabel", *(f"{m}\t{u}\t{y:.0f}" for m, u, y in zip(pairs.mirna, pairs.utr, pairs.label,
             strict=True))]  # fmt: skip
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "mine.tsv").write_text(own_fold_changes(folder))
    tables = ("--pairs", tmp_path / "pairs.tsv", "--fold-changes", tmp_path / "mine.tsv", "--encoders", "default")
    words = ("train", "stage3", *tables, "--sources.clash", 0, "--threads", 1, "--out", tmp_path / "run")
    short = ("--stage3.epochs", 1, "--additive.epochs", 2)
    assert command(*words, *short) == 0
    known = PairFormer.load(tmp_path / "run/model").metadata
    assert known["trained_on"]["effects"] == len(load_fold_changes(folder))
    assert "weights_licence" not in known
    capsys.readouterr()
    assert command(*words, *short, "--sources.effects", 0) == 2
    assert "--fold-changes must have a share" in capsys.readouterr().err
    assert command(*words, *short, "--aggregator.additive", 0, "--aggregator.length-gate", 0) == 2
    assert "effects must be 0 without additive heads" in capsys.readouterr().err
    assert command(*words, *short, "--aggregator.kind", "none", "--sources.clash", 1, "--data", folder) == 2
    assert "clash must be 0 where kind is none" in capsys.readouterr().err


def test_labelled_windows_inside_pairs_stand_as_their_own_gene(folder):
    """Their ids name transcripts, which say nothing of where a gene is held out by its symbol."""
    rows = load_instances(folder / SITES)
    assert len(rows) == 3
    assert rows.gene.tolist() == rows.utr.tolist()


def test_heads_meet_other_decoys_each_epoch(folder, tmp_path, monkeypatch):
    pairs, drawn = load_pairs(folder / PAIRS, folder), []
    rewire = stage3_aggregate.rewire
    monkeypatch.setattr(
        stage3_aggregate, "rewire", lambda *given: drawn.append(rewire(*given).gene.tolist()) or rewire(*given)
    )
    model = PairFormer(ModelConfig(aggregator=AggregatorConfig(kind="none", additive=4)))
    config = TrainConfig(additive=StageConfig(3, 64, 1e-3), sources=SourceConfig(decoys=1.0))
    stage3_aggregate.train_heads(model, pairs, config, tmp_path, [])
    assert len(drawn) == 3
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_a_batch_s_loss_is_the_mean_over_its_rows_whatever_their_source(folder, tmp_path, monkeypatch):
    pairs, steps = load_pairs(folder / PAIRS, folder), []
    torch.manual_seed(0)
    model = PairFormer(SMALL).eval()
    config = TrainConfig(stage3=JointStageConfig(1, 16, 1e-3), sources=SourceConfig(labels=1.0, decoys=3.0))
    monkeypatch.setattr(stage3_aggregate, "fit", lambda _, module, n, step, *rest, joint: steps.append((n, step)))
    training.train_aggregator(model, training.Bags(model, pairs), None, config, tmp_path)
    ((n, step),) = steps
    labelled, drawn = np.arange(5), np.arange(n - 20, n)
    with torch.no_grad():
        both, one, other = (step(rows, 0) for rows in (np.r_[labelled, drawn], labelled, drawn))
    torch.testing.assert_close(both, (5 * one + 20 * other) / 25)


def test_heads_learn_on_after_the_aggregators(folder, tmp_path, monkeypatch):
    pairs, learns = load_pairs(folder / PAIRS, folder), []
    model = PairFormer(replace(SMALL, aggregator=replace(SMALL.aggregator, additive=4)))
    heads = list(model.additives.parameters())
    for name in ("train_heads", "fit"):
        monkeypatch.setattr(stage3_aggregate, name, lambda *_, **__: learns.append({w.requires_grad for w in heads}))
    training.train_aggregator(model, training.Bags(model, pairs), None, TrainConfig(), tmp_path)
    assert [*learns, {w.requires_grad for w in heads}] == [{True}, {False}, {True}]


def test_an_experiment_counts_by_its_weight(folder, tmp_path, monkeypatch):
    pairs, effects = load_pairs(folder / PAIRS, folder), load_fold_changes(folder)
    (experiment,) = stage3_aggregate.read_experiments(effects.take(effects.experiment == "E0"), 6)
    model, losses = PairFormer(ModelConfig(aggregator=AggregatorConfig(kind="none", additive=4))).eval(), []
    config = TrainConfig(sources=SourceConfig(effects=2.0))
    monkeypatch.setattr(stage3_aggregate, "fit", lambda _, module, n, step, *rest: losses.append(step([], 0).item()))
    for weight in (1.0, 0.25):
        stage3_aggregate.train_heads(model, pairs, config, tmp_path, [replace(experiment, weight=weight)])
    assert losses[1] == pytest.approx(0.25 * losses[0])


def test_an_experiment_alone_in_its_laboratory_counts_half(folder):
    read = stage3_aggregate.read_experiments(load_fold_changes(folder), 6)
    assert [experiment.weight for experiment in read] == [1.0] * 7 + [0.5]  # E8 is the only one of GSE1


def test_effect_loss_holds_the_level_of_scores():
    """A constant added to all of them leaves the correlation as it was, and costs."""
    target = torch.randn(500, generator=torch.Generator().manual_seed(0))
    expected = 0.1 * 4 / float(target.var(correction=0))
    assert float(effect_loss(target[None] + 2, target)) == pytest.approx(expected, rel=1e-3)


def test_a_mirna_counts_by_its_rarer_class():
    label = torch.tensor([1, 1, 0, 0, 0, 1, 0], dtype=torch.float32)
    weight = mirna_weights(label, np.array(list("AAAAABB"), object))
    assert weight[:5].sum() == pytest.approx(2 * float(weight[5:].sum()))
    assert weight[:2].sum() == pytest.approx(float(weight[2:5].sum()))
