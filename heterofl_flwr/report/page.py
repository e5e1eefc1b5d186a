"""The report of a run: an HTML page that loads nothing from the network."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from heterofl_flwr.common.errors import counted
from heterofl_flwr.common.files import to_json, write_atomic, write_text
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.report import summary
from heterofl_flwr.report.drawing import MOST_NAMES, to_png
from heterofl_flwr.report.figures import draw_run
from heterofl_flwr.runs.class_counts import ClassCounts, read_counts
from heterofl_flwr.runs.costs import ModelCosts
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.scores import headline_kind
from heterofl_flwr.settings.validate import flatten, usual_values

# The content security policy forbids the page to load anything, because all content is inline. The template is not in
# a file, because Flower's app bundles leave out HTML files.
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title>
<style>
body{margin:0 auto;max-width:1220px;padding:1.5rem;overflow-wrap:break-word;font:1rem/1.5 system-ui,sans-serif}
figcaption,.note{font-size:.85rem;opacity:.75}th{font-size:.9em;opacity:.75}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.25rem}
h2{break-after:avoid}figure{margin:0;break-inside:avoid}
figure img{width:100%}@media screen and (prefers-color-scheme:dark){figure img{filter:invert(.93) hue-rotate(180deg)}}
@media (min-width:56rem){figure:last-child:nth-child(odd){grid-column:1/-1;width:50%;justify-self:center}}
.table{overflow-x:auto}
table{border-collapse:collapse}
th,td{text-align:left;padding:.4rem .9rem .4rem 0;border-bottom:1px solid #8884;vertical-align:top}
@media screen{td{white-space:nowrap}td:first-child:not(:nth-last-child(2)){white-space:normal}}
@media print{.figures{grid-template-columns:1fr 1fr}}
td:nth-child(2):last-child{white-space:normal;overflow-wrap:anywhere}
details .table{columns:20rem;overflow:visible}@media print{table{font-size:.8rem}}
@media screen and (max-width:40rem){body{padding:1rem}
table{font-size:.72rem}th,td{padding-right:.3rem}}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="note">{{ status }}</p>
{% for line in lines %}
<p>{{ line }}</p>
{% endfor %}
<section id="figures"><h2>Figures</h2>
<div class="figures">
{% for drawing, png in figures %}
<figure><img alt="{{ drawing.title }}" src="data:image/png;base64,{{ png | base64 }}">
<figcaption>{{ drawing.caption }}</figcaption></figure>
{% else %}
<p class="note">There is nothing to draw yet.</p>
{% endfor %}
</div>
</section>
{% macro table(heads, rows) %}
<div class="table"><table>
<thead><tr>{% for head in heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% for name, (heads, rows), note, rest in tables %}
<section id="{{ name | lower | replace(' ', '-') }}"><h2>{{ name }}</h2>
{% if rows %}{{ table(heads, rows) }}{% endif %}
{% if note %}<p class="note">{{ note }}</p>{% endif %}
{% if rest %}
<details><summary>{{ rest | length }} more, as they are by default</summary>{{ table(heads, rest) }}</details>
{% endif %}
</section>
{% endfor %}
</body>
</html>
"""

_ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters["base64"] = lambda png: b64encode(png).decode()

Table = tuple[str, summary.Cells, str, Sequence[Sequence[str]]]  # title, table, note below it, collapsed rows


def render_page(**content: object) -> str:
    """Return the HTML of a page with ``title``, ``status``, ``lines``, ``figures`` and ``tables``."""
    return _ENVIRONMENT.from_string(TEMPLATE).render(**content)


def write_page(folder: RunFolder) -> Path:
    """Write ``report.html`` and figures into the run's folder; return the page's path."""
    about, settings, records, costs = folder.about(), folder.settings(), folder.history(), folder.costs()
    counts = read_counts(folder)
    figures = [(drawing, to_png(drawing.figure, drawing.title)) for drawing in draw_run(records, costs, counts)]
    done, planned = records[-1].server_round if records else 0, about.get("num_rounds")
    rounds = counted(done, "round") if planned in (None, done) else f"{done} of {counted(planned, 'round')}"
    started = [str(start)[:16].replace("T", " ") for start in about.get("starts", [])[:1]]
    page = render_page(
        title=str(about.get("title") or folder.path.resolve().name),
        status=" · ".join([*started, rounds, *([] if about.get("finished") else ["not finished"])]),
        lines=list(summary.summary_lines(records, costs, settings)),
        figures=figures,
        tables=list(_tables(about, settings, records, costs, counts)),
    )
    for drawing, png in figures:
        write_atomic(folder.figures / f"{drawing.name}.png", png)
    write_text(folder.report, page)
    return folder.report


def _tables(
    about: Mapping[str, Any],
    settings: Mapping[str, object],
    records: Sequence[RoundRecord],
    costs: ModelCosts | None,
    counts: ClassCounts,
) -> Iterator[Table]:
    levels, kind = summary.level_cells(records, costs), headline_kind(records)
    shown = kind.capitalize() if kind in levels[0] else "Metrics"
    note = (
        "MACs: multiplications of one forward pass. Clients: share of all that were asked. "
        f"{shown}: of each level's own model, on clients' data; the full model, also on the server's data, is under "
        "Metrics. Bytes down: mean of a client's training messages, measured."
    )
    yield "Levels", levels, note, ()
    metrics = summary.score_cells(records)
    note = (
        "Best: the best round by each metric itself, chosen on the data it is measured on; of clients' metrics other "
        "than accuracies from 0 to 1, by the median."
    )
    yield "Metrics", metrics, note if metrics[1] else "No round was evaluated.", ()
    if len(counts.names) > MOST_NAMES and counts.confusion:  # otherwise there is a figure
        note = f"By the full model of round {counts.server_round}, on the test set."
        yield "Confused classes", summary.confusion_cells(counts), note, ()
    failures = summary.failure_cells(records)
    yield "Failures", failures, "" if failures[1] else "No client failed.", ()
    facts_of_run = {
        key: list(dict.fromkeys(value)) if key in ("commits", "machines") else value for key, value in about.items()
    }
    facts = [(name.replace("_", "-"), _shown(value)) for name, value in flatten(facts_of_run).items()]
    yield "How it was run", (("fact", "value"), facts), "", ()
    values = flatten(settings)
    defaults = usual_values(values).items()
    changed, unchanged = (
        [(name, _shown(value)) for name, value in sorted(values.items()) if ((name, value) in defaults) is default]
        for default in (False, True)
    )
    note = "" if changed or unchanged else "None were recorded."
    yield "Settings", (("setting", "value"), changed), note, unchanged


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return value if isinstance(value, str) else to_json(value)
