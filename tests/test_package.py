"""The package as a whole: what importing costs, who imports whom, and that the README's example runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pairformer

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pairformer"
# Nothing imports from a later row; modules of one row may import each other only as listed in the tree.
ORDER = [
    ["_core", "config", "options"],
    ["fold_config", "bags"],
    ["saved", "scan", "selector", "folding"],
    ["data", "sites", "structures"],
    ["sources", "metrics", "models"],
    ["engines", "training", "analysis", "mil"],
    ["predict", "fold"],
    ["outputs", "evaluation"],
    ["cli_training"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def run_python(code, *arguments):
    return subprocess.run([sys.executable, *arguments, "-c", code], capture_output=True, text=True, check=False)


def test_public_names():
    assert set(pairformer.__all__) <= set(dir(pairformer))
    assert callable(pairformer.scan)
    assert callable(pairformer.predict)
    for name in pairformer.__all__:
        assert getattr(pairformer, name).__doc__, name


def test_importing_loads_no_heavy_library():
    code = "import sys, pairformer; print(*sys.modules)"
    assert not set(run_python(code).stdout.split()) & {"torch", "triton", "sklearn", "click", "safetensors"}


def test_scan_and_selection_work_without_torch():
    code = """
import sys
sys.modules["torch"] = None
import numpy as np, pairformer
c = pairformer.scan("UGAGGUAGUAGGUUGUAUAGUU", "ACGUUGCA" * 40)
n = len(c.start)
logit = np.arange(n, dtype=np.float32)
sel = pairformer.STSelector(k_max=8, variant="S1").select(logit, None, c.position, c.offsets)
assert n > 8 and sel.rows.shape == (8,) and c.encode(sel.rows).shape == (8, 10, 50)
assert callable(pairformer.scan)
try:
    pairformer.predict("UGAGGUAGUAGGUUGUAUAGUU", "ACGU" * 40, engine="torch")
except ImportError as error:
    print(error)
"""
    result = run_python(code)
    assert result.stderr == ""
    assert result.stdout.startswith("engine torch needs PyTorch; install pairformer with its extra torch")


def test_unbuilt_checkout_says_how_to_build(tmp_path):
    """A plain install used inside the checkout finds the sources first, which hold no extension."""
    checkout = tmp_path / "checkout"
    (checkout / "pairformer").mkdir(parents=True)
    (checkout / "CMakeLists.txt").touch()
    for path in PACKAGE.glob("*.py"):
        (checkout / "pairformer" / path.name).write_text(path.read_text())
    code = f"""
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
sys.path.insert(0, {str(checkout)!r})
import pairformer
"""
    error = run_python(code).stderr
    assert "pairformer._core is not built in this checkout; run `make demo` or `pip install -e .` here" in error


def imported(path):
    """Modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name == "pairformer":
                yield from (alias.name for alias in node.names)
            elif name and name.startswith("pairformer."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_direction(path):
    """Data walks one way, and so do imports; no fast path imports its reference."""
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    modules = {name for name in imported(path) if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()}
    if own in ("reference", "testing"):
        assert modules <= {"config"}
        return
    assert not modules & {"reference", "testing"}
    later = {name for name in modules - {own} if LEVEL[name] > LEVEL[own]}
    assert not later


def test_readme_example_runs(capsys):
    pytest.importorskip("torch")
    text = (ROOT / "README.md").read_text()
    first = re.search(r"```python\n(import pairformer\n.*?)```", text, re.S)[1]
    scope = {}
    exec(first, scope)
    p = scope["p"]
    assert re.search(r"```\n(UTR .*?)```", text, re.S)[1] in capsys.readouterr().out
    low, high = p.interval
    said = (f"{p.log2_fold_change:.2f}, expected", f"{low:.2f} to {high:.2f}, where", f"{p.probability:.2f} that")
    assert all(f"  # {figure}" in first for figure in said)
    assert first.count(f'; {p.n_candidates}; "{p.status}"\n') == 1
    rng = __import__("numpy").random.default_rng(0)
    scope |= {"mirnas": ["UGAGGUAGUAGGUUGUAUAGUU"] * 2, "utrs": ["ACGUUGCA" * 40, "A" * 10], "rows": None}
    exec(re.search(r"```python\n(ps = pairformer.*?)```", text, re.S)[1], scope)
    assert len(scope["ps"]) == 2
    assert len(scope["sites"]) == len(scope["aligned"])
    parts = re.search(r"```python\n(c = pairformer.*?)```", text, re.S)[1].splitlines()
    exec("\n".join(parts[:2]), scope)
    candidates = scope["c"]
    n = len(candidates.start)
    scope |= {
        "logit": rng.normal(size=n).astype("float32"),
        "embedding": rng.normal(size=(n, 16)).astype("float32"),
        "position": candidates.position,
        "offsets": candidates.offsets,
    }
    exec("\n".join(parts[2:]), scope)
    assert scope["mask"].sum(1).tolist() == [64, 0]
    exec(re.search(r"```python\n(import torch\nfrom pairformer import mil\n.*?)```", text, re.S)[1], scope)
    assert scope["kept"].offsets.diff().tolist() == [64, 0, 3, 64]
    assert scope["logits"].shape == (4,)


def test_version_command():
    result = subprocess.run(
        [sys.executable, "-m", "pairformer", "--version"], capture_output=True, text=True, check=True
    )
    assert pairformer.__version__ in result.stdout
