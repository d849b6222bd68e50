#!/usr/bin/env python3
"""Writes the tables of docs/benchmarks.md out of the raw results in docs/benchmarks/*.json.

    python3 bench/peers/report.py
"""
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/benchmarks.md"
ORDER = ["labels", "chain", "image", "picture", "rank", "caption", "best", "precision", "serving", "settings", "beside"]
PEERS = ("stock", "tuned")


def median(values):
    return statistics.median(values)


def shown(value, unit=""):
    """Three digits that matter; of cosines, which are near 1, five after the point."""
    if unit == "cosine":
        return f"{value:.5f}"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def cell(values, unit=""):
    """Median, and least to most where there are several."""
    if not values:
        return "-"
    text = shown(median(values), unit)
    return text if len(values) == 1 else f"{text} ({shown(min(values), unit)} to {shown(max(values), unit)})"


def ratio(row, ours, peer):
    """How many times faster, by the medians."""
    values = row["values"]
    if not values.get(ours) or not values.get(peer):
        return None
    a, b = median(values[peer]), median(values[ours])
    return a / b if row["better"] == "lower" else b / a


def of_peak(row, side, peaks):
    """The share of what the machine can do at most that a side's median reaches."""
    work, values = row.get("work"), row["values"].get(side)
    if not work or not values:
        return None
    value = median(values)
    seconds = 1 / value if row["better"] == "higher" else value * {"ms": 1e-3, "s": 1.0}[row["unit"]]
    if "gbytes" in work:
        # Weights of float16, int8 and int4 have a half, a quarter and an eighth of float32's bytes.
        return work["gbytes"] / {"f16": 2, "int8": 4, "int4": 8}.get(side, 1) / seconds / peaks["memory_gbytes"], "memory"
    peak = peaks["onnxruntime_int8" if side in ("int8", "int4") else "onnxruntime_float32"]
    return work["gflop"] / seconds / peak, "int8 products" if side in ("int8", "int4") else "float32 products"


def peak_cell(row, sides, peers, peaks):
    """The shares of our sides; where weights are read, in what they are kept too, and the share of the peers."""
    if "gbytes" not in row.get("work", {}):
        shares = [of_peak(row, side, peaks) for side in sides]
        return ", ".join(f"{share[0]:.0%} {share[1]}" for share in shares if share) or "-"
    names = {"stock": "peer", "tuned": "peer, tuned"}
    shares = {names.get(side, side): of_peak(row, side, peaks) for side in (*sides, *peers)}
    return "memory: " + "; ".join(f"{name} {share[0]:.0%}" for name, share in shares.items() if share)


def table(result):
    rows = result["rows"]
    sides = [side for side in ("f32", "high", "f16", "int8", "int4") if any(side in row["values"] for row in rows)]
    peers = [peer for peer in PEERS if any(peer in row["values"] for row in rows)]
    names = {"f32": "imprompt", "high": "imprompt high", "f16": "imprompt float16", "int8": "imprompt int8", "int4": "imprompt int4",
             "stock": "peer", "tuned": "peer, tuned"}
    head = ["measured", "unit", *(names[peer] for peer in peers), *(names[side] for side in sides),
            *(f"{names[side]} / {names[peer]}" for side in sides for peer in peers)]
    last = {"goal": any(row["goal"] for row in rows), "of peak": any(row.get("work") for row in rows)}
    head += [column for column, is_told in last.items() if is_told]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    notes = []
    for row in rows:
        name = row["name"]
        if row["note"]:
            if row["note"] not in notes:
                notes.append(row["note"])
            name += f" [{notes.index(row['note']) + 1}]"
        times = [ratio(row, side, peer) for side in sides for peer in peers]
        cells = [name, row["unit"], *(cell(row["values"].get(side), row["unit"]) for side in (*peers, *sides)),
                 *(f"{one:.1f}x" if one else "-" for one in times)]
        cells += [row["goal"] or "-"] * last["goal"] + [peak_cell(row, sides, peers, result["peaks"])] * last["of peak"]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    if notes:
        text += "\n" + "\n".join(f"[{number}] {note}  " for number, note in enumerate(notes, 1)) + "\n"
    if result["checks"]:
        text += "\n" + "\n".join(f"- {check['what']}: {told(check['found'])}" for check in result["checks"]) + "\n"
    return text


def told(found):
    return {True: "yes", False: "no"}.get(found, found if isinstance(found, str) else json.dumps(found, ensure_ascii=False))


def head(result):
    """What was measured where, in two lines."""
    machine, peaks, versions = result["machine"], result["peaks"], result["versions"]
    cpu = machine["lscpu"]
    flags = machine.get("vector_flags", [])
    best = next((name for name, flag in (("AMX", "amx_bf16"), ("AVX-512", "avx512f"), ("AVX2", "avx2")) if flag in flags), "no AVX2")
    used = f", at most {machine['memory_used_kib'] / 2**20:.1f} GiB in use by both sides" if "memory_used_kib" in machine else ""
    return (f"`{result['command']}`, {result['date']}, {result['rounds']} rounds, {result.get('seconds', 0):.0f} s. "
            f"{cpu['Model name']} (family {cpu['CPU family']}, model {cpu['Model']}, {best}), {cpu['CPU(s)']} cores, "
            f"{machine['memory_kib'] / 2**20:.1f} GiB, Linux {machine['kernel']}, load before {machine['load_before']:.1f}{used}. "
            f"{versions['imprompt']} ({versions['commit']}), torch {versions['torch']}, transformers {versions['transformers']}, "
            f"open_clip {versions['open_clip_torch']}, clip-interrogator {versions['clip-interrogator']}, Pillow {versions['Pillow']}. "
            f"Peaks in the same run: ONNX Runtime float32 {peaks['onnxruntime_float32']:.0f} GFLOP/s, int8 "
            f"{peaks['onnxruntime_int8']:.0f} Gop/s; PyTorch float32 {peaks['torch_float32']:.0f} GFLOP/s; memory {peaks['memory_gbytes']:.1f} GB/s.\n")


def results(folder):
    found = [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]
    found = [result for result in found if result.get("section") in ORDER]
    return sorted(found, key=lambda result: ORDER.index(result["section"]))


def tables(folder):
    return "\n".join(f"### {result['section']}\n\n{head(result)}\n{table(result)}" for result in results(folder))


def write(folder):
    """Puts the tables between the page's markers."""
    page = PAGE.read_text()
    begin, end = "<!-- figures: begin -->\n", "<!-- figures: end -->"
    before, rest = page.split(begin)
    PAGE.write_text(before + begin + "\n" + tables(folder) + "\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    write(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs/benchmarks")
