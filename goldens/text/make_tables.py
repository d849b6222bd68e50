"""Writes crates/text/data/repair.json: the character tables of ftfy 6.1.1 and of Python's html module.

    .imprompt/goldens-venv/bin/python goldens/text/make_tables.py

The rules of ftfy.fix_text are tables (which characters hint at text decoded with the wrong
encoding, what single-byte encodings decode to) and a few pages of code. The code is written anew in
crates/text/src/clean/; the tables are read out of the pinned package, so that they are its own.
ftfy: MIT licence, copyright Robyn Speer. The HTML5 names: Python's html.entities (PSF licence).
"""
import html
import html.entities
import json
import re
import sys
import unicodedata
from importlib.metadata import version
from pathlib import Path

from ftfy import badness, chardata

try:
    from re import _parser as sre_parse
except ImportError:  # Python < 3.11
    import sre_parse

# What Python's re means by \s and \w, in terms of a Rust regex class.
SPACE = r"\t-\r\x1c-\x20\x85\xa0\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}"
WORD = r"\p{L}\p{N}_"


def point(code):
    return f"\\x{{{code:x}}}"


def rust(tokens):
    """The Rust regex that means the same as a parsed Python one."""
    out = []
    for op, value in tokens:
        op = str(op)
        if op == "LITERAL":
            out.append(point(value))
        elif op == "NOT_LITERAL":
            out.append(f"[^{point(value)}]")
        elif op == "ANY":
            out.append(r"[^\n]")
        elif op == "AT":
            assert str(value) == "AT_BEGINNING", value
            out.append(r"\A")
        elif op == "IN":
            inner = []
            for kind, item in value:
                kind = str(kind)
                if kind == "NEGATE":
                    inner.append("^")
                elif kind == "LITERAL":
                    inner.append(point(item))
                elif kind == "RANGE":
                    inner.append(f"{point(item[0])}-{point(item[1])}")
                elif kind == "CATEGORY":
                    inner.append({"CATEGORY_SPACE": SPACE, "CATEGORY_WORD": WORD}[str(item)])
                else:
                    raise ValueError(kind)
            out.append(f"[{''.join(inner)}]")
        elif op == "BRANCH":
            out.append("(?:" + "|".join(rust(branch) for branch in value[1]) + ")")
        elif op == "SUBPATTERN":
            out.append("(?:" + rust(value[3]) + ")")
        elif op == "MAX_REPEAT":
            low, high, inner = value
            assert (low, high) == (0, 1), value
            out.append("(?:" + rust(inner) + ")?")
        else:
            raise ValueError(op)
    return "".join(out)


def members(char_class):
    """All characters of a class written as the inside of [...]."""
    pattern = re.compile(f"[{char_class}]")
    return "".join(chr(c) for c in range(0x110000) if pattern.match(chr(c)))


def encoding(name):
    """What bytes 0x80..0xFF decode to, and byte 0x1A."""
    return bytes(list(range(0x80, 0x100)) + [0x1A]).decode(name)


def strict(name):
    """The same without the sloppy additions; the bytes it refuses are NUL."""
    return "".join(bytes([b]).decode(name, "replace").replace("\ufffd", "\0") for b in range(0x80, 0x100))


def main():
    assert version("ftfy") == "6.1.1", version("ftfy")
    names = {name: text for name, text in html.entities.html5.items()}
    loud = {k[1:]: v for k, v in chardata.HTML_ENTITIES.items() if k[1:] not in names}
    for name, text in names.items():
        if name.endswith(";"):
            assert chardata.HTML_ENTITIES["&" + name] == text, name
    tables = {
        "source": f"ftfy {version('ftfy')}, Python {sys.version.split()[0]}, Unicode {unicodedata.unidata_version}",
        "badness": rust(sre_parse.parse(badness.BADNESS_RE.pattern, badness.BADNESS_RE.flags)),
        "encodings": [[name, encoding(name)] for name in chardata.CHARMAP_ENCODINGS],
        "windows_1252": strict("windows-1252"),
        "clues": {name: members(chars) for name, chars in chardata.UTF8_CLUES.items()},
        "ligatures": {chr(k): v for k, v in chardata.LIGATURES.items()},
        "widths": {chr(k): v for k, v in chardata.WIDTH_MAP.items()},
        "entities": names,
        "upper_case_entities": loud,
        "replaced_references": {str(k): v for k, v in html._invalid_charrefs.items()},
        "removed_references": sorted(html._invalid_codepoints),
    }
    path = Path(__file__).resolve().parents[2] / "crates/text/data/repair.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tables, ensure_ascii=True, indent=0, sort_keys=True) + "\n")
    print(path, path.stat().st_size, "bytes", {k: len(v) for k, v in tables.items()})


if __name__ == "__main__":
    main()
