"""The ledger of claims: what it reads from a page's outputs, and what it makes of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
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
    assert ledger.checks_in(page_with(f"we saw that {line}"), "p") == []
    assert len(ledger.checks_in(page_with(line), "p")) == 1


def cells_of(table: nodes.Node) -> list[list[str]]:
    """The texts of a table's rows, without its head."""
    _, *rows = table.findall(nodes.row)
    return [[cell.astext() for cell in row.children] for row in rows]


def test_a_failing_claim_shows_as_failing(ledger):
    claims = ledger.read_claims()
    lines = "\n".join(
        [
            "C15 holds: tanh: growth ≈ 1.50, expected ≥ 1",
            "C15 does not hold: relu: growth ≈ 0.50, expected ≥ 1",
            "C15 holds: gelu: growth = 1.25, expected in [1, 2]",
        ]
    )
    checks = ledger.checks_in(page_with(lines), "p")
    for page in ("q", "r"):
        checks += ledger.checks_in(page_with("C1 holds: growth ≈ 2.0, expected ≥ 1.5"), page)
    grouped = {number: [c for c in checks if c.claim == number] for number in claims}
    parts = ledger._ledger(claims, grouped, lambda check: nodes.reference("", check.page))
    said, overview, *rest = parts
    assert said.astext().startswith("2 claims, 5 checks on 3 pages; 1 of them say")
    unchecked = [n for n in claims if n not in ("C1", "C15", "C34", "C35")]
    assert said.astext().endswith(f"no page checks {', '.join(unchecked)}.")
    failing = [
        n for part in parts for n in part.findall(nodes.inline) if "eos-fails" in n["classes"]
    ]
    assert [node.astext() for node in failing] == [
        "does not hold in 1 of 3 checks",
        "does not hold",
    ]

    # One table for each claim that was checked, and the overview's number leads to it.
    targets, names, tables = rest[::3], rest[1::3], rest[2::3]
    assert [name.astext() for name in names] == [
        f"{number}. {claims[number]['claim']}" for number in ("C1", "C15")
    ]
    assert [cells_of(table) for table in tables] == [
        [[page, "growth", "≈ 2.0", "≥ 1.5", "holds"] for page in ("q", "r")],
        [
            ["p", "tanh: growth", "≈ 1.50", "≥ 1", "holds"],
            ["p", "relu: growth", "≈ 0.50", "≥ 1", "does not hold"],
            ["p", "gelu: growth", "1.25", "in [1, 2]", "holds"],
        ],
    ]
    jumps = {node.astext(): node["refid"] for node in overview.findall(nodes.reference)}
    ids = [name for target in targets for name in target["ids"]]
    assert jumps == dict(zip(("C1", "C15"), ids, strict=True))
    assert [row[:2] for row in cells_of(overview)] == [
        [number, entry["claim"]] for number, entry in claims.items()
    ]
    for (_, _, evidence, *_), entry in zip(cells_of(overview), claims.values(), strict=True):
        known = [ledger.SURE[word] for word in entry["sure"]]
        assert evidence == "; ".join([entry["where"], *known])


def test_checks_of_stored_runs_have_a_column_of_their_own(ledger):
    claims = {"C5": ledger.read_claims()["C5"]}
    lines = "\n".join(
        [
            "C5 holds: digits: plateau ≈ 1.01, expected ≥ 0.97",
            "C5 holds: digits: plateau / that of a stored state ≈ 1.00, expected ≥ 0.97",
            "C5 does not hold: stored, 5,000 images: plateau = 0.50, expected ≥ 0.97",
        ]
    )
    grouped = {"C5": ledger.checks_in(page_with(lines), "p")}
    _, overview, *_ = ledger._ledger(claims, grouped, lambda check: check.page)
    _, row = overview.findall(nodes.row)
    assert [cell.astext() for cell in row.children[3:]] == [
        "holds in 2 of 2 checks",
        "does not hold in 1 of 1 checks",
    ]


def test_a_claim_that_no_run_can_check_says_so(ledger):
    claims = {number: ledger.read_claims()[number] for number in ("C33", "C35")}
    said, overview, *_ = ledger._ledger(claims, {"C33": [], "C35": []}, lambda check: check.page)
    assert said.astext().startswith("0 claims, 0 checks on 0 pages; all hold.")
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
    recipe = ledger.RECIPES["fig5-square"]
    assert [cell.astext() for cell in row.children] == [
        "entering the edge at many step sizes (in part: 1 stored)",
        ", ".join(recipe.claims),
        "python -m eoslib reproduce fig5-square",
    ]


def test_the_claims_are_complete_and_mistakes_are_refused(ledger, tmp_path):
    claims = ledger.read_claims()
    assert list(claims) == [f"C{number}" for number in range(1, 36)]
    assert [n for n, entry in claims.items() if "unchecked" in entry] == ["C34", "C35"]
    wrong = tmp_path / "claims.yml"
    for entry in (
        "{claim: a, where: b, sure: [certain]}",  # no kind of evidence
        "{claim: a, sure: [text]}",
        "{claim: a, where: b, sure: [text], note: c}",
    ):
        wrong.write_text(f"C1: {entry}\n", encoding="utf-8")
        with pytest.raises(ExtensionError, match="C1 needs"):
            ledger.read_claims(wrong)


def book_of(pages: dict[str, list[str]]) -> Any:
    """As much of Sphinx as the ledger asks: pages in the order of the table of contents."""
    env = SimpleNamespace(
        config=SimpleNamespace(root_doc="intro"),
        toctree_includes={"intro": list(pages)},
        titles={page: nodes.title("", f"Page {page}") for page in pages},
        docname="ledger",
    )
    builder = SimpleNamespace(get_relative_uri=lambda here, there: f"{there}.html")
    return SimpleNamespace(env=env, builder=builder)


def read_pages(ledger: Any, app: Any, pages: dict[str, list[str]]) -> None:
    for name in sorted(pages):
        app.env.docname = name
        ledger.collect(app, page_with(*pages[name]))


def the_ledger(ledger: Any, app: Any) -> nodes.document:
    document = new_document("ledger")
    document += [nodes.container(classes=[name]) for name in ("eos-ledger", "eos-not-run")]
    ledger.fill(app, document, "ledger")
    return document


def test_the_ledger_is_filled_with_what_the_pages_print_now(ledger, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "STORE", tmp_path)
    pages = {name: [f"C1 holds: of {name} ≈ 1.0, expected ≥ 0"] for name in ("a", "z", "m")}
    app, other = book_of(pages), book_of(pages)
    read_pages(ledger, app, {"z": pages["z"], "m": ["C1 holds: outdated ≈ 1.0, expected ≥ 0"]})
    read_pages(ledger, other, {"a": pages["a"], "z": ["C2 holds: not asked ≈ 1.0, expected ≥ 0"]})
    ledger.merge(app, app.env, ["a"], other.env)  # from a parallel reader
    ledger.forget(app, app.env, "m")
    read_pages(ledger, app, {"m": pages["m"]})

    placed, not_run = the_ledger(ledger, app).children
    _, table = placed.findall(nodes.table)
    assert [row[:2] for row in cells_of(table)] == [
        ["Page a", "of a"],
        ["Page z", "of z"],
        ["Page m", "of m"],
    ]
    links = [node["refuri"] for node in table.findall(nodes.reference)]
    assert links == ["a.html#it-hovers", "z.html#it-hovers", "m.html#it-hovers"]
    assert "0 have been run and stored" in not_run.astext()

    ledger.forget(app, app.env, "a")  # the page is gone
    placed, _ = the_ledger(ledger, app).children
    assert "of a" not in placed.astext() and "of z" in placed.astext()


@pytest.mark.parametrize(
    ("claim", "complaint"), [("C99", "does not know"), ("C34", "says that nothing can")]
)
def test_checks_of_claims_that_cannot_be_end_the_build(ledger, claim, complaint):
    pages = {"p": [f"{claim} holds: growth ≈ 1.0, expected ≥ 0"]}
    app = book_of(pages)
    read_pages(ledger, app, pages)
    with pytest.raises(ExtensionError, match=rf"p checks {claim}, .*{complaint}"):
        the_ledger(ledger, app)


def test_pages_with_a_ledger_are_written_in_every_build(ledger):
    here, other = (SimpleNamespace(docname=name) for name in ("claims", "more"))
    for env in (here, other):
        depends: list[str] = []
        env.note_dependency = depends.append
        directive = SimpleNamespace(env=env)
        (place,) = ledger.ClaimsLedger.run(directive)
        assert place["classes"] == ["eos-ledger"]
        assert [Path(path).name for path in depends] == ["claims.yml"]
    ledger.merge(None, here, ["more"], other)
    assert ledger.rewrite(None, here) == ["claims", "more"]
    ledger.forget(None, here, "more")
    assert ledger.rewrite(None, here) == ["claims"]
