"""Engine "triton" against the native one: under the interpreter without a GPU, as it is used on one."""

import os
import random
import time

import numpy as np
import pytest

import pairformer
from pairformer import testing
from pairformer.engines import NativeEngine, TorchEngine, TritonEngine
from pairformer.predict import Scorer

torch = pytest.importorskip("torch")
pytest.importorskip("triton")


def compare(model, mirnas, utrs, **options):
    """The same rows, signals and logits, up to rounding; a bag may differ only where two scores are equal to it."""
    native, fused = NativeEngine.load(model), TritonEngine.load(model, **options)
    candidates = pairformer.scan(mirnas, utrs, native.config.esa_min)
    a, b = (engine.score(candidates, None, 1, True) for engine in (native, fused))
    np.testing.assert_allclose(b.cheap_logit, a.cheap_logit, rtol=0, atol=1e-5)
    same = [np.array_equal(*(found.selection.rows[found.selection.offsets[bag] : found.selection.offsets[bag + 1]]
                             for found in (a, b))) for bag in range(len(candidates))]  # fmt: skip
    assert np.mean(same) >= 0.99
    np.testing.assert_allclose(b.pair_logit[same], a.pair_logit[same], rtol=0, atol=1e-4 if not options else 0.05)
    if a.repression is not None:
        np.testing.assert_allclose(b.repression[same], a.repression[same], rtol=0, atol=1e-4)
    if np.all(same) and not options:
        np.testing.assert_allclose(b.weight, a.weight, rtol=0, atol=1e-4)
    return b


def test_scores_are_the_native_engines(model, rng):
    utrs = [testing.random_rna(rng, length) for length in (90, 30, 120, 60)]
    found = compare(model, [testing.random_rna(rng, n) for n in (22, 21, 7, 35)], utrs)
    assert found.pair_logit.dtype == np.float32


def test_chunks_change_nothing(model, rng, monkeypatch):
    from pairformer.kernels import pipeline

    candidates = pairformer.scan(testing.random_rna(rng, 22), [testing.random_rna(rng, n) for n in (95, 90)])
    engine = TritonEngine.load(model)
    whole = engine.score(candidates)
    monkeypatch.setattr(pipeline, "GPU_CHUNK", 24)
    np.testing.assert_allclose(engine.score(candidates).logit, whole.logit, rtol=0, atol=1e-6)
    assert len(whole.logit) == 32  # a chunk and another, filled up


def test_half_precision_follows_selection(additive_model, rng):
    found = compare(
        additive_model, [testing.random_rna(rng, 22)] * 2, ["ACGU" * 15, testing.random_rna(rng, 80)], half=True
    )
    assert found.repression is not None
    assert found.repression.dtype == found.pair_logit.dtype == np.float32


def test_facts_of_sites_are_the_models(additive_model, rng):
    candidates = pairformer.scan([testing.random_rna(rng, n) for n in (22, 9)], [testing.random_rna(rng, 70)] * 2)
    rows = np.arange(0, len(candidates.start), 2)
    offsets = np.searchsorted(rows, candidates.offsets)
    fused, plain = (
        engine.load(additive_model).model.site_facts(candidates, rows, offsets).cpu()
        for engine in (TritonEngine, TorchEngine)
    )
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=0)
    assert (plain[:, 2] < -0.1).any()


@pytest.mark.parametrize(("name", "close"), [("triton", 1e-4), ("triton-bf16", 0.02)])
def test_predictions_name_the_engine(additive_model, rng, name, close):
    utrs = [testing.random_rna(rng, 70), "ACGU"]
    found, plain = (pairformer.predict("UGAGGUAGUAGGUUGUAUAGUU", utrs, model=additive_model, engine=engine)
                    for engine in (name, "native"))  # fmt: skip
    assert found.engine == name
    assert list(found.status) == list(plain.status)
    np.testing.assert_allclose(found.probability, plain.probability, rtol=0, atol=close)
    np.testing.assert_allclose(found.log2_fold_change, plain.log2_fold_change, rtol=0, atol=1e-4)
    assert [site.tolist() for site in found[0].sites[["start", "end"]]] == [
        site.tolist() for site in plain[0].sites[["start", "end"]]
    ]


def test_aggregators_are_asked_about_short_utrs_without_waiting_for_the_device(additive_model, rng, monkeypatch):
    engine, asked = TritonEngine.load(additive_model), []
    candidates = pairformer.scan(testing.random_rna(rng, 22), [testing.random_rna(rng, n) for n in range(45, 400, 60)])
    expected = NativeEngine.load(additive_model).score(candidates).pair_logit
    relational = engine.model.relational
    monkeypatch.setattr(engine.model, "relational", lambda *given: asked.append(len(given[0])) or relational(*given))
    monkeypatch.setattr(torch.Tensor, "nonzero", None)
    np.testing.assert_allclose(engine.score(candidates, None, 1, False).pair_logit, expected, rtol=0, atol=1e-4)
    shares = engine.model._shares(torch.from_numpy(candidates.bag_features())).any(0)
    assert 0 <= asked[0] - shares.sum() <= 2 < asked[0] < len(candidates)


def test_pairs_that_heads_alone_make_go_to_no_device(additive_model, rng, monkeypatch):
    engine, asked = TritonEngine.load(additive_model), []
    candidates = pairformer.scan(testing.random_rna(rng, 22), [testing.random_rna(rng, n) for n in (45, 400, 60, 500)])
    expected, score = engine.score(candidates, None, 1).pairs(), engine.score
    monkeypatch.setattr(
        engine, "score", lambda bags, *given: asked.append(bags.n_candidates > 0) or score(bags, *given)
    )
    found = engine.score_pairs(candidates, None, 1)
    assert np.array(asked).tolist() == [[True, False, True, False]]
    for name in ("pair_logit", "repression", "contribution"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-4, err_msg=name)
    assert found.whole is None


def test_batches_in_flight_give_what_they_give_alone(model, rng, monkeypatch):
    mirna, utrs = testing.random_rna(rng, 22), [testing.random_rna(rng, 300) for _ in range(7)]
    together = pairformer.predict(mirna, utrs, model=model)
    monkeypatch.setitem(pairformer.predict.__globals__, "BATCH_PAIRS", 1)
    monkeypatch.setattr(NativeEngine, "in_flight", 3)
    found = pairformer.predict(mirna, utrs, model=model)
    np.testing.assert_array_equal(found.logit, together.logit)
    np.testing.assert_array_equal(found[6].sites, together[6].sites)
    child = os.fork()
    if not child:
        os._exit(int(not np.array_equal(pairformer.predict(mirna, utrs, model=model).logit, together.logit)))
    assert os.waitpid(child, 0)[1] == 0  # threads of a pool do not survive a fork


def test_after_an_error_no_batch_goes_on(model, rng, monkeypatch):
    running, done = [], []

    def score(self, candidates, *arguments):
        running.append(len(candidates))
        if candidates.utr_length[0] == 81:  # the first batch, whichever thread is first to come here
            raise MemoryError
        time.sleep(0.1)
        done.append(len(candidates))
        raise RuntimeError("second")

    monkeypatch.setitem(pairformer.predict.__globals__, "BATCH_PAIRS", 1)
    monkeypatch.setattr(NativeEngine, "in_flight", 3)
    scorer = Scorer(model)
    scorer._warm = True
    monkeypatch.setattr(NativeEngine, "score", score)
    with pytest.raises(MemoryError):
        scorer.score(
            [testing.random_rna(rng, 22)] * 9, [testing.random_rna(rng, 81 if i == 0 else 80) for i in range(9)]
        )
    assert len(running) == 1 + len(done) < 9


@pytest.mark.parametrize("device", ["meta", "nonsense", "cpu:x"])
def test_another_device_is_refused(model, device):
    with pytest.raises(ValueError, match="device must be a CUDA device that PyTorch finds for engine triton"):
        pairformer.predict("UGAGGUAGUAGGUUGUAUAGUU", "ACGU" * 20, model=model, engine="triton", device=device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("half", [False, True])
def test_scores_of_the_default_model_on_a_gpu(half):
    mirnas, utrs = testing.heavy_tailed_pairs(random.Random(0), 200, mean=1900)
    compare("default", mirnas, utrs, **({"half": True} if half else {}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_results_on_a_gpu_are_the_same_every_time():
    given = testing.heavy_tailed_pairs(random.Random(1), 3000, mean=1900)  # several batches in flight
    one, other = (Scorer(engine="triton", sites=True).score(*given) for _ in range(2))
    np.testing.assert_array_equal(one.logit, other.logit)
    np.testing.assert_array_equal(one.log2_fold_change, other.log2_fold_change)
