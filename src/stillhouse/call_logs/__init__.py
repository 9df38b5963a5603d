"""Logs of calls to a language model: the calls that answer an agent's question become its observations and knowledge.

Each format is a module with a function from one record of a JSON-lines file to calls: ``openai`` (requests and
responses), ``otel`` (spans of OpenTelemetry), ``mlflow`` (traces). What a call says about the agent is the same for all
of them (``questions``). ``source`` gives them to the import of :mod:`stillhouse.knowledge.importing`.
"""

from stillhouse.call_logs.calls import Format
from stillhouse.call_logs.run import ANY_TASK, FORMATS, CallSources, open_call_logs

__all__ = ["ANY_TASK", "FORMATS", "CallSources", "Format", "open_call_logs"]
