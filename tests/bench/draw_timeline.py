"""Draws kernels of one traced step (`switchyard-bench ep --parts step --json`, rank 0) as an SVG file.

usage: draw_timeline.py ROWS.json OUT.svg HOW FROM_US TO_US [FROM_US TO_US ...]

HOW: push or collective. Each pair is a window of the step, drawn as one panel; times are `start_us` of
the rows. Prints for each window how long communication ran and how much of it nothing else ran beside.
"""

import html
import json
import sys

WIDTH, LEFT, RIGHT, LANE, TOP, GAP = 1000, 118, 12, 26, 44, 40
# (what a kernel's name has in it, colour, label); the first that fits.
KINDS = [("Wait", "#e67e22", "waits for rows"), ("Exchange", "#e67e22", None),
         ("nccl", "#8e44ad", "NCCL"), ("Push", "#c0392b", "pushes rows"),
         ("Expand", "#95a5a6", "copies rows locally"), ("ReduceKernel<", "#95a5a6", None),
         ("grouped_gemm", "#2471a3", "expert products"), ("nvjet", "#5dade2", "dense products"),
         ("sdpa", "#1e8449", "attention"), ("", "#bdc3c7", "the rest")]


def kind(name):
    return next(k for k in KINDS if k[0] in name)


def lanes(rows):
    """Streams, named by what runs on them; the computation first."""
    names = {}
    for row in rows:
        names.setdefault(row["stream"], []).append(row["name"])

    def title(stream):
        joined = " ".join(names[stream])
        if "grouped_gemm" in joined:
            return "0 computation"
        if "Push" in joined:
            return "1 dispatcher"
        return "2 NCCL" if "nccl" in joined else "3 FSDP sums"
    return sorted((title(s), s) for s in names)


def exposed(rows, begin, end):
    edges = sorted((min(max(t, begin), end), d, r["transfer"]) for r in rows
                   for t, d in ((r["start_us"], 1), (r["start_us"] + r["us"], -1)))
    count, total, alone, last = {True: 0, False: 0}, 0.0, 0.0, begin
    for time, step, transfer in edges:
        if count[True]:
            total += time - last
            alone += 0 if count[False] else time - last
        count[bool(transfer)] += step
        last = time
    return total, alone


def panel(rows, all_lanes, begin, end, top):
    scale = (WIDTH - LEFT - RIGHT) / (end - begin)
    out = []
    for index, (title, stream) in enumerate(all_lanes):
        y = top + LANE * index
        out.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{title[2:]}</text>')
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y + LANE - 3}" y2="{y + LANE - 3}" '
                   'stroke="#ddd"/>')
        for row in rows:
            if row["stream"] != stream:
                continue
            x0 = LEFT + scale * (max(row["start_us"], begin) - begin)
            x1 = LEFT + scale * (min(row["start_us"] + row["us"], end) - begin)
            out.append(f'<rect x="{x0:.1f}" y="{y}" width="{max(x1 - x0, 0.6):.1f}" height="20" '
                       f'fill="{kind(row["name"])[1]}"><title>{html.escape(row["name"][:80])} '
                       f'{row["us"]:.0f} us</title></rect>')
    bottom = top + LANE * len(all_lanes) + 10
    step = 500 if end - begin < 5000 else 1000
    for tick in range(0, int(end - begin) + 1, step):
        out.append(f'<text x="{LEFT + scale * tick:.1f}" y="{bottom}" text-anchor="middle">'
                   f'{tick}</text>')
    return out


def main():
    if len(sys.argv) < 6 or len(sys.argv) % 2:
        sys.exit(__doc__)
    how, windows = sys.argv[3], list(map(float, sys.argv[4:]))
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = [r for r in map(json.loads, file)
                if r["item"] == "ep_step_kernel" and r["how"] == how]
    all_lanes = lanes(rows)
    height = LANE * len(all_lanes) + GAP
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
           f'height="{TOP + height * (len(windows) // 2)}" font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>']
    x = LEFT
    for _, color, label in KINDS:
        if label:
            out.append(f'<rect x="{x}" y="10" width="12" height="12" fill="{color}"/>'
                       f'<text x="{x + 16}" y="20">{label}</text>')
            x += 34 + 6.4 * len(label)
    for index in range(0, len(windows), 2):
        begin, end = windows[index:index + 2]
        inside = [r for r in rows if r["start_us"] < end and r["start_us"] + r["us"] > begin]
        out += panel(inside, all_lanes, begin, end, TOP + height * (index // 2))
        total, alone = exposed(inside, begin, end)
        print(f"{begin:.0f} .. {end:.0f} us: communication {total:.0f} us, exposed {alone:.0f} us")
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write("\n".join(out + ["</svg>"]) + "\n")


if __name__ == "__main__":
    main()
