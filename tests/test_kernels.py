"""The Triton kernels against their plain twins: under the interpreter without a GPU, compiled on one."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from pairformer.kernels import axial_attention, reference, set_attention, use_kernels  # noqa: E402

from pairformer.config import AggregatorConfig  # noqa: E402
from pairformer.models import SetTransformer  # noqa: E402

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("unwritten_is_nan")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
gpu = pytest.mark.gpu


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    """One configuration of each kernel: what the tuner would pick does not matter here, and tuning takes minutes."""
    for name in ("_forward", "_backward_tile", "_backward_query", "_backward_key"):
        kernel = getattr(set_attention, name)
        monkeypatch.setattr(kernel, "configs", kernel.configs[:1])


@pytest.fixture(params=["one tile", "blocks"])
def way(request, monkeypatch):
    """Both forms of the backward pass."""
    most = set_attention.TILE if DEVICE == "cuda" else 1 << 30
    monkeypatch.setattr(set_attention, "TILE", most if request.param == "one tile" else 0)


def sets(bags, n_query, n_key, heads, width, dtype=torch.float32, bias_heads=0):
    """Queries, keys, values and perhaps a bias that ask for gradients; a mask whose first bag has no key."""
    torch.manual_seed(n_key)
    inputs = [torch.randn(bags, n, heads, width).to(DEVICE, dtype) for n in (n_query, n_key, n_key)]
    if bias_heads:
        inputs.append(torch.randn(bags, bias_heads, n_query, n_key).to(DEVICE))
    mask = torch.rand(bags, n_key) > 0.4
    mask[0], mask[-1] = False, True
    return [part.requires_grad_() for part in inputs], mask.to(DEVICE)


def compare(fast, plain, inputs, precision):
    """Outputs and gradients for the same random slope, in float64 on the plain side."""
    doubled = [part.detach().double().requires_grad_() for part in inputs]
    out, expected = fast(*inputs), plain(*doubled)
    slope = torch.randn_like(out)
    pairs = zip((out, *torch.autograd.grad(out, inputs, slope)),
                (expected, *torch.autograd.grad(expected, doubled, slope.double())), strict=True)  # fmt: skip
    for found, wanted in pairs:
        assert found.shape == wanted.shape
        assert (found.double() - wanted).norm() <= precision * max(wanted.norm(), 1)  # false of NaN


SHAPES = [(3, 5, 37, 2, 32), pytest.param((2, 1, 70, 2, 16), marks=gpu), pytest.param((3, 33, 33, 1, 20), marks=gpu),
          (2, 3, 1, 1, 5)]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", list(PRECISE), ids=str)
def test_attention_and_gradients_are_the_twins(shape, dtype, way):
    inputs, mask = sets(*shape, dtype)
    compare(lambda *given: set_attention.set_attention(*given, mask),
            lambda *given: reference.set_attention(*given, mask), inputs, PRECISE[dtype])  # fmt: skip


def test_views_are_read_as_they_are():
    """A mask or bounds of another stride were read as if they lay side by side."""
    (query, key, value), mask = sets(3, 2, 5, 1, 8)
    expected = set_attention.set_attention(query, key, value, mask)
    apart = torch.stack([mask, ~mask], 2)[:, :, 0]
    torch.testing.assert_close(set_attention.set_attention(query, key, value, apart), expected, rtol=0, atol=0)
    rows, ends = [part.flatten(0, 1) for part in (query, key, value)], torch.tensor([[0, 2, 4, 6], [0, 5, 10, 15]])
    bounds = [torch.stack([row, row], 1)[:, 0].to(DEVICE) for row in ends]
    found = set_attention.ragged_set_attention(*rows, *bounds, 2, 5)
    torch.testing.assert_close(found.view_as(query), set_attention.set_attention(query, key, value))


@gpu
@pytest.mark.parametrize("bias_heads", [1, 2])
def test_bias_has_its_gradient(bias_heads, way):
    inputs, mask = sets(3, 5, 37, 2, 32, bias_heads=bias_heads)
    compare(lambda q, k, v, bias: set_attention.set_attention(q, k, v, mask, bias),
            lambda q, k, v, bias: reference.set_attention(q, k, v, mask, bias), inputs, 3e-6)  # fmt: skip


@triton.jit
def _drawn(SEED, OUT, n_query, n_key, dropout, Q: tl.constexpr, K: tl.constexpr):
    q, k = tl.arange(0, Q), tl.arange(0, K)
    keep = set_attention.keep_weights(SEED, tl.program_id(0), q, k, n_key, dropout)
    at = tl.program_id(0) * n_query * n_key + q[:, None] * n_key + k[None, :]
    tl.store(OUT + at, keep, (q < n_query)[:, None] & (k < n_key)[None, :])


@gpu
def test_dropout_takes_the_same_weights_forward_and_backward(way):
    (query, key, value), mask = sets(4, 20, 40, 2, 16)
    seed = torch.tensor([7], device=DEVICE)
    keep = torch.empty(4, 2, 20, 40, device=DEVICE)
    _drawn[(8,)](seed, keep, 20, 40, 0.3, 32, 64)
    assert abs(float((keep == 0).float().mean()) - 0.3) < 0.03
    assert float(keep.max()) == pytest.approx(1 / 0.7)
    keep = keep.double()
    compare(lambda *given: set_attention.set_attention(*given, mask, None, 0.3, seed),
            lambda *given: reference.set_attention(*given, mask, None, keep), [query, key, value], 3e-6)  # fmt: skip


def test_seeds_of_dropout_come_from_the_generator():
    (query, key, value), mask = sets(2, 8, 8, 1, 16)

    def drawn():
        torch.manual_seed(3)
        return [set_attention.set_attention(query, key, value, mask, dropout=0.5) for _ in range(2)]

    first, again = drawn(), drawn()
    assert not torch.equal(first[0], first[1])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@gpu
def test_ragged_bags_are_the_padded_ones(way):
    torch.manual_seed(0)
    cu_query, cu_key = torch.tensor([0, 3, 3, 20, 21]), torch.tensor([0, 0, 40, 75, 80], dtype=torch.int32)
    inputs = [torch.randn(n, 2, 16).to(DEVICE).requires_grad_() for n in (21, 80, 80)]
    inputs.append(torch.randn(4, 1, 17, 40).to(DEVICE).requires_grad_())
    ends = cu_query.to(DEVICE), cu_key.to(DEVICE)
    compare(lambda q, k, v, bias: set_attention.ragged_set_attention(q, k, v, *ends, 17, 40, bias),
            lambda q, k, v, bias: reference.ragged_set_attention(q, k, v, *ends, bias), inputs, 3e-6)  # fmt: skip


def test_rows_of_no_bag_are_zero(way):
    """They were whatever lay in memory."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(9, 1, 16).to(DEVICE).requires_grad_() for _ in range(3))
    ends = torch.tensor([0, 2, 5]).to(DEVICE)
    out = set_attention.ragged_set_attention(query, key, value, ends, ends, 3, 3)
    for part in (out, *torch.autograd.grad(out.sum(), (query, key, value))):
        assert not part.isnan().any()
        assert (part[5:] == 0).all()


def test_one_thread_at_a_time_tunes(monkeypatch):
    """Triton's tuner keeps a call's arguments in the kernel, and another thread's call took them away."""
    inside, met = [], []

    def run(*_, **__):
        inside.append(None)
        time.sleep(0.01)
        met.append(len(inside))
        inside.pop()

    monkeypatch.setattr(type(set_attention._forward), "run", run)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: set_attention._forward[(1,)](), range(6)))
    assert met == [1] * 6


def test_a_joint_projection_is_read_in_place():
    torch.manual_seed(0)
    joint = torch.randn(2, 9, 3, 2, 16).to(DEVICE)
    parts = joint.unbind(2)
    found = set_attention.set_attention(*parts)
    torch.testing.assert_close(
        found, set_attention.set_attention(*(part.contiguous() for part in parts)), rtol=0, atol=0
    )


@gpu
def test_what_a_masked_key_holds_has_no_effect(way):
    (query, key, value), mask = sets(3, 5, 37, 2, 32)
    slope = torch.randn(3, 5, 2, 32).to(DEVICE)

    def found(padding):
        rows = [part.detach().masked_fill(~mask[:, :, None, None], padding).requires_grad_() for part in (key, value)]
        out = set_attention.set_attention(query, *rows, mask)
        return out, *torch.autograd.grad(out, [query, *rows], slope)

    for a, b in zip(found(0.0), found(float("nan")), strict=True):
        assert torch.equal(a, b)


@gpu
@pytest.mark.filterwarnings("ignore:All-NaN slice")  # the interpreter's
@pytest.mark.parametrize("n", [20, 40])
def test_what_queries_of_no_key_hold_has_no_effect(n):
    """Bag 1 has no real key, and NaN for queries: their output and gradients are 0."""
    (query, key, value), mask = sets(3, n, n, 2, 16)
    query = query.detach().index_fill(0, torch.tensor([1], device=DEVICE), float("nan")).requires_grad_()
    mask[1] = False
    out = set_attention.set_attention(query, key, value, mask)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    (slope,) = torch.autograd.grad(out.sum(), query)
    assert torch.equal(slope[1], torch.zeros_like(out[1]))
    assert not out.isnan().any()
    assert not slope.isnan().any()
    query.data[2, 3] = float("nan")  # of others it does
    assert set_attention.set_attention(query, key, value, mask)[2, 3].isnan().all()


@pytest.mark.parametrize(("n_query", "n_key"), [(4, 0), (0, 4)])
def test_bags_without_queries_or_keys(n_query, n_key):
    inputs, mask = sets(2, n_query, max(n_key, 1), 2, 16)
    inputs[1:] = [part.detach()[:, :n_key].requires_grad_() for part in inputs[1:]]
    out = set_attention.set_attention(*inputs, mask[:, :n_key])
    assert torch.equal(out, torch.zeros_like(out))
    for part in torch.autograd.grad(out.sum(), inputs):
        assert torch.equal(part, torch.zeros_like(part))


@pytest.mark.parametrize(("change", "message"), [
    ({"key": torch.zeros(2, 5, 2, 8)}, "key must have shape"),
    ({"key": torch.zeros(5)}, "key must have shape"),
    ({"mask": torch.ones(2, 5)}, "mask must be bool, True = real, got torch.float32"),
    ({"mask": torch.ones(2, 6, dtype=torch.bool)}, "mask must have shape"),
    ({"value": torch.zeros(2, 5, 2, 16, dtype=torch.float16)}, "value must be float32, bfloat16 or float16 as"),
    ({"bias": torch.zeros(2, 3, 4, 5)}, "bias must have shape"),
    ({"dropout": 1.0}, "dropout must be in"),
    ({"query": torch.empty(2, 1 << 20, 64, 32, device="meta"), "key": torch.zeros(2, 5, 64, 32),
      "value": torch.zeros(2, 5, 64, 32)}, "query must have bags within 2\\^31 elements, got 2147483648"),
    (dict(zip(("query", "key", "value"), torch.zeros(3, 2, 5, 2, 200), strict=True)), "head width must be from"),
])  # fmt: skip
def test_wrong_arguments(change, message):
    given = {"query": torch.zeros(2, 4, 2, 16), "key": torch.zeros(2, 5, 2, 16), "value": torch.zeros(2, 5, 2, 16)}
    with pytest.raises(ValueError, match=message):
        set_attention.set_attention(**given | change)


@gpu
@pytest.mark.parametrize("inducing", [0, 4])
def test_a_set_transformer_with_kernels_is_the_one_without(inducing):
    torch.manual_seed(0)
    config = AggregatorConfig(width=32, layers=1, heads=2, hidden=16, dropout=0.0, inducing_points=inducing)
    model = SetTransformer(12, config).to(DEVICE)
    tokens = torch.randn(3, 7, 12, device=DEVICE)
    mask = torch.arange(7, device=DEVICE) < torch.tensor([[7], [3], [0]], device=DEVICE)

    def outcome():
        logit = model(tokens, mask)
        return logit, *torch.autograd.grad(logit.sum(), list(model.parameters()))

    plain = outcome()
    use_kernels(model)
    for a, b in zip(outcome(), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager")
        torch.testing.assert_close(compiled(tokens, mask), model(tokens, mask), rtol=0, atol=0)


def test_blocks_are_no_larger_than_sets():
    """A set of 16 had the largest blocks, for which small chips have no room; in half precision no smaller ones."""
    blocks = [{"BLOCK_Q": q, "BLOCK_K": k} for q, k in ((64, 64), (32, 32), (16, 64), (16, 32))]
    configs = [SimpleNamespace(kwargs=kwargs, maxnreg=None) for kwargs in blocks]
    configs.append(SimpleNamespace(kwargs=blocks[0], maxnreg=64))  # for half precision alone
    for dtype, counts in ((torch.float32, (1, 2, 4)), (torch.bfloat16, (1, 1, 2))):
        part = torch.empty(1, dtype=dtype)
        for size, count in zip((16, 32, 64), counts, strict=True):
            for fitting, given in ((set_attention._fitting, {"Q": part, "POWER_Q": size, "POWER_K": size}),
                                   (axial_attention._fitting, {"QKV": part, "POWER": size})):  # fmt: skip
                found = fitting(configs, {}, **given)
                assert len(found) == count
                assert found[0].kwargs["BLOCK_Q"] == size


@gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", list(PRECISE), ids=str)
@pytest.mark.parametrize("n", [64, 512])
def test_attention_at_real_sizes(n, dtype):
    inputs, mask = sets(32, n, n, 8, 32, dtype)
    compare(lambda *given: set_attention.set_attention(*given, mask),
            lambda *given: reference.set_attention(*given, mask), inputs, PRECISE[dtype])  # fmt: skip


def test_every_kernel_compiles_for_a_gpu_that_is_not_here():
    code = """if True:
        import json, sys
        sys.path.insert(0, "bench")
        import kernel_builds as builds
        found = []
        builds.compiling([90], False, lambda name, arch, options, needs: found.append([name, needs]))
        builds.call_scans()
        builds.call_ragged()
        builds.call_attention(builds.torch.bfloat16, 200, 2, 32)
        builds.call_axial(builds.torch.bfloat16, 200, 2, 32)
        print(json.dumps(found))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name for name, _ in found} == {"_count_rows", "_fill_rows", "_cheap_scan", "_windows", "_energies",
                                           "_forward", "_backward_tile", "_backward_query", "_backward_key",
                                           "_axial_forward", "_axial_backward_query",
                                           "_axial_backward_key"}  # fmt: skip
    for name, needs in found:
        assert needs["spills"] <= 256, name  # bytes, in backward passes with a bias; the tuner has smaller blocks too
        assert needs["shared"] <= 99 * 1024, name  # what a program has on the smallest of the chips


def test_float32_is_exact_unless_pytorchs_own_products_are_not(monkeypatch):
    from pairformer.kernels.launch import precision

    for setting, expected in (("ieee", "tf32x3"), ("none", "tf32x3"), ("tf32", "tf32")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=setting))
        assert precision(torch.float32) == expected
        assert precision(torch.bfloat16) == "tf32"


def test_heads_that_do_not_lie_side_by_side():
    """A view of which each head is half of a wider one is what a copy of it is."""
    part = torch.randn(2, 5, 3, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)[..., :16]
    copy = part.contiguous()
    one, other = (set_attention.set_attention(x, x, x) for x in (part, copy))
    assert torch.equal(one, other)
