"""A contact sheet: prompts in columns, directions and strengths in rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, LABEL, GAP, TEXT = 112, 120, 3, 16


def sheet(rows: Sequence[tuple[str, "Sequence[Image | None]"]], columns: Sequence[str], side: int = SIDE) -> "Image":
    """rows: (label, a picture a column; None: nothing there). columns: what stands above each."""
    from PIL import Image as pil
    from PIL import ImageDraw, ImageFont

    head = 3 * TEXT
    width, height = LABEL + len(columns) * (side + GAP), head + len(rows) * (side + GAP)
    page = pil.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    pen.font = ImageFont.load_default(13)
    for at, words in enumerate(columns):
        for line, part in enumerate(wrapped(words, side // 7)[:3]):
            pen.text((LABEL + at * (side + GAP), line * TEXT), part, fill="black")
    for at, (label, pictures) in enumerate(rows):
        top = head + at * (side + GAP)
        pen.text((4, top + side // 2 - 6), label, fill="black")
        for column, picture in enumerate(pictures):
            corner = (LABEL + column * (side + GAP), top)
            if picture is None:
                pen.rectangle((*corner, corner[0] + side, corner[1] + side), outline="gray")
                pen.text((corner[0] + 6, corner[1] + side // 2), "nothing to see", fill="gray")
            else:
                smooth = pil.Resampling.NEAREST if max(picture.size) < side else pil.Resampling.LANCZOS
                page.paste(picture.convert("RGB").resize((side, side), smooth), corner)
    return page


def wrapped(words: str, width: int) -> list[str]:
    """Lines of printable ASCII: the built-in font has no other letters."""
    import textwrap

    return textwrap.wrap(words.encode("ascii", "replace").decode(), max(width, 8))
