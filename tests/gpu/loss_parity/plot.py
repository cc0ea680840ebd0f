"""Draws the curves that run.py --json wrote as an SVG file: losses above, distances below.

usage: plot.py CURVES.json OUT.svg
"""

import json
import math
import sys

WIDTH, HEIGHT, LEFT, RIGHT, GAP = 860, 560, 64, 16, 44
COLORS = {"switchyard": "#c0392b", "transformers": "#2c3e50", "transformers_reordered": "#2980b9"}
LABELS = {"switchyard": "Switchyard", "transformers": "Transformers + torch AdamW",
          "transformers_reordered": "the same, rows reversed"}


def panel(top, height, steps, series, low, high, ticks, title):
    """`series`: (name, values, colour); values as drawn, `ticks` as (value, text)."""
    def x(step):
        return LEFT + (WIDTH - LEFT - RIGHT) * step / (steps - 1)

    def y(value):
        return top + height * (1 - (min(max(value, low), high) - low) / (high - low))

    out = [f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{height}" '
           'fill="none" stroke="#999"/>',
           f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{title}</text>']
    for value, text in ticks:
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
                   'stroke="#eee"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{text}</text>')
    for step in range(0, steps, max(1, steps // 8)):
        out.append(f'<text x="{x(step):.1f}" y="{top + height + 16}" text-anchor="middle">'
                   f'{step + 1}</text>')
    for index, (name, values, color) in enumerate(series):
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values))
        dash = ' stroke-dasharray="5 4"' if index else ""
        out.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.4"'
                   f'{dash}/>')
        at = top + 18 + 16 * index
        out.append(f'<line x1="{WIDTH - 300}" x2="{WIDTH - 270}" y1="{at}" y2="{at}" '
                   f'stroke="{color}" stroke-width="2"{dash}/>')
        out.append(f'<text x="{WIDTH - 264}" y="{at + 4}">{name}</text>')
    return out


def main():
    curves = json.load(open(sys.argv[1]))
    losses, steps = curves["loss"], curves["steps"]
    reference = losses["transformers"]

    def distance(name):
        return [math.log10(max(abs(a - b) / b, 1e-7)) for a, b in zip(losses[name], reference)]

    low, high = math.floor(min(map(min, losses.values()))), math.ceil(max(map(max, losses.values())))
    half = (HEIGHT - 3 * GAP) // 2
    body = panel(GAP, half, steps, [(LABELS[n], losses[n], COLORS[n]) for n in COLORS],
                 low, high, [(v, str(v)) for v in range(low, high + 1, max(1, (high - low) // 6))],
                 f"Cross entropy per supervised token, {curves['parameters'] / 1e6:.0f} M parameters")
    body += panel(2 * GAP + half, half, steps,
                  [(f"{LABELS[n]}", distance(n), COLORS[n])
                   for n in ("switchyard", "transformers_reordered")],
                  -6, -1, [(v, f"1e{v}") for v in range(-6, 0)],
                  "Relative distance of the loss from Transformers")
    with open(sys.argv[2], "w") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
                   'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" '
                   'fill="white"/>\n' + "\n".join(body) + "\n</svg>\n")


if __name__ == "__main__":
    main()
