"""Candidates made, measured and kept: what is asked for a second time, even by another process, is not made again."""

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
from stillhouse.compress.build import Built, export_form, finish
from stillhouse.compress.export import run_onnx, slim
from stillhouse.compress.processor import processor
from stillhouse.compress.steps import restructure
from stillhouse.compress.subject import Array, Columns, Feed, Form, Subject
from stillhouse.config import Fp32, Recipe, Step, StructuralStep, recipe_name, structural_steps
from stillhouse.errors import ExportError
from stillhouse.files import atomic_file, write_atomic
from stillhouse.latency import measure_cpu_time, measure_latency
from stillhouse.records import CompressionCandidate, Latency

__all__ = ["Pack", "Workshop", "code_digest", "one_row"]

Pack = Callable[[Path, onnx.ModelProto, Built], None]
"""Writes an artifact into an empty folder: the slim graph, and what its kind of artifact has beside it."""

_RECORD, _COLUMNS = "candidate.json", "columns.json"
_FORMS_AT_HAND = 3
_OTHER_CODE = ("config/compression.py", "latency.py", "values.py", "variant.py")
_SECONDS_MEASURED = 2.0  # of each candidate's latency, at most


class Workshop:
    """Makes candidates of one subject in one folder, each once.

    A candidate lies in ``candidates/<id>/``, its artifact in ``artifact/`` and its record beside it; the folder appears
    under its name when it is complete. The weights of a structural form lie in ``forms/<id>.safetensors``: the form is
    made again by taking its steps, whose recoveries are then read instead of repeated. The same id is the same model,
    recipe, rows, code, libraries and processor.

    :param tolerance: of a number format, see :func:`~stillhouse.compress.build.finish`.
    """

    def __init__(self, subject: Subject, pack: Pack, folder: Path, tolerance: float) -> None:
        self.subject, self.pack, self.folder, self.tolerance = subject, pack, folder, tolerance
        self._source = _digest(
            subject.model.SerializeToString(deterministic=True),
            json.dumps(subject.columns),
            subject.source,
            torch.__version__,
            onnxruntime.__version__,
            onnx.__version__,
            code_digest(),
            processor().model_dump_json(),
            tolerance,
        )
        self._forms: OrderedDict[str, Form] = OrderedDict()
        self._graphs: OrderedDict[str, onnx.ModelProto] = OrderedDict()
        self._feeds: dict[str, Feed] = {}
        self._reference: tuple[Callable[[], object], float] | None = None  # one decision, and its usual median (ms)

    def make(self, recipe: Recipe) -> CompressionCandidate:
        """The candidate of this recipe, made and measured, or read where an earlier process has finished it.

        Its latency is measured in turns with the reference's, and what the reference takes now against what it took at
        first is divided out: a busy moment makes nobody slower. A recipe that does not apply, or whose result cannot
        serve, gives a candidate that is refused, with the reason.
        """
        place = self.folder / "candidates" / self._id(recipe)
        if (place / _RECORD).exists():
            return CompressionCandidate.model_validate_json((place / _RECORD).read_bytes())
        aside = self._empty(self.folder / "aside" / place.name)
        start = time.perf_counter()
        described: dict[str, Any] = {
            "candidate_id": place.name,
            "name": recipe_name(recipe),
            "recipe": tuple(step.model_dump(mode="json") for step in recipe),
        }
        figures: dict[str, Any]
        try:
            figures = self._figures(recipe, aside / "artifact") | {"folder": str(place / "artifact")}
        except ExportError as error:
            shutil.rmtree(aside / "artifact")
            figures = {"refused": str(error)}
        candidate = CompressionCandidate(**described, **figures, seconds=time.perf_counter() - start)
        (aside / _RECORD).write_text(candidate.model_dump_json(indent=1), encoding="utf-8")
        place.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(place)
        return candidate

    def remeasured(self, candidates: Sequence[CompressionCandidate]) -> dict[str, CompressionCandidate]:
        """All of them by name, with latencies that were measured in turns with one another."""
        calls = {each.name: self._call(each) for each in candidates}
        found = measure_latency(calls, seconds=_SECONDS_MEASURED * len(calls))
        return {each.name: each.model_copy(update={"latency": found[each.name]}) for each in candidates}

    def _figures(self, recipe: Recipe, artifact: Path) -> dict[str, Any]:
        """Build the recipe's artifact; what was measured of it."""
        artifact.mkdir()
        form = self.form(structural_steps(recipe))
        columns = self.subject.columns if form is None else form.columns
        built = finish(
            self.subject, recipe, self.graph(structural_steps(recipe)), columns, self.tolerance, self._answers
        )
        small = slim(built.model)
        self.pack(artifact, small, built)
        (artifact.parent / _COLUMNS).write_text(json.dumps(built.columns), encoding="utf-8")
        feed = self._judged(built.columns)
        said = self.subject.probabilities(run_onnx(built.model, feed))
        quality, slices = self.subject.quality(said), dict(self.subject.slices(said))
        latency, cpu = self._latency(one_row(small, feed))
        size = sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file())
        return {
            "bytes": size,
            "quality": quality,
            "slices": slices,
            "difference": built.agreement.mean,
            "latency": latency,
            "cpu_ms": cpu,
            "saturates": built.saturates,
        }

    def _latency(self, call: Callable[[], object]) -> tuple[Latency, float]:
        """Latency in the reference's time, and CPU time (ms)."""
        if self._reference is None:
            return measure_latency({"": call}, seconds=_SECONDS_MEASURED)[""], measure_cpu_time(call)
        reference, usual = self._reference
        found = measure_latency({"": call, "reference": reference}, seconds=_SECONDS_MEASURED)
        busy = found["reference"].p50_ms / usual
        scaled = {name: getattr(found[""], name) / busy for name in ("p50_ms", "p95_ms")}
        return found[""].model_copy(update=scaled), measure_cpu_time(call)

    def reference(self) -> CompressionCandidate:
        """The float32 model as it is; made before anything else, for all others are compared with it."""
        candidate = self.make((Fp32(method="fp32"),))
        if candidate.latency is None:
            raise ExportError(f"the model cannot serve as it is: {candidate.refused}")
        self._reference = self._call(candidate), candidate.latency.p50_ms
        return candidate

    def _call(self, candidate: CompressionCandidate) -> Callable[[], object]:
        """One decision by a finished candidate."""
        artifact = Path(candidate.folder)
        columns = json.loads((artifact.parent / _COLUMNS).read_text(encoding="utf-8"))
        return one_row(onnx.load(artifact / "model.onnx"), self._judged(columns))

    def form(self, steps: Sequence[StructuralStep]) -> Form | None:
        """The form that these steps make, each recovered; a recovery that was kept is read."""
        if not steps:
            return self.subject.form
        name = self._id(steps)
        if name not in self._forms:
            self._forms[name] = self._make_form(steps, name)
            while len(self._forms) > _FORMS_AT_HAND:
                self._forms.popitem(last=False)
        self._forms.move_to_end(name)
        return self._forms[name]

    def _make_form(self, steps: Sequence[StructuralStep], name: str) -> Form:
        """The last step taken and recovered once, or recovered once more than where it stands with a round less."""
        *before, last = steps
        if last.recover_rounds == 1:
            return self._next_form(self.form(before), last, name)
        shorter = self.form((*before, last.model_copy(update={"recover_rounds": last.recover_rounds - 1})))
        assert shorter is not None  # a step has been taken
        return self._recovered(Form(copy.deepcopy(shorter.module), shorter.columns), last, name)

    def graph(self, steps: Sequence[StructuralStep]) -> onnx.ModelProto:
        """The float32 graph of the form that these steps make."""
        form, name = self.form(steps), self._id(steps)
        if not steps or form is None:
            return self.subject.model
        if name not in self._graphs:
            self._graphs[name] = export_form(self.subject, form)
            while len(self._graphs) > _FORMS_AT_HAND:
                self._graphs.popitem(last=False)
        return self._graphs[name]

    def save_form(self, recipe: Recipe, path: Path) -> None:
        """Write what the recipe's candidate was quantised from: its form's float32 graph."""
        write_atomic(path, self.graph(structural_steps(recipe)).SerializeToString())

    def _next_form(self, form: Form | None, step: StructuralStep, name: str) -> Form:
        if form is None:
            raise ExportError(
                f"{step.method} changes a torch module, and this is an ONNX graph: log the torch module itself, or "
                f"leave the structural steps out"
            )
        return self._recovered(restructure(step, form, self.subject.calibration(form.columns)), step, name)

    def _recovered(self, smaller: Form, step: StructuralStep, name: str) -> Form:
        """The form after its distillation, which is read where it was kept."""
        if not step.recover_epochs or self.subject.recover is None:
            return smaller
        kept = self.folder / "forms" / f"{name}.safetensors"
        if kept.exists():
            smaller.module.load_state_dict(load_file(kept))
            return smaller
        smaller = self.subject.recover(smaller, step.recover_epochs)
        _save(smaller.module, kept)
        return smaller

    @cached_property
    def _answers(self) -> Array:
        """What the subject's own graph says about the calibration rows, as probabilities ``[n, K]``."""
        given = run_onnx(self.subject.model, self.subject.calibration(self.subject.columns))
        return self.subject.probabilities(given.astype(np.float64))

    def _judged(self, columns: Columns | None) -> Feed:
        key = _digest(json.dumps(columns))
        if key not in self._feeds:
            self._feeds[key] = self.subject.judged(columns)
        return self._feeds[key]

    def _id(self, steps: Sequence[Step]) -> str:
        return _digest(self._source, json.dumps([step.model_dump(mode="json") for step in steps]))

    @staticmethod
    def _empty(folder: Path) -> Path:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder


@cache
def code_digest() -> str:
    """Of the code that decides what a recipe gives: a change elsewhere in the package leaves kept candidates valid."""
    package = Path(stillhouse.compress.__file__).parents[1]
    files = [*package.glob("compress/**/*.py"), *package.glob("distill/**/*.py"), *map(package.joinpath, _OTHER_CODE)]
    return _digest(*(part for file in sorted(files) for part in (file.relative_to(package), file.read_bytes())))


def one_row(model: onnx.ModelProto, feed: Feed) -> Callable[[], object]:
    """One decision, as a machine that serves single rows makes it: one thread, one row."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    one = {name: np.ascontiguousarray(array[:1]) for name, array in feed.items()}
    return lambda: session.run(None, one)


def _save(module: nn.Module, path: Path) -> None:
    """The module's state; the file appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as aside:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, aside)


def _digest(*parts: object) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else str(part).encode())
        found.update(b"\x1f")
    return found.hexdigest()[:16]
