"""A contact sheet: small pictures in a grid, each with its rank and a line of text."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_CELL = 200  # pixels of a picture's longer side
_GAP = 12
_FONT = 13


def contact_sheet(pictures: Sequence[tuple[Image.Image, str]], *, columns: int = 5) -> Image.Image:
    """Pictures with their captions, row by row.

    Raises:
        ValueError: there are no pictures.
    """
    if not pictures:
        raise ValueError("contact sheet: got no pictures")
    font = ImageFont.load_default(_FONT)
    across = min(columns, len(pictures))
    height = _CELL + _FONT + 2 * _GAP
    rows = -(-len(pictures) // across)
    sheet = Image.new("RGB", (across * (_CELL + _GAP) + _GAP, rows * height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for n, (picture, caption) in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((_CELL, _CELL))
        left, top = _GAP + (n % across) * (_CELL + _GAP), _GAP + (n // across) * height
        sheet.paste(small, (left + (_CELL - small.width) // 2, top + (_CELL - small.height) // 2))
        while caption and font.getlength(caption) > _CELL:
            caption = caption[:-2].rstrip("…") + "…"
        pen.text((left, top + _CELL + 4), caption, fill="#333333", font=font)
    return sheet
