// Histogram of row lengths with the cut-off line. value = JSON of all lengths (lengths_value), so a
// dragged or typed line is answered here; what needs a simulation is asked for by the event 'cost'.
const q = (selector) => element.querySelector(selector);
const number = (value) => Math.round(value).toLocaleString('en');
const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
const node = q('.p-lengths'), typed = q('.cut-at');
let data = null, moved = null, cutAt = 0, asked = 0, timer = null, frame = 0, held = false, drawn = false;
if (!document.querySelector('script[data-plotly]')) {
  const script = document.createElement('script');
  Object.assign(script, {src: PLOTLY_URL, async: true});
  script.dataset.plotly = 'yes';
  document.head.append(script);
}
const above = ([at, count], place) => at.reduce((sum, x, i) => x > place ? sum + count[i] : sum, 0);
// The same figures as core.token_stats.cut_at; a test compares both.
function keeps(share) {
  const [at, count] = data.lengths, wanted = Math.ceil(share * data.rows - 1e-9);
  let sum = 0;
  for (let i = 0; i < at.length; i += 1) { sum += count[i]; if (sum >= wanted) return at[i]; }
  return data.longest;
}
function sentence() {
  const cut = above(data.lengths, cutAt), lost = above(data.answer_starts, cutAt - 1), keep = keeps(0.99);
  if (!cut) return 'No row is cut at ' + number(cutAt) + ' tokens.';
  let text = number(cut) + (cut === 1 ? ' row cut (' : ' rows cut (') + (100 * cut / Math.max(1, data.rows)).toFixed(1) + ' %)';
  if (lost) text += ', ' + number(lost) + (lost === 1 ? ' loses' : ' lose') + ' the whole answer';
  if (keep > cutAt) text += '; ' + number(keep) + ' tokens would keep 99 % of the rows whole';
  return text + '.';
}
function say() {
  const keep = keeps(0.99), line = q('.cut-line');
  line.textContent = sentence();
  line.dataset.tone = above(data.answer_starts, cutAt - 1) ? 'bad' : above(data.lengths, cutAt) ? 'warn' : 'ok';
  if (document.activeElement !== typed) typed.value = String(cutAt);
  q('.cut-use').textContent = 'Use ' + number(cutAt) + ' tokens';
  q('.cut-use').disabled = cutAt === data.max_length;
  q('.cut-keep').textContent = 'Use ' + number(keep) + ' tokens: keeps 99 %';
  q('.cut-keep').hidden = keep === cutAt || keep === data.max_length;
  q('.cut-keep').dataset.to = String(keep);
  q('.cut-note').textContent = 'Set now: max length ' + number(data.max_length) + ' tokens; the longest row has '
    + number(data.longest) + ' tokens. Drag the line or type a number' + (data.exact ? '.' : '; lengths are rounded up a little.');
  element.dataset.cut = String(cutAt);
}
const colours = () => data.bars.map((bar) => bar[0] > cutAt ? '#ef4444' : bar[1] > cutAt ? '#f59e0b' : '#6366f1');
const lineShape = () => [{type: 'line', x0: cutAt, x1: cutAt, y0: 0, y1: 1, yref: 'paper',
  line: {color: css('--body-text-color'), width: 2, dash: 'dot'}}];
const caption = () => [{x: cutAt, y: 1, yref: 'paper', yanchor: 'bottom', showarrow: false, text: 'cut at ' + number(cutAt),
  xanchor: cutAt > span() * 0.75 ? 'right' : 'left', font: {color: css('--body-text-color'), size: 12}}];
const span = () => Math.max(data.longest * 1.04, Math.min(cutAt, data.longest * 1.6) * 1.04, 8);
function layout() {
  const edge = css('--border-color-primary');
  return {autosize: true, height: node.clientHeight, dragmode: false, bargap: 0.06, showlegend: false,
    margin: {l: 46, r: 12, t: 22, b: 40}, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: {family: 'IBM Plex Sans, system-ui, sans-serif', size: 11.5, color: css('--body-text-color-subdued')},
    hoverlabel: {bgcolor: css('--block-background-fill'), bordercolor: edge, font: {color: css('--body-text-color')}},
    xaxis: {title: {text: 'tokens of a row', standoff: 6}, range: [0, span()], zeroline: false, linecolor: edge, gridcolor: 'rgba(0,0,0,0)', fixedrange: true, nticks: 7},
    yaxis: {title: {text: 'rows', standoff: 4}, gridcolor: edge, zeroline: false, fixedrange: true, nticks: 5, rangemode: 'tozero'},
    shapes: lineShape(), annotations: caption()};
}
async function draw() {
  if (!data || !node.clientHeight || !node.clientWidth) return;
  if (!window.Plotly) { setTimeout(draw, 150); return; }
  const bars = data.bars, text = bars.map(([from, to, rows]) => number(rows) + (rows === 1 ? ' row' : ' rows') + ' of ' + number(from)
    + (to > from ? ' to ' + number(to) : '') + ' tokens');
  await Plotly.react(node, [{type: 'bar', x: bars.map((b) => (b[0] + b[1]) / 2), y: bars.map((b) => b[2]),
    width: bars.map((b) => b[1] - b[0] + 1), text, textposition: 'none', hovertemplate: '%{text}<extra></extra>',
    marker: {color: colours(), line: {width: 0}}}], layout(), {responsive: true, displayModeBar: false, displaylogo: false});
  drawn = true;
  node.dataset.drawn = 'yes';
}
function redraw() {
  if (frame || !drawn) return;
  frame = requestAnimationFrame(() => { frame = 0;
    Plotly.update(node, {'marker.color': [colours()]}, {shapes: lineShape(), annotations: caption(), 'xaxis.range': [0, span()]}); });
}
function ask() {
  clearTimeout(timer);
  timer = setTimeout(() => { if (asked !== cutAt) { asked = cutAt; trigger('cost', {max_length: cutAt}); } }, 250);
}
function move(to) {
  if (!data || !Number.isFinite(to)) return;
  cutAt = Math.max(1, Math.round(to));
  moved = {set: data.set, max_length: data.max_length, at: cutAt};
  say(); redraw(); ask();
}
function pointed(event) {
  const axis = node._fullLayout.xaxis, left = node.getBoundingClientRect().left + axis._offset;
  move(Math.min(span(), Math.max(1, axis.p2d(event.clientX - left))));
}
node.addEventListener('pointerdown', (event) => {
  if (!drawn || event.button) return;
  held = true; node.setPointerCapture(event.pointerId); pointed(event); event.preventDefault();
}, true);
node.addEventListener('pointermove', (event) => { if (held) pointed(event); }, true);
for (const end of ['pointerup', 'pointercancel']) node.addEventListener(end, () => { held = false; }, true);
typed.addEventListener('input', () => { const to = Number(typed.value); if (typed.value && to >= 1) move(Math.min(to, 1048576)); });
typed.addEventListener('blur', () => { if (data) typed.value = String(cutAt); });
q('.cut-use').addEventListener('click', () => trigger('use', {max_length: cutAt}));
q('.cut-keep').addEventListener('click', () => { move(Number(q('.cut-keep').dataset.to)); trigger('use', {max_length: cutAt}); });
function take() {
  let told = null;
  try { told = props.value ? JSON.parse(props.value) : null; } catch (error) { console.info('no lengths: ' + error); }
  data = told;
  q('.lengths').hidden = !told;
  if (!told) return;
  // The same set counted again, after an edit: a line that was moved by hand stays where it is.
  const stays = moved && moved.set === told.set && moved.max_length === told.max_length;
  cutAt = stays ? moved.at : told.max_length;
  asked = told.max_length;
  say();
  if (cutAt !== asked) ask();
  requestAnimationFrame(draw);
}
watch('value', take);
window.addEventListener('studio-theme', () => { if (drawn) Plotly.relayout(node, layout()); });
new ResizeObserver(() => { if (data && node.clientWidth && !drawn) draw(); }).observe(node);
take();
