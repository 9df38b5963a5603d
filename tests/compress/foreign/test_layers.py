"""Exported torch programs, converted to modules of layers."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from stillhouse.compress.export import export_onnx, run_onnx, run_torch
from stillhouse.compress.foreign.layers import layers_from_export
from stillhouse.compress.foreign.torch_program import (
    name_unsupported_layer,
    read_inputs,
    read_program,
    require_same_outputs,
)
from stillhouse.compress.steps.kinds import apply_step, layers
from stillhouse.compress.target import Feed, ModelState
from stillhouse.config import HashedRows, LowRank, PruneUnits
from stillhouse.errors import ExportError


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, stride=2, groups=4, bias=False)
        self.layers = nn.Sequential(nn.Linear(12, 32), nn.LayerNorm(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(image)))
        output: Tensor = self.layers(torch.relu(self.second(hidden)).mean((2, 3)))
        return output


class Words(nn.Module):
    """Two inputs, attention, a reshape by the number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(100, 8), nn.Linear(52, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, numbers: Tensor, words: Tensor) -> Tensor:
        hidden = self.table(words)
        hidden, _ = self.attention(hidden, hidden, hidden, need_weights=False)
        output: Tensor = self.out(torch.cat([numbers, hidden.reshape(hidden.shape[0], -1)], dim=1))
        return output


class Shared(nn.Module):
    """One layer called twice, and a weight that is read in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table = nn.Linear(8, 8), nn.Embedding(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.inner(torch.relu(self.inner(x))))
        output: Tensor = hidden @ self.table.weight.T + self.table(torch.zeros_like(x[:, 0], dtype=torch.long))[:, :5]
        return output


def program(module: nn.Module, *example: Tensor, file: Path, plain: bool = False) -> ExportedProgram:
    """Exported with the number of rows left open, written and read."""
    free = tuple({0: Dim.AUTO} for _ in example)
    exported = torch.export.export(module.eval(), example, dynamic_shapes=free)
    torch.export.save(exported.run_decompositions() if plain else exported, file)
    return read_program(file)


def kinds(module: nn.Module) -> dict[str, str]:
    return {name: type(part).__name__ for name, part in module.named_modules() if list(part.parameters(recurse=False))}


def images(rows: int = 60) -> Feed:
    return {"image": np.random.default_rng(0).normal(size=(rows, 1, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("plain", [False, True], ids=["as exported", "core operators"])
def test_layers_are_reconstructed_with_their_names(tmp_path: Path, plain: bool) -> None:
    exported = program(Convolutional(), torch.randn(4, 1, 8, 8), file=tmp_path / "model.pt2", plain=plain)
    restored = layers_from_export(exported)
    assert kinds(restored) == {
        "first": "Conv2d",
        "norm": "BatchNorm2d",
        "second": "Conv2d",
        "layers.0": "Linear",
        "layers.1": "LayerNorm",
        "layers.4": "Linear",
    }
    require_same_outputs(exported, restored, images())
    assert [str(model_input) for model_input in read_inputs(exported)] == ["image float32 [n, 1, 8, 8]"]


def test_several_inputs_attention_and_open_rows_reach_onnx(tmp_path: Path) -> None:
    example = torch.randn(4, 4), torch.randint(0, 100, (4, 6))
    exported = program(Words(), *example, file=tmp_path / "model.pt2")
    restored = layers_from_export(exported)
    draw = np.random.default_rng(0)
    feed = {"numbers": draw.normal(size=(50, 4)).astype(np.float32), "words": draw.integers(0, 100, (50, 6))}
    require_same_outputs(exported, restored, feed)
    graph = export_onnx(restored, feed, softmax=False, logits=True, output="logits")
    assert [value.name for value in (*graph.graph.input, *graph.graph.output)] == ["numbers", "words", "logits"]
    assert np.allclose(run_onnx(graph, feed), run_torch(restored, feed, softmax=False), atol=1e-4)


def test_a_shared_layer_stays_one_layer_and_a_weight_with_two_uses_stays_a_tensor(tmp_path: Path) -> None:
    exported = program(Shared(), torch.randn(4, 8), file=tmp_path / "model.pt2")
    restored = layers_from_export(exported)
    assert {name: kind for name, kind in kinds(restored).items() if kind != "Module"} == {"inner": "Linear"}
    assert sum(node.target == "inner" for node in restored.graph.nodes) == 2
    require_same_outputs(exported, restored, {"x": np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)})


def test_a_layer_alone_is_named_after_its_weight(tmp_path: Path) -> None:
    assert kinds(layers_from_export(program(nn.Linear(3, 2), torch.randn(4, 3), file=tmp_path / "model.pt2"))) == {
        "weight": "Linear"
    }


def test_steps_apply_to_reconstructed_layers(tmp_path: Path) -> None:
    state = ModelState(
        layers_from_export(program(Convolutional(), torch.randn(4, 1, 8, 8), file=tmp_path / "model.pt2"))
    )
    step = PruneUnits(method="prune_units", ratio=0.5, recover_epochs=0)
    assert "layers.0" not in layers(step, state, images())  # a norm reads all of its units
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
    feed = {"input": np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)}
    state = ModelState(layers_from_export(program(network, torch.randn(4, 8), file=tmp_path / "network.pt2")))
    assert layers(step, state, feed) == ["0", "2"]
    pruned = apply_step(step, state, feed).module
    assert (pruned.get_submodule("0").weight.shape, pruned.get_submodule("2").weight.shape) == ((32, 8), (16, 32))
    thin = apply_step(LowRank(method="low_rank", ratio=0.5), state, feed)
    for module in (pruned, thin.module, copy.deepcopy(pruned)):
        export_onnx(module, feed)


def test_tables_share_rows(tmp_path: Path) -> None:
    example = torch.randn(4, 4), torch.randint(0, 100, (4, 6))
    state = ModelState(layers_from_export(program(Words(), *example, file=tmp_path / "model.pt2")))
    smaller = apply_step(HashedRows(method="hashed_rows", ratio=0.5), state, {})
    assert smaller.module.get_submodule("table").rows.num_embeddings == 50


def test_a_changed_module_is_noticed(tmp_path: Path) -> None:
    exported = program(Convolutional(), torch.randn(4, 1, 8, 8), file=tmp_path / "model.pt2")
    restored = layers_from_export(exported)
    with torch.no_grad():
        restored.get_submodule("layers.4").bias += 0.01
    with pytest.raises(ExportError, match="answers 60 rows differently"):
        require_same_outputs(exported, restored, images())


def test_a_frozen_number_of_rows_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(3, 2).eval(), (torch.randn(1, 3),)), tmp_path / "model.pt2")
    with pytest.raises(ExportError, match="input input takes exactly 1 rows at once"):
        layers_from_export(read_program(tmp_path / "model.pt2"))


def test_another_open_size_is_refused(tmp_path: Path) -> None:
    sizes = ({0: Dim.AUTO, 1: Dim.AUTO},)

    class Mean(nn.Module):
        def forward(self, words: Tensor) -> Tensor:
            return torch.stack([words.mean(1), words.amax(1)], dim=1)

    torch.export.save(torch.export.export(Mean(), (torch.randn(4, 6),), dynamic_shapes=sizes), tmp_path / "model.pt2")
    with pytest.raises(ExportError, match="dimension 1 of input words is left open"):
        read_inputs(read_program(tmp_path / "model.pt2"))


def test_a_model_that_is_not_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"gives .*'1'\], and a classifier gives \[n, K\]"):
        layers_from_export(program(nn.Linear(3, 1), torch.randn(4, 3), file=tmp_path / "model.pt2"))


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).abs()


def test_an_operator_that_onnx_lacks_is_named_with_its_layer(tmp_path: Path) -> None:
    network = nn.Sequential(Spectrum(), nn.Linear(5, 3))
    restored: fx.GraphModule = layers_from_export(program(network, torch.randn(4, 8), file=tmp_path / "model.pt2"))
    with pytest.raises(ExportError) as caught:
        export_onnx(restored, {"x": np.ones((5, 8), np.float32)})
    assert str(name_unsupported_layer(restored, caught.value)).startswith(
        "layer 0 uses fft_rfft, which ONNX has no operator for"
    )


def test_a_branch_on_the_data_is_named(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = torch.cond(x.sum() > 0, lambda x: self.layer(x), lambda x: -self.layer(x), (x,))
            return output

    with pytest.raises(ExportError, match="uses cond, which cannot be compressed"):
        layers_from_export(program(Branch(), torch.randn(4, 8), file=tmp_path / "model.pt2"))


def test_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"PK not at all")
    with pytest.raises(ExportError, match="cannot be read here"):
        read_program(tmp_path / "model.pt2")
