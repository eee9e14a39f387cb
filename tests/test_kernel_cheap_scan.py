"""The cheap scan's kernels compute what the torch twin and the native engine compute."""

import dataclasses

import numpy as np
import pytest

import pairformer
from pairformer import _core, testing
from pairformer.config import CheapConfig, ExpensiveConfig, ModelConfig, SelectorConfig
from pairformer.engines import NativeEngine

torch = pytest.importorskip("torch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")
cheap_scan = pytest.importorskip("pairformer.kernels.cheap_scan")
duplex = pytest.importorskip("pairformer.kernels.duplex")
esa_scan = pytest.importorskip("pairformer.kernels.esa_scan")
reference = pytest.importorskip("pairformer.kernels.reference")

pytestmark = pytest.mark.usefixtures("unwritten_is_nan")
RNG_SEED = 2020
CONFIGS = {
    "default": CheapConfig(),
    "narrow": CheapConfig((3, 5), 7, 9),
    "wide": CheapConfig((40, 70), 40, 33),
    "one": CheapConfig((1, 1), 1, 1),
}


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    """One configuration: what the tuner would pick does not matter here, and tuning takes minutes."""
    monkeypatch.setattr(cheap_scan._cheap_scan, "configs", cheap_scan._cheap_scan.configs[:1])


@pytest.fixture
def candidates(rng):
    """131 rows of 12 bags, so that a block of rows has several, two of them empty; with alignments of any score."""
    mirnas = [testing.random_rna(rng, length) for length in (22, 6, 35, 7, 10, 21, 9, 8, 11, 34, 22, 1)]
    utrs = [testing.random_rna(rng, length) for length in (52, 50, 61, 49, 30, 55, 52, 53, 0, 60, 40, 99)]
    return first_rows(pairformer.scan(mirnas, utrs, esa_min=0), 131)


def first_rows(candidates, n):
    assert len(candidates.start) >= n
    return candidates.take(np.arange(n), np.minimum(candidates.offsets, n))


def moved(candidates):
    """Sequences and rows on the device."""
    return esa_scan.DevicePairs.of(candidates.batch, DEVICE), esa_scan.Rows.of(candidates, DEVICE)


def model_of(config):
    """A model in which no part of the cheap encoder is zero."""
    from pairformer.models import PairFormer

    torch.manual_seed(7)
    model = PairFormer(
        ModelConfig(ExpensiveConfig(channels=(3, 3), pooled_length=2), config, SelectorConfig(rng_seed=RNG_SEED))
    ).eval()
    for parameter in model.cheap.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def assert_scores(found, expected, embedding):
    """Logits within 1e-5, keys equal but for bits of dimensions that are 0 within rounding."""
    logit, keys = (np.asarray(values) for values in expected)
    np.testing.assert_allclose(found[0].cpu(), logit, rtol=0, atol=1e-5)
    dims = _core.simhash_dims(RNG_SEED, embedding.shape[1])
    sure = ((np.abs(embedding[:, dims]) >= 1e-6) << np.arange(len(dims), dtype=np.uint32)).sum(1, dtype=np.uint32)
    different = found[1].cpu().numpy().view(np.uint32) ^ keys.view(np.uint32)
    np.testing.assert_array_equal(different & sure, 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_agree(candidates, name):
    """Of odd numbers of rows, which end inside a block and inside a bag."""
    model = model_of(CONFIGS[name])
    scan = cheap_scan.CheapScan(model.cheap, RNG_SEED, DEVICE)
    native = NativeEngine.of(model).model
    for n in (131, 37, 1) if name == "default" else (67,):
        some = first_rows(candidates, n)
        found = scan(*moved(some))
        *expected, embedding = map(np.asarray, reference.cheap_scan(model.cheap, some, RNG_SEED))
        assert_scores(found, expected, embedding)
        assert_scores(found, native.cheap_scan(some), embedding)
    assert np.ptp(found[0].numpy(force=True)) > 0.01 or n == 1


def test_weights_are_copied(candidates):
    """A later change of the encoder does not show."""
    encoder = model_of(CONFIGS["narrow"]).cheap
    inputs = moved(first_rows(candidates, 5))
    scan = cheap_scan.CheapScan(encoder, RNG_SEED, DEVICE)
    before = scan(*inputs)[0]
    encoder.score2.bias.data += 1
    torch.testing.assert_close(scan(*inputs)[0], before, rtol=0, atol=0)
    torch.testing.assert_close(cheap_scan.CheapScan(encoder, RNG_SEED, DEVICE)(*inputs)[0], before + 1)


@pytest.mark.parametrize("name", ["conv1.weight", "conv2.bias", "score1.weight"])
def test_not_a_number_stays_one(candidates, name):
    """The selector refuses logits that are not finite, so a kernel must not turn them into 0."""
    encoder = model_of(CONFIGS["narrow"]).cheap
    encoder.get_parameter(name).data[:] = torch.nan
    logit, _ = cheap_scan.CheapScan(encoder, RNG_SEED, DEVICE)(*moved(first_rows(candidates, 3)))
    assert logit.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_windows_are_those_of_encode(candidates, dtype):
    inputs = moved(candidates)
    selected = np.r_[130, 0, np.arange(5, 131, 4), 0]
    found = cheap_scan.windows(*inputs, torch.tensor(selected, device=DEVICE), dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.float().cpu(), candidates.encode(selected))


def test_windows_without_a_pair_are_those_of_encode():
    """Every letter of the alignment stands against a gap, the last at column 24."""
    candidates = pairformer.scan("A" * 12, "A" * 43, esa_min=0)
    found = cheap_scan.windows(*moved(candidates), torch.arange(4, device=DEVICE))
    np.testing.assert_array_equal(found.cpu(), candidates.encode())


def test_duplex_energies_are_the_candidates(candidates):
    """Bit for bit, of miRNAs of 1 to 35 letters in one block."""
    inputs = moved(candidates)
    selected = np.r_[130, 0, np.arange(1, 131, 2), 0]
    found = duplex.duplex_energy(*inputs, torch.tensor(selected, device=DEVICE))
    np.testing.assert_array_equal(found.cpu(), candidates.duplex_energy(selected))
    assert found.dtype == torch.float32
    assert len(found.unique()) > 10


def test_no_rows(candidates):
    encoder = model_of(CONFIGS["default"]).cheap
    scan = cheap_scan.CheapScan(encoder, RNG_SEED, DEVICE)
    for none in (first_rows(candidates, 0), pairformer.scan([], [])):
        logit, keys = scan(*moved(none))
        assert (logit.dtype, keys.dtype) == (torch.float32, torch.int32)
        assert logit.shape == keys.shape == (0,)
        selected = torch.empty(0, dtype=torch.int64, device=DEVICE)
        assert cheap_scan.windows(*moved(none), selected).shape == (0, 10, 50)
        assert duplex.duplex_energy(*moved(none), selected).shape == (0,)


def test_wrong_inputs(candidates):
    scan = cheap_scan.CheapScan(model_of(CONFIGS["narrow"]).cheap, RNG_SEED, DEVICE)
    (pairs, rows), broken = moved(candidates), dataclasses.replace
    for bad, kind, message in [
        ((pairs, broken(rows, start=rows.start.long())), TypeError, "start must be torch.int32, got torch.int64"),
        ((broken(pairs, utr=pairs.utr.float()), rows), TypeError, "utr must be torch.uint8, got torch.float32"),
        ((pairs, broken(rows, position=rows.position[1:])), ValueError, "position must have 131 entries as start, got"),
        ((broken(pairs, bag_utr=pairs.bag_utr.repeat(2)), rows), ValueError, "bag_utr must have 12 entries as bag"),
        ((pairs, broken(rows, start=rows.start.repeat(2)[::2])), ValueError, "start must be one contiguous axis, got"),
        ((broken(pairs, mirna=pairs.mirna.to("meta")), rows), ValueError, f"mirna must be on {DEVICE}.*, got meta"),
    ]:
        with pytest.raises(kind, match=message):
            scan(*bad)
    for kernel in (cheap_scan.windows, duplex.duplex_energy):
        with pytest.raises(TypeError, match=r"selected must be torch.int64, got torch.bool"):
            kernel(pairs, rows, rows.start > 5)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
@pytest.mark.parametrize("name", CONFIGS)
def test_real_size(rng, name):
    mirnas, utrs = testing.heavy_tailed_pairs(rng, 80, mean=3500)
    every = pairformer.scan([m[: rng.randint(6, 22)] for m in mirnas], utrs, esa_min=5)
    some = first_rows(every, 100_000)
    model = model_of(CONFIGS[name])
    inputs = moved(some)
    found = cheap_scan.CheapScan(model.cheap, RNG_SEED, DEVICE)(*inputs)
    *expected, embedding = map(np.asarray, reference.cheap_scan(model.cheap, some, RNG_SEED))
    assert_scores(found, expected, embedding)
    selected = np.arange(0, 100_000, 7)
    windows = cheap_scan.windows(*inputs, torch.tensor(selected, device=DEVICE), torch.float16)
    np.testing.assert_array_equal(windows.float().cpu(), some.encode(selected))
    energy = duplex.duplex_energy(*inputs, torch.tensor(selected, device=DEVICE))
    np.testing.assert_array_equal(energy.cpu(), some.duplex_energy(selected))
