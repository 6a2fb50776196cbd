"""Style and script of the page. Fonts are the system's; nothing is fetched from another host."""

STYLE = """
.gradio-container { max-width: 1800px !important; }
.ic-notice { color: #c2410c; margin: 0; }
.ic-table { width: 100%; border-collapse: collapse; font-size: 0.9rem; margin: 0.2rem 0; }
.ic-table, .ic-table :is(thead, tbody, tr, th, td) { border: 0 !important; }
.ic-table th, .ic-table td { text-align: left; padding: 0.3rem 0.6rem 0.3rem 0 !important; }
.ic-table th { font-weight: 600; border-bottom: 1px solid #8886 !important; }
.ic-table td { border-bottom: 1px solid #8883 !important; vertical-align: top; overflow-wrap: anywhere; }
.ic-scores tbody tr { cursor: pointer; }
.ic-scores tbody tr:hover { background: #8881; }
.ic-scores tbody tr[aria-selected="true"] { background: #fb923c33; box-shadow: inset 3px 0 #c2410c; }
.ic-scores td:first-child, .ic-scores th:first-child { padding-left: 0.6rem !important; }
.ic-score i { display: block; height: 4px; margin-top: 3px; background: #fdba74; border-radius: 2px; }
.ic-table td { font-variant-numeric: tabular-nums; }
.ic-table td:first-child { min-width: 5rem; }
.ic-badge { display: inline-block; border-radius: 0.6rem; padding: 0 0.5rem; font-size: 0.8rem; color: #fff; }
.ic-badge.ic-ok { background: #15803d; }
.ic-badge.ic-warn { background: #b45309; }
.ic-badge.ic-refuse { background: #b91c1c; }
.ic-problems { margin: 0.2rem 0 0; padding-left: 1rem; font-size: 0.85rem; list-style: disc; }
.ic-problems .ic-refuse b { color: #dc2626; }
.ic-problems .ic-warn b { color: #d97706; }
.ic-problems .ic-note { opacity: 0.75; }
.ic-study { margin: 0 0 0.3rem; overflow-wrap: anywhere; }
.ic-small { font-size: 0.85rem; opacity: 0.75; margin: 0.3rem 0; }
.ic-message { margin: 0.2rem 0; padding: 0.4rem 0.7rem; border-left: 3px solid #8888; overflow-wrap: anywhere; }
.ic-message.ic-error { border-color: #b91c1c; background: #b91c1c18; }
.ic-message.ic-done { border-color: #15803d; }
.ic-up { color: #c2410c; }
.ic-down { color: #0369a1; }
.ic-viewer { width: 100%; height: min(86vh, 54rem); border: 1px solid #8884; border-radius: 6px; background: #fff; }
.ic-files { margin: 0.1rem 0; }
.ic-files a { display: inline-block; margin: 0.15rem 0.4rem 0.15rem 0; padding: 0.15rem 0.7rem; border-radius: 6px; }
.ic-files a { border: 1px solid #8886; }
"""

LISTEN = """
if (!element.dataset.listening) {
  element.dataset.listening = "yes";
  window.addEventListener("message", (event) => {
    const frame = element.querySelector("iframe");
    const place = event.data;
    if (!frame || event.source !== frame.contentWindow || !place || place.kind !== "itemized-clip-place") return;
    const { scan, mm, row, column } = place;
    trigger("select", mm === undefined ? { scan, row, column } : { scan, mm });
  });
}
"""
"""Of the box around a viewer: a place that is clicked in its frame, and no other message, becomes an event of the page."""

CHOOSE = """
if (!element.dataset.listening) {
  element.dataset.listening = "yes";
  const choose = (row) => {
    for (const other of row.parentElement.children) other.setAttribute("aria-selected", other === row);
    for (const frame of document.querySelectorAll("iframe.ic-viewer")) {
      frame.contentWindow.postMessage({ kind: "itemized-clip-finding", finding: Number(row.dataset.finding) }, "*");
    }
  };
  const rowOf = (event) => event.target.closest("tr[data-finding]");
  element.addEventListener("click", (event) => { if (rowOf(event)) choose(rowOf(event)); });
  element.addEventListener("keydown", (event) => { if (event.key === "Enter" && rowOf(event)) choose(rowOf(event)); });
}
"""
"""Of the table of findings: the viewers go to the maximum of the one that is chosen."""
