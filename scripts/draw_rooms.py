"""Draws which rooms of the package import which, from the import statements.

    python scripts/draw_rooms.py [PACKAGE_FOLDER] [--svg=FILE]

A room is a folder of the package, or a module beside the folders. A room's floor is the length
of the longest chain of imports below it. Imports for type checking count too.
"""

from __future__ import annotations

import argparse
import ast
import collections
from collections.abc import Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).parents[1] / "jaxval"
WIDTH, ROW, BOX = 1200, 110, 34

Arrows = Mapping[str, set[str]]
"""Room -> the rooms that it imports."""


def room_of(path: Path, package: Path) -> str:
    """Returns the name of the room that a module is in."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports(source: str, package: str) -> Iterator[str]:
    """Yields the rooms that a module's source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == package and rest:
                yield rest[0]


def read_arrows(package: Path) -> dict[str, set[str]]:
    """Returns each room's imports of other rooms."""
    paths = [path for path in package.rglob("*.py") if path != package / "__init__.py"]
    arrows: dict[str, set[str]] = {room_of(path, package): set() for path in paths}
    for path in paths:
        room = room_of(path, package)
        imported = set(imports(path.read_text(), package.name))
        arrows[room] |= (imported & arrows.keys()) - {room}
    return arrows


def floors(arrows: Arrows) -> dict[str, int]:
    """Returns each room's floor, 0 for those that import no other.

    Raises:
      ValueError: Rooms import each other in a circle.
    """
    levels: dict[str, int] = {}

    def floor(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise ValueError("a circle: " + " -> ".join((*above, room)))
        if room not in levels:
            below = [floor(other, (*above, room)) for other in arrows[room]]
            levels[room] = 1 + max(below, default=-1)
        return levels[room]

    for room in arrows:
        floor(room, ())
    return levels


def by_floor(arrows: Arrows) -> list[list[str]]:
    """Returns the rooms of each floor, the lowest floor first."""
    rooms = collections.defaultdict(list)
    for room, number in floors(arrows).items():
        rooms[number].append(room)
    return [sorted(rooms[number]) for number in sorted(rooms)]


def svg(arrows: Arrows) -> str:
    """Returns a drawing: a row for each floor, a line for each arrow."""
    levels = by_floor(arrows)
    places = {
        room: (WIDTH * (index + 0.5) / len(level), ROW * (len(levels) - number - 0.5))
        for number, level in enumerate(levels)
        for index, room in enumerate(level)
    }
    lines = [
        f'<line x1="{places[room][0]:.0f}" y1="{places[room][1]:.0f}"'
        f' x2="{places[other][0]:.0f}" y2="{places[other][1]:.0f}" stroke="#88a"/>'
        for room, below in sorted(arrows.items())
        for other in sorted(below)
    ]
    boxes = [
        f'<rect x="{x - 5 * len(room) - 6:.0f}" y="{y - BOX / 2:.0f}" rx="5"'
        f' width="{10 * len(room) + 12}" height="{BOX}" fill="#fff" stroke="#335"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{room}</text>'
        for room, (x, y) in places.items()
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * len(levels)}"'
        ' font-family="sans-serif" font-size="15">'
        '<rect width="100%" height="100%" fill="#fff"/>'
    )
    return "\n".join([head, *lines, *boxes, "</svg>", ""])


def main() -> None:
    """Prints the floors, and writes the drawing if a file is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path, nargs="?", default=HERE)
    parser.add_argument("--svg", type=Path, help="file to write a drawing to")
    options = parser.parse_args()
    arrows = read_arrows(options.package.resolve())
    levels = by_floor(arrows)
    for number, level in reversed(list(enumerate(levels))):
        print(f"{number}  {' '.join(level)}")
    count = sum(map(len, arrows.values()))
    print(f"{len(arrows)} rooms, {count} arrows, {len(levels)} floors, no circle")
    if options.svg:
        options.svg.write_text(svg(arrows))


if __name__ == "__main__":
    main()
