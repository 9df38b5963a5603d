"""Write docs/benchmarks.md and the table of README.md from the result files: ``python -m benchmarks.pages``.

Every figure comes from ``results/*.json``: the tables from a file's ``goals``, the comparisons above them from its
``detail``. A test compares both pages with what this module writes.
"""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["FINDINGS", "MEANING", "METHOD", "benchmarks_page", "readme_section", "readme_with"]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- figures: benchmarks/results/loop.json -->", "<!-- /figures -->"
WIDTH = 118

Detail = Mapping[str, Any]

INTRODUCTION = """\
# Benchmarks

This page lists what stillhouse was measured at, for engineers who want to judge these figures or repeat them.
`python -m benchmarks.pages` generates it from the files in `benchmarks/results/`; do not edit it by hand.

Repeat a benchmark from the root of a clone, after `make install`:

```sh
.venv/bin/python -m benchmarks.gate --quick    # a small version, in seconds; it writes no file
make bench NAME=gate                           # the full version; it writes benchmarks/results/gate.json
.venv/bin/python -m benchmarks.pages           # writes this page and the table in README.md
```

Every benchmark has a section: what the figures show, how they were measured, what the peers got, the command with its
commit and machine, and a table with one row per goal.

- *Goal*: the limit to reach. ≥ means that higher is better, ≤ that lower is better.
- *Measured*: the median over the repeats, rounds or seeds, unless the row says otherwise; *lowest* and *highest* are
  over the same repeats.
- A goal that the measured value does not reach is **missed**. It stays in the file and on this page; a claim with
  missed goals is not shown to be true.
- `+` after a commit: the working tree had uncommitted changes. Newer results are refused in that case.
- One *point* is 0.01 of AUC or accuracy. All figures are from machines with two cores; nothing uses a GPU.
"""

# --------------------------------------------------------------------------- meaning of each row

_STREAMS = {
    "sea": "SEA, a synthetic stream whose threshold moves twice",
    "loans": "loans, a synthetic stream whose rule changes twice",
    "sentences": "sentences of CLINC150, staged shifts",
}
_CONNECTIONS = {"": "worst of 1, 8 and 64 connections", "_1": "1 connection", "_8": "8 connections"}
_CONNECTIONS |= {"_64": "64 connections"}
_STUDENTS = {"encoder": "MiniLM on CLINC150", "flights": "flights student", "digits": "digits network"}
_TERMS = {
    "decay": "without learning what age costs",
    "change": "without the search for sudden changes",
    "newest": "without the newest member as evidence",
    "learn": "without learning from earlier trainings",
    "cheap": "without reuse and recalibration",
}
_WORST_SET = "data set where it is worst"

_AGENTS = {
    "shelf": "films for a user, ranked",
    "cartpole": "a policy that acts",
    "memory": "a teacher that remembers",
    "rules": "rules that people edit",
    "table": "support tickets in a table",
}

MEANING = {
    # agents
    **{
        f"{agent}_{name}": f"{meaning} ({kind})"
        for agent, kind in _AGENTS.items()
        for name, meaning in (
            (
                "gain",
                "weekly quality of the champion − that of the never-refreshed student, mean over the weeks, as a share "
                "of the measure's range (measured: the lower end of the 95 % interval over the seeds, Student's t)",
            ),
            (
                "held_weeks",
                "most weeks in a row before which neither the agent nor the best schedule in hindsight responded "
                "(median over the seeds)",
            ),
            ("seconds", "duration of the demo, after installation (s)"),
        )
    },
    # age
    "watch_old_over_young": "time of a watch with ten times the history / time of the same watch with one; no upkeep "
    "ran",
    "refresh_old_over_young": "time of a refresh with ten times the history / time of the same refresh with one",
    # compression
    "peer_points_dominated": "share of the peers' models that a model of stillhouse equals or beats in test quality, "
    "bytes and median latency at once (all three students)",
    "saturating_configurations_caught": "share of the int8 models of ONNX Runtime that saturate on this processor and "
    "that stillhouse names as saturating",
    "encoder_bytes_ratio": "bytes of float32 MiniLM / bytes of the model that the search chose (CLINC150)",
    "encoder_p50_ratio": "median latency of float32 MiniLM / median latency of the chosen model (one row, one thread)",
    "encoder_test_loss": "test accuracy of float32 MiniLM − test accuracy of the chosen model",
    **{
        f"{name}_hypervolume_ratio": f"hypervolume of stillhouse's models / hypervolume of the best peer's ({student})"
        for name, student in _STUDENTS.items()
    },
    # deciding
    **{
        f"{champion}_{way}_{size}_ms": f"{meaning} ({student}, {rows}; ms per row)"
        for champion, student in (("flights", "flights student"), ("sentences", "text student, 150 actions"))
        for size, rows in ((1, "one row"), (64, "64 rows at once"), (900, "900 rows at once"))
        for way, meaning in (
            ("encode", "time to encode mappings into a matrix"),
            ("mapping", "time to decide about mappings − time of the ONNX graph alone"),
            ("frame", "time to decide about a pandas frame − time of the ONNX graph alone"),
            ("pyfunc", "time of `pyfunc.predict` − time of the same call on an empty model"),
        )
    },
    # device
    **{
        f"{side}_{measure}": f"{meaning} ({what})"
        for side, what in (
            ("device", "`examples/device.py`, signature verified"),
            ("page", "`examples/web` in Chromium, signature verified"),
        )
        for measure, meaning in (
            ("memory", "resident memory after the first decision / that of `mlflow.pyfunc`, in the same round"),
            (
                "first_decision",
                "time from the start to the first decision / that of `mlflow.pyfunc`, in the same round",
            ),
        )
    },
    "largest_difference": "largest absolute difference of a probability of device or page from that of `mlflow.pyfunc`",
    # distillation
    "wins_over_kd_dkd_std": "number of the five data sets where the mean score of stillhouse is above those of KD, "
    "decoupled KD and standardised logits (lowest: all three 95 % intervals above 0; highest: none below 0)",
    "data_sets_below_plain_kd": "number of the five data sets where the score of stillhouse is below that of tuned "
    "plain KD beyond noise (95 % interval)",
    "gap_closed_text": "share of the accuracy gap between training on labels alone and the teacher that the student of "
    "stillhouse closes (CLINC150)",
    # door
    "added_p50_ms_whole": "median of the paired differences, with the door − without it, of a whole answer (ms)",
    "added_p50_ms_stream": "the same of a streamed answer, to its last event (ms)",
    "requests_without_a_count": "requests that were passed on and are neither recorded nor counted as not recorded",
    # drift_detection
    "false_alarms_10k_looks": "share of runs of 10,000 looks without drift in which stillhouse alarms, with default "
    "settings (mean over the five data sets)",
    "delay_vs_best_calibrated_peer": "detection delay of stillhouse / delay of the fastest calibrated detector, which "
    "gets the student's errors (median over the scenarios)",
    "delay_vs_best_peer_told_our_losses": "the same ratio where the detectors get the losses that stillhouse "
    "accumulates (median over the scenarios)",
    "alarms_on_benign_shift": "share of runs with a benign shift of two columns in which stillhouse alarms (mean over "
    "the five data sets)",
    # drift_scan
    "cpu_vs_evidently_ks": "CPU time of evidently (KS preset) / CPU time of stillhouse; both read both files "
    "(1 M × 20 columns)",
    "cpu_vs_evidently_with_reference_profile": "the same ratio where stillhouse has a stored profile of the reference",
    "cpu_vs_scipy_ks_w1": "CPU time of SciPy (KS and Wasserstein-1 of the numbers) / CPU time of stillhouse",
    "memory_vs_evidently": "peak memory of stillhouse / peak memory of evidently",
    "peak_mb_10m_rows": "peak memory of one scan of 10 M × 20 columns (MiB)",
    "ks_error": "absolute error of the Kolmogorov–Smirnov distance (measured: the largest over the columns)",
    "psi_error_percent": "error of PSI in % of the exact value, or of 0.001 where that is larger (measured: the "
    "largest over the columns)",
    "w1_error_percent": "error of the Wasserstein-1 distance in % of the exact value (measured: the largest over the "
    "columns)",
    # durability
    "kills": "processes killed with SIGKILL at random moments (writers, flushers and maintainers)",
    "acknowledged_events_lost": "acknowledged events without a row in a table at the end",
    "events_doubled": "events with more than one row in a table at the end",
    "pinned_windows_changed": "windows pinned during the run that return other rows at the end",
    # false_alarms
    **{
        f"false_alarms_per_promised_{world}_{units}": f"false alarms of all evidence processes together / promised "
        f"false alarms ({what}; {units} unit{'s' * (units > 1)} of evidence per step; mean and 95 % interval of the "
        "worst such world)"
        for units in (1, 12)
        for world, what in (
            ("independent", "independent losses"),
            ("autoregressive", "step means follow an AR(1) process with coefficient up to 0.5"),
        )
    },
    # forgetting
    "forgetting_of_fine_tuning": f"forgetting of an update / forgetting of fine-tuning ({_WORST_SET})",
    "points_below_joint": "quality of joint training on all rows ever − quality of an update, in AUC or accuracy "
    f"({_WORST_SET})",
    "cpu_vs_redistil": f"CPU time of a redistillation / CPU time of an update ({_WORST_SET})",
    "gain_of_weights": "quality of an update − quality of the same update with equal weights of the remembered rows "
    f"({_WORST_SET})",
    "gain_over_redistil": "quality of an update − quality of a redistillation from random weights on a window of two "
    f"phases ({_WORST_SET})",
    "seconds_of_an_update": f"CPU time of an update (s; {_WORST_SET})",
    # gate
    "promoted_at_the_margin": "share of challengers promoted that are worse by exactly the margin (kind of window with "
    "the largest share; 95 % interval; the goal is the stated error of 5 % plus the noise of the simulation)",
    "promoted_at_twice": "the same share for challengers that are worse by twice the margin",
    "as_good_promoted": "share of challengers promoted that are as good as the champion (1,000 rows, 5 actions, 5 % "
    "disagreement; 95 % interval)",
    "pool_reigns_with_a_member_worse_by_the_margin": "pool: reigns in which a member worse by the margin is promoted, "
    "worst kind of blocks, share",
    "pool_sum_of_losses_in_50_reigns_in_margins": "pool: sum of true losses over 50 reigns, worst kind (margins)",
    "pool_blocks_until_a_gain_of_0_margins_is_promoted": "pool: blocks until an equal member is promoted, median",
    "pool_blocks_until_a_gain_of_1_margins_is_promoted": "pool: blocks until one a margin better is promoted, median",
    "pool_blocks_until_a_gain_of_3_margins_is_promoted": "pool: blocks until one better by three is promoted, median",
    "pool_outcomes_until_95_percent_of_bad_promotions_are_undone": "pool: outcomes until 95 % of promotions "
    "that are worse by three margins are undone",
    "pool_good_promotions_undone": "pool: promotions no worse that are undone, share",
    "better_promoted": "share of challengers promoted that are better by the margin (same kind of window)",
    # knowledge_scale
    "day_at_three_years": "time to open the tables and read the last day at three years / the same at three months "
    "(after compaction; lowest and highest: quartiles)",
    "bytes_of_a_day_at_three_years": "bytes read for the last day at three years / the same at three months (after "
    "compaction)",
    "peak_mb_fill": "peak memory while 10 M observations and their outcomes are appended day by day (MiB)",
    "peak_mb_day": "peak memory while single days are read (MiB)",
    "peak_mb_sample": "peak memory while 50,000 rows with outcomes are sampled from all (MiB)",
    "peak_mb_newest": "peak memory while the newest 50,000 rows are read (MiB)",
    "peak_per_table_in_memory": "peak memory of appending, sampling and reading the newest rows / size of all rows "
    "as one Arrow table (measured: the largest of the three)",
    # loop
    "gain_over_never_refreshed": "weekly AUC of the champion − weekly AUC of the first student, which is never "
    "refreshed (mean over the weeks)",
    "loss_to_teacher": "weekly AUC of the champion's teacher − weekly AUC of the champion (mean over the weeks)",
    "auc_champion": "weekly AUC of the champion (mean over the weeks; measured: the mean over the seeds)",
    "auc_static_over_spike": "weekly AUC of the first student, never refreshed (mean over the weeks; the goal is the "
    "AUC of an early prototype)",
    "teacher_bytes_per_champion_byte": "bytes of the teacher on disk / bytes of the champion (smallest over the "
    "refreshes)",
    "refused_by_the_gate": "challengers that the gate refused during the year",
    "minutes": "duration of the demo, after installation (min)",
    "start_to_first_row_s": "time from the start of the demo to the row of its first week (s)",
    "week_without_refresh_s": "time of a week without a refresh: decisions, data checks, audit, drift measurement, "
    "verdict and row of the table (s)",
    "refresh_s": "time of a refresh as a Prefect flow with MLflow and Great Expectations (s)",
    "peak_memory_mib": "peak resident memory of all processes of the demo together (MiB)",
    # memory_scale
    "student_ms_growth": "time of one decision of the student with 100,000 memories / the same with 1,000",
    "student_bytes_growth": "bytes of the student with 100,000 memories / the same with 1,000",
    "student_loss": "accuracy of the memory − accuracy of its student in the week before the change (100,000 memories)",
    "memory_lag_days": "days after the change until the accuracy of the memory is within 0.03 of that before "
    "(100,000 memories)",
    # overhead
    "refresh_added_share": "time that Prefect, MLflow and Great Expectations add to a refresh / time of the engine "
    "alone",
    "watch_added_s": "time that the three add to a watch in a warm process (s)",
    "mlflow_ms_per_artifact": "time in MLflow during a refresh / number of artifact files that it writes (ms)",
    # recent_delays
    "gain_without_columns": "mean weekly AUC of the refreshed flights student − that of the never-refreshed one; "
    "columns of the agent file",
    "gain_with_columns": "the same difference with columns of recent delays",
    # small_data
    **{
        f"{measure}_gain_{rows}_rows": f"{meaning}; {rows:,} rows (mean over streams, range over seeds)"
        for rows in (800, 2000, 5000)
        for measure, meaning in (
            ("auc", "AUC of our student − AUC of the plain script's"),
            ("log_loss", "log loss of the plain script's student − log loss of ours (nats)"),
        )
    },
    # router
    "banking77_coverage_ratio": "BANKING77: our coverage / that of the best peer within 3 MB and 0.3 ms that kept its "
    "own promise in the stage (median, lowest and highest over the stages; means over seeds)",
    "clinc150_coverage_ratio": "the same of CLINC150",
    "breaches_p_value": "probability of as many breaches of ours or more, over seeds and stages, if each stage is one "
    "with probability 0.05 (exact binomial test)",
    "student_megabytes": "size of our variants (MB)",
    "student_ms": "time of one decision of ours (ms)",
    "clinc150_calls_saved": "CLINC150: share of calls saved from the first champion on",
    "clinc150_points_lost": "CLINC150: points lost against people's labels, compared with always asking",
    "clinc150_points_lost_never_asking": "CLINC150: points that the first champion loses if nothing is ever asked",
    "clinc150_accuracy_share": "CLINC150: accuracy of the student on the test set / that of its teacher",
    # serving
    **{
        f"{name}{suffix}": f"{meaning} ({connections})"
        for name, meaning in (
            ("requests_vs_mlflow", "requests per second: stillhouse (native protocol) / MLflow, one row per request"),
            ("rows_vs_mlflow", "rows per second: stillhouse (native protocol) / MLflow, 64 rows per request"),
            ("p99_vs_mlflow", "p99 latency: stillhouse (native protocol) / MLflow, one row per request"),
            ("p99_of_64_rows_vs_mlflow", "p99 latency: stillhouse (native protocol) / MLflow, 64 rows per request"),
            (
                "requests_vs_litserve",
                "requests per second: stillhouse (native protocol) / LitServe, which records nothing, one row per "
                "request",
            ),
        )
        for suffix, connections in _CONNECTIONS.items()
    },
    "swaps_taken_up": "champions promoted under load that decide within 5.5 s",
    "swaps_failed": "requests that failed during these swaps",
    "swaps_unrecorded": "acknowledged decisions of these requests that the knowledge base lacks",
    "swaps_recorded_twice": "decisions that the knowledge base has twice",
    # streams
    "ratio_to_best_calendar": "our total / total of the best calendar in hindsight (measured: the largest over streams "
    "and exchange rates)",
    "ratio_to_oracle": "our total / total of the best schedule of trainings in hindsight (measured: the median over "
    "streams and exchange rates)",
    "nats_above_hardest_calendar": "our total − that of a calendar, a week, mean over streams and exchange rates (the "
    "calendar with the highest upper end; measured: that upper end of the 95 % interval)",
    "responses_without_gain": "share of our responses that lost or gained nothing until the next one (all streams, "
    "exchange rates and seeds; range over streams)",
    **{
        f"cost_without_{term}": f"ablation: mean ratio to the best calendar {what} − with it (mean and range over "
        "streams)"
        for term, what in _TERMS.items()
    },
    # teacher_cost
    **{
        f"{name}_{stream}": f"{meaning} ({what})"
        for stream, what in _STREAMS.items()
        for name, meaning in (
            ("fewer_calls_percent", "teacher calls that stillhouse saves against querying every row, in %"),
            (
                "points_below_always",
                "prequential accuracy of querying every row − that of stillhouse, in points",
            ),
            (
                "calls_per_call_of_margin",
                "teacher calls of stillhouse / teacher calls of margin sampling at the same accuracy",
            ),
        )
    },
    # teacher_weights
    "nats_below_the_equal_mean": "log loss of equal weights − log loss of the learned weights (nats per row)",
    "nats_above_the_best_mixture_in_hindsight": "log loss of the learned weights − log loss of the best constant "
    "mixture, chosen in hindsight (nats per row)",
    "nats_that_slices_cost": "log loss of the weights by airport − log loss of the weights without slices (nats per "
    "row)",
    "staged_nats_above_the_mean_without_the_bad_one": "after one teacher is inverted (staged): log loss of the learned "
    "weights − log loss of the equal mean of the other three (nats per row)",
    "staged_days_to_a_tenth_of_the_weight": "days until the weight of the inverted teacher is a tenth of its weight "
    "before; labels arrive after one day",
}

# --------------------------------------------------------------------------- method of each benchmark

METHOD = {
    "agents": """
        The demo of each small agent plays in a process and a store of its own, once per seed of its synthetic stream
        and of its training. (The films of `shelf` are real: there the seed is of the training alone.) All scores
        are of decisions made before their outcomes were known, in the measure that the agent file names, and paired by
        week. A replay of what the demo has stored then trains a student for each week and finds the best schedule of
        trainings in hindsight, at the exchange rate of the agent file: in the weeks before which it does not train, to
        hold is right. The agent responded before a week if the week before ended with another verdict than to hold, a
        gate, or another champion. There is no peer.
    """,
    "age": """
        The flights agent runs for half a year. A copy of its knowledge base gets nine more such half-years in front,
        in every table and in weekly commits. The same watch and the same refresh then run on copies of both,
        interleaved, in one warm process. Upkeep does not run on either side, and the number of models in MLflow is
        the same on both: its effect is not measured. There is no peer.
    """,
    "compression": """
        Three trained students are compressed: MiniLM fine-tuned on CLINC150, the student of the flights agent, and a
        small convolutional network for images of digits. Quality is accuracy, for flights AUC, on test rows that no
        choice has used; size is the model file; latency is that of one row on one thread, all models taking turns.
        The search of stillhouse has a budget of an eighth of the bytes and chooses on validation rows. The peers
        (ONNX Runtime, NNCF, Intel Neural Compressor, torch) quantise the same students at their defaults and at the
        best settings that their documentation names. A peer's model is *dominated* if one model of stillhouse is at
        least as good in quality, bytes and latency at once. The *hypervolume* is the share of the cube of quality,
        size and speed that the models of one side dominate.
    """,
    "deciding": """
        Two untrained students are exported (the latency does not depend on the weights): one of the shape of the
        flights agent's, and one that reads texts and has 150 actions. Each is called in every way that an application
        can call it, all ways taking turns, 2,000 times for one row and less often for 64 and 900 rows. A figure is a
        difference of two medians, divided by the rows: the way minus the ONNX graph on rows that are already encoded,
        or `pyfunc.predict` minus the same call on an empty model with the same signature. Lowest and highest are over
        five consecutive parts of the calls.
    """,
    "device": """
        One champion of the flights agent, made by the demo of a device, decides about one row on three sides, which
        start in turn and in alternating order: `examples/device.py` in an environment with numpy, onnxruntime and
        cryptography; `mlflow.pyfunc.load_model` on MLflow's files of the champion, then `predict` on a frame of one
        row; and `examples/web` in headless Chromium with an empty cache, served on loopback. Time runs from the start
        of the process, for the page from the navigation of a browser that is running already; memory is resident
        memory right after the decision. Of the page it is the memory of its process minus that of an empty page.
        Device and page verify the model's signature first, `mlflow.pyfunc` verifies none. Then all three decide about
        200 rows, one by one.
    """,
    "distillation": """
        Five real data sets (sentences of CLINC150, flights, images of digits, image segments, breast cancer), each
        with a large teacher that was fitted on other rows, and a small student. Teacher probabilities are known for
        all rows of the student, labels for 15 to 50 % of them. All methods share rows, initial weights, number of
        steps, optimiser and schedule. The peers are plain knowledge distillation (KD), decoupled KD and KD with
        standardised logits, each with the best of six settings by validation log loss; the first and the last agree
        with torchdistill's losses. The score is AUC for two actions and accuracy for more; intervals are 95 %
        (Student's t) of paired differences over the seeds.
    """,
    "door": """
        A scripted upstream on loopback answers each chat completion at once. `stillhouse serve --upstream` stands
        before it with its defaults: it passes each request on and records it. One client with a keep-alive connection
        to each asks both in turn with the same request, in an order that alternates, and checks that the answers are
        equal. A real upstream takes hundreds of times as long, so what is added is told in milliseconds, not as a
        ratio. There is no peer.
    """,
    "drift_detection": """
        Five data sets (SEA, RBF and Agrawal streams of river, digits, flights), each with a boosted teacher and a
        small student. A *look* is an hour with 200 new rows, of which 50 are labelled by the teacher or by their
        outcomes. From a known look on, 30 % or all of the rows change: their inputs, the frequency of a class, or the
        concept (with a teacher that knows it, and with one that does not). stillhouse runs with default settings;
        each evidence process has the whole budget, and steps count as independent, as they do for the peers. The
        peers (ADWIN, DDM, Page–Hinkley and KSWIN of river; CUSUM and the geometric moving average of frouros) are
        calibrated on runs without drift of their own to alarm in at most 1 % of runs of 10,000 looks. A scenario
        counts if the student's error rises by 0.02 or more and at least one method detects it within 300 looks.
    """,
    "drift_scan": """
        Two Parquet files with a million rows and twenty mixed columns; most columns of the second are slightly
        shifted. Each side runs in a child process, in turn. CPU time (user and system) runs from after the imports to
        the last distance and includes reading the files; memory is the peak resident memory of the process.
        stillhouse computes PSI, KS, Wasserstein-1 and effect size of all columns; evidently its KS preset, without
        the date column and with the figures of its report; SciPy KS and Wasserstein-1 of numbers and dates. Exact
        values are computed from all rows with NumPy and SciPy.
    """,
    "durability": """
        Three writers put events into their spools and note each event that the spool has acknowledged; two flushers
        move spools into the tables; a maintainer compacts and deletes files. A random one of them is killed with
        SIGKILL at a random moment and replaced, a hundred times. Then one flush follows and the tables are compared
        with the notes. A killed process is not a loss of power: that is not tested. There is no peer.
    """,
    "false_alarms": """
        A simulation: 1,000 agents per world with three evidence processes each, which start again after each alarm.
        Their losses have exactly the null mean, without tolerance, and one false alarm in 100
        steps is promised. *Before* is an earlier version: every process had a budget of its own, and steps counted as
        independent. There is no peer.
    """,
    "forgetting": """
        A student passes through phases that come back: flights by season (real drift), CLINC150 with two halves of
        its domains in turn, and digits in rotated positions (both staged). After each phase every method is scored on
        held-out rows of all phases so far. *Fine-tuning* has no replay buffer; *replay* remembers rows with equal
        weights; *update* is `refresh --mode update`, whose replay buffer is weighted; *redistil* trains a new student
        on a window of two phases; *redistil warm* does so from the old student's weights (`--mode redistil_warm`);
        *joint* trains on all rows ever. Quality is AUC for flights and accuracy otherwise, mean over the phases after
        the last one; forgetting is the best former score on a phase minus the present one (Chaudhry et al. 2018).
    """,
    "gate": """
        A simulation: 1,000 windows of each kind are drawn and judged by the gate's own code, with a margin of 0.02
        and a confidence of 95 %. Kinds: 20 to 6,000 independent rows with 5 or 77 actions; 10 to 300 clusters of 20
        rows; AUC of two actions. The challenger is worse by the margin, worse by twice the margin, as good, or better
        by the margin. There is no peer.
    """,
    "knowledge_scale": """
        Three years with nine thousand observations a day, each with an outcome, are appended day by day as a flush
        appends them. At ages from one month to three years the tables are kept once as appended and once compacted,
        as upkeep leaves them. One process then opens each in turn and reads the window of the last day, in 25 rounds.
        Memory is measured in one process per kind of work. There is no peer.
    """,
    "loop": """
        The demo plays the year of flights in a process and a store of its own, once per seed of teacher and student.
        All scores are of decisions made before their outcomes were known. The time of a refresh is the time of a week
        with one minus the median time of a week without. Memory is sampled four times a second. The never-refreshed
        student and the teacher are the two references; there is no peer.
    """,
    "memory_scale": """
        A stream of the example `memory` fills a knowledge base with as many memories as the size says; then a third of
        the kinds of cases is settled in another way. The first student is distilled before the change, the second one a
        week after it, both from what the memory says at that moment. Times are of one row with one thread, interleaved.
        Beside the memory stands a k-d tree of the same columns, which knows neither ages nor what was known when.
    """,
    "overhead": """
        The same watch and the same refresh of the flights agent run as plain calls of the engine and as Prefect
        flows, on copies of one store, interleaved, in one warm process. The engine logs to MLflow too: the time
        within calls of MLflow's client and in writing models in MLflow's format is subtracted from it, and the rest
        is *the engine alone*.
    """,
    "recent_delays": """
        Float32 students of the flights agent learn from labels alone: one is trained once, before week 8, the other
        anew every 8 weeks on the 12 weeks before. The score is the mean of the weekly AUC over weeks 8 to 51. The
        columns of recent delays are the shares of late departures among the flights of the last 7 and 28 days whose
        outcome was known before the row's own departure: of all flights, of the same airport and of the same
        carrier. The seeds differ in initial weights and batch order, not in rows. No teacher is asked, nothing is
        compressed or gated, and there is no peer.
    """,
    "router": """
        Two streams of sentences in staged drift, for there are no dates in either: BANKING77 with what a real
        language model answered to each sentence, and CLINC150 with its sentences out of scope and the cross-fitted
        answers of MiniLM with a linear head. In the first stage everything is asked. At the end of each stage a new
        model is fitted on what was answered so far; thresholds are fitted on rows that nothing learns from, and on a
        random audit. Two rules: *own* is the tool's, or, for a model that is no tool, the smallest threshold above
        which the held-out rows agree as promised; *ours* is the promise of stillhouse (98 %, at 95 % confidence) with
        its monitor and its guard against novel texts. A *breach* is a stage in which more than the promised share of
        the local answers disagree with the language model; jevstiller promises a share of all sentences instead, and
        is held to that. A peer counts in a stage if it keeps its own promise there, which only hindsight knows.
        Settings of all sides were chosen on sentences and seeds of no measured stream.
    """,
    "serving": """
        One flights champion is served by `stillhouse serve`, `mlflow models serve` and LitServe and gets the same
        rows from clients that keep their connections open; one server runs at a time, in turn, in five rounds. The
        goals compare stillhouse in its native protocol (`POST /v1/agents/flights/decisions`) with MLflow's `POST
        /invocations` (`dataframe_split`); LitServe gets the same JSON as MLflow. stillhouse records every decision
        and flushes it into the knowledge base during the measurement; the peers record nothing. Each peer runs at its
        defaults and with the best documented setting (two workers, batches), and the better of both counts. Then ten
        champions are promoted under load of eight connections.
    """,
    "small_data": """
        Four synthetic streams without drift (two and five actions, two of them with categories) are drawn at each
        size. The plain script fits LightGBM on the labelled rows and scikit-learn's `MLPClassifier` (64 and 32
        hidden units) on its decisions. Our student has the same widths and is trained as a refresh trains it, under
        an agent file that states nothing about the distillation: cross-fitted answers of the same LightGBM, synthetic
        rows, validation blocks and controller. All are scored on 3,000 later rows. No default was chosen on these
        seeds. Goals compare with the plain script; two variants of it are shown beside it.
    """,
    "streams": """
        On each stream one model a week is trained with our student, and one with that of a plain script (LightGBM or
        logistic regression on words, distilled to an MLP of the same widths); each is scored on all later weeks, so
        policies are played on the same models. A total is the log loss of each week (natural logarithm, probabilities
        of at least 0.01) summed over the weeks, plus exchange rate × what was spent: 1 for a training, 0.05 for a
        recalibration, 0.02 for the reuse of an older model. Calendars train every 1, 2, 3, 4, 6, 8, 13 or 26 weeks or
        never, with either student; the best is chosen for each stream and exchange rate by its mean over the seeds.
        The oracle knows all losses, but only trains: a policy that also recalibrates can be below it. Our policy knows
        outcomes when they are known. The interval of a difference resamples streams. No constant of the policy was
        chosen on these streams but flights and the router.
    """,
    "teacher_cost": """
        A student that has learned from a history decides about every row first; then a policy chooses the rows that
        the teacher is queried about, and the student learns from the answers. All policies share rows, learner and
        first student; each stream has two abrupt shifts. stillhouse queries a small audit, a larger one when the
        audit looks worse than usual, and a burst of chosen rows after an alarm of its evidence process. The peers
        query every row, no row, a random share, or the rows with the smallest margin.
    """,
    "teacher_weights": """
        Four fixed teachers of the flights of 2013: boosted trees and a logistic regression fitted on winter, boosted
        trees fitted on summer, and boosted trees fitted on JFK alone. From week 28 on, the weights of each morning
        follow from the outcomes known by then and are scored on that day's departures. The repeats are disjoint
        quarters of the departures, with other seeds of the trees. *Staged*: from week 40 on the summer teacher's
        probabilities are inverted.
    """,
}

# --------------------------------------------------------------------------- findings beyond the goals


def _agents(detail: Detail) -> list[str]:
    by_agent: dict[str, list[Detail]] = {}
    for record in detail["played"]:
        by_agent.setdefault(record["agent"], []).append(record)
    rows = [
        [
            agent,
            records[0]["summary"]["measure"],
            *(
                _mean_of([record["summary"][f"quality_{model}"] for record in records])
                for model in ("static", "champion", "teacher")
            ),
            *(
                f"{statistics.fmean(record['summary'][name] for record in records):.1f}"
                for name in ("refreshes", "promotions")
            ),
            f"{statistics.fmean(len(record['oracle']['trains_before']) for record in records):.1f}",
            f"{statistics.fmean(record['summary']['teacher_calls'] for record in records):,.0f}",
            f"{statistics.fmean(record['cpu_seconds'] for record in records):.0f}",
        ]
        for agent, records in by_agent.items()
    ]
    head = ["agent", "measure", "never refreshed", "champion", "teacher", "refreshes", "promoted"]
    return [
        "Means over the weeks and the seeds. The oracle's trainings are those of the best schedule in hindsight; CPU "
        "seconds are those of all processes of a demo:",
        _grid([*head, "trainings of the oracle", "rows asked of the teacher", "CPU s"], rows),
    ]


def _mean_of(values: Sequence[float | None]) -> str:
    """The mean of the values that were measured."""
    measured = [value for value in values if value is not None]
    return f"{statistics.fmean(measured):.4f}" if measured else "not measured"


def _age(detail: Detail) -> list[str]:
    young, old = detail["rows"]["observations"]
    times = {
        job: [statistics.median(pair[side]["seconds"] for pair in pairs) for side in ("young", "old")]
        for job, pairs in detail["pairs"].items()
    }
    return [
        f"The two knowledge bases hold {young:,} and {old:,} observations. Median times: a watch takes "
        f"{_both(times['watch'])} s, a refresh {_both(times['refresh'])} s. Each ratio below is of a pair of runs that "
        "follow one another, and the measured value is the median of these ratios. It is not the ratio of the median "
        "times, and may lie on the other side of 1."
    ]


def _compression(detail: Detail) -> list[str]:
    worlds = detail["worlds"]
    peers = ("ONNX Runtime", "NNCF", "Intel Neural Compressor", "torch")
    volumes = [
        [_STUDENTS[name], *(f"{world['hypervolume'][side]:.3f}" for side in ("ours", *peers, "float32"))]
        for name, world in worlds.items()
    ]
    chosen = [
        [
            _STUDENTS[name],
            f"{chosen_model['bytes']:,}",
            f"{chosen_model['bytes_ratio']:.1f}",
            f"{chosen_model['p50_ratio']:.2f}",
            f"{chosen_model['loss']:+.4f}",
        ]
        for name, chosen_model in ((name, world["chosen"]) for name, world in worlds.items())
    ]
    rest = [
        f"`{point}` ({_STUDENTS[name]})"
        for name, world in worlds.items()
        for point, dominated in world["dominated"].items()
        if not dominated
    ]
    failed = sum("error" in point for world in worlds.values() for point in world["points"])
    total = sum(len(world["dominated"]) for world in worlds.values())
    return [
        f"Hypervolumes; the float32 model alone has the last one. {failed} settings of the peers made no model; the "
        "file names them with the error.",
        _grid(["student", "stillhouse", *peers, "float32"], volumes),
        "The models that the search chose, beside their float32 student:",
        _grid(["student", "bytes", "times smaller", "times faster", "quality lost (test)"], chosen),
        f"Not dominated are {len(rest)} of the {total} models of the peers: {_listed(rest)}.",
    ]


def _deciding(detail: Detail) -> list[str]:
    graph_ms = {case: times["bare"] for case, times in detail["median_ms"].items()}
    return [
        f"The ONNX graph alone takes {graph_ms['flights, 1 rows']:.3f} ms for one row of the flights student and "
        f"{graph_ms['sentences, 1 rows']:.3f} ms for one text: for single rows, what is around the graph takes as "
        "long or longer."
    ]


def _device(detail: Detail) -> list[str]:
    names = {"device": "device", "page": "web page", "pyfunc": "`mlflow.pyfunc`"}
    median = detail["median"]
    rows = [[name, f"{median[side]['mib']:.0f}", f"{median[side]['seconds']:.2f}"] for side, name in names.items()]
    return [
        f"Medians over {len(detail['rounds'])} starts of each side. The page's process as a whole, most of it the "
        f"browser's, has {median['page']['whole_mib']:.0f} MiB:",
        _grid(["side", "memory (MiB)", "time to the first decision (s)"], rows),
    ]


_SETS = {"clinc150": "CLINC150", "flights": "flights", "digits": "digits", "image_segments": "image segments"}
_SETS |= {"breast_cancer": "breast cancer"}
_METHODS = {"hard": "labels only", "kd": "KD", "dkd": "decoupled KD", "standardised": "standardised KD"}
_METHODS |= {"ours, fixed": "stillhouse, fixed settings", "ours": "stillhouse", "teacher": "teacher"}


def _distillation(detail: Detail) -> list[str]:
    worlds = detail["worlds"]
    scores = [
        [_SETS[name], *(f"{statistics.mean(world['scores'][method]):.4f}" for method in _METHODS)]
        for name, world in worlds.items()
    ]
    trained = [method for method in _METHODS if method != "teacher"]
    log_losses = [
        [_SETS[name], *(f"{_mean(world['log_losses'], method):.3f}" for method in trained)]
        for name, world in worlds.items()
    ]
    sentences = worlds["clinc150"]["scores"]
    closed = {
        method: statistics.mean(
            (reached - hard) / (teacher - hard)
            for reached, hard, teacher in zip(sentences[method], sentences["hard"], sentences["teacher"], strict=True)
        )
        for method in ("kd", "ours")
    }
    better = [_SETS[name] for name, world in worlds.items() if world["ours_minus"]["kd"]["low"] > 0]
    earned = [_SETS[name] for name, world in worlds.items() if _beyond_noise(world["earned"]["controller"])]
    sharper = [name for name, world in worlds.items() if world["ours_minus_in_log_loss"]["ours, fixed"]["high"] < 0]
    losses = [
        f"{_SETS[name]} ({_mean(worlds[name]['log_losses'], 'ours, fixed'):.3f} without it, "
        f"{_mean(worlds[name]['log_losses'], 'ours'):.3f} with it)"
        for name in sharper
    ]
    verdict = ": it earns calibration and no accuracy" if sharper and not earned else ""
    synthetic = [_SETS[name] for name, world in worlds.items() if _beyond_noise(world["earned"]["made_up_rows"])]
    return [
        "Mean scores over the seeds:",
        _grid(["data set", *_METHODS.values()], scores),
        "Mean log losses (lower is better):",
        _grid(["data set", *(_METHODS[method] for method in trained)], log_losses),
        f"On CLINC150 tuned plain KD closes {closed['kd']:.3f} of the gap, stillhouse {closed['ours']:.3f} (mean "
        f"over the seeds). Beyond noise, stillhouse scores above tuned plain KD on {_listed(better) or 'no data set'}.",
        f"The controller, compared with the same training with fixed settings, changes the score beyond noise on "
        f"{_listed(earned) or 'no data set'}. It lowers the log loss beyond noise on "
        f"{_listed(losses) or 'no data set'}{verdict}. Synthetic rows change the score beyond noise on "
        f"{_listed(synthetic) or 'no data set'}.",
    ]


_LARGE_RISE, _LATE = 0.1, 10


def _door(detail: Detail) -> list[str]:
    pairs, load = detail["pairs"], detail["load"]
    rows = [
        [
            kind,
            *(
                f"{statistics.median(result[name] for result in pairs[kind]):.2f}"
                for name in ("direct_p50_ms", "door_p50_ms", "added_p50_ms", "added_p99_ms")
            ),
        ]
        for kind in pairs
    ]
    busiest = statistics.median(result["per_second"] for result in load["door, 8 connections"])
    records = detail["records"]
    return [
        "Milliseconds, median over the rounds:",
        _grid(["answer", "p50 without the door", "p50 with it", "p50 added", "p99 added"], rows),
        f"With eight connections, one worker passes on {busiest:,.0f} requests per second. Of all "
        f"{records['passed_on']:,} requests, {records.get('written', 0):,} were recorded and "
        f"{records.get('dropped', 0):,} dropped, because too many were unwritten.",
    ]


def _drift_detection(detail: Detail) -> list[str]:
    horizon = detail["sizes"]["horizon"]
    counted = [scenario for scenario in detail["scenarios"] if scenario["counted"]]
    slower = [scenario for scenario in counted if scenario["ratio"] > 1]
    large = [scenario for scenario in counted if scenario["rise"]["error"] >= _LARGE_RISE]
    small = [scenario for scenario in counted if scenario["rise"]["error"] < _LARGE_RISE]
    rows = [
        [
            scenario["world"],
            _changed(scenario["scenario"]),
            f"{scenario['rise']['error']:.3f}",
            _looks(scenario["delay"], horizon),
            f"{_looks(scenario['best_peer'][0], horizon)} ({scenario['best_peer'][1]})",
        ]
        for scenario in slower
    ]
    late = [scenario["ratio"] for scenario in counted if scenario["best_peer"][0] >= _LATE]
    defaults: dict[str, list[float]] = {}
    for method in detail["methods"]:
        if method["kind"] == "default" and not method["method"].startswith("ours"):
            defaults.setdefault(method["method"].removesuffix(", default"), []).append(
                method["null_alarms"] / method["null_runs"]
            )
    noisy = [f"{name} in {100 * statistics.mean(shares):.0f} %" for name, shares in defaults.items()]
    benign: dict[str, list[float]] = {}
    for screen in detail["inputs_only"]:
        if screen["scenario"].startswith("benign"):
            benign.setdefault(screen["method"].removesuffix(", columns"), []).append(screen["alarms_per_look"])
    screens = [f"{name} at {100 * statistics.mean(shares):.0f} % of the looks" for name, shares in benign.items()]
    return [
        f"Of {len(counted)} scenarios, stillhouse is faster than the fastest calibrated peer in "
        f"{sum(scenario['ratio'] < 1 for scenario in counted)}, equally fast in "
        f"{sum(scenario['ratio'] == 1 for scenario in counted)} and **slower in {len(slower)}**. It is slower in "
        f"{sum(scenario['ratio'] > 1 for scenario in small)} of the {len(small)} scenarios where the student's error "
        f"rises by less than {_LARGE_RISE:g}, and in {sum(scenario['ratio'] > 1 for scenario in large)} of the "
        f"{len(large)} where it rises by more. In the {len(late)} scenarios where the "
        f"fastest calibrated peer needs {_LATE} looks or more, the median ratio of the delays is "
        f"{statistics.median(late):.2g}. Peers that get the same losses as stillhouse are faster in "
        f"{sum(scenario['ratio_same_losses'] > 1 for scenario in counted)} scenarios. Where it is slower (delays in "
        "looks, median over the runs):",
        _grid(["data set", "change", "rise in error", "stillhouse", "fastest calibrated peer"], rows),
        f"At their defaults the peers alarm in these shares of runs of 10,000 looks without drift: {_listed(noisy)}. "
        f"On a benign shift, tests of the input columns without labels alarm: {_listed(screens)} (mean over the data "
        "sets).",
    ]


_SIDES = {
    "ours": "stillhouse",
    "ours_known": "stillhouse, stored profile of the reference",
    "scipy": "SciPy",
    "evidently_ks": "evidently, KS preset",
    "evidently_default": "evidently, its default choice of distances",
}


def _drift_scan(detail: Detail) -> list[str]:
    rows = [
        [name, *(f"{statistics.median(values):.4g}" for values in zip(*detail["rounds"][side], strict=True))]
        for side, name in _SIDES.items()
    ]
    return ["Median CPU time and peak memory of each side:", _grid(["side", "CPU time (s)", "peak memory (MiB)"], rows)]


def _durability(detail: Detail) -> list[str]:
    killed = [f"{count} times a {name}" for name, count in detail["kills"].items()]
    return [f"The run acknowledged {detail['acknowledged']:,} events and killed {_listed(killed)}."]


def _false_alarms(detail: Detail) -> list[str]:
    horizon = detail["sizes"]["horizon"]
    rise = 0.1
    rows = []
    for rate in detail["rates"]:
        (delay,) = [record for record in detail["delays"] if (record["world"], record["rise"]) == (rate["world"], rise)]
        rows.append(
            [
                rate["world"],
                *(f"{rate[when]['alarms_per_promised'][0]:.3f}" for when in ("now", "before")),
                *(_looks(delay[when], horizon) for when in ("now", "before")),
            ]
        )
    missed = sum(record["now"] > horizon for record in detail["delays"] if record["rise"] == 0.03)
    worlds = len(detail["rates"])
    return [
        f"The price is a longer delay. The table shows false alarms per promised one, and the median delay in steps "
        f"after all three mean losses rise by {rise:g} under the default budget. A rise by 0.03 is mostly not "
        f"detected within {horizon} steps in {missed} of {worlds} worlds.",
        _grid(["world", "false alarms", "before", "delay", "before"], rows),
    ]


_UPDATE_METHODS = ("fine-tuning", "replay", "update", "redistil", "redistil warm", "joint")
_PHASED = {"flights": "flights", "clinc150": "CLINC150", "digits": "digits"}


def _forgetting(detail: Detail) -> list[str]:
    columns = (("quality", "quality", ".4f"), ("forgetting", "forgetting", ".4f"), ("cpu_seconds", "CPU (s)", ".2f"))
    head = ["method", *(f"{label}: {name}" for _, label, _ in columns for name in _PHASED.values())]
    rows = [
        [
            method,
            *(
                f"{_mean(detail[world]['figures'][method], key):z{digits}}"
                for key, _, digits in columns
                for world in _PHASED
            ),
        ]
        for method in _UPDATE_METHODS
    ]
    warm = {name: detail[world]["update_minus_in_quality"]["redistil warm"] for world, name in _PHASED.items()}
    better = [name for name, gap in warm.items() if gap["mean"] < 0]
    clear = [name for name, gap in warm.items() if gap["high"] < 0]
    gaps = [f"{name} {-gap['mean']:.4f} ({-gap['high']:.4f} to {-gap['low']:.4f})" for name, gap in warm.items()]
    update_methods = ("update", "redistil warm")
    counts = {
        name: [_mean(detail[world]["figures"][method], "teacher_rows_fitted_anew") for method in update_methods]
        for world, name in _PHASED.items()
    }
    needed = [f"{name} {_both(row_counts, ',.0f')}" for name, row_counts in counts.items()]
    all_three = "all three data sets" if len(better) == len(warm) else _listed(better)
    return [
        "Means over the seeds; CPU time is per phase, without the teacher:",
        _grid(head, rows),
        f"**A warm redistillation is better than an update on {all_three}**, beyond noise on {_listed(clear)}. Gain in "
        f"quality, with its 95 % interval over the seeds: {_listed(gaps)}. It needs more teacher answers where the "
        f"teacher is fitted anew (rows per phase, update and warm redistillation): {_listed(needed)}.",
    ]


def _gate(detail: Detail) -> list[str]:
    promoted = {(cell["kind"], cell["challenger"]): cell["promoted"] for cell in detail["kinds"]}
    rows = [
        [
            f"{count}",
            *(f"{promoted[f'rows: {count}, 5 actions, 5% disagree', truth]:.3f}" for truth in ("as good", "better")),
        ]
        for count in ("100", "300", "1,000", "6,000")
    ]
    return [
        "Small windows prove little. Share of challengers promoted by the number of rows (5 actions, 5 % "
        "disagreement):",
        _grid(["rows", "as good as the champion", "better by the margin"], rows),
    ]


def _knowledge_scale(detail: Detail) -> list[str]:
    rounds, (_, young, *_, old) = detail["day"]["rounds"], detail["size"]["ages"]
    rows = [
        [
            f"{layout}, {name}",
            f"{statistics.median(cost['wall_s'] for cost in rounds[layout][str(age)]):.3f}",
            f"{statistics.median(cost['bytes'] for cost in rounds[layout][str(age)]) / 1e6:.2f}",
        ]
        for layout in rounds
        for age, name in ((young, "three months"), (old, "three years"))
    ]
    return [
        f"The tables hold {detail['fill']['rows']:,} observations. The goals are about compacted tables. Without "
        "compaction the last day is cheaper to read, and its cost grows with the age:",
        _grid(["tables", "median time (s)", "bytes read (MB)"], rows),
        "![time and bytes of reading the last day, by age](images/knowledge_scale.png)",
    ]


def _loop(detail: Detail) -> list[str]:
    summaries = [seed["summary"] for seed in detail["seeds"]]

    def span(name: str) -> str:
        values = sorted({summary[name] for summary in summaries})
        return f"{values[0]} to {values[-1]}" if len(values) > 1 else f"{values[0]}"

    return [
        f"A year has {span('weeks')} weeks after the bootstrap. Over the {len(summaries)} seeds it had "
        f"{span('refreshes')} refreshes, of which {span('promotions')} were promoted and {span('refused')} refused."
    ]


def _memory_scale(detail: Detail) -> list[str]:
    def middle(runs: list[Detail], *path: str) -> float:
        values = []
        for run in runs:
            value: Any = run
            for key in path:
                value = value[key]
            values.append(float(value))
        return statistics.median(values)

    speed = [
        [
            f"{int(size):,}",
            *(
                f"{middle(runs, 'ms', name):.2f}"
                for name in ("memory", "memory: look for new rows", "k-d tree", "student")
            ),
            f"{middle(runs, 'reading_again_ms'):.0f}",
            *(f"{middle(runs, 'bytes', name):,.0f}" for name in ("memory, tables", "memory, arrays", "student")),
        ]
        for size, runs in detail["sizes"].items()
    ]
    quality = [
        [
            f"{int(size):,}",
            *(
                f"{middle(runs, 'accuracy', model, week):.3f}"
                for model, weeks in (("memory", "789"), ("first", "789"), ("second", "9"))
                for week in weeks
            ),
            " to ".join(str(find(run["lag_days"] for run in runs)) for find in (min, max)),
        ]
        for size, runs in detail["sizes"].items()
    ]
    return [
        "Time of one row (ms), time to read all memories again after a new outcome (ms), and bytes (medians over the "
        "seeds):",
        _grid(
            [
                "memories",
                "memory",
                "its look for new rows",
                "k-d tree",
                "student",
                "reading",
                "tables",
                "arrays",
                "student",
            ],
            speed,
        ),
        "Accuracy in the week before the change and in the two weeks after it (medians over the seeds; a tenth of the "
        "outcomes is drawn at random), and the lag of the memory in days (14: not within the two weeks):",
        _grid(
            [
                "memories",
                *("memory before", "first week", "second week"),
                *("first student before", "first week", "second week"),
                "student of a week after",
                "lag",
            ],
            quality,
        ),
    ]


def _overhead(detail: Detail) -> list[str]:
    medians = {
        job: [statistics.median(pair[side]["seconds"] for pair in pairs) for side in ("engine", "flow")]
        for job, pairs in detail["pairs"].items()
    }
    checks = {job: stations["data_checks.check.check"]["flow"] for job, stations in detail["stations"].items()}
    return [
        f"Median times of the engine (with its logging to MLflow) and of the flow: a refresh "
        f"{_both(medians['refresh'])} s, a watch {_both(medians['watch'])} s. The data checks of Great Expectations "
        f"take {checks['refresh']:.2f} s of the refresh and {checks['watch']:.2f} s of the watch."
    ]


_SERVERS = {
    "stillhouse, native": ("stillhouse",),
    "stillhouse, `/invocations`": ("stillhouse_invocations",),
    "MLflow": ("mlflow", "mlflow_2_workers"),
    "LitServe": ("litserve", "litserve_batching"),
}


def _recent_delays(detail: Detail) -> list[str]:
    sets = {"without_columns": "without", "with_columns": "with"}
    students = {"never_refreshed": "never refreshed", "refreshed": "refreshed"}
    rows = []
    for columns, name in sets.items():
        for student, label in students.items():
            values = [seed[columns][student] for seed in detail["seeds"]]
            row = [name, label, f"{statistics.median(values):.4f}", f"{min(values):.4f}", f"{max(values):.4f}"]
            rows.append(row)
    return [
        f"Mean weekly AUC over weeks {detail['weeks'][0]} to {detail['weeks'][1]}, median and range over "
        f"{len(detail['seeds'])} seeds:",
        _grid(["columns of recent delays", "student", "AUC", "lowest", "highest"], rows),
    ]


def _small_data(detail: Detail) -> list[str]:
    methods = {
        "ours": "stillhouse, defaults",
        "plain": "plain script",
        "soft": "plain script, soft labels",
        "early": "plain script, early stopping",
        "teacher": "the plain script's teacher",
    }
    sizes = sorted({result["rows"] for result in detail["results"]})
    rows = []
    for method, label in methods.items():
        cells = [label]
        for measure, size in ((m, s) for m in ("auc", "log_loss") for s in sizes):
            values = [r["scores"][method][measure] for r in detail["results"] if r["rows"] == size]
            cells.append(f"{statistics.mean(values):.4f}" if measure == "auc" else f"{statistics.mean(values):.3f}")
        rows.append(cells)
    head = [f"{name}: {size:,} rows" for name in ("AUC", "log loss") for size in sizes]
    return ["Means over the streams and seeds:", _grid(["student", *head], rows)]


def _router(detail: Detail) -> list[str]:
    parts = []
    for task, stages in detail["stages"].items():
        rows = [
            [
                name,
                *(f"{share:.2f}" for share in figures["by_stage"]),
                f"{figures['megabytes']:.1f}",
                f"{figures['ms']:.2f}",
                f"{100 * detail['savings'][task][name]['calls_saved']:.0f} %",
                f"{detail['savings'][task][name]['points_lost']:.2f}",
            ]
            for name, figures in detail["coverage"][task].items()
        ]
        never = detail["savings"][task]["stillhouse"]["points_lost_never_asking"]
        parts += [
            f"{task}: coverage by stage (mean over {len(detail['seeds'])} seeds), size (MB), time of a decision (ms), "
            f"calls saved from the first model on, and points lost against people's labels (never asking loses "
            f"{never:.1f}):",
            _grid(["contender", *stages, "MB", "ms", "saved", "points"], rows),
            f"Ratio of our coverage to the best peer's, by stage: {_both_of(detail['ratios'][task]['small'])} within "
            f"3 MB and 0.3 ms, {_both_of(detail['ratios'][task]['any_size'])} of any size.",
            "Sentences answered in a changed stage before the rule reacted, where they agree less than promised (mean "
            "over seeds, by changed stage): "
            + "; ".join(
                f"{name} {', '.join(f'{count:.0f}' for count in counts)}"
                for name, counts in detail["below_floor"][task].items()
            )
            + ".",
        ]
    counted = [
        [name, f"{figures['breaches']} of {figures['stages']}", f"{figures['p_value']:.2g}"]
        for name, figures in detail["breaches"].items()
    ]
    return [
        *parts,
        "Breaches, and the probability of so many or more if each promise is broken in 5 % of the stages:",
        _grid(["contender", "breaches", "p-value"], counted),
    ]


def _both_of(values: Sequence[float]) -> str:
    return _listed([f"{value:.2f}" for value in values])


def _serving(detail: Detail) -> list[str]:
    cases = [(connections, rows) for rows in (1, 64) for connections in (1, 8, 64)]
    rate = {
        (server, case): max(
            detail["figures"][f"{case[0]} connections, {case[1]} rows"][s]["per_second"][0] for s in sides
        )
        for server, sides in _SERVERS.items()
        for case in cases
    }
    rows = [[server, *(f"{rate[server, case]:,.0f}" for case in cases)] for server in _SERVERS]
    same = {
        count: [
            rate["stillhouse, `/invocations`", (connections, count)] / rate["MLflow", (connections, count)]
            for connections in (1, 8, 64)
        ]
        for count in (1, 64)
    }
    return [
        "Requests per second, median over the rounds; of MLflow and LitServe the better setting:",
        _grid(["server", *(f"{c} × {r} row{'s' * (r > 1)}" for c, r in cases)], rows),
        f"Columns are connections × rows per request. stillhouse also speaks MLflow's protocol. In that protocol, on "
        f"the same requests, it answers {min(same[1]):.1f} to {max(same[1]):.1f} times as many requests as MLflow "
        f"with one row and {min(same[64]):.1f} to {max(same[64]):.1f} times as many with 64 rows (medians), and "
        "records every row. No goal is set for that comparison.",
    ]


def _streams(detail: Detail) -> list[str]:
    rates, streams = [f"{rate:g}" for rate in detail["rates"]], detail["streams"]
    rows = [
        [
            name.replace("_", " "),
            f"{len(result['seeds'])}",
            *(f"{result['rates'][rate]['ratio']:.3f}" for rate in rates),
            f"{statistics.median(figures['ratio_to_oracle'] for figures in result['rates'].values()):.3f}",
        ]
        for name, result in streams.items()
    ]
    policies = [
        [
            name,
            *(f"{figures[key]:.3f}" for key in ("mean_ratio", "largest_ratio", "median_ratio_to_oracle")),
            f"{100 * figures['responses_without_gain']:.0f} %",
        ]
        for name, figures in detail["policies"].items()
    ]
    above = [name for name, interval in detail["differences_to_calendars"].items() if interval["high"] >= 0]
    return [
        "Our total / that of the best calendar in hindsight, by exchange rate, and the median ratio to the oracle:",
        _grid(["stream", "seeds", *rates, "to the oracle"], rows),
        "![our total over that of the best calendar, by exchange rate](images/streams.png)",
        "All policies over streams and exchange rates; *sketch* is a policy of a few lines that trains at a learned "
        "age, and the other rows leave out one term of ours:",
        _grid(["policy", "mean ratio", "largest ratio", "to the oracle (median)", "without gain"], policies),
        f"Calendars that our policy is not below beyond noise: {_listed(above) or 'none'}.",
    ]


_POLICIES = {
    "always": "every row",
    "ours": "stillhouse",
    "margin 0.05": "margin, 5 % of the rows",
    "margin 0.15": "margin, 15 % of the rows",
    "uniform 0.05": "random, 5 % of the rows",
    "never": "no row",
}


def _teacher_cost(detail: Detail) -> list[str]:
    rows = [
        [
            name,
            *(
                text
                for stream in _STREAMS
                for policy_result in [detail[stream]["policies"][policy]]
                for text in (
                    f"{statistics.mean(policy_result['accuracy']):.4f}",
                    f"{statistics.mean(policy_result['calls']):,.0f}",
                )
            ),
        ]
        for policy, name in _POLICIES.items()
    ]
    never_minus = detail["sentences"]["policies"]["never"]["ours_minus_points"]
    needed = statistics.median(detail["sentences"]["margin_calls_at_our_quality"])
    return [
        "Mean prequential accuracy and teacher calls over the seeds, by policy:",
        _grid(["queried", *(f"{stream}: {what}" for stream in _STREAMS for what in ("accuracy", "calls"))], rows),
        f"On the sentences a student that is never updated is as accurate as stillhouse within noise (difference "
        f"{never_minus['mean']:+.2f} points, 95 % interval {never_minus['low']:+.2f} to "
        f"{never_minus['high']:+.2f}): there is almost nothing to learn, so margin sampling needs next to "
        f"no calls for that accuracy (median "
        f"{needed:,.0f}, the least that is counted) and the ratio of calls is large.",
    ]


def _teacher_weights(detail: Detail) -> list[str]:
    rivals = {
        "followed": "learned weights",
        "row_by_row": "the same, each row as independent evidence",
        "equal": "equal weights",
        "best_teacher": "best single teacher, chosen in hindsight",
        "best_mixture": "best constant mixture, chosen in hindsight",
    }
    rows = [[n, f"{statistics.mean(r['real'][k] for r in detail['repeats']):.4f}"] for k, n in rivals.items()]
    return ["Mean log loss over the repeats (nats per row; lower is better):", _grid(["weights", "log loss"], rows)]


FINDINGS: Mapping[str, Callable[[Detail], list[str]]] = {
    "agents": _agents,
    "age": _age,
    "compression": _compression,
    "deciding": _deciding,
    "device": _device,
    "distillation": _distillation,
    "door": _door,
    "drift_detection": _drift_detection,
    "drift_scan": _drift_scan,
    "durability": _durability,
    "false_alarms": _false_alarms,
    "forgetting": _forgetting,
    "gate": _gate,
    "knowledge_scale": _knowledge_scale,
    "loop": _loop,
    "memory_scale": _memory_scale,
    "overhead": _overhead,
    "recent_delays": _recent_delays,
    "router": _router,
    "serving": _serving,
    "small_data": _small_data,
    "streams": _streams,
    "teacher_cost": _teacher_cost,
    "teacher_weights": _teacher_weights,
}


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _both(values: Sequence[float], digits: str = ".2f") -> str:
    return " and ".join(f"{value:{digits}}" for value in values)


def _mean(figures: Mapping[str, Sequence[float]], name: str) -> float:
    return statistics.mean(figures[name])


def _beyond_noise(interval: Mapping[str, float]) -> bool:
    return interval["low"] > 0 or interval["high"] < 0


def _looks(delay: float, horizon: int) -> str:
    return f"not within {horizon}" if delay > horizon else f"{delay:g}"


def _changed(scenario: str) -> str:
    """Text for a scenario such as ``covariate 0.3``."""
    change, _, share = scenario.rpartition(" ")
    return f"{change}, {100 * float(share):.0f} % of the rows"


# --------------------------------------------------------------------------- the pages


def benchmarks_page() -> str:
    """The text of docs/benchmarks.md."""
    parts = [INTRODUCTION.rstrip()]
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        texts = [headline(result), METHOD[file.stem], *FINDINGS[file.stem](result["detail"])]
        parts += [f"## {file.stem}", *map(_wrapped, texts), _wrapped(circumstances(result)), table(result)]
    return "\n\n".join(parts) + "\n"


def headline(result: Mapping[str, Any]) -> str:
    """The claim, and how many of its goals are missed."""
    goals = result["goals"]
    missed = sum(not goal["met"] for goal in goals)
    return sentence(result["claim"]) + (f" **Missed goals: {missed} of {len(goals)}.**" if missed else "")


def sentence(claim: str) -> str:
    """The claim as a sentence, with a capital letter and a full stop.

    >>> sentence("a watch takes a second")
    'A watch takes a second.'
    """
    return f"{claim[0].upper()}{claim[1:]}."


def _wrapped(block: str) -> str:
    """Wrap a paragraph to ``WIDTH`` characters; leave tables and images unchanged."""
    if block.startswith(("|", "!")):
        return block
    return textwrap.fill(" ".join(block.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def circumstances(result: Mapping[str, Any]) -> str:
    """The command, the commit, the machine with its load, and the versions of the libraries."""
    machine = result["machine"]
    flags = f" ({', '.join(machine['flags'])})" if machine["flags"] else ""
    notes = [] if result.get("arguments") is not None else ["its arguments and the load were not recorded"]
    if load := machine.get("load"):
        notes.append(f"load average {load['start']:.1f} at the start and {load['end']:.1f} at the end")
    if changed := result.get("changed_during_run"):
        notes.append(f"changed during the run: {', '.join(changed)}")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"Measured by {_origin(result)}{flags}; {'; '.join(notes)}. Versions: {versions}."


def _origin(result: Mapping[str, Any]) -> str:
    command = " ".join([result["command"], *(result.get("arguments") or ())])
    machine = result["machine"]
    return f"`{command}` at commit {result['commit']}, on {machine['cores']} cores of {machine['cpu']}"


def readme_section() -> str:
    """The generated text between the markers of README.md."""
    result = json.loads((RESULTS / "loop.json").read_text(encoding="utf-8"))
    seeds = len(result["detail"]["seeds"])
    text = (
        f"Measured by {_origin(result)}: the demo's year under {seeds} seeds, with the median, the lowest and the "
        "highest of each figure. ≥ means that higher is better, ≤ that lower is better; a missed goal stays in the "
        "table. Method, load and versions: [docs/benchmarks.md](docs/benchmarks.md#loop)."
    )
    return f"{BEGIN}\n{_wrapped(text)}\n\n{table(result)}\n{END}"


def readme_with(section: str, readme: str) -> str:
    """``readme`` with ``section`` between its markers."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + section + after


def table(result: Mapping[str, Any]) -> str:
    """A Markdown table with one row per goal."""
    return _grid(
        ["what", "goal", "measured", "lowest – highest", "result"],
        [
            [
                MEANING[goal["name"]],
                f"{'≥' if goal['better'] == 'higher' else '≤'} {goal['goal']:g}",
                f"{goal['measured']:.4g}",
                f"{goal['low']:.4g} – {goal['high']:.4g}",
                "met" if goal["met"] else "**missed**",
            ]
            for goal in result["goals"]
        ],
    )


def main() -> None:
    """Write both pages."""
    (ROOT / "docs" / "benchmarks.md").write_text(benchmarks_page(), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(readme_with(readme_section(), readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
