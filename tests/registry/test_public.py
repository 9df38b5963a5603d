"""Only what MLflow documents is used of it: its inner modules change with any release."""

from __future__ import annotations

import ast
from pathlib import Path

import stillhouse

INNER = ("mlflow.store", "mlflow.tracking", "mlflow.utils", "mlflow.protos")


def test_nothing_private_of_mlflow_is_used() -> None:
    found = []
    for file in Path(stillhouse.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            if isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            for name in names:
                mlflows = name.startswith("mlflow.") or ".mlflow." in name or ".client." in name
                if mlflows and (name.startswith(INNER) or "._" in name):
                    found.append(f"{file.name}: {name}")
    assert found == []
