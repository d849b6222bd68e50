"""The section `settings`: what instances, threads and batch delays other than the defaults do to zero_shot."""
import re
import shutil

import bench as common
from bench import CACHE, CORES, Failed
from sections import clips
from serving import ours, perf_analyzer


def edit(config, pattern, replacement):
    changed, count = re.subn(pattern, replacement, config)
    if count != 1:
        raise Failed(f"{count} places of {pattern} in a config.pbtxt, not one")
    return changed


def count(number):
    return lambda config: edit(config, r"count: \d+ ", f"count: {number} ")


def delay(microseconds):
    return lambda config: edit(config, r"dynamic_batching \{ \}",
                               f"dynamic_batching {{ max_queue_delay_microseconds: {microseconds} }}")


def threads(number):
    return lambda config: edit(config, r'(key: "threads"\n\s*value: \{ string_value: ")0', rf"\g<1>{number}")


# What is tried, beside what `imprompt build` writes: by stage, what is done to its config.pbtxt.
VARIANTS = {
    "as built": {},
    "preprocess: 1 instance": {"preprocess": [count(1)]},
    "clip_image: 2 instances": {"clip_image": [count(2)]},
    "clip_image: 2 instances of half the threads": {"clip_image": [count(2), threads(max(1, CORES // 2))]},
    "tagger: 1 instance": {"tagger": [count(1)]},
    "clip_image: delay of 0.2 ms": {"clip_image": [delay(200)]},
    "clip_image: delay of 2 ms": {"clip_image": [delay(2000)]},
    "all: delay of 0.2 ms": {stage: [delay(200)] for stage in ("preprocess", "clip_image", "tagger")},
}


def variant(repository, changes):
    """The repository with other configurations; what is not changed is a link."""
    out = CACHE / "settings-repository"
    shutil.rmtree(out, ignore_errors=True)
    for model in repository.iterdir():
        if not (model / "config.pbtxt").exists():
            continue
        (out / model.name).mkdir(parents=True)
        config = (model / "config.pbtxt").read_text()
        for change in changes.get(model.name, []):
            config = change(config)
        (out / model.name / "config.pbtxt").write_text(config)
        for version in model.iterdir():
            if version.is_dir():
                (out / model.name / version.name).symlink_to(version)
    return out


def settings(bench):
    """zero_shot with 10 labels through the server, by instances, threads and batch delays: the defaults are those of `imprompt build`."""
    demo = common.repository(bench, "demo", **common.DEMO)
    measured = {"demo models": (demo, (1, 2, 8))}
    for name, folder in clips(bench):
        if name == "clip-vit-b-32":
            measured["ViT-B/32"] = common.repository(bench, name, clip=folder), (1, 8)
    seconds = 1 if bench.quick else 2
    for model, (repository, concurrencies) in measured.items():
        found = {name: [] for name in VARIANTS}
        for _ in range(bench.rounds):
            for name, changes in VARIANTS.items():
                with ours(variant(repository, changes)) as server:
                    found[name].append(perf_analyzer(server, concurrencies, seconds))
        bench.raw.append({"model": model, "perf_analyzer": found})
        for concurrency in concurrencies:
            for key, unit, better in (("per_second", "infer/s", "higher"), ("p50_ms", "ms", "lower")):
                for name, rounds in found.items():
                    bench.row(f"{model}, {concurrency} clients, {name}", unit, {"f32": [one[concurrency][key] for one in rounds]}, better)
