"""Mutated study.yaml, questions.jsonl and best.json: first their structure, then their bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

# Written as they are in the place of a value.
SCALARS = (
    "null", "true", "no", "~", "", "0", "-1", "1", "1.5", "8", "1e3", "12e45678", "1e999", "-1e999", "NaN",
    "Infinity", "-Infinity", ".nan", ".inf", "017", "0o17", "0xff", "0x" + "f" * 5000, "9" * 30, "9" * 5000,
    "1_000", "2024-01-01", "2024-13-45", "1:30", "[]", "{}", "[[]]", '[1, "a", null]', '{"a": {"b": []}}',
    "[" * 100 + "]" * 100, "[\n" * 400, '{"a":\n' * 300, '""', '" "',
     '"\\u0000"', '"\\ud800"', '"\\udc00 x"', '"/"',
    '".."', '"../x"', '"a/b"', '"x:y"', '"red"', '"\\u202e"', '"' + "x" * 300 + '"', '"' + "y" * 5000 + '"',
    "!!int x", "!!binary x", "!!python/object:os.system x", "!new [a]", "!!set {a}", "!!str 1", "!!float 1",
    "&a [*a]", "*nothing", "&a x", "<<: *a", "{<<: {frames: 4}}", "? x", "- x", "|", ">-", "%YAML 1.1", "@x",
    "`x`", "{a: b", "[a", "'a", '"a', "a: b: c", "# x", "1" * 19, "9223372036854775807", "-0", "0.1",
    "0.8", '"letter"', '"words"', '"adatp"', '"drop"', '"owner/model"', '"best.json"', "/dev/zero",
    "/dev/stdin",
)  # fmt: skip
KEYS = ("id", "model", "frames", "name", "split", "search", "options", "<<", "", "é", "schema", "x" * 200)
PIECES = (
    b"\xef\xbb\xbf", b"\x00", b"\r", b"\r\n", b"\n", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xe2\x80\xa8",
    b"\xc2\x85", b"\t", b"\x1b", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"- ", b"---\n", b"...\n",
    b"#", b"&a ", b"*a", b"!", b"%", b"|", b"\xf0\x9f\x98\x80", b"\\ud83d", b"\x7f", b"0", b"9" * 400,
    b"[\n" * 300,
)  # fmt: skip
BOMB = "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

STRUCTURAL = ("scalar", "scalar", "remove", "rename", "add", "swap", "nest", "twice")
BYTEWISE = ("insert", "insert", "flip", "cut", "double", "end", "crlf", "utf16", "head")


class Raw(str):
    """A scalar that is written as it is."""


Places = list[tuple[Any, Any]]


def places(value: Any) -> Places:
    """Every (container, key) of a value."""
    found: Places = []
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found += [(value, key), *places(value[key])]
    return found


def as_json(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))}: {as_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_json, value)) + "]"
    return json.dumps(value)


def as_yaml(value: Any, indent: str = "") -> str:
    """Mappings as blocks, everything else in JSON's way, which is YAML."""
    lines = []
    for key, inner in value.items():
        name = str(key) if str(key).isidentifier() else json.dumps(str(key))
        if isinstance(inner, dict) and inner:
            lines.append(f"{indent}{name}:\n{as_yaml(inner, indent + '  ')}")
        else:
            lines.append(f"{indent}{name}: {as_json(inner)}\n")
    return "".join(lines)


@st.composite
def mutated(draw: st.DrawFn, value: Any, write: Callable[[Any], str]) -> bytes:
    """A file that holds `value`, with up to three changes of its structure and up to three of its bytes."""
    value = copy.deepcopy(value)
    structural, bytewise = draw(st.sampled_from(((1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (1, 1), (2, 3))))
    twice = ""
    for _ in range(structural):
        container, key = draw(st.sampled_from(places(value) or [({"x": 1}, "x")]))
        kind = draw(st.sampled_from(STRUCTURAL))
        if kind == "scalar":
            container[key] = Raw(draw(st.sampled_from(SCALARS)))
        elif kind == "remove":
            del container[key]
        elif kind == "rename" and isinstance(container, dict):
            container[draw(st.sampled_from(KEYS))] = container.pop(key)
        elif kind == "add" and isinstance(container, dict):
            container[draw(st.text(max_size=8) | st.sampled_from(KEYS))] = Raw(draw(st.sampled_from(SCALARS)))
        elif kind == "swap":
            other, place = draw(st.sampled_from(places(value)))
            container[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(container[key])
        elif kind == "nest":
            container[key] = draw(st.sampled_from(([container[key]], {"x": container[key]})))
        else:
            twice = f"{key}: {as_json(container[key])}\n"
    text = write(value)
    if twice:
        text = text + twice if draw(st.booleans()) else text.replace("{", "{" + '"id": "twice", ', 1)
    if draw(st.integers(0, 60)) == 17:
        text += "a: &a [x]\n" + BOMB
    content = text.encode("utf-8", "surrogatepass")
    for _ in range(bytewise):
        begin, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        kind = draw(
            st.sampled_from(("insert", "insert", "flip", "cut", "double", "end", "crlf", "utf16", "head"))
        )
        if kind == "insert":
            content = content[:begin] + draw(st.sampled_from(PIECES)) + content[begin:]
        elif kind == "flip" and begin < len(content):
            content = content[:begin] + bytes([draw(st.integers(0, 255))]) + content[begin + 1 :]
        elif kind == "cut":
            content = content[:begin] + content[min(end, begin + 20) :]
        elif kind == "double":
            content = content[:end] + content[begin:]
        elif kind == "end":
            content = content[:begin]
        elif kind == "crlf":
            content = content.replace(b"\n", b"\r\n")
        elif kind == "utf16":
            content = content.decode("utf-8", "replace").encode("utf-16")
        else:
            content = draw(st.sampled_from(PIECES)) + content
    return content
