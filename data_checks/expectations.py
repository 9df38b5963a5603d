"""Two additional expectations for Great Expectations; importing this module registers them.

``ExpectColumnDriftToBeBelow`` requires that a column's distribution stays near that of a reference profile.

>>> from data_checks.validate import batch_of
>>> january, july = (pd.DataFrame({"temp": [first + i / 10 for i in range(100)]}) for first in (0, 20))
>>> reference = inline(scan.profile_frame(january, {"temp": NumberColumn(type="number")}))
>>> expectation = ExpectColumnDriftToBeBelow(column="temp", reference=reference, psi=0.25, effect=0.5)
>>> batch_of(january).validate(expectation).success, batch_of(july).validate(expectation).success
(True, False)

The measures are those of :mod:`stillhouse.drift.distances`. They are effect sizes: a limit has the same meaning for a
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

INLINE_PREFIX = "base64:"


def inline(reference: Profile, *columns: str) -> str:
    """Return a profile, or some of its columns, as text for ``reference=``, so that the suite needs no other file."""
    profiles = {name: reference.columns[name] for name in columns or reference.columns}
    return INLINE_PREFIX + base64.b64encode(Profile(rows=reference.rows, columns=profiles).to_bytes()).decode("ascii")


@functools.lru_cache(maxsize=256)
def _load(reference: str, modified_ns: int | None) -> Profile:
    if reference.startswith(INLINE_PREFIX):
        return Profile.from_bytes(base64.b64decode(reference.removeprefix(INLINE_PREFIX)))
    return Profile.from_bytes(Path(reference).read_bytes())


def _load_cached(reference: str) -> Profile:
    """Return the profile from the cache; a changed file is read again."""
    return _load(reference, None if reference.startswith(INLINE_PREFIX) else Path(reference).stat().st_mtime_ns)


def _measure(values: pd.Series[Any], reference: str) -> dict[str, Any]:
    """Return the column's drift as JSON values, with the bins of its PSI."""
    name, profile = str(values.name), _load_cached(reference)
    if name not in profile.columns:
        raise SchemaError(f"the reference profile has no column {name!r}; it has: {', '.join(profile.columns)}")
    old = profile.columns[name]
    column = NumberColumn(type="number") if isinstance(old, NumberProfile) else CategoryColumn(type="category")
    new = scan.profile_frame(values.to_frame(), {name: column}, like=profile).columns[name]
    labels, old_counts, new_counts = distances.count_psi_bins(old, new)
    drift = distances.measure_column(name, old, new).model_dump(mode="json", exclude={"column", "limit"})
    old_shares, new_shares = (counts / max(counts.sum(), 1) for counts in (old_counts, new_counts))
    bins = zip(labels, old_shares, new_shares, strict=True)
    return drift | {"bins": [[label, float(old_share), float(new_share)] for label, old_share, new_share in bins]}


class ColumnDriftMetric(ColumnAggregateMetricProvider):
    """Drift of a column from a reference profile; missing values are part of the distribution."""

    metric_name = "column.drift"
    value_keys = ("reference",)

    @column_aggregate_value(engine=PandasExecutionEngine, filter_column_isnull=False)
    def _pandas(cls, column: pd.Series[Any], reference: str, **_: Any) -> dict[str, Any]:  # noqa: N805
        return _measure(column, reference)


class ExpectColumnDriftToBeBelow(ColumnAggregateExpectation):
    """Expect a column's distribution to stay near a reference profile's.

    Args:
        column (str): name of the column, which the reference must contain.
        reference (str): path of a file with ``Profile.to_bytes()``, or the text that :func:`inline` returns.

    Other Parameters (limits; give at least one):
        psi (float): population stability index over the reference's deciles or categories (≥ 0).
        ks (float): Kolmogorov–Smirnov distance; numbers only (0…1).
        effect (float): numbers: Wasserstein-1 in standard deviations of the reference; categories: total
            variation (≥ 0).
        wasserstein (float): Wasserstein-1 in the column's unit; numbers only (≥ 0).

    Returns:
        An ExpectationValidationResult. ``result["observed_value"]`` is the PSI. ``result["details"]`` has all measures,
        the ``unseen`` and ``vanished`` categories, the shares of missing values, and ``bins``: label, share in the
        reference, share in the window.

    Supported data sources: pandas.
    """

    reference: str | Parameter = pydantic.Field(
        description="path of a file with Profile.to_bytes(), or the text that inline() returns"
    )
    psi: float | Parameter | None = pydantic.Field(default=None, description="limit of the PSI")
    ks: float | Parameter | None = pydantic.Field(default=None, description="limit of the KS distance")
    effect: float | Parameter | None = pydantic.Field(default=None, description="limit of the effect size")
    wasserstein: float | Parameter | None = pydantic.Field(
        default=None, description="limit of the Wasserstein-1 distance, in the column's unit"
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
    def _require_limit(cls, values: dict[str, Any]) -> dict[str, Any]:  # noqa: N805
        if all(values.get(measure) is None for measure in MEASURES):
            raise ValueError(f"give a limit: {', '.join(MEASURES)}")
        return values

    def _validate(
        self, metrics: dict[str, Any], runtime_configuration: Any = None, execution_engine: Any = None
    ) -> dict[str, Any]:
        details = metrics["column.drift"]
        limits = _limits(self._get_success_kwargs())
        if undefined := [m for m in limits if details[m] is None]:
            raise InvalidExpectationConfigurationError(
                f"a category has no {' and no '.join(undefined)}: use psi or effect"
            )
        exceeded = [measure for measure, limit in limits.items() if details[measure] > limit]
        return {
            "success": not exceeded,
            "result": {"observed_value": details["psi"], "details": details | {"limits": limits, "beyond": exceeded}},
        }

    # ----------------------------------------------------------------- Data Docs

    @classmethod
    def _prescriptive_template(cls, renderer_configuration: RendererConfiguration[Any]) -> RendererConfiguration[Any]:
        for name in ("column", *MEASURES):
            kind = RendererValueType.STRING if name == "column" else RendererValueType.NUMBER
            renderer_configuration.add_param(name=name, param_type=kind)
        params = renderer_configuration.params
        measures = [measure for measure in MEASURES if getattr(params, measure, None)]
        subject = "$column must" if renderer_configuration.include_column_name else "Must"
        renderer_configuration.template_str = f"{subject} {_describe_limits(measures)}"
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
            "template": f"{'$column must' if with_column else 'must'} {_describe_limits(list(limits))}",
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
        return _text(describe_observed(details)) if details else "--"

    @classmethod
    @renderer(renderer_type=LegacyDiagnosticRendererType.UNEXPECTED_TABLE)
    def _diagnostic_unexpected_table_renderer(
        cls, configuration: Any = None, result: Any = None, runtime_configuration: Any = None, **_: Any
    ) -> list[RenderedTableContent | CollapseContent] | None:
        """Return, for a drifted column, its bins with the shares of rows in the reference and in the window."""
        details = ((result.result if result is not None else None) or {}).get("details")
        if not details or result.success:
            return None
        bins = [bin for bin in details["bins"] if bin[1] or bin[2]]
        rows = [
            [_text(label), f"{old_share:.1%}", f"{new_share:.1%}"] for label, old_share, new_share in bins[:MAX_SHOWN]
        ]
        if len(bins) > MAX_SHOWN:
            rows.append([f"and {len(bins) - MAX_SHOWN} more", "", ""])
        return [
            RenderedTableContent(
                content_block_type="table",
                table=rows,
                header_row=["Values", "Reference", "Window"],
                styling={"body": {"classes": ["table-bordered", "table-sm", "mt-3", "w-auto"]}},
            )
        ]


MAX_SHOWN = 30


def _text(text: str) -> RenderedStringTemplateContent:
    """Mark text from the data as plain text, so that a page does not interpret it as HTML."""
    template = {"template": "$text", "params": {"text": text}, "styling": {"default": {"classes": []}}}
    return RenderedStringTemplateContent(content_block_type="string_template", string_template=template)


def _limits(kwargs: Any) -> dict[str, float]:
    return {measure: kwargs[measure] for measure in MEASURES if kwargs.get(measure) is not None}


def _describe_limits(measures: list[str]) -> str:
    return "be distributed as in the reference: " + ", ".join(f"{MEASURES[m]} at most ${m}" for m in measures) + "."


def describe_observed(details: dict[str, Any]) -> str:
    """Describe a result's ``details`` in one line, such as ``PSI 0.31, KS 0.12, effect 0.4; missing 2.0% → 9.0%``."""
    measures = [f"{name} {details[measure]:.3g}" for measure, name in MEASURES.items() if details[measure] is not None]
    notes = [", ".join(measures)]
    if abs(details["missing_current"] - details["missing_reference"]) >= 0.005:
        notes.append(f"missing {details['missing_reference']:.1%} → {details['missing_current']:.1%}")
    for kind in ("unseen", "vanished"):
        if values := details[kind]:
            notes.append(f"{kind}: {', '.join(values[:5])}" + (f" and {len(values) - 5} more" if values[5:] else ""))
    return "; ".join(notes)


# --------------------------------------------------------------------------- pairs


class PairsAmongMetric(ColumnPairMapMetricProvider):
    """The vectorized form of ``column_pair_values.in_set``, which loops over the rows."""

    condition_metric_name = "column_pair_values.among"
    condition_value_keys = ("value_pairs_set",)
    condition_domain_keys = ("batch_id", "table", "column_A", "column_B", "row_condition", "ignore_row_if")

    @column_pair_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column_A: pd.Series[Any], column_B: pd.Series[Any], **kwargs: Any) -> pd.Series[bool]:  # noqa: N803, N805
        pairs = pd.MultiIndex.from_arrays([column_A.astype(object), column_B.astype(object)])
        allowed = pd.MultiIndex.from_tuples([tuple(pair) for pair in kwargs["value_pairs_set"]])
        return pd.Series(pairs.isin(allowed), index=column_A.index)


class ExpectColumnPairValuesToBeAmong(ExpectColumnPairValuesToBeInSet):
    """The vectorized form of ``ExpectColumnPairValuesToBeInSet``, for pandas."""

    map_metric = "column_pair_values.among"

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)
    @render_suite_parameter_string
    def _prescriptive_renderer(
        cls, configuration: Any = None, result: Any = None, runtime_configuration: Any = None, **_: Any
    ) -> list[RenderedStringTemplateContent]:
        kwargs = configuration.kwargs
        pairs = {f"pair_{i}": " / ".join(map(str, pair)) for i, pair in enumerate(kwargs["value_pairs_set"])}
        shown = [*pairs][:MAX_SHOWN]
        more = f" and {len(pairs) - MAX_SHOWN} more" if len(pairs) > MAX_SHOWN else ""
        among = " ".join(f"${name}" for name in shown) + more
        template = {
            "template": f"Values in $column_A / $column_B must be among {among}.",
            "params": {"column_A": kwargs["column_A"], "column_B": kwargs["column_B"]} | pairs,
            "styling": (runtime_configuration or {}).get("styling"),
        }
        return [RenderedStringTemplateContent(content_block_type="string_template", string_template=template)]
