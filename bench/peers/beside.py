"""The section `beside`: what a client that asks for mode best does to one that asks for mode fast."""
from concurrent.futures import ThreadPoolExecutor

import bench as common
from bench import ROOT
from sections import full_sizes
from serving import ours
from settings import count, variant

PICTURE = ROOT / "goldens/demo/photograph-chelsea.png"


def one_instance(config):
    """As any stage would be: an instance that takes requests in batches."""
    return count(1)(config) + "dynamic_batching { }\n"


VARIANTS = {"as built": {}, "ranker: 1 instance": {"ranker": [one_instance]}}


def beside(bench):
    """Mode fast with a given caption through the server, alone and while another client asks for mode best all the time."""
    demo = common.repository(bench, "demo", **common.DEMO)
    title, _, (*_, full) = full_sizes(bench)
    for model, repository, seconds in (("demo models", demo, 10), (title, full, 20 if bench.quick else 90)):
        found = {name: [] for name in VARIANTS}
        for _ in range(bench.rounds):
            for name, changes in VARIANTS.items():
                bench.watch.may_go_on()
                with ours(variant(repository, changes)) as server:
                    found[name].append(measure(bench, server, seconds))
        bench.raw.append({"model": model, "bench": found})
        for what, unit, scale in (("fast alone", "ms", 1), ("fast beside best", "ms", 1), ("best beside fast", "s", 1e-3)):
            for name, rounds in found.items():
                for key, said in (("p50", "median"), ("max", "longest")):
                    values = [scale * one[what]["latency_ms"][key] for one in rounds]
                    bench.row(f"{model}, {what}, {name}: {said}", unit, {"f32": values}, "lower")


def measure(bench, server, seconds):
    """What `imprompt bench` says of fast alone, and of both beside each other for so many seconds."""
    def ask(mode, *flags):
        return bench.ours("interrogate", PICTURE, "--mode", mode, "--server", server.url, "--given-caption", "a cat with green eyes", *flags)
    found = {"fast alone": ask("fast", "--requests", 20)}
    with ThreadPoolExecutor() as beside:
        best = beside.submit(ask, "best", "--requests", 100_000, "--warm-up", 0, "--limit", seconds)
        found["fast beside best"] = ask("fast", "--requests", 100_000, "--warm-up", 1, "--limit", seconds * 3 // 4)
    return found | {"best beside fast": best.result()}
