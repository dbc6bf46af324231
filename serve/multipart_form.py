"""Parse forms with files (multipart/form-data) in memory.

Ours, because a framework's parser accepts a truncated form as a shorter one, and writes larger files to disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from siamdetr.serve.refusals import Refused

_SPARE_PARTS = 8  # fields beside the files


@dataclass(frozen=True)
class File:
    """An uploaded file; its name is only repeated to the client, never opened."""

    filename: str
    data: bytes


@dataclass
class _Part:
    disposition: bytes = b""
    slices: list[bytes] = field(default_factory=list)


def parse_form(
    body: bytes, content_type: str, *, files_field: str, max_files: int
) -> tuple[list[File], dict[str, str]]:
    """The files of a form in order, and its other fields by name.

    Args:
        body: all of it.
        content_type: the header, whose boundary separates the parts.
        files_field: name of the parts that are files, with a file name or without.
        max_files: that are taken.
    Raises:
        Refused: 400 not a form, or truncated; 413 too many parts; 422 a repeated field, or a file as a field.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= 200:
        raise Refused(400, "content-type: expected a boundary of 1 to 200 characters behind multipart/form-data")
    files: list[File] = []
    fields: dict[str, str] = {}
    for part in _parts(body, boundary, max_files + _SPARE_PARTS):
        options = parse_options_header(part.disposition)[1]
        if b"name" not in options:
            raise Refused(400, "form: got a part without a name")
        name, data = _text(options[b"name"]), b"".join(part.slices)
        if name == files_field:
            files.append(File(_text(options.get(b"filename", b"")), data))
        elif b"filename" in options:
            raise Refused(422, f"{name[:80]}: got a file, expected files as '{files_field}' only")
        elif name in fields:
            raise Refused(422, f"{name[:80]}: given twice")
        else:
            fields[name] = _text(data)
    return files, fields


def _parts(body: bytes, boundary: bytes, most: int) -> list[_Part]:
    parts: list[_Part] = []
    header: list[bytes] = [b"", b""]
    ended: list[bool] = []

    def begin() -> None:
        if len(parts) == most:
            raise Refused(413, f"form: more than {most} parts")
        parts.append(_Part())

    def name_piece(data: bytes, start: int, end: int) -> None:
        header[0] += data[start:end]

    def value_piece(data: bytes, start: int, end: int) -> None:
        header[1] += data[start:end]

    def header_end() -> None:
        if header[0].lower() == b"content-disposition":
            parts[-1].disposition = header[1]
        header[:] = b"", b""

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_field": name_piece,
            "on_header_value": value_piece,
            "on_header_end": header_end,
            "on_part_data": lambda data, start, end: parts[-1].slices.append(data[start:end]),
            "on_end": lambda: ended.append(True),
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refused(400, f"form: cannot be parsed ({str(error)[:100]})") from None
    if not ended:
        raise Refused(400, "form: breaks off before its last boundary")
    return parts


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")
