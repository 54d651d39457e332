"""The chart of check_router.py: tokens a second against clients, a line a mode, both axes logarithmic, as SVG text.

Colours follow the reader's light or dark setting and the chart paints its own ground, so that it is legible on any page.
"""
import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 480, 70, 180, 64, 56
APART = 17  # pixels between two names beside the lines
STYLE = """
.ground { fill: #ffffff } text { fill: #24292f; font: 13px sans-serif } .title { font-size: 16px; font-weight: 600 }
.note { fill: #57606a; font-size: 12px } .grid { stroke: #d8dee4; stroke-width: 1 } .axis { stroke: #57606a; stroke-width: 1 }
polyline { fill: none; stroke-width: 1.6 } .auto { stroke-width: 4 } .dashed { stroke-dasharray: 6 4 } .leader { stroke-width: 1; opacity: .6 }
.c0 { stroke: #57606a } .c1 { stroke: #8250df } .c2 { stroke: #bf8700 } .c3 { stroke: #1a7f37 } .c4 { stroke: #0969da }
.c5 { stroke: #0e8a8a } .c6 { stroke: #bf3989 } .auto { stroke: #cf222e } text.bold { font-weight: 700 }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117 } text { fill: #e6edf3 } .note { fill: #9198a1 } .grid { stroke: #2a313c } .axis { stroke: #9198a1 }
.c0 { stroke: #9198a1 } .c1 { stroke: #ab7df8 } .c2 { stroke: #d29922 } .c3 { stroke: #3fb950 } .c4 { stroke: #4493f8 }
.c5 { stroke: #39c5cf } .c6 { stroke: #db61a2 } .auto { stroke: #ff6a69 } }
"""


def ticks(low, high):
    """1, 2, 5, 10, 20, ... that lie inside; more of them where those are few."""
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [m * 10.0 ** e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in steps]
        found = [t for t in found if low <= t <= high]
        if len(found) >= 4:
            break
    return found


def spread(wanted):
    """{name: height of its label}: near what is wanted, never closer than APART, inside the chart."""
    order = sorted(wanted, key=wanted.get)
    at = {}
    for k, name in enumerate(order):
        at[name] = max(wanted[name], at[order[k - 1]] + APART if k else TOP)
    for k, name in reversed(list(enumerate(order))):
        at[name] = min(at[name], at[order[k + 1]] - APART if k + 1 < len(order) else HEIGHT - BOTTOM)
    return at


def draw(title, note, lines, accent):
    """lines: {name: {clients: tokens a second}}; the line named `accent` is drawn last and thick, `diffusion` ones dashed."""
    clients = sorted({c for values in lines.values() for c in values})
    speeds = [v for values in lines.values() for v in values.values()]
    low, high = min(speeds) / 1.15, max(speeds) * 1.15
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    wide = math.log(max(clients[-1] / clients[0], 2))

    def x(c):
        return LEFT + (right - LEFT) * math.log(c / clients[0]) / wide

    def y(v):
        return bottom - (bottom - TOP) * math.log(v / low) / math.log(high / low)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
           f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
           f'<text class="title" x="{LEFT}" y="26">{escape(title)}</text>', f'<text class="note" x="{LEFT}" y="45">{escape(note)}</text>']
    for t in ticks(low, high):
        out.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:,g}</text>')
    for c in clients:
        out.append(f'<line class="grid" x1="{x(c):.1f}" x2="{x(c):.1f}" y1="{TOP}" y2="{bottom}"/>')
        out.append(f'<text x="{x(c):.1f}" y="{bottom + 19}" text-anchor="middle">{c}</text>')
    out.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    out.append(f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{bottom}"/>')
    out.append(f'<text x="{(LEFT + right) / 2}" y="{bottom + 42}" text-anchor="middle">clients, each with one request at a time</text>')
    out.append(f'<text x="18" y="{(TOP + bottom) / 2}" text-anchor="middle" transform="rotate(-90 18 {(TOP + bottom) / 2})">'
               "tokens a second, all clients together</text>")

    labels = spread({name: y(values[max(values)]) for name, values in lines.items()})
    colours = {name: f"c{k % 7}" for k, name in enumerate(n for n in lines if n != accent)} | {accent: "auto"}
    for name in sorted(lines, key=lambda n: n == accent):
        values, colour = lines[name], colours[name]
        dashed = " dashed" if name.startswith("diffusion") else ""
        points = " ".join(f"{x(c):.1f},{y(values[c]):.1f}" for c in sorted(values))
        end = max(values)
        out.append(f'<polyline class="{colour}{dashed}" points="{points}"/>')
        out.append(f'<polyline class="{colour} leader" style="stroke-width:1" points="{x(end):.1f},{y(values[end]):.1f} '
                   f'{right + 4},{labels[name]:.1f} {right + 16},{labels[name]:.1f}"/>')
        bold = ' class="bold"' if name == accent else ""
        out.append(f'<text{bold} x="{right + 20}" y="{labels[name] + 4:.1f}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>", ""])
