// Header: machine meter, state chip, doctor panel, theme toggle, progress in the tab's title.
// Polls /api/machine every 2 s while the page is visible; hidden, every 10 s and only during a
// run, so that the title still tells how far it is. Tells the live view through 'studio-machine'.
const q = (selector) => element.querySelector(selector);
const TITLE = 'LoRA Studio';
const TONES = {queued: 'wait', starting: 'wait', running: 'go', pausing: 'wait', stopping: 'wait',
  paused: 'hold', done: 'ok', stopped: 'hold', failed: 'bad', interrupted: 'bad'};
const LIVE = ['queued', 'starting', 'running', 'pausing', 'stopping'];
const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);
let busy = false, active = false, lastPoll = 0, fails = 0;

function showMemory(machine) {
  const gpu = (machine.gpu || [])[0];
  const used = gpu ? gpu.used_bytes : machine.ram_used_bytes;
  const total = gpu ? gpu.total_bytes : machine.ram_total_bytes;
  q('.dev').textContent = gpu ? gpu.name.replace('NVIDIA ', '').replace('GeForce ', '') : 'CPU';
  if (!used || !total) { q('.mem').textContent = gpu ? 'memory unknown' : '\u2013'; return; }
  const unit = gpu ? ' GiB' : ' GiB RAM';
  q('.mem').textContent = gib(used) + ' / ' + gib(total) + unit;
  const share = Math.min(100, 100 * used / total);
  q('.meter i').style.width = share + '%';
  q('.meter').dataset.full = share > 92 ? 'yes' : 'no';
  const more = gpu ? [gpu.utilisation_pct != null ? gpu.utilisation_pct + ' % busy' : '',
    gpu.temperature_c != null ? gpu.temperature_c + ' \u00b0C' : '',
    gpu.power_w != null ? Math.round(gpu.power_w) + ' W' : ''].filter(Boolean).join(', ')
    : 'CPU ' + Math.round(machine.cpu_pct || 0) + ' % busy';
  q('.device').title = more + (machine.free_disk_bytes ? '; ' + gib(machine.free_disk_bytes)
    + ' GiB disk free' : '') + (machine.note ? '; ' + machine.note : '');
}

function showState(run) {
  const state = run ? run.state : '';
  active = LIVE.includes(state);
  const share = run && run.total_steps ? Math.floor(100 * run.step / run.total_steps) : null;
  let words = 'Idle';
  if (active) words = state[0].toUpperCase() + state.slice(1)
    + (state === 'running' && share !== null ? ' ' + share + ' %' : '');
  else if (run && ['paused', 'interrupted'].includes(state)) words = state[0].toUpperCase() + state.slice(1);
  q('.st').textContent = words;
  q('.state .dot').dataset.tone = words === 'Idle' ? 'idle' : (TONES[state] || 'idle');
  q('.state').setAttribute('aria-label', 'State of the studio: ' + words + '. Go to the run');
  const title = active ? (share !== null && run.step ? share + ' % \u00b7 ' : '\u25cf ')
    + (run.name || 'training') + ' \u00b7 ' + TITLE : TITLE;
  if (document.title !== title) document.title = title;
}

async function poll() {
  if (!element.isConnected) { clearInterval(timer); return; }
  const wait = document.hidden ? (active ? 10000 : Infinity) : 1900;
  if (busy || Date.now() - lastPoll < wait) return;
  busy = true; lastPoll = Date.now();
  try {
    const answer = await fetch('api/machine', {headers: {accept: 'application/json'}});
    if (!answer.ok) throw new Error(String(answer.status));
    const machine = await answer.json();
    showMemory(machine); showState(machine.run || null); fails = 0;
    window.dispatchEvent(new CustomEvent('studio-machine', {detail: machine}));
  } catch (error) {
    fails += 1;
    if (fails === 3) { q('.st').textContent = 'No connection'; q('.state .dot').dataset.tone = 'bad'; }
  } finally { busy = false; }
}
const timer = setInterval(poll, 1000);
document.addEventListener('visibilitychange', () => { if (!document.hidden) { lastPoll = 0; poll(); } });
window.addEventListener('studio-poll', () => { lastPoll = 0; poll(); });
poll();

q('.mode').addEventListener('click', () => {
  const dark = document.body.classList.toggle('dark');
  try { localStorage.setItem('studio-theme', dark ? 'dark' : 'light'); }
  catch (error) { console.info('theme is not kept: ' + error); }
  window.dispatchEvent(new Event('studio-theme'));
});

function toggleDoctor(open) {
  q('.doctor-panel').hidden = !open;
  q('.doctor').setAttribute('aria-expanded', String(open));
}
q('.doctor').addEventListener('click', () => toggleDoctor(q('.doctor-panel').hidden));
document.addEventListener('keydown', (event) => { if (event.key === 'Escape') toggleDoctor(false); });
document.addEventListener('click', (event) => {
  if (!event.target.closest('.doctor') && !event.target.closest('.doctor-panel')) toggleDoctor(false);
});

// Tabs: the open one survives a reload of this browser tab.
const KEY = 'studio-tab';
const tabButton = (name) => [...document.querySelectorAll('button[role=tab]')]
  .find((button) => button.textContent.trim() === name);
q('.state').addEventListener('click', () => { const tab = tabButton('Train'); if (tab) tab.click(); });
function rememberTab() {
  const tab = document.querySelector('button[role=tab][aria-selected=true]');
  if (!tab) return;
  sessionStorage.setItem(KEY, tab.textContent.trim());
  document.body.dataset.tab = tab.textContent.trim();
}
// Names that gradio draws as text only: the file input and the two chat logs get them as well.
const NAMES = [['#upload input[type=file]', 'Training file'], ['#chat-base [role=log]', 'Base model'],
  ['#chat-adapter [role=log]', 'With adapter']];
const ACCEPTED = [['#upload input[type=file]', '.csv,.tsv,.json,.jsonl,.ndjson,.parquet,.txt,.md,.gz']];
function nameThings() {
  for (const [selector, name] of NAMES) {
    const found = document.querySelector(selector);
    if (found && found.getAttribute('aria-label') !== name) found.setAttribute('aria-label', name);
  }
  // What the file dialog offers; anything else is answered by the studio itself.
  for (const [selector, kinds] of ACCEPTED) {
    const input = document.querySelector(selector);
    if (input && input.accept !== kinds) input.accept = kinds;
  }
  // An empty chat is no landmark of the page.
  document.querySelectorAll('.placeholder-content[role]').forEach((node) => node.removeAttribute('role'));
}
setInterval(nameThings, 250);

// Gradio sets the first tab once more while it mounts: ask again until the choice holds.
const wantedTab = sessionStorage.getItem(KEY);
let held = 0, touched = !wantedTab || wantedTab === 'Data';
document.addEventListener('pointerdown', () => { touched = true; }, {once: true, capture: true});
const reopen = setInterval(() => {
  const tab = touched ? null : tabButton(wantedTab);
  if (tab && tab.getAttribute('aria-selected') !== 'true') { held = 0; tab.click(); return; }
  held += tab ? 1 : 0;
  if (touched || held > 10) { clearInterval(reopen); rememberTab(); setInterval(rememberTab, 250); }
}, 100);
