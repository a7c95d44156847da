"""Sphinx extension: the ledger of claims, made of what the check cells of all pages printed.

A check cell prints one line for each check (`eoslib.checks.check`)::

    C6 holds: digits: median sharpness / (2/η), smallest ≈ 1.05, expected ≥ 0.97

While the pages are read, every such line about a claim of `book/claims.yml` is collected from the
outputs themselves. The directive ``{claims-ledger}`` joins the two. So nothing is listed that was
not checked in this very build, and a claim that does not hold somewhere shows as not holding.

A check of stored runs, at the paper's scale or nearer to it, begins its quantity with "stored":
these have a column of their own. The experiments of `eoslib.recipes` that have no stored run yet
are listed with the command that runs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes  # type: ignore[import-untyped]
from eoslib.recipes import RECIPES, Recipe
from eoslib.store import left_to_run
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

CLAIMS = Path(__file__).resolve().parent.parent / "claims.yml"
STORE = CLAIMS.parent.parent / "runs"

LINE = re.compile(
    r"^(?P<claim>C\d+) (?P<verdict>holds|does not hold): (?P<what>.*) (?P<sign>[=≈]) "
    r"(?P<value>-?\d+(?:\.\d+)?), expected (?P<band>.*)$"
)

SURE = {
    "text": "seen in its text",
    "code": "seen in its authors' code",
    "second": "told by others",
    "recalled": "recalled, confident",
    "unsure": "recalled, unsure",
    "proof": "proved",
}


@dataclass(frozen=True)
class Check:
    """One line of a check cell, and where it stands."""

    claim: str
    holds: bool
    what: str
    value: str
    band: str
    page: str
    section: str

    @property
    def of_stored_runs(self) -> bool:
        """Whether it looks at runs that are kept in the repository, not at a run of its page."""
        return self.what.startswith("stored")


class ClaimsLedger(SphinxDirective):
    """A placeholder for the ledger, which can be written only when all pages have been read."""

    def run(self) -> list[nodes.Node]:
        """Note the dependence, so that an edit of the claims shows."""
        self.env.note_dependency(str(CLAIMS))
        _ledgers(self.env).add(self.env.docname)
        return [nodes.container(classes=["eos-ledger"])]


class ExperimentsNotRun(SphinxDirective):
    """A placeholder for the list of what has no stored run; it stands on the ledger's page."""

    def run(self) -> list[nodes.Node]:
        """Leave the place."""
        return [nodes.container(classes=["eos-not-run"])]


def read_claims(path: Path = CLAIMS) -> dict[str, dict[str, Any]]:
    """Return the claims by number.

    Raises:
        ExtensionError: an entry lacks something, or names an unknown kind of evidence.
    """
    claims: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for number, entry in claims.items():
        complete = set(entry) - {"unchecked"} == {"claim", "where", "sure"}
        if not complete or not set(entry["sure"]) <= set(SURE):
            raise ExtensionError(
                f"{path.name}: {number} needs 'claim', 'where' and 'sure', a list of "
                f"{', '.join(SURE)}; 'unchecked' says why no page can check it; got {entry}"
            )
    return claims


def checks_in(document: nodes.document, page: str) -> list[Check]:
    """Return the checks of numbered claims that a page's outputs hold."""
    found = []
    for block in document.findall(nodes.literal_block):
        if "stream" not in block.get("classes", []):
            continue
        for line in block.astext().splitlines():
            if match := LINE.match(line):
                found.append(
                    Check(
                        claim=match["claim"],
                        holds=match["verdict"] == "holds",
                        what=match["what"],
                        value=f"{'' if match['sign'] == '=' else '≈ '}{match['value']}",
                        band=match["band"],
                        page=page,
                        section=_section_of(block),
                    )
                )
    return found


def _section_of(node: nodes.Node) -> str:
    while node is not None and not isinstance(node, nodes.section):
        node = node.parent
    return str(node["ids"][0]) if node is not None else ""


def collect(app: Sphinx, document: nodes.document) -> None:
    """Keep the checks of a page that was just read."""
    _checks(app.env)[app.env.docname] = checks_in(document, app.env.docname)


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Drop what is known of a page before it is read again."""
    _checks(env).pop(docname, None)
    _ledgers(env).discard(docname)


def merge(
    app: Sphinx, env: BuildEnvironment, docnames: Iterable[str], other: BuildEnvironment
) -> None:
    """Take over what a parallel reader has found."""
    _checks(env).update({name: _checks(other).get(name, []) for name in docnames})
    _ledgers(env).update(_ledgers(other))


def rewrite(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Have the ledger written again in every build: any page may have changed."""
    return sorted(_ledgers(env))


def _checks(env: BuildEnvironment) -> dict[str, list[Check]]:
    """The checks of each page. Sphinx keeps what is in its environment between builds."""
    checks: dict[str, list[Check]] = vars(env).setdefault("eos_checks", {})
    return checks


def _ledgers(env: BuildEnvironment) -> set[str]:
    """The pages with a ledger."""
    pages: set[str] = vars(env).setdefault("eos_ledgers", set())
    return pages


# -- writing ---------------------------------------------------------------------------------------


def fill(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Write the ledger where its placeholder stands.

    Raises:
        ExtensionError: a check names a claim that `claims.yml` does not have.
    """
    places = [n for n in document.findall(nodes.container) if "eos-ledger" in n["classes"]]
    if not places:
        return
    claims = read_claims()
    order = {page: rank for rank, page in enumerate(_pages_in_order(app.env))}
    checks = [check for found in _checks(app.env).values() for check in found]
    checks.sort(key=lambda check: order.get(check.page, len(order)))
    for check in checks:
        if check.claim not in claims:
            raise ExtensionError(
                f"{check.page} checks {check.claim}, which {CLAIMS.name} does not know: add it"
            )
        if "unchecked" in claims[check.claim]:
            raise ExtensionError(
                f"{check.page} checks {check.claim}, of which {CLAIMS.name} says that nothing can"
            )
    grouped = {number: [c for c in checks if c.claim == number] for number in claims}

    def link(check: Check) -> nodes.reference:
        address = app.builder.get_relative_uri(docname, check.page)
        title = [child.deepcopy() for child in app.env.titles[check.page].children]
        return nodes.reference("", "", *title, internal=True, refuri=f"{address}#{check.section}")

    for place in places:
        place.extend(_ledger(claims, grouped, link))
    for place in document.findall(nodes.container):
        if "eos-not-run" in place["classes"]:
            place.extend(_not_run(STORE))


def _pages_in_order(env: BuildEnvironment) -> list[str]:
    def walk(page: str) -> list[str]:
        below = env.toctree_includes.get(page, [])
        return [page, *(name for child in below for name in walk(child))]

    return walk(env.config.root_doc)


def _ledger(
    claims: dict[str, dict[str, Any]], grouped: dict[str, list[Check]], link: Any
) -> list[nodes.Node]:
    checked = {number: found for number, found in grouped.items() if found}
    total = sum(len(found) for found in checked.values())
    failing = sum(not check.holds for found in checked.values() for check in found)
    pages = len({check.page for found in checked.values() for check in found})
    words = [
        f"{len(checked)} claims, {total} checks on {pages} pages; "
        + (f"{failing} of them say that the claim does not hold there." if failing else "all hold.")
    ]
    missing = [n for n, entry in claims.items() if n not in checked and "unchecked" not in entry]
    if missing:
        words.append(f"Of our list, no page checks {', '.join(missing)}.")
    parts: list[nodes.Node] = [nodes.paragraph("", " ".join(words))]
    overview = [
        [
            _jump(number) if grouped[number] else number,
            entry["claim"],
            "; ".join([entry["where"], *(SURE[word] for word in entry["sure"])]),
            entry.get("unchecked")
            or _verdict([check for check in grouped[number] if not check.of_stored_runs]),
            "–"
            if "unchecked" in entry
            else _verdict([check for check in grouped[number] if check.of_stored_runs]),
        ]
        for number, entry in claims.items()
    ]
    head = ["", "claim", "where in the paper, and how we know", "live", "stored runs"]
    parts.append(_table(head, overview, widths=[6, 42, 24, 14, 14]))
    for number, found in checked.items():
        parts.append(nodes.target("", "", ids=[f"ledger-{number.lower()}"]))
        parts.append(nodes.rubric("", f"{number}. {claims[number]['claim']}"))
        rows = [
            [link(check), check.what, check.value, check.band, _word(check.holds)]
            for check in found
        ]
        head = ["page", "setting and quantity", "measured", "expected", "verdict"]
        parts.append(_table(head, rows, widths=[20, 44, 12, 14, 10]))
    return parts


def _not_run(store: Path) -> list[nodes.Node]:
    """The experiments of which not all runs are stored, each with its command."""
    left = left_to_run(store)
    started = sum(number > 0 for number in left.values())
    words = (
        f"Of the {len(RECIPES)} experiments of the command line {len(RECIPES) - len(left)} have "
        f"been run and stored, {started} in part; {len(left) - started} have not been run. This is "
        "how those would be, and the rest of those in part:"
    )
    rows = []
    for name, number in left.items():
        recipe = RECIPES[name]
        title = recipe.title + (f" (in part: {number} stored)" if number else "")
        rows.append([title, ", ".join(recipe.claims), _command(recipe)])
    return [
        nodes.paragraph("", words),
        _table(["experiment", "claims", "command"], rows, widths=[44, 16, 40]),
    ]


def _command(recipe: Recipe) -> nodes.literal:
    command = f"python -m eoslib reproduce {recipe.name}"
    return nodes.literal(command, command)


def _jump(number: str) -> nodes.reference:
    return nodes.reference("", number, internal=True, refid=f"ledger-{number.lower()}")


def _verdict(found: list[Check]) -> nodes.inline | str:
    if not found:
        return "not checked"
    failing = sum(not check.holds for check in found)
    if not failing:
        return _word(True, f"holds in {len(found)} of {len(found)} checks")
    return _word(False, f"does not hold in {failing} of {len(found)} checks")


def _word(holds: bool, text: str = "") -> nodes.inline:
    kind = "eos-holds" if holds else "eos-fails"
    return nodes.inline("", text or ("holds" if holds else "does not hold"), classes=[kind])


def _table(head: list[str], rows: list[list[Any]], widths: list[int]) -> nodes.Node:
    group = nodes.tgroup(cols=len(head))
    group += [nodes.colspec(colwidth=width) for width in widths]
    group += nodes.thead("", _row(head))
    group += nodes.tbody("", *(_row(row) for row in rows))
    table = nodes.table("", group, classes=["eos-ledger-table"])
    return nodes.container("", table, classes=["pst-scrollable-table-container"])


def _row(cells: list[Any]) -> nodes.row:
    def entry(content: Any) -> nodes.entry:
        inside = content if isinstance(content, nodes.Node) else nodes.Text(content)
        return nodes.entry("", nodes.paragraph("", "", inside))

    return nodes.row("", *(entry(cell) for cell in cells))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the extension to the events of a build."""
    app.add_directive("claims-ledger", ClaimsLedger)
    app.add_directive("experiments-not-run", ExperimentsNotRun)
    app.connect("doctree-read", collect)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("env-updated", rewrite)
    app.connect("doctree-resolved", fill)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
