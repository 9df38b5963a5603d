"""The agents over HTTP: an ASGI application that decides, records, and hands out models and knowledge.

Frequent requests (decisions, outcomes, ``/invocations``) are handled here without a framework; the others go through
Starlette. A request is acknowledged only after its events are in the spool.
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
from stillhouse.gateway.door import Door, UpstreamCutError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.answers_page import MAX_PAGE_ROWS, Cursor, answers_since
from stillhouse.knowledge.spool import spool_folder, survey
from stillhouse.runtime.agent import Agent, Decision
from stillhouse.runtime.champions import Champions, Pointer
from stillhouse.runtime.handing_in import MadeDecision
from stillhouse.runtime.ids import MAX_ID_LENGTH
from stillhouse.runtime.recorder import Recorder
from stillhouse.runtime.rows import Batch
from stillhouse.runtime.status import COMPONENT_PROBLEMS, Status, merge_problems
from stillhouse.serving.archive import Archive, pack
from stillhouse.serving.http import (
    JSON,
    AccessGuard,
    HttpError,
    HttpResponse,
    RequestLimits,
    decode_json,
    get_header,
    json_response,
    parse_flag,
    parse_query,
    read_body,
    require_media_type,
    send_response,
    to_http_error,
)
from stillhouse.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from stillhouse.serving.openapi import build_openapi
from stillhouse.serving.reports import Report, read_housekeeper_report, read_worker_problems, write_report
from stillhouse.serving.scoring import CSV, ScoringReader, to_predictions
from stillhouse.values import text_of

__all__ = ["ARROW", "NDJSON", "Server"]

ARROW, NDJSON = "application/vnd.apache.arrow.stream", "application/x-ndjson"

log = logging.getLogger(__name__)

_SNAPSHOT_SECONDS = 1.0  # between two snapshots of the counts
_TEACHER_THREADS = 32
_STREAM_CHUNK_ROWS = 500


_any_json: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class DecisionOut(msgspec.Struct, omit_defaults=True):
    """A decision in a response; without probabilities unless the client asked for them."""

    decision_id: str
    observation_id: str
    action: str
    confidence: float
    decider: str
    version: str
    probabilities: dict[str, float] | UnsetType = UNSET
    warnings: tuple[str, ...] = ()


class RankedOut(DecisionOut, omit_defaults=True, kw_only=True):
    """A candidate that is shown, in a response."""

    probability: float
    """Of the action that the candidates were sorted by."""


class OutcomeIn(msgspec.Struct, forbid_unknown_fields=True):
    """The outcome of a decision in a request."""

    decision_id: str
    action: str | bool | int | float
    known_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class _OutcomesRequest(msgspec.Struct, forbid_unknown_fields=True):
    decision_id: str | UnsetType = UNSET
    action: str | bool | int | float | UnsetType = UNSET
    known_at: Annotated[datetime, msgspec.Meta(tz=True)] | UnsetType | None = UNSET
    outcomes: list[OutcomeIn] | UnsetType = UNSET


class MadeDecisionIn(msgspec.Struct, forbid_unknown_fields=True):
    """A decision that was made elsewhere, in a request: its observation is decoded by the agent's columns."""

    decision_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
    observation: dict[str, Any]
    decided_at: Annotated[datetime, msgspec.Meta(tz=True)]
    action: str
    probabilities: dict[str, float]
    version: str


class _HandedInRequest(msgspec.Struct, forbid_unknown_fields=True):
    decisions: list[MadeDecisionIn]


class _ServedAgent:
    """One agent with its decoders, recorder and packed model."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.name = agent.config.agent
        self.champions = Champions(agent.config, agent.schema)
        self.recorder: Recorder
        self.scoring = ScoringReader(agent.schema)
        row = agent.schema.row_type
        request_type = msgspec.defstruct(
            "Observations",
            [("observation", row | UnsetType, UNSET), ("observations", list[row] | UnsetType, UNSET)],  # type: ignore[valid-type]
            forbid_unknown_fields=True,
        )
        self.decisions_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(request_type)
        ranking_type = msgspec.defstruct(
            "Candidates",
            [
                ("candidates", list[row]),  # type: ignore[valid-type]
                ("top", Annotated[int, msgspec.Meta(ge=1)], 10),
                ("action", str | bool | int | float | None, None),
            ],
            forbid_unknown_fields=True,
        )
        self.rankings_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(ranking_type)
        self.row_type = row
        self.archive: tuple[Pointer, Archive] | None = None

    @property
    def ready(self) -> bool:
        """Whether there is a champion to decide with, and decisions can be recorded."""
        return self.agent.champion is not None and self.agent.can_record

    def decode(self, decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
        """A request with observations; numbers and truth values are converted to text if the column holds text.

        :raises HttpError: if it is no JSON, or does not fit the agent file.
        """
        try:
            return decode_json(decoder, body)
        except HttpError as error:
            if error.status != 422:
                raise
            return self._decode_other_types(decoder, body, error)

    def decode_handed_in(self, made: Sequence[MadeDecisionIn]) -> Batch:
        """The observations of decisions that were made elsewhere, each with its id and time.

        :raises HttpError: if one does not fit the agent file.
        """
        rows, convert = list[Any](), self.agent.schema.convert_values
        for index, decision in enumerate(made):
            path = f"$.decisions[{index}].observation"
            if missing := [
                name for name in ("observation_id", "observed_at") if decision.observation.get(name) is None
            ]:
                raise HttpError(
                    422, "invalid", f"{missing[0]} is missing - at `{path}`: without it a repeat is not known"
                )
            try:
                rows.append(msgspec.convert(convert(decision.observation, path), self.row_type))
            except msgspec.ValidationError as error:
                raise HttpError(422, "invalid", f"{error} - in `{path}`") from error
        return self.agent.schema.to_batch(rows)

    def _decode_other_types(self, decoder: msgspec.json.Decoder[Any], body: bytes, first_error: HttpError) -> Any:
        """Decode a body whose values need a conversion; slower."""
        convert, content = self.agent.schema.convert_values, decode_json(_any_json, body)
        if not isinstance(content, dict):
            raise first_error
        if isinstance(observation := content.get("observation"), dict):
            content["observation"] = convert(observation, "$.observation")
        for name in ("observations", "candidates"):
            if isinstance(rows := content.get(name), list):
                content[name] = [
                    convert(row, f"$.{name}[{index}]") if isinstance(row, dict) else row
                    for index, row in enumerate(rows)
                ]
        try:
            return msgspec.convert(content, decoder.type)
        except msgspec.ValidationError as error:
            raise HttpError(422, "invalid", str(error)) from error


Endpoint = Callable[[_ServedAgent, Scope, Receive], Awaitable[HttpResponse]]


class Server:
    """The ASGI application of one process.

    :param agents: the agents to serve; they are neither made nor closed here.
    :param metrics: this process's counts.
    :param door: takes all requests that are not this server's own; it is opened and closed here.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        *,
        limits: RequestLimits | None = None,
        guard: AccessGuard | None = None,
        metrics: Metrics | None = None,
        door: Door | None = None,
    ) -> None:
        self._door = door
        self._served = {agent.config.agent: _ServedAgent(agent) for agent in agents}
        self._limits = limits or RequestLimits()
        self._guard = guard or AccessGuard()
        self._metrics = metrics or Metrics(None, "alone")
        self._teacher_pool = ThreadPoolExecutor(_TEACHER_THREADS, thread_name_prefix="asking")
        self._waiting = 0
        self._began, self._save_failed = time.time(), False
        self._outcomes_decoder = msgspec.json.Decoder(_OutcomesRequest)
        self._handed_in_decoder = msgspec.json.Decoder(_HandedInRequest)
        self._fast_routes: dict[tuple[str, str], tuple[str, Endpoint, _ServedAgent]] = {
            ("POST", f"/v1/agents/{served.name}/{name}"): (name, endpoint, served)
            for served in self._served.values()
            for name, endpoint in (
                ("decisions", self._decisions),
                ("rankings", self._rankings),
                ("outcomes", self._record_outcomes),
                ("handed-in", self._record_handed_in),
            )
        }
        self._starlette = self._make_starlette()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._starlette(scope, receive, send)
        elif scope["type"] == "http":
            await self._handle(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        endpoint_name, status = "other", 500
        started = False

        async def send_and_note(message: Any) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        self._waiting += 1
        try:
            if self._door is not None and not _is_own(scope["path"]):
                endpoint_name = "door"
                self._guard.check_host(scope)
                self._require_capacity()
                handled = await self._door(scope, receive, send)
                status = handled.status
                self._metrics.count_door(handled.route, handled.result, time.perf_counter() - began)
                return
            self._guard.check(scope)
            fast_route = self._fast_routes.get((scope["method"], scope["path"]))
            if fast_route is None:
                endpoint_name = _endpoint_label(scope["path"])
                await self._starlette(scope, receive, send_and_note)
            else:
                endpoint_name, endpoint, served = fast_route
                self._require_capacity()
                response = await endpoint(served, scope, receive)
                status = response.status
                await send_response(response, send)
        except HttpError as error:
            status = error.status
            await send_response(error.response(), send)
        except StillhouseError as error:
            response = self._to_http_error(error).response()
            status = response.status
            await send_response(response, send)
        except UpstreamCutError:
            raise  # the server closes the connection: the client must not take the answer for complete
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if started:
                raise
            await send_response(HttpError(500, "internal", "a defect of the server: see its log").response(), send)
        finally:
            self._waiting -= 1
            self._metrics.count_request(endpoint_name, status, time.perf_counter() - began)

    def _require_capacity(self) -> None:
        if self._waiting > self._limits.max_waiting:
            raise HttpError(
                503, "busy", f"{self._limits.max_waiting:,} requests are in progress already", {"retry-after": "1"}
            )

    def _to_http_error(self, error: StillhouseError) -> HttpError:
        retry = min((served.agent.config.runtime.poll.total_seconds() for served in self._served.values()), default=1)
        return to_http_error(error, max(1, round(retry)))

    # ----------------------------------------------------------------- decisions and outcomes

    async def _decisions(self, served: _ServedAgent, scope: Scope, receive: Receive) -> HttpResponse:
        """``POST /v1/agents/{agent}/decisions``"""
        with_probabilities = parse_flag(parse_query(scope, ("probabilities",)), "probabilities")
        require_media_type(scope, (JSON,))
        request = served.decode(served.decisions_decoder, await read_body(scope, receive, self._limits))
        if (request.observation is UNSET) == (request.observations is UNSET):
            raise HttpError(422, "invalid", "the body must have either observation or observations")
        rows = [request.observation] if request.observations is UNSET else request.observations
        self._require_row_count(rows)
        decisions = await self._decide(served, served.agent.schema.to_batch(rows))
        decisions_out = [DecisionOut(*_fields(decision, with_probabilities)) for decision in decisions]
        return json_response(decisions_out[0] if request.observations is UNSET else {"decisions": decisions_out})

    async def _decide(self, served: _ServedAgent, batch: Batch) -> list[Decision]:
        """Predict, ask the teacher about unsure rows, record."""
        pending = served.agent.predict(batch)
        if pending.unsure_rows:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._teacher_pool, served.agent.ask_teacher, pending)
        decisions = await served.recorder.put(pending)
        self._metrics.count_decisions(served.name, pending, decisions)
        return decisions

    async def _rankings(self, served: _ServedAgent, scope: Scope, receive: Receive) -> HttpResponse:
        """``POST /v1/agents/{agent}/rankings``"""
        with_probabilities = parse_flag(parse_query(scope, ("probabilities",)), "probabilities")
        require_media_type(scope, (JSON,))
        request = served.decode(served.rankings_decoder, await read_body(scope, receive, self._limits))
        self._require_row_count(request.candidates)
        action = None if request.action is None else str(text_of(request.action))
        pending = served.agent.predict_ranking(served.agent.schema.to_batch(request.candidates), request.top, action)
        ranking = pending.finish(await served.recorder.put(pending.shown, [pending.offered]))
        self._metrics.count_decisions(served.name, pending.shown, ranking.decisions)
        self._metrics.count_ranking(served.name, ranking)
        shown = [
            RankedOut(*_fields(decision, with_probabilities), probability=decision.probabilities[ranking.action])
            for decision in ranking.decisions
        ]
        return json_response(
            {
                "ranking_id": ranking.ranking_id,
                "action": ranking.action,
                "offered": ranking.offered,
                "decisions": shown,
            }
        )

    async def _record_outcomes(self, served: _ServedAgent, scope: Scope, receive: Receive) -> HttpResponse:
        """``POST /v1/agents/{agent}/outcomes``"""
        self._require_outcomes(served)
        require_media_type(scope, (JSON,))
        request = decode_json(self._outcomes_decoder, await read_body(scope, receive, self._limits))
        if request.outcomes is not UNSET:
            if (request.decision_id, request.action, request.known_at) != (UNSET, UNSET, UNSET):
                raise HttpError(422, "invalid", "the body must have either outcomes or the fields of one, not both")
            outcomes = request.outcomes
        elif request.decision_id is UNSET or request.action is UNSET:
            raise HttpError(422, "invalid", "the body must have decision_id and action, or outcomes")
        else:
            outcomes = [OutcomeIn(request.decision_id, request.action, request.known_at or None)]
        self._require_row_count(outcomes)
        pairs = [(outcome.decision_id, outcome.action) for outcome in outcomes]
        event = served.agent.outcomes_event(pairs, [outcome.known_at for outcome in outcomes])
        await served.recorder.put(None, [event])
        self._metrics.counts.add("outcomes", (served.name,), len(outcomes))
        return json_response({"recorded": len(outcomes)})

    async def _record_handed_in(self, served: _ServedAgent, scope: Scope, receive: Receive) -> HttpResponse:
        """``POST /v1/agents/{agent}/handed-in``: decisions that a champion made elsewhere, as on a device."""
        self._require_token_at_door(served, "decisions made elsewhere")
        require_media_type(scope, (JSON,))
        made = decode_json(self._handed_in_decoder, await read_body(scope, receive, self._limits)).decisions
        self._require_row_count(made)
        event = served.agent.handed_in_event(
            served.decode_handed_in(made),
            [MadeDecision(row.decision_id, row.decided_at, row.action, row.probabilities, row.version) for row in made],
        )
        await served.recorder.put(None, [event])
        self._metrics.counts.add("handed_in", (served.name,), len(made))
        return json_response({"recorded": len(made), "decision_ids": event.decision_ids})

    def _require_outcomes(self, served: _ServedAgent) -> None:
        """:raises HttpError: 403 if the agent has no outcomes, or callers of the door could invent them."""
        config = served.agent.config
        if config.outcomes is None:
            raise HttpError(
                403,
                "no_outcomes",
                f"agent {served.name!r} has no outcomes: its teacher's blind answers judge it, not a client's",
            )
        self._require_token_at_door(served, "outcomes")

    def _require_token_at_door(self, served: _ServedAgent, what: str) -> None:
        """:raises HttpError: 403 if callers of the front door could invent records."""
        if served.agent.config.front_door is not None and not self._guard.requires_token:
            raise HttpError(
                403,
                "token_needed",
                f"agent {served.name!r} answers at the front door, so its {what} need a token: set STILLHOUSE_TOKENS",
            )

    def _require_row_count(self, rows: Sequence[Any]) -> None:
        if not rows:
            raise HttpError(422, "invalid", "the list is empty")
        if len(rows) > self._limits.max_rows:
            raise HttpError(
                413,
                "too_many_rows",
                f"{len(rows):,} rows are more than the {self._limits.max_rows:,} that "
                "one request may have: send several",
            )

    # ----------------------------------------------------------------- MLflow's protocol

    async def _invocations(self, scope: Scope, receive: Receive) -> HttpResponse:
        """``POST /invocations``"""
        query = parse_query(scope, ("agent", "decision_ids", "warnings"))
        served = self._find_or_only(query.get("agent") or get_header(scope, b"stillhouse-agent"))
        media_type = require_media_type(scope, (JSON, CSV))
        body = await read_body(scope, receive, self._limits)
        try:
            with_ids, with_warnings = parse_flag(query, "decision_ids"), parse_flag(query, "warnings")
            if media_type == CSV:
                frame = served.scoring.read_csv(body)
                self._require_row_count(range(len(frame)))
                batch = served.scoring.frame_batch(frame)
            else:
                rows = served.scoring.rows(decode_json(served.scoring.decoder, body))
                self._require_row_count(rows)
                batch = served.scoring.batch(rows)
            decisions = await self._decide(served, batch)
        except DataError as error:
            raise HttpError(400, "invalid", str(error)) from error
        except HttpError as error:
            if error.status == 422:  # MLflow answers 400
                raise HttpError(400, error.code, str(error)) from error
            raise
        ids = {"decision_ids": [decision.decision_id for decision in decisions]} if with_ids else {}
        warnings = {"warnings": [decision.warnings for decision in decisions]} if with_warnings else {}
        response = json_response({"predictions": to_predictions(decisions), **ids, **warnings})
        rows_with_warnings = sum(bool(decision.warnings) for decision in decisions)
        if not rows_with_warnings:
            return response
        return response._replace(headers=[*response.headers, ("stillhouse-warnings", str(rows_with_warnings))])

    def _find_or_only(self, name: str) -> _ServedAgent:
        """The agent of that name; without a name the only one."""
        if name or not self._served:
            return self._find(name)
        if len(self._served) > 1:
            raise HttpError(
                400,
                "which_agent",
                "several agents are served here: name one in ?agent= or in the header "
                f"Stillhouse-Agent; there are: {', '.join(self._served)}",
            )
        return next(iter(self._served.values()))

    # ----------------------------------------------------------------- infrequent requests

    def _make_starlette(self) -> Starlette:
        """All other endpoints, and invalid requests."""
        per_agent = "/v1/agents/{agent}"
        get = ["GET"]
        return Starlette(
            lifespan=self._lifespan,
            routes=[
                Route(f"{per_agent}/decisions", self._unknown_agent, methods=["POST"]),
                Route(f"{per_agent}/rankings", self._unknown_agent, methods=["POST"]),
                Route(f"{per_agent}/outcomes", self._unknown_agent, methods=["POST"]),
                Route(f"{per_agent}/handed-in", self._unknown_agent, methods=["POST"]),
                Route(f"{per_agent}/model", self._model, methods=get),
                Route(f"{per_agent}/knowledge", self._knowledge, methods=get),
                Route(per_agent, self._status, methods=get),
                Route("/v1/agents", self._agents, methods=get),
                *([] if self._door is None else [Route("/v1/door", self._door_status, methods=get)]),
                Route("/invocations", self._score, methods=["POST"]),
                Route("/ping", self._ping, methods=get),
                Route("/health", self._ping, methods=get),
                Route("/version", self._version, methods=get),
                Route("/healthz", self._healthz, methods=get),
                Route("/readyz", self._readyz, methods=get),
                Route("/metrics", self._prometheus, methods=get),
                Route("/openapi.json", self._openapi, methods=get),
            ],
            exception_handlers={
                HTTPException: _starlette_error,
                HttpError: _http_error,
                StillhouseError: self._engine_error,
            },
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        for served in self._served.values():
            served.recorder = Recorder(served.agent)
        if self._door is not None:
            self._door.open()
        saving = asyncio.create_task(self._save_periodically())
        try:
            yield
        finally:
            saving.cancel()
            if self._door is not None:
                await self._door.close()
            for served in self._served.values():
                served.recorder.close()
            self._save()
            self._teacher_pool.shutdown(wait=False)

    async def _save_periodically(self) -> None:
        while True:
            await asyncio.sleep(_SNAPSHOT_SECONDS)
            self._save()

    def _save(self) -> None:
        """Write this worker's counts and problems for the other workers, and for those that replace it."""
        folder = self._metrics.folder
        if self._door is not None:
            self._metrics.count_records(self._door.take_counts())
        try:
            self._metrics.save()
            if folder is not None:
                for served in self._served.values():
                    write_report(folder, self._metrics.name, served.name, Report(problems=served.agent.problems()))
        except Exception as error:  # any error: the task must go on
            if not self._save_failed:
                log.error("this worker's counts cannot be saved in %s; it is tried again: %s", folder, error)
            self._save_failed = True
        else:
            self._save_failed = False

    def _find(self, name: str) -> _ServedAgent:
        served = self._served.get(name)
        if served is None:
            raise HttpError(
                404, "unknown_agent", f"agent {name[:100]!r} is not served here; there are: {', '.join(self._served)}"
            )
        return served

    async def _unknown_agent(self, request: Request) -> Response:
        self._find(request.path_params["agent"])
        raise HttpError(404, "not_found", "there is nothing under this address")

    async def _score(self, request: Request) -> Response:
        self._require_capacity()
        response = await self._invocations(request.scope, request.receive)
        return Response(response.body, response.status, dict(response.headers))

    async def _model(self, request: Request) -> Response:
        """The champion, for a device."""
        served = self._find(request.path_params["agent"])
        archive = await asyncio.to_thread(self._pack_champion, served)
        version = parse_query(request.scope, ("version",)).get("version")
        if version is not None and version not in (archive.version, archive.version.rpartition("@")[2]):
            raise HttpError(
                404,
                "unknown_version",
                f"{version[:100]!r} is not the champion here, which is "
                f"{archive.version}; other versions are in the registry",
            )
        if _matches_etag(request.headers.get("if-none-match", ""), archive.sha256):
            names = ("etag", "cache-control", "stillhouse-version")
            return Response(status_code=304, headers={name: archive.headers[name] for name in names})
        return Response(archive.content, media_type="application/gzip", headers=archive.headers)

    def _pack_champion(self, served: _ServedAgent) -> Archive:
        """The champion's archive, packed once for each champion from bytes that were verified as they were read."""
        pointer = served.champions.read()
        if pointer is None:
            raise NoChampionError(f"agent {served.name!r} has no champion to hand out")
        try:
            served.champions.require_trusted(pointer)
            if served.archive is None or served.archive[0] != pointer:
                served.archive = pointer, pack(served.champions.read_files(pointer), pointer.version)
        except (SignatureError, ConfigError) as error:  # a key that is not trusted, or cannot be read
            raise NoChampionError(str(error)) from error
        return served.archive[1]

    async def _knowledge(self, request: Request) -> Response:
        """One page of the teachers' answers."""
        served = self._find(request.path_params["agent"])
        query = parse_query(request.scope, ("since", "after", "limit"))
        start, limit = _parse_start(query), _parse_limit(query)
        page = await asyncio.to_thread(answers_since, KnowledgeBase(served.agent.config), start, limit)
        headers = {"vary": "accept"}
        if page.next is not None:
            address = f"{request.url.path}?after={page.next.encode()}&limit={limit}"
            headers |= {"link": f'<{address}>; rel="next"', "stillhouse-next": page.next.encode()}
        if ARROW in request.headers.get("accept", ""):
            return StreamingResponse(_stream_arrow(page.rows), media_type=ARROW, headers=headers)
        return StreamingResponse(_stream_ndjson(page.rows), media_type=NDJSON, headers=headers)

    async def _status(self, request: Request) -> Response:
        served = self._find(request.path_params["agent"])
        status = await asyncio.to_thread(self._machine_status, served)
        return Response(status.model_dump_json(), media_type=JSON)

    def _machine_status(self, served: _ServedAgent) -> Status:
        """This worker's status with the values of the whole machine: spools, decisions, the supervisor's problems."""
        own = served.agent.status()
        decisions: dict[str, int] = {}
        counters = self._metrics.total().counters
        outside_contract: dict[str, int] = {}
        for (agent, column, _), count in counters["outside_contract"].items():
            if agent == served.name:
                outside_contract[column] = outside_contract.get(column, 0) + round(count)
        for (agent, decider, _), count in counters["decisions"].items():
            if agent == served.name:
                decisions[decider] = decisions.get(decider, 0) + round(count)
        report = self._machine_report(served)
        return own.model_copy(
            update={
                "decisions": decisions,
                "outside_contract": outside_contract,
                "spool_rows": survey(spool_folder(served.name)).rows,
                "problems": report.problems,
                "last_flush": report.last_flush or own.last_flush,
            }
        )

    def _machine_report(self, served: _ServedAgent) -> Report:
        """The agent's problems on this machine: in this worker, in the other workers, and in the supervisor."""
        folder, own = self._metrics.folder, served.agent.problems()
        if folder is None:
            return Report(problems=own)
        housekeeper = read_housekeeper_report(folder, served.name, self._began)
        others = read_worker_problems(folder, served.name, exclude=self._metrics.name)
        return Report(problems=merge_problems(own, housekeeper.problems, others), last_flush=housekeeper.last_flush)

    async def _agents(self, _request: Request) -> Response:
        return Response(json_response({"agents": list(self._served)}).body, media_type=JSON)

    async def _ping(self, _request: Request) -> Response:
        """As MLflow's: whether a model is there."""
        ready = all(served.ready for served in self._served.values())
        return Response("\n", 200 if ready else 404, media_type=JSON)

    async def _version(self, _request: Request) -> Response:
        """MLflow's version: the endpoint is part of its protocol."""
        from importlib.metadata import version

        return Response(version("mlflow"), media_type=JSON)

    async def _healthz(self, request: Request) -> Response:
        """Whether decisions work; other problems are listed in the body."""
        return await self._health(request, degraded_status=200)

    async def _readyz(self, request: Request) -> Response:
        """Whether everything works: for alarms."""
        return await self._health(request, degraded_status=503)

    async def _health(self, request: Request, degraded_status: int) -> Response:
        ready = {name: served.ready for name, served in self._served.items()}
        reports = await asyncio.to_thread(
            lambda: {name: self._machine_report(served) for name, served in self._served.items()}
        )
        with_details = self._guard.is_authorized(request.scope)
        reasons = {
            name: {
                component: problem.text if with_details else COMPONENT_PROBLEMS[component]
                for component, problem in report.problems.items()
                if problem.over_at is None
            }
            for name, report in reports.items()
        }
        degraded = any(reasons.values())
        status = 503 if not all(ready.values()) else degraded_status if degraded else 200
        body = {
            "alive": True,
            "ready": all(ready.values()),
            "degraded": degraded,
            "agents": ready,
            "reasons": {name: by_component for name, by_component in reasons.items() if by_component},
        }
        return Response(
            json_response(body).body, status, media_type=JSON, headers={"retry-after": "1"} if status == 503 else {}
        )

    async def _prometheus(self, _request: Request) -> Response:
        text = await asyncio.to_thread(self._render_metrics)
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})

    async def _door_status(self, _request: Request) -> Response:
        """What passes through the door, over all workers."""
        assert self._door is not None
        counters = (await asyncio.to_thread(self._metrics.total)).counters
        settings = self._door.settings
        body = {
            "upstream": str(settings.upstream),
            "abstain": settings.abstain,
            "requests": _by_last_label(counters["door_requests"]),
            "captures": _by_last_label(counters["door_captures"]),
            "unrecognised": _by_last_label(counters["door_unrecognised"]),
            "failures": _by_last_label(counters["door_failures"]),
            "unwritten": self._door.records.waiting,
            "is_recording": not self._door.records.is_failing,
        }
        return Response(json_response(body).body, media_type=JSON)

    def _render_metrics(self) -> bytes:
        return self._metrics.render([self._machine_status(served) for served in self._served.values()])

    async def _openapi(self, _request: Request) -> Response:
        configs = [served.agent.config for served in self._served.values()]
        description = build_openapi(
            configs, self._limits, requires_token=self._guard.requires_token, has_door=self._door is not None
        )
        return Response(json_response(description).body, media_type=JSON)

    async def _engine_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, StillhouseError)
        return await _http_error(request, self._to_http_error(error))


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    response = error.response()
    return Response(response.body, response.status, dict(response.headers))


async def _starlette_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors in our format."""
    assert isinstance(error, HTTPException)
    path, allowed = request.url.path[:200], (error.headers or {}).get("Allow", "")
    code, message = {
        404: ("not_found", f"there is nothing under {path!r}; /openapi.json lists the paths"),
        405: ("method_not_allowed", f"{path!r} takes {allowed}, not {request.method[:20]}"),
    }.get(error.status_code, ("refused", str(error.detail)))
    return await _http_error(request, HttpError(error.status_code, code, message, error.headers))


def _fields(decision: Decision, with_probabilities: bool) -> tuple[Any, ...]:
    """The values of a :class:`DecisionOut`."""
    return (
        decision.decision_id,
        decision.observation_id,
        decision.action,
        decision.confidence,
        decision.decider,
        decision.version,
        decision.probabilities if with_probabilities else UNSET,
        decision.warnings,
    )


def _by_last_label(series: Mapping[tuple[str, ...], float]) -> dict[str, int]:
    """Counts by their last label."""
    counts: dict[str, int] = {}
    for labels, count in series.items():
        counts[labels[-1]] = counts.get(labels[-1], 0) + round(count)
    return counts


_OWN_PATHS = frozenset(
    {
        "/v1/agents",
        "/v1/door",
        *(f"/{name}" for name in ("invocations", "ping", "health", "version", "healthz", "readyz", "metrics")),
        "/openapi.json",
    }
)


def _is_own(path: str) -> bool:
    """Whether a path is this server's own even where there is an upstream."""
    return path in _OWN_PATHS or path.startswith("/v1/agents/")


def _endpoint_label(path: str) -> str:
    """The endpoint as a metric label: one of a few values, for any path."""
    last = path.rpartition("/")[2]
    if path.startswith("/v1/agents/"):
        return last if last in ("model", "knowledge", "decisions", "rankings", "outcomes", "handed-in") else "status"
    known = ("invocations", "ping", "health", "version", "healthz", "readyz", "metrics", "openapi.json")
    return last if path == f"/{last}" and last in known else "other"


def _matches_etag(if_none_match: str, sha256: str) -> bool:
    """Whether If-None-Match names this content (weak comparison, RFC 9110 13.1.2)."""
    tags = [part.strip().removeprefix("W/") for part in if_none_match.split(",")]
    return if_none_match.strip() == "*" or f'"{sha256}"' in tags


def _parse_start(query: Mapping[str, str]) -> datetime | Cursor:
    if "after" in query:
        try:
            return Cursor.parse(query["after"])
        except SchemaError as error:
            raise HttpError(404, "unknown_page", str(error)) from error
    text = query.get("since", "1970-01-01T00:00:00Z")
    try:
        since: datetime = msgspec.convert(text, Annotated[datetime, msgspec.Meta(tz=True)])
        return since.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError) as error:
        raise HttpError(
            422,
            "invalid",
            f"since is a time with its zone, such as 2026-01-31T00:00:00Z (with + as %2B), not {text[:50]!r}",
        ) from error


def _parse_limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", "1000")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_PAGE_ROWS):
        raise HttpError(422, "invalid", f"limit is 1 to {MAX_PAGE_ROWS:,}, not {text[:50]!r}")
    return int(text)


def _stream_ndjson(rows: pa.Table) -> Iterator[bytes]:
    encode = msgspec.json.Encoder().encode_lines
    for batch in rows.to_batches(max_chunksize=_STREAM_CHUNK_ROWS):
        yield encode(batch.to_pylist())


def _stream_arrow(rows: pa.Table) -> Iterator[bytes]:
    buffer = BytesIO()
    with pa.ipc.new_stream(buffer, rows.schema) as stream:
        for batch in rows.to_batches(max_chunksize=_STREAM_CHUNK_ROWS):
            stream.write_batch(batch)
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()
