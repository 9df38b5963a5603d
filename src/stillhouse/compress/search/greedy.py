"""A greedy search for recipes, by measured quality, bytes and latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import TypeAdapter
from torch import nn

from stillhouse.compress.build import ArtifactWriter
from stillhouse.compress.export import run_torch
from stillhouse.compress.search.bandit import Arm, choose_arm
from stillhouse.compress.search.candidates import CandidateBuilder
from stillhouse.compress.search.pareto import choose_candidate, hypervolume, normalized_scores, pareto_front
from stillhouse.compress.search.sensitivity import measure_layer_changes
from stillhouse.compress.search.workers import recover_state, start_workers
from stillhouse.compress.statistics import operations, sample_evenly
from stillhouse.compress.steps.kinds import apply_step, layers
from stillhouse.compress.steps.onnxruntime_quantizer import quantizable_nodes
from stillhouse.compress.target import CompressionTarget, Feed, ModelState
from stillhouse.config import (
    Compression,
    DynamicInt8,
    Fp32,
    NumberFormat,
    Recipe,
    Search,
    StaticInt8,
    Step,
    StructuralStep,
    WeightOnly,
    number_format,
    recipe_name,
    structural_steps,
)
from stillhouse.errors import ExportError
from stillhouse.records import CompressionCandidate, Frontier, LayerSensitivity, SizeLimits
from stillhouse.threads import limit_threads

__all__ = ["FLOAT32_GRAPH_FILE", "search"]

FLOAT32_GRAPH_FILE = "form.onnx"  # in a search's folder: what the chosen candidate was quantised from, in float32

_SEARCHED_FORMATS: tuple[NumberFormat, ...] = (
    DynamicInt8(method="int8_dynamic"),
    DynamicInt8(method="int8_dynamic", table_bits=4),
    StaticInt8(method="int8_static"),
    WeightOnly(method="weights", bits=8, compute="int8"),
    WeightOnly(method="weights", bits=4, compute="int8"),
)
_PROBE_RATIO = 0.5  # of a step whose effect is measured before the search
_PROBE_ROWS = 64  # that sensitivity is measured on
_MAX_PROBE_SHARE = 0.2  # of the search's time that sensitivity may take
_METHODS_BY_LAYER = ("prune_units", "prune_heads", "low_rank")  # steps with a ratio per layer
_MIN_STEP_GAIN = 0.03  # in bytes or latency, of a step that the search continues from
_RETRY_LOSS_FACTOR, _RETRY_RECOVER_ROUNDS = 3.0, 3  # up to this multiple of the allowed loss, recover for more rounds
_FORMATS_PER_STATE = 2  # number formats that are tried on a new state
_MIN_PROGRESS = 2e-3  # gain in hypervolume that counts; the noise of latencies is smaller


def search(
    make_target: Callable[[], CompressionTarget],
    settings: Compression,
    limits: SizeLimits,
    write_artifact: ArtifactWriter,
    folder: Path,
    *,
    initial_recipes: Sequence[Recipe] = (),
    on_candidate: Callable[[CompressionCandidate], None] = lambda candidate: None,
) -> Frontier:
    """Build and measure candidates until nothing more is gained; returns the Pareto front and the chosen candidate.

    The float32 reference, ``settings.recipes`` and the first of ``initial_recipes`` are always built; the other initial
    recipes while time and candidates last. Then the search starts from the state of the first initial recipe, if its
    quality is sufficient, and ends when time, candidates, untried steps or patience run out (``settings.search``).

    A structural step is applied to a state of sufficient quality (``max_quality_loss``); the ratio of each layer
    depends on the layer's sensitivity. The new state is recovered by a short distillation, quantised in the number
    formats that gained most so far, and measured. If the quality is sufficient in one format, the search continues
    from the new state; if it is slightly too low, the state is recovered for more rounds; otherwise the step is tried
    with half its ratio. A bandit chooses the kind of the next step (UCB1, Auer, Cesa-Bianchi and Fischer 2002, §2, on
    hypervolume gained per second). If a format loses too much quality, the most sensitive layers stay float32 (mixed
    precision).

    Every candidate and every recovery is stored in ``folder`` by a content hash, so an interrupted search continues.

    Example:
        >>> import tempfile
        >>> import onnx
        >>> from stillhouse.compress.export import export_onnx
        >>> x = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
        >>> target = CompressionTarget(
        ...     model=export_onnx(nn.Linear(16, 3).eval(), {"x": x}),
        ...     calibration=lambda columns: {"x": x},
        ...     validation=lambda columns: {"x": x},
        ...     quality=lambda probs: 1.0,
        ... )
        >>> def write_artifact(folder, model, built):
        ...     onnx.save(model, folder / "model.onnx")
        >>> recipes = ((Fp32(method="fp32"),),)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     settings = Compression(recipes=recipes, search=None)
        ...     frontier = search(lambda: target, settings, SizeLimits(), write_artifact, Path(folder))
        >>> frontier.chosen, frontier.fits
        ('fp32', True)

    :param make_target: makes the target, always the same one; called once here, and, with ``search.parallel`` above 1,
        once in every worker process, for which it must be picklable.
    :param initial_recipes: recipes of an earlier search: the chosen one first, then the others of its Pareto front.
    :param on_candidate: called with every candidate when it is finished.
    :raises ExportError: if the model itself cannot serve.
    """
    with (
        _GreedySearch(make_target, settings, limits, write_artifact, folder, on_candidate) as run,
        limit_threads(run.module),
    ):
        for recipe in (*settings.recipes, *(initial_recipes if settings.search is None else initial_recipes[:1])):
            run.build(recipe)
        stopped = (
            run.run_from(initial_recipes, settings.search) if settings.search is not None else "no search was asked for"
        )
        return run.result(stopped)


class _GreedySearch:
    """The state of one search."""

    def __init__(
        self,
        make_target: Callable[[], CompressionTarget],
        settings: Compression,
        limits: SizeLimits,
        write_artifact: ArtifactWriter,
        folder: Path,
        on_candidate: Callable[[CompressionCandidate], None],
    ) -> None:
        self.start = time.monotonic()
        self.limits, self.on_candidate = limits, on_candidate
        self.target = make_target()
        self.builder = CandidateBuilder(self.target, write_artifact, folder, settings.tolerance)
        self.candidates: dict[str, CompressionCandidate] = {}
        self.recipes: dict[str, Recipe] = {}
        self.sensitivity: list[LayerSensitivity] = []
        self.format_gains: dict[str, list[float]] = {}  # hypervolume that each candidate gained, by number format
        self.steps: tuple[StructuralStep, ...] = ()  # to the smallest state of sufficient quality
        self.probe_seconds = 0.0  # spent on measuring sensitivity
        self.idle = 0  # candidates in a row without progress
        self.workers: ProcessPoolExecutor | None = None
        parallel = settings.search.parallel if settings.search is not None else 1
        if parallel > 1:
            self.workers = start_workers(parallel, make_target, write_artifact, folder, settings.tolerance)
        self.reference = self.builder.build_reference()
        self._record(self.reference, (Fp32(method="fp32"),))

    @property
    def module(self) -> nn.Module | None:
        """The torch module that is compressed; None if there is only a graph."""
        return None if self.target.state is None else self.target.state.module

    def __enter__(self) -> _GreedySearch:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.workers is not None:
            self.workers.shutdown(cancel_futures=True)

    def _has_tables(self) -> bool:
        """Whether the model has embedding tables."""
        names = set(quantizable_nodes(self.target.model))
        return any(node.op_type == "Gather" and node.name in names for node in self.target.model.graph.node)

    # ----------------------------------------------------------------- candidates

    def build(self, recipe: Recipe) -> CompressionCandidate:
        """The candidate of this recipe, built at the first call only."""
        name = recipe_name(recipe)
        if name not in self.candidates:
            before = self.hypervolume()
            self._record(self.builder.build(recipe), recipe)
            gained = self.hypervolume() - before
            self.format_gains.setdefault(recipe_name((number_format(recipe),)), []).append(gained)
            self.idle = 0 if gained > _MIN_PROGRESS else self.idle + 1
        return self.candidates[name]

    def _record(self, candidate: CompressionCandidate, recipe: Recipe) -> None:
        self.candidates[candidate.name], self.recipes[candidate.name] = candidate, recipe
        self.on_candidate(candidate)

    def has_sufficient_quality(self, candidate: CompressionCandidate) -> bool:
        """Whether it can serve and its loss of quality is within the limit."""
        if candidate.refused is not None or candidate.quality is None or self.reference.quality is None:
            return False
        return candidate.loss(self.reference)[0] <= self.limits.max_quality_loss

    def hypervolume(self) -> float:
        """Hypervolume of all candidates so far."""
        front = pareto_front(self.candidates.values())
        return hypervolume(normalized_scores(candidate, self.reference) for candidate in front)

    # ----------------------------------------------------------------- searching

    def run_from(self, initial_recipes: Sequence[Recipe], settings: Search) -> str:
        """Build the initial recipes, then search from the first; returns the reason why it ended."""
        # Recipes with the first one's steps come first, because their state is cached.
        ordered = sorted(
            initial_recipes[1:], key=lambda recipe: structural_steps(recipe) != structural_steps(initial_recipes[0])
        )
        for recipe in ordered:
            self.idle = 0  # every initial recipe is built, whether or not it is progress
            if reason := self._stop_reason(settings):
                return reason
            self.build(recipe)
        if initial_recipes and self.has_sufficient_quality(self.build(initial_recipes[0])):
            self.steps = structural_steps(initial_recipes[0])
        self.idle = 0
        return self.run(settings)

    def run(self, settings: Search) -> str:
        """Search until a stopping criterion is met; returns the reason."""
        formats = [number_format for number_format in _SEARCHED_FORMATS if number_format.method in settings.steps]
        if not self._has_tables():
            formats = [number_format for number_format in formats if getattr(number_format, "table_bits", 8) == 8]
        for chosen in formats:
            if reason := self._stop_reason(settings):
                return reason
            self._quantize((), chosen)
        arms = self._make_arms(settings)
        self.idle = 0  # formats of the uncompressed model say nothing about smaller states
        while True:
            if reason := self._stop_reason(settings):
                return reason
            arm = choose_arm(arms, settings.time.total_seconds() - self._seconds_spent())
            if arm is None:
                return "nothing left to try"
            self._pull(arm, arms, settings, formats)

    def _stop_reason(self, settings: Search) -> str:
        """Why the search must end now; empty if it must not."""
        if self._seconds_spent() >= settings.time.total_seconds():
            return f"the time is over ({settings.time.total_seconds():g} s)"
        if len(self.candidates) >= settings.candidates:
            return f"{settings.candidates} candidates are made"
        if settings.patience is not None and self.idle >= settings.patience:
            return f"{self.idle} candidates in a row have added nothing"
        return ""

    def _seconds_spent(self) -> float:
        """Seconds that the search has taken so far, including those before an interruption."""
        candidate_seconds = sum(candidate.seconds for candidate in self.candidates.values())
        return max(time.monotonic() - self.start, candidate_seconds)

    def _pull(self, arm: Arm, arms: Sequence[Arm], settings: Search, formats: Sequence[NumberFormat]) -> None:
        """Apply the arm's step to the current state, quantise and measure the result, and update the arm."""
        before = self.hypervolume()
        self._recover_ahead(arm, arms, settings)
        step = self._make_step(arm, settings)
        tried: list[CompressionCandidate] = []
        if step is None:
            arm.ratio = 0.0  # nothing is left that it could make smaller
        elif not self._try_step(step, tried, formats, settings) and not (
            self._is_close(tried)
            and self._try_step(
                step.model_copy(update={"recover_rounds": _RETRY_RECOVER_ROUNDS}), tried, formats, settings
            )
        ):
            arm.ratio /= 2
        arm.pulls += 1
        arm.gained += self.hypervolume() - before
        arm.seconds += sum(candidate.seconds for candidate in tried)

    def _try_step(
        self, step: StructuralStep, tried: list[CompressionCandidate], formats: Sequence[NumberFormat], settings: Search
    ) -> bool:
        """Build the candidates of a step and append them to ``tried``; True if the search continues from its state."""
        steps = (*self.steps, step)
        built = [self.build((*steps, Fp32(method="fp32")))]
        if built[0].refused is None:
            for chosen in self._best_formats(formats):
                if self._stop_reason(settings):
                    break
                built += self._quantize(steps, chosen)
        tried += built
        if any(self.has_sufficient_quality(candidate) for candidate in built) and self._is_smaller(built):
            self.steps = steps
            return True
        return False

    def _is_close(self, tried: Sequence[CompressionCandidate]) -> bool:
        """Whether the smallest loss exceeds the limit only slightly: a longer recovery may be enough."""
        allowed = _RETRY_LOSS_FACTOR * self.limits.max_quality_loss
        losses = [candidate.loss(self.reference)[0] for candidate in tried if candidate.quality is not None]
        return bool(losses) and self.limits.max_quality_loss < min(losses) <= allowed

    def _is_smaller(self, built: Sequence[CompressionCandidate]) -> bool:
        """Whether these are smaller or faster than the candidates of the current state, by more than noise."""
        before = [
            candidate
            for candidate in self.candidates.values()
            if candidate.refused is None and self._steps_of(candidate) == self.steps
        ]
        after = [candidate for candidate in built if candidate.refused is None]
        bytes_after, bytes_before = (min(candidate.bytes for candidate in group) for group in (after, before))
        p50_after, p50_before = (
            min(candidate.latency.p50_ms for candidate in group if candidate.latency) for group in (after, before)
        )
        return bytes_after < (1 - _MIN_STEP_GAIN) * bytes_before or p50_after < (1 - _MIN_STEP_GAIN) * p50_before

    def _steps_of(self, candidate: CompressionCandidate) -> tuple[StructuralStep, ...]:
        return structural_steps(self.recipes[candidate.name])

    def _best_formats(self, formats: Sequence[NumberFormat]) -> list[NumberFormat]:
        """The formats with the highest mean gain so far; formats that were never tried come first."""
        gains = {chosen: self.format_gains.get(recipe_name((chosen,)), []) for chosen in formats}
        return sorted(formats, key=lambda chosen: -float(np.mean(gains[chosen] or [inf])))[:_FORMATS_PER_STATE]

    def _quantize(self, steps: tuple[StructuralStep, ...], chosen: NumberFormat) -> list[CompressionCandidate]:
        """The state in this format; if its loss is too large, also with its most sensitive layers in float32."""
        quantized = self.build((*steps, chosen))
        float32 = self.build((*steps, Fp32(method="fp32")))
        if (
            not isinstance(chosen, DynamicInt8 | StaticInt8)
            or self.has_sufficient_quality(quantized)
            or not self.has_sufficient_quality(float32)
        ):
            return [quantized]
        keep = self._most_sensitive_layers(steps, chosen)
        return [quantized, self.build((*steps, chosen.model_copy(update={"keep": keep})))] if keep else [quantized]

    # ----------------------------------------------------------------- sensitivity

    def _make_arms(self, settings: Search) -> list[Arm]:
        """One arm per kind of structural step that applies, with its promise."""
        state = self.target.state
        if state is None:
            return []
        feed = self._probe_feed(state)
        arms = []
        for method in (method for method in settings.steps if method in _STRUCTURAL_METHODS):
            step = _make_plain_step(method, _PROBE_RATIO)
            if layers(step, state, feed) and (probe := self._probe(step, "", state, feed)) is not None:
                saved = probe.parameters_saved / _count_parameters(state) + probe.operations_saved
                arms.append(Arm(method, saved / (probe.difference + 1e-6)))
        return arms

    def _make_step(self, arm: Arm, settings: Search) -> StructuralStep | None:
        """The arm's step for the current state: the more sensitive a layer is, the smaller its ratio.

        A layer's ratio is between 0.5 and 1.5 times the arm's ratio, by its rank among the layers. None if the step no
        longer applies.
        """
        state = self.builder.state(self.steps)
        assert state is not None  # or there would be no arm
        feed = self._probe_feed(state)
        step = _make_plain_step(arm.method, arm.ratio).model_copy(update={"recover_epochs": settings.recover_epochs})
        names = layers(step, state, feed)
        if not names:
            return None
        changes = self._layer_changes(step, names, state, feed, settings) if arm.method in _METHODS_BY_LAYER else {}
        if len(changes) < 2:
            return step
        ranked = sorted(changes, key=lambda layer: changes[layer])
        factors = np.linspace(1.5, 0.5, len(ranked))
        ratios = {
            layer: round(min(0.95, arm.ratio * float(factor)), 3) for layer, factor in zip(ranked, factors, strict=True)
        }
        return step.model_copy(update={"ratios": ratios})

    def _layer_changes(
        self, step: StructuralStep, names: Sequence[str], state: ModelState, feed: Feed, settings: Search
    ) -> dict[str, float]:
        """The change of the output by the step on each layer alone; empty if there is no time to measure it."""
        changes = {}
        for layer in names:
            if self.probe_seconds > _MAX_PROBE_SHARE * settings.time.total_seconds():
                return {}
            ratios = {name: step.ratio * (name == layer) for name in names}
            probe = self._probe(step.model_copy(update={"ratios": ratios}), layer, state, feed)
            if probe is not None:
                changes[layer] = probe.difference
        return changes

    def _probe(self, step: StructuralStep, layer: str, state: ModelState, feed: Feed) -> LayerSensitivity | None:
        """The step's change of the output before recovery, and what it saves; None if the step does not apply."""
        start = time.monotonic()
        try:
            smaller = apply_step(step, state, feed)
        except ExportError:
            return None
        softmax, smaller_feed = self.target.softmax or self.target.logits, self._probe_feed(smaller)
        change = run_torch(smaller.module, smaller_feed, softmax=softmax) - run_torch(
            state.module, feed, softmax=softmax
        )
        operations_left = operations(smaller.module, smaller_feed) / operations(state.module, feed)
        probe = LayerSensitivity(
            step=step.method,
            layer=layer,
            difference=float(np.abs(change).mean()),
            parameters_saved=max(0, _count_parameters(state) - _count_parameters(smaller)),
            operations_saved=min(1.0, max(0.0, 1 - operations_left)),
        )
        self.sensitivity.append(probe)
        self.probe_seconds += time.monotonic() - start
        return probe

    def _probe_feed(self, state: ModelState) -> Feed:
        return sample_evenly(self.target.calibration(state.columns), _PROBE_ROWS)

    def _most_sensitive_layers(
        self, steps: tuple[StructuralStep, ...], chosen: DynamicInt8 | StaticInt8
    ) -> tuple[str, ...]:
        """A quarter of the layers that the format applies to: those whose quantisation changes the output most."""
        graph = self.builder.graph(steps)
        state = self.builder.state(steps)
        feed = self.target.calibration(None if state is None else state.columns)
        rows = sample_evenly(feed, _PROBE_ROWS)
        try:
            changes = measure_layer_changes(graph, chosen, rows, self.target.to_probabilities)
        except ExportError:  # the format does not apply to this graph
            return ()
        for layer, change in changes.items():
            self.sensitivity.append(
                LayerSensitivity(step=chosen.method, layer=layer, difference=change, parameters_saved=0)
            )
        ordered = sorted(changes, key=lambda layer: -changes[layer])
        return tuple(ordered[: max(1, len(ordered) // 4)]) if len(ordered) > 1 else ()

    def _recover_ahead(self, arm: Arm, arms: Sequence[Arm], settings: Search) -> None:
        """Let the workers recover the state of this arm's step, of half its ratio, and of the next likely arms."""
        if self.workers is None:
            return
        others = sorted((other for other in arms if other is not arm and not other.is_exhausted), key=lambda a: a.pulls)
        halved = replace(arm, ratio=arm.ratio / 2)
        likely = [
            step
            for candidate_arm in (arm, *others, halved)
            if (step := self._make_step(candidate_arm, settings)) is not None
        ]
        list(self.workers.map(recover_state, [(*self.steps, step) for step in likely[: settings.parallel]]))

    # ----------------------------------------------------------------- result

    def result(self, stopped: str) -> Frontier:
        """The result; the candidates of the Pareto front are measured again, in turns with one another."""
        remeasured = self.builder.remeasure(pareto_front(self.candidates.values()))
        candidates = tuple(remeasured.get(name, candidate) for name, candidate in self.candidates.items())
        front = pareto_front(remeasured.values())
        chosen, fits, reason = choose_candidate(candidates, candidates[0], self.limits)
        self.builder.save_graph(self.recipes[chosen.name], self.builder.folder / FLOAT32_GRAPH_FILE)
        return Frontier(
            reference=candidates[0],
            candidates=candidates,
            best=tuple(candidate.name for candidate in front),
            hypervolume=hypervolume(normalized_scores(candidate, candidates[0]) for candidate in front),
            chosen=chosen.name,
            fits=fits,
            why=reason,
            limits=self.limits,
            sensitivity=tuple(self.sensitivity),
            stopped=stopped,
            measure=self.target.quality_name,
            notes=self.target.notes,
        )


_STRUCTURAL_METHODS = tuple(
    method for kind in get_args(StructuralStep) for method in get_args(kind.model_fields["method"].annotation)
)


def _make_plain_step(method: str, ratio: float) -> StructuralStep:
    step: StructuralStep = TypeAdapter[Any](Step).validate_python({"method": method, "ratio": ratio})
    return step


def _count_parameters(state: ModelState) -> int:
    return sum(parameter.numel() for parameter in state.module.parameters())
