"""The static forms of `Pictures`: a filmstrip as one PNG, and a player as HTML that asks nobody for anything.

The player is one ``<figure>``: every picture lies in it, one is shown, and a range input for each dial chooses. Its
script is the same for all players of a page and can be run again without harm, so that a page may hold it once.
"""

from __future__ import annotations

import base64
import html
import io

from PIL import Image, ImageDraw, ImageFont

from medshift.widgets.pictures import Pictures, Place

PLAYER = "medshift-player"  # the class of its element
SCRIPT = """
for (const player of document.querySelectorAll("figure.medshift-player:not([data-on])")) {
  player.dataset.on = "1";
  const dials = [...player.querySelectorAll("input[type=range]")];
  const turn = () => {
    const place = dials.map((dial) => dial.value).join(" ");
    for (const picture of player.querySelectorAll("img")) picture.hidden = picture.dataset.place !== place;
    for (const dial of dials) {
      const value = dial.dataset.values.split("|")[dial.value];
      dial.nextElementSibling.textContent = value;
      dial.setAttribute("aria-valuetext", value);
    }
  };
  for (const dial of dials) dial.addEventListener("input", turn);
  turn();
}
""".strip()
LABEL, MARGIN = 22, 6  # pixels


def player(pictures: Pictures) -> str:
    """The HTML of a player; a second one on the same page works too."""
    images = "\n".join(_image(pictures, place) for place in pictures.frames)
    dials = "\n".join(
        f'<p><label>{html.escape(dial.name)} <input type="range" min="0" max="{len(dial.values) - 1}" step="1" '
        f'value="{dial.start}" data-values="{html.escape("|".join(dial.values))}"> '
        f"<output>{html.escape(dial.values[dial.start])}</output></label></p>"
        for dial in pictures.dials
    )
    return (
        f'<figure class="{PLAYER}"><figcaption><b>{html.escape(pictures.title)}</b></figcaption>\n{dials}\n'
        f"{images}\n</figure>\n<script>\n{SCRIPT}\n</script>"
    )


def _image(pictures: Pictures, place: Place) -> str:
    data = base64.b64encode(_packed(pictures.frames[place])).decode("ascii")
    where = " ".join(map(str, place))
    hidden = "" if place == pictures.start else " hidden"
    alt = html.escape(f"{pictures.setting(place)}: {pictures.texts[place]}")
    return f'<img data-place="{where}" alt="{alt}" src="data:image/png;base64,{data}"{hidden}>'


def _packed(frame: bytes) -> bytes:
    """The same picture in fewer bytes: frames are made in a hurry, pages are kept."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(frame)).save(buffer, format="png", optimize=True)
    return min(buffer.getvalue(), frame, key=len)


def filmstrip(pictures: Pictures) -> bytes:
    """Up to six frames one under the other, or side by side where they are small, each under its setting; PNG.

    At most 256 colours, as its frames.
    """
    shown = pictures.strip()
    frames = [Image.open(io.BytesIO(pictures.frames[place])).convert("RGB") for place in shown]
    width, height = max(frame.width for frame in frames), frames[0].height + LABEL
    across = max(1, min(len(frames), 1100 // (width + MARGIN)))
    down = -(-len(frames) // across)
    sheet = Image.new("RGB", (across * (width + MARGIN), down * (height + MARGIN)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.truetype(_font(), 13)
    for k, (place, frame) in enumerate(zip(shown, frames, strict=True)):
        x, y = k % across * (width + MARGIN), k // across * (height + MARGIN)
        pen.text((x + width / 2, y + LABEL / 2), pictures.setting(place), fill="black", font=font, anchor="mm")
        sheet.paste(frame, (x, y + LABEL))
    buffer = io.BytesIO()
    sheet.quantize(256, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _font() -> str:
    """The file of the font that matplotlib ships, which knows τ."""
    from matplotlib.font_manager import findfont

    return str(findfont("DejaVu Sans"))
