"""What the page of tools/web.py says, as HTML.

Whatever comes from a file, names of classes among it, is escaped.
"""

import html
from collections.abc import Sequence

import viewing
from viewing import Answer, Footage

from utils.comparing import HIGHLIGHT, Share, Swap

NONE_THERE = (
    "There is no trained network here yet. <code>make demo</code> (or <code>python tools/demo.py"
    "</code>) trains one on drawn street scenes in some minutes, and <code>"
    "tools/convert_weights.py</code> lets published files say what they are. Then press "
    "<b>Look for networks</b>."
)
MOST_ROWS = 24  # of a table


def failure(sentence: str) -> str:
    return f"<b>{html.escape(sentence)}</b>"


def networks_there(count: int, left_out: Sequence[str]) -> str:
    """How many trained networks there are, and why other files are none."""
    words = {0: NONE_THERE, 1: "1 trained network."}.get(count, f"{count} trained networks.")
    if not left_out:
        return words
    each = "<br>".join(html.escape(text) for text in left_out[:MOST_ROWS])
    files = "1 file is" if len(left_out) == 1 else f"{len(left_out)} files are"
    return f"{words} <details><summary>{files} left out</summary>{each}</details>"


def message(footage: Footage, answers: Sequence[Answer]) -> str:
    """What has to be known of what is shown."""
    sentences = [html.escape(footage.remark)] if footage.remark else []
    if not answers:
        sentences.append(NONE_THERE)
    elif viewing.seen_frames(answers) < len(footage.frames):
        sentences.append(
            f"The first {viewing.seen_frames(answers)} of {len(footage.frames)} frames are shown; "
            f"for more the network takes longer than {viewing.CLIP_PATIENCE:.0f} s."
        )
    return " ".join(sentences)


def percent(share: float) -> str:
    """0..1 for people."""
    return "below 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def shares_table(answer: Answer, shares: Sequence[Share]) -> str:
    """Each class with its colour, a bar and its share."""
    rows = [
        f"<tr><td>{html.escape(name)}</td><td style='width: 55%'><i style='background: "
        f"rgb{color}; width: {100 * share:.1f}%'></i></td><td>{percent(share)}</td></tr>"
        for name, color, share in shares[:MOST_ROWS]
    ]
    return (
        f"<div class='name'>{html.escape(answer.title)}</div>{answer.milliseconds:.1f} ms from a "
        f"picture in memory to its classes ({html.escape(answer.deployment)})"
        f"<table class='rows'>{''.join(rows)}</table>"
    )


def swaps_table(differing: float, swaps: Sequence[Swap]) -> str:
    """On how much two networks disagree, and which classes they give instead."""
    rows = [
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(other)}</td>"
        f"<td>{percent(share)}</td></tr>"
        for name, other, share in swaps
    ]
    return (
        f"<b style='color: rgb{HIGHLIGHT}'>They disagree on {percent(differing)} of the pixels."
        f"</b><br>What the first and the second see there:<table class='rows'>{''.join(rows)}"
        "</table>"
    )
