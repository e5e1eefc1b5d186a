"""One page a run: everything that is known of it, in one file that needs no network and runs no script."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from heterofl_flwr.core import formatting
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report.drawing import css_variables, to_png, to_svg
from heterofl_flwr.report.figures import Drawing, draw_run
from heterofl_flwr.report.summary import failure_rows, level_rows, on_devices, partial_line, savings
from heterofl_flwr.report.tables import SCORE_HEADS, level_cells, level_heads, marked, score_cells
from heterofl_flwr.runs.costs import ModelCosts
from heterofl_flwr.runs.files import to_json, write_atomic
from heterofl_flwr.runs.folder import RunFolder, flatten
from heterofl_flwr.runs.metrics import SCOPES, headline_kind, scores

# The page may load nothing at all, from anywhere: everything it shows is in it.
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="status">$status</p>
</header>
<main>
$body
</main>
<footer>$footer</footer>
</body>
</html>
""")

STYLE = (
    css_variables()
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);overflow-wrap:break-word;
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main,footer{max-width:1180px;margin:0 auto;padding:0 1.25rem}
header{padding-top:2rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .35rem}
h2{font-size:1.2rem;margin:2.5rem 0 .75rem}
p{margin:.35rem 0}
.status,.note,figcaption,footer,th,.card small{color:var(--muted)}
.note,figcaption,footer{font-size:.875rem}
.cards{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:.75rem;margin-top:1.5rem}
.card{background:var(--card);border-radius:.6rem;padding:.8rem 1rem}
.card b{display:block;font-size:1.5rem;line-height:1.25;font-weight:600;font-variant-numeric:tabular-nums}
.card small{display:block;font-size:.8125rem;line-height:1.35}
.figures{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1.25rem}
figure{margin:0;padding:1rem 1rem .9rem;border:1px solid var(--grid);border-radius:.6rem;min-width:0}
figure h3{font-size:1rem;margin:0 0 .5rem}
figure svg{display:block;width:100%;height:auto}
svg text{font-family:inherit}
figcaption{margin-top:.5rem;line-height:1.4}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;font-size:.9375rem}
th,td{text-align:left;padding:.4rem .9rem .4rem 0;border-bottom:1px solid var(--grid);vertical-align:top}
th{font-weight:500;font-size:.8125rem;white-space:nowrap}
td{font-variant-numeric:tabular-nums}
.right th:not(:first-child),.right td:not(:first-child){text-align:right;white-space:nowrap}
.narrow{width:auto;min-width:min(100%,24rem)}
.settings td:first-child{white-space:nowrap}
.settings td:last-child,code{overflow-wrap:anywhere}
code{font:.875em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.columns{columns:2 24rem;column-gap:2.5rem}
.columns .scroll{overflow:visible}
pre{background:var(--card);border-radius:.6rem;padding:.7rem 1rem;margin:.75rem 0;white-space:pre-wrap;
 font-size:.9375rem}
footer{margin-top:3rem;padding-bottom:2.5rem;padding-top:1rem}
@media (max-width:760px){
 .figures{grid-template-columns:minmax(0,1fr)}
 header,main,footer{padding-left:.9rem;padding-right:.9rem}
 h1{font-size:1.45rem}
 .cards{grid-template-columns:repeat(2,minmax(0,1fr))}
 .card b{font-size:1.25rem}
 figure{padding:.8rem .7rem}
 th,td{padding-right:.6rem}
 .right{font-size:.8rem}
 .right th{font-size:.72rem}
 .right th,.right td{padding-right:.4rem}
}
@media print{figure,.card{break-inside:avoid}}
"""
)


Rows = Iterable[Sequence[str]]
Card = tuple[str, str, str]

TOLD = ("command", "title", "starts", "finished", "versions", "num_rounds")
"""What of ``about`` has a place of its own on the page."""


def write_report(folder: RunFolder | str | Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` from what a run's folder holds; return the page's path.

    A run need not be finished: the page then shows the rounds so far.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    records, costs = folder.history(), folder.costs()
    drawings = draw_run(records, costs, folder.deal())
    for drawing in drawings:
        write_atomic(folder.figures / f"{drawing.name}.png", to_png(drawing.figure))
    write_atomic(folder.report, render(folder, records, costs, drawings).encode())
    return folder.report


def render(
    folder: RunFolder, records: Sequence[RoundRecord], costs: ModelCosts | None, drawings: Sequence[Drawing]
) -> str:
    """Return the page."""
    about = folder.about()
    parts = [
        _cards(records, costs),
        _section("Figures", _figures(drawings)),
        _section("Levels", _level_table(records, costs)),
        _section("Metrics", _metric_table(records)),
        _section("Failures", _failure_table(records)),
        _section("How it was run", _origin(about)),
        _section("Settings", _setting_table(folder.settings())),
    ]
    return PAGE.substitute(
        title=escape(str(about.get("title") or folder.path.resolve().name)),
        style=STYLE,
        status=escape(_status(about, records)),
        body="\n".join(parts),
        footer=escape(f"heterofl-flwr {about.get('versions', {}).get('heterofl-flwr', '')}"),
    )


def _status(about: Mapping[str, object], records: Sequence[RoundRecord]) -> str:
    done = records[-1].server_round if records else 0
    planned = about.get("num_rounds")
    rounds = f"{done} rounds" if planned in (None, done) else f"{done} of {planned} rounds"
    dates = [_date(start) for start in _list(about.get("starts"))[:1]]
    return " · ".join([*dates, rounds, *([] if about.get("finished") else ["not finished"])])


def _cards(records: Sequence[RoundRecord], costs: ModelCosts | None) -> str:
    cards = [*_score_cards(records), *_saving_cards(records, costs)]
    rounds = max(len(records), 1)
    clients = {partition for record in records for partition in record.rates}
    asked = sum(len(record.rates) for record in records)
    failed = sum(len(record.failures) for record in records)
    seconds = sum(record.seconds for record in records)
    cards.append(("clients", str(len(clients)), f"{asked / rounds:.4g} a round"))
    cards.append(("failures", str(failed), f"of {asked} requests"))
    cards.append(("run time", formatting.duration(seconds), f"{formatting.duration(seconds / rounds)} a round"))
    cards += _device_cards(records)
    if records and (privacy := records[-1].privacy):
        cards.append(("epsilon", f"{privacy['epsilon']:.3g}", f"at delta {privacy['delta']:g}, of each client"))
    items = (
        f"<div class='card'><small>{escape(head)}</small><b>{escape(value)}</b><small>{escape(note)}</small></div>"
        for head, value, note in cards
    )
    return f"<div class='cards'>{''.join(items)}</div>"


def _score_cards(records: Sequence[RoundRecord]) -> Iterator[Card]:
    kind = headline_kind(records)
    by_name = {score.name: score for score in scores(records)}
    for scope in SCOPES:
        found = by_name.get(f"{scope}-{kind}")
        if found:
            best = (
                f"best {formatting.score(kind, found.best)} in round {found.best_round}"
                if found.best_round
                else "no best"
            )
            yield f"{scope} {kind}", marked(formatting.score(kind, found.final), found.partial), best


def _saving_cards(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Iterator[Card]:
    sent = formatting.size(sum(record.bytes_down + record.bytes_up for record in records))
    saved = savings(records, costs)
    if saved is None:
        yield "bytes sent", sent, "both ways"
        return
    yield (
        "bytes saved",
        formatting.percent(1 - saved.bytes_share),
        f"{sent}; FedAvg: {formatting.size(saved.bytes_full)}",
    )
    yield "multiplications saved", formatting.percent(1 - saved.macs_share), "against full-size FedAvg"


def _device_cards(records: Sequence[RoundRecord]) -> Iterator[Card]:
    found = on_devices(records)
    if found:
        best = f"best {found.metric} after {formatting.duration(found.best_seconds)}" if found.metric else "of training"
        yield "time on devices, simulated", formatting.duration(found.seconds), best
        yield "energy, an estimate", formatting.energy(found.joules), "of all simulated devices, for training"


def _figures(drawings: Sequence[Drawing]) -> str:
    if not drawings:
        return "<p class='note'>No round is recorded yet.</p>"
    items = [
        f"<figure><h3>{escape(drawing.title)}</h3>{to_svg(drawing.figure, drawing.name, drawing.title)}"
        f"<figcaption>{escape(drawing.caption)}</figcaption></figure>"
        for drawing in drawings
    ]
    return f"<div class='figures'>{''.join(items)}</div>"


def _level_table(records: Sequence[RoundRecord], costs: ModelCosts | None) -> str:
    kind = headline_kind(records)
    rows = [level_cells(row, kind) for row in level_rows(records, costs)]
    note = "MACs: multiplications of one forward pass. Clients: share of all that were asked. Bytes: sent both ways."
    return _table(level_heads(kind), rows, "right") + f"<p class='note'>{note}</p>"


def _metric_table(records: Sequence[RoundRecord]) -> str:
    rows = score_cells(records)
    if not rows:
        return "<p class='note'>No round was evaluated.</p>"
    note = (
        "Final: the mean over clients, beside the median. Best: the best round by each metric itself, chosen on the "
        "data it is measured on; of clients' metrics other than accuracies from 0 to 1, by the median."
    )
    if any("coverage" in record.evaluate for record in records):
        note += " Coverage: the share of clients that evaluated the full model."
    note = " ".join(filter(None, (note, partial_line(records))))
    return _table(SCORE_HEADS, rows, "right narrow") + f"<p class='note'>{note}</p>"


def _failure_table(records: Sequence[RoundRecord]) -> str:
    found = failure_rows(records)
    if not found:
        return "<p class='note'>No client failed.</p>"
    rows = [
        (row.reason, str(row.times), formatting.numbers(row.rounds), formatting.numbers(row.clients)) for row in found
    ]
    return _table(("reason", "times", "rounds", "clients"), rows)


def _origin(about: Mapping[str, object]) -> str:
    starts = [_date(start) for start in _list(about.get("starts"))]
    versions = about.get("versions")
    known = {
        "started": ", resumed ".join(starts),
        "finished": _date(about["finished"]) if about.get("finished") else "no",
        "versions": ", ".join(f"{name} {own}" for name, own in versions.items()) if isinstance(versions, dict) else "",
    }
    more = {name: _shown(value) for name, value in flatten(about).items() if name.split(".")[0] not in TOLD}
    command = f"<pre><code>{escape(str(about.get('command', '')))}</code></pre>"
    return command + _table(("fact", "value"), {**known, **more}.items(), "settings narrow")


def _setting_table(settings: Mapping[str, object]) -> str:
    rows = [(name, _shown(value)) for name, value in sorted(flatten(settings).items())]
    if not rows:
        return "<p class='note'>None were recorded.</p>"
    return f"<div class='columns'>{_table(('setting', 'value'), rows, 'settings')}</div>"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return value if isinstance(value, str) else to_json(value)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _date(value: object) -> str:
    return str(value)[:16].replace("T", " ")


def _section(title: str, content: str) -> str:
    return f"<section id='{title.lower().replace(' ', '-')}'><h2>{escape(title)}</h2>{content}</section>"


def _table(heads: Sequence[str], rows: Rows, kind: str = "") -> str:
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table class='{kind}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='scroll'>{table}</div>"
