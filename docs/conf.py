"""The site over the Markdown files: ``make docs``. Sphinx with MyST reads the pages as they are on GitHub.

The navigation is not listed here: it is the tables of ``docs/README.md`` and of ``docs/decisions/README.md``. A page
that neither lists is an error, and so is a link that leads nowhere.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parent.parent
_PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project, release = _PROJECT["name"], _PROJECT["version"]
html_title = f"{project} {release}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/**/*.md"]
exclude_patterns = [".*", "build", "dist", "src", "tests", "benchmarks", "mlruns", "**/__pycache__"]

html_theme = "furo"
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072b2", "color-brand-content": "#0072b2"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}

myst_heading_anchors = 6
myst_links_external_new_tab = True
suppress_warnings = ["myst.header", "misc.highlighting_failure"]  # a template in a block is no whole YAML or Python
copybutton_exclude = ".linenos, .gp, .go"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
autodoc_preserve_defaults = True

_TABLE_LINK = re.compile(r"^\| \[[^\]]+\]\(([^)#]+\.md)\)", re.MULTILINE)
_AUTODOC = re.compile(r"^<!-- autodoc: (auto\w+) ([\w.]+)((?: :[\w-]+:[^:>]*)*) -->$", re.MULTILINE)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read_source)
    app.connect("build-finished", _write_index)


def _write_index(app: Any, error: Exception | None) -> None:
    """The address of the folder leads to the first page."""
    if error is None and app.builder.format == "html":
        redirect = (
            f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html"><title>{project}</title>'
        )
        Path(app.outdir, "index.html").write_text(redirect, encoding="utf-8")


def _read_source(app: Any, page: str, source: list[str]) -> None:
    """What the site adds to a page: the tree of pages, and the docstrings."""
    text = _AUTODOC.sub(_write_directive, source[0])
    if page == root_doc:
        text += "".join(_write_tree(caption, pages) for caption, pages in _read_navigation().items())
    if page == "docs/decisions/README":
        text += _write_tree("", [str(PurePosixPath("/docs/decisions", name)) for name in _TABLE_LINK.findall(text)])
    source[0] = text


def _read_navigation() -> dict[str, list[str]]:
    """The pages of each section of docs/README.md, by the heading's words before the colon."""
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    sections = (section.partition("\n") for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    trees = {
        heading.partition(":")[0]: [f"/docs/{path}" for path in _TABLE_LINK.findall(body)]
        for heading, _, body in sections
    }
    return trees | {"Project": ["/docs/README.md", "/CONTRIBUTING.md", "/CHANGELOG.md"]}


def _write_tree(caption: str, pages: list[str]) -> str:
    options = f":caption: {caption}\n" if caption else ""
    return "\n\n```{toctree}\n:hidden:\n:maxdepth: 1\n" + options + "\n" + "\n".join(pages) + "\n```\n"


def _write_directive(mark: re.Match[str]) -> str:
    options = "".join(f"   {option.strip()}\n" for option in re.findall(r" (:[\w-]+:[^:]*)", mark[3]))
    return f"```{{eval-rst}}\n.. {mark[1]}:: {mark[2]}\n{options}```"
