"""Folders of features: what is pruned, what is told, and what is never written."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pairformer import mil


def test_select_command(tmp_path, command, capsys):
    source = tmp_path / "features"
    source.mkdir()
    for n in (40, 3):
        np.save(source / f"slide{n}.npy", np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32))
    assert command("select", "--features", source, "--out", tmp_path / "out", "--k", 8) == 0
    assert "2 bags: kept 11 of 43 instances" in capsys.readouterr().err
    assert np.load(tmp_path / "out" / "slide40.npy").shape == (8, 4)
    assert command("select", "--features", tmp_path / "none", "--out", tmp_path / "out") == 66
    assert "files, got " + str(tmp_path / "none") + ", which is no folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command("select", "--features", source, "--out", tmp_path / "file" / "out") == 74
    assert f"out must be a writable folder, got {tmp_path / 'file' / 'out'}" in capsys.readouterr().err
    np.save(source / "slide3.npy", np.full((3, 4), np.nan, np.float32))
    assert command("select", "--features", source, "--out", tmp_path / "all") == 65
    told = capsys.readouterr().err
    assert "slide3.npy: features must be finite in float32, got nan at row 0" in told
    assert "1 bags: kept" in told
    assert (tmp_path / "all" / "slide40.npy").exists()
    np.save(source / "slide40.npy", np.full((40, 4), np.inf, np.float32))
    assert command("select", "--features", source, "--out", tmp_path / "all") == 65
    assert not (tmp_path / "all" / "slide40.npy").exists()  # the table has no rows of it
    np.save(tmp_path / "all" / "other.npy", np.ones((1, 4)))
    before = (tmp_path / "all" / "selection.tsv").read_bytes()
    assert command("select", "--features", source, "--out", tmp_path / "all") == 2  # its rows would leave the table
    assert "out must hold no files of bags but those of features, got " in capsys.readouterr().err
    assert (tmp_path / "all" / "selection.tsv").read_bytes() == before


def test_scores_and_coords_of_the_command_are_read(tmp_path, command):
    rng = np.random.default_rng(0)
    given = {"features": rng.normal(size=(40, 4)), "scores": rng.normal(size=40), "coords": rng.random((40, 2))}
    for kind, values in given.items():
        (tmp_path / kind).mkdir()
        np.save(tmp_path / kind / "a.npy", values)
    words = [word for kind in given for word in (f"--{kind}", tmp_path / kind)]
    assert command("select", *words, "--out", tmp_path / "out", "--k", 8) == 0
    expected = mil.STSelector(8).select(given["scores"], given["features"], given["coords"])
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "a.npy"), given["features"][expected.rows])


def test_select_folder(tmp_path):
    """CLAM's layout: features in pt_files, features and coordinates in h5_files; both are pruned alike."""
    torch, h5py = pytest.importorskip("torch"), pytest.importorskip("h5py", reason="h5py is not installed")
    rng = np.random.default_rng(0)
    features, coords = rng.normal(size=(50, 4)).astype(np.float32), rng.integers(0, 9999, (50, 2))
    source, out = tmp_path / "features", tmp_path / "out"
    for kind in ("pt_files", "h5_files"):
        (source / kind).mkdir(parents=True)
    stored = torch.from_numpy(features).bfloat16().requires_grad_()
    torch.save(stored, source / "pt_files" / "slide.1.pt")
    with h5py.File(source / "h5_files" / "slide.1.h5", "w") as file:
        file["features"], file["coords"] = features, coords
        file.create_group("scanner")["name"] = "one"
        file["coords"].attrs["patch_size"] = 256
    (done,) = mil.select_folder(source, out, 8)
    features = stored.detach().float().numpy()
    expected = mil.STSelector(8).select(np.linalg.norm(features, axis=1), features, coords)
    assert (done.name, done.n) == ("slide.1", 50)
    np.testing.assert_array_equal(done.rows, expected.rows)
    kept = torch.load(out / "pt_files" / "slide.1.pt", weights_only=True)
    assert kept.dtype == torch.bfloat16
    np.testing.assert_array_equal(kept.float(), features[done.rows])
    with h5py.File(out / "h5_files" / "slide.1.h5") as file:
        np.testing.assert_array_equal(file["coords"], coords[done.rows])
        assert file["coords"].attrs["patch_size"] == 256
        assert file["scanner"]["name"][()] == b"one"


def test_bags_of_one_name_in_two_folders_are_told(tmp_path):
    for place, name in (("tumour", "a"), ("normal", "a"), ("normal", "b"), ("coords", "b")):
        (tmp_path / "in" / place).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "in" / place / f"{name}.npy", np.ones((3, 2), np.float32))
    a, b = mil.select_folder(tmp_path / "in", tmp_path / "out", 2, coords=tmp_path / "in" / "coords")
    assert re.search(r"a\.npy: names must tell bags apart, got .*a\.npy too; rename one", a.message)
    assert (b.message, len(b.rows)) == (None, 2)
    assert [path.name for path in (tmp_path / "out").rglob("*.npy")] == ["b.npy"]


def test_a_bag_that_is_no_plain_array_does_not_stop_the_others(tmp_path):
    torch, h5py = pytest.importorskip("torch"), pytest.importorskip("h5py", reason="h5py is not installed")
    source, out, features = tmp_path / "in", tmp_path / "out", torch.randn(5, 3)
    source.mkdir()
    for name, stored in (("a", features.to_sparse()), ("b", features), ("c", torch.ones(5, 3, dtype=torch.int64)),
                         ("d", torch.tensor(1.0)), ("e", {"features": features})):  # fmt: skip
        torch.save(stored, source / f"{name}.pt")
    np.save(source / "b.npy", np.float32(1))
    with h5py.File(source / "f.h5", "w") as file:
        file["features"], file["gone"], file["none"] = features, h5py.SoftLink("/nowhere"), h5py.Empty("f4")
    *refused, done = mil.select_folder(source, out, 2)
    for bag, message in zip(refused, ("a.pt: features must be readable", "b.npy: features must have 5 rows as .*, got ",
                                      "c.pt: features must be .n, D. floats", "d.pt: features must be .n, D. floats",
                                      "e.pt: features must be readable"), strict=True):  # fmt: skip
        assert re.search(message, bag.message)
    assert (done.name, done.message) == ("f", None)
    with h5py.File(out / "f.h5") as file:
        assert file["features"].shape == (2, 3)
        assert file.get("gone", getlink=True).path == "/nowhere"
        assert file["none"].shape is None
    (source / "b.npy").unlink()
    assert next(mil.select_folder(source, out, 2)).name == "a"
    kept = {bag.name: bag.rows for bag in mil.select_folder(source, out, 2)}["b"]
    stored = torch.load(out / "b.pt", weights_only=True)
    torch.testing.assert_close(stored, features[torch.from_numpy(kept)], rtol=0, atol=0)


def test_select_folder_of_arrays(tmp_path):
    """Scores and coordinates beside the features; the table of what was kept."""
    rng = np.random.default_rng(0)
    for folder in ("features", "scores", "coords"):
        (tmp_path / folder).mkdir()
    for name, n in (("b", 3), ("a", 20), ("c", 0)):
        np.save(tmp_path / "features" / f"{name}.npy", rng.normal(size=(n, 4)).astype(np.float16))
        np.savetxt(tmp_path / "scores" / f"{name}.txt", np.arange(n, dtype=float))
        np.save(tmp_path / "coords" / f"{name}.npy", rng.uniform(size=(n, 2)))
    source, out = tmp_path / "features", tmp_path / "out"
    done = list(mil.select_folder(source, out, mil.TopK(4), scores=tmp_path / "scores", coords=tmp_path / "coords"))
    assert [(one.name, one.n, one.rows.tolist()) for one in done] == [
        ("a", 20, [16, 17, 18, 19]),
        ("b", 3, [0, 1, 2]),
        ("c", 0, []),
    ]
    assert (out / "selection.tsv").read_text().splitlines()[:2] == ["bag\trow\treason", "a\t16\t0"]
    kept = np.load(out / "a.npy")
    np.testing.assert_array_equal(kept, np.load(source / "a.npy")[16:])
    assert kept.dtype == np.float16
    (scored,) = {one.rows[0] for one in mil.select_folder(source, out, 1, scorer=lambda x: -x[:, 0]) if one.name == "b"}
    assert scored == np.load(source / "b.npy")[:, 0].argmin()
    for folders in ((source, source / "out"), (source, tmp_path / "scores", 2), (source, tmp_path / "coords", 2)):
        with pytest.raises(ValueError, match="out must lie outside"):
            mil.select_folder(*folders, scores=tmp_path / "scores", coords=tmp_path / "coords")
    with pytest.raises(FileNotFoundError, match=r"features must be a folder with \.pt, .* files, got .* with none"):
        mil.select_folder(tmp_path / "scores", out)
    assert all("scores must have a file of" in one.message for one in mil.select_folder(source, out, scores=tmp_path))
    np.save(source / "a.npy", np.array([["x"]]))
    (tmp_path / "coords" / "b.npy").write_bytes(b"")
    a, b, c = mil.select_folder(source, tmp_path / "other", 2, coords=tmp_path / "coords")
    assert "a.npy: features must be (n, D) floats, got" in a.message
    assert "coords/b.npy: coords must be readable as .npy, got" in b.message
    assert c.message is None
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["c.npy", "selection.tsv"]


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_scores_are_read_one_a_line(tmp_path, suffix):
    for folder in ("features", "scores"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "features" / "a.npy", np.ones((5, 2), np.float32))
    (tmp_path / "scores" / f"a.{suffix}").write_text("\ufeff1\n5\n2\n4\n3\n")
    (done,) = mil.select_folder(tmp_path / "features", tmp_path / "out", mil.TopK(2), scores=tmp_path / "scores")
    assert done.rows.tolist() == [1, 3]


def test_odd_files_do_not_stop_the_others(tmp_path):
    """Each is told, and leaves nothing."""
    (tmp_path / "in").mkdir()
    (tmp_path / "scores").mkdir()
    values = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    for name in ("good", "folder", "struct", "line\nbreak", "zip", "badzip"):
        np.save(tmp_path / "in" / f"{name}.npy", values)
        np.save(tmp_path / "scores" / f"{name}.npy", values[:, :1])  # (n, 1)
    with (tmp_path / "in" / "zip.npy").open("wb") as file:
        np.savez(file, values=values)
    np.save(tmp_path / "scores" / "struct.npy", np.zeros(9, [("score", float), ("row", int)]))
    (tmp_path / "scores" / "badzip.npy").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "out" / "folder.npy").mkdir(parents=True)
    (tmp_path / "in" / "gone.npy").symlink_to("nowhere.npy")
    np.save(tmp_path / "in" / "short.npy", values)
    np.save(tmp_path / "scores" / "short.npy", values[:8, 0])
    bags = mil.select_folder(tmp_path / "in", tmp_path / "out", np.int64(3), scores=tmp_path / "scores")
    done = {bag.name: bag for bag in bags}
    assert done["good"].rows.tolist() == mil.STSelector(3).select(values[:, 0], values).rows.tolist()
    assert "folder.npy: out must have no folder where a file belongs" in done["folder"].message
    assert "gone.npy: features must be readable as .npy, got FileNotFoundError" in done["gone"].message
    assert f"short.*: scores must be 9 as the rows of {tmp_path / 'in' / 'short.npy'}, got" in done["short"].message
    assert "struct.npy: scores must be one number a line" in done["struct"].message
    assert "names must have no tab and no line break" in done["line\nbreak"].message
    assert "zip.npy: features must be readable as .npy, got an archive" in done["zip"].message
    assert "badzip.npy: scores must be readable as .npy" in done["badzip"].message
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["folder.npy", "good.npy", "selection.tsv"]
    assert {line.split("\t")[0] for line in (tmp_path / "out" / "selection.tsv").read_text().splitlines()} == {
        "bag",
        "good",
    }


def test_h5_keeps_its_packing_and_drops_its_references(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "a.h5", "w", libver="latest") as file:
        file.create_dataset("features", data=np.random.default_rng(0).normal(size=(9, 4)), compression="gzip")
        file["place"] = np.arange(9)
        file["place"].make_scale("place")
        file["features"].dims[0].attach_scale(file["place"])
        file["features"].attrs["long"] = np.zeros(10_000)
        file["features"].attrs["mine"] = file["place"].ref
        file.create_dataset("others", data=[file["place"].ref] * 9, dtype=h5py.ref_dtype)
    (done,) = mil.select_folder(tmp_path / "in", tmp_path / "out", 3)
    assert done.message is None
    with h5py.File(tmp_path / "out" / "a.h5") as file:
        assert file["features"].compression == "gzip"
        assert file["features"].dims[0].values() == []
        assert file["place"][:].tolist() == done.rows.tolist()
        assert list(file["features"].attrs) == ["long"]
        assert file["features"].attrs["long"].shape == (10_000,)
