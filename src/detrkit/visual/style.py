"""How pages look, and the one script in them."""

STYLES = """
:root{--ink:#1c2024;--dim:#5b6570;--paper:#fff;--card:#f4f6f8;--line:#d9dee3;--accent:#2563eb;--bar:#3b82f633;
--warn:#b45309}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8ea;--dim:#9aa4ae;--paper:#14171a;--card:#1e2327;--line:#343b42;
--accent:#7aa7ff;--bar:#3b82f655;--warn:#f5a524}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem clamp(1rem,4vw,3rem) 4rem;max-width:78rem;color:var(--ink);
background:var(--paper);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:0}
h2{font-size:1.2rem;margin:2.5rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--line)}
header p,small,figcaption,caption{color:var(--dim)}
header p{margin:.25rem 0 1rem;overflow-wrap:anywhere}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;margin:0;padding:0}
a{color:var(--accent)}
p{max-width:70ch}h1,p{overflow-wrap:anywhere}
p.warning{border-left:4px solid var(--warn);padding:.25rem .75rem;background:var(--card)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(10.5rem,1fr));gap:.75rem;margin:0}
.cards div{background:var(--card);border-radius:.5rem;padding:.7rem .9rem}
.cards dt{color:var(--dim);font-size:.85rem}
.cards dd{margin:0;font-size:1.5rem;font-weight:600;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.cards small{display:block;font-size:.8rem;font-weight:400;line-height:1.3}
.scroll{overflow:auto;max-height:34rem;margin:1rem 0;border:1px solid var(--line);border-radius:.5rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.5rem .75rem}
th,td{padding:.25rem .75rem;text-align:left;font-weight:400;border-top:1px solid var(--line);
overflow-wrap:anywhere}
tbody th,td.text{min-width:8.5rem}td.text:last-child{min-width:11rem}
thead th{position:sticky;top:0;background:var(--card);border:0;white-space:nowrap}
th.number,td.number{text-align:right;white-space:nowrap}
td.bar{background:linear-gradient(to left,var(--bar) var(--share),transparent 0)}
th button{all:unset;cursor:pointer;font-weight:600}
th button:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));gap:1.5rem;margin:1rem 0}
.plots figure{max-width:42rem}
figure{margin:0;min-width:0}
figcaption{font-size:.9rem;margin-bottom:.25rem;overflow-wrap:anywhere}
.plots figcaption{color:var(--ink);font-weight:600}
svg{width:100%;height:auto;display:block;stroke-linejoin:round}
svg text{font-family:system-ui,"Noto Sans",sans-serif!important}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(18rem,100%),1fr));gap:1rem;margin:1rem 0}
.gallery.wide{grid-template-columns:1fr}
img{max-width:100%;height:auto;display:block;border-radius:.35rem;background:var(--card)}
.gallery figcaption{margin:.3rem 0 0}
.tip{position:absolute;top:2rem;pointer-events:none;background:var(--card);border:1px solid var(--line);
border-radius:.35rem;padding:.3rem .5rem;font-size:.8rem;line-height:1.35;max-width:60%;overflow-wrap:anywhere;
font-variant-numeric:tabular-nums;white-space:pre-line;z-index:1}
@media print{:root{--ink:#000;--dim:#444;--paper:#fff;--card:#f2f2f2;--line:#bbb;--accent:#000}
body{max-width:none;padding:0;font-size:11px}nav{display:none}.scroll{max-height:none;overflow:visible;border:0}
figure,tr,.cards div{break-inside:avoid}h2{break-after:avoid}thead th{position:static}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""

SCRIPT = """
document.querySelectorAll('th button').forEach(function (button) {
  button.addEventListener('click', function () {
    var head = button.parentElement, row = head.parentElement, body = head.closest('table').tBodies[0];
    var column = Array.prototype.indexOf.call(row.children, head);
    var first = head.classList.contains('text') ? 'ascending' : 'descending';
    var order = head.getAttribute('aria-sort');
    order = order ? (order === 'ascending' ? 'descending' : 'ascending') : first;
    Array.prototype.forEach.call(row.children, function (other) { other.removeAttribute('aria-sort'); });
    head.setAttribute('aria-sort', order);
    var sign = order === 'ascending' ? 1 : -1;
    Array.from(body.rows).sort(function (a, b) {
      var x = a.cells[column], y = b.cells[column];
      var p = x.dataset.v, q = y.dataset.v;
      if (p !== undefined && q !== undefined) return sign * (p - q);
      if (p !== undefined || q !== undefined) return p === undefined ? 1 : -1;
      return sign * x.textContent.localeCompare(y.textContent, undefined, {numeric: true});
    }).forEach(function (line) { body.appendChild(line); });
  });
});
"""
