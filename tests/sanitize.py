"""The native tests with sanitizers built in, first ASan and UBSan, then TSan. Run by ``make sanitize``."""

import os
import subprocess
import sys
from pathlib import Path

BUILD = Path("build/sanitize").absolute()
TESTS = [f"tests/test_{name}.py" for name in ("ensemble", "native", "native_arguments", "scan", "selector", "sites")]
RUNTIMES = {"address,undefined": ("asan", "ubsan"), "thread": ("tsan",)}
CHOICE = {"address,undefined": "", "thread": "thread or callers or forked"}  # of tests, as for pytest -k


def check(sanitizers: str) -> None:
    """Build with these sanitizers, as for -fsanitize, and run the tests; any finding ends the run."""
    site = BUILD / sanitizers
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(site), "."]
    settings = [f"cmake.define.PAIRFORMER_SANITIZE={sanitizers}", f"build-dir={site}-objects"]
    subprocess.run([*install, *(f"--config-settings={setting}" for setting in settings)], check=True)
    paths = [
        subprocess.run(["c++", f"-print-file-name=lib{name}.so"], check=True, capture_output=True, text=True).stdout
        for name in RUNTIMES[sanitizers]
    ]
    options = {
        "LD_PRELOAD": ":".join(path.strip() for path in paths),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks on purpose
        "TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0",
    }
    subprocess.run([sys.executable, __file__, str(site), CHOICE[sanitizers]], check=True, env={**os.environ, **options})


def run(site: str, choice: str) -> None:
    # An editable install finds the package through a hook; the sanitized copy must win over it.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
    sys.path.insert(0, site)
    sys.modules["torch"] = None  # type: ignore[assignment]  # not built for it; the tests that need it skip
    import pytest

    import pairformer

    assert pairformer.__file__.startswith(site)
    slower = pairformer._core.variants()[2:]
    if choice and slower:  # what threads do is the same in all variants of the loops
        choice = f"({choice}) and not ({' or '.join(slower)})"
    # A sanitizer ends the process, so what it prints must not be captured.
    sys.exit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-k", choice, *TESTS]))


if __name__ == "__main__":
    if sys.argv[1:]:
        run(*sys.argv[1:])
    else:
        for sanitizers in RUNTIMES:
            check(sanitizers)
