"""Started by `render`."""

import hashlib
import sys
from pathlib import Path

from helm_python import chart as helm

HERE = Path(__file__).resolve().parent
RENDERED = HERE / "rendered"


def main():
    check = {(): False, ("--check",): True}.get(tuple(sys.argv[1:]))
    if check is None:
        sys.exit("usage: deploy/helm/render [--check]")
    folder = HERE / "imprompt"
    report = helm.lint(folder, strict=True)
    findings = [message for message in report["messages"] if message["severity"] > 1] + report["errors"]
    if findings:
        sys.exit(f"helm lint: {findings}")
    chart = helm.Chart.load(folder)
    sets = {"default": {}} | {path.stem: helm.values_from_yaml(path.read_text()) for path in sorted(HERE.glob("values/*.yaml"))}
    made = {}
    for name, values in sets.items():
        chart.validate_schema(chart.merge_values(values))
        templates = chart.render(values, name="prompts", namespace="default")
        text = "# Made by deploy/helm/render; do not edit.\n"
        for path, manifest in sorted(templates.items()):
            if manifest.strip():
                manifest = manifest.strip().removeprefix("---\n")
                comment = path.removeprefix("imprompt/")
                if path.endswith("NOTES.txt"):
                    made[f"{name}.txt"] = manifest + "\n"
                else:
                    text += f"---\n# {comment}\n{manifest}\n"
        made[f"{name}.yaml"] = text
    inputs = sorted(path for top in ("imprompt", "values") for path in (HERE / top).rglob("*") if path.is_file())
    digests = {path.relative_to(HERE).as_posix(): path.read_bytes() for path in inputs}
    digests |= {f"rendered/{name}": text.encode() for name, text in sorted(made.items())}
    made["SHA256SUMS"] = "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in digests.items())
    found = {path.name: path.read_text() for path in RENDERED.glob("*")} if RENDERED.exists() else {}
    differing = sorted(name for name in made.keys() | found.keys() if made.get(name) != found.get(name))
    if check and differing:
        sys.exit(f"deploy/helm/rendered: not what Helm renders: {', '.join(differing)}; run deploy/helm/render")
    if not check:
        RENDERED.mkdir(exist_ok=True)
        for name in differing:
            if name in made:
                (RENDERED / name).write_text(made[name])
            else:
                (RENDERED / name).unlink()
    print(f"{len(made)} files, {len(differing)} changed", file=sys.stderr)


if __name__ == "__main__":
    main()
