"""Write the measured figures into docs/benchmarks.md and README.md: ``python -m benchmarks.pages``.

No figure is typed by hand; a test compares both pages with what this module makes of ``results/*.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["benchmarks_page", "readme_section", "readme_with"]

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- figures: benchmarks/results/loop.json -->", "<!-- /figures -->"

MEANING = {
    "gain_over_never_refreshed": "mean weekly AUC of the champion above the never-refreshed student's",
    "loss_to_teacher": "mean weekly AUC of its teacher above the champion's",
    "auc_champion": "mean weekly AUC of the champion, mean over the seeds (a plain spike, refitted monthly: .713)",
    "auc_static_over_spike": "mean weekly AUC of the never-refreshed student (a plain spike: .684)",
    "teacher_bytes_per_champion_byte": "teacher's bytes on disk per byte of the champion, smallest over the refreshes",
    "refused_by_the_gate": "challengers refused by the gate in the year",
    "minutes": "minutes that the demo takes, once installed",
    "start_to_first_row_s": "seconds from the start of the demo to its first week's row",
    "week_without_refresh_s": "seconds of a week without a refresh: lived, checked, audited, measured, decided, shown",
    "refresh_s": "seconds of a refresh, through Prefect, MLflow and Great Expectations",
    "peak_memory_mib": "largest resident memory of the demo's processes together (MiB)",
    "refresh_added_share": "what Prefect, MLflow and Great Expectations add to a refresh, share of the engine's time",
    "watch_added_s": "seconds that they add to a watch, warm process",
    "mlflow_ms_per_artifact": "MLflow's time in a refresh per artifact that it writes (ms)",
    "watch_old_over_young": "a watch of an agent with ten times the history, in watches of the young one; no upkeep",
    "refresh_old_over_young": "a refresh likewise",
    "cpu_vs_evidently_ks": "evidently's CPU time (KS preset) per second of ours, 1 M × 20 columns, both tables read",
    "cpu_vs_evidently_with_reference_profile": "the same with the reference's profile at hand",
    "cpu_vs_scipy_ks_w1": "CPU time of scipy's KS and Wasserstein per second of ours",
    "memory_vs_evidently": "our peak memory per byte of evidently's",
    "peak_mb_10m_rows": "peak memory of a scan of 10 M × 20 columns (MB)",
    "ks_error": "largest error of a Kolmogorov–Smirnov distance against the exact one",
    "psi_error_percent": "largest error of a PSI (% of the exact value, or of 0.001 where that is larger)",
    "w1_error_percent": "largest error of a Wasserstein-1 distance against the exact one (%)",
    "false_alarms_10k_looks": "share of runs of 10,000 looks without drift that alarm, with our defaults",
    **{
        f"false_alarms_per_promised_{world}_{units}": f"false alarms per promised one, all processes together ({what}, "
        f"{units} unit{'s' * (units > 1)} a step; the worst such world; 95 % interval)"
        for units in (1, 12)
        for world, what in (("independent", "independent losses"), ("autoregressive", "step means AR(1) up to .5"))
    },
    "delay_vs_best_calibrated_peer": "our delay in looks, relative to the best calibrated peer's (median of scenarios)",
    "delay_vs_best_peer_told_our_losses": "the same where the peers are told our losses instead of errors",
    **{
        f"{name}_{stream}": f"{meaning} ({what})"
        for stream, what in (
            ("sea", "made: a threshold moves"),
            ("loans", "made: the rule changes"),
            ("sentences", "CLINC150, staged"),
        )
        for name, meaning in (
            ("fewer_calls_percent", "teacher calls saved against asking about every row (%)"),
            ("points_below_always", "prequential accuracy below asking about every row (points)"),
            ("calls_per_call_of_margin", "our teacher calls per call of margin sampling at the same accuracy"),
        )
    },
    "forgetting_of_fine_tuning": "what an update forgets, as a share of what fine-tuning forgets (hardest data set)",
    "points_below_joint": "quality of an update below joint training on all rows ever (hardest data set)",
    "cpu_vs_redistil": "CPU time of a redistillation per second of an update (hardest data set)",
    "gain_of_weights": "quality of an update above the same with equal weights (hardest data set)",
    "gain_over_redistil": "quality of an update above redistillation on a sliding window (hardest data set)",
    "seconds_of_an_update": "CPU seconds of an update (hardest data set)",
    "alarms_on_benign_shift": "share of runs with a benign shift that alarm",
    "nats_below_the_equal_mean": "log loss of four teachers' mean below that at equal weights (nats a row)",
    "nats_above_the_best_mixture_in_hindsight": "the same above the best constant mixture, chosen in hindsight",
    "nats_that_slices_cost": "the same with weights by airport above the same without",
    "staged_nats_above_the_mean_without_the_bad_one": "after a teacher turned round (staged): above the others' mean",
    "staged_days_to_a_tenth_of_the_weight": "days until it counts for a tenth of what it did; outcomes take one",
    "wins_over_kd_dkd_std": "data sets, of five, where our mean score over seeds is above tuned KD, decoupled KD and "
    "standardised logits (lowest: where all three intervals are above 0; highest: where none is below)",
    "data_sets_below_plain_kd": "data sets where our score is below tuned KD's beyond noise (95 % interval)",
    "peer_points_dominated": "share of the peers' models that one of ours beats in quality, bytes and latency at once",
    "saturating_configurations_caught": "share of the int8 models computing wrongly here that are named",
    "encoder_bytes_ratio": "float32 bytes per byte of the chosen form of MiniLM on CLINC150",
    "encoder_p50_ratio": "float32 median latency relative to its own",
    "encoder_test_loss": "test accuracy that it loses",
    **{
        f"{name}_hypervolume_ratio": f"our hypervolume relative to the best peer's ({what})"
        for name, what in (
            ("encoder", "MiniLM on CLINC150"),
            ("flights", "the flights student"),
            ("digits", "pictures of digits"),
        )
    },
    "kills": "processes killed with SIGKILL at random moments, among writers, flushers and maintainers",
    "acknowledged_events_lost": "acknowledged events that a table lacks at the end",
    "events_doubled": "events of which a table has two rows",
    "pinned_windows_changed": "windows pinned on the way whose rows are others at the end",
    "day_at_three_years": "time to open the tables and read the last day, at three years relative to three months "
    "(compacted)",
    "bytes_of_a_day_at_three_years": "bytes that this reads, likewise",
    "peak_mb_fill": "peak memory of appending 10 M observations and outcomes, day by day (MiB)",
    "peak_mb_day": "peak memory of reading single days (MiB)",
    "peak_mb_sample": "peak memory of a sample of 50,000 from all, with its outcomes (MiB)",
    "peak_mb_newest": "peak memory of the newest 50,000 (MiB)",
    "peak_per_table_in_memory": "the largest of these, but for single days, relative to all rows in one Arrow table",
    **{
        f"{name}{suffix}": f"{meaning} ({where})"
        for name, meaning in (
            (
                "requests_vs_mlflow",
                "our requests a second, all recorded, per request of MLflow, one row",
            ),
            ("rows_vs_mlflow", "our rows a second per row of MLflow's, 64 rows a request"),
            ("p99_vs_mlflow", "our p99 relative to MLflow's, one row a request"),
            ("p99_of_64_rows_vs_mlflow", "our p99 relative to MLflow's, 64 rows a request"),
            ("requests_vs_litserve", "our requests a second per request of LitServe, which records nothing, one row"),
        )
        for suffix, where in (
            ("", "the worst of these"),
            ("_1", "1 connection"),
            ("_8", "8 connections"),
            ("_64", "64 connections"),
        )
    },
    **{
        f"{champion}_{way}_{size}_ms": f"{meaning} ({what}, {rows}; ms a row)"
        for champion, what in (("flights", "the flights student"), ("sentences", "a student of texts, 150 actions"))
        for size, rows in ((1, "one row"), (64, "64 rows at once"), (900, "900 rows at once"))
        for way, meaning in (
            ("encode", "to encode a mapping"),
            ("mapping", "to decide about a mapping, above bare ONNX Runtime"),
            ("frame", "to decide about a frame, output frame included, above bare ONNX Runtime"),
            ("pyfunc", "`pyfunc.predict` above that of an empty model with the same signature"),
        )
    },
    "swaps_taken_up": "champions promoted under load that decided soon after",
    "swaps_failed": "requests that failed during these swaps",
    "swaps_unrecorded": "of these, decisions that were acknowledged and are not in the knowledge base",
    "swaps_recorded_twice": "and that are there twice",
    "promoted_at_the_margin": "share of challengers promoted that are worse by exactly the margin, in the kind of "
    "window where it is largest; the goal is the stated 5 % and the noise of the draws",
    "promoted_at_twice": "the same, worse by twice the margin",
    "as_good_promoted": "challengers as good as the champion promoted: 1,000 rows, 5 actions, 5 % disagreement",
    "better_promoted": "challengers better by the margin promoted, likewise",
    "gap_closed_text": "share of the gap between outcomes alone and the teacher that the student closes on CLINC150",
}


def benchmarks_page() -> str:
    """docs/benchmarks.md."""
    parts = ["# Benchmarks", "Made by `python -m benchmarks.pages` from `benchmarks/results/*.json`; do not edit."]
    for file in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        parts += [f"## {file.stem}", f"{result['claim'].capitalize()}.", circumstances(result), table(result)]
    return "\n\n".join(parts) + "\n"


def circumstances(result: dict[str, Any]) -> str:
    """With what arguments, at which commit, on what machine under what load, and with which libraries."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    arguments = result.get("arguments")
    command = " ".join([result["command"], *(arguments or ())])
    flags = f" ({', '.join(machine['flags'])})" if machine["flags"] else ""
    notes = [] if arguments is not None else ["its arguments and the load were not recorded"]
    if load := machine.get("load"):
        notes.append(f"load {load['start']:.1f} at the start and {load['end']:.1f} at the end")
    if changed := result.get("changed_during_run"):
        notes.append(f"changed during the run: {', '.join(changed)}")
    return (
        f"`{command}` at commit {result['commit']}, on {machine['cores']} cores of {machine['cpu']}{flags}; "
        f"{'; '.join(notes)}; {versions}."
    )


def readme_section() -> str:
    """What README.md says between its markers."""
    result = json.loads((ROOT / "benchmarks" / "results" / "loop.json").read_text(encoding="utf-8"))
    seeds = len(result["detail"]["seeds"])
    return (
        f"{BEGIN}\nMeasured by `{result['command']}`: the year played under {seeds} seeds; "
        f"median, lowest and highest.\n\n"
        f"{table(result)}\n{END}"
    )


def readme_with(section: str, readme: str) -> str:
    """``readme`` with ``section`` between its markers."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + section + after


def table(result: dict[str, Any]) -> str:
    """One row per goal."""
    rows = ["| what | goal | measured | lowest – highest | |", "|---|---|---|---|---|"]
    for goal in result["goals"]:
        sign = "≥" if goal["better"] == "higher" else "≤"
        rows.append(
            f"| {MEANING.get(goal['name'], goal['name'])} | {sign} {goal['goal']:g} | {goal['measured']:.4g} "
            f"| {goal['low']:.4g} – {goal['high']:.4g} | {'met' if goal['met'] else '**missed**'} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Write both pages."""
    (ROOT / "docs" / "benchmarks.md").write_text(benchmarks_page(), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(readme_with(readme_section(), readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
