"""Draw docs/architecture.svg, the rooms of the package and who may use whom, from the table that the tests hold it to.

    python docs/architecture.py
"""

import ast
from pathlib import Path

DOCS = Path(__file__).resolve().parent
TABLE = DOCS.parent / "tests" / "test_architecture.py"
PICTURE = DOCS / "architecture.svg"

# room: column and row of its box, and what is in it
ROOMS = {
    "data": (0, 0, "pictures and", "their label maps"),
    "show": (0, 0.9, "figures, masks, sliders;", "computes nothing"),
    "models": (0, 1.8, "the networks;", "only torch is needed"),
    "evaluation": (1, 2.1, "scores and", "reports"),
    "training": (2, 0, "settings, loss, loop,", "checkpoints"),
    "analysis": (2, 1, "fields, attention, cost;", "draws nothing"),
    "course": (3, 1, "first cells, checks of", "the exercises, doctor"),
}
WIDTH, HEIGHT, ACROSS, DOWN = 158, 66, 222, 104  # of a box, and from box to box, px
MARGIN, FRAME = 24, 12  # around all boxes, and between them and the dashed frame, px
STYLE = """
  text { font: 12.5px system-ui, 'Helvetica Neue', Arial, sans-serif; text-anchor: middle; fill: #222 }
  .name { font-weight: bold; font-size: 16px }
  .box { fill: #fff; stroke: #0072B2; stroke-width: 2 }
  .all { fill: none; stroke: #777; stroke-dasharray: 5 4 }
  .arrow { fill: none; stroke: #555; stroke-width: 1.6; marker-end: url(#head) }
"""


def allowed(path: Path = TABLE) -> dict[str, set[str]]:
    """room -> the rooms it may import, as the test has it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ALLOWED":
            return ast.literal_eval(node.value)
    raise ValueError(f"{path} holds no table ALLOWED: the picture is drawn from it")


def arrows(table: dict[str, set[str]]) -> list[tuple[str, str]]:
    """(used, user) of every arrow. A room that may use all others gets a single one, from the frame "all"."""
    found = []
    for user, used in table.items():
        found += [("all", user)] if used == set(table) - {user} else [(room, user) for room in used]
    return sorted(found)


def sentence(table: dict[str, set[str]]) -> str:
    """The picture in words."""
    parts = [f"{room} may use {', '.join(sorted(used)) or 'no other room'}" for room, used in table.items()]
    return "; ".join(parts) + "."


def draw(table: dict[str, set[str]]) -> str:
    """The picture as SVG text. Raises ValueError for a room without a place."""
    if homeless := sorted(set(table) ^ set(ROOMS)):
        raise ValueError(f"{', '.join(homeless)}: in the table or in ROOMS, not in both; give each room of the table a "
                         "place in ROOMS")
    corners = {room: (MARGIN + column * ACROSS, MARGIN + row * DOWN) for room, (column, row, *_) in ROOMS.items()}
    inside = [place for room, place in corners.items() if room != "course"]
    right, bottom = (max(axis) + side for axis, side in zip(zip(*inside), (WIDTH, HEIGHT)))
    corners["all"] = (right + FRAME - WIDTH, corners["course"][1])  # its arrow leaves the frame beside the course
    pairs = arrows(table)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {MARGIN * 2 + 3 * ACROSS + WIDTH} '
             f'{bottom + MARGIN:.0f}">',
             "<title>The rooms of the package</title>", f"<desc>{sentence(table)}</desc>", f"<style>{STYLE}</style>",
             '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
             '<path d="M0 0L8 4L0 8z" fill="#555"/></marker>',
             '<rect width="100%" height="100%" fill="#fff"/>']
    if any(used == "all" for used, _ in pairs):
        lines.append(f'<rect class="all" x="{MARGIN - FRAME}" y="{MARGIN - FRAME}" rx="10" '
                     f'width="{right - MARGIN + 2 * FRAME}" height="{bottom - MARGIN + 2 * FRAME:.0f}"/>')
    for used, user in pairs:
        x0, y0 = corners[used][0] + WIDTH, port(corners, used, user, [b for a, b in pairs if a == used])
        x1, y1 = corners[user][0], port(corners, user, used, [a for a, b in pairs if b == user])
        bend = min(60, (x1 - x0) / 2)
        lines.append(f'<path class="arrow" d="M{x0} {y0:.0f}C{x0 + bend:.0f} {y0:.0f} {x1 - bend:.0f} {y1:.0f} '
                     f'{x1} {y1:.0f}"><title>{user} may use {used}</title></path>')
    for room, (x, y) in corners.items():
        if room != "all":
            middle = x + WIDTH // 2
            lines += [f'<rect class="box" x="{x}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
                      f'<text class="name" x="{middle}" y="{y + 22:.0f}">{room}</text>']
            lines += [f'<text x="{middle}" y="{y + 40 + 16 * i:.0f}">{line}</text>'
                      for i, line in enumerate(ROOMS[room][2:])]
    return "\n".join([*lines, "</svg>", ""])


def port(corners: dict, room: str, other: str, others: list[str]) -> float:
    """Height at which the arrow to or from `other` meets the box: spread over its side, in the order of the others."""
    place = sorted(others, key=lambda name: corners[name][1]).index(other)
    return corners[room][1] + HEIGHT * (place + 1) / (len(others) + 1)


if __name__ == "__main__":
    PICTURE.write_text(draw(allowed()), encoding="utf-8")
    print(f"wrote {PICTURE}")
