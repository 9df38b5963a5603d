"""Only documented modules of MLflow are used: its internal modules change with any release."""

from __future__ import annotations

import ast
from pathlib import Path

import stillhouse

INTERNAL = ("mlflow.store", "mlflow.tracking", "mlflow.utils", "mlflow.protos")


def test_nothing_private_of_mlflow_is_used() -> None:
    private_uses = []
    for file in Path(stillhouse.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            if isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            for name in names:
                is_mlflow = name.startswith("mlflow.") or ".mlflow." in name or ".client." in name
                if is_mlflow and (name.startswith(INTERNAL) or "._" in name):
                    private_uses.append(f"{file.name}: {name}")
    assert private_uses == []
