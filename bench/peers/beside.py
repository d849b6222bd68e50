"""The section `beside`: what a client that asks for mode best does to one that asks for mode fast."""
import json
import subprocess

import bench as common
from bench import ROOT, Failed
from sections import full_sizes
from serving import ours
from settings import count, variant

PICTURE = ROOT / "goldens/demo/photograph-chelsea.png"


def one_instance(config):
    """As any stage would be: an instance that takes requests in batches."""
    return count(1)(config) + "dynamic_batching { }\n"


VARIANTS = {"as built": {}, "ranker: 1 instance": {"ranker": [one_instance]}}


def command(server, mode, *flags):
    return [str(part) for part in (common.IMPROMPT, "bench", PICTURE, "--part", "interrogate", "--mode", mode, "--server", server.url,
                                   "--given-caption", "a cat with green eyes", "--json", *flags)]


def beside(bench):
    """Mode fast with a given caption through the server, alone and while another client asks for mode best all the time."""
    demo = common.repository(bench, "demo", clip=ROOT / "models/demo-clip", captioner=ROOT / "models/demo-blip2",
                             vocabulary=ROOT / "models/demo-vocabulary")
    title, _, (*_, full) = full_sizes(bench)
    for model, repository, seconds in (("demo models", demo, 10), (title, full, 20 if bench.quick else 90)):
        found = {name: [] for name in VARIANTS}
        for _ in range(bench.rounds):
            for name, changes in VARIANTS.items():
                bench.watch.may_go_on()
                with ours(variant(repository, changes)) as server:
                    found[name].append(measure(server, seconds))
        bench.raw.append({"model": model, "bench": found})
        for what, unit, scale in (("fast alone", "ms", 1), ("fast beside best", "ms", 1), ("best beside fast", "s", 1e-3)):
            for name, rounds in found.items():
                for key, said in (("p50", "median"), ("max", "longest")):
                    values = [scale * one[what]["latency_ms"][key] for one in rounds]
                    bench.row(f"{model}, {what}, {name}: {said}", unit, {"f32": values}, "lower")


def measure(server, seconds):
    """What `imprompt bench` says of fast alone, and of both beside each other for so many seconds."""
    found = {"fast alone": json.loads(bench_once(command(server, "fast", "--requests", 20)))}
    best = subprocess.Popen(command(server, "best", "--requests", 100_000, "--warm-up", 0, "--limit", seconds),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found["fast beside best"] = json.loads(bench_once(command(server, "fast", "--requests", 100_000, "--warm-up", 1, "--limit", seconds * 3 // 4)))
    out, error = best.communicate()
    if best.returncode:
        raise Failed(error.strip())
    return found | {"best beside fast": json.loads(out.splitlines()[-1])}


def bench_once(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed(done.stderr.strip())
    return done.stdout.splitlines()[-1]
