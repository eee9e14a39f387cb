"""Aggregator and budgeted forward by hand; the conformance kit, which passes what is right and names planted faults."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from pairformer import mil
from pairformer.mil import testing

torch = pytest.importorskip("torch")
from pairformer.models.pair_former import pack_tokens  # noqa: E402

RULES = [
    mil.STSelector, mil.TopK, mil.Random, mil.UniformPosition, mil.FarthestPoint, mil.KMeansPlusPlus, mil.MMR,
    mil.FacilityLocation,
]  # fmt: skip


def same_rows(one, other):
    for part in ("rows", "offsets", "reason"):
        np.testing.assert_array_equal(np.asarray(getattr(one, part)), np.asarray(getattr(other, part)))


class Mean(torch.nn.Module):
    """Right: a linear function of the mean instance."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(6, 1)

    def forward(self, x, mask):
        mask = mask.bool()
        total = self.head(x)[:, :, 0].masked_fill(~mask, 0).sum(1)
        return total / mask.sum(1).clamp(min=1)


class InvertedMask(Mean):
    def forward(self, x, mask):
        return super().forward(x, ~mask.bool())


class PadLeak(Mean):
    def forward(self, x, mask):
        return self.head(x)[:, :, 0].mean(1)


class SmallLeak(Mean):
    """Padding is masked by a finite number that large values get past."""

    def forward(self, x, mask):
        score = self.head(x)[:, :, 0]
        weight = (score - 50 * (1 - mask.float())).softmax(1)
        return torch.where(mask.bool().any(1), (weight * score).sum(1), 0.0)


class OrderDependence(Mean):
    def forward(self, x, mask):
        return super().forward(x * torch.linspace(1, 2, x.shape[1])[:, None], mask)


class NaNOnEmpty(Mean):
    def forward(self, x, mask):
        score = self.head(x)[:, :, 0]
        return (score.masked_fill(~mask.bool(), -torch.inf).softmax(1) * score).sum(1)


class BatchLeak(Mean):
    def forward(self, x, mask):
        logits = super().forward(x, mask)
        return logits - logits.mean()


class Chance(Mean):
    def forward(self, x, mask):
        return super().forward(x, mask) + torch.rand(len(x))


class OtherWithAttention(Mean):
    def forward(self, x, mask, return_att=False):
        logits = super().forward(x, mask)
        return (logits + 0.01, mask / mask.sum(1, keepdim=True)) if return_att else logits


class RawAttention(Mean):
    def forward(self, x, mask, return_att=False):
        logits = super().forward(x, mask)
        return (logits, self.head(x)[:, :, 0]) if return_att else logits


class AttentionOfPlaces(Mean):
    def forward(self, x, mask, return_att=False):
        logits, score = super().forward(x, mask), self.head(x)[:, :, 0] * x.shape[1]
        return (logits, score.masked_fill(~mask.bool(), -1e9).softmax(1)) if return_att else logits


class WeightsThatDoNotSum(Mean):
    def forward(self, x, mask, return_att=False):
        logits = super().forward(x, mask)
        return (logits, mask.float()) if return_att else logits


class BitwiseMask(Mean):
    def forward(self, x, mask):
        return super().forward(x, ~(~mask).bool())


class PrefixMask(Mean):
    def forward(self, x, mask):
        return super().forward(x, torch.arange(x.shape[1]) < mask.sum(1, keepdim=True))


class OutsideIn(Mean):
    """The first and the last instance count most: reversing changes nothing."""

    def forward(self, x, mask):
        rank, last = mask.cumsum(1) - 1.0, mask.sum(1, keepdim=True) - 1.0
        return super().forward(x * (rank - last / 2).abs()[:, :, None], mask)


class EmptyReadsPadding(Mean):
    def forward(self, x, mask):
        return torch.where(mask.bool().any(1), super().forward(x, mask), x.detach().mean((1, 2)))


class RootOfSize(Mean):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, mask):
        return super().forward(x, mask) + (self.scale * mask.sum(1)).sqrt()


# Aggregator.


@pytest.mark.parametrize("sizes", [{}, {"pool_seeds": 3, "heads": 4}, {"inducing_points": 2, "layers": 1}])
def test_aggregator_forms_agree(sizes):
    torch.manual_seed(0)
    module = mil.SetAggregator(8, **sizes).eval()
    x, offsets = torch.randn(12, 8), torch.tensor([0, 4, 4, 12])
    ragged, ragged_att = module(x, offsets=offsets, return_att=True)
    jagged = module(torch.nested.nested_tensor_from_jagged(x, offsets))
    torch.testing.assert_close(jagged, ragged, atol=0, rtol=0)
    places, mask = torch.full((3, 9, 8), 1e4), torch.zeros(3, 9, dtype=torch.uint8)
    places[0, :4], places[2, :8], mask[0, :4], mask[2, :8] = x[:4], x[4:], 1, 1
    logits, att = module(places, mask, return_att=True)
    torch.testing.assert_close(logits, ragged)
    torch.testing.assert_close(att[mask.bool()], ragged_att)
    torch.testing.assert_close(att.sum(1), torch.tensor([1.0, 0, 1]))
    torch.testing.assert_close(module(places, mask), logits, atol=0, rtol=0)
    alone = module(x[None, :4])  # no mask: all are real
    torch.testing.assert_close(alone[0], ragged[0])


def test_attention_is_what_the_pooling_used():
    """With one query, head by head: attention times values is what SDPA gave the output projection."""
    torch.manual_seed(1)
    module = mil.SetAggregator(5, width=8, heads=1, layers=1).eval()
    x, mask = torch.randn(2, 6, 5), torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    seen = {}
    module.pool.register_forward_pre_hook(lambda _, given: seen.update(x=given[0]))
    module.pool.attend.out.register_forward_pre_hook(lambda _, given: seen.update(attended=given[0]))
    att = module(x, mask, return_att=True)[1]
    values = module.pool.attend.value(module.pool.feed_forward(seen["x"]))
    torch.testing.assert_close(att[:, None] @ values, seen["attended"])


def test_threads_ask_one_module_for_attention():
    module = mil.SetAggregator(5).eval()
    x = torch.randn(4, 60, 5)
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        expected = module(x, return_att=True)[1]
        for found in pool.map(lambda _: module(x, return_att=True)[1], range(100)):
            assert torch.equal(found, expected)


def test_an_empty_bag_has_a_learned_logit():
    module = mil.SetAggregator(3)
    no_places = torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.bool)
    logits, att = module(*no_places, return_att=True)
    assert logits.tolist() == [0, 0]
    assert att.shape == (2, 0)
    logits.sum().backward()
    assert module.empty.grad == 2
    filled = module(torch.randn(2, 4, 3))
    module.zero_grad()
    filled.sum().backward()
    assert module.empty.grad == 0


def test_checks_are_known():
    with pytest.raises(ValueError, match=r"check must be one of finite, .*, got 'foo'"):
        testing.run_aggregator_check("foo", mil.SetAggregator(6), 6)
    with pytest.raises(ValueError, match=r"check must be one of .*, got 'foo'"):
        testing.run_selector_check("foo", mil.TopK(4))
    with pytest.raises(TypeError, match=r"k_max must be given for what has none, got None; pass that of <function"):
        testing.check_selector(lambda scores: scores)


def test_aggregator_refuses_by_name():
    with pytest.raises(TypeError, match="x must be a tensor, got ndarray"):
        mil.SetAggregator(6)(np.zeros((1, 2, 6), np.float32))
    module, x = mil.SetAggregator(3), torch.ones(2, 4, 3)
    with pytest.raises(TypeError, match=r"mask must be bool or integers 0 and 1, got torch.float32"):
        module(x, torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 4\) \(as x\), got \(4, 2\)"):
        module(x, torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"x must have shape \(B, P, 3\), or \(N, 3\) with offsets, got \(2, 4, 2\)"):
        module(x[:, :, :2])
    with pytest.raises(ValueError, match=r"x must have shape .*, or \(N, 3\) with offsets, got \(2, 4, 3\)"):
        module(x, offsets=[0, 1, 2])
    with pytest.raises(TypeError, match=r"x must be torch.float32 as the weights, got torch.float64; pass x.to"):
        module(x.double())
    with pytest.raises(ValueError, match="mask must hold only 0 and 1, got -1; True = real"):
        module(x, torch.ones(2, 4, dtype=torch.long) - 2)
    with pytest.raises(ValueError, match="mask must be None for ragged bags"):
        module(x[0], torch.ones(2, 4, dtype=torch.bool), offsets=torch.tensor([0, 4]))


def test_aggregator_is_saved_and_read(tmp_path):
    module = mil.SetAggregator(6, width=12, heads=3, layers=1, pool_seeds=2)
    torch.nn.init.ones_(module.empty)
    module.save_pretrained(tmp_path / "model")
    again = mil.SetAggregator.from_pretrained(tmp_path / "model")
    assert not again.training
    x, offsets = torch.randn(7, 6), torch.tensor([0, 7, 7])
    torch.testing.assert_close(again(x, offsets=offsets), module.eval()(x, offsets=offsets), atol=0, rtol=0)
    (tmp_path / "model" / "config.json").write_text('{"in_width": 5}')
    with pytest.raises(ValueError, match="directory must hold what save_pretrained wrote, got"):
        mil.SetAggregator.from_pretrained(tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        mil.SetAggregator.from_pretrained(tmp_path)


# BudgetedMIL.


def budgeted(train="straight-through", k_max=4):
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.ReLU())
    return mil.BudgetedMIL(
        torch.nn.Linear(6, 1),
        encoder,
        mil.SetAggregator(10, width=16, layers=1, hidden=32, dropout=0.0),
        mil.STSelector(k_max),
        train,
    )


def gradient(module):
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def test_budgeted_is_its_steps():
    """Scores, selection, encoder on the selected rows only, aggregator; the gate changes no logit."""
    model = budgeted().eval()
    x, offsets = torch.randn(30, 6), torch.tensor([0, 10, 10, 11, 30])
    read = []
    model.encoder.register_forward_hook(lambda _, given, out: read.append(len(given[0])))
    result = model.run(x, offsets=offsets)
    assert read == [9]  # 4 + 0 + 1 + 4
    rows = mil.STSelector(4).select(model.scorer(x)[:, 0], x, offsets=offsets)
    same_rows(result.selection, rows)
    tokens = model.encoder(x[rows.rows])
    torch.testing.assert_close(result.logits, model.aggregator(tokens, offsets=rows.offsets))
    jagged = torch.nested.nested_tensor_from_jagged(x, offsets)
    of_jagged = model.run(jagged)
    torch.testing.assert_close(of_jagged.logits, result.logits)
    assert torch.equal(of_jagged.selection.gather(jagged), x[rows.rows])
    padded, mask = pack_tokens(x, offsets.numpy())
    mask = mask.flip(1)  # real places come last
    of_padded = model.run(padded.flip(1), mask).selection
    places, real = of_padded.padded(4)
    assert torch.equal(places, mil.STSelector(4).select(
        model.scorer(padded.flip(1))[..., 0], padded.flip(1), mask=mask).padded(4)[0])  # fmt: skip
    assert torch.equal(of_padded.gather(padded.flip(1)), padded.flip(1)[torch.arange(4)[:, None], places][real])
    line = torch.arange(30)
    placed = model.run(x, offsets=offsets, positions=line).selection
    same_rows(placed, mil.STSelector(4).select(model.scorer(x)[:, 0], x, line, offsets))


def test_straight_through_trains_all_parts():
    model = budgeted()
    model.loss(torch.randn(30, 6), torch.tensor([1.0, 0]), offsets=torch.tensor([0, 10, 30])).backward()
    assert all(gradient(part) > 0 for part in (model.scorer, model.encoder, model.aggregator))


def test_alternating_trains_one_part_at_a_time():
    model = budgeted("alternating")
    x, labels, offsets = torch.randn(30, 6), torch.tensor([1, 0, 1]), torch.tensor([0, 10, 10, 30])
    loss = model.loss(x, labels, offsets=offsets)
    scores = model.scorer(x)[:, 0].detach()
    pooled = torch.stack([scores[:10].exp().mean().log(), torch.zeros(()), scores[10:].exp().mean().log()])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(pooled, labels.float())
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert gradient(model.scorer) > 0
    assert gradient(model.encoder) == gradient(model.aggregator) == 0
    model.zero_grad()
    model.loss(x, labels, offsets=offsets).backward()
    assert gradient(model.scorer) == 0
    assert min(gradient(model.encoder), gradient(model.aggregator)) > 0
    model.eval().zero_grad()
    for _ in range(3):  # no turn is lost to a loss that is only looked at, which is always of the logits
        expected = torch.nn.functional.binary_cross_entropy_with_logits(model(x, offsets=offsets), labels.float())
        torch.testing.assert_close(model.loss(x, labels, offsets=offsets), expected)
    model.train().loss(x, labels, offsets=offsets).backward()
    assert gradient(model.encoder) == 0
    with pytest.raises(ValueError, match="train must be straight-through or alternating, got 'both'"):
        budgeted("both")


@pytest.mark.parametrize("train", ["straight-through", "alternating"])
def test_no_instance_at_all(train):
    model = budgeted(train)
    empty, offsets = torch.zeros(0, 6), torch.tensor([0, 0, 0])
    assert model(empty, offsets=offsets).tolist() == [0, 0]
    for _ in range(2):
        loss = model.loss(empty, torch.tensor([0, 1]), offsets=offsets)
        assert loss.item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("train", ["straight-through", "alternating"])
def test_budgeted_finds_the_needle(train):
    """One instance in 10 makes the label; a budget of 2 is enough once the scorer has learned which.

    Alternating learns it from nothing; straight-through needs a scorer that ranks the needle above average.
    """
    model = budgeted(train, k_max=2)
    if train == "straight-through":
        model.scorer.weight.data[:] = torch.eye(6)[0] * 0.2
    generator = torch.Generator().manual_seed(0)
    rest = [*model.encoder.parameters(), *model.aggregator.parameters()]
    optimiser = torch.optim.Adam([{"params": rest}, {"params": model.scorer.parameters(), "lr": 3e-2}], 3e-3)

    def batch(bags=32):
        x, y = torch.randn(bags, 10, 6, generator=generator), torch.arange(bags) % 2
        x[:, 0, 0] += 6 * y
        return x[:, torch.randperm(10, generator=generator)], torch.ones(bags, 10, dtype=torch.bool), y

    for _ in range(150):
        x, mask, y = batch()
        optimiser.zero_grad()
        model.loss(x, y, mask).backward()
        optimiser.step()
    x, mask, y = batch(200)
    assert ((model.eval()(x, mask) > 0) == y.bool()).float().mean() > 0.8


def test_noise_of_selection_is_for_training_only():
    x, offsets = torch.randn(200, 6), torch.tensor([0, 200])
    model = budgeted()
    noisy = {tuple(model.run(x, offsets=offsets).selection.rows.tolist()) for _ in range(5)}
    assert len(noisy) > 1
    model.explore = 0
    still = tuple(model.run(x, offsets=offsets).selection.rows.tolist())
    model.eval().explore = 1
    assert tuple(model.run(x, offsets=offsets).selection.rows.tolist()) == still
    with pytest.raises(ValueError, match="explore must be 0 or more, got -1"):
        mil.BudgetedMIL(model.scorer, model.encoder, model.aggregator, model.selector, explore=-1)


def test_noise_of_selection_samples_from_the_softmax_of_scores():
    torch.manual_seed(0)
    model = mil.BudgetedMIL(torch.nn.Identity(), torch.nn.Identity(), mil.SetAggregator(1), mil.TopK(1))
    x = torch.zeros(1000, 20, 1)
    x[:, 0] = np.log(19)  # as likely as all others together
    rows = model.run(x, torch.ones(1000, 20, dtype=torch.bool)).selection.rows
    assert (rows % 20 == 0).float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_scorer_must_score_each_instance():
    model = mil.BudgetedMIL(torch.nn.Linear(6, 2), torch.nn.Identity(), mil.SetAggregator(6), mil.TopK(2))
    with pytest.raises(ValueError, match=r"scorer must give 5 scores, got shape \(5, 2\)"):
        model(torch.zeros(5, 6), offsets=torch.tensor([0, 5]))


@pytest.mark.parametrize("train", ["straight-through", "alternating"])
def test_labels_must_be_binary(train):
    """Cross-entropy of other labels has no lower bound: training ran off."""
    model = mil.BudgetedMIL(torch.nn.Linear(6, 1), torch.nn.Identity(), mil.SetAggregator(6), mil.TopK(2), train)
    x, offsets = torch.randn(5, 6), torch.tensor([0, 2, 5])
    assert model.loss(x, [0, 1], offsets=offsets) > 0
    for labels in ([1, 2], [float("nan"), 1]):
        with pytest.raises(ValueError, match=r"labels must be 0 or 1, got (2|nan); pass \(labels == positive\)"):
            model.loss(x, torch.tensor(labels), offsets=offsets)
    for labels in ([1, 0, 1], [[1], [0]]):
        with pytest.raises(ValueError, match=r"labels must have shape \(2,\), one a bag, got"):
            model.loss(x, torch.tensor(labels), offsets=offsets)


@pytest.mark.parametrize("selector", [None, 4, mil.STSelector])
def test_selector_must_be_one(selector):
    with pytest.raises(TypeError, match=r"selector must be one of pairformer\.mil"):
        mil.BudgetedMIL(torch.nn.Linear(6, 1), torch.nn.Identity(), mil.SetAggregator(6), selector)


# The kit.


@pytest.mark.parametrize("check", testing.SELECTOR_CHECKS)
@pytest.mark.parametrize("rule", RULES)
def test_our_rules(rule, check):
    testing.run_selector_check(check, rule(6))


@pytest.mark.parametrize("check", testing.AGGREGATOR_CHECKS)
@pytest.mark.parametrize("sizes", [{}, {"layers": 0}, {"inducing_points": 4}, {"pool_seeds": 3, "heads": 4}])
def test_our_aggregators(sizes, check):
    torch.manual_seed(0)
    module = mil.SetAggregator(6, **sizes).train()
    module.head.eval()  # frozen
    modes = [part.training for part in module.modules()]
    module.empty.grad = torch.ones(())
    testing.run_aggregator_check(check, module, 6)
    assert [part.training for part in module.modules()] == modes
    assert module.empty.grad == 1


@pytest.mark.parametrize("train", ["straight-through", "alternating"])
def test_our_budgeted_forward(train):
    torch.manual_seed(0)
    module = mil.BudgetedMIL(
        torch.nn.Linear(6, 1), torch.nn.Linear(6, 9), mil.SetAggregator(9), mil.STSelector(4), train
    )
    testing.check_aggregator(module, 6)


def test_what_is_told_to_evaluate_is_what_is_checked():
    """By its own train() and eval(), whatever they do."""

    class Switched(Mean):
        noisy = True

        def train(self, mode=True):
            self.noisy = mode
            return super().train(mode)

        def forward(self, x, mask):
            return super().forward(x, mask) + self.noisy * torch.randn(len(x))

    module = Switched().train()
    testing.check_aggregator(module, 6)
    assert module.noisy


def test_a_right_module_passes():
    testing.check_aggregator(Mean(), 6)
    testing.check_aggregator(RawAttention(), 6, attention="raw")
    testing.check_aggregator(None, 6, forward=lambda x, mask: Mean()(x, mask))


@pytest.mark.parametrize(
    ("module", "broken", "message"),
    [
        (
            InvertedMask,
            {"finite", "mask", "padding", "batch", "empty", "gradient"},
            "mask: mask is read inverted: instances with False",
        ),
        (
            PadLeak,
            {"mask", "padding", "batch", "empty", "gradient"},
            "padding: padding leaks (0 places more than needed",
        ),
        (
            SmallLeak,
            {"padding", "gradient"},
            "padding: padding leaks (9 places more than needed, holding -1000",
        ),
        (OrderDependence, {"order", "mask", "padding", "batch", "empty"}, "order: order matters (instances reversed)"),
        (NaNOnEmpty, {"empty", "gradient"}, "empty: an empty bag (mask all False) gave [nan]"),
        (
            Chance,
            {"repeats", "mask", "padding", "order", "batch", "one_instance", "empty"},
            "repeats: the same batch twice gives other logits: logit of bag",
        ),
        (BatchLeak, {"finite", "padding", "batch", "empty", "gradient"}, "batch: the rest of the batch matters"),
        (OtherWithAttention, {"attention"}, "attention: asking for attention changes the logits: logit of bag"),
        (RawAttention, {"attention"}, "attention: attention on padding must be 0, got"),
        (AttentionOfPlaces, {"attention"}, "attention: attention of a real instance moves by"),
        (WeightsThatDoNotSum, {"attention"}, "attention: attention must sum to 1 in each bag, got"),
        (BitwiseMask, {"mask"}, "mask: mask of uint8 0 and 1 is not read as bool"),
        (PrefixMask, {"padding"}, "padding: padding leaks (three places in front)"),
        (OutsideIn, {"order"}, "order: order matters (instances shuffled)"),
        (EmptyReadsPadding, {"empty"}, "empty: the logit of an empty bag depends on its padding"),
        (RootOfSize, {"gradient"}, "gradient: the gradient of scale is not finite where one bag is empty"),
    ],
)
def test_planted_faults_are_named(module, broken, message):
    with pytest.raises(AssertionError) as caught:
        testing.check_aggregator(module(), 6)
    text = str(caught.value)
    named = {line[2:].split(":")[0] for line in text.splitlines() if line.startswith("- ")}
    assert named == broken
    assert message in text


def top_rows(scores, offsets, k=6, shift=0):
    parts = [first + np.argsort(-scores[first:last])[shift : k + shift] for first, last in
             pairwise(offsets)]  # fmt: skip
    return np.concatenate([np.empty(0, np.int64), *parts]), np.cumsum([0, *map(len, parts)])


def test_a_function_is_a_selector():
    testing.check_selector(lambda s, e, p, offsets: top_rows(s, offsets), k_max=6)
    for k_max in (2, 64):
        with pytest.raises(ValueError, match=r"k_max must be in 3\.\.11"):
            testing.check_selector(mil.TopK(k_max))


def one_row_twice(scores, offsets):
    rows, ends = top_rows(scores, offsets)
    return np.where(np.arange(len(rows)) == 1, rows[:1], rows), ends


def one_row_of_none(scores, offsets):
    return ([0], [0, 1]) if offsets[1:].tolist() == [0] else top_rows(scores, offsets)


class ReadsPadding(mil.TopK):
    @staticmethod
    def wrong(scores, mask):
        return True

    def select(self, scores, embeddings=None, positions=None, offsets=None, *, mask=None, threads=0):
        if mask is not None and self.wrong(scores, mask):
            mask = mask.astype(bool) ^ 1
        return super().select(scores, embeddings, positions, offsets, mask=mask)


class ReadsLargePadding(ReadsPadding):
    @staticmethod
    def wrong(scores, mask):
        return scores.max() > 1


class InvertsNumbers(ReadsPadding):
    @staticmethod
    def wrong(scores, mask):
        return mask.dtype != bool


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (lambda s, e, p, offsets: top_rows(s, offsets, 7), "budget: bag 0 of 15 instances with k_max = 6 gave 7 rows"),
        (lambda s, e, p, offsets: top_rows(s, offsets, shift=1), "budget: bag 1 of 1 instances with k_max = 6 gave 0"),
        (lambda s, e, p, offsets: top_rows(np.arange(-len(s), 0.0), offsets), "order: shuffling bag 0 changed which"),
        (lambda s, e, p, offsets: top_rows(s * (1 + (len(offsets) > 2) * e[:, 0]), offsets), "batch: bag 0 alone gave"),
        (lambda s, e, p, offsets: top_rows(np.random.default_rng().random(len(s)), offsets), "repeats: the same call"),
        (lambda s, e, p, offsets: (top_rows(s, offsets)[0], offsets), "budget: offsets of 6 bags must run from 0 to"),
        (lambda s, e, p, offsets: (top_rows(s, offsets)[0] % 15, top_rows(s, offsets)[1]), "gave rows of other bags"),
        (lambda s, e, p, offsets: one_row_twice(s, offsets), "budget: bag 0 of 15 instances with k_max = 6 gave a row"),
        (lambda s, e, p, offsets: one_row_of_none(s, offsets), "no_bags: a batch of one empty bag gave rows"),
        (ReadsPadding(6), "padding: padded bags (mask bool, True = real, padding 0) gave other rows"),
        (ReadsLargePadding(6), "padding: padded bags (mask bool, True = real, padding 1000) gave other rows"),
        (InvertsNumbers(6), "padding: padded bags (mask uint8, True = real, padding 0) gave other rows"),
    ],
)  # fmt: skip
def test_planted_faults_of_selectors_are_named(selector, message):
    with pytest.raises(AssertionError) as caught:
        testing.check_selector(selector, k_max=6)
    assert message in str(caught.value)
