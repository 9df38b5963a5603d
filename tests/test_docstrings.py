"""The examples in docstrings run, and every entry point has one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest

import stillhouse
from stillhouse.knowledge import KnowledgeBase

COPIED_OR_STANDALONE = {"stillhouse.registry.pyfunc_variant"}
"""Modules that are not imported as part of the package."""

NEED_A_CHAMPION = ("stillhouse.refreshing.run", "stillhouse.watching.run")
"""Their examples run for the agent ``toy``, which has a champion and some days of history."""

MODULES = sorted(
    {module.name for module in pkgutil.walk_packages(stillhouse.__path__, "stillhouse.")}
    - COPIED_OR_STANDALONE
    - set(NEED_A_CHAMPION)
)

ENTRY_POINTS = [
    "stillhouse",
    "stillhouse.actions:align_actions",
    "stillhouse.agreement",
    "stillhouse.agreement.audits:AuditDraw",
    "stillhouse.agreement.describe:describe_promise",
    "stillhouse.agreement.keeper:PromiseKeeper",
    "stillhouse.agreement.new_answers:find_new_answers",
    "stillhouse.agreement.novelty:NoveltyGuard",
    "stillhouse.agreement.thresholds:rows_needed",
    "stillhouse.artifacts:require_own_tensors",
    "stillhouse.compress.export:export_onnx",
    "stillhouse.compress.foreign.layers:layers_from_export",
    "stillhouse.compress.foreign.target:target_from_onnx",
    "stillhouse.compress.search.greedy:search",
    "stillhouse.compress.search.pareto:pareto_front",
    "stillhouse.compress.steps.kinds:apply_step",
    "stillhouse.compress.target:CompressionTarget",
    "stillhouse.compress.variants:target_from_student",
    "stillhouse.config",
    "stillhouse.config.agent:AgentConfig",
    "stillhouse.config.base:parse_duration",
    "stillhouse.config.compression:recipe_name",
    "stillhouse.config.contract:Observations",
    "stillhouse.config.teachers:leaves",
    "stillhouse.config.watching:Watch",
    "stillhouse.data_contract:check",
    "stillhouse.distill.controller:Controller",
    "stillhouse.distill.grow:extend_columns",
    "stillhouse.distill.select:inclusion_probabilities",
    "stillhouse.distill.split:mask_validation_rows",
    "stillhouse.distill.students.tabular:TabularStudent",
    "stillhouse.distill.train:distil",
    "stillhouse.distill.training_set:TrainingSet",
    "stillhouse.distilling:distil",
    "stillhouse.drift.audit:draw_rows",
    "stillhouse.drift.calibrate:estimate_loss_baseline",
    "stillhouse.drift.calibrate:screen",
    "stillhouse.drift.decide:decide_from_evidence",
    "stillhouse.drift.distances:compare_profiles",
    "stillhouse.drift.distances:psi",
    "stillhouse.drift.evidence:start",
    "stillhouse.drift.outputs:output_frame",
    "stillhouse.drift.profile",
    "stillhouse.drift.scan:profile_frame",
    "stillhouse.drift.scan:scan",
    "stillhouse.evaluate.bounds:bound_shift",
    "stillhouse.evaluate.comparing:compare_models",
    "stillhouse.evaluate.gate:first_look_confidence",
    "stillhouse.evaluate.power:describe_power",
    "stillhouse.evaluate.scorecard:measure_disagreement",
    "stillhouse.evaluate.scorecard:measure_quality",
    "stillhouse.files:write_atomic",
    "stillhouse.frames:read_numbers",
    "stillhouse.gateway.access:Access",
    "stillhouse.gateway.protocols",
    "stillhouse.gateway.protocols.closed:read_object",
    "stillhouse.gateway.settings:GatewaySettings",
    "stillhouse.gateway.tasks:make_task",
    "stillhouse.gateway.upstream:UpstreamAddress",
    "stillhouse.gateway.upstream:normalise_path",
    "stillhouse.knowledge.answer_cache:AnswerCache",
    "stillhouse.knowledge.base:KnowledgeBase",
    "stillhouse.knowledge.log_files:LogFile",
    "stillhouse.knowledge.log_files:read_csv",
    "stillhouse.knowledge.spool:Spool",
    "stillhouse.knowledge.upkeep:versions_in_use",
    "stillhouse.knowledge.windows:sample_window",
    "stillhouse.latency:measure_cpu_time",
    "stillhouse.latency:measure_latency",
    "stillhouse.parts:TextEncoderState",
    "stillhouse.parts:resolve",
    "stillhouse.payoff.champion_choice:choose_champion",
    "stillhouse.payoff.evidence:compare_members",
    "stillhouse.payoff.scores:score_block",
    "stillhouse.records",
    "stillhouse.refreshing.run:refresh",
    "stillhouse.registry.cache:Cache",
    "stillhouse.registry.connection:without_credentials",
    "stillhouse.registry.metrics:metric_name",
    "stillhouse.registry.registry:Registry",
    "stillhouse.registry.schemas:cast_column",
    "stillhouse.runtime.agent:Agent",
    "stillhouse.runtime.background:PeriodicTask",
    "stillhouse.runtime.cascade:LatestAnswers",
    "stillhouse.runtime.contract_warnings:ContractChecker",
    "stillhouse.runtime.day_budget:DayBudget",
    "stillhouse.runtime.ids:DecisionIds",
    "stillhouse.runtime.rows:ObservationSchema",
    "stillhouse.runtime.status:ProblemLog",
    "stillhouse.serving.archive:pack",
    "stillhouse.serving.http:HttpError",
    "stillhouse.serving.http:parse_query",
    "stillhouse.serving.metrics:Counts",
    "stillhouse.serving.openapi:build_openapi",
    "stillhouse.serving.reports:write_report",
    "stillhouse.serving.settings:Settings",
    "stillhouse.serving.settings:parse_tokens",
    "stillhouse.signing",
    "stillhouse.stats:brier",
    "stillhouse.teachers.answers:Allowance",
    "stillhouse.teachers.answers:wrap_predict",
    "stillhouse.teachers.ensemble:Ensemble",
    "stillhouse.teachers.labeling:ask",
    "stillhouse.teachers.mixture_weights:learn",
    "stillhouse.teachers.mixture_weights:start_weights",
    "stillhouse.teachers.prompts:fill_prompt",
    "stillhouse.teachers.replies:parse_action",
    "stillhouse.threads:limit_threads",
    "stillhouse.values:number_of",
    "stillhouse.values:text_of",
    "stillhouse.variant:Encoder",
    "stillhouse.variant:Variant",
    "stillhouse.verifying:digests",
    "stillhouse.watching.run:watch",
]
"""What a reader of each package meets first."""


@pytest.mark.parametrize("name", ["stillhouse", *MODULES])
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path))
    monkeypatch.delenv("STILLHOUSE_AGENTS", raising=False)
    assert failed_examples(name) == 0


@pytest.mark.parametrize("name", NEED_A_CHAMPION)
def test_the_examples_of_the_loop_run(name: str, toy_base: Callable[[int], KnowledgeBase]) -> None:
    toy_base(24)
    assert failed_examples(name) == 0


def failed_examples(name: str) -> int:
    """The number of examples of a module that do not give what they show."""
    module = importlib.import_module(name)
    return doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).failed


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_has_an_example(name: str) -> None:
    module, _, attribute = name.partition(":")
    value: object = importlib.import_module(module)
    for part in filter(None, attribute.split(".")):
        value = getattr(value, part)
    assert ">>> " in (value.__doc__ or ""), f"{name} has no example in its docstring"
