"""Training: losses by hand, folds that share nothing, every stage learns, resume is exact."""

import dataclasses
import json
from dataclasses import fields, replace

import numpy as np
import pytest

from pairformer.config import (
    AggregatorConfig,
    DistillConfig,
    JointStageConfig,
    LossConfig,
    ModelConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)  # fmt: skip
from pairformer.data import PAIRS, SITES, Sites, load_pairs, load_sites
from pairformer.engines import exact_float32
from pairformer.metrics import ranking
from pairformer.scan import scan
from pairformer.sources import MoreSources, load_fold_changes, load_instances

torch = pytest.importorskip("torch")
from pairformer import predict, training  # noqa: E402
from pairformer.models import PairFormer  # noqa: E402
from pairformer.training import losses, stage1_encoder, stage3_aggregate  # noqa: E402
from pairformer.training.loop import _update, fit  # noqa: E402
from pairformer.training.stage2_distill import distill  # noqa: E402

SMALL = ModelConfig(aggregator=AggregatorConfig(width=16, layers=1, heads=2, hidden=32, dropout=0.0))
QUICK = TrainConfig(
    stage1=StageConfig(6, 32, 1e-2, ema_decay=0.9),
    stage2=StageConfig(6, 32, 1e-2, ema_decay=0.9),
    stage3=JointStageConfig(8, 16, 5e-3, ema_decay=0.9, joint_epochs=2, joint_lr=1e-3),
)


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


def test_every_stage_learns_and_only_joint_epochs_move_the_encoder(folder, tmp_path):
    """A seed site is learnt from a few hundred rows by all three stages."""
    sites, _ = load_sites(folder / SITES, folder)
    pairs = load_pairs(folder / PAIRS, folder)
    torch.manual_seed(0)
    model = PairFormer(SMALL)
    training.train_encoders(model, sites, QUICK, tmp_path)
    windows = torch.from_numpy(sites.one_hot)
    with torch.no_grad():
        _, logit = model.expensive(windows)
        cheap, _ = model.cheap(windows, torch.from_numpy(sites.esa_score), torch.from_numpy(sites.position))
    assert ranking(sites.label, logit)["roc_auc"] > 0.95
    assert ranking(sites.label, cheap)["roc_auc"] > 0.9
    before = {name: value.clone() for name, value in model.expensive.state_dict().items()}
    warm = replace(QUICK, stage3=replace(QUICK.stage3, joint_epochs=0, joint_lr=0.0))
    bags = training.Bags(model, pairs)
    training.train_aggregator(model, bags, None, warm, tmp_path / "warm")
    assert all(torch.equal(before[n], v) for n, v in model.expensive.state_dict().items())
    training.train_aggregator(model, bags, None, QUICK, tmp_path / "joint")
    assert any(not torch.equal(before[n], v) for n, v in model.expensive.state_dict().items())
    result = model(scan(pairs.mirna, pairs.utr))
    assert ranking(pairs.label, result.pooled.logit)["roc_auc"] > 0.8


def test_the_rate_rises_then_falls():
    from pairformer.training.loop import _cosine

    rates = [_cosine(step, 0, 20, warmup=4) for step in range(20)]
    assert rates[0] == pytest.approx(0.25)
    assert rates[:4] == sorted(rates[:4])
    assert rates[4:] == [_cosine(step, 0, 20) for step in range(4, 20)]


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resume_gives_the_same_weights(tmp_path, stop):
    """A run stopped inside an epoch and taken up again ends where an unbroken one does, to the last bit."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    config = JointStageConfig(5, 8, 1e-2, 1e-2, joint_epochs=2, joint_lr=1e-3)

    def run(path, fail_in_epoch=None):
        torch.manual_seed(1)
        joint = torch.nn.Sequential(*(torch.nn.Linear(*shape) for shape in ((6, 7), (7, 5), (5, 8), (8, 6))))
        net = torch.nn.Sequential(joint, torch.nn.Dropout(0.5), torch.nn.Linear(6, 1))

        def step(rows, epoch):
            if epoch == fail_in_epoch and rows[0] % 2:
                raise KeyboardInterrupt
            return (net(x[rows])[:, 0] - x[rows, 0]).square().mean()

        fit("stage", net, 40, step, config, path, rng_seed=7, joint=net[0])
        assert not any(part.training for part in net.modules())
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
    (tmp_path / "stage.pt").unlink()  # killed before the first
    fit("stage", net, 4, step, StageConfig(1, 2, 0.1), tmp_path, rng_seed=0)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["epoch"]) for r in log] == [("other", 9), ("stage", 1)]


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path):
    """With the last good epoch on disk."""
    net = torch.nn.Linear(2, 1)

    def step(rows, epoch):
        return net(torch.ones(len(rows), 2)).square().mean() * (1 if epoch == 0 else np.inf)

    for _ in range(2):
        with pytest.raises(ValueError, match=r"stage must have a finite loss, got (inf|nan) in epoch 2"):
            fit("stage", net, 4, step, StageConfig(3, 2, 0.1), tmp_path, rng_seed=0)
        state = torch.load(tmp_path / "stage.pt", weights_only=True)
        assert state["epochs_done"] == 1
        assert all(value.isfinite().all() for value in state["average"].values())


def test_the_best_epoch_is_kept(tmp_path):
    """The averaged weights of the epoch with the best validation PR-AUC, the first of equal ones, also after a stop."""
    figures = [0.6, 0.9, 0.7, 0.9, 0.8]

    def run(path, epochs):
        torch.manual_seed(1)
        net, seen = torch.nn.Linear(3, 1), []

        def step(rows, epoch):
            return (net(torch.ones(len(rows), 3)) - 9).square().mean()

        def validate():
            seen.append(net.weight.detach().clone())
            return {"pr_auc": figures[len(seen) - 1]}

        fit("stage", net, 8, step, StageConfig(epochs, 4, 1e-2), path, 0, validate)
        return net.weight.detach(), seen

    weight, seen = run(tmp_path / "whole", 5)
    assert torch.equal(weight, seen[1])
    assert not torch.equal(weight, seen[3])
    state = torch.load(tmp_path / "whole/stage.pt", weights_only=True)
    assert state["best"]["pr_auc"] == 0.9
    again, seen = run(tmp_path / "whole", 5)  # finished: read, not trained
    assert torch.equal(again, weight)
    assert not seen


def test_pairs_without_candidates_do_not_stop_training(folder, tmp_path):
    """A batch of empty bags has a constant logit and no gradient: with one pair a batch, training crashed."""
    pairs = load_pairs(folder / PAIRS, folder)
    short = np.array([len(utr) < 40 for utr in pairs.utr])
    few = pairs.take(np.flatnonzero(short)[:2].tolist() + np.flatnonzero(~short)[:6].tolist())
    model = PairFormer(SMALL)
    bags = training.Bags(model, few)
    training.train_aggregator(model, bags, bags, replace(QUICK, stage3=JointStageConfig(1, 1, 1e-3)), tmp_path)


def test_one_class_is_refused(folder, tmp_path):
    pairs = load_pairs(folder / PAIRS, folder)
    both, one = pairs.take(np.arange(20)), pairs.take(pairs.label == 1)
    for rows in ((one, both), (both, one)):
        with pytest.raises(ValueError, match=r"pairs must have both labels, got \d+ with one"):
            training.train("all", None, *rows, tmp_path, SMALL, QUICK)
    with pytest.raises(ValueError, match="sites must be given, or encoders that are trained, got neither"):
        training.train("stage3", None, both, None, tmp_path, SMALL, QUICK)


def test_caches_of_two_splits_never_meet(folder, tmp_path):
    """Encoders of two splits in one cache are those each split has in its own; all they depend on is in the key."""
    sites, _ = load_sites(folder / SITES, folder)
    splits = [sites.take(np.arange(len(sites)) % 2 == part) for part in range(2)]
    quick = replace(QUICK, stage1=StageConfig(1, 64, 1e-2), stage2=StageConfig(1, 64, 1e-2))

    def encoders(rows, cache):
        torch.manual_seed(0)
        model = PairFormer(SMALL)
        key = training.train_encoders(model, rows, quick, cache)
        return key, [value.clone() for value in model.state_dict().values()]

    shared = [encoders(rows, tmp_path / "shared") for rows in (*splits, *splits)]
    alone = [encoders(rows, tmp_path / str(part)) for part, rows in enumerate(splits)]
    assert len(list((tmp_path / "shared").iterdir())) == 2
    for first, again, own in zip(shared[:2], shared[2:], alone, strict=True):
        assert first[0] == again[0] == own[0]
        assert all(torch.equal(a, b) for a, b in zip(first[1], own[1], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    flipped = replace(splits[0], label=1 - splits[0].label)
    keys = {training.encoders_key(SMALL, rows, quick) for rows in (*splits, flipped, splits[0].take(np.arange(9)))}
    keys |= {training.encoders_key(SMALL, splits[0].take(np.arange(len(splits[0]))[::-1]), quick)}
    keys |= {training.encoders_key(SMALL, splits[0], replace(quick, **change)) for change in
             ({"rng_seed": 1}, {"loss": LossConfig(smoothing=0.1)}, {"stage2": StageConfig(2, 64, 1e-2)})}  # fmt: skip
    keys |= {training.encoders_key(replace(SMALL, cheap=replace(SMALL.cheap, hidden=8)), splits[0], quick)}
    assert len(keys) == 9
    weighted = stage1_encoder.weighted_windows(splits[0], MoreSources(), SourceConfig(), 6)
    assert training.encoders_key(SMALL, weighted, replace(quick, budgets=(4,))) == shared[0][0]  # not of stages 1, 2
    assert training.encoders_key(SMALL, replace(weighted, weight=2 * weighted.weight), quick) != shared[0][0]


def other(value):
    """Another value of the same kind that every field takes."""
    if isinstance(value, tuple):
        return (2, 4)
    return value * (2 if isinstance(value, int) else 0.5)


OPTIONS = [
    (part, f.name)
    for part in ("loss", "distill", "stage1", "stage2", "stage3")
    for f in fields(getattr(TrainConfig(), part))
] + [("", "rng_seed"), ("", "budgets")]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """Trains all stages on a few rows -> weights, by config."""
    sites, _ = load_sites(folder / SITES, folder)
    pairs = load_pairs(folder / PAIRS, folder)
    sites, pairs = sites.take(np.arange(0, 600, 10)), pairs.take(np.arange(40))

    def run(config):
        torch.manual_seed(0)
        model = PairFormer(replace(SMALL, aggregator=AggregatorConfig(width=16, layers=1, hidden=16)))
        place = tmp_path_factory.mktemp("run")
        training.train_encoders(model, sites, config, place)
        training.train_aggregator(model, training.Bags(model, pairs, config.budgets), None, config, place)
        return torch.cat([value.flatten() for value in model.state_dict().values()])

    return run


TINY = TrainConfig(
    stage1=StageConfig(2, 32, 1e-2, 0.1, 0.05, 0.3),
    stage2=StageConfig(2, 32, 1e-2, 0.1, 0.05, 0.3),
    stage3=JointStageConfig(2, 16, 5e-3, 0.1, 0.05, 0.3, joint_epochs=1, joint_lr=1e-3),
)


@pytest.mark.parametrize(("part", "name"), OPTIONS, ids=lambda x: x)
def test_every_option_acts(trained, part, name):
    """Each field of the training config changes the weights."""
    if not hasattr(trained, "usual"):
        trained.usual = trained(TINY)
        assert torch.equal(trained.usual, trained(TINY))
    inner = getattr(TINY, part) if part else TINY
    changed = replace(inner, **{name: other(getattr(inner, name))})
    assert not torch.equal(trained.usual, trained(replace(TINY, **{part: changed}) if part else changed))


@pytest.fixture(scope="module")
def headed(folder, tmp_path_factory):
    """Trains the additive heads on a few rows -> weights, by config."""
    pairs, effects = load_pairs(folder / PAIRS, folder).take(np.arange(60)), load_fold_changes(folder)
    few = effects.take(np.isin(effects.utr_id, np.unique(effects.utr_id)[:30]))

    def run(config):
        torch.manual_seed(0)
        model = PairFormer(ModelConfig(aggregator=AggregatorConfig(kind="none", additive=4)))
        stage3_aggregate.train_aggregator(
            model, training.Bags(model, pairs), None, config, tmp_path_factory.mktemp("run"), MoreSources(effects=few)
        )
        return torch.cat([value.flatten() for value in model.additives.state_dict().values()])

    return run


@pytest.mark.parametrize(("part", "name"), [
    *(("additive", f.name) for f in fields(StageConfig)),
    *(("sources", name) for name in ("decoys", "effects", "components", "baseline")),
])  # fmt: skip
def test_every_option_of_the_heads_acts(headed, part, name):
    usual = TrainConfig(additive=StageConfig(2, 8, 1e-2, 0.1, 0.05, 0.3),
                        sources=SourceConfig(decoys=1.0, effects=1.0, components=1))  # fmt: skip
    if not hasattr(headed, "usual"):
        headed.usual = headed(usual)
        assert torch.equal(headed.usual, headed(usual))
    inner = getattr(usual, part)
    changed = replace(usual, **{part: replace(inner, **{name: other(getattr(inner, name))})})
    assert not torch.equal(headed.usual, headed(changed))


def test_a_baseline_is_kept_in_part(folder, tmp_path):
    """A part of what it adds to its mean over the pairs; sites, and with a part of 1 all, are as they were learnt."""
    pairs = load_pairs(folder / PAIRS, folder)
    site, count, bag = stage3_aggregate.read_seed_sites(pairs.take(pairs.label > 0.5), 6).all()
    found = {}
    for share in (1.0, 0.25):
        torch.manual_seed(0)
        model = PairFormer(ModelConfig(aggregator=AggregatorConfig(kind="none", additive=4, members=2)))
        config = TrainConfig(additive=StageConfig(2, 64, 1e-2), sources=SourceConfig(decoys=1.0, baseline=share))
        for _ in range(2):  # the second finds the heads trained
            stage3_aggregate.train_heads(model, pairs, config, tmp_path / str(share), [])
        with torch.no_grad():
            found[share] = [(*head(site, count, bag), head.bag(bag)[:, 0]) for head in model.additives]
    for (_, sites, whole), (repression, same, part) in zip(found[1.0], found[0.25], strict=True):
        assert whole.std() > 0.01
        torch.testing.assert_close(part, whole.mean() + 0.25 * (whole - whole.mean()))
        assert torch.equal(sites, same)
        torch.testing.assert_close(repression - part, torch.segment_reduce(sites, "sum", lengths=count))


def test_nested_budgets(folder):
    """Tokens at each budget are those a model of that budget selects, cached or not."""
    pairs = load_pairs(folder / PAIRS, folder).take(np.arange(30))
    torch.manual_seed(0)
    model = PairFormer(SMALL).eval()
    bags = training.Bags(model, pairs, (4, 16))
    for k_max in (4, 16, None):
        tokens = bags.tokens(np.arange(30), frozen=True, k_max=k_max)
        expected = model(scan(pairs.mirna, pairs.utr), k_max).tokens
        assert tokens.mask.shape[1] == (k_max or 64)
        live = bags.tokens(np.arange(30), frozen=False, k_max=k_max)
        some = bags.tokens(np.arange(10, 20), frozen=True, k_max=k_max)
        begin, end = (int(tokens.mask[:bag].sum()) for bag in (10, 20))
        for field in dataclasses.fields(tokens):
            one = getattr(tokens, field.name)
            torch.testing.assert_close(one, getattr(expected, field.name))
            torch.testing.assert_close(getattr(live, field.name), one)
        torch.testing.assert_close(some.padded, tokens.padded[10:20, : some.padded.shape[1]])
        torch.testing.assert_close(some.site, tokens.site[begin:end])
        torch.testing.assert_close(some.bag, tokens.bag[10:20])


def test_train_command(folder, tmp_path, command, capsys):
    """Stage by stage as a user types it, then at once, then on tables of their own with the encoders taken over."""
    small = ("--expensive.channels", "4,4,8", "--cheap.channels", "4,8")
    common = ("--recipe", "paper", "--data", folder, "--stage1.epochs", 1, "--stage2.epochs", 1, "--stage3.epochs", 2,
              "--stage3.joint-epochs", 1, *small)  # fmt: skip
    out = tmp_path / "run"
    assert command("train", "stage2", "--out", out, *common) == 66  # stage 1 is missing
    for stage in ("stage1", "stage2", "stage3"):
        assert command("train", stage, "--out", out, *common) == 0
    assert command("train", "all", "--out", out, *common, "--rng-seed", 1) == 2  # other settings
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["epoch"]) for r in log] == [("stage1", 1), ("stage2", 1), ("stage3", 1), ("stage3", 2)]
    trained = (out / "model/model.safetensors").read_bytes()
    assert command("train", "stage1", "--out", out, *common) == 0  # finished: nothing to do, nothing lost
    assert (out / "model/model.safetensors").read_bytes() == trained
    assert command("train", "all", "--out", tmp_path / "at_once", *common) == 0
    assert (tmp_path / "at_once/model/model.safetensors").read_bytes() == trained

    pairs = load_pairs(folder / PAIRS, folder)
    rows = ["mirna_seq\tutr_seq\tlabel\n"]
    rows += [
        f"{m.replace('U', 'T').lower()}\t{u}\t{y:g}\n"
        for m, u, y in zip(pairs.mirna, pairs.utr, pairs.label, strict=True)
    ]
    rows += [rows[1].split("\t")[0] + f"\tACGU\t{label}\n" for label in (0, 1) * 20]
    (tmp_path / "mine.tsv").write_text("".join(rows))
    scores = {"look_up": {"metrics": {name: {"mean": None} for name in ("pr_auc", "roc_auc", "within_mirna")}}}
    report = {"protocol": "made", "held_out": True, "logit_scale": 0.5, "summary": {"scores": scores}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    mine = ("train", "stage3", "--recipe", "paper", "--pairs", tmp_path / "mine.tsv", "--encoders", out / "model",
            "--stage3.epochs", 2, *small,
            "--validation", 0.2, "--calibrate", tmp_path / "report.json", "--out", tmp_path / "mine")  # fmt: skip
    capsys.readouterr()
    assert command(*mine) == 0
    model = PairFormer.load(tmp_path / "mine/model")
    counts = model.metadata["trained_on"]
    empty = int((scan(pairs.mirna, pairs.utr).n_candidates == 0).sum()) + 40
    assert 20 < counts["pairs_without_candidate"] <= empty  # some families are set aside
    assert "pairs: {pairs}, {pairs_without_candidate} without a candidate\n".format(**counts) in capsys.readouterr().err
    assert model.config.logit_scale == 0.5
    means = {"look_up": {"pr_auc": None, "roc_auc": None, "within_mirna": None}}
    assert model.metadata["held_out"] == {"made": {"logit_scale": 0.5, "means": means}}
    (tmp_path / "report.json").write_text(json.dumps({**report, "held_out": False}))
    assert command(*mine[:-2], "--out", tmp_path / "leaky") == 65
    assert (
        "report must be of a model trained on folds whose genes and families were held out, got made"
        in capsys.readouterr().err
    )
    for text in ("[]", '{"held_out": true, "logit_scale": 1}', "mirna_seq\tutr_seq"):
        (tmp_path / "report.json").write_text(text)
        assert command(*mine[:-2], "--out", tmp_path / "odd") == 65
        assert "report.json:1: report must be as evaluate wrote it, got" in capsys.readouterr().err
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert command(*mine, "--logit-scale", 1) == 2
    assert command("train", "stage1", *mine[2:]) == 2
    for option in ("--stage1.epochs", "--distill.alpha-end", "--sources.windows", "--sources.clash-original"):
        capsys.readouterr()
        assert command(*mine, option, 1) == 2
        assert "--encoders takes the place of stages 1 and 2, of their options" in capsys.readouterr().err
    assert counts["pairs"] == pytest.approx(0.8 * (len(rows) - 1), abs=15)
    log = [json.loads(line) for line in (tmp_path / "mine/log.jsonl").read_text().splitlines()]
    assert [set(r) >= {"pr_auc", "roc_auc"} for r in log] == [True, True]
    pair = predict("UGAGGUAGUAGGUUGUAUAGUU", "ACGU" * 50, model=tmp_path / "mine/model")
    assert pair.probability == pytest.approx(1 / (1 + np.exp(-0.5 * pair.logit)), rel=1e-5)
    (tmp_path / "bad.tsv").write_text("".join(rows[:3]).replace("\t1\n", "\t2\n").replace("\t0\n", "\t2\n"))
    capsys.readouterr()
    assert command("train", "all", "--recipe", "paper", "--pairs", tmp_path / "bad.tsv", *mine[6:]) == 65
    assert f"{tmp_path / 'bad.tsv'}:2: label must be 0 or 1, got 2" in capsys.readouterr().err
    assert command(*mine[:-2], "--aggregator.width", 30, "--out", tmp_path / "odd") == 0
    assert command(*mine[:-2], "--cheap.hidden", 30, "--out", tmp_path / "other") == 2  # not these encoders
    assert command(*mine[:-2], "--aggregator.width", 31, "--out", tmp_path / "odder") == 2  # heads do not divide it


def test_a_stage_that_lacks_another_takes_no_directory(folder, tmp_path, command):
    out = tmp_path / "run"
    assert command("train", "stage3", "--out", out, "--data", folder) == 66
    assert not out.exists()


@pytest.mark.parametrize("named", [True, False], ids=["families", "genes"])
def test_validation_is_set_aside_from_every_source(folder, tmp_path, command, monkeypatch, named):
    if named:
        pairs = load_pairs(folder / PAIRS, folder)
        table = ["mirna_seq\tutr_seq\tlabel\tgene_symbol"]
        for i, (mirna, utr, y, gene) in enumerate(zip(pairs.mirna, pairs.utr, pairs.label, pairs.gene, strict=True)):
            mirna = mirna if i % 2 else mirna[:1] + "ACGU"[i // 2 % 4] + mirna[2:5] + "ACGU"[i // 8 % 4] + mirna[6:]
            table.append(f"{mirna}\t{utr}\t{y:g}\t{gene}")
        (tmp_path / "pairs.tsv").write_text("\n".join(table) + "\n")
    asked = {}

    def train(stage, windows, labelled, aside, *rest, more, **others):
        asked.update(windows=windows, labelled=labelled, aside=aside, more=more)
        raise ValueError("that is all")

    monkeypatch.setattr(training, "train", train)
    own = ("--pairs", tmp_path / "pairs.tsv") if named else ()
    assert command("train", "all", "--data", folder, "--validation", 0.25, "--out", tmp_path / "run", *own) == 2
    claim, more = "family" if named else "gene", dict(asked["more"].items())
    set_aside = set(getattr(asked["aside"], claim))
    assert set(more) == {"clash", "clash_original", "effects"}
    for rows in (asked["labelled"], asked["windows"], *more.values()):
        assert len(rows) > 30
        assert not set_aside & {name for names in getattr(rows, claim) for name in names.split(",")}


def test_a_stage_without_rows_is_refused(folder, tmp_path):
    pairs = load_pairs(folder / PAIRS, folder)
    nothing = TrainConfig(sources=SourceConfig(labels=0.0))
    for aggregator, stage in ((AggregatorConfig(kind="none", additive=4), "additive"), (SMALL.aggregator, "stage3")):
        model = PairFormer(ModelConfig(aggregator=aggregator))
        with pytest.raises(ValueError, match=f"{stage} must have rows to train on, got 0; give one of its sources"):
            training.train_aggregator(model, training.Bags(model, pairs), None, nothing, tmp_path)


@pytest.mark.gpu
def test_a_device_learns_what_a_cpu_does(folder, tmp_path, command):
    """Without dropout every stage has the same loss, encoders read anew and instances included."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    losses = {}
    for device in ("cpu", "cuda"):
        with exact_float32():
            assert command(
                "train", "all", "--data", folder, "--out", tmp_path / device, "--device", device, "--threads", 1,
                "--expensive.dropout", 0, "--cheap.meta-dropout", 0, "--aggregator.dropout", 0, "--sources.instances",
                1, "--stage1.epochs", 1, "--stage2.epochs", 1, "--stage3.epochs", 2, "--stage3.joint-epochs", 1,
                "--stage3.joint-lr", 1e-4, "--additive.epochs", 1,
            ) == 0  # fmt: skip
        log = map(json.loads, (tmp_path / device / "log.jsonl").read_text().splitlines())
        losses[device] = {(record["stage"], record["epoch"]): record["loss"] for record in log}
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


def test_real_training_rows(data):
    sites, counts = load_sites(data / SITES, data)
    assert len(load_instances(data / SITES)) == 93
    assert counts == {"rows": 61_805, "in_a_pair": 93, "no_candidate": 5_775, "used": 55_937}
    assert isinstance(sites, Sites)
    assert len(load_pairs(data / PAIRS, data)) == 5_928


def test_decay_is_of_matrices_only(tmp_path):
    net = torch.nn.Linear(3, 2)
    for parameter in net.parameters():
        torch.nn.init.ones_(parameter)
    step = lambda rows, epoch: 0 * (net.weight.sum() + net.bias.sum())  # noqa: E731
    fit("stage", net, 4, step, StageConfig(2, 2, 0.1, weight_decay=0.5), tmp_path, rng_seed=0)
    assert (net.bias == 1).all()
    assert (net.weight < 1).all()


def test_weights_are_validated_without_dropout(tmp_path):
    net, modes = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 1)), []
    step = lambda rows, epoch: net(torch.ones(len(rows), 2)).square().mean() * (1 if net.training else np.nan)  # noqa: E731
    validate = lambda: modes.append(net.training) or {"pr_auc": 0.5}  # noqa: E731
    fit("stage", net, 4, step, StageConfig(3, 2, 0.1), tmp_path, 0, validate)
    assert modes == [False] * 3


def test_all_gradients_are_clipped_in_joint_epochs_too(tmp_path, monkeypatch):
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    seen, clip = [], torch.nn.utils.clip_grad_norm_
    record = lambda parameters, most: seen.append((len(given := list(parameters)), most)) or clip(given, most)  # noqa: E731
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", record)
    config = JointStageConfig(2, 4, 1e-3, clip=0.5, joint_epochs=1, joint_lr=1e-3)
    fit("stage", net, 4, lambda rows, epoch: net(torch.ones(4, 2)).mean(), config, tmp_path, 0, joint=net[1])
    assert seen == [(4, 0.5)] * 2


def test_every_stage_and_epoch_has_an_order_of_its_own(tmp_path):
    net, orders = torch.nn.Linear(2, 1), {}

    def step(rows, epoch):
        orders.setdefault((stage, epoch), []).extend(rows.tolist())
        return net(torch.ones(len(rows), 2)).square().mean()

    for stage in ("one", "other"):
        fit(stage, net, 16, step, StageConfig(2, 4, 0.1), tmp_path, rng_seed=0)
    assert len({tuple(order) for order in orders.values()}) == 4


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_a_student_learns_from(folder, tmp_path, share):
    """Of the labels alone at a share of 0, of the teacher alone at 1, which is read without dropout."""
    sites, weights = load_sites(folder / SITES, folder)[0].take(np.arange(0, 600, 10)), []
    config = replace(QUICK, stage2=StageConfig(1, 32, 1e-2), distill=DistillConfig(2.0, share, share, 0.0, 0.0))
    for number, (flip, scale, train) in enumerate([(0, 1, False), (1, 1, True), (0, -1, False)]):
        torch.manual_seed(0)
        model = PairFormer(SMALL).train(train)
        model.expensive.head.weight.data *= scale
        distill(model, replace(sites, label=abs(flip - sites.label)), config, tmp_path / str(number))
        weights.append(torch.cat([value.flatten() for value in model.cheap.state_dict().values()]))
    assert torch.equal(weights[0], weights[1]) == (share == 1)  # labels
    assert torch.equal(weights[0], weights[2]) == (share == 0)  # teacher


def test_the_average_forgets_its_beginning():
    """Its first steps weigh much, whatever the decay: step s has at most (1 + s) / (10 + s)."""
    net = torch.nn.Linear(1, 1, bias=False)
    average, expected = {"weight": torch.zeros(1, 1)}, 0.0
    for step, decay in enumerate([0.1, 2 / 11, 0.2, 0.2]):
        net.weight.data[:] = step + 1.0
        _update(average, net, 0.2, step)
        expected = decay * expected + (1 - decay) * (step + 1)
    assert float(average["weight"]) == pytest.approx(expected)


def test_joint_epochs_need_a_rate():
    with pytest.raises(ValueError, match="joint_lr must be positive for joint epochs, got 0"):
        JointStageConfig(4, 16, 1e-3, joint_epochs=1)
