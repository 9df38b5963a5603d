"""The agent over HTTP: an ASGI application that decides, records, and gives models and knowledge away.

What an application asks all the time (decisions, outcomes, ``/invocations``) is answered here without a framework; what
is asked now and then goes through Starlette. Nothing is acknowledged before it is in the spool.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from io import BytesIO
from typing import Annotated, Any

import msgspec
import pyarrow as pa
from msgspec import UNSET, UnsetType
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stillhouse.errors import ConfigError, DataError, NoChampionError, SchemaError, SignatureError, StillhouseError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.answers_page import MAX_PAGE_ROWS, Cursor, answers_since
from stillhouse.knowledge.spool import spool_folder, survey
from stillhouse.runtime.agent import Agent, Decision, Judged
from stillhouse.runtime.archive import Archive, pack
from stillhouse.runtime.champions import Champions, Pointer
from stillhouse.runtime.http import (
    JSON,
    Answer,
    Guard,
    Refused,
    RequestLimits,
    body_of,
    decoded,
    encoded,
    flag,
    header,
    media_type,
    query_of,
    refusal,
    reply,
)
from stillhouse.runtime.metrics import CONTENT_TYPE_LATEST, Metrics
from stillhouse.runtime.openapi import describe
from stillhouse.runtime.recorder import Recorder
from stillhouse.runtime.reports import Report, keeper_report, worker_problems, write_report
from stillhouse.runtime.rows import Batch
from stillhouse.runtime.scoring import CSV, Scoring, predictions
from stillhouse.runtime.status import SIDES, Status, merged

__all__ = ["ARROW", "NDJSON", "Server"]

ARROW, NDJSON = "application/vnd.apache.arrow.stream", "application/x-ndjson"

log = logging.getLogger(__name__)

_SNAPSHOT_SECONDS = 1.0
_ASKING_THREADS = 32
_NDJSON_ROWS = 500


_anything: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class Told(msgspec.Struct, omit_defaults=True):
    """A decision as it goes over the wire: without probabilities where they were not asked for."""

    decision_id: str
    observation_id: str
    action: str
    confidence: float
    decider: str
    version: str
    probabilities: dict[str, float] | UnsetType = UNSET
    warnings: tuple[str, ...] = ()


class Outcome(msgspec.Struct, forbid_unknown_fields=True):
    """What turned out to be true about a decision."""

    decision_id: str
    action: str | bool | int | float
    known_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class _Outcomes(msgspec.Struct, forbid_unknown_fields=True):
    decision_id: str | UnsetType = UNSET
    action: str | bool | int | float | UnsetType = UNSET
    known_at: Annotated[datetime, msgspec.Meta(tz=True)] | UnsetType | None = UNSET
    outcomes: list[Outcome] | UnsetType = UNSET


class _Served:
    """One agent with what the loop needs beside it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.name = agent.config.agent
        self.champions = Champions(agent.config, agent.contract)
        self.recorder: Recorder
        self.scoring = Scoring(agent.contract)
        row = agent.contract.type
        asked = msgspec.defstruct(
            "Observations",
            [("observation", row | UnsetType, UNSET), ("observations", list[row] | UnsetType, UNSET)],  # type: ignore[valid-type]
            forbid_unknown_fields=True,
        )
        self.decisions: msgspec.json.Decoder[Any] = msgspec.json.Decoder(asked)
        self.archive: tuple[Pointer, Archive] | None = None

    @property
    def ready(self) -> bool:
        """Whether there is a champion to decide with, and what it decides can be recorded."""
        return self.agent.champion is not None and self.agent.can_record

    def decisions_of(self, body: bytes) -> Any:
        """What is to be decided; numbers and truth values are read as texts where those are wanted.

        :raises Refused: if it is no JSON, or does not keep the contract.
        """
        try:
            return decoded(self.decisions, body)
        except Refused as refused:
            if refused.status != 422:
                raise
            return self._of_other_types(body, refused)

    def _of_other_types(self, body: bytes, refused: Refused) -> Any:
        written, given = self.agent.contract.written, decoded(_anything, body)
        if not isinstance(given, dict):
            raise refused
        one, several = given.get("observation"), given.get("observations")
        if isinstance(one, dict):
            given["observation"] = written(one, "$.observation")
        if isinstance(several, list):
            given["observations"] = [
                written(row, f"$.observations[{place}]") if isinstance(row, dict) else row
                for place, row in enumerate(several)
            ]
        try:
            return msgspec.convert(given, self.decisions.type)
        except msgspec.ValidationError as error:
            raise Refused(422, "invalid", str(error)) from error


Endpoint = Callable[[_Served, Scope, Receive], Awaitable[Answer]]


class Server:
    """The application for one process.

    :param agents: those that are served; they are neither made nor closed here.
    :param metrics: this process's counts.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        *,
        limits: RequestLimits | None = None,
        guard: Guard | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._served = {agent.config.agent: _Served(agent) for agent in agents}
        self._limits = limits or RequestLimits()
        self._guard = guard or Guard()
        self._metrics = metrics or Metrics(None, "alone")
        self._pool = ThreadPoolExecutor(_ASKING_THREADS, thread_name_prefix="asking")
        self._waiting = 0
        self._began, self._unsaved = time.time(), False
        self._outcomes = msgspec.json.Decoder(_Outcomes)
        self._hot: dict[tuple[str, str], tuple[str, Endpoint, _Served]] = {
            ("POST", f"/v1/agents/{served.name}/{name}"): (name, endpoint, served)
            for served in self._served.values()
            for name, endpoint in (("decisions", self._decide), ("outcomes", self._learn))
        }
        self._slow = self._starlette()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._slow(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        endpoint, status = "other", 500
        started = False

        async def noting(message: Any) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        self._waiting += 1
        try:
            self._guard.check(scope)
            hot = self._hot.get((scope["method"], scope["path"]))
            if hot is None:
                endpoint = _named(scope["path"])
                await self._slow(scope, receive, noting)
            else:
                endpoint, run, served = hot
                self._require_room()
                answer = await run(served, scope, receive)
                status = answer.status
                await reply(answer, send)
        except Refused as refused:
            status = refused.status
            await reply(refused.answer(), send)
        except StillhouseError as error:
            answer = self._refusal(error).answer()
            status = answer.status
            await reply(answer, send)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if started:
                raise
            await reply(Refused(500, "internal", "a defect of the server: its log says more").answer(), send)
        finally:
            self._waiting -= 1
            self._metrics.requested(endpoint, status, time.perf_counter() - began)

    def _require_room(self) -> None:
        if self._waiting > self._limits.max_waiting:
            raise Refused(503, "busy", f"{self._limits.max_waiting:,} requests wait here already", {"retry-after": "1"})

    def _refusal(self, error: StillhouseError) -> Refused:
        retry = min((served.agent.config.runtime.poll.total_seconds() for served in self._served.values()), default=1)
        return refusal(error, max(1, round(retry)))

    # ----------------------------------------------------------------- decisions and outcomes

    async def _decide(self, served: _Served, scope: Scope, receive: Receive) -> Answer:
        """``POST /v1/agents/{agent}/decisions``"""
        told = flag(query_of(scope, ("probabilities",)), "probabilities")
        media_type(scope, (JSON,))
        asked = served.decisions_of(await body_of(scope, receive, self._limits))
        if (asked.observation is UNSET) == (asked.observations is UNSET):
            raise Refused(422, "invalid", "the body must have either observation or observations")
        rows = [asked.observation] if asked.observations is UNSET else asked.observations
        self._require_rows(rows)
        made = await self._decided(served, served.agent.contract.batch(rows))
        answers = [
            Told(
                each.decision_id,
                each.observation_id,
                each.action,
                each.confidence,
                each.decider,
                each.version,
                each.probabilities if told else UNSET,
                each.warnings,
            )
            for each in made
        ]
        return encoded(answers[0] if asked.observations is UNSET else {"decisions": answers})

    async def _decided(self, served: _Served, batch: Batch) -> list[Decision]:
        """Judge, ask the teacher where the student is unsure, record."""
        judged: Judged = served.agent.judge(batch)
        if judged.unsure:
            await asyncio.get_running_loop().run_in_executor(self._pool, served.agent.ask_teacher, judged)
        made = await served.recorder.put(judged)
        self._metrics.decided(served.name, judged, made)
        return made

    async def _learn(self, served: _Served, scope: Scope, receive: Receive) -> Answer:
        """``POST /v1/agents/{agent}/outcomes``"""
        media_type(scope, (JSON,))
        asked = decoded(self._outcomes, await body_of(scope, receive, self._limits))
        if asked.outcomes is not UNSET:
            if (asked.decision_id, asked.action, asked.known_at) != (UNSET, UNSET, UNSET):
                raise Refused(422, "invalid", "the body must have either outcomes or those of one, not both")
            given = asked.outcomes
        elif asked.decision_id is UNSET or asked.action is UNSET:
            raise Refused(422, "invalid", "the body must have decision_id and action, or outcomes")
        else:
            given = [Outcome(asked.decision_id, asked.action, asked.known_at or None)]
        self._require_rows(given)
        pairs = [(each.decision_id, each.action) for each in given]
        event = served.agent.outcomes_event(pairs, [each.known_at for each in given])
        await served.recorder.put(None, [event])
        self._metrics.counts.add("outcomes", (served.name,), len(given))
        return encoded({"recorded": len(given)})

    def _require_rows(self, rows: Sequence[Any]) -> None:
        if not rows:
            raise Refused(422, "invalid", "the list is empty")
        if len(rows) > self._limits.max_rows:
            raise Refused(
                413,
                "too_many_rows",
                f"{len(rows):,} rows are more than the {self._limits.max_rows:,} that "
                "one request may have: send several",
            )

    # ----------------------------------------------------------------- MLflow's protocol

    async def _invocations(self, scope: Scope, receive: Receive) -> Answer:
        """``POST /invocations``"""
        query = query_of(scope, ("agent", "decision_ids", "warnings"))
        served = self._asked_for(query.get("agent") or header(scope, b"stillhouse-agent"))
        kind = media_type(scope, (JSON, CSV))
        body = await body_of(scope, receive, self._limits)
        try:
            with_ids, with_warnings = flag(query, "decision_ids"), flag(query, "warnings")
            if kind == CSV:
                frame = served.scoring.csv(body)
                self._require_rows(range(len(frame)))
                batch = served.scoring.frame(frame)
            else:
                rows = served.scoring.rows_of(decoded(served.scoring.decoder, body))
                self._require_rows(rows)
                batch = served.scoring.batch(rows)
            made = await self._decided(served, batch)
        except DataError as error:
            raise Refused(400, "invalid", str(error)) from error
        except Refused as refused:
            if refused.status == 422:  # as MLflow has it
                raise Refused(400, refused.code, str(refused)) from refused
            raise
        ids = {"decision_ids": [each.decision_id for each in made]} if with_ids else {}
        warnings = {"warnings": [each.warnings for each in made]} if with_warnings else {}
        answer = encoded({"predictions": predictions(made), **ids, **warnings})
        warned = sum(bool(each.warnings) for each in made)
        return answer._replace(headers=[*answer.headers, ("stillhouse-warnings", str(warned))]) if warned else answer

    def _asked_for(self, name: str) -> _Served:
        if name:
            return self._find(name)
        if len(self._served) > 1:
            raise Refused(
                400,
                "which_agent",
                "several agents are served here: say which in ?agent= or in the header "
                f"Stillhouse-Agent; there are: {', '.join(self._served)}",
            )
        return next(iter(self._served.values()))

    # ----------------------------------------------------------------- what is asked now and then

    def _starlette(self) -> Starlette:
        """Everything that is no decision, and what is asked in a wrong way."""
        per_agent = "/v1/agents/{agent}"
        get = ["GET"]
        return Starlette(
            lifespan=self._lifespan,
            routes=[
                Route(f"{per_agent}/decisions", self._unknown_agent, methods=["POST"]),
                Route(f"{per_agent}/outcomes", self._unknown_agent, methods=["POST"]),
                Route(f"{per_agent}/model", self._model, methods=get),
                Route(f"{per_agent}/knowledge", self._knowledge, methods=get),
                Route(per_agent, self._status, methods=get),
                Route("/v1/agents", self._agents, methods=get),
                Route("/invocations", self._score, methods=["POST"]),
                Route("/ping", self._ping, methods=get),
                Route("/health", self._ping, methods=get),
                Route("/version", self._version, methods=get),
                Route("/healthz", self._healthz, methods=get),
                Route("/readyz", self._readyz, methods=get),
                Route("/metrics", self._scraped, methods=get),
                Route("/openapi.json", self._openapi, methods=get),
            ],
            exception_handlers={HTTPException: _plainly, Refused: _refused, StillhouseError: self._engine_refused},
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        for served in self._served.values():
            served.recorder = Recorder(served.agent)
        saving = asyncio.create_task(self._save_again_and_again())
        try:
            yield
        finally:
            saving.cancel()
            for served in self._served.values():
                served.recorder.close()
            self._save()
            self._pool.shutdown(wait=False)

    async def _save_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(_SNAPSHOT_SECONDS)
            self._save()

    def _save(self) -> None:
        """What the other workers, and those that come after this one, are to know."""
        folder = self._metrics.folder
        try:
            self._metrics.save()
            if folder is not None:
                for served in self._served.values():
                    write_report(folder, self._metrics.name, served.name, Report(problems=served.agent.problems()))
        except Exception as error:  # whatever it is, it must not be the last time
            if not self._unsaved:
                log.error("what this worker counts cannot be saved in %s, and is tried again: %s", folder, error)
            self._unsaved = True
        else:
            self._unsaved = False

    def _find(self, name: str) -> _Served:
        served = self._served.get(name)
        if served is None:
            raise Refused(
                404, "unknown_agent", f"agent {name[:100]!r} is not served here; there are: {', '.join(self._served)}"
            )
        return served

    async def _unknown_agent(self, request: Request) -> Response:
        self._find(request.path_params["agent"])
        raise Refused(404, "not_found", "there is nothing under this address")

    async def _score(self, request: Request) -> Response:
        self._require_room()
        answer = await self._invocations(request.scope, request.receive)
        return Response(answer.body, answer.status, dict(answer.headers))

    async def _model(self, request: Request) -> Response:
        """The champion, for a device that pulls it."""
        served = self._find(request.path_params["agent"])
        archive = await asyncio.to_thread(self._packed, served)
        wanted = query_of(request.scope, ("version",)).get("version")
        if wanted is not None and wanted not in (archive.version, archive.version.rpartition("@")[2]):
            raise Refused(
                404,
                "unknown_version",
                f"{wanted[:100]!r} is not the champion here, which is "
                f"{archive.version}; other versions are in the registry",
            )
        if _matches(request.headers.get("if-none-match", ""), archive.sha256):
            kept = ("etag", "cache-control", "stillhouse-version")
            return Response(status_code=304, headers={name: archive.headers[name] for name in kept})
        return Response(archive.content, media_type="application/gzip", headers=archive.headers)

    def _packed(self, served: _Served) -> Archive:
        """Packed from bytes that were checked as they were read, once for each champion."""
        pointer = served.champions.read()
        if pointer is None:
            raise NoChampionError(f"agent {served.name!r} has no champion to give away")
        try:
            served.champions.require_trusted(pointer)
            if served.archive is None or served.archive[0] != pointer:
                served.archive = pointer, pack(served.champions.files(pointer), pointer.version)
        except (SignatureError, ConfigError) as error:  # of a key that is not trusted, or cannot be read
            raise NoChampionError(str(error)) from error
        return served.archive[1]

    async def _knowledge(self, request: Request) -> Response:
        """What the teachers have said, page by page."""
        served = self._find(request.path_params["agent"])
        query = query_of(request.scope, ("since", "after", "limit"))
        start, limit = _start(query), _limit(query)
        page = await asyncio.to_thread(answers_since, KnowledgeBase(served.agent.config), start, limit)
        headers = {"vary": "accept"}
        if page.next is not None:
            address = f"{request.url.path}?after={page.next.encode()}&limit={limit}"
            headers |= {"link": f'<{address}>; rel="next"', "stillhouse-next": page.next.encode()}
        if ARROW in request.headers.get("accept", ""):
            return StreamingResponse(_arrow(page.rows), media_type=ARROW, headers=headers)
        return StreamingResponse(_ndjson(page.rows), media_type=NDJSON, headers=headers)

    async def _status(self, request: Request) -> Response:
        served = self._find(request.path_params["agent"])
        status = await asyncio.to_thread(self._status_of, served)
        return Response(status.model_dump_json(), media_type=JSON)

    def _status_of(self, served: _Served) -> Status:
        """This worker's status, with what concerns the machine as a whole: spools, decisions, the supervisor's side."""
        own = served.agent.status()
        decided: dict[str, int] = {}
        counters = self._metrics.all().counters
        outside: dict[str, int] = {}
        for (agent, column, _), count in counters["outside_contract"].items():
            if agent == served.name:
                outside[column] = outside.get(column, 0) + round(count)
        for (agent, decider, _), count in counters["decisions"].items():
            if agent == served.name:
                decided[decider] = decided.get(decider, 0) + round(count)
        told = self._reported(served)
        return own.model_copy(
            update={
                "decisions": decided,
                "outside_contract": outside,
                "spool_rows": survey(spool_folder(served.name)).rows,
                "problems": told.problems,
                "last_flush": told.last_flush or own.last_flush,
            }
        )

    def _reported(self, served: _Served) -> Report:
        """What troubles the agent on this machine: here, in the other workers, and in the supervisor."""
        folder, own = self._metrics.folder, served.agent.problems()
        if folder is None:
            return Report(problems=own)
        keeper = keeper_report(folder, served.name, self._began)
        others = worker_problems(folder, served.name, but=self._metrics.name)
        return Report(problems=merged(own, keeper.problems, others), last_flush=keeper.last_flush)

    async def _agents(self, _request: Request) -> Response:
        return Response(encoded({"agents": list(self._served)}).body, media_type=JSON)

    async def _ping(self, _request: Request) -> Response:
        """As MLflow's: whether a model is there."""
        ready = all(served.ready for served in self._served.values())
        return Response("\n", 200 if ready else 404, media_type=JSON)

    async def _version(self, _request: Request) -> Response:
        """MLflow's, whose protocol this is."""
        from importlib.metadata import version

        return Response(version("mlflow"), media_type=JSON)

    async def _healthz(self, request: Request) -> Response:
        """Whether decisions work; what else does not is in the body."""
        return await self._health(request, degraded_is=200)

    async def _readyz(self, request: Request) -> Response:
        """Whether everything works: for alarms."""
        return await self._health(request, degraded_is=503)

    async def _health(self, request: Request, degraded_is: int) -> Response:
        ready = {name: served.ready for name, served in self._served.items()}
        told = await asyncio.to_thread(lambda: {name: self._reported(served) for name, served in self._served.items()})
        all_ = self._guard.knows(request.scope)
        reasons = {
            name: {
                side: problem.text if all_ else SIDES[side]
                for side, problem in each.problems.items()
                if problem.over_at is None
            }
            for name, each in told.items()
        }
        degraded = any(reasons.values())
        status = 503 if not all(ready.values()) else degraded_is if degraded else 200
        body = {
            "alive": True,
            "ready": all(ready.values()),
            "degraded": degraded,
            "agents": ready,
            "reasons": {name: each for name, each in reasons.items() if each},
        }
        return Response(
            encoded(body).body, status, media_type=JSON, headers={"retry-after": "1"} if status == 503 else {}
        )

    async def _scraped(self, _request: Request) -> Response:
        return Response(await asyncio.to_thread(self._text), headers={"content-type": CONTENT_TYPE_LATEST})

    def _text(self) -> bytes:
        return self._metrics.text([self._status_of(served) for served in self._served.values()])

    async def _openapi(self, _request: Request) -> Response:
        description = describe(
            [served.agent.config for served in self._served.values()], self._limits, secured=self._guard.secured
        )
        return Response(encoded(description).body, media_type=JSON)

    async def _engine_refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, StillhouseError)
        return await _refused(request, self._refusal(error))


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    answer = error.answer()
    return Response(answer.body, answer.status, dict(answer.headers))


async def _plainly(request: Request, error: Exception) -> Response:
    """Starlette's own refusals in our shape."""
    assert isinstance(error, HTTPException)
    path, allowed = request.url.path[:200], (error.headers or {}).get("Allow", "")
    code, message = {
        404: ("not_found", f"there is nothing under {path!r}; /openapi.json says what there is"),
        405: ("method_not_allowed", f"{path!r} takes {allowed}, not {request.method[:20]}"),
    }.get(error.status_code, ("refused", str(error.detail)))
    return await _refused(request, Refused(error.status_code, code, message, error.headers))


def _named(path: str) -> str:
    """The endpoint as a label: few values, whatever is asked."""
    last = path.rpartition("/")[2]
    if path.startswith("/v1/agents/"):
        return last if last in ("model", "knowledge", "decisions", "outcomes") else "status"
    known = ("invocations", "ping", "health", "version", "healthz", "readyz", "metrics", "openapi.json")
    return last if path == f"/{last}" and last in known else "other"


def _matches(given: str, sha256: str) -> bool:
    """Whether If-None-Match names what we have (weakly compared, RFC 9110 13.1.2)."""
    return given.strip() == "*" or f'"{sha256}"' in [part.strip().removeprefix("W/") for part in given.split(",")]


def _start(query: Mapping[str, str]) -> datetime | Cursor:
    if "after" in query:
        try:
            return Cursor.parse(query["after"])
        except SchemaError as error:
            raise Refused(404, "unknown_page", str(error)) from error
    text = query.get("since", "1970-01-01T00:00:00Z")
    try:
        since: datetime = msgspec.convert(text, Annotated[datetime, msgspec.Meta(tz=True)])
        return since.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError) as error:
        raise Refused(
            422,
            "invalid",
            f"since is a time with its zone, such as 2026-01-31T00:00:00Z (with + as %2B), not {text[:50]!r}",
        ) from error


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", "1000")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_PAGE_ROWS):
        raise Refused(422, "invalid", f"limit is 1 to {MAX_PAGE_ROWS:,}, not {text[:50]!r}")
    return int(text)


def _ndjson(rows: pa.Table) -> Iterator[bytes]:
    encode = msgspec.json.Encoder().encode_lines
    for batch in rows.to_batches(max_chunksize=_NDJSON_ROWS):
        yield encode(batch.to_pylist())


def _arrow(rows: pa.Table) -> Iterator[bytes]:
    kept = BytesIO()
    with pa.ipc.new_stream(kept, rows.schema) as stream:
        for batch in rows.to_batches(max_chunksize=_NDJSON_ROWS):
            stream.write_batch(batch)
            yield kept.getvalue()
            kept.seek(0)
            kept.truncate()
    yield kept.getvalue()
