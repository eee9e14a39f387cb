"""RNAformer: published sizes, that padding and batch change nothing, recycling, and its loss by hand."""

import math

import numpy as np
import pytest

from pairformer.folding import equilibrium

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from pairformer.kernels import use_kernels  # noqa: E402

from pairformer.fold_config import FoldConfig  # noqa: E402
from pairformer.models.rnaformer import (  # noqa: E402
    AxialAttention,
    RNAformer,
    SquareNorm,
    distance_bucket,
    encode,
    energy_features,
    fold_loss,
    pair_probabilities,
    sdp_axial_attention,
)

SMALL = {"width": 16, "layers": 2, "heads": 2, "dropout": 0.0}
IMPROVED = {"symmetric": True, "distance_buckets": 6, "pair_types": True, "energies": True, "expand": 2,
            "final_bias": -4.0}  # fmt: skip
FORMS = [{}, IMPROVED]
PLAIN = {"attention": "full", "transition": "pointwise", "distance_buckets": 6}


def model(**changes):
    """Of weights large enough to tell what depends on what."""
    torch.manual_seed(0)
    made = RNAformer(FoldConfig(**SMALL | changes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return made


def batch(*lengths, side=None):
    torch.manual_seed(1)
    return torch.randint(5, (len(lengths), side or max(lengths))), torch.tensor(lengths)


@pytest.mark.parametrize(("width", "expected"), [(64, 2_038_528), (128, 8_009_216), (256, 31_747_072)])
def test_published_sizes(width, expected):
    assert sum(parameter.numel() for parameter in RNAformer(FoldConfig(width=width)).parameters()) == expected


def test_the_published_forward_by_hand():
    """Layer by layer with plain functions, of one sequence without padding."""
    made, (tokens, lengths) = model(layers=1), batch(7)
    p = dict(made.named_parameters())

    def norm(x, name):
        return F.layer_norm(x, (16,), p[f"{name}.weight"], p[f"{name}.bias"])

    def attend(x, name):
        q, k, v = F.linear(norm(x, f"{name}.norm"), p[f"{name}.qkv.weight"], p[f"{name}.qkv.bias"]).chunk(3, -1)
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            weight = (q[..., head] @ k[..., head].transpose(-1, -2) / math.sqrt(8)).softmax(-1)
            heads.append(weight @ v[..., head])
        return F.linear(torch.cat(heads, -1), p[f"{name}.out.weight"], p[f"{name}.out.bias"])

    def each(name):
        place = p[f"embed.{name}_position.weight"][:7]
        return p[f"embed.{name}_letter.weight"][tokens[0]] * math.sqrt(8) + place

    start = norm(each("column")[None, :] + each("row")[:, None], "embed.norm")  # (7, 7, 16)
    latent = torch.zeros_like(start)
    for _ in range(2):
        latent = start + norm(latent, "recycle")
        latent = latent + attend(latent, "blocks.0.row")
        latent = latent + attend(latent.transpose(0, 1), "blocks.0.column").transpose(0, 1)
        name = "blocks.0.transition"
        x = F.group_norm(latent.permute(2, 0, 1)[None], 1, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"])
        x = F.silu(F.conv2d(x, p[f"{name}.enter.weight"], p[f"{name}.enter.bias"], padding=1))
        x = F.conv2d(x, p[f"{name}.out.weight"], p[f"{name}.out.bias"], padding=1)
        latent = norm(latent + x[0].permute(1, 2, 0), "norm")
    no, yes = F.linear(latent, p["head.weight"]).unbind(-1)
    torch.testing.assert_close(made(tokens, lengths, passes=2)[0], yes - no, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [*FORMS, PLAIN], ids=["published", "improved", "full attention"])
def test_padding_and_batch_change_nothing(changes):
    made, (tokens, lengths) = model(**changes), batch(9, 4, 0, 1, 12, side=13)
    together = made(tokens, lengths, passes=2)
    assert together.shape == (5, 13, 13)
    assert together.dtype == torch.float32
    junk = tokens.masked_fill(torch.arange(13) >= lengths[:, None], 77)
    assert torch.equal(made(junk, lengths, passes=2), together)
    for row, n in enumerate(lengths.tolist()):
        assert not together[row, n:].any()
        assert not together[row, :, n:].any()
        alone = made(tokens[row : row + 1, :n], lengths[row : row + 1], passes=2)
        torch.testing.assert_close(together[row, :n, :n], alone[0], rtol=0, atol=1e-5)


def test_features_of_energies():
    tokens, lengths = encode(["GGGGAAAACCCC", "GGGG"])
    features, (probability,) = energy_features(tokens, lengths), equilibrium(["GGGGAAAACCCC"])
    np.testing.assert_array_equal(features[0, ..., 0], probability)
    assert features.shape == (2, 12, 12, 2)
    assert features[0, 0, 11].tolist() == pytest.approx([probability[0, 11], math.log(
        probability[0, 11] / (1 - probability[0, 11])) / math.log(1e4)], rel=1e-3)  # fmt: skip
    assert features[0, 0, 1].tolist() == pytest.approx([0, -1], abs=1e-4)
    assert not features[1, ..., 0].any()
    embed, plain = model(**IMPROVED).embed, model(**IMPROVED | {"energies": False}).embed
    plain.load_state_dict(embed.state_dict(), strict=False)
    embed.norm = plain.norm = torch.nn.Identity()
    torch.testing.assert_close(embed(tokens, lengths) - plain(tokens, lengths), embed.energy(features))


@pytest.mark.parametrize("changes", FORMS, ids=["published", "improved"])
def test_gradients_do_not_see_padding(changes):
    made, (tokens, lengths) = model(**changes), batch(6, 0, side=9)

    def gradients(tokens, lengths):
        return torch.autograd.grad(made(tokens, lengths, passes=2).square().sum(), list(made.parameters()))

    for a, b in zip(gradients(tokens, lengths), gradients(tokens[:1, :6], lengths[:1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_norm_of_a_square_is_a_group_norm_without_padding():
    torch.manual_seed(0)
    norm, latent = SquareNorm(8), torch.randn(2, 5, 5, 8) * 3 + 7
    norm.weight.data, norm.bias.data = torch.randn(8), torch.randn(8)
    expected = F.group_norm(latent.permute(0, 3, 1, 2), 1, norm.weight, norm.bias).permute(0, 2, 3, 1)
    torch.testing.assert_close(norm(latent, torch.zeros(2, 5, 5, 1, dtype=torch.bool)), expected)


@pytest.mark.parametrize("changes", FORMS, ids=["published", "improved"])
def test_half_precision(changes):
    made, (tokens, lengths) = model(**changes), batch(8, 3)
    exact = made(tokens, lengths, passes=2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made(tokens, lengths, passes=2)
    torch.autograd.grad(mixed.sum(), list(made.parameters()))  # weights cast without gradient are not used again
    for found in (mixed, made.bfloat16()(tokens, lengths, passes=2)):
        assert found.dtype == torch.float32
        assert (found - exact).norm() < 0.05 * exact.norm()


def test_only_the_last_pass_has_gradients():
    made, (tokens, lengths) = model(), batch(5)
    calls = []
    made.norm.register_forward_hook(lambda _module, _inputs, out: calls.append(out.requires_grad))
    made(tokens, lengths, passes=4)
    assert calls == [False, False, False, True]


def test_gradients_are_of_the_last_pass_alone():
    """As if the recycled latent were a constant that comes from elsewhere."""
    made, (tokens, lengths) = model(), batch(5)
    latents = []
    made.norm.register_forward_hook(lambda _module, _inputs, out: latents.append(out.detach()))
    found = torch.autograd.grad(made(tokens, lengths, passes=3).sum(), list(made.parameters()))
    past = torch.zeros(1, 5, 5, 1, dtype=torch.bool)
    logit = made.head(made._stack(made.embed(tokens, None), latents[1], lengths, past))
    expected = torch.autograd.grad((logit[..., 1] - logit[..., 0]).sum(), list(made.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_attention_drops_half_of_what_the_transition_drops():
    block = RNAformer(FoldConfig(**SMALL | {"dropout": 0.2})).blocks[0]
    assert (block.attention_dropout.p, block.dropout.p) == (0.1, 0.2)


def test_a_pass_changes_the_result():
    made, (tokens, lengths) = model(), batch(6)
    once, twice = (made(tokens, lengths, passes=n) for n in (1, 2))
    assert (once - twice).abs().max() > 1e-3


def test_no_sequence_and_no_letter():
    assert model()(torch.zeros(0, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int32)).shape == (0, 4, 4)
    assert model()(torch.zeros(2, 0, dtype=torch.uint8), torch.zeros(2, dtype=torch.int32)).shape == (2, 0, 0)


def test_symmetric_logits_are_the_mean_of_both_triangles():
    made, symmetric, (tokens, lengths) = model(), model(symmetric=True), batch(6, 3)
    plain = made(tokens, lengths, passes=1)
    assert (plain - plain.transpose(1, 2)).abs().max() > 1e-3
    torch.testing.assert_close(symmetric(tokens, lengths, passes=1), (plain + plain.transpose(1, 2)) / 2)


def test_probabilities_are_the_mean_of_both_triangles():
    made, sequence = model(), "ACGUNAC"
    one_sided = made(*encode([sequence]), 1)[0].sigmoid()
    expected = (one_sided + one_sided.T) / 2
    torch.testing.assert_close(torch.from_numpy(pair_probabilities(made, [sequence], 1)[0]), expected)


def test_distance_buckets():
    distance = torch.arange(-600, 601)
    bucket = distance_bucket(distance, 8, 500)
    assert bucket[600:609].tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 4]
    assert torch.equal(bucket, -bucket.flip(0))
    assert torch.equal(bucket, bucket.sort().values)
    assert set(bucket.tolist()) == set(range(-7, 8))
    assert int(bucket[-1]) == int(bucket[600 + 499]) == 7


def test_far_distances_share_buckets_whose_bounds_grow_in_equal_ratios():
    """Of 125 ** (1 / 4) from 4 on."""
    bucket = distance_bucket(torch.arange(601), 8, 500)
    assert (np.flatnonzero(bucket.diff()) + 1).tolist() == [1, 2, 3, 4, 14, 45, 150]


def test_a_cell_knows_its_row_s_letter_then_its_column_s_and_which_way_it_looks():
    embed, letters = model(pair_types=True, distance_buckets=6).embed, [0, 3, 1]
    found = embed(torch.tensor([letters]), None)[0]
    for i, j in np.ndindex(3, 3):
        both = embed.column_letter.weight[letters[j]] + embed.row_letter.weight[letters[i]]
        types = embed.distance.weight[j - i + 5] + embed.pair.weight[5 * letters[i] + letters[j]]
        torch.testing.assert_close(found[i, j], embed.norm(both * math.sqrt(8) + types))


def test_full_attention_by_hand():
    """Every cell attends every other: one softmax over L L keys."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 3, 3, 3, 2, 4)
    query, key, value = qkv.flatten(1, 2).unbind(2)  # (B, L L, H, D)
    weight = (torch.einsum("bqhd,bkhd->bhqk", query, key) / 2).softmax(3)
    expected = torch.einsum("bhqk,bkhd->bqhd", weight, value).unflatten(1, (3, 3))
    torch.testing.assert_close(sdp_axial_attention(qkv, "all", None), expected)


def test_far_positions_share_an_embedding():
    start = model(max_length=4).embed(torch.zeros(1, 7, dtype=torch.long), None)[0]
    assert torch.equal(start[3:, 3:], start[3, 3].expand(4, 4, -1))
    assert not torch.equal(start[2, 3], start[3, 3])


def test_final_bias_and_initial_weights():
    torch.manual_seed(0)
    made = RNAformer(FoldConfig(**SMALL | {"width": 32, "final_bias": -4.0}))
    assert made.head.bias.tolist() == [-4]
    block = made.blocks[0]
    assert block.row.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for last in (block.row.out, block.column.out, block.transition.out):
        assert last.weight.std().item() == pytest.approx(0.02 / 2, rel=0.1)
        assert not last.bias.any()
    assert made(*batch(6), passes=1).mean().item() == pytest.approx(-4, abs=0.5)


@pytest.mark.parametrize("fused", [False, True], ids=["sdp", "fused"])
@pytest.mark.parametrize("changes", [*FORMS, PLAIN], ids=["published", "improved", "full attention"])
def test_no_lengths_mean_no_padding(changes, fused):
    if fused:
        pytest.importorskip("triton")
    made, (tokens, lengths) = model(**changes, layers=1), batch(5, 5)
    if fused:
        use_kernels(made)

    def outcome(lengths):
        logit = made(tokens, lengths, passes=2)
        return logit, *torch.autograd.grad(logit.square().sum(), list(made.parameters()))

    for a, b in zip(outcome(None), outcome(lengths), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_the_fused_kernel_changes_nothing():
    pytest.importorskip("triton")
    made, (tokens, lengths) = model(layers=1), batch(4, 2, side=5)

    def outcome():
        logit = made(tokens, lengths, passes=1)
        return logit, *torch.autograd.grad(logit.square().sum(), list(made.parameters()))

    plain = outcome()
    use_kernels(made)
    assert all(m.attention is not sdp_axial_attention for m in made.modules() if isinstance(m, AxialAttention))
    for a, b in zip(outcome(), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_a_small_model_learns_one_hairpin():
    torch.manual_seed(0)
    made = RNAformer(FoldConfig(**SMALL | {"final_bias": -2.0, "symmetric": True}))
    tokens = torch.tensor([[2, 2, 1, 0, 0, 0, 2, 1, 1, 4]])
    target = torch.zeros(1, 10, 10, dtype=torch.bool)
    for i, j in ((0, 8), (1, 7), (2, 6)):
        target[0, i, j] = target[0, j, i] = True
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        fold_loss(made(tokens, torch.tensor([9]), passes=2), target, torch.tensor([9])).backward()
        optimizer.step()
    made.eval()
    assert torch.equal(made(tokens, torch.tensor([9]), passes=2) > 0, target)


def loss_by_hand(logit, target, lengths, drawn):
    """A loop over cells; ``drawn`` says which of those far from pairs are kept."""
    means = []
    for sample, n in enumerate(lengths.tolist()):
        costs = []
        for i in range(n):
            for j in range(n):
                near = any(target[sample, a, b] for a in range(max(i - 1, 0), min(i + 2, n))
                           for b in range(max(j - 1, 0), min(j + 2, n)))  # fmt: skip
                if near or drawn[sample, i, j]:
                    x = float(logit[sample, i, j])
                    costs.append(math.log1p(math.exp(-x if target[sample, i, j] else x)))
        means += [sum(costs) / len(costs)] if costs else []
    return sum(means) / len(means) if means else 0.0


@pytest.mark.parametrize("keep_share", [0.0, 0.5, 1.0])
def test_loss_by_hand(keep_share):
    torch.manual_seed(2)
    logit, lengths = torch.randn(4, 9, 9), torch.tensor([9, 6, 0, 1])
    target = torch.zeros(4, 9, 9, dtype=torch.bool)
    for sample, i, j in ((0, 0, 8), (0, 1, 7), (1, 2, 5), (1, 0, 7)):  # the last in the padding: of no effect
        target[sample, i, j] = target[sample, j, i] = True
    drawn = torch.rand(logit.shape, generator=torch.Generator().manual_seed(5)) < keep_share
    true = target & (torch.arange(9) < lengths[:, None])[:, None, :] & (torch.arange(9) < lengths[:, None])[:, :, None]
    found = fold_loss(logit, target, lengths, keep_share, torch.Generator().manual_seed(5))
    assert float(found) == pytest.approx(loss_by_hand(logit, true, lengths, drawn), rel=1e-5)


def test_loss_ignores_padding():
    logit = torch.full((1, 4, 4), float("nan"))
    logit[:, :2, :2] = 0.0
    logit.requires_grad_()
    loss = fold_loss(logit, logit.detach(), torch.tensor([2]), 1.0)
    assert loss.item() == pytest.approx(math.log(2))
    (slope,) = torch.autograd.grad(loss, logit)
    assert float(slope.abs().sum()) == pytest.approx(0.5)
    assert not slope[0, 2:].any()


def test_a_pair_in_the_padding_keeps_no_cell_beside_it():
    target = torch.zeros(1, 4, 4)
    target[0, 3, 3] = 1
    assert float(fold_loss(torch.zeros(1, 4, 4), target, torch.tensor([3]), 0.0)) == 0


def test_loss_of_nothing_is_zero():
    assert float(fold_loss(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3), torch.tensor([3, 0]), 0.0)) == 0


@pytest.mark.parametrize(("changes", "message"), [
    ({"heads": 3}, "heads must divide the width 64, got 3"),
    ({"layers": 0}, "layers must be in"),
    ({"transition": "mlp"}, "transition must be one of conv3, pointwise, got 'mlp'"),
    ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ({"distance_buckets": 1}, "distance_buckets must be 0 or 2 and more, got 1"),
    ({"distance_buckets": 501}, "distance_buckets must not exceed max_length 500, got 501"),
    ({"final_bias": math.inf}, "final_bias must be a finite number, got inf"),
    ({"energies": True, "max_length": 501}, "max_length must be 500 or less with energies, got 501"),
    ({"energies": True, "window": 501}, "window must be 500 or less with energies, got 501"),
])  # fmt: skip
def test_wrong_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        FoldConfig(**changes)


@pytest.mark.parametrize(("call", "message"), [
    (lambda m: m(torch.zeros(5, dtype=torch.long), torch.tensor([5])), r"tokens must have shape \(B, L\), got \(5,\)"),
    (lambda m: m(torch.zeros(1, 5), torch.tensor([5])), "tokens must be integers, got torch.float32"),
    (lambda m: m(*batch(5, 4), passes=0), "passes must be 1 or more, got 0"),
    (lambda m: m(batch(5)[0], torch.tensor([5, 5])), r"lengths must have shape \(1,\), got \(2,\)"),
    (lambda m: fold_loss(torch.zeros(1, 3, 3), torch.zeros(1, 3, 4), torch.tensor([3])), "target must have shape"),
    (lambda m: fold_loss(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3), torch.tensor(3)), "lengths must have shape"),
    (lambda m: fold_loss(*torch.zeros(2, 1, 3, 3), torch.tensor([3]), 2.0), r"keep_share must be in \[0, 1\], got 2.0"),
])  # fmt: skip
def test_wrong_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call(model())
