// Out of memory: what was asked, what was free and what would fit, in the live view of a run that
// ended so. The first answer about a model may take a minute, so a line counts its seconds.
let doctorOf = '';
function hideDoctor() { doctorOf = ''; q('.l-doctor').hidden = true; q('.l-doctor').replaceChildren(); }
// Where there are options, the run's own line need not name knobs as well.
function pointToDoctor() {
  if (q('.l-doctor input')) q('.l-end').textContent = info.error.what.replace(/[.]?$/, '.') + ' What would fit stands below.';
}
async function showDoctor() {
  const id = run, box = q('.l-doctor');
  const ended = info && info.error && info.error.memory && ['failed', 'interrupted'].includes(info.state);
  if (!ended) { hideDoctor(); return; }
  const key = id + ' ' + info.state + ' ' + (info.state_record || {}).attempt;
  if (doctorOf === key) { pointToDoctor(); return; }
  doctorOf = key; box.hidden = false;
  const line = el('p', 'muted'), begun = performance.now();
  const count = () => { line.textContent = 'Working out which settings would fit: ' + Math.round((performance.now() - begun) / 1000) + ' s, up to a minute \u2026'; };
  const counting = setInterval(count, 1000);
  count(); box.replaceChildren(line);
  try {
    const answer = await fetch('api/runs/' + encodeURIComponent(id) + '/doctor');
    const found = await answer.json();
    if (id !== run || doctorOf !== key) return;
    if (answer.ok) { box.innerHTML = found.html; pointToDoctor(); }
    else box.replaceChildren(el('p', 'muted', found.error ? found.error.text : 'No advice: ' + answer.status));
  } catch (error) { doctorOf = ''; console.info('out-of-memory doctor: ' + error); } finally { clearInterval(counting); }
}
q('.l-doctor').addEventListener('click', (event) => {
  const button = event.target.closest('.a-rescue'), chosen = q('.l-doctor input:checked');
  if (!button || !chosen || !run) return;
  button.disabled = true; trigger('rescue', {run, option: chosen.value});
  setTimeout(() => { button.disabled = false; }, 5000);
});
