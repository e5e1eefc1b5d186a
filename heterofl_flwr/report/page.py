"""The HTML page's fixed parts. They are Python text because Flower's app bundle carries no other files."""

from string import Template

from heterofl_flwr.report.theme import css_variables

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
