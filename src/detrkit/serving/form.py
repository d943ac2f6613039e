"""Forms with files (multipart/form-data), in memory: nothing of a request is written to disk."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from detrkit.serving.pictures import SentPicture, base_name
from detrkit.serving.refusal import RefusedError

KIND = "multipart/form-data"
_MOST_HEADERS = 8 << 10  # bytes of a part's


def read_form(body: bytes, content_type: str, most: int) -> list[SentPicture]:
    """Return the files of a form, whatever its fields are called.

    Args:
        body: The whole form.
        content_type: Header that names its boundary.
        most: Files that it may have.

    Raises:
        RefusedError: It is broken or cut off, has fields that are no files, more files than it may, or none.
    """
    files: list[SentPicture] = []
    names, heads, data = bytearray(), bytearray(), bytearray()
    disposition: list[bytes] = []
    ended = False

    def on_header_end() -> None:
        if bytes(names).lower() == b"content-disposition":
            disposition.append(bytes(heads))
        names.clear()
        heads.clear()

    def on_part_end() -> None:
        options = parse_options_header(disposition[0])[1] if disposition else {}
        if b"filename" not in options:
            raise RefusedError("bad_request", "a field is no file; options belong into the address")
        if len(files) == most:
            raise RefusedError("too_large", f"more than {most} pictures in one request")
        files.append(SentPicture(bytes(data), base_name(options[b"filename"].decode("utf-8", "replace"))))
        disposition.clear()
        data.clear()

    def on_end() -> None:
        nonlocal ended
        ended = True

    def add(to: bytearray, limit: int, piece: bytes) -> None:
        to += piece
        if len(to) > limit:
            raise RefusedError("bad_request", "the headers of a part are too large")

    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_header_field": lambda content, start, end: add(names, _MOST_HEADERS, content[start:end]),
                "on_header_value": lambda content, start, end: add(heads, _MOST_HEADERS, content[start:end]),
                "on_header_end": on_header_end,
                "on_part_data": lambda content, start, end: add(data, len(body), content[start:end]),
                "on_part_end": on_part_end,
                "on_end": on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RefusedError("bad_request", "the multipart form is broken") from error
    if not ended:
        raise RefusedError("bad_request", "the multipart form is cut off, or has another boundary")
    if not files:
        raise RefusedError("bad_request", "the multipart form holds no file")
    return files
