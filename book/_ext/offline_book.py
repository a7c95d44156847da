"""Sphinx extension: a book that asks the network for nothing and knows when it is out of date.

What it does, in the order of a build:

1. The path of the execution cache gets a fingerprint of the library and of the pinned versions. A
   change in either is a new cache *and* a changed setting, so Sphinx reads every page again and the
   chapters are executed again. A change of this extension, of its files or of the book's settings
   makes Sphinx write every page again.
2. MathJax comes from one local file instead of a content delivery network.
3. The files beside this one, the style sheet and the script that mounts widgets without a kernel,
   join the book's static files.
4. In each page's widget state, long strings (a widget's program, its style, its data) move into
   files that all pages share. They are classic scripts that fill `self.__eosShared`, because a page
   opened as a file may load scripts but may not fetch data; the state keeps `{"$shared": hash}`.
5. A widget that brings a picture of itself shows that to readers without JavaScript.
6. A page's scripts load in the order in which its reader needs them (`arrange`): first those of its
   widgets, last the theme's menus and icons, and of two thousand icons only those of this book.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docutils import nodes  # type: ignore[import-untyped]
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.fingerprint import execution_fingerprint, page_fingerprint  # noqa: E402

STYLE_SHEET = "book.css"
WIDGET_SCRIPT = "static_widgets.js"
MATHJAX = "mathjax/tex-svg-full.js"  # one file with every TeX package, and no fonts to load

CACHE_PREFIX = ".jupyter_cache-"
CACHES_KEPT = 3

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
SHARED_FOLDER = "_static/shared"
SHARED_FROM = 1000  # characters; shorter strings stay in the page

THEME_SCRIPTS = "pydata_sphinx_theme/theme/pydata_sphinx_theme/static/scripts"
ICON_SCRIPT = "fontawesome.js"
ICON = re.compile(  # name:[width,height,[other names],"code","path"],
    r'(?:"([a-z0-9-]+)"|([a-z0-9]+)):\[\d+,\d+,\[[^\]]*\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?'
)

SCRIPT_TAG = r"[ \t]*<script\b[^>]*{}[^>]*>.*?</script>\n?"
SCRIPTS_OF_WIDGETS = re.compile(
    SCRIPT_TAG.format(
        rf"(?:{SHARED_FOLDER}/|/{re.escape(WIDGET_SCRIPT)}|{re.escape(WIDGET_STATE)})"
    ),
    flags=re.DOTALL,
)
SCRIPTS_OF_SEARCH = re.compile(
    SCRIPT_TAG.format(r'src="[^"]*(?:/searchtools|/language_data|searchindex)\.js"'),
    flags=re.DOTALL,
)
LATE_SCRIPTS = re.compile(
    r'[ \t]*<script defer src="([^"]*/(?:fontawesome|bootstrap|pydata-sphinx-theme)\.js[^"]*)">'
    r"</script>\n?"
)
PRELOADED_SCRIPTS = re.compile(r'[ \t]*<link rel="preload" as="script"[^>]*>\n?')
# What other scripts of the head use at once, they keep in this one.
BLOCKING_SCRIPT = re.compile(
    r'<script (?![^>]*\b(?:defer|async)\b)([^>]*src="(?![^"]*documentation_options))'
)

# The theme's script would do this too, but late.
CHOOSE_THEME = """<script>
    if (document.documentElement.dataset.theme === "auto") {
      const dark = matchMedia("(prefers-color-scheme: dark)").matches;
      document.documentElement.dataset.theme = dark ? "dark" : "light";
    }
  </script>
"""
LATE_AFTER = 200  # milliseconds after everything else has loaded
LOAD_LATE = """<script>
    addEventListener("load", () => setTimeout(() => {
      for (const src of %s) {
        const script = document.createElement("script");
        document.body.append(Object.assign(script, { src, async: false }));
      }
    }, %d));
  </script>
"""


def configure(app: Sphinx, config: Config) -> None:
    """Set the values that `_config.yml` cannot compute."""
    cache = Path(app.outdir).parent / (CACHE_PREFIX + execution_fingerprint())
    config["nb_execution_cache_path"] = str(cache)
    config["eos_page_fingerprint"] = page_fingerprint()
    config["mathjax_path"] = MATHJAX


def add_static_files(app: Sphinx) -> None:
    """Add the files beside this one that pages load, and MathJax."""
    if app.builder.format != "html":
        return
    # Added one by one, and only now: jupyter-book links every script of a static folder that it
    # knows to every page.
    app.config.html_static_path += [str(HERE / STYLE_SHEET), str(HERE / WIDGET_SCRIPT)]
    copy_if_different(packaged_mathjax(), Path(app.outdir) / "_static" / MATHJAX)


def packaged_mathjax() -> Path:
    """Return the file that sphinx-mathjax-offline carries.

    Raises:
        ExtensionError: If the package is not installed or has another layout.
    """
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    path = Path(package.origin).parent / "static" / MATHJAX if package and package.origin else None
    if path is None or not path.is_file():
        raise ExtensionError("MathJax is missing: install the versions of requirements.txt")
    return path


def copy_if_different(source: Path, target: Path) -> None:
    """Copy a file unless one of the same size is there and is not older."""
    if target.is_file():
        there, here = target.stat(), source.stat()
        if there.st_size == here.st_size and there.st_mtime >= here.st_mtime:
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


class PicturesOfWidgets(SphinxPostTransform):
    """Put the picture that a widget brings beside it, for browsers that run no scripts."""

    default_priority = 3  # before myst-nb selects one form of each output and drops the others
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Change every output that has both forms."""
        for output in self.document.findall(nodes.container):
            if output.get("nb_element") != "mime_bundle":
                continue
            forms = {form["mime_type"]: form for form in output.children}
            if not {WIDGET_VIEW, "image/png", "text/plain"} <= forms.keys():
                continue
            picture = forms["image/png"].children[0].deepcopy()
            picture["alt"] = forms["text/plain"].astext()
            start, end = (
                nodes.raw("", tag, format="html") for tag in ("<noscript>", "</noscript>")
            )
            forms[WIDGET_VIEW] += [start, picture, end]


def share_widget_data(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Move the long strings of a page's widget state into files shared between pages."""
    scripts = []
    for script in context.get("script_files", []):
        attributes = getattr(script, "attributes", {})
        if attributes.get("type") != WIDGET_STATE:
            scripts.append(script)
            continue
        state, shared = shorten(json.loads(attributes["body"].replace("<\\/", "</")))
        for name, text in shared.items():
            path = f"{SHARED_FOLDER}/{name}.js"
            write_shared(Path(app.outdir) / path, name, text)
            scripts.append(type(script)(path, priority=script.priority))
        body = json.dumps(state).replace("</", "<\\/")
        scripts.append(type(script)(None, priority=script.priority, type=WIDGET_STATE, body=body))
    context["script_files"] = scripts


def shorten(document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Replace the long strings of a widget state by references.

    The layouts and styles that Jupyter's own widgets have as models of their own are left out: the
    page shows no such widget.

    Args:
        document: The content of a `widget-state+json` script.

    Returns:
        The shortened document, and the text for each reference in it.
    """
    shared: dict[str, str] = {}

    def reference(value: Any) -> Any:
        if not isinstance(value, str) or len(value) < SHARED_FROM:
            return value
        name = hashlib.sha256(value.encode()).hexdigest()[:16]
        shared[name] = value
        return {"$shared": name}

    models = {}
    for identifier, model in document["state"].items():
        state = model["state"]
        if model["model_name"].endswith(("LayoutModel", "StyleModel")):
            continue
        changed = {key: reference(state[key]) for key in ("_esm", "_css") if key in state}
        buffers = [
            {**buffer, "data": reference(buffer["data"])} for buffer in model.get("buffers", [])
        ]
        models[identifier] = {**model, "state": {**state, **changed}, "buffers": buffers}
    return {**document, "state": models}, shared


def write_shared(path: Path, name: str, text: str) -> None:
    """Write the classic script that holds one shared string; its name is the hash of its text."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        statement = f"(self.__eosShared = self.__eosShared || {{}})[{json.dumps(name)}]"
        path.write_text(f"{statement} = {json.dumps(text)};\n", encoding="utf-8", newline="\n")


def arrange(page: str) -> str:
    """Return a page with its scripts in the order in which its reader needs them.

    A script in the head stops the browser until it has come and run, and it does not run before
    the style sheets have come. So:

    - what belongs to the widgets stands before the style sheets: they begin while the browser
      still reads the page;
    - the theme's small scripts wait for the end of the page;
    - its large ones, for menus, tooltips and icons, wait until all else has loaded;
    - the index of the search is on the search page only, since nothing searches while one types.

    A page that is arranged already stays as it is.
    """
    page = SCRIPTS_OF_SEARCH.sub("", page)
    widgets = "".join(tag.strip() + "\n" for tag in SCRIPTS_OF_WIDGETS.findall(page))
    if widgets:
        page = SCRIPTS_OF_WIDGETS.sub("", page)
        page = re.sub(r"[ \t]*<title>", lambda found: widgets + found[0], page, count=1)
    head, end, body = page.partition("</head>")
    before, title, after = head.partition("<title>")
    page = before + title + BLOCKING_SCRIPT.sub(r"<script defer \1", after) + end + body
    late = LATE_SCRIPTS.findall(page)
    if late:
        page = PRELOADED_SCRIPTS.sub("", LATE_SCRIPTS.sub("", page))
        page = page.replace("</head>", f"{CHOOSE_THEME}</head>", 1)
        page = page.replace("</body>", f"{LOAD_LATE % (json.dumps(late), LATE_AFTER)}</body>", 1)
    return page


def with_icons(script: str, names: set[str]) -> str:
    """Return the theme's icon script with these icons only.

    Raises:
        ExtensionError: If the script has another layout than it had.
    """
    short, count = ICON.subn(lambda m: m[0] if (m[1] or m[2]) in names else "", script)
    if count < 1000 or len(short) > len(script) / 4:
        raise ExtensionError(f"{ICON_SCRIPT} has another layout than it had: {count} icons found")
    return short


def finish_pages(app: Sphinx, exception: Exception | None) -> None:
    """After a successful build, arrange the scripts of all pages, and shorten the icons'."""
    if exception is not None or app.builder.format != "html":
        return
    output = Path(app.outdir)
    pages = [path for path in output.rglob("*.html") if path.name != "search.html"]
    texts = [output.joinpath("search.html").read_text(encoding="utf-8")]
    for path in pages:
        text = path.read_text(encoding="utf-8")
        texts.append(arrange(text))
        if texts[-1] != text:
            path.write_text(texts[-1], encoding="utf-8", newline="\n")
    scripts = output / "_static" / "scripts"
    texts += [path.read_text(encoding="utf-8") for path in scripts.glob("*theme.js")]
    names = {name for text in texts for name in re.findall(r"\bfa-([a-z0-9-]+)", text)}
    package = importlib.util.find_spec("pydata_sphinx_theme")
    assert package is not None and package.origin is not None  # the theme has just been used
    original = Path(package.origin).parent.parent / THEME_SCRIPTS / ICON_SCRIPT
    short = with_icons(original.read_text(encoding="utf-8"), names)
    scripts.joinpath(ICON_SCRIPT).write_text(short, encoding="utf-8", newline="\n")


def prune(app: Sphinx, exception: Exception | None) -> None:
    """After a successful build, remove shared files that no page loads, and the oldest caches."""
    if exception is not None or app.builder.format != "html":
        return
    output = Path(app.outdir)
    loaded: set[str] = set()
    for page in output.rglob("*.html"):
        loaded |= set(re.findall(r"shared/([0-9a-f]{16})\.js", page.read_text(encoding="utf-8")))
    for path in output.joinpath(SHARED_FOLDER).glob("*.js"):
        if path.stem not in loaded:
            path.unlink()

    current = Path(app.config.nb_execution_cache_path)
    if current.is_dir():
        os.utime(current)
    caches = sorted(current.parent.glob(CACHE_PREFIX + "*"), key=lambda path: path.stat().st_mtime)
    for path in caches[:-CACHES_KEPT]:
        shutil.rmtree(path)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to the events of a build."""
    app.add_config_value("eos_page_fingerprint", "", "html", str)
    app.add_css_file(STYLE_SHEET, priority=800)
    app.connect("config-inited", configure)
    app.connect("builder-inited", add_static_files)
    app.connect("html-page-context", share_widget_data, priority=900)
    app.connect("build-finished", finish_pages)
    app.connect("build-finished", prune)
    app.add_post_transform(PicturesOfWidgets)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
