#!/usr/bin/env python3
"""imprompt and its peers by turns: see scripts/bench-peers."""
import argparse
import json
import shlex
import sys
import time
import traceback
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parent))
import beside
import bench as common
import precision
import report
import serving
import settings
from sections import SECTIONS

SECTIONS = SECTIONS | {"precision": precision.precision, "serving": serving.serving, "settings": settings.settings,
                       "beside": beside.beside}


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench-peers", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of: {', '.join(SECTIONS)} [default: all]")
    parser.add_argument("--quick", action="store_true", help="once, with the smaller models; results are not kept in docs/")
    parser.add_argument("--whole", action="store_true", help="run the peer's best mode whole at the full sizes (hours)")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each side [default: 3, quick 1]")
    parser.add_argument("--limit", type=int, metavar="SECONDS", help="of each section [default: 1800, quick 300]")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="raw results go there, and docs/ stays as it is")
    parser.add_argument("--python", required=True, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    kept = common.ROOT / "docs/benchmarks"
    out = arguments.out or (common.CACHE / "quick" if arguments.quick else kept)
    out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["scripts/bench-peers", *sys.argv[1:]]).replace(f" --python {arguments.python}", "")

    common.CACHE.mkdir(parents=True, exist_ok=True)
    worker = common.Worker("stock", arguments.python)
    versions = worker.ask(300, "versions") | {"imprompt": common.output(str(common.IMPROMPT), "--version"),
                                              "commit": common.output("git", "-C", str(common.ROOT), "rev-parse", "--short", "HEAD")}
    common.say("measuring what the machine can do")
    peaks = common.peaks(worker)
    worker.close()
    print(json.dumps(peaks))
    failed = []
    for name in arguments.sections or SECTIONS:
        common.say(f"section {name}")
        started = time.monotonic()
        one = common.Bench(arguments, name)
        print(f"\n{name}: {SECTIONS[name].__doc__}", flush=True)
        try:
            SECTIONS[name](one)
        except Exception as error:  # what the section has measured so far is kept
            if not isinstance(error, common.Failed):
                traceback.print_exc()
            print(f"error: {name}: {error}", file=sys.stderr, flush=True)
            failed.append(name)
        finally:
            one.close()
        if one.rows:
            result = one.result(command, versions, peaks) | {"seconds": time.monotonic() - started}
            lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in result.items())
            (out / f"{name}.json").write_text("{\n" + lines + "\n}\n")
    print()
    print(report.tables(out))
    if out == kept:
        report.write(out)
    if failed:
        sys.exit(f"error: sections that failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
