"""Carbon dioxide at Mauna Loa: from the weekly record to a published report.

The data are real: the weekly flask and in-situ averages of the Scripps Institution of Oceanography,
1958 to 2001, as statsmodels ships them (``statsmodels.datasets.co2``). Weeks are missing in them.

    load ── clean ─┬─ decompose ─┬─ draw ── report          publish
    weekly monthly ├─ forecast ──┘  plot    HTML, at        the report to
    record means   └─ backtest              out             the site's folder

Each step is a task, ``main`` is the flow that runs them all; both work by themselves, too:

    python -c "from examples.co2.pipeline import main; print(main('/tmp/co2'))"

On a server (a run that fails or is killed goes on from the step where it was):

    shunter deploy examples/co2/pipeline.py:main --name co2-report --pool default --interval 20s -p out=/tmp/co2
    shunter deploy examples/co2/pipeline.py:publish --name co2-publish --pool default \\
        -p out=/tmp/co2 -p site=/tmp/co2-site --retries 40 --retry-delay 3s

or without a pool: ``python examples/co2/pipeline.py`` serves the report from here.

The libraries are imported by the steps that need them, so ``publish`` starts at once.
"""

from __future__ import annotations

import base64
import io
import os
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from shunter import artifacts, context, flow, task

#: ppm. What lies outside is a broken record, not air.
PLAUSIBLE = (300.0, 400.0)
#: Weeks. A longer hole would be invented rather than filled.
LONGEST_GAP = 20


@flow(name="co2-report")
def main(out: str, since: int = 1958, horizon: int = 24) -> dict[str, object]:
    """Run every step and put the report at ``out/report.html``.

    Args:
        out: folder of the results.
        since: first year to use, 1958 to 1990.
        horizon: months to forecast, 1 to 120.
    """
    os.environ.setdefault("MPLCONFIGDIR", str(Path(out) / "matplotlib"))  # its font list, made once
    monthly = clean.submit(load.submit(since))
    parts, ahead = decompose.submit(monthly), forecast.submit(monthly, horizon)
    error = backtest.submit(monthly)
    picture = draw.submit(monthly, parts, ahead)
    found = report.submit(monthly, parts, ahead, error, picture, out).result()
    print(f"report at {found['report']}")
    return found


@task
def load(since: int = 1958) -> Any:
    """The weekly record from ``since`` on, checked."""
    if not 1958 <= since <= 1990:
        raise ValueError(f"since={since}: the record begins in 1958, and ten years are needed (up to 1990)")
    from statsmodels.datasets import co2

    weekly = co2.load_pandas().data["co2"].loc[f"{since}-01-01" :]
    missing = weekly.isna()
    longest = int(missing.groupby((~missing).cumsum()).sum().max())
    outside = weekly[(weekly < PLAUSIBLE[0]) | (weekly > PLAUSIBLE[1])]
    steps = weekly.index.to_series().diff().dropna().dt.days.unique().tolist()
    if steps != [7]:
        raise ValueError(f"the record is not weekly: steps of {steps} days")
    if len(outside):
        raise ValueError(
            f"{len(outside)} values outside {PLAUSIBLE} ppm, first on {outside.index[0]:%Y-%m-%d}"
        )
    if longest > LONGEST_GAP:
        raise ValueError(f"a gap of {longest} weeks is too long to fill")
    print(
        f"load: {len(weekly)} weeks, {weekly.index[0]:%Y-%m-%d} to {weekly.index[-1]:%Y-%m-%d}, "
        f"{int(missing.sum())} missing, longest gap {longest} weeks"
    )
    return weekly


@task
def clean(weekly: Any) -> Any:
    """Gaps filled, and the means of each month."""
    monthly = weekly.interpolate("time").resample("MS").mean()
    filled = weekly.isna().resample("MS").sum()
    print(f"clean: {len(monthly)} monthly means, {int((filled > 0).sum())} with filled weeks")
    return monthly


@task
def decompose(monthly: Any) -> Any:
    """Trend, season and rest by STL (Cleveland et al. 1990)."""
    from pandas import DataFrame
    from statsmodels.tsa.seasonal import STL

    fitted = STL(monthly, period=12, seasonal=13, robust=True).fit()
    parts = DataFrame({"trend": fitted.trend, "season": fitted.seasonal, "rest": fitted.resid})
    swing = parts["season"].max() - parts["season"].min()
    print(
        f"decompose: trend {parts['trend'].iloc[0]:.1f} to {parts['trend'].iloc[-1]:.1f} ppm, "
        f"season swings {swing:.1f} ppm, rest {parts['rest'].std():.2f} ppm"
    )
    return parts


@task
def forecast(monthly: Any, horizon: int = 24) -> Any:
    """``horizon`` months ahead, with a band of 95 %."""
    if not 1 <= horizon <= 120:
        raise ValueError(f"horizon={horizon}: 1 to 120 months")
    predicted = model(monthly).get_prediction(len(monthly), len(monthly) + horizon - 1)
    ahead = predicted.summary_frame(alpha=0.05)
    print(f"forecast: {ahead['mean'].iloc[-1]:.2f} ppm in {ahead.index[-1]:%Y-%m}")
    return ahead


@task
def backtest(monthly: Any) -> dict[str, float]:
    """How wrong the same model was on the last months, which it did not see; and who says 'as last year'."""
    held_out = monthly.iloc[-24:]
    error = float((model(monthly.iloc[:-24]).forecast(24) - held_out).abs().mean())
    same = float((monthly.shift(12).iloc[-24:] - held_out).abs().mean())
    print(f"backtest: on 24 months held out {error:.2f} ppm off, 'as last year' {same:.2f} ppm")
    return {"model": round(error, 3), "same_as_last_year": round(same, 3)}


@task
def report(
    monthly: Any, parts: Any, ahead: Any, error: dict[str, float], picture: bytes, out: str
) -> dict[str, object]:
    """The page, complete in itself, at ``out/report.html``; what it says in numbers."""
    growth = growth_by_year(parts)
    decades = growth.groupby(growth.index // 10 * 10).agg(["mean", "count"])
    rows = "".join(
        f"<tr><td>{decade}s</td><td>{row['mean']:.2f}</td><td>{int(row['count'])}</td></tr>"
        for decade, row in decades.iterrows()
    )
    artifacts.table(
        "growth",
        [
            {"years": f"{decade}s", "ppm a year": round(row["mean"], 2), "counted": int(row["count"])}
            for decade, row in decades.iterrows()
        ],
        "Growth of the trend",
    )
    target = Path(out) / "report.html"
    found: dict[str, object] = {
        "report": str(target),
        "last_month": f"{monthly.index[-1]:%Y-%m}",
        "last_ppm": round(float(monthly.iloc[-1]), 2),
        "forecast_month": f"{ahead.index[-1]:%Y-%m}",
        "forecast_ppm": round(float(ahead["mean"].iloc[-1]), 2),
        "backtest_error_ppm": error["model"],
        "same_as_last_year_error_ppm": error["same_as_last_year"],
    }
    page = PAGE.format(
        first=f"{monthly.index[0]:%B %Y}",
        last=f"{monthly.index[-1]:%B %Y}",
        rise=f"{monthly.iloc[-12:].mean() - monthly.iloc[:12].mean():.0f}",
        picture=base64.b64encode(picture).decode(),
        rows=rows,
        run=escape(context.run_id or "by hand"),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        **found,
    )
    put(page.encode(), target)
    print(f"report: {len(page) // 1024} kB")
    return found


@flow(name="co2-publish")
def publish(out: str, site: str) -> dict[str, str]:
    """Copy the report to the folder ``site`` as ``index.html``.

    Raises:
        FileNotFoundError: there is no report yet. The retry policy asks again.
    """
    source, target = Path(out) / "report.html", Path(site) / "index.html"
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there yet: co2-report has not completed")
    put(source.read_bytes(), target)
    made = datetime.fromtimestamp(source.stat().st_mtime, UTC)
    print(f"published {target}, made {made:%Y-%m-%d %H:%M:%S} UTC")
    return {"published": str(target)}


# --- what the steps share ------------------------------------------------------------------------


def put(page: bytes, target: Path) -> None:
    """Write in one step: whoever opens ``target`` sees the old file or the new one, never half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.write_bytes(page)
    draft.replace(target)


def model(monthly: Any) -> Any:
    """ARIMA(1,1,1) with drift on the deseasonalized series, fitted."""
    from statsmodels.tsa.arima.model import ARIMA
    from statsmodels.tsa.forecasting.stl import STLForecast

    return STLForecast(monthly, ARIMA, model_kwargs={"order": (1, 1, 1), "trend": "t"}, period=12).fit()


def growth_by_year(parts: Any) -> Any:
    """Growth of the trend over each complete calendar year, ppm, by year."""
    trend = parts["trend"]
    growth = trend[trend.index.month == 1].diff().dropna()
    growth.index = growth.index.year - 1
    return growth


INK, RED, BLUE, GREY = "#1f2933", "#c8452d", "#2b6cb0", "#9aa5b1"


@task
def draw(monthly: Any, parts: Any, ahead: Any) -> bytes:
    """The record with its forecast, the season, and the growth of each year, as one PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    growth, picture = growth_by_year(parts), io.BytesIO()
    style = {
        "font.size": 10,
        "axes.edgecolor": GREY,
        "axes.labelcolor": INK,
        "axes.titlelocation": "left",
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlecolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": "#e4e7eb",
        "axes.axisbelow": True,
    }
    with plt.rc_context(style):
        figure = plt.figure(figsize=(11, 7.6), dpi=130, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        grid = figure.add_gridspec(2, 2, height_ratios=[1.55, 1], width_ratios=[1, 1.35])
        record = figure.add_subplot(grid[0, :])
        record.plot(monthly.index, monthly, color=BLUE, lw=1.1, label="monthly mean")
        record.plot(parts.index, parts["trend"], color=INK, lw=1.6, label="trend (STL)")
        record.plot(ahead.index, ahead["mean"], color=RED, lw=1.5, label="forecast, 95 % band")
        record.fill_between(
            ahead.index, ahead["mean_ci_lower"], ahead["mean_ci_upper"], color=RED, alpha=0.18, lw=0
        )
        record.set_title("Carbon dioxide at Mauna Loa")
        record.set_ylabel("ppm")
        record.margins(x=0.01)
        record.grid(axis="y")
        record.legend(frameon=False, loc="upper left")
        record.annotate(
            f"{ahead['mean'].iloc[-1]:.1f} ppm\n{ahead.index[-1]:%b %Y}",
            (ahead.index[-1], ahead["mean"].iloc[-1]),
            xytext=(-14, -58),
            textcoords="offset points",
            ha="center",
            color=RED,
            arrowprops={"arrowstyle": "-", "color": RED, "lw": 0.8},
        )

        year = figure.add_subplot(grid[1, 0])
        season = parts["season"]
        for first, last, shade in ((0, 10, GREY), (-10, None, BLUE)):
            years = sorted(set(season.index.year))[first:last]
            chosen = season[season.index.year.isin(years)]
            mean = chosen.groupby(chosen.index.month).mean()
            year.plot(
                mean.index, mean, color=shade, lw=2, marker="o", ms=3.5, label=f"{years[0]}–{years[-1]}"
            )
        year.axhline(0, color=GREY, lw=0.8)
        year.set_xticks(range(1, 13), list("JFMAMJJASOND"))
        year.set_title("Season: the northern forests breathe")
        year.set_ylabel("ppm from the trend")
        year.grid(axis="y")
        year.legend(frameon=False, loc="lower left")

        bars = figure.add_subplot(grid[1, 1])
        bars.bar(growth.index, growth, color=[RED if g >= 2 else BLUE for g in growth], width=0.78)
        smooth = growth.rolling(5, center=True).mean()
        bars.plot(smooth.index, smooth, color=INK, lw=1.6, label="five-year mean")
        bars.set_title("Growth of the trend in each year (red: 2 ppm and more)")
        bars.set_ylabel("ppm a year")
        bars.margins(x=0.01)
        bars.grid(axis="y")
        bars.legend(frameon=False, loc="upper left")
        figure.savefig(picture)
        plt.close(figure)
    return picture.getvalue()


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Carbon dioxide at Mauna Loa</title>
<style>
  body {{ font: 16px/1.55 system-ui, sans-serif; color: #1f2933; max-width: 62rem; margin: 2.5rem auto;
         padding: 0 1.2rem; }}
  h1 {{ margin-bottom: .2rem; }} img {{ width: 100%; height: auto; margin: 1rem 0; }}
  .lead {{ font-size: 1.15rem; }} footer, .note {{ color: #616e7c; font-size: .88rem; }}
  table {{ border-collapse: collapse; }} td, th {{ padding: .25rem 1.4rem .25rem 0; text-align: left;
         border-bottom: 1px solid #e4e7eb; font-variant-numeric: tabular-nums; }}
</style></head><body>
<h1>Carbon dioxide at Mauna Loa</h1>
<p class="lead">{last_ppm} ppm in {last}: {rise} ppm more than at the beginning of the record in {first}.
The model expects {forecast_ppm} ppm in {forecast_month}.</p>
<img alt="The monthly record with trend and forecast; the season; the growth of each year"
     src="data:image/png;base64,{picture}">
<h2>Growth of the trend</h2>
<table><tr><th>Years</th><th>ppm a year</th><th>years counted</th></tr>{rows}</table>
<h2>How far to trust the forecast</h2>
<p>Fitted without the last 24 months, the same model was off by {backtest_error_ppm} ppm on average;
"the same as last year" would have been off by {same_as_last_year_error_ppm} ppm.</p>
<p class="note">Weekly averages of the Scripps Institution of Oceanography, gaps filled linearly in time,
monthly means, decomposed by robust STL; forecast by ARIMA(1,1,1) with drift on the deseasonalized series.</p>
<footer>Made {made} by run {run}.</footer>
</body></html>
"""


if __name__ == "__main__":
    main.serve("co2-report", parameters={"out": "/tmp/co2"}, interval=20)
