"""The scan on the device against the scan on the CPU: every field, bit for bit."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pairformer
from pairformer import testing

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from pairformer.kernels import esa_scan  # noqa: E402, Triton reads TRITON_INTERPRET when it is imported

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIELDS = ("offsets", "start", "esa_score", "position", "alignment", "n_dropped")
LET7 = "UGAGGUAGUAGGUUGUAUAGUU"


@pytest.fixture(autouse=True, scope="module")
def garbage():
    """torch.empty full of 77s, so a row that is not written shows."""
    empty = torch.empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(77))
        yield


def assert_same_rows(mirnas, utrs, esa_min=6, block=128):
    """Scans on the CPU and on the device -> the CPU's candidates."""
    expected = pairformer.scan(mirnas, utrs, esa_min, threads=1)
    rows = esa_scan.esa_scan(esa_scan.DevicePairs.of(expected.batch, DEVICE), esa_min, block=block)
    for name in FIELDS:
        ours, theirs = getattr(rows, name), getattr(expected, name)
        assert ours.device.type == DEVICE, name
        ours = ours.cpu().numpy()
        ours = ours.view(np.uint32) if name == "alignment" else ours
        assert ours.dtype == theirs.dtype, name
        np.testing.assert_array_equal(ours.view(np.uint8), theirs.view(np.uint8), err_msg=name)
    return expected


@pytest.mark.parametrize("esa_min", [0, 6, 10])
def test_equals_scan(rng, esa_min):
    """miRNAs of every kind of length; UTRs without a window, with one, with blocks of them, all foreign, half."""
    mirnas = [LET7, "G", testing.random_rna(rng, 10, "GU")]
    site = LET7[:10].translate(str.maketrans("ACGU", "UGCA"))[::-1]
    foreign = list(testing.random_rna(rng, 300))
    foreign[3] = foreign[90] = foreign[130] = foreign[171] = "N"  # leaves runs of 3, 86, 39, 40 and 128 letters
    utrs = [testing.random_rna(rng, length) for length in (30, 701, 0, 40, 39)]
    utrs += ["N" * 80, "".join(foreign), "", testing.random_rna(rng, 60) + site + testing.random_rna(rng, 60)]
    expected = assert_same_rows(*zip(*product(mirnas, utrs), strict=True), esa_min)
    assert set(expected.n_dropped) == {0, 41, 261 - 47 - 0 - 1 - 89}
    assert 10 in expected.esa_score
    assert expected.esa_score.min() >= esa_min


@settings(deadline=None, max_examples=12)
@given(
    st.lists(
        st.tuples(
            st.text("ACGU", max_size=36),
            st.one_of(st.text("ACGU", max_size=90), st.text("ACGTUNacgtun-é*", min_size=35, max_size=90)),
        ),
        max_size=7,
    ),
    st.sampled_from([0, 3, 6]),
    st.sampled_from([8, 32]),
)
def test_awkward_batches(pairs, esa_min, block):
    """Invalid pairs among them: bags without rows."""
    assert_same_rows([mirna for mirna, _ in pairs], [utr for _, utr in pairs], esa_min, block)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_block_borders(rng, extra):
    """The last window is the last of its block but one, the last, or the first of the next; one bag or two."""
    utr = testing.random_rna(rng, 2 * 64 + extra + 39)
    assert_same_rows(LET7, [utr], 0, 64)
    assert_same_rows(LET7, [utr[:103], utr], 0, 64)


def test_many_bags_in_a_block(rng):
    """Single windows, and bags without any between them and at both ends."""
    lengths = [20, *[40] * 50, 3, 10, 41, *[39] * 60, 45, *[40, 39] * 40, 0]
    utrs = [testing.random_rna(rng, length) for length in lengths]
    mirnas = [testing.random_rna(rng, 1 + i % 35) for i in range(len(lengths))]
    assert_same_rows(mirnas, utrs, 0)


def test_no_windows():
    assert_same_rows([], [])
    assert_same_rows([""], [""])
    assert_same_rows([LET7, LET7], ["A" * 39, "N" * 20])
    assert_same_rows([LET7, LET7], ["N" * 40, "N" * 300], 0)


def test_alignments_with_ties(rng):
    """Few letters, repeats and complements: the traceback has choices everywhere."""
    pairs = []
    for letters in ("GU", "AU", "GUU", "CG", "ACGU"):
        mirna = testing.random_rna(rng, rng.choice((2, 5, 9, 10, 22)), letters)
        site = mirna[:10].translate(str.maketrans("ACGU", "UGCA"))[::-1]
        pairs += [(mirna, testing.random_rna(rng, 150, letters)), (mirna, (site + "GU") * 12)]
    assert_same_rows(*zip(*pairs, strict=True), 0, 256)


def test_errors():
    batch = esa_scan.DevicePairs.of(pairformer.scan(LET7, "ACGU" * 11).batch, DEVICE)
    with pytest.raises(ValueError, match=r"esa_min must be in 0\.\.10, got 11"):
        esa_scan.esa_scan(batch, 11)
    with pytest.raises(ValueError, match="block must be a power of two, got 100"):
        esa_scan.esa_scan(batch, block=100)


@pytest.mark.gpu
@pytest.mark.parametrize("letters", ["ACGU", "ACGU" * 50 + "N"])
def test_real_size(rng, letters):
    if DEVICE != "cuda":
        pytest.skip("needs a CUDA device")
    mirnas, utrs = testing.heavy_tailed_pairs(rng, 200)
    utrs = [testing.random_rna(rng, len(utr), letters) for utr in utrs]
    for esa_min in (0, 6, 10):
        assert_same_rows(mirnas, utrs, esa_min, esa_scan.BLOCK)
