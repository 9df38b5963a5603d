"""Recipes searched on measured quality, bytes and latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from math import inf, log, sqrt
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn

from stillhouse.compress.export import run_torch
from stillhouse.compress.frontier import choose, figures, frontier, hypervolume
from stillhouse.compress.quantize import evenly_spaced, touched
from stillhouse.compress.sensitivity import layer_changes
from stillhouse.compress.statistics import operations
from stillhouse.compress.steps import layers, restructure
from stillhouse.compress.subject import Feed, Form, Subject
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
    structural_steps,
)
from stillhouse.errors import ExportError
from stillhouse.records import CompressionCandidate, Frontier, LayerSensitivity, SizeLimits
from stillhouse.threads import limit_threads

__all__ = ["FORM", "search"]

FORM = "form.onnx"  # in a search's folder: what the chosen candidate was quantised from, in float32

_FORMATS: tuple[NumberFormat, ...] = (
    DynamicInt8(method="int8_dynamic"),
    DynamicInt8(method="int8_dynamic", table_bits=4),
    StaticInt8(method="int8_static"),
    WeightOnly(method="weights", bits=8, compute="int8"),
    WeightOnly(method="weights", bits=4, compute="int8"),
)
_FIRST_RATIO, _LEAST_RATIO = 0.5, 0.1  # of a step: where it begins, and below which it is not tried
_PROBE_ROWS = 64  # of the sensitivity
_PROBE_SHARE = 0.2  # of the time that may go into it
_BY_LAYER = ("prune_units", "prune_heads", "low_rank")
_LEAST_GAIN = 0.03  # in bytes or latency, of a step that is worth taking
_SECOND_CHANCE, _MORE_ROUNDS = 3.0, 3  # of the loss that is allowed: where a form is recovered for longer
_PROMISING = 2  # formats that a new form is tried in
_EXPLORATION = 0.5  # of the bandit
_LEAST_PROGRESS = 2e-3  # in hypervolume, of a candidate that adds something; latencies of equals differ by less


def search(
    make_subject: Callable[[], Subject],
    settings: Compression,
    limits: SizeLimits,
    pack: Pack,
    folder: Path,
    *,
    warm: Sequence[Recipe] = (),
    on_candidate: Callable[[CompressionCandidate], None] = lambda candidate: None,
) -> Frontier:
    """Make and measure candidates until nothing new gains; what nothing beats, and what to put forward.

    First the float32 reference, ``settings.recipes`` and the first of ``warm``, whatever the time; then the others of
    ``warm``, while time and candidates last. Then the search, from the form of the first of ``warm`` if that is good
    enough, until time, candidates, ideas or its patience run out (``settings.search``).

    From a form that is good enough (``max_quality_loss``) one structural step leads to a smaller one,
    what its layers lose set by what each alone does to the answers; it is recovered by a short distillation,
    quantised in the formats that have earned most, and measured. If it is good enough in one of them, the next step
    starts there; if it is nearly so it is recovered for longer, and if that does not help the step is tried at half its
    strength. Which kind of step comes next is a bandit's choice
    (UCB1, Auer, Cesa-Bianchi and Fischer 2002, §2, on hypervolume gained per second). Where a format loses too much,
    its most sensitive layers stay float32 (mixed precision).

    Every candidate and every recovery is kept in ``folder`` by content: a search that was killed goes on where it was.

    :param warm: recipes of an earlier search, the one that was chosen first, then others that nothing beat.
    :param make_subject: makes the subject, always the same; called once here, and, with ``search.parallel`` above 1,
        once in every worker process, for which it must be picklable.
    :param on_candidate: told of every candidate as it is finished.
    :raises ExportError: if the model cannot serve as it is.
    """
    with _Searching(make_subject, settings, limits, pack, folder, on_candidate) as state, limit_threads(state.module):
        for recipe in (*settings.recipes, *(warm if settings.search is None else warm[:1])):
            state.make(recipe)
        stopped = state.go_on(warm, settings.search) if settings.search is not None else "no search was asked for"
        return state.frontier(stopped)


@dataclass
class _Arm:
    """One kind of structural step, as the bandit sees it."""

    method: str
    promise: float  # shares of parameters and operations saved per change of the answers, higher is better
    ratio: float = _FIRST_RATIO
    pulls: int = 0
    gained: float = 0.0
    seconds: float = 0.0

    @property
    def exhausted(self) -> bool:
        return self.ratio < _LEAST_RATIO

    def score(self, pulls: int, best_rate: float) -> tuple[float, float]:
        """UCB1 of the gain per second, relative to the best; arms never pulled come first, by promise."""
        if not self.pulls:
            return inf, self.promise
        rate = self.gained / max(self.seconds, 1e-9) / best_rate
        return rate + _EXPLORATION * sqrt(log(pulls) / self.pulls), self.promise


class _Searching:
    """One search under way."""

    def __init__(
        self,
        make_subject: Callable[[], Subject],
        settings: Compression,
        limits: SizeLimits,
        pack: Pack,
        folder: Path,
        on_candidate: Callable[[CompressionCandidate], None],
    ) -> None:
        self.begin = time.monotonic()
        self.limits, self.on_candidate = limits, on_candidate
        self.subject = make_subject()
        self.workshop = Workshop(self.subject, pack, folder, settings.tolerance)
        self.candidates: dict[str, CompressionCandidate] = {}
        self.recipes: dict[str, Recipe] = {}
        self.sensitivity: list[LayerSensitivity] = []
        self.earned: dict[str, list[float]] = {}  # by number format: hypervolume that it added, each time
        self.chain: tuple[StructuralStep, ...] = ()  # steps to the smallest form that was good enough
        self.probing = 0.0  # seconds that went into sensitivity
        self.idle = 0  # candidates in a row that have added nothing
        self.workers: ProcessPoolExecutor | None = None
        parallel = settings.search.parallel if settings.search is not None else 1
        if parallel > 1:
            self.workers = ProcessPoolExecutor(
                parallel, get_context("spawn"), _begin_worker, (make_subject, pack, folder, settings.tolerance)
            )
        self.reference = self.workshop.reference()
        self._note(self.reference, (Fp32(method="fp32"),))

    @property
    def module(self) -> nn.Module | None:
        """The torch module that is made smaller; None where there is a graph alone."""
        return None if self.subject.form is None else self.subject.form.module

    def __enter__(self) -> _Searching:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.workers is not None:
            self.workers.shutdown(cancel_futures=True)

    def _has_tables(self) -> bool:
        """Whether the model looks rows up in tables."""
        known = set(touched(self.subject.model))
        return any(node.op_type == "Gather" and node.name in known for node in self.subject.model.graph.node)

    # ----------------------------------------------------------------- candidates

    def make(self, recipe: Recipe) -> CompressionCandidate:
        """The candidate of this recipe; the second time it is the same one."""
        name = recipe_name(recipe)
        if name not in self.candidates:
            before = self.hypervolume()
            self._note(self.workshop.make(recipe), recipe)
            gained = self.hypervolume() - before
            self.earned.setdefault(recipe_name((number_format(recipe),)), []).append(gained)
            self.idle = 0 if gained > _LEAST_PROGRESS else self.idle + 1
        return self.candidates[name]

    def _note(self, candidate: CompressionCandidate, recipe: Recipe) -> None:
        self.candidates[candidate.name], self.recipes[candidate.name] = candidate, recipe
        self.on_candidate(candidate)

    def good_enough(self, candidate: CompressionCandidate) -> bool:
        """Whether it can serve and has lost no more than is allowed."""
        if candidate.refused is not None or candidate.quality is None or self.reference.quality is None:
            return False
        return candidate.loss(self.reference)[0] <= self.limits.max_quality_loss

    def hypervolume(self) -> float:
        """Of all candidates so far."""
        return hypervolume(figures(each, self.reference) for each in frontier(self.candidates.values()))

    # ----------------------------------------------------------------- searching

    def go_on(self, warm: Sequence[Recipe], settings: Search) -> str:
        """Search from where an earlier search ended until something runs out; what did."""
        for recipe in sorted(
            warm[1:], key=lambda each: structural_steps(each) != structural_steps(warm[0])
        ):  # its form is at hand
            self.idle = 0  # each was worth something to the champion
            if stop := self._over(settings):
                return stop
            self.make(recipe)
        if warm and self.good_enough(self.make(warm[0])):
            self.chain = structural_steps(warm[0])
        self.idle = 0
        return self.look(settings)

    def look(self, settings: Search) -> str:
        """Search until something runs out; what did."""
        formats = [each for each in _FORMATS if each.method in settings.steps]
        if not self._has_tables():
            formats = [each for each in formats if getattr(each, "table_bits", 8) == 8]
        for each in formats:
            if stop := self._over(settings):
                return stop
            self._quantised((), each)
        arms = self._arms(settings)
        self.idle = 0  # formats of the same form say nothing about smaller ones
        while True:
            if stop := self._over(settings):
                return stop
            arm = self._next(arms, settings)
            if arm is None:
                return "nothing left to try"
            self._pull(arm, arms, settings, formats)

    def _over(self, settings: Search) -> str:
        if self._spent() >= settings.time.total_seconds():
            return f"the time is over ({settings.time.total_seconds():g} s)"
        if len(self.candidates) >= settings.candidates:
            return f"{settings.candidates} candidates are made"
        if settings.patience is not None and self.idle >= settings.patience:
            return f"{self.idle} candidates in a row have added nothing"
        return ""

    def _spent(self) -> float:
        """Seconds that the search has taken so far; those before a kill count, too."""
        made = sum(candidate.seconds for candidate in self.candidates.values())
        return max(time.monotonic() - self.begin, made)

    def _next(self, arms: Sequence[_Arm], settings: Search) -> _Arm | None:
        """The arm to pull; one that is likely to outlast the time is left alone."""
        left = settings.time.total_seconds() - self._spent()
        open_arms = [arm for arm in arms if not arm.exhausted and arm.seconds / max(1, arm.pulls) <= left]
        rates = [arm.gained / max(arm.seconds, 1e-9) for arm in open_arms if arm.pulls]
        best, pulls = max([*rates, 1e-9]), max(2, sum(arm.pulls for arm in arms))
        return max(open_arms, key=lambda arm: arm.score(pulls, best), default=None)

    def _pull(self, arm: _Arm, arms: Sequence[_Arm], settings: Search, formats: Sequence[NumberFormat]) -> None:
        """Take the arm's step from where the search stands; quantise and measure the form; learn from it."""
        before = self.hypervolume()
        self._premake(arm, arms, settings)
        step = self._step(arm, settings)
        found: list[CompressionCandidate] = []
        if step is None:
            arm.ratio = 0.0  # there is nothing left that it could make smaller
        elif not self._take(step, found, formats, settings) and not (
            self._nearly(found)
            and self._take(step.model_copy(update={"recover_rounds": _MORE_ROUNDS}), found, formats, settings)
        ):
            arm.ratio /= 2
        arm.pulls += 1
        arm.gained += self.hypervolume() - before
        arm.seconds += sum(candidate.seconds for candidate in found)

    def _take(
        self, step: StructuralStep, found: list[CompressionCandidate], formats: Sequence[NumberFormat], settings: Search
    ) -> bool:
        """Make what the step gives, which joins ``found``, and stand there if it is good enough and worth it."""
        steps = (*self.chain, step)
        made = [self.make((*steps, Fp32(method="fp32")))]
        if made[0].refused is None:
            for each in self._promising(formats):
                if self._over(settings):
                    break
                made += self._quantised(steps, each)
        found += made
        if any(self.good_enough(candidate) for candidate in made) and self._smaller(made):
            self.chain = steps
            return True
        return False

    def _nearly(self, found: Sequence[CompressionCandidate]) -> bool:
        """Whether one has lost more than is allowed, but not much more: a longer recovery may bring it back."""
        allowed = _SECOND_CHANCE * self.limits.max_quality_loss
        losses = [each.loss(self.reference)[0] for each in found if each.quality is not None]
        return bool(losses) and self.limits.max_quality_loss < min(losses) <= allowed

    def _smaller(self, found: Sequence[CompressionCandidate]) -> bool:
        """Whether these are smaller or faster than what was made of the form before, by more than noise."""
        before = [each for each in self.candidates.values() if each.refused is None and self._steps(each) == self.chain]
        now = [each for each in found if each.refused is None]
        size, earlier = (min(each.bytes for each in some) for some in (now, before))
        fast, slow = (min(each.latency.p50_ms for each in some if each.latency) for some in (now, before))
        return size < (1 - _LEAST_GAIN) * earlier or fast < (1 - _LEAST_GAIN) * slow

    def _steps(self, candidate: CompressionCandidate) -> tuple[StructuralStep, ...]:
        return structural_steps(self.recipes[candidate.name])

    def _promising(self, formats: Sequence[NumberFormat]) -> list[NumberFormat]:
        """The formats that added most so far, on average; those never tried come first."""
        earned = {each: self.earned.get(recipe_name((each,)), []) for each in formats}
        return sorted(formats, key=lambda each: -float(np.mean(earned[each] or [inf])))[:_PROMISING]

    def _quantised(self, steps: tuple[StructuralStep, ...], chosen: NumberFormat) -> list[CompressionCandidate]:
        """The form in this format, and, where that alone loses too much, with its most sensitive layers in float32."""
        plain = self.make((*steps, chosen))
        base = self.make((*steps, Fp32(method="fp32")))
        if not isinstance(chosen, DynamicInt8 | StaticInt8) or self.good_enough(plain) or not self.good_enough(base):
            return [plain]
        kept = self._most_sensitive(steps, chosen)
        return [plain, self.make((*steps, chosen.model_copy(update={"keep": kept})))] if kept else [plain]

    # ----------------------------------------------------------------- sensitivity

    def _arms(self, settings: Search) -> list[_Arm]:
        """One arm per kind of structural step that applies, with what it promises."""
        form = self.subject.form
        if form is None:
            return []
        feed = self._probe_feed(form)
        found = []
        for method in (each for each in settings.steps if each in _STRUCTURAL):
            step = _plain(method, _FIRST_RATIO)
            if layers(step, form, feed) and (probed := self._probe(step, "", form, feed)) is not None:
                saved = probed.parameters_saved / _parameters(form) + probed.operations_saved
                found.append(_Arm(method, saved / (probed.difference + 1e-6)))
        return found

    def _step(self, arm: _Arm, settings: Search) -> StructuralStep | None:
        """The arm's step from where the search stands: the more a layer changes the answers, the less of it goes.

        A layer's ratio lies between half and one and a half of the mean, by its rank among the layers. None where the
        step does not apply any more.
        """
        form = self.workshop.form(self.chain)
        assert form is not None  # or there would be no arm
        feed = self._probe_feed(form)
        plain = _plain(arm.method, arm.ratio).model_copy(update={"recover_epochs": settings.recover_epochs})
        known = layers(plain, form, feed)
        if not known:
            return None
        changes = self._changes(plain, known, form, feed, settings) if arm.method in _BY_LAYER else {}
        if len(changes) < 2:
            return plain
        ranked = sorted(changes, key=lambda layer: changes[layer])
        spread = np.linspace(1.5, 0.5, len(ranked))
        ratios = {layer: round(min(0.95, arm.ratio * float(by)), 3) for layer, by in zip(ranked, spread, strict=True)}
        return plain.model_copy(update={"ratios": ratios})

    def _changes(
        self, step: StructuralStep, known: Sequence[str], form: Form, feed: Feed, settings: Search
    ) -> dict[str, float]:
        """What the step on each layer alone does to the answers; nothing where there is no time to find out."""
        found = {}
        for layer in known:
            if self.probing > _PROBE_SHARE * settings.time.total_seconds():
                return {}
            ratios = {each: step.ratio * (each == layer) for each in known}
            probed = self._probe(step.model_copy(update={"ratios": ratios}), layer, form, feed)
            if probed is not None:
                found[layer] = probed.difference
        return found

    def _probe(self, step: StructuralStep, layer: str, form: Form, feed: Feed) -> LayerSensitivity | None:
        """Change of the answers before any recovery, and parameters saved; None where the step does not apply."""
        start = time.monotonic()
        try:
            smaller = restructure(step, form, feed)
        except ExportError:
            return None
        softmax, now = self.subject.softmax or self.subject.logits, self._probe_feed(smaller)
        change = run_torch(smaller.module, now, softmax=softmax) - run_torch(form.module, feed, softmax=softmax)
        found = LayerSensitivity(
            step=step.method,
            layer=layer,
            difference=float(np.abs(change).mean()),
            parameters_saved=max(0, _parameters(form) - _parameters(smaller)),
            operations_saved=min(1.0, max(0.0, 1 - operations(smaller.module, now) / operations(form.module, feed))),
        )
        self.sensitivity.append(found)
        self.probing += time.monotonic() - start
        return found

    def _probe_feed(self, form: Form) -> Feed:
        return evenly_spaced(self.subject.calibration(form.columns), _PROBE_ROWS)

    def _most_sensitive(self, steps: tuple[StructuralStep, ...], chosen: DynamicInt8 | StaticInt8) -> tuple[str, ...]:
        """A quarter of the layers that the format touches: those that alone change the answers most."""
        graph = self.workshop.graph(steps)
        form = self.workshop.form(steps)
        feed = self.subject.calibration(None if form is None else form.columns)
        few = evenly_spaced(feed, _PROBE_ROWS)
        try:
            changes = layer_changes(graph, chosen, few, self.subject.probabilities)
        except ExportError:  # the format does not take this graph at all
            return ()
        for layer, change in changes.items():
            self.sensitivity.append(
                LayerSensitivity(step=chosen.method, layer=layer, difference=change, parameters_saved=0)
            )
        ordered = sorted(changes, key=lambda layer: -changes[layer])
        return tuple(ordered[: max(1, len(ordered) // 4)]) if len(ordered) > 1 else ()

    def _premake(self, arm: _Arm, arms: Sequence[_Arm], settings: Search) -> None:
        """Let the workers make the form of this step, of half of it, and of what may come next, all at once."""
        if self.workers is None:
            return
        others = sorted((each for each in arms if each is not arm and not each.exhausted), key=lambda each: each.pulls)
        halved = replace(arm, ratio=arm.ratio / 2)
        likely = [step for each in (arm, *others, halved) if (step := self._step(each, settings)) is not None]
        list(self.workers.map(_make_form, [(*self.chain, step) for step in likely[: settings.parallel]]))

    # ----------------------------------------------------------------- what it found

    def frontier(self, stopped: str) -> Frontier:
        """What is left, its best measured once more in turns with one another."""
        again = self.workshop.remeasured(frontier(self.candidates.values()))
        candidates = tuple(again.get(name, candidate) for name, candidate in self.candidates.items())
        best = frontier(again.values())
        chosen, fits, why = choose(candidates, candidates[0], self.limits)
        self.workshop.save_form(self.recipes[chosen.name], self.workshop.folder / FORM)
        return Frontier(
            reference=candidates[0],
            candidates=candidates,
            best=tuple(each.name for each in best),
            hypervolume=hypervolume(figures(each, candidates[0]) for each in best),
            chosen=chosen.name,
            fits=fits,
            why=why,
            limits=self.limits,
            sensitivity=tuple(self.sensitivity),
            stopped=stopped,
            measure=self.subject.measure,
            notes=self.subject.notes,
        )


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


_STRUCTURAL = tuple(
    method for kind in get_args(StructuralStep) for method in get_args(kind.model_fields["method"].annotation)
)


def _plain(method: str, ratio: float) -> StructuralStep:
    step: StructuralStep = TypeAdapter[Any](Step).validate_python({"method": method, "ratio": ratio})
    return step


def _parameters(form: Form) -> int:
    return sum(parameter.numel() for parameter in form.module.parameters())
