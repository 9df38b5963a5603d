"""Candidates are built, measured and stored; a stored candidate is read instead of built again, by any process."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import stillhouse.compress
from stillhouse.compress.build import ArtifactWriter, build_model, export_state
from stillhouse.compress.export import run_onnx, slim
from stillhouse.compress.processor import processor
from stillhouse.compress.steps.kinds import apply_step
from stillhouse.compress.target import Array, Columns, CompressionTarget, Feed, ModelState
from stillhouse.config import Fp32, Recipe, Step, StructuralStep, recipe_name, structural_steps
from stillhouse.errors import ExportError
from stillhouse.files import atomic_file, write_atomic
from stillhouse.latency import measure_cpu_time, measure_latency
from stillhouse.records import CompressionCandidate, Latency

__all__ = ["CandidateBuilder", "code_digest", "single_row_call"]

_RECORD, _COLUMNS = "candidate.json", "columns.json"
_MAX_CACHED_STATES = 3
_OTHER_CODE = ("config/compression.py", "latency.py", "values.py", "variant.py")
_MAX_LATENCY_SECONDS = 2.0  # spent on measuring one candidate's latency


class CandidateBuilder:
    """Builds the candidates of one target in one folder, each once.

    A candidate's folder is ``candidates/<id>/``, with its artifact in ``artifact/`` and its record beside it; the
    folder gets its name when it is complete. The weights of a recovered model state are in ``forms/<id>.safetensors``:
    to restore a state its steps are applied again, and the recovered weights are read instead of trained again. Equal
    ids mean equal model, recipe, rows, code, libraries and processor.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from stillhouse.compress.export import export_onnx
        >>> rows = {"x": np.ones((8, 4), np.float32)}
        >>> target = CompressionTarget(
        ...     model=export_onnx(nn.Linear(4, 3).eval(), rows),
        ...     calibration=lambda columns: rows,
        ...     validation=lambda columns: rows,
        ...     quality=lambda probs: 1.0,
        ... )
        >>> def write_artifact(folder, model, built):
        ...     onnx.save(model, folder / "model.onnx")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     builder = CandidateBuilder(target, write_artifact, Path(folder), tolerance=0.05)
        ...     candidate = builder.build((Fp32(method="fp32"),))
        >>> candidate.name, candidate.quality, candidate.bytes > 0
        ('fp32', 1.0, True)

    :param write_artifact: writes a candidate's artifact.
    :param tolerance: of a number format, see :func:`~stillhouse.compress.build.build_model`.
    """

    def __init__(
        self, target: CompressionTarget, write_artifact: ArtifactWriter, folder: Path, tolerance: float
    ) -> None:
        self.target, self.write_artifact, self.folder, self.tolerance = target, write_artifact, folder, tolerance
        self._source_digest = _digest(
            target.model.SerializeToString(deterministic=True),
            json.dumps(target.columns),
            target.content_hash,
            torch.__version__,
            onnxruntime.__version__,
            onnx.__version__,
            code_digest(),
            processor().model_dump_json(),
            tolerance,
        )
        self._states: OrderedDict[str, ModelState] = OrderedDict()
        self._graphs: OrderedDict[str, onnx.ModelProto] = OrderedDict()
        self._validation_feeds: dict[str, Feed] = {}
        # One decision of the reference, and its first median latency (ms).
        self._reference: tuple[Callable[[], object], float] | None = None

    def build(self, recipe: Recipe) -> CompressionCandidate:
        """The candidate of this recipe, built and measured, or read if an earlier process has completed it.

        Its latency is measured in turns with the reference's, and divided by the ratio of the reference's latency now
        to its first one: so a busy machine does not make a candidate look slower. A recipe that does not apply, or
        whose result cannot serve, gives a candidate that is refused, with the reason.
        """
        folder = self.folder / "candidates" / self._id(recipe)
        if (folder / _RECORD).exists():
            return CompressionCandidate.model_validate_json((folder / _RECORD).read_bytes())
        unfinished = self._empty_folder(self.folder / "aside" / folder.name)
        start = time.perf_counter()
        identity: dict[str, Any] = {
            "candidate_id": folder.name,
            "name": recipe_name(recipe),
            "recipe": tuple(step.model_dump(mode="json") for step in recipe),
        }
        measurements: dict[str, Any]
        try:
            measurements = self._measure(recipe, unfinished / "artifact") | {"folder": str(folder / "artifact")}
        except ExportError as error:
            shutil.rmtree(unfinished / "artifact")
            measurements = {"refused": str(error)}
        candidate = CompressionCandidate(**identity, **measurements, seconds=time.perf_counter() - start)
        (unfinished / _RECORD).write_text(candidate.model_dump_json(indent=1), encoding="utf-8")
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished.rename(folder)
        return candidate

    def remeasure(self, candidates: Sequence[CompressionCandidate]) -> dict[str, CompressionCandidate]:
        """The candidates by name, with latencies that were measured in turns with one another."""
        calls = {candidate.name: self._single_row_call(candidate) for candidate in candidates}
        latencies = measure_latency(calls, seconds=_MAX_LATENCY_SECONDS * len(calls))
        return {
            candidate.name: candidate.model_copy(update={"latency": latencies[candidate.name]})
            for candidate in candidates
        }

    def _measure(self, recipe: Recipe, artifact: Path) -> dict[str, Any]:
        """Build the recipe's artifact and measure it; the result has the candidate's fields."""
        artifact.mkdir()
        state = self.state(structural_steps(recipe))
        columns = self.target.columns if state is None else state.columns
        graph = self.graph(structural_steps(recipe))
        built = build_model(self.target, recipe, graph, columns, self.tolerance, self._reference_probs)
        slim_model = slim(built.model)
        self.write_artifact(artifact, slim_model, built)
        (artifact.parent / _COLUMNS).write_text(json.dumps(built.columns), encoding="utf-8")
        feed = self._validation_feed(built.columns)
        probs = self.target.to_probabilities(run_onnx(built.model, feed))
        quality, slices = self.target.quality(probs), dict(self.target.slices(probs))
        latency, cpu_ms = self._measure_latency(single_row_call(slim_model, feed))
        size = sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file())
        return {
            "bytes": size,
            "quality": quality,
            "slices": slices,
            "difference": built.agreement.mean,
            "latency": latency,
            "cpu_ms": cpu_ms,
            "saturates": built.saturates,
        }

    def _measure_latency(self, call: Callable[[], object]) -> tuple[Latency, float]:
        """Latency, corrected by the reference's latency now, and CPU time (ms)."""
        if self._reference is None:
            return measure_latency({"": call}, seconds=_MAX_LATENCY_SECONDS)[""], measure_cpu_time(call)
        reference_call, first_p50_ms = self._reference
        latencies = measure_latency({"": call, "reference": reference_call}, seconds=_MAX_LATENCY_SECONDS)
        slowdown = latencies["reference"].p50_ms / first_p50_ms
        corrected = {name: getattr(latencies[""], name) / slowdown for name in ("p50_ms", "p95_ms")}
        return latencies[""].model_copy(update=corrected), measure_cpu_time(call)

    def build_reference(self) -> CompressionCandidate:
        """The float32 model without any step; built first, because all other candidates are compared with it.

        :raises ExportError: if it cannot serve.
        """
        candidate = self.build((Fp32(method="fp32"),))
        if candidate.latency is None:
            raise ExportError(f"the model cannot serve as it is: {candidate.refused}")
        self._reference = self._single_row_call(candidate), candidate.latency.p50_ms
        return candidate

    def _single_row_call(self, candidate: CompressionCandidate) -> Callable[[], object]:
        """One decision by a finished candidate."""
        artifact = Path(candidate.folder)
        columns = json.loads((artifact.parent / _COLUMNS).read_text(encoding="utf-8"))
        return single_row_call(onnx.load(artifact / "model.onnx"), self._validation_feed(columns))

    def state(self, steps: Sequence[StructuralStep]) -> ModelState | None:
        """The model state after these steps, each recovered; the weights of a stored recovery are read."""
        if not steps:
            return self.target.state
        name = self._id(steps)
        if name not in self._states:
            self._states[name] = self._make_state(steps, name)
            while len(self._states) > _MAX_CACHED_STATES:
                self._states.popitem(last=False)
        self._states.move_to_end(name)
        return self._states[name]

    def _make_state(self, steps: Sequence[StructuralStep], name: str) -> ModelState:
        """Apply the last step and recover once; for a further recovery round, recover the previous round's state."""
        *before, last = steps
        if last.recover_rounds == 1:
            return self._apply_and_recover(self.state(before), last, name)
        previous_round = self.state((*before, last.model_copy(update={"recover_rounds": last.recover_rounds - 1})))
        assert previous_round is not None  # a step was applied
        return self._recover(ModelState(copy.deepcopy(previous_round.module), previous_round.columns), last, name)

    def graph(self, steps: Sequence[StructuralStep]) -> onnx.ModelProto:
        """The float32 graph of the model state after these steps."""
        state, name = self.state(steps), self._id(steps)
        if not steps or state is None:
            return self.target.model
        if name not in self._graphs:
            self._graphs[name] = export_state(self.target, state)
            while len(self._graphs) > _MAX_CACHED_STATES:
                self._graphs.popitem(last=False)
        return self._graphs[name]

    def save_graph(self, recipe: Recipe, path: Path) -> None:
        """Write the float32 graph that the recipe's candidate was quantised from."""
        write_atomic(path, self.graph(structural_steps(recipe)).SerializeToString())

    def _apply_and_recover(self, state: ModelState | None, step: StructuralStep, name: str) -> ModelState:
        if state is None:
            raise ExportError(
                f"{step.method} changes a torch module, and this is an ONNX graph: log the torch module itself, or "
                f"leave the structural steps out"
            )
        return self._recover(apply_step(step, state, self.target.calibration(state.columns)), step, name)

    def _recover(self, state: ModelState, step: StructuralStep, name: str) -> ModelState:
        """The state after its distillation, read if it was stored."""
        if not step.recover_epochs or self.target.recover is None:
            return state
        file = self.folder / "forms" / f"{name}.safetensors"
        if file.exists():
            state.module.load_state_dict(load_file(file))
            return state
        state = self.target.recover(state, step.recover_epochs)
        _save(state.module, file)
        return state

    @cached_property
    def _reference_probs(self) -> Array:
        """Probabilities of the target's own graph on the calibration rows, ``[n, K]``."""
        outputs = run_onnx(self.target.model, self.target.calibration(self.target.columns))
        return self.target.to_probabilities(outputs.astype(np.float64))

    def _validation_feed(self, columns: Columns | None) -> Feed:
        key = _digest(json.dumps(columns))
        if key not in self._validation_feeds:
            self._validation_feeds[key] = self.target.validation(columns)
        return self._validation_feeds[key]

    def _id(self, steps: Sequence[Step]) -> str:
        return _digest(self._source_digest, json.dumps([step.model_dump(mode="json") for step in steps]))

    @staticmethod
    def _empty_folder(folder: Path) -> Path:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder


@cache
def code_digest() -> str:
    """Digest of the code that determines a recipe's result: other changes keep stored candidates valid."""
    package = Path(stillhouse.compress.__file__).parents[1]
    files = [*package.glob("compress/**/*.py"), *package.glob("distill/**/*.py"), *map(package.joinpath, _OTHER_CODE)]
    return _digest(*(part for file in sorted(files) for part in (file.relative_to(package), file.read_bytes())))


def single_row_call(model: onnx.ModelProto, feed: Feed) -> Callable[[], object]:
    """A function that makes one decision on the feed's first row, with one thread, as a server of single rows does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    row = {name: np.ascontiguousarray(array[:1]) for name, array in feed.items()}
    return lambda: session.run(None, row)


def _save(module: nn.Module, path: Path) -> None:
    """Write the module's state; the file gets its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as unfinished:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, unfinished)


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode())
        digest.update(b"\x1f")
    return digest.hexdigest()[:16]
