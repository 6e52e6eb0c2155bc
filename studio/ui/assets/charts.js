// Charts of the live view. Plotly loads late: until then points are kept and drawn in one go.
// New points are appended (Plotly.extendTraces), never redrawn, so zoom and hover survive.
if (!document.querySelector('script[data-plotly]')) {
  const script = document.createElement('script');
  Object.assign(script, {src: PLOTLY_URL, async: true});
  script.dataset.plotly = 'yes';
  document.head.append(script);
}
const COLORS = {raw: 'rgba(129,132,248,.55)', smooth: '#6366f1', eval: '#f59e0b', mem: '#14b8a6',
  speed: '#0ea5e9', grad: '#a855f7', rate: '#64748b', load: '#94a3b8', save: '#10b981'};
const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();

function layoutOf(node, extra) {
  const line = css('--border-color-primary');
  const axis = {zeroline: false, linecolor: line, fixedrange: false};
  return {uirevision: 'keep', autosize: true, height: node.clientHeight, dragmode: 'zoom',
    margin: {l: 44, r: 10, t: 8, b: 24}, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    hovermode: 'x unified', showlegend: false,
    font: {family: 'IBM Plex Sans, system-ui, sans-serif', size: 11.5, color: css('--body-text-color-subdued')},
    hoverlabel: {bgcolor: css('--block-background-fill'), bordercolor: line, font: {color: css('--body-text-color')}},
    xaxis: Object.assign({gridcolor: 'rgba(0,0,0,0)', nticks: 8, rangemode: 'tozero'}, axis),
    yaxis: Object.assign({gridcolor: line, nticks: 5, ticklabelstandoff: 6}, axis, (extra || {}).yaxis || {}),
    ...((extra || {}).yaxis2 ? {yaxis2: extra.yaxis2} : {})};
}
const line = (name, color, width, more) => Object.assign({x: [], y: [], name, mode: 'lines',
  line: {color, width}, connectgaps: false}, more || {});
const CONFIG = {responsive: true, displaylogo: false, displayModeBar: false, doubleClick: 'reset'};

// One chart: traces, their kept points, and what was not drawn yet.
class Chart {
  constructor(node, traces, extra) {
    Object.assign(this, {node, blank: traces, extra, drawn: false, busy: false});
    this.clear();
  }
  clear() {
    this.kept = this.blank.map(() => ({x: [], y: [], text: []}));
    this.fresh = this.blank.map(() => ({x: [], y: [], text: []}));
    this.dirty = true;
  }
  add(index, x, y, text) {
    for (const store of [this.kept[index], this.fresh[index]]) {
      store.x.push(x); store.y.push(y); if (text !== undefined) store.text.push(text);
    }
  }
  // Points behind a step are gone: the run was resumed from an earlier checkpoint.
  cut(step) {
    for (const store of this.kept) {
      let n = store.x.length; while (n > 0 && store.x[n - 1] > step) n -= 1;
      store.x.length = n; store.y.length = n; if (store.text.length > n) store.text.length = n;
    }
    this.dirty = true;
  }
  async draw() {
    if (!window.Plotly || this.busy || !this.node.clientHeight) return;
    this.busy = true;
    try {
      const indices = this.blank.map((_, i) => i).filter((i) => this.fresh[i].x.length);
      const withText = indices.filter((i) => this.fresh[i].text.length);
      // extendTraces takes a text for all traces or for none: marks among points redraw the chart.
      const mixed = withText.length > 0 && withText.length < indices.length;
      const taken = this.fresh;
      this.fresh = this.blank.map(() => ({x: [], y: [], text: []}));
      if (!this.drawn || this.dirty || mixed) {
        const traces = this.blank.map((trace, i) => Object.assign({}, trace, this.data(this.kept[i], trace)));
        this.dirty = false;
        await Plotly.react(this.node, traces, layoutOf(this.node, this.extra), CONFIG);
        if (!this.drawn) { this.drawn = true; linkZoom(this); }
      } else if (indices.length) {
        const update = {x: indices.map((i) => taken[i].x), y: indices.map((i) => taken[i].y)};
        if (withText.length) update.text = indices.map((i) => taken[i].text);
        await Plotly.extendTraces(this.node, update, indices);
      }
    } finally { this.busy = false; }
  }
  data(store, trace) {
    return trace.text ? {x: store.x.slice(), y: store.y.slice(), text: store.text.slice()}
      : {x: store.x.slice(), y: store.y.slice()};
  }
  restyle() { if (this.drawn) Plotly.relayout(this.node, colorsOnly(this.node, this.extra)); }
}

// Theme changes touch colours only, so that a zoom stays.
function colorsOnly(node, extra) {
  const full = layoutOf(node, extra), change = {font: full.font, hoverlabel: full.hoverlabel};
  change['xaxis.linecolor'] = full.xaxis.linecolor;
  change['yaxis.linecolor'] = full.yaxis.linecolor;
  change['yaxis.gridcolor'] = full.yaxis.gridcolor;
  return change;
}

// The charts share the step axis: a zoom in one is a zoom in all.
const charts = [];
let linking = false;
function linkZoom(chart) {
  chart.node.on('plotly_relayout', (event) => {
    if (linking) return;
    const from = event['xaxis.range[0]'], to = event['xaxis.range[1]'];
    const reset = event['xaxis.autorange'];
    if (from === undefined && !reset) return;
    const change = reset ? {'xaxis.autorange': true} : {'xaxis.range[0]': from, 'xaxis.range[1]': to};
    linking = true;
    Promise.all(charts.filter((other) => other !== chart && other.drawn)
      .map((other) => Plotly.relayout(other.node, change))).finally(() => { linking = false; });
  });
}

const MARK_AXIS = {overlaying: 'y', range: [0, 1], visible: false, fixedrange: true};
const marks = (name, color, symbol) => ({x: [], y: [], text: [], name, mode: 'markers', yaxis: 'y2', cliponaxis: false,
  marker: {color, size: 8, symbol, line: {width: 0}}, hovertemplate: '%{text}<extra></extra>'});
const RAW = 0, SMOOTH = 1, EVAL = 2, LOADED = 3, EVALUATED = 4, SAVED = 5;
const lossChart = new Chart(q('.p-loss'), [
  line('loss', COLORS.raw, 1), line('smoothed', COLORS.smooth, 2.4),
  {x: [], y: [], name: 'held-out', mode: 'lines+markers', cliponaxis: false, line: {color: COLORS.eval, width: 1.6, dash: 'dot'},
    marker: {size: 8, color: COLORS.eval}},
  marks('loading', COLORS.load, 'circle'), marks('evaluation', COLORS.eval, 'triangle-up'),
  marks('saved', COLORS.save, 'square'),
], {yaxis2: MARK_AXIS});
const memChart = new Chart(q('.p-mem'), [
  line('GiB', COLORS.mem, 2, {fill: 'tozeroy', fillcolor: 'rgba(20,184,166,.12)'}),
  line('device limit', '#ef4444', 1, {line: {color: '#ef4444', width: 1, dash: 'dot'}}),
], {yaxis: {rangemode: 'tozero'}});
const speedChart = new Chart(q('.p-speed'), [line('tokens/s', COLORS.speed, 1.6)], {yaxis: {rangemode: 'tozero'}});
const gradChart = new Chart(q('.p-grad'), [line('norm', COLORS.grad, 1.6)], {yaxis: {rangemode: 'tozero'}});
const rateChart = new Chart(q('.p-rate'), [line('rate', COLORS.rate, 1.8)], {yaxis: {rangemode: 'tozero', exponentformat: 'e'}});
charts.push(lossChart, memChart, speedChart, gradChart, rateChart);
