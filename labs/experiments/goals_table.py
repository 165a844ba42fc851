"""Part of kernel_goals.py: the goals as a Markdown table."""

from __future__ import annotations

HEAD = (
    "part",
    "ours (its error)",
    "threads",
    "weights",
    "best",
    "median",
    "best other (its error)",
    "best",
    "median",
    "ratio of best",
    "of medians (99 %)",
    "goal",
    "met",
)


def markdown(result: dict) -> str:
    """Return the goals of all parts as a table, and below it what was measured beside them."""
    goals = [(part, goal) for part, told in result["parts"].items() for goal in told["goals"]]
    judged = [line(part, goal) for part, goal in goals if goal["goal"] is not None]
    beside = [line(part, goal) for part, goal in goals if goal["goal"] is None]
    met = sum(goal["met"] is True for _, goal in goals)
    machine = next(iter(result["parts"].values())).get("machine", {})
    head = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return "\n".join(
        [
            f"{machine.get('cpu', '')}: {met} of {len(judged)} met. Times in microseconds, unless "
            f"a unit says otherwise. Measured with `{result['command']}`.",
            "",
            *head,
            *judged,
            "",
            "Beside the goals:",
            "",
            *head,
            *beside,
        ]
    )


def line(part: str, goal: dict) -> str:
    """Return one line of a table."""

    def with_error(who: str) -> str:
        error = f" ({goal[f'{who}_error']:.0e})" if f"{who}_error" in goal else ""
        return goal[who] + error

    def value(name: str) -> str:
        return f"{goal[name]:.0f}" if name in goal else ""

    def median(who: str) -> str:
        if f"{who}_rate" in goal:
            return f"{goal[f'{who}_rate']:.0f} tokens/s"
        return f"{goal[f'{who}_s']:.1f} s" if f"{who}_s" in goal else value(f"{who}_us")

    interval = goal.get("interval")
    spread = ""
    if interval:
        spread = f"{goal['median_ratio']:.2f} ({interval[0]:.2f}-{interval[1]:.2f})"
    cells = (
        part,
        with_error("own"),
        str(goal.get("threads", "")),
        goal.get("cache", ""),
        value("own_best_us"),
        median("own"),
        with_error("peer"),
        value("peer_best_us"),
        median("peer"),
        f"{goal['ratio']:.2f}",
        spread,
        "" if goal["goal"] is None else f"{goal['goal']:g}",
        {None: "", True: "yes", False: "**no**"}[goal["met"]],
    )
    return f"| {' | '.join(cells)} |"
