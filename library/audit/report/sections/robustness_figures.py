"""Figures of robustness: the rise of the error against the size of a change, and each rank against the whole LoRA."""

from matplotlib.ticker import FuncFormatter

from library.audit.report.figures import legend_below
from library.audit.report.svg import LINES, QUIET, canvas, inline
from library.audit.robustness.robustness_result import RobustnessResult

SHOWN = {"loss": "picture", "text": "text", "after": "error after", "damage_by_loss": "drawing"}
STYLES = ("o-", "s:", "D-.")  # a colour that comes again has another style
PERCENT_MORE = FuncFormatter(lambda value, place: f"{100 * value:+g} %")


def size_text(size: float) -> str:
    """A size as people write it: 8/255, or a share."""
    in_255ths = 255 * size
    return f"{round(in_255ths)}/255" if abs(in_255ths - round(in_255ths)) < 1e-6 else f"{size:.3g}"


def rise_figure(result: RobustnessResult, attack: str) -> str:
    """Rise of the error of every variant against the size, with intervals, and noise of the same size."""
    figure, (axes,) = canvas(4.6)
    seen = []
    for number, one in enumerate(result.variants):
        colour, style = LINES[number % len(LINES)], STYLES[number // len(LINES) % len(STYLES)]
        found = [result.of(one.name, attack, size).value for size in result.sizes]
        sizes = [255 * size for size in result.sizes]
        axes.plot(sizes, [here.value for here in found], style, color=colour, markersize=4, label=one.name)
        for size, here in zip(sizes, found, strict=True):
            axes.plot([size] * 2, [here.low, here.high], color=colour, linewidth=1.2, alpha=0.6)
        seen.append(f"{one.name} {100 * found[-1].value:+.0f} %")
    noise = [result.of("full", attack, size).of_noise for size in result.sizes]
    axes.plot(
        [255 * size for size in result.sizes],
        [here.value if here else 0.0 for here in noise],
        "--",
        color=QUIET,
        label="noise, no aim",
    )
    axes.set(xlabel="largest move of a pixel, 255ths", ylabel="rise of the error", xlim=(0, None))
    axes.yaxis.set_major_formatter(PERCENT_MORE)
    legend_below(figure, axes, 2)
    text = f"Rise of the error against the size of the change; at {size_text(result.sizes[-1])}: {', '.join(seen)}."
    return inline(figure, f"rise {attack}", text)


def ratio_figure(result: RobustnessResult) -> str:
    """Each variant's loss ratio over that of the whole LoRA, by attack, at the main size."""
    figure, (axes,) = canvas(4.2)
    names = [one.name for one in result.variants]
    seen = []
    for shift, (attack, title) in enumerate(SHOWN.items()):
        colour = LINES[shift]
        for place, name in enumerate(names):
            found = result.of(name, attack, result.main_size).against_full
            where = place + 0.16 * (shift - 1.5)
            if found is None:
                axes.plot(where, 1.0, "o", color=colour, markerfacecolor="none", markersize=5)
                continue
            axes.plot([where] * 2, [found.low, found.high], color=colour, linewidth=1.6)
            axes.plot(where, found.value, "o", color=colour, markersize=5)
            if attack == "loss":
                seen.append(f"{name} {found.value:.2f}")
        axes.plot([], [], "o", color=colour, label=title)
    axes.axhline(1, color=QUIET, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(names)), [name.replace("rank ", "").replace(" strength", "") for name in names])
    axes.set(ylabel=f"ratio at {size_text(result.main_size)}", xlabel="rank; half: all ranks at half strength")
    legend_below(figure, axes, 2)
    text = f"Ratio to the whole LoRA, picture changed: {', '.join(seen)}. Below 1 is sturdier."
    return inline(figure, "robustness ratios", text)
