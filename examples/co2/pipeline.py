"""Carbon dioxide at Mauna Loa: from the weekly record to a published report.

The data are real: the weekly flask and in-situ averages of the Scripps Institution of Oceanography,
1958 to 2001, as statsmodels ships them (``statsmodels.datasets.co2``). Weeks are missing in them.

    load -> clean -> decompose -> forecast -> report          publish
    weekly  monthly  trend and    two years   HTML with       the report to
    record  means    season       ahead       a plot          the site's folder

Each step is a plain function that reads the files of the steps before it from ``work`` and leaves its
own; nothing here knows of Shunter. ``main`` runs them all and is what gets deployed:

    shunter deploy examples/co2/pipeline.py:main --name co2-report --pool default --interval 20s -p out=/tmp/co2
    shunter deploy examples/co2/pipeline.py:publish --name co2-publish --pool default \\
        -p out=/tmp/co2 -p site=/tmp/co2-site --retries 40 --retry-delay 3s

The libraries are imported by the steps that need them, so ``publish`` starts at once.
"""

from __future__ import annotations

import base64
import html
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

#: ppm. What lies outside is a broken record, not air.
PLAUSIBLE = (300.0, 400.0)
#: Weeks. A longer hole would be invented rather than filled.
LONGEST_GAP = 20


def main(out: str, since: int = 1958, horizon: int = 24) -> dict[str, object]:
    """Run every step and put the report at ``out/report.html``.

    Args:
        out: folder of the results.
        since: first year to use, 1958 to 1990.
        horizon: months to forecast, 1 to 120.
    """
    # A folder of this run's own: two runs at once do not touch each other's files.
    work = Path(out) / "runs" / os.environ.get("SHUNTER_RUN_ID", "by-hand")
    work.mkdir(parents=True, exist_ok=True)
    for step in (
        lambda: load(str(work), since),
        lambda: clean(str(work)),
        lambda: decompose(str(work)),
        lambda: forecast(str(work), horizon),
        lambda: report(str(work)),
    ):
        step()
    replace(work / "report.html", Path(out) / "report.html")
    say(f"report at {Path(out) / 'report.html'}")
    facts = json.loads((work / "forecast.json").read_text())
    return {
        "report": str(Path(out) / "report.html"),
        "last_month": facts["last_month"],
        "last_ppm": facts["last_ppm"],
        "forecast_ppm": facts["forecast_ppm"],
        "backtest_error_ppm": facts["backtest_error_ppm"],
    }


def load(work: str, since: int = 1958) -> None:
    """The weekly record from ``since`` on, checked, as ``weekly.csv``."""
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
    weekly.to_csv(Path(work) / "weekly.csv", index_label="week")
    say(
        f"load: {len(weekly)} weeks, {weekly.index[0]:%Y-%m-%d} to {weekly.index[-1]:%Y-%m-%d}, "
        f"{int(missing.sum())} missing, longest gap {longest} weeks"
    )


def clean(work: str) -> None:
    """Gaps filled and monthly means, as ``monthly.csv``; ``filled`` counts the weeks made up."""
    pd = pandas()
    weekly = pd.read_csv(Path(work) / "weekly.csv", index_col="week", parse_dates=True)["co2"]
    monthly = pd.DataFrame(
        {
            "co2": weekly.interpolate("time").resample("MS").mean(),
            "filled": weekly.isna().resample("MS").sum(),
        }
    )
    monthly.to_csv(Path(work) / "monthly.csv", index_label="month")
    say(f"clean: {len(monthly)} monthly means, {int((monthly['filled'] > 0).sum())} with filled weeks")


def decompose(work: str) -> None:
    """Trend, season and rest by STL (Cleveland et al. 1990), as ``parts.csv``."""
    from statsmodels.tsa.seasonal import STL

    monthly = read_monthly(work)
    parts = STL(monthly, period=12, seasonal=13, robust=True).fit()
    frame = pandas().DataFrame({"trend": parts.trend, "season": parts.seasonal, "rest": parts.resid})
    frame.to_csv(Path(work) / "parts.csv", index_label="month")
    swing = frame["season"].max() - frame["season"].min()
    say(
        f"decompose: trend {frame['trend'].iloc[0]:.1f} to {frame['trend'].iloc[-1]:.1f} ppm, "
        f"season swings {swing:.1f} ppm, rest {frame['rest'].std():.2f} ppm"
    )


def forecast(work: str, horizon: int = 24) -> None:
    """``horizon`` months ahead, and how wrong the same model was on the last months it did not see."""
    if not 1 <= horizon <= 120:
        raise ValueError(f"horizon={horizon}: 1 to 120 months")
    from statsmodels.tsa.arima.model import ARIMA
    from statsmodels.tsa.forecasting.stl import STLForecast

    def model(series):  # type: ignore[no-untyped-def]
        return STLForecast(series, ARIMA, model_kwargs={"order": (1, 1, 1), "trend": "t"}, period=12).fit()

    monthly = read_monthly(work)
    held_out = monthly.iloc[-24:]
    error = (model(monthly.iloc[:-24]).forecast(24) - held_out).abs().mean()
    same_as_last_year = (monthly.shift(12).iloc[-24:] - held_out).abs().mean()
    ahead = model(monthly).get_prediction(len(monthly), len(monthly) + horizon - 1).summary_frame(alpha=0.05)
    ahead.to_csv(Path(work) / "forecast.csv", index_label="month")
    facts = {
        "last_month": f"{monthly.index[-1]:%Y-%m}",
        "last_ppm": round(float(monthly.iloc[-1]), 2),
        "forecast_month": f"{ahead.index[-1]:%Y-%m}",
        "forecast_ppm": round(float(ahead["mean"].iloc[-1]), 2),
        "backtest_error_ppm": round(float(error), 3),
        "same_as_last_year_error_ppm": round(float(same_as_last_year), 3),
    }
    (Path(work) / "forecast.json").write_text(json.dumps(facts))
    say(
        f"forecast: {facts['forecast_ppm']} ppm in {facts['forecast_month']}; on 24 months held out "
        f"{error:.2f} ppm off, 'as last year' {same_as_last_year:.2f} ppm"
    )


def report(work: str) -> None:
    """The page ``report.html``, complete in itself, from the files of the steps before."""
    folder = Path(work)
    draw(folder, folder / "plot.png")
    picture = base64.b64encode((folder / "plot.png").read_bytes()).decode()
    facts = json.loads((folder / "forecast.json").read_text())
    monthly, growth = read_monthly(work), growth_by_year(work)
    decades = growth.groupby(growth.index // 10 * 10).agg(["mean", "count"])
    rows = "".join(
        f"<tr><td>{decade}s</td><td>{row['mean']:.2f}</td><td>{int(row['count'])}</td></tr>"
        for decade, row in decades.iterrows()
    )
    run = html.escape(os.environ.get("SHUNTER_RUN_ID", "by hand"))
    (folder / "report.html").write_text(
        PAGE.format(
            first=f"{monthly.index[0]:%B %Y}",
            last=f"{monthly.index[-1]:%B %Y}",
            rise=f"{monthly.iloc[-12:].mean() - monthly.iloc[:12].mean():.0f}",
            picture=picture,
            rows=rows,
            run=run,
            made=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
            **facts,
        ),
        "utf-8",
    )
    say(f"report: {(folder / 'report.html').stat().st_size // 1024} kB")


def publish(out: str, site: str) -> dict[str, str]:
    """Copy the report to the folder ``site`` as ``index.html``.

    Raises:
        FileNotFoundError: there is no report yet. The retry policy asks again.
    """
    source, target = Path(out) / "report.html", Path(site) / "index.html"
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there yet: co2-report has not completed")
    target.parent.mkdir(parents=True, exist_ok=True)
    replace(source, target)
    made = datetime.fromtimestamp(source.stat().st_mtime, UTC)
    say(f"published {target}, made {made:%Y-%m-%d %H:%M:%S} UTC")
    return {"published": str(target)}


# --- what the steps share ------------------------------------------------------------------------


def say(text: str) -> None:
    """One line of the run's log, at once."""
    print(text, flush=True)


def replace(source: Path, target: Path) -> None:
    """Copy in one step: whoever opens ``target`` sees the old file or the new one, never half of it."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, draft)
    draft.replace(target)


def pandas():  # type: ignore[no-untyped-def]
    """pandas, loaded when first needed."""
    import pandas

    return pandas


def read_monthly(work: str):  # type: ignore[no-untyped-def]
    """The monthly means as a series with its frequency."""
    frame = pandas().read_csv(Path(work) / "monthly.csv", index_col="month", parse_dates=True)
    return frame["co2"].asfreq("MS")


def growth_by_year(work: str):  # type: ignore[no-untyped-def]
    """Growth of the trend over each complete calendar year, ppm, by year."""
    trend = pandas().read_csv(Path(work) / "parts.csv", index_col="month", parse_dates=True)["trend"]
    january = trend[trend.index.month == 1]
    growth = january.diff().dropna()
    growth.index = growth.index.year - 1
    return growth


INK, RED, BLUE, GREY = "#1f2933", "#c8452d", "#2b6cb0", "#9aa5b1"


def draw(folder: Path, target: Path) -> None:
    """The record with its forecast, the season, and the growth of each year, as one PNG."""
    os.environ.setdefault("MPLCONFIGDIR", str(folder.parent / "matplotlib"))  # its font list, made once
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    pd, monthly, growth = pandas(), read_monthly(str(folder)), growth_by_year(str(folder))
    parts = pd.read_csv(folder / "parts.csv", index_col="month", parse_dates=True)
    ahead = pd.read_csv(folder / "forecast.csv", index_col="month", parse_dates=True)
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
        figure.savefig(target)
        plt.close(figure)


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
