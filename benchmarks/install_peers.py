"""Install the tools of peers.txt into ``_build/benchmark-peers``, beside the environment."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "_build" / "benchmark-peers"


def main() -> int:
    """Install them anew; return pip's exit status."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    where = ["--no-deps", "--target", str(FOLDER), "--requirement", str(HERE / "peers.txt")]
    return subprocess.run([*pip, *where]).returncode


if __name__ == "__main__":
    sys.exit(main())
