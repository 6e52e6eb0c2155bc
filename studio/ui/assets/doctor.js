// Out of memory: what was asked, what was free and what would fit, in the live view of a run that
// ended so. The first answer about a model takes seconds, so a line says that it is being worked on.
let doctorOf = '';
function hideDoctor() { doctorOf = ''; q('.l-doctor').hidden = true; q('.l-doctor').replaceChildren(); }
async function showDoctor() {
  const id = run, box = q('.l-doctor');
  const ended = info && info.error && info.error.memory && ['failed', 'interrupted'].includes(info.state);
  if (!ended) { hideDoctor(); return; }
  const key = id + ' ' + info.state + ' ' + (info.state_record || {}).attempt;
  if (doctorOf === key) return;
  doctorOf = key; box.hidden = false;
  box.replaceChildren(el('p', 'muted', 'Working out which settings would fit (a few seconds) \u2026'));
  try {
    const answer = await fetch('api/runs/' + encodeURIComponent(id) + '/doctor');
    const found = await answer.json();
    if (id !== run || doctorOf !== key) return;
    if (answer.ok) box.innerHTML = found.html;
    else box.replaceChildren(el('p', 'muted', found.error ? found.error.text : 'No advice: ' + answer.status));
  } catch (error) { doctorOf = ''; console.info('out-of-memory doctor: ' + error); }
}
q('.l-doctor').addEventListener('click', (event) => {
  const button = event.target.closest('.a-rescue'), chosen = q('.l-doctor input:checked');
  if (!button || !chosen || !run) return;
  button.disabled = true; trigger('rescue', {run, option: chosen.value});
  setTimeout(() => { button.disabled = false; }, 5000);
});
