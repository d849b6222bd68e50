"""Ranking a merged table of 111,867 labels at ViT-L/14's width: imprompt and clip-interrogator,
alternately. Run by scripts/bench-rank with the Python of goldens/setup."""

import re
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import torch
from clip_interrogator.clip_interrogator import LabelTable

LABELS, WIDTH, COUNT, ROUNDS = 111_867, 768, 2_048, 5


def reference(rows):
    table = LabelTable.__new__(LabelTable)
    table.chunk_size, table.device, table.config = 2048, "cpu", SimpleNamespace(quiet=True)
    table.labels = list(range(LABELS))
    table.embeds = list(rows.astype(np.float32))
    return table


def timed(work):
    start = time.perf_counter()
    result = work()
    return (time.perf_counter() - start) * 1e3, [int(index) for index in result]


def differences(name, found, expected, rows, image):
    """Places where the order is another, and how near those labels are in float64."""
    exact = rows.astype(np.float64) @ image.astype(np.float64)
    places = [k for k in range(len(expected)) if found[k] != expected[k]]
    gap = max((abs(exact[found[k]] - exact[expected[k]]) for k in places), default=0.0)
    same = "the same labels" if set(found) == set(expected) else "other labels"
    print(f"  {name}: {len(places)} of {len(expected)} places differ, similarities there within {gap:.1e}; {same}")


def main():
    binary, folder = sys.argv[1:]
    rng = np.random.default_rng(1)
    # As CLIP's rows are: much alike, so that similarities are near each other.
    rows = rng.standard_normal((LABELS, WIDTH), dtype=np.float32) + 2 * rng.standard_normal(WIDTH, dtype=np.float32)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    image = rng.standard_normal(WIDTH, dtype=np.float32) + rows[7].astype(np.float32) * 10
    image /= np.linalg.norm(image)
    rows.tofile(f"{folder}/table")
    image.tofile(f"{folder}/image")
    table, features = reference(rows), torch.from_numpy(image)[None]
    theirs, ours = {"two stages": [], "plain": []}, {"two stages": [], "plain": []}
    with torch.no_grad():
        for _ in range(ROUNDS):
            for name, work in [
                ("two stages", lambda: table.rank(features, top_count=COUNT)),
                ("plain", lambda: table._rank(features, table.embeds, top_count=COUNT)),
            ]:
                spent, ranking = timed(work)
                theirs[name].append((spent, ranking))
            command = [binary, "--bench", f"{folder}/table", f"{folder}/image"]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for name, line, file in [
                ("two stages", "pass and two stages", "two_stage"),
                ("plain", "pass and plain best", "plain"),
            ]:
                spent = float(re.search(rf"^{line}.*?([\d.]+) ms median", output, re.M)[1])
                ours[name].append((spent, np.fromfile(f"{folder}/{file}", np.uint32).tolist()))
    print(output, end="")
    print(f"{LABELS} x {WIDTH}, the best {COUNT}")
    for name in theirs:
        us, them = (statistics.median(spent for spent, _ in side[name]) for side in (ours, theirs))
        print(f"  {name:<11} imprompt {us:7.2f} ms   clip-interrogator {them:8.2f} ms   ratio {them / us:.1f}")
        differences(name, ours[name][-1][1], theirs[name][-1][1], rows, image)


main()
