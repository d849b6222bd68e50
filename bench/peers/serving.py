"""The section `serving`: zero_shot with the demo models, through one and the same Triton server."""
import base64
import csv
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from pathlib import Path

import bench as common
from bench import CACHE, CORES, HERE, HOME, ROOT, Failed

LABELS = ["a cat", "a dog", "a croissant", "a castle", "a sailboat", "a bicycle", "a portrait of a woman",
          "a bowl of strawberries", "a mountain lake", "a street at night"]
PICTURE = ROOT / "models/croissant.png"
TRITONSERVER = Path(os.environ["IMPROMPT_TRITONSERVER"])
# Where scripts/bench-peers puts what only this section needs.
TOOLS = HOME / "bench-tools"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """A Triton server on ports of its own, stopped when it is left."""

    def __init__(self, name, repository, backends, environment):
        self.ports = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.ports[0]}"
        self.log = CACHE / f"server-{name}.log"
        flags = [f"--model-repository={repository}", f"--backend-directory={backends}", "--http-address=127.0.0.1",
                 f"--http-port={self.ports[0]}", "--grpc-address=127.0.0.1", f"--grpc-port={self.ports[1]}", "--allow-metrics=false"]
        self.process = subprocess.Popen([TRITONSERVER, *flags], stdout=open(self.log, "w"), stderr=subprocess.STDOUT,
                                        env=os.environ | environment)

    def __enter__(self):
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.url}/v2/health/ready").close()
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        self.__exit__()
        raise Failed(f"the server did not become ready; see {self.log}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def ours(repository):
    backends = CACHE / "backends"
    (backends / "imprompt").mkdir(parents=True, exist_ok=True)
    shutil.copy(os.environ["IMPROMPT_BACKEND"], backends / "imprompt/libtriton_imprompt.so")
    return Server("imprompt", repository, backends, {})


def python_backend(python):
    """The stub of this Python's version, its library, and the packages of the peers."""
    backends, repository = CACHE / "python-backends", CACHE / "python-repository"
    wheel = TOOLS / "python_backend/pytriton/tritonserver"
    shutil.copytree(wheel / "backends/python", backends / "python", dirs_exist_ok=True)
    stub = backends / "python/triton_python_backend_stub"
    shutil.copy(wheel / "python_backend_stubs/3.11/triton_python_backend_stub", stub)
    stub.chmod(0o755)
    shutil.rmtree(repository, ignore_errors=True)
    (repository / "zero_shot/1").mkdir(parents=True)
    shutil.copy(HERE / "python_backend/config.pbtxt", repository / "zero_shot")
    shutil.copy(HERE / "python_backend/model.py", repository / "zero_shot/1")
    asked = "import json, site, sys, sysconfig; print(json.dumps([sysconfig.get_config_var('LIBDIR'), sys.base_prefix, " \
            "sysconfig.get_paths()['purelib']]))"
    library, home, packages = json.loads(common.output(str(python), "-c", asked))
    # The stub's own libraries are those of the server's wheel.
    paths = [library, str(HOME / "tritonserver/nvidia_pytriton.libs"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return Server("python", repository, backends, {
        "LD_LIBRARY_PATH": ":".join(paths), "PYTHONHOME": home, "PEER_PACKAGES": packages, "PEER_CLIP": str(ROOT / "models/demo-clip"),
        "PEER_THREADS": str(CORES), "OMP_NUM_THREADS": str(CORES), "TRANSFORMERS_VERBOSITY": "error"})


def perf_analyzer(server, concurrencies, seconds):
    """perf_analyzer over gRPC, a closed loop at each concurrency: what it says of each."""
    data = CACHE / "zero_shot.json"
    # As it goes over the wire: a BYTES element begins with its length.
    picture = PICTURE.read_bytes()
    picture = base64.b64encode(struct.pack("<I", len(picture)) + picture).decode()
    data.write_text(json.dumps({"data": [{"image": {"b64": picture}, "labels": LABELS}]}))
    found = {}
    environment = os.environ | {"LD_LIBRARY_PATH": str(TOOLS / "perf_analyzer/lib")}
    for concurrency in concurrencies:
        table = CACHE / "perf.csv"
        table.unlink(missing_ok=True)
        command = [TOOLS / "perf_analyzer/perf_analyzer", "-m", "zero_shot", "-i", "grpc", "-u", f"127.0.0.1:{server.ports[1]}",
                   "--input-data", data, "--shape", "image:1", "--shape", f"labels:{len(LABELS)}", "-b", "1",
                   "--concurrency-range", f"{concurrency}:{concurrency}:1", "--measurement-interval", seconds * 1000,
                   "--max-trials", 4, "--stability-percentage", 999, "--percentile", 50, "-f", table]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
        # Three windows each, however much they differ: the rounds show that.
        rows = list(csv.DictReader(io.StringIO(table.read_text()))) if table.exists() else []
        if not rows:
            raise Failed(f"perf_analyzer: {(done.stdout + done.stderr).strip()[-600:]}")
        row = rows[-1]
        found[concurrency] = {"per_second": float(row["Inferences/Second"]), "p50_ms": float(row["p50 latency"]) / 1e3,
                              "p99_ms": float(row["p99 latency"]) / 1e3}
    return found


def serving(bench):
    """zero_shot of the demo models with 10 labels: Triton with our backend, and with the same in its Python backend."""
    repository = common.repository(bench, "demo", **common.DEMO)
    concurrencies = (1, 8) if bench.quick else (1, 2, 4, 8, 16, 32, 64)
    seconds = 2 if bench.quick else 3
    found = {"f32": [], "stock": []}
    overheads = []
    flags = [str(PICTURE), "--part", "zero_shot", "--labels", ",".join(LABELS), "--json", "--requests", 2000, "--warm-up", 50, "--limit", seconds]
    for _ in range(bench.rounds):
        with ours(repository) as server:
            found["f32"].append(perf_analyzer(server, concurrencies, seconds))
            # In turns with the server, idle then: the same call in this process, the same client.
            over_http = json.loads(bench.run([common.IMPROMPT, "bench", *flags, "--server", server.url]))
        here = json.loads(bench.run([common.IMPROMPT, "bench", *flags, "--repo", repository]))
        overheads.append({"server": over_http, "in_process": here})
        with python_backend(bench.python) as server:
            found["stock"].append(perf_analyzer(server, concurrencies, seconds))
    bench.raw.append({"perf_analyzer": found, "overhead": overheads})
    for concurrency in concurrencies:
        for name, key, unit, better in (("throughput", "per_second", "infer/s", "higher"), ("median latency", "p50_ms", "ms", "lower")):
            values = {side: [one[concurrency][key] for one in rounds] for side, rounds in found.items()}
            bench.row(f"zero_shot, {concurrency} clients: {name}", unit, values, better, "the peer is Triton's Python backend", "")
    grpc = [one[1]["p50_ms"] for one in found["f32"]]
    inside = [one["in_process"]["latency_ms"]["p50"] for one in overheads]
    bench.row("in-process call, zero_shot, 10 labels", "ms", {"f32": inside}, "lower", "median", "")
    bench.row("Triton and backend over that, gRPC (perf_analyzer)", "ms", {"f32": [a - b for a, b in zip(grpc, inside)]}, "lower", "median", "0.3 ms")
    bench.row("Triton and backend over that, HTTP (imprompt bench)", "ms",
              {"f32": [one["server"]["latency_ms"]["p50"] - one["in_process"]["latency_ms"]["p50"] for one in overheads]}, "lower", "median", "0.3 ms")
