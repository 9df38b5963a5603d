"""Recipes searched on measured quality, bytes and latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import inf, log, sqrt
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from stillhouse.compress.export import run_torch
from stillhouse.compress.frontier import choose, figures, frontier, hypervolume
from stillhouse.compress.sensitivity import layer_changes
from stillhouse.compress.steps import layers, restructure
from stillhouse.compress.subject import Form, Subject
from stillhouse.compress.workshop import Pack, Workshop
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
)
from stillhouse.errors import ExportError
from stillhouse.records import Candidate, Frontier, LayerSensitivity, Limits

__all__ = ["search"]

_ORDER = ("vocabulary", "hashed_rows", "prune_columns", "prune_layers", "prune_heads", "prune_units", "low_rank")
_FORMATS: tuple[NumberFormat, ...] = (
    StaticInt8(method="int8_static"), DynamicInt8(method="int8_dynamic"), WeightOnly(method="weights", bits=8),
    WeightOnly(method="weights", bits=4),
)  # fmt: skip
_FIRST_RATIO, _FINEST = 0.5, 0.08  # of a step's strength: where it begins, and below which it is not told apart
_PROBE_ROWS, _PROBE_RATIO = 256, 0.5  # of the sensitivity
_PROBE_SHARE = 0.2  # of the time that may go into it
_BY_LAYER = ("prune_units", "prune_heads", "low_rank")
_EXPLORATION = 0.5  # of the bandit


def search(
    make_subject: Callable[[], Subject],
    settings: Compression,
    limits: Limits,
    pack: Pack,
    folder: Path,
    *,
    warm: Sequence[Recipe] = (),
    on_candidate: Callable[[Candidate], None] = lambda candidate: None,
) -> Frontier:
    """Make and measure candidates until time, candidates or ideas run out; what nothing beats, and what to put forward.

    First the float32 reference, ``settings.recipes`` and ``warm`` (an earlier search's frontier), whatever the time.
    Then what halving each layer alone does to the answers, and with that the search: from the smallest and fastest
    plan that keeps within ``max_quality_loss``, one structural step is added or made stronger, what its layers lose
    set by their sensitivity; the form is recovered once, quantised in the formats that have earned most, measured, and
    becomes the plan if it is good enough. A step that was too strong is tried at half the way. Which step comes next
    is a bandit's choice (UCB1, Auer, Cesa-Bianchi and Fischer 2002, §2, on hypervolume gained per second). Where a
    format loses too much, its most sensitive layers stay float32 (mixed precision).

    Every candidate and every recovery is kept in ``folder`` by content: a search that was killed goes on where it was.

    :param make_subject: makes the subject, always the same; called once here, and, with ``search.parallel`` above 1,
        once in every worker process, for which it must be picklable.
    :param on_candidate: told of every candidate as it is finished.
    :raises ExportError: if the model cannot serve as it is.
    """
    with _Searching(make_subject, settings, limits, pack, folder, on_candidate) as state:
        for recipe in (*settings.recipes, *warm):
            state.make(recipe)
        stopped = state.look(settings.search) if settings.search is not None else "no search was asked for"
        return state.frontier(stopped)


@dataclass
class _Arm:
    """One kind of structural step, as the bandit sees it."""

    method: str
    promise: float  # of its sensitivity: parameters saved per change, higher is better
    good: float = 0.0  # strongest ratio that was good enough
    bad: float = 1.0  # weakest that was not
    pulls: int = 0
    gained: float = 0.0
    seconds: float = 0.0

    @property
    def next_ratio(self) -> float:
        """Half the way from what is good to what is not; the first is fixed."""
        return _FIRST_RATIO if self.good == 0.0 and self.bad == 1.0 else round((self.good + self.bad) / 2, 3)

    @property
    def exhausted(self) -> bool:
        return self.bad - self.good < _FINEST

    def score(self, pulls: int, best_rate: float) -> tuple[float, float]:
        """UCB1 of the gain per second, relative to the best; arms never pulled come first, by promise."""
        if not self.pulls:
            return inf, self.promise
        rate = self.gained / max(self.seconds, 1e-9) / best_rate
        return rate + _EXPLORATION * sqrt(log(pulls) / self.pulls), self.promise


class _Searching:
    """One search under way."""

    def __init__(
        self, make_subject: Callable[[], Subject], settings: Compression, limits: Limits, pack: Pack, folder: Path,
        on_candidate: Callable[[Candidate], None],
    ) -> None:  # fmt: skip
        self.begin = time.monotonic()
        self.limits, self.on_candidate = limits, on_candidate
        self.subject = make_subject()
        self.workshop = Workshop(self.subject, pack, folder, settings.tolerance)
        self.candidates: dict[str, Candidate] = {}
        self.recipes: dict[str, Recipe] = {}
        self.sensitivity: list[LayerSensitivity] = []
        self.earned: dict[str, list[float]] = {}  # by number format: hypervolume that it added, each time
        self.workers: ProcessPoolExecutor | None = None
        parallel = settings.search.parallel if settings.search is not None else 1
        if parallel > 1:
            self.workers = ProcessPoolExecutor(
                parallel, get_context("spawn"), _begin_worker, (make_subject, pack, folder, settings.tolerance)
            )
        self.reference = self.workshop.reference()
        self._note(self.reference, (Fp32(method="fp32"),))

    def __enter__(self) -> _Searching:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.workers is not None:
            self.workers.shutdown(cancel_futures=True)

    # ----------------------------------------------------------------- candidates

    def make(self, recipe: Recipe) -> Candidate:
        """The candidate of this recipe; the second time it is the same one."""
        name = recipe_name(recipe)
        if name not in self.candidates:
            before = self.hypervolume()
            self._note(self.workshop.make(recipe), recipe)
            self.earned.setdefault(number_format(recipe).method, []).append(self.hypervolume() - before)
        return self.candidates[name]

    def _note(self, candidate: Candidate, recipe: Recipe) -> None:
        self.candidates[candidate.name], self.recipes[candidate.name] = candidate, recipe
        self.on_candidate(candidate)

    def good_enough(self, candidate: Candidate) -> bool:
        """Whether it can serve and has lost no more than is allowed."""
        if candidate.refused is not None or candidate.quality is None or self.reference.quality is None:
            return False
        return self.reference.quality - candidate.quality <= self.limits.max_quality_loss

    def hypervolume(self) -> float:
        """Of all candidates so far."""
        return hypervolume(figures(each, self.reference) for each in frontier(self.candidates.values()))

    # ----------------------------------------------------------------- searching

    def look(self, settings: Search) -> str:
        """Search until something runs out; what did."""
        formats = [each for each in _FORMATS if each.method in settings.steps]
        for each in formats:
            if stop := self._over(settings):
                return stop
            self._quantised((), each, settings)
        arms = self._arms(settings)
        while True:
            if stop := self._over(settings):
                return stop
            arm = self._next(arms, settings)
            if arm is None:
                return "nothing left to try"
            self._pull(arm, arms, settings, formats)

    def _over(self, settings: Search) -> str:
        if time.monotonic() - self.begin >= settings.time.total_seconds():
            return f"the time is over ({settings.time.total_seconds():g} s)"
        if len(self.candidates) >= settings.candidates:
            return f"{settings.candidates} candidates are made"
        return ""

    def _next(self, arms: Sequence[_Arm], settings: Search) -> _Arm | None:
        """The arm to pull; one that is likely to outlast the time is left alone."""
        left = settings.time.total_seconds() - (time.monotonic() - self.begin)
        open_arms = [arm for arm in arms if not arm.exhausted and arm.seconds / max(1, arm.pulls) <= left]
        rates = [arm.gained / max(arm.seconds, 1e-9) for arm in open_arms if arm.pulls]
        best, pulls = max([*rates, 1e-9]), max(2, sum(arm.pulls for arm in arms))
        return max(open_arms, key=lambda arm: arm.score(pulls, best), default=None)

    def _pull(self, arm: _Arm, arms: Sequence[_Arm], settings: Search, formats: Sequence[NumberFormat]) -> None:
        """Add the arm's step to the plan, or make it stronger; quantise and measure the form; learn from it."""
        ratio, start, before = arm.next_ratio, time.monotonic(), self.hypervolume()
        stronger = {each.method: each.good for each in arms} | {arm.method: ratio}
        steps = tuple(self._step(method, stronger[method], settings) for method in _ORDER if stronger.get(method))
        self._premake(arms, settings)
        found = [self.make((*steps, Fp32(method="fp32")))]
        if found[0].refused is None:
            for each in self._promising(formats, settings):
                if self._over(settings):
                    break
                found += self._quantised(steps, each, settings)
        if any(self.good_enough(candidate) for candidate in found):
            arm.good = ratio
        else:
            arm.bad = ratio
        arm.pulls += 1
        arm.gained += self.hypervolume() - before
        arm.seconds += time.monotonic() - start

    def _promising(self, formats: Sequence[NumberFormat], settings: Search) -> list[NumberFormat]:
        """The two formats that added most so far, on average; of float32 there is one already."""
        return sorted(formats, key=lambda each: -float(np.mean(self.earned.get(each.method, [inf]))))[:2]

    def _quantised(self, steps: tuple[StructuralStep, ...], chosen: NumberFormat, settings: Search) -> list[Candidate]:
        """The form in this format, and, where that alone loses too much, with its most sensitive layers in float32."""
        plain = self.make((*steps, chosen))
        base = self.make((*steps, Fp32(method="fp32")))
        if not isinstance(chosen, DynamicInt8 | StaticInt8) or self.good_enough(plain) or not self.good_enough(base):
            return [plain]
        kept = self._most_sensitive(steps, chosen)
        return [plain, self.make((*steps, chosen.model_copy(update={"keep": kept})))] if kept else [plain]

    # ----------------------------------------------------------------- sensitivity

    def _arms(self, settings: Search) -> list[_Arm]:
        """One arm per kind of structural step that applies; what each layer alone does to the answers is measured."""
        if self.subject.form is None:
            return []
        found = []
        until = time.monotonic() + _PROBE_SHARE * settings.time.total_seconds()
        for method in (each for each in _ORDER if each in settings.steps):
            probed = self._probe(method, self.subject.form, until)
            if probed:
                saved, change = (sum(values) for values in zip(*probed, strict=True))
                found.append(_Arm(method, saved / (change + 1e-6)))
        return found

    def _probe(self, method: str, form: Form, until: float) -> list[tuple[int, float]]:
        """Parameters saved and change of the answers, for each layer alone, or for the step as a whole."""
        feed = {name: array[:_PROBE_ROWS] for name, array in self.subject.calibration(form.columns).items()}
        wanted = run_torch(form.module, feed, softmax=self.subject.softmax)
        total, found = _parameters(form), []
        known = layers(_plain(method, _PROBE_RATIO), form, feed)
        alone = method in _BY_LAYER and len(known) > 1
        for layer in known if alone else known[:1]:
            step = _plain(method, _PROBE_RATIO)
            if alone:
                step = step.model_copy(update={"ratios": {each: _PROBE_RATIO * (each == layer) for each in known}})
            try:
                smaller = restructure(step, form, feed)
            except ExportError:
                continue
            change = 0.0  # where the columns change, so do the rows: what it does shows when it is recovered
            if smaller.columns == form.columns:
                said = run_torch(smaller.module, feed, softmax=self.subject.softmax)
                change = float(np.abs(said - wanted).mean())
            saved = max(0, total - _parameters(smaller))
            found.append((saved, change))
            self.sensitivity.append(
                LayerSensitivity(step=method, layer=layer if alone else "", difference=change, parameters_saved=saved)
            )
            if time.monotonic() > until:
                break
        return found

    def _step(self, method: str, ratio: float, settings: Search) -> StructuralStep:
        """The step at this strength, on average over its layers: the more a layer changes the answers, the less goes.

        A layer's ratio lies between half and one and a half of the mean, by its rank among the layers.
        """
        plain = _plain(method, ratio).model_copy(update={"recover_epochs": settings.recover_epochs})
        known = [each for each in self.sensitivity if each.step == method and each.layer]
        if len(known) < 2:
            return plain
        ranked = sorted(known, key=lambda each: each.difference)
        spread = np.linspace(1.5, 0.5, len(ranked))
        ratios = {each.layer: round(min(0.95, ratio * float(by)), 3) for each, by in zip(ranked, spread, strict=True)}
        return plain.model_copy(update={"ratios": ratios})

    def _most_sensitive(self, steps: tuple[StructuralStep, ...], chosen: DynamicInt8 | StaticInt8) -> tuple[str, ...]:
        """A quarter of the layers that the format touches: those that alone change the answers most."""
        graph = self.workshop.graph(steps)
        form = self.workshop.form(steps)
        feed = self.subject.calibration(None if form is None else form.columns)
        changes = layer_changes(graph, chosen, {name: array[:_PROBE_ROWS] for name, array in feed.items()})
        for layer, change in changes.items():
            self.sensitivity.append(
                LayerSensitivity(step=chosen.method, layer=layer, difference=change, parameters_saved=0)
            )
        ordered = sorted(changes, key=lambda layer: -changes[layer])
        return tuple(ordered[: max(1, len(ordered) // 4)]) if len(ordered) > 1 else ()

    def _premake(self, arms: Sequence[_Arm], settings: Search) -> None:
        """Let the workers make the forms that are likely to be wanted next."""
        if self.workers is None:
            return
        wanted = []
        for arm in sorted((each for each in arms if not each.exhausted), key=lambda each: -each.promise):
            plan = {each.method: each.good for each in arms} | {arm.method: arm.next_ratio}
            wanted.append(tuple(self._step(method, plan[method], settings) for method in _ORDER if plan.get(method)))
        list(self.workers.map(_make_form, wanted[: settings.parallel]))

    # ----------------------------------------------------------------- what it found

    def frontier(self, stopped: str) -> Frontier:
        """What is left, its best measured once more in turns with one another."""
        again = self.workshop.remeasured(frontier(self.candidates.values()))
        candidates = tuple(again.get(name, candidate) for name, candidate in self.candidates.items())
        best = frontier(again.values())
        chosen, fits, why = choose(candidates, candidates[0], self.limits)
        return Frontier(
            reference=candidates[0], candidates=candidates, best=tuple(each.name for each in best),
            hypervolume=hypervolume(figures(each, candidates[0]) for each in best), chosen=chosen.name, fits=fits,
            why=why, limits=self.limits, sensitivity=tuple(self.sensitivity), stopped=stopped,
        )  # fmt: skip


# --------------------------------------------------------------------------- worker processes

_worker: Workshop | None = None


def _begin_worker(make_subject: Callable[[], Subject], pack: Pack, folder: Path, tolerance: float) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = Workshop(make_subject(), pack, folder, tolerance)


def _make_form(steps: tuple[StructuralStep, ...]) -> None:
    """Recover a form; its weights are kept where the parent looks for them."""
    assert _worker is not None
    try:
        _worker.form(steps)
    except ExportError:
        return  # the parent finds out, and records it


def _plain(method: str, ratio: float) -> StructuralStep:
    step: StructuralStep = TypeAdapter[Any](Step).validate_python({"method": method, "ratio": ratio})
    return step


def _parameters(form: Form) -> int:
    return sum(parameter.numel() for parameter in form.module.parameters())
