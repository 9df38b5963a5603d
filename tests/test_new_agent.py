"""``stillhouse new``: copies of the examples under another name, ready at once, and never over a file that is there."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from stillhouse import new_agent
from stillhouse.config import load_file
from stillhouse.errors import ConfigError
from stillhouse.new_agent import copy_example, list_examples
from tests.command import command

ROOT = Path(__file__).parent.parent
EXAMPLES = list_examples()


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the example ``rules``, which has further files."""
    root = tmp_path / "root"
    for name, text in {
        "agents/rules.yaml": "# agents/rules.yaml, examples/rules.py\nagent: rules\nsource: examples.rules:rules\n",
        "agents/ruling.yaml": "agent: ruling\n",
        "examples/rules.py": "from examples.rules_data import ROWS\nFILE = 'rules_orders.yaml'\n"
        'rules = "rules", load_config("rules")\n',
        "examples/rules_data.py": "ROWS = 1\n",
        "examples/rules_orders.yaml": "- rule\n",
        "examples/rules_weeks.py": "from examples import rules\n",
        "examples/gateway.py": "",
        "examples/agent_test.py": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(new_agent, "_templates", lambda: root)
    return root


def test_the_examples_are_the_agents_of_the_repository() -> None:
    assert {"flights", "router"} <= set(EXAMPLES)
    assert set(EXAMPLES) <= {path.stem for path in (ROOT / "agents").glob("*.yaml")}


@pytest.mark.usefixtures("templates")
def test_names_are_rewritten_and_words_are_not(tmp_path: Path) -> None:
    files = copy_example("my-orders", "rules", tmp_path / "new")
    names = ["my-orders.yaml", "my_orders.py", "my_orders_data.py", "my_orders_orders.yaml", "test_my-orders.py"]
    assert [file.name for file in files] == names
    texts = {file.name: file.read_text() for file in files}
    assert texts["my-orders.yaml"] == "# my-orders.yaml, my_orders.py\nagent: my-orders\nsource: my_orders:rules\n"
    assert texts["my_orders.py"] == (
        "from .my_orders_data import ROWS\nFILE = 'my_orders_orders.yaml'\n"
        'rules = "rules", load_config("my-orders")\n'
    )


def test_data_called_as_the_agent_file_gets_another_name_together_with_its_module(
    tmp_path: Path, templates: Path
) -> None:
    (templates / "examples" / "rules.yaml").write_text("- rule\n")
    (templates / "examples" / "rules.py").write_text(
        "FILE = Path(__file__).with_suffix('.yaml')  # examples/rules.yaml\n"
    )
    files = copy_example("orders", "rules", tmp_path / "new")
    assert [file.name for file in files] == ["orders.yaml", "orders_rules.py", "orders_rules.yaml", "test_orders.py"]
    assert files[0].read_text().endswith("source: orders_rules:rules\n") and files[2].read_text() == "- rule\n"
    assert files[1].read_text().endswith("# orders_rules.yaml\n")


@pytest.mark.usefixtures("templates")
def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "mine.py").write_text("precious")
    with pytest.raises(ConfigError, match=r"mine\.py: already there, and nothing is overwritten"):
        copy_example("mine", "rules", folder)
    assert [file.name for file in folder.iterdir()] == ["mine.py"] and (folder / "mine.py").read_text() == "precious"


def test_a_name_or_an_example_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'Mine' is no name of an agent"):
        copy_example("Mine", "flights", tmp_path)
    with pytest.raises(ConfigError, match=r"there is no example 'flight'; did you mean 'flights'\?"):
        copy_example("mine", "flight", tmp_path)


@pytest.mark.parametrize("like", EXAMPLES)
def test_a_copy_names_no_file_of_the_repository(tmp_path: Path, like: str) -> None:
    agent_file, python, *more, test = copy_example("mine", like, tmp_path)
    assert (agent_file.name, test.name) == ("mine.yaml", "test_mine.py")
    settings = load_file(agent_file)
    assert settings.agent == "mine" and str(settings.observations.source).startswith(f"{python.stem}:")
    for file in (agent_file, python, *more):
        assert not re.search(rf"examples[./]{like}|agents/{like}", file.read_text()), file
    for file in (python, test):
        ast.parse(file.read_text())


@pytest.mark.parametrize(
    "like", [name if name == "table" else pytest.param(name, marks=pytest.mark.slow) for name in EXAMPLES]
)
def test_check_and_the_test_of_a_copy_pass_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], like: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    files = copy_example("mine", like, tmp_path / "anywhere")
    run = command(tmp_path / "home", tmp_path, monkeypatch, capsys)
    shown = run("check", files[0])
    if like != "table" and "cannot be downloaded" in shown.stderr:
        pytest.skip(shown.stderr)  # the data set of this example
    assert shown.returncode == 0, shown.stderr
    assert "agent mine is ready" in shown.stdout
    test = load(files[-1])
    agent = load_file(test.FILE)
    test.test_the_sources_give_the_same_rows_again_each_once_and_within_the_period(agent)
    test.test_the_outcomes_are_actions_of_these_rows_and_known_afterwards(agent)


def test_the_command_writes_into_the_folder_of_agent_files_and_says_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agents = tmp_path / "agents"
    run = command(tmp_path / "home", agents, monkeypatch, capsys)
    shown = run("new", "mine")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "next: stillhouse check mine"
    assert sorted(file.name for file in agents.iterdir()) == ["mine.py", "mine.yaml", "test_mine.py"]
    again = run("new", "mine")
    assert again.returncode == 1 and "nothing is overwritten" in again.stderr
    elsewhere = run("new", "mine", "--folder", tmp_path / "drafts")
    assert elsewhere.stdout.splitlines()[-1] == f"next: stillhouse check {tmp_path / 'drafts' / 'mine.yaml'}"


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
