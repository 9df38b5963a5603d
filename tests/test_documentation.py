"""Links and names of the pages resolve, their figures are in a result file, and the README's code and tree are true."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest
import yaml

from benchmarks import pages

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
DIATAXIS = ("tutorial", "how-to", "reference", "explanation")
PROSE = [
    ROOT / "README.md",
    ROOT / "docs" / "architecture.md",
    *(
        page
        for folder in DIATAXIS
        for page in sorted((ROOT / "docs" / folder).glob("**/*.md"))
        if page != ROOT / "docs" / "reference" / "cli.md"
    ),
]
"""Pages that quote figures by hand. Decision notes are history; docs/benchmarks.md and cli.md are generated."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# --------------------------------------------------------------------------- Markdown

FENCE = re.compile(r"^ *(```|~~~).*?^ *\1[^\n]*$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]: *<?(\S+?)>?(?:\s|$)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} +(.*?)(?: +#+)? *$", re.MULTILINE)
ITEM = re.compile(r" *(?:[-*+]|\d+[.)]) ")


def without_fences(text: str) -> str:
    """The text with as many lines as before."""
    return FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)


def blank_code(text: str) -> str:
    """The text without inline code, with as many lines as before."""
    return CODE.sub(lambda match: "`" + "\n" * match[0].count("\n") + "`", text)


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors that GitHub gives to the headings of a page, and those of its HTML."""
    text = without_fences(page.read_text(encoding="utf-8"))
    targets = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for heading in HEADING.findall(text):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", shown).strip().replace(" ", "-")
        again = sum(name == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", name) is not None for name in targets)
        targets.add(f"{slug}-{again}" if again else slug)
    return frozenset(targets)


def links(text: str) -> Iterator[str]:
    """The targets of all links and images outside of code."""
    text = blank_code(without_fences(text))
    yield from LINK.findall(text)
    yield from REFERENCE.findall(text)


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    """The relative links of a page that lead nowhere, or out of the repository."""
    broken = []
    for target in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        inside = file.is_relative_to(root) and file.exists()
        if not inside or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    return broken


@every_page
def test_relative_links_and_anchors_resolve(page: Path) -> None:
    broken = broken_links(page)
    assert broken == []


# --------------------------------------------------------------------------- measured figures
#
# A block is a paragraph, a list item, or a table together with the paragraph above it. A figure is a number with a
# decimal point or a unit, outside of code. Two rules:
#
# 1. In a block that links a result, every figure is a number of that result, rounded to the digits shown.
# 2. In a block that links none, figures beside a word of measurement are numbers of the results that its section links.
#
# The numbers of a result are those of its file and those that docs/benchmarks.md computes from it. Settings, defaults
# and formulas are written as code, which is not looked at.

NUMBER = r"(?<![\w.,§-])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)\.|(?<!\d)\.)?\d+(?![\w]|\.\d)"
UNIT = r"ms|s|seconds?|min|minutes?|hours?|kB|KB|MB|GB|KiB|MiB|GiB|%|points?|×|times"
FIGURE = re.compile(rf"({NUMBER})(?:\s?({UNIT})(?!\w))?")
MEASURED = re.compile(
    r"\b(measured|measurements? (?:of|show)|median|p50|p95|p99|AUCs?|accurac(?:y|ies)|log loss|points?|"
    r"times (?:as|faster|slower|smaller|larger|the)|faster|slower)\b"
)
RESULT = re.compile(r"benchmarks\.md#([\w-]+)|results/(\w+)\.json")
SCALES = {
    "%": (100.0,),
    "point": (1.0, 100.0),
    "points": (1.0, 100.0),
    "ms": (1.0, 1e3),
    "min": (1.0, 1 / 60),
    "minute": (1.0, 1 / 60),
    "minutes": (1.0, 1 / 60),
    "kB": (1e-3,),
    "KB": (1e-3,),
    "MB": (1e-6, 1.0),
    "GB": (1e-9, 1e-3),
    "KiB": (2.0**-10,),
    "MiB": (2.0**-20, 1.0),
    "GiB": (2.0**-30, 2.0**-10),
}
"""What a number of a result may be multiplied with to be told in a unit."""


class Figure(NamedTuple):
    """A number as a page shows it."""

    shown: str
    unit: str

    def __str__(self) -> str:
        return f"{self.shown} {self.unit}".strip()

    def is_one_of(self, numbers: Iterable[float]) -> bool:
        """Whether one of the numbers is shown so, rounded to as many digits."""
        shown = self.shown.replace(",", "").replace("−", "-").lstrip("+-")
        digits = len(shown.partition(".")[2])
        slack = 0.5 * 10.0**-digits * (1 + 1e-6)
        scales = {1.0, *SCALES.get(self.unit, ())}
        return any(abs(abs(number) * scale - float(shown)) <= slack for number in numbers for scale in scales)


def figures(text: str) -> list[Figure]:
    """Numbers with a decimal point or a unit, outside of code and of the targets of links."""
    text = LINK.sub(lambda match: match[0].partition("](")[0], blank_code(text))
    text = re.sub(r"https?://\S+|\bPython [\d.]+(?: (?:or|to|and) [\d.]+)?|\bCC BY [\d.]+", "", text)
    return [Figure(number, unit) for number, unit in FIGURE.findall(text) if unit or "." in number]


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each block; see above."""
    text = without_fences(text)
    if pages.BEGIN in text:
        before, _, rest = text.partition(pages.BEGIN)
        generated, _, after = rest.partition(pages.END)
        text = before + "\n" * generated.count("\n") + after
    text = COMMENT.sub(lambda match: "\n" * match[0].count("\n"), text)
    block: list[str] = []
    first, blank = 1, False
    for number, line in enumerate([*text.split("\n"), "# end"], 1):
        table, above = line.lstrip().startswith("|"), bool(block) and block[-1].lstrip().startswith("|")
        starts = line.startswith("#") or ITEM.match(line) or ((blank or above) and not table)
        if line.strip() and (starts or not block):
            if block:
                yield first, "\n".join(block)
            block, first = [], number
        if line.strip():
            block.append(line)
        blank = not line.strip()


@cache
def numbers_of(name: str) -> frozenset[float]:
    """All numbers of a result file and of its section of docs/benchmarks.md."""
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    section = " ".join(pages.FINDINGS[name](result["detail"])).replace(",", "")
    return frozenset([*_numbers(result), *_numbers(section)])


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, str):
        yield from (float(number) for number in re.findall(r"\d+(?:\.\d+)?", value))
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner)


def linked_results(text: str) -> set[str]:
    """The results that a text links, in their section of docs/benchmarks.md or as a file."""
    files = {first or second for target in links(text) for first, second in RESULT.findall(target)}
    return {name for name in files if (RESULTS / f"{name}.json").exists()}


def unfounded_figures(text: str) -> list[str]:
    """Measured figures that no linked result holds: line, figures and reason."""
    unfounded = []
    for section in sections(text):
        around = linked_results("\n\n".join(block for _, block in section))
        for line, block in section:
            shown, own = figures(block), linked_results(block)
            word = MEASURED.search(blank_code(block))
            if not shown or not (own or word):
                continue
            results = own or around
            numbers = frozenset().union(*map(numbers_of, results))
            wrong = ", ".join(str(figure) for figure in shown if not figure.is_one_of(numbers))
            if wrong and results:
                unfounded.append(f"line {line}: {wrong} not in {', '.join(sorted(results))}")
            elif wrong and word:
                unfounded.append(f"line {line}: {wrong} beside {word[0]!r} in a section that links no result")
    return unfounded


def sections(text: str) -> Iterator[list[tuple[int, str]]]:
    """The blocks from each heading to the next one."""
    section: list[tuple[int, str]] = []
    for line, block in blocks(text):
        if block.startswith("#") and section:
            yield section
            section = []
        section.append((line, block))
    yield section


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_measured_figures_are_in_a_result_file(page: Path) -> None:
    figures = unfounded_figures(page.read_text(encoding="utf-8"))
    assert figures == []


# --------------------------------------------------------------------------- names of stillhouse
#
# What blocks of Python import, and dotted names in these blocks and in inline code. Decision notes and the change log
# are history.

NAMING = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "README.md", *PROSE]

PYTHON_BLOCK = re.compile(r"^ *```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
FROM = re.compile(r"^ *from (stillhouse(?:\.\w+)*) import (\([^)]*\)|.*)$", re.MULTILINE)
DOTTED = re.compile(r"(?<![\w./-])stillhouse(?:\.[A-Za-z_]\w*)+")


def missing_names(text: str) -> list[str]:
    """Names of stillhouse that a page imports or mentions and that do not exist."""
    names = set()
    for code in PYTHON_BLOCK.findall(text):
        names.update(DOTTED.findall(code))
        for module, imported in FROM.findall(code):
            listed = re.sub(r"#.*", "", imported).strip(" ()\n").split(",")
            names.update(f"{module}.{name.split()[0]}" for name in listed if name.strip())
    for inline in CODE.finditer(without_fences(text)):
        names.update(DOTTED.findall(inline[0]))
    return sorted(name for name in names - event_names() if not exists(name))


@cache
def event_names() -> frozenset[str]:
    """Names of Prefect events and of their resource, which are written like modules."""
    trigger = yaml.safe_load((ROOT / "automations" / "notify.yaml").read_text(encoding="utf-8"))["trigger"]
    return frozenset([*trigger["expect"], "stillhouse.agent", "stillhouse.agent.flights"])


def exists(dotted: str) -> bool:
    """Whether this is a module, or an object in one."""
    found: Any = importlib.import_module("stillhouse")
    module = "stillhouse"
    for name in dotted.split(".")[1:]:
        module = f"{module}.{name}"
        if not hasattr(found, name):
            try:
                importlib.import_module(module)
            except ModuleNotFoundError:
                return False
        found = getattr(found, name)
    return True


@pytest.mark.parametrize("page", NAMING, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_of_stillhouse_exist(page: Path) -> None:
    missing = missing_names(page.read_text(encoding="utf-8"))
    assert missing == []


# --------------------------------------------------------------------------- the checks find what they are for


def test_a_missing_name_is_found() -> None:
    good = (
        "`stillhouse.parts.Teacher`, `stillhouse.watch(agent)`, `src/stillhouse.py`\n\n"
        "```python\nimport stillhouse.drift.scan\nfrom stillhouse import (\n    Agent,  # decides\n"
        "    Variant as V,\n)\nstillhouse.watch(agent)\n```\n"
    )
    assert missing_names(good) == []
    bad = (
        "`stillhouse.parts.TextInitial` `a stillhouse.nowhere.at_all`\n\n"
        "```python\nfrom stillhouse.drift.profile import scan, Profile\nimport stillhouse.gone\n"
        "stillhouse.distill_all(rows)\n```\n"
    )
    assert missing_names(bad) == [
        "stillhouse.distill_all",
        "stillhouse.drift.profile.scan",
        "stillhouse.gone",
        "stillhouse.nowhere.at_all",
        "stillhouse.parts.TextInitial",
    ]


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# Same\n\n## Same\n\n```sh\n# no heading\n```\n", encoding="utf-8")
    page.write_text(
        "# One `two` & three!\n\n[a](#one-two--three) [b](other.md#same-1) `[c](nowhere)`\n[d](https://example.org/x)\n",
        encoding="utf-8",
    )
    assert broken_links(page, root=tmp_path) == []
    page.write_text(
        "[a](nowhere.md) [b](other.md#no-heading) ![c](c.png) [d](../outside.md)\n\n[e]: gone.md\n", encoding="utf-8"
    )
    assert broken_links(page, root=tmp_path) == [
        "nowhere.md",
        "other.md#no-heading",
        "c.png",
        "../outside.md",
        "gone.md",
    ]


LOOP = "[loop](benchmarks.md#loop)"


@pytest.mark.parametrize(
    "text",
    [
        "The median AUC is 0.7249.",
        f"The AUC is 0.7248 ({LOOP}).",
        f"It takes 6.31 minutes ({LOOP}).",
        f"| AUC |\n|---|\n| 0.999 |\n\n{LOOP}",
        f"{LOOP}\n\n- The AUC is 0.713.",
        f"- {LOOP}\n- accuracy .999",
        f"{LOOP}\n\n## Next\n\nA median of 3.98 minutes.",
        "Serving is [12.6 times](../benchmarks/results/serving.json) faster.",
    ],
)
def test_a_figure_without_a_result_is_found(text: str) -> None:
    assert unfounded_figures(text)


@pytest.mark.parametrize(
    "text",
    [
        f"The AUC is 0.7249 or .725, in 3.98 minutes ({LOOP}).",
        f"A gain of 1.9 points ({LOOP}).",
        f"The figures are in {LOOP}.\n\n| AUC |\n|---|\n| 0.7232 |",
        f"The AUC is 0.7249.\n\nMore: {LOOP}",
        "A median latency of `0.5` ms, with two actions.",
        "```yaml\nmedian: 0.5\n```",
        "The accuracy of 150 actions in 24 weeks.",
        "It waits 30 s and retries on Python 3.11.",
        f"{pages.BEGIN}\nAUC 0.999\n{pages.END}",
        "[12.54 times](../benchmarks/results/serving.json) faster.",
    ],
)
def test_a_figure_with_a_result_passes(text: str) -> None:
    assert not unfounded_figures(text)


# --------------------------------------------------------------------------- the README's code and tree


def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The block of Python behind the marker is run as it stands."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = readme.split("<!-- runs: tests/test_documentation.py -->\n```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in ("malignant", "benign")
    assert (tmp_path / "small-model" / "model.onnx").exists()


def test_the_readmes_tree_has_every_folder() -> None:
    """Each top-level folder and each package of the engine has a line, and each line names one that exists."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## Folders\n\n```\n")[1].split("```")[0]
    named = {path.rstrip("/") for line in tree.splitlines() for path in line[:24].split()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    top = {path.split("/")[0] for path in listed if "/" in path and not path.startswith(".")} - {"src"} | {
        "src/stillhouse"
    }
    packages = {path.split("/")[2] for path in listed if path.startswith("src/stillhouse/") and path.count("/") > 2}
    assert named == top | packages | {"cli.py", "distilling.py"}


def test_the_architecture_page_draws_the_import_rules() -> None:
    """The lines of the drawing are the layers of import-linter's contract, from the top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["stillhouse"])
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = page.split("<!-- floors: pyproject.toml -->\n```\n")[1].split("```")[0]
    assert [line.split() for line in drawn.splitlines()] == [layer.replace("|", " ").split() for layer in layers]


NAVIGATION = re.compile(r"^\| \[[^\]]+\]\(([^)#]+\.md)\)", re.MULTILINE)


def test_every_page_has_its_place_in_the_navigation() -> None:
    """The tables of docs/README.md and docs/decisions/README.md are the navigation of the site."""
    listed = {
        (page.parent / path).resolve()
        for page in (ROOT / "docs" / "README.md", ROOT / "docs" / "decisions" / "README.md")
        for path in NAVIGATION.findall(page.read_text(encoding="utf-8"))
    }
    assert listed == set(ROOT.glob("docs/**/*.md")) - {ROOT / "docs" / "README.md"}


def test_the_page_of_the_commands_is_theirs() -> None:
    """If this fails: python docs/tools/command_reference.py."""
    spec = importlib.util.spec_from_file_location("command_reference", ROOT / "docs" / "tools" / "command_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.write_page()


def test_docstrings_on_the_page_of_python_exist() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    named = re.findall(r"^<!-- autodoc: auto\w+ ([\w.]+)", page, re.MULTILINE)
    assert named and [name for name in named if not exists(name)] == []
    public = {f"stillhouse.{name}" for name in importlib.import_module("stillhouse").__all__} - {
        "stillhouse.__version__"
    }
    assert public <= set(named)


def test_pages_that_the_code_names_exist() -> None:
    """Error messages, help texts and comments lead to pages that are there."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    sources = [path for path in listed if path.endswith((".py", ".yaml", ".toml", "Makefile"))]
    named = {
        (path, page)
        for path in sources
        for page in re.findall(r"\bdocs/[\w/-]+\.md\b", (ROOT / path).read_text(encoding="utf-8"))
    }
    assert named and sorted((path, page) for path, page in named if not (ROOT / page).exists()) == []
