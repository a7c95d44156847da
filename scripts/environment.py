"""Make `.venv` hold what requirements.txt pins, and eoslib, unless it already does.

Runs under the Python that the reader has, so it needs nothing but the standard library, and checks
that Python before it does anything else. The file `.venv/.installed` is written last: it exists
only after a complete installation, and holds a fingerprint of all that the installation depends on.
"""

import sys

MINIMUM = (3, 11)

if sys.version_info < MINIMUM:
    sys.exit(
        "This book needs Python {}.{} or newer; {} is Python {}.{}.\n"
        "Name a newer one:  make PYTHON=/path/to/python3.12 ...".format(
            *MINIMUM, sys.executable, *sys.version_info[:2]
        )
    )

import hashlib  # noqa: E402  (only after the check above)
import importlib.util  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
from pathlib import Path  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
STAMP = ENVIRONMENT / ".installed"
INPUTS = ("requirements.txt", "pyproject.toml")


def wanted() -> str:
    """Return what a complete and current installation has in its stamp."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def interpreter() -> Path:
    """Return the path of the environment's Python."""
    windows = os.name == "nt"
    return ENVIRONMENT / ("Scripts/python.exe" if windows else "bin/python")


def usable() -> bool:
    """Return whether `.venv` is an environment of this Python version at this place."""
    probe = "import sys, pip; print(sys.version_info[:2], sys.prefix != sys.base_prefix)"
    made_here = ENVIRONMENT / "pyvenv.cfg"
    if not made_here.is_file() or str(ENVIRONMENT) not in made_here.read_text():
        return False
    if not interpreter().is_file():
        return False
    seen = subprocess.run([interpreter(), "-c", probe], capture_output=True, text=True)
    return seen.stdout.strip() == f"{sys.version_info[:2]} True"


def create() -> None:
    """Make a new, empty `.venv`."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        sys.exit(
            f"{sys.executable} cannot make virtual environments: its venv module is incomplete.\n"
            "On Debian and Ubuntu:  sudo apt install python3-venv\n"
            "Or name another Python:  make PYTHON=/path/to/python3.12 ..."
        )
    if ENVIRONMENT.exists():
        shutil.rmtree(ENVIRONMENT)
    subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)


def main() -> int:
    """Bring `.venv` up to date; return the exit status."""
    stamp = wanted()
    if STAMP.is_file() and STAMP.read_text() == stamp and interpreter().is_file():
        return 0
    print("Installing the packages of requirements.txt into .venv", flush=True)
    STAMP.unlink(missing_ok=True)
    pip = [str(interpreter()), "-m", "pip", "--disable-pip-version-check"]
    install = [*pip, "install"] if sys.stdout.isatty() else [*pip, "install", "--quiet"]
    try:
        if not usable():
            create()
        subprocess.run([*install, "-r", str(ROOT / "requirements.txt")], check=True)
        library = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
        subprocess.run([*install, *library], check=True)
        subprocess.run([*pip, "check"], check=True, stdout=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        print(f"The installation failed: {error}", file=sys.stderr)
        return 1
    partial = STAMP.with_suffix(".part")
    partial.write_text(stamp)
    partial.replace(STAMP)
    return 0


if __name__ == "__main__":
    sys.exit(main())
