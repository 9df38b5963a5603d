"""All errors that stillhouse raises on purpose::

    StillhouseError
    ├── ConfigError         the agent file: a wrong key, a wrong value, a missing file
    ├── PartError           a "module:object" that cannot be imported or lacks a required method
    ├── DataError           rows that cannot be used
    │   ├── SchemaError         missing columns, wrong types
    │   │   └── UnknownDecisionError    an outcome of a decision that this agent never made
    │   └── WindowError         a window that is empty or too small
    ├── LeakageError        a teacher that answers for rows it was fitted on, a test row in the training set
    ├── ExportError         a student whose exported variant does not agree with it
    ├── StoreError          data under STILLHOUSE_HOME: another version, a damaged table
    ├── RegistryError       MLflow is not reachable, or has no such model, version or alias
    ├── SignatureError      a model that no trusted key has signed, or whose files were changed
    └── RuntimeStateError   the agent cannot decide or record at the moment
        ├── NoChampionError     no model to decide with
        └── SpoolError          the write-ahead spool cannot be read or written
            ├── SpoolFullError      too many rows wait for the flush
            └── SpoolDamagedError   its file is not a spool, or has unreadable parts

The message says what is wrong, where, and what to do. Any other exception is a bug and keeps its traceback.
"No drift" and "the challenger lost" are verdicts, never errors.

>>> issubclass(WindowError, StillhouseError)
True
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
    "SignatureError",
    "SpoolDamagedError",
    "SpoolError",
    "SpoolFullError",
    "StillhouseError",
    "StoreError",
    "UnknownDecisionError",
    "WindowError",
]


class StillhouseError(Exception):
    """Base of all errors that a user can correct; printed without a traceback."""


class ConfigError(StillhouseError):
    """The agent file is invalid; the message names file, line, key and remedy."""


class PartError(StillhouseError):
    """An object named in the agent file cannot be imported, lacks a required method, or returns a wrong value."""


class DataError(StillhouseError):
    """Rows that cannot be used."""


class SchemaError(DataError):
    """Columns are missing or have types that the data contract does not allow."""


class UnknownDecisionError(SchemaError):
    """An outcome names a decision that this agent never made."""


class WindowError(DataError):
    """A window of the knowledge base is empty or has too few rows."""


class LeakageError(StillhouseError):
    """A model would label, or be evaluated on, rows that it was fitted on."""


class ExportError(StillhouseError):
    """A student could not be exported to a variant that agrees with it."""


class StoreError(StillhouseError):
    """Data under ``STILLHOUSE_HOME`` cannot be read: it is of another version, or damaged."""


class RegistryError(StillhouseError):
    """MLflow is not reachable, or does not have the requested model, version or alias."""


class SignatureError(StillhouseError):
    """No trusted key has signed a model, its files differ from the signed ones, or it was withdrawn."""


class RuntimeStateError(StillhouseError):
    """The agent cannot decide or record at the moment; a later attempt may succeed."""


class NoChampionError(RuntimeStateError):
    """No version of the agent's model was promoted yet, or none could be loaded so far."""


class SpoolError(RuntimeStateError):
    """The write-ahead spool cannot be read or written: a full disk, a damaged file."""


class SpoolFullError(SpoolError):
    """More rows wait in the spool than the agent file allows."""


class SpoolDamagedError(SpoolError):
    """The file of a spool is missing, is not a spool, or has unreadable parts."""
