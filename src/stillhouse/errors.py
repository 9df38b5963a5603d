"""Every error that stillhouse raises on purpose, in one picture.

    StillhouseError
    ├── ConfigError         the agent file: a key, a value, a file that is not there
    ├── PartError           a "module:object" that does not import or does not keep its promise
    ├── DataError           rows that cannot be used
    │   ├── SchemaError         missing columns, wrong types
    │   │   └── UnknownDecisionError    an outcome of a decision that was never handed out
    │   └── WindowError         a window that is empty or too small
    ├── LeakageError        a teacher asked about rows it was fitted on, a test row that was trained on
    ├── ExportError         a student that does not become the variant it should be
    ├── StoreError          what lies under STILLHOUSE_HOME: another version, a damaged table
    ├── RegistryError       MLflow does not answer, or has no such model, version or alias
    └── RuntimeStateError   the agent cannot decide or record now
        ├── NoChampionError     there is no model to decide with
        └── SpoolError          the write-ahead spool cannot be read or written
            └── SpoolFullError      too much waits in it for the knowledge base

The message says what is wrong, where, and what to do. Everything else that is raised is a defect of
ours and keeps its traceback. "No drift" and "the challenger lost" are verdicts, never errors.
"""

__all__ = [
    "ConfigError",
    "DataError",
    "ExportError",
    "LeakageError",
    "NoChampionError",
    "PartError",
    "RegistryError",
    "RuntimeStateError",
    "SchemaError",
    "SpoolError",
    "SpoolFullError",
    "StillhouseError",
    "StoreError",
    "UnknownDecisionError",
    "WindowError",
]


class StillhouseError(Exception):
    """Base of all errors a user can do something about; shown without a traceback."""


class ConfigError(StillhouseError):
    """The agent file cannot be used; the message names file, line, key and remedy."""


class PartError(StillhouseError):
    """A user's object named in the agent file does not import or misses a promised method."""


class DataError(StillhouseError):
    """Rows that cannot be used."""


class SchemaError(DataError):
    """Columns are missing or have types that the agent's contract does not allow."""


class UnknownDecisionError(SchemaError):
    """An outcome names a decision that this agent never handed out."""


class WindowError(DataError):
    """A window of the knowledge base is empty or has fewer rows than the work needs."""


class LeakageError(StillhouseError):
    """Rows would be labelled, or judged, by a model that was fitted on them."""


class ExportError(StillhouseError):
    """A student could not be turned into a variant that agrees with it."""


class StoreError(StillhouseError):
    """What is stored under ``STILLHOUSE_HOME`` cannot be read: another version's, or damaged."""


class RegistryError(StillhouseError):
    """MLflow does not answer, or does not hold the model, version or alias asked for."""


class RuntimeStateError(StillhouseError):
    """The agent cannot decide or record now; later it may."""


class NoChampionError(RuntimeStateError):
    """No version of the agent's model was ever promoted, or none could be loaded so far."""


class SpoolError(RuntimeStateError):
    """The write-ahead spool cannot be read or written: a full disk, a damaged file."""


class SpoolFullError(SpoolError):
    """More rows wait for the knowledge base than the agent file allows."""
