"""One SVG per target: IOPS and CPU per I/O relative to qemu-nbd."""

from xml.sax.saxutils import escape

WIDTH = 860
LEFT = 150
PANEL = 320
GAP = 40
ROW = 34
TOP = 84
COLOURS = {"berth": "#1f6f8b", "berth-dd": "#8fc1d4", "berth-b": "#bbbbbb"}
LABELS = {"berth": "berth", "berth-dd": "berth, both digests", "berth-b": "berth again (noise)"}
SHOWN = ("berth", "berth-dd")


def svg(summary):
    """The whole picture as text."""
    cases = summary["cases"]
    height = TOP + ROW * len(cases) + 40
    iops_max = max([1.5] + [row["iops_ratio"] for rows in cases.values() for row in rows.values()]) * 1.12
    cpu_max = max([1.0] + [rows[name]["cpu_ratio"] for rows in cases.values() for name in SHOWN if name in rows]) * 1.12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        text(16, 24, f"berth and qemu-nbd on {summary['title']}", size=15, weight="600"),
        *legend(),
        *panel(LEFT, "IOPS, qemu-nbd = 1 (longer is better)", cases, "iops_ratio", iops_max),
        *panel(LEFT + PANEL + GAP, "CPU per I/O, qemu-nbd = 1 (shorter is better)", cases, "cpu_ratio", cpu_max),
    ]
    for number, case in enumerate(cases):
        parts.append(text(LEFT - 10, TOP + ROW * number + 21, case, anchor="end"))
    return "\n".join([*parts, "</svg>", ""])


def legend():
    x = 16
    for server in SHOWN:
        yield f'<rect x="{x}" y="36" width="12" height="12" fill="{COLOURS[server]}"/>'
        yield text(x + 17, 46, LABELS[server])
        x += 40 + 7 * len(LABELS[server])
    yield f'<rect x="{x}" y="36" width="2" height="12" fill="#c0392b"/>'
    yield text(x + 8, 46, LABELS["berth-b"])


def panel(left, title, cases, field, most):
    bottom = TOP + ROW * len(cases)
    yield text(left, TOP - 10, title, weight="600")
    scale = PANEL / most
    for rows_at, rows in enumerate(cases.values()):
        y = TOP + ROW * rows_at + 5
        shown = [server for server in SHOWN if server in rows]
        for server in shown:
            value = rows[server][field]
            width = min(value, most) * scale
            yield f'<rect x="{left}" y="{y}" width="{width:.1f}" height="11" fill="{COLOURS[server]}"/>'
            inside = width > PANEL - 36
            yield text(left + width + (-4 if inside else 4), y + 10, f"{value:.2f}", anchor="end" if inside else "start", size=11,
                       fill="#ffffff" if inside else "#222222", halo=not inside)
            if server == "berth" and "berth-b" in rows:
                x = left + min(rows["berth-b"][field], most) * scale
                yield f'<rect x="{x - 1:.1f}" y="{y - 2}" width="2" height="15" fill="#c0392b"/>'
            y += 13
    x = left + scale
    yield f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#555555" stroke-dasharray="3 3"/>'
    yield text(x, bottom + 14, "qemu-nbd", anchor="middle", size=11)
    yield f'<line x1="{left}" y1="{TOP}" x2="{left}" y2="{bottom}" stroke="#222222"/>'


def text(x, y, words, anchor="start", size=12, weight="400", fill="#222222", halo=False):
    # A white rim keeps numbers readable where they cross a line.
    rim = ' paint-order="stroke" stroke="#ffffff" stroke-width="3"' if halo else ""
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
            f'fill="{fill}"{rim}>{escape(words)}</text>')
