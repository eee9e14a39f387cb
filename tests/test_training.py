"""Training: losses by hand, folds that share nothing, every stage learns, resume is exact."""

import gzip
import json
import random
from dataclasses import replace

import numpy as np
import pytest

from pairformer import testing
from pairformer.config import AggregatorConfig, ModelConfig
from pairformer.data import Pairs, Sites, load_pairs, load_sites
from pairformer.evaluation import balanced_scale, disjoint_folds, group_folds, identity_baselines, ranking, within_mirna
from pairformer.scan import scan

torch = pytest.importorskip("torch")
from pairformer import training  # noqa: E402
from pairformer.models import PairFormer  # noqa: E402
from pairformer.training import losses  # noqa: E402
from pairformer.training.config import LossConfig, StageConfig, TrainConfig  # noqa: E402
from pairformer.training.loop import fit  # noqa: E402

COMPLEMENT = str.maketrans("ACGU", "UGCA")
SCORES = {"pair-former", "look_up", "mirna_prior", "gene_prior", "seed_type", "mirna_au", "utr_length"}
SMALL = ModelConfig(aggregator=AggregatorConfig(width=16, layers=1, heads=2, hidden=32, dropout=0.0))
QUICK = TrainConfig(
    stage1=StageConfig(6, 32, 1e-2, ema_decay=0.9),
    stage2=StageConfig(6, 32, 1e-2, ema_decay=0.9),
    stage3=StageConfig(8, 16, 5e-3, ema_decay=0.9, joint_epochs=2, joint_lr=1e-3),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder of 60 UTRs and 12 miRNAs in which a perfect seed site makes the label."""
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("data")
    for name in ("miraw_cts", "miraw_pairs", "utr3_human"):
        (path / name).mkdir()
    mirnas = [testing.random_rna(rng, 22) for _ in range(12)]
    cts = ["mirna_id\tmirna_seq\tmrna_id\tmrna_seq\tlabel\tsplit\tin_miraw_pair"]
    pairs = ["mirna_id\tmirna_seq\tutr_id\tgene_symbol\tutr_length\tlabel\tn_sets\tsets\tgene_fold"]
    utrs = ["utr_id\tgene_symbol\tensembl_gene\tsymbol_from\tsource\tlength\tutr_seq"]
    for i in range(600):
        mirna, label = rng.randrange(12), i % 2
        window = testing.random_rna(rng, 40)
        if label:
            window = window[:26] + mirnas[mirna][:9].translate(COMPLEMENT)[::-1] + window[35:]
        cts.append(f"m{mirna}\t{mirnas[mirna]}\tENSG{i % 60}\t{window}\t{label}\ttrain\t{'1' if i < 3 else ''}")
    cts.append(f"m0\t{mirnas[0]}\tENSG1\t{'A' * 39}\t1\ttrain\t")
    copied = []  # windows whose ids hide where they stand: in two genes, and in a gene that is not theirs
    for g in range(60):
        utr = testing.random_rna(rng, 20 if g == 0 else 150)
        for mirna in rng.sample(range(12), 4):
            label = rng.randrange(2)
            if label and g:
                at = rng.randrange(30, 140)
                utr = utr[:at] + mirnas[mirna][:9].translate(COMPLEMENT)[::-1] + utr[at + 9 :]
            pairs.append(f"m{mirna}\t{mirnas[mirna]}\tU{g}\tG{g}\t{len(utr)}\t{label}\t1\t0\t0")
        utrs.append(f"U{g}\tG{g}\tENSG{g}\ttable\tmade\t{len(utr)}\t{utr}")
        copied.append(f"m1\t{mirnas[g % 12]}\tENSG{g},ENSG{(g + 1) % 60}\t{testing.random_rna(rng, 40)}\t0\ttrain\t")
        copied.append(f"m1\t{mirnas[g % 12]}\tENSGX\t{utr[5:45]}\t0\ttrain\t" if g else copied[0])
    cts += copied
    for name, lines in (("miraw_cts/cts.tsv.gz", cts), ("utr3_human/utr3_human.tsv.gz", utrs)):
        with gzip.open(path / name, "wt") as out:
            out.write("\n".join(lines) + "\n")
    (path / "miraw_pairs/pairs.tsv").write_text("\n".join(pairs) + "\n")
    return path


def test_binary_loss_by_hand():
    config = LossConfig(bce_weight=0.5, focal_weight=2.0, focal_alpha=0.4, focal_gamma=1.5, smoothing=0.1)
    logit, label, weight = torch.tensor([0.3, -1.2]), torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.5])
    total = 0.0
    for z, y, w in zip(logit.tolist(), label.tolist(), weight.tolist(), strict=True):
        y, p = 0.9 if y else 0.1, 1 / (1 + np.exp(-z))
        bce = -(y * np.log(p) + (1 - y) * np.log(1 - p))
        p_t, alpha_t = p * y + (1 - p) * (1 - y), 0.4 * y + 0.6 * (1 - y)
        total += w * (0.5 * bce + 2.0 * alpha_t * (1 - p_t) ** 1.5 * bce)
    assert float(losses.binary_loss(logit, label, weight, config)) == pytest.approx(total / 2, rel=1e-5)


def test_class_weights_are_equal_in_sum():
    label = torch.tensor([1.0] * 9 + [0.0])
    weight = losses.class_weights(label)
    assert float(weight[label == 1].sum()) == pytest.approx(float(weight[label == 0].sum()))
    assert float(weight.mean()) == pytest.approx(1.0)


def test_distillation_terms_by_hand():
    config = TrainConfig().distill
    assert [losses.distill_share(e, 3, config) for e in range(3)] == pytest.approx([0.8, 0.65, 0.5])
    z, t = torch.tensor([0.4]), torch.tensor([-1.0])
    p = 1 / (1 + np.exp(0.5))
    expected = -4 * (p * np.log(1 / (1 + np.exp(-0.2))) + (1 - p) * np.log(1 / (1 + np.exp(0.2))))
    assert float(losses.distill_logit(z, t, 2.0)) == pytest.approx(expected, rel=1e-5)
    a, b = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    root = 0.5**0.5
    assert float(losses.distill_feature(a, b)) == pytest.approx((1 - 1 + 1 - root) / 2, rel=1e-5)
    assert float(losses.distill_relation(a, b)) == pytest.approx(2 * root**2 / 4, rel=1e-5)


def test_ranking_is_class_balanced():
    """Three positives and one negative, ranked + - + +: precision 1, then p / (p + 1/2) with p = 2/6, 3/6."""
    metrics = ranking([1, 0, 1, 1], [4, 3, 2, 1])
    positive, negative = 0.5 / 3, 0.5
    precision = [1, 2 * positive / (2 * positive + negative), 3 * positive / (3 * positive + negative)]
    assert metrics == {"pr_auc": pytest.approx(np.mean(precision)), "roc_auc": pytest.approx(1 / 3)}


def test_identity_baselines_by_hand():
    def pairs(mirna, utr_id, gene, label):
        utr = ["u"] * len(label)
        return Pairs(
            np.array(label, np.float32),
            *(np.array(column, object) for column in (list(mirna), list(gene), utr, list(utr_id))),
        )

    train = pairs("AAB", "121", "ghg", [1, 0, 0])
    scores = identity_baselines(train, pairs("ACB", "212", "hgx", [1, 0, 1]))
    assert scores["look_up"].tolist() == [0, 1, 1]
    assert scores["mirna_prior"] == pytest.approx([0, 0, np.log(0.5 / 1.5)])
    assert scores["gene_prior"] == pytest.approx([np.log(0.5 / 1.5), 0, 0])


def test_within_mirna_by_hand():
    """A has three comparisons, one won and one tied; B has no negative, C no positive."""
    auc, count = within_mirna(list("AAAABC"), [1, 1, 1, 0, 1, 0], [3, 2, 1, 2, 9, 9])
    assert (auc, count) == (0.5, 3)
    assert np.isnan(within_mirna(["A"], [1], [0.0])[0])


def test_balanced_scale_is_the_likeliest():
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 4000)
    label = rng.random(4000) < 1 / (1 + np.exp(-0.4 * logit))
    assert balanced_scale(label, logit) == pytest.approx(0.4, abs=0.05)


def test_group_folds_never_split_and_spread_negatives():
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 90, 2000).astype(str)
    negative = rng.random(2000) < 0.1
    fold = group_folds(groups, negative, 3)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    counts = np.bincount(fold[negative])
    assert counts.max() - counts.min() <= 3


def test_held_out_rows_share_nothing(folder):
    """Neither pairs nor encoder windows of training have a gene or a family of the held-out pairs."""
    sites, counts = load_sites(folder)
    assert counts["rows"] == 721
    assert counts["in_a_pair"] == 3
    assert counts["used"] + counts["no_candidate"] + counts["in_a_pair"] == counts["rows"]
    pairs = load_pairs(folder)
    held = 0
    for fold in range(training.N_FOLDS):
        train_sites, held_sites, seen, test = training.hold_out(sites, pairs, fold)
        held += len(test)
        for rows in (train_sites, seen):
            assert len(rows) > 20
            assert not {gene for names in rows.gene for gene in names.split(",")} & set(test.gene)
            assert not set(rows.family) & set(test.family)
        assert not any(window in utr for window in train_sites.window for utr in test.utr)
        assert set(held_sites.family) <= set(test.family)
    rows = np.concatenate([test for _, test in disjoint_folds(pairs, training.N_FOLDS)])
    assert len(set(rows.tolist())) == held == len(rows)


def test_every_stage_learns_and_only_joint_epochs_move_the_encoder(folder, tmp_path):
    """A seed site is learnt from a few hundred rows by all three stages."""
    sites, _ = load_sites(folder)
    pairs = load_pairs(folder)
    torch.manual_seed(0)
    model = PairFormer(SMALL)
    training.train_encoder(model, sites, None, QUICK, tmp_path)
    training.distill(model, sites, None, QUICK, tmp_path)
    windows = torch.from_numpy(sites.one_hot)
    with torch.no_grad():
        _, logit = model.expensive(windows)
        cheap, _ = model.cheap(windows, torch.from_numpy(sites.esa_score), torch.from_numpy(sites.position))
    assert ranking(sites.label, logit)["roc_auc"] > 0.95
    assert ranking(sites.label, cheap)["roc_auc"] > 0.9
    before = {name: value.clone() for name, value in model.expensive.state_dict().items()}
    warm = replace(QUICK, stage3=replace(QUICK.stage3, joint_epochs=0, joint_lr=0.0))
    training.train_aggregator(model, pairs, None, warm, tmp_path / "warm")
    assert all(torch.equal(before[n], v) for n, v in model.expensive.state_dict().items())
    training.train_aggregator(model, pairs, None, QUICK, tmp_path / "joint")
    assert any(not torch.equal(before[n], v) for n, v in model.expensive.state_dict().items())
    result = model(scan(pairs.mirna, pairs.utr))
    assert ranking(pairs.label, result.pair_logit)["roc_auc"] > 0.8


@pytest.mark.parametrize("stop", [1, 3])
def test_resume_gives_the_same_weights(tmp_path, stop):
    """A run stopped inside an epoch and taken up again ends where an unbroken one does, to the last bit."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    config = StageConfig(5, 8, 1e-2, 1e-2, joint_epochs=2, joint_lr=1e-3)

    def run(path, fail_in_epoch=None):
        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 1))

        def step(rows, epoch):
            if epoch == fail_in_epoch and rows[0] % 2:
                raise KeyboardInterrupt
            return (net(x[rows])[:, 0] - x[rows, 0]).square().mean()

        fit("stage", net, 40, step, config, path, rng_seed=7, joint=net[0])
        return net.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", stop)
    assert len((tmp_path / "broken/log.jsonl").read_text().splitlines()) == stop
    resumed = run(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_epoch_done_again_is_logged_once(tmp_path):
    """A run killed between its log line and its checkpoint repeated the line when it was taken up."""
    net = torch.nn.Linear(2, 1)
    step = lambda rows, epoch: net(torch.ones(len(rows), 2)).square().mean()  # noqa: E731
    fit("stage", net, 4, step, StageConfig(1, 2, 0.1), tmp_path, rng_seed=0)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"stage": "stage", "epoch": 2}\n{"stage": "other", "epoch": 9}\n')
    fit("stage", net, 4, step, StageConfig(2, 2, 0.1), tmp_path, rng_seed=0)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["epoch"]) for r in log] == [("stage", 1), ("other", 9), ("stage", 2)]


def test_pairs_without_candidates_do_not_stop_training(folder, tmp_path):
    """A batch of empty bags has a constant logit and no gradient: with one pair a batch, training crashed."""
    pairs = load_pairs(folder)
    short = np.array([len(utr) < 40 for utr in pairs.utr])
    few = pairs.take(np.flatnonzero(short)[:2].tolist() + np.flatnonzero(~short)[:6].tolist())
    config = replace(QUICK, stage3=StageConfig(1, 1, 1e-3))
    training.train_aggregator(PairFormer(SMALL), few, few, config, tmp_path)


def test_train_command(folder, tmp_path, monkeypatch):
    """Stage by stage as a user types it, then held-out folds, then weights that carry their record."""
    from pairformer import cli, predict

    def pairformer(*words):
        monkeypatch.setattr("sys.argv", ["pairformer", *map(str, words)])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code
        return 0

    common = ("--data", folder, "--epochs", 1, 1, 2, "--joint-epochs", 1)
    out = tmp_path / "run"
    assert pairformer("train", "stage2", "--out", out, *common) == 66  # stage 1 is missing
    for stage in ("stage1", "stage2", "stage3"):
        assert pairformer("train", stage, "--out", out, *common) == 0
    assert pairformer("train", "all", "--out", out, *common, "--rng-seed", 1) == 2  # other settings
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["epoch"]) for r in log] == [("stage1", 1), ("stage2", 1), ("stage3", 1), ("stage3", 2)]
    trained = (out / "model/model.safetensors").read_bytes()
    assert pairformer("train", "stage1", "--out", out, *common) == 0  # finished: nothing to do, nothing lost
    assert (out / "model/model.safetensors").read_bytes() == trained
    assert pairformer("train", "all", "--out", tmp_path / "at_once", *common) == 0
    assert (tmp_path / "at_once/model/model.safetensors").read_bytes() == trained
    assert pairformer("train", "all", "--out", tmp_path / "fold", *common, "--fold", 3) == 2
    assert pairformer("train", "folds", "--out", tmp_path / "folds", *common) == 0
    folds = json.loads((tmp_path / "folds/folds.json").read_text())
    assert set(folds["metrics"]) == SCORES
    assert len(folds["balanced_loss_scaled_by_the_others"]) == training.N_FOLDS
    assert all(len(m["roc_auc"]["folds"]) == training.N_FOLDS for m in folds["metrics"].values())
    served = ("--folds", tmp_path / "folds/folds.json")
    assert pairformer("train", "all", "--out", tmp_path / "served", *common, *served) == 0
    model = PairFormer.load(tmp_path / "served/model")
    assert model.config.logit_scale == folds["logit_scale"]
    assert model.metadata["held_out_folds"] == {name: value for name, value in folds.items() if name != "run"}
    assert pairformer("train", "all", "--out", tmp_path / "other", *common, *served, "--rng-seed", 1) == 2
    assert model.metadata["trained_on"]["pairs"] == 240
    pair = predict("UGAGGUAGUAGGUUGUAUAGUU", "ACGU" * 50, model=tmp_path / "served/model")
    assert pair.probability == pytest.approx(1 / (1 + np.exp(-folds["logit_scale"] * pair.logit)), rel=1e-5)


def test_real_training_rows(data):
    sites, counts = load_sites(data)
    assert counts == {"rows": 61_805, "in_a_pair": 93, "no_candidate": 5_775, "used": 55_937}
    assert isinstance(sites, Sites)
    pairs = load_pairs(data)
    assert len(pairs) == 5_928
    for fold in range(training.N_FOLDS):
        _, _, seen, held = training.hold_out(sites, pairs, fold)
        assert (held.label == 0).sum() >= 55
        scores = identity_baselines(seen, held)
        assert all(ranking(held.label, score)["roc_auc"] == 0.5 for score in scores.values())
