"""Write eoslib/digits-1k.npz from scikit-learn's copy of the UCI digits (once, by a maintainer).

    python scripts/embed_digits.py PATH/TO/sklearn/datasets/data/digits.csv.gz

The file is a table of 1,797 rows: 64 pixels (0..16) and a label. The first 1,000 rows are kept.
"""

import sys
from pathlib import Path

import numpy as np


def main() -> None:
    """Read the table named on the command line and write the package's copy."""
    table = np.loadtxt(sys.argv[1], delimiter=",", max_rows=1000)
    target = Path(__file__).parents[1] / "eoslib" / "digits-1k.npz"
    np.savez_compressed(
        target, pixels=table[:, :64].astype(np.uint8), labels=table[:, 64].astype(np.uint8)
    )
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
