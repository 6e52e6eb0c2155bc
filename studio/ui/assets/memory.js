// The memory bar. value = JSON of memory_bar.bar_of; 'measure' asks for a count that takes seconds,
// 'refresh' for the bar of what stands in the form by then, 'settled' for the tables once the knobs
// are at rest. The sliders write into the form's own fields, which then ask for the bar.
const q = (selector) => element.querySelector(selector);
const make = (tag, name, text) => { const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node; };
const STOPS = {
  'lora.r': [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
  'train.per_device_train_batch_size': [1, 2, 4, 8, 16, 32, 64, 128],
  'train.max_length': [64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768]};
const root = q('.membar'), bar = q('.mem-bar'), zoom = q('.mem-zoom'), strip = q('.mem-strip'), tip = q('.mem-tip');
const TIP = tip.textContent;
const share = (bytes, scale) => (100 * bytes / Math.max(1, scale)).toFixed(3) + '%';
const pending = new Map();  // sizes on a slider that the form does not have yet
const moved = new Map();  // by path, as text: what no answer to the form has confirmed yet
let told = null, settling = null;
function point(item) {
  tip.textContent = item ? item.title + ': ' + item.size + ' (' + item.exact + '), ' + item.when + '. ' + item.why + '.' : TIP;
  for (const node of element.querySelectorAll('[data-item]')) node.dataset.on = item && node.dataset.item === item.name ? 'yes' : 'no';
}
const itemOf = (node) => { const found = node && node.closest ? node.closest('[data-item]') : null;
  return found && told && told.items ? told.items.find((item) => item.name === found.dataset.item) : null; };
root.addEventListener('pointerover', (event) => { const item = itemOf(event.target); if (item) point(item); });
root.addEventListener('pointerleave', () => point(null));
root.addEventListener('pointerdown', (event) => { const item = itemOf(event.target); if (item) point(item); });
// Segments are kept by item, so that a width glides to its new place.
function segments(box, scale) {
  const old = new Map([...box.querySelectorAll('.mi')].map((node) => [node.dataset.item, node]));
  for (const item of told.items) {
    let node = old.get(item.name);
    old.delete(item.name);
    if (!node) { node = make('i', 'mi mi-' + item.name); node.dataset.item = item.name; }
    node.style.width = share(item.bytes, scale);
    node.title = item.title + ': ' + item.size;
    box.append(node);
  }
  for (const node of old.values()) node.remove();
  let more = box.querySelector('.mi-unknown');
  if (told.unknown.length && !more) more = make('i', 'mi-unknown', '?');
  if (more) { if (told.unknown.length) box.append(more); else more.remove(); }
}
function marks(scale) {
  for (const node of bar.querySelectorAll('.mem-mark, .mem-span, .mem-over')) node.remove();
  const span = make('u', 'mem-span');
  span.style.left = share(told.low, scale);
  span.style.width = share(told.high - told.low, scale);
  bar.append(span);
  if (told.free === null) return;
  if (told.expected > told.free) {
    const over = make('u', 'mem-over');
    over.style.left = share(told.free, scale);
    over.style.width = share(told.expected - told.free, scale);
    bar.append(over);
  }
  const mark = make('u', 'mem-mark');
  mark.style.left = share(told.free, scale);
  mark.title = told.free_text;
  bar.append(mark);
}
function list() {
  const box = q('.mem-list'), rows = q('.mem-details tbody');
  box.replaceChildren(...told.items.map((item) => {
    const node = make('li');
    node.dataset.item = item.name;
    node.title = item.why;
    node.append(make('i', 'mi-' + item.name), make('span', '', item.title + ' '), make('b', '', item.size));
    return node;
  }), ...told.unknown.map((item) => {
    const node = make('li', 'mem-none');
    node.append(make('i', 'mi-unknown'), make('span', '', item.title + ' '), make('b', '', 'unknown'));
    return node;
  }));
  rows.replaceChildren(...told.items.map((item) => {
    const row = make('tr'), head = make('th', '', item.title);
    head.scope = 'row';
    row.append(head, ...[item.size, item.exact, item.when, item.why].map((text) => make('td', '', text)));
    return row;
  }), ...told.unknown.map((item) => {
    const row = make('tr'), head = make('th', '', item.title);
    head.scope = 'row';
    row.append(head, ...['unknown', '', '', item.why].map((text) => make('td', '', text)));
    return row;
  }));
  q('.mem-notes').replaceChildren(...told.notes.map((note) => make('li', '', note)));
}
function draw() {
  const scale = Math.max(told.free || 0, told.high, 1), small = told.free !== null && told.expected < 0.3 * scale;
  segments(bar, scale);
  marks(scale);
  bar.setAttribute('aria-label', told.range + '; ' + told.place + '. ' + told.items.map((item) => item.title + ' ' + item.size).join(', '));
  q('.mem-zoomed').hidden = !small;
  if (small) {
    segments(zoom, told.expected);
    q('.mem-zoomed polygon').setAttribute('points', '0,0 ' + (100 * told.expected / scale).toFixed(3) + ',0 100,10 0,10');
  }
  q('.mem-range').textContent = told.range;
  q('.mem-place').textContent = told.place;
  q('.mem-strip-bar').replaceChildren(...[...bar.children].map((node) => node.cloneNode(false)));
  list();
  sliders();
  // What was worked out for other settings says so.
  const fit = document.querySelector('#memory-fit .fit');
  if (fit) fit.dataset.stale = fit.dataset.key === told.key ? 'no' : 'yes';
  clearTimeout(settling);
  settling = setTimeout(() => { if (document.querySelector('#memory-tables > *') && document.querySelector('#memory-tables').offsetParent) trigger('settled'); }, 700);
}
const nearest = (stops, value) => stops.reduce((best, stop, at) => Math.abs(Math.log(stop / value)) < Math.abs(Math.log(stops[best] / value)) ? at : best, 0);
const unit = {'lora.r': '', 'train.per_device_train_batch_size': ' rows', 'train.max_length': ' tokens'};
function name(slider, value) {
  const words = value.toLocaleString('en') + unit[slider.dataset.path];
  slider.parentElement.querySelector('b').textContent = words;
  slider.setAttribute('aria-valuetext', words);
}
function sliders() {
  const values = told ? told.knobs : standing();
  for (const slider of element.querySelectorAll('.mem-knob input')) {
    const path = slider.dataset.path, value = pending.has(path) ? pending.get(path) : values[path];
    if (!(value > 0)) continue;
    if (slider.dataset.held !== 'yes') slider.value = String(nearest(STOPS[path], value));
    name(slider, value);
  }
}
const idOf = (path) => 'knob-' + path.replaceAll('.', '-').replaceAll('_', '-');
const fieldOf = (path) => { const knob = document.getElementById(idOf(path));
  return knob && (knob.querySelector('input[type=radio]:checked') || knob.querySelector('input, textarea')); };
const choice = (words) => words.split(' ')[0];  // "paged_adamw_8bit (needs CUDA)"
const textOf = (field) => field.type === 'checkbox' ? String(field.checked) : field.role === 'combobox' ? choice(field.value) : field.value;
const standing = () => Object.fromEntries(Object.keys(STOPS).map((path) => [path, Number((fieldOf(path) || {}).value)]));
let resting = null;
function commit() {
  clearTimeout(resting);
  for (const [path, value] of [...pending]) {
    const field = fieldOf(path);
    pending.delete(path);
    if (!field) continue;
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(field, String(value));
    tell(field, ['input']);
  }
}
document.addEventListener('pointerdown', () => { if (pending.size) commit(); }, true);
let asking = false, again = false, movedAt = -1e9;
async function ask(path, text) {
  movedAt = performance.now();
  moved.set(path, text);
  again = true;
  if (asking || !told) return;
  asking = true;
  try {
    while (again) {
      again = false;
      const answer = await fetch('api/memory/' + told.key + '?' + new URLSearchParams([...moved]), {cache: 'no-store'});
      if (!answer.ok) break;
      const bar = await answer.json();
      if (bar.state === 'bar') show(bar);
    }
  } catch (error) { console.info('no bar: ' + error); }
  asking = false;
  requestAnimationFrame(() => setTimeout(release));
}
// What gradio does about a change keeps the page from drawing for a tenth of a second. So a knob's
// events reach it once the bar has moved: HOLD_MS later at most, and before any other key or click.
const HOLD_MS = 80, HELD_BACK = ['checkbox', 'radio', 'number'];
let held = null, ours = false;
function tell(field, kinds) {
  ours = true;
  for (const kind of kinds) field.dispatchEvent(new Event(kind, {bubbles: true}));
  ours = false;
}
function release() {
  if (!held) return;
  const {field, value, checked, kinds} = held;
  held = null;
  if (field.value !== value) field.value = value;
  field.checked = checked;
  tell(field, kinds);
}
function holdBack(event) {
  const field = event.target;
  if (held && held.field !== field) release();
  if (!held) { held = {field, kinds: new Set()}; setTimeout(release, HOLD_MS); }
  Object.assign(held, {value: field.value, checked: field.checked}).kinds.add(event.type);
  event.stopImmediatePropagation();
}
for (const kind of ['pointerdown', 'keydown', 'click', 'focusin']) document.addEventListener(kind, release, true);
// A choice of a dropdown stands in its list, not yet in its field.
function heard(event) {
  const knob = told && !ours && event.target.closest ? event.target.closest('[id^=knob-]') : null;
  const path = knob && Object.keys(told.knobs).find((one) => idOf(one) === knob.id);
  if (!path) return;
  const option = event.target.closest('[role=option]');
  if (event.type === 'mousedown') { if (option) ask(path, choice(option.getAttribute('aria-label'))); return; }
  if (event.target.role === 'combobox') return;
  if (event.type === 'input') ask(path, textOf(event.target));
  if (HELD_BACK.includes(event.target.type) && (held || event.type === 'input')) holdBack(event);
}
for (const kind of ['input', 'change', 'mousedown']) document.addEventListener(kind, heard, true);
for (const slider of element.querySelectorAll('.mem-knob input')) {
  const path = slider.dataset.path;
  slider.max = String(STOPS[path].length - 1);
  const hold = (state) => () => { slider.dataset.held = state; };
  slider.addEventListener('pointerdown', hold('yes'));
  for (const end of ['pointerup', 'pointercancel', 'change']) slider.addEventListener(end, hold('no'));
  slider.addEventListener('input', () => {
    const value = STOPS[path][Number(slider.value)];
    name(slider, value);
    pending.set(path, value);
    ask(path, String(value));
    clearTimeout(resting);
    resting = setTimeout(commit, 250);
  });
}
// Whether a value is what its field says; a list is of modules ticked one by one.
const stands = (value, field) => typeof value === 'object' || !field || String(value) === textOf(field) ||
  (typeof value === 'number' && value === Number(textOf(field)));
const helped = new Set();
let late = null;
function take() {
  let now = null;
  try { now = props.value ? JSON.parse(props.value) : null; } catch (error) { console.info('no bar: ' + error); }
  if (!now) return;
  if (now.state === 'measured') { trigger('refresh'); return; }
  if (now.state === 'measuring') trigger('measure');
  // What would help most is not counted yet: it is asked for once, the bar is there meanwhile.
  if (now.more && !helped.has(now.key)) { helped.add(now.key); trigger('measure'); }
  // An answer to what stood there before the hand moved on: the next one is on its way.
  if (now.state === 'bar') {
    for (const path of [...moved.keys()]) if (!pending.has(path) && stands(now.knobs[path], fieldOf(path))) moved.delete(path);
    clearTimeout(late);
    if (moved.size && performance.now() - movedAt < 3000) { late = setTimeout(() => trigger('refresh'), 1500); return; }
    moved.clear();
  }
  show(now);
}
function show(now) {
  root.dataset.state = now.state;
  root.dataset.tone = now.tone || '';
  strip.dataset.tone = now.tone || '';
  q('.mem-sentence').textContent = now.sentence.replace(/[.]?$/, '.');
  q('.mem-strip-words').textContent = now.sentence;
  if (now.state !== 'bar') { if (!told) sliders(); return; }
  told = now;
  draw();
  for (const part of ['.mem-draw', '.mem-list', '.mem-tip', '.mem-notes', '.mem-details']) q(part).hidden = false;
  root.dataset.expected = String(told.expected);
}
// Scrolled out of sight, the bar goes on as a strip at the top of the window.
new IntersectionObserver(([entry]) => {
  strip.hidden = !(told && !entry.isIntersecting && entry.boundingClientRect.bottom <= 0 && root.offsetParent);
}).observe(q('.mem-draw'));
watch('value', take);
take();
