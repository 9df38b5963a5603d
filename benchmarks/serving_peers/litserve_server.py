"""LitServe with a variant's ``variant.py``; arguments: folder, port, batch size, workers."""

import importlib.util
import sys
from pathlib import Path

import litserve as ls
import pandas as pd


class VariantAPI(ls.LitAPI):
    """Takes one row or several; responds ``{"predictions": [...]}``, as ``mlflow models serve`` does."""

    def setup(self, device):
        folder = Path(FOLDER)
        spec = importlib.util.spec_from_file_location("variant", folder / "variant.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.variant = module.Variant(folder)

    def decode_request(self, request):
        split = request["dataframe_split"]
        return pd.DataFrame(split["data"], columns=split["columns"])

    def predict(self, frame):
        return self.variant.predict(frame)

    def encode_response(self, answers):
        return {"predictions": answers.to_dict(orient="records")}


class Batching(VariantAPI):
    """The same for several requests at once."""

    def batch(self, frames):
        self.lengths = [len(frame) for frame in frames]
        return pd.concat(frames, ignore_index=True)

    def unbatch(self, answers):
        begin, parts = 0, []
        for length in self.lengths:
            parts.append(answers.iloc[begin : begin + length])
            begin += length
        return parts


FOLDER, PORT, BATCH, WORKERS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

if __name__ == "__main__":
    options = {"max_batch_size": BATCH, "batch_timeout": 0.005} if BATCH > 1 else {}
    api_class = Batching if BATCH > 1 else VariantAPI
    server = ls.LitServer(api_class(api_path="/invocations", **options), accelerator="cpu", workers_per_device=WORKERS)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
