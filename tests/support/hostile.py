"""Requests of somebody who means harm, or whose program is broken: bytes for a server's port."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")


def picture(file_format: str = "PNG", size: tuple[int, int] = (60, 40), **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def post(body: bytes, path: str = "/v1/detect", *headers: str, length: int | None = None) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return "\r\n".join([*lines, *headers, "Connection: close", "", ""]).encode("latin-1") + body


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", depth: int = 8, color: int = 2, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    whole = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + whole


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that say they are large, or become so."""
    for width, height in (
        (65535, 65535),
        (30000, 30000),
        (1 << 31, 1),
        (1, 1 << 31),
        (0, 10),
        (10, 0),
        (1, 60000),
    ):
        yield f"PNG of {width} x {height}", png(width, height)
    yield "PNG with its pixels, too many", png(12_000, 12_000, bytes(36_001 * 1000))
    packed = zlib.compress(bytes(80 << 20))
    yield "PNG with a text bomb", png(4, 4, bytes(52), extra=chunk(b"zTXt", b"a\0\0" + packed))
    yield "PNG with a profile bomb", png(4, 4, bytes(52), extra=chunk(b"iCCP", b"a\0\0" + packed))
    yield "PNG with a chunk of 2 GB", b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 1 << 31) + b"IHDR"
    yield "PNG with too much data", png(4, 4, bytes(1 << 20))
    bmp = bytearray(picture("BMP"))
    for place, width, height in ((18, 1 << 30, 1 << 30), (18, -1, -1), (18, 60, -(1 << 31)), (18, 0, 0)):
        changed = bytearray(bmp)
        struct.pack_into("<ii", changed, place, width, height)
        yield f"BMP of {width} x {height}", bytes(changed)
    jpeg = picture("JPEG")
    start = jpeg.index(b"\xff\xc0") + 5
    for side in (65500, 40000, 0):
        yield f"JPEG of {side}", jpeg[:start] + struct.pack(">HH", side, side) + jpeg[start + 4 :]
    progressive = picture("JPEG", progressive=True)
    scan = progressive.index(b"\xff\xda")
    yield "JPEG of 5,000 scans", progressive[:scan] + progressive[scan:-2] * 5000
    for value in (0, 1, 65535, 1 << 31):
        entries = [(256, 4, 1, value), (257, 4, 1, value), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
        entries += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, value), (279, 4, 1, value)]
        fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        yield f"TIFF of {value}", b"II*\0" + struct.pack("<IH", 8, len(entries)) + fields + bytes(4)
    yield "TIFF in a circle", b"II*\0" + struct.pack("<IH", 8, 0) + struct.pack("<I", 8)


def damaged() -> Iterator[tuple[str, bytes]]:
    """Pictures cut off, and with wrong bits."""
    chance = random.Random(0)
    for file_format in FORMATS:
        content = picture(file_format)
        for share in (0.01, 0.2, 0.5, 0.9, 0.99):
            yield f"{file_format} cut at {share}", content[: int(share * len(content))]
        for number in range(6):
            changed = bytearray(content)
            for _ in range(1 + number * 4):
                changed[chance.randrange(min(len(changed), 400))] = chance.randrange(256)
            yield f"{file_format} with wrong bytes {number}", bytes(changed)


def other_kinds() -> Iterator[tuple[str, bytes]]:
    """Files of other kinds, some of two at once."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1 << 20))
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "<script>alert(1)</script>", zip=True)
    page = b"<html><script>alert(1)</script>"
    yield from {
        "nothing": b"",
        "a byte": b"\0",
        "a zip": packed.getvalue(),
        "a picture and a zip": picture("JPEG") + packed.getvalue(),
        "a picture and a page": picture("PNG", pnginfo=info) + page,
        "a page and a picture": page + picture(),
        "GIF": picture("GIF"),
        "ICO": picture("ICO"),
        "PPM": picture("PPM"),
        "PCX": picture("PCX"),
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/etc/passwd) (r) file\n",
        "SVG": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg">&b;</svg>',
        "PDF": b"%PDF-1.7\n" + bytes(100),
        "PSD": b"8BPS\0\1" + bytes(100),
        "FITS": b"SIMPLE  =                    T" + bytes(2850),
        "a pickle": b"\x80\x04cos\nsystem\n(S'id'\ntR.",
        "a program": b"\x7fELF" + bytes(100),
        "a URL": b"http://169.254.169.254/latest/meta-data/",
        "a path": b"/etc/passwd",
        "JSON with a URL": b'{"url": "file:///etc/passwd"}',
    }.items()
    for magic in (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"BM",
        b"II*\0",
        b"MM\0*",
    ):
        yield f"only {magic!r}", magic
        yield f"{magic!r} and zeros", magic + bytes(5000)


def form(*parts: tuple[str, bytes], boundary: str = "b", end: bytes = b"--b--\r\n") -> bytes:
    body = b"".join(b"--b\r\n" + head.encode("latin-1") + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
    return post(body + end, "/v1/detect", f"Content-Type: multipart/form-data; boundary={boundary}")


def forms() -> Iterator[tuple[str, bytes]]:
    """Broken forms, and names like paths."""
    good = picture()
    names = (
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x",
        "..",
        ".",
        "",
        "a\0b",
        "a\x1b[31m",
        "<b>",
        "%00",
        "x" * 5000,
    )
    for name in (*names, "a; rm -rf /", "$(id)", "con", "\xff\xfe"):
        yield (
            f"file name {name[:20]!r}",
            form((f'Content-Disposition: form-data; name="a"; filename="{name}"', good)),
        )
    head = 'Content-Disposition: form-data; name="a"; filename="a"'
    yield "no end", form((head, good), end=b"")
    yield "another boundary", form((head, good), boundary="c")
    yield "no boundary", post(b"--b", "/v1/detect", "Content-Type: multipart/form-data")
    yield "empty boundary", form((head, good), boundary="")
    yield "boundary of 5,000", form((head, good), boundary="b" * 5000)
    yield "many parts", form(*[(head, b"")] * 2000)
    yield "many fields", form(*[('Content-Disposition: form-data; name="a"', b"1")] * 2000)
    yield "a field", form(('Content-Disposition: form-data; name="threshold"', b"0"), (head, good))
    yield "no name", form(("Content-Disposition: form-data", good))
    yield "no disposition", form(("A: b", good))
    yield "long header in a part", form((f"{head}\r\nA: {'x' * 100_000}", good))
    yield "many headers in a part", form((head + "\r\nA: b" * 5000, good))
    yield "packed body", post(zlib.compress(good), "/v1/detect", "Content-Encoding: gzip")
    yield "wrong type", post(good, "/v1/detect", "Content-Type: text/html")
    yield "type without end", post(good, "/v1/detect", f"Content-Type: {'a/' * 5000}")


def inference() -> Iterator[tuple[str, bytes]]:
    """JSON bombs and tensors that lie."""
    path = "/v2/models/mean/infer"
    for text in (
        "[" * 200_000,
        '{"a":' * 100_000,
        "[" * 900 + "]" * 900,
        "1e999999",
        '"' + "\\u0000" * 9999,
        "nul",
    ):
        yield f"JSON {text[:9]!r}", post(text.encode(), path)
        yield f"inputs {text[:9]!r}", post(f'{{"inputs": {text}}}'.encode(), path)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3]}
    for data in (
        [[[[]]]] * 9,
        [10**300],
        "x" * 9999,
        {"a": 1},
        [None] * 12,
        [[0] * 12, 1],
        [1e308] * 12,
        12,
        True,
    ):
        yield f"data {str(data)[:12]}", post(json.dumps({"inputs": [{**tensor, "data": data}]}).encode(), path)
    for shape in ([1 << 62] * 4, [-1] * 4, [], [3] * 1000, [1, 40_000, 40_000, 3], [0, 0, 0, 3]):
        content = json.dumps({"inputs": [{**tensor, "shape": shape, "parameters": {"binary_data_size": 0}}]})
        header = f"Inference-Header-Content-Length: {len(content)}"
        yield f"shape {str(shape)[:12]}", post(content.encode(), path, header)
    for value in ("-1", "x", "99999999999999999999", "0", "1.5", ""):
        yield f"length {value}", post(b"{}", path, f"Inference-Header-Content-Length: {value}")


def protocol() -> Iterator[tuple[str, bytes]]:
    """What is hardly HTTP."""
    good = picture()
    get = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
    yield from {
        "many headers": get + b"A: b\r\n" * 10_000 + b"\r\n",
        "a long header": get + b"A: " + b"x" * (1 << 20) + b"\r\n\r\n",
        "a long name": get + b"x" * 100_000 + b": 1\r\n\r\n",
        "a header without end": get + b"A: " + b"x" * (4 << 20),
        "a long address": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "a long query": b"POST /v1/detect?" + b"a=b&" * 7000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "HTTP/0.9": b"GET /\r\n\r\n",
        "HTTP/9": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        "zeros": bytes(10_000),
        "a line without end": b"GET ",
        "a header without colon": get + b"nonsense\r\n\r\n",
        "two lengths": get + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "length and chunks": get + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "chunks of nonsense": get + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "a chunk of 16 EB": get + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
        "two hosts": get + b"Host: example.org\r\n\r\n",
        "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
        "split header": get + b"X-Request-ID: a\r\n b\r\n\r\n",
        "an upgrade": get + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\n\r\n",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "a proxy's request": b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
        "negative length": post(b"x", length=-1),
        "huge length": post(b"x", length=10**30),
        "more announced than sent": post(good, length=len(good) + 1000),
        "less announced than sent": post(good, length=100),
        "too large": post(bytes(2 << 20)),
        "a continuation": post(good, "/v1/detect", "Expect: 100-continue"),
    }.items()
    for method in ("TRACE", "CONNECT", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "FOO"):
        yield f"method {method}", f"{method} /v1/detect HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    paths = (
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/models/%00/reload",
        "//",
        "/v1/detect/",
        "/%",
        "/\xff",
    )
    for path in (
        *paths,
        "/v2/models/..%2f..",
        "/v2/models/" + "x" * 9000,
        "/openapi.json/../v1",
        "/static/../app.py",
    ):
        yield f"path {path[:24]!r}", post(b"", path)
    queries = (
        "threshold=nan",
        "threshold=inf",
        "threshold=-1",
        "threshold=1e999",
        "threshold=",
        "format=exe",
        "model=..",
    )
    for query in (
        *queries,
        "classes=" + "x" * 999,
        "classes=%00",
        "threshold=0&threshold=1",
        "format=png&format=x",
    ):
        yield f"query {query[:24]}", post(good, f"/v1/detect?{query}")


def requests() -> list[tuple[str, bytes]]:
    """All of them, each with its name."""
    pictures = [*bombs(), *damaged(), *other_kinds()]
    found = [(name, post(body)) for name, body in pictures]
    found += [(f"drawn: {name}", post(body, "/v1/detect?format=png&threshold=0")) for name, body in pictures[::4]]
    return [*found, *forms(), *inference(), *protocol()]
