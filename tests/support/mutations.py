"""Seeded damage for files of every kind that detrkit reads: bytes, text lines, fields and tensors.

Each mutator takes a file's content and a ``random.Random``; the same seed gives the same damage.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
import yaml

from detrkit.checkpoint import is_checkpoint, load_checkpoint, save_checkpoint

HUGE_TEXT = "x" * 70_000
PATHS = (
    "../outside.txt",
    "../../outside/1.png",
    "/etc/passwd",
    "/",
    "..",
    ".",
    "",
    "a\0b.png",
    "n" * 300 + ".png",
    "d/" * 2500 + "1.png",
    "C:\\data\\1.png",
    "..\\outside.txt",
    "~/1.png",
    "http://[::1",
    "file:///etc/passwd",
    "\ud800.png",
    "con\n.png",
)
VALUES: tuple[Any, ...] = (
    None,
    "",
    "text",
    HUGE_TEXT,
    "1e999",
    "0x10",
    "\ud800",
    "a\0b",
    True,
    0,
    -1,
    -0.0,
    1e-320,
    2**31,
    2**63,
    -(2**70),
    10**400,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    [],
    {},
    [[]],
    [None],
    [[[[1]]]],
    {"a": {"b": [1, 2]}},
    ["a", 1, None],
    [1e308] * 5,
    *PATHS,
)


class Evil:
    """An object whose pickle would write a file when it is opened."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("evil"),)


def nested(depth: int) -> list[Any]:
    """Return a list within a list, ``depth`` deep."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Damage a file as disks, editors and half a download do."""
    at, length = rng.randrange(len(content) + 1), rng.choice((1, 2, 16, 200))
    damages: tuple[Callable[[], bytes], ...] = (
        lambda: flip_bits(content, rng),
        lambda: content[:at],
        lambda: content[at:],
        lambda: content[:at] + rng.randbytes(length) + content[at:],
        lambda: content[:at] + content[at + length :],
        lambda: content[:at] + content[max(0, at - length) : at] * rng.choice((1, 3, 50)) + content[at:],
        lambda: content[:at] + bytes(length) + content[at + length :],
        lambda: content + content,
        lambda: b"",
        lambda: rng.randbytes(length),
        lambda: recode(content, rng),
        lambda: content.replace(b"\n", rng.choice((b"\r", b"\r\n", b"\0", b""))),
    )
    return rng.choice(damages)()


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    """Turn round one to ten bits."""
    changed = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 3, 10))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def recode(content: bytes, rng: random.Random) -> bytes:
    """Write a text in another encoding, or with another's mark before it."""
    text = content.decode("utf-8", "replace")
    encodings = ("utf-16", "utf-16-be", "utf-32", "utf-8-sig", "cp037", "utf-7")
    marks = (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf\xef\xbb\xbf", b"\xff\xfe\0\0")
    return rng.choice(([text.encode(name, "replace") for name in encodings]) + [mark + content for mark in marks])


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) inside nested dicts and lists."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def mutate_fields(content: Any, rng: random.Random) -> Any:
    """Damage a place or two of nested dicts and lists, tensors among their leaves."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        found = list(places(content))
        if not found:
            return rng.choice(VALUES)
        container, key = rng.choice(found)
        value = container[key]
        choices = ["value", "value", "drop", "repeat", "wrap", "deep", "swap", "same"]
        choices += ["rename"] * isinstance(container, dict) + ["tensor"] * 8 * torch.is_tensor(value)
        how = rng.choice(choices)
        if how == "value":
            container[key] = copy.deepcopy(rng.choice(VALUES))
        elif how == "drop":
            del container[key]
        elif how == "repeat" and isinstance(container, list):
            container.insert(key, copy.deepcopy(value))
        elif how == "wrap":
            container[key] = rng.choice(([value], {"value": value}, str(value)[:100]))
        elif how == "deep":
            container[key] = nested(rng.choice((5, 50, 400)))
        elif how == "swap":
            other, place = rng.choice(found)
            container[key] = copy.deepcopy(other[place])
        elif how == "same" and isinstance(container, list):
            container[:] = [value] * len(container)
        elif how == "rename":
            names = ("", "id", "ID ", key.swapcase() if isinstance(key, str) else 7)
            container[rng.choice(names)] = container.pop(key)
        elif how == "tensor":
            container[key] = mutate_tensor(value, rng)
    return content


def mutate_tensor(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Change a tensor's shape, type or numbers."""
    wrong = (
        tensor.flatten(),
        tensor[None],
        tensor[:0] if tensor.ndim else tensor,
        torch.zeros(3, 5),
        torch.cat([tensor, tensor]) if tensor.ndim else tensor[None],
        tensor.to(torch.float64),
        tensor.to(torch.int64),
        tensor > 0,
        tensor.to(torch.bfloat16),
        tensor.to(torch.complex64),
        torch.full_like(tensor, float("nan") if tensor.is_floating_point() else 0),
        torch.full_like(tensor, float("inf") if tensor.is_floating_point() else -1),
        torch.zeros(()),
        torch.zeros(1).expand(10**4, 10**4),
    )
    return rng.choice(wrong)


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Damage fields of a JSON text; sometimes repeat a key or nest it beyond any reader's depth."""
    value = json.loads(content)
    if rng.random() < 0.08:
        return b'{"images": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    text = json.dumps(mutate_fields(value, rng))
    if rng.random() < 0.1 and ":" in text:
        start, value = text.index('"'), rng.choice(("null", "[]", "1", "{}"))
        text = f"{text[:start]}{text[start : text.index(':')]}: {value}, {text[start:]}"
    return text.encode()


def mutate_yaml(content: bytes, rng: random.Random) -> bytes:
    """Damage fields of a YAML text, or put in what YAML alone has."""
    odd = (b"a: &a [*a]\n", b"\t- x\n", b"!!python/object/apply:os.getcwd []\n", b"? [1, 2]\n: 3\n")
    odd += (b"--- \n--- \n", b"a: !!bool x\n", b"a: !!timestamp x\n", b"a: 2001-99-99\n")
    if rng.random() < 0.2:
        return rng.choice((content + rng.choice(odd), rng.choice(odd) + content, b"[" * 3000, yaml_bomb()))
    value = mutate_fields(yaml.safe_load(content), rng)
    try:
        return yaml.dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
    except RecursionError:
        return json.dumps(value).encode()


def yaml_bomb() -> bytes:
    """Return a small YAML text of a list that has 10^9 entries once its aliases are followed."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join([*lines, "names: *a8"]).encode()


def mutate_xml(content: bytes, rng: random.Random) -> bytes:
    """Damage elements of an XML text."""
    if rng.random() < 0.1:
        entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 9))
        return f'<!DOCTYPE a [<!ENTITY e0 "xxxxxxxxxx">{entities}]><annotation>&e8;</annotation>'.encode()
    root = ElementTree.fromstring(content)
    parents = [(parent, child) for parent in root.iter() for child in parent]
    parent, child = rng.choice(parents)
    how = rng.choice(("drop", "text", "text", "text", "rename", "repeat", "nest", "move", "attribute"))
    if how == "drop":
        parent.remove(child)
    elif how == "text":
        leaf = rng.choice([element for element in root.iter() if len(element) == 0])
        value = str(rng.choice((*VALUES, "12,5", " 7 ", "1_000", "٣")))
        leaf.text = "".join(sign for sign in value[:5000] if sign >= " " and not "\ud800" <= sign < "\ue000")
    elif how == "rename":
        child.tag = rng.choice(("object", "bndbox", "Name", "x"))
    elif how == "repeat":
        parent.append(child)
    elif how == "nest":
        for _ in range(rng.choice((3, 300))):
            parent = ElementTree.SubElement(parent, "object")
    elif how == "move":
        parent.remove(child)
        root.append(child)
    else:
        child.set("value", "1")
    return ElementTree.tostring(root)


def mutate_lines(content: bytes, rng: random.Random) -> bytes:
    """Damage a word or line of a text of lines, as YOLO's labels."""
    lines = content.decode("utf-8", "replace").splitlines() or [""]
    row = rng.randrange(len(lines))
    words = lines[row].split() or [""]
    place = rng.randrange(len(words))
    how = rng.choice(("word", "word", "word", "drop", "more", "line", "empty", "join", "long"))
    if how == "word":
        words[place] = str(rng.choice((*VALUES, "0,5", "1.2.3", "--1", "1e5", "0.5f", "½")))[:2000]
    elif how == "drop":
        del words[place]
    elif how == "more":
        words += ["0.5"] * rng.choice((1, 2, 3, 51))
    elif how == "line":
        lines.insert(row, rng.choice(("# remark", "a b c d e", "0 nan nan nan nan", "0 0 0 0 0", "9" * 400)))
    elif how == "join":
        words = [",".join(words)]
    elif how == "long":
        words *= 3000
    lines[row] = "" if how == "empty" else " ".join(words)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutate_torch(path: Path, rng: random.Random) -> None:
    """Damage what a file of ``torch.save`` holds; one of detrkit's is sealed again."""
    if is_checkpoint(path):
        payload = load_checkpoint(path)
        save_checkpoint(path, mutate_fields(payload, rng) if rng.random() < 0.95 else {"format": 1})
        return
    content = torch.load(path, weights_only=False)
    others = ({"model": Evil()}, Evil(), argparse.Namespace(a=1), {"args": PurePosixPath("a")}, [1], None, content)
    changed = rng.choice(others) if rng.random() < 0.2 else mutate_fields(content, rng)
    torch.save(changed, path, _use_new_zipfile_serialization=rng.random() < 0.8)


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Damage the header of a safetensors file, or its length."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(mutate_fields(json.loads(content[8 : 8 + length]), rng)).encode()
    size = rng.choice((len(header), len(header), len(header), 2**63, 0, len(header) - 1))
    return struct.pack("<Q", size) + header + content[8 + length :]


def mutate_npz(content: bytes, rng: random.Random) -> bytes:
    """Damage arrays of an ``.npz`` file."""
    arrays = dict(np.load(io.BytesIO(content)))
    name = rng.choice(list(arrays))
    wrong = (np.zeros(0), np.zeros((2, 2)), np.array(["a"]), np.array(2**62), arrays[name][:-1], -arrays[name])
    arrays[name] = rng.choice((*wrong, arrays[name].astype(np.float64) * np.nan))
    if rng.random() < 0.2:
        del arrays[name]
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


BY_SUFFIX: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": mutate_json,
    ".yaml": mutate_yaml,
    ".xml": mutate_xml,
    ".txt": mutate_lines,
    ".safetensors": mutate_safetensors,
    ".npz": mutate_npz,
}


def mutate_file(path: Path, rng: random.Random) -> str:
    """Damage a file by its kind, or its bytes; return which of both."""
    content = path.read_bytes()
    if path.suffix in BY_SUFFIX and rng.random() < 0.75:
        path.write_bytes(BY_SUFFIX[path.suffix](content, rng))
        return "fields"
    if path.suffix in (".pt", ".pth") and rng.random() < 0.85:
        mutate_torch(path, rng)
        return "fields"
    path.write_bytes(mutate_bytes(content, rng))
    return "bytes"
