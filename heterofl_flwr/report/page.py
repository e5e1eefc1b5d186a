"""The report of a run: one HTML page that needs no network and runs no script."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from heterofl_flwr.core import formatting
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report import summary
from heterofl_flwr.report.drawing import COLOURS, to_png, to_svg
from heterofl_flwr.report.figures import draw_run
from heterofl_flwr.runs import ModelCosts, RunFolder
from heterofl_flwr.runs.files import to_json, write_atomic
from heterofl_flwr.runs.metrics import SCOPES, headline_kind, scores
from heterofl_flwr.settings import flatten

# The page may load nothing at all, from anywhere: everything it shows is in it. The template is here, and no file of
# its own, because Flower's bundles have no HTML.
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
:root{ {%- for name, pair in colours.items() %}--{{ name }}:{{ pair[0] }};{% endfor -%} }
@media screen and (prefers-color-scheme:dark){
 :root{ {%- for name, pair in colours.items() %}--{{ name }}:{{ pair[1] }};{% endfor -%} }
}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);overflow-wrap:break-word;
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main,footer{max-width:1180px;margin:0 auto;padding:0 1.25rem}
header{padding-top:2rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .35rem}
h2{font-size:1.2rem;margin:2.5rem 0 .75rem;break-after:avoid}
p{margin:.35rem 0}
header p,.note,figcaption,footer,th,.card small{color:var(--muted)}
.note,figcaption,footer{font-size:.875rem}
.cards{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:.75rem;margin-top:1.5rem}
.card{background:var(--card);border-radius:.6rem;padding:.8rem 1rem;break-inside:avoid}
.card b{display:block;font-size:1.5rem;line-height:1.25;font-weight:600;font-variant-numeric:tabular-nums}
.card small{display:block;font-size:.8125rem;line-height:1.35}
.figures{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1.25rem}
figure{margin:0;padding:1rem 1rem .9rem;border:1px solid var(--grid);border-radius:.6rem;min-width:0;break-inside:avoid}
figure h3{font-size:1rem;margin:0 0 .5rem}
figure svg{display:block;width:100%;height:auto}
svg text{font-family:inherit}
figcaption{margin-top:.5rem;line-height:1.4}
.table{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9375rem}
tr{break-inside:avoid}
th,td{text-align:left;padding:.4rem .9rem .4rem 0;border-bottom:1px solid var(--grid);vertical-align:top}
th{font-weight:500;font-size:.8125rem;white-space:nowrap}
td{font-variant-numeric:tabular-nums}
td:last-child,.reasons td:first-child{overflow-wrap:anywhere}
.numbers th:not(:first-child),.numbers td:not(:first-child){text-align:right}
.numbers td,.facts td:first-child,.settings td:first-child{white-space:nowrap}
.narrow table,.facts table{width:auto;min-width:min(100%,24rem)}
.settings{columns:2 24rem;column-gap:2.5rem;overflow:visible}
pre{background:var(--card);border-radius:.6rem;padding:.7rem 1rem;margin:.75rem 0;white-space:pre-wrap;
 overflow-wrap:anywhere;font:.875rem ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
footer{margin-top:3rem;padding-bottom:2.5rem;padding-top:1rem}
@media screen and (max-width:760px){
 .figures{grid-template-columns:minmax(0,1fr)}
 header,main,footer{padding-left:.6rem;padding-right:.6rem}
 h1{font-size:1.45rem}
 .cards{grid-template-columns:repeat(2,minmax(0,1fr))}
 .card b{font-size:1.25rem}
 figure{padding:.8rem .5rem}
 th,td{padding-right:.6rem}
 .numbers table{font-size:.8rem}
 .numbers th{font-size:.72rem;white-space:normal}
 .numbers th,.numbers td{padding-right:.4rem}
 .numbers td:first-child{white-space:normal}
 .facts td:first-child,.settings td:first-child{white-space:normal}
}
@page{margin:12mm}
@media print{
 body{font-size:12px}
 header,main,footer{max-width:none;padding:0}
 h1{font-size:1.4rem}
 h2{font-size:1rem;margin:.8rem 0 .3rem}
 .cards{gap:.4rem;margin-top:.6rem}
 .card{padding:.35rem .6rem;border:1px solid var(--grid)}
 .card b{font-size:1rem}
 .card small,th,td,.note,figcaption,footer,pre{font-size:.625rem}
 .figures{gap:.5rem}
 figure{padding:.4rem .6rem}
 figure svg{max-height:50mm}
 .numbers,.facts,pre{break-inside:avoid}
 pre{break-after:avoid}
 figure h3{font-size:.75rem;margin:0 0 .2rem}
 figcaption{margin-top:.2rem}
 th,td{padding:.05rem .6rem .05rem 0;line-height:1.35}
 .settings{columns:2}
 footer{margin-top:.75rem;padding:0}
}
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p>{{ status }}</p>
</header>
<main>
<div class="cards">
{% for head, value, note in cards %}
<div class="card"><small>{{ head }}</small><b>{{ value }}</b><small>{{ note }}</small></div>
{% endfor %}
</div>
<section id="figures"><h2>Figures</h2>
<div class="figures">
{% for drawing, svg in figures %}
<figure><h3>{{ drawing.title }}</h3>{{ svg }}<figcaption>{{ drawing.caption }}</figcaption></figure>
{% else %}
<p class="note">No round is recorded yet.</p>
{% endfor %}
</div>
</section>
{% for name, kind, (heads, rows), note in tables %}
<section id="{{ name | lower | replace(' ', '-') }}"><h2>{{ name }}</h2>
{% if kind == "facts" %}<pre><code>{{ command }}</code></pre>{% endif %}
{% if rows %}
<div class="table {{ kind }}"><table>
<thead><tr>{% for head in heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% if note %}<p class="note">{{ note }}</p>{% endif %}
</section>
{% endfor %}
</main>
<footer>heterofl-flwr {{ version }}</footer>
</body>
</html>
"""

_ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)

Card = tuple[str, str, str]
Table = tuple[str, str, summary.Cells, str]  # a table with its title, its look, and a note below it

# The facts of ``about`` that have a place of their own on the page.
ELSEWHERE = ("command", "title", "starts", "finished", "versions", "num_rounds")


def write_report(folder: RunFolder | str | Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` from what a run's folder holds; return the page's path.

    A run need not be finished: the page then shows the rounds so far.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    about, settings, records, costs = folder.about(), folder.settings(), folder.history(), folder.costs()
    nested = flatten(settings).get("server.choose", "prefix") == "prefix"
    drawings = draw_run(records, costs, nested=nested)
    done, planned = records[-1].server_round if records else 0, about.get("num_rounds")
    rounds = f"{done} rounds" if planned in (None, done) else f"{done} of {planned} rounds"
    page = _ENVIRONMENT.from_string(TEMPLATE).render(
        title=str(about.get("title") or folder.path.resolve().name),
        colours=COLOURS,
        status=" · ".join([*_dates(about)[:1], rounds, *([] if about.get("finished") else ["not finished"])]),
        cards=list(_cards(records, costs)),
        figures=[(own, Markup(to_svg(own.figure, own.name, own.title))) for own in drawings],  # noqa: S704
        tables=list(_tables(about, settings, records, costs)),
        command=about.get("command", ""),
        version=about.get("versions", {}).get("heterofl-flwr", ""),
    )
    for drawing in drawings:
        write_atomic(folder.figures / f"{drawing.name}.png", to_png(drawing.figure, title=drawing.title))
    write_atomic(folder.report, page.encode())
    return folder.report


def _cards(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Iterator[Card]:
    kind = headline_kind(records)
    by_name = {score.name: score for score in scores(records)}
    for score in filter(None, (by_name.get(f"{scope}-{kind}") for scope in SCOPES)):
        best = f"best {formatting.score(kind, score.best)} in round {score.best_round}"
        value = summary.marked(formatting.score(kind, score.final), score.partial)
        yield score.name.replace("-", " "), value, best if score.best_round else "no best"
    sent = formatting.size(sum(summary.bytes_sent(records)))
    if saved := summary.savings(records, costs):
        note = f"{sent}; FedAvg: {formatting.size(saved.bytes_full)}"
        yield "bytes saved", formatting.percent(1 - saved.bytes_share), note
        yield "multiplications saved", formatting.percent(1 - saved.macs_share), "against full-size FedAvg"
    else:
        yield "bytes sent", sent, "both ways"
    rounds, asked = max(len(records), 1), sum(len(record.rates) for record in records)
    clients = {partition for record in records for partition in record.rates}
    seconds = sum(record.seconds for record in records)
    yield "clients", str(len(clients)), f"{asked / rounds:.4g} a round"
    yield "failures", str(sum(len(record.failures) for record in records)), f"of {asked} requests"
    yield "run time", formatting.duration(seconds), f"{formatting.duration(seconds / rounds)} a round"
    if found := summary.on_devices(records):
        best = f"best {found.metric} after {formatting.duration(found.best_seconds)}" if found.metric else "of training"
        yield "time on devices, simulated", formatting.duration(found.seconds), best
        yield "energy, an estimate", formatting.energy(found.joules), "of all simulated devices, for training"
    if records and (privacy := records[-1].privacy):
        yield "epsilon", f"{privacy['epsilon']:.3g}", f"at delta {privacy['delta']:g}, of each client"


def _tables(
    about: Mapping[str, Any], settings: Mapping[str, object], records: Sequence[RoundRecord], costs: ModelCosts | None
) -> Iterator[Table]:
    note = "MACs: multiplications of one forward pass. Clients: share of all that were asked. Bytes: sent both ways."
    yield "Levels", "numbers", summary.level_cells(records, costs), note
    metrics = summary.score_cells(records)
    note = (
        "Final: the mean over clients, beside the median. Best: the best round by each metric itself, chosen on the "
        "data it is measured on; of clients' metrics other than accuracies from 0 to 1, by the median."
    )
    if any("coverage" in record.evaluate for record in records):
        note += " Coverage: the share of clients that evaluated the full model."
    note = f"{note} {summary.partial_line(records)}" if metrics[1] else "No round was evaluated."
    yield "Metrics", "numbers narrow", metrics, note
    failures = [
        (row.reason, str(row.times), formatting.numbers(row.rounds), formatting.numbers(row.clients))
        for row in summary.failure_rows(records)
    ]
    note = "" if failures else "No client failed."
    yield "Failures", "reasons", (("reason", "times", "rounds", "clients"), failures), note
    facts = {
        "started": ", resumed ".join(_dates(about)),
        "finished": _date(about["finished"]) if about.get("finished") else "no",
        "versions": ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items()),
    }
    facts |= {name: value for name, value in flatten(about).items() if name.split(".")[0] not in ELSEWHERE}
    yield "How it was run", "facts", (("fact", "value"), [(name, _shown(value)) for name, value in facts.items()]), ""
    rows = [(name, _shown(value)) for name, value in sorted(flatten(settings).items())]
    yield "Settings", "settings", (("setting", "value"), rows), "" if rows else "None were recorded."


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return value if isinstance(value, str) else to_json(value)


def _dates(about: Mapping[str, Any]) -> list[str]:
    return [_date(start) for start in about.get("starts", [])]


def _date(value: object) -> str:
    return str(value)[:16].replace("T", " ")
