"""Print one line that sums up the test reports of a folder: `N passed, N failed`.

python scripts/summarise_tests.py _build/test-reports
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def counts(report: Path) -> tuple[int, int, int]:
    """Return the numbers of passed, failed and skipped tests in one JUnit XML file."""
    passed = failed = skipped = 0
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        bad = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
        left_out = int(suite.get("skipped", "0"))
        failed += bad
        skipped += left_out
        passed += int(suite.get("tests", "0")) - bad - left_out
    return passed, failed, skipped


def main(folder: Path) -> int:
    """Print the sums over all reports of a folder; return 1 if there are none."""
    reports = sorted(folder.glob("*.xml"))
    if not reports:
        print(f"There are no test reports in {folder}", file=sys.stderr)
        return 1
    passed, failed, skipped = map(sum, zip(*map(counts, reports), strict=True))
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
