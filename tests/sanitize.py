"""The native tests against an extension built with AddressSanitizer and UBSan. Run by ``make sanitize``."""

import os
import subprocess
import sys
from pathlib import Path

SITE = Path("build/sanitize").absolute()
TESTS = ["tests/test_scan.py", "tests/test_selector.py"]


def build() -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(SITE), "."]
    subprocess.run(
        [
            *install,
            "--config-settings=cmake.define.PAIRFORMER_SANITIZE=ON",
            "--config-settings=build-dir=build/sanitize-objects",
        ],
        check=True,
    )
    runtimes = [
        subprocess.run(
            ["c++", f"-print-file-name=lib{name}.so"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    # Python itself leaks on purpose; every other finding ends the run.
    settings = {"LD_PRELOAD": ":".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    os.execve(sys.executable, [sys.executable, __file__, "run"], {**os.environ, **settings})


def run() -> None:
    # An editable install finds the package through a hook; the sanitized copy must win over it.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
    sys.path.insert(0, str(SITE))
    sys.modules["torch"] = None  # type: ignore[assignment]  # not built for it; the tests that need it skip
    import pytest

    import pairformer

    assert str(SITE) in pairformer.__file__
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *TESTS]))


if __name__ == "__main__":
    run() if sys.argv[1:] == ["run"] else build()
