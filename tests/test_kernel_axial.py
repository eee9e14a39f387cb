"""Axial attention in Triton against its plain twin: under the interpreter without a GPU, compiled on one."""

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
from pairformer.kernels import axial_attention as axial  # noqa: E402
from pairformer.kernels import reference  # noqa: E402

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
AXES = ["row", "column"]
gpu = pytest.mark.gpu


@pytest.fixture(autouse=True)
def blocks(request, monkeypatch):
    """One configuration of each kernel, small so that short lines have several blocks too; tuning takes minutes."""
    query, key = getattr(request, "param", (16, 16))
    for name in ("_axial_forward", "_axial_backward_query", "_axial_backward_key"):
        config = triton.Config({"BLOCK_Q": query, "BLOCK_K": key}, num_warps=4, num_stages=2)
        monkeypatch.setattr(getattr(axial, name), "configs", [config])


def latent(lengths, side, heads, width, dtype=torch.float32, past=0.0):
    """A projection that asks for gradients, with ``past`` in its padded cells; lengths; (B, L, L) True = real."""
    torch.manual_seed(side)
    lengths = torch.tensor(lengths)
    inside = torch.arange(side) < lengths[:, None]
    real = inside[:, :, None] & inside[:, None, :]
    qkv = torch.randn(len(lengths), side, side, 3, heads, width).masked_fill(~real[..., None, None, None], past)
    return qkv.to(DEVICE, dtype).requires_grad_(), lengths.to(DEVICE), real.to(DEVICE)


def outcome(attend, qkv, axis, lengths, slope=None):
    """Output, and gradient for a slope."""
    out = attend(qkv, axis, lengths)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(qkv) if slope is None else slope
    return out, *torch.autograd.grad(out, qkv, slope)


def compare(qkv, axis, lengths, precision):
    """Outputs and gradients, in float64 on the plain side."""
    found = outcome(axial.axial_attention, qkv, axis, lengths)
    wanted = outcome(reference.axial_attention, qkv.detach().double().requires_grad_(), axis, lengths)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == qkv.dtype
        assert (a.double() - b).norm() <= precision * max(b.norm(), 1)  # false of NaN


@pytest.mark.parametrize("dtype", list(PRECISE), ids=str)
@pytest.mark.parametrize("axis", AXES)
def test_outputs_and_gradients_are_the_twins(dtype, axis):
    qkv, lengths, _ = latent([5, 0, 1], 5, 2, 20, dtype)
    compare(qkv, axis, lengths, PRECISE[dtype])
    compare(qkv, axis, torch.stack([lengths, lengths + 1], 1)[:, 0], PRECISE[dtype])  # a column of a table


@pytest.mark.parametrize(("side", "axis", "blocks"), [
    (17, "row", (16, 32)), (17, "column", (16, 16)), (33, "column", (32, 16)),
], indirect=["blocks"], ids=str)  # fmt: skip
def test_lines_of_several_blocks(side, axis, blocks):
    qkv, lengths, _ = latent([side], side, 1, 16)
    compare(qkv, axis, lengths, 3e-6)


@pytest.mark.parametrize("axis", AXES)
def test_padding_gives_zero_whatever_it_holds(axis):
    qkv, lengths, real = latent([3], 18, 1, 16, past=float("nan"))
    slope = torch.randn(*real.shape, 1, 16).to(DEVICE).masked_fill(~real[..., None, None], float("nan"))
    for found in outcome(axial.axial_attention, qkv, axis, lengths, slope):
        assert found.isfinite().all()
        assert not found[~real].any()


def test_columns_are_the_rows_of_the_transpose():
    qkv, lengths, _ = latent([6], 6, 1, 16)
    rows = axial.axial_attention(qkv.transpose(1, 2), "row", lengths)
    assert torch.equal(axial.axial_attention(qkv, "column", lengths), rows.transpose(1, 2))


@pytest.mark.parametrize("shape", [(0, 4, 4, 3, 2, 16), (2, 0, 0, 3, 2, 16)])
def test_nothing_to_attend(shape):
    qkv = torch.zeros(shape, device=DEVICE).requires_grad_()
    out, grad = outcome(axial.axial_attention, qkv, "row", torch.zeros(shape[0], dtype=torch.int32, device=DEVICE))
    assert out.shape == (*shape[:3], *shape[4:])
    assert grad.shape == shape


@pytest.mark.parametrize(("change", "message"), [
    ({"qkv": torch.zeros(2, 5, 4, 3, 2, 16)}, r"qkv must have shape \(B, L, L, 3, H, D\), got"),
    ({"qkv": torch.zeros(2, 5, 5, 3, 2, 16, dtype=torch.float64)}, "qkv must be float32, bfloat16 or float16, got"),
    ({"qkv": torch.zeros(2, 5, 5, 3, 2, 144)}, "head width must be from 1 to 128, got 144"),
    ({"axis": "both"}, "axis must be row or column, got 'both'"),
    ({"lengths": torch.zeros(3, dtype=torch.int64)}, r"lengths must have shape \(2,\), got \(3,\)"),
    ({"lengths": torch.zeros(2)}, "lengths must be int32 or int64, got torch.float32"),
])  # fmt: skip
def test_wrong_arguments(change, message):
    given = {"qkv": torch.zeros(2, 5, 5, 3, 2, 16), "axis": "row", "lengths": torch.tensor([5, 4])}
    with pytest.raises(ValueError, match=message):
        axial.axial_attention(**given | change)


@gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize(("lengths", "heads", "width", "blocks"), [
    ([180, 99, 1], 4, 32, (64, 64)), ([500], 4, 16, (64, 64)), ([200, 130], 2, 128, (32, 32)),
], indirect=["blocks"], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", list(PRECISE), ids=str)
@pytest.mark.parametrize("axis", AXES)
def test_attention_at_real_sizes(lengths, heads, width, blocks, dtype, axis):
    qkv, lengths, _ = latent(lengths, max(lengths), heads, width, dtype)
    compare(qkv, axis, lengths, PRECISE[dtype])
