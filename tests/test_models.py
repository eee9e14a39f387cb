"""Models: sizes, and that padding, order and the rest of the batch change nothing."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import pairformer
from pairformer import testing
from pairformer.bags import padded_rows
from pairformer.config import (
    RECIPES,
    AggregatorConfig,
    CheapConfig,
    ExpensiveConfig,
    ModelConfig,
    SelectorConfig,
    recipe,
)  # fmt: skip

torch = pytest.importorskip("torch")
from pairformer.engines import exact_float32  # noqa: E402
from pairformer.models import ISAB, MAB, PMA, SAB, CheapEncoder, ExpensiveEncoder, PairFormer, SetTransformer  # noqa: E402
from pairformer.models.pair_former import pack_tokens  # noqa: E402

ROOT = Path(__file__).parent.parent
SMALL = AggregatorConfig(width=16, layers=2, heads=2, hidden=32, dropout=0.0)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PairFormer(ModelConfig(aggregator=SMALL)).eval()


@pytest.fixture
def candidates(rng):
    lengths = (900, 30, 120, 41, 600, 700)
    utrs = [testing.random_rna(rng, length) for length in lengths]
    return pairformer.scan([testing.random_rna(rng, 22) for _ in utrs], utrs)


def test_published_sizes():
    assert parameters(ExpensiveEncoder()) == 14_241
    assert parameters(CheapEncoder()) == 6_801
    assert parameters(SetTransformer(387)) == 179_713
    assert parameters(SetTransformer(387, AggregatorConfig.paper())) == 2_537_473
    assert AggregatorConfig.paper().heads == 8  # which that number does not tell
    assert parameters(SetTransformer(387, AggregatorConfig(width=128, heads=4, hidden=256))) == 662_529
    assert ExpensiveConfig().width == 384
    assert ModelConfig().token_width == 387


def test_initial_weights_of_the_encoders():
    """Convolutions keep the size of what flows back, linear layers of what flows on; biases are 0."""
    torch.manual_seed(0)
    expensive, cheap = ExpensiveEncoder(ExpensiveConfig(channels=(16, 64))), CheapEncoder()
    for conv in (expensive.stem, expensive.blocks[0].conv1, cheap.conv1, cheap.conv2):
        expected = (2 / (conv.out_channels * conv.kernel_size[0])) ** 0.5
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.15)
    for linear in (expensive.head, cheap.embed, cheap.score1):
        assert linear.weight.std().item() == pytest.approx((2 / linear.in_features) ** 0.5, rel=0.15)
    for name, weight in (*expensive.named_parameters(), *cheap.named_parameters()):
        assert not name.endswith("bias") or not weight.any()


def test_expensive_encoder_by_hand():
    """Layer by layer with plain functions: pre-activation blocks, x * (1 + gate), bins of floor and ceil."""
    torch.manual_seed(1)
    encoder = ExpensiveEncoder().eval().double()
    windows = torch.randint(0, 2, (3, 10, 50)).double()
    embedding, logit = encoder(windows)
    f = torch.nn.functional
    x = f.conv1d(windows, encoder.stem.weight, padding=2)
    for block in encoder.blocks:
        y = f.conv1d(x.clamp(min=0), block.conv1.weight, padding=1).clamp(min=0)
        skip = f.conv1d(x, block.skip.weight) if isinstance(block.skip, torch.nn.Conv1d) else x
        x = skip + f.conv1d(y, block.conv2.weight, padding=1)
    gate = torch.sigmoid((x.mean(2) @ encoder.squeeze.weight.T).clamp(min=0) @ encoder.excite.weight.T)
    x = (x + x * gate[:, :, None]).clamp(min=0)
    bins = [x[:, :, 50 * t // 12 : -(-50 * (t + 1) // 12)].mean(2) for t in range(12)]
    by_hand = torch.stack(bins, 2).reshape(3, 384)
    torch.testing.assert_close(embedding, by_hand)
    torch.testing.assert_close(logit, by_hand @ encoder.head.weight[0] + encoder.head.bias)


def test_cheap_encoder_sees_esa_and_position_in_the_logit_only():
    torch.manual_seed(1)
    encoder = CheapEncoder().eval()
    windows = torch.randint(0, 2, (4, 10, 50))
    one, other = (encoder(windows, torch.full((4,), esa), torch.full((4,), p)) for esa, p in ((6, 0.1), (9, 0.8)))
    torch.testing.assert_close(one[1], other[1])
    assert (one[0] != other[0]).all()
    assert one[1].shape == (4, 64)


def test_mab_by_hand():
    """One head by the formula: softmax(QK / sqrt(d)) V on the raw query, then a GELU feed-forward, both normed."""
    torch.manual_seed(2)
    block = MAB(8, 1, 12).double().eval()
    x, y = torch.randn(2, 3, 8).double(), torch.randn(2, 5, 8).double()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]]).bool()
    score = block.query(x) @ block.key(y).transpose(1, 2) / 8**0.5
    weight = score.masked_fill(~mask[:, None], -torch.inf).softmax(2)
    h = block.norm1(x + block.out(weight @ block.value(y)))
    expected = block.norm2(h + block.feed_forward[3](torch.nn.functional.gelu(block.feed_forward[0](h))))
    torch.testing.assert_close(block(x, y, mask), expected)


def test_attention_drops_weights_in_training_alone(monkeypatch):
    block, seen = MAB(8, 2, 12, 0.3), []
    monkeypatch.setattr(block, "attention", lambda query, *_, dropout: seen.append(dropout) or query)
    for training in (True, False):
        block.train(training)(torch.zeros(1, 3, 8), torch.zeros(1, 3, 8), torch.ones(1, 3, dtype=torch.bool))
    assert seen == [0.3, 0.0]


@pytest.mark.parametrize("inducing", [0, 4])
@pytest.mark.parametrize("pool_seeds", [1, 3])
def test_aggregator_ignores_order_padding_and_batch(inducing, pool_seeds):
    torch.manual_seed(3)
    config = dataclasses.replace(SMALL, inducing_points=inducing, pool_seeds=pool_seeds)
    aggregator = SetTransformer(7, config, empty_logit=0.25).double().eval()
    sizes = (5, 0, 1, 9)
    bags = [torch.randn(size, 7).double() for size in sizes]
    offsets = np.cumsum([0, *sizes])
    alone = torch.cat([aggregator(bag[None], torch.ones(1, len(bag), dtype=torch.bool)) for bag in bags])
    assert alone[1] == 0.25
    together = aggregator(*pack_tokens(torch.cat(bags), offsets))
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    shuffled = torch.cat([bag[torch.randperm(len(bag))] for bag in bags])
    torch.testing.assert_close(aggregator(*pack_tokens(shuffled, offsets)), alone, atol=1e-6, rtol=0)
    tokens, mask = pack_tokens(torch.cat(bags), offsets)
    wider = torch.cat([tokens, torch.full((4, 6, 7), 1e3).double()], 1)  # padding is not read
    wider_mask = torch.cat([mask, torch.zeros(4, 6, dtype=torch.bool)], 1)
    torch.testing.assert_close(aggregator(wider, wider_mask), alone, atol=1e-6, rtol=0)


def test_seeds_of_the_pooling_count_alike():
    torch.manual_seed(6)
    aggregator = SetTransformer(7, dataclasses.replace(SMALL, pool_seeds=3)).eval()
    tokens, mask, seeds = torch.randn(4, 5, 7), torch.ones(4, 5, dtype=torch.bool), aggregator.pool.seeds
    before = aggregator(tokens, mask)
    seeds.data = seeds.data.flip(0)
    torch.testing.assert_close(aggregator(tokens, mask), before)
    seeds.data[2] = torch.randn(16)
    assert ((aggregator(tokens, mask) - before).abs() > 1e-4).all()


def test_aggregator_gradients_are_finite_with_empty_bags():
    aggregator = SetTransformer(7, SMALL)
    tokens = torch.randn(3, 4, 7, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    aggregator(tokens, mask).sum().backward()
    gradients = [tokens.grad, *(p.grad for p in aggregator.parameters())]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert (tokens.grad[~mask] == 0).all()
    assert (tokens.grad[mask] != 0).any()


@pytest.mark.parametrize("block", [SAB(8, 2, 16), ISAB(8, 2, 16, 3)])
def test_blocks_zero_padding(block):
    mask = torch.tensor([[True, False, True]])
    out = block(torch.randn(1, 3, 8), mask)
    assert (out[0, 1] == 0).all()
    assert (out[0, [0, 2]] != 0).any()
    assert PMA(8, 2, 16, pool_seeds=2)(out, mask).shape == (1, 2, 8)


def test_budgeted_forward_is_its_steps(model, candidates):
    """The forward pass written out bag by bag on every window at once."""
    result = model(candidates, k_max=20)
    sizes = np.diff(result.selection.offsets)
    np.testing.assert_array_equal(sizes, np.minimum(20, candidates.n_candidates))
    with torch.no_grad():
        everything = torch.from_numpy(candidates.encode())
        esa, position = torch.from_numpy(candidates.esa_score), torch.from_numpy(candidates.position)
        cheap_logit, cheap_embedding = model.cheap(everything, esa, position)
        np.testing.assert_allclose(result.cheap_logit, cheap_logit.numpy(), atol=1e-5)
        selector = pairformer.STSelector(k_max=20)
        rows = selector.select(
            cheap_logit, cheap_embedding, position, torch.from_numpy(candidates.offsets)
        ).rows.numpy()
        np.testing.assert_array_equal(result.selection.rows, rows)
        h, z = model.expensive(everything[rows])
        tokens = torch.cat([h, z[:, None], esa[rows, None].float(), position[rows, None]], 1)
        for bag, logit in enumerate(result.pooled.logit):
            span = tokens[result.selection.offsets[bag] : result.selection.offsets[bag + 1]]
            every = torch.ones(1, len(span), dtype=torch.bool)
            expected = model.aggregators[0](span[None], every)[0] if len(span) else 0
            assert float(logit) == pytest.approx(float(expected), abs=1e-5)


def test_batch_composition_changes_nothing(rng, model):
    utrs = [testing.random_rna(rng, length) for length in (300, 2000, 20, 45)]
    mirnas = [testing.random_rna(rng, 21) for _ in utrs]
    together = model(pairformer.scan(mirnas, utrs))
    for bag, pair in enumerate(zip(mirnas, utrs, strict=True)):
        alone = model(pairformer.scan(*pair))
        assert float(alone.pooled.logit[0]) == pytest.approx(float(together.pooled.logit[bag]), abs=1e-6)


def test_token_parts_are_a_field(rng, candidates):
    config = ModelConfig(
        token=("position", "embedding"), aggregator=SMALL, cheap=CheapConfig(channels=(8, 8), width=20)
    )
    assert config.token_width == 385
    model = PairFormer(config).eval()
    result = model(candidates)
    np.testing.assert_allclose(
        result.tokens.padded[result.tokens.mask][:, 0], candidates.position[result.selection.rows]
    )


@torch.no_grad()
def test_weights_are_logits_without_a_token(model, candidates):
    result = model(candidates, k_max=9)
    weight = model.weights(result)
    assert weight.shape == result.logit.shape
    for k in (0, 4, 8):
        keep = [i for i in range(9) if i != k]
        alone = model.aggregators[0](result.tokens.padded[:1, keep], torch.ones(1, 8, dtype=torch.bool))
        assert float(result.pooled.logit[0] - weight[k]) == pytest.approx(float(alone[0]), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("k_max", [1, 5, 100])
def test_weights_are_logits_without_a_token_and_what_it_contributed(rng, k_max):
    torch.manual_seed(0)
    config = ModelConfig(aggregator=dataclasses.replace(SMALL, additive=8, members=2), empty_logit=-0.5)
    model, gain = PairFormer(config).eval(), torch.tensor([3.0, 0.5])
    for head, value in zip(model.additives, gain, strict=True):
        head.gain.data[...] = value
    utr = testing.random_rna(rng, 150) + "CUACCUCA" + testing.random_rna(rng, 150)
    result = model(pairformer.scan("UGAGGUAGUAGGUUGUAUAGUU", utr), k_max)
    tokens, every, weight = result.tokens.padded, result.tokens.mask, model.weights(result)
    if k_max == 1:  # nothing is left
        torch.testing.assert_close(weight, result.pooled.logit + 0.5)
        return
    for i in (0, 2, k_max - 1):
        keep = [j for j in range(k_max) if j != i]
        lost = model.relational(tokens, every) - model.relational(tokens[:, keep], every[:, keep])
        expected = (lost[:, 0] + gain * model.members(result.tokens)[2][:, i]).mean()
        torch.testing.assert_close(weight[i], expected)


@torch.no_grad()
@pytest.mark.parametrize("gate", [0, 0.4, 1.5])
def test_members_are_averaged_and_sites_add_up(candidates, gate):
    """An ensemble says the mean of its members; repression is the bag's part and its sites' contributions."""
    size = dataclasses.replace(SMALL, members=3, additive=8, length_gate=gate)
    config = ModelConfig(aggregator=size, empty_logit=-1.0)
    torch.manual_seed(0)
    model = PairFormer(config).eval()
    result = model(candidates)
    tokens, pooled = result.tokens, result.pooled
    count = torch.from_numpy(np.diff(result.selection.offsets))
    heads = [head(tokens.site, count, tokens.bag) for head in model.additives]
    full = candidates.n_candidates > 0
    length = torch.from_numpy(candidates.utr_length).float()
    share = torch.sigmoid(2 - 10 * gate * torch.log((1 + length) / 51)) if gate else 1.0
    each = torch.stack([
        share * aggregator(tokens.padded, tokens.mask) + head.gain * repression
        for aggregator, head, (repression, _) in zip(model.aggregators, model.additives, heads, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(pooled.logit[full], each.mean(0)[full])
    if gate:  # what does not count is not asked for
        tokens.padded[share < 1e-6] = torch.nan
        torch.testing.assert_close(model.aggregate(tokens).logit, pooled.logit, rtol=0, atol=0)
    base = torch.stack([head.bag(tokens.bag)[:, 0] for head in model.additives]).mean(0)
    summed = torch.zeros(len(candidates)).index_add(0, torch.repeat_interleave(count), pooled.contribution)
    torch.testing.assert_close(pooled.repression[full], (base + summed)[full])
    assert (pooled.logit[~full] == -1).all()
    assert (pooled.repression[~full] == 0).all()
    stands = tokens.site[:, 10] == 1
    assert (pooled.contribution[stands] > 0).all()
    assert (pooled.contribution[~stands] == 0).all()
    assert 0 < stands.sum() < len(stands)


def test_save_and_load(tmp_path, model, candidates):
    model.save(tmp_path, {"note": "kept"}, half=False)
    again = PairFormer.load(tmp_path)
    assert again.config == model.config
    assert again.metadata["note"] == "kept"
    torch.testing.assert_close(again(candidates).pooled.logit, model(candidates).pooled.logit, atol=0, rtol=0)
    again.save(tmp_path)
    assert PairFormer.load(tmp_path).metadata["note"] == "kept"
    assert (tmp_path / "model.safetensors").stat().st_size < 150_000
    torch.testing.assert_close(
        PairFormer.load(tmp_path)(candidates).pooled.logit, model(candidates).pooled.logit, atol=0.05, rtol=0
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["aggregator"]["hidden"] = 48
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model.safetensors must hold the arrays of config.json"):
        PairFormer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model must be default, paper or a directory with config.json"):
        PairFormer.load(tmp_path / "nowhere")


def test_another_config_is_another_model(tmp_path, model):
    model.save(tmp_path)
    before = PairFormer.load(tmp_path).metadata["model_sha256"]
    model.save(tmp_path, {"note": "other metadata, equal weights"})
    assert PairFormer.load(tmp_path).metadata["model_sha256"] != before


def test_config_round_trip_and_refusals():
    config = ModelConfig(aggregator=AggregatorConfig.paper(), selector=SelectorConfig(k_max=8, variant="S1"))
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for make, message in [
        (lambda: AggregatorConfig(width=30, heads=4), "heads must divide the width 30, got 4"),
        (lambda: AggregatorConfig(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: ExpensiveConfig(channels=(4,)), "channels must name two or more widths"),
        (lambda: ModelConfig(token=("embedding", "embedding")), "token must name distinct parts"),
        (lambda: AggregatorConfig(kind="none"), "additive must be 1 or more for kind none, got 0"),
        (lambda: AggregatorConfig(length_gate=1), "length_gate must be 0 without an additive head, got 1"),
        (lambda: ModelConfig(effect_interval=(0.1, 0.2)), "effect_interval must be empty or hold a negative and a"),
        (lambda: ModelConfig(effect_widening=(0.1, -0.2)), "effect_widening must be two numbers of 0 or more, got"),
        (lambda: ModelConfig(esa_min=11), r"esa_min must be in .0, 10., got 11"),
        (lambda: ModelConfig.from_dict({"depth": 3}), "config must have fields among"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


def test_padded_rows():
    rows, mask = padded_rows(np.array([0, 2, 2, 5]), 3)
    assert rows.tolist() == [[0, 1, -1], [-1, -1, -1], [2, 3, 4]]
    assert mask.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    with pytest.raises(ValueError, match=r"k_max must be at least 3 \(the largest bag\), got 2"):
        padded_rows(np.array([0, 2, 2, 5]), 2)


def test_no_aggregator_is_called_for_long_utrs_alone(rng):
    """They count for none of them; in training the loss still reaches the weights, with gradients 0."""
    torch.manual_seed(0)
    model = PairFormer(
        ModelConfig(aggregator=dataclasses.replace(SMALL, members=2, additive=8, length_gate=1.5))
    ).eval()
    candidates = pairformer.scan(testing.random_rna(rng, 22), [testing.random_rna(rng, 900) for _ in range(3)])
    called = []
    for aggregator in model.aggregators:
        aggregator.register_forward_hook(lambda *_: called.append(1))
    result = model(candidates)
    assert not called
    gain = torch.stack([head.gain for head in model.additives]).view(-1, 1)
    with torch.no_grad():
        logit, repression, _ = model.members(result.tokens)
    torch.testing.assert_close(logit, gain * repression)
    model.additives.requires_grad_(False)
    model.members(result.tokens)[0].sum().backward()
    assert len(called) == 2
    assert all(not weight.grad.any() for weight in model.aggregators.parameters())


@pytest.mark.gpu
def test_cuda_equals_cpu(rng):
    """The same logits to 1e-4 and, where no two scores nearly tie, the same rows."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    model = PairFormer(ModelConfig()).eval()
    utrs = [testing.random_rna(rng, length) for length in (3000, 20, 700, 1500)]
    candidates = pairformer.scan([testing.random_rna(rng, 22) for _ in utrs], utrs)
    with exact_float32():
        cpu, cuda = model(candidates), model.to("cuda")(candidates)
    np.testing.assert_allclose(cuda.cheap_logit, cpu.cheap_logit, atol=1e-5)
    np.testing.assert_array_equal(cuda.selection.rows, cpu.selection.rows)
    torch.testing.assert_close(cuda.pooled.logit.cpu(), cpu.pooled.logit, atol=1e-4, rtol=0)


def test_shipped_weights():
    """Small, of their recipes, with their records, which the card repeats; empty bags at even odds."""
    weights, card = ROOT / "pairformer/weights", (ROOT / "MODEL_CARD.md").read_text()
    assert sum(path.stat().st_size for path in weights.rglob("*.*")) < 8_000_000
    models = {name: PairFormer.load(name) for name in RECIPES}
    calibrated = ("logit_scale", "effect_scale", "effect_interval", "effect_widening")
    for name, model in models.items():
        plain = {field: getattr(ModelConfig(), field) for field in calibrated}
        assert dataclasses.replace(model.config, **plain) == recipe(name)[0]
        assert model.config.empty_logit == 0
        assert f"sigmoid({model.config.logit_scale:.3f} * logit)" in card
    paper, default = models["paper"], models["default"]
    assert parameters(paper) == 14_241 + 6_801 + 179_713
    assert paper.metadata["trained_on"] == {"pairs": 5928, "positive_pairs": 5380, "sites": 55937}
    for metric in ("pr_auc", "roc_auc", "within_mirna"):
        assert f"**{paper.metadata['held_out']['means']['pair-former'][metric]:.3f}**" in card
    trained_on = paper.metadata["trained_on"] | {"pairs_without_candidate": 64}
    trained_on |= {"clash": 8193, "clash_original": 42460, "effects": 172153}
    assert default.metadata["trained_on"] == trained_on
    assert default.metadata["train"] == json.loads(json.dumps(dataclasses.asdict(recipe("default")[1])))
    held_out = default.metadata["held_out"]
    assert default.config.logit_scale == held_out["rewired"]["logit_scale"]
    for name in ("effect_scale", "effect_interval", "effect_widening"):
        assert np.array_equal(getattr(default.config, name), held_out["fold-change"][name])
    for metric in ("spearman", "r2", "auroc_top"):
        assert f"**{held_out['fold-change']['means']['pair-former repression'][metric]:.3f} ±" in card


def test_dropout_of_esa_score_and_position():
    """In training it hides them from the logit, nothing from the embedding."""
    torch.manual_seed(0)
    encoder = CheapEncoder(CheapConfig(meta_dropout=0.5))
    given = torch.rand(50, 10, 50), torch.full((50,), 9), torch.rand(50)
    (still, embedding), (logit, again) = encoder.eval()(*given), encoder.train()(*given)
    assert not torch.allclose(still, logit)
    assert torch.equal(embedding, again)


def test_dropout_before_pooling():
    torch.manual_seed(0)
    encoder = ExpensiveEncoder(ExpensiveConfig(dropout=0.5))
    for name, weight in encoder.blocks.named_parameters():
        weight.data *= "skip" in name  # blocks hand on what they are given
    windows = torch.rand(3, 10, 50)
    assert not torch.allclose(encoder.eval()(windows)[0], encoder.train()(windows)[0])
