"""The page's look: colours for light and dark, type, spacing. Charts take the same colours by their variables."""

MODEL_COLORS = {
    "ranker": "var(--ranker)",
    "lightgbm": "var(--series-9)",
    "logistic_regression": "var(--regression)",
    "popularity": "var(--faint)",
    "oracle": "var(--oracle)",
    "served": "var(--served)",
    "random": "var(--faint)",
    "base_rate": "var(--faint)",
}

SERIES_COLORS = tuple(f"var(--series-{number})" for number in range(11))
"""Colours of things without a colour of their own, such as parameter groups."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2333; --soft: #3d475a; --muted: #667085; --faint: #b4bcc9;
  --line: #e7eaf0; --tint: #f0f2f7; --ranker: #4456e0; --regression: #8a94a7; --oracle: #0b9482; --served: #c97708;
  --good: #0a8a63; --good-tint: #e3f5ee; --bad: #c93a52; --bad-tint: #fcebee; --ranker-tint: #eceefc;
  --series-0: #4456e0; --series-1: #c97708; --series-2: #0b9482; --series-3: #c93a52; --series-4: #8752cc;
  --series-5: #2489c7; --series-6: #8a8f1c; --series-7: #bd4d88; --series-8: #5f6b7e; --series-9: #3f9c5c;
  --series-10: #a56e3f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d1015; --card: #151a21; --ink: #e9ecf2; --soft: #c3cad6; --muted: #94a0b3; --faint: #535f70;
    --line: #252c37; --tint: #1c222b; --ranker: #8f9dff; --regression: #7c889b; --oracle: #3cc9b3; --served: #eda540;
    --good: #45cf9d; --good-tint: #12302a; --bad: #f58196; --bad-tint: #3a1d25; --ranker-tint: #222845;
    --series-0: #8f9dff; --series-1: #eda540; --series-2: #3cc9b3; --series-3: #f58196; --series-4: #bb93f0;
    --series-5: #66bdf2; --series-6: #c6cb55; --series-7: #ee8dbd; --series-8: #9aa6b8; --series-9: #74d391;
    --series-10: #d9a577;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1120px; margin: 0 auto; padding: 64px 32px 96px; }
h1 { margin: 4px 0 0; font-size: 40px; line-height: 1.15; letter-spacing: -0.02em; font-weight: 680;
     overflow-wrap: anywhere; }
h2 { margin: 0; font-size: 23px; line-height: 1.3; letter-spacing: -0.01em; font-weight: 640; }
h3 { margin: 0; font-size: 15px; line-height: 1.4; font-weight: 620; }
p { margin: 0; text-wrap: pretty; }
section { margin-top: 72px; }
.eyebrow { color: var(--ranker); font-size: 13px; font-weight: 620; letter-spacing: 0.04em; }
.lede { max-width: 62ch; margin-top: 16px; color: var(--soft); font-size: 18px; line-height: 1.6; }
.about { max-width: 70ch; margin-top: 8px; color: var(--muted); }
.card { margin-top: 24px; padding: 24px; background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 1px; margin: 40px 0 0;
         padding: 0; overflow: hidden; background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
.facts div { padding: 18px 22px 16px; box-shadow: 1px 1px 0 var(--line); }
.facts dt { color: var(--muted); font-size: 13px; }
.facts dd { margin: 2px 0 0; font-size: 24px; line-height: 1.3; font-weight: 620; letter-spacing: -0.01em; }
.facts small { display: block; color: var(--muted); font-size: 13px; font-weight: 400; letter-spacing: 0; }

.scroll { overflow-x: auto; }
.scroll.card { padding: 8px 0; }
table { width: 100%; border-collapse: collapse; font-size: 14px; line-height: 1.45; }
th, td { padding: 9px 7px; text-align: right; white-space: nowrap; }
th { color: var(--muted); font-size: 13px; font-weight: 500; vertical-align: bottom; }
tbody tr { border-top: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: 24px; text-align: left; }
th:last-child, td:last-child { padding-right: 24px; }
tbody th { position: sticky; left: 0; background: var(--card); }
tbody th { color: var(--ink); font-size: 14px; font-weight: 500; white-space: normal; min-width: 160px; }
tbody th code { display: block; color: var(--muted); font-size: 11.5px; overflow-wrap: anywhere; }
th.group { padding-bottom: 0; color: var(--ink); font-weight: 620; text-align: center; }
th.group span { display: block; padding-bottom: 5px; border-bottom: 1px solid var(--line); }
th.first, td.first { padding-left: 18px; }
td.other { color: var(--muted); }
td.best { color: var(--ink); font-weight: 680; }
abbr { text-decoration: underline dotted var(--faint); text-underline-offset: 3px; cursor: help; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.notes { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 16px 32px; margin: 20px 0 0;
         color: var(--muted); font-size: 13.5px; line-height: 1.55; }
.notes dt { color: var(--soft); font-weight: 620; }
.notes dd { margin: 0; }

.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 24px;
           margin-top: 24px; }
.columns .card { margin: 0; min-width: 0; }
.card > p { margin-top: 4px; color: var(--muted); font-size: 13.5px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--muted); font-size: 12.5px; }
.chart { margin-top: 16px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 14px 0 0; padding: 0; list-style: none;
          color: var(--soft); font-size: 13px; }
.legend i { display: inline-block; width: 18px; margin-right: 7px; border-top: 2.5px solid; vertical-align: 4px; }
.legend i.dashed { border-top-style: dashed; }

.orders { display: grid; grid-template-columns: auto 1fr auto; gap: 12px 14px; align-items: center; margin: 18px 0 0;
          font-size: 14px; }
.orders dt { color: var(--soft); }
.orders .value { text-align: right; }
.orders .track { height: 10px; background: var(--tint); border-radius: 5px; overflow: hidden; }
.orders .track i { display: block; height: 100%; border-radius: 5px; }
.orders .ranker { color: var(--ink); font-weight: 640; }

.minis { display: grid; grid-template-columns: repeat(auto-fill, minmax(144px, 1fr)); gap: 12px 10px;
         margin-top: 16px; }
.figures { display: flex; flex-wrap: wrap; gap: 0 18px; margin-top: 2px; color: var(--muted); font-size: 13px; }
.figures b { color: var(--ink); font-weight: 620; }

.timeline { margin: 24px 0 0; padding: 0; list-style: none; display: grid; gap: 10px; }
.timeline li { display: grid; grid-template-columns: 44px minmax(0, 1fr) minmax(0, 1.35fr); gap: 8px 20px;
               padding: 18px 24px; background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
.timeline li.engaged { border-color: color-mix(in srgb, var(--good) 45%, var(--line)); }
.rank { font-size: 26px; line-height: 1.15; font-weight: 640; letter-spacing: -0.02em; color: var(--muted); }
.post { min-width: 0; }
.author { font-weight: 620; overflow-wrap: anywhere; }
.meta { color: var(--muted); font-size: 13px; overflow-wrap: anywhere; }
.up { color: var(--good); font-weight: 600; } .down { color: var(--bad); font-weight: 600; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 8px; }
.chip { padding: 1px 9px; border-radius: 99px; background: var(--good-tint); color: var(--good); font-size: 12.5px;
        font-weight: 560; }
.chip.bad { background: var(--bad-tint); color: var(--bad); }
.likely { display: grid; grid-template-columns: minmax(90px, 15em) 1fr 3.4em; gap: 5px 12px; align-content: start;
          align-items: center; margin: 2px 0 0; font-size: 13px; line-height: 1.4; }
.likely dt { color: var(--soft); }
.likely .track { height: 7px; background: var(--tint); border-radius: 4px; overflow: hidden; }
.likely .track i { display: block; height: 100%; min-width: 2px; border-radius: 4px; background: var(--ranker); }
.likely .value { margin: 0; text-align: right; color: var(--muted); }
.likely dd { margin: 0; }

details { margin-top: 24px; background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
summary { padding: 16px 24px; cursor: pointer; font-weight: 560; }
pre { margin: 0; padding: 0 24px 20px; overflow-x: auto; color: var(--soft); font-size: 12.5px; line-height: 1.55; }
footer { margin-top: 72px; color: var(--muted); font-size: 13px; }
a { color: inherit; }
@media (max-width: 720px) {
  main { padding: 36px 16px 64px; }
  h1 { font-size: 31px; }
  .lede { font-size: 16.5px; }
  section { margin-top: 52px; }
  .card { padding: 18px 16px; }
  .facts { grid-template-columns: 1fr 1fr; }
  .facts div { padding: 14px 16px; }
  .facts dd { font-size: 20px; }
  th:first-child, td:first-child { padding-left: 16px; }
  tbody th { min-width: 150px; }
  .timeline li { grid-template-columns: 34px minmax(0, 1fr); padding: 16px; gap: 12px 10px; }
  .likely { grid-column: 1 / -1; grid-template-columns: minmax(90px, 11.5em) 1fr 3.4em; }
}
@media print { body { background: #fff; } .card, .timeline li { break-inside: avoid; } }
"""
"""Everything inline: the page must not ask any network for anything."""
