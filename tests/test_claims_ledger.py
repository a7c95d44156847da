"""The ledger of claims: what it reads from a page's outputs, and what it makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from docutils import nodes
from docutils.utils import new_document
from sphinx.errors import ExtensionError

from eoslib.checks import check
from tests.extensions import load_extension


@pytest.fixture(scope="module")
def ledger() -> Any:
    return load_extension("claims_ledger")


def page_with(*texts: str, classes: tuple[str, ...] = ("output", "stream")) -> nodes.document:
    document = new_document("page")
    section = nodes.section("", nodes.title("", "It hovers"), ids=["it-hovers"])
    section += [nodes.literal_block(text, text, classes=list(classes)) for text in texts]
    document += section
    return document


def test_it_reads_exactly_what_checks_print(ledger, capsys):
    check("C6", "digits: η = 0.4, median sharpness / (2/η)", 1.0149, low=0.97, high=1.15)
    check("C1", "growth = of λ", 2.0, low=1.5, digits=0, exact=True)
    check("C16", "λ at the end", -0.5, low=1, reproduces=False)
    check("The missing ½", "her loss / ours", 2.0, low=1.9, high=2.1)
    found = ledger.checks_in(page_with(capsys.readouterr().out), "book/some_page")
    got = [(c.claim, c.holds, c.what, c.value, c.band) for c in found]
    assert got == [
        (
            "C6",
            True,
            "digits: η = 0.4, median sharpness / (2/η)",
            "≈ 1.01",
            "in [0.97, 1.15]",
        ),
        ("C1", True, "growth = of λ", "2", "≥ 1.5"),
        ("C16", False, "λ at the end", "≈ -0.50", "≥ 1"),
    ]
    assert {(c.page, c.section) for c in found} == {("book/some_page", "it-hovers")}


def test_a_line_in_the_prose_or_in_code_is_no_check(ledger):
    line = "C6 holds: median ≈ 1.01, expected ≥ 0.97"
    assert ledger.checks_in(page_with(line, classes=("highlight",)), "p") == []
    assert len(ledger.checks_in(page_with(line), "p")) == 1


def test_a_failing_claim_shows_as_failing(ledger):
    claims = ledger.read_claims()
    lines = "\n".join(
        [
            "C15 holds: tanh: growth ≈ 1.50, expected ≥ 1",
            "C15 does not hold: relu: growth ≈ 0.50, expected ≥ 1",
        ]
    )
    checks = ledger.checks_in(page_with(lines), "p")
    grouped = {number: [c for c in checks if c.claim == number] for number in claims}
    parts = ledger._ledger(claims, grouped, lambda check: nodes.reference("", check.page))
    text = "\n".join(part.astext() for part in parts)
    assert "1 claims, 2 checks on 1 pages; 1 of them say" in text
    assert "does not hold in 1 of 2 checks" in text
    assert "no page checks C1, C2" in text
    assert claims["C1"]["claim"] in text
    failing = [
        n for part in parts for n in part.findall(nodes.inline) if "eos-fails" in n["classes"]
    ]
    assert [node.astext() for node in failing] == [
        "does not hold in 1 of 2 checks",
        "does not hold",
    ]


def test_checks_of_stored_runs_have_a_column_of_their_own(ledger):
    claims = {"C5": ledger.read_claims()["C5"]}
    lines = "\n".join(
        [
            "C5 holds: digits: plateau ≈ 1.01, expected ≥ 0.97",
            "C5 does not hold: stored, 5,000 images: plateau = 0.50, expected ≥ 0.97",
        ]
    )
    grouped = {"C5": ledger.checks_in(page_with(lines), "p")}
    _, overview, *_ = ledger._ledger(claims, grouped, lambda check: check.page)
    _, row = overview.findall(nodes.row)
    assert [cell.astext() for cell in row.children[3:]] == [
        "holds in 1 of 1 checks",
        "does not hold in 1 of 1 checks",
    ]


def test_a_claim_that_no_run_can_check_says_so(ledger):
    claims = {number: ledger.read_claims()[number] for number in ("C33", "C35")}
    said, overview, *_ = ledger._ledger(claims, {"C33": [], "C35": []}, lambda check: check.page)
    assert said.astext().endswith("no page checks C33.")
    _, *rows = overview.findall(nodes.row)
    assert [[cell.astext() for cell in row.children[3:]] for row in rows] == [
        ["not checked", "not checked"],
        ["cited, not checked", "–"],
    ]


def test_experiments_without_a_stored_run_are_listed_with_their_command(ledger, tmp_path):
    (tmp_path / "fig4").mkdir()
    (tmp_path / "fig4" / "a.npz").touch()
    (tmp_path / "chebyshev-4").mkdir()  # an empty folder is no run
    (tmp_path / "fig5-square").mkdir()  # the flow, without what follows from it
    (tmp_path / "fig5-square" / "a.npz").touch()
    said, table = ledger._not_run(tmp_path)
    commands = [node.astext() for node in table.findall(nodes.literal)]
    assert "python -m eoslib reproduce chebyshev-4" in commands
    assert "python -m eoslib reproduce fig4" not in commands
    count = len(commands)
    assert said.astext().startswith(
        f"Of the {count + 1} experiments of the command line 1 have been run and stored, "
        f"1 in part; {count - 1} have not been run."
    )
    (row,) = [row for row in table.findall(nodes.row) if "fig5-square" in row.astext()]
    assert "entering the edge at many step sizes (in part: 1 stored)" in row.astext()


def test_the_claims_are_complete_and_mistakes_are_refused(ledger, tmp_path):
    claims = ledger.read_claims()
    assert list(claims) == [f"C{number}" for number in range(1, 36)]
    assert [n for n, entry in claims.items() if "unchecked" in entry] == ["C34", "C35"]
    wrong = tmp_path / "claims.yml"
    wrong.write_text("C1: {claim: a, where: b, sure: [certain]}\n", encoding="utf-8")
    with pytest.raises(ExtensionError, match="C1 needs"):
        ledger.read_claims(wrong)
