"""The report of a run: one HTML page that needs no network and runs no script."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from heterofl_flwr.core import formatting
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report import summary
from heterofl_flwr.report.drawing import to_png, to_svg
from heterofl_flwr.report.figures import draw_run
from heterofl_flwr.runs import ModelCosts, RunFolder
from heterofl_flwr.runs.costs import bytes_sent, savings
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
<title>{{ title }}</title>
<style>
*{box-sizing:border-box;--line:color-mix(in srgb,currentColor 20%,transparent)}
body{margin:0 auto;max-width:1220px;padding:1.5rem 1.25rem;overflow-wrap:break-word;
 font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:.5rem 0 .35rem}
h2{font-size:1.2rem;margin:2.5rem 0 .75rem;break-after:avoid}
h3,p,figcaption{margin:.35rem 0}
small,figcaption,th,.note{opacity:.75;font-size:.85rem;line-height:1.4}
.cards{display:flex;flex-wrap:wrap;gap:.75rem;margin-top:1.5rem}
.card{flex:1 1 calc(100%/{{ columns }} - .75rem);min-width:9rem;break-inside:avoid;
 background:color-mix(in srgb,currentColor 6%,transparent);border-radius:.6rem;padding:.8rem 1rem}
.card b{display:block;font-size:1.5rem;line-height:1.25;font-weight:600}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.25rem}
figure{margin:0;padding:1rem;border:1px solid var(--line);border-radius:.6rem;min-width:0;break-inside:avoid}
figure img{display:block;width:100%}
.table{overflow-x:auto}
.settings{columns:2 24rem;column-gap:2.5rem}
table{border-collapse:collapse;min-width:min(100%,24rem);font-size:.9375rem}
tr{break-inside:avoid}
th,td{text-align:left;padding:.4rem .9rem .4rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.numbers td{white-space:nowrap}
.numbers :is(th,td):not(:first-child){text-align:right}
@media screen and (max-width:760px){html{font-size:14px}body{padding:.5rem}}
@media print{html{font-size:10px}body{max-width:none;padding:0}.card{border:1px solid var(--line)}}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="note">{{ status }}</p>
<div class="cards">
{% for head, value, note in cards %}
<div class="card"><small>{{ head }}</small><b>{{ value }}</b><small>{{ note }}</small></div>
{% endfor %}
</div>
<section id="figures"><h2>Figures</h2>
<div class="figures">
{% for drawing, svg in figures %}
<figure><h3>{{ drawing.title }}</h3><img alt="{{ drawing.title }}" src="data:image/svg+xml;base64,{{ svg }}">
<figcaption>{{ drawing.caption }}</figcaption></figure>
{% else %}
<p class="note">No round is recorded yet.</p>
{% endfor %}
</div>
</section>
{% for name, kind, (heads, rows), note in tables %}
<section id="{{ name | lower | replace(' ', '-') }}"><h2>{{ name }}</h2>
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
</body>
</html>
"""

_ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)

Table = tuple[str, str, summary.Cells, str]  # a table with its title, its look, and a note below it


def write_page(folder: RunFolder) -> Path:
    """Write the page and the figures; return the page's path."""
    about, settings, records, costs = folder.about(), folder.settings(), folder.history(), folder.costs()
    nested = flatten(settings).get("server.choose", "prefix") == "prefix"
    drawings = draw_run(records, costs, nested=nested)
    done, planned = records[-1].server_round if records else 0, about.get("num_rounds")
    rounds = f"{done} rounds" if planned in (None, done) else f"{done} of {planned} rounds"
    started = [str(start)[:16].replace("T", " ") for start in about.get("starts", [])[:1]]
    cards = list(_cards(records, costs))
    page = _ENVIRONMENT.from_string(TEMPLATE).render(
        title=str(about.get("title") or folder.path.resolve().name),
        status=" · ".join([*started, rounds, *([] if about.get("finished") else ["not finished"])]),
        cards=cards,
        columns=next((number for number in (5, 4, 3) if not len(cards) % number), 4),  # so that none stands alone
        figures=[(own, b64encode(to_svg(own.figure, own.name).encode()).decode()) for own in drawings],
        tables=list(_tables(about, settings, records, costs)),
    )
    for drawing in drawings:
        write_atomic(folder.figures / f"{drawing.name}.png", to_png(drawing.figure, drawing.title))
    write_atomic(folder.report, page.encode())
    return folder.report


def _cards(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Iterator[tuple[str, str, str]]:
    kind = headline_kind(records)
    by_name = {score.name: score for score in scores(records)}
    for score in filter(None, (by_name.get(f"{scope}-{kind}") for scope in SCOPES)):
        best = f"best {formatting.score(kind, score.best)} in round {score.best_round}"
        value = summary.marked(formatting.score(kind, score.final), score.partial)
        yield score.name.replace("-", " "), value, best if score.best_round else "no best"
    sent = formatting.size(sum(bytes_sent(records)))
    if saved := savings(records, costs):
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
    if records and "epsilon" in (privacy := records[-1].privacy):
        yield "epsilon", f"{privacy['epsilon']:.3g}", f"at delta {privacy['delta']:g}, of each client"


def _tables(
    about: Mapping[str, Any], settings: Mapping[str, object], records: Sequence[RoundRecord], costs: ModelCosts | None
) -> Iterator[Table]:
    note = "MACs: multiplications of one forward pass. Clients: share of all that were asked. Bytes: sent both ways."
    yield "Levels", "numbers", summary.level_cells(records, costs), note
    metrics = summary.score_cells(records)
    note = (
        "Best: the best round by each metric itself, chosen on the data it is measured on; of clients' metrics other "
        "than accuracies from 0 to 1, by the median."
    )
    note = f"{note} {summary.partial_line(records)}" if metrics[1] else "No round was evaluated."
    yield "Metrics", "numbers", metrics, note
    failures = [
        (row.reason, str(row.times), formatting.numbers(row.rounds), formatting.numbers(row.clients))
        for row in summary.failure_rows(records)
    ]
    note = "" if failures else "No client failed."
    yield "Failures", "reasons", (("reason", "times", "rounds", "clients"), failures), note
    facts = [(name, _shown(value)) for name, value in flatten(about).items()]
    yield "How it was run", "facts", (("fact", "value"), facts), ""
    rows = [(name, _shown(value)) for name, value in sorted(flatten(settings).items())]
    yield "Settings", "settings", (("setting", "value"), rows), "" if rows else "None were recorded."


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return value if isinstance(value, str) else to_json(value)
