// Live view: follows one run through /api/runs/<id>/metrics?since=CURSOR, once a second while it
// is visible. Holds no truth: everything shown comes from the run's files, so a reload, a second
// tab or a restarted studio show the same. `value` = id of a run to show; "" = the newest.
const LIVE = ['queued', 'starting', 'running', 'pausing', 'stopping'];
const RESUMABLE = ['paused', 'stopped', 'failed', 'interrupted'];
const WORDS = {
  queued: 'Waiting for its turn', starting: 'Starting', running: 'Training', pausing: 'Saving, then pausing',
  paused: 'Paused: everything is saved and the memory is free. Resume continues at this step.',
  stopping: 'Saving, then stopping', stopped: 'Stopped. What it learned so far is kept.', done: 'Done',
  failed: 'Failed', interrupted: 'The training process ended without a word (killed, or a power cut). Resume continues from the last checkpoint.'};
const UNBEGUN = {stopped: 'Stopped before its first step.', paused: 'Paused before its first step. Resume starts it.'};
const PHASES = {loading: 'Loading libraries and the model', data: 'Preparing the examples',
  first_step: 'First step', training: 'Training', eval: 'Measuring on the held-out rows',
  sampling: 'Answering the held-out prompts', saving: 'Saving a checkpoint'};
let pinned = String(props.value || ''), run = null, cursor = '', busy = false, fails = 0;
let turn = 0, smooth = null, weight = 0, lastState = '', heldMemory = null, samples = [], warned = [], info = null;

const clock = (s) => s == null || !isFinite(s) ? '\u2013' : s >= 3600 ? (s / 3600).toFixed(1) + ' h'
  : s >= 60 ? Math.floor(s / 60) + 'm ' + String(Math.round(s % 60)).padStart(2, '0') + 's' : Math.round(s) + 's';
const el = (tag, cls, text) => { const n = document.createElement(tag); if (cls) n.className = cls;
  if (text !== undefined) n.textContent = text; return n; };

function forget() {
  hideDoctor(); cursor = ''; smooth = null; weight = 0; heldMemory = null; samples = []; warned = [];
  charts.forEach((chart) => chart.clear());
  for (const cls of ['.t-loss', '.t-speed', '.t-eta', '.t-mem']) q(cls).textContent = '\u2013';
  for (const cls of ['.l-warnings', '.answers', '.l-stalled', '.l-ending', '.l-warm', '.l-end', '.l-memory']) q(cls).hidden = true;
}
function show(id) { if (id === run) return; run = id; info = null; lastState = ''; forget(); }

// Exponential mean with bias correction: the first points count fully.
function smoothed(value) {
  if (value === null) return null;
  smooth = (smooth || 0) * 0.9 + value * 0.1; weight = weight * 0.9 + 0.1;
  return smooth / weight;
}

function takeSteps(s) {
  s.step.forEach((step, i) => {
    const loss = s.loss ? s.loss[i] : null, mean = smoothed(loss);
    lossChart.add(RAW, step, loss); lossChart.add(SMOOTH, step, mean);
    if (s.tokens_per_s && s.tokens_per_s[i] != null) speedChart.add(0, step, s.tokens_per_s[i]);
    if (s.grad_norm && s.grad_norm[i] != null) gradChart.add(0, step, s.grad_norm[i]);
    if (s.learning_rate && s.learning_rate[i] != null) rateChart.add(0, step, s.learning_rate[i]);
  });
  const last = s.step.length - 1;
  if (weight) q('.t-loss').textContent = (smooth / weight).toFixed(3);
  const speed = s.tokens_per_s && s.tokens_per_s[last];
  if (speed != null) q('.t-speed').textContent = speed >= 100 ? Math.round(speed).toLocaleString('en') : speed.toFixed(1);
}
// Samples come once a second, steps at their own pace: one point a step, the highest of its samples.
function takeDevice(s) {
  const used = s.process_bytes || s.reserved_bytes, onGpu = s.device_used_bytes && s.device_used_bytes.some((v) => v);
  const column = onGpu ? (s.device_used_bytes || used) : s.rss_bytes;
  if (!column) return;
  q('.t-mem-label').textContent = onGpu ? 'VRAM now' : 'Memory (RSS)';
  q('.h-mem').textContent = onGpu ? 'GPU memory (GiB)' : 'Memory of the run (RSS, GiB)';
  s.step.forEach((step, i) => {
    if (column[i] == null) return;
    const value = column[i] / 2 ** 30, limit = onGpu && s.device_total_bytes ? s.device_total_bytes[i] / 2 ** 30 : null;
    q('.t-mem').textContent = value.toFixed(value < 10 ? 2 : 1);
    if (heldMemory && heldMemory.step !== step) flushMemory();
    heldMemory = {step, limit, value: Math.max(value, heldMemory ? heldMemory.value : 0)};
  });
}
function flushMemory() {
  if (!heldMemory) return;
  memChart.add(0, heldMemory.step, heldMemory.value);
  if (heldMemory.limit) memChart.add(1, heldMemory.step, heldMemory.limit);
  heldMemory = null;
}
function takePhases(s) {
  const trace = {loading: LOADED, eval: EVALUATED, saving: SAVED};
  const words = {loading: 'Loading', eval: 'Evaluation', saving: 'Saved'};
  const height = {loading: 0.13, eval: 0.03, saving: 0.08};
  s.name.forEach((name, i) => {
    if (s.status[i] !== 'end' || !(name in trace)) return;
    const took = s.duration_s && s.duration_s[i] != null ? ', ' + s.duration_s[i].toFixed(1) + ' s' : '';
    lossChart.add(trace[name], s.step[i], height[name], words[name] + took + ' (step ' + s.step[i] + ')');
  });
}
function takeWarnings(s) {
  const box = q('.l-warnings');
  s.text.forEach((text) => { if (text && !warned.includes(text) && warned.length < 5) {
    warned.push(text); if (warned.length === 1) box.replaceChildren(); box.append(el('p', '', text)); box.hidden = false; } });
}
function rewind(step) {
  charts.forEach((chart) => chart.cut(step)); heldMemory = null;
  samples = samples.filter((row) => row.step <= step);
}

function answerCard(first, last) {
  const card = el('article', 'answer');
  card.append(el('p', 'prompt', first.prompt || ''));
  const pair = el('div', 'pair');
  const sides = [[first, 'Step ' + first.step + ' (before)'], [last, 'Step ' + last.step]];
  for (const [row, label] of first === last ? sides.slice(0, 1) : sides) {
    const side = el('div', row === first ? 'side before' : 'side after');
    side.append(el('h4', '', label), el('p', 'said', row.answer || '(nothing)'));
    if (row.truncated) side.append(el('p', 'muted', '(cut at ' + row.tokens + ' tokens)'));
    pair.append(side);
  }
  card.append(pair);
  if (last.reference) { const more = el('p', 'muted expected'); more.append(el('b', '', 'In the data: '), last.reference); card.append(more); }
  return card;
}
function takeSamples(rows) {
  if (!rows.length) return;
  samples = samples.concat(rows);
  const byPrompt = new Map();
  samples.forEach((row) => { if (!byPrompt.has(row.prompt_index)) byPrompt.set(row.prompt_index, []); byPrompt.get(row.prompt_index).push(row); });
  q('.answer-list').replaceChildren(...[...byPrompt.values()].map((list) => answerCard(list[0], list[list.length - 1])));
  q('.answers').hidden = false;
}

function showProgress(d) {
  const total = d.total_steps || 0, share = total ? Math.min(100, 100 * d.step / total) : 0;
  q('.t-step').textContent = String(d.step || 0);
  q('.t-total').textContent = total ? '/ ' + total.toLocaleString('en') : '';
  q('.prog i').style.width = share + '%';
  q('.prog').setAttribute('aria-valuenow', String(Math.round(share)));
  q('.prog').dataset.busy = LIVE.includes(d.state) && !d.step ? 'yes' : 'no';
  const live = LIVE.includes(d.state), took = info && info.duration_s;
  q('.t-time-label').textContent = live || !took ? 'Time left' : 'Took';
  q('.t-eta').textContent = live ? clock(d.eta_s) : took ? clock(took) : '\u2013';
}
function showState(d) {
  const state = d.state || '', root = q('.live'), pill = q('.l-state');
  pill.textContent = state; pill.dataset.state = state; root.dataset.state = state;
  const live = LIVE.includes(state);
  const words = state === 'running' || state === 'starting' ? d.message || PHASES[d.phase] || WORDS[state] : WORDS[state];
  q('.l-message').textContent = (!d.step && UNBEGUN[state]) || words || '';
  q('.l-ending').hidden = !d.ending;
  q('.l-ending').textContent = d.ending ? d.ending.text : '';
  showStall(d.stalled, pill);
  q('.a-pause').disabled = READ_ONLY || !['starting', 'running'].includes(state);
  q('.a-resume').disabled = !canResume(state);
  q('.a-stop').disabled = READ_ONLY || !live || state === 'stopping';
  const ordered = !!d.ending && d.ending.verb === 'stop_now';
  q('.a-stop-now').hidden = READ_ONLY || !live || !(d.ending || d.stalled);
  q('.a-stop-now').disabled = ordered;
  const unexplained = state === 'interrupted' && info && !info.error && turn % 3 === 0;
  if (state !== lastState || unexplained) { lastState = state; describe(); }
}
const canResume = (state) => !READ_ONLY && RESUMABLE.includes(state) && !(info && (info.read_only || info.warm_start));
function showStall(stalled, pill) {
  q('.l-stalled').hidden = !stalled;
  q('.l-stall-text').textContent = stalled ? stalled.text : '';
  const what = q('.l-stall-what'), remedy = stalled ? stalled.remedy : '';
  if (what.textContent !== remedy) what.textContent = remedy;  // told once, not at each second
  if (stalled) { pill.textContent = 'stalled'; pill.dataset.state = 'stalled'; }
}
async function describe() {
  const id = run, answer = await fetch('api/runs/' + encodeURIComponent(id));
  if (!answer.ok || id !== run) return;
  info = await answer.json();
  q('.l-name').textContent = info.name || id;
  q('.l-sub').textContent = [info.model_name, info.method, info.dataset_name].filter(Boolean).join(' \u00b7 ');
  const end = q('.l-end'), bad = ['failed', 'interrupted'].includes(info.state);
  const text = info.error ? info.error.text || info.error.what : info.verdict;
  end.textContent = LIVE.includes(info.state) ? '' : text || '';
  end.hidden = !end.textContent; end.dataset.tone = bad ? 'bad' : 'ok';
  const done = ['done', 'stopped', 'paused'].includes(info.state) && info.step > 0;
  q('.a-chat').hidden = !done;
  q('.a-chat').textContent = info.state === 'done' ? 'Done. Chat with it' : 'Chat with it';
  q('.a-resume').disabled = !canResume(info.state);
  q('.l-warm').hidden = READ_ONLY || !info.warm_start;
  if (info.warm_start) q('.l-warm-why').textContent = 'A new run can begin with what this one has learned, with the settings and the data as they are now.';
  showDoctor();
  if (info.duration_s && !LIVE.includes(info.state)) { q('.t-time-label').textContent = 'Took'; q('.t-eta').textContent = clock(info.duration_s); }
  if (!LIVE.includes(info.state)) { flushMemory(); memChart.draw(); }
  showMemory();
}

async function poll() {
  if (!element.isConnected) { clearInterval(timer); return; }
  if (document.hidden || busy || !run || element.offsetParent === null) return;
  busy = true; const id = run;
  try {
    const answer = await fetch('api/runs/' + encodeURIComponent(id) + '/metrics?since=' + encodeURIComponent(cursor));
    if (answer.status === 404) { run = null; return; }
    if (!answer.ok) throw new Error(String(answer.status));
    const d = await answer.json();
    if (id !== run) return;
    const began = performance.now();
    if (d.reset) forget();
    const s = d.series || {};
    if (s.resume) rewind(Math.min(...s.resume.from_step));
    if (s.phase) takePhases(s.phase);
    if (s.step) takeSteps(s.step);
    if (s.eval) s.eval.step.forEach((step, i) => lossChart.add(EVAL, step, s.eval.eval_loss[i]));
    if (s.device) takeDevice(s.device);
    if (s.warning) takeWarnings(s.warning);
    cursor = d.cursor; takeSamples(d.samples || []); showProgress(d); showState(d);
    fails = 0; q('.stale').textContent = '';
    // Behind many points the small charts take turns: a tick stays cheap.
    turn += 1;
    if (LIVE.includes(d.state) && turn % MEMORY_EVERY === 0) showMemory();
    const many = lossChart.kept[RAW].x.length > 500 && charts.every((chart) => chart.drawn);
    const due = many && LIVE.includes(d.state) ? [charts[0], charts[1 + turn % 4]] : charts;
    for (const chart of due) await chart.draw();
    element.dataset.tick = (performance.now() - began).toFixed(1);
    element.dataset.points = String(lossChart.kept[RAW].x.length);
  } catch (error) {
    fails += 1; console.info('live view: ' + error);
    if (fails >= 3) q('.stale').textContent = 'Connection lost \u2013 retrying. The training continues.';
  } finally { busy = false; }
}
function follow(machine) {
  const newest = machine.run && machine.run.id;
  const watched = pinned && run === pinned;
  if (!watched && newest && newest !== run) { show(newest); poll(); }
  q('.a-follow').hidden = !(watched && newest && newest !== run);
}

function send(verb) { if (run) trigger('command', {run, verb}); setTimeout(() => { poll(); window.dispatchEvent(new Event('studio-poll')); }, 300); }
q('.a-pause').addEventListener('click', () => send('pause'));
q('.a-resume').addEventListener('click', () => send('resume'));
q('.a-stop').addEventListener('click', () => send('stop'));
q('.a-stop-now').addEventListener('click', () => send('stop_now'));
q('.a-warm').addEventListener('click', () => { q('.a-warm').disabled = true; trigger('warm', {run});
  setTimeout(() => { q('.a-warm').disabled = false; }, 5000); });
q('.a-chat').addEventListener('click', () => trigger('chat', {run}));
q('.a-follow').addEventListener('click', () => { props.value = ''; pinned = ''; run = null; window.dispatchEvent(new Event('studio-poll')); });
watch('value', () => { pinned = String(props.value || ''); if (pinned) { show(pinned); poll(); }
  window.dispatchEvent(new Event('studio-poll')); });
window.addEventListener('studio-machine', (event) => follow(event.detail));
window.addEventListener('studio-theme', () => charts.forEach((chart) => chart.restyle()));
document.addEventListener('visibilitychange', poll);
const timer = setInterval(poll, 1000);
if (pinned) show(pinned);
window.dispatchEvent(new Event('studio-poll'));
