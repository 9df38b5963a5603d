"""Expectations of our own, for any Great Expectations suite: importing this module registers them.

Drift as an expectation: a column's distribution must stay near that of a reference profile.

>>> from data_checks.expectations import ExpectColumnDriftToBeBelow
>>> from stillhouse.config import NumberColumn
>>> from stillhouse.drift import scan
>>> reference = scan.profile_frame(january, {"temp": NumberColumn(type="number")})    # once, small, without the rows
>>> Path("january.arrow").write_bytes(reference.to_bytes())
>>> batch.validate(ExpectColumnDriftToBeBelow(column="temp", reference="january.arrow", psi=0.25, effect=0.5))

The measures are those of :mod:`stillhouse.drift.distances`; effect sizes, so that a limit means the same for a
thousand rows and for a million.
"""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from great_expectations.compatibility import pydantic
from great_expectations.core.suite_parameters import SuiteParameterDict
from great_expectations.exceptions import InvalidExpectationConfigurationError
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.core import ExpectColumnPairValuesToBeInSet
from great_expectations.expectations.expectation import ColumnAggregateExpectation, render_suite_parameter_string
from great_expectations.expectations.metrics.column_aggregate_metric_provider import (
    ColumnAggregateMetricProvider,
    column_aggregate_value,
)
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnPairMapMetricProvider,
    column_pair_condition_partial,
)
from great_expectations.render import (
    CollapseContent,
    LegacyDiagnosticRendererType,
    LegacyRendererType,
    RenderedStringTemplateContent,
    RenderedTableContent,
)
from great_expectations.render.renderer.renderer import renderer
from great_expectations.render.renderer_configuration import RendererConfiguration, RendererValueType

from stillhouse.config import CategoryColumn, NumberColumn
from stillhouse.drift import distances, scan
from stillhouse.drift.profile import NumberProfile, Profile
from stillhouse.errors import SchemaError

__all__ = ["ExpectColumnDriftToBeBelow", "ExpectColumnPairValuesToBeAmong", "inline"]

Parameter = SuiteParameterDict[str, Any]

MEASURES = {"psi": "PSI", "ks": "KS", "effect": "effect", "wasserstein": "Wasserstein-1"}

INLINE = "base64:"


def inline(reference: Profile, *columns: str) -> str:
    """A profile, or some of its columns, as text for ``reference=``: the suite then needs no file beside it."""
    kept = {name: reference.columns[name] for name in columns or reference.columns}
    return INLINE + base64.b64encode(Profile(rows=reference.rows, columns=kept).to_bytes()).decode("ascii")


@functools.lru_cache(maxsize=256)
def _loaded(reference: str, changed: int | None) -> Profile:
    if reference.startswith(INLINE):
        return Profile.from_bytes(base64.b64decode(reference.removeprefix(INLINE)))
    return Profile.from_bytes(Path(reference).read_bytes())


def _reference(reference: str) -> Profile:
    """Read once; a file that has changed is read again."""
    return _loaded(reference, None if reference.startswith(INLINE) else Path(reference).stat().st_mtime_ns)


def _measured(values: pd.Series[Any], reference: str) -> dict[str, Any]:
    """The column's drift as JSON, and the bins that its PSI is summed over."""
    name, whole = str(values.name), _reference(reference)
    if name not in whole.columns:
        raise SchemaError(f"the reference profile has no column {name!r}; it has: {', '.join(whole.columns)}")
    old = whole.columns[name]
    column = NumberColumn(type="number") if isinstance(old, NumberProfile) else CategoryColumn(type="category")
    new = scan.profile_frame(values.to_frame(), {name: column}, like=whole).columns[name]
    labels, before, now = distances.count_psi_bins(old, new)
    drift = distances.measure_column(name, old, new).model_dump(mode="json", exclude={"column", "limit"})
    shares = zip(labels, before / max(before.sum(), 1), now / max(now.sum(), 1), strict=True)
    return drift | {"bins": [[label, float(was), float(is_)] for label, was, is_ in shares]}


class ColumnDriftMetric(ColumnAggregateMetricProvider):
    """A column against a reference profile; missing values are part of the distribution."""

    metric_name = "column.drift"
    value_keys = ("reference",)

    @column_aggregate_value(engine=PandasExecutionEngine, filter_column_isnull=False)
    def _pandas(cls, column: pd.Series[Any], reference: str, **_: Any) -> dict[str, Any]:  # noqa: N805
        return _measured(column, reference)


class ExpectColumnDriftToBeBelow(ColumnAggregateExpectation):
    """Expect a column's distribution to stay near a reference profile's.

    Args:
        column (str): the column; the reference must have one of this name.
        reference (str): path of a file with ``Profile.to_bytes()``, or the text that :func:`inline` makes of one.

    Other Parameters (at least one; a value must be at most its limit):
        psi (float): population stability index; bins are the reference's deciles, or its categories (≥ 0).
        ks (float): Kolmogorov–Smirnov distance; numbers only (0…1).
        effect (float): numbers: Wasserstein-1 in standard deviations of the reference; categories: total
            variation (≥ 0).
        wasserstein (float): Wasserstein-1 in the column's unit; numbers only (≥ 0).

    Returns:
        An ExpectationValidationResult. ``result["observed_value"]`` is the PSI, ``result["details"]`` has all
        measures, ``unseen`` and ``vanished`` categories, the shares missing, and ``bins``: label, reference
        share, share.

    Supported data sources: pandas.
    """

    reference: str | Parameter = pydantic.Field(
        description="path of a file with Profile.to_bytes(), or the text that inline() makes of a profile"
    )
    psi: float | Parameter | None = pydantic.Field(default=None, description="largest PSI")
    ks: float | Parameter | None = pydantic.Field(default=None, description="largest KS distance")
    effect: float | Parameter | None = pydantic.Field(default=None, description="largest effect size")
    wasserstein: float | Parameter | None = pydantic.Field(
        default=None, description="largest Wasserstein-1 distance, in the column's unit"
    )

    library_metadata: ClassVar[dict[str, Any]] = {
        "maturity": "production",
        "tags": ["drift", "column aggregate expectation", "distributional expectation"],
        "contributors": ["stillhouse"],
        "requirements": ["stillhouse"],
    }
    _library_metadata = library_metadata

    metric_dependencies = ("column.drift",)
    success_keys = ("reference", *MEASURES)
    args_keys = ("column", "reference", *MEASURES)

    class Config:
        title = "Expect column drift to be below"

    @pydantic.root_validator
    def _expects_something(cls, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N805
        if all(values.get(measure) is None for measure in MEASURES):
            raise ValueError(f"give a limit: {', '.join(MEASURES)}")
        return values

    def _validate(
        self, metrics: dict[str, Any], runtime_configuration: Any = None, execution_engine: Any = None
    ) -> dict[str, Any]:
        details = metrics["column.drift"]
        limits = _limits(self._get_success_kwargs())
        if absent := [m for m in limits if details[m] is None]:
            raise InvalidExpectationConfigurationError(
                f"a category has no {' and no '.join(absent)}: use psi or effect"
            )
        beyond = [measure for measure, limit in limits.items() if details[measure] > limit]
        return {
            "success": not beyond,
            "result": {"observed_value": details["psi"], "details": details | {"limits": limits, "beyond": beyond}},
        }

    # ----------------------------------------------------------------- Data Docs

    @classmethod
    def _prescriptive_template(cls, renderer_configuration: RendererConfiguration[Any]) -> RendererConfiguration[Any]:
        for name in ("column", *MEASURES):
            kind = RendererValueType.STRING if name == "column" else RendererValueType.NUMBER
            renderer_configuration.add_param(name=name, param_type=kind)
        params = renderer_configuration.params
        given = [measure for measure in MEASURES if getattr(params, measure, None)]
        subject = "$column must" if renderer_configuration.include_column_name else "Must"
        renderer_configuration.template_str = f"{subject} {_wish(given)}"
        return renderer_configuration

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)
    @render_suite_parameter_string
    def _prescriptive_renderer(
        cls, configuration: Any = None, result: Any = None, runtime_configuration: Any = None, **_: Any
    ) -> list[RenderedStringTemplateContent]:
        runtime_configuration = runtime_configuration or {}
        limits = _limits(configuration.kwargs)
        with_column = runtime_configuration.get("include_column_name") is not False
        params = {"column": configuration.kwargs["column"]} | {m: f"{limit:.3g}" for m, limit in limits.items()}
        template = {
            "template": f"{'$column must' if with_column else 'must'} {_wish(list(limits))}",
            "params": params,
            "styling": runtime_configuration.get("styling"),
        }
        return [RenderedStringTemplateContent(content_block_type="string_template", string_template=template)]

    @classmethod
    @renderer(renderer_type=LegacyDiagnosticRendererType.OBSERVED_VALUE)
    def _diagnostic_observed_value_renderer(  # type: ignore[override]  # other renderers return content, too
        cls, configuration: Any = None, result: Any = None, runtime_configuration: Any = None, **_: Any
    ) -> RenderedStringTemplateContent | str:
        details = ((result.result if result is not None else None) or {}).get("details")
        return _text(observed_in_words(details)) if details else "--"

    @classmethod
    @renderer(renderer_type=LegacyDiagnosticRendererType.UNEXPECTED_TABLE)
    def _diagnostic_unexpected_table_renderer(
        cls, configuration: Any = None, result: Any = None, runtime_configuration: Any = None, **_: Any
    ) -> list[RenderedTableContent | CollapseContent] | None:
        """Where a column drifted: its bins, with the share of the rows then and now."""
        details = ((result.result if result is not None else None) or {}).get("details")
        if not details or result.success:
            return None
        bins = [bin for bin in details["bins"] if bin[1] or bin[2]]
        rows = [[_text(label), f"{was:.1%}", f"{now:.1%}"] for label, was, now in bins[:MOST_SHOWN]]
        if len(bins) > MOST_SHOWN:
            rows.append([f"and {len(bins) - MOST_SHOWN} more", "", ""])
        return [
            RenderedTableContent(
                content_block_type="table",
                table=rows,
                header_row=["Values", "Reference", "Window"],
                styling={"body": {"classes": ["table-bordered", "table-sm", "mt-3", "w-auto"]}},
            )
        ]


MOST_SHOWN = 30


def _text(text: str) -> RenderedStringTemplateContent:
    """Text from the data, which a page must not take for HTML."""
    template = {"template": "$text", "params": {"text": text}, "styling": {"default": {"classes": []}}}
    return RenderedStringTemplateContent(content_block_type="string_template", string_template=template)


def _limits(kwargs: Any) -> dict[str, float]:
    return {measure: kwargs[measure] for measure in MEASURES if kwargs.get(measure) is not None}


def _wish(measures: list[str]) -> str:
    return "be distributed as in the reference: " + ", ".join(f"{MEASURES[m]} at most ${m}" for m in measures) + "."


def observed_in_words(details: dict[str, Any]) -> str:
    """A result's ``details`` in one line, such as ``PSI 0.31, KS 0.12, effect 0.4; missing 2.0% → 9.0%``."""
    measures = [f"{word} {details[measure]:.3g}" for measure, word in MEASURES.items() if details[measure] is not None]
    notes = [", ".join(measures)]
    if abs(details["missing_current"] - details["missing_reference"]) >= 0.005:
        notes.append(f"missing {details['missing_reference']:.1%} → {details['missing_current']:.1%}")
    for kind in ("unseen", "vanished"):
        if values := details[kind]:
            notes.append(f"{kind}: {', '.join(values[:5])}" + (f" and {len(values) - 5} more" if values[5:] else ""))
    return "; ".join(notes)


# --------------------------------------------------------------------------- pairs


class PairsAmongMetric(ColumnPairMapMetricProvider):
    """As ``column_pair_values.in_set``, which goes through the rows one by one."""

    condition_metric_name = "column_pair_values.among"
    condition_value_keys = ("value_pairs_set",)
    condition_domain_keys = ("batch_id", "table", "column_A", "column_B", "row_condition", "ignore_row_if")

    @column_pair_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column_A: pd.Series[Any], column_B: pd.Series[Any], **kwargs: Any) -> pd.Series[bool]:  # noqa: N803, N805
        pairs = pd.MultiIndex.from_arrays([column_A.astype(object), column_B.astype(object)])
        allowed = pd.MultiIndex.from_tuples([tuple(pair) for pair in kwargs["value_pairs_set"]])
        return pd.Series(pairs.isin(allowed), index=column_A.index)


class ExpectColumnPairValuesToBeAmong(ExpectColumnPairValuesToBeInSet):
    """``ExpectColumnPairValuesToBeInSet`` for pandas, for whole columns at once."""

    map_metric = "column_pair_values.among"

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)
    @render_suite_parameter_string
    def _prescriptive_renderer(
        cls, configuration: Any = None, result: Any = None, runtime_configuration: Any = None, **_: Any
    ) -> list[RenderedStringTemplateContent]:
        kwargs = configuration.kwargs
        pairs = {f"pair_{i}": " / ".join(map(str, pair)) for i, pair in enumerate(kwargs["value_pairs_set"])}
        shown = [*pairs][:MOST_SHOWN]
        more = f" and {len(pairs) - MOST_SHOWN} more" if len(pairs) > MOST_SHOWN else ""
        among = " ".join(f"${name}" for name in shown) + more
        template = {
            "template": f"Values in $column_A / $column_B must be among {among}.",
            "params": {"column_A": kwargs["column_A"], "column_B": kwargs["column_B"]} | pairs,
            "styling": (runtime_configuration or {}).get("styling"),
        }
        return [RenderedStringTemplateContent(content_block_type="string_template", string_template=template)]
